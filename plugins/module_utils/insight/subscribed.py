# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a subscription is, and why it doesn't go on."""

from __future__ import annotations

import time
from typing import Any, Callable, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import (
    DistributedError,
    Refused,
    TimedOut,
    Unreachable,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import offering
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import enumerate_names, quoted

READY = "r"
STATES = {"i": "waiting", "d": "copying", "f": "copied", "s": "catching up", "r": "ready"}
"""pg_subscription_rel.srsubstate, https://www.postgresql.org/docs/current/catalog-pg-subscription-rel.html"""

LOOKS = 10
"""Looks without a worker, about a second apart, until the reason is looked for."""
FAILURES = 3
"""Looks that find failed copies of which nothing more is known, until the wait gives up."""
SILENCE_SECONDS = 300
"""How long the source may be out of reach: PostgreSQL goes on by itself when it comes back."""
STATISTICS_SINCE = 150000


def subscribed(session: Session, oid: int) -> dict[Any, str]:
    """The state of every table of the subscription *oid*, by (schema, name)."""
    return {
        (row.schema, row.name): row.state
        for row in session.rows(
            "SELECT n.nspname AS schema, c.relname AS name, sr.srsubstate AS state FROM pg_subscription_rel AS sr"
            " JOIN pg_class AS c ON c.oid = sr.srrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " WHERE sr.srsubid = %s",
            [oid],
        )
    }


def any_copied(session: Session, oid: int) -> bool:
    """Whether the first copy of any table of the subscription was committed."""
    return any(state in "fsr" for state in subscribed(session, oid).values())


def unfinished(session: Session, oid: int) -> list[int]:
    """The oids of the subscription's tables that are not ready."""
    return [
        row.srrelid
        for row in session.rows(
            "SELECT srrelid FROM pg_subscription_rel WHERE srsubid = %s AND srsubstate <> %s", [oid, READY]
        )
    ]


def wait_until_ready(session: Session, endpoint: Endpoint, oid: int, name: str, seconds: int) -> None:
    """Return when every table of the subscription is ready.

    :param endpoint: the source as the subscription reaches it, to ask the publisher why a copy fails
    :param seconds: how long to wait
    :raises DistributedError: with the publisher's own error when the copy can't go on; Unreachable when the publisher
        has been out of reach for SILENCE_SECONDS; TimedOut
    """
    end = time.monotonic() + seconds
    watch = _Watch(session, oid)
    silence: Unreachable | None = None
    silent_since = 0.0
    pause = 0.1
    while True:
        states = subscribed(session, oid)
        unready = {key: state for key, state in states.items() if state != READY}
        if not unready:
            return
        if watch.look(len(unready)) or silence:
            try:
                _explain(session, endpoint, oid, name, unready, 0 if silence else watch.failures)
                if silence:
                    silence = None
                    watch.forgive()
            except Unreachable as error:
                silent_since = silent_since if silence else time.monotonic()
                silence = error
            if watch.abandoned and not silence:
                raise _deserted(name, tables=_as_result(unready))
        if silence and time.monotonic() > min(end, silent_since + SILENCE_SECONDS):
            raise silence
        if time.monotonic() > end:
            raise TimedOut(_progress(name, states, unready, seconds), tables=_as_result(states))
        time.sleep(pause)
        pause = min(1.0, pause * 1.3)


def mark(source: Session) -> str:
    """An LSN after all that was committed on the source so far, and before what will be.

    A logical decoding message of its own transaction makes it, which no table holds and pgoutput leaves out, see
    https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-REPLICATION. Its commit also flushes the commits
    that did not wait for that, without which they would not be sent. *source* has synchronous_commit = local.
    """
    lsn: str = source.value("SELECT pg_logical_emit_message(true, 'postgresml.distributed', ''::text)::text")
    return lsn


def wait_until_caught_up(
    session: Session,
    endpoint: Endpoint,
    oid: int,
    name: str,
    slot: str,
    seconds: float,
    tell: Callable[[int], None] = lambda behind: None,
) -> None:
    """Return when a worker serves the subscription, and has kept all that the source had written when this was called.

    :param tell: is called with the bytes of WAL that are left, at each look
    :raises DistributedError: when changes can't be applied, or the slot is gone; Unreachable when the source has been out of
        reach for SILENCE_SECONDS; TimedOut
    """
    end = time.monotonic() + seconds
    watch = _Watch(session, oid)
    lsn: str | None = None
    silent_since: float | None = None
    pause = 0.05
    while True:
        there: Any = None
        try:
            with Session(endpoint, synchronous_commit="local") as source:
                lsn = lsn or mark(source)
                there = source.row(
                    "SELECT active, greatest(%s::pg_lsn - confirmed_flush_lsn, 0)::int8 AS behind FROM pg_replication_slots"
                    " WHERE slot_name = %s AND wal_status IS DISTINCT FROM 'lost'",
                    [lsn, slot],
                )
            silent_since = None
        except Unreachable:
            silent_since = silent_since or time.monotonic()
            if time.monotonic() > min(end, silent_since + SILENCE_SECONDS):
                raise
        if there and there.active and not there.behind:
            return
        if there:
            tell(there.behind)
        if silent_since is None:
            if not there:
                raise Refused('Slot "{0}" of subscription {1} is gone, or has lost its WAL.'.format(slot, quoted(name)))
            if watch.look(0):
                _explain_standstill(session, oid, name, watch.failures)
            if watch.abandoned:
                raise _deserted(name)
        if time.monotonic() > end:
            raise TimedOut(
                'Subscription "{0}" has its rows, and is {1:,} kB behind the source after {2:.0f} s. It goes on.'.format(
                    name, (there.behind if there else 0) >> 10, seconds
                )
            )
        time.sleep(pause)
        pause = min(1.0, pause * 1.3)


def _deserted(name: str, **details: Any) -> Refused:
    return Refused(
        "No worker has served subscription {0} for a while; the replica's log says why.".format(quoted(name)), **details
    )


class _Watch:
    """Notices that copies fail: by the server's counter, and before 15 by workers that come and go."""

    def __init__(self, session: Session, oid: int) -> None:
        self._session = session
        self._oid = oid
        self._unready = 0
        self.forgive()

    def forgive(self) -> None:
        """Count anew, because what failed so far failed for want of the source."""
        self.failures = 0
        """looks since the last progress that found a failure: what breaks every connection at once is one"""
        self._pids: dict[int, int] = {}
        self._without_copier = self._without_worker = 0
        self._counted_before = self._counted()

    def look(self, unready: int) -> bool:
        """Whether there is a reason to ask why it doesn't go on, while *unready* tables are left."""
        if unready < self._unready:
            self.failures = 0
        self._unready = unready
        workers = self._session.rows(
            "SELECT coalesce(relid, 0) AS relid, pid FROM pg_stat_subscription WHERE subid = %s AND pid IS NOT NULL",
            [self._oid],
        )
        self._without_worker = 0 if workers else self._without_worker + 1
        self._without_copier = 0 if any(worker.relid for worker in workers) else self._without_copier + 1
        failed = self._failed({worker.relid: worker.pid for worker in workers})
        self.failures += failed
        return failed or (self._without_copier > 0 and self._without_copier % LOOKS == 0)

    @property
    def abandoned(self) -> bool:
        """Whether not even changes have been applied for a while."""
        return self._without_worker >= 2 * LOOKS

    def _failed(self, pids: dict[int, int]) -> bool:
        """Whether a worker has failed since the last look."""
        counted, self._counted_before = self._counted_before, self._counted()
        known, self._pids = self._pids, {**self._pids, **pids}
        if self._session.version >= STATISTICS_SINCE:
            return self._counted_before > counted
        return any(known.get(relid, pid) != pid for relid, pid in pids.items())

    def _counted(self) -> int:
        if self._session.version < STATISTICS_SINCE:
            return 0
        return (
            self._session.value(
                "SELECT apply_error_count + sync_error_count FROM pg_stat_subscription_stats WHERE subid = %s",
                [self._oid],
            )
            or 0
        )


def _explain(
    session: Session, endpoint: Endpoint, oid: int, name: str, unready: Mapping[Any, str], failures: int
) -> None:
    """Raise what hinders the first copy, if it can be found out, and after FAILURES failed copies in any case."""
    label = 'The first copy of subscription "{0}" can\'t go on'.format(name)
    state = _state(session, oid, label)
    if state.applying >= state.workers:
        raise Refused(
            "{0}: all max_logical_replication_workers = {1} of the replica apply changes, and none is left to copy.".format(
                label, state.workers
            )
        )
    try:
        with Session(endpoint) as source:
            _ask_publisher(source, session, state.subpublications, name, unready, failures)
    except Unreachable as error:
        raise Unreachable("{0}: {1}".format(label, error), **error.details) from None
    except DistributedError as error:
        raise Refused("{0}: {1}".format(label, error), tables=_as_result(unready)) from None
    if not state.subenabled:
        raise Refused("{0}: it is disabled, after an error that the replica's log tells.".format(label))
    if failures >= FAILURES:
        raise Refused(
            "{0}: it failed {1} times for {2}; the replica's log says why. Rows that the tables already hold are the usual "
            "reason.".format(label, failures, enumerate_names(quoted(*key) for key in unready)),
            tables=_as_result(unready),
        )


def _state(session: Session, oid: int, label: str) -> Any:
    """The subscription, and the workers of its server; raises when it can't have one."""
    state = session.row(
        "SELECT s.subenabled, s.subpublications, r.rolname AS owner, r.rolcanlogin AS may_log_in,"
        " current_setting('max_logical_replication_workers')::int AS workers,"
        " (SELECT count(*) FROM pg_stat_subscription WHERE pid IS NOT NULL AND relid IS NULL) AS applying"
        " FROM (SELECT oid, subenabled, subpublications, subowner FROM pg_subscription) AS s"
        " JOIN pg_roles AS r ON r.oid = s.subowner WHERE s.oid = %s",
        [oid],
    )
    if not state.may_log_in:
        raise Refused('{0}: its workers run as its owner "{1}", who may not log in.'.format(label, state.owner))
    return state


def _explain_standstill(session: Session, oid: int, name: str, failures: int) -> None:
    """Raise what hinders changes from being applied, if it can be found out, and after FAILURES in any case."""
    label = "Subscription {0} can't apply changes".format(quoted(name))
    _state(session, oid, label)
    if failures >= FAILURES:
        raise Refused("{0}: it failed {1} times; the replica's log says why.".format(label, failures))


def _ask_publisher(
    source: Session, session: Session, publications: Sequence[str], name: str, unready: Mapping[Any, str], failures: int
) -> None:
    """Do what the copy does, short of reading rows, and let the publisher's errors through."""
    offering.check_offer(source, session, offering.offered(source, publications, session.version), name)
    if not failures:
        return
    slots = source.row(
        "SELECT (SELECT count(*) FROM pg_replication_slots) AS used, current_setting('max_replication_slots')::int AS most"
    )
    if slots.used >= slots.most:
        raise Refused("All replication slots are in use (max_replication_slots = {0}).".format(slots.most))
    timeout = source.value("SHOW statement_timeout")
    if timeout != "0":
        raise Refused(
            'canceling statement due to statement timeout: user "{0}" has statement_timeout = {1} on the source, and the '
            "copy of {2} takes longer. ALTER ROLE ... SET statement_timeout = 0 lifts it.".format(
                source.endpoint.keywords.get("user"), timeout, enumerate_names(quoted(*key) for key in unready)
            )
        )


def _progress(name: str, states: Mapping[Any, str], unready: Mapping[Any, str], seconds: int) -> str:
    named = ["{0} ({1})".format(quoted(*key), STATES.get(state, state)) for key, state in unready.items()]
    return 'Subscription "{0}" has {1} of {2} tables ready after {3} s; unfinished: {4}. The copy goes on.'.format(
        name, len(states) - len(unready), len(states), seconds, enumerate_names(named)
    )


def _as_result(states: Mapping[Any, str]) -> dict[str, str]:
    return {quoted(*key): STATES.get(state, state) for key, state in sorted(states.items())}
