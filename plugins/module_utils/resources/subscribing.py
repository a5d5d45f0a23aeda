# SPDX-License-Identifier: GPL-3.0-or-later
"""The life of a subscription across both servers: created, altered, waited for, and removed with its slots."""

from __future__ import annotations

import contextlib
from typing import Any, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import (
    DistributedError,
    Refused,
    ServerRefused,
    TimedOut,
    Unreachable,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import offering, subscribed
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import quoted
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import (
    first_copy,
    seeding,
    slot,
    subscription,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.first_copy import FirstCopy
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.parallel_streaming import without_losses
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.subscription import Subscription
from ansible_collections.postgresml.distributed.plugins.module_utils.task import Task
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import (
    seeds,
    workers,
)

_UNSEEN_VERSION = 990000
"""Taken for the version of a server that check mode can't ask, because its database is yet to be created."""


def manage(task: Task) -> None:
    """Bring the subscription of the task's options to its state."""
    for option in ("wal_space", "wait_timeout"):
        if (task.params[option] or 0) < 0:
            raise Refused("{0} is {1}: the least is 0.".format(option, task.params[option]))
    session = task.session_or_none()
    with session or contextlib.nullcontext():
        current = subscription.read(session, task.params["name"]) if session else None
        if task.params["state"] == "absent":
            _remove(task, session, current)
            return
        wanted = subscription.wanted_from(task.params, session.version if session else _UNSEEN_VERSION)
        if session is None or current is None or current.placeholder:
            _create(task, session, wanted)
        else:
            _alter(task, session, current, wanted)


def _create(task: Task, session: Session | None, wanted: Subscription) -> None:
    endpoint = wanted.endpoint
    if not wanted.publications or endpoint is None:
        raise Refused("To create subscription {0}, publications and source are needed.".format(quoted(wanted.name)))
    future = without_losses(task, session, wanted.over(None))
    slot.check_name(future.slot_name or "")
    workers.jobs(task.params["jobs"])
    source = task.source_or_none(endpoint)
    task.note(subscription.plan_new(future, True)[0].words)
    task.describe(None, future.as_result())
    task.result["subscription"] = future.as_result()
    method = None
    with source or contextlib.nullcontext():
        if session and source:
            copy = FirstCopy(task, session, source, future)
            if not task.check_mode:
                copy.take_up()
            with task.lenient():
                copy.prepare()
            if not task.check_mode:
                copy.make()
            method = copy.method
    if session and not task.check_mode:
        _wait(task, session, endpoint, future, fresh=method == first_copy.NATIVE)


def _alter(task: Task, session: Session, current: Subscription, wanted: Subscription) -> None:
    endpoint = wanted.endpoint or current.endpoint
    if current.endpoint is None:
        task.warn(
            "The connection of {0} was not compared{1}: only superusers can read it.".format(
                quoted(current.name), "" if endpoint else ", nor its tables looked after"
            )
        )
    if seeds.read(session, current.name):
        task.note('Finish the first copy of subscription "{0}"'.format(current.name))
    future = wanted.over(current)
    changes = subscription.plan(current, wanted, session.version)
    source = task.source_or_none(endpoint) if endpoint else None
    with source or contextlib.nullcontext():
        if source:
            with task.lenient():
                changes += _plan_with_source(
                    session, source, current, future, task.params["initial_copy"] != first_copy.NONE
                )
        task.describe(
            current.as_result(), (future._replace(endpoint=None) if current.endpoint is None else future).as_result()
        )
        task.result["subscription"] = future.as_result()
        try:
            task.apply(session, changes)
        except DistributedError:
            if current.enabled and future.enabled:
                session.apply(subscription.plan_enable(current))
            raise
    if endpoint and not task.check_mode:
        _wait(task, session, endpoint, future, fresh=False)


def _plan_with_source(
    session: Session, source: Session, current: Subscription, future: Subscription, copy_data: bool
) -> Any:
    """Check the slot, and refresh the list of tables when it differs from what is published."""
    slot.check_failover(source, future.options.get("failover"))
    there = slot.read(source, future.slot_name or "") if future.slot_name else None
    if future.slot_name and (there is None or there.wal_status == "lost"):
        raise Refused(
            'Slot "{0}" of subscription {1} {2} on the server of {3}: changes since then are missing here. Remove the '
            "subscription with state=absent, empty its tables, and create it again.".format(
                future.slot_name, quoted(current.name), "has lost its WAL" if there else "is gone", source.endpoint
            )
        )
    if not future.enabled:
        return []
    offer = offering.offered(source, sorted(future.publications or ()), session.version)
    states = subscribed.subscribed(session, current.oid)
    new = {key: table for key, table in offer.items() if key not in states}
    if new:
        offering.check_offer(source, session, new, current.name)
        if copy_data:
            offering.check_empty(session, new)
    return subscription.plan_refresh(current, offer, states, copy_data)


def _wait(task: Task, session: Session, endpoint: Endpoint, future: Subscription, fresh: bool) -> None:
    current = subscription.read(session, future.name)
    if current and seeds.read(session, future.name):
        first_copy.finish(task, session, endpoint, current)
    if not current or not current.enabled or not task.params["wait"]:
        return
    try:
        subscribed.wait_until_ready(session, endpoint, current.oid, current.name, task.params["wait_timeout"])
    except TimedOut:
        raise
    except DistributedError as error:
        if isinstance(error, Unreachable) or not fresh or subscribed.any_copied(session, current.oid):
            raise Refused(
                "{0} The subscription and its slot stay, and a rerun goes on where it stopped.".format(error),
                **error.details,
            ) from None
        _remove_from_both(task, session, current, endpoint)
        removed = "The subscription and its slot were removed again."
        if task.result.get("debts"):
            removed = "The subscription was removed again, and its slot is left."
        raise Refused("{0} {1}".format(error, removed), **error.details) from None


def _remove(task: Task, session: Session | None, current: Subscription | None) -> None:
    params = task.params
    endpoint = Endpoint.from_source(params["source"]) if params["source"] else None
    task.describe(current and current.as_result(), None)
    if session and current:
        task.note('Drop subscription "{0}"'.format(current.name))
        if not task.check_mode:
            _remove_from_both(task, session, current, endpoint)
        return
    seed = seeds.read(session, params["name"]) if session else None
    if session and seed:
        task.note('Remove what is left of the first copy of subscription "{0}"'.format(params["name"]))
        if not task.check_mode:
            first_copy.remove(task, session, _first_reached([endpoint]), seed)
    if endpoint and params["slot_name"]:
        _settle(task, session, endpoint, params["slot_name"])


def _remove_from_both(task: Task, session: Session, current: Subscription, given: Endpoint | None) -> None:
    """Disable, drop the slot, drop the subscription: in this order a run that dies is found by the next.

    The upstream is looked for where the task says, and where the subscription itself found it.
    """
    endpoint = given or current.endpoint
    if current.enabled:
        session.apply(subscription.plan_disable(current))
    seed = seeds.read(session, current.name)
    unfinished = subscribed.unfinished(session, current.oid)
    problem = "No connection to the upstream is known."
    dropped = current.slot_name is None
    source = None
    with contextlib.ExitStack() as stack:
        try:
            source = _first_reached([given, current.endpoint])
            if source:
                stack.enter_context(source)
            if seed and current.placeholder:
                first_copy.remove(task, session, source, seed)
                dropped = source is not None
            elif source and current.slot_name:
                dropped = slot.drop(source, current.slot_name)
                problem = "Somebody still uses it."
        except (Unreachable, ServerRefused) as error:
            problem = str(error)
        if seed and current.placeholder and seeds.read(session, current.name):
            first_copy.remove(task, session, None, seed)
        elif seed and not current.placeholder:
            seeding.finish(session, current.name, task.warn)
        with session.transaction():
            seeds.forget(session, current.name)
        session.apply(subscription.plan_detached(current, endpoint if source is None and unfinished else None))
        if source and dropped:
            _drop_leftovers(task, session, source)
    if dropped:
        return
    names = [current.slot_name] + ([] if source else slot.names_of_first_copies(session, current.oid, unfinished))
    _owe(task, endpoint, names, problem)


def _first_reached(endpoints: Sequence[Endpoint | None]) -> Session | None:
    """A session at the first of *endpoints* that lets us in; raises what the last of them said when none does."""
    candidates = [endpoint for endpoint in endpoints if endpoint]
    for endpoint in candidates[:-1]:
        with contextlib.suppress(Unreachable):
            return Session(endpoint)
    return Session(candidates[-1]) if candidates else None


def _drop_leftovers(task: Task, session: Session, source: Session) -> None:
    """Drop the slots of first copies that ended with their subscription."""
    live = [row.oid for row in session.rows("SELECT oid FROM pg_subscription")]
    for name in slot.left_by(source, session.system_identifier, live):
        task.note('Drop slot "{0}"'.format(name))
        if not task.check_mode:
            slot.drop(source, name)


def _settle(task: Task, session: Session | None, endpoint: Endpoint, name: str) -> None:
    """Drop the slot that an earlier removal had to leave behind."""
    try:
        with Session(endpoint) as source:
            there = slot.read(source, name)
            if session:
                _drop_leftovers(task, session, source)
            if there is None:
                return
            if there.active or there.plugin != "pgoutput" or there.database != endpoint.keywords.get("dbname"):
                raise Refused(
                    'Slot "{0}" on the server of {1} is {2}: it was left as it is.'.format(
                        name, endpoint, "in use" if there.active else "not one of this database's subscriptions"
                    )
                )
            task.note('Drop slot "{0}"'.format(name))
            if not task.check_mode:
                slot.drop(source, name)
    except Unreachable as error:
        _owe(task, endpoint, [name], str(error))


def _owe(task: Task, endpoint: Endpoint | None, names: list[Any], problem: str) -> None:
    """Return the slots that stay behind, and say so: they hold back WAL on the upstream until somebody drops them."""
    keywords = endpoint.keywords if endpoint else {}
    task.result["debts"] = [
        {
            "slot_name": name,
            "host": keywords.get("host"),
            "port": int(keywords.get("port", 5432)),
            "database": keywords.get("dbname"),
        }
        for name in names
    ]
    task.warn(
        "Slot {0} may be left on the upstream, where it holds back WAL until it is dropped: {1} Run this task, with source and "
        "slot_name, when the upstream can be reached.".format(", ".join(map(str, names)), problem)
    )
