# SPDX-License-Identifier: GPL-3.0-or-later
"""First copies that can't begin or, where PostgreSQL itself makes them, can't go on: the module says why within seconds, in the
publisher's own words, and tidies up."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import subscribed
from psycopg2.sql import SQL, Identifier

from tests.conftest import SETTINGS, program_of
from tests.support.cluster import Cluster, make_directory
from tests.support.pair import Pair, Stopwatch, create_role, pair_of, wait_for

pytestmark = pytest.mark.sampled(0)

TABLES = "CREATE TABLE a (id int PRIMARY KEY, t text); CREATE TABLE b (id int PRIMARY KEY, t text)"
SOON = 15
"""Seconds within which a wait that is in vain must end; the server's own retries take part of them."""


@pytest.fixture
def shop(pair: Pair) -> Pair:
    pair.both(TABLES)
    pair.sql_source("INSERT INTO a SELECT g, 'a' FROM generate_series(1, 100) AS g")
    pair.publish("a")
    return pair


def fail_soon(pair: Pair, *words: str, **params: Any) -> str:
    """Run the subscription, which fails soon with *words*; nothing is undone that was there before."""
    with Stopwatch() as watch:
        result = pair.target.run("pgml_subscription", **pair.subscription(**{"wait_timeout": SOON + 5, **params}))
    assert result.get("failed"), result
    assert watch.seconds < SOON
    for word in words:
        assert word in result["msg"]
    assert pair.password not in str(result)
    return result["msg"]


def fail_afresh(pair: Pair, *words: str, ways: Sequence[str] = ("snapshot", "native"), **params: Any) -> None:
    """The same for a subscription that isn't there yet: neither it nor its slot is there afterwards."""
    target, source = pair.target.fingerprint(), pair.source.fingerprint()
    for way in ways:
        fail_soon(pair, *words, initial_copy=way, **params)
        assert pair.target.fingerprint() == target
        assert pair.source.fingerprint() == source


@contextmanager
def no_free_slot(pair: Pair, leave: int = 0) -> Iterator[None]:
    """A source whose slots are all in use but *leave*."""
    query = "SELECT current_setting('max_replication_slots')::int - count(*) - %s FROM pg_replication_slots"
    names = [f"filler_{number}" for number in range(pair.source.sql(query, [leave])[0][0])]
    pair.sql_source("SELECT pg_create_physical_replication_slot(name) FROM unnest(%s) AS name", [names])
    try:
        yield
    finally:
        pair.sql_source("SELECT pg_drop_replication_slot(name) FROM unnest(%s) AS name", [names])


def of_distributor(statement: str, pair: Pair) -> Any:
    return SQL(statement).format(Identifier(pair.distributor))


def test_wrong_password(shop: Pair) -> None:
    wrong = {**shop.endpoint, "password": "not the one"}
    fail_afresh(shop, "password authentication failed", shop.distributor, "source options", source=wrong)
    shop.subscribe()
    fail_soon(shop, "password authentication failed", source=wrong)
    assert shop.subscribe()["changed"] is False


def test_unreachable_host_and_unknown_database(shop: Pair) -> None:
    fail_afresh(shop, "127.0.0.1:1", "refused", "source options", source={**shop.endpoint, "port": 1})
    fail_afresh(shop, "no-such-host.invalid", source={**shop.endpoint, "host": "no-such-host.invalid"})
    fail_afresh(shop, 'database "gone" does not exist', source={**shop.endpoint, "db": "gone"})


def test_unknown_publication(shop: Pair) -> None:
    fail_afresh(shop, "no publication pup", shop.source.database, publications=["pub", "pup"])
    shop.subscribe()
    shop.sql_source("DROP PUBLICATION pub")
    fail_soon(shop, "no publication pub")


def test_missing_table(shop: Pair) -> None:
    shop.sql_source("CREATE TABLE only_here (id int PRIMARY KEY)")
    shop.grant()
    shop.publish("a", "only_here")
    fail_afresh(shop, shop.target.database, "lacks table public.only_here", "pgml_schema")
    shop.publish("a")
    shop.subscribe()
    shop.publish("a", "only_here")
    fail_soon(shop, "lacks table public.only_here")


def test_missing_and_generated_columns(shop: Pair) -> None:
    shop.sql_target("ALTER TABLE a DROP COLUMN t")
    fail_afresh(shop, "lacks columns", "public.a (t)")
    shop.sql_target("ALTER TABLE a ADD COLUMN t text GENERATED ALWAYS AS ('x') STORED")
    fail_afresh(shop, "public.a (t)", "generates")
    if shop.source.cluster.major >= 15:
        shop.publish({"name": "a", "columns": ["id"]})
        assert shop.subscribe()["changed"]


def test_a_column_lost_during_the_copy(shop: Pair) -> None:
    shop.subscribe(enabled=False, initial_copy="native")
    shop.sql_target("ALTER TABLE a DROP COLUMN t")
    fail_soon(shop, "lacks columns", "public.a (t)", "stay", enabled=True)
    shop.sql_target("ALTER TABLE a ADD COLUMN t text")
    shop.subscribe(enabled=True)
    shop.arrived("a", 0.1)


def test_missing_privilege(shop: Pair) -> None:
    shop.sql_source(of_distributor("REVOKE SELECT ON a FROM {}", shop))
    fail_afresh(shop, "permission denied for table public.a", "grant user", shop.distributor, "SELECT")
    shop.grant()
    shop.sql_source(of_distributor("REVOKE ALL ON SCHEMA public FROM {}, public", shop))
    fail_afresh(shop, "permission denied", "public.a", "USAGE")
    shop.grant()
    shop.subscribe(enabled=False, initial_copy="native")
    shop.sql_source(of_distributor("REVOKE SELECT ON a FROM {}", shop))
    fail_soon(shop, "permission denied for table public.a", "stay", enabled=True)
    shop.grant()
    shop.subscribe()
    shop.arrived("a", 0.1)


def test_a_role_without_replication(shop: Pair) -> None:
    shop.sql_source(of_distributor("ALTER ROLE {} NOREPLICATION", shop))
    fail_afresh(shop, "replication", shop.distributor)


def test_no_free_slot(shop: Pair) -> None:
    words = ["All replication slots are in use", "max_replication_slots = "]
    with no_free_slot(shop):
        fail_afresh(shop, *words)
    with no_free_slot(shop, leave=1):
        fail_afresh(shop, *words, "2 more are needed", ways=["native"])
    shop.subscribe(enabled=False, initial_copy="native")
    with no_free_slot(shop):
        fail_soon(shop, "All replication slots are in use", "stay", enabled=True)
    shop.subscribe()
    shop.arrived("a", 0.1)


def test_statement_timeout_of_the_distributor(shop: Pair) -> None:
    """The rows compress well: 300 MB travel, of which hardly any are stored."""
    shop.sql_source("INSERT INTO b SELECT g, repeat('x', 1000000) FROM generate_series(1, 300) AS g")
    shop.publish("b")
    shop.sql_source(of_distributor("ALTER ROLE {} SET statement_timeout = '60ms'", shop))
    fail_afresh(shop, "canceling statement due to statement timeout", ways=["native"])
    shop.sql_source(of_distributor("ALTER ROLE {} RESET statement_timeout", shop))
    shop.subscribe(enabled=False, initial_copy="native")
    shop.sql_source(of_distributor("ALTER ROLE {} SET statement_timeout = '60ms'", shop))
    fail_soon(shop, "canceling statement due to statement timeout", "stay", enabled=True)


def test_target_that_holds_rows(shop: Pair) -> None:
    shop.sql_target("INSERT INTO a VALUES (7, 'mine')")
    fail_afresh(shop, "public.a holds rows", shop.target.database, "initial_copy")
    shop.sql_target("TRUNCATE a")
    shop.subscribe(enabled=False, initial_copy="native")
    shop.sql_target("INSERT INTO a VALUES (7, 'mine')")
    fail_soon(shop, "public.a", "the replica's log", "Rows that the tables already hold", "stay", enabled=True)
    shop.sql_target("TRUNCATE a")
    shop.subscribe()
    shop.arrived("a", 0.1)


def test_rows_hidden_by_row_security_are_not_silently_left_out(shop: Pair) -> None:
    shop.sql_source("ALTER TABLE a ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON a USING (id <= 10)")
    result = shop.target.run("pgml_subscription", **shop.subscription())
    if result.get("failed"):
        assert "row security" in result["msg"].lower() or "row-level security" in result["msg"].lower()
    else:
        shop.arrived("a", 0.1)


def test_an_owner_that_may_not_log_in(shop: Pair) -> None:
    """The worker runs as the owner and ends at once: nothing would ever happen."""
    owner = f"owner_{shop.name}"
    create_role(shop.target.cluster, owner, "SUPERUSER", "x")
    try:
        fail_soon(shop, owner, "log in", owner=owner)
    finally:
        shop.target.run("pgml_subscription", name=shop.name, state="absent")
        shop.target.cluster.sql(SQL("DROP ROLE {}").format(Identifier(owner)))


def test_the_wait_returns_only_when_all_tables_are_ready(shop: Pair) -> None:
    shop.publish("a", "b")
    with shop.target.transaction("LOCK TABLE b IN SHARE MODE"):
        result = shop.target.run("pgml_subscription", **shop.subscription(wait_timeout=3, initial_copy="native"))
        assert result["failed"] and "1 of 2 tables ready after 3 s" in result["msg"]
        assert "public.b (" in result["msg"] and "public.a" not in result["msg"]
        assert result["tables"]["public.a"] == "ready" and result["tables"]["public.b"] != "ready"
        with Stopwatch() as watch:
            assert not shop.subscribe(wait=False)["changed"]
        assert watch.seconds < 2
    assert not shop.subscribe()["changed"]
    assert shop.sql_target("SELECT DISTINCT srsubstate FROM pg_subscription_rel") == [("r",)]


def test_a_wait_goes_on_while_rows_come_slowly(shop: Pair) -> None:
    """A copy that waits for somebody else on the source is slow, not in vain."""
    results = []
    shop.subscribe(enabled=False, initial_copy="native")
    with shop.source.transaction("INSERT INTO b VALUES (1)") as pid:
        shop.subscribe(enabled=True, wait=False)
        thread = threading.Thread(target=lambda: results.append(shop.subscribe()))
        thread.start()
        blocked = "SELECT 1 FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"
        wait_for(lambda: shop.sql_source(blocked, [pid]))
        thread.join(4)
        assert thread.is_alive() and not results
    thread.join(30)
    assert results and not results[0]["changed"]
    shop.arrived("a", 0.1)


@contextmanager
def first_copy(pair: Pair) -> Iterator[tuple[threading.Thread, list[dict[str, Any]]]]:
    """A run that is in the middle of PostgreSQL's own first copy, and what it returns in the end."""
    results: list[dict[str, Any]] = []
    options = pair.subscription(wait_timeout=300, initial_copy="native")
    pair.sql_source("INSERT INTO a SELECT g, repeat('a', 200) FROM generate_series(101, 500000) AS g")
    run = threading.Thread(target=lambda: results.append(pair.target.run("pgml_subscription", **options)))
    run.start()
    wait_for(lambda: pair.sql_target("SELECT 1 FROM pg_subscription_rel WHERE srsubstate = 'd'"))
    yield run, results
    run.join(300)


@pytest.fixture
def unhurried(shop: Pair) -> Iterator[Pair]:
    """A replica that tries again as seldom as PostgreSQL does by default, and two tables to copy."""
    shop.sql_source("INSERT INTO b SELECT g, repeat('b', 200) FROM generate_series(1, 500000) AS g")
    shop.publish("a", "b")
    shop.target.sql("ALTER SYSTEM SET wal_retrieve_retry_interval = '5s'")
    shop.target.sql("SELECT pg_reload_conf()")
    yield shop
    shop.target.sql("ALTER SYSTEM RESET wal_retrieve_retry_interval")
    shop.target.sql("SELECT pg_reload_conf()")


@pytest.mark.slow
def test_a_wait_outlives_a_crash_of_the_source(unhurried: Pair) -> None:
    """PostgreSQL tries again when the source is back, and so the wait goes on meanwhile."""
    with first_copy(unhurried) as (run, results):
        unhurried.source.cluster.kill()
        run.join(35)
        assert run.is_alive() and not results
        unhurried.source.cluster.start()
    assert results[0]["changed"] and not results[0].get("failed"), results[0]
    unhurried.arrived("a", 0.1)
    unhurried.arrived("b", 0.1)


@pytest.mark.slow
def test_a_wait_outlives_the_loss_of_every_connection_at_once(unhurried: Pair) -> None:
    with first_copy(unhurried) as (run, results):
        assert len(unhurried.sql_source("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")) >= 2
        run.join(2)
        assert run.is_alive() and not results
    assert results[0]["changed"] and not results[0].get("failed"), results[0]
    unhurried.arrived("a", 0.1)
    unhurried.arrived("b", 0.1)


def test_a_rerun_goes_on_when_the_source_is_back(shop: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscribed, "SILENCE_SECONDS", 1)
    with first_copy(shop) as (_, results):
        shop.source.cluster.kill()
    shop.source.cluster.start()
    assert shop.name in shop.slots()
    assert "can't go on: Can't connect to database" in results[0]["msg"] and "a rerun goes on" in results[0]["msg"]
    shop.subscribe()
    shop.arrived("a", 0.1)


def test_a_rerun_goes_on_when_the_replica_is_back(shop: Pair) -> None:
    with first_copy(shop) as (_, results):
        shop.target.cluster.kill()
    shop.target.cluster.start()
    assert "The connection to database" in results[0]["msg"] and "was lost" in results[0]["msg"]
    assert "a rerun goes on" in results[0]["msg"]
    shop.subscribe()
    shop.arrived("a", 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("prepared", [False, True], ids=["transaction", "prepared transaction"])
def test_slot_creation_blocked_by_a_transaction(shop: Pair, prepared: bool) -> None:
    with shop.source.transaction("INSERT INTO b VALUES (1)") as pid:
        if prepared:
            with shop.source.transaction("INSERT INTO b VALUES (2)", "PREPARE TRANSACTION 'left behind'"):
                pass
        try:
            words = ["Nothing was changed", f"process {pid}", 'user "postgres"']
            words += ['prepared transaction "left behind"'] if prepared else []
            fail_afresh(shop, f'Slot "{shop.name}" was not created', *words)
        finally:
            if prepared:
                shop.sql_source("ROLLBACK PREPARED 'left behind'")
    shop.subscribe()
    shop.arrived("a", 0.1)


@pytest.fixture
def cramped(primary: Cluster, default_major: int) -> Iterator[Pair]:
    """A replica with one worker for all of its subscriptions."""
    settings = {**SETTINGS, "max_logical_replication_workers": "1", "max_sync_workers_per_subscription": "1"}
    with Cluster(make_directory(), program_of(default_major), settings) as replica, pair_of(primary, replica) as pair:
        pair.both(TABLES)
        pair.publish("a")
        yield pair


def test_no_free_worker_for_the_copy(cramped: Pair) -> None:
    fail_afresh(cramped, "max_logical_replication_workers", ways=["native"])
    assert cramped.subscribe()["changed"]


def test_no_free_worker_for_the_subscription(cramped: Pair) -> None:
    cramped.subscribe(initial_copy="none")
    cramped.publish("b", name="second")
    before = cramped.slots()
    fail_soon(cramped, "max_logical_replication_workers", name=cramped.name + "_b", publications=["second"])
    assert cramped.slots() == before
