# SPDX-License-Identifier: GPL-3.0-or-later
"""Foreign tables: which are imported and how, what becomes of them when the source's tables change, and filtered views."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest
from psycopg2.sql import SQL, Identifier

from tests.conftest import Servers
from tests.support import foreign
from tests.support.copies import SHOP
from tests.support.foreign import (
    absent,
    as_role,
    columns,
    converge,
    local_role,
    ok,
    prepare,
    refused,
    relations,
    remote_sql,
)
from tests.support.pair import Pair, pair_of

ALL = [{"remote_schema": "public"}]
LONG = "t" * 59 + "ü2"
"""A name of 63 bytes, which is all that PostgreSQL keeps"""
ODD = {
    '"Order Lines"': "Order Lines",
    '"a.b"': "a.b",
    '"quo""ted"': 'quo"ted',
    '"apo\'s"': "apo's",
    '"per%s%cent"': "per%s%cent",
    '"{brace}"': "{brace}",
    '"back\\slash"': "back\\slash",
    '"größe 密"': "größe 密",
    '"select"': "select",
    f'"{LONG}"': LONG,
}
TWO_SCHEMAS = """
    CREATE SCHEMA s;
    CREATE TABLE s.users (id int, extra text);
    CREATE TABLE s.only_here (id int);
    INSERT INTO s.users VALUES (1, 'x');
"""


@pytest.fixture
def shop(pair: Pair) -> Pair:
    """A source with the tables users, orders and stock, and a target that has the wrapper."""
    return prepare(pair)


@pytest.fixture
def role(shop: Pair) -> Iterator[str]:
    with local_role(shop.target) as name:
        yield name


def add(pair: Pair, statements: str) -> None:
    """Make something at the source that the distributor may read."""
    pair.sql_source(statements)
    pair.grant()


def rows(pair: Pair, local: str, remote: str, condition: str = "true") -> None:
    """Both sides have the same rows."""
    here = pair.sql_target(f"SELECT t::text FROM {local} AS t ORDER BY 1")
    there = pair.sql_source(f"SELECT t::text FROM (SELECT * FROM {remote} WHERE {condition}) AS t ORDER BY 1")
    assert here == there


def told(result: dict[str, Any]) -> dict[str, str]:
    """Which tables a result tells of, and where they come from."""
    return {each["name"]: each["remote"] for each in result["tables"]}


def drift(result: dict[str, Any]) -> dict[str, str]:
    """What a result says that differs."""
    return {each["name"]: "; ".join(each["differences"]) for each in result["drift"]}


# What is imported


def test_a_schema(shop: Pair) -> None:
    add(shop, TWO_SCHEMAS)
    result = converge(shop, imports=ALL)
    names = {"users", "orders", "stock"}
    assert relations(shop.target) == {f"shop_public.{name}" for name in names}
    assert told(result) == {f"shop_public.{name}": f"public.{name}" for name in names}
    assert all(each["where"] is None and each["sent"] is None for each in result["tables"])
    assert result["drift"] == []
    for name in names:
        rows(shop, f"shop_public.{name}", name)
    assert columns(shop.target, "shop_public.orders") == columns(shop.source, "orders")


def test_several_schemas_and_the_whole_database(shop: Pair) -> None:
    add(shop, TWO_SCHEMAS)
    everything = {"shop_public.users", "shop_public.orders", "shop_public.stock", "shop_s.users", "shop_s.only_here"}
    converge(shop, imports=[{"remote_schema": "public"}, {"remote_schema": "s"}])
    assert relations(shop.target) == everything
    assert not converge(shop, imports=[{}])["changed"]
    add(shop, "CREATE SCHEMA new; CREATE TABLE new.t (id int)")
    converge(shop, imports=[{}])
    assert relations(shop.target) == {*everything, "shop_new.t"}
    converge(shop, imports=[{"except": ["public.users", "new.t", "s.only_here"]}])
    assert relations(shop.target) == everything - {"shop_public.users", "shop_s.only_here"}
    assert shop.sql_target("SELECT 1 FROM pg_namespace WHERE nspname = 'shop_new'") == []
    converge(shop, imports=[])
    assert relations(shop.target) == set()
    assert shop.sql_target("SELECT 1 FROM pg_namespace WHERE nspname ~ '^shop_'") == []


def test_named_tables(shop: Pair) -> None:
    add(shop, TWO_SCHEMAS)
    converge(shop, imports=[{"tables": ["users", "public.orders", "s.users"]}])
    assert relations(shop.target) == {"shop_public.users", "shop_public.orders", "shop_s.users"}
    converge(shop, imports=[{"remote_schema": "s", "tables": ["users"], "local_schema": "x"}, {"tables": ["stock"]}])
    assert relations(shop.target) == {"x.users", "shop_public.stock"}
    converge(shop, imports=[{"tables": ["users", "s.only_here"], "local_schema": "x"}])
    assert relations(shop.target) == {"x.users", "x.only_here"}
    rows(shop, "x.users", "public.users")


def test_all_but_some(shop: Pair) -> None:
    add(shop, TWO_SCHEMAS)
    converge(shop, imports=[{"remote_schema": "public", "except": ["users", "public.stock"]}])
    assert relations(shop.target) == {"shop_public.orders"}
    assert "s.users" in refused(shop, imports=[{"remote_schema": "public", "except": ["s.users"]}])


def test_odd_names(shop: Pair) -> None:
    for name in ODD:
        shop.sql_source(f'CREATE TABLE {name} ("Id" int, "sel""ect" text, "a.b" int, "50%" int, "{LONG}" int)')
        shop.sql_source(f"INSERT INTO {name} VALUES (1, 'x', 2, 3, 4), (2, 'y', 3, 4, 5)")
    shop.grant()
    result = converge(shop, imports=[{"tables": list(ODD)}])
    assert len(told(result)) == len(ODD)
    for name in ODD:
        rows(shop, f"shop_public.{name}", name)
    some = [
        {"name": name, "columns": ['sel"ect', "Id", "50%"], "where": '"Id" > 1 AND "50%" > 0'}
        for name in ODD
        if LONG not in name
    ]
    converge(shop, imports=[{"tables": some}])
    for each in some:
        [(values,)] = shop.sql_target(f"SELECT to_json(t)::text FROM shop_public.{each['name']} AS t")
        assert '"Id":2' in values and "a.b" not in values and '"50%":4' in values
    converge(shop, imports=[{"remote_schema": "public", "except": ["users", '"Order Lines"']}])
    assert "shop_public.users" not in relations(shop.target)
    absent(shop)


def test_a_name_that_is_too_long_for_its_view(shop: Pair) -> None:
    """The foreign table below the view has a longer one."""
    add(shop, f'CREATE TABLE "{LONG}" (id int)')
    message = refused(shop, imports=[{"tables": [{"name": f'"{LONG}"', "where": "id > 1"}]}])
    assert LONG in message and "63" in message


def test_a_schema_whose_name_is_too_long(shop: Pair) -> None:
    """With the server's name before it."""
    add(shop, f'CREATE SCHEMA "{LONG}"; CREATE TABLE "{LONG}".t (id int)')
    message = refused(shop, imports=[{"remote_schema": LONG}])
    assert LONG in message and "63" in message
    converge(shop, imports=[{"remote_schema": LONG, "local_schema": LONG}])
    rows(shop, f'"{LONG}".t', f'"{LONG}".t')


def test_names_that_are_one_when_they_are_cut(shop: Pair) -> None:
    message = refused(shop, imports=[{"tables": ["u" * 64]}])
    assert "u" * 63 in message


def test_some_columns(shop: Pair) -> None:
    imports = [{"tables": [{"name": "orders", "columns": ["total", "id"]}, "users"]}]
    converge(shop, imports=imports)
    assert set(columns(shop.target, "shop_public.orders")) == {"id", "total"}
    assert len(columns(shop.target, "shop_public.users")) == 3
    assert shop.target.value("SELECT sum(total) FROM shop_public.orders") == shop.source.value(
        "SELECT sum(total) FROM orders"
    )
    # What the entry says is wanted, so that it is followed without a word about drift.
    result = converge(shop, imports=[{"tables": [{"name": "orders", "columns": ["id", "status"]}, "users"]}])
    assert set(columns(shop.target, "shop_public.orders")) == {"id", "status"} and result["changed"]
    result = converge(shop, imports=[{"tables": ["orders", "users"]}])
    assert len(columns(shop.target, "shop_public.orders")) == 6 and result["drift"] == []
    message = refused(shop, imports=[{"tables": [{"name": "orders", "columns": ["id", "no such"]}]}])
    assert "no such" in message and "orders" in message


def test_what_comes_along(shop: Pair) -> None:
    add(
        shop,
        """CREATE TABLE t (id int NOT NULL DEFAULT 7, double int GENERATED ALWAYS AS (id * 2) STORED,
        word text COLLATE "C" NOT NULL); INSERT INTO t (word) VALUES ('a'), ('B')""",
    )
    query = (
        "SELECT attname::text, attnotnull, attgenerated::text, attcollation::regcollation::text, pg_get_expr(adbin, adrelid)"
        " FROM pg_attribute LEFT JOIN pg_attrdef ON (adrelid, adnum) = (attrelid, attnum)"
        " WHERE attrelid = 'shop_public.t'::regclass AND attnum > 0 ORDER BY attnum"
    )

    def described(**params: Any) -> list[tuple[Any, ...]]:
        result = converge(shop, imports=[{"tables": ["t"], **params}])
        assert result["drift"] == []
        return shop.sql_target(query)

    plain = [("id", True, "", "-", None), ("double", False, "s", "-", "(id * 2)"), ("word", True, "", '"C"', None)]
    assert described() == plain
    assert described(import_default=True)[0] == ("id", True, "", "-", "7")
    assert described(import_generated=False)[1] == ("double", False, "", "-", None)
    assert [each[1] for each in described(import_not_null=False)] == [False, False, False]
    assert described(import_collate=False)[2] == ("word", True, "", '"default"', None)
    assert described() == plain
    rows(shop, "shop_public.t", "t")


def test_generated_columns_on_an_older_server(servers: Servers) -> None:
    """PostgreSQL 13 has no option for them."""
    with pair_of(servers.get(13, "primary"), servers.get(13, "replica")) as pair:
        prepare(
            pair, "CREATE TABLE t (id int, double int GENERATED ALWAYS AS (id * 2) STORED); INSERT INTO t VALUES (4)"
        )
        converge(pair, imports=ALL)
        rows(pair, "shop_public.t", "t")
        result = pair.target.run(
            foreign.MODULE, **foreign.options(pair, imports=[{"tables": ["t"], "import_generated": False}])
        )
        assert not result.get("failed") or "import_generated" in result["msg"]


def test_everything_that_can_be_read(shop: Pair) -> None:
    add(
        shop,
        """CREATE TABLE p (id int, v text) PARTITION BY RANGE (id);
        CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (1) TO (10);
        CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20);
        CREATE VIEW v AS SELECT id, name FROM users WHERE id < 5;
        CREATE MATERIALIZED VIEW mv AS SELECT count(*) FROM orders;
        CREATE SEQUENCE counter; CREATE UNLOGGED TABLE unlogged (id int); CREATE TABLE nothing ();
        CREATE TABLE parent (id int); CREATE TABLE child (more int) INHERITS (parent); INSERT INTO child VALUES (1, 2);
        INSERT INTO p VALUES (1, 'a'), (11, 'b'); INSERT INTO nothing DEFAULT VALUES""",
    )
    converge(shop, imports=ALL)
    names = {"p", "v", "mv", "unlogged", "nothing", "parent", "child", "users", "orders", "stock"}
    assert relations(shop.target) == {f"shop_public.{name}" for name in names}
    for name in names - {"nothing"}:
        rows(shop, f"shop_public.{name}", name)
    assert shop.target.value("SELECT count(*) FROM shop_public.nothing") == 1
    converge(shop, imports=[{"tables": ["p2", "p"]}])
    rows(shop, "shop_public.p2", "p2")
    assert relations(shop.target) == {"shop_public.p", "shop_public.p2"}


@pytest.mark.parametrize("major", [13, 15, 18])
def test_the_sample_shop(servers: Servers, major: int) -> None:
    """Every table of every schema can be read, and each value of each type is that of the source."""
    with pair_of(servers.get(major, "primary"), servers.get(major, "replica")) as pair:
        pair.source.cluster.psql(SHOP, pair.source.database, scale=0.01)
        pair.grant()
        pair.sql_target(
            "CREATE EXTENSION postgres_fdw; CREATE DOMAIN email_address AS text;"
            " CREATE TYPE order_status AS ENUM ('placed', 'paid', 'shipped', 'delivered', 'returned', 'cancelled')"
        )
        before = foreign.catalogs(pair.target)
        result = converge(pair, imports=[{}])
        assert relations(pair.target, "f") == set(told(result)) and "shop_warehouse.stock" in told(result)
        assert set(told(result).values()) == {
            name for name in relations(pair.source, "rpvm") if "page_views_" not in name
        }
        for local, remote in told(result).items():
            assert pair.target.value(f"SELECT count(*) FROM {local}") > 0, local
            rows(pair, local, remote)
        absent(pair)
        assert foreign.catalogs(pair.target) == before


def test_a_foreign_table_of_the_source(shop: Pair) -> None:
    """It is a relation like others, which the source reads from elsewhere."""
    shop.sql_source(
        "CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;"
        " CREATE FOREIGN TABLE listed (line text) SERVER files OPTIONS (filename '/etc/hostname')"
    )
    shop.grant()
    converge(shop, imports=[{"tables": ["listed"]}])
    assert columns(shop.target, "shop_public.listed") == {"line": "text"}


def test_two_schemas_in_one(shop: Pair) -> None:
    add(shop, TWO_SCHEMAS)
    converge(shop, imports=[{"tables": ["public.users", "s.only_here"], "local_schema": "one"}])
    assert relations(shop.target) == {"one.users", "one.only_here"}
    both: list[dict[str, Any]] = [{"remote_schema": each, "local_schema": "one"} for each in ("public", "s")]
    message = refused(shop, imports=both)
    assert "one.users" in message
    message = refused(shop, imports=[{"local_schema": "one"}])
    assert "one.users" in message
    both[1]["except"] = ["users"]
    converge(shop, imports=both)
    assert "one.stock" in relations(shop.target)


def test_a_table_may_be_there_twice(shop: Pair) -> None:
    imports = [{"tables": ["users"]}, {"tables": [{"name": "users", "where": "id < 3"}], "local_schema": "few"}]
    converge(shop, imports=imports)
    assert shop.target.value("SELECT count(*) FROM few.users") == 2
    assert shop.target.value("SELECT count(*) FROM shop_public.users") == 20
    message = refused(shop, imports=[{"tables": ["users"]}, {"tables": ["public.users"]}])
    assert "public" in message


COLLISIONS = {
    "a table": "CREATE TABLE mine.users (id int)",
    "a view": "CREATE VIEW mine.users AS SELECT 1",
    "a sequence": "CREATE SEQUENCE mine.users",
    "an index": "CREATE TABLE mine.t (id int); CREATE INDEX users ON mine.t (id)",
    "a composite type": "CREATE TYPE mine.users AS (id int)",
    "a foreign table": "CREATE SERVER x FOREIGN DATA WRAPPER postgres_fdw; CREATE FOREIGN TABLE mine.users () SERVER x",
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", COLLISIONS)
@pytest.mark.parametrize("where", [None, "id > 1"], ids=["table", "view"])
def test_a_collision_is_named(shop: Pair, kind: str, where: str | None) -> None:
    shop.sql_target("CREATE SCHEMA mine; " + COLLISIONS[kind])
    entry: Any = {"name": "users", "where": where} if where else "users"
    message = refused(shop, imports=[{"tables": ["stock", entry], "local_schema": "mine"}])
    assert "mine" in message and "users" in message


def test_a_collision_with_what_is_below_a_view(shop: Pair) -> None:
    shop.sql_target("CREATE SCHEMA mine; CREATE TABLE mine.users_unfiltered ()")
    imports = [{"tables": [{"name": "users", "where": "id > 1"}], "local_schema": "mine"}]
    assert "mine.users_unfiltered" in refused(shop, imports=imports)
    add(shop, "CREATE TABLE users_unfiltered (id int)")
    imports = [{"tables": ["users_unfiltered", {"name": "users", "where": "id > 1"}]}]
    assert "users_unfiltered" in refused(shop, imports=imports)


MISSING_TYPES = {
    "an enum": ("CREATE TYPE mood AS ENUM ('a', 'b')", "CREATE TABLE typed (id int, m mood)", "mood"),
    "a domain": ("CREATE DOMAIN positive AS int CHECK (VALUE > 0)", "CREATE TABLE typed (m positive)", "positive"),
    "an array": ("CREATE SCHEMA t; CREATE TYPE t.c AS (a int)", "CREATE TABLE typed (m t.c[])", '"t"'),
    "an odd name": ('CREATE TYPE "Odd "" Type" AS ENUM (\'a\')', 'CREATE TABLE typed (m "Odd "" Type")', 'Odd " Type'),
}


@pytest.mark.parametrize("kind", MISSING_TYPES)
def test_a_missing_type_is_named(shop: Pair, kind: str) -> None:
    definition, table, name = MISSING_TYPES[kind]
    add(shop, f"{definition}; {table}")
    message = refused(shop, imports=ALL)
    assert name in message.replace('""', '"') and "pgml_schema" in message, message
    shop.sql_target(definition)
    converge(shop, imports=ALL)
    rows(shop, "shop_public.typed", "typed")


WRONG: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "no tables": ([{"tables": []}], ["tables"]),
    "no name": ([{"tables": [{"where": "id > 1"}]}], ["name"]),
    "unknown key": ([{"tables": [{"name": "users", "wher": "id > 1"}]}], ["wher"]),
    "no columns": ([{"tables": [{"name": "users", "columns": []}]}], ["columns", "users"]),
    "columns as text": ([{"tables": [{"name": "users", "columns": "id"}]}], ["columns", "users"]),
    "empty condition": ([{"tables": [{"name": "users", "where": " "}]}], ["where", "users"]),
    "three parts": ([{"tables": ["a.b.c"]}], ["a.b.c"]),
    "unquoted": ([{"tables": ["Order Lines"]}], ["Order Lines"]),
    "other schema": ([{"remote_schema": "public", "tables": ["s.t"]}], ["s.t"]),
    "tables and except": ([{"remote_schema": "public", "tables": ["users"], "except": ["orders"]}], ["except"]),
    "twice": ([{"tables": ["users", "public.users"]}], ["users"]),
    "system schema": ([{"tables": ["users"], "local_schema": "pg_catalog"}], ["pg_catalog"]),
    "reserved schema": ([{"tables": ["users"], "local_schema": "pg_mine"}], ["pg_mine"]),
    "our schema": ([{"tables": ["users"], "local_schema": "pgml_distributed"}], ["pgml_distributed"]),
    "long schema": ([{"tables": ["users"], "local_schema": "x" * 64}], ["63"]),
    "empty remote schema": ([{"remote_schema": ""}], ["remote_schema"]),
    "a sequence": ([{"tables": ["counter"]}], ["counter"]),
}  # fmt: skip


@pytest.mark.sampled(6)
@pytest.mark.parametrize("kind", WRONG)
def test_wrong_imports_get_one_clear_sentence(shop: Pair, kind: str) -> None:
    add(shop, "CREATE SEQUENCE counter")
    imports, words = WRONG[kind]
    message = refused(shop, imports=imports)
    assert all(word in message for word in words), message


def test_tables_that_are_no_longer_asked_for_go(shop: Pair) -> None:
    converge(shop, imports=[{"tables": ["users", "stock", {"name": "orders", "where": "id > 1"}]}])
    result = converge(shop, imports=[{"tables": ["users"]}])
    assert relations(shop.target) == {"shop_public.users"}
    assert any("shop_public.orders" in words for words in result["changes"])


def test_a_table_moves_to_another_schema(shop: Pair) -> None:
    converge(shop, imports=ALL)
    converge(shop, imports=[{"remote_schema": "public", "local_schema": "elsewhere"}])
    assert relations(shop.target) == {"elsewhere.users", "elsewhere.orders", "elsewhere.stock"}
    assert shop.sql_target("SELECT 1 FROM pg_namespace WHERE nspname = 'shop_public'") == []


def test_a_foreign_table_that_somebody_dropped_comes_back(shop: Pair) -> None:
    imports = [{"tables": ["users", {"name": "orders", "where": "id > 1"}]}]
    for statement in (
        "DROP FOREIGN TABLE shop_public.users",
        "DROP VIEW shop_public.orders",
        "DROP FOREIGN TABLE shop_public.orders_unfiltered CASCADE",
        "DROP SCHEMA shop_public CASCADE",
        "DROP SERVER shop CASCADE",
    ):
        converge(shop, imports=imports)
        shop.sql_target(statement)
        assert converge(shop, imports=imports)["changed"], statement
        assert len(relations(shop.target)) == 3


def test_somebodys_own_foreign_table_on_the_server_stays(shop: Pair) -> None:
    converge(shop, imports=ALL)
    shop.sql_target(
        "CREATE FOREIGN TABLE shop_public.mine (id int) SERVER shop OPTIONS (schema_name 'public', table_name 'users')"
    )
    assert not converge(shop, imports=ALL)["changed"]
    converge(shop, imports=[{"tables": ["stock"]}])
    assert relations(shop.target) == {"shop_public.mine", "shop_public.stock"}


@pytest.mark.slow
def test_a_thousand_tables(shop: Pair) -> None:
    """The number of statements doesn't grow with the number of tables where catalogs are read."""
    shop.sql_source("CREATE SCHEMA many")
    shop.sql_source(
        "DO $$ BEGIN FOR i IN 1..1000 LOOP EXECUTE format('CREATE TABLE many.t%s (id int PRIMARY KEY, v text)', i);"
        " END LOOP; END $$"
    )
    shop.grant()
    imports = [{"remote_schema": "many"}]
    with foreign.statements(shop.target) as first, foreign.statements(shop.source):
        result = ok(shop, imports=imports)
    assert len(result["tables"]) == 1000 == len(relations(shop.target, "f"))
    with foreign.statements(shop.target) as second:
        assert not ok(shop, imports=imports)["changed"]
    with local_role(shop.target) as role, foreign.statements(shop.target) as third:
        ok(shop, imports=imports, usage=[role])
        assert as_role_may(shop, role) == 1000
    # Each table is planned once, and each new one is put into its place.
    for statements, limit in ((first, 2100), (second, 1100), (third, 1100)):
        assert 1000 < len(statements) < limit
        assert 0 < len([each for each in statements if "pg_catalog" in each or "pg_class" in each]) < 60
    assert absent(shop)["changed"]


def as_role_may(pair: Pair, role: str) -> int:
    query = "SELECT count(*) FROM pg_class WHERE relkind = 'f' AND has_table_privilege(%s, oid, 'SELECT')"
    return int(pair.target.value(query, [role]))


# Drift


DRIFTS: dict[str, tuple[str, list[str]]] = {
    "column added": ("ALTER TABLE orders ADD extra text", ["extra"]),
    "column dropped": ("ALTER TABLE orders DROP status", ["status"]),
    "column renamed": ("ALTER TABLE orders RENAME total TO amount", ["total", "amount"]),
    "column retyped": ("ALTER TABLE orders ALTER total TYPE int", ["total", "integer", "numeric(12,2)"]),
    "length changed": ("ALTER TABLE orders ALTER status TYPE varchar(40)", ["status", "40", "20"]),
    "not null dropped": ("ALTER TABLE orders ALTER user_id DROP NOT NULL", ["user_id", "NULL"]),
    "not null set": ("ALTER TABLE orders ALTER ordered SET NOT NULL", ["ordered", "NULL"]),
    "collation changed": ('ALTER TABLE orders ALTER status TYPE varchar(20) COLLATE "C"', ["status", "C"]),
    "odd column": ('ALTER TABLE orders ADD "O""dd %s" int', ['"O""dd %s"']),
    "made anew": (
        "DROP TABLE orders; CREATE TABLE orders (created_at timestamptz, id text)",
        ["id", "text", "bigint", "total"],
    ),
}


@pytest.mark.sampled(10)
@pytest.mark.parametrize("kind", DRIFTS)
@pytest.mark.parametrize("where", [None, "id > 10"], ids=["table", "view"])
def test_drift_is_reported_and_repaired(shop: Pair, kind: str, where: str | None) -> None:
    entry: Any = {"name": "orders", "where": where} if where else "orders"
    imports = [{"tables": ["users", entry]}]
    converge(shop, imports=imports)
    below = "shop_public.orders_unfiltered" if where else "shop_public.orders"
    as_it_was = columns(shop.target, below)
    statement, words = DRIFTS[kind]
    add(shop, statement)
    if kind == "made anew" and where:
        imports = [{"tables": ["users", {"name": "orders", "where": "id > '10'"}]}]
        assert ok(shop, check=True, imports=imports, on_drift="reimport")["changed"]
    else:
        result = converge(shop, imports=imports)
        assert not result["changed"] and set(drift(result)) == {"shop_public.orders"}
        assert all(word in drift(result)["shop_public.orders"] for word in words), drift(result)
        assert any("shop_public.orders" in each for each in result["warnings"])
        assert columns(shop.target, below) == as_it_was
    result = converge(shop, imports=imports, on_drift="reimport")
    assert result["changed"] and result["drift"] == []
    assert columns(shop.target, below) == columns(shop.source, "orders")
    assert not converge(shop, imports=imports)["changed"]
    condition = imports[0]["tables"][1]["where"] if where else "true"
    rows(shop, "shop_public.orders", "orders", condition)


def test_a_table_that_is_gone_from_the_source(shop: Pair) -> None:
    converge(shop, imports=ALL)
    shop.sql_source("DROP TABLE stock")
    result = converge(shop, imports=ALL)
    assert not result["changed"] and set(drift(result)) == {"shop_public.stock"}
    assert any("shop_public.stock" in each for each in result["warnings"])
    result = converge(shop, imports=ALL, on_drift="reimport")
    assert result["changed"] and result["drift"] == []
    assert relations(shop.target) == {"shop_public.users", "shop_public.orders"}


def test_a_new_table_is_imported_in_any_case(shop: Pair) -> None:
    converge(shop, imports=ALL)
    add(shop, "CREATE TABLE new (id int); INSERT INTO new VALUES (1); ALTER TABLE orders ADD extra int")
    result = converge(shop, imports=ALL)
    assert result["changed"] and set(drift(result)) == {"shop_public.orders"}
    assert len(result["changes"]) == 1 and "shop_public.new" in result["changes"][0]
    rows(shop, "shop_public.new", "new")


def test_a_renamed_table(shop: Pair) -> None:
    converge(shop, imports=ALL)
    shop.sql_source("ALTER TABLE stock RENAME TO inventory")
    result = converge(shop, imports=ALL)
    assert result["changed"] and set(drift(result)) == {"shop_public.stock"}
    converge(shop, imports=ALL, on_drift="reimport")
    assert relations(shop.target) == {"shop_public.users", "shop_public.orders", "shop_public.inventory"}


def test_defaults_are_no_drift_unless_they_are_imported(shop: Pair) -> None:
    converge(shop, imports=ALL)
    shop.sql_source("ALTER TABLE users ALTER born SET DEFAULT '1999-01-01'")
    result = converge(shop, imports=ALL)
    assert not result["changed"] and result["drift"] == []
    imports = [{"remote_schema": "public", "import_default": True}]
    converge(shop, imports=imports)
    shop.sql_source("ALTER TABLE users ALTER born SET DEFAULT '1998-01-01'")
    result = converge(shop, imports=imports)
    assert not result["changed"] and "born" in drift(result)["shop_public.users"]
    converge(shop, imports=imports, on_drift="reimport")
    assert not converge(shop, imports=imports)["drift"]


def test_columns_that_are_not_imported_are_no_drift(shop: Pair) -> None:
    imports = [{"tables": [{"name": "orders", "columns": ["id", "total"]}]}]
    converge(shop, imports=imports)
    shop.sql_source("ALTER TABLE orders ADD extra int, DROP status")
    result = converge(shop, imports=imports)
    assert not result["changed"] and result["drift"] == []


def test_a_column_that_a_view_needs_is_gone(shop: Pair) -> None:
    imports = [{"tables": [{"name": "orders", "where": "status = 'paid'"}]}]
    converge(shop, imports=imports)
    shop.sql_source("ALTER TABLE orders DROP status")
    message = refused(shop, imports=imports, on_drift="reimport")
    assert "status" in message


def test_an_altered_foreign_table_is_drift(shop: Pair) -> None:
    """Somebody has altered it here."""
    converge(shop, imports=ALL)
    shop.sql_target("ALTER FOREIGN TABLE shop_public.users ADD nonsense int")
    result = converge(shop, imports=ALL)
    assert "nonsense" in drift(result)["shop_public.users"]
    assert converge(shop, imports=ALL, on_drift="reimport")["changed"]
    assert "nonsense" not in columns(shop.target, "shop_public.users")


def acls(pair: Pair) -> list[tuple[Any, ...]]:
    """Owners, privileges and comments of the tables and views, and of their columns."""
    return pair.sql_target(
        "SELECT c.relname::text, c.relowner::regrole::text, obj_description(c.oid, 'pg_class'),"
        " array(SELECT a::text FROM unnest(c.relacl) AS a ORDER BY 1),"
        " array(SELECT format('%s %s %s', attname, attacl, col_description(c.oid, attnum)) FROM pg_attribute"
        "  WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped AND attname <> 'extra' ORDER BY attname)"
        " FROM pg_class AS c WHERE relnamespace = 'shop_public'::regnamespace AND relkind IN ('f', 'v') ORDER BY 1"
    )


def test_what_was_granted_and_said_here_is_kept(shop: Pair, role: str) -> None:
    imports = [{"tables": ["users", {"name": "orders", "where": "id > 10"}]}]
    converge(shop, imports=imports, usage=[role])
    with local_role(shop.target) as other, local_role(shop.target) as owner:
        for statement in (
            "GRANT SELECT (id, name) ON shop_public.users TO {other}",
            "GRANT INSERT ON shop_public.users TO {other} WITH GRANT OPTION",
            "GRANT SELECT (id), UPDATE (total) ON shop_public.orders TO {other}",
            "GRANT SELECT ON shop_public.orders_unfiltered TO public",
            "ALTER FOREIGN TABLE shop_public.users OWNER TO {owner}",
            "COMMENT ON FOREIGN TABLE shop_public.users IS 'they''re %s users'",
            "COMMENT ON COLUMN shop_public.users.name IS 'of a user'",
            "COMMENT ON VIEW shop_public.orders IS 'newer orders'",
            "COMMENT ON COLUMN shop_public.orders.total IS 'in euros'",
        ):
            shop.sql_target(SQL(statement).format(other=Identifier(other), owner=Identifier(owner)))
        before = acls(shop)
        assert not converge(shop, imports=imports, usage=[role])["changed"]
        add(shop, "ALTER TABLE users ADD extra int; ALTER TABLE orders ADD extra int")
        converge(shop, imports=imports, usage=[role], on_drift="reimport")
        assert "extra" in columns(shop.target, "shop_public.users")
        assert acls(shop) == before


@pytest.mark.parametrize("whose", ["the owner's", "a new table's"])
def test_privileges_that_were_taken_here_stay_so(shop: Pair, role: str, whose: str) -> None:
    """Neither the owner's nor those that every new table gives come back with a table that is replaced."""
    name = Identifier(role)
    shop.sql_target(SQL("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {}").format(name))
    try:
        converge(shop, imports=ALL)
        if whose == "the owner's":
            shop.sql_target("REVOKE TRUNCATE, INSERT ON shop_public.orders FROM postgres")
        else:
            shop.sql_target(SQL("REVOKE SELECT ON shop_public.orders FROM {}").format(name))
        before = acls(shop)
        add(shop, "ALTER TABLE orders ADD extra int")
        converge(shop, imports=ALL, on_drift="reimport")
        assert acls(shop) == before
    finally:
        shop.sql_target(SQL("ALTER DEFAULT PRIVILEGES REVOKE SELECT ON TABLES FROM {}").format(name))


LOST = {
    "a trigger": "CREATE TRIGGER mine BEFORE INSERT ON shop_public.orders EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "a constraint": "ALTER FOREIGN TABLE shop_public.orders ADD CONSTRAINT mine CHECK (id > 0)",
    "statistics": "CREATE STATISTICS mine ON user_id, status FROM shop_public.orders",
    "inheritance": "CREATE TABLE mine (LIKE shop_public.orders); ALTER FOREIGN TABLE shop_public.orders INHERIT mine",
}


@pytest.mark.parametrize("kind", LOST)
def test_what_others_added_to_a_foreign_table_prevents_a_reimport(shop: Pair, kind: str) -> None:
    converge(shop, imports=ALL)
    shop.sql_target(LOST[kind])
    before = converge(shop, imports=ALL)
    assert not before["changed"]
    shop.sql_source("ALTER TABLE orders ADD extra int")
    message = refused(shop, imports=ALL, on_drift="reimport")
    assert ("orders" if kind == "inheritance" else "mine") in message


DEPENDANTS = {
    "a view": "CREATE VIEW mine AS SELECT total FROM shop_public.orders",
    "a materialized view": "CREATE MATERIALIZED VIEW mine AS SELECT total FROM shop_public.orders",
    "a function": "CREATE FUNCTION mine() RETURNS bigint BEGIN ATOMIC SELECT count(total) FROM shop_public.orders; END",
    "a view of a view": "CREATE VIEW first AS SELECT * FROM shop_public.orders; CREATE VIEW mine AS SELECT * FROM first",
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", DEPENDANTS)
@pytest.mark.parametrize("where", [None, "id > 10"], ids=["table", "view"])
def test_dependants_prevent_a_reimport_and_are_named(shop: Pair, kind: str, where: str | None) -> None:
    entry: Any = {"name": "orders", "where": where} if where else "orders"
    imports = [{"tables": ["users", entry]}]
    converge(shop, imports=imports)
    shop.sql_target(DEPENDANTS[kind])
    shop.sql_source("ALTER TABLE orders ALTER total TYPE int; ALTER TABLE users ADD extra int")
    message = refused(shop, imports=imports, on_drift="reimport")
    assert ("first" if "first" in DEPENDANTS[kind] else "mine") in message and "shop_public.orders" in message
    assert drift(converge(shop, imports=imports)).keys() == {"shop_public.users", "shop_public.orders"}


def test_a_reimport_that_fails_changes_nothing(shop: Pair) -> None:
    """All tables are replaced, or none."""
    converge(shop, imports=ALL)
    shop.sql_source(
        "CREATE TYPE mood AS ENUM ('a'); ALTER TABLE orders ADD m mood; ALTER TABLE users ADD extra int; DROP TABLE stock"
    )
    assert "mood" in refused(shop, imports=ALL, on_drift="reimport")


def test_a_reader_holds_up_a_reimport_for_a_bounded_time(shop: Pair) -> None:
    converge(shop, imports=ALL)
    shop.sql_source("ALTER TABLE orders ADD extra int")
    with shop.target.transaction("SELECT count(*) FROM shop_public.orders") as pid:
        message = refused(shop, imports=ALL, on_drift="reimport")
    assert str(pid) in message and "orders" in message
    assert converge(shop, imports=ALL, on_drift="reimport")["changed"]


# Views


SENT = {
    "days": "created_at > now() - interval '14 days'",
    "current timestamp": "created_at >= CURRENT_TIMESTAMP - '30 days'::interval AND id > 3",
    "midnight": "created_at >= date_trunc('day', now()) - interval '7 days'",
    "current date": "ordered >= CURRENT_DATE - 7",
    "between": "total BETWEEN 10 AND 20",
    "between days": "ordered BETWEEN CURRENT_DATE - 20 AND CURRENT_DATE - 10",
    "in": "status IN ('paid', 'new')",
    "like": "status LIKE 'p%'",
    "percents": "status LIKE '%%i%' OR status = '%s'",
    "null": "status IS NULL",
    "several": "(id > 5 AND NOT (user_id = 3)) OR id % 7 = 0",
    "table's name": "orders.id > 5",
    "quotes and braces": "status <> 'it''s {x} \"y\"'",
    "in with functions": "ordered IN (CURRENT_DATE, now()::date, '2020-01-01')",
    "any of a function's": "status = ANY (string_to_array('paid,' || lower('NEW'), ','))",
    "case": "CASE WHEN id > 30 THEN true ELSE total > 5 END",
    "all": "true",
}
NOT_SENT = {
    "date of a time": "created_at::date > CURRENT_DATE - 30",
    "volatile": "random() >= 0 AND id > 3",
    "own function": "public.odd(id)",
    "truncated column": "date_trunc('month', created_at) = date_trunc('month', now())",
}


def remote_condition(pair: Pair) -> bool:
    return " WHERE " in remote_sql(pair, "SELECT * FROM shop_public.orders")


@pytest.mark.sampled(8)
@pytest.mark.parametrize("kind", SENT)
def test_a_condition_is_evaluated_by_the_source(shop: Pair, kind: str) -> None:
    where = SENT[kind]
    result = converge(shop, imports=[{"tables": [{"name": "orders", "where": where}]}])
    assert not result.get("warnings")
    [table] = result["tables"]
    assert table["name"] == "shop_public.orders" and table["remote"] == "public.orders"
    assert table["where"] and table["sent"] is True
    assert remote_condition(shop) == (where != "true")
    rows(shop, "shop_public.orders", "orders", where)
    assert relations(shop.target) == {"shop_public.orders", "shop_public.orders_unfiltered"}


@pytest.mark.parametrize("kind", NOT_SENT)
def test_a_condition_that_cant_be_sent(shop: Pair, kind: str) -> None:
    for place in (shop.source, shop.target):
        place.sql(
            "CREATE FUNCTION odd(bigint) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN $1 % 2 = 1; END'"
        )
    where = NOT_SENT[kind]
    result = converge(shop, imports=[{"tables": ["users", {"name": "orders", "where": where}]}])
    assert any("shop_public.orders" in each for each in result["warnings"])
    assert {each["name"]: each["sent"] for each in result["tables"]} == {
        "shop_public.orders": False,
        "shop_public.users": None,
    }
    rows(shop, "shop_public.orders", "orders", where)


def test_what_differs_from_row_to_row_is_not_computed_once(shop: Pair) -> None:
    converge(shop, imports=[{"tables": [{"name": "orders", "where": "random() < 0.5"}]}])
    assert 0 < shop.target.value("SELECT count(*) FROM shop_public.orders") < 60


def test_a_condition_of_which_a_part_is_sent(shop: Pair) -> None:
    where = "id > 10 AND created_at::date > CURRENT_DATE - 30"
    result = converge(shop, imports=[{"tables": [{"name": "orders", "where": where}]}])
    assert result["tables"][0]["sent"] is False and result["warnings"]
    rows(shop, "shop_public.orders", "orders", where)


@pytest.mark.parametrize("major", [13, 14, 16, 18])
def test_conditions_on_other_versions(servers: Servers, major: int) -> None:
    with pair_of(servers.get(major, "primary"), servers.get(major, "replica")) as pair:
        prepare(pair)
        for kind in ("days", "midnight", "current date", "in", "like"):
            result = converge(pair, imports=[{"tables": [{"name": "orders", "where": SENT[kind]}]}])
            assert result["tables"][0]["sent"] is True and remote_condition(pair), kind
            rows(pair, "shop_public.orders", "orders", SENT[kind])
        result = converge(pair, imports=[{"tables": [{"name": "orders", "where": NOT_SENT["truncated column"]}]}])
        assert result["tables"][0]["sent"] is False
        absent(pair)


BAD = {
    "unfinished": "id >",
    "subquery": "id NOT IN (SELECT id FROM mine)",
    "a day that a view would keep": "created_at > 'yesterday'",
    "no column": "no_such_column = 1",
    "no condition": "id",
    "second statement": "true; DROP TABLE mine",
    "closing and clause": "true) UNION ALL SELECT * FROM shop_public.orders_unfiltered WHERE (true",
    "statement in between": "true); DROP TABLE mine; SELECT 1 AS one WHERE (true",
    "union of as many columns": "true) UNION ALL SELECT 2 WHERE (true",
    "limit in parentheses": "true) LIMIT (1",
    "offset in parentheses": "true) OFFSET (1",
    "order in parentheses": "true) ORDER BY (1",
    "group in parentheses": "true) GROUP BY (1",
    "more clauses": "id > 1 ORDER BY id",
    "limit": "id > 1 LIMIT 1",
    "comment that hides": "id > 1) --",
    "open comment": "id > 1 /*",
    "open quote": "status = 'x",
    "aggregate": "count(*) > 1",
    "window": "row_number() OVER () > 1",
    "set of rows": "generate_series(1, 2) > 1",
    "parameter": "id > $1",
}


@pytest.mark.sampled(8)
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_condition_is_refused(shop: Pair, kind: str) -> None:
    shop.sql_target("CREATE TABLE mine (id int)")
    message = refused(shop, imports=[{"tables": ["users", {"name": "orders", "where": BAD[kind]}]}])
    assert "orders" in message
    assert "mine" in "".join(relations(shop.target, "r"))


STRANGE = {
    "subquery": "user_id IN (SELECT id FROM shop_public.users WHERE id < 3)",
    "comment": "id > 50 -- the last",
    "other comment": "id > 50 /* the last */",
    "lines": "\n id\n > 50\n",
    "own parentheses": "id > 50) OR (user_id = 3",
}


@pytest.mark.parametrize("kind", STRANGE)
def test_a_strange_condition_is_refused_or_right(shop: Pair, kind: str) -> None:
    where = STRANGE[kind]
    if foreign.possible(shop, "orders", imports=[{"tables": ["users", {"name": "orders", "where": where}]}]):
        rows(shop, "shop_public.orders", "orders", f"({where}\n)")


def test_another_spelling_of_a_condition_is_no_change(shop: Pair) -> None:
    converge(shop, imports=[{"tables": [{"name": "orders", "where": "id  in (1, 2,3)"}]}])
    query = "SELECT oid FROM pg_class WHERE relnamespace = 'shop_public'::regnamespace ORDER BY 1"
    before = shop.sql_target(query)
    for where in ("id IN (1,2,3)", " (id in (1, 2, 3)) ", "orders.id IN (1, 2, 3)"):
        assert not ok(shop, imports=[{"tables": [{"name": "public.orders", "where": where}]}])["changed"], where
        assert shop.sql_target(query) == before


def test_conditions_change_come_and_go(shop: Pair, role: str) -> None:
    def wanted(where: str | None) -> dict[str, Any]:
        entry: Any = {"name": "orders", "where": where} if where else "orders"
        return {"imports": [{"tables": ["users", entry]}], "usage": [role], "user_mappings": [{"role": role}]}

    converge(shop, **wanted("id > 10"))
    shop.sql_target(SQL("GRANT SELECT (id) ON shop_public.orders TO public; COMMENT ON VIEW shop_public.orders IS 'x'"))
    kept = acls(shop)
    assert converge(shop, **wanted("id > 20"))["changed"]
    rows(shop, "shop_public.orders", "orders", "id > 20")
    assert acls(shop) == kept
    assert converge(shop, **wanted(None))["changed"]
    assert relations(shop.target) == {"shop_public.orders", "shop_public.users"}
    rows(shop, "shop_public.orders", "orders")
    assert as_role(shop, role, "SELECT count(*) FROM shop_public.orders") == [(60,)]
    assert converge(shop, **wanted("id > 30"))["changed"]
    rows(shop, "shop_public.orders", "orders", "id > 30")
    assert as_role(shop, role, "SELECT count(*) FROM shop_public.orders") == [(30,)]


def test_a_condition_may_change_under_somebodys_view(shop: Pair) -> None:
    """It goes on reading the filtered rows, or prevents the change."""
    converge(shop, imports=[{"tables": [{"name": "orders", "where": "id > 10"}]}])
    shop.sql_target("CREATE VIEW mine AS SELECT count(*) FROM shop_public.orders")
    imports = [{"tables": [{"name": "orders", "where": "id > 20"}]}]
    if foreign.possible(shop, "mine", imports=imports):
        assert shop.target.value("SELECT * FROM mine") == 40
    assert "mine" in refused(shop, imports=[{"tables": ["orders"]}])


def test_a_view_that_somebody_replaced_is_set_right(shop: Pair) -> None:
    imports = [{"tables": [{"name": "orders", "where": "id > 10"}]}]
    converge(shop, imports=imports)
    shop.sql_target("CREATE OR REPLACE VIEW shop_public.orders AS SELECT * FROM shop_public.orders_unfiltered")
    result = converge(shop, imports=imports)
    assert result["changed"] or "shop_public.orders" in drift(result)
    converge(shop, imports=imports, on_drift="reimport")
    rows(shop, "shop_public.orders", "orders", "id > 10")


@pytest.mark.parametrize("major", [14, 15, 18])
def test_a_view_reads_as_who_uses_it_since_postgresql_15(servers: Servers, major: int) -> None:
    with pair_of(servers.get(major, "primary"), servers.get(major, "replica")) as pair:
        prepare(pair)
        with local_role(pair.target) as role:
            imports = [{"tables": [{"name": "orders", "where": "id > 10"}]}]
            converge(pair, imports=imports, usage=[role])
            query = "SELECT reloptions FROM pg_class WHERE oid = 'shop_public.orders'::regclass"
            if major < 15:
                assert pair.target.value(query) is None
                with pytest.raises(psycopg2.Error, match="permission denied"):
                    as_role(pair, role, "SELECT count(*) FROM shop_public.orders")
                converge(pair, imports=imports, usage=[role], user_mappings=[{"role": role}])
                assert as_role(pair, role, "SELECT count(*) FROM shop_public.orders") == [(50,)]
            else:
                assert pair.target.value(query) == ["security_invoker=true"]
                with pytest.raises(psycopg2.Error, match="user mapping not found"):
                    as_role(pair, role, "SELECT count(*) FROM shop_public.orders")
                converge(pair, imports=imports, usage=[role], user_mappings=[{"role": role}])
                assert as_role(pair, role, "SELECT count(*) FROM shop_public.orders") == [(50,)]
            absent(pair)


# Statistics


def test_statistics_are_gathered_once(shop: Pair) -> None:
    converge(shop, imports=ALL)
    query = "SELECT count(*) FROM pg_stats WHERE schemaname = 'shop_public'"
    assert shop.target.value(query) == 0
    result = converge(shop, imports=ALL, analyze=True)
    assert shop.target.value(query) > 0 and result["changed"]
    add(shop, "CREATE TABLE new (id int); INSERT INTO new VALUES (1), (2)")
    converge(shop, imports=ALL, analyze=True)
    assert shop.target.value(query + " AND tablename = 'new'") == 1
    add(shop, "CREATE TABLE empty (id int)")
    converge(shop, imports=ALL, analyze=True)


def test_moving_between_majors(servers: Servers) -> None:
    """An old source and a new target, and the other way round."""
    for source, target in ((13, 18), (18, 13)):
        with pair_of(servers.get(source, "primary"), servers.get(target, "replica")) as pair:
            prepare(pair)
            converge(pair, imports=[{"tables": ["users", {"name": "orders", "where": SENT["days"]}]}])
            rows(pair, "shop_public.users", "users")
            add(pair, "ALTER TABLE users ADD extra int")
            converge(pair, imports=[{"tables": ["users"]}], on_drift="reimport")
            absent(pair)
