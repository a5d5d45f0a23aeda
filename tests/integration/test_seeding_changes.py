# SPDX-License-Identifier: GPL-3.0-or-later
"""What others do to tables, publications and slots during a first copy: it is noticed and said, and nothing is lost."""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psycopg2
import pytest
from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Changed
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import SOURCE_OPTIONS, Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import snapshot

from tests.support import copies
from tests.support.cluster import Cluster
from tests.support.first_copies import (
    ALL_ROWS_ARE_THERE,
    B_IS_THERE,
    BUILDING,
    CREATING,
    NAMES,
    REGISTERED,
    SUBSCRIBED,
    TABLES,
    WATCHFUL,
    assert_equal,
    assert_goes_on,
    assert_over,
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
from tests.support.steps import Plan

pytestmark = [pytest.mark.slow, pytest.mark.sampled(0)]

CHANGES = {
    "ALTER TABLE a ALTER v TYPE bigint": "public.a changed on the source while the copy began",
    "ALTER TABLE a ALTER v TYPE int USING v + 1": "public.a changed on the source while the copy began",
    "VACUUM FULL b": "public.b changed on the source while the copy began",
    "TRUNCATE b": None,  # the stream brings that
    "TRUNCATE p_low": None,
    "DROP TABLE empty": "A table was dropped or renamed on the source while the copy began",
}


@pytest.mark.sampled(3)
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
