# SPDX-License-Identifier: GPL-3.0-or-later
"""A distribution to three replicas that has nothing to do.

One primary and three replicas, throwaway servers each, hold the same distribution twice, in databases of its own each: once
made by distribute.yml, and once by no_op.yml, a playbook with the modules of community.postgresql.  Then the playbooks are
run again and again, in turns, and the whole of each ansible-playbook is timed, beside a play of thirty ping tasks over the
same replicas.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.common import README, spread, version_of_theirs, write
from tests.support import majors, playbooks
from tests.support.cluster import Cluster, make_directory
from tests.support.pair import wait_for

TABLES = (10, 100, 1000)
"""Statements are counted at each of these numbers of tables, and time is taken at the first and the last."""
PINGS = 30
REPLICAS = ("ml-1", "ml-2", "ml-3")
PASSWORD = "benchmark"
COLUMNS = "id bigint PRIMARY KEY, name text, amount numeric(12, 2), at timestamptz DEFAULT '2026-01-01', note jsonb"
SOURCES, TARGETS = ("shop", "peer_shop"), ("ml", "peer_ml")
"""The databases of the two distributions, ours first."""

# So much that nobody has to raise it, which would take a restart.
PRIMARY_SETTINGS = {"wal_level": "logical", "max_wal_senders": "30", "max_replication_slots": "30"}
REPLICA_SETTINGS = {
    "max_logical_replication_workers": "12",
    "max_worker_processes": "20",
    "max_replication_slots": "12",
}

# One COMMIT per hundred tables keeps within the locks that a server has room for by default.
_MAKE_TABLES = """
DO $$ BEGIN
    FOR number IN 1..{count} LOOP
        EXECUTE format('CREATE TABLE %I ({columns})', 't_' || lpad(number::text, 5, '0'));
        IF number % 100 = 0 THEN COMMIT; END IF;
    END LOOP;
END $$
"""

_DEFINITIONS = """
SELECT md5(string_agg(part, ',' ORDER BY part)) AS parts FROM (
    SELECT format('%%s %%s %%s %%s %%s', a.attrelid::regclass, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
                  pg_get_expr(d.adbin, d.adrelid)) AS part
    FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
    LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY (%(tables)s::name[]) AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL SELECT pg_get_indexdef(i.indexrelid) FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indrelid
    WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY (%(tables)s::name[])
    UNION ALL SELECT format('%%s %%s', c.conrelid::regclass, pg_get_constraintdef(c.oid))
    FROM pg_constraint AS c JOIN pg_class AS r ON r.oid = c.conrelid
    WHERE r.relnamespace = 'public'::regnamespace AND r.relname = ANY (%(tables)s::name[])
) AS parts
"""

_PINGS = [
    {
        "hosts": "pgml_replicas",
        "gather_facts": False,
        "tasks": [{"name": f"ping {number}", "ansible.builtin.ping": {}} for number in range(1, PINGS + 1)],
    }
]


@dataclass
class Runs:
    """What the runs of one playbook took that had nothing to do."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    tasks: int = 0
    modules: int = 0
    """how often a module ran on a host"""
    statements: int = 0


@dataclass
class Contestant:
    """A playbook, and its runs by number of tables."""

    title: str
    playbook: str | Path
    arguments: tuple[str, ...] = ()
    runs: dict[int, Runs] = field(default_factory=dict)

    def median(self, count: int, unit: str) -> float:
        return statistics.median(getattr(self.runs[count], unit))


class Site:
    """The servers, the inventory of both distributions, and the directory that Ansible works in."""

    def __init__(self, primary: Cluster, replicas: dict[str, Cluster], count: int, directory: Path) -> None:
        self.primary = primary
        self.replicas = replicas
        self.directory = directory
        self.tables = [f"t_{number:05d}" for number in range(1, count + 1)]
        self._ansible = playbooks.Ansible(directory)

    @property
    def servers(self) -> list[Cluster]:
        return [self.primary, *self.replicas.values()]

    def inventory(self) -> dict[str, Any]:
        distribution = {
            "name": "shop",
            "database": SOURCES[0],
            "target_database": TARGETS[0],
            "strategy": "logical",
            "tables": [f"public.{table}" for table in self.tables],
        }
        return playbooks.inventory(self.primary, self.replicas, [distribution], **self._peer())

    def _peer(self) -> dict[str, Any]:
        role = "peer_distributor"
        rule = {"contype": "host", "databases": SOURCES[1], "users": role, "method": "scram-sha-256"}
        source = {"host": self.primary.host, "port": self.primary.port, "user": role, "password": PASSWORD}
        return {
            "peer_tables": self.tables,
            "peer_source_database": SOURCES[1],
            "peer_target_database": TARGETS[1],
            "peer_distributor": role,
            "peer_password": PASSWORD,
            "peer_source": {**source, "dbname": SOURCES[1]},
            "peer_slots": [f"peer_{name.replace('-', '_')}" for name in self.replicas],
            "peer_hba_file": str(self.primary.data / "pg_hba.conf"),
            # As distribute.yml has it, one line for each address: here they are all the same.
            "peer_hba_rules": [{**rule, "address": f"{host}/32"} for host in {s.host for s in self.replicas.values()}],
            "peer_primary_settings": {**PRIMARY_SETTINGS, "max_slot_wal_keep_size": "50GB"},
            "peer_replica_settings": REPLICA_SETTINGS,
            "peer_definitions": str(self.directory / "tables.sql"),
            "peer_definitions_query": playbooks.Unsafe(_DEFINITIONS),
        }

    def make(self) -> None:
        """Make the tables on the primary, and what the peer makes them from on the replicas."""
        for database in SOURCES:
            self.primary.create_database(database)
            self.primary.sql(
                _MAKE_TABLES.replace("{count}", str(len(self.tables))).replace("{columns}", COLUMNS.replace("'", "''")),
                dbname=database,
            )
        definitions = [f"CREATE TABLE IF NOT EXISTS {table} ({COLUMNS});\n" for table in self.tables]
        (self.directory / "tables.sql").write_text("".join(definitions), encoding="utf-8")

    def run(self, contestant: Contestant, *arguments: str) -> playbooks.Run:
        return self._ansible.ok(contestant.playbook, self.inventory(), *contestant.arguments, *arguments)

    def settle(self, contestant: Contestant, *first: str) -> None:
        """Run a playbook until it changes nothing."""
        arguments = first
        for _ in range(3):
            if not self.run(contestant, *arguments).changed:
                return
            arguments = ()
        raise RuntimeError(f"{contestant.title} doesn't come to rest: {self.run(contestant).changed}")

    def replicates(self) -> None:
        """See that a row arrives at each replica by each distribution."""
        for source, target in zip(SOURCES, TARGETS):
            self.primary.sql(f"INSERT INTO {self.tables[0]} VALUES (1, 'arrives')", dbname=source)
            for name, server in self.replicas.items():
                query = f"SELECT name FROM {self.tables[0]}"
                wait_for(lambda: server.sql(query, dbname=target), 60, f"a row to arrive in {target} of {name}")  # noqa: B023

    @contextmanager
    def all_logged(self) -> Iterator[Callable[[], int]]:
        """Have the servers log statements; yields what says how many there were since."""
        for server in self.servers:
            server.sql("ALTER SYSTEM SET log_statement = 'all'")
            server.sql("SELECT pg_reload_conf()")
        time.sleep(2)  # so that the file of settings is older than the next whole second
        logged = [len(server.log()) for server in self.servers]
        yield lambda: sum(
            server.log()[start:].count("LOG:  statement: ") for server, start in zip(self.servers, logged)
        )
        for server in self.servers:
            server.sql("ALTER SYSTEM RESET log_statement")
            server.sql("SELECT pg_reload_conf()")


@contextmanager
def site_of(bin_dir: Path, count: int) -> Iterator[Site]:
    """Four servers and the tables on the primary. Only what is counted is logged; the rest is as PostgreSQL has it by default."""
    with ExitStack() as stack:

        def server(settings: dict[str, str]) -> Cluster:
            return stack.enter_context(
                Cluster(make_directory(on_disk=True), bin_dir, {"log_statement": "none", **settings})
            )

        primary, replicas = server(PRIMARY_SETTINGS), {name: server(REPLICA_SETTINGS) for name in REPLICAS}
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgml-")))
        site = Site(primary, replicas, count, directory)
        site.make()
        yield site


def contestants(directory: Path) -> list[Contestant]:
    """Ours, theirs, theirs with checks, and thirty pings."""
    peer = Path(__file__).with_name("no_op.yml")
    pings = playbooks.Ansible(directory).write("pings.yml", _PINGS)
    return [
        Contestant("`distribute.yml`", "distribute.yml"),
        Contestant("`community.postgresql`", peer, ("--skip-tags", "checks")),
        Contestant("`community.postgresql` with the same checks", peer),
        Contestant(f"{PINGS} `ping` tasks", pings),
    ]


def count(site: Site, contestant: Contestant, runs: Runs) -> None:
    """Count the tasks, modules and SQL statements of a run, which nothing is timed in."""
    started = site.directory / "started"
    started.write_text("", encoding="utf-8")
    python = site.directory / "python"
    python.write_text(f'#!/bin/sh\necho >>"{started}"\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    python.chmod(0o700)
    interpreter = ("--extra-vars", f"ansible_python_interpreter={python}")
    with site.all_logged() as statements:
        run = site.run(contestant, *interpreter)
        runs.statements = statements()
    runs.modules = len(started.read_text(encoding="utf-8").splitlines())
    runs.tasks = run.output.count("\nTASK [")


def measure(site: Site, contestant: Contestant, runs: Runs | None) -> None:
    """Time a run, and the processors' time that Ansible and the modules had of it, without the servers'."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    run = site.run(contestant)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if run.changed:
        raise RuntimeError(f"{contestant.title} has changed something: {run.changed}")
    if runs:
        runs.seconds.append(seconds)
        runs.cpu_seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def benchmark(bin_dir: Path, tables: tuple[int, ...], rounds: int) -> str:
    """Run everything and return the report in Markdown."""
    found: list[Contestant] = []
    for number in tables:
        print(f"{number} tables ...", file=sys.stderr)
        with site_of(bin_dir, number) as site:
            now = contestants(site.directory)
            found = found or now
            ours, _, theirs, _ = now
            site.settle(theirs, "--extra-vars", '{"peer_subscription": {"copy_data": false}}')
            site.settle(ours)
            site.replicates()
            for server in site.servers:
                server.sql("VACUUM ANALYZE")
                server.sql("CHECKPOINT")
            for total, contestant in zip(found, now):
                total.runs[number] = Runs()
                count(site, contestant, total.runs[number])
            timed = rounds + 1 if number in (tables[0], tables[-1]) else 0
            for turn in range(timed):
                for total, contestant in list(zip(found, now))[:: 1 if turn % 2 else -1]:
                    measure(site, contestant, total.runs[number] if turn else None)
            server_version = site.primary.sql("SHOW server_version")[0][0].split()[0]
    return report(found, f"PostgreSQL {server_version}", tables, rounds)


def report(found: list[Contestant], server: str, tables: tuple[int, ...], rounds: int) -> str:
    """The results as tables, with the ratio of ours to each."""
    versions = [
        server,
        f"ansible-core {version('ansible-core')}",
        f"community.postgresql {version_of_theirs()}",
        f"Python {platform.python_version()}",
        f"{len(os.sched_getaffinity(0))} cores",
    ]
    few, many = tables[0], tables[-1]
    lines = [f"{', '.join(versions)}; {rounds} rounds: median (fastest to slowest)."]
    for unit, title in (("seconds", "seconds"), ("cpu_seconds", "seconds of the processors")):
        lines += [
            "",
            f"| {title} | {few} tables | ours / its | {many:,} tables | ours / its | {many:,} / {few} tables |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for contestant in found:
            cells = []
            for number in (few, many):
                ratio = found[0].median(number, unit) / contestant.median(number, unit)
                cells += [spread(getattr(contestant.runs[number], unit)), f"{ratio:.2f}"]
            growth = contestant.median(many, unit) / contestant.median(few, unit)
            lines.append(f"| {contestant.title} | {' | '.join(cells)} | {growth:.2f} |")
    titles = [f"SQL statements, {number:,} tables" for number in tables]
    lines += ["", f"| | tasks | modules run | {' | '.join(titles)} |", f"|---|---:|---:|{'---:|' * len(tables)}"]
    for contestant in found:
        runs = contestant.runs[many]
        counted = [runs.tasks, runs.modules, *(contestant.runs[number].statements for number in tables)]
        lines.append(f"| {contestant.title} | {' | '.join(map(str, counted))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.no_op", description=__doc__)
    parser.add_argument("--tables", type=int, nargs="+", default=TABLES, help="numbers of tables (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="how many timed runs of each (default %(default)s)")
    parser.add_argument("--major", type=int, help="PostgreSQL's major version (default: the newest that is installed)")
    parser.add_argument("--write", action="store_true", help=f"write the tables into benchmarks/{README.name} too")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that the servers are removed then too
    programs = majors.installed() if arguments.major is None else {}
    programs = programs or majors.available()
    major = arguments.major or max(programs)
    if major not in programs:
        parser.error(f"there are no server programs of PostgreSQL {major}")
    text = benchmark(programs[major], tuple(sorted(arguments.tables)), arguments.rounds)
    print(text)
    if arguments.write:
        write("no_op", text)


if __name__ == "__main__":
    main()
