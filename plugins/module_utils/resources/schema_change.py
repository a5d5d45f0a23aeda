# SPDX-License-Identifier: GPL-3.0-or-later
"""One server's part of a schema change, carried out once."""

from __future__ import annotations

import time
from typing import Any, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused, TimedOut
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import subscribed
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import SOURCE_OPTIONS, Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import quoted
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import (
    change_facts,
    change_following,
    change_gate,
    change_pins,
    change_progress,
    change_settings,
    subscription,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.change_following import Subscriber
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.change_progress import Holder, Progress
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.change_running import Part, Run
from ansible_collections.postgresml.distributed.plugins.module_utils.task import Task

OPTIONS: dict[str, Any] = {
    "publication": {"type": "str"},
    "subscription": {"type": "str"},
    "source": {"type": "dict", "options": SOURCE_OPTIONS},
    "change": {"type": "str", "required": True},
    "total": {"type": "int", "required": True},
    "statements": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "number": {"type": "int", "required": True},
            "sql": {"type": "str"},
            "builds": {"type": "str"},
            "drops": {"type": "str"},
        },
        "mutually_exclusive": [("builds", "drops")],
    },
    "before": {"type": "list", "elements": "str", "default": []},
    "together": {"type": "bool", "default": False},
    "wait_for": {"type": "str"},
    "pins": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "mark": {"type": "str", "required": True},
            "table": {"type": "str", "required": True},
            "column": {"type": "str", "required": True},
        },
    },
    "begin": {"type": "int"},
    "abandon": {"type": "list", "elements": "str", "default": []},
    "abandon_unbegun": {"type": "list", "elements": "str", "default": []},
    "settings": {"type": "dict", "default": {}},
    "caught_up_within": {"type": "int"},
    "relations": {"type": "list", "elements": "str", "default": []},
    "types": {"type": "list", "elements": "str", "default": []},
    "functions": {"type": "list", "elements": "str", "default": []},
    "lock_timeout": {"type": "int", "default": 2000},
    "timeout": {"type": "int", "default": 600},
    "state": {"type": "str", "choices": ["present", "prepared", "finished"], "default": "present"},
}

FOR_REPLICAS = ("before", "pins", "settings", "wait_for", "caught_up_within")

CONSTRAINTS: dict[str, Any] = {
    "mutually_exclusive": [("publication", "subscription")],
    "required_one_of": [("publication", "subscription")],
}


def manage(task: Task) -> None:
    """Bring the server's part of the task's change to its state."""
    _check(task.params)
    with task.session() as session:
        session.without_timeouts()
        if task.params["publication"] is not None:
            _on_upstream(task, session)
        else:
            _on_replica(task, session)


def _check(params: Mapping[str, Any]) -> None:
    change_progress.check_id(params["change"])
    for option, least in (("total", 1), ("lock_timeout", 1), ("timeout", 0)):
        if params[option] < least:
            raise Refused("{0} is {1}: the least is {2}.".format(option, params[option], least))
    numbers = [statement["number"] for statement in params["statements"]]
    if numbers and numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        raise Refused("statements are numbered {0}: they have to follow one another.".format(numbers))
    if numbers and not 1 <= numbers[0] <= numbers[-1] <= params["total"]:
        raise Refused("statements are numbered {0}, and total is {1}.".format(numbers, params["total"]))
    change_settings.check(params["settings"])
    given = [option for option in FOR_REPLICAS if params[option]]
    if params["publication"] is not None and given:
        raise Refused("{0} is for replicas, and goes with subscription.".format(given[0]))


def _on_upstream(task: Task, session: Session) -> None:
    params = task.params
    name = params["publication"]
    if not session.value("SELECT count(*) FROM pg_publication WHERE pubname = %s", [name]):
        raise Refused("There is no publication {0} in {1}.".format(quoted(name), session.endpoint))
    holder = Holder(session, "publication", name)
    change_gate.refuse_foreign(session, [name])
    gate = change_gate.of_publication(name)
    if params["state"] == "prepared":
        _apply(task, session, change_gate.plan_upstream(session, name))
    elif params["state"] == "finished":
        _apply(task, session, change_gate.plan_removal(session, gate, replica=False))
    else:
        part = Part(holder, gate if params["together"] else None)
        _present(task, session, part)
        task.result["settings"] = change_settings.read(session)
        if params["statements"] and not task.check_mode:
            with Session(session.endpoint, synchronous_commit="local") as marking:
                task.result["lsn"] = subscribed.mark(marking)


def _on_replica(task: Task, session: Session) -> None:
    params = task.params
    current = subscription.read(session, params["subscription"])
    if current is None or current.placeholder:
        raise Refused(
            "{0} has no subscription {1} that is ready: run distribute.yml first.".format(
                session.endpoint.title, quoted(params["subscription"])
            )
        )
    subscriber = Subscriber(
        current.oid,
        current.name,
        current.slot_name,
        bool(current.enabled),
        str(current.owner),
        sorted(current.publications or ()),
    )
    change_gate.refuse_foreign(session, subscriber.publications, subscriber.owner)
    if params["state"] == "prepared":
        _prepare_replica(task, session, subscriber)
    elif params["state"] == "finished":
        _finish_replica(task, session, subscriber)
    else:
        _refuse_what_cant_follow(task, session, subscriber)
        _present(task, session, _part_of_replica(task, session, subscriber))


def _refuse_what_cant_follow(task: Task, session: Session, subscriber: Subscriber) -> None:
    """Refuse a replica that would stop a change midway, if it is asked for that."""
    params = task.params
    if params["caught_up_within"] is None:
        return
    if not params["source"]:
        raise Refused("source is needed for caught_up_within: it says what is to be caught up with.")
    change_settings.refuse_foreign(session, params["settings"])
    source = Endpoint.from_source(params["source"])
    try:
        change_following.refuse_stopped(session, source, subscriber, params["caught_up_within"])
    except TimedOut as error:
        if not change_gate.is_waited_at(session, subscriber):
            raise
        raise TimedOut(
            "{0} Its worker stands at the gate of a schema change that has stopped: run that to its end, for it can't be given "
            "up any more.".format(error)
        ) from None


def _part_of_replica(task: Task, session: Session, subscriber: Subscriber) -> Part:
    gate = change_gate.of_subscription(session, subscriber.publications) if task.params["together"] else None
    return Part(Holder(session, "subscription", subscriber.name), gate, subscriber)


def _apply(task: Task, session: Session, changes: Sequence[Any]) -> None:
    task.describe_statements([session.text_of(change.statement) for change in changes])
    task.apply(session, changes)


def _prepare_replica(task: Task, session: Session, subscriber: Subscriber) -> None:
    source = None
    if task.params["source"]:
        source = task.source_or_none(Endpoint.from_source(task.params["source"]))
    elif not task.check_mode:
        raise Refused("source is needed for state=prepared: it says what is published.")
    try:
        with task.lenient():
            if source and task.check_mode and not _gated(source, subscriber):
                source.close()
                source = None
            changes = change_gate.plan_replica(session, source, subscriber)
            before = subscribed.subscribed(session, subscriber.oid)
            _apply(task, session, changes)
            change_gate.refuse_taken_for_copied(session, subscriber, before)
    finally:
        if source:
            source.close()


def _gated(source: Session, subscriber: Subscriber) -> bool:
    """Whether the upstream has the gate, which in check mode an earlier task would have put up."""
    return change_gate.of_subscription(source, subscriber.publications) is not None


def _finish_replica(task: Task, session: Session, subscriber: Subscriber) -> None:
    gate = change_gate.of_subscription(session, subscriber.publications)
    if gate is None:
        return
    if not task.check_mode:
        end = time.monotonic() + task.params["timeout"]
        change_gate.wait_until_passed(session, subscriber, gate, end)
    _apply(task, session, change_gate.plan_removal(session, gate, replica=True))


def _present(task: Task, session: Session, part: Part) -> None:
    """Run what is not done yet, and return what the server knows."""
    params = task.params
    progress = _progress(part.holder, params)
    _result(task, session, part, progress)
    if params["begin"] is not None and not task.result["known"]:
        _begin(task, part)
        return
    pending = [each for each in params["statements"] if each["number"] > progress.done]
    if not pending and not (params["before"] and not params["statements"]):
        _abandon_only(task, part)
        return
    _refuse_out_of_order(task, part, progress, pending)
    run = Run(task, session, part, progress)
    run.describe(pending)
    if task.check_mode:
        return
    end = time.monotonic() + params["timeout"]
    part.alone(end)
    # Another run may have been at it until now.
    progress = _progress(part.holder, params)
    pending = [each for each in pending if each["number"] > progress.done]
    _refuse_out_of_order(task, part, progress, pending)
    run.progress = progress
    if not pending:
        run.loosen(end)
    else:
        _wait(task, session, part, pending[-1]["number"], end)
        run.carry_out(change_pins.resolved(params, session, pending), end)
    _result(task, session, part, run.progress)


def _begin(task: Task, part: Part) -> None:
    """Remember that the server takes part in a change, before any server runs a statement of it."""
    params = task.params
    if not task.check_mode:
        part.alone(time.monotonic() + params["timeout"])
    _refuse_another(part, params)
    given_up = part.given_up(params)
    task.note(*["Give up schema change {0}".format(change) for change in given_up])
    task.note("Take part in schema change {0}".format(params["change"]))
    if not task.check_mode:
        part.holder.remember(Progress(params["change"], params["begin"], params["total"]), given_up)


def _progress(holder: Holder, params: Mapping[str, Any]) -> Progress:
    """How far this change is; refuses a record of another length, which no change of this id can have."""
    known = {entry.change: entry for entry in holder.entries()}
    found = known.get(params["change"], Progress(params["change"], 0, params["total"]))
    if found.total != params["total"]:
        raise Refused(
            "The comment of {0} says that schema change {1} has {2} statements, and total is {3}.".format(
                holder.words, found.change, found.total, params["total"]
            )
        )
    return found


def _unfinished(part: Part, params: Mapping[str, Any]) -> Progress | None:
    """Another change that was begun here and not ended."""
    passed_over = [params["change"], *part.given_up(params)]
    others = [entry for entry in part.holder.entries() if not entry.finished and entry.change not in passed_over]
    return others[0] if others else None


def _result(task: Task, session: Session, part: Part, progress: Progress) -> None:
    other = _unfinished(part, task.params)
    task.result["progress"] = progress.as_result()
    task.result["other"] = {"change": other.change, **other.as_result()} if other else None
    entries = part.holder.entries()
    task.result["known"] = task.params["change"] in [entry.change for entry in entries]
    task.result["finished"] = [entry.change for entry in entries if entry.finished]
    task.result["facts"] = change_facts.read(session, part.holder.kind, part.holder.name, task.params)


def _abandon_only(task: Task, part: Part) -> None:
    """Forget changes that were given up, when there is nothing else to write into the comment."""
    given_up = part.given_up(task.params)
    for change in given_up:
        task.note("Give up schema change {0}".format(change))
    if given_up and not task.check_mode:
        part.alone(time.monotonic() + task.params["timeout"])
        part.holder.forget(part.given_up(task.params))


def _refuse_another(part: Part, params: Mapping[str, Any]) -> None:
    other = _unfinished(part, params)
    if other:
        raise Refused(
            "Schema change {0} is unfinished on {1}, with {2} of {3} statements done. {4}".format(
                other.change, part.title, other.done, other.total, change_progress.way_out(other.change)
            ),
            other={"change": other.change, **other.as_result()},
        )


def _refuse_out_of_order(task: Task, part: Part, progress: Progress, pending: Sequence[Mapping[str, Any]]) -> None:
    _refuse_another(part, task.params)
    if pending and pending[0]["number"] != progress.done + 1:
        message = "Statement {0} comes next on {1}, not {2}: {3} of {4} are done there.".format(
            progress.done + 1, part.title, pending[0]["number"], progress.done, progress.total
        )
        # In check mode the earlier phases have not run.
        if not task.check_mode:
            raise Refused(message)


def _wait(task: Task, session: Session, part: Part, last: int, end: float) -> None:
    """On a replica, let the apply worker come as far as the change needs it."""
    params = task.params
    subscriber = part.subscriber
    if subscriber is None:
        return
    if params["together"]:
        if part.gate is None:
            raise Refused("{0} has no gate: run state=prepared first.".format(session.endpoint.title))
        change_gate.wait_for_worker(session, subscriber, params["change"], last, end)
    elif params["wait_for"] and not change_following.wait_until_passed(session, subscriber, params["wait_for"], end):
        raise TimedOut(
            "Subscription {0} had not applied the changes before {1} when {2} s were over: look at the replica's log, or "
            "allow a longer timeout. Running the same again goes on from there.".format(
                quoted(subscriber.name), params["wait_for"], params["timeout"]
            )
        )
