# SPDX-License-Identifier: GPL-3.0-or-later
"""What of the source is to be foreign tables, as it would be imported now.

It is imported into scratch schemas of a transaction, which are compared with what is there. Whatever is new or is to be replaced
moves from them to its place, and the rest is gone before the transaction ends.
"""

from __future__ import annotations

import json
from typing import Any, Mapping, NamedTuple, Sequence

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
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.foreign_tables import Definition
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.pushdown import Pushdown
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.schedule import Key
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.tables import TableRequest

SUFFIX = "_unfiltered"
_SCRATCH = "pgml_import_"
_FLAGS = ("import_default", "import_generated", "import_not_null", "import_collate")
_INVOKER_SINCE = 150000
_UNDEFINED_OBJECT = "42704"


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
        if requests is not None and entry["except"]:
            raise Refused("imports: tables and except exclude each other.")
        if requests == []:
            raise Refused("imports: tables is an empty list: name some, or leave it out for all of them.")


def parse(session: Session, params: Mapping[str, Any]) -> list[Import]:
    """The C(imports) of the options; those of whole databases as the source tells its schemas, for which the server is there."""
    result: list[Import] = []
    for entry in params["imports"]:
        flags = tuple(entry[flag] for flag in _FLAGS)
        for remote, requests, excepted in _by_schema(session, params["server"], entry):
            local = entry["local_schema"] or "{0}_{1}".format(params["server"], remote)
            check_name("schema", local)
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
    session: Session, server: str, entry: Mapping[str, Any]
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
    schemas = [schema] if schema is not None else _remote_schemas(session, server)
    unknown = {quoted(of_schema) for of_schema, _name in excepted} - {quoted(each) for each in schemas}
    if unknown:
        raise Refused("imports: except names schema {0}, which is not imported.".format(enumerate_names(unknown)))
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


def _remote_schemas(session: Session, server: str) -> list[str]:
    """The schemas of the source's database, read through the server."""
    with session.undone():
        session.execute(
            compose(
                "CREATE SCHEMA {scratch}; CREATE FOREIGN TABLE {scratch}.remote (nspname name) SERVER {server}"
                " OPTIONS (schema_name 'pg_catalog', table_name 'pg_namespace')",
                scratch=identifier(_SCRATCH),
                server=identifier(server),
            )
        )
        rows = session.rows(
            compose(
                "SELECT nspname FROM {scratch}.remote WHERE nspname !~ '^pg_' AND nspname NOT IN"
                " ('information_schema', 'pgml_distributed') ORDER BY 1",
                scratch=identifier(_SCRATCH),
            )
        )
    return [row.nspname for row in rows]


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
            _drop_columns(session, found[(scratch, name)], request)
    filtered = {
        (scratch, name): _filter(session, prober, scratch, name, request.where, each)
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
        if error.details.get("sqlstate") == _UNDEFINED_OBJECT and 'type "' in str(error):
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


def _drop_columns(session: Session, found: Definition, request: TableRequest) -> None:
    if request.columns is None:
        return
    names = [column.name for column in found.columns]
    unknown = [name for name in request.columns if name not in names]
    if unknown:
        raise Refused(
            "{0} has no column {1} on the source; it has {2}.".format(
                quoted(*found.remote), enumerate_names(map(quoted, unknown)), enumerate_names(map(quoted, names), 20)
            )
        )
    drops = [compose("DROP COLUMN {name}", name=identifier(name)) for name in names if name not in request.columns]
    if drops:
        session.execute(
            compose("ALTER FOREIGN TABLE {table} {drops}", table=identifier(*found.key), drops=listed(drops))
        )


def _filter(session: Session, prober: Session, scratch: str, name: str, where: str, wanted: Import) -> bool:
    """Make the view; returns whether the source evaluates the condition."""
    label = quoted(wanted.remote, name)
    base = name + SUFFIX
    check_name("foreign table", base)
    session.execute(
        compose("ALTER FOREIGN TABLE {table} RENAME TO {base}", table=identifier(scratch, name), base=identifier(base))
    )
    rows = compose("FROM {base} AS {name}", base=identifier(scratch, base), name=identifier(name))
    session.execute("SET LOCAL search_path = pg_catalog, public, pg_temp")
    try:
        plain = compose("SELECT 1 AS one {rows}", rows=rows)
        asked = compose("{plain} WHERE {where}", plain=plain, where=expression(where))
        session.refuse_more_than_queries([asked])
        condition = _condition(session, scratch, plain, asked)
    except ServerRefused as error:
        raise Refused(
            "The condition of {0} can't be used: {1} A condition is one expression on the table's columns.".format(
                label, error
            )
        ) from None
    if condition is None:
        raise Refused("The condition of {0} is more than one expression on the table's columns.".format(label))
    session.execute("SET LOCAL search_path = pg_catalog")
    view = compose(
        "CREATE VIEW {view}{options} AS SELECT * {rows} WHERE {condition}",
        view=identifier(scratch, name),
        options=raw(" WITH (security_invoker = true)" if session.version >= _INVOKER_SINCE else ""),
        rows=rows,
        condition=raw(Pushdown(prober).rewritten(condition)),
    )
    session.execute(view)
    return pushdown.is_sent(session, compose("SELECT * FROM {view}", view=identifier(scratch, name)))


def _condition(session: Session, scratch: str, plain: Any, asked: Any) -> str | None:
    """The condition that *asked* has and *plain* hasn't, with all names qualified; None when that is not all they differ in."""
    names = {"plain": identifier(scratch, "pgml_plain"), "asked": identifier(scratch, "pgml_asked")}
    session.execute(
        compose(
            "CREATE VIEW {plain} AS {all_rows}; CREATE VIEW {asked} AS {some_rows}",
            all_rows=plain,
            some_rows=asked,
            **names,
        )
    )
    session.execute("SET LOCAL search_path = pg_catalog")
    row = session.row(
        "SELECT rtrim(pg_get_viewdef(%s::regclass), ';') AS plain, rtrim(pg_get_viewdef(%s::regclass), ';') AS asked",
        [session.text_of(name) for name in names.values()],
    )
    session.execute(compose("DROP VIEW {plain}, {asked}", **names))
    before = row.plain + "\n  WHERE "
    return row.asked[len(before) :] if row.asked.startswith(before) else None


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
