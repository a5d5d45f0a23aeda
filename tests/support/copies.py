# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies of databases: made, compared with what they were made from, and searched for what the copying left behind."""

from __future__ import annotations

import difflib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2.sql import SQL, Identifier

from tests.support import majors
from tests.support.cluster import Cluster
from tests.support.pair import Pair, Place, wait_for
from tests.support.steps import Plan

MODULE = "pgml_dump_restore"
ZOO = majors.REPOSITORY / "tests" / "integration" / "zoo.sql"
SHOP = majors.REPOSITORY / "playbooks" / "files" / "shop.sql"
OURS = "^pgml_(staging|old)_"


def options(pair: Pair, **params: Any) -> dict[str, Any]:
    """The module's options, to copy all tables unless *params* name some; None leaves one out."""
    everything = not {"tables", "schemas", "all_tables"} & set(params)
    source = pair.source.cluster.source(pair.source.database)
    wanted = {"source": source, **({"all_tables": True} if everything else {}), **params}
    return {key: value for key, value in wanted.items() if value is not None}


def copy(pair: Pair, **params: Any) -> dict[str, Any]:
    """Copy, and leave nothing behind."""
    result = pair.target.ok(MODULE, **options(pair, **params))
    assert residue(pair) == []
    return result


def refused(pair: Pair, **params: Any) -> str:
    """Copy in vain and return the message; neither database is changed and nothing is left behind."""
    before = pair.source.fingerprint(), contents(pair.source)
    live = contents(pair.target)
    message = pair.target.refused(MODULE, **options(pair, **params))
    assert (pair.source.fingerprint(), contents(pair.source)) == before
    assert contents(pair.target) == live
    assert residue(pair) == []
    return message


def definitions(place: Place, *arguments: str) -> list[str]:
    """The lines in which pg_dump defines the database, without what the module remembers there."""
    server = place.cluster
    where = ["-h", server.host, "-p", str(server.port), "-U", server.user, "-d", place.database]
    command = [newest_pg_dump()[1], "--schema-only", "--exclude-schema=pgml_distributed", *where, *arguments]
    environment = {**os.environ, "PGPASSWORD": server.password, "PGCLIENTENCODING": "UTF8"}
    text = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout
    # Newer clients frame their output with a key of their own choice.
    varying = ("-- Dumped from database version", "\\restrict ", "\\unrestrict ")
    return [line for line in text.splitlines() if line and not line.startswith(varying)]


@functools.cache
def newest_pg_dump() -> tuple[int, str]:
    """The newest pg_dump that the tests have, after its major version."""
    paths = [str(path) for path in Path("/usr/lib/postgresql").glob("*/bin/pg_dump")] + [shutil.which("pg_dump") or ""]
    versions = {path: subprocess.check_output([path, "--version"], text=True) for path in paths if path}
    return max((int(re.search(r"\) (\d+)", version)[1]), path) for path, version in versions.items())


def redefined(pair: Pair, *arguments: str) -> str:
    """The lines in which the copy's definitions differ."""
    here, there = definitions(pair.source, *arguments), definitions(pair.target, *arguments)
    assert len(here) > 20, "nothing is compared"
    return changed_lines(here, there)


def changed_lines(before: list[str], after: list[str]) -> str:
    """The lines in which two texts differ."""
    return "\n".join(difflib.unified_diff(before, after, n=0, lineterm=""))


def load_shop(pair: Pair, scale: float) -> None:
    """Fill the source with the sample shop, without its view, which does not travel."""
    pair.source.cluster.psql(SHOP, pair.source.database, scale=scale)
    pair.sql_source("DROP VIEW order_totals")
    # Before PostgreSQL 15 a collector counts them, some time later.
    counted = "SELECT bool_and(n_tup_ins > 0) FROM pg_stat_user_tables JOIN pg_class ON oid = relid WHERE relpages > 0"
    wait_for(lambda: pair.source.value(counted), 10, "the rows to be counted")


def wait_until_left(place: Place) -> None:
    """Wait until sessions that have written are gone, which count their rows when they go."""
    others = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND backend_type = 'client backend'"
    )
    wait_for(lambda: not place.value(others), 10, "sessions to end")


def tables(place: Place) -> list[tuple[str, str]]:
    """Schema and name of every table that holds rows."""
    return place.sql(
        "SELECT nspname, relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace WHERE relkind = 'r'"
        " AND relpersistence = 'p' AND nspname !~ '^pg_|^information_schema$|^pgml_distributed$' ORDER BY 1, 2"
    )


def rows(
    place: Place, schema: str, table: str, columns: list[str] | None = None, where: str = "true"
) -> tuple[int, Any]:
    """How many rows a table has of its own, and the sum of their hashes, whatever the order of columns and rows."""
    if columns is None:
        columns = [
            name
            for (name,) in place.sql(
                "SELECT attname FROM pg_attribute WHERE attrelid = format('%%I.%%I', %s, %s)::regclass AND attnum > 0"
                ' AND NOT attisdropped ORDER BY attname COLLATE "C"',
                [schema, table],
            )
        ]
    row = SQL("ROW({})").format(SQL(", ").join(SQL("t.{}").format(Identifier(name)) for name in columns))
    query = SQL("SELECT count(*), sum(hashtextextended({}::text, 0)) FROM ONLY {} AS t WHERE ")
    return place.sql(query.format(row, Identifier(schema, table)) + SQL(where))[0]


def contents(place: Place) -> dict[tuple[str, str], tuple[int, Any]]:
    """The rows of every table."""
    return {(schema, table): rows(place, schema, table) for schema, table in tables(place)}


def sequences(place: Place) -> dict[tuple[str, str], Any]:
    """Where every sequence stands."""
    names = place.sql(
        "SELECT nspname, relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace WHERE relkind = 'S'"
    )
    query = SQL("SELECT last_value, is_called FROM {}")
    return {name: place.sql(query.format(Identifier(*name)))[0] for name in names}


def differences(pair: Pair) -> dict[tuple[str, str], Any]:
    """The tables and sequences in which the copy differs."""
    here = {**contents(pair.source), **sequences(pair.source)}
    there = {**contents(pair.target), **sequences(pair.target)}
    assert len(here) > 1, "nothing is compared"
    return {name: (here.get(name), there.get(name)) for name in {**here, **there} if here.get(name) != there.get(name)}


def residue(pair: Pair, seconds: float = 10) -> list[str]:
    """What is left of a copy after some seconds: schemas and databases of ours, sessions on either server."""
    schemas = [name for (name,) in pair.sql_target("SELECT nspname FROM pg_namespace WHERE nspname ~ %s", [OURS])]
    databases = [
        name for (name,) in pair.sql_target("SELECT datname FROM pg_database WHERE datname ~ '^pgml_scratch_'")
    ]
    end = time.monotonic() + seconds
    while (left := sessions(pair.source.cluster) + sessions(pair.target.cluster)) and time.monotonic() < end:
        time.sleep(0.05)
    return schemas + databases + left


def sessions(server: Cluster) -> list[str]:
    """The sessions of clients but this one, and what they do."""
    return [
        f"{name}: {state} {query}"
        for name, state, query in server.sql(
            "SELECT application_name, state, left(query, 200) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
    ]


class Process:
    """The module in a process of its own, as Ansible runs it: with a temporary directory and without a terminal."""

    _PROGRAM = (
        "import json, sys; from tests.support import modules, steps; name, params, plan = json.load(sys.stdin);"
        " plan and steps.install(steps.Plan(*plan)); print(json.dumps(modules.run_module(name, params)))"
    )

    def __init__(
        self, place: Place, directory: Path, params: dict[str, Any], module: str = MODULE, plan: Plan | None = None
    ) -> None:
        directory.mkdir(exist_ok=True)
        self.notes = Path(plan.directory if plan else directory)
        self._directory = directory
        path = os.pathsep.join([str(majors.REPOSITORY / ".ansible" / "collections"), str(majors.REPOSITORY)])
        self._process = subprocess.Popen(
            [sys.executable, "-c", self._PROGRAM],
            env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(directory)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,
        )
        assert self._process.stdin
        self._process.stdin.write(json.dumps([module, {**place.login, **params}, plan]))
        self._process.stdin.close()
        self._process.stdin = None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self, seconds: float) -> None:
        """Wait until it ends; raises subprocess.TimeoutExpired."""
        self._process.wait(seconds)

    def kill(self) -> None:
        """Kill the module's own process, and nobody else, without warning."""
        self._process.send_signal(signal.SIGKILL)  # nobody, when it has ended
        # Not communicate(): programs that it has started may live on and hold the pipes open.
        self._process.wait(10)

    def finish(self, seconds: float = 60) -> dict[str, Any]:
        """Wait for the module and return its result; a traceback is never an answer."""
        output, errors = self._process.communicate(timeout=seconds)
        assert output, errors
        result: dict[str, Any] = json.loads(output)
        assert "Traceback" not in str(result.get("exception", "")) + errors, (result, errors)
        return result

    def left_files(self) -> list[str]:
        """What is left in the temporary directory, without the one that Ansible has made for the task and removes itself."""
        left = sorted(path.name for path in self._directory.iterdir())
        return left[1:] if left and left[0].startswith("pgml-") and self._process.returncode else left

    def processes(self) -> list[int]:
        """The processes of the module's session that live."""
        found = []
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = status.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            except OSError:  # gone meanwhile
                continue
            if int(fields[3]) == self._process.pid and fields[0] not in "ZX":
                found.append(int(status.parent.name))
        return found

    def outliving(self) -> list[int]:
        """The processes that it has started in sessions of their own."""
        found = []
        for environment in Path("/proc").glob("[0-9]*/environ"):
            try:
                inherited = f"TMPDIR={self._directory}".encode() in environment.read_bytes().split(b"\0")
                status = (environment.parent / "stat").read_text(encoding="utf-8", errors="replace")
            except OSError:  # gone meanwhile
                continue
            fields = status.rpartition(")")[2].split()
            if (
                inherited
                and fields[0] not in "ZX"
                and int(fields[3]) == int(environment.parent.name) != self._process.pid
            ):
                found.append(int(environment.parent.name))
        return found


@contextmanager
def running(pair: Pair, directory: Path, **params: Any) -> Iterator[Process]:
    """A copy in a process of its own, which is gone with all that it has started when the block ends."""
    with ending(Process(pair.target, directory, options(pair, **params))) as process:
        yield process


@contextmanager
def ending(process: Process) -> Iterator[Process]:
    """End a process, and those that it has started, with the block."""
    try:
        yield process
    finally:
        for pid in {process.pid, *process.processes(), *process.outliving()}:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def until(process: Process, condition: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    """Wait until a copy that is under way has come to some point."""

    def reached() -> Any:
        try:
            found = condition()
        except psycopg2.OperationalError:
            found = None
        if not found and process.ended:
            raise AssertionError(f"it ended before {what}: {process.finish()}")
        return found

    return wait_for(reached, seconds, what)
