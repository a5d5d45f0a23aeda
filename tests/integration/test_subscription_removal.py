# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs that die between their steps, and subscriptions that go: no slot outlives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import slot, subscribing, subscription

from tests.support.pair import Pair, Stopwatch, wait_for

TABLES = "CREATE TABLE a (id int PRIMARY KEY, t text); CREATE TABLE b (id int PRIMARY KEY, t text)"


class Crash(BaseException):
    """What no handler of the code under test catches, as if its process were killed."""


@pytest.fixture
def shop(pair: Pair) -> Pair:
    pair.both(TABLES)
    pair.sql_source("INSERT INTO a SELECT g, 'a' FROM generate_series(1, 100) AS g")
    pair.publish("a")
    return pair


def subscriptions(pair: Pair) -> list[tuple[Any, ...]]:
    query = (
        "SELECT subname, subenabled, subslotname FROM pg_subscription AS s JOIN pg_database AS d ON d.oid = s.subdbid"
        " WHERE d.datname = current_database()"
    )
    return pair.sql_target(query)


def assert_nothing_left(pair: Pair) -> None:
    assert subscriptions(pair) == [] and pair.slots() == set()


def placeholder(pair: Pair, with_slot: bool) -> None:
    """What a run leaves that died before or after it created the slot."""
    target = pair.target.cluster.source(pair.target.database)
    login = Endpoint({key: target[key] for key in ("host", "port", "user", "password")}, "login")
    with Session(login.with_keywords(dbname=pair.target.database)) as session:
        source = login.with_keywords(port=pair.endpoint["port"], user=pair.distributor, dbname=pair.source.database)
        wanted = subscription.Subscription(pair.name, frozenset(["pub"]), source, pair.name, True, None, {})
        session.apply(subscription.plan_placeholder(wanted))
    if with_slot:
        pair.sql_source("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [pair.name])


@pytest.mark.parametrize("with_slot", [False, True])
def test_a_rerun_goes_on_where_a_creation_died(shop: Pair, with_slot: bool) -> None:
    placeholder(shop, with_slot)
    assert shop.target.converge("pgml_subscription", **shop.subscription())["changed"]
    assert shop.slots() == {shop.name}
    assert subscriptions(shop) == [(shop.name, True, shop.name)]
    shop.sql_source("INSERT INTO a VALUES (1000, 'streams')")
    shop.arrived("a")


@pytest.mark.parametrize("with_slot", [False, True])
def test_absent_clears_what_a_creation_left(shop: Pair, with_slot: bool) -> None:
    placeholder(shop, with_slot)
    removed = shop.target.converge("pgml_subscription", name=shop.name, state="absent", source=shop.endpoint)
    assert removed["changed"] and "debts" not in removed
    assert_nothing_left(shop)


def after(original: Callable[..., Any]) -> Callable[..., Any]:
    def step(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        raise Crash

    return step


def before(original: Callable[..., Any]) -> Callable[..., Any]:
    def step(*args: Any, **kwargs: Any) -> None:
        raise Crash

    return step


CREATION: dict[str, tuple[str | None, Any, str, Any]] = {
    "before the placeholder": (None, subscription, "plan_placeholder", before),
    "before the native placeholder": ("native", subscription, "plan_placeholder", before),
    "before the slot": ("native", slot, "create", before),
    "after the slot": ("native", slot, "create", after),
    "before the wait": (None, subscribing, "_wait", before),
    "before the wait for a native copy": ("native", subscribing, "_wait", before),
    "after the wait": (None, subscribing, "_wait", after),
}
"""The initial_copy, where it dies, and when."""
REMOVAL: dict[str, tuple[Any, str, Any]] = {
    "before it is disabled": (subscription, "plan_disable", before),
    "before the slot is dropped": (slot, "drop", before),
    "after the slot is dropped": (slot, "drop", after),
    "before it is dropped": (subscription, "plan_detached", before),
    "before the leftovers": (subscribing, "_drop_leftovers", before),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("step", CREATION)
def test_creation_converges_after_a_crash(shop: Pair, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    way, place, name, wrap = CREATION[step]
    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr(place, name, wrap(getattr(place, name)))
        shop.subscribe(initial_copy=way)
    shop.sql_source("INSERT INTO a VALUES (999, 'between')")
    assert not shop.target.run("pgml_subscription", **shop.subscription(initial_copy=way)).get("failed")
    assert not shop.subscribe(initial_copy=way)["changed"]
    assert shop.slots() == {shop.name}
    shop.arrived("a")
    shop.unsubscribe()
    assert_nothing_left(shop)


@pytest.mark.parametrize("step", REMOVAL)
def test_removal_converges_after_a_crash(shop: Pair, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    shop.subscribe()
    place, name, wrap = REMOVAL[step]
    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr(place, name, wrap(getattr(place, name)))
        shop.unsubscribe()
    result = shop.unsubscribe(source=shop.endpoint, slot_name=shop.name)
    assert "debts" not in result
    assert_nothing_left(shop)
    assert not shop.unsubscribe(source=shop.endpoint, slot_name=shop.name)["changed"]


@pytest.mark.parametrize("side", ["source", "target"])
def test_the_copy_converges_after_a_crash_of_a_server(shop: Pair, side: str) -> None:
    shop.sql_source("INSERT INTO b SELECT g, repeat(md5(g::text), 20) FROM generate_series(1, 50000) AS g")
    shop.publish("a", "b")
    shop.subscribe(wait=False, initial_copy="native")
    cluster = getattr(shop, side).cluster
    cluster.kill()
    cluster.start()
    assert not shop.subscribe()["changed"]
    for table in ("a", "b"):
        shop.arrived(table)
    assert shop.slots() == {shop.name}


def test_absent_drops_the_slot_too(shop: Pair) -> None:
    shop.subscribe()
    removed = shop.target.converge("pgml_subscription", name=shop.name, state="absent")
    assert removed["changes"] == [f'Drop subscription "{shop.name}"'] and "debts" not in removed
    assert removed["diff"]["before"]["name"] == shop.name and removed["diff"]["after"] == {}
    assert_nothing_left(shop)
    assert shop.sql_target("SELECT count(*) FROM a") == [(100,)]


def test_absent_of_a_disabled_subscription_and_of_a_lost_slot(shop: Pair) -> None:
    shop.subscribe(enabled=False)
    shop.target.converge("pgml_subscription", name=shop.name, state="absent")
    assert_nothing_left(shop)
    shop.sql_target("TRUNCATE a")
    shop.subscribe(enabled=False)
    shop.sql_source("SELECT pg_drop_replication_slot(%s)", [shop.name])
    removed = shop.target.converge("pgml_subscription", name=shop.name, state="absent")
    assert "debts" not in removed
    assert_nothing_left(shop)


def test_absent_of_what_never_was(shop: Pair) -> None:
    for params in (
        {},
        {"source": shop.endpoint},
        {"source": shop.endpoint, "slot_name": "never_was"},
        {"login_db": "nope"},
    ):
        check = "login_db" in params
        assert not shop.target.ok("pgml_subscription", check=check, name="never", state="absent", **params)["changed"]


def test_absent_without_the_upstream_detaches_and_returns_the_debt(shop: Pair) -> None:
    shop.subscribe()
    shop.source.cluster.stop()
    with Stopwatch() as watch:
        result = shop.unsubscribe()
    assert watch.seconds < 8 and result["changed"]
    place = {"host": "127.0.0.1", "port": shop.source.cluster.port, "database": shop.source.database}
    assert result["debts"] == [{"slot_name": shop.name, **place}]
    (warning,) = result["warnings"]
    for words in (f"Slot {shop.name}", "left on the upstream", "holds back", "refused"):
        assert words in warning
    assert subscriptions(shop) == []
    settle = {"name": shop.name, "state": "absent", "source": shop.endpoint, "slot_name": shop.name}
    in_vain = shop.target.ok("pgml_subscription", **settle)
    assert not in_vain["changed"] and in_vain["debts"] == result["debts"]
    shop.source.cluster.start()
    assert shop.slots() == {shop.name}
    settled = shop.target.converge("pgml_subscription", **settle)
    assert settled["changes"] == [f'Drop slot "{shop.name}"'] and "debts" not in settled
    assert_nothing_left(shop)


def test_a_slot_that_is_not_ours_is_never_settled(shop: Pair) -> None:
    settle = {"name": "gone", "state": "absent", "source": shop.endpoint}
    shop.sql_source("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", [shop.name])
    message = shop.target.refused("pgml_subscription", **settle, slot_name=shop.name)
    assert f'Slot "{shop.name}"' in message and "left as it is" in message
    shop.sql_source("SELECT pg_drop_replication_slot(%s)", [shop.name])
    shop.subscribe()
    message = shop.target.refused("pgml_subscription", **settle, slot_name=shop.name)
    assert "is in use" in message
    assert shop.slots() == {shop.name}


def big_copy_under_way(pair: Pair) -> None:
    """A subscription whose first copy PostgreSQL makes, and takes long; rows that compress well take no time to make."""
    pair.sql_source("INSERT INTO b SELECT g, repeat('x', 1000000) FROM generate_series(1, 600) AS g")
    pair.publish("a", "b")
    pair.subscribe(wait=False, initial_copy="native")
    query = "SELECT 1 FROM pg_subscription_rel AS r WHERE srrelid = 'b'::regclass AND srsubstate = 'd'"
    wait_for(lambda: pair.sql_target(query), what="the copy to begin")
    if pair.target.cluster.major >= 14:
        wait_for(lambda: len(pair.slots()) > 1, what="the copy's slot")


def test_absent_during_the_first_copy_leaves_no_slot(shop: Pair) -> None:
    big_copy_under_way(shop)
    with Stopwatch() as watch:
        removed = shop.unsubscribe()
    assert watch.seconds < 20 and "debts" not in removed
    assert_nothing_left(shop)


def test_absent_during_the_first_copy_without_the_upstream_owes_every_slot(shop: Pair) -> None:
    big_copy_under_way(shop)
    there = shop.slots()
    shop.source.cluster.stop("immediate")
    with Stopwatch() as watch:
        removed = shop.unsubscribe()
    assert watch.seconds < 20
    shop.source.cluster.start()
    left = shop.slots()
    assert shop.name in left <= there
    assert left <= {debt["slot_name"] for debt in removed["debts"]}
    assert subscriptions(shop) == []
    shop.unsubscribe(source=shop.endpoint, slot_name=shop.name)
    assert_nothing_left(shop)


def test_the_slots_of_others_stay(shop: Pair) -> None:
    other = "pg_99999_sync_88888_7777777777777777777"
    shop.sql_source(
        "SELECT pg_create_logical_replication_slot(name, 'pgoutput') FROM unnest(%s) AS name", [["mine", other]]
    )
    shop.subscribe()
    shop.unsubscribe()
    assert shop.slots() == {"mine", other}


def test_a_database_is_not_source_and_target_at_once(shop: Pair) -> None:
    """A replica's login that leads to the primary is a mistake that must not cost a table."""
    assert "source and target at once" in shop.source.refused("pgml_subscription", **shop.subscription())
    for which in ({"tables": ["a"]}, {"schemas": ["public"]}, {"all_tables": True}):
        message = shop.source.refused("pgml_schema", source=shop.endpoint, state="absent", **which)
        assert "source and target at once" in message


def test_a_change_that_fails_leaves_the_subscription_running(each_major: Pair) -> None:
    """Some options are altered while the subscription is disabled, and the server may refuse them then."""
    pair = each_major
    if pair.target.cluster.major < 17:
        pytest.skip("failover came with 17")
    pair.both(TABLES)
    pair.publish("a")
    pair.subscribe()
    pair.sql_source(f'ALTER ROLE "{pair.distributor}" NOREPLICATION')
    result = pair.target.run("pgml_subscription", **pair.subscription(failover=True))
    assert result.get("failed")
    assert pair.sql_target("SELECT subenabled FROM pg_subscription WHERE subname = %s", [pair.name]) == [(True,)]
