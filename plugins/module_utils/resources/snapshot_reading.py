# SPDX-License-Identifier: GPL-3.0-or-later
"""How the rows of local snapshots are read: straight from the source, or by a query that runs on the target."""

from __future__ import annotations

from typing import Any, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    arrays,
    compose,
    enumerate_names,
    expression,
    identifier,
    listed,
    literal,
    quoted,
    raw,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import foreign_link
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.foreign_imports import Item
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.foreign_server import Server
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.schedule import Key
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import chunks, snapshot
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.chunks import Extent
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.workers import Lane, Source


class Origin(NamedTuple):
    """A relation on the source whose rows are copied."""

    extent: Extent
    divisible: bool
    """whether ranges of its blocks can be read by themselves"""


class QueryLane(Lane):
    """A lane that reads queries which run on the target, with the source's part of them in a transaction that shows all rows or
    fails, as COPY does."""

    def __init__(self, source: Source, path: str, server: Server) -> None:
        super().__init__(source)
        self._path = path
        self._server = server

    def reading_session(self, endpoint: Endpoint) -> Session:
        """As in Lane."""
        if self._session is None:
            session = self._session = snapshot.reading_session(
                endpoint, search_path=self._path, client_encoding=self._source.encoding
            )
            session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            foreign_link.connect(session, self._server, row_security="off")
        return self._session


def copy_out(rows: Any, binary: bool) -> Any:
    """COPY of a query's rows to whoever asks."""
    return compose("COPY ({rows}) TO STDOUT (FORMAT {format})", rows=rows, format=raw("binary" if binary else "text"))


def as_columns(columns: Sequence[tuple[str, str]], remote: Mapping[str, str]) -> Any:
    """Columns for a query, by their *remote* names if they have others there. Casts make sure that each value is of the type that
    the staged table awaits."""
    return listed(
        [
            compose("{name}::{type}" if type_ else "{name}", name=identifier(remote.get(name, name)), type=raw(type_))
            for name, type_ in columns
        ]
    )


def in_zone(endpoint: Endpoint, zone: str) -> Endpoint:
    """The same, with the target's time zone, in which conditions without one are meant."""
    given = endpoint.keywords.get("options")
    return endpoint.with_keywords(options=" ".join(filter(None, [given, "-c timezone={0}".format(zone)])))


def read_origins(reader: Session, keys: Sequence[Key]) -> list[tuple[Origin, list[snapshot.Extant]]]:
    """The relations *keys* on the source, each with the tables that hold its rows, itself first; a view holds none."""
    found: dict[Key, tuple[Origin, list[snapshot.Extant]]] = {}
    for row in reader.rows(_ORIGINS, arrays(keys)):
        origin = Origin(Extent(row.top, row.blocks, row.bytes), row.kind == "r")
        held = found.setdefault((row.schema, row.name), (origin, []))[1]
        if row.part is not None:
            held.append((row.part, row.part_schema, row.part_name))
    missing = [key for key in keys if key not in found]
    if missing:
        raise Refused(
            "{0} {1} gone from the source: run with on_drift=reimport, and leave its snapshot out.".format(
                enumerate_names(quoted(*key) for key in missing), "is" if len(missing) == 1 else "are"
            )
        )
    return [found[key] for key in keys]


_ORIGINS = (
    "WITH RECURSIVE w AS (SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relkind AS kind"
    "  FROM unnest(%s::text[], %s::text[]) AS w(schema, name) JOIN pg_namespace AS n ON n.nspname = w.schema"
    "  JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = w.name),"
    " parts AS (SELECT oid AS top, oid, 0 AS depth FROM w WHERE kind IN ('r', 'p')"
    "  UNION SELECT p.top, i.inhrelid, p.depth + 1 FROM parts AS p JOIN pg_inherits AS i ON i.inhparent = p.oid)"
    " SELECT w.oid AS top, w.schema, w.name, w.kind,"
    "  coalesce(pg_table_size(w.oid), 0) AS bytes,"
    "  coalesce(pg_relation_size(w.oid) / current_setting('block_size')::int, 0)::int8 AS blocks,"
    "  c.oid AS part, n.nspname AS part_schema, c.relname AS part_name"
    " FROM w LEFT JOIN (parts AS p JOIN pg_class AS c ON c.oid = p.oid AND c.relkind IN ('r', 'p')"
    "  JOIN pg_namespace AS n ON n.oid = c.relnamespace) ON p.top = w.oid ORDER BY w.oid, p.depth"
)


def rows_of(item: Item, where: str | None, columns: Sequence[tuple[str, str]]) -> Any:
    """The query that has the source give the rows of *item* that fulfil *where*."""
    conditions = [expression(text) for text in (item.where, where) if text is not None]
    return compose(
        "SELECT {columns} FROM {table} WHERE {conditions}",
        columns=as_columns(columns, {column.name: column.remote for column in item.table.columns}),
        table=identifier(*item.table.remote),
        conditions=raw(" AND ").join([raw("true"), *conditions]),
    )


def in_range(rows: Any, chunk: chunks.Chunk) -> Any:
    """*rows* without those of other blocks than the chunk's."""
    bounds = []
    if chunk.first:
        bounds.append(compose("ctid >= {tid}", tid=literal("({0},0)".format(chunk.first))))
    if chunk.end is not None:
        bounds.append(compose("ctid < {tid}", tid=literal("({0},0)".format(chunk.end))))
    return raw(" AND ").join([rows, *bounds])
