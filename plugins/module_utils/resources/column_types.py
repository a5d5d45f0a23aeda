# SPDX-License-Identifier: GPL-3.0-or-later
"""The types that columns of tables have, brought from the source without the tables."""

from __future__ import annotations

import os
import tempfile
from typing import Any, Iterable, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.archive import Archive, as_pattern, picked
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.client_tools import RunCommand
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    compose,
    enumerate_names,
    identifier,
    quoted,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import definitions, tables

BARE = ("--no-comments", "--no-privileges")
"""What pg_dump leaves out of the definitions."""

_RELATION, _TYPE, _NAMESPACE = 1259, 1247, 2615
"""The numbers of pg_class, pg_type and pg_namespace, the same on every server."""


class Lack(NamedTuple):
    """What the target lacks of the types and of what these need."""

    types: Sequence[int]
    """all that are needed, on the source"""
    objects: Sequence[tuple[int, int]]
    """(catalog, object), on the source"""
    words: Sequence[str]
    """what of it is made by a statement of its own, such as C(type public.mood), in order"""
    left_out: Sequence[dict[str, str]]


def read(source: Session, session: Session | None, params: Mapping[str, Any]) -> Lack:
    """What the target lacks of the types of the tables that the options name, and of what these types need."""
    starts = [(_TYPE, oid) for oid in _of_columns(source, params)]
    needed = definitions.needed_objects(source, starts)
    there = definitions.existing(session, needed.values()) if session else set()
    lacking = {identity: words for identity, words in needed.items() if words not in there}
    rows_of_tables = _rows_of_tables(source, [oid for catalog, oid in lacking if catalog == _TYPE])
    own = _with_statements(source, lacking)
    return Lack(
        [oid for catalog, oid in needed if catalog == _TYPE],
        list(lacking),
        sorted((lacking[identity] for identity in own), key=lambda words: (_rank(words), words)),
        [
            {"name": name, "table": name, "reason": "it is the row type of a table, which is not brought"}
            for name in rows_of_tables
        ],
    )


def _of_columns(source: Session, params: Mapping[str, Any]) -> list[int]:
    """The types of the columns of the tables and views that the options name, as far as users made them."""
    requests = tables.parse_requests(params["tables"]) or []
    named = dict(zip(tables.parse_names(source, [request.name for request in requests]), requests))
    excluded = set(tables.parse_names(source, params["exclude_tables"])) - set(named)
    meant = {
        table.oid: named[table.key].columns if table.key in named else None
        for table in tables.importable(source, list(named), params["schemas"], params["all_tables"])
        if table.key not in excluded
    }
    columns = source.rows(
        "SELECT attrelid, attname, atttypid FROM pg_attribute"
        " WHERE attrelid = ANY(%s) AND attnum > 0 AND NOT attisdropped AND atttypid >= 16384",
        [list(meant)],
    )
    return sorted({row.atttypid for row in columns if row.attname in (meant[row.attrelid] or [row.attname])})


def _rows_of_tables(source: Session, oids: Sequence[int]) -> list[str]:
    """Those of the types *oids* that came with a table or a view."""
    return [
        quoted(row.schema, row.name)
        for row in source.rows(
            "SELECT n.nspname AS schema, c.relname AS name FROM pg_type AS t JOIN pg_class AS c ON c.oid = t.typrelid"
            " JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE t.oid = ANY(%s) AND c.relkind <> 'c' ORDER BY 1, 2",
            [list(oids)],
        )
    ]


def _with_statements(source: Session, objects: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those of *objects* that are not a part of another one, as array types and the members of extensions are."""
    catalogs, oids = [list(column) for column in zip(*objects)] or [[], []]
    return [
        (row.classid, row.objid)
        for row in source.rows(
            "SELECT o.classid, o.objid FROM unnest(%s::oid[], %s::oid[]) AS o(classid, objid)"
            " WHERE o.classid NOT IN ('pg_constraint'::regclass, 'pg_attrdef'::regclass) AND NOT EXISTS ("
            "  SELECT FROM pg_depend AS d WHERE d.classid = o.classid AND d.objid = o.objid AND d.objsubid = 0"
            "  AND d.deptype IN ('i', 'e'))",
            [catalogs, oids],
        )
    ]


def _rank(words: str) -> int:
    """What comes first: schemas, then extensions."""
    kind = words.split(" ", 1)[0]
    return ("schema", "extension").index(kind) if kind in ("schema", "extension") else 2


def refuse_unfit(source: Session, session: Session, lack: Lack) -> None:
    """Refuse extensions that the target's server doesn't have, and enums that are there and lack labels, so that not all rows
    could be read."""
    extensions = [words.split(" ", 1)[1] for words in lack.words if words.startswith("extension ")]
    definitions.refuse_missing_extensions(session, extensions)
    there = definitions.labels(session)
    for name, labels in sorted(definitions.labels(source, lack.types).items()):
        lacking = labels - there.get(name, labels)
        if lacking:
            raise Refused(
                "Type {0} lacks {1} on the target: add it there with ALTER TYPE ... ADD VALUE.".format(
                    name, enumerate_names(map(repr, lacking))
                )
            )


def statements(source: Session, session: Session, lack: Lack, run_command: RunCommand) -> list[Any]:
    """What creates on the target what it lacks, in order."""
    if not lack.words:
        return []
    schemas = definitions.schemas(source, [oid for catalog, oid in lack.objects if catalog == _NAMESPACE])
    scripts: list[Any] = [compose("CREATE SCHEMA {name}", name=identifier(name)) for name in schemas]
    sequences = definitions.sequences(source, [oid for catalog, oid in lack.objects if catalog == _RELATION])
    others = {identity for identity in lack.objects if identity[0] != _NAMESPACE}
    with tempfile.TemporaryDirectory(prefix="pgml-") as directory:
        for name, arguments in (
            # A domain's default may take one.
            ("sequences", ["--table=" + as_pattern(*key) for key in sorted(sequences)]),
            ("types", ["--exclude-table=*.*"]),
        ):
            if arguments:
                archive = Archive(os.path.join(directory, name), source.version // 10000, run_command)
                archive.dump(source.endpoint, [*BARE, *arguments])
                scripts.append(archive.script(picked(archive.entries(), others, ()), session.version).whole)
    return scripts
