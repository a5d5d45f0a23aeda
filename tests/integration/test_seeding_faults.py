# SPDX-License-Identifier: GPL-3.0-or-later
"""First copies of subscriptions that are killed, cut off or run out of room: the next run ends them, or state=absent does."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support import copies, rooms, writers
from tests.support.cluster import Cluster
from tests.support.first_copies import (
    ALL_ROWS_ARE_THERE,
    B_IS_THERE,
    BUILDING,
    CREATING,
    JOBS,
    NAMES,
    ROWS,
    SUBSCRIBED,
    TABLES,
    WATCHFUL,
    assert_goes_on,
    assert_replicates,
    assert_undone,
    definitions,
    failure,
    is_empty,
    keeping,
    paused,
    quick,
    run,
    slow,
    succeed,
    write_more,
)
from tests.support.pair import Pair, pair_of, wait_for
from tests.support.steps import STEPS, Plan

pytestmark = pytest.mark.slow

KINDS = [kind for kind in writers.KINDS if kind not in ("truncate", "rolled back", "large")]
"""Without those who truncate, because a copy gives up when somebody does between its snapshot and its locks."""
STRIDES = {"it goes on": 13, "it is removed": 17}
"""Of some seventy steps these are tried; 1 tries all, which takes some minutes."""


@pytest.mark.parametrize("then", STRIDES)
def test_killed_after_a_step(live: Pair, tmp_path: Path, then: str) -> None:
    live.both(writers.SCHEMA)
    writers.fill(live.source)
    live.publish(*NAMES, *writers.TABLES)
    before = definitions(live)
    for step in range(1, 200, STRIDES[then]):
        with writers.writers(live.source, KINDS, pause=0.03):
            steps = killed_after(live, tmp_path, step)
            if then == "it is removed":
                live.unsubscribe(source=live.endpoint)  # what is registered has no password
                subscribed = any(SUBSCRIBED in each for each in steps)
                assert subscribed or is_empty(live), steps[-1]
            elif len(steps) == step:
                succeed(live, tmp_path)
        if then == "it is removed":
            assert_undone(live, before)
        else:
            assert_replicates(live, before)
        if len(steps) < step:
            break
        live.sql_target("TRUNCATE a, b, p, empty, " + ", ".join(writers.TABLES))
    assert step > 60


def killed_after(pair: Pair, tmp_path: Path, step: int) -> list[str]:
    """The steps of a run that was killed after that many of them, or has come to its end before."""
    with run(pair, tmp_path, Plan("", kill=step)) as process:
        process.wait(60)
        steps = (process.notes / STEPS).read_text(encoding="utf-8").splitlines()
        assert len(steps) == step or not process.finish().get("failed")
    return steps


def test_killed_while_rows_come_what_is_complete_is_kept(live: Pair, tmp_path: Path, before: list[str]) -> None:
    slow(live, "row", 0.002)
    with run(live, tmp_path, Plan("", kill=B_IS_THERE)) as process:
        process.wait(30)
        written = live.sql_target("SELECT min(xmin::text), max(xmin::text), count(*) FROM b")
        rows = live.sql_target("SELECT table_name, rows FROM pgml_distributed.seed_chunks WHERE rows IS NOT NULL")
        assert ("b", 500) in rows and "a" not in dict(rows), rows
        assert len(keeping(live)) == 2
        quick(live)
        write_more(live)
        with run(live, tmp_path, Plan("", pause="keepers: release")) as second:
            file = paused(second)
            assert live.sql_target("SELECT min(xmin::text), max(xmin::text), count(*) FROM b") == written
            file.unlink()
            assert "died" in second.finish()["initial_copy"]["reason"]
    assert_replicates(live, before)


def test_a_killed_run_that_none_follows_leaves_no_slot(live: Pair, tmp_path: Path, before: list[str]) -> None:
    short = {"transfer.keepers.GRACE_SECONDS": 1}
    slow(live, "row", 0.002)
    with run(live, tmp_path, Plan("", kill=B_IS_THERE, constants=short)) as process:
        process.wait(30)
        assert live.slots() == {live.name}
        wait_for(lambda: not live.slots() and not keeping(live), 20, "the slot to go")
        wait_for(lambda: not process.outliving(), 10, "the keepers to end")
    result = assert_goes_on(live, tmp_path, before)
    assert result["initial_copy"]["reason"] is None


def test_keepers_of_a_dead_run_leave_another_slot_of_that_name_alone(live: Pair, tmp_path: Path) -> None:
    short = {"transfer.keepers.GRACE_SECONDS": 2}
    with run(live, tmp_path, Plan("", kill=B_IS_THERE, constants=short)) as process:
        process.wait(30)
        live.sql_source("SELECT pg_drop_replication_slot(%s)", [live.name])
        live.sql_source("INSERT INTO empty VALUES (1)")
        live.sql_source("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [live.name])
        wait_for(lambda: not keeping(live) and not process.outliving(), 20, "the keepers to end")
    assert live.slots() == {live.name}


def test_keepers_that_nobody_knows_of_end_with_their_run(live: Pair, tmp_path: Path, before: list[str]) -> None:
    with run(live, tmp_path, Plan("", kill="keepers: __init__")) as process:
        process.wait(30)
        wait_for(lambda: not keeping(live), 10, "the keepers to end")
        assert live.slots() == {live.name}
    assert_goes_on(live, tmp_path, before)


def test_one_keeper_is_killed(live: Pair, tmp_path: Path, before: list[str]) -> None:
    slow(live, "row", 0.004)
    with run(live, tmp_path, Plan("", pause=B_IS_THERE, constants=WATCHFUL)) as process:
        file = paused(process)
        first = keeping(live)
        keepers = process.outliving()
        assert len(first) == len(keepers) == 2
        os.kill(keepers[0], signal.SIGKILL)
        wait_for(lambda: len(keeping(live)) == 1, 10, "its session to end")
        file.unlink()
        copies.until(process, lambda: len(keeping(live)) == 2, "another keeper")
        assert len(keeping(live) & first) == 1
        assert not process.finish().get("failed")
    assert_replicates(live, before)


@pytest.mark.parametrize("how", ["processes", "sessions"])
def test_both_keepers_are_killed(live: Pair, tmp_path: Path, before: list[str], how: str) -> None:
    slow(live, "row", 0.004)
    with run(live, tmp_path, Plan("", pause=B_IS_THERE, constants=WATCHFUL)) as process:
        file = paused(process)
        if how == "processes":
            for pid in process.outliving():
                os.kill(pid, signal.SIGKILL)
        else:
            live.sql_source("SELECT pg_terminate_backend(pid) FROM unnest(%s) AS pid", [list(keeping(live))])
        wait_for(lambda: not process.outliving(), 10, "the keepers to end")
        file.unlink()
        message = failure(process, "All sessions that keep the snapshot")
        assert "goes on" not in message
    assert_undone(live, before)
    assert is_empty(live)
    assert_goes_on(live, tmp_path, before)


def test_a_worker_is_killed(live: Pair, tmp_path: Path, before: list[str]) -> None:
    slow(live, "row", 0.002)
    with run(live, tmp_path, Plan("", pause=B_IS_THERE)) as process:
        file = paused(process)
        workers = [pid for pid in process.processes() if pid != process.pid]
        assert len(workers) == JOBS
        os.kill(workers[0], signal.SIGKILL)
        file.unlink()
        failure(process, "A process that copies rows was killed")
    assert_undone(live, before)
    assert is_empty(live)
    assert_goes_on(live, tmp_path, before)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize(
    ("when", "how"),
    [("copy", "restart"), ("copy", "kill"), ("index", "kill"), ("catch-up", "restart"), ("catch-up", "kill")],
)
def test_a_server_goes_away(live: Pair, tmp_path: Path, before: list[str], when: str, side: str, how: str) -> None:
    place = getattr(live, side)
    if when != "catch-up":
        slow(live, "index" if when == "index" else "row", 0.001 if when == "index" else 0.002)
    with run(live, tmp_path, Plan("", pause={"copy": B_IS_THERE, "catch-up": SUBSCRIBED}.get(when))) as process:
        file = None
        if when == "index":
            copies.until(process, lambda: live.sql_target(BUILDING), "an index")
        else:
            file = paused(process)
            write_more(live)
        getattr(place.cluster, how)()
        place.cluster.start()
        if file:
            file.unlink()
        result = process.finish()
        assert not result.get("failed") or place.database in result["msg"], result["msg"]
        # Whoever has read everything does without the source for a while.
        assert bool(result.get("failed")) == (side == "target" or when == "copy"), result.get("msg")
    live.sql_source("TRUNCATE empty")
    assert_goes_on(live, tmp_path, before)


def test_the_connection_breaks_while_the_slot_is_created(live: Pair, tmp_path: Path, before: list[str]) -> None:
    """Whether the slot was made is not known then."""
    with live.source.transaction("INSERT INTO empty VALUES (0)"), run(live, tmp_path) as process:
        ((creator,),) = copies.until(process, lambda: live.sql_source(CREATING), "the slot to wait")
        live.sql_source("SELECT pg_terminate_backend(%s)", [creator])
        failure(process, "terminating connection due to administrator command", "closed the connection")
    assert live.slots() == set()
    assert_undone(live, before)
    assert is_empty(live)
    assert succeed(live, tmp_path)["initial_copy"]["reason"] is None
    assert_replicates(live, before)


def test_the_connection_breaks_while_a_copy_is_taken_up_again(live: Pair, tmp_path: Path, before: list[str]) -> None:
    """What is there stays, for the run after that."""
    slow(live, "row", 0.002)
    with run(live, tmp_path, Plan("", kill=B_IS_THERE)) as killed:
        killed.wait(30)
        quick(live)
        with run(live, tmp_path, Plan("", pause="keepers: __init__")) as process:
            file = paused(process)
            own = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s AND NOT pid = ANY(%s)"
            live.sql_source(own, [live.distributor, sorted(keeping(live))])
            file.unlink()
            failure(process, "What was copied stays, and a rerun goes on where this one stopped, within 10 minutes")
            assert live.slots() == {live.name}
            assert assert_goes_on(live, tmp_path, before)["initial_copy"]["reason"] == "a run that died had begun it"


BY_INDEX = """
    CREATE TABLE kinds (code int NOT NULL, CHECK (nap(code, 'nap.kind') > 0));
    CREATE UNIQUE INDEX kinds_code ON kinds (code);
    CREATE TABLE by_kind (kind int CONSTRAINT of_kind REFERENCES kinds (code));
    ALTER TABLE kinds REPLICA IDENTITY USING INDEX kinds_code; ALTER TABLE by_kind REPLICA IDENTITY FULL;
"""
SLOW_DEFINITIONS = """
    CREATE FUNCTION nap() RETURNS event_trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_sleep(('0' || current_setting('nap.definition', true))::float8); END $$;
    CREATE EVENT TRIGGER slow ON ddl_command_start WHEN TAG IN ('CREATE INDEX') EXECUTE FUNCTION nap();
    ALTER EVENT TRIGGER slow ENABLE ALWAYS;
"""


@pytest.mark.parametrize("step", [ALL_ROWS_ARE_THERE, "done: index ('public', 'kinds')"])
def test_killed_before_a_foreign_key_to_an_index_is_back(live: Pair, tmp_path: Path, step: str) -> None:
    live.both(BY_INDEX)
    live.sql_target(SLOW_DEFINITIONS)
    live.sql_source("INSERT INTO kinds SELECT generate_series(1, 20); INSERT INTO by_kind VALUES (1), (9)")
    live.publish(*NAMES, "kinds", "by_kind")
    before = definitions(live)
    slow(live, "kind", 0.06)  # their rows are the last that come
    slow(live, "definition", 1)
    with run(live, tmp_path, Plan("", kill=step)) as process:
        process.wait(30)
        assert live.sql_target("SELECT phase FROM pgml_distributed.seeds") == [("build",)]
        steps = "SELECT kind FROM pgml_distributed.seed_steps WHERE statement ~ %s ORDER BY number"
        assert live.sql_target(steps, ["of_kind"]) == [("foreign key",), ("validate",)]
        left = live.sql_target(steps, ["INDEX kinds_code ON"])
        assert left == ([("index",)] if step == ALL_ROWS_ARE_THERE else [])
    result = assert_goes_on(live, tmp_path, before)
    assert "died" in result["initial_copy"]["reason"]


def test_target_runs_full(servers_of_its_own: tuple[Cluster, Cluster], tmp_path: Path) -> None:
    with pair_of(*servers_of_its_own) as pair, rooms.small(pair.target) as room:
        pair.both(TABLES)
        pair.sql_source(ROWS)
        pair.publish(*NAMES)
        before = definitions(pair)
        with run(pair, tmp_path, Plan("", pause="keepers: hold")) as process:
            file = paused(process)
            rooms.fill(room, 200_000)
            file.unlink()
            message = failure(process, "No space left", "disk full", "could not extend")
        if "The next run removes it" not in message:  # to take back what was begun needs some room, too
            assert_undone(pair, before)
        rooms.clear(room)
        assert_goes_on(pair, tmp_path, before)
