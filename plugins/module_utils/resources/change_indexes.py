# SPDX-License-Identifier: GPL-3.0-or-later
"""Indexes that are built or dropped concurrently, which no transaction can take back when it is interrupted."""

from __future__ import annotations

import re
from typing import Any, Iterator, NamedTuple

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    compose,
    identifier,
)

_PART = re.compile(r'\s+|--[^\n]*|/\*.*?\*/|"(?P<exact>(?:[^"]|"")*)"|(?P<word>[^\W\d][\w$]*)|(?P<sign>.)', re.DOTALL)


class Concurrent(NamedTuple):
    """A statement about one index."""

    creates: bool
    name: tuple[str, ...]
    """of the index, with the schema where a statement may name it"""
    table: tuple[str, ...] = ()

    def key(self, session: Session) -> tuple[str, str] | None:
        """The schema and name of the index; None when there is no such table, or no such index to be dropped."""
        relation = self.table if self.creates else self.name
        row = session.row(
            "SELECT n.nspname AS schema, c.relname AS name FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " WHERE c.oid = to_regclass(%s)",
            [".".join('"{0}"'.format(part.replace('"', '""')) for part in relation)],
        )
        if row is None:
            return None
        return (row.schema, self.name[-1] if self.creates else row.name)


def parse(sql: str) -> Concurrent | None:
    """What *sql* is about, if it begins as C(CREATE INDEX CONCURRENTLY) with a name or C(DROP INDEX CONCURRENTLY) does."""
    words = _Words(sql)
    if words.take("create"):
        words.take("unique")
        if not (words.take("index") and words.take("concurrently")):
            return None
        words.take("if", "not", "exists")
        name = words.name()
        if not name or not words.take("on"):
            return None
        words.take("only")
        return Concurrent(True, name, words.name())
    if words.take("drop", "index", "concurrently"):
        words.take("if", "exists")
        name = words.name()
        return Concurrent(False, name) if name else None
    return None


class _Words:
    """A statement's beginning, word by word."""

    def __init__(self, sql: str) -> None:
        self._parts = list(_parts(sql))

    def take(self, *keywords: str) -> bool:
        """Step over *keywords*, if they come next."""
        coming = [word and word.lower() for _exact, word, _sign in self._parts[: len(keywords)]]
        if coming != list(keywords):
            return False
        del self._parts[: len(keywords)]
        return True

    def name(self) -> tuple[str, ...]:
        """Step over a name, qualified or not; empty when none comes next."""
        names: list[str] = []
        while self._parts:
            exact, word, _sign = self._parts[0]
            if exact is None and word is None:
                break
            names.append(exact.replace('""', '"') if exact is not None else str(word).lower())
            del self._parts[0]
            if not self._parts or self._parts[0][2] != ".":
                break
            del self._parts[0]
        return tuple(names)


def _parts(sql: str) -> Iterator[tuple[Any, Any, Any]]:
    for match in _PART.finditer(sql):
        if match.lastgroup:
            yield match.group("exact"), match.group("word"), match.group("sign")


def required(sql: str, number: int) -> Concurrent:
    """The same, for a statement that can't be placed otherwise."""
    found = parse(sql)
    if found is None:
        raise Refused(
            "Statement {0} is to run outside of a transaction, and only CREATE INDEX CONCURRENTLY with a name and DROP INDEX "
            "CONCURRENTLY can be taken up again after that.".format(number)
        )
    return found


def validity(session: Session, key: tuple[str, str] | None) -> bool | None:
    """Whether an index is valid; None when there is none."""
    found = session.value(
        "SELECT x.indisvalid FROM pg_index AS x JOIN pg_class AS c ON c.oid = x.indexrelid"
        " JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s",
        list(key or ("", "")),
    )
    return None if found is None else bool(found)


def drop_invalid(session: Session, key: tuple[str, str] | None) -> bool:
    """Drop what an interrupted build has left, which queries don't use and writers pay for."""
    if key is None or validity(session, key) is not False:
        return False
    session.execute(compose("DROP INDEX CONCURRENTLY {index}", index=identifier(*key)))
    return True
