# SPDX-License-Identifier: GPL-3.0-or-later
"""What a database holds that this collection has brought otherwise than by a subscription: copies, foreign tables, models."""

from __future__ import annotations

from typing import Any

from ansible_collections.postgresml.distributed.plugins.module_utils.insight.replica_state import NOTHING, sizes
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import quoted
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import (
    distribution_ledger,
    model_catalog,
    model_ledger,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import ledger


def remembered(session: Session) -> list[dict[str, Any]]:
    """By which strategy, and from where, each distribution comes here."""
    return [
        {"name": each.name, "strategy": each.strategy, "automatic": each.automatic, "upstream": each.upstream}
        for each in sorted(distribution_ledger.read(session).values())
    ]


def copies(session: Session) -> list[dict[str, Any]]:
    """The tables that were copied, a partitioned one with its partitions in it, and whether each is where it was put."""
    if not ledger.exists(session):
        return []
    rows = session.rows(
        "SELECT p.schema_name, p.table_name, c.oid, CASE WHEN c.relkind = 'p' THEN (SELECT sum(q.rows)"
        "  FROM pgml_distributed.copies AS q JOIN pg_partition_tree(c.oid) AS t ON t.relid = q.relation)::int8"
        "  ELSE p.rows END AS rows, p.copied_at::text,"
        " extract(epoch FROM clock_timestamp() - p.copied_at)::int8 AS age FROM pgml_distributed.copies AS p"
        " LEFT JOIN (pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace)"
        "  ON c.oid = p.relation AND c.relname = p.table_name AND n.nspname = p.schema_name"
        " WHERE NOT EXISTS (SELECT FROM pgml_distributed.copies AS a JOIN pg_partition_ancestors(c.oid) AS t"
        "  ON t.relid = a.relation WHERE a.relation <> c.oid) ORDER BY 1, 2"
    )
    measured = sizes(session, [row.oid for row in rows if row.oid])
    return [
        {
            "name": quoted(row.schema_name, row.table_name),
            "schema": row.schema_name,
            "present": row.oid is not None,
            "rows": row.rows,
            "bytes": measured.get(row.oid, NOTHING).bytes,
            "copied_at": row.copied_at,
            "age": int(row.age),
        }
        for row in rows
    ]


def foreign_servers(session: Session) -> list[dict[str, Any]]:
    """The foreign servers that were made here, each with its tables and snapshots."""
    if not ledger.has(session, "foreign_objects"):
        return []
    servers: dict[str, dict[str, Any]] = {}
    rows = session.rows(
        "SELECT f.server, f.kind, f.schema_name, f.name, f.rows, f.taken_at::text,"
        " extract(epoch FROM clock_timestamp() - f.taken_at)::int8 AS age, c.oid,"
        " EXISTS (SELECT FROM pg_foreign_server WHERE srvname = f.server) AS present"
        " FROM pgml_distributed.foreign_objects AS f LEFT JOIN pg_class AS c ON c.oid = f.relation"
        " WHERE f.kind IN ('server', 'table', 'view', 'snapshot') ORDER BY f.server, f.schema_name, f.name"
    )
    measured = sizes(session, [row.oid for row in rows if row.oid and row.kind == "snapshot"])
    for row in rows:
        server = servers.setdefault(
            row.server, {"name": row.server, "present": row.present, "tables": [], "missing": [], "snapshots": []}
        )
        label = quoted(row.schema_name, row.name)
        if row.kind == "server":
            continue
        if row.oid is None:
            server["missing"].append(label)
        elif row.kind == "snapshot":
            server["snapshots"].append(
                {
                    "name": label,
                    "rows": measured.get(row.oid, NOTHING).rows if row.rows is None else int(row.rows),
                    "bytes": measured.get(row.oid, NOTHING).bytes,
                    "taken_at": row.taken_at,
                    "age": None if row.age is None else int(row.age),
                }
            )
        else:
            server["tables"].append(label)
    return list(servers.values())


def models(session: Session) -> dict[str, Any] | None:
    """What the database's projects serve, and where shipped models come from; None without PostgresML."""
    version = model_catalog.version(session)
    if version is None:
        return None
    shipped = {each.model_id: each for each in model_ledger.read(session)}
    projects = []
    for name, project in sorted(model_catalog.read(session).items()):
        served = project.deployed
        origin = shipped.get(served.id) if served else None
        projects.append(
            {
                "project": name,
                "task": project.task,
                "models": len(project.models),
                "served": served and {"id": served.id, "algorithm": served.algorithm, "bytes": served.size},
                "shipped": sum(model.id in shipped for model in project.models),
                "source": origin
                and {"system": origin.source_system, "database": origin.source_database, "id": origin.source_model_id},
            }
        )
    return {"version": version, "projects": projects}


def progress(session: Session) -> dict[str, Any] | None:
    """How far the last copy has come, and whether its process is still there."""
    if not ledger.exists(session):
        return None
    row = session.row(
        "SELECT p.*, EXISTS (SELECT FROM pg_stat_activity AS a WHERE a.pid = p.process AND a.datname = current_database()"
        "  AND a.backend_start <= p.started_at) AS alive FROM pgml_distributed.progress AS p ORDER BY p.started_at DESC LIMIT 1"
    )
    if row is None:
        return None
    return {
        "process": row.process,
        "alive": row.alive,
        "phase": row.phase,
        "tables": row.tables,
        "tables_done": row.tables_done,
        "bytes": row.bytes,
        "bytes_done": row.bytes_done,
        "rows": row.rows,
        "started_at": str(row.started_at),
        "updated_at": str(row.updated_at),
    }
