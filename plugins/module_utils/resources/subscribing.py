# SPDX-License-Identifier: GPL-3.0-or-later
"""The life of a subscription across both servers: created, altered, waited for, and removed with its slots."""

from __future__ import annotations

import contextlib
import time
from typing import Any, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import (
    Changed,
    DistributedError,
    Refused,
    ServerRefused,
    TimedOut,
    Unreachable,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import capacity
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import subscribed as insight
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session, version_text
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import enumerate_names, quoted
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import seeding, slot, subscription
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.seeding import Seeding
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.subscription import Subscription
from ansible_collections.postgresml.distributed.plugins.module_utils.task import Task
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import (
    indexes,
    keepers,
    seeds,
    staging,
    workers,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.seeds import Seed

SNAPSHOT, NATIVE, NONE = "snapshot", "native", "none"
"""Choices of initial_copy"""
ATTEMPTS = 5
"""How often a first copy is begun, when tables change at the moment when that happens."""

_UNSEEN_VERSION = 990000
"""Taken for the version of a server that check mode can't ask, because its database is yet to be created."""


def manage(task: Task) -> None:
    """Bring the subscription of the task's options to its state."""
    session = task.session_or_none()
    with session or contextlib.nullcontext():
        current = subscription.read(session, task.params["name"]) if session else None
        if task.params["state"] == "absent":
            _remove(task, session, current)
            return
        wanted = subscription.wanted_from(task.params, session.version if session else _UNSEEN_VERSION)
        if session is None or current is None or current.placeholder:
            _create(task, session, current, wanted)
        else:
            _alter(task, session, current, wanted)


def _create(task: Task, session: Session | None, placeholder: Subscription | None, wanted: Subscription) -> None:
    endpoint = wanted.endpoint
    if not wanted.publications or endpoint is None:
        raise Refused("To create subscription {0}, publications and source are needed.".format(quoted(wanted.name)))
    future = _without_losses(task, session, wanted.over(None))
    slot.check_name(future.slot_name or "")
    workers.jobs(task.params["jobs"])
    source = task.source_or_none(endpoint)
    task.note(subscription.plan_new(future, True)[0].words)
    task.describe(None, future.as_result())
    task.result["subscription"] = future.as_result()
    method = None
    with source or contextlib.nullcontext():
        if session and source:
            taken_up = None if task.check_mode else _taken_up(task, session, source, future)
            offer: Mapping[Any, insight.Offer] = {}
            with task.lenient():
                if taken_up:
                    method = SNAPSHOT
                else:
                    offer = insight.offered(source, sorted(future.publications or ()), session.version)
                    method = _check_before_creation(task, session, source, future, offer)
            if method and not task.check_mode:
                _create_on_both(task, session, source, future, method, taken_up, offer)
    if session and not task.check_mode:
        _wait(task, session, endpoint, future, fresh=method == NATIVE)


def _taken_up(task: Task, session: Session, source: Session, future: Subscription) -> Seeding | None:
    """What a run that died before its end had begun, if this one can go on with it; else it is removed."""
    if seeds.read(session, future.name):
        _be_only_run(session)
    seed = seeds.read(session, future.name)
    placeholder = subscription.read(session, future.name)
    if placeholder and not placeholder.placeholder:
        raise Refused("Another run has created subscription {0}: run it again.".format(quoted(future.name)))
    if seed:
        run = Seeding(task, session, source, future)
        if placeholder and task.params["initial_copy"] in (None, SNAPSHOT) and run.go_on(seed):
            task.result["initial_copy"] = {"method": SNAPSHOT, "reason": "a run that died had begun it"}
            return run
        run.leave(forever=True)
        seeding.clear(session, source, seed)
    if placeholder and seed:
        session.apply(subscription.plan_detached(placeholder, None))
    elif placeholder:
        _clear_placeholder(session, source, placeholder)
    return None


def _be_only_run(session: Session) -> None:
    """Make sure that nobody else fills tables of the database, not even workers that outlived their run."""
    session.without_timeouts()
    staging.lock_run(session)
    staging.end_workers(session)


def _check_before_creation(
    task: Task, session: Session, source: Session, future: Subscription, offer: Mapping[Any, insight.Offer]
) -> str:
    """Refuse what could not succeed, and say how the first copy is made."""
    if source.is_same_database(session):
        raise Refused("{0} is source and target at once.".format(session.endpoint.title))
    insight.check_offer(source, session, offer, future.name)
    _check_others(session, future, offer)
    reason, size = seeding.survey(session, source, offer)
    method = _method(task, reason)
    if method != NONE:
        insight.check_empty(session, offer)
    _check_failover(source, future)
    if slot.read(source, future.slot_name or ""):
        raise Refused(
            'Slot "{0}" exists on the server of {1} already, and subscription {2} doesn\'t: choose another slot_name, or drop '
            "the slot with state=absent and this slot_name if nobody uses it.".format(
                future.slot_name, source.endpoint, quoted(future.name)
            )
        )
    slot.check_room(source, 2 if method == NATIVE and offer else 1)
    if method == SNAPSHOT:
        _check_capacity(task, session, source, size)
    for words in capacity.outdated(source.version):
        task.warn(words)
    return method


def _check_others(session: Session, future: Subscription, offer: Mapping[Any, insight.Offer]) -> None:
    """Refuse tables that the first copy of another subscription has begun to fill."""
    others = seeds.others(session, future.name, list(offer))
    if others:
        raise Refused(
            "The first copy of subscription {0} is filling {1} in {2}: let it come to its end, or remove it with "
            "state=absent.".format(
                enumerate_names(map(quoted, set(others.values()))),
                enumerate_names(quoted(*key) for key in others),
                session.endpoint,
            )
        )


def _method(task: Task, reason: str | None) -> str:
    """How the first copy is made, which the task's result tells, too; *reason* speaks against a snapshot."""
    wish: str | None = task.params["initial_copy"]
    if wish in (NATIVE, NONE):
        reason = None
    if reason and wish == SNAPSHOT:
        raise Refused("initial_copy is snapshot, which is not possible because {0}: use native.".format(reason))
    method = wish or (NATIVE if reason else SNAPSHOT)
    task.result["initial_copy"] = {"method": method, "reason": reason}
    if reason:
        task.warn("The first copy is made by PostgreSQL itself, because {0}.".format(reason))
    return method


def _check_capacity(task: Task, session: Session, source: Session, size: int) -> None:
    jobs = workers.jobs(task.params["jobs"])
    upstream = capacity.read_upstream(source, size, task.params["wal_space"])
    found = capacity.problems(upstream, capacity.read_replica(session), size, jobs)
    if found:
        raise Refused(" ".join(found))
    indexes.refuse_no_space(session, size)


def _check_failover(source: Session, future: Subscription) -> None:
    if future.options.get("failover") == "true" and source.version < slot.FAILOVER_SINCE:
        raise Refused(
            "failover needs PostgreSQL {0} or later on the upstream; the server of {1} is {2}.".format(
                slot.FAILOVER_SINCE // 10000, source.endpoint, version_text(source.version)
            )
        )


def _without_losses(task: Task, session: Session | None, future: Subscription) -> Subscription:
    """*future* without C(streaming = parallel), where that may lose transactions."""
    if session is None or not capacity.loses_parallel(session.version):
        return future
    words = "PostgreSQL {0}, which may lose transactions that it applies in parallel".format(
        version_text(session.version)
    )
    if future.options.get("streaming") == "parallel":
        raise Refused("The server of {0} is {1}: update it, or set streaming to on.".format(session.endpoint, words))
    if "streaming" in future.options or session.version < subscription.PARALLEL_BY_DEFAULT_SINCE:
        return future
    task.warn("The replica is {0}: streaming is set to on.".format(words))
    return future._replace(options={**future.options, "streaming": "on"})


def _create_on_both(
    task: Task,
    session: Session,
    source: Session,
    future: Subscription,
    method: str,
    taken_up: Seeding | None,
    offer: Mapping[Any, insight.Offer],
) -> None:
    """The steps of subscription.py's first paragraph; an error undoes those already done."""
    if method == SNAPSHOT:
        if not taken_up:
            _be_only_run(session)
        _seed(task, session, source, future, taken_up, offer)
        return
    name = future.slot_name or ""
    session.apply(subscription.plan_placeholder(future))
    created = False
    try:
        slot.create(source, name, failover=future.options.get("failover") == "true")
        created = True
        session.apply(subscription.plan_new(future, method == NATIVE))
    except DistributedError:
        if created:
            slot.drop(source, name)
        session.apply(subscription.plan_detached(future, None))
        raise


def _seed(
    task: Task,
    session: Session,
    source: Session,
    future: Subscription,
    taken_up: Seeding | None,
    offer: Mapping[Any, insight.Offer],
) -> None:
    """Make the first copy under the slot's snapshot, and the subscription after it."""
    began = time.monotonic()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            run = _filled(task, session, source, future, taken_up, offer)
            break
        except Changed as error:
            if attempt == ATTEMPTS:
                raise
            task.warn("{0} It was begun anew.".format(error))
            offer = insight.offered(source, sorted(future.publications or ()), session.version)
            insight.check_offer(source, session, offer, future.name)
    try:
        run.check_offer()
        session.apply(subscription.plan_new(future, False, [seeds.entry(future.name, seeds.SUBSCRIBED)]))
    except DistributedError as error:
        raise type(error)(
            "{0} All rows are there, and a rerun goes on from here. Until then the source keeps its WAL for it; state=absent "
            "removes it.".format(error),
            **error.details,
        ) from None
    task.result["initial_copy"].update(
        tables=[{"name": quoted(*key), "rows": rows} for key, rows in sorted(run.tally.rows.items())],
        rows=sum(run.tally.rows.values()),
        seconds=round(time.monotonic() - began, 3),
    )


def _filled(
    task: Task,
    session: Session,
    source: Session,
    future: Subscription,
    taken_up: Seeding | None,
    offer: Mapping[Any, insight.Offer],
) -> Seeding:
    """The first copy, with all that is built on it; an error undoes it, unless the next run can go on."""
    run = taken_up or Seeding(task, session, source, future)
    try:
        if not taken_up:
            run.begin(offer)
        run.fill()
    except DistributedError as error:
        if isinstance(error, Unreachable) and run.can_be_taken_up:
            run.leave(forever=False)
            raise Unreachable(
                "{0} What was copied stays, and a rerun goes on where this one stopped, within {1} minutes if rows are still "
                "to come; state=absent removes it.".format(error, keepers.GRACE_SECONDS // 60),
                **error.details,
            ) from None
        run.leave(forever=True)
        try:
            _undo(session, future, run.slot_is_ours)
        except DistributedError as second:
            raise Refused(
                "{0} What was begun is still there, because: {1} The next run removes it, or state=absent.".format(
                    error, second
                ),
                **error.details,
            ) from None
        raise
    except BaseException:
        run.leave(forever=False)
        raise
    return run


def _undo(session: Session, future: Subscription, slot_is_ours: bool) -> None:
    """Remove what a copy has begun that failed."""
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(Session(future.endpoint)) if future.endpoint else None
        seed = seeds.read(session, future.name)
        if seed:
            seeding.clear(session, source, seed, slot_is_ours)
        placeholder = subscription.read(session, future.name)
        if placeholder and placeholder.placeholder:
            session.apply(subscription.plan_detached(placeholder, None))


def _clear_placeholder(session: Session, source: Session, placeholder: Subscription) -> None:
    """Remove what a run that died before its end had begun."""
    if placeholder.slot_name and not slot.drop(source, placeholder.slot_name):
        raise Refused(slot.left_in_use(source, placeholder.slot_name))
    session.apply(subscription.plan_detached(placeholder, None))


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
        wanted = wanted._replace(enabled=wanted.enabled is not False)  # the run may have died before it came to that
    future = wanted.over(current)
    changes = subscription.plan(current, wanted, session.version)
    source = task.source_or_none(endpoint) if endpoint else None
    with source or contextlib.nullcontext():
        if source:
            with task.lenient():
                changes += _plan_with_source(session, source, current, future, task.params["initial_copy"] != NONE)
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
    _check_failover(source, future)
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
    offer = insight.offered(source, sorted(future.publications or ()), session.version)
    states = insight.subscribed(session, current.oid)
    new = {key: table for key, table in offer.items() if key not in states}
    if new:
        insight.check_offer(source, session, new, current.name)
        if copy_data:
            insight.check_empty(session, new)
    return subscription.plan_refresh(current, offer, states, copy_data)


def _wait(task: Task, session: Session, endpoint: Endpoint, future: Subscription, fresh: bool) -> None:
    current = subscription.read(session, future.name)
    if seeds.read(session, future.name):
        _finish(task, session, endpoint, current)
    if not current or not current.enabled or not task.params["wait"]:
        return
    try:
        insight.wait_until_ready(session, endpoint, current.oid, current.name, task.params["wait_timeout"])
    except TimedOut:
        raise
    except DistributedError as error:
        if isinstance(error, Unreachable) or not fresh or insight.any_copied(session, current.oid):
            raise Refused(
                "{0} The subscription and its slot stay, and a rerun goes on where it stopped.".format(error),
                **error.details,
            ) from None
        _remove_from_both(task, session, current, endpoint)
        removed = "The subscription and its slot were removed again."
        if task.result.get("debts"):
            removed = "The subscription was removed again, and its slot is left."
        raise Refused("{0} {1}".format(error, removed), **error.details) from None


def _finish(task: Task, session: Session, endpoint: Endpoint, current: Subscription | None) -> None:
    """What comes after a first copy while changes are applied already: foreign keys are checked, and the lag goes."""
    if not current:
        return
    _be_only_run(session)
    seeding.finish(session, current.name, task.warn)
    if current.enabled and task.params["wait"]:
        insight.wait_until_caught_up(
            session, endpoint, current.oid, current.name, current.slot_name or "", task.params["wait_timeout"]
        )
    with session.transaction():
        seeds.forget(session, current.name)


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
            _remove_seed(session, _first_reached([endpoint]), seed)
    if endpoint and params["slot_name"]:
        _settle(task, session, endpoint, params["slot_name"])


def _remove_seed(session: Session, source: Session | None, seed: Seed) -> None:
    """Undo a first copy that didn't come to its end."""
    _be_only_run(session)
    seeding.clear(session, source, seed)


def _remove_from_both(task: Task, session: Session, current: Subscription, given: Endpoint | None) -> None:
    """Disable, drop the slot, drop the subscription: in this order a run that dies is found by the next.

    The upstream is looked for where the task says, and where the subscription itself found it.
    """
    endpoint = given or current.endpoint
    if current.enabled:
        session.apply(subscription.plan_disable(current))
    seed = seeds.read(session, current.name)
    unfinished = insight.unfinished(session, current.oid)
    problem = "No connection to the upstream is known."
    dropped = current.slot_name is None
    source = None
    with contextlib.ExitStack() as stack:
        try:
            source = _first_reached([given, current.endpoint])
            if source:
                stack.enter_context(source)
            if seed and current.placeholder:
                _remove_seed(session, source, seed)
                dropped = source is not None
            elif source and current.slot_name:
                dropped = slot.drop(source, current.slot_name)
                problem = "Somebody still uses it."
        except (Unreachable, ServerRefused) as error:
            problem = str(error)
        if seed and current.placeholder and seeds.read(session, current.name):
            _remove_seed(session, None, seed)
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
