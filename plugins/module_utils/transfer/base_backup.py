# SPDX-License-Identifier: GPL-3.0-or-later
"""A physical copy of a running cluster, by pg_basebackup."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Iterator, Mapping, NamedTuple

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import ServerRefused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.server_programs import (
    ServerPrograms,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import compose, literal

APPLICATION_NAME = "postgresml.distributed: copies the cluster"
_ENDING_SECONDS = 10


class Pace(NamedTuple):
    """How much of the upstream a copy may take."""

    max_rate: str | None
    """kilobytes per second, or with the unit that pg_basebackup takes"""
    archived: bool
    """whether WAL comes from the archive"""


def take(
    endpoint: Endpoint,
    directory: str,
    tablespaces: Mapping[str, str],
    pace: Pace,
    programs: ServerPrograms,
) -> None:
    """Copy the cluster of *endpoint*, which names no database, into *directory*, which is empty or isn't there.

    With a rate the checkpoint before is spread, as the server's own are, and waited for. WAL has a connection of its own, since
    what is written meanwhile would be gone when it were fetched at the end: a process of its
    own, which outlives a pg_basebackup that is killed, see end(). No slot is needed for that: reserving() is there.
    Nothing is on disk for sure when it has ended, see synchronizing().
    """
    arguments = [
        "--pgdata=" + directory,
        "--no-password",
        "--no-slot",
        "--no-sync",
        "--no-manifest",
        "--label=postgresml.distributed",
    ]
    arguments += ["--wal-method=none"] if pace.archived else ["--wal-method=stream"]
    arguments += ["--checkpoint=" + ("spread" if pace.max_rate else "fast")]
    arguments += ["--max-rate=" + pace.max_rate] if pace.max_rate else []
    for old, new in sorted(tablespaces.items()):
        arguments.append("--tablespace-mapping={0}={1}".format(_escaped(old), _escaped(new)))
    with endpoint.environment() as environment:
        environment["PGAPPNAME"] = APPLICATION_NAME
        try:
            programs.run("pg_basebackup", arguments, environment)
        except ServerRefused as error:
            raise ServerRefused(
                "The cluster at {0} was not copied: {1}".format(endpoint.keywords.get("host"), error)
            ) from None


SYNCHRONIZE = "initdb"
"""The program that brings all files of a cluster to disk, whoever has written them."""


def synchronizing(directory: str) -> list[str]:
    """The arguments with which it does that, see https://www.postgresql.org/docs/current/app-initdb.html."""
    return ["--sync-only", "--pgdata=" + directory]


def end(directory: str) -> None:
    """End what fetches WAL into *directory* for a run that has ended: it would do that for ever, and into the next copy, too.
    When this returns nothing writes there any more, or something hangs in the kernel."""
    patience = time.monotonic() + _ENDING_SECONDS
    while _kill(directory) and time.monotonic() < patience:
        time.sleep(0.02)


def _kill(directory: str) -> bool:
    """Whether there was anything to kill; what has ended and nobody has waited for has no command line."""
    argument = os.fsencode("--pgdata=" + directory)
    found = False
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit():
                with open(os.path.join("/proc", name, "cmdline"), "rb") as file:
                    command = file.read().split(b"\0")
                if argument in command and os.path.basename(command[0]) == b"pg_basebackup":
                    found = True
                    os.kill(int(name), signal.SIGKILL)
    return found


def _escaped(path: str) -> str:
    return path.replace("\\", "\\\\").replace("=", "\\=")


@contextlib.contextmanager
def reserving(endpoint: Endpoint, name: str) -> Iterator[Session]:
    """Have the upstream keep WAL from now on, as long as the block runs: its slot is temporary, and ends with this session."""
    with Session(endpoint) as session:
        session.without_timeouts()
        session.rows(
            compose(
                "SELECT pg_create_physical_replication_slot({name}, immediately_reserve => true, temporary => true)",
                name=literal(name),
            )
        )
        yield session
