# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of a schema change for a person who approves it: both sides beside each other, in the order of the changes."""

from __future__ import annotations

import textwrap
from typing import Any, Iterable, Iterator, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.plugin_utils import nodes
from ansible_collections.postgresml.distributed.plugins.plugin_utils.ddl import Statement
from ansible_collections.postgresml.distributed.plugins.plugin_utils.placed import (
    BUILDS,
    PRIMARY_FIRST,
    PRIMARY_ONLY,
    READS,
    REPLICAS_FIRST,
    REWRITES,
    TOGETHER,
    Placed,
)
from ansible_collections.postgresml.distributed.plugins.plugin_utils.replica_text import shown

WIDTH = 60
_WARNINGS = {
    READS: "locks {0} while it is read",
    REWRITES: "locks {0} while it is rewritten",
    BUILDS: "blocks {1} {0} while the index is built",
}
_HEADINGS = {
    REPLICAS_FIRST: "replicas first",
    PRIMARY_FIRST: "primary first",
    TOGETHER: "together",
    PRIMARY_ONLY: "on the primary only",
}


def lines(
    plan: Mapping[str, Any],
    done: Sequence[Statement],
    groups: Sequence[Sequence[Placed]],
    distribution: str,
    primary: str,
    replicas: Sequence[str],
) -> list[str]:
    """The view, a string for each line."""
    title = "Schema change {0} of distribution {1}, {2}".format(
        plan["change"], distribution, _count(plan["total"], "statement")
    )
    found = [title, "", *_row("replicas ({0})".format(", ".join(replicas)), "primary ({0})".format(primary))]
    found.append("-" * WIDTH + "-+-" + "-" * WIDTH)
    for statement in done:
        found += _row(
            "-- {0} is done already".format(statement.label), "-- {0} is done already".format(statement.label)
        )
    for number, group in enumerate(groups, 1):
        found += ["", *_step(number, group)]
    if plan["joins"]:
        found += [
            "",
            "Then tables that came are published, their rows copied and waited for, and tables that went forgotten",
        ]
    return [line.rstrip() for line in [*found, "", *_closing(plan, done, groups)]]


def _step(number: int, group: Sequence[Placed]) -> Iterator[str]:
    order = group[0].order
    yield "Step {0}, {1}".format(number, _HEADINGS[order])
    for each in group:
        yield from _remarks(each)
    before = list(dict.fromkeys(text for each in group for text in each.before))
    theirs = [(each.statement.number, shown(each)) for each in group if each.on == "both"]
    ours = [(each.statement.number, each.primary) for each in group]
    for text in before:
        yield from _row("   {0};".format(text), "")
    if order == REPLICAS_FIRST:
        yield from _rows(theirs, left=True)
        yield from _rows(ours, left=False)
        return
    yield from _rows(ours, left=False)
    if order == PRIMARY_FIRST:
        yield from _row("-- wait until all rows up to here are applied", "")
    elif order == TOGETHER:
        yield from _row("-- apply stops here", "")
    if order != PRIMARY_ONLY:
        yield from _rows(theirs, left=True)
    if order == TOGETHER:
        yield from _row("-- and goes on", "")


def _remarks(placed: Placed) -> Iterator[str]:
    text = "{0} {1}".format(placed.statement.label, placed.words)
    notes = [placed.reason, *placed.warnings]
    if placed.blocks and placed.table:
        notes.append(_WARNINGS[placed.blocks].format(placed.table, _waiting(placed)))
    elif placed.blocks:
        notes.append("locks the tables that have it while they are read")
    if placed.concurrently:
        notes.append("runs outside of a transaction")
    remark = "  {0}{1}".format(text, "".join("; {0}".format(note) for note in notes if note))
    yield from textwrap.wrap(
        remark, 2 * WIDTH + 3, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )


def _rows(texts: Iterable[tuple[int, str]], left: bool) -> Iterator[str]:
    for number, text in texts:
        shown = "{0:>2} {1};".format(number, text)
        yield from _row(shown, "") if left else _row("", shown)


def _row(left: str, right: str) -> list[str]:
    columns = [_wrapped(left), _wrapped(right)]
    height = max(len(column) for column in columns)
    for column in columns:
        column += [""] * (height - len(column))
    return ["{0:<{2}} | {1}".format(one, other, WIDTH) for one, other in zip(*columns)]


def _wrapped(text: str) -> list[str]:
    """*text* in lines that fit, those of the user kept."""
    found: list[str] = []
    for line in text.expandtabs(4).splitlines() or [""]:
        indent = "   " + " " * (len(line) - len(line.lstrip())) if found else "   "
        found += textwrap.wrap(
            line,
            WIDTH,
            initial_indent="   " if found else "",
            subsequent_indent=indent,
            break_on_hyphens=False,
            drop_whitespace=True,
        ) or [""]
    return found or [""]


def _closing(plan: Mapping[str, Any], done: Sequence[Statement], groups: Sequence[Sequence[Placed]]) -> Iterator[str]:
    counted = "{0}, {1}".format(_count(plan["total"], "statement"), _count(len(groups), "step"))
    if done:
        counted += ", {0} done already".format(len(done))
    waits = []
    for each in (each for group in groups for each in group):
        if each.blocks:
            verb = {READS: "reads", REWRITES: "rewrites", BUILDS: "builds an index on"}[each.blocks]
            waits.append(
                "{0} {1} wait while statement {2} {3} it".format(
                    _waiting(each), each.table or "its tables", each.statement.number, verb
                )
            )
    yield "; ".join([counted, *waits]) + "."


def _waiting(placed: Placed) -> str:
    """What waits for a statement that takes its time: ALTER TABLE keeps readers out, too, unless it only adds a foreign key."""
    node = placed.statement.node
    commands = node.cmds if nodes.kind(node) == "AlterTableStmt" else ()
    adds = [each.def_ for each in commands if nodes.option(each.subtype) == "AT_AddConstraint"]
    keys = [each for each in adds if nodes.option(each.contype) == "CONSTR_FOREIGN"]
    return "writes to" if len(keys) == len(commands) else "reads and writes of"


def _count(number: int, noun: str) -> str:
    return "{0} {1}{2}".format(number, noun, "" if number == 1 else "s")
