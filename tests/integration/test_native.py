# SPDX-License-Identifier: GPL-3.0-or-later
"""The role pgml_native: what it refuses, and what it does to a server that has the extension's files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import pgml, playbooks
from tests.support.cluster import Cluster
from tests.support.playbooks import Ansible, Unsafe, login

pytestmark = pytest.mark.slow

STARTED = "SELECT pg_postmaster_start_time()"


class Role:
    """Somebody's playbook that includes the role, on a host which is this one."""

    def __init__(self, ansible: Ansible, server: Cluster) -> None:
        self._ansible = ansible
        self._server = server

    def _task(self, **variables: Any) -> dict[str, Any]:
        given = {"install": "preinstalled", "database": "ml", "login": login(self._server), "become_user": ""}
        prefixed = {f"pgml_native_{key}": value for key, value in {**given, **variables}.items()}
        return {"include_role": {"name": "postgresml.distributed.pgml_native"}, "vars": prefixed}

    def _run(self, tasks: list[dict[str, Any]]) -> playbooks.Run:
        path = self._ansible.write("site.yml", [{"hosts": "all", "gather_facts": False, "tasks": tasks}])
        host = {key: value for key, value in playbooks.host(self._server).items() if not key.startswith("pgml_")}
        return self._ansible.run(path, {"all": {"hosts": {"db": host}}})

    def run(self, *uses: dict[str, Any], before_the_last: str = "true") -> playbooks.Run:
        """Use the role with some variables, and then with others, whether it fails or not."""
        blocks = [{"block": [self._task(**use)], "rescue": [{"debug": {"msg": "refused"}}]} for use in uses]
        command = {"shell": before_the_last, "changed_when": False, "check_mode": False}
        return self._run([*blocks[:-1], command, blocks[-1]])

    def refused(self, *mistakes: dict[str, Any], before_the_last: str = "true") -> list[str]:
        """The message of each, in one run, which must change nothing."""
        run = self.run(*mistakes, before_the_last=before_the_last)
        assert run.ok and not run.changed, run.output
        messages = [message for _, message in run.failures]
        assert len(messages) == len(mistakes), run.output
        return messages


@pytest.fixture(scope="module")
def plain() -> Iterator[Cluster]:
    """A server without the extension."""
    with playbooks.cluster() as server:
        server.create_database("ml")
        yield server


SHA = hashlib.sha256(b"").hexdigest()
MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"install": "compile"}, "package, package_files, artifact, preinstalled"),
    ({"primary": True}, "takes memory that work_mem doesn't bound"),
    ({"primary": True}, "accept the risk with pgml_native_on_primary: true"),
    ({"install": "package_files", "package_files": [{"path": "/tmp/pgml.deb"}]}, "and sha256, the file's checksum"),
    ({"install": "package_files"}, "pgml_native_package_files needs path or url"),
    ({"install": "artifact", "artifact": {"url": "x", "path": "y", "sha256": SHA}}, "one of both"),
    ({"install": "artifact", "artifact": {"url": "https://x/y", "sha256": "abc"}}, "of 64 hexadecimal digits"),
    ({"install": "package", "repository": {"uris": "x", "suites": "y"}}, "and key, the armoured key that signs it"),
    ({"settings": {"work_mem": "1GB"}}, "has work_mem: it takes names that begin with pgml."),
    ({"wheelhouse": "/tmp"}, "pgml_native_wheelhouse needs pgml_native_requirements"),
    ({"database": "nowhere"}, "db has no database nowhere: create it"),
    ({"primary": True, "on_primary": True}, "/pgml.so, where PostgreSQL"),
]


def test_what_can_not_work_is_refused(plain: Cluster, tmp_path: Path) -> None:
    messages = Role(Ansible(tmp_path), plain).refused(*(mistake for mistake, _ in MISTAKES))
    for message, (_, words) in zip(messages, MISTAKES, strict=True):
        assert words in message, message


LOOSE = ["numpy", "numpy>=1.26.4", "numpy==1.*", "-r other.txt", "numpy @ https://example.com/numpy.whl"]


def test_a_lock_must_pin_everything(plain: Cluster, tmp_path: Path) -> None:
    """Comments, hashes on lines of their own, markers and options that choose the source are no packages."""
    locks = [tmp_path / f"{number}.txt" for number in range(len(LOOSE))]
    for lock, line in zip(locks, LOOSE, strict=True):
        lock.write_text(f"# ours\n--only-binary=:all:\na==1.1 \\\n    --hash=sha256:{SHA}\n{line}\nx[y]==1.0; b # z\n")
    messages = Role(Ansible(tmp_path), plain).refused(*({"requirements": str(lock)} for lock in locks))
    for message, line in zip(messages, LOOSE, strict=True):
        assert f"must pin each package with ==, and has {line}: write down" in message


@pytest.fixture
def server() -> Iterator[Cluster]:
    """A server that has the extension's files and doesn't load the library."""
    with pgml.cluster(shared_preload_libraries="pg_stat_statements") as cluster:
        cluster.create_database("ml")
        cluster.create_database("other")
        yield cluster


@pytest.mark.sampled(0)
def test_the_library_that_is_there_is_loaded_and_stays_the_last_word(server: Cluster, tmp_path: Path) -> None:
    """Settings beside postgresql.conf, one restart for all that waits, and another one for a library that was replaced."""
    role = Role(Ansible(tmp_path), server)
    settings = {"pgml.omp_num_threads": 2, "pgml.huggingface_whitelist": Unsafe("it's \\n {{ x }}\nb")}
    run = role.run({"settings": settings}, {"settings": settings, "restart": True})
    assert run.ok, run.output
    assert "db must be restarted before shared_preload_libraries, pgml.conf take effect" in run.message
    assert run.output.count("Restart with pg_ctl for shared_preload_libraries, pgml.conf]") == 1
    assert server.sql("SHOW shared_preload_libraries") == [("pg_stat_statements, pgml",)]
    assert server.sql("SHOW pgml.huggingface_whitelist") == [("it's \\n {{ x }}\nb",)]
    assert server.sql("SELECT count(*) FROM pgml.projects", dbname="ml") == [(0,)]
    server.sql("DROP EXTENSION pgml; CREATE EXTENSION pgml VERSION '2.9.3'", dbname="ml")
    again = role.run({"settings": settings}, {"settings": settings, "update": True})
    assert (
        "has pgml 2.9.3, and the installed files bring 2.10.0: update it with pgml_native_update: true" in again.output
    )
    assert again.ok and not again.failures, again.output
    assert [task for _, task, _ in again.changed.elements()] == [
        "postgresml.distributed.pgml_native : Update the extension"
    ]
    started = server.sql(STARTED)
    library = server.bin_dir.parent / "lib" / "pgml.so"
    library.chmod(0o755)
    # Not in place, for the running server has it mapped.
    lock = tmp_path / "lock.txt"
    lock.write_text("numpy==1.26.4\n")
    break_it = f"mv {library} {library}.aside && head -c 4096 {library}.aside >{library}"
    try:
        replaced, other_python, no_environment, elsewhere, broken = role.refused(
            {"settings": settings},
            {"settings": settings, "requirements": str(lock), "python": "9.9"},
            {"settings": settings, "venv": "/nowhere"},
            {"settings": settings, "database": "other"},
            {"settings": settings, "restart": True},
            before_the_last=break_it,
        )
    finally:
        library.with_name("pgml.so.aside").rename(library)
    assert "db must be restarted before the library pgml.so takes effect" in replaced
    assert (
        f"python9.9 is not installed on db, and the environment must have the Python {pgml.python_version()}"
        in other_python
    )
    assert "db has no /nowhere/bin/activate_this.py: make the environment with virtualenv" in no_environment
    assert "has the extension pgml in database ml already" in elsewhere
    assert "pgml.so can't be loaded" in broken
    assert server.sql(STARTED) == started
    gone = role.run({"state": "absent", "drop_models": True, "restart": True})
    assert gone.ok and not gone.failures, gone.output
    assert server.sql("SHOW shared_preload_libraries") == [("pg_stat_statements",)]
    assert server.sql("SELECT to_regclass('pgml.models')", dbname="ml") == [(None,)]
    assert "pgml.conf" not in (server.data / "postgresql.conf").read_text() and not (server.data / "pgml.conf").exists()


@pytest.mark.sampled(0)
def test_it_is_part_of_a_distribution(tmp_path: Path) -> None:
    """On the primary with permission only, on a replica with the restart that its workers need, and its models outlast it."""
    quiet = {"shared_preload_libraries": ""}
    with pgml.cluster(**quiet) as shop, pgml.cluster(**quiet, max_logical_replication_workers="1") as replica:
        playbooks.load_shop(shop)
        distributions = [
            {"name": "shop", "database": "shop", "target_database": "ml", "strategy": "dump", "tables": ["products"]},
            {"name": "here", "database": "shop", "strategy": "native"},
        ]
        inventory = playbooks.inventory(
            shop, {"ml-1": replica}, distributions, pgml_native_install="preinstalled", pgml_native_restart=True
        )
        ansible = Ansible(tmp_path)
        refused = ansible.run("distribute.yml", inventory)
        assert not refused.ok and not refused.changed, refused.output
        assert "prod is a production primary. Training runs inside its backends" in refused.message
        permission = "--extra-vars=pgml_native_on_primary=true"
        first = ansible.ok("distribute.yml", inventory, permission)
        restarts = [host for host, task, _ in first.changed.elements() if "Restart with pg_ctl" in task]
        assert sorted(restarts) == ["ml-1", "prod"]
        # The first id went with the self-test.
        assert pgml.train(shop, "shop") == pgml.train(replica, "ml") == 2
        assert playbooks.count(replica, "ml", "products") == playbooks.count(shop, "shop", "products") > 0
        ansible.ok("teardown.yml", inventory)
        assert shop.sql("SHOW shared_preload_libraries") == [("",)]
        assert playbooks.count(shop, "shop", "pgml.models") == 1
        assert replica.sql("SHOW shared_preload_libraries") == [("pgml",)]
