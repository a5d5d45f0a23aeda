# SPDX-License-Identifier: GPL-3.0-or-later
"""Two sides of a table compared under a moment: by buckets, then by keys where buckets differ."""

from __future__ import annotations

import concurrent.futures
from typing import Any, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.insight import hashing
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.hashing import Dialect, Sums, Within
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.moments import Moment, Servers
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.subjects import Subject
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.readers import Answer, Readers, View

NOTHING = (0, 0)
ROWS_AT_ONCE = 100_000
"""Keys of each side that are held in memory at most, unless one bucket has more."""


class Spoilt(Exception):
    """A table was truncated or rewritten between a moment and its reading. Another moment is needed."""


class Verdict:
    """What is found out about one table."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.rows_source = self.rows_target = 0
        self.chunks = 1
        self.missing: list[dict[str, Any]] = []
        self.extra: list[dict[str, Any]] = []
        self.changed: list[dict[str, Any]] = []
        self.undecided: list[dict[str, Any]] = []
        self.complete = True
        """whether all differences were found"""
        self.open = False
        """whether something did not come to rest in time"""
        self.lsn: str | None = None
        self.lock_ms: float | None = None
        self.seconds = 0.0

    @property
    def differences(self) -> int:
        return len(self.missing) + len(self.extra) + len(self.changed)

    @property
    def equal(self) -> bool:
        return not self.open and self.complete and not self.differences

    @property
    def decided(self) -> bool:
        """Whether it is known if the table is equal."""
        return not self.open or self.differences > 0

    def as_result(self) -> dict[str, Any]:
        return {
            "name": self.subject.label,
            "equal": self.equal,
            "decided": self.decided,
            "rows_source": self.rows_source,
            "rows_target": self.rows_target,
            "chunks": self.chunks,
            "differing": {"missing": self.missing, "extra": self.extra, "changed": self.changed},
            "differences_complete": self.complete,
            "undecided": self.undecided,
            "lsn": self.lsn,
            "lock_ms": None if self.lock_ms is None else round(self.lock_ms, 1),
            "seconds": round(self.seconds, 3),
        }


class Query(NamedTuple):
    """What is asked about a table."""

    verdict: Verdict
    bits: int
    within: Within | None = None


class Found(NamedTuple):
    """A key, or the hash of a row without one, and how many rows each side has of it, with the sum of their hashes."""

    key: Any
    source: tuple[int, int]
    target: tuple[int, int]


class First(NamedTuple):
    """The buckets in which a table differs at first sight, and how many rows each has."""

    bits: int
    apart: Mapping[int, int]


class Comparison:
    """Asks both servers, and counts the time it takes."""

    def __init__(self, servers: Servers, how: Dialect, most: int) -> None:
        self.servers = servers
        self.how = how
        self.most = most
        """differences to be found in a table"""

    def first_look(self, moment: Moment, verdicts: Sequence[Verdict]) -> list[First | None]:
        """Count the rows of tables, and find the buckets in which they differ; None for a table that is spoilt."""
        queries = []
        for verdict in verdicts:
            source = moment.source[verdict.subject.source.oid]
            queries.append(Query(verdict, hashing.bits_for(source.rows)))
        result: list[First | None] = []
        for query, sums in zip(queries, self.sums(moment, queries)):
            if sums is None:
                result.append(None)
                continue
            here, there = sums
            verdict = query.verdict
            verdict.chunks = 1 << query.bits
            verdict.rows_source = sum(rows for rows, _hashes in here.values())
            verdict.rows_target = sum(rows for rows, _hashes in there.values())
            verdict.lsn, verdict.lock_ms = moment.lsn, moment.lock_ms
            result.append(First(query.bits, hashing.apart(here, there)))
        return result

    def sums(self, moment: Moment, queries: Sequence[Query]) -> list[tuple[Sums, Sums] | None]:
        """The sums of both sides for each of *queries*; None for a table that is spoilt."""
        servers = self.servers
        asked = [
            (
                query.verdict,
                self._ask(
                    servers.source_readers,
                    servers.source_view,
                    query,
                    moment.source[query.verdict.subject.source.oid],
                    query.verdict.subject.where,
                ),
                self._ask(
                    servers.target_readers,
                    servers.target_view,
                    query,
                    moment.target[query.verdict.subject.target.oid],
                    None,
                ),
            )
            for query in queries
        ]
        return [_answered(verdict, here, there) for verdict, here, there in asked]

    def _ask(
        self, readers: Readers, view: View, query: Query, parts: hashing.Parts, where: str | None
    ) -> list[concurrent.futures.Future[Answer]]:
        subject = query.verdict.subject
        return [
            readers.ask(view.snapshot, part.oid, hashing.sums(self.how, subject, part, where, query.bits, query.within))
            for part in parts.parts
        ]

    def judge(self, moment: Moment, verdict: Verdict, first: First | None) -> bool:
        """Find the rows in which a table differs under *moment*; False when it is spoilt."""
        try:
            if first and first.apart:
                self._find(moment, verdict, first)
        except Spoilt:
            return False
        return first is not None

    def _find(self, moment: Moment, verdict: Verdict, first: First) -> None:
        """Look into buckets until there are as many differences as are wanted."""
        # Each bucket that differs has a row that does, so that these are enough.
        chosen = dict(list(first.apart.items())[: self.most])
        verdict.complete = len(chosen) == len(first.apart)
        bits = first.bits
        while sum(chosen.values()) > ROWS_AT_ONCE:
            finer = hashing.finer_bits(bits, len(chosen))
            if finer is None:
                break
            chosen = hashing.apart(*self._sums_of_one(moment, Query(verdict, finer, Within(bits, chosen))))
            bits = finer
        found: list[Found] = []
        for batch in hashing.batches(chosen, ROWS_AT_ONCE):
            if len(found) >= self.most:
                verdict.complete = False
                break
            here, there = self._sums_of_one(moment, Query(verdict, hashing.ALL_BITS, Within(bits, batch)))
            found += [Found(key, here.get(key, NOTHING), there.get(key, NOTHING)) for key in hashing.apart(here, there)]
        self.report(verdict, found)

    def _sums_of_one(self, moment: Moment, query: Query) -> tuple[Sums, Sums]:
        (sums,) = self.sums(moment, [query])
        if sums is None:
            raise Spoilt()
        return sums

    def report(self, verdict: Verdict, found: Sequence[Found], undecided: Sequence[Any] = ()) -> None:
        """Put what was *found* into the verdict, as many as are wanted, with the keys in words."""
        if len(found) > self.most:
            verdict.complete = False
        chosen = found[: self.most]
        words = self._in_words(verdict.subject, [each.key for each in chosen] + list(undecided[: self.most]))
        for each in chosen:
            if each.source[0] > each.target[0]:
                verdict.missing.append(words[each.key])
            elif each.source[0] < each.target[0]:
                verdict.extra.append(words[each.key])
            else:
                verdict.changed.append(words[each.key])
        verdict.undecided = [words[key] for key in undecided[: self.most]]
        verdict.open = verdict.open or bool(undecided)

    def _in_words(self, subject: Subject, keys: Sequence[Any]) -> dict[Any, dict[str, Any]]:
        """Column -> value as text, of each key. A row without a key is looked for on both sides, and may be gone."""
        if subject.identity:
            return {key: dict(zip(subject.identity, key)) for key in keys}
        words: dict[Any, dict[str, Any]] = {key: {} for key in keys}
        if not keys:
            return words
        for session, side, where in (
            (self.servers.source_view.session, subject.source, subject.where),
            (self.servers.target_view.session, subject.target, None),
        ):
            session.execute("SET statement_timeout = 0")  # the verdict is known: it isn't lost for want of words
            for row in session.rows(hashing.shown(self.how, subject, side, where, keys)):
                words[row.id] = dict(zip(subject.columns, row.texts))
        return words


def _answered(
    verdict: Verdict,
    source: Sequence[concurrent.futures.Future[Answer]],
    target: Sequence[concurrent.futures.Future[Answer]],
) -> tuple[Sums, Sums] | None:
    here, there = [each.result() for each in source], [each.result() for each in target]
    verdict.seconds += sum(answer.seconds for answer in here + there)
    if not all(answer.stands for answer in here + there):
        return None
    return hashing.merged(answer.rows for answer in here), hashing.merged(answer.rows for answer in there)
