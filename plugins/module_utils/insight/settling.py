# SPDX-License-Identifier: GPL-3.0-or-later
"""Differences that go away when the target catches up, told from those that stay, without any lock.

What differs at first is read again and again: source, then the target after it has applied what the source had, then the
source once more. A key is equal as soon as both sides have shown the same. It differs when both have shown the same different
things in several rounds, in which the source didn't change it.
"""

from __future__ import annotations

import time
from typing import Any, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import TimedOut
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import hashing, moments, subscribed
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.comparison import (
    NOTHING,
    ROWS_AT_ONCE,
    Comparison,
    First,
    Found,
    Query,
    Verdict,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.hashing import Sums, Within
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.subjects import Side
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.readers import View, in_time

ROUNDS = 3
"""in which a difference must be the same to be one"""
_KEYS_AT_ONCE = 5000
"""of a table, that are read again at a time"""
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0


class Case:
    """A table that differed at first, and what of it is still to be looked into."""

    def __init__(self, verdict: Verdict, first: First) -> None:
        self.verdict = verdict
        self.found: list[Found] = []
        self.open: list[Any] = []
        """keys that are read again and again"""
        self._bits, self._buckets = first.bits, dict(first.apart)
        self._sampled = False
        self._suspects: list[Any] = []
        self._seen: dict[Any, tuple[Found, int]] = {}
        """what an open key showed in the last round, and in how many rounds up to it"""

    def is_closed(self, most: int) -> bool:
        """Whether all is looked into, or enough of it, when *most* differences are wanted."""
        return len(self.found) > most or self.is_exhausted

    @property
    def is_exhausted(self) -> bool:
        """Whether nothing is left to be looked into."""
        return not (self._buckets or self._suspects)

    @property
    def has_suspects(self) -> bool:
        return bool(self._suspects)

    def question(self, most: int) -> tuple[Query, int] | None:
        """What to ask next when *most* differences are wanted, and how many sums may come back; None while suspects are left."""
        if self._suspects or not self._buckets:
            return None
        finer = hashing.finer_bits(self._bits, len(self._buckets))
        sample, self._sampled = not self._sampled, True
        if sum(self._buckets.values()) > ROWS_AT_ONCE and finer is not None and not sample:
            return Query(self.verdict, finer, Within(self._bits, list(self._buckets))), ROWS_AT_ONCE
        # If differences stay, these have as many as are wanted.
        some = dict(list(self._buckets.items())[: most + 1]) if sample else self._buckets
        batch = next(hashing.batches(some, ROWS_AT_ONCE))
        rows = sum(self._buckets[bucket] for bucket in batch)
        return Query(self.verdict, hashing.ALL_BITS, Within(self._bits, batch)), rows

    def hear(self, question: Query, sums: tuple[Sums, Sums]) -> None:
        """Take the answer to a question."""
        apart = hashing.apart(*sums)
        if question.bits != hashing.ALL_BITS:
            self._bits, self._buckets = question.bits, apart
            return
        self._suspects = list(apart)
        for bucket in question.within.buckets if question.within else ():
            del self._buckets[bucket]

    def begin(self) -> None:
        """Take some of the suspects."""
        self.open, self._suspects = self._suspects[:_KEYS_AT_ONCE], self._suspects[_KEYS_AT_ONCE:]
        self._seen = {}

    def judge(self, before: Sums, there: Sums, after: Sums) -> None:
        """Go on with the keys that a round leaves open."""
        self.open = [
            key
            for key in self.open
            if not self._is_decided(
                Found(key, after.get(key, NOTHING), there.get(key, NOTHING)), before.get(key, NOTHING)
            )
        ]

    def _is_decided(self, now: Found, before: tuple[int, int]) -> bool:
        if now.target in (now.source, before):
            return True
        if before != now.source:
            self._seen.pop(now.key, None)
            return False
        last, times = self._seen.get(now.key, (now, 0))
        times = times + 1 if last == now else 1
        self._seen[now.key] = (now, times)
        if times >= ROUNDS:
            self.found.append(now)
        return times >= ROUNDS


def settle(run: Comparison, cases: Sequence[Case]) -> None:
    """Find out which differences stay, until the time is over."""
    undecided: dict[tuple[str, str], list[Any]] = {case.verdict.subject.key: [] for case in cases}
    try:
        while True:
            unclosed = [case for case in cases if not case.is_closed(run.most)]
            if not unclosed:
                break
            some = _look_closer(run, unclosed)
            _read_again(run, some)
            for case in some:
                undecided[case.verdict.subject.key] += case.open
                case.open = []
    except TimedOut:
        for case in cases:
            undecided[case.verdict.subject.key] += case.open
            case.verdict.open = not case.is_closed(run.most)
    for case in cases:
        case.verdict.complete = case.is_exhausted
        run.report(case.verdict, case.found, undecided[case.verdict.subject.key])


def _look_closer(run: Comparison, cases: Sequence[Case]) -> list[Case]:
    """Ask about as many of *cases* as there is room for, and return those that have suspects."""
    asked: list[tuple[Case, Query]] = []
    room = ROWS_AT_ONCE
    for case in cases:
        question = case.question(run.most)
        if question and (question[1] <= room or not asked):
            asked.append((case, question[0]))
            room -= question[1]
    if asked:
        with moments.followed(run.servers, [case.verdict.subject for case, _query in asked]) as moment:
            answers = run.sums(moment, [query for _case, query in asked])
        for (case, query), sums in zip(asked, answers):
            if sums is not None:
                case.verdict.lsn = moment.lsn
                case.hear(query, sums)
    return [case for case in cases if case.has_suspects]


def _read_again(run: Comparison, cases: Sequence[Case]) -> None:
    """Read suspects until they are decided. What never comes to rest takes half of the time that is left: others may wait."""
    now = time.monotonic()
    end = now + (run.servers.deadline - now) / 2
    for case in cases:
        case.begin()
    pause = _FIRST_PAUSE_SECONDS
    unsettled = list(cases)
    while unsettled:
        _round(run, unsettled)
        unsettled = [case for case in cases if case.open]
        if time.monotonic() + pause > end:
            return
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _round(run: Comparison, cases: Sequence[Case]) -> None:
    servers = run.servers
    before = [_look(run, servers.source_view, case, case.verdict.subject.source) for case in cases]
    lsn = subscribed.mark(servers.source)
    moments.catch_up(servers, moments.feeds_of([case.verdict.subject for case in cases]), lsn)
    there = [_look(run, servers.target_view, case, case.verdict.subject.target) for case in cases]
    after = [_look(run, servers.source_view, case, case.verdict.subject.source) for case in cases]
    for case, *looks in zip(cases, before, there, after):
        case.judge(*looks)
        case.verdict.lsn = lsn


def _look(run: Comparison, view: View, case: Case, side: Side) -> Sums:
    """What one side has of the open keys."""
    how, subject, session = run.how, case.verdict.subject, view.session
    where = subject.where if side is subject.source else None
    began = time.monotonic()
    with in_time(session, run.servers.deadline):
        if subject.identity:
            rows = session.rows(hashing.look(how, subject, side, where, case.open))
            sums = {case.open[row.id - 1]: (row.rows, int(row.hashes)) for row in rows}
        else:
            within = Within(hashing.ALL_BITS, case.open)
            query = hashing.sums(how, subject, hashing.whole(subject, side), where, hashing.ALL_BITS, within)
            sums = hashing.merged([session.rows(query)])
    case.verdict.seconds += time.monotonic() - began
    return sums
