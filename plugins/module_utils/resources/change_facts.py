# SPDX-License-Identifier: GPL-3.0-or-later
"""What a plan for a schema change needs to know of a server: one query for each area of the catalogs."""

from __future__ import annotations

from typing import Any, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.publication import (
    OPERATIONS,
    SCHEMAS_SINCE,
)

_ALL_TABLES = (
    "SELECT c.oid FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p')"
    " AND c.relpersistence = 'p' AND c.oid >= 16384 AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
    " AND EXISTS (SELECT FROM pg_publication WHERE pubname = %(name)s AND puballtables)"
)
_LISTED = (
    "SELECT pr.prrelid FROM pg_publication_rel AS pr JOIN pg_publication AS p ON p.oid = pr.prpubid"
    " WHERE p.pubname = %(name)s"
)
_SCHEMAS = (
    "SELECT c.oid FROM pg_class AS c JOIN pg_publication_namespace AS pn ON pn.pnnspid = c.relnamespace"
    " JOIN pg_publication AS p ON p.oid = pn.pnpubid WHERE p.pubname = %(name)s AND c.relkind IN ('r', 'p')"
    " AND c.relpersistence = 'p'"
)
_SUBSCRIBED = (
    "SELECT sr.srrelid FROM pg_subscription_rel AS sr JOIN (SELECT oid, subname, subdbid FROM pg_subscription) AS s"
    " ON s.oid = sr.srsubid WHERE s.subname = %(name)s"
    " AND s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
_WITH_KIN = (
    "WITH RECURSIVE tied AS (SELECT i.inhrelid AS child, i.inhparent AS parent FROM pg_inherits AS i"
    "  JOIN pg_class AS c ON c.oid = i.inhrelid WHERE c.relispartition AND c.relkind IN ('r', 'p')),"
    " up(oid) AS (SELECT * FROM ({members}) AS members(oid) UNION SELECT t.parent FROM up JOIN tied AS t ON t.child = up.oid),"
    " down(oid) AS (SELECT * FROM ({members}) AS members(oid)"
    "  UNION SELECT t.child FROM down JOIN tied AS t ON t.parent = down.oid)"
    " SELECT oid FROM up UNION SELECT oid FROM down"
)


def read(session: Session, kind: str, name: str, asked: Any) -> dict[str, Any]:
    """The facts about the C(relations), C(types) and C(functions) that *asked* names."""
    distributed = _distributed(session, kind, name) if asked["relations"] or asked["types"] else []
    facts: dict[str, Any] = {
        "version": session.version,
        "database": session.value("SELECT current_database()::text"),
        "relations": _relations(session, name if kind == "publication" else None, asked["relations"], distributed),
        "types": _types(session, asked["types"], distributed),
        "functions": _functions(session, asked["functions"]),
    }
    if kind == "publication":
        facts["publication"] = _publication(session, name)
    return facts


def _distributed(session: Session, kind: str, name: str) -> list[int]:
    """The oids of the tables that *kind* *name* carries, of their partitions and of what they are partitions of."""
    members = [_SUBSCRIBED]
    if kind == "publication":
        members = [_ALL_TABLES, _LISTED] + [_SCHEMAS] * (session.version >= SCHEMAS_SINCE)
    query = _WITH_KIN.replace("{members}", " UNION ".join(members))
    return [row.oid for row in session.rows(query, {"name": name})]


def _publication(session: Session, name: str) -> dict[str, Any]:
    row = session.row("SELECT * FROM pg_publication WHERE pubname = %s", [name])
    schemas = []
    if session.version >= SCHEMAS_SINCE:
        schemas = session.rows(
            "SELECT n.nspname FROM pg_publication_namespace AS pn JOIN pg_namespace AS n ON n.oid = pn.pnnspid"
            " WHERE pn.pnpubid = %s ORDER BY 1",
            [row.oid],
        )
    return {
        "all_tables": row.puballtables,
        "schemas": [each.nspname for each in schemas],
        "via_partition_root": row.pubviaroot,
        "publish": [operation for operation in OPERATIONS if getattr(row, "pub" + operation)],
    }


_RELATIONS = (
    "SELECT w.label, c.oid, c.relkind AS kind, c.relreplident AS identity, x.indisunique AS is_unique, base.oid AS base,"
    " base.oid = ANY(%(distributed)s::oid[]) AS distributed,"
    " CASE WHEN x.indexrelid IS NOT NULL THEN {base_name} END AS table_name,"
    " CASE WHEN c.relispartition THEN (SELECT {parent_name} FROM pg_inherits AS i JOIN pg_class AS pc ON pc.oid = i.inhparent"
    "  JOIN pg_namespace AS pn ON pn.oid = pc.relnamespace WHERE i.inhrelid = c.oid LIMIT 1) END AS parent,"
    " CASE WHEN c.relkind = 'p' THEN (SELECT coalesce(sum(pg_relation_size(l.relid)), 0) = 0 FROM pg_partition_tree(c.oid) AS l"
    "  WHERE l.isleaf) WHEN c.relkind IN ('r', 'm', 't') THEN pg_relation_size(c.oid) = 0 END AS empty"
    " FROM (SELECT label, to_regclass(label)::oid AS oid FROM unnest(%(labels)s::text[]) AS label) AS w"
    " JOIN pg_class AS c ON c.oid = w.oid LEFT JOIN pg_index AS x ON x.indexrelid = c.oid"
    " LEFT JOIN pg_depend AS d ON c.relkind = 'S' AND d.classid = 'pg_class'::regclass AND d.objid = c.oid"
    "  AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')"
    " JOIN pg_class AS base ON base.oid = coalesce(x.indrelid, d.refobjid, c.oid)"
    " JOIN pg_namespace AS bn ON bn.oid = base.relnamespace"
)
_QUOTED = "concat_ws('.', {0}, {1})"


def _relations(
    session: Session, publication: str | None, labels: Sequence[str], distributed: Sequence[int]
) -> dict[str, Any]:
    if not labels:
        return {}
    query = _RELATIONS.replace("{base_name}", _name_of("bn", "base")).replace("{parent_name}", _name_of("pn", "pc"))
    rows = session.rows(query, {"labels": list(dict.fromkeys(labels)), "distributed": list(distributed)})
    oids = [row.oid for row in rows]
    columns = _columns(session, oids)
    keys = _keys(session, oids)
    constraints = _constraints(session, oids)
    lists = _lists(session, publication, oids) if publication else {}
    return {
        row.label: {
            "kind": row.kind,
            "distributed": row.distributed,
            "listed": lists.get(row.oid),
            "columns": columns.get(row.oid, {}),
            "key": list(columns.get(row.oid, {})) if row.identity == "f" else keys.get(row.oid, []),
            "constraints": constraints.get(row.oid, {}),
            "table": row.table_name,
            "unique": bool(row.is_unique),
            "parent": row.parent,
            "empty": bool(row.empty),
        }
        for row in rows
    }


def _name_of(schema: str, relation: str) -> str:
    """SQL for a name as statement.quoted() spells it, which quotes no keywords."""
    parts = [
        "CASE WHEN {0} ~ '^[a-z_][a-z0-9_]*$' THEN {0}::text ELSE '\"' || replace({0}, '\"', '\"\"') || '\"' END".format(
            part
        )
        for part in (schema + ".nspname", relation + ".relname")
    ]
    return _QUOTED.format(*parts)


def _columns(session: Session, oids: Sequence[int]) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for row in session.rows(
        "SELECT attrelid, attname, format_type(atttypid, atttypmod) AS type, attnotnull, atthasdef, attgenerated, attidentity"
        " FROM pg_attribute WHERE attrelid = ANY(%s::oid[]) AND attnum > 0 AND NOT attisdropped ORDER BY attrelid, attnum",
        [list(oids)],
    ):
        found.setdefault(row.attrelid, {})[row.attname] = {
            "type": row.type,
            "not_null": row.attnotnull,
            "has_default": row.atthasdef,
            "generated": row.attgenerated,
            "identity": row.attidentity,
        }
    return found


def _keys(session: Session, oids: Sequence[int]) -> dict[int, list[str]]:
    """The columns of the index that is the replica identity, by table."""
    return {
        row.indrelid: row.columns
        for row in session.rows(
            "SELECT x.indrelid, array(SELECT a.attname::text FROM unnest(x.indkey) WITH ORDINALITY AS k(attnum, place)"
            "  JOIN pg_attribute AS a ON a.attrelid = x.indrelid AND a.attnum = k.attnum WHERE k.place <= x.indnkeyatts"
            "  ORDER BY k.place) AS columns"
            " FROM pg_index AS x JOIN pg_class AS c ON c.oid = x.indrelid WHERE c.oid = ANY(%s::oid[])"
            " AND CASE c.relreplident WHEN 'd' THEN x.indisprimary WHEN 'i' THEN x.indisreplident END",
            [list(oids)],
        )
    }


def _constraints(session: Session, oids: Sequence[int]) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for row in session.rows(
        "SELECT k.conrelid, k.conname, k.contype, k.convalidated, pg_get_constraintdef(k.oid) AS expression,"
        " array(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY AS c(attnum, place)"
        "  JOIN pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = c.attnum ORDER BY c.place) AS columns"
        " FROM pg_constraint AS k WHERE k.conrelid = ANY(%s::oid[])",
        [list(oids)],
    ):
        found.setdefault(row.conrelid, {})[row.conname] = {
            "type": row.contype,
            "columns": row.columns,
            "expression": row.expression,
            "valid": row.convalidated,
        }
    return found


def _lists(session: Session, publication: str, oids: Sequence[int]) -> dict[int, list[str]]:
    """The column lists of the publication, that of the nearest table upwards for partitions."""
    if session.version < SCHEMAS_SINCE:
        return {}
    return {
        row.oid: row.columns
        for row in session.rows(
            "WITH RECURSIVE up(oid, ancestor, steps) AS (SELECT o, o, 0 FROM unnest(%s::oid[]) AS o"
            "  UNION ALL SELECT up.oid, i.inhparent, up.steps + 1 FROM up JOIN pg_inherits AS i ON i.inhrelid = up.ancestor)"
            " SELECT DISTINCT ON (up.oid) up.oid, array(SELECT a.attname::text FROM unnest(pr.prattrs::int2[]) AS l(attnum)"
            "  JOIN pg_attribute AS a ON a.attrelid = pr.prrelid AND a.attnum = l.attnum ORDER BY a.attnum) AS columns"
            " FROM up JOIN pg_publication_rel AS pr ON pr.prrelid = up.ancestor JOIN pg_publication AS p ON p.oid = pr.prpubid"
            " WHERE p.pubname = %s AND pr.prattrs IS NOT NULL ORDER BY up.oid, up.steps",
            [list(oids), publication],
        )
    }


def _types(session: Session, labels: Sequence[str], distributed: Sequence[int]) -> dict[str, Any]:
    """Types, and whether a distributed table has a column of them, of arrays of them, or of what is made of them."""
    if not labels:
        return {}
    return {
        row.label: {"kind": row.kind, "distributed": row.distributed}
        for row in session.rows(
            "WITH RECURSIVE wanted AS (SELECT label, to_regtype(label)::oid AS oid FROM unnest(%s::text[]) AS label),"
            " uses(label, oid) AS (SELECT label, oid FROM wanted WHERE oid IS NOT NULL"
            "  UNION SELECT u.label, m.made FROM uses AS u JOIN ("
            "   SELECT typelem AS of, oid AS made FROM pg_type WHERE typcategory = 'A'"
            "   UNION ALL SELECT typbasetype, oid FROM pg_type WHERE typtype = 'd'"
            "   UNION ALL SELECT rngsubtype, rngtypid FROM pg_range"
            "   UNION ALL SELECT a.atttypid, c.reltype FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid"
            "    WHERE c.relkind = 'c' AND a.attnum > 0 AND NOT a.attisdropped) AS m ON m.of = u.oid)"
            " SELECT w.label, t.typtype AS kind, EXISTS (SELECT FROM uses AS u JOIN pg_attribute AS a ON a.atttypid = u.oid"
            "  WHERE u.label = w.label AND a.attrelid = ANY(%s::oid[]) AND a.attnum > 0 AND NOT a.attisdropped) AS distributed"
            " FROM wanted AS w JOIN pg_type AS t ON t.oid = w.oid",
            [list(dict.fromkeys(labels)), list(distributed)],
        )
    }


def _functions(session: Session, labels: Sequence[str]) -> dict[str, str]:
    """The volatility of functions; of several with one name, that of the most volatile."""
    return (
        {
            row.label: row.volatility
            for row in session.rows(
                "SELECT w.label, max(p.provolatile::text) AS volatility"
                " FROM (SELECT label, parse_ident(label) AS parts FROM unnest(%s::text[]) AS label) AS w"
                " JOIN pg_proc AS p ON p.proname = w.parts[array_upper(w.parts, 1)]"
                " JOIN pg_namespace AS n ON n.oid = p.pronamespace AND (array_length(w.parts, 1) = 1 OR n.nspname = w.parts[1])"
                " GROUP BY w.label",
                [list(dict.fromkeys(labels))],
            )
        }
        if labels
        else {}
    )
