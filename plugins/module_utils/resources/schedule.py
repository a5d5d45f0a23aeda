# SPDX-License-Identifier: GPL-3.0-or-later
"""What workers do with tables and when: rows, then what is built on them."""

from __future__ import annotations

import collections
from typing import Iterable, NamedTuple, Tuple

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import ServerRefused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import quoted
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.blueprint import Blueprint
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.progress import Progress
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.workers import Job

Key = Tuple[str, str]
"""(schema, name) of a table"""


class Cargo(NamedTuple):
    """A chunk of a table, wherever it is read."""

    key: Key
    read: str
    """as in Move"""
    size: int
    binary: bool
    whole: bool
    rows: int | None = None
    """as the archive counted them"""


class Tally:
    """What has arrived."""

    def __init__(self) -> None:
        self.rows: dict[Key, int] = {}
        self.chunks: dict[Key, int] = {}

    def add(self, item: Cargo, rows: int) -> None:
        """Count a chunk; refuses one that isn't what the archive says."""
        if item.rows not in (None, rows):
            raise ServerRefused(
                "The archive has {0} rows of {1} and {2} arrived: nothing was kept.".format(
                    item.rows, quoted(*item.key), rows
                )
            )
        self.rows[item.key] = self.rows.get(item.key, 0) + rows
        self.chunks[item.key] = self.chunks.get(item.key, 0) + 1


class Schedule:
    """What is to be done when: a table's constraints after its rows, then its indexes, then its statistics.

    *chunks* has a table's key for each chunk that will come. A table of more than one is frozen in the end, and so are the
    tables *thawed*: VACUUM freezes nothing that was written while a transaction began which still runs.
    """

    def __init__(
        self, plan: Blueprint, chunks: Iterable[Key], tally: Tally, progress: Progress, thawed: Iterable[Key] = ()
    ) -> None:
        self._tally = tally
        self._progress = progress
        self._partitions = plan.partitions
        self._constraints = _grouped(plan.constraints)
        self._indexes = _grouped(plan.indexes)
        self._foreign_keys = plan.foreign_keys
        self._chunks = collections.Counter(chunks)
        self._pieced = frozenset(key for key, count in self._chunks.items() if count > 1) | frozenset(thawed)
        self._referable = collections.Counter(  # what a foreign key may need
            [key for key, _text in plan.constraints] + [key for key, text in plan.indexes if _is_unique(text)]
        )
        self._steps_left: dict[Key, int] = {}

    def without_rows(self, keys: Iterable[Key]) -> list[Job]:
        """The first jobs of the tables *keys* that no chunk comes to."""
        return [job for key in keys if not self._chunks[key] for job in self._build(key)]

    def done(self, job: Job, rows: int | None) -> Iterable[Job]:
        """What can follow *job*, which brought *rows*, if it brought any."""
        kind, key, item = job.key
        if kind == "rows":
            self._chunks[key] -= 1
            self._tally.add(item, rows or 0)
            self._progress.copied(key, item.size, rows or 0, whole=not self._chunks[key])
            return () if self._chunks[key] else self._build(key)
        following: list[Job] = []
        if kind == "constraint" or (kind == "index" and _is_unique(job.statements[0])):
            self._referable[key] -= 1
            following += self._ready_foreign_keys()
        if kind in ("constraint", "index"):
            self._steps_left[key] -= 1
            following += self._finish(key)
        return following

    def _build(self, key: Key) -> list[Job]:
        constraints, indexes_ = self._constraints.get(key, ()), self._indexes.get(key, ())
        self._steps_left[key] = len(constraints) + len(indexes_)
        return [
            *[_job("constraint", key, text, exclusive=[key]) for text in constraints],
            *[_index(key, text) for text in indexes_],
            *self._finish(key),
            *self._ready_foreign_keys(),
        ]

    def _finish(self, key: Key) -> list[Job]:
        if self._steps_left[key]:
            return []
        if key in self._pieced:  # a whole table was frozen as it came
            job = _job("vacuum", key, analyze(key, "VACUUM (FREEZE, ANALYZE)"), exclusive=[key])
            return [job._replace(last=True)]
        if key in self._partitions:  # the partitioned table's ANALYZE does them all
            return []
        return [_job("analyze", key, analyze(key), exclusive=[key])]

    def _ready_foreign_keys(self) -> list[Job]:
        ready = [item for item in self._foreign_keys if self._is_ready(item[0]) and self._is_ready(item[1])]
        self._foreign_keys = [item for item in self._foreign_keys if item not in ready]
        return [_job("foreign key", key, text, exclusive=[key, refers]) for key, refers, text in ready]

    def _is_ready(self, key: Key) -> bool:
        return not self._chunks[key] and not self._referable[key]


def _is_unique(text: str) -> bool:
    return text.lstrip().startswith("CREATE UNIQUE ")


def _index(key: Key, text: str) -> Job:
    """Indexes are built side by side, but for one that pg_dump goes on to mark, as the replica identity or for CLUSTER: that
    takes a stronger lock in the same transaction, and two of them would wait for each other."""
    marked = "\nALTER TABLE " in text
    return _job("index", key, text, exclusive=[key]) if marked else _job("index", key, text, shared=[key])


def _job(kind: str, key: Key, text: str, shared: Iterable[Key] = (), exclusive: Iterable[Key] = ()) -> Job:
    return Job((kind, key, None), None, [text], frozenset(shared), frozenset(exclusive))


def analyze(key: Key, command: str = "ANALYZE") -> str:
    return "{0} {1}".format(command, ".".join('"{0}"'.format(part.replace('"', '""')) for part in key))


def _grouped(items: Iterable[tuple[Key, str]]) -> dict[Key, list[str]]:
    groups: dict[Key, list[str]] = {}
    for key, text in items:
        groups.setdefault(key, []).append(text)
    return groups
