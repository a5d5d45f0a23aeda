# SPDX-License-Identifier: GPL-3.0-or-later
"""What the inventory says that a distribution holds, by the canonical names that statements are read with."""

from __future__ import annotations

from typing import Any, Mapping, NamedTuple

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import quoted
from ansible_collections.postgresml.distributed.plugins.plugin_utils import names, request


class Listed(NamedTuple):
    """A table as it is listed."""

    columns: list[str] | None
    where: str | None


class Scope:
    """An entry of pgml_distributions."""

    def __init__(self, entry: Mapping[str, Any], publication: str | None = None) -> None:
        self.name = str(entry.get("name", ""))
        self.publication = publication or request.object_name(self.name)
        self.tables = dict(_listed(each) for each in entry.get("tables") or ())
        self._schemas = [str(schema) for schema in entry.get("schemas") or ()]
        self._whole = request.is_whole_database(entry)

    def holds(self, table: str) -> bool:
        """Whether a table of this name is distributed by what is listed: by its own name, its schema, or the whole database."""
        return self._whole or table in self.tables or names.parsed(table)[0] in self._schemas

    def lists_schema(self, schema: str) -> bool:
        """Whether a schema is listed by its name."""
        return schema in self._schemas

    def columns(self, table: str) -> list[str] | None:
        """The columns that are listed of *table*; None for all of them."""
        return self.tables[table].columns if table in self.tables else None

    def where(self, table: str) -> str | None:
        """The row filter that is listed of *table*."""
        return self.tables[table].where if table in self.tables else None


def _listed(table: Any) -> tuple[str, Listed]:
    if not isinstance(table, Mapping):
        return quoted(*names.parsed(str(table))), Listed(None, None)
    columns = table.get("columns")
    where = table.get("where")
    return (
        quoted(*names.parsed(str(table.get("name")))),
        Listed([str(each) for each in columns] if columns else None, str(where) if where else None),
    )
