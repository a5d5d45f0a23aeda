# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies that are killed, cut off or run out of room: the live tables stay whole, and the next run ends what was begun."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from tests.support import copies, playbooks, rooms
from tests.support.cluster import Cluster
from tests.support.copies import MODULE, Process, copy, differences, options, residue, running, until
from tests.support.pair import Pair, pair_of, wait_for

pytestmark = pytest.mark.slow

# nap() holds up whatever calls it, for as long as the database it runs in says: never, unless a test wants it.
TABLES = """
    CREATE FUNCTION nap(id int, setting text) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
    $$ DECLARE seconds text := current_setting(setting, true);
       BEGIN IF seconds <> '' THEN PERFORM pg_sleep(seconds::float8); END IF; RETURN id; END $$;
    CREATE TABLE a (id int PRIMARY KEY, v int NOT NULL, filler text, CONSTRAINT slow CHECK (nap(id, 'nap.row') > 0));
    CREATE TABLE b (id serial PRIMARY KEY, v int NOT NULL, a int REFERENCES a);
    CREATE INDEX a_slow ON a (nap(id, 'nap.index'));
    INSERT INTO a SELECT g, 1, repeat(md5(g::text), 20) FROM generate_series(1, 500) AS g;
    INSERT INTO b (v, a) SELECT 1, 1 + g % 500 FROM generate_series(1, 2000) AS g;
"""
SLOW_READING = ["a", {"name": "b", "where": "public.nap(id, 'nap.read') > 0"}]


@pytest.fixture(scope="module")
def servers_of_its_own() -> Iterator[tuple[Cluster, Cluster]]:
    """Two servers that may be restarted."""
    with playbooks.cluster(log_statement="none") as source, playbooks.cluster(log_statement="none") as target:
        yield source, target


@pytest.fixture
def live(servers_of_its_own: tuple[Cluster, Cluster]) -> Iterator[Pair]:
    """Version 1 of two tables at the target, version 2 at the source."""
    with pair_of(*servers_of_its_own) as pair:
        pair.sql_source(TABLES)
        copy(pair)
        next_version(pair)
        yield pair


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "tmp"


def next_version(pair: Pair) -> None:
    """Write all rows of both tables anew, and one more."""
    pair.sql_source(
        "UPDATE a SET v = v + 1; UPDATE b SET v = v + 1; INSERT INTO b (v, a) SELECT max(v), 1 FROM b;"
        " INSERT INTO a SELECT max(id) + 1, max(v) FROM a"
    )


def slow(pair: Pair, what: str, seconds: float) -> None:
    """Hold up every row that is read at the source, written to the target or indexed there."""
    place = pair.source if what == "read" else pair.target
    place.sql(f"ALTER DATABASE \"{place.database}\" SET nap.{what} = '{seconds}'")


def quick(pair: Pair) -> None:
    for place in (pair.source, pair.target):
        place.sql(f'ALTER DATABASE "{place.database}" RESET ALL')


def version(pair: Pair) -> int:
    """The version of the live tables, all of whose rows are of one, and all of them there."""
    query = (
        "SELECT (SELECT count(*) FROM a), array(SELECT DISTINCT v FROM a UNION SELECT DISTINCT v FROM b),"
        " (SELECT count(*) FROM b)"
    )
    [(in_a, versions, in_b)] = pair.sql_target(query)
    assert len(versions) == 1, f"rows of versions {versions} are mixed"
    assert (in_a, in_b) == (499 + versions[0], 1999 + versions[0])
    keys = pair.sql_target(
        "SELECT conname::text FROM pg_constraint WHERE conrelid IN ('a'::regclass, 'b'::regclass) AND contype <> 'n' ORDER BY 1"
    )
    assert [name for (name,) in keys] == ["a_pkey", "b_a_fkey", "b_pkey", "slow"]
    return int(versions[0])


def assert_recovers(pair: Pair, **params: Any) -> None:
    """The live tables are whole, the next run makes them equal, and nothing is left."""
    version(pair)
    quick(pair)
    assert copy(pair, **params)["changed"]
    assert differences(pair) == {}
    assert copies.redefined(pair) == ""
    assert not copy(pair, **params)["changed"]


def seen(pair: Pair, query: str) -> Callable[[], Any]:
    return lambda: pair.target.cluster.sql(query, [pair.target.database])


def in_target(pair: Pair, query: str) -> Callable[[], Any]:
    return lambda: pair.sql_target(query)


STEPS: dict[str, tuple[str, Callable[[Pair], Callable[[], Any]]]] = {
    "a scratch database is there": (
        "row",
        lambda pair: seen(pair, "SELECT 1 FROM pg_database WHERE datname ~ '^pgml_scratch_' AND %s <> ''"),
    ),
    "a staging schema is there": (
        "row",
        lambda pair: in_target(pair, "SELECT 1 FROM pg_namespace WHERE nspname ~ '^pgml_staging_'"),
    ),
    "rows are written": (
        "row",
        lambda pair: seen(pair, "SELECT 1 FROM pg_stat_progress_copy WHERE datname = %s AND tuples_processed > 5"),
    ),
    "rows are read": (
        "read",
        lambda pair: lambda: pair.source.cluster.sql("SELECT 1 FROM pg_stat_progress_copy WHERE tuples_processed > 5"),
    ),
    "an index is built": (
        "index",
        lambda pair: seen(pair, "SELECT 1 FROM pg_stat_progress_create_index WHERE datname = %s"),
    ),
}


@pytest.mark.parametrize("step", STEPS)
def test_killed_when(live: Pair, step: str, directory: Path) -> None:
    what, condition = STEPS[step]
    slow(live, what, 0.01)
    params: dict[str, Any] = {"tables": SLOW_READING} if what == "read" else {}
    with running(live, directory, refresh="always", **params) as process:
        until(process, condition(live), step)
        process.kill()
        assert version(live) == 1
        # The source is not kept waiting for a run that is dead, even if there never is another.
        wait_for(lambda: not copies.sessions(live.source.cluster), 15, "the source's sessions to end")
        wait_for(lambda: not process.processes(), 15, "the programs that it has started to end")
        assert process.left_files() == []
    assert_recovers(live, **params)


def test_killed_while_the_exchange_waits_for_a_reader(live: Pair, directory: Path) -> None:
    waiting = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation IN ('a'::regclass, 'b'::regclass)"
    with running(live, directory, refresh="always") as process:
        with live.target.transaction("SELECT count(*) FROM b", "SELECT count(*) FROM a"):
            until(process, in_target(live, waiting), "the exchange")
            process.kill()
            wait_for(lambda: not live.sql_target(waiting), 15, "the exchange to be given up")
            assert version(live) == 1
        assert version(live) == 1
    assert_recovers(live)


def test_the_exchange_waits_for_a_reader_and_lets_others_read(live: Pair, directory: Path) -> None:
    with running(live, directory, refresh="always") as process:
        with live.target.transaction("SELECT count(*) FROM b", "SELECT count(*) FROM a"):
            end = time.monotonic() + 8
            waited = 0.0
            while time.monotonic() < end and not process.ended:
                began = time.monotonic()
                assert live.sql_target("SELECT min(v), max(v) FROM a") == [(1, 1)]
                waited = max(waited, time.monotonic() - began)
        result = process.finish()
    # Nobody queues up for long behind a run that waits itself.
    assert waited < 4
    if result.get("failed"):
        # It has given up, with a sentence that names who was in the way.
        assert "lock" in result["msg"] and version(live) == 1
    else:
        assert version(live) == 2
    assert residue(live) == []
    quick(live)
    copy(live, refresh="always")
    assert differences(live) == {}


def test_killed_at_any_moment(live: Pair, tmp_path: Path) -> None:
    """What no other test stops at, such as the moments around the exchange."""
    with running(live, tmp_path / "whole", refresh="always") as process:
        began = time.monotonic()
        assert not process.finish().get("failed")
        whole = time.monotonic() - began
    current = version(live)
    assert current == 2
    killed = 0
    for number, fraction in enumerate((0.3, 0.45, 0.55, 0.65, 0.72, 0.79, 0.86, 0.93, 0.97)):
        next_version(live)
        with running(live, tmp_path / str(number), refresh="always") as process:
            with suppress(subprocess.TimeoutExpired):
                process.wait(whole * fraction)
            killed += not process.ended
            process.kill()
            now = version(live)
            assert now in (current, 3 + number)
            current = now
    assert killed >= 5
    if current == 3 + number:
        next_version(live)
    assert_recovers(live, refresh="if_changed")


def assert_failed(process: Process, *words: str) -> None:
    result = process.finish()
    assert result.get("failed"), result
    assert any(word in result["msg"] for word in words), result["msg"]
    assert result["msg"].endswith("."), result["msg"]


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_source_goes_away_while_rows_are_read(live: Pair, directory: Path, how: str) -> None:
    slow(live, "read", 0.01)
    with running(live, directory, refresh="always", tables=SLOW_READING) as process:
        until(process, STEPS["rows are read"][1](live), "rows are read")
        getattr(live.source.cluster, how)()
        live.source.cluster.start()
        assert_failed(process, live.source.database)
    assert residue(live) == []
    assert version(live) == 1
    assert_recovers(live, tables=SLOW_READING)


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_target_goes_away_while_rows_are_written(live: Pair, directory: Path, how: str) -> None:
    slow(live, "row", 0.01)
    with running(live, directory, refresh="always") as process:
        until(process, STEPS["rows are written"][1](live), "rows are written")
        getattr(live.target.cluster, how)()
        live.target.cluster.start()
        assert_failed(process, live.target.database)
    assert not copies.sessions(live.source.cluster)
    assert version(live) == 1
    assert_recovers(live)


def test_a_table_that_is_rewritten_while_rows_are_read_is_not_taken_for_empty(live: Pair, directory: Path) -> None:
    """TRUNCATE waits for the locks of the run, or is noticed."""
    slow(live, "read", 0.001)
    with running(live, directory, refresh="always", tables=SLOW_READING) as process:
        until(process, STEPS["rows are read"][1](live), "rows are read")
        with pytest.raises(psycopg2.errors.LockNotAvailable):
            live.sql_source("SET lock_timeout = '200ms'; TRUNCATE a, b")
        result = process.finish()
    assert not result.get("failed"), result
    assert version(live) == 2


def test_an_archive_is_whole_or_the_old_one(live: Pair, tmp_path: Path) -> None:
    archive = tmp_path / "archives" / "archive"
    archive.parent.mkdir()
    params: dict[str, Any] = {"method": "archive", "archive": str(archive), "tables": SLOW_READING}
    dumped = {**params, "archive_state": ["dumped"]}
    copy(live, **dumped)
    kept = {path: path.read_bytes() for path in archive.rglob("*") if path.is_file()}
    next_version(live)
    slow(live, "read", 0.01)
    with running(live, tmp_path / "tmp", refresh="always", **dumped) as process:
        until(process, STEPS["rows are read"][1](live), "rows are read")
        process.kill()
        wait_for(lambda: not copies.sessions(live.source.cluster), 15, "the source's sessions to end")
    assert {path: path.read_bytes() for path in archive.rglob("*") if path.is_file()} == kept
    restored = {"method": "archive", "archive": str(archive), "archive_state": ["restored"], "tables": SLOW_READING}
    copy(live, source=None, **restored)
    assert version(live) == 2
    assert_recovers(live, **params)
    assert version(live) == 3
    assert [path.name for path in archive.parent.iterdir()] == ["archive"]


# A target without room


@pytest.fixture
def small(servers_of_its_own: tuple[Cluster, Cluster]) -> Iterator[tuple[Pair, Path]]:
    """A target database on a file system of 64 MB."""
    with pair_of(*servers_of_its_own) as pair, rooms.small(pair.target) as room:
        pair.sql_source(TABLES)
        copy(pair)
        next_version(pair)
        yield pair, room


def test_target_runs_full_while_rows_are_written(small: tuple[Pair, Path], tmp_path: Path) -> None:
    pair, room = small
    pair.sql_source(
        "ALTER TABLE a ALTER filler SET STORAGE EXTERNAL;"
        "INSERT INTO a SELECT g, 2, repeat(md5(g::text), 200) FROM generate_series(1000, 1400) AS g"
    )
    slow(pair, "row", 0.003)
    with running(pair, tmp_path / "tmp", refresh="always", tables=["a", "b"]) as process:
        until(process, STEPS["rows are written"][1](pair), "rows are written")
        rooms.fill(room, 100_000)
        assert_failed(process, "No space left", "disk full", "could not extend")
    assert residue(pair) == []
    assert version(pair) == 1
    rooms.clear(room)
    quick(pair)
    assert copy(pair)["changed"]
    assert differences(pair) == {}


def test_target_without_room_is_refused_before_anything_moves(small: tuple[Pair, Path]) -> None:
    pair, _room = small
    pair.sql_source(
        "CREATE TABLE large AS SELECT g AS id, repeat(md5(g::text), 40) AS t FROM generate_series(1, 60000) AS g"
    )
    result = pair.target.run(MODULE, **options(pair))
    assert result.get("failed"), result
    assert residue(pair) == [] and version(pair) == 1
    # Where the server's disk can't be seen from here, it is the server that says so, in the middle.
    assert any(word in result["msg"] for word in ("MB", "No space left", "could not extend")), result["msg"]
    pair.sql_source("DROP TABLE large")
    assert copy(pair)["changed"]
    assert differences(pair) == {}
