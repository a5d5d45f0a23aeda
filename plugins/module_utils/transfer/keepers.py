# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes that keep a snapshot of the source alive, for workers to read under, and outlive the run that started them.

CREATE_REPLICATION_SLOT exports a snapshot that ends with the connection or its next command, see
https://www.postgresql.org/docs/current/protocol-replication.html. Each keeper imports it and exports it anew, so that the
loss of one session is not the loss of the snapshot. When the run dies, the keepers wait for another one to take over. If none
comes, they drop the slot: without the snapshot nobody could fill the tables to where it begins, and it would only hold back WAL.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import DistributedError, Unreachable
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.processes import FORK, isolate
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.snapshot import Snapshot, reading_session

COUNT = 2
GRACE_SECONDS = 600
"""How long keepers wait for the next run when theirs has died. Their snapshot keeps the source from removing dead rows."""
_PROBE_SECONDS = 5
_ANSWER_SECONDS = 60


class Keeper(NamedTuple):
    """One process, and what its session exports."""

    connection: Any
    snapshot: str


def application_name(slot: str) -> str:
    """What the sessions call themselves that keep the snapshot of *slot*; a name may have 63 characters."""
    return "postgresml.distributed: keeps a snapshot " + slot[-22:]


def end(source: Session, slot: str) -> None:
    """End the sessions that keep the snapshot of *slot*, whichever run has started them."""
    source.rows(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s AND usename = current_user",
        [application_name(slot)],
    )


class Keepers:
    """COUNT processes. *names* are exported snapshots, of which one at least is alive."""

    def __init__(self, endpoint: Endpoint, slot: str, names: Sequence[str]) -> None:
        self._endpoint = endpoint
        self._slot = slot
        self._keepers: list[Keeper] = []
        self._tables: list[tuple[int, str, str]] = []
        try:
            for _number in range(COUNT):
                self._keepers.append(_start(endpoint, slot, names))
        except BaseException:
            self.release()
            raise

    @property
    def names(self) -> list[str]:
        """Of the snapshots that can be imported."""
        return [keeper.snapshot for keeper in self._keepers]

    def hold(self, tables: Sequence[tuple[int, str, str]]) -> None:
        """Have each keeper do Snapshot.hold()."""
        self._tables = list(tables)
        for keeper in self._keepers:
            _ask(keeper, self._tables)

    def look(self) -> bool:
        """Replace keepers that have ended; says whether there were any. Raises Unreachable when none is left."""
        alive = [keeper for keeper in self._keepers if _is_alive(keeper)]
        if len(alive) == len(self._keepers):
            return False
        if not alive:
            self._keepers = []
            raise Unreachable(
                "All sessions that keep the snapshot at {0} were lost, so that what is not copied yet can't be read any "
                "more.".format(self._endpoint)
            )
        self._keepers = alive
        with contextlib.suppress(DistributedError):  # the next look tries again
            while len(self._keepers) < COUNT:
                fresh = _start(self._endpoint, self._slot, self.names)
                _ask(fresh, self._tables)
                self._keepers.append(fresh)
        return True

    def release(self) -> None:
        """End them: the source may clean up rows again."""
        for keeper in self._keepers:
            with contextlib.suppress(OSError):
                keeper.connection.send(None)
        self.leave()

    def leave(self) -> None:
        """Let go of them; unless they were released they wait for the next run."""
        for keeper in self._keepers:
            keeper.connection.close()
        self._keepers = []


def _start(endpoint: Endpoint, slot: str, names: Sequence[str]) -> Keeper:
    """A process that isn't this one's child, so that nothing waits for it or ends it."""
    ours, theirs = FORK.Pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.fork() == 0:
                _live(endpoint, slot, names, theirs)
        finally:
            os._exit(0)
    theirs.close()
    os.waitpid(child, 0)
    return Keeper(ours, _answer(ours, endpoint))


def _ask(keeper: Keeper, tables: Any) -> None:
    keeper.connection.send(tables)
    _answer(keeper.connection, None)


def _answer(connection: Any, endpoint: Endpoint | None) -> Any:
    """What the process answers, or raises."""
    try:
        kind, value = connection.recv() if connection.poll(_ANSWER_SECONDS) else (Unreachable, ("It is silent.", {}))
    except (EOFError, OSError):
        kind, value = Unreachable, ("It has ended.", {})
    if kind is None:
        return value
    message, details = value
    if endpoint is None:
        raise kind(message, **details)
    raise kind("A session to keep the snapshot of {0} can't be had: {1}".format(endpoint, message), **details)


def _is_alive(keeper: Keeper) -> bool:
    try:
        return not keeper.connection.poll()  # it never speaks unasked, and its end makes the pipe readable
    except OSError:
        return False


def _live(endpoint: Endpoint, slot: str, names: Sequence[str], connection: Any) -> None:
    """The life of a keeper."""
    os.setsid()
    isolate({connection.fileno()})
    try:
        with reading_session(endpoint, application_name=application_name(slot)) as session:
            moment = Snapshot(session, names)
            beginning = session.value(_BEGINNING, [slot])
            connection.send((None, moment.name))
            if not _serve(moment, connection):
                _outlive(moment, slot, beginning)
    except DistributedError as error:
        with contextlib.suppress(OSError):
            connection.send((type(error), (str(error), error.details)))


def _serve(moment: Snapshot, connection: Any) -> bool:
    """Hold tables as asked; returns True when released, and False when the run has died."""
    while True:
        if not connection.poll(_PROBE_SECONDS):
            moment.session.execute("SELECT 1")
            continue
        try:
            tables = connection.recv()
        except (EOFError, OSError):
            return False
        if tables is None:
            return True
        moment.hold(tables)
        connection.send((None, None))


_BEGINNING = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s"
"""Where a slot begins that nobody has used yet, which tells it from a later one of its name."""


def _outlive(moment: Snapshot, slot: str, beginning: str | None) -> None:
    """Wait for another run, whose first act is to end this session, and if none comes drop the slot."""
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(1)
        moment.session.execute("SELECT 1")
    moment.session.execute("ROLLBACK")
    moment.session.rows(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s AND NOT active",
        [slot],
    )
