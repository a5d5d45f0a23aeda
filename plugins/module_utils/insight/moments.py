# SPDX-License-Identifier: GPL-3.0-or-later
"""Moments of source and target that can be compared: at rest, or the target some time after the source."""

from __future__ import annotations

import contextlib
import time
from typing import Any, Iterator, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused, TimedOut
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import hashing, subscribed
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.subjects import Feed, Subject
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    enumerate_names,
    quoted,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import snapshot
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.readers import Readers, View

_SHORTEST_PAUSE_SECONDS = 0.002
_LONGEST_PAUSE_SECONDS = 0.05


class Moment(NamedTuple):
    """Both sides under snapshots, for as long as its block lasts."""

    lsn: str | None
    """where in the source's WAL the target is at least"""
    source: Mapping[int, hashing.Parts]
    target: Mapping[int, hashing.Parts]
    lock_ms: float | None = None
    """how long the source's tables were locked against writes"""


class Servers:
    """The sessions of one comparison at both servers."""

    def __init__(self, source: Session, target: Session, jobs: int, seconds: int) -> None:
        self.source = source
        self.target = target
        self.jobs = jobs
        self.seconds = seconds
        self.deadline = time.monotonic() + seconds
        self._stack = contextlib.ExitStack()
        self.source_view = self._view(source.endpoint)
        self.target_view = self._view(target.endpoint)
        self.source_readers = self._readers(source.endpoint)
        self.target_readers = self._readers(target.endpoint)

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._stack.close()

    def _view(self, endpoint: Endpoint) -> View:
        return View(self._stack.enter_context(snapshot.reading_session(endpoint, **hashing.SETTINGS)))

    def _readers(self, endpoint: Endpoint) -> Readers:
        return self._stack.enter_context(Readers(endpoint, self.jobs, self.deadline, hashing.SETTINGS))

    def seen(self, subjects: Sequence[Subject], lsn: str | None, lock_ms: float | None = None) -> Moment:
        """The moment that the views show."""
        return Moment(
            lsn,
            hashing.parts(self.source_view.session, [each.source for each in subjects], self.jobs),
            hashing.parts(self.target_view.session, [each.target for each in subjects], self.jobs),
            lock_ms,
        )

    def release(self) -> None:
        """Let the moment go."""
        self.source_view.release()
        self.target_view.release()


@contextlib.contextmanager
def at_rest(servers: Servers, subjects: Sequence[Subject]) -> Iterator[Moment]:
    """Both sides as they are now."""
    try:
        servers.source_view.take()
        servers.target_view.take()
        yield servers.seen(subjects, None)
    finally:
        servers.release()


@contextlib.contextmanager
def followed(servers: Servers, subjects: Sequence[Subject]) -> Iterator[Moment]:
    """The source as it is now, and the target when it has applied all of that, and perhaps more."""
    # A target that is far behind catches up before the source has to keep a snapshot for it.
    catch_up(servers, feeds_of(subjects), subscribed.mark(servers.source))
    try:
        servers.source_view.take()
        lsn = subscribed.mark(servers.source)
        catch_up(servers, feeds_of(subjects), lsn)
        servers.target_view.take()
        yield servers.seen(subjects, lsn)
    finally:
        servers.release()


def feeds_of(subjects: Sequence[Subject]) -> list[Feed]:
    """The subscriptions that bring the changes of *subjects*."""
    return list({each.feed.oid: each.feed for each in subjects if each.feed}.values())


def catch_up(servers: Servers, feeds: Sequence[Feed], lsn: str) -> None:
    """Return when the target has applied everything before *lsn*."""
    if not passed(servers.target, feeds, lsn, servers.deadline):
        raise TimedOut(
            "Subscription {0} had not applied the changes before {1} when {2} s were over: look at the target's log, or "
            "allow a longer timeout.".format(enumerate_names(quoted(each.name) for each in feeds), lsn, servers.seconds)
        )


def passed(target: Session, feeds: Sequence[Feed], lsn: str, end: float) -> bool:
    """Wait until the target has applied everything before *lsn*; False when that takes until *end* (time.monotonic()).

    The apply worker reports the LSN of a message before it handles it, and handles one after the other. So one that lies
    behind *lsn*, which is no commit of a table, says that all before it were handled, transactions that were streamed to
    parallel workers included, for whose end it waits.
    """
    pause = _SHORTEST_PAUSE_SECONDS
    while True:
        rows = target.rows(
            "SELECT s.subname, s.subenabled, EXISTS (SELECT FROM pg_stat_subscription AS w"
            "  WHERE w.subid = s.oid AND w.relid IS NULL AND w.received_lsn >= %s::pg_lsn) AS passed"
            " FROM pg_subscription AS s WHERE s.oid = ANY(%s)",
            [lsn, [each.oid for each in feeds]],
        )
        if len(rows) == len(feeds) and all(row.passed for row in rows):
            return True
        _refuse_ended(feeds, rows)
        if time.monotonic() > end:
            return False
        time.sleep(pause)
        pause = min(pause * 1.3, _LONGEST_PAUSE_SECONDS)


def _refuse_ended(feeds: Sequence[Feed], rows: Sequence[Any]) -> None:
    enabled = {row.subname for row in rows if row.subenabled}
    ended = [quoted(each.name) for each in feeds if each.name not in enabled]
    if ended:
        raise Refused(
            "Subscription {0} was disabled or dropped meanwhile; after an error the target's log tells which.".format(
                enumerate_names(ended)
            )
        )
