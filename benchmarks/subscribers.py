# SPDX-License-Identifier: GPL-3.0-or-later
"""The ways to have a database's tables on another server, and from then on what changes in them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from benchmarks import dataset
from benchmarks.peers import Job, Peer, Peers, dsn, pgcopydb_clone, pgcopydb_ends, pgcopydb_lacks, pgcopydb_version
from tests.support.cluster import server_major

NAME = "bench"
OURSELVES = "benchmark"
"""The application_name of sessions that are none of the contestants'."""
LIMIT = 3600
"""Seconds after which a contestant is given up."""

_NEW_ROW = "INSERT INTO users VALUES (0, 'new@example.com', 'new', 'DE', 1, '2026-01-01', true)"


def streamed(job: Job) -> None:
    """Write a row at the source, now that all others are at the target."""
    job.copied = time.perf_counter()
    job.source.sql(f"SET application_name = '{OURSELVES}'; {_NEW_ROW}")


def wait_for_row(job: Job) -> None:
    """Wait until the row that was written last is at the target."""
    _wait_for_query(job, "SELECT EXISTS (SELECT FROM users WHERE id = 0)")


def make_schema(job: Job) -> None:
    """Make the target's tables as the source has them, indexes and constraints included, and publish the source's."""
    restore = job.program("psql", job.target, "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1")
    job.pipe(job.program("pg_dump", job.source, "--schema-only"), restore)
    tables = [f"public.{table}" for table in dataset.TABLES]
    job.module("pgml_publication", {**job.source.login, "name": NAME, "tables": tables})


def drop_subscription(job: Job) -> None:
    job.target.sql(f"DROP SUBSCRIPTION {NAME}")
    job.source.sql(f"DROP PUBLICATION {NAME}")
    forget_row(job)


def forget_row(job: Job) -> None:
    """Take the row away again, and see that no slot stays."""
    job.source.sql("DELETE FROM users WHERE id = 0")
    if slots := job.source.sql("SELECT slot_name FROM pg_replication_slots"):
        raise RuntimeError(f"there are slots left at the source: {', '.join(name for (name,) in slots)}")


def ours(job: Job) -> None:
    source = job.source.cluster.source(job.source.database)
    options = {"name": NAME, "publications": [NAME], "source": source, "initial_copy": "snapshot"}
    job.module("pgml_subscription", {**job.target.login, **options})
    streamed(job)
    wait_for_row(job)


def native(job: Job, binary: bool = False) -> None:
    """Let PostgreSQL copy the tables, with its own number of workers."""
    connection = f"{dsn(job.source)} password={job.source.cluster.password}"
    options = f"copy_data = true, binary = {str(binary).lower()}"
    job.target.sql(f"CREATE SUBSCRIPTION {NAME} CONNECTION %s PUBLICATION {NAME} WITH ({options})", [connection])
    _wait_for_query(job, "SELECT count(*) > 0 AND bool_and(srsubstate = 'r') FROM pg_subscription_rel")
    streamed(job)
    wait_for_row(job)


def native_binary(job: Job) -> None:
    native(job, binary=True)


def pgcopydb(job: Job, *options: str) -> None:
    """Copy, then follow up to the row that is written when the copy is done."""
    log = job.directory / "pgcopydb.log"
    process = job.start(log, *pgcopydb_clone(job, "--follow", *options))

    def copied() -> bool:
        text = log.read_text(encoding="utf-8", errors="replace")
        if process.poll() is not None:
            raise RuntimeError(f"pgcopydb has ended ({process.returncode}):\n{text[-3000:]}")
        return "to enable applying changes" in text

    _wait(copied)
    streamed(job)
    command = ["pgcopydb", "stream", "sentinel", "set", "endpos", "--current", "--source", dsn(job.source)]
    job.run(*command, TMPDIR=str(job.directory))  # where newer ones look for what older ones have at the source
    wait_for_row(job)


def pgcopydb_binary(job: Job) -> None:
    pgcopydb(job, "--use-copy-binary")


def clean_up(job: Job) -> None:
    """Let pgcopydb end, and take away what it leaves for the next time that it follows."""
    job.started[-1].wait(LIMIT)
    job.run("pgcopydb", "stream", "cleanup", *pgcopydb_ends(job))
    forget_row(job)


def lacks_for_following(bin_dir: Path) -> list[str]:
    """Before 0.11, pgcopydb followed by a plugin that isn't PostgreSQL's own."""
    lacking = pgcopydb_lacks(bin_dir)
    plugin = bin_dir.parent / "lib" / "wal2json.so"
    if (lacking or _numbers(pgcopydb_version()) < (0, 11)) and not plugin.exists():
        lacking.append(f"postgresql-{server_major(bin_dir)}-wal2json")
    return lacking


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def _wait_for_query(job: Job, query: str) -> None:
    with closing(job.target.cluster.connect(job.target.database)) as connection, connection.cursor() as cursor:

        def holds() -> bool:
            cursor.execute(query)
            return bool(cursor.fetchall()[0][0])

        _wait(holds)


def _wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"it has not been done in {LIMIT} s")
        time.sleep(0.05)


PEERS: Peers = {
    "ours": Peer("**`pgml_subscription`**", ours, prepare=make_schema, tidy=drop_subscription),
    "native": Peer("`CREATE SUBSCRIPTION`", native, prepare=make_schema, tidy=drop_subscription),
    "native-binary": Peer(
        "`CREATE SUBSCRIPTION`, `binary = true`", native_binary, prepare=make_schema, tidy=drop_subscription
    ),
    "pgcopydb": Peer("`pgcopydb clone --follow`", pgcopydb, lacks_for_following, tidy=clean_up),
    "pgcopydb-binary": Peer(
        "`pgcopydb clone --follow --use-copy-binary`", pgcopydb_binary, lacks_for_following, tidy=clean_up
    ),
}
