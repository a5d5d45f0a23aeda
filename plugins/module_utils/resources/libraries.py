# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings whose values are lists of libraries: names are added behind those that are there, or taken out."""

from __future__ import annotations

from typing import Any, Iterable, NamedTuple

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    Change,
    compose,
    enumerate_names,
    identifier,
    listed,
    literal,
)

SETTINGS = ("shared_preload_libraries", "session_preload_libraries", "local_preload_libraries")
_OWN_FILE = "postgresql.auto.conf"


class Libraries(NamedTuple):
    """A list of libraries: what runs, what the files say for the next start, and what they'd say without ALTER SYSTEM."""

    name: str
    running: list[str]
    configured: list[str]
    beneath: list[str]
    add: list[str]
    remove: list[str]
    needs_restart: bool

    @property
    def differs(self) -> bool:
        """Whether the next start would have other libraries than are wanted."""
        return self._differs(self.configured)

    @property
    def waits(self) -> bool:
        """Whether the server must be restarted before it has those that are wanted."""
        return self.needs_restart and self._differs(self.running)

    @property
    def wanted(self) -> list[str]:
        """What is there, in its order, without what is to be removed, and with what is to be added behind it."""
        unwanted = {_library(name) for name in self.remove}
        kept = [name for name in self.configured if _library(name) not in unwanted]
        there = {_library(name) for name in kept}
        return kept + [name for name in dict.fromkeys(self.add) if _library(name) not in there]

    def _differs(self, names: list[str]) -> bool:
        there = {_library(name) for name in names}
        return not there.issuperset(map(_library, self.add)) or not there.isdisjoint(map(_library, self.remove))

    def problem(self, server: Any) -> str | None:
        """Why it can't be brought about, in a sentence."""
        if self.differs and not self.wanted and self.beneath:
            return "{0} of {1} is {2} in a file that ALTER SYSTEM can't empty: take {3} out there.".format(
                self.name, server, ", ".join(self.beneath), enumerate_names(self.remove)
            )
        return None

    def change(self) -> Change:
        """ALTER SYSTEM with each name as a value of its own: one value with a comma in it would be one library's name."""
        name = identifier(self.name)
        if self.wanted == self.beneath:
            statement = compose("ALTER SYSTEM RESET {name}", name=name)
        else:
            values = listed([literal(value) for value in self.wanted])
            statement = compose("ALTER SYSTEM SET {name} = {values}", name=name, values=values)
        added = [name for name in self.wanted if name not in self.configured]
        removed = [name for name in self.configured if name not in self.wanted]
        steps = ["add {0} to".format(", ".join(added))] if added else []
        steps += ["take {0} out of".format(", ".join(removed))] if removed else []
        words = "{0} {1}".format(" and ".join(steps), self.name)
        return Change(statement, words[0].upper() + words[1:], transactional=False)


def _library(name: str) -> str:
    """Which library a name means: C(pgml), C($libdir/pgml) and C(/usr/lib/postgresql/15/lib/pgml.so) are one."""
    base = name.rpartition("/")[2]
    return base[: -len(".so")] if base.endswith(".so") else base


def asked_for(setting: str, value: Any) -> list[str]:
    """The names that an option lists for a setting."""
    names = split(value) if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name.strip() for name in names):
        raise Refused("{0} = {1!r} is no list of names of libraries.".format(setting, value))
    for name in names:
        if '"' in name or "\0" in name or "\n" in name:
            raise Refused("{0} can't have {1!r}, which no library is called.".format(setting, name))
    return [name.strip() for name in names]


def split(value: str) -> list[str]:
    """The names in a setting's value, as PostgreSQL's C(SplitDirectoriesString) reads it.

    Commas separate; a name in double quotes may hold them, and quotes that are doubled. Case counts, and so do spaces inside of a
    name. Empty names are left out.
    """
    names: list[str] = []
    rest = value.strip()
    while rest:
        if rest.startswith('"'):
            name, rest = _unquote(rest[1:])
            rest = rest.lstrip()
            if rest and not rest.startswith(","):
                raise Refused("{0!r} is no list of libraries: {1!r} follows a closing quote.".format(value, rest))
            rest = rest[1:].lstrip()
        else:
            name, _comma, rest = rest.partition(",")
            rest = rest.lstrip()
        names.append(name.strip())
    return [name for name in names if name]


def _unquote(text: str) -> tuple[str, str]:
    """The name that a closing quote ends, and what follows it."""
    name = ""
    while True:
        part, quote, text = text.partition('"')
        name += part
        if not quote:
            raise Refused("A list of libraries lacks a closing quote behind {0!r}.".format(name))
        if not text.startswith('"'):
            return name, text
        name, text = name + '"', text[1:]


def last_word(rows: Iterable[Any], default: str) -> tuple[list[str], list[str]]:
    """What the next start will have by the files' *rows* in their order, and what it would without ALTER SYSTEM."""
    configured, beneath = None, ""
    for row in rows:
        configured = row.setting
        if not row.sourcefile.endswith("/" + _OWN_FILE):
            beneath = row.setting
    return split(default if configured is None else configured), split(beneath)
