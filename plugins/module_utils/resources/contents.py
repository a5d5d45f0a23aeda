# SPDX-License-Identifier: GPL-3.0-or-later
"""What the source holds of the tables that are asked for: rows to read, sequences, and whether they have changed."""

from __future__ import annotations

from typing import Any, Collection, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused, ServerRefused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    compose,
    enumerate_names,
    identifier,
    identifiers,
    literal,
    quoted,
    raw,
    union_all,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.tables import Table
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import snapshot
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.chunks import Chunk, Extent

_TEXT_ONLY = (
    "aclitem", "gtsvector", "pg_brin_bloom_summary", "pg_brin_minmax_multi_summary", "pg_dependencies", "pg_mcv_list",
    "pg_ndistinct", "pg_node_tree", "record", "regclass", "regcollation", "regconfig", "regdatabase", "regdictionary",
    "regnamespace", "regoper", "regoperator", "regproc", "regprocedure", "regrole", "regtype", "xml",
)  # fmt: skip
"""Built-in types whose binary form has object numbers of one database, or none at all, or (xml) an encoding of its own."""
_SEQUENCES_AT_ONCE = 200
_EXTENSION_TYPES = ("citext", "hstore", "vector", "halfvec", "sparsevec")
"""Types of extensions whose binary form is the same everywhere."""

TYPE_LISTS = {"text": list(_TEXT_ONLY), "known": list(_EXTENSION_TYPES)}
"""The parameters of BINARY."""

BINARY = (
    "(t.typtype = 'e'"
    "   OR t.oid < 16384 AND t.typtype IN ('b', 'r', 'm') AND t.typsend <> 0 AND t.typreceive <> 0"
    "    AND ltrim(t.typname, '_') <> ALL (%(text)s)"
    "   OR t.typname = ANY (%(known)s) AND EXISTS (SELECT FROM pg_depend AS d WHERE d.classid = 'pg_type'::regclass"
    "    AND d.objid = t.oid AND d.deptype = 'e'))"
)
"""Whether values of the type t, of pg_type, have a binary form that means the same on every server."""


class Contents(NamedTuple):
    """The rows of one table that has rows of its own."""

    table: Table
    columns: tuple[str, ...]
    """those that are copied, without generated ones"""
    binary: bool
    """whether all of them have a binary form that means the same on every server"""
    extent: Extent

    @property
    def size(self) -> int:
        return self.extent.bytes


class SequenceValue(NamedTuple):
    """Where a sequence stands."""

    schema: str
    name: str
    value: int | None
    """None when the source's role may not read it"""
    called: bool
    column: tuple[str, str, str] | None
    """(schema, table, column) that owns it"""


def read(session: Session, tables: Sequence[Table]) -> list[Contents]:
    """What to read of *tables*, in one query; partitioned tables have no rows of their own."""
    wanted = {table.oid: table for table in tables if table.kind == "r"}
    result = []
    for row in session.rows(_CONTENTS, {"oids": list(wanted), **TYPE_LISTS}):
        table = wanted[row.oid]
        chosen = [
            (name, binary)
            for name, binary in zip(row.names, row.binaries)
            if table.columns is None or name in table.columns
        ]
        result.append(
            Contents(
                table,
                tuple(name for name, _binary in chosen),
                all(binary for _name, binary in chosen),
                Extent(row.oid, row.blocks, row.bytes, row.rows),
            )
        )
    return result


_CONTENTS = (
    "WITH a AS MATERIALIZED (SELECT attrelid, attnum, attname, atttypid FROM pg_attribute"
    "  WHERE attrelid = ANY(%(oids)s) AND attnum > 0 AND NOT attisdropped AND attgenerated = ''),"
    " safe AS (SELECT t.oid, " + BINARY + " AS binary"
    "  FROM pg_type AS t WHERE t.oid IN (SELECT atttypid FROM a))"  # a domain may have another base of the same name there
    " SELECT c.oid, pg_table_size(c.oid) AS bytes, greatest(c.reltuples, 0)::int8 AS rows,"
    "  (pg_relation_size(c.oid) / current_setting('block_size')::int)::int8 AS blocks,"
    "  array(SELECT attname::text FROM a WHERE attrelid = c.oid ORDER BY attnum) AS names,"
    "  array(SELECT coalesce(safe.binary, false) FROM a LEFT JOIN safe ON safe.oid = a.atttypid"
    "   WHERE attrelid = c.oid ORDER BY attnum) AS binaries"
    " FROM pg_class AS c WHERE c.oid = ANY(%(oids)s)"
)


def reading(item: Contents, chunk: Chunk, binary: bool) -> Any:
    """The COPY that reads a chunk of a table."""
    table = item.table
    if chunk.whole and table.where is None:
        what = compose(
            "{table}{columns}",
            table=identifier(*table.key),
            columns=compose(" ({names})", names=identifiers(item.columns)) if item.columns else raw(""),
        )
    else:
        rows = snapshot.select(table.schema, table.name, item.columns, table.where, chunk.first, chunk.end)
        what = compose("({rows})", rows=rows)
    return compose("COPY {what} TO STDOUT (FORMAT {format})", what=what, format=_format(binary))


def writing(key: tuple[str, str], columns: Sequence[str], binary: bool, freeze: bool) -> Any:
    """The COPY that writes what reading() reads into the table *key*."""
    return compose(
        "COPY {table}{columns} FROM STDIN (FORMAT {format}{freeze})",
        table=identifier(*key),
        columns=compose(" ({names})", names=identifiers(columns)) if columns else raw(""),
        format=_format(binary),
        freeze=raw(", FREEZE" if freeze else ""),
    )


def _format(binary: bool) -> Any:
    return raw("binary" if binary else "text")


def refuse_unreadable(session: Session, tables: Sequence[Table]) -> None:
    """Refuse tables whose rows the source's role can't read, or of which it can read some only."""
    rows = session.rows(
        "SELECT n.nspname AS schema, c.relname AS name, has_table_privilege(c.oid, 'SELECT') AS readable,"
        " has_schema_privilege(n.oid, 'USAGE') AS enterable, row_security_active(c.oid) AS hidden"
        " FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = ANY(%s) ORDER BY 1, 2",
        [[table.oid for table in tables]],
    )
    user = session.endpoint.keywords.get("user")
    closed = [quoted(row.schema) for row in rows if not row.enterable]
    if closed:
        raise Refused(
            'User "{0}" has no USAGE on schema {1} of {2}: grant it there.'.format(
                user, enumerate_names(set(closed)), session.endpoint
            )
        )
    unreadable = [quoted(row.schema, row.name) for row in rows if not row.readable]
    if unreadable:
        raise Refused(
            'User "{0}" has no SELECT on {1} in {2}: grant it there, as pgml_grants does.'.format(
                user, enumerate_names(unreadable), session.endpoint
            )
        )
    hidden = [quoted(row.schema, row.name) for row in rows if row.hidden]
    if hidden:
        raise Refused(
            'Row-level security may hide rows of {0} from user "{1}" in {2}: give it BYPASSRLS, or leave {3} out.'.format(
                enumerate_names(hidden), user, session.endpoint, "it" if len(hidden) == 1 else "them"
            )
        )


def refuse_bad_filters(session: Session, contents: Sequence[Contents]) -> None:
    """Refuse a filter that is no single condition."""
    for item in contents:
        if item.table.where is None:
            continue
        query = snapshot.select(item.table.schema, item.table.name, item.columns[:1], item.table.where, 0, None)
        try:
            session.refuse_more_than_queries([query])
        except ServerRefused as error:
            raise Refused(
                "The filter of {0} is no condition that the source understands: {1}".format(item.table.label, error)
            ) from None


def sequence_values(session: Session, oids: Sequence[int], others: Collection[tuple[str, str]]) -> list[SequenceValue]:
    """Where the sequences stand that columns of the tables *oids* own, and the *others* (schema, name)."""
    rows = session.rows(
        "SELECT n.nspname AS schema, c.relname AS name, on_.nspname AS owner_schema, oc.relname AS owner_table,"
        " a.attname AS owner_column, has_sequence_privilege(c.oid, 'SELECT') AS readable"
        " FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
        " LEFT JOIN pg_depend AS d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i')"
        "  AND d.refclassid = 'pg_class'::regclass AND d.refobjid = ANY(%(oids)s)"
        " LEFT JOIN pg_class AS oc ON oc.oid = d.refobjid LEFT JOIN pg_namespace AS on_ ON on_.oid = oc.relnamespace"
        " LEFT JOIN pg_attribute AS a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid"
        " WHERE c.relkind = 'S' AND (d.objid IS NOT NULL"
        "  OR (n.nspname, c.relname) IN (SELECT * FROM unnest(%(schemas)s::text[], %(names)s::text[])))"
        " ORDER BY 1, 2",
        {
            "oids": list(oids),
            "schemas": [schema for schema, _name in others],
            "names": [name for _schema, name in others],
        },
    )
    values = _last_values(session, [(row.schema, row.name) for row in rows if row.readable])
    return [
        SequenceValue(
            row.schema,
            row.name,
            values.get((row.schema, row.name), (None, False))[0],
            values.get((row.schema, row.name), (None, False))[1],
            (row.owner_schema, row.owner_table, row.owner_column) if row.owner_table else None,
        )
        for row in rows
    ]


def _last_values(session: Session, sequences: Sequence[tuple[str, str]]) -> dict[tuple[str, str], tuple[int, bool]]:
    """(last_value, is_called) of *sequences*, some hundreds in a query: each is a relation of its own."""
    values = {}
    for start in range(0, len(sequences), _SEQUENCES_AT_ONCE):
        some = sequences[start : start + _SEQUENCES_AT_ONCE]
        queries = [
            compose(
                "SELECT {number} AS number, last_value, is_called FROM {sequence}",
                number=literal(number),
                sequence=identifier(*key),
            )
            for number, key in enumerate(some)
        ]
        for row in session.rows(union_all(queries)):
            values[some[row.number]] = (row.last_value, row.is_called)
    return values


def fingerprints(session: Session, tables: Sequence[Table]) -> dict[tuple[str, str], str]:
    """Something short of each table that changes when its rows or its definition do, read from the catalogs alone.

    Made of the server's counts of changed rows, the files' names and sizes, and the versions of the catalog rows. The
    counts reach everybody's eyes within a second or so of the commit, see
    https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-STATS-VIEWS, and are lost in a crash or a
    reset: so the server's start and the times of resets are a part of it. Where the server doesn't count, any change to the
    WAL is one.
    """
    by_oid = {table.oid: table for table in tables}
    return {
        by_oid[row.oid].key: row.fingerprint
        for row in session.rows(
            _FINGERPRINTS,
            {
                "oids": list(by_oid),
                "asked": [repr((table.columns, table.where)) for table in tables],
                "order": [table.oid for table in tables],
            },
        )
    }


_FINGERPRINTS = (
    "SELECT c.oid, md5(concat_ws('/', (SELECT system_identifier FROM pg_control_system()), current_database(),"
    "  pg_postmaster_start_time(), (SELECT stats_reset FROM pg_stat_bgwriter),"
    "  (SELECT stats_reset FROM pg_stat_database WHERE datname = current_database()"
    "   AND current_setting('server_version_num')::int >= 150000),"  # older servers set it at some time by themselves
    "  CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()"
    "   WHEN NOT current_setting('track_counts')::bool THEN pg_current_wal_insert_lsn() END,"
    "  (SELECT string_agg(h.inhrelid::text, ',' ORDER BY h.inhrelid) FROM pg_inherits AS h WHERE h.inhparent = c.oid),"
    "  c.oid, c.xmin, pg_relation_filenode(c.oid), pg_relation_size(c.oid), asked.words,"
    "  s.n_tup_ins, s.n_tup_upd, s.n_tup_del,"
    "  (SELECT string_agg(a.attnum || ':' || a.xmin, ',' ORDER BY a.attnum) FROM pg_attribute AS a WHERE a.attrelid = c.oid),"
    "  (SELECT string_agg(concat(i.indexrelid, ':', i.xmin, ':', x.xmin), ',' ORDER BY i.indexrelid)"
    "   FROM pg_index AS i JOIN pg_class AS x ON x.oid = i.indexrelid WHERE i.indrelid = c.oid),"
    "  (SELECT string_agg(k.oid || ':' || k.xmin, ',' ORDER BY k.oid) FROM pg_constraint AS k WHERE k.conrelid = c.oid),"
    "  (SELECT string_agg(t.oid || ':' || t.xmin, ',' ORDER BY t.oid) FROM pg_trigger AS t WHERE t.tgrelid = c.oid),"
    "  (SELECT string_agg(p.oid || ':' || p.xmin, ',' ORDER BY p.oid) FROM pg_policy AS p WHERE p.polrelid = c.oid),"
    "  (SELECT string_agg(x.oid || ':' || x.xmin, ',' ORDER BY x.oid) FROM pg_statistic_ext AS x WHERE x.stxrelid = c.oid),"
    "  (SELECT string_agg(concat(q.seqrelid, ':', q.xmin), ',' ORDER BY q.seqrelid) FROM pg_depend AS d"
    "   JOIN pg_sequence AS q ON q.seqrelid = d.objid WHERE d.classid = 'pg_class'::regclass"
    "   AND d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid),"
    "  (SELECT string_agg(e.oid || ':' || e.xmin, ',' ORDER BY e.oid) FROM pg_attribute AS a"
    "   JOIN pg_type AS t ON t.oid = a.atttypid"
    "   JOIN pg_enum AS e ON e.enumtypid IN (t.oid, t.typelem, t.typbasetype) WHERE a.attrelid = c.oid),"
    "  (SELECT string_agg(concat(d.objoid, ':', d.objsubid, ':', d.xmin), ',' ORDER BY d.objoid, d.objsubid)"
    "   FROM pg_description AS d WHERE (d.classoid, d.objoid) IN (SELECT 'pg_class'::regclass, c.oid"
    "    UNION ALL SELECT 'pg_class'::regclass, i.indexrelid FROM pg_index AS i WHERE i.indrelid = c.oid"
    "    UNION ALL SELECT 'pg_constraint'::regclass, k.oid FROM pg_constraint AS k WHERE k.conrelid = c.oid"
    "    UNION ALL SELECT 'pg_trigger'::regclass, t.oid FROM pg_trigger AS t WHERE t.tgrelid = c.oid"
    "    UNION ALL SELECT 'pg_policy'::regclass, p.oid FROM pg_policy AS p WHERE p.polrelid = c.oid"
    "    UNION ALL SELECT 'pg_statistic_ext'::regclass, x.oid FROM pg_statistic_ext AS x WHERE x.stxrelid = c.oid))"
    " )) AS fingerprint"
    " FROM unnest(%(order)s::oid[], %(asked)s::text[]) AS asked(oid, words) JOIN pg_class AS c ON c.oid = asked.oid"
    " LEFT JOIN pg_stat_all_tables AS s ON s.relid = c.oid"
)


def large_objects(session: Session) -> int:
    """How many large objects the database has: they belong to no table, so they don't travel."""
    return int(session.value("SELECT count(*) FROM pg_largeobject_metadata"))
