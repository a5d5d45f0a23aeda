# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a replica applies what the upstream writes: before a change is begun, and while its turn is waited for."""

from __future__ import annotations

import time
from typing import NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused, TimedOut
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import moments, subscribed
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.subjects import Feed
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import enumerate_names, quoted

_LOOK_SECONDS = 2


class Subscriber(NamedTuple):
    """The subscription that brings a replica what the upstream writes."""

    oid: int
    name: str
    slot: str | None
    enabled: bool
    owner: str
    publications: Sequence[str]


def refuse_unready(session: Session, subscriber: Subscriber) -> None:
    """Refuse a subscription that is disabled, or has tables without all of their rows."""
    if not subscriber.enabled:
        raise Refused(
            "Subscription {0} is disabled: enable it, or look into the replica's log for the error that disabled it.".format(
                quoted(subscriber.name)
            )
        )
    states = subscribed.subscribed(session, subscriber.oid)
    unready = [quoted(*key) for key, state in states.items() if state != subscribed.READY]
    if unready:
        raise Refused(
            "The first copy of {0} in subscription {1} is not done: run distribute.yml to its end first.".format(
                enumerate_names(unready), quoted(subscriber.name)
            )
        )


def refuse_stopped(session: Session, source: Endpoint, subscriber: Subscriber, seconds: int) -> None:
    """Refuse a replica that doesn't come to what the upstream writes now within *seconds*, with the reason if it can be found."""
    refuse_unready(session, subscriber)
    try:
        subscribed.wait_until_caught_up(
            session, source, subscriber.oid, subscriber.name, subscriber.slot or subscriber.name, seconds
        )
    except TimedOut as error:
        message = "{0} It has to catch up before definitions are changed, since the change would wait for it midway."
        raise TimedOut(message.format(error)) from None


class Errors:
    """Notices that a worker fails again and again, so that nobody waits for what can't come."""

    def __init__(self, session: Session, subscriber: Subscriber) -> None:
        self._session = session
        self._subscriber = subscriber
        self._before = self._counted()

    def refuse(self) -> None:
        """Raise when the worker is gone for good, or has failed as often as nothing fails in passing."""
        name = quoted(self._subscriber.name)
        if not self._session.value("SELECT subenabled FROM pg_subscription WHERE oid = %s", [self._subscriber.oid]):
            raise Refused(
                "Subscription {0} was disabled or dropped meanwhile; after an error the replica's log tells which.".format(
                    name
                )
            )
        failed = self._counted() - self._before
        if failed >= subscribed.FAILURES:
            raise Refused(
                "Subscription {0} can't apply what the upstream wrote: it failed {1} times since this run began to wait, and the "
                "replica's log says why. It tries again until that is mended. Then run the same again, which goes on from "
                "there.".format(name, failed)
            )

    def _counted(self) -> int:
        """Errors so far; older servers don't count them."""
        if self._session.version < subscribed.STATISTICS_SINCE:
            return 0
        query = "SELECT apply_error_count FROM pg_stat_subscription_stats WHERE subid = %s"
        return self._session.value(query, [self._subscriber.oid]) or 0


def wait_until_passed(session: Session, subscriber: Subscriber, lsn: str, end: float) -> bool:
    """Wait until all that was written before *lsn* is applied; False when that takes until *end* (time.monotonic())."""
    feed = Feed(subscriber.oid, subscriber.name, True, None, tuple(subscriber.publications))
    errors = Errors(session, subscriber)
    while not moments.passed(session, [feed], lsn, min(end, time.monotonic() + _LOOK_SECONDS)):
        errors.refuse()
        if time.monotonic() > end:
            return False
    return True
