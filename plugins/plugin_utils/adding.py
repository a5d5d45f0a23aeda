# SPDX-License-Identifier: GPL-3.0-or-later
"""Where ADD COLUMN comes in a schema change, and which columns can't be added in one statement."""

from __future__ import annotations

from typing import Any, Iterable

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import quoted
from ansible_collections.postgresml.distributed.plugins.plugin_utils import ddl, defaults, nodes
from ansible_collections.postgresml.distributed.plugins.plugin_utils.catalog import Catalog
from ansible_collections.postgresml.distributed.plugins.plugin_utils.placed import (
    PRIMARY_ONLY,
    READS,
    REPLICAS_FIRST,
    REWRITES,
    TOGETHER,
    Context,
    Misplaced,
    Part,
)

_ON_ITS_OWN = (
    "adds {0} with {1}: write that as a statement of its own, ALTER TABLE .. ADD .., so that it comes in its own time"
)
_VOLATILE = (
    "gives column {0} {1}, which each server would compute on its own for the rows that are there: add the column without it, "
    "set it as the default, then fill the column with UPDATE in batches on the primary"
)


def check_types(context: Context, definitions: Iterable[Any]) -> None:
    """Refuse types that a replica doesn't know."""
    for definition in definitions:
        name = nodes.type_name(definition.typeName) if definition.typeName is not None else ""
        lacking = [each.host for each in context.replicas if name in context.base.types and name not in each.types]
        if lacking:
            raise Misplaced("uses type {0}, which is not on {1}: create it there".format(name, " and ".join(lacking)))


def add_column(context: Context, name: str, facts: dict[str, Any], command: Any) -> Part:
    """Where a new column comes: on the replicas first, unless rows without it could be refused there or missed."""
    definition = command.def_
    check_types(context, [definition])
    words = "adds column {0} to {1}".format(quoted(definition.colname), name)
    found = Part(REPLICAS_FIRST, words, columns=[definition.colname])
    _place_by_list(context, name, facts, definition.colname, found)
    if context.is_apart(facts):
        return found
    if command.missing_ok and all(has_column(each, name, definition.colname) for each in context.waiting):
        found.words = "does nothing, because {0} has column {1} already".format(name, quoted(definition.colname))
        return found
    _refuse_inline(definition)
    computed = nodes.constraints(definition, "CONSTR_GENERATED") or _is_domain(context, definition)
    if _needs_a_value(definition) and not (computed or facts.get("empty")) and context.base is context.primary:
        raise Misplaced(
            "{0} NOT NULL and without a default, though there are rows, or were until VACUUM: give it one, or add it without NOT "
            "NULL, fill it with UPDATE in batches on the primary, then SET NOT NULL".format(words)
        )
    _judge_default(context, definition, found)
    if not context.is_small(facts):
        _weigh(context, name, definition, found)
    if found.order == PRIMARY_ONLY:
        found.pin = None
    elif found.pin is not None:
        _refuse_half_there(context, name, command)
        found.order = TOGETHER
        found.pin = command
        found.reason = "the rows that are there get the value that the primary gave them"
    elif _may_refuse_rows(context, definition):
        found.order = TOGETHER
        found.reason = "it may refuse rows that come without it"
    elif _is_filled(definition) and context.finds_by_all_columns(name):
        found.order = TOGETHER
        found.reason = "rows are found by all of their columns"
    return found


def has_column(server: Catalog, name: str, column: str) -> bool:
    """Whether a server's table has a column."""
    return column in server.relations.get(name, {}).get("columns", {})


def _refuse_half_there(context: Context, name: str, command: Any) -> None:
    """Where some servers have the column already, the others can't be told what its rows got."""
    lacking = [each.host for each in context.waiting if not has_column(each, name, command.def_.colname)]
    if command.missing_ok and len(lacking) < len(context.waiting):
        words = (
            "adds column {0} to {1} where it does not exist, which is on {2} only: run pgml_schema first, or drop it"
        )
        raise Misplaced(words.format(quoted(command.def_.colname), name, " and ".join(lacking)))


def _needs_a_value(definition: Any) -> bool:
    """Whether there can be no row without a value of the column, and it has no default."""
    return bool(nodes.constraints(definition, "CONSTR_NOTNULL")) and not _is_filled(definition)


def _may_refuse_rows(context: Context, definition: Any) -> bool:
    """Whether a new column can stop rows that were written without it."""
    generated = nodes.constraints(definition, "CONSTR_GENERATED")
    return bool(
        _needs_a_value(definition)
        or nodes.constraints(definition, "CONSTR_CHECK")
        or generated
        and generated[0].generated_kind != "v"
        or _is_domain(context, definition)
    )


def _is_domain(context: Context, definition: Any) -> bool:
    return context.base.types.get(nodes.type_name(definition.typeName), {}).get("kind") == "d"


def _place_by_list(context: Context, name: str, facts: dict[str, Any], column: str, found: Part) -> None:
    if context.listed(name, facts) is None:
        return
    if column in (context.scope.columns(name) or ()):
        found.columns = ()
        found.comes = column
        found.joins = True
    else:
        found.order = PRIMARY_ONLY
        found.reason = "{0} is distributed by columns, and {1} is not listed".format(name, quoted(column))


def _refuse_inline(definition: Any) -> None:
    for kind, words in (
        ("CONSTR_UNIQUE", "UNIQUE"),
        ("CONSTR_PRIMARY", "PRIMARY KEY"),
        ("CONSTR_FOREIGN", "REFERENCES"),
    ):
        if nodes.constraints(definition, kind):
            raise Misplaced(_ON_ITS_OWN.format("column {0}".format(quoted(definition.colname)), words))
    if nodes.constraints(definition, "CONSTR_IDENTITY"):
        raise Misplaced(_VOLATILE.format(quoted(definition.colname), "numbers of its own"))
    if nodes.type_name(definition.typeName) in nodes.SERIALS:
        raise Misplaced(_VOLATILE.format(quoted(definition.colname), "numbers of its own"))


def _is_filled(definition: Any) -> bool:
    """Whether the rows that are there get a value by the definition's default."""
    expression = nodes.default(definition)
    return expression is not None and not (nodes.kind(expression) == "A_Const" and expression.isnull)


def _judge_default(context: Context, definition: Any, found: Part) -> None:
    type_name = nodes.type_name(definition.typeName)
    expression = nodes.default(definition)
    if expression is None:
        if context.base.types.get(type_name, {}).get("has_default") and found.order != PRIMARY_ONLY:
            words = (
                "adds column {0} of {1}, whose own default each server would compute for the rows that are there: write a "
                "DEFAULT"
            )
            raise Misplaced(words.format(quoted(definition.colname), type_name))
        return
    try:
        judged = defaults.judge(expression, type_name, context.primary.functions)
    except defaults.NotJudged as problem:
        raise Misplaced("adds column {0}, whose default {1}".format(quoted(definition.colname), problem)) from problem
    if judged == defaults.VOLATILE and found.order != PRIMARY_ONLY:
        raise Misplaced(_VOLATILE.format(quoted(definition.colname), "the default {0}".format(ddl.printed(expression))))
    if judged == defaults.STABLE:
        # Also of an empty table, into which rows may come until the primary has the column.
        if _is_domain(context, definition):
            raise Misplaced(
                _VOLATILE.format(quoted(definition.colname), "the default {0}".format(ddl.printed(expression)))
            )
        found.pin = definition


def _weigh(context: Context, name: str, definition: Any, found: Part) -> None:
    generated = nodes.constraints(definition, "CONSTR_GENERATED")
    volatile = (
        nodes.default(definition) is not None and found.order == PRIMARY_ONLY and _is_volatile(context, definition)
    )
    if generated and generated[0].generated_kind != "v" or _is_domain(context, definition) or volatile:
        found.blocks = REWRITES
        found.consent = "{0}, which rewrites the table while it is locked".format(found.words)
    elif nodes.constraints(definition, "CONSTR_CHECK"):
        found.blocks = READS
        found.consent = (
            "{0} with a CHECK, which reads the whole table while it is locked: add the column first, then the CHECK NOT VALID, "
            "then VALIDATE it"
        ).format(found.words)


def _is_volatile(context: Context, definition: Any) -> bool:
    return any(context.primary.functions.get(name) == "v" for name in nodes.functions(nodes.default(definition)))
