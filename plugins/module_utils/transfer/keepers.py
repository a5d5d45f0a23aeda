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

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import (
    Changed,
    DistributedError,
    ServerRefused,
    Unreachable,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.processes import FORK, isolate
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.snapshot import (
    UNLOCK,
    UNLOCKED,
    Extant,
    Snapshot,
    lock,
    reading_session,
)

COUNT = 2
APPLICATION_NAME = "postgresml.distributed: keeps a snapshot"
GRACE_SECONDS = 600
"""How long keepers wait for the next run when theirs has died. Their snapshot keeps the source from removing dead rows."""
_STAY, _LET_GO = "stay", "let go"
_PAUSE_SECONDS = 0.1
_HOLD_SECONDS = 60
_HOLD_MILLISECONDS = 200
_PROBE_SECONDS = 5
_ANSWER_SECONDS = 60


class Keeper(NamedTuple):
    """One process, and what its session exports."""

    connection: Any
    snapshot: str
    backend: int
    """process id at the source"""


class Keepers:
    """COUNT processes. *names* are exported snapshots, of which one at least is alive."""

    def __init__(self, endpoint: Endpoint, slot: str, names: Sequence[str]) -> None:
        self._endpoint = endpoint
        self._slot = slot
        self._keepers: list[Keeper] = []
        self._tables: list[Extant] = []
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

    @property
    def backends(self) -> list[int]:
        return [keeper.backend for keeper in self._keepers]

    def hold(self, tables: Sequence[Extant]) -> None:
        """Have each keeper lock *tables*, all at a time because somebody who waits for a stronger lock stands between those
        who have theirs and those who haven't. Then all let go and try again."""
        self._tables = list(tables)
        deadline = time.monotonic() + _HOLD_SECONDS
        while True:
            failures = self._ask_all(self._tables)
            if not failures:
                return
            worst = next((each for each in failures if each.details.get("sqlstate") != "55P03"), None)
            if worst or time.monotonic() > deadline:
                raise worst or failures[0]
            self._let_go()

    def _ask_all(self, what: Any) -> list[DistributedError]:
        """Ask all at the same time; returns what they refused."""
        for keeper in self._keepers:
            _send(keeper, what)
        failures = []
        for keeper in self._keepers:
            try:
                _answer(keeper.connection, self._endpoint)
            except DistributedError as error:
                failures.append(error)
        return failures

    def _let_go(self) -> None:
        """Let those pass who wait for a table."""
        for failure in self._ask_all(_LET_GO):
            raise failure
        time.sleep(_PAUSE_SECONDS)

    def hold_again(self) -> None:
        """Let those pass who wait for a table, and then do as in hold()."""
        self._let_go()
        self.hold(self._tables)

    def stay(self) -> None:
        """Have them outlive this run, which has noted whose sessions they are. Those that nobody knows of end with it."""
        for keeper in self._keepers:
            with contextlib.suppress(Unreachable):  # look() will tell
                _ask(keeper, self._endpoint, _STAY)

    @property
    def alive(self) -> bool:
        """Whether one of them still has its session."""
        for keeper in self._keepers:
            with contextlib.suppress(DistributedError):
                _ask(keeper, self._endpoint, [])
                return True
        return False

    def look(self) -> bool:
        """Replace keepers that have ended; says whether there were any. Raises Unreachable when none is left."""
        alive = [keeper for keeper in self._keepers if _is_alive(keeper)]
        if not alive:
            self._keepers = []
            raise Unreachable(
                "All sessions that keep the snapshot at {0} were lost, so that what is not copied yet can't be read any "
                "more.".format(self._endpoint)
            )
        if len(alive) == COUNT:
            return False
        self._keepers = alive
        with contextlib.suppress(DistributedError):  # the next look tries again
            while len(self._keepers) < COUNT:
                fresh = _start(self._endpoint, self._slot, self.names)
                _ask(fresh, self._endpoint, self._tables)
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
    try:
        name, backend = _answer(ours, endpoint)
    except DistributedError as error:
        raise type(error)(
            "A session to keep the snapshot of {0} can't be had: {1}".format(endpoint, error), **error.details
        ) from None
    return Keeper(ours, name, backend)


def _send(keeper: Keeper, what: Any) -> None:
    with contextlib.suppress(OSError):  # of one that has ended, as its answer tells
        keeper.connection.send(what)


def _ask(keeper: Keeper, endpoint: Endpoint, what: Any) -> None:
    _send(keeper, what)
    _answer(keeper.connection, endpoint)


def _answer(connection: Any, endpoint: Endpoint) -> Any:
    """What the process answers, or raises."""
    try:
        if not connection.poll(_ANSWER_SECONDS):
            raise Unreachable("A process that keeps the snapshot of {0} doesn't answer.".format(endpoint))
        kind, value = connection.recv()
    except (EOFError, OSError):
        raise Unreachable("A process that keeps the snapshot of {0} has ended.".format(endpoint)) from None
    if kind is None:
        return value
    message, details = value
    raise kind(message, **details)


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
        with reading_session(endpoint, application_name=APPLICATION_NAME) as session:
            moment = Snapshot(session, names)
            session.execute(UNLOCKED)
            begin = session.value(_BEGIN_OF_SLOT, [slot])
            connection.send((None, (moment.name, session.value("SELECT pg_backend_pid()"))))
            if _serve(moment, connection):
                _outlive(moment, slot, begin)
    except DistributedError as error:
        with contextlib.suppress(OSError):
            connection.send((type(error), (str(error), error.details)))


def _serve(moment: Snapshot, connection: Any) -> bool:
    """Hold tables as asked, until released or the run has died; returns whether to outlive that."""
    stays = False
    while True:
        asked = connection.poll(_PROBE_SECONDS)
        moment.session.execute("SELECT 1")
        if not asked:
            continue
        try:
            what = connection.recv()
        except (EOFError, OSError):
            return stays
        if what is None:
            return False
        answer: tuple[Any, Any] = (None, None)
        if what == _STAY:
            stays = True
        elif what == _LET_GO:
            moment.session.execute(UNLOCK)
        else:
            try:
                moment.session.shorten_lock_timeout(_HOLD_MILLISECONDS)
                lock(moment.session, what)
            except (Changed, ServerRefused) as error:
                moment.session.execute(UNLOCK)
                answer = (type(error), (str(error), error.details))
        connection.send(answer)


_BEGIN_OF_SLOT = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s"
"""Until somebody uses it; another slot of that name begins elsewhere."""


def _outlive(moment: Snapshot, slot: str, begin: str | None) -> None:
    """Wait for another run, which ends this session, and if none comes drop the slot, provided that it is the same.

    Nobody has to wait for a table meanwhile: another run locks them anew, and sees then what has happened to them.
    """
    moment.session.execute(UNLOCK)
    end = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < end:
        time.sleep(1)
        moment.session.execute("SELECT 1")
    moment.session.execute("ROLLBACK")
    moment.session.rows(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
        " WHERE slot_name = %s AND confirmed_flush_lsn = %s::pg_lsn AND NOT active",
        [slot, begin],
    )
