# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to go on a replica before rows come without a column, because it would refuse them."""

from __future__ import annotations

from typing import Any, Iterator, Mapping

from ansible_collections.postgresml.distributed.plugins.plugin_utils import ddl


def statements(name: str, facts: Mapping[str, Any], column: str) -> Iterator[str]:
    """The statements that let rows of a table come without *column*; more than once they do no harm. Its default stays: nothing
    is left that could refuse that."""
    if _rejects_rows_without(facts, column):
        tree = ddl.parsed("ALTER TABLE {0} ALTER COLUMN c DROP NOT NULL".format(ddl.exact(name)))
        tree.cmds[0].name = column
        yield ddl.printed(tree)
    indexes = facts.get("indexes") or {}
    for constraint, each in facts["constraints"].items():
        columns = [*(each.get("columns") or ()), *indexes.get(constraint, {}).get("columns", ())]
        if each.get("type") in ("c", "u", "x") and column in columns:
            yield _without_constraint(name, constraint)
    for index, each in indexes.items():
        if each.get("unique") and column in each["columns"] and index not in facts["constraints"]:
            yield _without_index(name, index)
    for each in facts.get("within") or ():
        if column in each["columns"]:
            yield (_without_index if each["type"] == "i" else _without_constraint)(each["table"], each["name"])


def _rejects_rows_without(facts: Mapping[str, Any], column: str) -> bool:
    held = facts["columns"].get(column, {})
    return bool(held.get("not_null")) and not any(held.get(key) for key in ("has_default", "generated", "identity"))


def _without_constraint(table: str, name: str) -> str:
    tree = ddl.parsed("ALTER TABLE {0} DROP CONSTRAINT IF EXISTS c".format(ddl.exact(table)))
    tree.cmds[0].name = name
    return ddl.printed(tree)


def _without_index(table: str, name: str) -> str:
    return ddl.printed(ddl.parsed("DROP INDEX IF EXISTS {0}".format(ddl.exact(ddl.beside(table, name)))))
