# SPDX-License-Identifier: GPL-3.0-or-later
"""A process that drops new slots when the run that has made them dies before anybody reads them, and ends what that has started.

It outlives the run, as those of keepers.py do. Slots of a copy that nobody finishes would only hold back WAL.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any, Callable, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import DistributedError
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.processes import FORK, isolate

APPLICATION_NAME = "postgresml.distributed: drops slots that nobody reads"
GRACE_SECONDS = 600
"""How long the next task, or the next run, may take to go on with a copy that is ready."""
_PERSISTENCE_SECONDS = 600
"""How long the server that has the slots may be away."""
_PAUSE_SECONDS = 1

_UNREAD = (
    "SELECT slot_name, active FROM pg_replication_slots WHERE slot_name = ANY(%s) AND plugin = 'pgoutput'"
    " AND (confirmed_flush_lsn IS NULL OR confirmed_flush_lsn <= %s::pg_lsn)"
)
"""Those that are as they were made: whoever reads one moves it on."""


class SlotGuard:
    """Guards the slots *names* on the server of *endpoint*. Once *over* says so they are another's: a cluster is in its place
    that needs them, or another run has begun, which makes its own. *end* ends what works for the run."""

    def __init__(
        self, endpoint: Endpoint, names: Sequence[str], over: Callable[[], bool], end: Callable[[], None]
    ) -> None:
        self._connection, theirs = FORK.Pipe()
        child = os.fork()
        if child == 0:
            try:
                if os.fork() == 0:
                    _live(endpoint, list(names), over, end, theirs)
            finally:
                os._exit(0)
        theirs.close()
        os.waitpid(child, 0)

    def created(self, last: str) -> None:
        """Let it know that the last of the slots begins at *last*."""
        self._connection.send(("created", last))

    def stay(self) -> None:
        """Have it wait for GRACE_SECONDS once it is let go of, or this process has ended."""
        self._connection.send(("stay", None))

    def leave(self) -> None:
        """Let go of it: unless it was told to stay, it drops the slots now, or when their server is back."""
        self._connection.close()

    def release(self) -> None:
        """End it: the slots are dropped."""
        with contextlib.suppress(OSError):
            self._connection.send(("release", None))
        self.leave()


def _live(
    endpoint: Endpoint, names: list[str], over: Callable[[], bool], end: Callable[[], None], connection: Any
) -> None:
    os.setsid()
    isolate({connection.fileno()})
    last, grace = "FFFFFFFF/FFFFFFFF", 0
    with contextlib.suppress(EOFError, OSError):
        while True:
            what, value = connection.recv()
            if what == "release":
                return
            if what == "created":
                last = value
            else:
                grace = GRACE_SECONDS
    if not grace and not over():
        with contextlib.suppress(DistributedError, OSError):
            end()
    _outlive(endpoint, names, last, grace, over)


def _outlive(endpoint: Endpoint, names: list[str], last: str, grace: int, over: Callable[[], bool]) -> None:
    """Drop the slots when the grace has passed and they are still as they were made."""
    patience = time.monotonic() + grace
    end = patience + _PERSISTENCE_SECONDS
    while time.monotonic() < end:
        time.sleep(_PAUSE_SECONDS)
        if over():
            return
        with contextlib.suppress(DistributedError), Session(endpoint, application_name=APPLICATION_NAME) as session:
            unread = session.rows(_UNREAD, [names, last])
            if grace and len(unread) < len(names):
                return  # they are read, or somebody else has dropped them
            if over():
                return  # while this session was opened
            if time.monotonic() > patience and _drop(session, [row.slot_name for row in unread if not row.active]):
                # One that is being made for a process that has just died comes a little later.
                names = [name for name in names if name not in {row.slot_name for row in unread}]
                if not names or time.monotonic() > patience + 30:
                    return


def _drop(session: Session, names: Sequence[str]) -> bool:
    for name in names:
        session.rows("SELECT pg_drop_replication_slot(%s)", [name])
    return True
