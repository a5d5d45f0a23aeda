# SPDX-License-Identifier: GPL-3.0-or-later
"""Definitions in a pg_dump archive: made from a source, picked by catalog identity, given back as SQL."""

from __future__ import annotations

import os
import re
from typing import Container, Iterable, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres import client_tools
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import LOCK_TIMEOUT_SECONDS

_ENTRY = re.compile(r"^(\d+); (\d+) (\d+) (.*)$")
_RESTRICT = re.compile(r"^\\(un)?restrict \w+$", re.MULTILINE)
"""psql's own commands around a plain dump, in clients of August 2025 and later; see CVE-2025-8714."""
_HEADING = re.compile(r"^--\n-- Name: .*; Type: .*; Schema: .*; Owner: .*\n--\n", re.MULTILINE)
"""What pg_restore writes above each entry; it keeps line breaks out of it."""
_TRANSACTION_TIMEOUT_SINCE = 170000


class Entry(NamedTuple):
    """A line of the archive's table of contents."""

    number: str
    identity: tuple[int, int]
    """(catalog oid, object oid) on the source, or (0, 0)"""
    text: str
    """kind, schema, name and owner, with spaces between"""


class Script(NamedTuple):
    """SQL in the order in which it has to run."""

    preamble: str
    """settings for the session that runs the rest"""
    pieces: dict[Entry, str]

    @property
    def whole(self) -> str:
        return self.preamble + "".join(self.pieces.values())


class Archive:
    """A custom-format archive of definitions in the file *path*, for programs of PostgreSQL *major* or later."""

    def __init__(self, path: str, major: int, run_command: client_tools.RunCommand) -> None:
        self._tools = client_tools.Tools(run_command)
        self._path = path
        self._major = major

    def dump(self, endpoint: Endpoint, arguments: Iterable[str]) -> None:
        """Write the archive. It takes ACCESS SHARE locks on the tables that it holds, or gives up soon."""
        self._tools.run(
            self._tools.find("pg_dump", self._major),
            [
                "--no-password",
                "--format=custom",
                "--schema-only",
                "--encoding=UTF8",
                "--no-owner",
                "--no-publications",
                "--no-subscriptions",
                "--no-security-labels",
                "--no-tablespaces",
                "--lock-wait-timeout={0}".format(LOCK_TIMEOUT_SECONDS * 1000),
                "--file=" + self._path,
                *arguments,
            ],
            endpoint,
        )

    def entries(self, section: str | None = None) -> list[Entry]:
        """The table of contents, or the C(pre-data) or C(post-data) of it, in the order in which it is restored."""
        arguments = ["--list", *(["--section=" + section] if section else []), self._path]
        listing = self._restore(arguments)
        matches = [_ENTRY.match(line) for line in listing.splitlines()]
        return [Entry(m.group(1), (int(m.group(2)), int(m.group(3))), m.group(4)) for m in matches if m]

    def script(self, entries: Sequence[Entry], target_version: int) -> Script:
        """The SQL of *entries* for a server of *target_version*."""
        if not entries:
            return Script("", {})
        use_list = self._path + ".list"
        with open(use_list, "w", encoding="utf-8") as handle:
            handle.writelines("{0}; {1} {2} {3}\n".format(e.number, *e.identity, e.text) for e in entries)
        text = self._restore(["--no-owner", "--use-list=" + use_list, "--file=-", self._path])
        os.unlink(use_list)
        text = _RESTRICT.sub("", text)
        if target_version < _TRANSACTION_TIMEOUT_SINCE:
            text = text.replace("\nSET transaction_timeout = 0;\n", "\n", 1)
        preamble, *pieces = _HEADING.split(text)
        if len(pieces) != len(entries):  # a definition holds what looks like a heading
            return Script("", {entries[0]: text})
        return Script(preamble, dict(zip(entries, pieces)))

    def _restore(self, arguments: Sequence[str]) -> str:
        # A client that wrote an archive may be newer than the server it came from.
        dump = self._tools.find("pg_dump", self._major)
        return self._tools.run(self._tools.find("pg_restore", dump.major), arguments)


def picked(entries: Iterable[Entry], identities: Container[tuple[int, int]], texts: Container[str]) -> list[Entry]:
    """The entries of these objects: most have an identity; attachments and ownerships are known by their text only."""
    return [
        entry for entry in entries if entry.identity in identities or (entry.identity == (0, 0) and entry.text in texts)
    ]


def as_pattern(schema: str, name: str) -> str:
    """A name as pg_dump's --table takes it: in quotes, nothing is a wildcard."""
    return ".".join('"{0}"'.format(part.replace('"', '""')) for part in (schema, name))
