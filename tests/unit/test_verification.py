# SPDX-License-Identifier: GPL-3.0-or-later
"""How sums are compared, buckets looked into, differences told from changes under way, and verdicts put into words."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import hashing, settling, verification
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.comparison import First, Verdict
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.hashing import ALL_BITS
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.settling import Case
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.subjects import Side, Subject

KEY = ("7",)
OLD, NEW = (1, 11), (1, 22)


class Row(NamedTuple):
    id: Any
    rows: int
    hashes: int


def verdict(name: str = "t") -> Verdict:
    side = Side(1, "r", {}, ())
    return Verdict(Subject(("public", name), ("id",), ("id",), None, side, side, None))


def case() -> Case:
    """A case with one suspect key, about to be read again."""
    made = Case(verdict(), First(0, {0: 1}))
    question = made.question(9)
    assert question is not None
    made.hear(question[0], ({KEY: OLD}, {KEY: NEW}))
    made.begin()
    return made


@pytest.mark.parametrize(
    ("rows", "bits"), [(-1, 0), (0, 0), (499, 0), (500, 1), (1000, 2), (10_000, 5), (32_767_999, 16), (10**12, 16)]
)
def test_buckets_have_about_five_hundred_rows(rows: int, bits: int) -> None:
    assert hashing.bits_for(rows) == bits


def test_buckets_are_looked_into_by_as_many_bits_as_there_is_room_for() -> None:
    assert hashing.finer_bits(3, 1) == 20
    assert hashing.finer_bits(16, 100) == 26
    assert hashing.finer_bits(16, 1 << 16) == 17
    assert hashing.finer_bits(16, 1 << 17) is None
    assert hashing.finer_bits(60, 1) == 63
    assert hashing.finer_bits(63, 1) is None


def test_sums_of_parts_add_up() -> None:
    parts = [[Row(0, 2, 5), Row(1, 1, -7)], [Row(1, 3, 8)], []]
    assert hashing.merged(parts) == {0: (2, 5), 1: (4, 1)}
    assert hashing.merged([[Row(["a", "b"], 1, 2)]]) == {("a", "b"): (1, 2)}


def test_what_differs_is_told_with_the_larger_count() -> None:
    source = {1: (2, 9), 2: (3, 4), 3: (1, 1)}
    target = {1: (2, 9), 2: (5, 4), 4: (7, 7)}
    assert hashing.apart(source, target) == {2: 5, 3: 1, 4: 7}


def test_buckets_come_in_portions() -> None:
    assert list(hashing.batches({1: 4, 2: 4, 3: 20, 4: 1}, 10)) == [[1, 2], [3], [4]]
    assert list(hashing.batches({}, 10)) == []


def test_a_difference_must_stay_for_three_rounds() -> None:
    open_case = case()
    for _round in range(settling.ROUNDS):
        assert open_case.open == [KEY] and not open_case.found
        open_case.judge({KEY: OLD}, {KEY: NEW}, {KEY: OLD})
    assert open_case.open == [] and [found.key for found in open_case.found] == [KEY]
    assert settling.ROUNDS == 3 and open_case.is_exhausted


@pytest.mark.parametrize(
    ("before", "there", "after"),
    [(OLD, OLD, NEW), (OLD, NEW, NEW), (OLD, OLD, OLD), (None, None, NEW), (NEW, None, None)],
)
def test_a_key_is_equal_when_the_target_shows_what_the_source_has_shown(before: Any, there: Any, after: Any) -> None:
    open_case = case()
    open_case.judge(*[{} if look is None else {KEY: look} for look in (before, there, after)])
    assert open_case.open == [] and not open_case.found


def test_a_key_that_changes_stays_open_and_is_counted_anew() -> None:
    open_case = case()
    other = (1, 33)
    for before, after in ((OLD, OLD), (OLD, OLD), (OLD, NEW), (NEW, NEW), (NEW, NEW)):
        open_case.judge({KEY: before}, {KEY: other}, {KEY: after})
        assert open_case.open == [KEY]
    open_case.judge({KEY: NEW}, {KEY: other}, {KEY: NEW})
    assert open_case.open == [] and len(open_case.found) == 1


def test_a_case_asks_for_a_sample_then_finer_buckets_then_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "ROWS_AT_ONCE", 10)
    open_case = Case(verdict(), First(2, {0: 6, 1: 2, 2: 1, 3: 8, 4: 6}))
    _ask(open_case, (ALL_BITS, [0, 1], 8), ({}, {}))
    _ask(open_case, (17, [2, 3, 4], 10), ({5: (4, 1), 9: (5, 1), 70: (6, 1)}, {}))
    assert not open_case.has_suspects
    monkeypatch.setattr(hashing, "finer_bits", lambda bits, count: None)
    _ask(open_case, (ALL_BITS, [5, 9], 9), ({}, {}))
    _ask(open_case, (ALL_BITS, [70], 6), ({KEY: OLD}, {}))
    assert open_case.has_suspects and open_case.question(1) is None and not open_case.is_exhausted
    open_case.begin()
    assert open_case.is_exhausted


def _ask(open_case: Case, expected: tuple[int, list[int], int], answer: Any) -> None:
    asked = open_case.question(1)
    assert asked is not None and asked[0].within is not None
    assert (asked[0].bits, list(asked[0].within.buckets), asked[1]) == expected
    open_case.hear(asked[0], answer)


def found(name: str, **rows: Any) -> Verdict:
    made = verdict(name)
    for field, value in rows.items():
        setattr(made, field, value)
    return made


@pytest.mark.parametrize(
    ("verdicts", "sentence"),
    [
        ([found("t", rows_source=1)], "1 table has the same rows on both sides, 1 of them."),
        (
            [found("t", rows_source=900), found("u", rows_source=100)],
            "2 tables have the same rows on both sides, 1,000 of them.",
        ),
        ([found("t", missing=[{}])], "1 of 1 table differs: public.t (1 missing)."),
        (
            [found("t", changed=[{}, {}], complete=False), found("u", complete=False), found("v")],
            "2 of 3 tables differ: public.t (2 changed and more), public.u (rows not looked for).",
        ),
        (
            [found("t", open=True), found("u", extra=[{}], open=True)],
            "1 of 2 tables differs: public.u (1 extra). 1 of 2 tables is undecided, because the time was over before rows came"
            " to rest: public.t.",
        ),
    ],
)
def test_one_sentence_says_it_all(verdicts: list[Verdict], sentence: str) -> None:
    assert verification.summary(verdicts) == sentence


def test_rows_are_named_in_a_sentence() -> None:
    rows = [{"id": str(number), "a b": None} for number in range(12)]
    assert verification.in_words(found("t", missing=rows[:1], undecided=[{}])) == (
        'public.t on the target lacks (id=0, "a b"=NULL), may have other values in (a row of no columns).'
    )
    assert verification.in_words(found("t", extra=rows, complete=False)).endswith(
        " and 2 more, has differences that are not named."
    )
    assert verification.in_words(found("t", open=True, complete=False)) == (
        "public.t on the target may have differences that are not named."
    )
    long = {f"c{number}": "x" * 100 for number in range(20)}
    assert len(verification.in_words(found("t", changed=[long]))) < 700
