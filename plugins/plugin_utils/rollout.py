# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of a schema change: its statements in steps, each with the side that comes first."""

from __future__ import annotations

from typing import Any, Iterable, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.resources import change_progress
from ansible_collections.postgresml.distributed.plugins.plugin_utils import ddl, elsewhere, nodes, plan_text
from ansible_collections.postgresml.distributed.plugins.plugin_utils.catalog import Catalog, identity_columns
from ansible_collections.postgresml.distributed.plugins.plugin_utils.ddl import Statement
from ansible_collections.postgresml.distributed.plugins.plugin_utils.placed import (
    PRIMARY_ONLY,
    TOGETHER,
    Context,
    Misplaced,
    Placed,
)
from ansible_collections.postgresml.distributed.plugins.plugin_utils.placing import place, unagreed
from ansible_collections.postgresml.distributed.plugins.plugin_utils.scope import Scope


def schema_change_plan(
    mentions: Mapping[str, Any],
    primary: Mapping[str, Any],
    replicas: Mapping[str, Mapping[str, Any]],
    listed: Mapping[str, Any],
    allow_disruptive: bool = False,
    primary_name: str = "the primary",
    publication: str | None = None,
) -> dict[str, Any]:
    """What filter schema_change_plan returns. Raises AnsibleFilterError with every statement that can't be placed."""
    statements = ddl.again(mentions["statements"], mentions.get("lines") or [None] * len(mentions["statements"]))
    scope = Scope(listed, publication)
    servers = [Catalog(primary_name, primary), *(Catalog(host, result) for host, result in replicas.items())]
    given_up = _given_up(mentions["change"], servers)
    ddl.refuse("Another schema change comes first", list(_unfinished(mentions["change"], servers, given_up)))
    _count_newcomers(servers)
    ddl.refuse("These statements were run before", list(_run_before(mentions["change"], len(statements), servers)))
    placed = _placed(statements, servers, scope, bool(allow_disruptive))
    done = len(statements) - len(placed)
    phases = [_phase(group) for group in _grouped(placed)]
    plan = {
        "change": mentions["change"],
        "total": len(statements),
        "gate": any(phase["order"] == TOGETHER for phase in phases),
        "joins": any(each.joins for each in placed) or any(_comes_or_goes(each.node) for each in statements),
        "disruptive": any(each.consents for each in placed),
        "phases": phases,
        "abandon": given_up,
    }
    plan["lines"] = plan_text.lines(plan, statements[:done], _grouped(placed), scope.name, primary_name, list(replicas))
    return plan


def _unfinished(change: str, servers: Sequence[Catalog], given_up: Sequence[str]) -> Iterable[str]:
    """Other changes that have not come to their end on some server, each with how far it is on all that know of it."""
    others = [server.other for server in servers if server.other]
    totals = {other["change"]: other["total"] for other in others if other["change"] not in (change, *given_up)}
    for other, total in totals.items():
        done = [(_done_of(other, total, server), server.host) for server in servers]
        where = [
            "{0} of {1}{2} on {3}".format(number, total, "" if place else " statements done", host)
            for place, (number, host) in enumerate(each for each in done if each[0] is not None)
        ]
        yield "change {0} is unfinished, with {1}. {2}".format(
            other, _enumerated(where), change_progress.way_out(other)
        )


def _done_of(change: str, total: int, server: Catalog) -> int | None:
    """How many statements of another change a server has done, if it knows of it."""
    if change in server.finished:
        return total
    return int(server.other["done"]) if server.other and server.other["change"] == change else None


def _enumerated(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _run_before(change: str, total: int, servers: Sequence[Catalog]) -> Iterable[str]:
    """Statements that were run to their end count as done only while no others were run since, which may have undone them."""
    finished = list(servers[0].finished)
    if change in finished[:-1] and all(server.done >= total for server in servers):
        yield (
            "as change {0}, and others since. To run them once more, give that another name, with -e "
            "pgml_schema_change_id=NAME.".format(change)
        )


def _given_up(change: str, servers: Sequence[Catalog]) -> list[str]:
    """Other changes that were begun nowhere: servers have been told of them, and no more."""
    others = [server.other for server in servers if server.other and server.other.get("change") != change]
    begun = {other.get("change") for other in others if other.get("done") or other.get("begun")}
    begun.update(done for server in servers for done in server.finished)
    return list(dict.fromkeys(str(other["change"]) for other in others if other.get("change") not in begun))


def _count_newcomers(servers: Sequence[Catalog]) -> None:
    """A replica that joined after the change was begun got its definitions from the primary. It doesn't know of the change,
    while all that take part were told before the first statement."""
    for replica in servers[1:]:
        if replica.known is False:
            replica.done = servers[0].done


def _placed(statements: Sequence[Statement], servers: Sequence[Catalog], scope: Scope, allowed: bool) -> list[Placed]:
    """The statements that are left to do on some server, with their places."""
    found: list[Placed] = []
    problems: list[str] = []
    misplaced = False
    received = {name for server in servers[1:] for name, facts in server.relations.items() if facts.get("distributed")}
    finding = [
        (facts, identity_columns(facts)) for facts in servers[0].relations.values() if elsewhere.has_to_find_rows(facts)
    ]
    for number, statement in enumerate(statements):
        waiting = [server for server in servers if server.done < statement.number]
        for server in servers:
            if server not in waiting:
                server.remember(statement.node, received)
        if not waiting:
            continue
        replicas = [server for server in waiting if server is not servers[0]]
        context = Context(statement, servers[0], replicas, waiting[0], scope, statements[number + 1 :])
        on: Sequence[Catalog] = waiting
        try:
            placed = place(context)
        except Misplaced as problem:
            misplaced = True
            problems += ["{0} {1}.".format(statement.label, words) for words in str(problem).split("\n")]
        else:
            found.append(placed)
            if not allowed and servers[0] in waiting:
                problems += ["{0} {1}.".format(statement.label, words) for words in unagreed(placed)]
            on = [server for server in waiting if server is servers[0] or placed.order != PRIMARY_ONLY]
        for server in on:
            server.run(statement.node)
    if not misplaced:
        problems += ["{0}.".format(words) for words in elsewhere.left_without_identity(servers[0], finding, scope)]
    if any(each.order == TOGETHER for each in found):
        problems += ["{0}.".format(words) for words in elsewhere.gate_is_published(servers[0])]
    ddl.refuse("The schema change can't be rolled out", problems)
    return found


def _grouped(placed: Sequence[Placed]) -> list[list[Placed]]:
    """Neighbours of the same order; what has to have a transaction of its own is alone."""
    groups: list[list[Placed]] = []
    for each in placed:
        last = groups[-1][-1] if groups else None
        if last is not None and last.order == each.order and not (each.alone or last.alone):
            groups[-1].append(each)
        else:
            groups.append([each])
    return groups


def _phase(group: Sequence[Placed]) -> dict[str, Any]:
    return {
        "order": group[0].order,
        "first": group[0].statement.number,
        "last": group[-1].statement.number,
        "statements": [
            {
                "number": each.statement.number,
                "sql": each.statement.text,
                "words": each.words,
                "on": each.on,
                "transactional": each.transactional,
                "reason": each.reason,
            }
            for each in group
        ],
        "primary": [_run(each, each.primary) for each in group],
        "replicas": [_run(each, each.replica if each.on == "both" else None) for each in group],
        "before": list(dict.fromkeys(text for each in group for text in each.before)),
        "pins": [pin for each in group for pin in each.pins],
        "why": "; ".join(each.words for each in group),
    }


def _run(placed: Placed, sql: str | None) -> dict[str, Any]:
    return {"number": placed.statement.number, "sql": sql, "transactional": placed.transactional or sql is None}


def _comes_or_goes(node: Any) -> bool:
    """Whether tables come or go by a statement, also one that is done: a run that broke off may not have got to that."""
    kind = nodes.kind(node)
    if kind == "CreateStmt":
        return True
    if kind == "DropStmt":
        return nodes.option(node.removeType) == "OBJECT_TABLE"
    return kind == "AlterTableStmt" and any("Partition" in nodes.option(each.subtype) for each in node.cmds)
