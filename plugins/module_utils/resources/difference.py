# SPDX-License-Identifier: GPL-3.0-or-later
"""One thing that source and target don't have the same way: what it breaks, and what mends it."""

from __future__ import annotations

from typing import Any, Collection, Mapping, NamedTuple

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    compose,
    identifier,
    quoted,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.structures import Column, Structure
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.tables import Table

APPLY, PRIMARY, HARMLESS = "breaks_apply", "breaks_primary", "harmless"
CLASSES = (APPLY, PRIMARY, HARMLESS)

CREATE, ADD, ALTER = "create_missing", "apply_additive", "apply"
MODES = (CREATE, ADD, ALTER)
"""Each does what those before it do."""

UNREFER, RELEASE, LOOSEN, COLUMN, TYPE, TIGHTEN, BUILD, REFER, ATTACH, IDENTIFY = range(10)
"""The order in which statements run: foreign keys and what is in the way first, back in place last."""

_VIRTUAL_COLUMNS_SINCE = 180000


class Difference(NamedTuple):
    """One thing that source and target don't have the same way."""

    breaks: str
    """one of CLASSES"""
    kind: str
    object: str
    """as in SQL"""
    name: str | None
    source: str | None
    target: str | None
    words: str
    steps: tuple[tuple[int, Any], ...] = ()
    """(when, statement), what mends it"""
    mended_by: str | None = None
    """the least of MODES that mends it"""
    remedy: str = ""
    """what the statements do, in words"""
    owner: tuple[str, str] | None = None
    """the table"""
    dumped: bool = False
    """whether pg_dump has what mends it"""
    unfit: bool = False
    """whether it keeps the table from being taken for the source's"""
    doubtful: bool = False
    """whether rows that are there may have other values on the source when it is mended"""

    @property
    def statements(self) -> tuple[Any, ...]:
        return tuple(statement for _when, statement in self.steps)


class Servers(NamedTuple):
    """What holds for all tables of source and target."""

    source_version: int
    target_version: int
    domains: Mapping[str, str]
    """domain -> what it is based on"""
    own_types: Collection[str]
    """the types that users made"""


class Sides(NamedTuple):
    """A table as source and target define it, and what the request takes of it."""

    table: Table
    source: Structure
    target: Structure
    columns: Mapping[str, Column]
    """of the source, which arrive or are generated"""
    others: Mapping[str, Column]
    """of the target"""
    servers: Servers
    binary: bool
    """whether rows arrive in binary format"""
    missing: Mapping[str, str]
    """column -> what rows have that were there when it was added"""
    places: tuple[Mapping[str, int], Mapping[str, int]]
    """column -> the how-manieth it is, on source and target, where that is of interest"""

    def found(
        self, breaks: str, kind: str, name: str | None, values: tuple[Any, Any], words: str, **rest: Any
    ) -> Difference:
        source, target = (None if value is None else str(value) for value in values)
        text = "{0} of {1} {2}".format(quoted(name), self.table.label, words) if name is not None else words
        return Difference(
            breaks,
            kind,
            self.table.label,
            name,
            source,
            target,
            "{0} {1}".format(kind, text) if name is not None else text,
            **{"owner": self.table.key, **rest},
        )

    def alter(self, action: str, **parts: Any) -> Any:
        return compose(
            "ALTER TABLE {table} {action}", table=identifier(*self.table.key), action=compose(action, **parts)
        )


def columns_of(table: Table, source: Structure, published_generated: bool, target_version: int) -> dict[str, Column]:
    """The source's columns as the target has to have them."""
    columns = source.columns
    names = columns if table.columns is None else [name for name in table.columns if name in columns]
    return {name: _as_arriving(columns[name], published_generated, target_version) for name in names}


def _as_arriving(column: Column, published_generated: bool, target_version: int) -> Column:
    """Generated columns are made anew by the target, unless they are published. With a NOT NULL that isn't valid there may be
    NULL."""
    if column.unvalidated:
        column = column._replace(not_null=False)
    if column.generated == "s" and published_generated:
        return column._replace(generated="", default=None)
    if column.generated == "v" and target_version < _VIRTUAL_COLUMNS_SINCE:
        return column._replace(generated="s")
    return column
