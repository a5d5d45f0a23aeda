# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a statement comes in a schema change: replicas first, primary first, all together, or the primary only."""

from __future__ import annotations

from typing import Any, Callable, Iterable

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import quoted
from ansible_collections.postgresml.distributed.plugins.plugin_utils import (
    altering,
    clashes,
    constraining,
    creating,
    ddl,
    elsewhere,
    names,
    nodes,
    objects,
)
from ansible_collections.postgresml.distributed.plugins.plugin_utils.placed import (
    BUILDS,
    CONSENT,
    PRIMARY_FIRST,
    PRIMARY_ONLY,
    REPLICAS_FIRST,
    TOGETHER,
    Context,
    Misplaced,
    Part,
    Placed,
)
from ansible_collections.postgresml.distributed.plugins.plugin_utils.replica_text import (
    afterwards,
    locking,
    pinned,
    republished,
)


def place(context: Context) -> Placed:
    """Where the statement of *context* comes. Raises Misplaced with all that is wrong with it, a line for each."""
    handler = _HANDLERS.get(nodes.kind(context.node))
    if handler is None:
        raise Misplaced(objects.refusal(context.node))
    table, parts = handler(context)
    facts = context.base.relations.get(table or "", {})
    if context.base is context.primary:
        elsewhere.refuse_shared(context)
    for part in parts:
        _place_by_columns(context, table, facts, part)
        _place_apart(context, facts, part)
    placed = _merged(context, table, parts)
    clashes.refuse(context, placed.order)
    return placed


def _place_by_columns(context: Context, table: str | None, facts: dict[str, Any], part: Part) -> None:
    """What is about a column that isn't distributed is the primary's own matter."""
    listed = context.listed(table, facts) if table else None
    left_out = [each for each in part.columns if listed is not None and each not in listed]
    if left_out:
        part.order = PRIMARY_ONLY
        part.reason = "{0} is distributed by columns, and {1} is not listed".format(
            table, " and ".join(quoted(each) for each in left_out)
        )


def _place_apart(context: Context, facts: dict[str, Any], part: Part) -> None:
    """A table that this change makes has no rows on their way, and nobody who waits for it."""
    if facts.get("created") and part.order != PRIMARY_ONLY:
        part.consent = part.blocks = None
        part.warnings = []
        if context.is_apart(facts):
            part.order = REPLICAS_FIRST
        elif part.order == TOGETHER:
            part.order = PRIMARY_FIRST


def _merged(context: Context, table: str | None, parts: list[Part]) -> Placed:
    orders = {part.order for part in parts}
    consents = [part.consent for part in parts if part.consent]
    words = ", ".join(part.words for part in parts)
    if PRIMARY_ONLY in orders and len(orders) > 1:
        raise Misplaced(
            "mixes what the replicas hold with what they don't ({0}): write them as statements of their own".format(
                words
            )
        )
    if PRIMARY_FIRST in orders and len(orders) > 1 and not consents:
        why = "of which some would come first on the replicas and some on the primary: write them as statements of their own"
        consents.append("{0}, {1}".format(words, why))
    order = orders.pop() if len(orders) == 1 else TOGETHER
    text = context.statement.text
    placed = Placed(context.statement, order, words, table, text, text)
    placed.consents = consents
    placed.reason = "; ".join(dict.fromkeys(part.reason for part in parts if part.reason))
    placed.blocks = next((part.blocks for part in parts if part.blocks), None)
    placed.alone = placed.blocks is not None or any(part.pin is not None for part in parts) or _goes_alone(context.node)
    placed.joins = any(part.joins for part in parts)
    placed.concurrently = next((part.concurrently for part in parts if part.concurrently), {})
    placed.before = [each for part in parts for each in part.before] if order == PRIMARY_FIRST else []
    placed.warnings = [warning for part in parts for warning in part.warnings]
    # A rerun can't tell otherwise which statement of a step it goes before.
    placed.alone = placed.alone or bool(placed.before) or any(part.alone for part in parts)
    if order == TOGETHER:
        placed.replica, placed.pins = pinned(context, table, parts)
    elif order == PRIMARY_FIRST:
        placed.replica = afterwards(context)
    placed.primary = locking(parts) + republished(context, table, parts)
    return placed


def _goes_alone(node: Any) -> bool:
    """Whether a statement had better not share a transaction: VALIDATE reads the table under a weak lock, which is of no use
    when a stronger one is held; and a label that ADD VALUE has made can't be used before it is committed."""
    if nodes.kind(node) == "AlterEnumStmt":
        return node.oldVal is None
    return nodes.kind(node) == "AlterTableStmt" and any(
        nodes.option(each.subtype) == "AT_ValidateConstraint" for each in node.cmds
    )


def _alter_table(context: Context) -> tuple[str | None, list[Part]]:
    node = context.node
    kind = nodes.option(node.objtype)
    if kind == "OBJECT_TYPE":
        return None, objects.alter_composite(context)
    name = nodes.relation(node.relation)
    if kind not in ("OBJECT_TABLE", "OBJECT_INDEX"):
        raise Misplaced("alters {0}, which is not part of what is kept equal: run it where you want it".format(name))
    facts = context.table(name, node.missing_ok)
    if facts is None:
        return None, [context.absent(name)]
    if facts.get("kind") in ("i", "I"):
        return name, objects.alter_index(context, name)
    if facts.get("kind") == "S":
        raise Misplaced("alters sequence {0} as a table: use ALTER SEQUENCE".format(name))
    return name, _parts(context, name, facts, node.cmds)


def _parts(context: Context, name: str, facts: dict[str, Any], commands: Iterable[Any]) -> list[Part]:
    parts, problems = [], []
    for command in commands:
        try:
            parts.append(altering.part(context, name, facts, command))
        except Misplaced as problem:
            problems.append(str(problem))
    if problems:
        raise Misplaced("\n".join(problems))
    return parts


_PIECE_BY_PIECE = (
    "CREATE INDEX .. ON ONLY {0}, then CREATE INDEX CONCURRENTLY on each partition, and ALTER INDEX .. ATTACH PARTITION for "
    "each of them"
)


def _create_index(context: Context) -> tuple[str | None, list[Part]]:
    node = context.node
    name = nodes.relation(node.relation)
    facts = context.table(name)
    words = "builds {0}index {1} on {2}".format(
        "unique " if node.unique else "", quoted(node.idxname) if node.idxname else "without a name", name
    )
    part = Part(PRIMARY_FIRST, words)
    expressions = [each.expr for each in node.indexParams or ()] + [node.whereClause]
    elements = (*(node.indexParams or ()), *(node.indexIncludingParams or ()))
    part.columns = [each.name for each in elements if each.name] + nodes.columns(*expressions)
    if node.tableSpace:
        raise Misplaced("{0} in a tablespace, and that is not part of what is kept equal: leave it out".format(words))
    if node.concurrent and not node.idxname:
        raise Misplaced("builds an index CONCURRENTLY that has no name: give it one, so that a rerun can find it")
    if node.concurrent:
        part.concurrently = {"builds": ddl.beside(name, node.idxname)}
    if node.concurrent and facts and facts.get("kind") == "p":
        raise Misplaced(
            "builds an index CONCURRENTLY on {0}, which is partitioned, and that PostgreSQL can't do: {1}".format(
                name, _PIECE_BY_PIECE.format(name)
            )
        )
    if facts and facts.get("kind") == "p" and not node.relation.inh:
        part.words = words.replace(" on ", " on only ")
    elif not node.concurrent and not context.is_small(facts):
        part.blocks = BUILDS
        part.consent = "{0}, which blocks writes until it is built: write CREATE INDEX CONCURRENTLY".format(words)
        if facts and facts.get("kind") == "p":
            part.consent = "{0}, which blocks writes until it is built on every partition: {1}".format(
                words, _PIECE_BY_PIECE.format(name)
            )
    return name, [part]


def _rename(context: Context) -> tuple[str | None, list[Part]]:
    node = context.node
    what = nodes.option(node.renameType)
    if what in ("OBJECT_TYPE", "OBJECT_DOMAIN", "OBJECT_ATTRIBUTE", "OBJECT_DOMCONSTRAINT"):
        return None, objects.rename_type(context)
    if what not in ("OBJECT_TABLE", "OBJECT_INDEX", "OBJECT_SEQUENCE", "OBJECT_COLUMN", "OBJECT_TABCONSTRAINT"):
        raise Misplaced("renames what is not part of what is kept equal: run it where you want it")
    altering.refuse_cascade(node.behavior)
    name = nodes.relation(node.relation)
    if (
        nodes.option(node.relationType) in ("OBJECT_VIEW", "OBJECT_MATVIEW", "OBJECT_FOREIGN_TABLE")
        and what == "OBJECT_COLUMN"
    ):
        raise Misplaced(
            "is about {0}, which is a view and not part of what is kept equal: run it where you want it".format(name)
        )
    held = context.base.relations.get(name, {})
    if held.get("kind") == "S":
        return None, [
            objects.of_sequence(context, name, "renames sequence {0} to {1}".format(name, quoted(node.newname)))
        ]
    facts = context.table(name, node.missing_ok)
    if facts is None:
        return None, [context.absent(name)]
    if what == "OBJECT_COLUMN":
        return name, [_rename_column(context, name, facts)]
    if what == "OBJECT_TABCONSTRAINT":
        return name, [_rename_constraint(context, name, facts)]
    if facts.get("kind") in ("i", "I"):
        words = "renames index {0} to {1}".format(name, quoted(node.newname))
        return name, [objects.of_index(context, name, Part(PRIMARY_FIRST, words), node.missing_ok)]
    return name, [_rename_table(context, name, quoted(names.parsed(name)[0], node.newname))]


def _rename_column(context: Context, name: str, facts: dict[str, Any]) -> Part:
    old, new = context.node.subname, context.node.newname
    words = "renames column {0} of {1} to {2}".format(quoted(old), name, quoted(new))
    published = context.listed(name, facts)
    left_out = published is not None and old not in published
    for server in [context.base] if left_out else context.waiting:
        columns = server.relations.get(name, {}).get("columns") or {}
        if columns and (old not in columns or new in columns):
            why = (
                "has no column {0}".format(quoted(old))
                if old not in columns
                else "has column {0} already".format(quoted(new))
            )
            raise Misplaced("{0}, but {1} {2} on {3}".format(words, name, why, server.host))
    listed = context.scope.columns(name)
    where = ddl.parsed_if_it_can_be("SELECT {0}".format(context.scope.where(name) or "true"))
    if listed and old in listed or old in nodes.columns(where):
        raise Misplaced("{0}, but pgml_distributions lists the old name: write the new one there".format(words))
    if published and old in published and new not in (listed or (new,)):
        raise Misplaced("{0}, but pgml_distributions doesn't list the new name: write it there".format(words))
    return Part(TOGETHER, words, consent="{0}, so that the old name fails from then on".format(words), columns=[old])


def _rename_constraint(context: Context, name: str, facts: dict[str, Any]) -> Part:
    node = context.node
    words = "renames constraint {0} of {1} to {2}".format(quoted(node.subname), name, quoted(node.newname))
    return constraining.kept_from_replicas(context, name, facts, node.subname, Part(PRIMARY_FIRST, words))


def _rename_table(context: Context, old: str, new: str) -> Part:
    words = "renames table {0} to {1}".format(old, new)
    parent = context.base.relations[old].get("parent")
    if old in context.scope.tables:
        raise Misplaced("{0}, but pgml_distributions lists the old name: write the new one there".format(words))
    if not (parent or context.scope.holds(new)):
        raise Misplaced(
            "{0}, which would take it out of distribution {1}: list the new name in pgml_distributions".format(
                words, context.scope.name
            )
        )
    for server in context.waiting:
        if new in server.relations:
            raise Misplaced("{0}, which exists already on {1}".format(words, server.host))
    return Part(TOGETHER, words, consent="{0}, so that the old name fails from then on".format(words))


def _change_schema(context: Context) -> tuple[str | None, list[Part]]:
    node = context.node
    what = nodes.option(node.objectType)
    if what in ("OBJECT_TYPE", "OBJECT_DOMAIN"):
        return None, objects.move_type(context)
    if what not in ("OBJECT_TABLE", "OBJECT_SEQUENCE"):
        raise Misplaced("moves what is not part of what is kept equal: run it where you want it")
    name = nodes.relation(node.relation)
    new = quoted(node.newschema, node.relation.relname)
    if context.base.relations.get(name, {}).get("kind") == "S":
        return None, [
            objects.of_sequence(context, name, "moves sequence {0} to schema {1}".format(name, quoted(node.newschema)))
        ]
    if context.table(name, node.missing_ok) is None:
        return None, [context.absent(name)]
    return name, [_rename_table(context, name, new)]


def _single(handler: Callable[[Context], list[Part]]) -> Callable[[Context], tuple[str | None, list[Part]]]:
    """For what is about no table."""
    return lambda context: (None, handler(context))


_HANDLERS: dict[str, Callable[[Context], tuple[str | None, list[Part]]]] = {
    "AlterTableStmt": _alter_table,
    "IndexStmt": _create_index,
    "RenameStmt": _rename,
    "AlterObjectSchemaStmt": _change_schema,
    "CreateStmt": creating.create_table,
    "DropStmt": objects.drop,
    "CreateEnumStmt": _single(objects.create_type),
    "CompositeTypeStmt": _single(objects.create_type),
    "CreateRangeStmt": _single(objects.create_type),
    "CreateDomainStmt": _single(objects.create_type),
    "CreateSchemaStmt": _single(objects.create_schema),
    "CreateSeqStmt": _single(objects.create_sequence),
    "CreateExtensionStmt": _single(objects.create_extension),
    "AlterEnumStmt": _single(objects.alter_enum),
    "AlterDomainStmt": _single(objects.alter_domain),
    "AlterSeqStmt": _single(objects.alter_sequence),
}


def unagreed(placed: Placed) -> list[str]:
    """What a statement does that the user has not agreed to, as words that follow its label."""
    return ["{0}; if that may be, {1}".format(words, CONSENT) for words in placed.consents]
