# SPDX-License-Identifier: GPL-3.0-or-later
"""What is published: it holds what a user needs and nothing else, and works where it is installed."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from tests.support import playbooks
from tests.support.cluster import Cluster
from tests.support.playbooks import REPOSITORY, SHOP_TABLES, Ansible, count, login, program

pytestmark = pytest.mark.slow

TOP = {
    "CHANGELOG.md",
    "CODE_OF_CONDUCT.md",
    "CONTRIBUTING.md",
    "FILES.json",
    "LICENSE",
    "MANIFEST.json",
    "README.md",
    "SECURITY.md",
    "changelogs",
    "docs",
    "meta",
    "playbooks",
    "plugins",
    "roles",
}
META = {"runtime.yml", "execution-environment.yml", "ee-requirements.txt", "ee-bindep.txt"}
NEIGHBOUR = Path("ansible_collections", "community", "postgresql")


class Installed(Ansible):
    """Runs playbooks by name, away from the checkout, with the collections of *directory* alone."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.collections = directory / "collections"
        self.cwd = directory / "elsewhere"
        self.cwd.mkdir()

    def command(self, playbook: str | Path, content: Any, *arguments: str) -> list[str]:
        return [program("ansible-playbook"), "-i", str(self.write("inventory.yml", content)), str(playbook), *arguments]

    def environment(self) -> dict[str, str]:
        environment = {**super().environment(), "ANSIBLE_COLLECTIONS_PATH": str(self.collections)}
        del environment["ANSIBLE_CONFIG"]
        return environment

    def galaxy(self, *arguments: str) -> None:
        """Run ansible-galaxy collection."""
        command = [program("ansible-galaxy"), "collection", *arguments]
        done = subprocess.run(
            command, cwd=self.cwd, env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def ansible(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("artifact"))


@pytest.fixture(scope="module")
def artifact(ansible: Installed) -> Path:
    ansible.galaxy("build", "--output-path", str(ansible.directory), str(REPOSITORY))
    (path,) = ansible.directory.glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def installed(ansible: Installed, artifact: Path) -> Installed:
    """The artifact, in a path that held nothing but what galaxy.yml depends on."""
    shutil.copytree(REPOSITORY / ".ansible" / "collections" / NEIGHBOUR, ansible.collections / NEIGHBOUR)
    ansible.galaxy("install", "--offline", "--collections-path", str(ansible.collections), str(artifact))
    return ansible


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Cluster, Cluster]]:
    with playbooks.cluster() as primary, playbooks.cluster() as replica:
        playbooks.load_shop(primary)
        yield primary, replica


def test_it_holds_what_a_user_needs_and_nothing_else(artifact: Path) -> None:
    with tarfile.open(artifact) as archive:
        members = {PurePosixPath(member.name): member.isdir() for member in archive}
    files = [path for path, is_directory in members.items() if not is_directory]
    assert {path.parts[0] for path in members} == TOP
    assert {path.name for path in files if path.parts[0] == "meta"} == META
    assert [path for path in files if path.parts[0] == "changelogs"] == [PurePosixPath("changelogs", "changelog.yaml")]
    for path in members:
        assert not any(part.startswith((".", "__pycache__")) or part == "tests" for part in path.parts), path
    for path in files:
        assert path.suffix in {"", ".j2", ".json", ".md", ".py", ".rst", ".sql", ".svg", ".txt", ".yaml", ".yml"}, path


def test_every_playbook_is_in_it(installed: Installed) -> None:
    there = installed.collections / "ansible_collections" / "postgresml" / "distributed" / "playbooks"
    assert {path.name for path in there.glob("*.yml")} == {
        path.name for path in (REPOSITORY / "playbooks").glob("*.yml")
    }


@pytest.mark.sampled(0)
def test_it_distributes_twice(installed: Installed, servers: tuple[Cluster, Cluster]) -> None:
    primary, replica = servers
    shop = {"name": "shop", "database": "shop", "target_database": "ml", "tables": SHOP_TABLES}
    hosts = playbooks.inventory(primary, {"ml-1": replica}, [shop])
    first = installed.ok("postgresml.distributed.distribute", hosts)
    assert first.changed
    assert count(replica, "ml", "public.orders") == count(primary, "shop", "public.orders") > 0
    second = installed.ok("postgresml.distributed.distribute", hosts)
    assert {counters["changed"] for counters in second.recap.values()} == {0}


def test_the_login_options_can_be_given_once(installed: Installed, servers: tuple[Cluster, Cluster]) -> None:
    primary, _ = servers
    tasks = [
        {"postgresml.distributed.pgml_publication": {"name": "once", "tables": ["users"]}},
        {"postgresml.distributed.pgml_grants": {"role": "reader", "tables": ["users"]}},
        {"postgresml.distributed.pgml_settings": {"minimum": {"max_wal_senders": 5}}},
    ]
    primary.sql("CREATE ROLE reader")
    defaults = {"group/postgresml.distributed.pgml": login(primary, login_db="shop")}
    play = {"hosts": "primary", "gather_facts": False, "module_defaults": defaults, "tasks": tasks}
    hosts = {"all": {"hosts": {"primary": playbooks.host(primary)}}}
    run = installed.ok(installed.write("once.yml", [play]), hosts)
    assert run.recap["primary"]["changed"] == 2
    assert primary.sql("SELECT 1 FROM pg_publication WHERE pubname = 'once'", dbname="shop") == [(1,)]
