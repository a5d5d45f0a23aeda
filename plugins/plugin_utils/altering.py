# SPDX-License-Identifier: GPL-3.0-or-later
"""Where each thing that an ALTER TABLE does comes in a schema change."""

from __future__ import annotations

import re
from typing import Any, Callable

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import quoted
from ansible_collections.postgresml.distributed.plugins.plugin_utils import (
    adding,
    constraining,
    ddl,
    defaults,
    loosening,
    nodes,
    partitioning,
)
from ansible_collections.postgresml.distributed.plugins.plugin_utils.placed import (
    PRIMARY_FIRST,
    READS,
    REPLICAS_FIRST,
    REWRITES,
    TOGETHER,
    Context,
    Misplaced,
    Part,
)

_TEXT = re.compile(r"(?:text|character varying(?:\((\d+)\))?)\Z")


def part(context: Context, name: str, facts: dict[str, Any], command: Any) -> Part:
    """Where one subcommand comes. Raises Misplaced."""
    subtype = nodes.option(command.subtype)
    refuse_cascade(command.behavior)
    if subtype not in _PARTS:
        words = "{0} of {1}, which is not part of what is kept equal: run it where you want it"
        raise Misplaced(words.format(_UNKEPT.get(subtype, "alters a property ({0})".format(subtype[3:])), name))
    _check_column(context, name, facts, command)
    return _PARTS[subtype](context, name, facts, command)


def _check_column(context: Context, name: str, facts: dict[str, Any], command: Any) -> None:
    """Refuse beforehand what a server would refuse in the middle of the change."""
    subtype = nodes.option(command.subtype)
    if subtype == "AT_AddColumn" and not command.missing_ok:
        listed = context.listed(name, facts)
        left_out = listed is not None and command.def_.colname not in (context.scope.columns(name) or ())
        for server in [context.base] if left_out else context.waiting:
            if adding.has_column(server, name, command.def_.colname):
                words = "adds column {0}, which {1} has already on {2}"
                raise Misplaced(words.format(quoted(command.def_.colname), name, server.host))
    if subtype in _OF_COLUMNS and facts["columns"] and not command.missing_ok:
        added = [each.def_.colname for each in context.node.cmds if nodes.option(each.subtype) == "AT_AddColumn"]
        if command.name not in facts["columns"] and command.name not in added:
            words = "is about column {0}, which {1} does not have on {2}"
            raise Misplaced(words.format(quoted(command.name), name, context.base.host))


def refuse_cascade(behavior: Any) -> None:
    if nodes.option(behavior) == "DROP_CASCADE":
        raise Misplaced(
            "has CASCADE, which would drop what depends on it, and that differs from server to server: drop that first"
        )


def _drop_column(context: Context, name: str, facts: dict[str, Any], command: Any) -> Part:
    column = command.name
    found = Part(PRIMARY_FIRST, "drops column {0} of {1}".format(quoted(column), name), columns=[column])
    if column in (context.scope.columns(name) or ()):
        raise Misplaced(
            "drops column {0} of {1}, which pgml_distributions still lists: take it out there".format(
                quoted(column), name
            )
        )
    listed = context.listed(name, facts)
    if listed and column in listed:
        found.goes, found.joins = column, True
    there = [each.relations[name] for each in context.replicas if name in each.relations]
    if any(rows_are_found_by(each, column) for each in [facts, *there]) or context.finds_by_all_columns(name):
        found.order = TOGETHER
        found.consent = "{0}, by which replication finds rows".format(found.words)
    _check_replicas(context, name, listed, command)
    if found.order == PRIMARY_FIRST:
        found.before = list(dict.fromkeys(text for each in there for text in loosening.statements(name, each, column)))
    return found


def rows_are_found_by(facts: dict[str, Any], column: str) -> bool:
    """Whether a column is in the replica identity or in the primary key, which no row can be without."""
    keys = [each.get("columns") or () for each in facts["constraints"].values() if each.get("type") == "p"]
    return column in facts["key"] or any(column in each for each in keys)


def _check_replicas(context: Context, name: str, listed: list[str] | None, command: Any) -> None:
    if command.missing_ok or listed is not None and command.name not in listed:
        return
    for replica in context.replicas:
        columns = replica.relations.get(name, {}).get("columns") or {}
        if columns and command.name not in columns:
            words = "drops column {0} of {1}, which is not on {2}: write IF EXISTS"
            raise Misplaced(words.format(quoted(command.name), name, replica.host))


def _neutral(template: str) -> Callable[[Context, str, dict[str, Any], Any], Part]:
    """What disturbs nobody, and may be there earlier on the replicas."""

    def placed(context: Context, name: str, facts: dict[str, Any], command: Any) -> Part:
        return Part(REPLICAS_FIRST, template.format(quoted(command.name), name), columns=[command.name])

    return placed


def _column_default(context: Context, name: str, facts: dict[str, Any], command: Any) -> Part:
    words = "{0} the default of column {1} of {2}".format(
        "drops" if command.def_ is None else "sets", quoted(command.name), name
    )
    return Part(_after_added(context, facts, command), words, columns=[command.name])


def _add_identity(context: Context, name: str, facts: dict[str, Any], command: Any) -> Part:
    words = "makes column {0} of {1} an identity".format(quoted(command.name), name)
    return Part(_after_added(context, facts, command), words, columns=[command.name])


def _after_added(context: Context, facts: dict[str, Any], command: Any) -> str:
    """What a column gets by default disturbs nobody, unless rows are on their way that come without the column, since this change
    has added it: they need the default that it was added with."""
    added = [each.def_.colname for each in context.node.cmds if nodes.option(each.subtype) == "AT_AddColumn"]
    is_new = facts["columns"].get(command.name, {}).get("added") or command.name in added
    return PRIMARY_FIRST if is_new else REPLICAS_FIRST


def _alter_type(context: Context, name: str, facts: dict[str, Any], command: Any) -> Part:
    definition = command.def_
    adding.check_types(context, [definition])
    words = "changes the type of column {0} of {1} to {2}".format(
        quoted(command.name), name, ddl.printed(definition.typeName).replace("pg_catalog.", "")
    )
    found = Part(TOGETHER, words, columns=[command.name])
    if definition.raw_default is not None and not facts.get("created"):
        _judge_expression(context, name, facts, command, definition.raw_default, nodes.type_name(definition.typeName))
    if _takes_only_more(facts["columns"].get(command.name, {}).get("type"), definition):
        found.words += ", without rewriting it"
        found.consent = "{0}, which locks the table for a moment".format(found.words)
        found.blocks = READS if _is_checked(facts, command.name) else None
    else:
        found.consent = "{0}, which locks the table and may rewrite it".format(words)
        found.blocks = REWRITES
    found.blocks = None if context.is_small(facts) else found.blocks
    return found


def _judge_expression(
    context: Context, name: str, facts: dict[str, Any], command: Any, expression: Any, type_name: str
) -> None:
    """Refuse what gives the rows that are there other values on each server."""
    listed = context.listed(name, facts)
    if listed is not None and command.name not in listed:
        return
    words = "gives column {0} the value {1}, which {2}"
    why = (
        "each server would compute on its own for the rows that are there: add a column instead, fill it with UPDATE in "
        "batches on the primary, then drop the old one and rename the new one"
    )
    try:
        if not defaults.differs(expression, type_name, context.primary.functions):
            return
    except defaults.NotJudged as problem:
        why = str(problem)
    raise Misplaced(words.format(quoted(command.name), ddl.printed(expression), why))


def _takes_only_more(old: Any, definition: Any) -> bool:
    """Whether all values are of the new type as they are stored: texts, with another limit that is no less."""
    held = _TEXT.match(str(old))
    new = definition.typeName
    if not held or definition.raw_default is not None or definition.collClause is not None or new.arrayBounds:
        return False
    if nodes.type_name(new) not in ("text", "varchar"):
        return False
    limit = new.typmods[0].val.ival if new.typmods else None
    return limit is None or held.group(1) is not None and limit >= int(held.group(1))


def _is_checked(facts: dict[str, Any], column: str) -> bool:
    """Whether a CHECK has to be proven anew for another type."""
    return any(
        each.get("type") == "c" and column in (each.get("columns") or ()) for each in facts["constraints"].values()
    )


def _expression(context: Context, name: str, facts: dict[str, Any], command: Any) -> Part:
    sets = nodes.option(command.subtype) == "AT_SetExpression"
    words = "{0} the expression of column {1} of {2}".format("sets" if sets else "drops", quoted(command.name), name)
    if sets:
        _judge_expression(context, name, facts, command, command.def_, "")
        consent = "{0}, which rewrites the table while it is locked".format(words)
        return Part(TOGETHER, words, consent=consent, blocks=REWRITES, columns=[command.name])
    consent = "{0}, whose values the primary sends from then on".format(words)
    return Part(TOGETHER, words, consent=consent, columns=[command.name])


def _replica_identity(context: Context, name: str, facts: dict[str, Any], command: Any) -> Part:
    words = "changes the replica identity of {0}".format(name)
    if command.def_.identity_type == "n":
        raise Misplaced(
            "takes the replica identity of {0} away, so that UPDATE and DELETE would fail on the primary".format(name)
        )
    # A new partition had better never be without one.
    order = REPLICAS_FIRST if facts.get("created") else TOGETHER
    return Part(order, words, consent="{0}, by which replication finds rows".format(words))


_OF_COLUMNS = (
    "AT_DropColumn",
    "AT_ColumnDefault",
    "AT_DropNotNull",
    "AT_SetNotNull",
    "AT_AddIdentity",
    "AT_SetIdentity",
    "AT_DropIdentity",
    "AT_SetExpression",
    "AT_DropExpression",
    "AT_AlterColumnType",
)

_PARTS: dict[str, Callable[[Context, str, dict[str, Any], Any], Part]] = {
    "AT_AddColumn": adding.add_column,
    "AT_DropColumn": _drop_column,
    "AT_ColumnDefault": _column_default,
    "AT_DropNotNull": _neutral("lets column {0} of {1} be NULL"),
    "AT_SetNotNull": constraining.set_not_null,
    "AT_AddIdentity": _add_identity,
    "AT_SetIdentity": _neutral("sets how column {0} of {1} is numbered"),
    "AT_DropIdentity": _neutral("makes column {0} of {1} no identity any more"),
    "AT_SetExpression": _expression,
    "AT_DropExpression": _expression,
    "AT_AddConstraint": constraining.add_constraint,
    "AT_ValidateConstraint": constraining.validate,
    "AT_DropConstraint": constraining.drop_constraint,
    "AT_AlterConstraint": constraining.alter_constraint,
    "AT_AlterColumnType": _alter_type,
    "AT_ReplicaIdentity": _replica_identity,
    "AT_AttachPartition": partitioning.attach,
    "AT_DetachPartition": partitioning.detach,
    "AT_DetachPartitionFinalize": partitioning.detach,
}

_UNKEPT = {
    "AT_ChangeOwner": "changes the owner",
    "AT_SetTableSpace": "changes the tablespace",
    "AT_SetRelOptions": "sets storage parameters",
    "AT_ResetRelOptions": "resets storage parameters",
    "AT_ReplaceRelOptions": "sets storage parameters",
    "AT_SetStatistics": "sets the statistics target of a column",
    "AT_SetOptions": "sets options of a column",
    "AT_ResetOptions": "resets options of a column",
    "AT_SetStorage": "sets the storage of a column",
    "AT_SetCompression": "sets the compression of a column",
    "AT_ClusterOn": "chooses the index to cluster",
    "AT_DropCluster": "chooses no index to cluster",
    "AT_SetLogged": "changes the logging",
    "AT_SetUnLogged": "changes the logging",
    "AT_SetAccessMethod": "changes the access method",
    "AT_AddInherit": "changes the inheritance",
    "AT_DropInherit": "changes the inheritance",
    "AT_AddOf": "changes the type",
    "AT_DropOf": "changes the type",
    "AT_EnableRowSecurity": "changes the row security",
    "AT_DisableRowSecurity": "changes the row security",
    "AT_ForceRowSecurity": "changes the row security",
    "AT_NoForceRowSecurity": "changes the row security",
    **{
        "AT_{0}{1}".format(verb, what): "enables or disables a {0}".format("trigger" if "Trig" in what else "rule")
        for verb in ("Enable", "Disable", "EnableAlways", "EnableReplica")
        for what in ("Trig", "TrigAll", "TrigUser", "Rule")
    },
}
