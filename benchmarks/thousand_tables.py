# SPDX-License-Identifier: GPL-3.0-or-later
"""A publication and a subscription of a thousand tables: what a run costs that has nothing to do.

The same wiring is made twice on the same two throwaway servers, by this collection's modules and by those of
community.postgresql.  Then the playbooks are run again and again, in turns, and the whole of each ansible-playbook is
timed, beside one of two ping tasks, which is what Ansible itself costs, and beside the modules alone.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from unittest import mock

from psycopg2.sql import SQL, Identifier

from benchmarks.common import COLLECTIONS, README, Ansible, spread, version_of_theirs, write
from benchmarks.wirings import Tasks, Wiring, bare, wired
from tests.support import majors, modules
from tests.support.cluster import Cluster, make_directory

FEWER_TABLES = (10, 100)
"""The numbers of tables at which statements are counted too."""


def run_modules(tasks: Tasks) -> float:
    """Run the modules of *tasks* in this process; returns the seconds they took, without importing them."""
    seconds = 0.0
    for task in tasks:
        action, options = next((key, value) for key, value in task.items() if key.count(".") == 2)
        collection, name = action.rsplit(".", 1)
        with mock.patch.object(modules, "COLLECTION", collection):
            start = time.perf_counter()
            modules.module(name, options, diff=False)
            seconds += time.perf_counter() - start
    return seconds


def count_statements(ansible: Ansible, wiring: Wiring) -> int:
    """The SQL statements that both servers get in a run of the play."""
    for place in wiring.places:
        place.sql(SQL("ALTER DATABASE {} SET log_statement = 'all'").format(Identifier(place.database)))
    logged = [len(place.cluster.log()) for place in wiring.places]
    wiring.changed |= ansible.run(wiring.tasks)[1]
    tails = [place.cluster.log()[start:] for place, start in zip(wiring.places, logged)]
    for place in wiring.places:
        place.sql(SQL("ALTER DATABASE {} RESET log_statement").format(Identifier(place.database)))
    return sum(tail.count("LOG:  statement: ") for tail in tails)


def measure(ansible: Ansible, wirings: list[Wiring], rounds: int) -> None:
    """Time the plays in turns, every second round in the opposite order, after one that warms up."""
    for number in range(rounds + 1):
        for wiring in wirings if number % 2 else wirings[::-1]:
            seconds, changed = ansible.run(wiring.tasks)
            wiring.changed |= changed
            modules_alone = run_modules(wiring.tasks) if wiring.places and len(wiring.tasks) == 2 else 0.0
            if number:
                wiring.seconds.append(seconds)
                wiring.module_seconds.append(modules_alone)


def benchmark(bin_dir: Path, count: int, rounds: int) -> str:
    """Run everything and return the report in Markdown."""
    with ExitStack() as stack:
        # Only what is counted is logged. Everything that matters is as PostgreSQL has it by default.
        primary, replica = (
            stack.enter_context(Cluster(make_directory(on_disk=True), bin_dir, {"log_statement": "none"}))
            for _ in range(2)
        )
        ansible = Ansible(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgml-"))))
        counted: list[dict[int, int]] = [{}, {}, {}]
        for tables in (*(fewer for fewer in FEWER_TABLES if fewer < count), count):
            print(f"{tables} tables ...", file=sys.stderr)
            with wired(primary, replica, tables, ansible.run) as wirings:
                for wiring, statements in zip(wirings, counted):
                    statements[tables] = count_statements(ansible, wiring)
                    wiring.statements = statements
                if tables == count:
                    ping = bare()
                    measure(ansible, [*wirings, ping], rounds)
        server = primary.sql("SHOW server_version")[0][0].split()[0]
    return report(wirings, ping, f"PostgreSQL {server}", count)


def report(wirings: list[Wiring], ping: Wiring, server: str, count: int) -> str:
    """The results as a table, with the ratio of ours to theirs behind each of theirs."""
    mine, theirs, checked = wirings
    versions = [
        server,
        f"ansible-core {version('ansible-core')}",
        f"community.postgresql {version_of_theirs()}",
        f"Python {platform.python_version()}",
        f"{len(os.sched_getaffinity(0))} cores",
    ]
    net = [wiring.median - ping.median for wiring in (mine, theirs)]
    alone = [wiring.module_seconds for wiring in (mine, theirs)]
    lines = [
        f"{', '.join(versions)}; {count} tables, {len(mine.seconds)} rounds: median (fastest to slowest).",
        "",
        f"| a run that changes nothing | {mine.title} | {theirs.title} | ours / theirs | {checked.title} | ours / theirs |",
        "|---|---:|---:|---:|---:|---:|",
        _row("tasks", *(str(len(wiring.tasks)) for wiring in wirings)),
        _row("reported changed", *(", ".join(sorted(wiring.changed)) or "none" for wiring in wirings)),
        _timed("whole play", *(wiring.seconds for wiring in wirings)),
        _row("less a play of two `ping` tasks", *(f"{seconds:.2f} s" for seconds in net), ratios=[net[0] / net[1]]),
        _timed("modules alone, without Ansible", *alone),
    ]
    for tables in mine.statements:
        lines.append(_row(f"SQL statements, {tables} tables", *(str(wiring.statements[tables]) for wiring in wirings)))
    return "\n".join([*lines, "", f"The play of two `ping` tasks takes {spread(ping.seconds)}."])


def _timed(label: str, *measured: list[float]) -> str:
    medians = [statistics.median(seconds) for seconds in measured]
    return _row(label, *map(spread, measured), ratios=[medians[0] / median for median in medians[1:]])


def _row(label: str, *cells: str, ratios: Sequence[float] = ()) -> str:
    mine, theirs, checked = [*cells, ""][:3]
    first, second = [*(f"{ratio:.2f}" for ratio in ratios), "", ""][:2]
    return f"| {label} | {mine} | {theirs} | {first} | {checked} | {second} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.thousand_tables", description=__doc__)
    parser.add_argument("--tables", type=int, default=1000, help="how many tables (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="how many timed runs of each play (default %(default)s)")
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
    text = benchmark(programs[major], arguments.tables, arguments.rounds)
    print(text)
    if arguments.write:
        write("thousand_tables", text)


if __name__ == "__main__":
    main()
