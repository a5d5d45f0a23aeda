# SPDX-License-Identifier: GPL-3.0-or-later
"""Which schema changes a server has carried out, and how far: the last line of the comment on its publication or subscription.

A comment is written in the same transaction as what it speaks of, goes with the object that it is on, needs no table of its own,
and shows in C(\\dRp+) and C(\\dRs+).
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    compose,
    identifier,
    literal,
    quoted,
    raw,
)

PREFIX = "Schema changes: "
_ENTRY = re.compile(r"([0-9a-f]{12}) ([0-9]+)/([0-9]+)(\+?)\Z")
_ID = re.compile(r"[0-9a-f]{12}\Z")


class Progress(NamedTuple):
    """How much of a schema change a server has done."""

    change: str
    done: int
    total: int
    begun: bool = False
    """whether the next statement, which can't run in a transaction, was begun"""

    @property
    def finished(self) -> bool:
        return self.done >= self.total

    @property
    def under_way(self) -> bool:
        return bool(self.done or self.begun)

    def as_result(self) -> dict[str, Any]:
        return {"done": self.done, "total": self.total, "begun": self.begun}

    def __str__(self) -> str:
        return "{0} {1}/{2}{3}".format(self.change, self.done, self.total, "+" if self.begun else "")


def check_id(change: str) -> None:
    """Refuse what is no id of a change."""
    if not _ID.match(change):
        raise Refused('change is "{0}": the id of a change is 12 hexadecimal digits.'.format(change))


def way_out(change: str) -> str:
    """How to go on with a change that has stopped, as the end of a message."""
    return (
        "Mend what stopped it and run the same again, which goes on from there, or give it up with -e "
        "pgml_schema_change_abandon={0} and a change that takes back what is done.".format(change)
    )


def parted(comment: str | None) -> tuple[str, str | None]:
    """What somebody wrote into a comment, and the line of progress at its end."""
    own, _break, last = (comment or "").rpartition("\n")
    return (own, last) if _entries(last) else (comment or "", None)


def joined(own: str | None, line: str | None) -> str:
    """A comment of both."""
    return "\n".join(part for part in (own, line) if part)


def parse(line: str | None) -> list[Progress]:
    """The changes that a line of progress speaks of, in the order in which they were begun."""
    return _entries(line or "") or []


def render(entries: Sequence[Progress]) -> str | None:
    """The line of progress; none when there is nothing to tell."""
    return PREFIX + ", ".join(map(str, entries)) if entries else None


def _entries(line: str) -> list[Progress] | None:
    """None for a line that is something else."""
    if not line.startswith(PREFIX):
        return None
    found = [_ENTRY.match(part) for part in line[len(PREFIX) :].split(", ")]
    entries = [Progress(m.group(1), int(m.group(2)), int(m.group(3)), bool(m.group(4))) for m in found if m]
    return entries if len(entries) == len(found) else None


class Holder:
    """The publication or subscription that remembers."""

    def __init__(self, session: Session, kind: str, name: str) -> None:
        self.session = session
        self.kind = kind
        """C(publication) or C(subscription)"""
        self.name = name

    @property
    def words(self) -> str:
        return "{0} {1}".format(self.kind, quoted(self.name))

    def read(self) -> tuple[str, list[Progress]]:
        """Its comment, without the line of progress, and that."""
        own, line = parted(self.session.value(_COMMENT_ON[self.kind], [self.name]))
        return own, parse(line)

    def entries(self) -> list[Progress]:
        return self.read()[1]

    def remember(self, progress: Progress, forgotten: Sequence[str] = ()) -> None:
        """Write the comment with *progress*, and without the unfinished ones of the changes *forgotten*."""
        own, entries = self.read()
        entries = [entry for entry in entries if entry.finished or entry.change not in forgotten]
        if progress.change not in [entry.change for entry in entries]:
            entries.append(progress)
        entries = [progress if entry.change == progress.change else entry for entry in entries]
        self._write(own, entries)

    def forget(self, changes: Sequence[str]) -> None:
        """Write the comment without the unfinished ones of *changes*."""
        own, entries = self.read()
        self._write(own, [entry for entry in entries if entry.finished or entry.change not in changes])

    def _write(self, own: str, entries: Sequence[Progress]) -> None:
        self.session.execute(
            compose(
                "COMMENT ON {kind} {name} IS {comment}",
                kind=raw(self.kind.upper()),
                name=identifier(self.name),
                comment=literal(joined(own, render(entries)) or None),
            )
        )


_COMMENT_ON = {
    "publication": "SELECT obj_description(oid, 'pg_publication') FROM pg_publication WHERE pubname = %s",
    "subscription": (
        "SELECT obj_description(s.oid, 'pg_subscription') FROM (SELECT oid, subname, subdbid FROM pg_subscription) AS s"
        " WHERE s.subname = %s AND s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())"
    ),
}
