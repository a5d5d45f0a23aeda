# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a run has come, in pgml_distributed.progress, where anybody may look while it works.

The rows of a table that is being copied are in pg_stat_progress_copy, its indexes in pg_stat_progress_create_index.
"""

from __future__ import annotations

import time
from typing import NamedTuple, Sequence, Tuple

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session

_INTERVAL_SECONDS = 1.0

Key = Tuple[str, str]


class Load(NamedTuple):
    """What there is to come of a table of the target."""

    key: Key
    place: str
    """the schema in which it is filled"""
    bytes: int
    """as the source keeps them"""
    rows: int = 0
    """the source's estimate, 0 without one"""
    bytes_done: int = 0
    """what an earlier run has brought"""


class Progress:
    """The record of one run; written at most once a second, and at each new phase."""

    def __init__(self, session: Session, loads: Sequence[Load], tables_done: int = 0) -> None:
        """:param tables_done: those of *loads* that an earlier run has brought"""
        self._session = session
        self._written = 0.0
        self._phase = "define"
        self._news: dict[Key, list[int]] = {}
        self._left = {(load.place, load.key[1]): load.bytes - load.bytes_done for load in loads}
        self.tables_done = tables_done
        self.bytes_done = sum(load.bytes_done for load in loads)
        self.rows = 0
        session.execute("DELETE FROM pgml_distributed.progress; DELETE FROM pgml_distributed.progress_tables")
        _begin(session, self._phase, len(loads), tables_done, sum(load.bytes for load in loads), self.bytes_done)
        session.execute(
            "INSERT INTO pgml_distributed.progress_tables (schema_name, table_name, place, bytes, expected_rows, bytes_done)"
            " SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::int8[], %s::int8[], %s::int8[])",
            [list(column) for column in zip(*[(*load.key, *load[1:]) for load in loads])] or [[]] * 6,
        )

    def phase(self, name: str) -> None:
        self._phase = name
        self._write()

    def copied(self, key: Key, size: int, rows: int, whole: bool) -> None:
        """A chunk of *size* bytes with *rows* has come to the table that is filled as *key*, and with it its last, if *whole*."""
        # A file of an archive has another size than its rows.
        size = self._left[key] if whole else min(size, self._left[key])
        self._left[key] -= size
        self.tables_done += whole
        self.bytes_done += size
        self.rows += rows
        news = self._news.setdefault(key, [0, 0])
        news[0] += size
        news[1] += rows
        if time.monotonic() > self._written + _INTERVAL_SECONDS:
            self._write()

    def keep_up(self) -> None:
        """Write what came too soon after something else."""
        if self._news:
            self._write()

    def _write(self) -> None:
        self._session.execute(
            "UPDATE pgml_distributed.progress SET phase = %s, tables_done = %s, bytes_done = %s, rows = %s,"
            " updated_at = clock_timestamp()",
            [self._phase, self.tables_done, self.bytes_done, self.rows],
        )
        if self._news:
            columns = [list(column) for column in zip(*[(*key, *counts) for key, counts in self._news.items()])]
            self._session.execute(
                "UPDATE pgml_distributed.progress_tables AS t SET bytes_done = t.bytes_done + n.bytes, rows = t.rows + n.rows"
                " FROM unnest(%s::text[], %s::text[], %s::int8[], %s::int8[]) AS n(place, name, bytes, rows)"
                " WHERE t.place = n.place AND t.table_name = n.name",
                columns,
            )
        self._news = {}
        self._written = time.monotonic()


class Distance:
    """The record of a subscription that is checked and catches up with its source; the bytes are those of WAL."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._written = 0.0
        self._whole = 0
        session.execute("DELETE FROM pgml_distributed.progress; DELETE FROM pgml_distributed.progress_tables")
        _begin(session, "validate", 0, 0, 0, 0)

    def left(self, size: int) -> None:
        """So many bytes are still to be applied."""
        if time.monotonic() > self._written + _INTERVAL_SECONDS:
            self._whole = max(self._whole, size)
            self._session.execute(
                "UPDATE pgml_distributed.progress SET phase = %s, bytes = %s, bytes_done = %s, updated_at = clock_timestamp()",
                ["catch up", self._whole, self._whole - size],
            )
            self._written = time.monotonic()


def _begin(session: Session, phase: str, tables: int, tables_done: int, size: int, size_done: int) -> None:
    session.execute(
        "INSERT INTO pgml_distributed.progress (process, phase, tables, tables_done, bytes, bytes_done, rows)"
        " VALUES (pg_backend_pid(), %s, %s, %s, %s, %s, 0)",
        [phase, tables, tables_done, size, size_done],
    )
