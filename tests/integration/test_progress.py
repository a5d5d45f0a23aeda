# SPDX-License-Identifier: GPL-3.0-or-later
"""What is shown of a run that takes long, while it does."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support import physical, playbooks
from tests.support.cluster import Cluster
from tests.support.copies import Process, ending
from tests.support.first_copies import B_IS_THERE, SUBSCRIBED, paused, quick, run, slow
from tests.support.pair import Pair, pair_of, wait_for
from tests.support.playbooks import Ansible
from tests.support.steps import Plan

pytestmark = pytest.mark.slow

ROWS = 6000
BYTES = 1000
BRAKE = 4711
"""An advisory lock of the source's databases: as long as somebody has it, rows are read slowly."""
SLOW = f"pg_try_advisory_xact_lock_shared({BRAKE}) OR pg_sleep(0.015) IS NOT NULL"
SEEN = re.compile(r"^\[(r\d)\] (.+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Cluster, Cluster]]:
    with playbooks.cluster() as source, playbooks.cluster() as target:
        yield source, target


@pytest.fixture
def pairs(servers: tuple[Cluster, Cluster]) -> Iterator[tuple[Pair, Pair]]:
    """A database with a table that is slow to read and one that isn't, and twice the same; the first has them twice to go."""
    with pair_of(*servers) as one, pair_of(*servers) as other:
        for pair in (one, other):
            pair.source.sql(
                "CREATE TABLE slow (id int PRIMARY KEY, filler text); CREATE TABLE quick (id int PRIMARY KEY);"
                f"INSERT INTO slow SELECT g, repeat('x', {BYTES}) FROM generate_series(1, {ROWS}) AS g;"
                "INSERT INTO quick SELECT generate_series(1, 50); ANALYZE"
            )
            pair.grant()
        yield one, other


def playbook(ansible: Ansible, module: str, params: dict[str, Any], **task: Any) -> Path:
    step = {"name": "Bring", f"postgresml.distributed.{module}": params, **task}
    return ansible.write("play.yml", [{"hosts": "all", "gather_facts": False, "tasks": [step]}])


def inventory(pairs: tuple[Pair, Pair], **variables: Any) -> dict[str, Any]:
    hosts = {}
    for number, pair in enumerate(pairs, 1):
        there = playbooks.host(pair.target.cluster)
        hosts[f"r{number}"] = {
            **there,
            "login": pair.target.login,
            "origin": pair.source.cluster.source(pair.source.database),
        }
    return {"all": {"hosts": hosts, "vars": {"pgml_progress_seconds": 1, **variables}}}


DUMP = {
    "login_host": "{{ login.login_host }}",
    "login_port": "{{ login.login_port }}",
    "login_user": "{{ login.login_user }}",
    "login_password": "{{ login.login_password }}",
    "login_db": "{{ login.login_db }}",
    "source": "{{ origin }}",
    "jobs": 2,
    "tables": [{"name": "slow", "where": SLOW}, {"name": "quick"}],
}


class Watched:
    """A playbook that runs, whose progress is read as it comes."""

    def __init__(self, ansible: Ansible, playbook: Path, content: Any, *arguments: str) -> None:
        self._file = ansible.directory / "output"
        with self._file.open("w", encoding="utf-8") as output:
            self.process = subprocess.Popen(
                ansible.command(playbook, content, *arguments),
                cwd=ansible.cwd,
                env=ansible.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._file.read_text(encoding="utf-8")

    def lines(self, host: str) -> list[str]:
        return [text for name, text in SEEN.findall(self.output) if name == host]

    def until(self, host: str, pattern: str) -> str:
        """Wait for a line about *host* and return it."""

        def found() -> str | None:
            assert self.process.poll() is None or self.lines(host), self.output
            return next((line for line in self.lines(host) if re.fullmatch(pattern, line)), None)

        try:
            return str(wait_for(found, 100, pattern))
        except AssertionError as error:
            raise AssertionError(f"{error}:\n{self.output}") from None

    def finish(self) -> str:
        assert self.process.wait(60) == 0, self.output
        assert "Traceback" not in self.output
        return self.output


@contextmanager
def braked(*pairs: Pair) -> Iterator[None]:
    with ExitStack() as stack:
        for pair in pairs:
            stack.enter_context(pair.source.transaction(f"SELECT pg_advisory_xact_lock({BRAKE})"))
        yield


def test_lines_of_two_replicas_at_once(pairs: tuple[Pair, Pair], tmp_path: Path) -> None:
    """They say what is done, how fast it goes and how long it takes, and nothing that is secret, however much Ansible says."""
    ansible = Ansible(tmp_path)
    with braked(*pairs):
        watched = Watched(ansible, playbook(ansible, "pgml_dump_restore", DUMP), inventory(pairs), "-vvv")
        for host in ("r1", "r2"):
            watched.until(
                host,
                r"copied 1 of 2 tables, [\d.]+ [kM]B of 6\.7 MB \(\d+ %\), \d+ kB/s, \d+ (s|min) left;"
                r" copying public\.slow [\d.]+ [kM]B of 6\.7 MB",
            )
    output = watched.finish()
    shown = {number: watched.lines(f"r{number}") for number in (1, 2)}
    assert all(len(set(lines)) == len(lines) for lines in shown.values()), "a line is repeated"
    for pair in pairs:
        for secret in (pair.target.cluster.password, pair.source.cluster.password):
            assert secret not in output
        assert pair.target.value("SELECT count(*) FROM slow") == ROWS
        assert pair.target.ok("pgml_progress_info")["run"] is None


def test_interrupted(pairs: tuple[Pair, Pair], tmp_path: Path) -> None:
    """Ctrl-C ends the copy and what looks at it, and leaves the target as it was; the next run does all of it, silently if
    that is wanted."""
    ansible = Ansible(tmp_path)
    pair = pairs[0]
    play = playbook(ansible, "pgml_dump_restore", DUMP)
    with braked(pair):
        watched = Watched(ansible, play, inventory(pairs[:1]))
        watched.until("r1", "copied .*")
        time.sleep(0.5)  # a process that ends while it writes to Ansible's own queue keeps that locked
        os.killpg(watched.process.pid, signal.SIGINT)
        assert watched.process.wait(30) != 0
        wait_for(lambda: not processes_with(str(tmp_path)), 15, "what was started to end")
        sessions = (
            "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND backend_type = 'client backend'"
        )
        wait_for(lambda: not pair.sql_target(sessions), 15, "the sessions at the target to end")
    assert pair.target.value("SELECT to_regclass('slow')") is None
    again = Watched(ansible, play, inventory(pairs[:1], pgml_progress_seconds=0))
    again.finish()
    assert again.lines("r1") == []
    rows = "SELECT md5(string_agg(t::text, ' ' ORDER BY id)) FROM slow AS t"
    assert pair.target.value(rows) == pair.source.value(rows)


def test_files_of_a_cluster(tmp_path: Path) -> None:
    """The lines of a physical copy, which a server knows nothing of, and what the module tells whoever asks."""
    ansible = Ansible(tmp_path)
    with physical.templates() as templates, physical.seeding(templates) as two:
        options = {**two.options(max_rate="3M"), "source": "{{ origin }}"}
        play = playbook(ansible, "pgml_physical_seed", {**options, "login_password": "{{ password }}"})
        host = {**playbooks.host(two.replica), "origin": two.options()["source"], "password": two.replica.password}
        watched = Watched(ansible, play, {"all": {"hosts": {"r1": host}, "vars": {"pgml_progress_seconds": 1}}}, "-vvv")
        backup = "SELECT 1 FROM pg_stat_progress_basebackup"
        wait_for(lambda: two.primary.sql(backup), 60, "the base backup")
        two.primary.sql("CHECKPOINT")
        watched.until("r1", r"copied [\d.]+ MB of \d+ MB of files \(\d+ %\), [\d.]+ [kM]B/s, \d+ s left")
        told = two.step("looked")
        assert 0 < told["files"]["bytes_done"] < told["files"]["bytes"], told
        output = watched.finish()
        for secret in (two.replica.password, two.options()["source"]["password"]):
            assert secret not in output
        assert "files" not in two.step("looked")
        two.swap()
        two.step("finished")
        two.assert_done()


def processes_with(text: str) -> list[str]:
    """The command lines or environments of processes that have *text* in them."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        if int(directory.name) == os.getpid():
            continue
        with suppress(OSError):
            known = directory.joinpath("environ").read_bytes() + directory.joinpath("cmdline").read_bytes()
            if text.encode() in known:
                found.append(directory.joinpath("cmdline").read_text(errors="replace").replace("\0", " "))
    return found


# What the module tells


def seen(pair: Pair, process: Process, what: str, having: Callable[[Any], Any]) -> dict[str, Any]:
    """What pgml_progress_info returns when it first has something."""

    def look() -> dict[str, Any] | None:
        assert not process.ended, process.finish()
        result = pair.target.ok("pgml_progress_info")
        assert not process.ended, process.finish()
        return result if having(result[what]) else None

    found: dict[str, Any] = wait_for(look, 40, f"{what} of the run")
    return found


def test_a_first_copy_by_snapshot(live: Pair, tmp_path: Path) -> None:
    """A table that comes in pieces, then its indexes, and nothing when it is over."""
    live.sql_source("ANALYZE")
    slow(live, "row", 0.005)
    slow(live, "index", 0.004)
    with run(live, tmp_path) as process:
        result = seen(live, process, "copies", lambda copies: any(copy["rows"] > 20 for copy in copies))
        (copy,) = [copy for copy in result["copies"] if copy["name"] == "public.a"]
        size = live.source.value("SELECT pg_table_size('a')")
        assert 0 < copy["bytes_done"] < copy["bytes"] and abs(copy["bytes"] - size) < 10
        assert copy["bytes_done"] / copy["bytes"] == pytest.approx(copy["rows"] / 1500, rel=0.35)
        assert result["run"]["phase"] == "copy" and result["run"]["tables"] == 5
        assert result["run"]["bytes"] > size > result["run"]["bytes_done"] >= copy["bytes_done"]
        result = seen(live, process, "builds", lambda builds: "public.a" in [build["table"] for build in builds])
        quick(live)
        assert not process.finish().get("failed")
    result = live.target.ok("pgml_progress_info")
    subscription = {"name": live.name, "tables": 5, "ready": 5, "unready": {}}
    assert [result[key] for key in ("run", "copies", "builds", "subscriptions")] == [None, [], [], [subscription]]


@pytest.mark.sampled(0)
def test_a_first_copy_that_goes_on(live: Pair, tmp_path: Path) -> None:
    """What an earlier run has brought counts."""
    slow(live, "row", 0.01)
    with run(live, tmp_path, Plan("", kill=B_IS_THERE)) as process:
        process.wait(30)
    with run(live, tmp_path) as process:
        result = seen(live, process, "run", lambda run: run and run["tables_done"])
        assert result["run"]["bytes_done"] > 0
        quick(live)
        assert not process.finish().get("failed")


def test_a_first_copy_of_postgresql_itself(live: Pair, tmp_path: Path) -> None:
    slow(live, "row", 0.01)
    options = live.subscription(initial_copy="native")
    with ending(Process(live.target, tmp_path / "tmp", options, "pgml_subscription")) as process:
        result = seen(live, process, "copies", lambda copies: any(copy["rows"] > 20 for copy in copies))
        assert result["run"] is None
        (copy,) = [copy for copy in result["copies"] if copy["name"] == "public.a"]
        assert copy["bytes"] is None and copy["bytes_done"] > 1000
        (subscription,) = result["subscriptions"]
        assert subscription["unready"]["public.a"] == "copying"
        assert subscription["ready"] + len(subscription["unready"]) == subscription["tables"] == 5
        quick(live)
        # The worker that copies has the setting of its session.
        live.sql_target("SELECT pg_terminate_backend(pid) FROM pg_stat_progress_copy")
        process.kill()
    live.unsubscribe(source=live.endpoint)


def test_catching_up(live: Pair, tmp_path: Path) -> None:
    """What was written during the copy is told in bytes of WAL."""
    with run(live, tmp_path, Plan("", pause=SUBSCRIBED)) as process:
        file = paused(process)
        with live.target.transaction("LOCK TABLE empty IN SHARE MODE"):
            live.sql_source("INSERT INTO empty SELECT generate_series(1, 20000)")
            file.unlink()
            result = seen(
                live, process, "run", lambda run: run and run["phase"] == "catch up" and run["bytes"] > 100_000
            )
            assert 0 <= result["run"]["bytes_done"] < result["run"]["bytes"] < 100_000_000
        assert not process.finish().get("failed")
