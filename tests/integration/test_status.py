# SPDX-License-Identifier: GPL-3.0-or-later
"""Every state that status can report of a distribution by logical replication, brought about on real servers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.postgresml.distributed.plugins.plugin_utils import status
from psycopg2.sql import SQL, Identifier

from tests.conftest import SETTINGS, program_of
from tests.support.cluster import Cluster, make_directory
from tests.support.pair import Pair, forget_slots, forget_subscriptions, pair_of, wait_for
from tests.support.watched import Watched, look, unchanged

KILOBYTE = 1 << 10


@pytest.fixture(scope="module")
def clusters(default_major: int) -> Iterator[tuple[Cluster, Cluster]]:
    """Two servers that may be stopped, of which the second collects its log."""
    program = program_of(default_major)
    logging = {**SETTINGS, "logging_collector": "on", "log_directory": "log"}
    with Cluster(make_directory(), program, SETTINGS) as first, Cluster(make_directory(), program, logging) as second:
        yield first, second


@pytest.fixture
def watched(clusters: tuple[Cluster, Cluster]) -> Iterator[Watched]:
    with pair_of(*clusters) as pair:
        yield Watched(pair)


def test_streaming_is_good_and_measured(watched: Watched) -> None:
    watched.wire()
    told = watched.becomes("streaming")
    assert (told["level"], told["error"], told["warnings"], told["drift"]) == (0, None, [], [])
    (table,) = told["tables"]
    assert (table["name"], table["state"], table["rows"]) == ("public.t", "ready", 1000)
    assert table["bytes"] == told["bytes"] == watched.target.value("SELECT pg_total_relation_size('t')")
    assert told["wal"]["status"] == "reserved" and told["wal"]["kept_bytes"] < 1 << 20
    report = unchanged(watched.target, lambda: unchanged(watched.source, watched.report))
    assert (report["level"], report["strays"]) == (0, [])
    assert report["summary"] == "All is good: 1 distribution on 1 replica."


def test_what_the_module_returns_of_both_roles(watched: Watched) -> None:
    watched.wire()
    wait_for(lambda: look(watched.source)["server"]["slots"][0]["sender"], 20, "a sender")
    upstream, replica = look(watched.source), look(watched.target)
    assert not upstream["changed"] and "diff" not in upstream
    (slot,) = [each for each in upstream["server"]["slots"] if each["name"] == watched.slot]
    assert slot["sender"]["application_name"] == watched.object and slot["active"]
    assert upstream["databases"][0]["publications"] == [
        {"name": watched.object, "tables": [{"name": "public.t", "columns": ["id", "x"], "where": None}]}
    ]
    (subscription,) = replica["databases"][0]["subscriptions"]
    assert (subscription["name"], subscription["slot_name"]) == (watched.object, watched.slot)
    assert subscription["enabled"] and subscription["worker"] and subscription["owner"] == "postgres"
    assert watched.slot in replica["server"]["slots_in_use"]
    assert watched.pair.password not in str(upstream) + str(replica)


def test_a_database_that_is_not_there_is_left_out(watched: Watched) -> None:
    result = watched.source.ok("pgml_replication_info", databases=["nowhere", watched.source.database])
    assert [each["name"] for each in result["databases"]] == [watched.source.database]
    message = watched.source.refused("pgml_replication_info", sample_seconds=61)
    assert message == "sample_seconds is 61.0: use 0 to 60."


def test_sizes_of_locked_tables_are_estimated(watched: Watched) -> None:
    watched.wire()
    watched.target.sql("VACUUM ANALYZE t")
    exact = watched.target.value("SELECT pg_relation_size('t') + pg_relation_size('t_pkey')")
    with watched.target.transaction("LOCK TABLE t IN ACCESS EXCLUSIVE MODE"):
        (table,) = look(watched.target)["databases"][0]["subscriptions"][0]["tables"]
    assert (table["rows"], table["bytes"]) == (1000, exact)


def test_a_locked_table_of_the_source_is_not_waited_for(newest: Pair) -> None:
    watched = Watched(newest)
    watched.wire()
    watched.becomes("streaming")
    with watched.source.transaction("LOCK TABLE t IN ACCESS EXCLUSIVE MODE"):
        assert watched.judged()["state"] == "streaming"
        assert look(watched.source)["databases"][0]["publications"] == [{"name": watched.object, "tables": None}]


def test_copying(watched: Watched) -> None:
    watched.publish()
    with watched.target.transaction("LOCK TABLE t IN SHARE MODE"):
        watched.subscribe(initial_copy="native", wait=False)
        told = watched.becomes("copying")
        assert told["level"] == 1 and "The first copy of 1 table is not done: public.t (" in told["error"]
        assert told["tables"][0]["state"] in ("waiting", "copying")
    assert watched.becomes("streaming")["level"] == 0


def test_lagging_because_changes_are_not_applied(watched: Watched) -> None:
    watched.wire()
    watched.becomes("streaming")
    with watched.target.transaction("LOCK TABLE t IN SHARE MODE"):
        watched.source.sql("UPDATE t SET x = repeat('y', 500)")
        told = watched.becomes("lagging", lag_bytes="100kB")
        assert told["level"] == 1 and told["lag"]["bytes"] > 100 * KILOBYTE
        assert told["lag"]["not_sent_bytes"] + told["lag"]["not_flushed_bytes"] == told["lag"]["bytes"]
        assert "What holds it up is the replica" in told["remedy"]
        assert watched.judged()["state"] == "streaming"
        told = watched.becomes("lagging", lag_seconds="1s")
        assert told["lag"]["seconds"] > 1
    assert watched.becomes("streaming", lag_bytes="100kB")["lag"]["bytes"] < 100 * KILOBYTE


def test_lag_counts_what_was_not_even_sent(watched: Watched) -> None:
    watched.wire()
    watched.becomes("streaming")
    sender = wait_for(lambda: look(watched.source)["server"]["slots"][0]["sender"], 20, "a sender")["pid"]
    os.kill(sender, signal.SIGSTOP)
    try:
        before = watched.source.value("SELECT pg_current_wal_lsn()")
        watched.source.sql("UPDATE t SET x = repeat('y', 500)")
        written = watched.source.value("SELECT pg_current_wal_lsn() - %s::pg_lsn", [before])
        told = watched.judged(lag_bytes="100kB")
    finally:
        os.kill(sender, signal.SIGCONT)
    assert (
        told["state"] == "lagging" and told["lag"]["bytes"] >= told["lag"]["not_sent_bytes"] >= written > 100 * KILOBYTE
    )
    assert "the way there or the sender" in told["remedy"]
    watched.becomes("streaming", lag_bytes="100kB")


@pytest.mark.sampled(1)
def test_apply_error_by_a_row_that_is_there_already(each_major: Pair) -> None:
    watched = Watched(each_major)
    watched.wire()
    watched.target.sql("INSERT INTO t VALUES (2000, 'mine')")
    watched.source.sql("INSERT INTO t VALUES (2000, 'theirs')")
    told = watched.becomes("apply error")
    assert told["level"] == 2
    if watched.target.cluster.major >= 18:
        assert "A row that prod has written is there already: " in told["error"]
    elif watched.target.cluster.major >= 15:
        assert told["error"].startswith("It failed ") and "time" in told["error"]
    watched.target.sql("DELETE FROM t WHERE id = 2000")
    watched.becomes("streaming")


@pytest.mark.sampled(1)
def test_apply_error_by_a_column_that_is_missing(each_major: Pair) -> None:
    watched = Watched(each_major)
    watched.wire()
    watched.source.sql("ALTER TABLE t ADD COLUMN more int, ADD COLUMN most int")
    assert watched.judged()["drift"] == ["public.t lacks columns more, most, which prod publishes."]
    assert watched.judged()["level"] == 1
    watched.source.sql("INSERT INTO t VALUES (2000, 'x', 1)")
    told = watched.becomes("apply error")
    assert (told["level"], told["error"]) == (2, "public.t lacks columns more, most, which prod publishes.")
    assert "Add it on ml-1" in told["remedy"]
    watched.target.sql("ALTER TABLE t ADD COLUMN more int, ADD COLUMN most int")
    assert watched.becomes("streaming")["warnings"] == []


def test_the_last_error_of_the_log(watched: Watched) -> None:
    watched.wire()
    watched.target.sql("ALTER TABLE t ADD CHECK (x <> 'forbidden')")
    watched.source.sql("INSERT INTO t VALUES (2000, 'forbidden')")
    told = watched.becomes("apply error")
    assert told["error"].endswith(', last with: new row for relation "t" violates check constraint "t_x_check".')
    watched.target.sql("ALTER TABLE t DROP CONSTRAINT t_x_check")
    watched.becomes("streaming")
    (subscription,) = look(watched.target)["databases"][0]["subscriptions"]
    assert subscription["apply_errors"] and subscription["last_error"] is None


def test_a_first_copy_that_fails_is_an_error_too(watched: Watched) -> None:
    watched.publish()
    watched.subscribe(initial_copy="native", enabled=False, wait=False)
    watched.target.sql("INSERT INTO t VALUES (1, 'mine')")
    watched.target.sql(SQL("ALTER SUBSCRIPTION {} ENABLE").format(Identifier(watched.object)))
    assert "the log of ml-1 says why" in watched.becomes("apply error")["error"]


def test_disabled_by_somebody_and_by_an_error(watched: Watched) -> None:
    watched.wire(disable_on_error=True)
    name = Identifier(watched.object)
    watched.target.sql(SQL("ALTER SUBSCRIPTION {} DISABLE").format(name))
    told = watched.judged()
    assert (told["state"], told["level"], told["error"]) == ("disabled", 2, "The subscription is disabled.")
    assert told["remedy"] == f"Enable it: ALTER SUBSCRIPTION {watched.object} ENABLE."
    watched.target.sql(SQL("ALTER SUBSCRIPTION {} ENABLE").format(name))
    watched.target.sql("INSERT INTO t VALUES (2000, 'mine')")
    watched.source.sql("INSERT INTO t VALUES (2000, 'theirs')")
    told = watched.becomes("disabled")
    assert told["error"] == (
        "The subscription is disabled. It failed 1 time, last with: duplicate key value violates unique constraint"
        ' "t_pkey".'
    )
    assert told["remedy"].startswith("Delete the row that is there already on ml-1: ")
    assert told["remedy"].endswith(f"Then ALTER SUBSCRIPTION {watched.object} ENABLE.")


def test_slot_lost_by_too_much_wal(watched: Watched) -> None:
    watched.wire()
    watched.target.sql(SQL("ALTER SUBSCRIPTION {} DISABLE").format(Identifier(watched.object)))
    wait_for(lambda: not look(watched.source)["server"]["slots"][0]["active"], 20, "the slot to be free")
    watched.source.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
    try:
        watched.source.sql("SELECT pg_reload_conf()")
        for _ in range(3):
            watched.source.sql("UPDATE t SET x = 'z'")
            watched.source.sql("SELECT pg_switch_wal()")
        watched.source.sql("CHECKPOINT")
        told = watched.becomes("slot lost")
    finally:
        watched.source.sql("ALTER SYSTEM RESET max_slot_wal_keep_size")
        watched.source.sql("SELECT pg_reload_conf()")
    assert told["level"] == 2 and f"Slot {watched.slot} on prod is lost" in told["error"]
    assert "more than 1.0 MB (max_slot_wal_keep_size)" in told["error"] and "state=absent" in told["remedy"]
    assert told["wal"]["hours_left"] is None


def test_hours_until_the_limit(watched: Watched) -> None:
    watched.wire()
    watched.becomes("streaming")
    watched.source.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '64MB'")
    watched.source.sql("SELECT pg_reload_conf()")
    try:
        told = wait_for(lambda: _limited(watched), 20, "the limit to be known")
        slot = watched.source.sql("SELECT safe_wal_size FROM pg_replication_slots WHERE slot_name = %s", [watched.slot])
        server = look(watched.source)["server"]
        assert server["wal_limit"] == 64 << 20
        hours = slot[0][0] / server["wal_rate"] / 3600
        assert told["wal"]["hours_left"] == pytest.approx(hours, rel=0.3, abs=0.1)
        (warning,) = watched.judged(wal_hours=1000)["warnings"]
        assert warning.startswith("At the present rate, the WAL that prod keeps for it meets its limit ")
    finally:
        watched.source.sql("ALTER SYSTEM RESET max_slot_wal_keep_size")
        watched.source.sql("SELECT pg_reload_conf()")


def _limited(watched: Watched) -> dict[str, Any]:
    told = watched.judged(wal_hours=0)
    return told if look(watched.source)["server"]["wal_limit"] else {}


def test_slot_orphaned_slot_missing_and_not_wired(watched: Watched) -> None:
    watched.wire()
    forget_subscriptions(watched.target)
    report = watched.report()
    (told,) = report["distributions"]
    assert (told["state"], told["level"]) == ("slot orphaned", 2)
    assert f"of WAL for its slot {watched.slot}." in told["error"] and "pgml_status_clean=true" in told["remedy"]
    wait_for(lambda: watched.report()["strays"][0]["removable"], 20, "the slot to be free")
    (stray,) = watched.report()["strays"]
    assert (stray["kind"], stray["name"], stray["host"]) == ("slot", watched.slot, "prod")
    forget_slots(watched.source)
    told = watched.judged()
    assert (told["state"], told["level"], told["remedy"]) == ("not wired", 2, "Run distribute.")
    watched.target.sql("TRUNCATE t")
    watched.subscribe()
    watched.target.sql(SQL("ALTER SUBSCRIPTION {} DISABLE").format(Identifier(watched.object)))
    forget_slots(watched.source)
    told = watched.judged()
    assert (told["state"], told["level"]) == ("slot missing", 2)
    assert told["error"] == f"Slot {watched.slot} is not on prod any more: changes since then are missing here."


@pytest.mark.sampled(1)
def test_no_worker_while_the_upstream_lets_nobody_in(each_major: Pair) -> None:
    watched = Watched(each_major)
    watched.wire()
    watched.source.sql(SQL("ALTER ROLE {} NOLOGIN").format(Identifier(watched.pair.distributor)))
    watched.source.sql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")
    wait_for(lambda: not look(watched.source)["server"]["slots"][0]["active"], 20, "the slot to be free")
    told = watched.judged()
    assert (told["state"], told["level"]) == ("no worker", 2), told
    assert told["error"] == "No worker serves the subscription, though prod is up."
    watched.source.sql(SQL("ALTER ROLE {} LOGIN").format(Identifier(watched.pair.distributor)))
    watched.becomes("streaming")


def test_publisher_down_and_replica_down(watched: Watched) -> None:
    watched.wire()
    watched.source.cluster.stop()
    told = watched.becomes("publisher down")
    assert told["level"] == 2 and told["error"].startswith("prod: Can't connect to database ")
    (prod, _replica) = watched.report()["hosts"]
    assert (prod["state"], prod["level"]) == ("publisher down", 2)
    watched.source.cluster.start()
    watched.becomes("streaming")
    watched.target.cluster.stop()
    report = watched.report()
    (told,) = report["distributions"]
    assert (told["state"], told["level"]) == ("replica down", 2) and "Can't connect to database " in told["error"]
    assert told["wal"]["kept_bytes"] is not None and report["summary"] == "Broken: ml-1 is down."
    assert report["strays"] == []
    watched.target.cluster.start()
    watched.becomes("streaming")


@pytest.mark.sampled(0)
def test_an_upstream_that_hangs_is_down(watched: Watched) -> None:
    watched.wire()
    sender = wait_for(lambda: look(watched.source)["server"]["slots"][0]["sender"], 20, "a sender")["pid"]
    postmaster = int((watched.source.cluster.data / "postmaster.pid").read_text().split()[0])
    os.kill(postmaster, signal.SIGSTOP)
    try:
        os.kill(sender, signal.SIGTERM)
        query = "SELECT pid FROM pg_stat_subscription WHERE subname = %s AND pid > 0 AND received_lsn IS NULL"
        wait_for(lambda: watched.target.sql(query, [watched.object]), 20, "a worker that tries to connect")
        assert watched.judged()["state"] == "publisher down"
    finally:
        os.kill(postmaster, signal.SIGCONT)
    watched.becomes("streaming")


def test_an_upstream_that_only_we_cannot_reach_is_not_down(watched: Watched) -> None:
    watched.wire()
    gathered = watched.gather()
    gathered["prod"]["result"] = {"unreachable": True, "msg": "Failed to connect to the host via ssh"}
    (told,) = status.status_report(gathered, [watched.entry])["distributions"]
    assert (told["state"], told["level"]) == ("streaming", 1)
    assert "prod could not be asked, so that lag and WAL are not known: Failed to connect" in told["warnings"][0]


def test_strays_are_removable_only_when_nobody_uses_them(watched: Watched) -> None:
    watched.wire()
    watched.becomes("streaming")
    other = {**watched.entry, "name": "other", "strategy": "dump"}
    strays = {each["kind"]: each for each in watched.report(other)["strays"]}
    assert not strays["slot"]["removable"] and not strays["publication"]["removable"]
    assert "a subscription of ml-1 uses it" in strays["slot"]["reason"]
    watched.source.sql("SELECT pg_create_logical_replication_slot('pgml_old_ml_9', 'pgoutput')")
    watched.source.sql("CREATE PUBLICATION pgml_old FOR TABLE t")
    report = watched.report()
    assert report["level"] == 1 and [each["name"] for each in report["strays"]] == ["pgml_old_ml_9", "pgml_old"]
    assert all(each["removable"] for each in report["strays"])
    assert report["summary"] == (
        "Degraded: slot pgml_old_ml_9 on prod belongs to nothing; publication pgml_old on prod belongs to nothing."
    )
