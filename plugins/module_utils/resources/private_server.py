# SPDX-License-Identifier: GPL-3.0-or-later
"""A server that nobody but this process can reach, on a copied cluster that is being made a replica.

What it writes is on disk when somebody synchronizes the cluster afterwards, since a copy that a crash has damaged is made anew.
It listens on a socket in a directory of its own, has no configuration file of the cluster's, loads no libraries, and starts no
worker of logical replication: nothing that came along with the copy runs here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from typing import Callable, Iterator, Mapping

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import (
    DistributedError,
    ServerRefused,
    Unreachable,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.server_programs import (
    Owner,
    ServerPrograms,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import data_directory

_SETTINGS = {
    "listen_addresses": "",
    "shared_preload_libraries": "",
    "session_preload_libraries": "",
    "local_preload_libraries": "",
    "max_logical_replication_workers": "0",
    "max_wal_senders": "0",
    "jit": "off",
    "fsync": "off",
    "autovacuum": "off",
    "archive_mode": "off",
    "hot_standby": "off",
    "ssl": "off",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_statement": "none",
    "log_min_error_statement": "panic",
    "log_min_duration_statement": "-1",
    "log_line_prefix": "",
    "lc_messages": "C",
    "max_connections": "20",
    "max_worker_processes": "8",
}
_EVENT_TRIGGERS_SINCE = 170000
_PAUSE_SECONDS = 0.02
_SILENCE_SECONDS = 60
_LONGEST_BYTES = 80
"""of the path of a directory for a socket, whose own may have 107"""
_FATAL = ("FATAL:  ", "PANIC:  ")
_TOLD = "due to administrator command"
_NEVER = ("has already been removed", "requested starting point", "No space left on device")
"""What the server repeats for ever when WAL that it needs is gone, or it has no room for it"""


class PrivateServer:
    """A server on the cluster in *directory*, whose other files are in *beside*."""

    PORT = 5432
    """of its socket, in a directory of its own"""

    def __init__(self, directory: str, beside: str, version: int, owner: Owner, programs: ServerPrograms) -> None:
        self._directory, self._beside, self._version = directory, beside, version
        self._owner, self._programs = owner, programs
        self._log = os.path.join(beside, "server.log")
        self.socket_directory = ""

    def configure(self, settings: Mapping[str, str]) -> str:
        """Write its configuration; returns the path of the file."""
        if not self.socket_directory:
            self.socket_directory = self._place_of_socket()
        hba, ident, configuration = (os.path.join(self._beside, name + ".conf") for name in ("hba", "ident", "server"))
        self._owner.write(hba, "local all all trust\n")
        self._owner.write(ident, "")
        everything = {
            **_SETTINGS,
            **({"event_triggers": "off"} if self._version >= _EVENT_TRIGGERS_SINCE else {}),
            "port": str(self.PORT),
            "data_directory": self._directory,
            "hba_file": hba,
            "ident_file": ident,
            "unix_socket_directories": self.socket_directory,
            **settings,
        }
        lines = [
            "{0} = '{1}'\n".format(name, value.replace("\\", "\\\\").replace("'", "''"))
            for name, value in everything.items()
        ]
        self._owner.write(configuration, "".join(lines))
        return configuration

    def _place_of_socket(self) -> str:
        """Beside the other files, unless a socket's path would be too long there."""
        if len(os.fsencode(self._beside)) < _LONGEST_BYTES:
            return self._beside
        elsewhere = tempfile.mkdtemp(prefix="pgml-", dir="/tmp")
        self._owner.give(elsewhere)
        return elsewhere

    def start(self, settings: Mapping[str, str], look: Callable[[], None] = lambda: None) -> None:
        """Start it, and return when it takes connections; *look* is called meanwhile, and may raise to give up."""
        configuration = self.configure(settings)
        self._owner.write(self._log, "")
        arguments = ["start", "--no-wait", "--silent", "--pgdata=" + self._directory, "--log=" + self._log]
        self._programs.run("pg_ctl", [*arguments, "--options=-c config_file=" + _shell(configuration)])
        self._wait(look)

    def _wait(self, look: Callable[[], None]) -> None:
        started, patience = False, time.monotonic() + _SILENCE_SECONDS
        while True:
            status = self._status()
            if status == "ready":
                return
            running = data_directory.is_running(self._directory)
            self._raise_what_it_says(started and not running)
            started = started or running
            if not started and time.monotonic() > patience:
                raise ServerRefused("The copied cluster doesn't start, and doesn't say why.")
            look()
            time.sleep(_PAUSE_SECONDS)

    def _status(self) -> str:
        """What the postmaster says of itself, in the last line of its file."""
        try:
            with open(os.path.join(self._directory, "postmaster.pid"), encoding="utf-8") as file:
                lines = file.read().splitlines()
        except FileNotFoundError:
            return ""
        return lines[7].strip() if len(lines) > 7 else ""

    def _raise_what_it_says(self, ended: bool) -> None:
        lines, fatal = self._said()
        # What stops it at once does so before it has a file that says that it runs.
        ended = ended or (bool(fatal) and not data_directory.is_running(self._directory))
        for line in fatal:
            if ended or any(words in line for words in _NEVER):
                raise ServerRefused("The copied cluster doesn't start: {0}".format(_sentence(line)))
        if ended:
            raise ServerRefused("The copied cluster doesn't start: {0}".format(_sentence(lines[-1] if lines else "")))

    def _said(self) -> tuple[list[str], list[str]]:
        """The lines of its log, and those of them that say why something ended."""
        with open(self._log, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
        # Processes that are told to end say so, too, before or after the one for which they are.
        return lines, [line for line in lines if any(mark in line for mark in _FATAL) and _TOLD not in line]

    @contextlib.contextmanager
    def explaining(self) -> Iterator[None]:
        """Have a session that is lost in the block, or can't be opened, told by what the log says of that."""
        try:
            yield
        except Unreachable as error:
            _lines, fatal = self._said()
            raise ServerRefused(
                "The copied cluster can't be made a replica: {0}".format(_sentence(fatal[-1] if fatal else str(error)))
            ) from None

    def endpoint(self, user: str, database: str) -> Endpoint:
        """Where it is, for a session whose settings no database or role of the copy can change."""
        options = (
            "-c session_replication_role=replica -c default_transaction_read_only=off -c session_preload_libraries="
            " -c statement_timeout=0 -c idle_in_transaction_session_timeout=0"
        )
        return Endpoint(
            {"host": self.socket_directory, "port": self.PORT, "user": user, "dbname": database, "options": options},
            "",
        )

    def stop(self) -> None:
        """Shut it down, as it must be for its files to be complete."""
        self._programs.run("pg_ctl", ["stop", "--silent", "--mode=fast", "--no-wait", "--pgdata=" + self._directory])
        while data_directory.is_running(self._directory):
            time.sleep(_PAUSE_SECONDS)

    def close(self) -> None:
        """Leave nothing of it, when it was stopped or ended."""
        if self.socket_directory not in ("", self._beside):
            shutil.rmtree(self.socket_directory, ignore_errors=True)
        self.socket_directory = ""


def end(directory: str, programs: ServerPrograms) -> None:
    """End a server that a run has left on a copy that is thrown away."""
    if data_directory.is_running(directory):
        try:
            programs.run("pg_ctl", ["stop", "--silent", "--mode=immediate", "--wait", "--pgdata=" + directory])
        except DistributedError:
            if data_directory.is_running(directory):
                raise


def _sentence(line: str) -> str:
    for mark in _FATAL:
        line = line.rpartition(mark)[2]
    return line.rstrip(".") + "."


def _shell(path: str) -> str:
    """*path* for the shell by which pg_ctl starts the server."""
    return "'" + path.replace("'", "'\\''") + "'"
