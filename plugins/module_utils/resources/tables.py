# SPDX-License-Identifier: GPL-3.0-or-later
"""Which tables a list of names, schemas, or a whole database means, read for all of them in one query each."""

from __future__ import annotations

import difflib
from typing import Any, Iterable, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Missing, Refused, ServerRefused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    arrays,
    enumerate_names,
    quoted,
)

_KINDS = {
    "v": "a view",
    "m": "a materialized view",
    "f": "a foreign table",
    "S": "a sequence",
    "i": "an index",
    "I": "an index",
    "c": "a composite type",
    "t": "a TOAST table",
}

_USER_SCHEMAS = "n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)'"


class Table(NamedTuple):
    """A table and what the request says of it."""

    oid: int
    schema: str
    name: str
    kind: str
    """pg_class.relkind: C(r) or C(p)"""
    columns: tuple[str, ...] | None = None
    where: str | None = None
    top: tuple[str, str] | None = None
    """the partitioned table or inheritance parent by which it was found"""

    @property
    def label(self) -> str:
        return quoted(self.schema, self.name)

    @property
    def key(self) -> tuple[str, str]:
        return (self.schema, self.name)


class TableRequest(NamedTuple):
    """One entry of a C(tables) option."""

    name: str
    columns: tuple[str, ...] | None
    where: str | None


def parse_requests(entries: Iterable[Any] | None) -> list[TableRequest] | None:
    """The entries of a C(tables) option in their short or long form."""
    return None if entries is None else [_parse_request(entry) for entry in entries]


def _parse_request(entry: Any) -> TableRequest:
    if isinstance(entry, str):
        return TableRequest(entry, None, None)
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise Refused("tables: {0!r} is neither a name nor a mapping with a name.".format(entry))
    unknown = set(entry) - {"name", "columns", "where"}
    if unknown:
        raise Refused(
            "tables: {0} has unknown key {1}; known are name, columns and where.".format(
                entry["name"], enumerate_names(map(str, unknown))
            )
        )
    columns, where = entry.get("columns"), entry.get("where")
    if columns is not None and (
        isinstance(columns, str) or not columns or not all(isinstance(c, str) for c in columns)
    ):
        raise Refused("tables: the columns of {0} must be a list of at least one name.".format(entry["name"]))
    if where is not None and (not isinstance(where, str) or not where.strip()):
        raise Refused("tables: where of {0} must be an SQL condition.".format(entry["name"]))
    return TableRequest(entry["name"], tuple(columns) if columns else None, where)


def parse_names(session: Session, names: Sequence[str]) -> list[tuple[str, str]]:
    """(schema, table) of names written as in SQL; without a schema it is C(public)."""
    try:
        parsed = session.rows("SELECT name, parse_ident(name) AS parts FROM unnest(%s::text[]) AS name", [list(names)])
    except ServerRefused as error:
        raise Refused(
            "A table name can't be read: {0} Write names as in SQL, with double quotes around "
            'parts that hold capitals, spaces, dots or quotes, such as public."Order Lines".'.format(error)
        ) from None
    parts = {row.name: row.parts for row in parsed}
    for name in names:
        if len(parts[name]) > 2:
            raise Refused(
                "The table name {0} has {1} parts: write schema.table, and quote a part that holds a dot.".format(
                    name, len(parts[name])
                )
            )
    return [("public", parts[name][0]) if len(parts[name]) == 1 else tuple(parts[name]) for name in names]


def resolve(session: Session, requests: Sequence[TableRequest]) -> list[Table]:
    """The tables of *requests* with their inheritance children, in the order asked for; refuses what isn't one."""
    keys = parse_names(session, [request.name for request in requests])
    _refuse_twice(keys)
    found = {
        (row.schema, row.name): row
        for row in session.rows(
            "SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relkind AS kind, c.relpersistence AS persistence,"
            " array(SELECT attname::text FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0"
            " AND NOT attisdropped ORDER BY attnum) AS columns"
            " FROM unnest(%s::text[], %s::text[]) AS wanted(schema, name)"
            " JOIN pg_namespace AS n ON n.nspname = wanted.schema"
            " JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = wanted.name",
            arrays(keys),
        )
    }
    refuse_missing(session, [key for key in keys if key not in found])
    tables = []
    for key, request in zip(keys, requests):
        row = found[key]
        _refuse_unfit(row)
        _refuse_columns(row, request)
        columns = request.columns and tuple(c for c in row.columns if c in request.columns)
        tables.append(Table(row.oid, row.schema, row.name, row.kind, columns, request.where))
    # PostgreSQL takes a table to mean its inheritance children too, unless ONLY is written; we spell them out.
    return _with_descendants(session, tables, partitions=False)


def in_schemas(session: Session, schemas: Sequence[str] | None) -> list[Table]:
    """The permanent tables of *schemas*, or of the whole database when None."""
    if schemas is not None:
        refuse_missing_schemas(session, schemas)
    return [
        Table(row.oid, row.schema, row.name, row.kind)
        for row in session.rows(
            "SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relkind AS kind"
            " FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND (%(schemas)s::text[] IS NULL"
            "  OR n.nspname = ANY(%(schemas)s)) AND " + _USER_SCHEMAS + " ORDER BY 2, 3",
            {"schemas": None if schemas is None else list(schemas)},
        )
    ]


def importable(
    session: Session, keys: Sequence[tuple[str, str]], schemas: Sequence[str], everything: bool = False
) -> list[Table]:
    """What foreign tables can stand for, views included: the relations *keys*, and those of *schemas* or of *everything*, whose
    partitions come with their table."""
    refuse_missing_schemas(session, schemas)
    of_schemas, names = arrays(keys)
    found = [
        Table(row.oid, row.schema, row.name, row.kind)
        for row in session.rows(
            "SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relkind AS kind"
            " FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't'"
            " AND ((n.nspname, c.relname) IN (SELECT * FROM unnest(%(of_schemas)s::text[], %(names)s::text[]))"
            "  OR NOT c.relispartition AND (%(everything)s OR n.nspname = ANY(%(schemas)s::text[])) AND "
            + _USER_SCHEMAS
            + ") ORDER BY 2, 3",
            {"of_schemas": of_schemas, "names": names, "schemas": list(schemas), "everything": everything},
        )
    ]
    there = {table.key for table in found}
    refuse_missing(session, [key for key in keys if key not in there])
    return found


def refuse_missing_schemas(session: Session, schemas: Sequence[str]) -> None:
    """Refuse *schemas* that the session's database doesn't have."""
    known = {
        row.nspname for row in session.rows("SELECT nspname FROM pg_namespace WHERE nspname = ANY(%s)", [list(schemas)])
    }
    missing = [schema for schema in schemas if schema not in known]
    if missing:
        raise Missing("There is no schema {0} in {1}.".format(enumerate_names(map(quoted, missing)), session.endpoint))


def not_movable(session: Session, schemas: Sequence[str] | None, views: bool = False) -> list[dict[str, str]]:
    """What lies in *schemas*, or in the database, and doesn't travel: unlogged and foreign tables, materialized views,
    and plain *views* if asked."""
    return [
        {"name": quoted(row.schema, row.name), "reason": row.reason}
        for row in session.rows(
            "SELECT n.nspname AS schema, c.relname AS name, CASE WHEN c.relkind = 'm' THEN 'materialized view'"
            " WHEN c.relkind = 'f' THEN 'foreign table' WHEN c.relkind = 'v' THEN 'view' ELSE 'unlogged table' END AS reason"
            " FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " WHERE (c.relkind IN ('m', 'f') OR c.relkind = 'v' AND %(views)s"
            " AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e')"
            " OR c.relkind IN ('r', 'p') AND c.relpersistence = 'u')"
            " AND (%(schemas)s::text[] IS NULL OR n.nspname = ANY(%(schemas)s)) AND "
            + _USER_SCHEMAS
            + " ORDER BY 1, 2",
            {"schemas": None if schemas is None else list(schemas), "views": views},
        )
    ]


def with_partitions(session: Session, tables: Sequence[Table]) -> list[Table]:
    """*tables* and all partitions below them; a partition has the columns and the filter of its topmost table."""
    return _with_descendants(session, tables, partitions=True)


def _with_descendants(session: Session, tables: Sequence[Table], partitions: bool) -> list[Table]:
    known = {table.oid: table for table in tables}
    for row in session.rows(
        "WITH RECURSIVE below AS (SELECT inhparent AS top, inhrelid AS oid FROM pg_inherits WHERE inhparent = ANY(%s)"
        " UNION SELECT below.top, i.inhrelid FROM below JOIN pg_inherits AS i ON i.inhparent = below.oid)"
        " SELECT below.top, c.oid, n.nspname AS schema, c.relname AS name, c.relkind AS kind"
        " FROM below JOIN pg_class AS c ON c.oid = below.oid JOIN pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE c.relispartition = %s AND c.relkind IN ('r', 'p') ORDER BY 3, 4",
        [[table.oid for table in tables if (table.kind == "p") == partitions], partitions],
    ):
        top = known[row.top]
        known.setdefault(row.oid, Table(row.oid, row.schema, row.name, row.kind, top.columns, top.where, top.key))
    return list(known.values())


def _refuse_twice(keys: Sequence[tuple[str, str]]) -> None:
    twice = {quoted(*key) for key in keys if keys.count(key) > 1} if len(set(keys)) < len(keys) else set()
    if twice:
        raise Refused("tables: named more than once: {0}.".format(enumerate_names(twice)))


def refuse_missing(session: Session, missing: Sequence[tuple[str, str]]) -> None:
    """Refuse tables that are *missing*, with those of similar names, if there are any."""
    if missing:
        hints = _similar(session, missing[0])
        raise Missing(
            "There {0} {1} in {2}{3}".format(
                "is no table" if len(missing) == 1 else "are no tables",
                enumerate_names(quoted(*key) for key in missing),
                session.endpoint,
                "; did you mean {0}?".format(" or ".join(hints)) if hints else ".",
            )
        )


def _similar(session: Session, key: tuple[str, str]) -> list[str]:
    existing = {
        (row.schema + "." + row.name).lower(): quoted(row.schema, row.name)
        for row in session.rows(
            "SELECT n.nspname AS schema, c.relname AS name FROM pg_class AS c"
            " JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p') AND " + _USER_SCHEMAS
        )
    }
    return [existing[match] for match in difflib.get_close_matches(".".join(key).lower(), existing, 2, 0.8)]


def _refuse_unfit(row: Any) -> None:
    label = quoted(row.schema, row.name)
    if row.kind in _KINDS:
        raise Refused("{0} is {1}: only tables can be distributed.".format(label, _KINDS[row.kind]))
    if row.persistence != "p":
        what = "an unlogged table: its rows are not in the WAL" if row.persistence == "u" else "a temporary table"
        raise Refused("{0} is {1}, so it can't be replicated.".format(label, what))
    if row.schema in ("pg_catalog", "information_schema"):
        raise Refused("{0} is a system table, which can't be replicated.".format(label))


def _refuse_columns(row: Any, request: TableRequest) -> None:
    unknown = [column for column in request.columns or () if column not in row.columns]
    if unknown:
        raise Refused(
            "{0} has no column {1}; it has {2}.".format(
                quoted(row.schema, row.name),
                enumerate_names(quoted(name) for name in unknown),
                enumerate_names((quoted(name) for name in row.columns), 20),
            )
        )
