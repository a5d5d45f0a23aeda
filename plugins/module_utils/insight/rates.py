# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast rows change and WAL grows: from the server's counters and their age, or watched for a while."""

from __future__ import annotations

import time
from typing import Any, Callable, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session

_HOUR = 3600
_WAL_COUNTED_SINCE = 140000
_PUBLISHED_SECONDS = 1.3
"""Sessions publish what they have counted once a second, when they commit, see
https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-STATS-VIEWS. After that time, they are silent."""
_LOOK_SECONDS = 0.05


class Changes(NamedTuple):
    """Rows that change in an hour."""

    inserted: float
    updated: float
    deleted: float

    @property
    def total(self) -> float:
        return sum(self)


class Rates(NamedTuple):
    """How fast something went."""

    changes: Changes | None
    """None when they aren't counted"""
    wal: float | None
    """bytes of WAL in a second, of the whole server; None when it isn't counted"""
    seconds: float
    """for how long"""


class _Counts(NamedTuple):
    """What the counters say at one moment."""

    inserted: int
    updated: int
    deleted: int
    wal: int
    """bytes of WAL since the server's first"""
    at: float
    """seconds, by the server's clock"""

    @property
    def rows(self) -> tuple[int, ...]:
        return self[:3]


def read(
    session: Session, oids: Sequence[int], sample: float, standby: bool, unseen: list[str]
) -> tuple[Rates | None, Rates | None]:
    """(since the counters began, while watched for *sample* seconds), where they are known; adds to *unseen* what isn't."""
    counts = session.row(_COUNTS, [list(oids)])
    began = session.row(_began("pg_stat_wal" if session.version >= _WAL_COUNTED_SINCE else _NO_WAL), [_made(session)])
    blind = standby or not began.counted
    if standby:
        unseen.append(
            "A standby doesn't count the rows that its primary changes: how often they change is known there."
        )
    elif blind:
        unseen.append("track_counts is off, so that the server doesn't count changes.")
    elif not began.dated:
        unseen.append(
            "When the database was made is told to superusers only: if that was after the server began to count, its rows "
            "change more often than they seem to."
        )
    watched = _watch(session, oids, sample) if sample > 0 else None
    since = None if blind else began.seconds
    wal = None
    if not standby and began.wal_seconds is not None:
        wal = float(began.wal_bytes) / max(began.wal_seconds, 1.0)
    counted = None
    if since is not None:
        counted = _per_hour(counts[:3], max(since, 1.0), wal)
    elif wal is not None:
        counted = Rates(None, wal, began.wal_seconds)
    return counted, watched._replace(changes=None) if watched and blind else watched


_COUNTS = (
    "SELECT coalesce(sum(pg_stat_get_tuples_inserted(o.oid)), 0)::int8 AS inserted,"
    " coalesce(sum(pg_stat_get_tuples_updated(o.oid)), 0)::int8 AS updated,"
    " coalesce(sum(pg_stat_get_tuples_deleted(o.oid)), 0)::int8 AS deleted,"
    " (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END"
    "  - '0/0'::pg_lsn)::int8 AS wal,"
    " extract(epoch FROM clock_timestamp())::float8 AS at FROM unnest(%s::oid[]) AS o(oid)"
)

_NO_WAL = "(SELECT NULL::int8 AS wal_bytes, NULL::timestamptz AS stats_reset)"


def _began(wal: str) -> str:
    """The query for when the counters began. A database has a time of reset only once it was reset, and before PostgreSQL 15 from
    its first session on. Without one its counters are as old as those of the server, which begin anew after a crash, or as the
    database itself."""
    return (
        "SELECT current_setting('track_counts')::bool AS counted,"
        " d.stats_reset IS NOT NULL OR m.made IS NOT NULL AS dated, w.wal_bytes,"
        " extract(epoch FROM clock_timestamp() - w.stats_reset)::float8 AS wal_seconds, extract(epoch FROM clock_timestamp()"
        "  - greatest(coalesce(d.stats_reset, least(a.stats_reset, b.stats_reset, w.stats_reset)), m.made))::float8 AS seconds"
        " FROM pg_stat_database AS d, pg_stat_archiver AS a, pg_stat_bgwriter AS b, " + wal + " AS w,"
        " (SELECT %s::timestamptz AS made) AS m WHERE d.datname = current_database()"
    )


def _made(session: Session) -> Any:
    """When the database's directory was made, if that may be looked at."""
    if not session.value("SELECT has_function_privilege('pg_stat_file(text, boolean)', 'EXECUTE')"):
        return None
    return session.value(
        "SELECT modification FROM pg_stat_file("
        "regexp_replace(pg_relation_filepath('pg_class'), '[^/]*$', 'PG_VERSION'), true)"
    )


def _per_hour(changes: Sequence[int], seconds: float, wal: float | None) -> Rates:
    return Rates(Changes(*[_HOUR * number / seconds for number in changes]), wal, seconds)


def _watch(session: Session, oids: Sequence[int], seconds: float) -> Rates:
    """Two samples that are *seconds* apart, or up to a second more, each right after the counters moved, so that whole steps of
    theirs lie between."""

    def look() -> _Counts:
        return _Counts(*session.row(_COUNTS, [list(oids)]))

    first = _at_a_step(look)
    time.sleep(max(0.0, seconds - _LOOK_SECONDS))
    last = _at_a_step(look)
    passed = max(last.at - first.at, _LOOK_SECONDS)
    changes = [after - before for before, after in zip(first.rows, last.rows)]
    return _per_hour(changes, passed, (last.wal - first.wal) / passed)


def _at_a_step(look: Callable[[], _Counts]) -> _Counts:
    """The counters when they have just moved, or when they don't."""
    found = look()
    began, end = found.rows, time.monotonic() + _PUBLISHED_SECONDS
    while found.rows == began and time.monotonic() < end:
        time.sleep(_LOOK_SECONDS)
        found = look()
    return found


def as_result(rates: Rates | None) -> dict[str, Any] | None:
    """The same as a return value."""
    if rates is None or rates.changes is None:
        return None
    hourly = {name: round(number, 1) for name, number in rates.changes._asdict().items()}
    return {**hourly, "total": round(rates.changes.total, 1), "seconds": round(rates.seconds, 3)}
