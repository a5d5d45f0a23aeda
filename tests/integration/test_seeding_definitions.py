# SPDX-License-Identifier: GPL-3.0-or-later
"""First copies under a slot's snapshot take indexes and constraints away: all of them come back, also when it fails."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import chunks

from tests.support.pair import Pair, Stopwatch
from tests.support.seeding import (
    assert_equal,
    assert_streams,
    definitions,
    not_seeded,
    publish_all,
    residue,
    rows,
    seed,
)

USERS = "CREATE TABLE users (id int PRIMARY KEY, name text); CREATE TABLE orders (id int PRIMARY KEY, user_id int, shop int)"
ROWS = """
    INSERT INTO users SELECT g, 'user ' || g FROM generate_series(1, 100) AS g;
    INSERT INTO orders SELECT g, 1 + g % 100, g % 10 FROM generate_series(1, 500) AS g;
"""


@pytest.fixture
def shop(pair: Pair) -> Pair:
    pair.both(USERS)
    pair.sql_source(ROWS)
    pair.publish("users", "orders")
    return pair


@contextlib.contextmanager
def tablespace(pair: Pair) -> Iterator[str]:
    name = f"space_{pair.name}"
    pair.sql_target("ALTER DATABASE " + pair.target.database + " SET allow_in_place_tablespaces = on")
    pair.sql_target(f"CREATE TABLESPACE {name} LOCATION ''")
    try:
        yield name
    finally:
        pair.sql_target("DROP TABLE users, orders CASCADE")
        pair.sql_target(f"DROP TABLESPACE {name}")


def test_indexes_in_a_tablespace_stay(shop: Pair) -> None:
    with tablespace(shop) as space:
        shop.sql_target(
            f"CREATE INDEX users_far ON users (name) TABLESPACE {space}; CREATE INDEX users_near ON users (name)"
        )
        seed(shop)
        assert_equal(shop, "SELECT * FROM users")
        shop.unsubscribe()


def test_indexes_that_something_depends_on_stay(shop: Pair) -> None:
    shop.sql_target(
        "CREATE VIEW names AS SELECT u.id, u.name, count(o) FROM users AS u"
        " LEFT JOIN orders AS o ON o.user_id = u.id GROUP BY u.id;"
        " CREATE TABLE notes (user_id int REFERENCES users, t text); CREATE INDEX users_name ON users (name)"
    )
    seed(shop)
    assert_equal(shop, "SELECT * FROM users")
    assert len(rows(shop.target, "SELECT * FROM names")) == 100
    assert_streams(shop, "DELETE FROM users WHERE id = 7", "SELECT * FROM users")


def test_invalid_indexes_stay_invalid(shop: Pair) -> None:
    shop.sql_target("INSERT INTO users VALUES (1, 'twice'), (2, 'twice')")
    with contextlib.suppress(Exception):
        shop.sql_target("CREATE UNIQUE INDEX CONCURRENTLY users_once ON users (name)")
    shop.sql_target("DELETE FROM users")
    assert shop.sql_target("SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid") == [("users_once",)]
    seed(shop)
    assert_equal(shop, "SELECT * FROM users")


def indexes(pair: Pair, table: str) -> list[tuple[int, str]]:
    query = "SELECT indexrelid::int8, indexrelid::regclass::text FROM pg_index WHERE indrelid = %s::regclass ORDER BY 1"
    return pair.sql_target(query, [table])


def test_indexes_of_extensions_stay(shop: Pair) -> None:
    """pg_dump doesn't tell what they are, because the extension makes them."""
    shop.sql_target("CREATE INDEX users_name ON users (name); ALTER EXTENSION plpgsql ADD TABLE users")
    members, others = indexes(shop, "users"), indexes(shop, "orders")
    assert len(members) == 2 and len(others) == 1
    assert "warnings" not in seed(shop)
    assert indexes(shop, "users") == members
    assert indexes(shop, "orders") != others, "none was taken away"
    for table in ("users", "orders"):
        assert_equal(shop, f"SELECT * FROM {table}")
    assert_streams(shop, "DELETE FROM users WHERE id = 7", "SELECT * FROM users")


UNCHECKED = """
    CREATE TABLE late_orders (PRIMARY KEY (id)) INHERITS (orders);
    CREATE TABLE lost_orders (PRIMARY KEY (id)) INHERITS (late_orders);
    CREATE TABLE days (id int PRIMARY KEY) PARTITION BY RANGE (id);
    CREATE TABLE days_low PARTITION OF days FOR VALUES FROM (0) TO (50);
    CREATE TABLE days_high PARTITION OF days DEFAULT;
"""
NOT_VALID = """
    ALTER TABLE orders ADD CONSTRAINT in_shop CHECK (shop > 0) NOT VALID;
    ALTER TABLE orders ADD CONSTRAINT alone CHECK (id > 1) NO INHERIT NOT VALID;
    ALTER TABLE late_orders ADD CONSTRAINT late CHECK (id < 1000) NOT VALID;
    ALTER TABLE days ADD CONSTRAINT odd CHECK (id % 2 = 1) NOT VALID;
    COMMENT ON CONSTRAINT in_shop ON orders IS 'some have none';
"""
VIOLATING = """
    INSERT INTO late_orders VALUES (1001, 1, 0); INSERT INTO lost_orders VALUES (1002, 1, 0);
    INSERT INTO days SELECT generate_series(1, 100);
"""


def test_checks_that_are_not_valid_stay_so_and_are_inherited_once(shop: Pair) -> None:
    shop.both(UNCHECKED)
    shop.sql_source(VIOLATING)
    shop.sql_target(NOT_VALID)
    shop.publish("users", "orders", "late_orders", "lost_orders", "days")
    checks = "SELECT convalidated, count(*) FROM pg_constraint WHERE contype = 'c' AND conrelid <> 0 AND oid >= 16384 GROUP BY 1"
    assert shop.sql_target(checks) == [(False, 9)]
    assert "warnings" not in seed(shop)
    assert shop.sql_target(checks) == [(False, 9)]
    for table in ("ONLY orders", "ONLY late_orders", "ONLY lost_orders", "days"):
        assert_equal(shop, f"SELECT * FROM {table}")


def test_a_check_that_both_a_table_and_its_parent_have_stays(shop: Pair) -> None:
    """It stays NOT VALID, belongs to both, and is inherited once."""
    shop.both(UNCHECKED)
    shop.sql_target("ALTER TABLE late_orders ADD CONSTRAINT in_shop CHECK (shop < 10) NOT VALID")
    shop.sql_target("ALTER TABLE orders ADD CONSTRAINT in_shop CHECK (shop < 10) NOT VALID")
    shop.sql_source("INSERT INTO late_orders VALUES (1001, 1, 0)")
    shop.publish("users", "orders", "late_orders", "lost_orders", "days")
    assert "warnings" not in seed(shop)
    for table in ("ONLY orders", "ONLY late_orders"):
        assert_equal(shop, f"SELECT * FROM {table}")


REFERENCES = """
    CREATE TABLE places (id int, city int, name text, PRIMARY KEY (id, city)); CREATE UNIQUE INDEX places_name ON places (name);
    CREATE TABLE staff (id int PRIMARY KEY, boss int CONSTRAINT bossed REFERENCES staff DEFERRABLE INITIALLY DEFERRED,
        place int, city int, FOREIGN KEY (place, city) REFERENCES places MATCH FULL ON DELETE SET NULL);
    ALTER TABLE places ADD keeper int, ADD CONSTRAINT kept FOREIGN KEY (keeper) REFERENCES staff ON UPDATE CASCADE;
    CREATE TABLE signs (place text REFERENCES places (name), staff int);
    ALTER TABLE signs ADD CONSTRAINT "it's old" FOREIGN KEY (staff) REFERENCES staff NOT VALID;
    COMMENT ON CONSTRAINT "it's old" ON signs IS 'It''s odd';
"""
REFERRING = """
    INSERT INTO places SELECT g, 1, 'place ' || g FROM generate_series(1, 50) AS g;
    INSERT INTO staff SELECT g, nullif(g - 1, 0), g, 1 FROM generate_series(1, 50) AS g;
    UPDATE places SET keeper = id; INSERT INTO signs SELECT name, id FROM places;
"""


def test_foreign_keys_come_back_in_every_direction(pair: Pair) -> None:
    """To itself, in a circle, deferrable, to a unique index, and not valid before already."""
    pair.both(REFERENCES)
    pair.sql_source(REFERRING)
    publish_all(pair)
    assert "warnings" not in seed(pair)
    for table in ("places", "staff", "signs"):
        assert_equal(pair, f"SELECT * FROM {table}")
    assert_streams(
        pair, "INSERT INTO staff VALUES (51, 50, 7, 1); UPDATE places SET keeper = 51", "SELECT * FROM places"
    )


def test_comments_of_foreign_keys_come_back_to_tables_without_an_index(shop: Pair) -> None:
    shop.sql_target(
        'ALTER TABLE orders DROP CONSTRAINT orders_pkey, ADD CONSTRAINT "who\'s" FOREIGN KEY (user_id) REFERENCES users;'
        " COMMENT ON CONSTRAINT \"who's\" ON orders IS 'it''s a \"comment\"'"
    )
    shop.publish("orders")
    shop.sql_target("INSERT INTO users SELECT g FROM generate_series(1, 100) AS g")
    seed(shop)
    assert_equal(shop, "SELECT * FROM orders")


OUTSIDE = """
    CREATE TABLE shops (id int PRIMARY KEY); INSERT INTO shops SELECT generate_series({first}, 9);
    ALTER TABLE orders ADD CONSTRAINT in_shop FOREIGN KEY (shop) REFERENCES shops ON DELETE CASCADE;
    CREATE TABLE notes (id int, user_id int REFERENCES users); INSERT INTO notes VALUES (1, NULL);
"""


def test_foreign_keys_from_and_to_tables_outside(shop: Pair) -> None:
    shop.sql_target(OUTSIDE.format(first=0))
    assert "warnings" not in seed(shop)
    assert_equal(shop, "SELECT * FROM orders")
    assert shop.sql_target("SELECT count(*) FROM shops") == [(10,)]
    assert shop.sql_target("SELECT count(*) FROM notes") == [(1,)]


def test_foreign_keys_that_the_rows_violate_are_left_not_valid(shop: Pair) -> None:
    shop.sql_target(OUTSIDE.format(first=1))
    before = definitions(shop.target)
    result = shop.subscribe()
    (warning,) = result["warnings"]
    for words in ("A foreign key of public.orders was left NOT VALID", 'constraint "in_shop"'):
        assert words in warning
    changed = set(before) ^ set(definitions(shop.target))
    assert changed and all("in_shop" in line for line in changed)
    assert_equal(shop, "SELECT * FROM orders")
    assert residue(shop) == []
    again = shop.subscribe()
    assert not again["changed"] and "warnings" not in again


def test_a_violated_unique_index_undoes_everything(shop: Pair) -> None:
    shop.sql_target("CREATE UNIQUE INDEX orders_once ON orders (user_id); CREATE INDEX users_name ON users (name)")
    message = not_seeded(shop)
    assert "orders_once" in message and "duplicate" in message
    assert shop.sql_target("SELECT count(*) FROM users") == shop.sql_target("SELECT count(*) FROM orders") == [(0,)]
    shop.sql_target("DROP INDEX orders_once")
    seed(shop)
    assert_equal(shop, "SELECT * FROM orders")


def test_a_violated_check_undoes_everything(shop: Pair) -> None:
    shop.sql_target("ALTER TABLE orders ADD CHECK (id < 400); CREATE TABLE notes (user_id int REFERENCES users)")
    message = not_seeded(shop)
    assert "public.orders could not be copied" in message and "orders_id_check" in message
    assert shop.sql_target("SELECT count(*) FROM users") == shop.sql_target("SELECT count(*) FROM orders") == [(0,)]


def test_a_table_that_somebody_holds_undoes_everything(shop: Pair) -> None:
    with shop.target.transaction("LOCK TABLE orders IN SHARE MODE"):
        message = not_seeded(shop)
    assert "No lock within 3 s" in message and "orders" in message


TRIGGERS = """
    CREATE TABLE log (what text);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO public.log VALUES (concat_ws(' ', TG_NAME, TG_OP)); RETURN NEW; END $$;
    CREATE TRIGGER t_ordinary BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION note();
    CREATE TRIGGER t_always BEFORE INSERT ON users FOR EACH ROW WHEN (NEW.id > 95) EXECUTE FUNCTION note();
    CREATE TRIGGER t_replica AFTER INSERT ON users FOR EACH ROW WHEN (NEW.id > 97) EXECUTE FUNCTION note();
    CREATE TRIGGER t_emptied BEFORE TRUNCATE ON users EXECUTE FUNCTION note();
    CREATE TRIGGER t_deleted BEFORE DELETE ON users EXECUTE FUNCTION note();
    ALTER TABLE users ENABLE ALWAYS TRIGGER t_always, ENABLE REPLICA TRIGGER t_replica, ENABLE ALWAYS TRIGGER t_emptied,
        ENABLE REPLICA TRIGGER t_deleted;
"""


@pytest.mark.parametrize("way", ["snapshot", "native"])
def test_triggers_fire_that_fire_on_replicas(shop: Pair, way: str) -> None:
    shop.sql_target(TRIGGERS)
    shop.subscribe(initial_copy=way)
    assert_equal(shop, "SELECT * FROM users")
    fired = shop.sql_target("SELECT what, count(*) FROM log GROUP BY 1 ORDER BY 1")
    assert fired == [("t_always INSERT", 5), ("t_replica INSERT", 3)]


def test_row_security_of_the_target_is_bypassed_by_a_superuser(shop: Pair) -> None:
    shop.sql_target(
        "ALTER TABLE users ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY; CREATE POLICY none ON users WITH CHECK (false)"
    )
    seed(shop)
    assert_equal(shop, "SELECT * FROM users")


def assert_frozen(pair: Pair, *tables: str) -> None:
    """All rows are, and the planner knows of them."""
    pair.sql_target("CREATE EXTENSION IF NOT EXISTS pageinspect")
    for table in tables:
        thawed = pair.target.value(
            "SELECT count(*) FROM generate_series(0, pg_relation_size(%s) / 8192 - 1) AS page,"
            " heap_page_items(get_raw_page(%s, page::int)) AS t WHERE t.t_infomask & 768 <> 768",
            [table, table],
        )
        assert thawed == 0
        assert pair.sql_target("SELECT reltuples > 0 FROM pg_class WHERE relname = %s", [table]) == [(True,)]


LONG = """
    INSERT INTO users SELECT g, repeat('x', 200) FROM generate_series(101, 5000) AS g;
    DELETE FROM users WHERE id BETWEEN 1000 AND 2000;
"""


@pytest.mark.parametrize("jobs", [1, 4])
def test_tables_come_in_chunks(shop: Pair, monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    """In one or in several, no row comes twice or is left out."""
    monkeypatch.setattr(chunks, "SMALLEST_SPLIT", 8192)
    shop.sql_source(LONG)
    shop.sql_target("CREATE INDEX users_name ON users (name)")
    shop.publish({"name": "users", "where": "id % 2 = 0"}, "orders")
    seen = len(shop.source.cluster.log())
    with Stopwatch() as watch:
        result = seed(shop, jobs=jobs)
    assert watch.seconds - result["initial_copy"]["seconds"] < 8, "what had been written before was not flushed"
    pieces = shop.source.cluster.log()[seen:].count("ctid >=")
    assert pieces == 0 if jobs == 1 else pieces >= 3
    assert_equal(shop, "SELECT * FROM users WHERE id % 2 = 0", "SELECT * FROM users")
    assert_equal(shop, "SELECT * FROM orders")
    assert_frozen(shop, "users", "orders")
    assert_streams(
        shop, "DELETE FROM users WHERE id > 3000", "SELECT * FROM users WHERE id % 2 = 0", "SELECT * FROM users"
    )


SLEEPY = """
    CREATE FUNCTION sleep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1); RETURN NEW; END $$;
    CREATE TRIGGER sleepy BEFORE INSERT ON orders FOR EACH ROW WHEN (NEW.id = 1) EXECUTE FUNCTION sleep();
    ALTER TABLE orders ENABLE ALWAYS TRIGGER sleepy;
"""


def test_tables_in_chunks_are_frozen_although_others_came_longer(shop: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "SMALLEST_SPLIT", 8192)
    shop.sql_source(LONG)
    shop.sql_target(SLEEPY)
    seed(shop, jobs=8)
    assert_equal(shop, "SELECT * FROM users")
    assert_frozen(shop, "users", "orders")


def test_hundreds_of_tables_take_queries_that_do_not_grow(pair: Pair) -> None:
    pair.both(
        "DO $$ BEGIN FOR i IN 1..300 LOOP EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY, n int REFERENCES t%s)',"
        " i, greatest(1, i - 1)); EXECUTE format('CREATE INDEX ON t%s (n)', i); END LOOP; END $$"
    )
    pair.sql_source(
        "DO $$ BEGIN FOR i IN 1..300 LOOP EXECUTE format('INSERT INTO t%s VALUES (1, 1), (2, 2)', i); END LOOP; END $$"
    )
    publish_all(pair)
    seen = len(pair.source.cluster.log())
    with Stopwatch() as watch:
        result = seed(pair)
    assert result["initial_copy"]["rows"] == 600 and watch.seconds < 60
    assert_equal(pair, "SELECT * FROM t300")
    statements = pair.source.cluster.log()[seen:].count("LOG:  statement:")
    assert 300 <= statements < 450, "there is more than one for each table"


def test_two_subscriptions_of_one_database(shop: Pair) -> None:
    shop.publish("users")
    shop.publish("orders", name="second")
    other = {"name": shop.name + "_b", "publications": ["second"]}
    shop.target.converge("pgml_subscription", **shop.subscription(**other))
    seed(shop)
    for table in ("users", "orders"):
        assert_equal(shop, f"SELECT * FROM {table}")
    shop.unsubscribe()
    assert shop.slots() == {other["name"]}
    shop.target.ok("pgml_subscription", name=other["name"], state="absent")
    assert shop.slots() == set() and residue(shop) == []
