# SPDX-License-Identifier: GPL-3.0-or-later
"""What pgml_fdw imports for a request of tables, schemas, or a whole database, as the other strategies take it."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from ansible.errors import AnsibleFilterError
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import quoted
from ansible_collections.postgresml.distributed.plugins.plugin_utils import names


def foreign_imports(
    tables: Sequence[Any],
    schemas: Sequence[str] = (),
    exclude_tables: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """The option C(imports) of pgml_fdw, each import with *settings*. A table that is listed is not imported again with its
    schema, where it would come without its filter and its columns."""
    listed = [_parsed(table.get("name") if isinstance(table, Mapping) else table, "tables") for table in tables]
    excluded = [_parsed(name, "exclude_tables") for name in exclude_tables]
    whole = not tables and not schemas
    astray = [quoted(*key) for key in excluded if not whole and key[0] not in schemas]
    if astray:
        raise AnsibleFilterError(
            "exclude_tables: {0} is in none of the schemas that are asked for.".format(", ".join(sorted(astray)))
        )
    found: list[dict[str, Any]] = [{"tables": list(tables)}] if tables else []
    for schema in schemas:
        left = dict.fromkeys(quoted(*key) for key in [*excluded, *listed] if key[0] == schema)
        found.append({"remote_schema": schema, "except": list(left)})
    if whole:
        found.append({"except": [quoted(*key) for key in excluded]})
    return [{**each, **(settings or {})} for each in found]


def _parsed(name: Any, option: str) -> tuple[str, str]:
    if not isinstance(name, str) or not names.is_name(name):
        raise AnsibleFilterError(
            "{0}: {1!r} is no table's name: write it as in SQL, with double quotes around parts that hold capitals, spaces, "
            "dots or quotes.".format(option, name)
        )
    return names.parsed(name)
