# SPDX-License-Identifier: GPL-3.0-or-later
"""What a schema change would do to those who have no part in it: subscribers of others, and who updates rows."""

from __future__ import annotations

from typing import Any, Iterator, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    enumerate_names,
    quoted,
)
from ansible_collections.postgresml.distributed.plugins.plugin_utils import ddl, identities, names, nodes
from ansible_collections.postgresml.distributed.plugins.plugin_utils.catalog import Catalog
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


def updated(primary: Catalog, scope: Scope) -> list[tuple[Mapping[str, Any], list[str]]]:
    """The tables whose rows can be found, so that UPDATE and DELETE would be missed, with what is unfit about them already."""
    return [
        (facts, list(_unfit(primary, scope, name)))
        for name, facts in primary.relations.items()
        if facts.get("distributed") and facts.get("kind") in ("r", "p") and identities.finds_rows(facts)
    ]


def left_without_identity(
    primary: Catalog, scope: Scope, before: Sequence[tuple[Mapping[str, Any], list[str]]]
) -> Iterator[str]:
    """The tables that could be updated *before*, and can't be after the whole change."""
    publish = primary.publication.get("publish")
    if publish is not None and not {"update", "delete"} & set(publish):
        return
    for name, facts in primary.relations.items():
        known = next((unfit for each, unfit in before if each is facts), None)
        if known is None:
            continue
        if not identities.finds_rows(facts):
            words = "{0} would have no replica identity afterwards, so that UPDATE and DELETE fail on the primary"
            yield words.format(name) + ": add a primary key, or set its REPLICA IDENTITY, in the same change"
            continue
        for words in _unfit(primary, scope, name):
            if words not in known:
                yield "{0} would have {1}, so that UPDATE and DELETE fail on the primary".format(name, words)


def _unfit(primary: Catalog, scope: Scope, name: str) -> Iterator[str]:
    """Why the server would refuse to update a published table that has a replica identity."""
    facts = primary.relations[name]
    identity = identities.columns(facts)
    if identity is None or facts.get("kind") == "p" and not primary.publication.get("via_partition_root"):
        return
    listed = {*facts["listed"], *(scope.columns(name) or ())} if facts.get("listed") else identity
    if identity - listed:
        yield "a column list without {0} of its replica identity".format(_enumerated(identity - listed))
    tree = ddl.parsed_if_it_can_be("SELECT {0}".format(scope.where(name) or "true"))
    outside = set(nodes.columns(tree)) - identity
    if outside:
        yield "a row filter on {0}, not in its replica identity".format(_enumerated(outside))


def _enumerated(columns: set[str]) -> str:
    return enumerate_names(quoted(each) for each in columns)
