# SPDX-License-Identifier: GPL-3.0-or-later
"""Foreign tables and the views over them as the catalogs have them, where two of a kind differ, and what hangs on them."""

from __future__ import annotations

from typing import Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    arrays,
    enumerate_names,
    quoted,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import exchange
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.schedule import Key

FOREIGN_TABLE, VIEW = "f", "v"
"""pg_class.relkind"""


class Column(NamedTuple):
    """A column of a foreign table or a view."""

    name: str
    type: str
    """as format_type() spells it"""
    required: bool
    collation: str
    """as in SQL; empty when it is that of the type"""
    default: str
    """or the expression of a generated column"""
    generated: bool
    remote: str
    """its name on the source"""


class Definition(NamedTuple):
    """A relation of one schema."""

    key: Key
    kind: str
    server: str | None
    remote: Key
    """where a foreign table is on the source"""
    columns: tuple[Column, ...]
    query: str
    """a view's, with all names qualified but that of the table it reads"""
    options: tuple[str, ...]
    """a view's"""


def read(session: Session, schemas: Sequence[str]) -> dict[Key, Definition]:
    """All relations of *schemas*, in one query. The session's search_path has to be C(pg_catalog), for names to be qualified."""
    result = {}
    for row in session.rows(_DEFINITIONS, [list(schemas)]):
        key = (row.schema, row.name)
        remote = (row.remote_schema or "", row.remote_name or "")
        columns = tuple(Column(*each) for each in row.columns or ())
        options = tuple(sorted(row.options or ()))
        result[key] = Definition(key, row.kind, row.server, remote, columns, row.query or "", options)
    return result


_DEFINITIONS = (
    "SELECT n.nspname AS schema, c.relname AS name, c.relkind AS kind, s.srvname AS server,"
    " (SELECT option_value FROM pg_options_to_table(t.ftoptions) WHERE option_name = 'schema_name') AS remote_schema,"
    " (SELECT option_value FROM pg_options_to_table(t.ftoptions) WHERE option_name = 'table_name') AS remote_name,"
    # a scratch schema's name in the place of the real one would be a difference
    " CASE WHEN c.relkind = 'v' AND v.at > 0 THEN overlay(v.text PLACING '' FROM v.at FOR length(v.source))"
    "  ELSE v.text END AS query,"
    " CASE c.relkind WHEN 'v' THEN c.reloptions END AS options,"
    " (SELECT json_agg(json_build_array(a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,"
    "   CASE WHEN a.attcollation <> y.typcollation THEN a.attcollation::regcollation::text ELSE '' END,"
    "   coalesce(pg_get_expr(d.adbin, d.adrelid), ''), a.attgenerated <> '',"
    "   coalesce((SELECT option_value FROM pg_options_to_table(a.attfdwoptions) WHERE option_name = 'column_name'), a.attname))"
    "   ORDER BY a.attnum) FROM pg_attribute AS a JOIN pg_type AS y ON y.oid = a.atttypid"
    "   LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum"
    "   WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns"
    " FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
    " CROSS JOIN LATERAL (SELECT text, source, position(source IN text) AS at FROM ("
    "   SELECT CASE c.relkind WHEN 'v' THEN pg_get_viewdef(c.oid) END AS text,"
    "    'FROM ' || quote_ident(n.nspname) || '.' AS source) AS d) AS v"
    " LEFT JOIN pg_foreign_table AS t ON t.ftrelid = c.oid LEFT JOIN pg_foreign_server AS s ON s.oid = t.ftserver"
    " WHERE n.nspname = ANY(%s) AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S', 'c')"
)


def differences(there: Definition, here: Definition) -> list[str]:
    """What differs between a foreign table as it would be imported now (*there*, the source) and as it is (*here*), in words."""
    found = []
    if here.kind == FOREIGN_TABLE and here.remote != there.remote:
        found.append("it stands for {0} and not for {1}".format(quoted(*here.remote), quoted(*there.remote)))
    ours = {column.name: column for column in here.columns}
    for column in there.columns:
        label = "column {0}".format(quoted(column.name))
        if column.name not in ours:
            found.append("{0} is new on the source".format(label))
        elif column != ours[column.name]:
            found += ["{0} {1}".format(label, words) for words in _column_differences(column, ours[column.name])]
    names = {column.name for column in there.columns}
    found += ["column {0} is gone from the source".format(quoted(name)) for name in ours if name not in names]
    if not found and list(ours) != [column.name for column in there.columns]:
        found.append("the columns are in another order on the source")
    return found


def _column_differences(there: Column, here: Column) -> list[str]:
    found = []
    if there.type != here.type:
        found.append("is {0} on the source and {1} here".format(there.type, here.type))
    if there.required != here.required:
        found.append("is {0} on the source".format("NOT NULL" if there.required else "not NOT NULL"))
    if there.collation != here.collation:
        found.append("has collation {0} on the source".format(there.collation or "default"))
    if (there.default, there.generated) != (here.default, here.generated):
        found.append("has another {0} on the source".format("expression" if there.generated else "default"))
    if there.remote != here.remote:
        found.append("stands for {0} and not for {1}".format(quoted(here.remote), quoted(there.remote)))
    return found


def refuse_losses(session: Session, keys: Sequence[Key]) -> None:
    """Refuse to lose what somebody added to the foreign tables *keys* here and DROP would take away without a word."""
    lost = [
        row.words
        for row in session.rows(
            "WITH t AS (SELECT c.oid FROM unnest(%s::text[], %s::text[]) AS w(schema, name)"
            "  JOIN pg_namespace AS n ON n.nspname = w.schema"
            "  JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = w.name)"
            " SELECT pg_describe_object(o.classid, o.objid, 0) AS words FROM ("
            "  SELECT 'pg_trigger'::regclass AS classid, oid AS objid FROM pg_trigger"
            "   WHERE NOT tgisinternal AND tgrelid IN (SELECT oid FROM t)"
            "  UNION ALL SELECT 'pg_constraint'::regclass, oid FROM pg_constraint"
            "   WHERE contype <> 'n' AND conrelid IN (SELECT oid FROM t)"
            "  UNION ALL SELECT 'pg_statistic_ext'::regclass, oid FROM pg_statistic_ext WHERE stxrelid IN (SELECT oid FROM t)"
            "  UNION ALL SELECT 'pg_rewrite'::regclass, oid FROM pg_rewrite"
            "   WHERE rulename <> '_RETURN' AND ev_class IN (SELECT oid FROM t)"
            "  UNION ALL SELECT 'pg_class'::regclass, inhrelid FROM pg_inherits WHERE inhrelid IN (SELECT oid FROM t)) AS o"
            " ORDER BY 1",
            arrays(keys),
        )
    ]
    if lost:
        raise Refused(
            "{0} would be lost with the foreign tables that are to be replaced: drop {1} here first.".format(
                enumerate_names(lost, 5), "it" if len(lost) == 1 else "them"
            )
        )


def takeover(session: Session, keys: Sequence[Key], after: Mapping[Key, Definition]) -> list[str]:
    """Statements that give the relations *keys* their present owner, privileges, comments and own options, once they have been
    replaced by those of *after*."""
    columns = {key: {column.name for column in definition.columns} for key, definition in after.items()}
    kinds = {key: "VIEW" if after[key].kind == VIEW else "FOREIGN TABLE" for key in keys}
    found = [
        ((row.schema, row.name), row.attname, row.statement)
        for row in session.rows(_TAKEOVER, [*arrays(kinds), list(kinds.values())])
    ]
    found += exchange.comments(session, kinds)
    return [statement for key, column, statement in found if column is None or column in columns[key]]


_TAKEOVER = (
    "WITH t AS (SELECT c.*, n.nspname, w.kind AS what,"
    "  format('%%I.%%I', n.nspname, c.relname) AS label FROM unnest(%s::text[], %s::text[], %s::text[]) AS w(schema, name, kind)"
    "  JOIN pg_namespace AS n ON n.nspname = w.schema JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = w.name)"
    " SELECT nspname AS schema, relname AS name, attname, statement FROM ("
    "  SELECT 1 AS step, nspname, relname, NULL::name AS attname,"
    "   format('ALTER %%s %%s OWNER TO %%I', what, label, pg_get_userbyid(relowner)) AS statement"
    "   FROM t WHERE pg_get_userbyid(relowner) <> current_user"
    "  UNION ALL SELECT 2, nspname, relname, NULL, format('ALTER FOREIGN TABLE %%s OPTIONS (ADD %%I %%L)', label, option_name,"
    "   option_value) FROM t JOIN pg_foreign_table AS f ON f.ftrelid = t.oid, pg_options_to_table(f.ftoptions)"
    "   WHERE what <> 'VIEW' AND option_name NOT IN ('schema_name', 'table_name')"
    "  UNION ALL SELECT 3, nspname, relname, g.attname, format('GRANT %%s%%s ON %%s TO %%s%%s', g.privilege_type,"
    "   CASE WHEN g.attname IS NOT NULL THEN format(' (%%I)', g.attname) END, label,"
    "   CASE WHEN g.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.grantee)) END,"
    "   CASE WHEN g.is_grantable THEN ' WITH GRANT OPTION' END)"
    "   FROM t, LATERAL (SELECT a.*, NULL::name AS attname FROM aclexplode(t.relacl) AS a"
    "    UNION ALL SELECT a.*, c.attname FROM pg_attribute AS c, aclexplode(c.attacl) AS a"
    "     WHERE c.attrelid = t.oid AND c.attnum > 0 AND NOT c.attisdropped) AS g"
    "   WHERE g.grantee <> t.relowner OR t.relacl IS NOT NULL"
    "  UNION ALL SELECT 2, nspname, relname, NULL, format('REVOKE ALL ON %%s FROM %%I', label, pg_get_userbyid(relowner))"
    "   FROM t WHERE relacl IS NOT NULL"
    " ) AS s ORDER BY step, 2, 1, 3"
)


def plan_no_privileges(session: Session, keys: Sequence[Key]) -> list[str]:
    """Statements that take from others what default privileges gave them of the relations *keys*."""
    return [
        row.statement
        for row in session.rows(
            "SELECT format('REVOKE ALL ON %%I.%%I FROM %%s', n.nspname, c.relname,"
            "  CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END) AS statement"
            " FROM unnest(%s::text[], %s::text[]) AS w(schema, name) JOIN pg_namespace AS n ON n.nspname = w.schema"
            " JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = w.name, aclexplode(c.relacl) AS a"
            " WHERE a.grantee <> c.relowner GROUP BY 1",
            arrays(keys),
        )
    ]


def unanalyzed(session: Session, keys: Sequence[Key]) -> list[Key]:
    """Those of the foreign tables *keys* that ANALYZE has never seen."""
    return [
        (row.schema, row.name)
        for row in session.rows(
            "SELECT n.nspname AS schema, c.relname AS name FROM unnest(%s::text[], %s::text[]) AS w(schema, name)"
            " JOIN pg_namespace AS n ON n.nspname = w.schema"
            " JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = w.name AND c.relkind = 'f'"
            " WHERE c.reltuples < 0 OR c.reltuples = 0 AND c.relpages = 0 AND"
            "  current_setting('server_version_num')::int < 140000 ORDER BY 1, 2",
            arrays(keys),
        )
    ]


def empty(session: Session, schemas: Sequence[str]) -> list[str]:
    """Those of *schemas* that nothing is in."""
    return [
        row.nspname
        for row in session.rows(
            "SELECT n.nspname FROM pg_namespace AS n WHERE n.nspname = ANY(%s) AND NOT EXISTS (SELECT FROM pg_depend AS d"
            " WHERE d.refclassid = 'pg_namespace'::regclass AND d.refobjid = n.oid AND d.deptype = 'n') ORDER BY 1",
            [list(schemas)],
        )
    ]
