# SPDX-License-Identifier: GPL-3.0-or-later
"""pgml_strategy_info measures what is there without waiting for anybody, and says what can't be used and why."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import psycopg2
import pytest
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import measuring
from psycopg2.sql import SQL, Identifier

from tests.conftest import Servers
from tests.support import majors, playbooks
from tests.support.cluster import Cluster
from tests.support.pair import Place, Stopwatch, create_role, wait_for

MODULE = "pgml_strategy_info"
SIZES = (
    "SELECT sum(pg_table_size(oid))::int8, sum(pg_indexes_size(oid))::int8, sum(pg_total_relation_size(oid))::int8"
    " FROM pg_class WHERE relkind = 'r' AND oid = ANY(%s::regclass[])"
)
LONG_ROWS = """
INSERT INTO audit_log SELECT now(), 'api', 'import', NULL, jsonb_object_agg(i, md5(n || ' ' || i))
FROM generate_series(1, 20) AS n, generate_series(1, 200) AS i GROUP BY n
"""
"""Rows that are stored out of line, which the shop has none of."""
LARGE = {"dump": "1 kB", "fdw": "2 kB", "logical": "1 TB"}
"""Bounds by which logical is meant for a small database."""


def ask(place: Place, **params: Any) -> dict[str, Any]:
    return place.ok(MODULE, **({} if {"tables", "schemas"} & set(params) else {"all_tables": True}), **params)


def reasons(result: dict[str, Any], strategy: str) -> list[str]:
    (found,) = (each["reasons"] for each in result["alternatives"] if each["strategy"] == strategy)
    return found


def obstacles(result: dict[str, Any], strategy: str) -> list[str]:
    """What is said of a strategy that can't be used, beside its size and how often rows change."""
    assert not {each["strategy"]: each["feasible"] for each in result["alternatives"]}[strategy]
    return [words for words in reasons(result, strategy)[1:] if not words.startswith(("About ", "How often "))]


@pytest.fixture(scope="module", params=[min(majors.VERSIONS), max(majors.VERSIONS)])
def shop(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Place]:
    """The sample shop, on a server of the oldest and of the newest major version."""
    cluster = servers.get(request.param, "primary")
    playbooks.load_shop(cluster, "strategy_shop", scale=0.05)
    place = Place(cluster, "strategy_shop")
    place.sql(LONG_ROWS)
    place.sql("VACUUM ANALYZE")
    yield place
    cluster.drop_database("strategy_shop")


@pytest.fixture(scope="module")
def narrow() -> Iterator[Cluster]:
    """A server that can't replicate logically, with two slots and two WAL senders."""
    with playbooks.cluster(wal_level="replica", max_replication_slots="2", max_wal_senders="2") as cluster:
        cluster.create_database("small")
        Place(cluster, "small").sql(
            "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 5000)"
        )
        yield cluster


def named(place: Place, condition: str = "true") -> list[str]:
    query = (
        "SELECT c.oid::regclass::text FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace"
        " WHERE relkind IN ('r', 'p') AND nspname !~ '^pg_|^information' AND " + condition
    )
    return [name for (name,) in place.sql(query)]


def test_the_shop_has_the_size_that_the_server_says(shop: Place) -> None:
    for params, condition in (
        ({"all_tables": True}, "true"),
        ({"schemas": ["public"]}, "nspname = 'public'"),
        ({"tables": ["warehouse.stock", {"name": "orders", "columns": ["user_id"]}]}, "relname IN ('stock', 'orders')"),
        ({"tables": ["page_views"]}, "relname LIKE 'page\\_views%'"),
        ({"all_tables": True, "exclude_tables": ["page_views"]}, "relname NOT LIKE 'page\\_views%'"),
    ):  # fmt: skip
        names = named(shop, condition)
        before, found = shop.sql(SIZES, [names]), shop.ok(MODULE, **params)["measured"]
        assert shop.sql(SIZES, [names]) == before, "somebody vacuums"
        ((table, indexes, total),) = before
        assert found["tables"] == len(names)
        assert found["bytes"]["heap"] + found["bytes"]["toast"] == table
        assert (found["bytes"]["indexes"], found["bytes"]["total"]) == (indexes, total)
        assert found["estimated_tables"] == []
        count = sum(shop.value(f"SELECT count(*) FROM {name}") for name in names if name != "page_views")
        assert found["rows"] == pytest.approx(count, rel=0.01)


def test_all_that_is_found_of_the_shop(shop: Place) -> None:
    result = ask(shop, bounds={"dump": "1 MB"}, replicas=2, replica_superuser=False)
    found = result["measured"]
    assert found["version"].startswith(f"{shop.cluster.major}.") and found["wal_level"] == "logical"
    assert (found["service"], found["standby"], found["left_out"]) == ("self-managed", False, [])
    free = int(shop.value("SELECT 40 - count(*) FROM pg_replication_slots"))
    assert (found["free_slots"], found["free_senders"]) == (free, 40)
    assert found["free_disk_bytes"] > 1 << 20 and found["unseen"] == []
    assert found["without_identity"] == [
        {"name": "public.audit_log", "reason": "has no replica identity (no primary key)"}
    ]
    assert found["types_without_binary"] == ["email_address"] and found["types_without_fdw"] == []
    assert result["recommendation"]["strategy"] == "dump"
    assert "only one may create extension postgres_fdw" in result["recommendation"]["reason"]
    assert [words.split(",")[0] for words in obstacles(result, "logical")[:2]] == [
        "public.audit_log has no replica identity (no primary key)",
        "The login on the replicas may not create subscriptions.",
    ]
    sizes, cost = found["bytes"], result["estimates"]
    assert cost["logical"]["first_copy_seconds"] == round((sizes["heap"] + sizes["toast"]) / (20 << 20), 1)
    assert cost["logical"]["replica_bytes"] == sizes["total"] and cost["dump"]["replica_bytes"] == 2 * sizes["total"]
    views = shop.value("SELECT count(*) FROM page_views")
    lines = shop.value('SELECT count(*) FROM "Order Lines"')
    memory = max(views * (72 + 8 * 56), lines * (72 + 7 * 56))
    assert cost["native"]["training_memory_bytes"] == pytest.approx(memory, rel=0.02)


def test_nothing_is_changed_in_check_mode_or_outside(shop: Place) -> None:
    before = shop.fingerprint()
    checked, result = ask(shop, check=True), ask(shop)
    assert shop.fingerprint() == before
    assert not result["changed"] and "changes" not in result and "diff" not in result
    assert checked["measured"]["bytes"] == result["measured"]["bytes"]
    assert checked["recommendation"] == result["recommendation"]


def test_a_role_without_rights_sees_all_but_the_disk_and_the_age(shop: Place) -> None:
    cluster, role = shop.cluster, f"strategy_{shop.cluster.major}"
    create_role(cluster, role, "LOGIN", "nobody's")
    try:
        login = {"login_user": role, "login_password": "nobody's"}
        mine, theirs = ask(shop, **login), ask(shop)
    finally:
        cluster.sql(SQL("DROP ROLE {}").format(Identifier(role)))
    for key in set(theirs["measured"]) - {"free_disk_bytes", "unseen", "changes_per_hour", "wal_bytes_per_second"}:
        assert mine["measured"][key] == theirs["measured"][key], key
    assert mine["recommendation"] == theirs["recommendation"]
    assert mine["measured"]["free_disk_bytes"] is None
    assert f'user "{role}" must be a member of pg_read_all_settings' in mine["measured"]["unseen"][0]
    # From PostgreSQL 15 on a database's statistics don't say when they began.
    later = mine["measured"]["unseen"][1:]
    assert [("told to superusers only" in words) for words in later] == [True] * (cluster.major >= 15)


def check_locked(place: Place, result: dict[str, Any], watch: Stopwatch, free: list[str]) -> None:
    """Two tables have the sizes that the catalog knows, and the others those that they have."""
    assert watch.seconds < 2
    found = result["measured"]
    assert found["estimated_tables"] == ["public.orders", "public.users"]
    whole = place.sql(SIZES, [free])[0][2]
    pages = place.value("SELECT sum(relpages) * 8192 FROM pg_class WHERE relname IN ('orders', 'users')")
    parts = sum(
        place.value(f"SELECT sum(pg_relation_size(indexrelid, f)) FROM pg_index, unnest('{{main,fsm,vm,init}}'::text[]) AS f"
                    f" WHERE indrelid IN ({tables})")
        for tables in (
            "SELECT oid FROM pg_class WHERE relname IN ('orders', 'users')",
            "SELECT reltoastrelid FROM pg_class WHERE relname IN ('orders', 'users')",
        )
    )  # fmt: skip
    assert pages > 0 and found["bytes"]["total"] == whole + pages + parts


def test_it_waits_for_no_table_that_somebody_holds(shop: Place) -> None:
    free = [name for name in named(shop) if name not in ("orders", "users")]
    with shop.transaction("LOCK TABLE orders, users IN ACCESS EXCLUSIVE MODE"), Stopwatch() as watch:
        result = ask(shop)
    check_locked(shop, result, watch, free)


def test_it_waits_behind_nobody_who_waits_for_a_table(shop: Place) -> None:
    free = [name for name in named(shop) if name not in ("orders", "users")]

    def queue(table: str) -> None:
        with suppress(psycopg2.Error), closing(shop.cluster.connect(shop.database, autocommit=False)) as connection:
            connection.cursor().execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")

    threads = [threading.Thread(target=queue, args=[table]) for table in ("orders", "users")]
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"
    with shop.transaction("LOCK TABLE orders, users IN ACCESS SHARE MODE"):
        for thread in threads:
            thread.start()
        wait_for(lambda: shop.value(waiting) == 2)
        with Stopwatch() as watch:
            result = ask(shop)
        assert shop.value(waiting) == 2
    for thread in threads:
        thread.join()
    check_locked(shop, result, watch, free)


def test_a_lock_that_comes_a_moment_later_costs_a_moment(shop: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    blind = measuring._STORAGE.replace("'AccessExclusiveLock'", "'No such lock'")
    assert blind != measuring._STORAGE
    monkeypatch.setattr(measuring, "_STORAGE", blind)
    with shop.transaction("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE"), Stopwatch() as watch:
        found = ask(shop)["measured"]
    assert watch.seconds < 2
    assert len(found["estimated_tables"]) == len(named(shop, "relkind = 'r'"))
    assert found["bytes"]["total"] == shop.value(
        "SELECT sum(c.relpages) * 8192 FROM pg_class AS c WHERE relkind IN ('r', 'i', 't') AND (c.relnamespace IN"
        " ('public'::regnamespace, 'warehouse'::regnamespace) OR c.oid IN (SELECT t.reltoastrelid FROM pg_class AS t"
        "  WHERE t.relnamespace IN ('public'::regnamespace, 'warehouse'::regnamespace)) OR c.oid IN (SELECT indexrelid"
        "  FROM pg_index JOIN pg_class AS t ON t.reltoastrelid = indrelid"
        "  WHERE t.relnamespace IN ('public'::regnamespace, 'warehouse'::regnamespace)))"
    )


def test_many_tables_take_as_many_statements_as_one(upstream: Place) -> None:
    upstream.sql(
        "DO $$ BEGIN FOR i IN 1..400 LOOP EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY, note text)', i);"
        " END LOOP; END $$"
    )

    def statements(**params: Any) -> int:
        seen = len(upstream.cluster.log())
        assert ask(upstream, **params)["measured"]["tables"] == len(params.get("tables", range(400)))
        return upstream.cluster.log()[seen:].count("LOG:  statement:")

    counts = {statements(tables=["t1"]), statements(tables=[f"t{i}" for i in range(1, 401)])}
    assert len(counts) == 1 and counts.pop() < 30
    assert statements() < 30


def test_what_tables_and_columns_need_is_named(upstream: Place) -> None:
    upstream.sql("""
        CREATE EXTENSION citext; CREATE EXTENSION hstore;
        CREATE TABLE plain (id int PRIMARY KEY, mail citext, maps hstore[], note xml);
        CREATE DOMAIN lower AS citext;
        CREATE TABLE history (id int PRIMARY KEY, was plain, who lower);
        CREATE TABLE whole (a int, b text); ALTER TABLE whole REPLICA IDENTITY FULL;
        CREATE TABLE nothing (id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
        CREATE UNLOGGED TABLE sessions (id int PRIMARY KEY);
    """)
    result = ask(upstream)
    found = result["measured"]
    assert found["extensions"] == ["citext", "hstore"]
    assert found["types_without_binary"] == ["hstore[]", "lower", "plain", "xml"]
    assert found["types_without_fdw"] == ["public.plain"]
    assert found["left_out"] == [{"name": "public.sessions", "reason": "unlogged table"}]
    assert [each["name"] for each in found["without_identity"]] == ["public.nothing"]
    assert "the row types of public.plain" in obstacles(result, "fdw")[0]
    assert any("public.whole, whose replica identity is FULL" in words for words in reasons(result, "logical"))
    assert "It doesn't bring public.sessions (unlogged table)." in reasons(result, "dump")
    # Columns that don't travel need nothing, and those that are lacking are told.
    result = ask(upstream, tables=[{"name": "history", "columns": ["id"]}, {"name": "plain", "columns": ["maps"]}])
    found = result["measured"]
    assert (found["extensions"], found["types_without_fdw"], found["left_out"]) == (["hstore"], [], [])
    assert found["without_identity"] == [
        {"name": "public.plain", "reason": "has a column list without id of its replica identity"}
    ]


@pytest.mark.parametrize(
    ("service", "setting"),
    [
        ("rds", "rds.logical_replication"),
        ("cloudsql", "cloudsql.logical_decoding"),
        ("azure", "azure.accepted_password_auth_method"),
    ],
)
def test_a_managed_service_is_known_by_its_settings(narrow: Cluster, service: str, setting: str) -> None:
    narrow.settings[setting] = "off"
    narrow.restart()
    try:
        result = ask(Place(narrow, "small"), bounds=LARGE, restart_allowed=True, native_allowed=True)
    finally:
        del narrow.settings[setting]
        narrow.restart()
    assert result["measured"]["service"] == service
    assert "wal_level is replica" in obstacles(result, "logical")[0] and " does it when you set " in str(result)
    assert "doesn't let PostgresML be installed" in obstacles(result, "native")[0]
    assert result["recommendation"]["strategy"] == "fdw"


def test_slots_and_senders_have_to_do_for_all_replicas(narrow: Cluster) -> None:
    place = Place(narrow, "small")
    result = ask(place, bounds=LARGE, replicas=2)
    assert result["measured"]["service"] == "self-managed" and result["recommendation"]["strategy"] == "fdw"
    assert obstacles(result, "logical") == [
        "wal_level is replica, and changing it takes a restart, which is not allowed (restart_allowed is false)."
    ]
    assert ask(place, bounds=LARGE, replicas=2, restart_allowed=True)["recommendation"]["strategy"] == "logical"
    place.sql("SELECT pg_create_physical_replication_slot('pgml_small_ml_1')")
    try:
        for ours, words in (
            ([], ["Of max_replication_slots, 1 is left and 2 are needed: raising it takes a restart."]),
            (["pgml_small_ml_1", "pgml_small_ml_2"], []),
        ):
            result = ask(place, bounds=LARGE, replicas=2, slots_ours=ours)
            assert obstacles(result, "logical")[1:] == words
            assert (result["measured"]["free_slots"], result["measured"]["free_senders"]) == (1, 2)
    finally:
        place.sql("SELECT pg_drop_replication_slot('pgml_small_ml_1')")


def test_a_standby_counts_nothing_and_publishes_nothing(narrow: Cluster) -> None:
    with narrow.clone() as standby:
        standby.stop()
        (standby.data / "standby.signal").touch()
        standby.start()
        narrow.start()
        result = ask(Place(standby, "small"), bounds=LARGE, sample_seconds=0.1, restart_allowed=True)
    found = result["measured"]
    assert found["standby"] and found["changes_per_hour"] is None and found["wal_bytes_per_second"] == 0
    assert any("A standby doesn't count" in words for words in found["unseen"])
    assert "The server is a standby" in obstacles(result, "logical")[0]
    assert found["bytes"] == ask(Place(narrow, "small"))["measured"]["bytes"] and found["rows"] == 5000


def test_a_database_that_has_crossed_a_bound_gets_a_warning(narrow: Cluster) -> None:
    place = Place(narrow, "small")
    total = ask(place)["measured"]["bytes"]["total"]
    quiet = ask(place, current="dump", name="shop", bounds={"dump": str(int(total / 1.05))})
    assert quiet["recommendation"]["strategy"] == "dump" and "warnings" not in quiet
    assert ask(place, bounds={"dump": str(int(total / 1.05))})["recommendation"]["strategy"] == "fdw"
    loud = ask(place, current="dump", name="shop", bounds={"dump": str(int(total / 1.15))})
    assert loud["recommendation"]["strategy"] == "fdw"
    (words,) = loud["warnings"]
    assert words.startswith('Distribution "shop" comes by dump, and fdw is recommended now: the tables take ')
    assert words.endswith("; to change over, set strategy: fdw for distribution shop and run distribute.yml.")
    lost = ask(place, current="logical", name="shop", bounds=LARGE)
    assert "which can't be used here, so that fdw is the nearest: wal_level is replica" in lost["warnings"][0]


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({}, "Nothing is asked for: name tables or schemas, or set all_tables."),
        ({"tables": ["none"]}, "There is no table public.none in"),
        ({"tables": [{"name": "t", "filter": "x"}]}, "tables: t has unknown key filter"),
        ({"schemas": ["none"]}, "There is no schema none in"),
        ({"tables": ["t"], "exclude_tables": ["t"]}, "Nothing is left to measure: no table is meant."),
        ({"tables": ["t"], "exclude_tables": ["u"]}, "exclude_tables: public.u is not among the tables"),
        ({"tables": ["t"], "bounds": {"dump": "10 gigs"}}, "bounds.dump is '10 gigs', which is no size"),
        ({"tables": ["t"], "bounds": {"dump": "100 GB"}}, "bounds must ascend from dump by fdw to logical, and are 100 GB"),
        ({"tables": ["t"], "bounds": {"dump": 0}}, "bounds must ascend"),
        ({"tables": ["t"], "sample_seconds": -1}, "sample_seconds is -1.0: the least is 0."),
        ({"tables": ["t"], "sample_seconds": "inf"}, "sample_seconds is inf"),
        ({"tables": ["t"], "frequent_changes": 0}, "frequent_changes is 0.0: it is a share of the rows, such as 0.01"),
        ({"tables": ["t"], "frequent_changes": "nan"}, "frequent_changes is nan"),
        ({"tables": ["t"], "replicas": 0}, "replicas is 0: the least is 1."),
    ],
)  # fmt: skip
def test_bad_input_is_refused(narrow: Cluster, params: dict[str, Any], words: str) -> None:
    began = time.monotonic()
    assert words in Place(narrow, "small").refused(MODULE, **params)
    assert time.monotonic() - began < 3
