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
        "types": _types(session, name if kind == "publication" else None, asked["types"], distributed),
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
        "others": _wide_publications(session, name),
    }


def _wide_publications(session: Session, name: str) -> dict[str, Any]:
    """Other publications that take in tables by themselves: of the whole database, and of schemas."""
    found: dict[str, Any] = {"all_tables": [], "schemas": {}}
    schemas = (
        "SELECT p.pubname, NULL AS nspname FROM pg_publication AS p WHERE p.puballtables AND p.pubname <> %(name)s"
    )
    if session.version >= SCHEMAS_SINCE:
        schemas += (
            " UNION ALL SELECT p.pubname, n.nspname FROM pg_publication AS p"
            " JOIN pg_publication_namespace AS pn ON pn.pnpubid = p.oid JOIN pg_namespace AS n ON n.oid = pn.pnnspid"
            " WHERE p.pubname <> %(name)s"
        )
    for row in session.rows(schemas + " ORDER BY 1, 2", {"name": name}):
        held = found["all_tables"] if row.nspname is None else found["schemas"].setdefault(row.nspname, [])
        held.append(row.pubname)
    return found


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
    indexes = _indexes(session, oids)
    constraints = _constraints(session, oids)
    partitions = _partitioning(session, oids)
    inner = _within(session, [row.oid for row in rows if row.kind == "p"])
    lists = _lists(session, publication, oids) if publication else {}
    others = _other_publications(session, publication, oids) if publication else {}
    return {
        row.label: {
            "kind": row.kind,
            "distributed": row.distributed,
            "listed": lists.get(row.oid),
            "columns": columns.get(row.oid, {}),
            "key": list(columns.get(row.oid, {})) if row.identity == "f" else _key(row, indexes.get(row.oid, {})),
            "identity": row.identity,
            "identity_index": _identity_index(row, indexes.get(row.oid, {})),
            "indexes": indexes.get(row.oid, {}),
            "constraints": constraints.get(row.oid, {}),
            "table": row.table_name,
            "unique": bool(row.is_unique),
            "parent": row.parent,
            "empty": bool(row.empty),
            "default": None,
            "parent_default": None,
            "partitioned_by": None,
            **partitions.get(row.oid, {}),
            "within": inner.get(row.oid, []),
            "publications": others.get(row.oid, []),
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


def _indexes(session: Session, oids: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The indexes of tables by their names: what they are about, and whether rows are found by them."""
    found: dict[int, dict[str, Any]] = {}
    for row in session.rows(
        "SELECT x.indrelid, c.relname, x.indisunique, x.indisprimary, x.indisreplident,"
        " array(SELECT a.attname::text FROM unnest(x.indkey) WITH ORDINALITY AS k(attnum, place)"
        "  JOIN pg_attribute AS a ON a.attrelid = x.indrelid AND a.attnum = k.attnum WHERE k.place <= x.indnkeyatts"
        "  ORDER BY k.place) AS key,"
        " array(SELECT a.attname::text FROM pg_depend AS d JOIN pg_attribute AS a ON a.attrelid = d.refobjid"
        "  AND a.attnum = d.refobjsubid WHERE d.classid = 'pg_class'::regclass AND d.objid = x.indexrelid"
        "  AND d.refclassid = 'pg_class'::regclass AND d.refobjid = x.indrelid AND d.refobjsubid > 0"
        "  ORDER BY a.attnum) AS also"
        " FROM pg_index AS x JOIN pg_class AS c ON c.oid = x.indexrelid WHERE x.indrelid = ANY(%s::oid[])"
        " ORDER BY x.indrelid, c.relname",
        [list(oids)],
    ):
        found.setdefault(row.indrelid, {})[row.relname] = {
            "key": row.key,
            "columns": list(dict.fromkeys(row.key + row.also)),
            "unique": row.indisunique,
            "primary": row.indisprimary,
            "identity": row.indisreplident,
        }
    return found


def _identity_index(row: Any, indexes: dict[str, Any]) -> str | None:
    """The index that finds rows: where the identity is the default, that of the primary key."""
    which = {"d": "primary", "i": "identity"}.get(row.identity, "")
    return next((name for name, each in indexes.items() if each.get(which)), None)


def _key(row: Any, indexes: dict[str, Any]) -> list[str]:
    name = _identity_index(row, indexes)
    return list(indexes[name]["key"]) if name else []


def _partitioning(session: Session, oids: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Of a partitioned table what it is divided by, and its default partition; of a partition, that beside it."""
    found: dict[int, dict[str, Any]] = {}
    query = (
        "SELECT o.oid, pt.partrelid = o.oid AS own, pt.partstrat, {default_name} AS name, d.oid IS NOT NULL AS there,"
        " (SELECT sum(pg_relation_size(l.relid)) = 0 FROM pg_partition_tree(d.oid) AS l WHERE l.isleaf) AS empty,"
        " array(SELECT a.attname::text FROM unnest(pt.partattrs::int2[]) WITH ORDINALITY AS k(attnum, place)"
        "  LEFT JOIN pg_attribute AS a ON a.attrelid = pt.partrelid AND a.attnum = k.attnum ORDER BY k.place) AS columns"
        " FROM unnest(%s::oid[]) AS o(oid) LEFT JOIN pg_inherits AS i ON i.inhrelid = o.oid"
        " JOIN pg_partitioned_table AS pt ON pt.partrelid IN (o.oid, i.inhparent)"
        " LEFT JOIN pg_class AS d ON d.oid = pt.partdefid LEFT JOIN pg_namespace AS dn ON dn.oid = d.relnamespace"
    ).replace("{default_name}", _name_of("dn", "d"))
    for row in session.rows(query, [list(oids)]):
        default = {"name": row.name, "empty": bool(row.empty)} if row.there else None
        facts = found.setdefault(row.oid, {})
        facts["default" if row.own else "parent_default"] = default
        if row.own:
            facts["partitioned_by"] = {"strategy": row.partstrat, "columns": row.columns}
    return found


def _within(session: Session, oids: Sequence[int]) -> dict[int, list[dict[str, Any]]]:
    """Of partitioned tables, what their partitions forbid by themselves."""
    found: dict[int, list[dict[str, Any]]] = {}
    if not oids:
        return found
    query = (
        "SELECT r.root, {table_name} AS table_name, o.name, o.type, o.columns"
        " FROM (SELECT o AS root, t.relid::oid AS oid FROM unnest(%s::oid[]) AS o, pg_partition_tree(o) AS t"
        "  WHERE t.level > 0) AS r"
        " JOIN pg_class AS c ON c.oid = r.oid JOIN pg_namespace AS n ON n.oid = c.relnamespace JOIN ("
        " SELECT k.conrelid, k.conname AS name, k.contype::text AS type, array(SELECT a.attname::text FROM pg_attribute AS a"
        "   WHERE a.attrelid = k.conrelid AND a.attnum = ANY(k.conkey)) AS columns FROM pg_constraint AS k"
        "  WHERE k.contype IN ('c', 'u', 'x') AND k.coninhcount = 0"
        " UNION ALL SELECT x.indrelid, xc.relname, 'i', array(SELECT DISTINCT a.attname::text FROM pg_depend AS d"
        "   JOIN pg_attribute AS a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid"
        "   WHERE d.classid = 'pg_class'::regclass AND d.objid = x.indexrelid AND d.refobjid = x.indrelid)"
        "  FROM pg_index AS x JOIN pg_class AS xc ON xc.oid = x.indexrelid WHERE x.indisunique AND NOT xc.relispartition"
        "   AND NOT EXISTS (SELECT FROM pg_constraint AS k WHERE k.conindid = x.indexrelid AND k.conrelid = x.indrelid)"
        " ) AS o ON o.conrelid = r.oid ORDER BY 1, 2, 3"
    ).replace("{table_name}", _name_of("n", "c"))
    for row in session.rows(query, [list(oids)]):
        found.setdefault(row.root, []).append(
            {"table": row.table_name, "name": row.name, "type": row.type, "columns": row.columns}
        )
    return found


def _other_publications(session: Session, publication: str, oids: Sequence[int]) -> dict[int, list[str]]:
    """The other publications that carry tables, their partitions, or what they are partitions of."""
    members = ["SELECT pr.prpubid AS publication, pr.prrelid AS oid FROM pg_publication_rel AS pr"]
    if session.version >= SCHEMAS_SINCE:
        members.append(
            "SELECT pn.pnpubid, c.oid FROM pg_publication_namespace AS pn JOIN pg_class AS c ON c.relnamespace = pn.pnnspid"
        )
    query = (
        "WITH RECURSIVE up(oid, kin) AS (SELECT o, o FROM unnest(%(oids)s::oid[]) AS o"
        "  UNION SELECT up.oid, i.inhparent FROM up JOIN pg_inherits AS i ON i.inhrelid = up.kin),"
        " down(oid, kin) AS (SELECT o, o FROM unnest(%(oids)s::oid[]) AS o"
        "  UNION SELECT down.oid, i.inhrelid FROM down JOIN pg_inherits AS i ON i.inhparent = down.kin),"
        " members AS ({members})"
        " SELECT kin.oid, array_agg(DISTINCT p.pubname::text) AS names"
        " FROM (SELECT * FROM up UNION SELECT * FROM down) AS kin JOIN pg_class AS c ON c.oid = kin.kin"
        " JOIN pg_publication AS p ON p.pubname <> %(name)s AND c.relkind IN ('r', 'p') AND c.relpersistence = 'p'"
        " AND (p.puballtables OR EXISTS (SELECT FROM members AS m WHERE m.publication = p.oid AND m.oid = kin.kin))"
        " GROUP BY kin.oid"
    ).replace("{members}", " UNION ALL ".join(members))
    return {row.oid: row.names for row in session.rows(query, {"name": publication, "oids": list(oids)})}


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


def _types(
    session: Session, publication: str | None, labels: Sequence[str], distributed: Sequence[int]
) -> dict[str, Any]:
    """Types, and the distributed tables that have a column of them, of arrays of them, or of what is made of them."""
    if not labels:
        return {}
    query = (
        "WITH RECURSIVE wanted AS (SELECT label, to_regtype(label)::oid AS oid FROM unnest(%s::text[]) AS label),"
        " uses(label, oid) AS (SELECT label, oid FROM wanted WHERE oid IS NOT NULL"
        "  UNION SELECT u.label, m.made FROM uses AS u JOIN ("
        "   SELECT typelem AS of, oid AS made FROM pg_type WHERE typcategory = 'A'"
        "   UNION ALL SELECT typbasetype, oid FROM pg_type WHERE typtype = 'd'"
        "   UNION ALL SELECT rngsubtype, rngtypid FROM pg_range"
        "   UNION ALL SELECT a.atttypid, c.reltype FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid"
        "    WHERE c.relkind = 'c' AND a.attnum > 0 AND NOT a.attisdropped) AS m ON m.of = u.oid)"
        " SELECT w.label, t.typtype AS kind, t.typdefault IS NOT NULL AS has_default,"
        " array(SELECT DISTINCT a.attrelid FROM uses AS u"
        "  JOIN pg_attribute AS a ON a.atttypid = u.oid JOIN pg_class AS c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p')"
        "  WHERE u.label = w.label AND a.attrelid = ANY(%s::oid[]) AND a.attnum > 0 AND NOT a.attisdropped) AS tables"
        " FROM wanted AS w JOIN pg_type AS t ON t.oid = w.oid"
    )
    rows = session.rows(query, [list(dict.fromkeys(labels)), list(distributed)])
    users = list({oid for row in rows for oid in row.tables})
    names = _topmost(session, users)
    others = _other_publications(session, publication, users) if publication and users else {}
    return {
        row.label: {
            "kind": row.kind,
            "has_default": row.has_default,
            "distributed": bool(row.tables),
            "tables": sorted(names[oid] for oid in row.tables if oid in names),
            "publications": sorted({name for oid in row.tables for name in others.get(oid, [])}),
        }
        for row in rows
    }


def _topmost(session: Session, oids: Sequence[int]) -> dict[int, str]:
    """The names of tables; not those of partitions, which have what the table has that they are part of."""
    if not oids:
        return {}
    query = (
        "SELECT c.oid, {name} AS name FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE c.oid = ANY(%(oids)s::oid[]) AND NOT EXISTS (SELECT FROM pg_inherits AS i"
        "  WHERE c.relispartition AND i.inhrelid = c.oid AND i.inhparent = ANY(%(oids)s::oid[]))"
    ).replace("{name}", _name_of("n", "c"))
    return {row.oid: row.name for row in session.rows(query, {"oids": list(oids)})}


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
