# SPDX-License-Identifier: GPL-3.0-or-later
"""The rows of a new subscription: how they come, and what a run finds and leaves that ends before its time."""

from __future__ import annotations

import time
from typing import Any, Mapping

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import (
    Changed,
    DistributedError,
    Refused,
    ServerRefused,
    Unreachable,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import capacity, offering, subscribed
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import enumerate_names, quoted
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import (
    replacing,
    seeding,
    slot,
    subscription,
    survey,
    undoing,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.replacing import Replacing
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.seeding import Seeding
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.subscription import Subscription
from ansible_collections.postgresml.distributed.plugins.module_utils.task import Task
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import (
    indexes,
    keepers,
    ledger,
    seeds,
    staging,
    workers,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.progress import Distance
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.seeds import Seed

SNAPSHOT, NATIVE, NONE = "snapshot", "native", "none"
"""Choices of initial_copy"""
ATTEMPTS = 5
"""How often a first copy is begun, when tables change at the moment when that happens."""


_STAYS = (
    "What was copied stays, and a rerun goes on where this one stopped, within {0} minutes if rows are still to come; "
    "state=absent removes it.".format(keepers.GRACE_SECONDS // 60)
)


class FirstCopy:
    """That of the subscription *future*: take_up() or prepare(), then make()."""

    def __init__(self, task: Task, session: Session, source: Session, future: Subscription) -> None:
        self._task = task
        self._session = session
        self._source = source
        self._future = future
        self._taken_up: Seeding | None = None
        self._offer: Mapping[Any, offering.Offer] = {}
        self._replaces = False
        self.method: str | None = None
        """once it is known"""

    def take_up(self) -> None:
        """Go on with what a run had begun that died before its end, if that can be; else remove it."""
        session, source, name = self._session, self._source, self._future.name
        seed = seeds.read(session, name)
        if seed:
            be_only_run(session)
            seed = seeds.read(session, name)
        placeholder = subscription.read(session, name)
        if placeholder and not placeholder.placeholder:
            raise _overtaken(name)
        if seed:
            run = Seeding(self._task, session, source, self._future)
            _refuse_other_source(source, seed)
            if placeholder and self._task.params["initial_copy"] in (None, SNAPSHOT) and self._goes_on(run, seed):
                self._taken_up, self.method = run, SNAPSHOT
                self._task.result["initial_copy"] = {"method": SNAPSHOT, "reason": "a run that died had begun it"}
                return
            run.leave(forever=True)
            remove(self._task, session, source, seed)
        if placeholder and not seed and placeholder.slot_name and not slot.drop(source, placeholder.slot_name):
            raise Refused(slot.left_in_use(source, placeholder.slot_name))
        if placeholder:
            session.apply(subscription.plan_detached(placeholder, None))

    def _goes_on(self, run: Seeding, seed: Seed) -> bool:
        try:
            return run.go_on(seed)
        except Changed as error:
            self._task.warn("{0} It was begun anew.".format(error))
            return False
        except Refused:
            return False
        except DistributedError as error:
            run.leave(forever=False)
            raise type(error)("{0} {1}".format(error, _STAYS), **error.details) from None

    def prepare(self) -> None:
        """Choose the method, and refuse what could not succeed."""
        if self._taken_up:
            return
        task, session, source, future = self._task, self._session, self._source, self._future
        if source.is_same_database(session):
            raise Refused("{0} is source and target at once.".format(session.endpoint.title))
        self._read_offer()
        self._refuse_others()
        jobs = workers.jobs(task.params["jobs"])
        reason, size = survey.assess(session, source, self._offer, jobs)
        method = self._choose(reason)
        if method != NONE:
            self._check_rows(method)
            if self._replaces:
                words = "Replace the copy of {0} by what is published"
                task.note(*[words.format(quoted(*key)) for key in sorted(self._offer)])
        slot.check_failover(source, future.options.get("failover"))
        if slot.read(source, future.slot_name or ""):
            raise Refused(
                'Slot "{0}" exists on the server of {1} already, and subscription {2} doesn\'t: choose another slot_name, or '
                "drop the slot with state=absent and this slot_name if nobody uses it.".format(
                    future.slot_name, source.endpoint, quoted(future.name)
                )
            )
        slot.check_room(source, 2 if method == NATIVE and self._offer else 1)
        if method == SNAPSHOT:
            _refuse_shortage(session, source, size, jobs, task.params["wal_space"])
        for words in capacity.outdated(source.version):
            task.warn(words)
        self.method = method

    def _read_offer(self) -> None:
        source, session = self._source, self._session
        self._offer = offering.offered(source, sorted(self._future.publications or ()), session.version)
        offering.check_offer(source, session, self._offer, self._future.name)

    def _refuse_others(self) -> None:
        """Refuse tables that the first copy of another subscription has begun to fill."""
        others = seeds.others(self._session, self._future.name, list(self._offer))
        if others:
            raise Refused(
                "The first copy of subscription {0} is filling {1} in {2}: let it come to its end, or remove it with "
                "state=absent.".format(
                    enumerate_names(map(quoted, set(others.values()))),
                    enumerate_names(quoted(*key) for key in others),
                    self._session.endpoint,
                )
            )

    def _choose(self, reason: str | None) -> str:
        """The method, which the task's result tells, too; *reason* speaks against a snapshot."""
        task = self._task
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

    def _check_rows(self, method: str) -> None:
        """Refuse tables that hold rows, unless these are copies that are to be replaced."""
        session, wished = self._session, self._task.params["replace_copies"]
        self._replaces = False
        filled = offering.filled(session, self._offer)
        others = set(filled) - set(ledger.read(session, filled))
        if not filled or others:
            offering.check_empty(session, others if wished else filled)
            return
        names = enumerate_names(quoted(*key) for key in filled)
        if not wished:
            raise Refused(
                "Table {0} holds rows in {1} that pgml_dump_restore has copied: set replace_copies to true to have them "
                "replaced, or initial_copy to none if the rows are right.".format(names, session.endpoint)
            )
        if method != SNAPSHOT:
            raise Refused(
                "The first copy is to replace the copy of {0} in {1}, which only initial_copy=snapshot does, and it is "
                "{2}.".format(names, session.endpoint, method)
            )
        replacing.refuse(self._source, session, self._offer)
        self._replaces = True

    def make(self) -> None:
        """Create slot and subscription, and make the first copy unless PostgreSQL makes it; an error undoes what was begun."""
        if self.method == SNAPSHOT:
            self._seed()
            return
        session, source, future = self._session, self._source, self._future
        name = future.slot_name or ""
        session.apply(subscription.plan_placeholder(future))
        ours = True  # also when the connection breaks before the answer
        try:
            try:
                slot.create(source, name, failover=future.options.get("failover") == "true")
            except (Refused, ServerRefused):
                ours = False
                raise
            session.apply(subscription.plan_new(future, self.method == NATIVE))
        except DistributedError:
            if ours:
                slot.drop(source, name)
            session.apply(subscription.plan_detached(future, None))
            raise

    def _seed(self) -> None:
        """Make the first copy under the slot's snapshot, and the subscription after it."""
        session, future = self._session, self._future
        began = time.monotonic()
        run = self._filled()
        run.check_slot()
        try:
            run.check_offer()
            also = [seeds.entry(future.name, seeds.SUBSCRIBED), ledger.forgetting(run.keys)]
            session.apply(subscription.plan_new(future, False, also))
        except Changed as error:
            raise Refused(
                "{0} What is written while it isn't published is never sent: remove the copy with state=absent and begin anew. "
                "Until then the source keeps its WAL for it.".format(error)
            ) from None
        except DistributedError as error:
            raise type(error)(
                "{0} All rows are there, and a rerun goes on from here. Until then the source keeps its WAL for it; state=absent "
                "removes it.".format(error),
                **error.details,
            ) from None
        self._task.result["initial_copy"].update(
            tables=[{"name": quoted(*key), "rows": rows} for key, rows in sorted(run.tally.rows.items())],
            rows=sum(run.tally.rows.values()),
            seconds=round(time.monotonic() - began, 3),
        )

    def _filled(self) -> Seeding:
        """The copy with all that is built on it, begun anew when tables change at that moment."""
        if self._taken_up is None:
            be_only_run(self._session)
            self._look_again()
        for attempt in range(1, ATTEMPTS + 1):
            kind = Replacing if self._replaces else Seeding
            run = self._taken_up or kind(self._task, self._session, self._source, self._future)
            try:
                self._fill(run)
                break
            except Changed as error:
                if attempt == ATTEMPTS:
                    raise
                self._task.warn("{0} It was begun anew.".format(error))
                self._taken_up = None
                self._read_offer()
                self._check_rows(SNAPSHOT)
        return run

    def _look_again(self) -> None:
        """See that no other run came before this one had the lock."""
        session, name = self._session, self._future.name
        if subscription.read(session, name) or seeds.read(session, name):
            raise _overtaken(name)
        self._read_offer()
        self._refuse_others()
        self._check_rows(SNAPSHOT)

    def _fill(self, run: Seeding) -> None:
        """One try; an error undoes it, unless the next run can go on."""
        try:
            if run is not self._taken_up:
                run.begin(self._offer)
            run.fill()
        except DistributedError as error:
            if isinstance(error, Unreachable) and run.can_be_taken_up:
                run.leave(forever=False)
                raise Unreachable("{0} {1}".format(error, _STAYS), **error.details) from None
            run.leave(forever=True)
            try:
                self._undo(run.slot_is_ours)
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

    def _undo(self, slot_is_ours: bool) -> None:
        """Remove what a copy has begun that failed."""
        session = self._session
        with Session(self._source.endpoint) as source:
            seed = seeds.read(session, self._future.name)
            if seed:
                undoing.clear(session, source, seed, slot_is_ours)
            placeholder = subscription.read(session, self._future.name)
            if placeholder and placeholder.placeholder:
                session.apply(subscription.plan_detached(placeholder, None))


def _overtaken(name: str) -> Refused:
    return Refused("Another run has created subscription {0}: run it again.".format(quoted(name)))


def _refuse_other_source(source: Session, seed: Seed) -> None:
    """Refuse to look for the slot of a first copy on another server than the one that has it."""
    if seed.phase != seeds.SUBSCRIBED and seed.source != seeds.identity(source):
        raise Refused(
            "The first copy of subscription {0} was begun from another database than {1}: give that one as source, or remove "
            'it with state=absent and without source, and then slot "{2}" there.'.format(
                quoted(seed.subscription), source.endpoint, seed.slot_name
            )
        )


def be_only_run(session: Session) -> None:
    """Make sure that nobody else fills tables of the database, not even workers that outlived their run."""
    session.without_timeouts()
    staging.lock_run(session)
    staging.end_workers(session)


def _refuse_shortage(session: Session, source: Session, size: int, jobs: int, wal_space: int | None) -> None:
    """Refuse a copy of *size* bytes that either server lacks something for."""
    upstream = capacity.read_upstream(source, size, wal_space)
    found = capacity.problems(upstream, capacity.read_replica(session), size, capacity.Way(jobs))
    if found:
        raise Refused(" ".join(found))
    indexes.refuse_no_space(session, size)


def finish(task: Task, session: Session, endpoint: Endpoint, current: Subscription) -> None:
    """What comes after a first copy while changes are applied already: foreign keys are checked, and the lag goes."""
    be_only_run(session)
    distance = Distance(session)
    seeding.finish(session, current.name, task.warn)
    if current.enabled and task.params["wait"]:
        subscribed.wait_until_caught_up(
            session,
            endpoint,
            current.oid,
            current.name,
            current.slot_name or "",
            task.params["wait_timeout"],
            distance.left,
        )
    with session.transaction():
        seeds.forget(session, current.name)


def remove(task: Task, session: Session, source: Session | None, seed: Seed) -> None:
    """Undo a first copy that didn't come to its end. Of one whose subscription was there already the foreign keys are checked."""
    if source:
        _refuse_other_source(source, seed)
    be_only_run(session)
    if seed.phase == seeds.SUBSCRIBED:
        seeding.finish(session, seed.subscription, task.warn)
    undoing.clear(session, source, seed)
