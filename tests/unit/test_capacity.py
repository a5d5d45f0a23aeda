# SPDX-License-Identifier: GPL-3.0-or-later
"""What a first copy takes from two servers, and what is said when they don't have it."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import capacity
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.capacity import Replica, Upstream

MEGABYTE = 1 << 20
SOURCE = Upstream(
    wal_per_second=0.0, wal_space=None, wal_limit=None, age=1000, idle_limit=None, free_senders=1, free_connections=8
)
TARGET = Replica(free_origins=1, free_workers=1, free_connections=6)
SECOND = capacity.BYTES_PER_SECOND
"""A copy of that many bytes takes a second."""


def problems(size: int = 10 * SECOND, jobs: int = 4, source: dict[str, Any] | None = None, **target: Any) -> list[str]:
    return capacity.problems(SOURCE._replace(**(source or {})), TARGET._replace(**target), size, capacity.Way(jobs))


def test_just_enough_of_everything_is_enough() -> None:
    assert problems() == []
    source = {
        "wal_per_second": MEGABYTE,
        "wal_space": 20 * MEGABYTE,
        "wal_limit": 10 * MEGABYTE,
        "age": capacity.OLDEST_AGE,
        "idle_limit": 10,
    }
    assert problems(source=source) == []


def test_wal_may_take_half_of_the_space() -> None:
    assert problems(source={"wal_per_second": MEGABYTE}) == []
    assert problems(size=0, source={"wal_per_second": MEGABYTE, "wal_space": 0, "wal_limit": 0}) == []
    (words,) = problems(source={"wal_per_second": MEGABYTE, "wal_space": 20 * MEGABYTE - 1})
    assert (
        "copy of 200 MB takes about 10 s" in words and "writes 10 MB of WAL" in words and "only 19 MB are free" in words
    )


def test_wal_may_take_what_slots_may_keep() -> None:
    (words,) = problems(source={"wal_per_second": 2 * MEGABYTE, "wal_limit": 19 * MEGABYTE})
    assert "writes 20 MB of WAL" in words and "19 MB (max_slot_wal_keep_size)" in words


def test_a_slot_may_not_be_given_up_for_idleness_meanwhile() -> None:
    (words,) = problems(source={"idle_limit": 9})
    assert "takes about 10 s" in words and "given up after 9 s (idle_replication_slot_timeout)" in words


def test_old_rows_stand_against_a_long_snapshot() -> None:
    (words,) = problems(source={"age": capacity.OLDEST_AGE + 1})
    assert "1,610,612,737 transactions old" in words and "1,610,612,736 are the most" in words and "VACUUM" in words


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ({"free_senders": 0}, {}, "max_wal_senders of the source: 0 left, and 1 needed."),
        (
            {"free_connections": 7},
            {},
            "Connections (max_connections, or the role's limit) to the source: 7 left, and 8 needed.",
        ),
        ({}, {"free_origins": 0}, "of the target: 0 left, and 1 needed."),
        ({}, {"free_workers": -1}, "max_logical_replication_workers of the target: 0 left, and 1 needed."),
        (
            {},
            {"free_connections": 5},
            "Connections (max_connections, or the role's limit) to the target: 5 left, and 6 needed.",
        ),
    ],
)
def test_one_too_few_is_named(source: dict[str, int], target: dict[str, int], words: str) -> None:
    (found,) = problems(source=source, **target)
    assert words in found


def test_all_that_is_missing_is_said_at_once() -> None:
    source = {"wal_per_second": MEGABYTE, "wal_space": 0, "wal_limit": 0, "age": 1 << 31}
    found = problems(source={**source, "free_senders": 0, "free_connections": 0}, **dict.fromkeys(Replica._fields, 0))
    assert len(found) == len(set(found)) == 8
    assert all(words.endswith(".") for words in found)


def test_more_workers_take_more_connections() -> None:
    assert len(problems(jobs=5)) == 2 and problems(jobs=3) == []


@pytest.mark.parametrize(
    ("version", "losing", "invalidating"),
    [
        (130020, 1, 0), (130021, 0, 0), (140017, 1, 0), (140018, 0, 0), (150012, 1, 0), (150013, 0, 0), (160008, 1, 0),
        (160009, 0, 0), (170004, 1, 1), (170005, 0, 1), (170007, 0, 1), (170008, 0, 0), (180000, 0, 0),
    ],
)  # fmt: skip
def test_minor_versions_with_errors_are_named(version: int, losing: int, invalidating: int) -> None:
    found = capacity.outdated(version)
    assert sum("may lose changes" in words for words in found) == losing
    assert sum("may invalidate a new slot" in words for words in found) == invalidating
    assert len(found) == losing + invalidating
    assert all(f"PostgreSQL {version // 10000}.{version % 10000}" in words for words in found)


def test_the_minor_version_that_mends_it_is_named() -> None:
    first, second = capacity.outdated(170004)
    assert first.endswith("update it to 17.5.") and second.endswith("update it to 17.8.")


@pytest.mark.parametrize(
    ("version", "loses"),
    [
        (150000, False),
        (160011, True),
        (160012, False),
        (170007, True),
        (170008, False),
        (180001, True),
        (180002, False),
    ],
)
def test_minor_versions_that_lose_transactions_in_parallel(version: int, loses: bool) -> None:
    assert capacity.loses_parallel(version) is loses
