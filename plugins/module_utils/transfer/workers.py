# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes that copy rows and build indexes side by side, and the order in which they do it."""

from __future__ import annotations

import collections
import multiprocessing.connection
import os
import threading
import time
from typing import Any, Callable, Iterable, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import (
    DistributedError,
    Refused,
    ServerRefused,
    Unreachable,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import rowfiles, snapshot
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.processes import FORK, die_with, isolate
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.stream import BLOCK, Stream


class Move(NamedTuple):
    """Rows from one place to another: from the source or a file, to the target or a file."""

    label: str
    """the table, for messages"""
    read: str
    """COPY ... TO STDOUT, or the path of a file"""
    write: str
    """COPY ... FROM STDIN, or the path of a file"""
    first: str | None = None
    """a statement at the beginning of the transaction of the write"""
    last: str | None = None
    """a statement at its end, with one parameter, the number of rows"""


class Source(NamedTuple):
    """Where moves read from: a server under a snapshot, of which any of the names will do, or files."""

    endpoint: Endpoint | None
    snapshots: Sequence[str]
    encoding: str
    held: Sequence[tuple[int, str, str]] = ()
    """tables (oid, schema, name) that each worker locks before it reads the first, so as not to stand behind somebody who
    waits for a stronger lock"""


class Target(NamedTuple):
    """Where moves write to: a server with these settings for the session, or files."""

    endpoint: Endpoint | None
    settings: Mapping[str, str]
    compress: int


class Job(NamedTuple):
    """Something for a worker."""

    key: Any
    move: Move | None
    statements: Sequence[str]
    """run one by one, when there is no move"""
    shared: frozenset[Any] = frozenset()
    """what others with it in their *shared* may use meanwhile"""
    exclusive: frozenset[Any] = frozenset()
    """what nobody else may use meanwhile"""
    last: bool = False
    """whether it waits until only such jobs are left"""


class Lane:
    """A way for rows: a thread reads them into blocks, and its caller writes them. Both do so in C, without Python's lock."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._session: Session | None = None
        self._stream = Stream()
        self._reader: threading.Thread | None = None

    def move(self, move: Move, target: Session | None, compress: int) -> int | None:
        """Carry out *move* and return the number of rows, which both servers' COPY tags agree on; None between files."""
        self._stream = stream = Stream()
        self._reader = reader = threading.Thread(target=self._read, args=(move.read, stream), daemon=True)
        reader.start()
        try:
            if target is None:
                rowfiles.write(move.write, compress, stream)
                written = None
            else:
                written = target.copy_in(move.write, stream, BLOCK)
        except DistributedError as error:
            # psycopg2 makes an error of its own of one that it meets while it reads.
            verb, cause = ("read", stream.failure) if stream.failure else ("copied", error)
            kind = Unreachable if isinstance(cause, Unreachable) else ServerRefused
            raise kind("{0} could not be {1}: {2}".format(move.label, verb, cause)) from None
        reader.join()
        if None not in (stream.rows, written) and stream.rows != written:
            raise ServerRefused(
                "{0} was sent with {1} rows and arrived with {2}: nothing was kept.".format(
                    move.label, stream.rows, written
                )
            )
        return written if stream.rows is None else stream.rows

    def _read(self, request: str, stream: Stream) -> None:
        failure: Exception | None = None
        try:
            if self._source.endpoint is None:
                rowfiles.read(request, stream.sink)
            else:
                stream.rows = self.reading_session(self._source.endpoint).copy_out(request, stream.sink)
        except Exception as error:  # without its end, the stream's reader would wait for ever
            failure = error
        stream.end(failure)

    def reading_session(self, endpoint: Endpoint) -> Session:
        """The session that reads, as long as the lane is open."""
        if self._session is None:
            self._session = snapshot.reading_session(endpoint, client_encoding=self._source.encoding)
            snapshot.join(self._session, self._source.snapshots)
            self._session.execute(snapshot.UNLOCKED)
        return self._session

    def hold(self) -> None:
        """Lock the tables that are to be held, or fail soon."""
        if self._source.endpoint is not None:
            session = self.reading_session(self._source.endpoint)
            session.shorten_lock_timeout(_HOLD_MILLISECONDS)
            snapshot.lock(session, self._source.held)

    def let_go(self) -> None:
        """Give these locks back, and the tries to get them."""
        if self._session:
            self._session.execute(snapshot.UNLOCK)

    def close(self) -> None:
        """Let the source go, and a thread that still reads from it."""
        self._stream.abandon()
        if self._session and self._reader and self._reader.is_alive():
            self._session.cancel()
            self._reader.join()
        if self._session:
            self._session.close()
            self._session = None


WATCH_SECONDS = 10
_HOLD_MILLISECONDS = 200
_HOLD_SECONDS = 60
_HOLD, _LET_GO = "hold", "let go"
_MOST_JOBS = 4
"""That many sessions read from the primary at most, unless more are asked for."""


def jobs(wanted: int | None) -> int:
    """How many workers there are to be: as many as *wanted*, or else as there are processors, up to _MOST_JOBS."""
    if wanted is not None and wanted < 1:
        raise Refused("jobs is {0}: at least one is needed.".format(wanted))
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return wanted or min(cpus, _MOST_JOBS)


class Workers:
    """*count* processes with a session at the target and a lane each; both are opened when they are first needed."""

    def __init__(self, count: int, source: Source, target: Target) -> None:
        self._connections: list[Any] = []
        self._processes: list[Any] = []
        for _number in range(count):
            ours, theirs = FORK.Pipe()
            process = FORK.Process(target=_work, args=(source, target, theirs, os.getpid()))
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: Any, *_exc_info: Any) -> None:
        for connection, process in zip(self._connections, self._processes):
            if kind is not None:
                process.kill()
            connection.close()
        for process in self._processes:
            process.join()

    def hold(self, again: Callable[[], None]) -> bool:
        """Have every worker lock the source's tables that are to be held; says whether anybody could come in between.

        Somebody who waits for a stronger lock stands between those who have theirs and those who haven't. Then all let go, and
        *again* has others do so too and lock the tables anew.
        """
        deadline = time.monotonic() + _HOLD_SECONDS
        let_go = False
        while True:
            failures = self._ask(_HOLD)
            if not failures:
                return let_go
            if failures[0].details.get("sqlstate") != "55P03" or time.monotonic() > deadline:
                raise failures[0]
            let_go = True
            self._ask(_LET_GO)
            again()

    def _ask(self, what: str) -> list[ServerRefused]:
        """Have all workers do something at the same time; returns what was refused."""
        failures = []
        for connection in self._connections:
            _send(connection, what)
        for connection in self._connections:
            try:
                _result(connection)
            except ServerRefused as error:
                failures.append(error)
        return failures

    def run(
        self,
        jobs: Iterable[Job],
        done: Callable[[Job, int | None], Iterable[Job]],
        moved: Callable[[], None],
        meanwhile: Callable[[], None] = lambda: None,
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        """Run *jobs* and those that *done*, called with each job and its rows, gives in return; those with a move first.

        *meanwhile* is called once, when the workers have begun, *moved* when no rows are left to be read, and *watch*
        before rows are taken for copied, and every WATCH_SECONDS until then.
        """
        queue = _Queue(jobs)
        busy: dict[Any, Job] = {}
        idle = list(self._connections)
        _hand_out(queue, idle, busy)
        meanwhile()
        reading = True
        while True:
            if reading and not queue.moves and not any(job.move for job in busy.values()):
                reading = False
                for connection in self._connections:
                    _send(connection, None)
                moved()
            if not busy:
                return
            ready: list[Any] = multiprocessing.connection.wait(list(busy), WATCH_SECONDS if reading else None)
            results = [(connection, _result(connection)) for connection in ready]
            if reading:
                watch()
            for connection, rows in results:
                idle.append(connection)
                queue.add(done(busy.pop(connection), rows))
            _hand_out(queue, idle, busy)


def _hand_out(queue: _Queue, idle: list[Any], busy: dict[Any, Job]) -> None:
    """Give jobs to the connections that are idle, as long as there are jobs that can run beside the others."""
    while idle:
        job = queue.next(busy.values())
        if job is None:
            return
        connection = idle.pop(0)
        if job.move is None:  # moves come first, so this worker has read its last rows: it lets the source go
            _send(connection, None)
        _send(connection, (job.move, job.statements))
        busy[connection] = job


def _send(connection: Any, message: Any) -> None:
    try:
        connection.send(message)
    except OSError:
        raise ServerRefused(_WORKER_GONE) from None


def _result(connection: Any) -> int | None:
    try:
        rows, failure = connection.recv()
    except EOFError:
        raise ServerRefused(_WORKER_GONE) from None
    if failure is not None:
        kind, message, details = failure
        raise kind(message, **details)
    result: int | None = rows
    return result


_WORKER_GONE = "A process that copies rows was killed. The target is as it was; run it again."


class _Queue:
    """Jobs that wait: moves first, and none that would wait at the server for a lock of another."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self.moves: collections.deque[Job] = collections.deque()
        self._others: list[Job] = []
        self.add(jobs)

    def add(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            if job.move:
                self.moves.append(job)
            else:
                self._others.append(job)

    def next(self, running: Iterable[Job]) -> Job | None:
        if self.moves:
            return self.moves.popleft()
        running = list(running)
        exclusive = frozenset().union(*[job.exclusive for job in running])
        used = exclusive.union(*[job.shared for job in running])
        ending = all(job.last for job in [*running, *self._others])
        for number, job in enumerate(self._others):
            if job.last <= ending and not (job.exclusive & used or job.shared & exclusive):
                return self._others.pop(number)
        return None


def _work(source: Source, target: Target, connection: Any, parent: int) -> None:
    """The life of a worker: one job after the other; None says that there are no more rows to move."""
    isolate({connection.fileno()})
    die_with(parent)
    session = None
    lane = None
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        if message is None:
            if lane:
                lane.close()
                lane = None
            continue
        rows = None
        failure = None
        try:
            if message in (_HOLD, _LET_GO):
                lane = lane or Lane(source)
                (lane.hold if message == _HOLD else lane.let_go)()
                move, statements = None, []
            else:
                move, statements = message
            if session is None and target.endpoint is not None:
                session = writing_session(target.endpoint, target.settings)
            if move:
                lane = lane or Lane(source)
                rows = _move(lane, session, move, target.compress)
            elif session:
                for statement in statements:
                    session.execute(statement)
        except DistributedError as error:
            failure = (type(error), str(error), error.details)
        except Exception as error:  # a worker that died silently would say less
            failure = (ServerRefused, "A worker failed: {0!r}".format(error), {})
        connection.send((rows, failure))


def _move(lane: Lane, session: Session | None, move: Move, compress: int) -> int | None:
    if session is None or (move.first is None and move.last is None):
        return lane.move(move, session, compress)
    with session.transaction():
        if move.first is not None:
            session.execute(move.first)
        rows = lane.move(move, session, compress)
        if move.last is not None:
            session.execute(move.last, [rows])
    return rows


def writing_session(endpoint: Endpoint, settings: Mapping[str, str]) -> Session:
    """A session that loads rows and builds indexes."""
    session = Session(endpoint, **settings)
    session.without_timeouts()
    session.execute("SELECT pg_advisory_lock_shared({0}, {1})".format(*WORKERS_LOCK))
    return session


RUN_LOCK = (0x70676D6C, 0)
"""Advisory lock of the one run that a database may have at a time."""
WORKERS_LOCK = (0x70676D6C, 1)
"""Shared by the workers of that run, so that the next one finds those that outlived it."""
