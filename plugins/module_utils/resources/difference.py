# SPDX-License-Identifier: GPL-3.0-or-later
"""One thing that source and target don't have the same way: what it breaks, and what mends it."""

from __future__ import annotations

from typing import Any, Mapping, NamedTuple

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

RELEASE, LOOSEN, COLUMN, TYPE, TIGHTEN, ATTACH = range(6)
"""The order in which the statements of one table run: out of the way first, back in place last."""


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
    statements: tuple[Any, ...] = ()
    """psycopg2.sql.Composable"""
    mended_by: str | None = None
    """the least of MODES that mends it"""
    remedy: str = ""
    """what the statements do, in words"""
    rank: int = COLUMN
    """when among the statements of its object"""
    owner: tuple[str, str] | None = None
    """the table"""


class Sides(NamedTuple):
    """A table as source and target define it, and what the request takes of it."""

    table: Table
    source: Structure
    target: Structure
    columns: Mapping[str, Column]
    """of the source, which arrive or are generated"""
    others: Mapping[str, Column]
    """of the target"""
    binary: bool
    missing: Mapping[str, str]
    """column -> what rows have that were there when it was added"""

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


def sides_of(table: Table, source: Structure, target: Structure, binary: bool, missing: Mapping[str, str]) -> Sides:
    """Both sides of *table*, as far as it is asked for."""
    columns = source.columns
    if table.columns is not None:
        columns = {name: columns[name] for name in table.columns if name in columns}
    return Sides(table, source, target, columns, target.columns, binary, missing)
