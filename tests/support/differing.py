# SPDX-License-Identifier: GPL-3.0-or-later
"""Definitions that differ between two databases, each case in a schema of its own, so that all are compared at once."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from psycopg2.sql import SQL, Identifier

from tests.support.pair import Pair, Place, forget_slots, forget_subscriptions

BREAKS, PRIMARY, HARMLESS = "breaks_apply", "breaks_primary", "harmless"
CREATE, ADD, APPLY = "create_missing", "apply_additive", "apply"
MODES = (CREATE, ADD, APPLY)

_numbers = itertools.count(1)


class Found(NamedTuple):
    """A difference as the module has to report it."""

    severity: str
    mended_by: str | None
    words: str
    """@ stands for the case's schema"""


class Case(NamedTuple):
    """What source and target have, and the differences between them."""

    schema: str
    source: str
    target: str
    found: tuple[Found, ...]
    row: str | None = None
    """what the source runs to show that the differences break something or don't"""
    table: str = "t"
    """where that is seen"""

    @property
    def quoted(self) -> str:
        """The schema, in quotes if it needs them."""
        return self.schema if re.fullmatch("[a-z_0-9]+", self.schema) else '"{}"'.format(self.schema.replace('"', '""'))

    @property
    def label(self) -> str:
        return f"{self.quoted}.{self.table}"

    @property
    def severity(self) -> str:
        """The worst of its differences."""
        return min((found.severity for found in self.found), default=HARMLESS)

    @property
    def expected(self) -> list[tuple[str, str | None, str]]:
        """Class, mode and words of the differences, in order."""
        return [(found.severity, found.mended_by, found.words.replace("@", self.quoted)) for found in self.found]

    def of(self, differences: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those that are about this case."""
        return [each for each in differences if each["object"].startswith(self.quoted + ".")]


def make(place: Place, cases: Sequence[Case], side: str) -> None:
    """Create what one side of the cases has."""
    for case in cases:
        run_in(place, case, getattr(case, side), create=True)


def run_in(place: Place, case: Case, statements: str, create: bool = False) -> None:
    """Run statements whose names are those of the case's schema."""
    start = SQL("CREATE SCHEMA {0}; SET search_path = {0}, public;" if create else "SET search_path = {0}, public;")
    place.sql(start.format(Identifier(case.schema)) + SQL(statements))


def rest(differences: Sequence[dict[str, Any]], mode: str) -> list[dict[str, Any]]:
    """What is left of differences when *mode* has mended what it mends."""
    mended = MODES[: MODES.index(mode) + 1]
    return [each for each in differences if each["mended_by"] not in mended]


def rows(pair: Pair, case: Case) -> list[list[tuple[Any, ...]]]:
    """What both sides hold of the source's columns, as texts, in order."""
    columns = pair.source.value(
        "SELECT string_agg(quote_ident(attname) || '::text', ', ' ORDER BY attnum) FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped",
        [case.label],
    )
    return [place.sql(f"SELECT {columns} FROM {case.label} ORDER BY 1, 2") for place in (pair.source, pair.target)]


@contextmanager
def copy_of(pair: Pair, source_too: bool = False) -> Iterator[Pair]:
    """The pair with a copy of its target, or of both, to which nobody is connected."""
    number = next(_numbers)
    source = Place(pair.source.cluster, f"src_copy_{os.getpid()}_{number}") if source_too else pair.source
    target = Place(pair.target.cluster, f"dst_copy_{os.getpid()}_{number}")
    made = [(place, of) for place, of in ((source, pair.source), (target, pair.target)) if place is not of]
    try:
        for place, of in made:
            names = {"copy": Identifier(place.database), "of": Identifier(of.database)}
            place.cluster.sql(SQL("CREATE DATABASE {copy} TEMPLATE {of}").format(**names))
        yield Pair(source, target, pair.distributor, pair.password)
    finally:
        forget_subscriptions(target)
        if source_too:
            forget_slots(source)
        for place, _of in made:
            place.cluster.drop_database(place.database)
