# SPDX-License-Identifier: GPL-3.0-or-later
"""First copies of subscriptions that are killed, cut off or run out of room: the next run ends them, or state=absent does."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Changed
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import SOURCE_OPTIONS, Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import snapshot

from tests.support import copies, playbooks, rooms, writers
from tests.support.cluster import Cluster
from tests.support.copies import Process, ending
from tests.support.pair import Pair, pair_of, wait_for
from tests.support.steps import PAUSED, STEPS, Plan

pytestmark = pytest.mark.slow

# nap() holds up whatever calls it, for as long as the database it runs in says: never, unless a test wants it.
TABLES = """
    CREATE FUNCTION nap(id int, setting text) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
    $$ DECLARE seconds text := current_setting(setting, true);
       BEGIN IF seconds <> '' THEN PERFORM pg_sleep(seconds::float8); END IF; RETURN id; END $$;
    CREATE TABLE a (id int PRIMARY KEY, v int NOT NULL, filler text, CONSTRAINT slow CHECK (nap(id, 'nap.row') > 0));
    CREATE TABLE b (id serial PRIMARY KEY, v int NOT NULL UNIQUE, a int REFERENCES a, up int REFERENCES b);
    CREATE INDEX a_slow ON a (nap(id, 'nap.index'));
    COMMENT ON INDEX a_slow IS 'slow';
    ALTER TABLE b REPLICA IDENTITY USING INDEX b_v_key;
    CREATE TABLE p (id int, v int REFERENCES a, PRIMARY KEY (id, v)) PARTITION BY RANGE (id);
    CREATE TABLE p_low PARTITION OF p FOR VALUES FROM (MINVALUE) TO (50);
    CREATE TABLE p_high PARTITION OF p FOR VALUES FROM (50) TO (MAXVALUE);
    CREATE INDEX p_v ON p (v);
    CREATE TABLE empty (id int PRIMARY KEY);
"""
ROWS = """
    INSERT INTO a SELECT g, 1, repeat(md5(g::text), 20) FROM generate_series(1, 1500) AS g;
    INSERT INTO b (v, a) SELECT g, 1 + g % 500 FROM generate_series(1, 500) AS g;
    INSERT INTO p SELECT g, g FROM generate_series(1, 100) AS g;
"""
NAMES = ["public.a", "public.b", "public.p", "public.empty"]
IN_PIECES = {"transfer.chunks.SMALLEST_SPLIT": 600_000}
"""So that a comes in two pieces, and the third worker has the other tables."""
JOBS = 3
WATCHFUL = {"transfer.keepers._PROBE_SECONDS": 0.2, "transfer.workers.WATCH_SECONDS": 0.3}
SETTINGS = {"log_statement": "none", "max_prepared_transactions": "10"}
KEEPERS = "postgresml.distributed: keeps a snapshot"


@pytest.fixture(scope="module")
def servers_of_its_own() -> Iterator[tuple[Cluster, Cluster]]:
    """Two servers that may be restarted."""
    with playbooks.cluster(**SETTINGS) as source, playbooks.cluster(**SETTINGS) as target:
        yield source, target


@pytest.fixture
def live(servers_of_its_own: tuple[Cluster, Cluster]) -> Iterator[Pair]:
    """A published database, and one with the same tables without rows."""
    with pair_of(*servers_of_its_own) as pair:
        pair.both(TABLES)
        pair.sql_source(ROWS)
        pair.publish(*NAMES)
        yield pair


_numbers = count()


@contextmanager
def run(pair: Pair, tmp_path: Path, plan: Plan | None = None, **params: Any) -> Iterator[Process]:
    """The task in a process of its own."""
    directory = tmp_path / str(next(_numbers))
    directory.mkdir()
    plan = (plan or Plan(""))._replace(directory=str(directory))
    plan = plan._replace(constants={**IN_PIECES, **plan.constants})
    options = pair.subscription(initial_copy="snapshot", jobs=JOBS, **params)
    with ending(Process(pair.target, directory / "tmp", options, "pgml_subscription", plan)) as process:
        yield process


@pytest.fixture
def before(live: Pair) -> list[str]:
    """What defines the target before anything has begun."""
    return definitions(live)


def definitions(pair: Pair) -> list[str]:
    return copies.definitions(pair.target, "--no-subscriptions")


def slow(pair: Pair, what: str, seconds: float) -> None:
    """Hold up every row of a that is written to the target or indexed there."""
    pair.sql_target(f"ALTER DATABASE \"{pair.target.database}\" SET nap.{what} = '{seconds}'")


def quick(pair: Pair) -> None:
    pair.sql_target(f'ALTER DATABASE "{pair.target.database}" RESET ALL')


def write_more(pair: Pair) -> None:
    """Change what a copy that died may have brought already, and what it has not."""
    pair.sql_source(
        "UPDATE b SET v = v + 100000 WHERE id % 7 = 0; UPDATE a SET v = v + 1 WHERE id % 5 = 0;"
        " DELETE FROM b WHERE id % 11 = 0; INSERT INTO b (v) SELECT min(v) - g FROM b, generate_series(1, 9) AS g GROUP BY g;"
        " UPDATE p SET id = 200 - id WHERE id < 20; INSERT INTO empty SELECT 1000 + count(*) FROM empty"
    )


def assert_over(pair: Pair) -> None:
    """A first copy has left nothing at either side, but the subscription and its slot if it was made."""
    sessions = "SELECT query FROM pg_stat_activity WHERE usename = %s AND backend_type = 'client backend'"
    wait_for(lambda: not pair.sql_source(sessions, [pair.distributor]), 15, "the copy's sessions to end")
    assert pair.sql_target("SELECT nspname FROM pg_namespace WHERE nspname ~ '^pgml'") == []


def assert_undone(pair: Pair, before: list[str]) -> None:
    """Nothing has begun, as far as anybody can see."""
    assert_over(pair)
    assert pair.slots() == set()
    assert pair.sql_target("SELECT subname FROM pg_subscription WHERE subname = %s", [pair.name]) == []
    assert copies.changed_lines(before, definitions(pair)) == ""


def is_empty(pair: Pair) -> bool:
    return not any(number for number, _hash in copies.contents(pair.target).values())


def assert_equal(pair: Pair) -> None:
    """Both sides come to hold the same rows."""

    def different() -> dict[Any, Any]:
        here, there = copies.contents(pair.source), copies.contents(pair.target)
        assert len(here) > 4, "nothing is compared"
        return {name: (here[name], there.get(name)) for name in here if here[name] != there.get(name)}

    end = time.monotonic() + 20
    while (found := different()) and time.monotonic() < end:
        time.sleep(0.1)
    assert found == {}


def succeed(pair: Pair, tmp_path: Path) -> dict[str, Any]:
    """Run the task to its end."""
    with run(pair, tmp_path) as process:
        result = process.finish()
    assert not result.get("failed"), result["msg"]
    return result


def assert_replicates(pair: Pair, before: list[str]) -> None:
    """The copy has come to its end: rows are equal, definitions as before, there is nothing left to do, and all goes."""
    assert_over(pair)
    assert copies.changed_lines(before, definitions(pair)) == ""
    assert pair.slots() == {pair.name}
    assert pair.sql_target("SELECT subenabled FROM pg_subscription WHERE subname = %s", [pair.name]) == [(True,)]
    assert_equal(pair)
    assert not pair.subscribe()["changed"]
    pair.unsubscribe()
    assert_undone(pair, before)


def assert_goes_on(pair: Pair, tmp_path: Path, before: list[str]) -> dict[str, Any]:
    """The next run of the task ends what was begun."""
    quick(pair)
    write_more(pair)
    result = succeed(pair, tmp_path)
    assert_replicates(pair, before)
    return result


def failure(process: Process, *words: str) -> str:
    """The sentences with which a run has failed, which have one of *words* in them."""
    result = process.finish()
    assert result.get("failed"), result
    message: str = result["msg"]
    assert any(word in message for word in words), message
    assert message.endswith("."), message
    return message


def paused(process: Process) -> Path:
    """The file that holds up a run which has come to where it is to pause."""
    file: Path = process.notes / PAUSED
    copies.until(process, file.exists, "the pause")
    return file


def keeping(pair: Pair) -> set[int]:
    """The source's processes that keep a snapshot."""
    query = "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND datname = %s"
    return {pid for (pid,) in pair.sql_source(query, [KEEPERS, pair.source.database])}


B_IS_THERE = "done: rows ('public', 'b')"
SUBSCRIBED = "DO 'DECLARE"
ALL_ROWS_ARE_THERE = "SET phase = 'build'"
CREATING = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ '^CREATE_REPLICATION_SLOT'"
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


BUILDING = "SELECT 1 FROM pg_stat_progress_create_index WHERE relid = 'a'::regclass AND datname = current_database()"


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


CHANGES = {
    "ALTER TABLE a ALTER v TYPE bigint": "public.a changed on the source while the copy began",
    "ALTER TABLE a ALTER v TYPE int USING v + 1": "public.a changed on the source while the copy began",
    "VACUUM FULL b": "public.b changed on the source while the copy began",
    "TRUNCATE b": None,  # the stream brings that
    "TRUNCATE p_low": None,
    "DROP TABLE empty": "A table was dropped or renamed on the source while the copy began",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_table_changes_between_snapshot_and_lock(live: Pair, tmp_path: Path, before: list[str], change: str) -> None:
    with run(live, tmp_path, Plan("", pause="keepers: tables are known")) as process:
        file = paused(process)
        live.sql_source(change)
        file.unlink()
        result = process.finish()
    assert not result.get("failed"), result["msg"]
    words = CHANGES[change]
    said = [words is not None and words in each and "It was begun anew." in each for each in result.get("warnings", [])]
    assert said == [True] * (words is not None), result["warnings"]
    if not change.startswith("DROP"):
        assert_equal(live)
    live.unsubscribe(source=live.endpoint)
    assert_undone(live, before)
    live.sql_target("TRUNCATE a, b, p, empty")
    if change.startswith("DROP"):
        live.sql_source("CREATE TABLE empty (id int PRIMARY KEY)")
        live.grant()
        live.publish(*NAMES)
    assert_goes_on(live, tmp_path, before)


class Statement(threading.Thread):
    """Runs a statement at the source, however long it waits."""

    def __init__(self, pair: Pair, statement: str) -> None:
        super().__init__(daemon=True)
        self._pair = pair
        self._statement = statement
        self.start()
        waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query = %s"
        wait_for(lambda: pair.sql_source(waiting, [statement]), 10, "the statement to wait")

    def run(self) -> None:
        self._pair.sql_source(self._statement)


def test_who_truncates_while_rows_are_read_waits(live: Pair, tmp_path: Path, before: list[str]) -> None:
    """And nobody who reads a table afterwards stands behind him."""
    slow(live, "row", 0.001)
    with run(live, tmp_path, Plan("", pause="done: rows", constants=WATCHFUL)) as process:
        file = paused(process)
        for statement in ("TRUNCATE p, b", "ALTER TABLE a ALTER v TYPE bigint", "DROP TABLE empty"):
            with pytest.raises(psycopg2.errors.LockNotAvailable):
                live.sql_source("SET lock_timeout = '200ms'; " + statement)
        waiting = [Statement(live, f"TRUNCATE {table}") for table in ("empty", "p", "b")]
        file.unlink()
        result = process.finish()
        assert not result.get("failed"), result["msg"]
        for statement in waiting:
            statement.join(10)
    live.sql_source("INSERT INTO b (v, a) VALUES (1, 1)")
    assert_replicates(live, before)


@pytest.mark.parametrize("statement", ["TRUNCATE b", "ALTER TABLE b ALTER v TYPE bigint"])
def test_nobody_waits_for_a_killed_run(live: Pair, tmp_path: Path, before: list[str], statement: str) -> None:
    slow(live, "row", 0.002)
    with run(live, tmp_path, Plan("", kill=B_IS_THERE)) as process:
        process.wait(30)
        quick(live)
        write_more(live)
        live.sql_source(f"SET lock_timeout = '5 s'; {statement}")
        succeed(live, tmp_path)
    assert_replicates(live, before)


LATE = "CREATE TABLE late (id int PRIMARY KEY)"
ALTERED = {
    "ADD TABLE late": ("public.late is", "DROP TABLE late"),
    "DROP TABLE b, empty": ("public.b, public.empty are", "ADD TABLE b, empty"),
    "SET TABLE a WHERE (id < 100), b, p, empty": ("public.a is", "SET TABLE a, b, p, empty"),
}


@pytest.mark.parametrize("change", ALTERED)
def test_a_publication_is_altered_while_rows_come(live: Pair, tmp_path: Path, change: str) -> None:
    what, back = ALTERED[change]
    live.both(LATE)
    before = definitions(live)
    with run(live, tmp_path, Plan("", pause=B_IS_THERE)) as process:
        file = paused(process)
        live.sql_source(f"ALTER PUBLICATION pub {change}")
        file.unlink()
        failure(process, f"were altered meanwhile: {what} published otherwise now. What is written while")
    assert live.slots() == {live.name}
    assert live.sql_target("SELECT subenabled FROM pg_subscription WHERE subname = %s", [live.name]) == [(False,)]
    write_more(live)
    live.sql_source(f"ALTER PUBLICATION pub {back}")
    if change.startswith("ADD"):
        assert_goes_on(live, tmp_path, before)
        return
    with run(live, tmp_path) as process:
        message = failure(process, "were altered meanwhile. What is written while it isn't published is never sent")
    assert "remove the copy with state=absent and begin anew." in message
    live.unsubscribe(source=live.endpoint)
    assert_undone(live, before)
    assert_goes_on(live, tmp_path, before)


def test_a_table_is_made_while_rows_come(live: Pair, tmp_path: Path) -> None:
    """All its rows come with the changes, once the target has it."""
    live.sql_source("DROP PUBLICATION pub; CREATE PUBLICATION pub FOR ALL TABLES")
    live.sql_target(LATE)
    before = definitions(live)
    live.sql_target("DROP TABLE late")
    with run(live, tmp_path, Plan("", pause=B_IS_THERE)) as process:
        file = paused(process)
        live.sql_source(LATE + "; INSERT INTO late VALUES (1), (2)")
        live.grant()
        file.unlink()
        message = failure(
            process, "lacks table public.late: create what is missing with pgml_schema first. All rows are there"
        )
    assert "a rerun goes on from here" in message
    live.sql_target(LATE)
    result = assert_goes_on(live, tmp_path, before)
    assert result["initial_copy"]["reason"] == "a run that died had begun it"


TREE = """
    CREATE TABLE days (id int PRIMARY KEY) PARTITION BY RANGE (id);
    CREATE TABLE days_low PARTITION OF days FOR VALUES FROM (0) TO (50);
"""
ATTACHED = """
    CREATE TABLE days_high (id int PRIMARY KEY); INSERT INTO days_high SELECT generate_series(50, 99);
    GRANT SELECT ON days_high TO PUBLIC; ALTER TABLE days ATTACH PARTITION days_high FOR VALUES FROM (50) TO (100)
"""


def test_a_partition_comes_before_the_slot_begins(live: Pair, tmp_path: Path) -> None:
    """In a transaction that the slot's creation waits for: the snapshot shows it, and the stream doesn't bring it."""
    live.both(TREE)
    live.sql_target("CREATE TABLE days_high PARTITION OF days DEFAULT")
    live.publish("days", via_partition_root=True)
    before = definitions(live)
    with closing(live.source.cluster.connect(live.source.database, autocommit=False)) as connection:
        with connection.cursor() as cursor:
            cursor.execute(ATTACHED)
        with run(live, tmp_path) as process:
            copies.until(process, lambda: live.sql_source(CREATING), "the slot to wait")
            connection.commit()
            result = process.finish()
    assert not result.get("failed"), result["msg"]
    assert_over(live)
    assert copies.changed_lines(before, definitions(live)) == ""
    assert live.sql_target("SELECT count(*) FROM days") == [(50,)]
    live.unsubscribe()


def test_a_table_of_that_name_may_be_another(live: Pair) -> None:
    """As when partitions are exchanged."""
    ((oid,),) = live.sql_source("SELECT 'a'::regclass::oid::int8")
    live.grant()
    source = Endpoint.from_source({**dict.fromkeys(SOURCE_OPTIONS), **live.endpoint})
    with snapshot.reading_session(source) as session:
        snapshot.Snapshot(session).hold([(oid, "public", "a")])
    with snapshot.reading_session(source) as session, pytest.raises(Changed, match="public.b changed on the source"):
        snapshot.Snapshot(session).hold([(oid, "public", "b")])


def test_rows_move_before_the_next_run(live: Pair, tmp_path: Path, before: list[str]) -> None:
    """What is left to read are blocks of the old file, and the rows are in others."""
    live.sql_source("UPDATE a SET v = 2")  # the first half of the blocks holds no rows now
    slow(live, "row", 0.002)
    with run(live, tmp_path, Plan("", kill="done: rows ('public', 'a')")) as process:
        process.wait(30)
        pieces = "SELECT rows FROM pgml_distributed.seed_chunks WHERE table_name = 'a' ORDER BY first_block"
        assert live.sql_target(pieces) == [(0,), (None,), (None,)]
        quick(live)
        live.sql_source("VACUUM FULL a")
        result = succeed(live, tmp_path)
    assert any("public.a changed on the source" in each for each in result["warnings"])
    assert_replicates(live, before)


def test_the_slot_is_given_up_while_rows_come(live: Pair, tmp_path: Path, before: list[str]) -> None:
    with run(live, tmp_path, Plan("", pause=ALL_ROWS_ARE_THERE)) as process:
        file = paused(process)
        live.sql_source("SELECT pg_drop_replication_slot(%s)", [live.name])
        file.unlink()
        failure(process, "or idle_replication_slot_timeout): allow more there and run it again, which begins anew.")
    assert live.slots() == set()
    assert_goes_on(live, tmp_path, before)


def test_the_source_is_another_one_in_the_next_run(live: Pair, tmp_path: Path, before: list[str]) -> None:
    with run(live, tmp_path, Plan("", kill=ALL_ROWS_ARE_THERE)) as process:
        process.wait(30)
    elsewhere = live.source.cluster.source("postgres")
    words = "was begun from another database than"
    with run(live, tmp_path, source=elsewhere) as process:
        failure(process, words)
    assert words in live.target.refused("pgml_subscription", name=live.name, state="absent", source=elsewhere)
    assert live.slots() == {live.name}
    assert_goes_on(live, tmp_path, before)


REGISTERED = "COMMIT after COMMENT ON SUBSCRIPTION"
"""The last step before a slot is created, when it was looked for already."""


def test_a_slot_that_appears_before_it_is_created_is_left(live: Pair, tmp_path: Path, before: list[str]) -> None:
    with run(live, tmp_path, Plan("", pause=REGISTERED)) as process:
        file = paused(process)
        live.sql_source("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [live.name])
        file.unlink()
        failure(process, f'replication slot "{live.name}" already exists')
    assert live.slots() == {live.name}
    live.sql_source("SELECT pg_drop_replication_slot(%s)", [live.name])
    assert_undone(live, before)
    assert is_empty(live)


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


def test_two_runs_ask_for_the_same_slot(
    live: Pair, tmp_path: Path, before: list[str], servers_of_its_own: tuple[Cluster, Cluster]
) -> None:
    """The one that comes second has an own target, and leaves the slot and its snapshot to the first."""
    with pair_of(*servers_of_its_own) as pair:
        pair.sql_target(TABLES)
        other = replace(live, target=pair.target)
        with run(other, tmp_path, Plan("", pause=REGISTERED)) as second:
            waiting = paused(second)  # it has looked for the slot before the first makes it
            with run(live, tmp_path, Plan("", pause=B_IS_THERE)) as first:
                copying = paused(first)
                kept = keeping(live)
                waiting.unlink()
                failure(second, f'replication slot "{live.name}" already exists')
                assert live.slots() == {live.name} and keeping(live) == kept and len(kept) == 2
                assert is_empty(other)
                assert other.sql_target("SELECT nspname FROM pg_namespace WHERE nspname ~ '^pgml'") == []
                copying.unlink()
                assert not first.finish().get("failed")
    assert_replicates(live, before)


def test_a_table_that_a_killed_run_fills_is_no_other_subscription_s(
    live: Pair, tmp_path: Path, before: list[str]
) -> None:
    live.publish("b", "empty", name="second")
    with run(live, tmp_path, Plan("", kill=B_IS_THERE)) as process:
        process.wait(30)
        seen = copies.contents(live.target)
        for way in ("snapshot", "native", "none"):
            other = {"name": live.name + "_b", "publications": ["second"], "initial_copy": way}
            message = live.not_subscribed(**other)
            assert f"The first copy of subscription {live.name} is filling public.b, public.empty in" in message
            assert "let it come to its end, or remove it with state=absent." in message
        assert copies.contents(live.target) == seen
        assert_goes_on(live, tmp_path, before)


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


def test_what_was_seeded_is_kept_when_the_subscription_is_dropped_by_hand(
    live: Pair, tmp_path: Path, before: list[str]
) -> None:
    """Its seed stands, because the run was killed before it had checked the foreign keys."""
    with run(live, tmp_path, Plan("", kill=SUBSCRIBED)) as process:
        process.wait(30)
        assert live.sql_target("SELECT phase FROM pgml_distributed.seeds") == [("subscribed",)]
    assert_equal(live)
    live.sql_target(f"DROP SUBSCRIPTION {live.name}")
    seen = copies.contents(live.target)
    assert live.unsubscribe(source=live.endpoint)["changed"]
    assert copies.contents(live.target) == seen == copies.contents(live.source)
    assert_undone(live, before)


def test_a_table_that_is_dropped_by_hand_hinders_no_removal(live: Pair, tmp_path: Path) -> None:
    with run(live, tmp_path, Plan("", kill=SUBSCRIBED)) as process:
        process.wait(30)
        assert live.sql_target("SELECT DISTINCT table_name FROM pgml_distributed.seed_steps") == [("b",)]
    live.sql_target("DROP TABLE b")
    assert live.unsubscribe()["changed"]
    assert_over(live)
    assert live.slots() == set()
    assert live.sql_target("SELECT count(*) FROM a") == [(1500,)]


BY_HAND = """
    CREATE INDEX a_slow ON a (nap(id, 'nap.index')); ALTER TABLE b ADD PRIMARY KEY (id), ADD UNIQUE (v);
    CREATE INDEX p_v ON p (v); ALTER TABLE b ADD FOREIGN KEY (up) REFERENCES b;
"""


def test_what_was_created_again_by_hand_is_passed_over(live: Pair, tmp_path: Path) -> None:
    """And is again what replication finds rows by, or what CLUSTER takes."""
    live.sql_target("ALTER TABLE b CLUSTER ON b_pkey")
    before = definitions(live)
    with run(live, tmp_path, Plan("", kill=B_IS_THERE)) as process:
        process.wait(30)
        taken = definitions(live)
        live.sql_target(BY_HAND)
        assert len(definitions(live)) > len(taken)
        live.unsubscribe(source=live.endpoint)
    assert is_empty(live)
    assert_undone(live, before)
    assert_goes_on(live, tmp_path, before)


@pytest.mark.parametrize("prepared", [False, True])
def test_a_slot_is_not_waited_for(live: Pair, tmp_path: Path, before: list[str], prepared: bool) -> None:
    writing = ["INSERT INTO empty VALUES (100)", *(["PREPARE TRANSACTION 'forgotten'"] if prepared else [])]
    short = {"resources.slot.CREATION_SECONDS": 1, "resources.slot._PATIENCE": "1 s"}
    with live.source.transaction(*writing) as pid, run(live, tmp_path, Plan("", constants=short)) as process:
        message = failure(process, "transactions kept running for 1 s")
    assert ('prepared transaction "forgotten"' if prepared else f"process {pid}") in message
    assert_undone(live, before)
    if prepared:
        live.sql_source("ROLLBACK PREPARED 'forgotten'")
    assert_goes_on(live, tmp_path, before)


def test_what_it_asks_of_the_source(live: Pair, tmp_path: Path, before: list[str]) -> None:
    """Each row is read once, under no stronger lock than a reader's, and VACUUM is hindered no longer than that takes."""
    slow(live, "index", 0.001)
    live.sql_source("SELECT pg_stat_reset()")
    locks = (
        "SELECT DISTINCT mode FROM pg_locks AS l JOIN pg_stat_activity AS s USING (pid) WHERE s.usename = %s"
        " AND l.relation >= 16384 AND l.granted"
    )
    with run(live, tmp_path, Plan("", pause=B_IS_THERE)) as process:
        file = paused(process)
        assert live.sql_source(locks, [live.distributor]) == [("AccessShareLock",)]
        file.unlink()
        copies.until(process, lambda: live.sql_target(BUILDING), "an index")
        held = (
            "SELECT query FROM pg_stat_activity WHERE usename = %s AND coalesce(backend_xmin, backend_xid) IS NOT NULL"
        )
        wait_for(lambda: live.sql_source(held, [live.distributor]) == [], 5, "the snapshot to go")
        assert live.sql_source(locks, [live.distributor]) == []
        assert not process.finish().get("failed")
    read = live.sql_source(
        "SELECT relname, seq_scan <= 1, seq_tup_read::int FROM pg_stat_user_tables WHERE relname <> 'p' ORDER BY 1"
    )
    assert read == [("a", True, 1500), ("b", True, 500), ("empty", True, 0), ("p_high", True, 51), ("p_low", True, 49)]
    assert_replicates(live, before)


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
