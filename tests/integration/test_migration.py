# SPDX-License-Identifier: GPL-3.0-or-later
"""A distribution comes another way from now on, and whoever reads the replica meanwhile finds rows in every table."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from psycopg2 import errors

from tests.conftest import Servers
from tests.support import copies, first_copies
from tests.support.copies import Process, ending
from tests.support.pair import Pair, Place, pair_of, wait_for
from tests.support.steps import STEPS, Plan

TABLES = """
    CREATE TYPE mood AS ENUM ('good', 'bad');
    CREATE TABLE users (id int PRIMARY KEY, name text NOT NULL, feels mood, twice int GENERATED ALWAYS AS (id * 2) STORED);
    CREATE TABLE orders (id serial PRIMARY KEY, user_id int NOT NULL REFERENCES users, total int NOT NULL DEFAULT 0);
    CREATE INDEX orders_total ON orders (total);
    CREATE TABLE days (day int, n int, PRIMARY KEY (day, n)) PARTITION BY RANGE (day);
    CREATE TABLE days_low PARTITION OF days FOR VALUES FROM (MINVALUE) TO (50);
    CREATE TABLE days_high PARTITION OF days FOR VALUES FROM (50) TO (MAXVALUE);
"""
ROWS = """
    INSERT INTO users SELECT g, 'user ' || g, (ARRAY['good', 'bad']::mood[])[g % 2 + 1] FROM generate_series(1, 800) AS g;
    INSERT INTO orders (user_id, total) SELECT g % 800 + 1, g FROM generate_series(1, 3000) AS g;
    INSERT INTO days SELECT g, g FROM generate_series(1, 99) AS g;
"""
NAMES = ["users", "orders", "days"]
LEAVES = ["users", "orders", "days_low", "days_high"]
COPY = {"tables": NAMES}
WORK = (
    "INSERT INTO users SELECT max(id) + 1, 'new', 'good' FROM users",
    "INSERT INTO orders (user_id) SELECT id FROM users ORDER BY id DESC LIMIT 3",
    "UPDATE orders SET total = total + 1 WHERE id % 97 = 3",
    "DELETE FROM orders WHERE id = (SELECT min(id) FROM orders)",
    "UPDATE days SET day = 100 - day WHERE day % 10 = 3 AND n < 1000",
    "INSERT INTO days SELECT 50 - g % 2, 1000 + (SELECT max(n) FROM days) + g FROM generate_series(1, 2) AS g",
)


@pytest.fixture(params=[15, *(pytest.param(major, marks=pytest.mark.sampled(0)) for major in (13, 14, 16, 17, 18))])
def shop(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Pair]:
    """A published database, a copy of it by pgml_dump_restore, and rows that the copy doesn't have yet."""
    if request.param > copies.newest_pg_dump()[0]:
        pytest.skip(f"no pg_dump of PostgreSQL {request.param}")
    with copied(servers, request.param) as pair:
        yield pair


@pytest.fixture
def newest_shop(servers: Servers, default_major: int) -> Iterator[Pair]:
    with copied(servers, default_major) as pair:
        yield pair


@contextmanager
def copied(servers: Servers, major: int) -> Iterator[Pair]:
    with pair_of(servers.get(major, "primary"), servers.get(major, "replica")) as pair:
        pair.sql_source(TABLES + ROWS)
        pair.grant()
        pair.publish(*NAMES)
        by_dump(pair)
        pair.sql_target("GRANT SELECT ON users TO PUBLIC; CREATE VIEW rich AS SELECT * FROM orders WHERE total > 100")
        pair.sql_source("; ".join(WORK))
        yield pair


def by_dump(pair: Pair, **params: Any) -> dict[str, Any]:
    return pair.target.ok("pgml_dump_restore", source=pair.endpoint, **{**COPY, **params})


class Reader:
    """Counts the rows of every table, again and again."""

    def __init__(self, place: Place, names: list[str]) -> None:
        self._place = place
        self._names = names
        self.counts: list[list[int]] = []
        self.failure: Exception | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._over.set()
        self._thread.join(30)
        assert self.failure is None, self.failure
        assert len(self.counts) > 10, "it has hardly read"
        assert min(min(each) for each in self.counts) > 0, "a table was empty"

    def _read(self) -> None:
        query = "SELECT " + ", ".join(f"(SELECT count(*) FROM {name})" for name in self._names)
        try:
            with closing(self._place.cluster.connect(self._place.database)) as connection:
                while not self._over.is_set():
                    with connection.cursor() as cursor:
                        cursor.execute(query)
                        self.counts.append(list(cursor.fetchone()))
                    time.sleep(0.005)
        except Exception as error:
            self.failure = error


@contextmanager
def writing(pair: Pair) -> Iterator[None]:
    """Somebody writes to the source, transaction by transaction, without an error."""
    over = threading.Event()
    failures: list[Exception] = []
    done = [0]

    def write() -> None:
        try:
            with closing(pair.source.cluster.connect(pair.source.database)) as connection:
                while not over.is_set():
                    for statement in WORK:
                        with connection.cursor() as cursor:
                            cursor.execute(statement)
                        done[0] += 1
                    time.sleep(0.02)
        except errors.Error as error:
            failures.append(error)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(30)
    assert not failures, failures
    assert done[0] > len(WORK), "hardly anything was written"


def remembered(pair: Pair) -> list[str]:
    """The tables that the target takes for copies by dump."""
    if pair.target.value("SELECT to_regclass('pgml_distributed.copies')") is None:
        return []
    return [name for (name,) in pair.sql_target("SELECT table_name FROM pgml_distributed.copies ORDER BY 1")]


def left(pair: Pair) -> list[str]:
    """The schemas and databases of ours at the target."""
    query = "SELECT nspname FROM pg_namespace WHERE nspname ~ '^pgml_' UNION ALL SELECT datname FROM pg_database"
    return [name for (name,) in pair.sql_target(query + " WHERE datname ~ '^pgml_' ORDER BY 1")]


def assert_streams(pair: Pair) -> None:
    """The subscription brings what the source has, all of it, and nothing is left beside it and its slot."""
    for name in NAMES:
        pair.arrived(name)
    pair.sql_source("; ".join(WORK))
    for name in NAMES:
        pair.arrived(name)
    assert pair.slots() == {pair.name}
    assert left(pair) == []
    assert not pair.subscribe(replace_copies=True)["changed"]


def assert_no_slot(pair: Pair) -> None:
    assert pair.slots() == set()
    assert pair.sql_target("SELECT subname FROM pg_subscription WHERE subname = %s", [pair.name]) == []


# From dump to logical


def test_dump_to_logical(shop: Pair) -> None:
    before = copies.definitions(shop.target, "--no-subscriptions")
    with writing(shop), Reader(shop.target, [*LEAVES, "rich"]) as reader:
        predicted = shop.target.ok("pgml_subscription", check=True, **shop.subscription(replace_copies=True))
        result = shop.subscribe(replace_copies=True)
    assert result["changes"] == predicted["changes"]
    assert result["changes"][1:] == [
        f"Replace the copy of public.{name} by what is published" for name in sorted(LEAVES)
    ]
    assert result["initial_copy"]["method"] == "snapshot"
    assert {item["name"] for item in result["initial_copy"]["tables"]} == {f"public.{name}" for name in LEAVES}
    assert len({tuple(each) for each in reader.counts}) > 1
    assert_streams(shop)
    assert copies.changed_lines(before, copies.definitions(shop.target, "--no-subscriptions")) == ""
    shop.unsubscribe()
    assert_no_slot(shop)


STRIDES = {"it goes on": 29, "it is removed": 31}
"""Of some hundred steps these are tried; 1 tries all, which takes some minutes."""


@pytest.mark.slow
@pytest.mark.parametrize("then", STRIDES)
@pytest.mark.sampled(1)
def test_dump_to_logical_killed_after_a_step(newest_shop: Pair, tmp_path: Path, then: str) -> None:
    shop = newest_shop
    step = 1
    with writing(shop), Reader(shop.target, LEAVES):
        while True:
            with first_copies.run(shop, tmp_path, Plan("", kill=step), replace_copies=True) as process:
                process.wait(60)
                steps = (process.notes / STEPS).read_text(encoding="utf-8").splitlines()
            if then == "it is removed":
                shop.unsubscribe(source=shop.endpoint)  # what is registered has no password
                assert_no_slot(shop)
            else:
                shop.subscribe(replace_copies=True)
                assert shop.slots() == {shop.name}
                assert remembered(shop) == []
                shop.unsubscribe()
                assert_no_slot(shop)
            subscribed = then == "it goes on" or any(first_copies.SUBSCRIBED in each for each in steps)
            assert bool(remembered(shop)) != subscribed, steps[-1]
            assert left(shop) == ["pgml_distributed"] * (not subscribed), steps[-1]
            if len(steps) < step:
                break
            if subscribed:
                by_dump(shop)
            step += STRIDES[then]
    assert step > 70
    by_dump(shop)
    shop.subscribe(replace_copies=True)
    assert_streams(shop)
    shop.unsubscribe()


@pytest.mark.sampled(0)
def test_a_killed_replacement_that_none_follows_leaves_no_slot(newest_shop: Pair, tmp_path: Path) -> None:
    shop = newest_shop
    before = copies.contents(shop.target)
    plan = Plan("", kill="done: rows", constants={"transfer.keepers.GRACE_SECONDS": 1})
    with first_copies.run(shop, tmp_path, plan, replace_copies=True) as process:
        process.wait(60)
        assert shop.slots() == {shop.name}
        wait_for(lambda: not shop.slots() and not first_copies.keeping(shop), 20, "the slot to go")
        staged = {key for key in copies.contents(shop.target) if key[0].startswith("pgml_")}
        assert {key: found for key, found in copies.contents(shop.target).items() if key not in staged} == before
    shop.subscribe(replace_copies=True)
    assert_streams(shop)
    shop.unsubscribe()


def test_no_dump_comes_between_the_rows_and_their_subscription(newest_shop: Pair, tmp_path: Path) -> None:
    shop = newest_shop
    with first_copies.run(
        shop, tmp_path, Plan("", kill=first_copies.ALL_ROWS_ARE_THERE), replace_copies=True
    ) as process:
        process.wait(60)
    assert shop.slots() == {shop.name}
    shop.sql_source("; ".join(WORK))
    message = shop.target.refused("pgml_dump_restore", source=shop.endpoint, refresh="always", **COPY)
    assert message.startswith(f"The first copy of subscription {shop.name} in database ")
    with Reader(shop.target, LEAVES):
        result = shop.subscribe(replace_copies=True)
    assert "died" in result["initial_copy"]["reason"]
    assert_streams(shop)
    shop.unsubscribe()


def test_copies_are_replaced_only_when_asked_and_rows_of_others_never(newest_shop: Pair) -> None:
    shop = newest_shop
    before = copies.contents(shop.target)
    assert "that pgml_dump_restore has copied: set replace_copies to true" in shop.not_subscribed()
    message = shop.not_subscribed(replace_copies=True, initial_copy="native")
    assert message.endswith("only initial_copy=snapshot does, and it is native.")
    shop.both("CREATE TABLE loose (id int PRIMARY KEY)")
    shop.sql_target("INSERT INTO loose VALUES (1)")
    shop.publish(*NAMES, "loose")
    assert "Table public.loose holds rows in" in shop.not_subscribed(replace_copies=True)
    assert copies.contents(shop.target) == {**before, ("public", "loose"): copies.rows(shop.target, "public", "loose")}
    # A table that somebody has made anew is nobody's copy, whatever its name.
    shop.sql_target("TRUNCATE loose; ALTER TABLE orders RENAME TO mine; CREATE TABLE orders AS SELECT * FROM mine")
    assert "Table public.orders holds rows in" in shop.not_subscribed(replace_copies=True)


def test_what_the_target_alone_has_is_not_lost(newest_shop: Pair) -> None:
    shop = newest_shop
    shop.sql_target("CREATE INDEX mine ON users (name)")
    message = shop.not_subscribed(replace_copies=True)
    assert (
        message
        == "The target alone has index mine of public.users, and would lose it with the old table: drop it there."
    )
    shop.sql_target("DROP INDEX mine; CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM users")
    assert "depends on tables that are to be exchanged" in shop.not_subscribed(replace_copies=True)


def test_empty_and_new_tables_come_with_the_others(newest_shop: Pair) -> None:
    shop = newest_shop
    shop.both("CREATE TABLE more (id int PRIMARY KEY); CREATE TABLE none (id int PRIMARY KEY)")
    shop.sql_source("INSERT INTO more SELECT generate_series(1, 10)")
    shop.publish(*NAMES, "more", "none")
    with Reader(shop.target, LEAVES):
        shop.subscribe(replace_copies=True)
    assert_streams(shop)
    shop.arrived("more")
    assert shop.target.value("SELECT count(*) FROM none") == 0
    shop.unsubscribe()


def test_column_lists_and_row_filters_are_the_publications(newest_shop: Pair) -> None:
    shop = newest_shop
    shop.publish({"name": "users", "columns": ["id", "name"]}, {"name": "orders", "where": "id % 2 = 0"}, "days")
    with writing(shop), Reader(shop.target, LEAVES):
        shop.subscribe(replace_copies=True)
    shop.arrived("(SELECT id, name FROM users)")
    shop.arrived("days")
    assert shop.target.value("SELECT count(*) FROM orders WHERE id % 2 = 1") == 0
    query = "SELECT count(*), sum(total) FROM orders WHERE id % 2 = 0"
    assert shop.sql_source(query) == shop.sql_target(query)
    assert len(shop.sql_target("SELECT * FROM users LIMIT 1")[0]) == 2
    shop.unsubscribe()


@pytest.mark.parametrize("root", [True, False])
def test_partitions_are_replaced_with_their_table(newest_shop: Pair, root: bool) -> None:
    shop = newest_shop
    shop.publish("users", "orders", {"name": "days", "where": "n < 90"} if root else "days", via_partition_root=root)
    if not root:
        shop.sql_source("ALTER PUBLICATION pub SET TABLE users, orders, days_low, days_high WHERE (n < 90)")
    with Reader(shop.target, LEAVES):
        shop.subscribe(replace_copies=True)
    where = "n < 90" if root else "n < 90 OR day < 50"
    shop.sql_source("; ".join(WORK))
    shop.arrived("users")
    query = f"SELECT d::text FROM days AS d WHERE {where} ORDER BY 1"
    wait_for(lambda: shop.sql_source(query) == shop.sql_target("SELECT d::text FROM days AS d ORDER BY 1"))
    shop.unsubscribe()


def test_some_partitions_alone_are_not_replaced(newest_shop: Pair) -> None:
    shop = newest_shop
    shop.sql_source("ALTER PUBLICATION pub SET TABLE users, days_low")
    message = shop.not_subscribed(replace_copies=True)
    assert message.startswith("public.days_high is not published, and a partitioned table is replaced with all of its ")
    shop.sql_source(
        "ALTER TABLE days ADD more int; ALTER PUBLICATION pub SET TABLE days_low (day, n), days_high (day, n)"
    )
    message = shop.not_subscribed(replace_copies=True)
    assert message.startswith("Partition public.days_")
    assert " is published with some of its columns, and the whole of its table is to be replaced" in message


# From logical to dump


@pytest.fixture
def streamed(shop: Pair) -> Pair:
    """The same, streamed by now, with a table that never comes by dump."""
    shop.both("CREATE TABLE more (id int PRIMARY KEY)")
    shop.publish(*NAMES, "more")
    shop.subscribe(replace_copies=True)
    return shop


def applied(pair: Pair) -> None:
    """Wait until the subscription has got what is in the source's WAL now."""
    at = pair.source.value("SELECT pg_current_wal_lsn()")
    passed = "SELECT confirmed_flush_lsn >= %s FROM pg_replication_slots WHERE slot_name = %s"
    wait_for(lambda: pair.source.value(passed, [at, pair.name]), 30, "the subscription to follow")


def test_logical_to_dump(streamed: Pair) -> None:
    pair = streamed
    message = pair.target.refused("pgml_dump_restore", source=pair.endpoint, **COPY)
    assert message.startswith(
        f"On the target subscription {pair.name} depends on tables that are to be exchanged: drop it"
    )
    with Reader(pair.target, [*LEAVES, "rich"]):
        with writing(pair):
            copied_rows = by_dump(pair, replace_subscribed=True)["tables"]
            at_once = copies.contents(pair.target)
            pair.sql_source("TRUNCATE days; INSERT INTO days SELECT g, g FROM generate_series(1, 99) AS g")
            applied(pair)
        pair.sql_source("TRUNCATE orders, users; " + ROWS.split("INSERT INTO days")[0])
        applied(pair)
        pair.sql_source("INSERT INTO more VALUES (1)")
        pair.arrived("more")
        brought = {tuple(item["name"].split(".")): item["rows"] for item in copied_rows}
        there = {key: found for key, found in copies.contents(pair.target).items() if key in brought}
        assert there == {key: at_once[key] for key in brought}, "the subscription has written to the new tables"
        assert {key: number for key, (number, _hash) in there.items()} == brought
        assert remembered(pair) == sorted([*LEAVES, "days"])
        pair.unsubscribe()
        assert_no_slot(pair)
        by_dump(pair)
    assert copies.differences(pair) == {}
    copies.wait_until_left(pair.source)
    by_dump(pair)
    assert not by_dump(pair)["changed"]


def test_a_subscription_that_copies_keeps_its_tables(newest_shop: Pair) -> None:
    pair = newest_shop
    pair.sql_target("TRUNCATE users, orders, days")
    pair.sql_target("ALTER TABLE users ADD CONSTRAINT never CHECK (id < 0) NOT VALID")
    pair.target.run("pgml_subscription", **pair.subscription(initial_copy="native", wait=False))
    pair.sql_target("ALTER TABLE users DROP CONSTRAINT never")
    pair.sql_target(f"ALTER SUBSCRIPTION {pair.name} DISABLE")
    unfinished = "SELECT count(*) FROM pg_subscription_rel WHERE srsubstate NOT IN ('r', 's')"
    assert pair.target.value(unfinished)
    # Not by refused(): the copy goes on meanwhile, and the catalogs with it.
    result = pair.target.run("pgml_dump_restore", source=pair.endpoint, replace_subscribed=True, **COPY)
    assert result.get("failed") and result["msg"].startswith(f"Subscription {pair.name} still copies public.")
    pair.unsubscribe()


OURS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name ~ '^postgresml'"


@pytest.mark.sampled(0)
def test_logical_to_dump_killed_after_a_step(newest_shop: Pair, tmp_path: Path) -> None:
    """Until the exchange the subscription goes on as before, and the next run does what this one has not done."""
    pair = newest_shop
    pair.subscribe(replace_copies=True)
    # Those that were exchanged are in another schema until they are dropped.
    tables = (
        "SELECT count(*) FROM pg_subscription_rel AS r JOIN pg_subscription AS s ON s.oid = srsubid"
        " JOIN pg_class AS c ON c.oid = srrelid WHERE subname = %s AND relnamespace = 'public'::regnamespace"
    )
    numbers = itertools.count(1, 19)
    with Reader(pair.target, LEAVES):
        while pair.target.value(tables, [pair.name]):
            directory = tmp_path / str(step := next(numbers))
            directory.mkdir()
            options = copies.options(pair, source=pair.endpoint, replace_subscribed=True, jobs=2, **COPY)
            plan = Plan(str(directory), kill=step)
            with ending(Process(pair.target, directory / "tmp", options, copies.MODULE, plan)) as process:
                process.wait(60)
            wait_for(lambda: not pair.target.value(OURS), 20, "what the run has sent to end")
            if pair.target.value(tables, [pair.name]):
                pair.sql_source("; ".join(WORK))
                pair.arrived("orders")
        assert step > 38, "it was hardly killed"
        by_dump(pair, replace_subscribed=True)
        pair.unsubscribe()
        assert_no_slot(pair)
    by_dump(pair)
    assert copies.differences(pair) == {}
    assert left(pair) == ["pgml_distributed"]


# From and to foreign tables


def by_fdw(pair: Pair, **params: Any) -> dict[str, Any]:
    imports = [{"remote_schema": "public"}]
    return pair.target.ok("pgml_fdw", **{"server": "shop", "source": pair.endpoint, "imports": imports, **params})


WIRED: dict[str, tuple[Callable[[Pair], Any], Callable[[Pair], Any]]] = {
    "dump": (by_dump, lambda pair: pair.target.ok("pgml_dump_restore", state="absent", **COPY)),
    "fdw": (by_fdw, lambda pair: pair.target.ok("pgml_fdw", server="shop", state="absent")),
    "logical": (lambda pair: pair.subscribe(replace_copies=True), lambda pair: pair.unsubscribe()),
}


@pytest.mark.parametrize(
    ("old", "new"),
    [("fdw", "dump"), ("fdw", "logical"), ("dump", "fdw"), ("logical", "fdw")],
    ids=["fdw-dump", "fdw-logical", "dump-fdw", "logical-fdw"],
)
def test_foreign_tables_are_beside_the_others(newest_shop: Pair, old: str, new: str) -> None:
    """Removing what was there before leaves what is new alone, and what is remembered goes with the last of them."""
    pair = newest_shop
    pair.target.ok("pgml_dump_restore", state="absent", **COPY)
    pair.sql_target("DROP VIEW rich; TRUNCATE users, orders, days; CREATE EXTENSION postgres_fdw")
    for strategy in (old, new):
        WIRED[strategy][0](pair)
        pair.target.ok("pgml_distribution", name="shop", strategy=strategy, upstream="primary")
    names = [f"shop_public.{name}" for name in NAMES] if new == "fdw" else NAMES
    with Reader(pair.target, names):
        WIRED[old][1](pair)
        time.sleep(0.2)
    pair.sql_source("; ".join(WORK))
    if new == "dump":
        assert by_dump(pair)["changed"]
    for theirs, ours in zip(NAMES, names):
        query = "SELECT t::text FROM {} AS t ORDER BY 1"
        wait_for(lambda q=query, t=theirs, o=ours: pair.sql_source(q.format(t)) == pair.sql_target(q.format(o)))
    assert (old == "logical") <= (pair.slots() == set())
    assert pair.sql_target("SELECT strategy FROM pgml_distributed.distributions") == [(new,)]
    WIRED[new][1](pair)
    assert left(pair) == ["pgml_distributed"]
    pair.target.ok("pgml_distribution", name="shop", state="absent")
    assert left(pair) == []
    assert_no_slot(pair)


def test_a_snapshot_does_not_take_the_place_of_a_copy(newest_shop: Pair) -> None:
    pair = newest_shop
    pair.sql_target("CREATE EXTENSION postgres_fdw")
    snapshot = [{"relation": "shop_public.orders", "into": "public.orders"}]
    imports = [{"remote_schema": "public"}]
    options = {"server": "shop", "source": pair.endpoint, "imports": imports, "snapshots": snapshot}
    assert "orders" in (message := pair.target.refused("pgml_fdw", **options)), message
