# SPDX-License-Identifier: GPL-3.0-or-later
"""pgml_strategy_info measures how fast rows change and WAL grows within a tenth, watched or counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from tests.conftest import Servers
from tests.support import majors
from tests.support.cluster import Cluster
from tests.support.pair import Place, wait_for

MODULE = "pgml_strategy_info"
WITHIN = 0.1
TABLES = """
CREATE TABLE t (id int PRIMARY KEY, note text);
CREATE TABLE parts (id int PRIMARY KEY, note text) PARTITION BY RANGE (id);
CREATE TABLE parts_all PARTITION OF parts DEFAULT;
INSERT INTO t SELECT i, 'first' FROM generate_series(1, 20000) AS i;
"""
WORK = """
INSERT INTO parts SELECT {0} * 4 + i, repeat('x', 100) FROM generate_series(1, 4) AS i;
UPDATE t SET note = 'u{0}' WHERE id BETWEEN {0} % 5000 * 2 + 1 AND {0} % 5000 * 2 + 2;
DELETE FROM t WHERE id = 20000 - {0};
"""
INSERTED, UPDATED, DELETED = 4, 2, 1
"""Rows that WORK changes."""
EACH_SECOND = 100


@pytest.fixture(params=[min(majors.VERSIONS), max(majors.VERSIONS)])
def place(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Place]:
    """A database with tables, on a server of the oldest and of the newest major version."""
    with database(servers.get(request.param, "primary"), "strategy_rates") as made:
        made.sql("VACUUM ANALYZE")
        yield made


@contextmanager
def database(cluster: Cluster, name: str) -> Iterator[Place]:
    """A fresh database with tables."""
    cluster.create_database(name)
    try:
        place = Place(cluster, name)
        place.sql(TABLES)
        yield place
    finally:
        cluster.drop_database(name)


class Writer(threading.Thread):
    """Runs WORK in transactions of its own, EACH_SECOND times."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place
        self._stop_writing = threading.Event()
        self.done = 0
        self.problem: BaseException | None = None

    def run(self) -> None:
        try:
            with (
                closing(self._place.cluster.connect(self._place.database)) as connection,
                connection.cursor() as cursor,
            ):
                cursor.execute("SET synchronous_commit = off")
                began = time.monotonic()
                while not self._stop_writing.wait(max(0.0, began + self.done / EACH_SECOND - time.monotonic())):
                    cursor.execute(WORK.format(self.done))
                    self.done += 1
        except BaseException as problem:
            self.problem = problem

    def stop(self) -> None:
        self._stop_writing.set()
        self.join()
        if self.problem is not None:
            raise self.problem


@contextmanager
def writing(place: Place) -> Iterator[Writer]:
    writer = Writer(place)
    writer.start()
    try:
        wait_for(lambda: writer.done > EACH_SECOND // 2 or writer.problem)
        yield writer
    finally:
        writer.stop()


def wal(place: Place) -> int:
    return int(place.value("SELECT (pg_current_wal_insert_lsn() - '0/0')::int8"))


def ask(place: Place, **params: Any) -> dict[str, Any]:
    return place.ok(MODULE, all_tables=True, **params)["measured"]


def check_rows(found: dict[str, Any], times: float, seconds: float) -> None:
    """WORK was done *times* in *seconds*."""
    hourly = 3600 * times / seconds
    for kind, rows in (("inserted", INSERTED), ("updated", UPDATED), ("deleted", DELETED)):
        assert found[kind] == pytest.approx(rows * hourly, rel=WITHIN), kind
    assert found["total"] == pytest.approx(found["inserted"] + found["updated"] + found["deleted"])


def test_a_load_is_watched(place: Place) -> None:
    # Before PostgreSQL 15 counters take a way of half a second or so through another process.
    sample = 2 if place.cluster.major >= 15 else 6
    with writing(place) as writer:
        done, began, at = writer.done, wal(place), time.monotonic()
        found = ask(place, sample_seconds=sample)
        done, written, passed = writer.done - done, wal(place) - began, time.monotonic() - at
    check_rows(found["changes_per_hour"], done, passed)
    assert found["wal_bytes_per_second"] == pytest.approx(written / passed, rel=WITHIN)
    assert sample <= found["changes_per_hour"]["seconds"] <= passed < sample + 3.5


def test_a_load_is_counted(place: Place) -> None:
    """Of the database's own age, although the server has counted for longer."""
    place.sql("SELECT pg_stat_reset()")
    if place.cluster.major >= 14:
        place.sql("SELECT pg_stat_reset_shared('wal')")
    counted = "SELECT sum(n_tup_del) FROM pg_stat_user_tables"
    wait_for(lambda: place.value(counted) == 0)
    place.sql("SELECT pg_stat_reset()")  # once more, now that nothing is on its way
    at, began = time.monotonic(), wal(place)
    with writing(place) as writer:
        time.sleep(2.5)
    wait_for(lambda: place.value(counted) == writer.done)
    found = ask(place)
    passed = time.monotonic() - at
    check_rows(found["changes_per_hour"], writer.done, passed)
    assert found["changes_per_hour"]["seconds"] == pytest.approx(passed, rel=WITHIN)
    if place.cluster.major >= 14:
        assert found["wal_bytes_per_second"] == pytest.approx((wal(place) - began) / passed, rel=WITHIN)
    else:
        assert found["wal_bytes_per_second"] is None


def test_counters_are_no_older_than_their_database(place: Place) -> None:
    """Nobody has reset them, and the server has counted for longer."""
    age = "SELECT extract(epoch FROM clock_timestamp() - least(a.stats_reset, b.stats_reset))"
    wait_for(lambda: place.value(age + " FROM pg_stat_archiver AS a, pg_stat_bgwriter AS b") > 8)
    began = time.monotonic()
    with database(place.cluster, "strategy_young") as young:
        wait_for(lambda: young.value("SELECT sum(n_tup_ins) FROM pg_stat_user_tables") == 20000)
        found = ask(young)["changes_per_hour"]
        # The time of a file has no fractions of seconds.
        assert found["seconds"] < time.monotonic() - began + 1.1 < 8
    assert found["inserted"] == pytest.approx(20000 * 3600 / found["seconds"], rel=0.01)


def test_rows_that_were_loaded_a_moment_ago_dont_change_all_the_time(place: Place) -> None:
    result = place.ok(MODULE, all_tables=True)
    assert result["measured"]["changes_per_hour"]["inserted"] > 20000
    assert result["recommendation"]["strategy"] == "dump"
    assert ask(place, sample_seconds=0.1)["changes_per_hour"]["total"] == 0


def test_without_counters_changes_are_unknown(place: Place) -> None:
    place.sql(f"ALTER DATABASE {place.database} SET track_counts = off")
    result = place.ok(MODULE, all_tables=True, sample_seconds=0.1)
    assert result["measured"]["changes_per_hour"] is None
    assert any("track_counts is off" in words for words in result["measured"]["unseen"])
    assert "not known" in result["alternatives"][0]["reasons"][1]
