# SPDX-License-Identifier: GPL-3.0-or-later
"""A moment in which source and target must hold the same rows: nobody may write the source's tables until the target has
applied all that was written before. That takes as long as the target is behind, which is a few milliseconds where it keeps up.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, Iterator, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import (
    DistributedError,
    Refused,
    TimedOut,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import moments, subscribed
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.moments import Moment, Servers
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.subjects import Subject
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    compose,
    enumerate_names,
    identifier,
    listed,
    quoted,
    raw,
)

LONGEST_HOLD_SECONDS = 2.0
"""How long the tables may be locked, until the target has caught up or the attempt is given up."""
_SMALL_LAG_SECONDS = 0.5
"""How soon the target must catch up before the tables are locked at all."""
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
_RETRIED = ("55P03", "57014", "40P01")
"""lock_not_available, query_canceled, deadlock_detected"""
MAINTAIN_SINCE = 170000


class Fence:
    """Makes such moments, one after the other."""

    def __init__(self, servers: Servers, lock_timeout: int) -> None:
        self._servers = servers
        self._lock_timeout = lock_timeout
        """milliseconds for all locks together"""
        self._locker: Session | None = None

    def __enter__(self) -> Fence:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        if self._locker:
            self._locker.close()

    @contextlib.contextmanager
    def moment(self, subjects: Sequence[Subject]) -> Iterator[Moment]:
        """The first moment of *subjects* that can be had, until the time is over."""
        try:
            yield self._first(subjects)
        finally:
            self._servers.release()

    def _first(self, subjects: Sequence[Subject]) -> Moment:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            self._wait_for_small_lag(subjects)
            reason = blockers(self._servers.source, subjects, self._lock_timeout)
            try:
                moment = None if reason else self._attempt(subjects)
                if moment:
                    return moment
                reason = reason or "the target did not catch up while they were locked for {0:g} s".format(
                    LONGEST_HOLD_SECONDS
                )
            except DistributedError as error:
                if error.details.get("sqlstate") not in _RETRIED and not (self._locker and self._locker.closed):
                    raise
                reason = blockers(self._servers.source, subjects) or str(error)
            if time.monotonic() + pause > self._servers.deadline:
                raise TimedOut(
                    "{0} could not be locked and compared within {1} s: {2}. Nothing is left locked; try again when that has "
                    "ended, or use method=converge.".format(
                        enumerate_names(each.label for each in subjects), self._servers.seconds, reason.rstrip(".")
                    )
                )
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _wait_for_small_lag(self, subjects: Sequence[Subject]) -> None:
        while True:
            began = time.monotonic()
            moments.catch_up(self._servers, moments.feeds_of(subjects), subscribed.mark(self._servers.source))
            if time.monotonic() - began < _SMALL_LAG_SECONDS:
                return

    def _attempt(self, subjects: Sequence[Subject]) -> Moment | None:
        """One moment, or None when the target is too slow for it."""
        servers = self._servers
        locker = self._open_locker()
        try:
            locker.execute("BEGIN")
            locker.execute(_lock(subjects))
            began = time.monotonic()
            lsn = subscribed.mark(servers.source)
            servers.source_view.take()
            if not moments.passed(servers.target, moments.feeds_of(subjects), lsn, began + LONGEST_HOLD_SECONDS):
                self._let_go()
                return None
            servers.target_view.take()
            # Fails when the server has ended the session, and with it the lock, before its time.
            locker.execute("ROLLBACK")
        except BaseException:
            self._let_go()
            raise
        return servers.seen(subjects, lsn, 1000 * (time.monotonic() - began))

    def _let_go(self) -> None:
        with contextlib.suppress(DistributedError):
            if self._locker:
                self._locker.execute("ROLLBACK")
        self._servers.release()

    def _open_locker(self) -> Session:
        """The session that locks. The server itself ends it when this side doesn't end the lock in time."""
        if self._locker is None or self._locker.closed:
            self._locker = Session(
                self._servers.source.endpoint,
                lock_timeout="0",
                statement_timeout=str(self._lock_timeout),
                idle_in_transaction_session_timeout=str(int(1000 * LONGEST_HOLD_SECONDS) + 1000),
            )
        return self._locker


def _lock(subjects: Sequence[Subject]) -> Any:
    """Against writes; a partitioned table with its partitions, and others without their children."""
    names = [
        compose("{only}{name}", only=raw("ONLY " if each.source.kind == "r" else ""), name=identifier(*each.key))
        for each in subjects
    ]
    return compose("LOCK TABLE {names} IN SHARE MODE", names=listed(names))


def refuse(source: Session, subjects: Sequence[Subject], lock_timeout: int) -> None:
    """Refuse what a lock would be refused for, and one that could do harm."""
    _refuse_long_timeout(source, lock_timeout)
    rights = "UPDATE, DELETE, TRUNCATE" + (", MAINTAIN" if source.version >= MAINTAIN_SINCE else "")
    rows = source.rows(
        "SELECT oid FROM pg_class WHERE oid = ANY(%s) AND NOT has_table_privilege(oid, %s)",
        [[each.source.oid for each in subjects], rights],
    )
    closed = {row.oid for row in rows}
    if closed:
        user = source.endpoint.keywords.get("user", "")
        names = enumerate_names(each.label for each in subjects if each.source.oid in closed)
        raise Refused(
            'User "{0}" may not lock {1} against writes in {2}, which method=fence does for a moment: GRANT {3} ON {1} TO {4} '
            "there, let source.user be their owner, or use method=converge, which locks nothing.".format(
                user,
                names,
                source.endpoint,
                "MAINTAIN" if source.version >= MAINTAIN_SINCE else "UPDATE",
                quoted(user),
            )
        )


def _refuse_long_timeout(source: Session, lock_timeout: int) -> None:
    patience = source.value("SELECT setting::int FROM pg_settings WHERE name = 'deadlock_timeout'")
    if lock_timeout >= patience:
        raise Refused(
            "lock_timeout is {0} ms and deadlock_timeout of {1} is {2} ms: let it be shorter, so that no transaction there is "
            "ended for a deadlock with this one.".format(lock_timeout, source.endpoint, patience)
        )


def blockers(source: Session, subjects: Sequence[Subject], milliseconds: int = 0) -> str:
    """Who holds locks that keep the tables from being locked against writes, in transactions that are older than that: behind
    a lock that waits for them whoever writes has to wait too."""
    rows = source.rows(
        "SELECT a.pid, coalesce(a.usename, p.owner) AS role, a.backend_type, a.state, p.gid, string_agg(DISTINCT"
        "  l.relation::regclass::text, ', ') AS relations,"
        "  date_trunc('second', clock_timestamp() - coalesce(a.xact_start, p.prepared))::text AS age"
        " FROM pg_locks AS l LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid"
        " LEFT JOIN pg_locks AS x ON l.pid IS NULL AND x.pid IS NULL AND x.locktype = 'transactionid'"
        "  AND x.virtualtransaction = l.virtualtransaction"
        " LEFT JOIN pg_prepared_xacts AS p ON p.transaction = x.transactionid"
        " WHERE l.granted AND l.locktype = 'relation' AND l.mode NOT IN ('AccessShareLock', 'RowShareLock', 'ShareLock')"
        " AND coalesce(clock_timestamp() - coalesce(a.xact_start, p.prepared) >= %s * interval '1 ms', true)"
        " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND l.relation IN ("
        + _TREE
        + ") GROUP BY a.pid, a.usename, p.owner, a.backend_type, a.state, a.xact_start, p.gid, p.prepared"
        " ORDER BY coalesce(a.xact_start, p.prepared) LIMIT 3",
        [milliseconds, [each.source.oid for each in subjects]],
    )
    return "; ".join(map(_holder, rows))


_TREE = (
    "WITH RECURSIVE below AS (SELECT oid FROM unnest(%s::oid[]) AS asked(oid)"
    " UNION SELECT i.inhrelid FROM below JOIN pg_inherits AS i ON i.inhparent = below.oid) SELECT oid FROM below"
)


def _holder(row: Any) -> str:
    age = " for {0}".format(row.age) if row.age else ""
    if row.gid is not None:
        words = 'prepared transaction "{0}" of user "{1}" holds {2}{3}'
        return words.format(row.gid, row.role, row.relations, age)
    who = 'user "{0}"'.format(row.role) if row.role else str(row.backend_type)
    state = " ({0}{1})".format(row.state, age) if row.state else ""
    return "process {0} of {1}{2} holds {3}".format(row.pid, who, state, row.relations)
