# SPDX-License-Identifier: GPL-3.0-or-later
"""Where CREATE TABLE comes in a schema change, and which tables can't come that way."""

from __future__ import annotations

from typing import Any, Iterator

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    enumerate_names,
    quoted,
)
from ansible_collections.postgresml.distributed.plugins.plugin_utils import (
    adding,
    catalog,
    constraining,
    identities,
    nodes,
    partitioning,
)
from ansible_collections.postgresml.distributed.plugins.plugin_utils.placed import (
    REPLICAS_FIRST,
    Context,
    Misplaced,
    Part,
)


def create_table(context: Context) -> tuple[str | None, list[Part]]:
    """A table comes first on the replicas: the first row that the primary sends has to find it. Raises Misplaced."""
    node = context.node
    name = nodes.relation(node.relation)
    problems = list(_problems(context, name))
    if problems:
        raise Misplaced("\n".join("creates {0}, {1}".format(name, words) for words in problems))
    definitions = [each for each in node.tableElts or () if nodes.kind(each) == "ColumnDef"]
    adding.check_types(context, definitions)
    parents = [nodes.relation(each) for each in node.inhRelations or ()]
    words = "creates table {0}".format(name) + (" as partition of {0}".format(parents[0]) if parents else "")
    part = Part(REPLICAS_FIRST, words, joins=True)
    root = context.base.relations.get(parents[0], {}) if parents else {}
    if root and not node.partbound.is_default and not context.is_apart(root):
        partitioning.beside_default(context, root.get("default"), part, True)
    return None, [part]


def _problems(context: Context, name: str) -> Iterator[str]:
    node = context.node
    if node.relation.relpersistence == "t":
        yield "which is temporary, and gone with its session"
        return
    if node.relation.relpersistence == "u":
        yield "which is UNLOGGED, and what is not logged is not replicated"
    if node.inhRelations and node.partbound is None:
        yield "which inherits from another, and rows of both would be taken for those of one: use partitions"
    if node.ofTypename is not None:
        yield "which has its columns of a type: write them out"
    if node.tablespacename:
        yield "which is put into a tablespace, and that is not part of what is kept equal: leave it out"
    yield from _whether_it_is_there(context, name)
    yield from _whether_it_is_inside(context, name)
    yield from _what_is_not_listed(context, name)
    yield from _what_it_refers_to(context, name)
    if not _finds_rows(context, name):
        yield (
            "which has no primary key, or a DEFERRABLE one, so that UPDATE and DELETE would fail on the primary once it is "
            "published: give it one, or set its REPLICA IDENTITY in a later statement"
        )


def _whether_it_is_there(context: Context, name: str) -> Iterator[str]:
    held = context.base.relations.get(name)
    if held is not None and not context.node.if_not_exists and not (held.get("created") and context.base.done):
        yield "which exists already on {0}".format(context.base.host)
    for replica in context.replicas:
        there = replica.relations.get(name)
        if there is not None and held is None and not (context.node.if_not_exists and there.get("empty")):
            yield "which exists already on {0}".format(replica.host)


def _whether_it_is_inside(context: Context, name: str) -> Iterator[str]:
    node = context.node
    if node.inhRelations and node.partbound is not None:
        parent = nodes.relation(node.inhRelations[0])
        facts = context.base.relations.get(parent)
        if facts is None:
            yield "as a partition of {0}, which does not exist on {1}".format(parent, context.base.host)
        elif not context.is_inside(facts):
            yield "as a partition of {0}, which is not in distribution {1}".format(parent, context.scope.name)
    elif not (context.scope.holds(name) or _is_attached_later(context, name)):
        yield "which is not in distribution {0}: list it in pgml_distributions first".format(context.scope.name)


def _what_is_not_listed(context: Context, name: str) -> Iterator[str]:
    """Rows come without the columns that are not listed, which a replica's table could refuse."""
    listed = context.scope.columns(name)
    made = [each.colname for each in context.node.tableElts or () if nodes.kind(each) == "ColumnDef"]
    left_out = [quoted(each) for each in made if listed is not None and each not in listed]
    if left_out:
        yield (
            "of which pgml_distributions doesn't list {0}: create it on the primary and run distribute.yml, which brings the "
            "columns that are listed"
        ).format(enumerate_names(left_out))


def _is_attached_later(context: Context, name: str) -> bool:
    for each in context.later:
        if nodes.kind(each.node) != "AlterTableStmt":
            continue
        for command in each.node.cmds:
            if nodes.option(command.subtype) == "AT_AttachPartition" and nodes.relation(command.def_.name) == name:
                parent = context.base.relations.get(nodes.relation(each.node.relation))
                return parent is not None and context.is_inside(parent)
    return False


def _what_it_refers_to(context: Context, name: str) -> Iterator[str]:
    for element in context.node.tableElts or ():
        if nodes.kind(element) == "TableLikeClause":
            model = nodes.relation(element.relation)
            lacking = [each.host for each in context.replicas if model not in each.relations]
            partial = [each.host for each in context.replicas if _columns(context.base, model) - _columns(each, model)]
            if model not in context.base.relations:
                yield "like {0}, which does not exist on {1}".format(model, context.base.host)
            elif lacking:
                yield "like {0}, which is not on {1}: write the columns out".format(model, " and ".join(lacking))
            elif partial:
                yield "like {0}, of which not all columns are on {1}: write them out".format(
                    model, " and ".join(partial)
                )
            continue
        held = element.constraints if nodes.kind(element) == "ColumnDef" else [element]
        for constraint in held or ():
            if nodes.kind(constraint) == "Constraint" and nodes.option(constraint.contype) == "CONSTR_FOREIGN":
                yield from _foreign_key(context, name, constraint)


def _columns(server: catalog.Catalog, table: str) -> set[str]:
    return set(server.relations.get(table, {}).get("columns") or ())


def _foreign_key(context: Context, name: str, constraint: Any) -> Iterator[str]:
    part = Part(REPLICAS_FIRST, "")
    try:
        constraining.place_foreign_key(context, name, constraint, part)
    except Misplaced as problem:
        yield "which {0}".format(problem)
        return
    if part.reason:
        yield "which references {0}, and {1}: add the foreign key by ALTER TABLE, a statement that stays on the primary".format(
            nodes.relation(constraint.pktable), part.reason
        )


def _finds_rows(context: Context, name: str) -> bool:
    """Whether the table will have something to find rows by, as far as UPDATE and DELETE are published at all."""
    publish = context.primary.publication.get("publish")
    if publish is not None and not {"update", "delete"} & set(publish):
        return True
    if context.node.if_not_exists and name in context.base.relations:
        return True
    imagined = catalog.Catalog(context.base.host, {})
    imagined.relations = {key: facts for key, facts in context.base.relations.items() if key != name}
    imagined.run(context.node)
    if imagined.relations.get(name, {}).get("key"):
        return True
    return any(_gives_a_key(context, each.node, name) for each in context.later)


def _gives_a_key(context: Context, node: Any, name: str) -> bool:
    if nodes.kind(node) != "AlterTableStmt":
        return False
    on_it = nodes.relation(node.relation) == name
    for command in node.cmds:
        subtype = nodes.option(command.subtype)
        if subtype == "AT_AddConstraint" and on_it and nodes.option(command.def_.contype) == "CONSTR_PRIMARY":
            return not command.def_.deferrable
        if subtype == "AT_ReplicaIdentity" and on_it and command.def_.identity_type in ("f", "i"):
            return True
        if subtype == "AT_AttachPartition" and nodes.relation(command.def_.name) == name:
            root = context.base.relations.get(nodes.relation(node.relation))
            return bool(root and identities.key_of_partitions(root))
    return False
