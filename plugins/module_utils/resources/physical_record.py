# SPDX-License-Identifier: GPL-3.0-or-later
"""What a replica's host remembers of a cluster that is being replaced: where nobody can ask a server, since it is stopped."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
from typing import Any, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres import control_file
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.server_programs import Owner, synchronize
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import data_directory

COPYING, PREPARED, STREAMING = "copying", "prepared", "streaming"
"""The last says that the new cluster has proved to stream, and that the old one may be incomplete."""


class Record(NamedTuple):
    """A copy that was begun. It holds no secret."""

    phase: str
    run: str
    """which run has begun it"""
    directory: str
    """the server's data directory"""
    work: str
    """the directory beside it that holds the copy in C(data), and after the exchange the old cluster"""
    programs: str
    """directory of the server's programs"""
    before: str
    """system identifier of the cluster that is replaced"""
    after: str
    """and of the copy; empty while it is made"""
    source: Mapping[str, str]
    """keywords of the upstream that has the slots, without a password"""
    slots: Sequence[Sequence[str]]
    """database and name of each"""
    begin: str
    """where the last of them begins"""
    tablespaces: Sequence[str]
    """directories of the copy's"""
    service: Mapping[str, Any]
    """how the server is stopped and started"""
    bytes: int
    """of the databases that are copied, as far as their sizes may be asked"""

    @property
    def copy(self) -> str:
        return os.path.join(self.work, "data")

    @property
    def exchanged(self) -> bool:
        """Whether the copy is in its place, be it damaged there: then the old cluster is where it was made."""
        place, aside = control_file.system_identifier(self.directory), control_file.system_identifier(self.copy)
        return bool(self.after) and (place == self.after or aside == self.before)

    def progress(self) -> dict[str, Any] | None:
        """How far the copy of the files is, while it is made. The control file is the last of them, but for WAL."""
        if self.phase != COPYING:
            return None
        complete = control_file.system_identifier(self.copy) is not None
        return {
            "run": self.run,
            "bytes": self.bytes,
            "bytes_done": data_directory.measured(self.copy),
            "complete": complete,
        }

    @property
    def slot_names(self) -> list[str]:
        return [name for _database, name in self.slots]


def _path(port: int) -> str:
    """One for each server of this host, in the home of the account that the task runs as."""
    home = pwd.getpwuid(os.geteuid()).pw_dir
    return os.path.join(home, ".pgml_physical_seed_{0}.json".format(port))


def read(port: int) -> Record | None:
    """The record of the server at *port*."""
    try:
        with open(_path(port), encoding="utf-8") as file:
            return Record(**json.load(file))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise Refused("{0} can't be read: {1}.".format(_path(port), error)) from None


def is_of(port: int, run: str) -> bool:
    """Whether the server's record is that of *run*."""
    try:
        record = read(port)
    except Refused:
        return True  # nobody has begun another one
    return record is not None and record.run == run


def write(port: int, record: Record) -> None:
    """Remember *record*, on disk when this returns."""
    path = _path(port)
    home = os.path.dirname(path)
    try:
        Owner(os.geteuid(), os.getegid(), home).write(path, json.dumps(record._asdict(), indent=1, sort_keys=True))
    except OSError as error:
        raise Refused("{0} can't be written: {1}.".format(path, error.strerror)) from None


def forget(port: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_path(port))
        synchronize(os.path.dirname(_path(port)))
