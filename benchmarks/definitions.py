# SPDX-License-Identifier: GPL-3.0-or-later
"""The definitions of thousands of tables compared between two servers: by pgml_schema, and as texts of pg_dump.

Two throwaway servers get the same tables. They are compared when they are equal, and when a hundred tables differ. Each way
is timed in turns: the module in this process, a whole ansible-playbook with one task of it, and `pg_dump --schema-only` of
both sides at once with `diff` afterwards.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.common import COLLECTIONS, README, Ansible, spread, write
from tests.support import majors
from tests.support.cluster import Cluster, make_directory
from tests.support.copies import newest_pg_dump
from tests.support.modules import run_module

DATABASE = "many"
BATCH = 250
"""How many tables are made in a transaction."""

TABLES = """
DO $$ BEGIN FOR i IN {first}..{last} LOOP
  EXECUTE format('CREATE TABLE many.t%s (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, {columns},'
    ' status varchar(20) NOT NULL DEFAULT ''new'', price numeric(12, 2) CHECK (price >= 0),'
    ' at timestamptz NOT NULL DEFAULT now())', i);
  EXECUTE format('CREATE INDEX ON many.t%s (at)', i);
END LOOP; END $$
"""

# What the target's tables are made to have, in turns.
DIFFERENCES = (
    "ALTER TABLE many.t{number} DROP COLUMN c3",
    "ALTER TABLE many.t{number} ALTER COLUMN status TYPE varchar(10)",
    "ALTER TABLE many.t{number} ADD CONSTRAINT extra{number} UNIQUE (c1)",
    "ALTER TABLE many.t{number} ALTER COLUMN c2 SET NOT NULL",
    "DROP INDEX many.t{number}_at_idx",
)
TYPES = ("integer", "text", "double precision", "boolean", "date")


def fill(server: Cluster, tables: int, columns: int) -> None:
    """Make the tables. Four columns are always the same."""
    server.create_database(DATABASE)
    server.sql("CREATE SCHEMA many", dbname=DATABASE)
    names = ", ".join(f"c{number} {TYPES[number % len(TYPES)]}" for number in range(1, columns - 3))
    for first in range(1, tables + 1, BATCH):
        last = min(first + BATCH - 1, tables)
        server.sql(TABLES.format(first=first, last=last, columns=names), dbname=DATABASE)
    server.sql("VACUUM ANALYZE", dbname=DATABASE)


def differ(server: Cluster, tables: int, count: int) -> None:
    """Make *count* tables different, all over."""
    for number in range(count):
        statement = DIFFERENCES[number % len(DIFFERENCES)]
        server.sql(statement.format(number=1 + number * tables // count), dbname=DATABASE)


class Contest:
    """The ways to compare two databases."""

    def __init__(self, source: Cluster, target: Cluster, directory: Path) -> None:
        self._source, self._target, self._directory = source, target, directory
        self._ansible = Ansible(directory)
        self._options = {
            "source": source.source(DATABASE),
            "schemas": ["many"],
            "fail_on": [],
            **target.login(DATABASE),
        }
        self.found = 0

    def module(self) -> float:
        start = time.perf_counter()
        result = run_module("pgml_schema", self._options, diff=False)
        seconds = time.perf_counter() - start
        if result.get("failed"):
            raise RuntimeError(result["msg"])
        self.found = len(result["differences"])
        return seconds

    def play(self) -> float:
        task = {"name": "Compare", "postgresml.distributed.pgml_schema": self._options}
        return self._ansible.run([task])[0]

    def dumps(self) -> float:
        """Both servers have their texts written at the same time, as they have when the module reads them."""
        start = time.perf_counter()
        files = [self._directory / name for name in ("source.sql", "target.sql")]
        processes = [self._dump(server, file) for server, file in zip((self._source, self._target), files)]
        if any(process.wait() for process in processes):
            raise RuntimeError("pg_dump failed")
        subprocess.run(["diff", "-q", *map(str, files)], stdout=subprocess.DEVNULL, check=False)
        return time.perf_counter() - start

    @staticmethod
    def _dump(server: Cluster, file: Path) -> subprocess.Popen[bytes]:
        where = ["-h", server.host, "-p", str(server.port), "-U", server.user, "-d", DATABASE, "-f", str(file)]
        environment = {**os.environ, "PGPASSWORD": server.password}
        return subprocess.Popen([newest_pg_dump()[1], "--schema-only", *where], env=environment)

    def count_statements(self) -> int:
        """The SQL statements that both servers get."""
        servers = (self._source, self._target)
        for server in servers:
            server.sql(f"ALTER DATABASE {DATABASE} SET log_statement = 'all'")
        seen = [len(server.log()) for server in servers]
        self.module()
        tails = [server.log()[start:] for server, start in zip(servers, seen)]
        for server in servers:
            server.sql(f"ALTER DATABASE {DATABASE} RESET log_statement")
        return sum(tail.count("LOG:  statement: ") for tail in tails)


def benchmark(bin_dir: Path, tables: int, columns: int, differences: int, rounds: int) -> str:
    """Run everything and return the report in Markdown."""
    with ExitStack() as stack:
        # Only what is counted is logged. pg_dump locks all tables at once.
        settings = {"log_statement": "none", "max_locks_per_transaction": "256"}
        source, target = (
            stack.enter_context(Cluster(make_directory(on_disk=True), bin_dir, settings)) for _ in range(2)
        )
        print(f"{tables} tables ...", file=sys.stderr)
        for server in (source, target):
            fill(server, tables, columns)
        contest = Contest(source, target, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgml-"))))
        equal, counted = measure(contest, rounds), contest.count_statements()
        if contest.found:
            raise RuntimeError(f"{contest.found} differences were found where there are none")
        differ(target, tables, differences)
        unequal, counted_too = measure(contest, rounds), contest.count_statements()
        if contest.found != differences:
            raise RuntimeError(f"{contest.found} differences were found and not {differences}")
        name = source.sql("SHOW server_version")[0][0].split()[0]
    versions = [
        f"PostgreSQL {name}",
        f"ansible-core {version('ansible-core')}",
        f"Python {platform.python_version()}",
        f"{len(os.sched_getaffinity(0))} cores",
    ]
    head = (
        f"{', '.join(versions)}; {tables} tables with {columns} columns, {rounds} rounds: median (fastest to slowest)."
    )
    lines = [head, "", f"| | equal | {differences} differences |", "|---|---:|---:|"]
    for label in equal:
        lines.append(f"| {label} | {spread(equal[label])} | {spread(unequal[label])} |")
    ratios = [statistics.median(times[_DUMPS]) / statistics.median(times[_MODULE]) for times in (equal, unequal)]
    lines.append("| the texts' time / the module's | {:.2f} | {:.2f} |".format(*ratios))
    lines.append(f"| SQL statements of the module | {counted} | {counted_too} |")
    return "\n".join(lines)


_MODULE, _PLAY = "`pgml_schema`, the module alone", "`pgml_schema`, the whole play"
_DUMPS = "`pg_dump --schema-only` of both at once, and `diff`"


def measure(contest: Contest, rounds: int) -> dict[str, list[Any]]:
    """Time each way in turns, after a round that warms up."""
    ways: dict[str, Callable[[], float]] = {_MODULE: contest.module, _PLAY: contest.play, _DUMPS: contest.dumps}
    seconds: dict[str, list[Any]] = {label: [] for label in ways}
    for number in range(rounds + 1):
        for label, way in list(ways.items())[:: 1 if number % 2 else -1]:
            taken = way()
            if number:
                seconds[label].append(taken)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.definitions", description=__doc__)
    parser.add_argument("--tables", type=int, default=5000, help="how many tables (default %(default)s)")
    parser.add_argument("--columns", type=int, default=20, help="how many columns each has (default %(default)s)")
    parser.add_argument("--differences", type=int, default=100, help="how many tables differ (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="how many timed runs of each way (default %(default)s)")
    parser.add_argument("--major", type=int, help="PostgreSQL's major version (default: the newest that is installed)")
    parser.add_argument("--write", action="store_true", help=f"write the table into benchmarks/{README.name} too")
    arguments = parser.parse_args()
    sys.path.insert(0, str(COLLECTIONS))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that the servers are removed then too
    programs = majors.installed() if arguments.major is None else {}
    programs = programs or majors.available()
    major = arguments.major or max(programs)
    if major not in programs:
        parser.error(f"there are no server programs of PostgreSQL {major}")
    text = benchmark(programs[major], arguments.tables, arguments.columns, arguments.differences, arguments.rounds)
    print(text)
    if arguments.write:
        write("definitions", text)


if __name__ == "__main__":
    main()
