# SPDX-License-Identifier: GPL-3.0-or-later
"""Queries that read one moment of a database side by side, none of them longer than there is time."""

from __future__ import annotations

import concurrent.futures
import contextlib
import queue
import time
from typing import Any, Iterator, NamedTuple

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import (
    DistributedError,
    ServerRefused,
    TimedOut,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import snapshot

_LONGEST_SECONDS = 2_000_000
"""statement_timeout takes no more."""
_QUERY_CANCELED = "57014"

_STANDS = (
    "WITH RECURSIVE below AS (SELECT %s::oid AS oid UNION SELECT i.inhrelid FROM below JOIN pg_class AS p"
    "  ON p.oid = below.oid AND p.relkind = 'p' JOIN pg_inherits AS i ON i.inhparent = p.oid)"
    " SELECT count(*) = 0 FROM below JOIN pg_class AS c ON c.oid = below.oid"
    " WHERE c.relkind = 'r' AND c.relfilenode IS DISTINCT FROM pg_relation_filenode(c.oid)"
)
"""A table that was truncated or rewritten after a snapshot looks empty in it, see
https://www.postgresql.org/docs/current/mvcc-caveats.html. The snapshot still has the file's old number."""


class View:
    """A session that exports one snapshot after another. It locks no table: whoever waited for that to end would stand in the
    way of the sessions that read under the snapshot."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.snapshot = ""

    def take(self) -> None:
        """Begin, and export the snapshot."""
        self.session.execute(snapshot.BEGIN)
        self.snapshot = self.session.value("SELECT pg_export_snapshot()")

    def release(self) -> None:
        """End it, if there is one, whatever state it is in."""
        with contextlib.suppress(DistributedError):
            self.session.execute("ROLLBACK")


class Answer(NamedTuple):
    """What a query found."""

    rows: list[Any]
    stands: bool
    """whether the snapshot showed what the table held; if not, the rows mean nothing"""
    seconds: float


@contextlib.contextmanager
def in_time(session: Session, deadline: float) -> Iterator[None]:
    """Have the server end what runs in *session* at *deadline* (time.monotonic()), and raise TimedOut then."""
    remaining = min(deadline - time.monotonic(), _LONGEST_SECONDS)
    words = "The rows could not be read in the time that timeout allows: give it more, or compare fewer tables."
    if remaining <= 0:
        raise TimedOut(words)
    session.execute("SET statement_timeout = %s", [int(remaining * 1000) + 1])
    try:
        yield
    except ServerRefused as error:
        if error.details.get("sqlstate") != _QUERY_CANCELED or time.monotonic() < deadline:
            raise
        raise TimedOut(words) from None


class Readers:
    """At most *count* sessions at one server, opened when they are needed, that read until *deadline* (time.monotonic())."""

    def __init__(self, endpoint: Endpoint, count: int, deadline: float, settings: dict[str, str]) -> None:
        self._endpoint = endpoint
        self._settings = settings
        self._deadline = deadline
        self._ended = False
        self._idle: queue.SimpleQueue[Session] = queue.SimpleQueue()
        self._sessions: list[Session] = []
        self._threads = concurrent.futures.ThreadPoolExecutor(count)

    def __enter__(self) -> Readers:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._ended = True
        for session in self._sessions:
            with contextlib.suppress(Exception):  # it may have ended by itself
                session.cancel()
        self._threads.shutdown()
        for session in self._sessions:
            session.close()

    def ask(self, moment: str, table: int, query: Any) -> concurrent.futures.Future[Answer]:
        """Run *query*, which reads the *table* of that oid, or a part of it, under the snapshot *moment*."""
        return self._threads.submit(self._read, moment, table, query)

    def _read(self, moment: str, table: int, query: Any) -> Answer:
        session = self._session()
        began = time.monotonic()
        try:
            with in_time(session, self._deadline):
                if self._ended:
                    raise TimedOut("Another query has failed.")
                snapshot.join(session, [moment])
                rows = session.rows(query)
                # Asked later than the rows, whose lock lasts as long as the transaction.
                stands = session.value(_STANDS, [table])
        finally:
            with contextlib.suppress(DistributedError):
                session.execute("ROLLBACK")
            self._idle.put(session)
        return Answer(rows, stands, time.monotonic() - began)

    def _session(self) -> Session:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            session = snapshot.reading_session(self._endpoint, **self._settings)
            self._sessions.append(session)
            return session
