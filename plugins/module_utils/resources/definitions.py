# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables, indexes and constraints as two servers define them, and where a pair of tables doesn't fit."""

from __future__ import annotations

from typing import Collection, Iterable, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    arrays,
    enumerate_names,
    quoted,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.tables import Table


class Column(NamedTuple):
    """A column of a table."""

    name: str
    type: str
    """as format_type() spells it"""
    labels: tuple[str, ...]
    """of the column's enum, in order"""


class Definition(NamedTuple):
    """A table as one server defines it."""

    key: tuple[str, str]
    kind: str
    columns: dict[str, Column]


class Attachment(NamedTuple):
    """An index or a constraint of a table."""

    key: tuple[str, str]
    """of the table"""
    name: str
    kind: str
    """C(key): what replication finds rows by; C(index); C(constraint); C(foreign key)"""
    identity: tuple[int, int]
    """as in pg_dump's table of contents"""
    columns: frozenset[str]
    refers: tuple[str, str] | None
    """the table that a foreign key points to"""
    attach: str | None
    """how the table of contents calls its attachment to the index of the partitioned table"""
    inherited: tuple[tuple[str, str], str] | None = None
    """the partitioned table, and the name of its index"""


def read(session: Session, keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Definition]:
    """The tables of *keys* that exist, read in one query."""
    definitions: dict[tuple[str, str], Definition] = {}
    for row in session.rows(
        "SELECT n.nspname AS schema, c.relname AS name, c.relkind AS kind,"
        " a.attname, format_type(a.atttypid, a.atttypmod) AS type,"
        " array(SELECT e.enumlabel::text FROM pg_enum AS e JOIN pg_type AS t ON t.oid = a.atttypid"
        "  WHERE e.enumtypid IN (t.oid, t.typelem, t.typbasetype) ORDER BY e.enumsortorder) AS labels"
        " FROM unnest(%s::text[], %s::text[]) AS wanted(schema, name)"
        " JOIN pg_namespace AS n ON n.nspname = wanted.schema"
        " JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = wanted.name"
        " LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
        " ORDER BY c.oid, a.attnum",
        arrays(keys),
    ):
        key = (row.schema, row.name)
        table = definitions.setdefault(key, Definition(key, row.kind, {}))
        if row.attname is not None:
            table.columns[row.attname] = Column(row.attname, row.type, tuple(row.labels))
    return definitions


def labels(session: Session, oids: Sequence[int] | None = None) -> dict[str, frozenset[str]]:
    """The labels of the database's enums, or of those among the types *oids*, by format_type()'s name."""
    return {
        row.name: frozenset(row.labels)
        for row in session.rows(
            "SELECT format_type(t.oid, NULL) AS name, array_agg(e.enumlabel::text) AS labels"
            " FROM pg_type AS t JOIN pg_enum AS e ON e.enumtypid = t.oid"
            " WHERE %(oids)s::oid[] IS NULL OR t.oid = ANY(%(oids)s::oid[]) GROUP BY 1",
            {"oids": None if oids is None else list(oids)},
        )
    }


def reason_to_leave_out(
    table: Table,
    columns: Iterable[str],
    refers: tuple[str, str] | None,
    wanted: Mapping[tuple[str, str], Table],
) -> str | None:
    """Why an index or a constraint of *table* that uses *columns* can't be on the target, or None when it can."""
    if table.columns is not None and not set(columns) <= set(table.columns):
        return "it uses columns that are not distributed"
    if refers is None:
        return None
    other = wanted.get(refers)
    if other is None:
        return "it refers to {0}, which is not distributed".format(quoted(*refers))
    if other.where is not None or other.columns is not None:
        return "it refers to {0}, of which only a part is distributed".format(other.label)
    return None


def attachments(session: Session, keys: Iterable[tuple[str, str]]) -> list[Attachment]:
    """The indexes and constraints of the tables of *keys*, read in one query; what is inherited comes with its parent."""
    parameters = dict(zip(("schemas", "names"), arrays(keys)))
    return [
        Attachment(
            key=(row.schema, row.table_name),
            name=row.name,
            kind=row.kind,
            identity=(row.classid, row.objid),
            columns=frozenset(row.columns),
            refers=(row.refers_schema, row.refers_name) if row.refers_name else None,
            attach=row.attach,
            inherited=((row.parent_schema, row.parent_table), row.parent_index) if row.parent_index else None,
        )
        for row in session.rows(_ATTACHMENTS, parameters)
    ]


_ATTACHMENTS = (
    "WITH t AS MATERIALIZED (SELECT c.oid, n.nspname AS schema, c.relname AS name, pg_get_userbyid(c.relowner) AS owner"
    "  FROM unnest(%(schemas)s::text[], %(names)s::text[]) AS wanted(schema, name)"
    "  JOIN pg_namespace AS n ON n.nspname = wanted.schema"
    "  JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = wanted.name AND c.relkind IN ('r', 'p')),"
    " o AS (SELECT t.oid, t.schema, t.name AS table_name, x.relname AS name,"
    "  CASE WHEN i.indisprimary OR i.indisreplident THEN 'key' WHEN k.oid IS NULL THEN 'index' ELSE 'constraint' END AS kind,"
    "  CASE WHEN k.oid IS NULL THEN 'pg_class'::regclass::oid ELSE 'pg_constraint'::regclass::oid END AS classid,"
    "  coalesce(k.oid, i.indexrelid) AS objid, 0::oid AS refers, CASE WHEN h.inhparent IS NOT NULL THEN"
    "   translate(concat_ws(' ', 'INDEX ATTACH', t.schema, x.relname, t.owner), E'\\n\\r', '  ') END AS attach,"
    "  h.inhparent AS parent"
    "  FROM t JOIN pg_index AS i ON i.indrelid = t.oid JOIN pg_class AS x ON x.oid = i.indexrelid"
    "  LEFT JOIN pg_constraint AS k ON k.conindid = i.indexrelid AND k.conrelid = t.oid AND k.contype IN ('p', 'u', 'x')"
    "  LEFT JOIN pg_inherits AS h ON h.inhrelid = i.indexrelid"
    "  UNION ALL SELECT t.oid, t.schema, t.name, k.conname,"
    "  CASE WHEN k.contype = 'f' THEN 'foreign key' ELSE 'constraint' END,"
    "  'pg_constraint'::regclass::oid, k.oid, k.confrelid, NULL, NULL"
    "  FROM t JOIN pg_constraint AS k ON k.conrelid = t.oid WHERE k.conparentid = 0"
    "  AND (k.contype = 'f' OR k.contype = 'c' AND NOT k.convalidated))"
    " SELECT o.*, n.nspname AS refers_schema, c.relname AS refers_name,"
    "  pn.nspname AS parent_schema, pt.relname AS parent_table, px.relname AS parent_index,"
    "  array(SELECT a.attname::text FROM pg_depend AS d"
    "   JOIN pg_attribute AS a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid"
    "   WHERE d.classid = o.classid AND d.objid = o.objid AND d.refclassid = 'pg_class'::regclass"
    "   AND d.refobjid = o.oid AND d.refobjsubid > 0) AS columns"
    " FROM o LEFT JOIN pg_class AS c ON c.oid = o.refers LEFT JOIN pg_namespace AS n ON n.oid = c.relnamespace"
    " LEFT JOIN pg_index AS pi ON pi.indexrelid = o.parent LEFT JOIN pg_class AS px ON px.oid = o.parent"
    " LEFT JOIN pg_class AS pt ON pt.oid = pi.indrelid LEFT JOIN pg_namespace AS pn ON pn.oid = pt.relnamespace"
    " ORDER BY o.schema, o.table_name, o.name"
)


def needed_objects(session: Session, starts: Sequence[tuple[int, int]]) -> dict[tuple[int, int], str]:
    """What must exist before the objects *starts* can be made: types, functions, sequences, extensions, schemas.

    Returns (catalog oid, object oid) -> identity as pg_identify_object() spells it. Follows pg_depend, and the hops that
    it doesn't hold: a table's defaults and sequences, a composite type's columns, a domain's constraints.
    """
    return {
        (row.classid, row.objid): row.identity
        for row in session.rows(
            _NEEDED, {"classes": [start[0] for start in starts], "objects": [start[1] for start in starts]}
        )
    }


_NEEDED = (
    "WITH RECURSIVE needed(classid, objid) AS ("
    " SELECT * FROM unnest(%(classes)s::oid[], %(objects)s::oid[])"
    " UNION SELECT hop.* FROM needed AS n, LATERAL ("
    "  SELECT d.refclassid, d.refobjid FROM pg_depend AS d WHERE d.classid = n.classid AND d.objid = n.objid"
    "   AND NOT (d.refclassid = 'pg_class'::regclass"
    "    AND (SELECT relkind FROM pg_class WHERE oid = d.refobjid) NOT IN ('S', 'c'))"
    "  UNION ALL SELECT 'pg_attrdef'::regclass, f.oid FROM pg_attrdef AS f"
    "   WHERE n.classid = 'pg_class'::regclass AND f.adrelid = n.objid"
    "  UNION ALL SELECT 'pg_constraint'::regclass, k.oid FROM pg_constraint AS k WHERE k.contype = 'c'"
    "   AND (n.classid = 'pg_class'::regclass AND k.conrelid = n.objid"
    "    OR n.classid = 'pg_type'::regclass AND k.contypid = n.objid)"
    "  UNION ALL SELECT 'pg_class'::regclass, q.oid FROM pg_depend AS d JOIN pg_class AS q ON q.oid = d.objid AND q.relkind = 'S'"
    "   WHERE n.classid = 'pg_class'::regclass AND d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass"
    "   AND d.refobjid = n.objid AND d.deptype IN ('a', 'i')"
    "  UNION ALL SELECT d.refclassid, d.refobjid FROM pg_constraint AS k JOIN pg_depend AS d ON d.classid = 'pg_class'::regclass"
    "   AND d.objid = k.conindid AND d.refclassid NOT IN ('pg_class'::regclass, 'pg_constraint'::regclass)"
    "   WHERE n.classid = 'pg_constraint'::regclass AND k.oid = n.objid AND k.contype IN ('p', 'u', 'x')"
    "  UNION ALL SELECT 'pg_class'::regclass, y.typrelid FROM pg_type AS y JOIN pg_class AS c ON c.oid = y.typrelid"
    "   WHERE n.classid = 'pg_type'::regclass AND y.oid = n.objid AND c.relkind = 'c'"
    " ) AS hop(classid, objid) WHERE hop.objid >= 16384)"
    " SELECT n.classid, n.objid, i.type || ' ' || i.identity AS identity"
    " FROM needed AS n, LATERAL pg_identify_object(n.classid, n.objid, 0) AS i"
)


def existing(session: Session, identities: Iterable[str]) -> set[str]:
    """Which of *identities* the session's database has: schemas, types, functions, sequences and the like."""
    return {
        row.identity
        for row in session.rows(
            "SELECT i.type || ' ' || i.identity AS identity FROM ("
            " SELECT 'pg_namespace'::regclass AS classid, oid AS objid FROM pg_namespace"
            " UNION ALL SELECT 'pg_type'::regclass, oid FROM pg_type WHERE oid >= 16384"
            " UNION ALL SELECT 'pg_proc'::regclass, oid FROM pg_proc WHERE oid >= 16384"
            " UNION ALL SELECT 'pg_extension'::regclass, oid FROM pg_extension"
            " UNION ALL SELECT 'pg_collation'::regclass, oid FROM pg_collation WHERE oid >= 16384"
            " UNION ALL SELECT 'pg_operator'::regclass, oid FROM pg_operator WHERE oid >= 16384"
            " UNION ALL SELECT 'pg_opclass'::regclass, oid FROM pg_opclass WHERE oid >= 16384"
            " UNION ALL SELECT 'pg_opfamily'::regclass, oid FROM pg_opfamily WHERE oid >= 16384"
            " UNION ALL SELECT 'pg_class'::regclass, oid FROM pg_class WHERE oid >= 16384 AND relkind IN ('S', 'c')"
            ") AS o, LATERAL pg_identify_object(o.classid, o.objid, 0) AS i"
            " WHERE i.type || ' ' || i.identity = ANY(%s)",
            [list(identities)],
        )
    }


def loose_ends(session: Session, oids: Sequence[int]) -> tuple[set[str], set[tuple[str, str]]]:
    """What pg_dump's table of contents knows of the tables *oids* by text alone, and the sequences they own.

    The texts are those of attachments of partitions whose parent is among *oids*, and of sequences owned by a column.
    """
    rows = session.rows(
        "SELECT 'TABLE ATTACH' AS kind, n.nspname AS schema, c.relname AS name, pg_get_userbyid(c.relowner) AS owner"
        " FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE c.relispartition AND i.inhrelid = ANY(%(oids)s) AND i.inhparent = ANY(%(oids)s)"
        " UNION ALL SELECT 'SEQUENCE OWNED BY', n.nspname, c.relname, pg_get_userbyid(c.relowner) FROM pg_depend AS d"
        " JOIN pg_class AS c ON c.oid = d.objid AND c.relkind = 'S' JOIN pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = ANY(%(oids)s)"
        " AND d.deptype IN ('a', 'i')",
        {"oids": list(oids)},
    )
    texts = {" ".join((row.kind, row.schema, row.name, row.owner)).translate({10: " ", 13: " "}) for row in rows}
    return texts, {(row.schema, row.name) for row in rows if row.kind == "SEQUENCE OWNED BY"}


def sequences(session: Session, oids: Sequence[int]) -> set[tuple[str, str]]:
    """The sequences among the relations *oids*."""
    return {
        (row.schema, row.name)
        for row in session.rows(
            "SELECT n.nspname AS schema, c.relname AS name FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " WHERE c.oid = ANY(%s) AND c.relkind = 'S'",
            [list(oids)],
        )
    }


def standalone_sequences(session: Session, oids: Sequence[int], tables: Sequence[int]) -> list[tuple[str, str, int]]:
    """(schema, name, oid) of the sequences among the relations *oids* that no column of *tables* owns."""
    return [
        (row.schema, row.name, row.oid)
        for row in session.rows(
            "SELECT n.nspname AS schema, c.relname AS name, c.oid FROM pg_class AS c"
            " JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = ANY(%s) AND c.relkind = 'S'"
            " AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid"
            "  AND d.deptype IN ('a', 'i') AND d.refclassid = 'pg_class'::regclass AND d.refobjid = ANY(%s)) ORDER BY 1, 2",
            [list(oids), list(tables)],
        )
    ]


def schemas(session: Session, oids: Sequence[int]) -> list[str]:
    """The names of the schemas *oids*."""
    return [
        row.nspname
        for row in session.rows("SELECT nspname FROM pg_namespace WHERE oid = ANY(%s) ORDER BY 1", [list(oids)])
    ]


def stand_alone(session: Session, identities: Iterable[tuple[int, int]]) -> bool:
    """Whether any of *identities* is made by a statement of its own, as types, functions and extensions are."""
    part_of_tables = {
        session.value("SELECT 'pg_attrdef'::regclass::oid"),
        session.value("SELECT 'pg_constraint'::regclass::oid"),
    }
    return any(catalog not in part_of_tables for catalog, _object in identities)


class Belonging(NamedTuple):
    """A trigger, policy, rule or statistics object of a table."""

    table: str
    """as in SQL"""
    name: str
    identity: tuple[int, int]
    """as in pg_dump's table of contents"""
    reason: str | None
    """why only the source can have it"""
    statements: str | None
    """that make a statistics object, which many versions of pg_dump leave out with --table"""


def belongings(session: Session, oids: Sequence[int], roles: Iterable[str]) -> list[Belonging]:
    """What belongs to the tables *oids* and is neither index nor constraint, read in one query.

    One that refers to another table or view, or to a role that is not among *roles*, would not work elsewhere. The
    session's search_path must be C(pg_catalog), for names in statements to be qualified.
    """
    return [
        Belonging(
            quoted(row.schema, row.table_name),
            row.name,
            (row.classid, row.objid),
            "it refers to {0}".format(row.relations)
            if row.relations
            else "it is for role {0}".format(row.roles)
            if row.roles
            else None,
            row.statements,
        )
        for row in session.rows(_BELONGINGS, {"oids": list(oids), "roles": list(roles)})
    ]


_BELONGINGS = (
    "WITH o AS ("
    " SELECT 'pg_trigger'::regclass::oid AS classid, oid AS objid, tgrelid AS relid, tgname AS name FROM pg_trigger"
    "  WHERE NOT tgisinternal AND tgrelid = ANY(%(oids)s)"
    " UNION ALL SELECT 'pg_policy'::regclass, oid, polrelid, polname FROM pg_policy WHERE polrelid = ANY(%(oids)s)"
    " UNION ALL SELECT 'pg_rewrite'::regclass, oid, ev_class, rulename FROM pg_rewrite WHERE ev_class = ANY(%(oids)s)"
    " UNION ALL SELECT 'pg_statistic_ext'::regclass, oid, stxrelid, stxname FROM pg_statistic_ext"
    "  WHERE stxrelid = ANY(%(oids)s))"
    " SELECT o.classid, o.objid, o.name, n.nspname AS schema, c.relname AS table_name,"
    "  (SELECT concat_ws('; ', pg_get_statisticsobjdef(s.oid),"
    "   CASE WHEN s.stxstattarget >= 0 THEN format('ALTER STATISTICS %%I.%%I SET STATISTICS %%s',"
    "    sn.nspname, s.stxname, s.stxstattarget) END,"
    "   format('COMMENT ON STATISTICS %%I.%%I IS %%L', sn.nspname, s.stxname, obj_description(s.oid, 'pg_statistic_ext')))"
    "   FROM pg_statistic_ext AS s JOIN pg_namespace AS sn ON sn.oid = s.stxnamespace"
    "   WHERE o.classid = 'pg_statistic_ext'::regclass AND s.oid = o.objid) AS statements,"
    "  (SELECT string_agg(DISTINCT d.refobjid::regclass::text, ', ') FROM pg_depend AS d JOIN pg_class AS r ON r.oid = d.refobjid"
    "   WHERE d.classid = o.classid AND d.objid = o.objid AND d.refclassid = 'pg_class'::regclass"
    "   AND r.relkind <> 'S' AND r.oid >= 16384 AND r.oid <> ALL (%(oids)s)) AS relations,"
    "  (SELECT string_agg(DISTINCT pg_get_userbyid(s.refobjid), ', ') FROM pg_shdepend AS s"
    "   WHERE s.classid = o.classid AND s.objid = o.objid AND s.refclassid = 'pg_authid'::regclass"
    "   AND s.deptype = 'r' AND pg_get_userbyid(s.refobjid) <> ALL (%(roles)s::text[])"
    "   AND s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())) AS roles"
    " FROM o JOIN pg_class AS c ON c.oid = o.relid JOIN pg_namespace AS n ON n.oid = c.relnamespace"
    " ORDER BY n.nspname, c.relname, o.name"
)


def statistics_schemas(session: Session, oids: Sequence[int]) -> list[str]:
    """The schemas of the statistics objects of the tables *oids*."""
    return [
        row.nspname
        for row in session.rows(
            "SELECT DISTINCT n.nspname FROM pg_statistic_ext AS s JOIN pg_namespace AS n ON n.oid = s.stxnamespace"
            " WHERE s.stxrelid = ANY(%s)",
            [list(oids)],
        )
    ]


def comments(session: Session, identities: Sequence[tuple[int, int]]) -> dict[tuple[int, int], str]:
    """The statements that comment on the objects *identities* and their columns, for those that have comments."""
    return {
        (row.classoid, row.objoid): row.statements
        for row in session.rows(
            "SELECT d.classoid, d.objoid, string_agg(format('COMMENT ON %%s IS %%L', CASE"
            "  WHEN d.objsubid > 0 THEN 'COLUMN ' || i.identity"
            "  WHEN i.type = 'domain constraint' THEN (SELECT format('CONSTRAINT %%I ON DOMAIN %%I.%%I', k.conname,"
            "   n.nspname, t.typname) FROM pg_constraint AS k JOIN pg_type AS t ON t.oid = k.contypid"
            "   JOIN pg_namespace AS n ON n.oid = t.typnamespace WHERE k.oid = d.objoid)"
            "  ELSE upper(i.type) || ' ' || i.identity END, d.description), '; ') AS statements"
            " FROM unnest(%s::oid[], %s::oid[]) AS o(classid, objid)"
            " JOIN pg_description AS d ON d.classoid = o.classid AND d.objoid = o.objid,"
            " LATERAL pg_identify_object(d.classoid, d.objoid, d.objsubid) AS i"
            " WHERE i.type <> 'table constraint'"
            " AND (i.type <> 'table column' OR EXISTS (SELECT FROM pg_class WHERE oid = d.objoid AND relkind = 'c'))"
            " GROUP BY 1, 2",
            [[identity[0] for identity in identities], [identity[1] for identity in identities]],
        )
    }


def partitioning(
    session: Session, keys: Sequence[tuple[str, str]]
) -> tuple[frozenset[tuple[str, str]], frozenset[tuple[str, str]]]:
    """Which of the tables *keys* are partitioned, and which are partitions."""
    rows = session.rows(
        "SELECT n.nspname AS schema, c.relname AS name, c.relkind = 'p' AS parted, c.relispartition AS part"
        " FROM unnest(%s::text[], %s::text[]) AS wanted(schema, name) JOIN pg_namespace AS n ON n.nspname = wanted.schema"
        " JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = wanted.name",
        arrays(keys),
    )
    return (
        frozenset((row.schema, row.name) for row in rows if row.parted),
        frozenset((row.schema, row.name) for row in rows if row.part),
    )


def refuse_missing_extensions(session: Session, extensions: Collection[str]) -> None:
    """Refuse extensions that the target's server has no files of."""
    there = {
        row.name
        for row in session.rows(
            "SELECT name FROM pg_available_extensions WHERE name = ANY(%s)", [[name.strip('"') for name in extensions]]
        )
    }
    missing = [name for name in extensions if name.strip('"') not in there]
    if missing:
        raise Refused(
            "The tables need extension {0}, which the server of {1} doesn't have: install its package there.".format(
                enumerate_names(missing), session.endpoint
            )
        )
