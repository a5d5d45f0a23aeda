# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether two servers have what a first copy takes: WAL that may pile up, transaction ids, slots, connections, workers."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session, version_text
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import indexes

BYTES_PER_SECOND = 20 << 20
"""How much of a table is taken to be copied and indexed in a second: a slow machine's, so that WAL isn't underestimated."""
SAMPLED_BYTES = 1 << 30
"""From that size of a copy on the growth of WAL is watched for a second; before, its average is enough."""
SHARE_OF_SPACE = 0.5
"""How much of the free space WAL may take that is kept for us."""
OLDEST_AGE = int(0.75 * 2**31)
"""Transactions after which a server is too near to wraparound for a long snapshot,
see https://www.postgresql.org/docs/current/routine-vacuuming.html#VACUUM-FOR-WRAPAROUND."""

_MEGABYTE = 1 << 20
_STATISTICS_SINCE = 140000


class Upstream(NamedTuple):
    """What the source has to give."""

    wal_per_second: float
    """bytes"""
    wal_space: int | None
    """bytes that are free where it keeps WAL; None when that can't be seen from here"""
    wal_limit: int | None
    """bytes of WAL after which a slot is invalidated (max_slot_wal_keep_size); None without a limit"""
    age: int
    """transactions since the oldest unfrozen row of the database"""
    idle_limit: int | None
    """seconds without use after which a slot is invalidated (idle_replication_slot_timeout); None without a limit"""
    free_senders: int
    free_connections: int


class Replica(NamedTuple):
    """What the target has to give."""

    free_origins: int
    free_workers: int
    """logical replication workers"""
    free_connections: int


def read_upstream(source: Session, size: int, known_space: int | None) -> Upstream:
    """Ask the source about a copy of *size* bytes; *known_space* is its wal_space(), if that is known from elsewhere."""
    limit, max_age, idle_limit = source.row(
        "SELECT (SELECT setting::int8 FROM pg_settings WHERE name = 'max_slot_wal_keep_size') AS wal_limit,"
        " (SELECT max(age(datfrozenxid)) FROM pg_database) AS max_age,"
        " extract(epoch FROM nullif(current_setting('idle_replication_slot_timeout', true), '')::interval)::int AS idle_limit"
    )
    free = source.row(
        "SELECT current_setting('max_wal_senders')::int - (SELECT count(*) FROM pg_stat_get_wal_senders() AS s WHERE s.pid > 0)"
        "  AS senders, " + _CONNECTIONS + " AS connections"
    )
    return Upstream(
        _wal_per_second(source, size),
        wal_space(source) if known_space is None else known_space,
        None if limit < 0 else limit * _MEGABYTE,
        int(max_age),
        idle_limit or None,
        int(free.senders),
        int(free.connections),
    )


_CONNECTIONS = (
    "(SELECT least(current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
    "  - coalesce(current_setting('reserved_connections', true)::int, 0)"
    "  - (SELECT count(*) FROM pg_stat_activity WHERE datid IS NOT NULL),"  # what they do is told to few
    "  CASE WHEN r.rolconnlimit < 0 THEN 1000000"
    "   ELSE r.rolconnlimit - (SELECT count(*) FROM pg_stat_activity WHERE usename = current_user) END)"
    " FROM pg_roles AS r WHERE r.rolname = current_user)"
)


def read_replica(session: Session) -> Replica:
    """Ask the target."""
    row = session.row(
        "SELECT current_setting(CASE WHEN %s >= 180000 THEN 'max_active_replication_origins'"
        "   ELSE 'max_replication_slots' END)::int - (SELECT count(*) FROM pg_replication_origin) AS origins,"
        " current_setting('max_logical_replication_workers')::int"
        "  - (SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'logical replication %%worker') AS workers, "
        + _CONNECTIONS.replace("%", "%%")
        + " AS connections",
        [session.version],
    )
    return Replica(int(row.origins), int(row.workers), int(row.connections))


def locks(session: Session) -> int:
    """How many locks the server has room for, https://www.postgresql.org/docs/current/runtime-config-locks.html."""
    return int(
        session.value(
            "SELECT current_setting('max_locks_per_transaction')::int8"
            " * (current_setting('max_connections')::int + current_setting('max_prepared_transactions')::int)"
        )
    )


def _wal_per_second(source: Session, size: int) -> float:
    """Bytes of WAL that the source writes in a second: on average, and if much is to be copied at the moment too."""
    average = 0.0
    if source.version >= _STATISTICS_SINCE:
        average = float(
            source.value(
                "SELECT wal_bytes / greatest(1, extract(epoch FROM clock_timestamp() - stats_reset)) FROM pg_stat_wal"
            )
        )
    if size < SAMPLED_BYTES:
        return average
    query = "SELECT pg_current_wal_lsn() - '0/0'::pg_lsn"
    before, start = source.value(query), time.monotonic()
    time.sleep(1)
    return max(average, float(source.value(query) - before) / (time.monotonic() - start))


def wal_space(source: Session) -> int | None:
    """Bytes free where a server on this host keeps its WAL; None on another host, or where its files may not be looked at."""
    if not indexes.is_local(source):
        return None
    directory = source.value(
        "SELECT CASE WHEN pg_has_role(current_user, 'pg_read_all_settings', 'MEMBER')"
        " THEN current_setting('data_directory') END"
    )
    if directory is None:
        return None
    try:
        status = os.statvfs(os.path.join(directory, "pg_wal"))
    except OSError:
        return None
    return status.f_bavail * status.f_frsize


class Way(NamedTuple):
    """How rows come."""

    jobs: int
    """workers that copy"""
    senders: int = 1
    """replication connections"""
    subscriptions: int = 1
    speed: float | None = None
    """bytes per second, if that is less than what is taken for it"""


def problems(upstream: Upstream, replica: Replica, size: int, way: Way) -> list[str]:
    """What stands against a copy of *size* bytes in that way, a sentence each."""
    jobs, seconds = way.jobs, size / min(way.speed or BYTES_PER_SECOND, BYTES_PER_SECOND)
    growth = upstream.wal_per_second * seconds
    found = []
    if upstream.wal_space is not None and growth > SHARE_OF_SPACE * upstream.wal_space:
        found.append(
            "The copy of {0:,} MB takes about {1:,.0f} s, in which the source writes {2:,.0f} MB of WAL that a slot would "
            "keep, and only {3:,} MB are free there, of which half may be used: make room, or copy when less is written.".format(
                size >> 20, seconds, growth / _MEGABYTE, upstream.wal_space >> 20
            )
        )
    if upstream.wal_limit is not None and growth > upstream.wal_limit:
        found.append(
            "The copy of {0:,} MB takes about {1:,.0f} s, in which the source writes {2:,.0f} MB of WAL, and a slot may keep "
            "{3:,} MB (max_slot_wal_keep_size): it would be lost. Raise that, or copy when less is written.".format(
                size >> 20, seconds, growth / _MEGABYTE, upstream.wal_limit >> 20
            )
        )
    if upstream.idle_limit is not None and seconds > upstream.idle_limit:
        found.append(
            "The copy of {0:,} MB takes about {1:,.0f} s, and a slot that nobody uses is given up after {2:,} s "
            "(idle_replication_slot_timeout): allow more.".format(size >> 20, seconds, upstream.idle_limit)
        )
    if upstream.age > OLDEST_AGE:
        found.append(
            "A database of the source has rows that are {0:,} transactions old, and {1:,} are the most for a snapshot that is "
            "held for long: let VACUUM freeze them first.".format(upstream.age, OLDEST_AGE)
        )
    for what, free, needed in (
        ("max_wal_senders of the source", upstream.free_senders, way.senders),
        ("Connections (max_connections, or the role's limit) to the source", upstream.free_connections, jobs + 4),
        (
            "Replication origins (max_replication_slots, or max_active_replication_origins) of the target",
            replica.free_origins,
            way.subscriptions,
        ),
        ("max_logical_replication_workers of the target", replica.free_workers, way.subscriptions),
        ("Connections (max_connections, or the role's limit) to the target", replica.free_connections, jobs + 2),
    ):
        if free < needed:
            found.append("{0}: {1} left, and {2} needed.".format(what, max(free, 0), needed))
    return found


_FLOORS = (
    # https://www.postgresql.org/docs/release/15.13/ and its siblings of the same day
    ({13: 21, 14: 18, 15: 13, 16: 9, 17: 5}, "may lose changes when a publication is altered while rows are written"),
    # https://www.postgresql.org/docs/release/17.8/
    ({17: 8}, "may invalidate a new slot at once"),
)
_PARALLEL_FLOORS = {16: 12, 17: 8, 18: 2}
"""https://www.postgresql.org/docs/release/17.8/ and its siblings: before, an error of a parallel worker lost transactions."""


def outdated(source_version: int) -> list[str]:
    """Sentences about errors of the source's minor version, which its next one mends."""
    major, minor = divmod(source_version, 10000)
    return [
        "The source is PostgreSQL {0}, which {1}: update it to {2}.{3}.".format(
            version_text(source_version), words, major, floors[major]
        )
        for floors, words in _FLOORS
        if minor < floors.get(major, 0)
    ]


def loses_parallel(target_version: int) -> bool:
    """Whether the target's minor version may lose transactions with C(streaming = parallel)."""
    major, minor = divmod(target_version, 10000)
    return minor < _PARALLEL_FLOORS.get(major, 0)
