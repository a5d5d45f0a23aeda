# SPDX-License-Identifier: GPL-3.0-or-later
"""pgml_verify_info tells the truth while the source is written to in every way that replication has to follow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support import majors
from tests.support.cluster import Cluster, make_directory
from tests.support.pair import Pair, pair_of
from tests.support.writers import KINDS, SCHEMA, TABLES, Writers, fill, writers

MODULE = "pgml_verify_info"
TIMES = 20

pytestmark = pytest.mark.slow

# The writers let these be, and they are in a table that is written to.
SPOIL = (
    "UPDATE busy.bulk SET note = 'other' WHERE id = -5; DELETE FROM busy.bulk WHERE id = -6;"
    "INSERT INTO busy.bulk VALUES (-999999, 0, 'more')"
)
SPOILT = {"missing": [{"id": "-6"}], "extra": [{"id": "-999999"}], "changed": [{"id": "-5"}]}


@contextmanager
def servers(major: int, **settings: str) -> Iterator[tuple[Cluster, Cluster]]:
    common = {"max_prepared_transactions": "10", "log_statement": "none", "shared_buffers": "64MB", **settings}
    programs = majors.available()
    if major not in programs:
        pytest.skip(f"no server programs of PostgreSQL {major}")
    with (
        Cluster(make_directory(), programs[major], common) as source,
        Cluster(make_directory(), programs[major], common) as target,
    ):
        yield source, target


@contextmanager
def busy(
    source: Cluster, target: Cluster, kinds: Sequence[str] = KINDS, **subscription: Any
) -> Iterator[tuple[Pair, Writers]]:
    """A pair whose source is written to; its subscription brings a partitioned table by its root."""
    with pair_of(source, target) as pair:
        pair.both(SCHEMA)
        fill(pair.source)
        pair.publish(*TABLES, via_partition_root=True)
        pair.subscribe(**subscription)
        with writers(pair.source, kinds) as made:
            made.each()
            yield pair, made


def verify(pair: Pair, method: str, **params: Any) -> dict[str, Any]:
    source = pair.source.cluster.source(pair.source.database)
    named = {} if "tables" in params else {"subscription": pair.name}
    return pair.target.ok(MODULE, source=source, method=method, timeout=120, **named, **params)


def unequal(result: dict[str, Any]) -> dict[str, Any]:
    """What of a result says that tables are not equal."""
    return {
        table["name"]: (table["differing"], table["undecided"], table["rows_source"], table["rows_target"])
        for table in result["tables"]
        if not table["equal"]
    }


@pytest.fixture(scope="module")
def default(default_major: int) -> Iterator[tuple[Cluster, Cluster]]:
    with servers(default_major) as both:
        yield both


def test_equal_tables_are_found_equal_every_time(default: tuple[Cluster, Cluster]) -> None:
    naive = ['busy."Moves"', "busy.accounts", "busy.lines"]
    with busy(*default) as (pair, made):
        before = made.counts
        held = []
        differed = 0
        for _ in range(TIMES):
            fenced = verify(pair, "fence")
            assert unequal(fenced) == {}
            assert {table["name"] for table in fenced["tables"]} == set(TABLES)
            held += [table["lock_ms"] for table in fenced["tables"]]
            differed += not verify(pair, "offline", tables=naive)["equal"]
        for _ in range(3):
            assert unequal(verify(pair, "converge")) == {}
        written = made.counts - before
        assert all(written[kind] for kind in before), f"not all kinds were written meanwhile: {written}"
    assert differed, "even a naive comparison found them equal, so that nothing is shown"
    assert max(held) < 2500 and sorted(held)[len(held) // 2] < 500, held


@pytest.mark.parametrize("method", ["fence", "converge"])
def test_rows_that_differ_are_found_among_those_that_change(default: tuple[Cluster, Cluster], method: str) -> None:
    with busy(*default) as (pair, made):
        pair.target.sql(SPOIL)
        for _ in range(2):
            assert {name: found[0] for name, found in unequal(verify(pair, method)).items()} == {"busy.bulk": SPOILT}
        made.more(20)


STREAMED: dict[int, dict[str, Any]] = {
    15: {"streaming": "on", "two_phase": True},
    # Parallel apply of PostgreSQL 18.4 crashes when streamed transactions are rolled back, whether anybody compares or not.
    18: {
        "streaming": "parallel",
        "two_phase": True,
        "kinds": [kind for kind in KINDS if kind not in ("savepoints", "rolled back")],
    },
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("major", STREAMED)
def test_transactions_that_are_streamed_are_waited_for(major: int) -> None:
    with servers(major, logical_decoding_work_mem="64kB") as both, busy(*both, **STREAMED[major]) as (pair, made):
        streamed = "SELECT sum(stream_txns) FROM pg_stat_replication_slots"
        before = pair.source.value(streamed)
        for _ in range(5):
            assert unequal(verify(pair, "fence")) == {}
        assert unequal(verify(pair, "converge")) == {}
        made.each()
        assert pair.source.value(streamed) > before, "nothing was streamed, so that nothing is shown"
        pair.target.sql(SPOIL)
        assert {name: found[0] for name, found in unequal(verify(pair, "fence")).items()} == {"busy.bulk": SPOILT}
