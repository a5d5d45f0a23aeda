# SPDX-License-Identifier: GPL-3.0-or-later
"""Replicas made of a physical copy hold what the primary holds, although it is written to all the time."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support import copies, physical
from tests.support.cluster import Cluster
from tests.support.pair import wait_for
from tests.support.physical import PASSWORD, Hits, Seeding
from tests.support.writers import SCHEMA, TABLES, Writers, fill, writers

pytestmark = pytest.mark.slow

NAMES = {"public.t", "public.hits", "public.hit", "more.p_low", "more.p_high", *TABLES} - {"busy.days"}


@pytest.fixture(scope="module")
def templates() -> Iterator[list[Cluster]]:
    with physical.templates(shared_buffers="64MB") as made:
        yield made


@pytest.fixture
def two(templates: list[Cluster]) -> Iterator[Seeding]:
    with physical.seeding(templates) as made:
        yield made


@contextmanager
def busy(two: Seeding) -> Iterator[Writers]:
    two.source.sql(SCHEMA)
    fill(two.source)
    with writers(two.source, large=20_000) as made, Hits(two.source):
        made.each()
        yield made


def verify(made: Seeding) -> None:
    """Rows are equal at one moment."""
    source = made.primary.source("shop")
    result = made.target.ok("pgml_verify_info", source=source, method="fence", timeout=120, subscription="sub")
    assert {table["name"] for table in result["tables"]} > NAMES
    assert [table for table in result["tables"] if not table["equal"]] == []


@pytest.mark.sampled(1)
@pytest.mark.parametrize("times", [3, 20])
def test_equal_every_time(two: Seeding, templates: list[Cluster], times: int) -> None:
    """The second replica is a copy of the first, which goes on."""
    with templates[1].clone() as cluster:
        second = Seeding(two.primary, cluster, number=2)
        with busy(two) as made:
            before = made.counts
            two.seed()
            copy_from_the_first(two, second)
            for _ in range(times):
                verify(two)
                verify(second)
            written = made.counts - before
            assert all(written[kind] for kind in before), f"not all kinds were written meanwhile: {written}"
        for each in (two, second):
            each.assert_equal()
            each.applied_without_errors()
            assert not each.step("prepared")["changed"]
        assert len({physical.identifier(server) for server in (two.primary, two.replica, cluster)}) == 3


def copy_from_the_first(two: Seeding, second: Seeding) -> None:
    two.replica.sql("CREATE ROLE dist LOGIN REPLICATION PASSWORD %s", [PASSWORD])
    subscribed = "SELECT oid, subname, subslotname, subenabled FROM pg_subscription"
    first = two.replica.sql(subscribed)
    second.seed(
        copy_from=two.replica.source("ml", two.distributor, PASSWORD),
        subscriptions=[second.subscription(copied_slot_name=two.slot)],
    )
    assert two.replica.sql(subscribed) == first
    assert two.replica.sql("SELECT count(*) FROM pg_replication_slots") == [(0,)]
    assert two.slots() == {two.slot, second.slot}
    assert second.replica.sql("SELECT FROM pg_authid WHERE rolname = 'dist'") == []


def waiting(two: Seeding) -> Any:
    """The transaction that the creation of the slot waits for."""
    query = (
        "SELECT l.transactionid::text FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)"
        " WHERE NOT l.granted AND a.query ~ 'pg_create_logical_replication_slot'"
    )
    return two.primary.sql(query)


def begin(stack: ExitStack, two: Seeding, statement: str) -> tuple[Any, str]:
    """A transaction that has written, and its number."""
    connection = stack.enter_context(closing(two.primary.connect("shop", autocommit=False)))
    with connection.cursor() as cursor:
        cursor.execute(statement)
        cursor.execute("SELECT pg_current_xact_id()::text")
        return connection, cursor.fetchone()[0]


def test_transactions_that_are_open_when_the_slot_begins(two: Seeding, tmp_path: Path) -> None:
    """Those that end after it come through it, those that end before with the files, be they prepared or not."""
    with ExitStack() as stack:
        first, first_id = begin(stack, two, "INSERT INTO t (v) VALUES ('before the base backup')")
        process = stack.enter_context(two.process(tmp_path, "prepared"))
        copies.until(process, lambda: waiting(two) == [(first_id,)], "the slot to wait")
        second, second_id = begin(stack, two, "INSERT INTO t (v) VALUES ('while the slot waits')")
        first.commit()
        copies.until(process, lambda: waiting(two) == [(second_id,)], "the slot to wait again")
        across, _ = begin(stack, two, "INSERT INTO t (v) VALUES ('across its begin'); UPDATE hit SET n = n + 5")
        ended, _ = begin(stack, two, "INSERT INTO t (v) VALUES ('rolled back later')")
        for name in ("one", "other"):
            prepared, _ = begin(stack, two, f"INSERT INTO t (v) VALUES ('prepared {name}')")
            with prepared.cursor() as cursor:
                cursor.execute(f"PREPARE TRANSACTION '{name}'")
        second.commit()
        result = process.finish()
        assert not result.get("failed"), result["msg"]
        assert 'Roll back copied prepared transaction "one"' in result["taken_away"]
        two.swap()
        query = "SELECT v FROM t WHERE length(v) <> 32 ORDER BY 1"
        here = [("before the base backup",), ("while the slot waits",)]
        assert two.target.sql(query) == here
        across.commit()
        ended.rollback()
        two.primary.sql("COMMIT PREPARED 'one'", dbname="shop")
        two.primary.sql("ROLLBACK PREPARED 'other'", dbname="shop")
        two.step("finished")
        there = [*here, ("across its begin",), ("prepared one",)]
        wait_for(lambda: two.target.sql(query) == sorted(there), 20, "what came through the slot")
    two.assert_done()
    assert two.replica.sql("SELECT sum(apply_error_count) FROM pg_stat_subscription_stats") == [(0,)]


def test_the_first_record_after_the_slot_begins_is_a_commit(two: Seeding, tmp_path: Path) -> None:
    """A transaction whose commit record begins where the slot does comes through the slot, and not with the files as well."""
    for _ in range(5):
        begin_among_commits(two, tmp_path)
        if "COMMIT" in record_at(two, two.recorded()["begin"]):
            break
        two.step("absent")
    else:
        pytest.fail("no slot began at a commit, so that nothing is shown")
    two.swap()
    two.step("finished")
    two.assert_done()
    assert two.replica.sql("SELECT sum(apply_error_count) FROM pg_stat_subscription_stats") == [(0,)]


def begin_among_commits(two: Seeding, tmp_path: Path) -> None:
    """Have the slot begin while others write nothing but that they have committed."""
    with ExitStack() as stack:
        first, first_id = begin(stack, two, "INSERT INTO hits DEFAULT VALUES")
        process = stack.enter_context(two.process(tmp_path, "prepared"))
        copies.until(process, lambda: waiting(two) == [(first_id,)], "the slot to wait")
        second, second_id = begin(stack, two, "INSERT INTO hits DEFAULT VALUES")
        first.commit()
        copies.until(process, lambda: waiting(two) == [(second_id,)], "the slot to wait again")
        others = [begin(stack, two, "INSERT INTO hits DEFAULT VALUES")[0] for _ in range(40)]
        second.commit()
        for each in others:
            each.commit()
            time.sleep(0.0005)
        result = process.finish()
        assert not result.get("failed"), result["msg"]


def record_at(two: Seeding, position: str) -> str:
    """What the primary's WAL has there."""
    command = [
        two.primary.bin_dir / "pg_waldump",
        "--path",
        two.primary.data / "pg_wal",
        "--start",
        position,
        "--limit",
        "1",
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.sampled(1)
@pytest.mark.parametrize("number", range(10))
def test_nothing_is_lost_or_comes_twice_at_the_boundary(two: Seeding, number: int) -> None:
    """Each transaction before the slot's begin is in the files, each other one comes through it."""
    with ExitStack() as stack:
        hits = [stack.enter_context(Hits(two.source)) for _ in range(3)]
        two.prepare()
        two.swap()
        two.step("finished")
        assert all(each.committed > 50 for each in hits)
    two.assert_done()
    two.applied_without_errors()
    ids = two.source.sql("SELECT array_agg(id ORDER BY id) FROM hits")
    assert two.target.sql("SELECT array_agg(id ORDER BY id) FROM hits") == ids
