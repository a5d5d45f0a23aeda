# SPDX-License-Identifier: GPL-3.0-or-later
"""What a database receives by subscriptions: how far each is, and whether it fails again and again."""

from __future__ import annotations

import time
from typing import Any, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import ServerRefused
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.subscribed import STATES, STATISTICS_SINCE
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import quoted
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.subscription import PLACEHOLDER
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import seeds

_STEADY_SECONDS = 1.0
"""A worker that has lived that long beside an unchanged count of errors doesn't fail at the moment."""
_PAUSE_SECONDS = 0.1
_HERE = "s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())"
_HEARD = "CASE WHEN received_lsn IS NOT NULL THEN nullif(last_msg_receipt_time, '-infinity') END"
"""When a worker has last heard of its upstream. Until it has, the moment is that of its start, or C(-infinity)."""
_OURS = "pgml\\_%"


def subscriptions(session: Session) -> list[dict[str, Any]]:
    """The subscriptions of the session's database that this collection names."""
    rows = session.rows(
        "SELECT s.oid, s.subname, s.subenabled, s.subslotname, s.subpublications, r.rolname AS owner,"
        " coalesce(obj_description(s.oid, 'pg_subscription'), '') = %s AS placeholder,"
        " to_jsonb(w) AS worker, extract(epoch FROM clock_timestamp() - w.latest_end_time) AS end_age,"
        " extract(epoch FROM clock_timestamp() - w.last_msg_receipt_time) AS heard_age"
        " FROM (SELECT oid, subname, subenabled, subslotname, subpublications, subdbid, subowner FROM pg_subscription) AS s"
        " JOIN pg_roles AS r ON r.oid = s.subowner"
        " LEFT JOIN LATERAL (SELECT pid, received_lsn, latest_end_lsn, nullif(latest_end_time, '-infinity')"
        "  AS latest_end_time, " + _HEARD + " AS last_msg_receipt_time"
        "  FROM pg_stat_subscription AS st WHERE st.subid = s.oid AND st.relid IS NULL"
        # Parallel workers apply for a leader, which has a row of its own.
        "  AND to_jsonb(st) ->> 'leader_pid' IS NULL AND st.pid IS NOT NULL LIMIT 1) AS w ON true"
        " WHERE " + _HERE + " AND s.subname LIKE %s ORDER BY s.subname",
        [PLACEHOLDER, _OURS],
    )
    oids = [row.oid for row in rows]
    errors, tables, copiers = _errors(session, oids), _tables(session, oids), _copiers(session, oids)
    return [
        {
            "name": row.subname,
            "oid": row.oid,
            "enabled": row.subenabled,
            "owner": row.owner,
            "publications": sorted(row.subpublications),
            "slot_name": row.subslotname,
            "placeholder": row.placeholder,
            "first_copy": _first_copy(session, row.subname),
            "worker": (row.worker or {}).get("pid"),
            "copiers": copiers.get(row.oid, []),
            "received_lsn": (row.worker or {}).get("received_lsn"),
            "latest_end_lsn": (row.worker or {}).get("latest_end_lsn"),
            "heard_seconds_ago": _seconds(row.heard_age),
            "level_seconds_ago": _seconds(row.end_age),
            **errors.get(row.oid, {"apply_errors": None, "sync_errors": None, "conflicts": {}}),
            "failing": False,
            "tables": tables.get(row.oid, []),
        }
        for row in rows
    ]


def _seconds(value: Any) -> float | None:
    return None if value is None else round(max(0.0, float(value)), 1)


def _first_copy(session: Session, name: str) -> str | None:
    """The phase of a first copy that this collection makes, until the subscription has caught up after it."""
    seed = seeds.read(session, name)
    return seed.phase if seed else None


def _errors(session: Session, oids: Sequence[int]) -> dict[int, dict[str, Any]]:
    """What the server has counted of errors, and since 18 of conflicts, by subscription; nothing before 15."""
    if session.version < STATISTICS_SINCE:
        return {}
    return {
        row.subid: {
            "apply_errors": row.counts["apply_error_count"],
            "sync_errors": row.counts["sync_error_count"],
            "conflicts": {
                name[len("confl_") :]: count
                for name, count in row.counts.items()
                if name.startswith("confl_") and count
            },
        }
        for row in session.rows(
            "SELECT subid, to_jsonb(t) AS counts FROM pg_stat_subscription_stats AS t WHERE subid = ANY(%s::oid[])",
            [list(oids)],
        )
    }


def _tables(session: Session, oids: Sequence[int]) -> dict[int, list[dict[str, Any]]]:
    """The tables of each subscription, with the columns that could be written."""
    found: dict[int, list[dict[str, Any]]] = {}
    for row in session.rows(
        "SELECT sr.srsubid, sr.srsubstate, c.oid, n.nspname AS schema, c.relname AS name,"
        " array(SELECT attname::text FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped"
        "  AND attgenerated = '' ORDER BY 1) AS columns"
        " FROM pg_subscription_rel AS sr JOIN pg_class AS c ON c.oid = sr.srrelid"
        " JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE sr.srsubid = ANY(%s::oid[]) ORDER BY 4, 5",
        [list(oids)],
    ):
        found.setdefault(row.srsubid, []).append(
            {
                "name": quoted(row.schema, row.name),
                "state": STATES.get(row.srsubstate, row.srsubstate),
                "oid": row.oid,
                "columns": row.columns,
            }
        )
    measured = sizes(session, [table["oid"] for each in found.values() for table in each])
    for each in found.values():
        for table in each:
            table.update(measured.get(table.pop("oid"), NOTHING)._asdict())
    return found


class Size(NamedTuple):
    """How large a table is."""

    rows: int
    """an estimate: reltuples is old until the next ANALYZE, and the counter of live rows is lost in a crash"""
    bytes: int
    """with its indexes and TOAST"""


NOTHING = Size(0, 0)


def sizes(session: Session, oids: Sequence[int]) -> dict[int, Size]:
    """How large tables are, without waiting for anybody; when one is locked, bytes are those of the last VACUUM or ANALYZE."""
    try:
        return _sizes(session, "pg_total_relation_size(c.oid)", oids)
    except ServerRefused:
        return _sizes(
            session,
            "(SELECT sum(p.relpages)::int8 * current_setting('block_size')::int FROM pg_class AS p"
            " WHERE p.oid IN (c.oid, c.reltoastrelid)"
            "  OR p.oid IN (SELECT indexrelid FROM pg_index WHERE indrelid IN (c.oid, c.reltoastrelid)))",
            oids,
        )


def _sizes(session: Session, size: str, oids: Sequence[int]) -> dict[int, Size]:
    # What a partitioned table holds is in its partitions.
    query = (
        "WITH RECURSIVE part(root, relid) AS (SELECT oid, oid FROM unnest(%s::oid[]) AS t(oid) UNION ALL"
        " SELECT part.root, i.inhrelid FROM part JOIN pg_class AS p ON p.oid = part.relid AND p.relkind = 'p'"
        " JOIN pg_inherits AS i ON i.inhparent = p.oid)"
        " SELECT part.root, sum(greatest(c.reltuples, pg_stat_get_live_tuples(c.oid), 0))::int8 AS rows,"
        " sum({0})::int8 AS bytes FROM part JOIN pg_class AS c ON c.oid = part.relid GROUP BY 1"
    )
    rows = session.rows(query.format(size), [list(oids)])
    return {row.root: Size(int(row.rows), int(row.bytes)) for row in rows}


def _copiers(session: Session, oids: Sequence[int]) -> dict[int, list[int]]:
    """The processes that copy tables, by subscription."""
    found: dict[int, list[int]] = {}
    for row in session.rows(
        "SELECT subid, pid FROM pg_stat_subscription WHERE subid = ANY(%s::oid[]) AND relid IS NOT NULL AND pid IS NOT NULL",
        [list(oids)],
    ):
        found.setdefault(row.subid, []).append(row.pid)
    return found


def watch(session: Session, known: Sequence[dict[str, Any]]) -> None:
    """Find out which of *known* have no worker, or one that fails again and again, and note that in C(worker) and C(failing).

    A worker that fails is started anew after wal_retrieve_retry_interval, so that one look finds it or doesn't, and one that
    can't connect is seen while it tries. Only subscriptions that look suspicious are watched, for little longer than that.

    Before 15, which counts no errors, a worker that can't apply leaves a transaction that is rolled back, and one that can't
    connect has none. Those of others in the same database are taken for it, too.
    """
    suspects = {each["oid"]: each for each in known if _is_suspect(each)}
    if not suspects:
        return
    retry = session.value("SELECT setting::float8 / 1000 FROM pg_settings WHERE name = 'wal_retrieve_retry_interval'")
    rolled_back = _rolled_back(session)
    end = time.monotonic() + float(retry) + 2 * _STEADY_SECONDS
    seen: dict[int, tuple[int, float]] = {}
    while suspects and time.monotonic() < end:
        time.sleep(_PAUSE_SECONDS)
        errors, workers = _errors(session, list(suspects)), _workers(session, list(suspects))
        for oid, each in list(suspects.items()):
            worker, now = workers.get(oid), time.monotonic()
            before, since = seen.get(oid, (worker, now))
            if oid in errors and _count(errors[oid]) > _count(each):
                each.update({**errors[oid], "failing": True})
            elif worker and worker == before and now - since > _STEADY_SECONDS:
                each["worker"] = worker
            else:
                if worker and worker != seen.get(oid, (0, 0.0))[0]:
                    seen[oid] = (worker, now)
                continue
            del suspects[oid]
    failing = session.version < STATISTICS_SINCE and _rolled_back(session) > rolled_back
    for each in suspects.values():
        each.update(worker=None, failing=failing)


def _rolled_back(session: Session) -> int:
    return int(session.value("SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()"))


def _is_suspect(each: Mapping[str, Any]) -> bool:
    if not each["enabled"] or each["placeholder"]:
        return False
    return each["heard_seconds_ago"] is None or bool(each["apply_errors"] or each["sync_errors"])


def _workers(session: Session, oids: Sequence[int]) -> dict[int, int]:
    """The workers that the upstream has answered, by subscription."""
    return {
        row.subid: row.pid
        for row in session.rows(
            "SELECT subid, min(pid) AS pid FROM pg_stat_subscription AS st WHERE subid = ANY(%s::oid[]) AND pid IS NOT NULL"
            " AND " + _HEARD + " IS NOT NULL AND relid IS NULL AND to_jsonb(st) ->> 'leader_pid' IS NULL GROUP BY 1",
            [list(oids)],
        )
    }


def _count(errors: Mapping[str, Any]) -> int:
    return int(errors["apply_errors"] + errors["sync_errors"])
