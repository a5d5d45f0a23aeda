# SPDX-License-Identifier: GPL-3.0-or-later
"""What a server gives to its subscribers: slots, senders, publications, and how much WAL it keeps for them."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import ServerRefused
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import capacity, offering
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session, version_text
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import quoted

_POSITION = (
    "CASE WHEN pg_is_in_recovery() THEN coalesce(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())"
    " ELSE pg_current_wal_lsn() END"
)
"""A standby may have logical slots since PostgreSQL 16."""
_SPILL_SINCE = WAL_STATISTICS_SINCE = 140000
_LOCK_NOT_AVAILABLE = "55P03"
_OURS = "pgml\\_%"


class Mark(NamedTuple):
    """Where a server's WAL ended at a moment."""

    lsn: str
    position: int
    """the same as a number of bytes"""
    clock: float
    """time.monotonic()"""


def mark(session: Session) -> Mark:
    lsn, position = session.row(
        "SELECT p.lsn::text, p.lsn - '0/0'::pg_lsn FROM (SELECT {0} AS lsn) AS p".format(_POSITION)
    )
    return Mark(lsn, int(position), time.monotonic())


def server(session: Session) -> dict[str, Any]:
    """The server itself. Ages are told by its own clock, so that no other needs to be right."""
    row = session.row(
        "SELECT pg_is_in_recovery() AS in_recovery, clock_timestamp()::text AS now,"
        " extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())::int8 AS uptime,"
        " current_setting('wal_level') AS wal_level,"
        " (SELECT nullif(setting::int8, -1) FROM pg_settings WHERE name = 'max_slot_wal_keep_size') AS limit_mb"
    )
    return {
        "version": version_text(session.version),
        "system_identifier": session.system_identifier,
        "in_recovery": row.in_recovery,
        "now": row.now,
        "uptime": int(row.uptime),
        "wal_level": row.wal_level,
        "wal_limit": None if row.limit_mb is None else int(row.limit_mb) << 20,
        "wal_space": capacity.wal_space(session),
        "outdated": capacity.outdated(session.version),
    }


def slots(session: Session) -> list[dict[str, Any]]:
    """The slots that this collection names, with the sender of each that is in use.

    Columns that only newer servers have are read by name, so that one query serves all of them.
    """
    rows = session.rows(
        "SELECT s.slot_name, s.database, s.plugin, s.active, s.wal_status, s.restart_lsn::text,"
        "  s.confirmed_flush_lsn::text AS flushed, s.safe_wal_size, here.lsn - s.restart_lsn AS retained,"
        "  here.lsn - s.confirmed_flush_lsn AS behind, to_jsonb(s) ->> 'invalidation_reason' AS reason,"
        "  extract(epoch FROM clock_timestamp() - (to_jsonb(s) ->> 'inactive_since')::timestamptz)::int8 AS inactive,"
        "  r.pid, r.application_name, r.state, r.sent_lsn::text AS sent, here.lsn - r.sent_lsn AS not_sent,"
        "  greatest(r.sent_lsn - s.confirmed_flush_lsn, 0) AS not_flushed, extract(epoch FROM r.replay_lag) AS replay_lag"
        " FROM pg_replication_slots AS s CROSS JOIN (SELECT {0} AS lsn) AS here"
        " LEFT JOIN pg_stat_replication AS r ON r.pid = s.active_pid"
        " WHERE s.slot_type = 'logical' AND s.slot_name LIKE %s ORDER BY s.slot_name".format(_POSITION),
        [_OURS],
    )
    spilled = _spilled(session)
    return [
        {
            "name": row.slot_name,
            "database": row.database,
            "active": row.active,
            "wal_status": row.wal_status,
            "invalidation_reason": row.reason,
            "restart_lsn": row.restart_lsn,
            "confirmed_flush_lsn": row.flushed,
            "retained_bytes": _bytes(row.retained),
            "safe_wal_bytes": _bytes(row.safe_wal_size),
            "behind_bytes": _bytes(row.behind),
            "not_sent_bytes": _bytes(row.not_sent),
            "not_flushed_bytes": _bytes(row.not_flushed) if row.sent else None,
            "inactive_seconds": None if row.inactive is None else int(row.inactive),
            "replay_lag_seconds": None if row.replay_lag is None else float(row.replay_lag),
            "spilled_bytes": spilled.get(row.slot_name),
            "sender": {"pid": row.pid, "application_name": row.application_name, "state": row.state}
            if row.pid
            else None,
        }
        for row in rows
    ]


def _spilled(session: Session) -> dict[str, int]:
    """Bytes of transactions that were written to disk while they were decoded, by slot."""
    if session.version < _SPILL_SINCE:
        return {}
    return {
        row.slot_name: int(row.spill_bytes)
        for row in session.rows(
            "SELECT slot_name, spill_bytes FROM pg_stat_replication_slots WHERE slot_name LIKE %s", [_OURS]
        )
    }


def _bytes(value: Any) -> int | None:
    return None if value is None else max(0, int(value))


def average_wal_rate(session: Session) -> float | None:
    """Bytes of WAL that the server has written in a second since its statistics were reset, None before 14."""
    if session.version < WAL_STATISTICS_SINCE:
        return None
    return float(
        session.value(
            "SELECT wal_bytes / greatest(1, extract(epoch FROM clock_timestamp() - stats_reset)) FROM pg_stat_wal"
        )
    )


def wal_rate(average: float | None, before: Mark, after: Mark) -> float:
    """Bytes of WAL in a second: between two marks, or on average when that is more, so that a pause doesn't look safe."""
    seconds = max(after.clock - before.clock, 0.001)
    return round(max(average or 0.0, (after.position - before.position) / seconds), 1)


def publications(session: Session) -> list[dict[str, Any]]:
    """The publications of the session's database that this collection names, with what they publish."""
    names = [
        row.pubname
        for row in session.rows("SELECT pubname FROM pg_publication WHERE pubname LIKE %s ORDER BY 1", [_OURS])
    ]
    return [{"name": name, "tables": _published(session, name)} for name in names]


def _published(session: Session, name: str) -> list[dict[str, Any]] | None:
    """The tables of a publication; None while somebody has locked one, which the server reads under ACCESS SHARE."""
    try:
        offers = offering.offered(session, [name], session.version)
    except ServerRefused as error:
        if error.details.get("sqlstate") != _LOCK_NOT_AVAILABLE:
            raise
        return None
    return [
        {"name": quoted(*key), "columns": sorted(offer.columns), "where": offer.where}
        for key, offer in sorted(offers.items())
    ]
