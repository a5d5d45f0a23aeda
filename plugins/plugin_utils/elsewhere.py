# SPDX-License-Identifier: GPL-3.0-or-later
"""What a schema change would do to those who have no part in it: subscribers of others, and who updates rows."""

from __future__ import annotations

from typing import Any, Iterator, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    enumerate_names,
    quoted,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import change_indexes
from ansible_collections.postgresml.distributed.plugins.plugin_utils import ddl, names, nodes
from ansible_collections.postgresml.distributed.plugins.plugin_utils.catalog import (
    Catalog,
    finds_rows,
    identity_columns,
)
from ansible_collections.postgresml.distributed.plugins.plugin_utils.placed import Context, Misplaced
from ansible_collections.postgresml.distributed.plugins.plugin_utils.scope import Scope

_UNSEEN = (
    "AT_ColumnDefault",
    "AT_SetNotNull",
    "AT_AddIdentity",
    "AT_SetIdentity",
    "AT_DropIdentity",
    "AT_AddConstraint",
    "AT_ValidateConstraint",
    "AT_AlterConstraint",
)
"""What subscribers that keep their old definition don't notice"""


def refuse_shared(context: Context) -> None:
    """Refuse to change what rows look like that other publications carry too: their subscribers don't change with it."""
    for name, publications in _shared(context):
        if publications:
            words = (
                "is about {0}, which is also published by {1}, whose subscribers would stop: take it out there first"
            )
            raise Misplaced(words.format(name, enumerate_names(publications)))


def _shared(context: Context) -> Iterator[tuple[str, Sequence[str]]]:
    node = context.node
    kind = nodes.kind(node)
    if kind in ("AlterEnumStmt", "AlterDomainStmt"):
        if kind == "AlterEnumStmt" or node.subtype in ("N", "X"):
            yield _of_type(context, nodes.of_strings(node.typeName))
    elif kind == "AlterTableStmt" and nodes.option(node.objtype) == "OBJECT_TYPE":
        yield _of_type(context, nodes.relation(node.relation))
    elif _alters_rows(node, kind):
        yield _of_table(context, nodes.relation(node.relation))
    elif kind == "DropStmt" and nodes.option(node.removeType) == "OBJECT_TABLE":
        for name in nodes.dropped(node):
            yield _of_table(context, name)
    elif kind == "CreateStmt":
        yield from _of_new_table(context, node)


def _alters_rows(node: Any, kind: str) -> bool:
    """Whether a statement about one relation changes what subscribers are sent, or by which name."""
    if kind == "AlterTableStmt":
        return any(nodes.option(each.subtype) not in _UNSEEN or _is_key(each.def_) for each in node.cmds)
    if kind == "RenameStmt":
        return nodes.option(node.renameType) in ("OBJECT_TABLE", "OBJECT_COLUMN") and node.relation is not None
    return kind == "AlterObjectSchemaStmt" and node.relation is not None


def _is_key(definition: Any) -> bool:
    return nodes.kind(definition) == "Constraint" and nodes.option(definition.contype) == "CONSTR_PRIMARY"


def _of_table(context: Context, name: str) -> tuple[str, Sequence[str]]:
    facts = context.primary.relations.get(name, {})
    return name, () if facts.get("kind") in ("i", "I", "S") else facts.get("publications") or ()


def _of_type(context: Context, name: str) -> tuple[str, Sequence[str]]:
    return "type {0}".format(name), context.primary.types.get(name, {}).get("publications") or ()


def _of_new_table(context: Context, node: Any) -> Iterator[tuple[str, Sequence[str]]]:
    name = nodes.relation(node.relation)
    if name in context.primary.relations:
        return
    others = context.primary.publication.get("others") or {}
    yield name, others.get("all_tables") or ()
    yield name, (others.get("schemas") or {}).get(names.parsed(name)[0]) or ()
    for parent in node.inhRelations or ():
        yield _of_table(context, nodes.relation(parent))


def gate_is_published(primary: Catalog) -> Iterator[str]:
    """Why there can be no gate: subscribers of others would be sent the row for a table that they don't have."""
    for name in (primary.publication.get("others") or {}).get("all_tables") or ():
        words = "publication {0} is for all tables, so that its subscribers would stop"
        yield (
            words.format(quoted(name))
            + " at the row by which the replicas know when: list the tables of that publication instead"
        )


def has_to_find_rows(facts: Mapping[str, Any]) -> bool:
    """Whether UPDATE and DELETE of a table would be missed."""
    return bool(facts.get("distributed") and facts.get("kind") in ("r", "p") and finds_rows(facts))


def _uncovered(scope: Scope, name: str, facts: Mapping[str, Any]) -> Iterator[str]:
    """Why rows of a table can't be updated or deleted although it has a replica identity, see
    https://www.postgresql.org/docs/current/logical-replication-row-filter.html and -col-lists.html."""
    found_by = identity_columns(facts)
    listed, where = scope.columns(name), scope.where(name)
    filtered = nodes.columns(ddl.parsed_if_it_can_be("SELECT {0}".format(where))) if where else []
    for columns, words in (
        ([each for each in found_by if listed and each not in listed], "its list of columns is without {0}: list it"),
        (
            [each for each in filtered if found_by and each not in found_by],
            "its row filter is about {0}: filter by columns of the key",
        ),
    ):
        if columns:
            yield "rows of {0} would be found by {1}, and {2}, or UPDATE and DELETE fail on the primary".format(
                name, enumerate_names(found_by), words.format(enumerate_names(columns))
            )


def left_without_identity(
    primary: Catalog, finding: Sequence[tuple[Mapping[str, Any], list[str]]], scope: Scope
) -> Iterator[str]:
    """The tables that could be updated before, and can't be after the whole change; with each, what its rows were found by."""
    publish = primary.publication.get("publish")
    if publish is not None and not {"update", "delete"} & set(publish):
        return
    for name, facts in primary.relations.items():
        before = next((columns for each, columns in finding if each is facts), None)
        if before is None:
            continue
        if not finds_rows(facts):
            words = "{0} would have no replica identity afterwards, so that UPDATE and DELETE fail on the primary"
            yield words.format(name) + ": add a primary key, or set its REPLICA IDENTITY, in the same change"
        elif before != identity_columns(facts):
            yield from _uncovered(scope, name, facts)


def refuse_unreadable(text: str, index: str, table: str | None) -> None:
    """Refuse a name of an index that is written in a way that the servers' modules don't read, as with U&."""
    found = change_indexes.parse(text)
    name = names.parsed(index)[1]
    if found is None or found.name[-1] != name or table is not None and found.table[-1] != names.parsed(table)[1]:
        raise Misplaced(
            "is about index {0}, which is named in a way that a rerun could not read: write {0}, without U& and without comments "
            "in the statement".format(quoted(name))
        )
