# SPDX-License-Identifier: GPL-3.0-or-later
"""What of the source is to be foreign tables, as it would be imported now.

It is imported into scratch schemas of a transaction, which are compared with what is there. Whatever is new or is to be replaced
moves from them to its place, and the rest is gone before the transaction ends.
"""

from __future__ import annotations

import json
from typing import Any, Collection, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused, ServerRefused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    check_name,
    compose,
    enumerate_names,
    expression,
    identifier,
    identifiers,
    listed,
    literal,
    quoted,
    raw,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import foreign_tables, pushdown, tables
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.foreign_link import Catalog
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.foreign_tables import Definition
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.pushdown import Pushdown
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.schedule import Key
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.tables import TableRequest
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import ledger

SUFFIX = "_unfiltered"
_SCRATCH = "pgml_import_"
_FLAGS = ("import_default", "import_generated", "import_not_null", "import_collate")
VIEWS_READ_AS_READERS_SINCE = 150000
"""Views of older servers read as their owner."""
_UNDEFINED_OBJECT, _UNDEFINED_SCHEMA = "42704", "3F000"


class Import(NamedTuple):
    """An entry of C(imports), for one schema of the source."""

    remote: str
    local: str
    requests: Mapping[str, TableRequest] | None
    """by name; None for all tables"""
    excepted: frozenset[str]
    flags: tuple[bool, ...]

    def means(self, definition: Definition) -> bool:
        """Whether a table that is not listed is meant, if the source has it."""
        schema, name = definition.remote
        here = definition.key[0] == self.local and schema == self.remote
        return here and self.requests is None and name not in self.excepted


class Whole(NamedTuple):
    """An entry of C(imports) that means the whole database, and so the schemas that it has no more."""

    local: str | None
    excepted: frozenset[Key]

    def means(self, definition: Definition) -> bool:
        """As Import.means()."""
        local = self.local or "{0}_{1}".format(definition.server, definition.remote[0])
        return definition.key[0] == local and definition.remote not in self.excepted


class Item(NamedTuple):
    """A foreign table that is to be, and the view over it if it is filtered."""

    key: Key
    """of what people read"""
    table: Definition
    """as it would be made, under its future name"""
    view: Definition | None
    where: str | None
    """the condition as it was asked for"""
    sent: bool | None
    scratch: str
    request: str
    """what was asked for, to be remembered"""

    @property
    def definitions(self) -> list[Definition]:
        return [self.table] + ([self.view] if self.view else [])


def refuse_entries(entries: Sequence[Mapping[str, Any]]) -> None:
    """Refuse entries of C(imports) that no server could make sense of."""
    for entry in entries:
        requests = tables.parse_requests(entry["tables"])
        if entry["remote_schema"] is not None:
            check_name("remote_schema", entry["remote_schema"])
        if requests is not None and entry["except"]:
            raise Refused("imports: tables and except exclude each other.")
        if requests == []:
            raise Refused("imports: tables is an empty list: name some, or leave it out for all of them.")


def refuse_schema(name: str) -> None:
    """Refuse schemas that aren't for users."""
    check_name("schema", name)
    if name.startswith(("pg_", "pgml_staging_")) or name in ("information_schema", ledger.SCHEMA):
        raise Refused("Schema {0} is not for tables of users: choose another one.".format(quoted(name)))


def parse(session: Session, params: Mapping[str, Any], catalog: Catalog) -> list[Import]:
    """The C(imports) of the options, where whole databases are those of the source's *catalog*."""
    result: list[Import] = []
    for entry in params["imports"]:
        flags = tuple(entry[flag] for flag in _FLAGS)
        for remote, requests, excepted in _by_schema(session, entry, catalog):
            local = entry["local_schema"] or "{0}_{1}".format(params["server"], remote)
            refuse_schema(local)
            result.append(Import(remote, local, requests, frozenset(excepted), flags))
    # A list may stand beside the rest of its schema.
    places = [(each.remote, each.local, each.requests is None) for each in result]
    twice = {quoted(place[0]) for place in places if places.count(place) > 1}
    if twice:
        raise Refused("imports: schema {0} is imported twice into the same schema.".format(enumerate_names(twice)))
    return result


def parse_whole(session: Session, params: Mapping[str, Any]) -> list[Whole]:
    """Those of the C(imports) that mean the whole database."""
    return [
        Whole(entry["local_schema"], frozenset(_names(session, entry["except"], None)))
        for entry in params["imports"]
        if entry["remote_schema"] is None and entry["tables"] is None
    ]


def _by_schema(
    session: Session, entry: Mapping[str, Any], catalog: Catalog
) -> list[tuple[str, Mapping[str, TableRequest] | None, list[str]]]:
    schema = entry["remote_schema"]
    if entry["tables"] is not None:
        requests = tables.parse_requests(entry["tables"]) or []
        groups: dict[str, dict[str, TableRequest]] = {}
        for (of_schema, name), request in zip(_names(session, [r.name for r in requests], schema), requests):
            if name in groups.setdefault(of_schema, {}):
                raise Refused("imports: {0} is named more than once.".format(quoted(of_schema, name)))
            groups[of_schema][name] = request
        return [(of_schema, group, []) for of_schema, group in groups.items()]
    excepted = _names(session, entry["except"], schema)
    unknown = [quoted(*key) for key in excepted if key not in catalog.relations]
    if unknown:
        raise Refused("imports: except names {0}, which the source doesn't have.".format(enumerate_names(unknown)))
    schemas = [schema] if schema is not None else catalog.schemas
    return [(each, None, [name for of_schema, name in excepted if of_schema == each]) for each in schemas]


def _names(session: Session, names: Sequence[str], schema: str | None) -> list[Key]:
    """(schema, name) of names as in SQL, those without a schema in *schema*, outside of which none may be."""
    keys = tables.parse_names(session, names)
    if schema is None:
        return keys
    query = "SELECT name, cardinality(parse_ident(name)) = 1 AS plain FROM unnest(%s::text[]) AS name"
    plain = {row.name: row.plain for row in session.rows(query, [list(names)])}
    result = [(schema, key[1]) if plain[name] else key for name, key in zip(names, keys)]
    for name, key in zip(names, result):
        if key[0] != schema:
            raise Refused("imports: {0} is not in remote_schema {1}.".format(name, quoted(schema)))
    return result


def bring(session: Session, prober: Session, server: str, imports: Sequence[Import]) -> list[Item]:
    """Import what *imports* mean into scratch schemas, and make it what is asked for; *session* is in a transaction whose
    search_path is C(pg_catalog), *prober* is in none."""
    scratches = {_SCRATCH + str(number): each for number, each in enumerate(imports)}
    for scratch, each in scratches.items():
        session.execute(compose("CREATE SCHEMA {scratch}", scratch=identifier(scratch)))
        _import(session, server, each, scratch)
    found = foreign_tables.read(session, list(scratches))
    for scratch, each in scratches.items():
        for name, request in (each.requests or {}).items():
            if (scratch, name) not in found:
                _tell_missing(session, server, each.remote, name, scratch)
            _refuse_unknown_columns(found[(scratch, name)], request)
            if request.where is None:
                _drop_columns(session, found[(scratch, name)], request)
    filtered = {
        (scratch, name): _filter(session, prober, found[(scratch, name)], request)
        for scratch, each in scratches.items()
        for name, request in (each.requests or {}).items()
        if request.where is not None
    }
    made = foreign_tables.read(session, list(scratches))
    return _items(made, scratches, filtered)


def _import(session: Session, server: str, wanted: Import, scratch: str) -> None:
    limit: Any = raw("")
    if wanted.requests is not None:
        limit = compose("LIMIT TO ({names})", names=identifiers(wanted.requests))
    elif wanted.excepted:
        limit = compose("EXCEPT ({names})", names=identifiers(sorted(wanted.excepted)))
    defaults = (False, True, True, True)
    options = [
        compose("{name} {value}", name=raw(name), value=literal(str(value).lower()))
        for name, value, default in zip(_FLAGS, wanted.flags, defaults)
        if value != default  # not every minor version of 13 knows import_generated
    ]
    statement = compose(
        "IMPORT FOREIGN SCHEMA {remote} {limit} FROM SERVER {server} INTO {scratch}{options}",
        remote=identifier(wanted.remote),
        limit=limit,
        server=identifier(server),
        scratch=identifier(scratch),
        options=compose(" OPTIONS ({options})", options=listed(options)) if options else raw(""),
    )
    try:
        session.execute(statement)
    except ServerRefused as error:
        sqlstate = error.details.get("sqlstate")
        if sqlstate == _UNDEFINED_SCHEMA or (sqlstate == _UNDEFINED_OBJECT and 'type "' in str(error)):
            raise Refused(
                "Schema {0} can't be imported as long as a type of its columns is missing here: {1} Bring it with pgml_schema "
                "and parts: [types].".format(quoted(wanted.remote), error),
                **error.details,
            ) from None
        raise


def _tell_missing(session: Session, server: str, schema: str, name: str, scratch: str) -> None:
    """Have the source say why it has no such table: IMPORT passes over those in silence."""
    session.execute(
        compose(
            "CREATE FOREIGN TABLE {table} () SERVER {server} OPTIONS (schema_name {schema}, table_name {name})",
            table=identifier(scratch, name),
            server=identifier(server),
            schema=literal(schema),
            name=literal(name),
        )
    )
    session.rows(compose("EXPLAIN SELECT FROM {table}", table=identifier(scratch, name)))
    raise Refused(
        "{0} is on the source but can't be imported from there, like partitions before PostgreSQL 14, sequences and indexes: "
        "leave it out.".format(quoted(schema, name))
    )


def _refuse_unknown_columns(found: Definition, request: TableRequest) -> None:
    names = [column.name for column in found.columns]
    unknown = [name for name in request.columns or () if name not in names]
    if unknown:
        raise Refused(
            "{0} has no column {1} on the source; it has {2}.".format(
                quoted(*found.remote), enumerate_names(map(quoted, unknown)), enumerate_names(map(quoted, names), 20)
            )
        )


def _drop_columns(session: Session, found: Definition, request: TableRequest, needed: Collection[str] = ()) -> None:
    """Drop the columns that are neither asked for nor *needed*."""
    wanted = {*(request.columns or [column.name for column in found.columns]), *needed}
    drops = [
        compose("DROP COLUMN {name}", name=identifier(column.name))
        for column in found.columns
        if column.name not in wanted
    ]
    if drops:
        session.execute(
            compose("ALTER FOREIGN TABLE {table} {drops}", table=identifier(*found.key), drops=listed(drops))
        )


def _filter(session: Session, prober: Session, found: Definition, request: TableRequest) -> bool:
    """Make the view; returns whether the source evaluates the condition."""
    scratch, name = found.key
    base = name + SUFFIX
    check_name("foreign table", base)
    condition, used = _condition(session, found, request.where or "")
    _drop_columns(session, found, request, used)
    session.execute(
        compose("ALTER FOREIGN TABLE {table} RENAME TO {base}", table=identifier(*found.key), base=identifier(base))
    )
    template = "CREATE VIEW {view}{options} AS SELECT {columns} FROM {base} AS {name} WHERE {condition}"
    parts = {
        "view": identifier(*found.key),
        "options": raw(" WITH (security_invoker = true)" if session.version >= VIEWS_READ_AS_READERS_SINCE else ""),
        "columns": identifiers(
            column.name for column in found.columns if column.name in (request.columns or [column.name])
        ),
        "base": identifier(scratch, base),
        "name": identifier(name),
    }
    if not session.tried(compose(template, condition=raw(Pushdown(prober).rewritten(condition)), **parts)):
        session.execute(compose(template, condition=raw(condition), **parts))
    return pushdown.is_sent(session, compose("SELECT * FROM {view}", view=identifier(*found.key)))


def _condition(session: Session, found: Definition, where: str) -> tuple[str, list[str]]:
    """*where* as the server spells it, with all names qualified, and the columns it uses. It is taken for a CHECK constraint for
    the moment, which can be nothing but one expression on the table's columns."""
    label = quoted(*found.remote)
    check = compose(
        "ALTER FOREIGN TABLE {table} ADD CONSTRAINT pgml_condition CHECK {where}",
        table=identifier(*found.key),
        where=expression(where),
    )
    try:
        session.execute("SET LOCAL search_path = {0}".format(session.path_for_users))
        session.refuse_more_than_queries(
            [compose("SELECT FROM {table} WHERE {where}", table=identifier(*found.key), where=expression(where))]
        )
        session.execute(check)
    except ServerRefused as error:
        raise Refused(
            "The condition of {0} can't be used: {1} A condition is one expression on the table's own columns.".format(
                label, error
            )
        ) from None
    session.execute("SET LOCAL search_path = pg_catalog")
    row = session.row(
        "SELECT pg_get_expr(conbin, conrelid) AS condition, array(SELECT attname::text FROM pg_attribute"
        "  WHERE attrelid = conrelid AND attnum = ANY(conkey)) AS columns"
        " FROM pg_constraint WHERE conname = 'pgml_condition' AND conrelid = %s::regclass",
        [session.text_of(identifier(*found.key))],
    )
    session.execute(compose("ALTER FOREIGN TABLE {table} DROP CONSTRAINT pgml_condition", table=identifier(*found.key)))
    moments = pushdown.frozen_moments(where, row.condition)
    if moments:
        raise Refused(
            "The condition of {0} has {1}, which would for ever mean the time at which the view was made: write now() or "
            "current_date.".format(label, enumerate_names(moments))
        )
    return row.condition, row.columns


def _items(made: Mapping[Key, Definition], scratches: Mapping[str, Import], filtered: Mapping[Key, bool]) -> list[Item]:
    items: dict[Key, Item] = {}
    bases = {(scratch, name + SUFFIX) for scratch, name in filtered}
    for (scratch, name), found in sorted(made.items()):
        if (scratch, name) in bases:
            continue
        wanted = scratches[scratch]
        key = (wanted.local, name)
        table = made[(scratch, name + SUFFIX)] if (scratch, name) in filtered else found
        request = (wanted.requests or {}).get(name)
        item = Item(
            key,
            table._replace(key=(wanted.local, table.key[1])),
            found._replace(key=key) if table is not found else None,
            request.where if request else None,
            filtered.get((scratch, name)),
            scratch,
            json.dumps([table.remote, request and request.columns, request and request.where, wanted.flags]),
        )
        for definition in item.definitions:
            if definition.key in items:
                raise Refused(
                    "imports: {0} would come from two tables: choose another local_schema.".format(
                        quoted(*definition.key)
                    )
                )
            items[definition.key] = item
    return list(dict.fromkeys(items.values()))


def remove_scratch(session: Session, imports: Sequence[Import]) -> None:
    """Drop what is left of the scratch schemas."""
    names = [identifier(_SCRATCH + str(number)) for number in range(len(imports))]
    if names:
        session.execute(compose("DROP SCHEMA {names} CASCADE", names=listed(names)))


def moves(item: Item) -> list[Any]:
    """Statements that bring *item* from its scratch schema to its place."""
    return [
        compose(
            "ALTER {what} {name} SET SCHEMA {schema}",
            what=raw("VIEW" if definition.kind == foreign_tables.VIEW else "FOREIGN TABLE"),
            name=identifier(item.scratch, definition.key[1]),
            schema=identifier(item.key[0]),
        )
        for definition in item.definitions
    ]
