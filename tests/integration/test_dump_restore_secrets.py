# SPDX-License-Identifier: GPL-3.0-or-later
"""No password of a copy in any output at -vvv, in ps, in a file that others can read, in an archive or in the servers' logs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_secrets import LOUD, PASSWORDS, Verbose, Watch, leaks_in_files, secrets_in
from tests.support import playbooks
from tests.support.cluster import Cluster
from tests.support.playbooks import Run, Unsafe

pytestmark = pytest.mark.slow

FAILING = {"wrong login": "password authentication failed", "wrong source": "password authentication failed"}


class Seen:
    """Everything that copies with awkward passwords have left."""

    def __init__(self, directory: Path, source: Cluster, target: Cluster) -> None:
        self.directory = directory
        self.servers = source, target
        self.runs: dict[str, Run] = {}
        self.watch = Watch(directory / "ansible")


def task(source: Cluster, target: Cluster, /, **params: Any) -> dict[str, Any]:
    origin = {**source.source("shop"), "password": Unsafe(source.password)}
    module = {"source": origin, "all_tables": True, **target.login("ml"), "login_password": Unsafe(target.password)}
    return {"name": "Copy", "postgresml.distributed.pgml_dump_restore": {**module, **params}}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """Copies by every method, and two that fail, at -vvv and with --diff."""
    directory = tmp_path_factory.mktemp("secrets")
    source, target = playbooks.cluster(**LOUD), playbooks.cluster(**LOUD)
    source.password, target.password = PASSWORDS["admin"], PASSWORDS["replica"]
    with source, target:
        playbooks.load_shop(source)
        target.create_database("ml")
        result = Seen(directory, source, target)
        wrong = {**source.source("shop"), "password": Unsafe(PASSWORDS["wrong"])}
        archive = {"method": "archive", "archive": str(directory / "archive"), "refresh": "always"}
        steps = {
            "check": (task(source, target), "--check"),
            "stream": (task(source, target),),
            "archive": (task(source, target, **archive),),
            "truncate": (task(source, target, refresh="always", replace="truncate", format="text"),),
            "wrong login": (task(source, target, login_password=Unsafe(PASSWORDS["wrong"])),),
            "wrong source": (task(source, target, source=wrong),),
        }
        ansible = Verbose(directory)
        ansible.environment()
        hosts = {"all": {"hosts": {"localhost": playbooks.host(target)}}}
        with result.watch.looking():
            for step, (content, *arguments) in steps.items():
                play = [{"hosts": "localhost", "gather_facts": False, "tasks": [content]}]
                playbook = ansible.write("play.yml", play)
                result.runs[step] = ansible.run(playbook, hosts, "-vvv", "--diff", *arguments)
        yield result


def test_awkward_passwords_work(seen: Seen) -> None:
    for step, run in seen.runs.items():
        assert run.ok != (step in FAILING), run.output
        assert FAILING.get(step, "") in run.output
    source, target = seen.servers
    assert playbooks.count(target, "ml", "users") == playbooks.count(source, "shop", "users") > 0


def test_no_output_holds_a_password(seen: Seen) -> None:
    for step, run in seen.runs.items():
        assert "TASK [" in run.output and "invocation" in run.output
        assert [line[:500] for line in run.output.splitlines() if secrets_in(line)] == [], step
    log = (seen.directory / "ansible.log").read_text(encoding="utf-8")
    assert "TASK [" in log and not secrets_in(log)


def test_no_process_and_no_readable_file_held_a_password(seen: Seen) -> None:
    assert seen.watch.leaks == set()
    # It was there when it mattered.
    assert {"pg_dump", "pg_restore"} <= seen.watch.processes.programs
    assert seen.watch.looks > 50


def test_nothing_that_stays_holds_a_password(seen: Seen) -> None:
    assert leaks_in_files(seen.directory) == set()
    left = [path for name in ("ansible", "archive") for path in (seen.directory / name).rglob("*") if path.is_file()]
    assert "manifest.json" in {path.name for path in left}
    assert [str(path) for path in left if secrets_in(path.read_bytes())] == []


def test_no_server_log_holds_a_password(seen: Seen) -> None:
    for server in seen.servers:
        log = server.log()
        assert "COPY " in log
        assert [line[:500] for line in log.splitlines() if secrets_in(line)] == []


def test_what_is_remembered_holds_no_password(seen: Seen) -> None:
    target = seen.servers[1]
    tables = [
        name
        for (name,) in target.sql(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = 'pgml_distributed'",
            dbname="ml",
        )
    ]
    assert tables
    for table in tables:
        assert not secrets_in(str(target.sql(f"SELECT t::text FROM {table} AS t", dbname="ml")))
