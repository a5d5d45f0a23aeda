# SPDX-License-Identifier: GPL-3.0-or-later
"""First copies under a slot's snapshot: every row comes once, the changes after it stream, and nothing is left of the copy."""

from __future__ import annotations

import pytest

from tests.support import copies
from tests.support.pair import Pair, encoded, wait_for
from tests.support.seeding import (
    assert_equal,
    assert_streams,
    mirror,
    not_seeded,
    publish_all,
    residue,
    rows,
    seed,
    unchanged_definitions,
)

SHOP = """
    CREATE TABLE users (id bigint PRIMARY KEY, name text NOT NULL, seen timestamptz DEFAULT now());
    CREATE TABLE orders (id int PRIMARY KEY, user_id bigint REFERENCES users, total numeric(10, 2), note text);
    CREATE INDEX orders_total ON orders (total) WHERE note IS NOT NULL;
"""
ROWS = """
    INSERT INTO users SELECT g, 'user ' || g FROM generate_series(1, 200) AS g;
    INSERT INTO orders SELECT g, 1 + g % 200, g / 7.0, nullif(repeat('n', g % 5), '') FROM generate_series(1, 1000) AS g;
"""


@pytest.fixture
def shop(pair: Pair) -> Pair:
    pair.both(SHOP)
    pair.sql_source(ROWS)
    pair.publish("users", "orders")
    return pair


def test_the_zoo_arrives_with_its_definitions(pair: Pair) -> None:
    pair.source.cluster.psql(copies.ZOO, pair.source.database)
    mirror(pair)
    publish_all(pair)
    pair.sql_source(f"ALTER ROLE {pair.distributor} BYPASSRLS")
    result = seed(pair)
    here = copies.contents(pair.source)
    assert copies.contents(pair.target) == here
    assert result["initial_copy"]["rows"] == sum(count for count, _hash in here.values())
    changes = (
        "INSERT INTO zoo.staff SELECT g FROM generate_series(101, 120) AS g; DELETE FROM zoo.indexed WHERE n = 7;"
        " UPDATE zoo.types SET c_word = 'new' WHERE id < 9; INSERT INTO zoo.keyless VALUES (7, 'new'); TRUNCATE zoo.fish CASCADE"
    )
    pair.sql_source(changes)
    here = copies.contents(pair.source)
    wait_for(lambda: copies.contents(pair.target) == here, what="changes of the zoo to arrive")
    assert pair.unsubscribe()["changed"]
    assert pair.slots() == set() and residue(pair) == []


def test_the_shop_arrives_and_streams(pair: Pair) -> None:
    copies.load_shop(pair, 0.05)
    mirror(pair)
    publish_all(pair)
    seed(pair, jobs=2)
    assert copies.contents(pair.target) == copies.contents(pair.source)
    changes = 'DELETE FROM payments WHERE order_id % 7 = 0; UPDATE "Order Lines" SET quantity = quantity + 1;'
    pair.sql_source(changes + " UPDATE page_views SET viewed_at = viewed_at + interval '31 days' WHERE view_id % 9 = 0")
    here = copies.contents(pair.source)
    wait_for(lambda: copies.contents(pair.target) == here, what="changes of the shop to arrive")


def test_a_copy_is_predicted_and_repeated_without_a_change(shop: Pair) -> None:
    result = shop.target.converge("pgml_subscription", **shop.subscription(initial_copy="snapshot"))
    assert len(result["changes"]) == 1 and f'Create subscription "{shop.name}"' in result["changes"][0]
    assert result["initial_copy"]["tables"] == [
        {"name": "public.orders", "rows": 1000},
        {"name": "public.users", "rows": 200},
    ]
    assert result["initial_copy"]["rows"] == 1200 and result["initial_copy"]["reason"] is None
    assert "initial_copy" not in shop.subscribe()
    assert shop.sql_target("SELECT DISTINCT srsubstate FROM pg_subscription_rel") == [("r",)]
    assert_streams(shop, "DELETE FROM orders WHERE id % 3 = 0", "SELECT * FROM orders")
    assert shop.unsubscribe()["changed"]
    assert shop.slots() == set() and residue(shop) == []


def test_the_rows_are_there_when_it_is_neither_enabled_nor_waited_for(shop: Pair) -> None:
    seed(shop, enabled=False)
    assert_equal(shop, "SELECT * FROM orders")
    shop.sql_source("INSERT INTO users VALUES (999, 'kept for later')")
    assert shop.subscribe(enabled=True)["changed"]
    shop.arrived("users")
    shop.unsubscribe()
    shop.sql_target("TRUNCATE users CASCADE")
    seed(shop, wait=False)
    assert_equal(shop, "SELECT * FROM orders")
    shop.arrived("users", 0.1)


def test_marked_indexes_of_one_table_do_not_wait_for_each_other(shop: Pair) -> None:
    shop.both(
        "CREATE UNIQUE INDEX identity ON orders (id); CREATE INDEX clustered ON orders (user_id);"
        "ALTER TABLE orders REPLICA IDENTITY USING INDEX identity, CLUSTER ON clustered"
    )
    shop.sql_source("INSERT INTO orders SELECT g, 1, g FROM generate_series(1001, 100000) AS g")
    seed(shop, jobs=2)
    assert_equal(shop, "SELECT * FROM orders")


@pytest.mark.parametrize("way", ["snapshot", "native"])
def test_tables_that_join_later_are_copied_by_the_server(shop: Pair, way: str) -> None:
    shop.publish("users")
    seed(shop)
    shop.publish("users", "orders")
    with unchanged_definitions(shop):
        joined = shop.target.converge("pgml_subscription", **shop.subscription(initial_copy=way))
    assert joined["changes"] == [f'Refresh subscription "{shop.name}": 1 table new, 0 tables gone']
    assert_equal(shop, "SELECT * FROM orders")


def test_filters_of_two_publications_are_added_up(shop: Pair) -> None:
    shop.publish({"name": "orders", "where": "id <= 100 OR id = 300"})
    shop.publish({"name": "orders", "where": "id % 10 = 0 -- and a comment"}, "users", name="more")
    seed(shop, publications=["pub", "more"])
    wanted = "SELECT * FROM orders WHERE id <= 100 OR id = 300 OR id % 10 = 0"
    assert 0 < len(rows(shop.target, "SELECT * FROM orders")) < 1000
    assert_equal(shop, wanted, "SELECT * FROM orders")
    assert_streams(shop, "UPDATE orders SET id = id + 1001 WHERE id BETWEEN 50 AND 500", wanted, "SELECT * FROM orders")


def test_a_publication_without_a_filter_outweighs_others(shop: Pair) -> None:
    shop.publish({"name": "orders", "where": "id <= 100"})
    shop.publish("orders", "users", name="more")
    seed(shop, publications=["pub", "more"])
    assert_equal(shop, "SELECT * FROM orders")


def test_lists_leave_columns_at_their_defaults(shop: Pair) -> None:
    shop.sql_target("ALTER TABLE users ADD here text DEFAULT 'mine', ALTER name DROP NOT NULL")
    shop.publish({"name": "users", "columns": ["id", "seen"]})
    seed(shop)
    assert_equal(shop, "SELECT id, NULL, seen, 'mine' FROM users", "SELECT id, name, seen, here FROM users")
    assert_streams(shop, "INSERT INTO users VALUES (999, 'unlisted')", "SELECT id, seen FROM users")


def test_lists_that_differ_are_refused_before_anything_is_copied(shop: Pair) -> None:
    shop.sql_target("ALTER TABLE users ALTER name DROP NOT NULL")
    shop.publish({"name": "users", "columns": ["id"]})
    shop.publish({"name": "users", "columns": ["id", "seen"]}, name="more")
    seen = len(shop.target.cluster.log())
    message = shop.not_subscribed(publications=["pub", "more"])
    assert "pub, more" in message or "more, pub" in message
    assert "list different columns of public.users" in message
    assert "CREATE SUBSCRIPTION" not in shop.target.cluster.log()[seen:]


PARTED = """
    CREATE TABLE visits (id bigint, at date, kind text, PRIMARY KEY (id, at, kind)) PARTITION BY RANGE (at);
    CREATE INDEX visits_kind ON visits (kind);
    CREATE TABLE visits_1 PARTITION OF visits FOR VALUES FROM (MINVALUE) TO ('2026-02-01') PARTITION BY LIST (kind);
    CREATE TABLE visits_1_a PARTITION OF visits_1 FOR VALUES IN ('a');
    CREATE TABLE visits_1_rest (kind text NOT NULL, at date NOT NULL, id bigint NOT NULL);
    ALTER TABLE visits_1 ATTACH PARTITION visits_1_rest DEFAULT;
    CREATE TABLE visits_2 PARTITION OF visits DEFAULT;
    CREATE UNIQUE INDEX visits_2_id ON visits_2 (id);
"""
LEAVES = ["visits_1_a", "visits_1_rest", "visits_2"]
VISITS = """
    INSERT INTO visits SELECT g, date '2026-01-01' + g % 60, substr('abc', 1 + g % 3, 1) FROM generate_series(1, 600) AS g
"""
MOVE = "UPDATE visits SET at = at + 31, kind = 'a' WHERE id % 5 = 0"
OTHERWISE = """
    CREATE TABLE visits (kind text, id bigint, at date, PRIMARY KEY (id)) PARTITION BY HASH (id);
    CREATE TABLE visits_0 PARTITION OF visits FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE visits_1 PARTITION OF visits FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    CREATE INDEX visits_kind ON visits (kind);
"""
PLAIN = "CREATE TABLE visits (id bigint PRIMARY KEY, at date, kind text); CREATE INDEX visits_kind ON visits (kind)"


@pytest.mark.parametrize("target", [PARTED, OTHERWISE, PLAIN], ids=["alike", "otherwise", "plain"])
def test_partitions_come_by_way_of_their_root(pair: Pair, target: str) -> None:
    pair.sql_source(PARTED + VISITS)
    pair.grant()
    pair.sql_target(target)
    publish_all(pair, publish_via_partition_root="true")
    assert seed(pair)["initial_copy"]["tables"] == [{"name": "public.visits", "rows": 600}]
    query = "SELECT id, at, kind FROM visits"
    assert_equal(pair, query)
    assert_streams(pair, MOVE, query)


LEAVES_ALONE = """
    CREATE TABLE visits_1_a (id bigint, at date, kind text, PRIMARY KEY (id, at));
    CREATE TABLE visits_1_rest (LIKE visits_1_a INCLUDING ALL);
    CREATE TABLE visits_2 (LIKE visits_1_a INCLUDING ALL);
    CREATE INDEX ON visits_2 (kind);
"""
LEAVES_OTHERWISE = """
    CREATE TABLE all_visits (id bigint, at date, kind text, PRIMARY KEY (id, at, kind)) PARTITION BY RANGE (at);
    CREATE TABLE visits_1 PARTITION OF all_visits FOR VALUES FROM ('2025-01-01') TO ('2026-02-01') PARTITION BY LIST (kind);
    CREATE TABLE visits_1_a PARTITION OF visits_1 FOR VALUES IN ('a') PARTITION BY HASH (id);
    CREATE TABLE visits_1_a_all PARTITION OF visits_1_a FOR VALUES WITH (MODULUS 1, REMAINDER 0);
    CREATE TABLE visits_1_rest PARTITION OF visits_1 DEFAULT;
    CREATE TABLE visits_2 PARTITION OF all_visits DEFAULT;
    CREATE TABLE visits_old PARTITION OF all_visits FOR VALUES FROM ('2000-01-01') TO ('2001-01-01');
    CREATE INDEX all_visits_kind ON all_visits (kind);
    CREATE INDEX visits_2_at ON visits_2 (at);
"""


@pytest.mark.parametrize("target", [PARTED, LEAVES_OTHERWISE, LEAVES_ALONE], ids=["alike", "otherwise", "plain"])
def test_partitions_come_one_by_one(pair: Pair, target: str) -> None:
    pair.sql_source(PARTED + VISITS)
    pair.grant()
    pair.sql_target(target)
    pair.sql_source("CREATE PUBLICATION pub FOR TABLE visits")
    assert [table["name"] for table in seed(pair)["initial_copy"]["tables"]] == [f"public.{leaf}" for leaf in LEAVES]
    for leaf in LEAVES:
        assert_equal(pair, f"SELECT id, at, kind FROM {leaf}")
    for leaf in LEAVES:
        assert_streams(pair, f"DELETE FROM {leaf} WHERE id % 4 = 0", f"SELECT id, at, kind FROM {leaf}")


def test_a_filter_of_the_root_is_a_filter_of_all_partitions(pair: Pair) -> None:
    pair.both(PARTED)
    pair.sql_source(VISITS)
    pair.publish({"name": "visits", "where": "at > '2026-01-15'"}, via_partition_root=True)
    seed(pair)
    assert_equal(pair, "SELECT * FROM visits WHERE at > '2026-01-15'", "SELECT * FROM visits")


def test_a_part_of_a_tree_leaves_the_rest_and_its_rows_alone(pair: Pair) -> None:
    """Indexes of the whole tree stay, because other partitions hold rows already."""
    pair.both(PARTED)
    pair.sql_source(VISITS)
    pair.sql_target("INSERT INTO visits VALUES (7, '2026-01-07', 'a')")
    pair.publish("visits_2")
    seed(pair)
    assert_equal(pair, "SELECT * FROM visits_2")
    assert pair.sql_target("SELECT id FROM visits_1") == [(7,)]


def test_inherited_tables_hold_rows_of_their_own(pair: Pair) -> None:
    pair.both(
        "CREATE TABLE parent (id int PRIMARY KEY, t text CHECK (t <> '')); CREATE INDEX ON parent (t);"
        " CREATE TABLE child (PRIMARY KEY (id), extra int) INHERITS (parent)"
    )
    pair.sql_source("INSERT INTO parent VALUES (1, 'p'); INSERT INTO child VALUES (2, 'c', 3), (4, 'c', 5)")
    pair.sql_source("CREATE PUBLICATION pub FOR TABLE ONLY parent WHERE (id < 100), child")
    pair.grant()
    seed(pair)
    for table in ("ONLY parent", "child"):
        assert_equal(pair, f"SELECT * FROM {table}")
    assert_streams(pair, "UPDATE parent SET t = t || '!'", "SELECT tableoid::regclass::text, * FROM parent")


ODD = """
    CREATE SCHEMA "Ödd ""one"" here";
    CREATE TABLE "Ödd ""one"" here"."per%cent %s {x} \\" ("I d" int PRIMARY KEY, "a""b" text UNIQUE, "%s" int);
    CREATE INDEX "in'dex %" ON "Ödd ""one"" here"."per%cent %s {x} \\" ("%s", lower("a""b"));
    CREATE TABLE keyless (a int, b text);
    CREATE TABLE empty (id int PRIMARY KEY, t text UNIQUE);
    CREATE TABLE made (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED);
    CREATE INDEX made_twice ON made (twice);
    CREATE TABLE counted (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, t text);
"""


def test_odd_tables(pair: Pair) -> None:
    """Odd names, no key, no rows, generated and identity columns."""
    pair.both(ODD)
    odd = 'SELECT * FROM "Ödd ""one"" here"."per%cent %s {x} \\"'
    pair.sql_source(
        odd.replace("SELECT * FROM", "INSERT INTO") + " SELECT g, 'x\\' || g, g FROM generate_series(1, 50) AS g"
    )
    pair.sql_source("INSERT INTO keyless SELECT g % 3, 'twice' FROM generate_series(1, 99) AS g")
    pair.sql_source("INSERT INTO made (id, n) SELECT g, g FROM generate_series(1, 50) AS g")
    pair.sql_source("INSERT INTO counted (t) SELECT 'c' FROM generate_series(1, 50)")
    publish_all(pair)
    result = seed(pair)
    assert {"name": "public.empty", "rows": 0} in result["initial_copy"]["tables"]
    for query in (odd, "SELECT * FROM keyless", "SELECT * FROM made", "SELECT * FROM counted"):
        assert_equal(pair, query)
    assert_streams(pair, odd.replace("SELECT *", "DELETE") + ' WHERE "I d" < 9', odd)
    assert_streams(pair, "UPDATE made SET n = 0 WHERE id > 20", "SELECT * FROM made")
    assert_streams(pair, "INSERT INTO counted (t) VALUES ('new')", "SELECT * FROM counted")
    assert_streams(pair, "INSERT INTO empty VALUES (1, 'now')", "SELECT * FROM empty")


def test_columns_may_be_wider_on_the_target(pair: Pair) -> None:
    pair.sql_source("CREATE TABLE a (id int PRIMARY KEY, v varchar(10), n numeric(6, 2), j json, at timestamp)")
    pair.sql_target(
        "CREATE TABLE a (j jsonb, n double precision, here text DEFAULT 'mine', id bigint PRIMARY KEY, v text NOT NULL, at date)"
    )
    pair.sql_source(
        "INSERT INTO a SELECT g, 'v' || g, g / 4.0, '[1]', timestamp '2026-01-01' + g * interval '1 day'"
        " FROM generate_series(1, 100) AS g"
    )
    pair.grant()
    pair.publish("a")
    seed(pair)
    source = "SELECT id, v, n::float8, j::jsonb, at::date, 'mine' FROM a"
    target = "SELECT id, v, n, j, at, here FROM a"
    assert_equal(pair, source, target)
    assert_streams(pair, "UPDATE a SET v = 'new' WHERE id = 7", source, target)


@pytest.mark.parametrize("there", ["bigint", "real"])
def test_a_domain_may_have_another_base_on_the_target(pair: Pair, there: str) -> None:
    """One whose binary form is longer, or as long and means something else."""
    pair.sql_source("CREATE DOMAIN amount AS int")
    pair.sql_target(f"CREATE DOMAIN amount AS {there}")
    pair.both("CREATE TABLE a (id int PRIMARY KEY, n amount)")
    pair.sql_source("INSERT INTO a SELECT g, g * 7 FROM generate_series(1, 100) AS g")
    pair.publish("a")
    seed(pair)
    query = "SELECT id, n::int FROM a"
    assert_equal(pair, query)
    assert_streams(pair, "UPDATE a SET n = n + 1 WHERE id = 7", query)


@pytest.mark.parametrize(
    ("here", "there", "column"),
    [("UTF8", "LATIN1", "größe"), ("LATIN1", "UTF8", "größe"), ("UTF8", "SQL_ASCII", "size")],
)
def test_texts_come_in_the_encoding_of_the_target(pair: Pair, here: str, there: str, column: str) -> None:
    encoded(pair.source, here)
    encoded(pair.target, there)
    pair.both(f"CREATE TABLE a (id int PRIMARY KEY, {column} text); CREATE INDEX ON a ({column} text_pattern_ops)")
    pair.sql_source("INSERT INTO a SELECT g, 'Grüße é ' || g FROM generate_series(1, 50) AS g")
    pair.publish("a")
    seed(pair)
    as_stored = f"SELECT id, encode(convert_to({column}, 'SQL_ASCII'), 'hex') FROM a"
    as_utf8 = as_stored.replace("SQL_ASCII", "UTF8")
    queries = (as_utf8, as_stored if there == "SQL_ASCII" else as_utf8)
    assert_equal(pair, *queries)
    assert_streams(pair, f"UPDATE a SET {column} = 'ß'", *queries)


def test_texts_that_the_target_can_not_hold_are_refused_by_it(pair: Pair) -> None:
    encoded(pair.target, "LATIN1")
    pair.both("CREATE TABLE a (id int PRIMARY KEY, t text)")
    pair.sql_source("INSERT INTO a VALUES (1, '象')")
    pair.publish("a")
    assert "public.a" in (message := not_seeded(pair)) and "LATIN1" in message
    assert pair.sql_target("SELECT count(*) FROM a") == [(0,)]
