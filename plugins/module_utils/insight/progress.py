# SPDX-License-Identifier: GPL-3.0-or-later
"""What is on its way into a database at this moment: the run that fills it, its copies and builds, its subscriptions."""

from __future__ import annotations

from typing import Any

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import ServerRefused
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.subscribed import READY, STATES
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import quoted
from ansible_collections.postgresml.distributed.plugins.module_utils.task import Task
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import ledger

OPTIONS: dict[str, Any] = {}

_COPIES_SINCE = 140000
_UNDEFINED_TABLE = "42P01"
_PATIENCE_MILLISECONDS = 2000
"""It is asked again and again: whoever waits longer learns nothing."""


def manage(task: Task) -> None:
    """Return what is going on. It waits for nobody: somebody may be about to drop what is read here."""
    with Session(
        Endpoint.from_login(task.params),
        lock_timeout="{0} ms".format(_PATIENCE_MILLISECONDS // 10),
        statement_timeout="{0} ms".format(_PATIENCE_MILLISECONDS),
        max_parallel_workers_per_gather="0",
    ) as session:
        try:
            task.result.update(_read(session))
        except ServerRefused as error:
            if error.details.get("sqlstate") != _UNDEFINED_TABLE:
                raise
            task.result.update(_read(session))  # a run has ended meanwhile, and what it remembered with it


def _read(session: Session) -> dict[str, Any]:
    run = _run(session)
    planned = _PLANNED if run else _NOTHING
    copies = session.rows(_COPIES.format(planned=planned)) if session.version >= _COPIES_SINCE else []
    if run:
        run["bytes_done"] = min(run["bytes"], run["bytes_done"] + sum(copy.begun for copy in copies))
    return {
        "run": run,
        "copies": [_copy(row) for row in copies],
        "builds": _builds(session, planned),
        "subscriptions": _subscriptions(session),
    }


def _run(session: Session) -> dict[str, Any] | None:
    """The run that is at work, if there is one."""
    if not ledger.has(session, "progress"):
        return None
    row = session.row(
        "SELECT p.phase, p.process, round(extract(epoch FROM clock_timestamp() - p.started_at))::int AS seconds,"
        "  p.tables, p.tables_done, p.bytes, p.bytes_done, p.rows FROM pgml_distributed.progress AS p"
        " JOIN pg_stat_activity AS a ON a.pid = p.process AND a.backend_start <= p.started_at"
        "  AND a.datname = current_database() WHERE p.phase <> 'done'"
    )
    return row and dict(row._asdict())


_PLANNED = "pgml_distributed.progress_tables"
_NOTHING = (
    "(SELECT NULL AS schema_name, NULL AS table_name, NULL AS place, 0::int8 AS bytes, 0::int8 AS expected_rows,"
    " 0::int8 AS bytes_done, 0::int8 AS rows WHERE false)"
)


_COPIES = (
    "WITH c AS (SELECT relid, sum(bytes_processed)::int8 AS bytes, sum(tuples_processed)::int8 AS rows"
    "  FROM pg_stat_progress_copy WHERE datname = current_database() AND command = 'COPY FROM' AND relid >= 16384"
    "  GROUP BY relid),"
    " p AS (SELECT p.*, c.relid, c.bytes AS received, c.rows AS new_rows, n.nspname AS schema, r.relname AS name,"
    "   CASE WHEN p.bytes > 0 THEN least(p.bytes - p.bytes_done,"
    "    CASE WHEN p.expected_rows > 0 THEN c.rows::numeric * p.bytes / p.expected_rows ELSE c.bytes END)::int8 END AS begun"
    "  FROM c JOIN pg_class AS r ON r.oid = c.relid JOIN pg_namespace AS n ON n.oid = r.relnamespace"
    "  LEFT JOIN {planned} AS p ON p.place = n.nspname AND p.table_name = r.relname WHERE n.nspname <> 'pgml_distributed')"
    " SELECT coalesce(schema_name, schema) AS schema, name, nullif(bytes, 0) AS bytes, coalesce(begun, 0) AS begun,"
    "  coalesce(bytes_done + begun, received) AS bytes_done, new_rows + coalesce(rows, 0) AS rows"
    " FROM p ORDER BY bytes DESC NULLS LAST, 1, 2"
)
"""The tables that COPY fills now. Of those *planned* the bytes are as the source keeps them, estimated by rows if their number
can be, since COPY has another form."""


def _copy(row: Any) -> dict[str, Any]:
    return {"name": quoted(row.schema, row.name), "bytes": row.bytes, "bytes_done": row.bytes_done, "rows": row.rows}


def _builds(session: Session, planned: str) -> list[dict[str, Any]]:
    """The tables on which indexes are built now. PostgreSQL doesn't tell which ones, as long as they aren't there."""
    return [
        {"table": quoted(row.schema, row.name), "step": row.step, "done": row.done, "total": row.total}
        for row in session.rows(_BUILDS.format(planned=planned))
    ]


_BUILDS = (
    "SELECT coalesce(p.schema_name, n.nspname) AS schema, r.relname AS name, b.phase AS step,"
    "  CASE WHEN b.tuples_total > 0 THEN b.tuples_done ELSE b.blocks_done END AS done,"
    "  CASE WHEN b.tuples_total > 0 THEN b.tuples_total ELSE b.blocks_total END AS total"
    " FROM pg_stat_progress_create_index AS b JOIN pg_class AS r ON r.oid = b.relid"
    " JOIN pg_namespace AS n ON n.oid = r.relnamespace"
    " LEFT JOIN {planned} AS p ON p.place = n.nspname AND p.table_name = r.relname"
    " WHERE b.datname = current_database() ORDER BY 1, 2, b.pid"
)


def _subscriptions(session: Session) -> list[dict[str, Any]]:
    """How many tables of each subscription have their first copy, and what the others wait for."""
    found: dict[str, dict[str, Any]] = {}
    for row in session.rows(_SUBSCRIPTIONS, {"ready": READY}):
        entry = found.setdefault(
            row.subscription, {"name": row.subscription, "tables": row.tables, "ready": row.ready, "unready": {}}
        )
        if row.name is not None:
            entry["unready"][quoted(row.schema, row.name)] = STATES.get(row.state, row.state)
    return list(found.values())


_SUBSCRIPTIONS = (
    "SELECT s.subname AS subscription, t.tables, t.ready, n.nspname AS schema, c.relname AS name, r.srsubstate AS state"
    " FROM pg_subscription AS s CROSS JOIN LATERAL (SELECT count(*) AS tables,"
    "  count(*) FILTER (WHERE srsubstate = %(ready)s) AS ready FROM pg_subscription_rel WHERE srsubid = s.oid) AS t"
    " LEFT JOIN (pg_subscription_rel AS r JOIN pg_class AS c ON c.oid = r.srrelid"
    "  JOIN pg_namespace AS n ON n.oid = c.relnamespace) ON r.srsubid = s.oid AND r.srsubstate <> %(ready)s"
    " WHERE s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database()) ORDER BY 1, 4, 5"
)
