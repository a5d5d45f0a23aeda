# SPDX-License-Identifier: GPL-3.0-or-later
"""Definitions compared and mended where roles lack rights, locks are held, runs are killed, and databases are unlike or large."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from psycopg2.sql import SQL, Identifier

from tests.support import foreign
from tests.support.cluster import Cluster
from tests.support.copies import Process, ending
from tests.support.pair import Pair, create_role, encoded, pair_of, wait_for
from tests.support.steps import Plan

TABLES = """
CREATE TABLE users (id int PRIMARY KEY, email text, secret text);
CREATE TABLE orders (id int PRIMARY KEY, user_id int, total numeric(12, 2), CONSTRAINT f FOREIGN KEY (user_id) REFERENCES users);
"""


@pytest.fixture
def shop(pair: Pair) -> Pair:
    pair.both(TABLES)
    return pair


def schema(pair: Pair, *tables: Any, **params: Any) -> dict[str, Any]:
    return {"source": pair.endpoint, "tables": list(tables or ("users", "orders")), **params}


def words(result: dict[str, Any]) -> list[str]:
    return [each["words"] for each in result["differences"]]


# Parts of tables


def test_columns_that_are_not_distributed_are_not_missed(shop: Pair) -> None:
    """Unless the target wants a value for one. Nor is a foreign key to a table of which only a part is there."""
    shop.target.sql("ALTER TABLE orders DROP CONSTRAINT f; ALTER TABLE users DROP secret")
    some = {"name": "users", "columns": ["id", "email"]}
    result = shop.target.ok("pgml_schema", **schema(shop, some, "orders", fail_on=["harmless", "breaks_apply"]))
    assert result["left_out"] == [
        {
            "name": "f",
            "table": "public.orders",
            "reason": "it refers to public.users, of which only a part is distributed",
        }
    ]
    shop.target.sql("ALTER TABLE users ADD secret text NOT NULL")
    message = shop.target.refused("pgml_schema", **schema(shop, some))
    assert "column secret of public.users is required on the target and gets no value" in message
    assert shop.target.converge("pgml_schema", **schema(shop, some, mode="apply_additive"))["changed"]
    whole = words(shop.target.ok("pgml_schema", **schema(shop, "users")))
    assert whole == []


def test_a_filtered_table_is_compared_as_a_whole_one(shop: Pair) -> None:
    shop.source.sql("ALTER TABLE users ADD age int; CREATE INDEX young ON users (age) WHERE age < 30")
    some = {"name": "users", "where": "id > 5"}
    result = shop.target.converge("pgml_schema", **schema(shop, some, mode="apply_additive"))
    assert words(result) == [
        "column age of public.users is missing on the target",
        "index young of public.users is missing on the target",
    ]
    assert (
        shop.target.ok("pgml_schema", **schema(shop, some, fail_on=["harmless", "breaks_apply"]))["differences"] == []
    )


def test_parts_are_left_out_of_the_comparison(shop: Pair) -> None:
    shop.source.sql("CREATE INDEX i ON users (email); ALTER TABLE users ADD CONSTRAINT k UNIQUE (email)")
    found = {
        parts: words(shop.target.ok("pgml_schema", **schema(shop, parts=["tables", *parts.split()])))
        for parts in ("", "indexes", "constraints")
    }
    assert found == {
        "": [],
        "indexes": ["index i of public.users is missing on the target"],
        "constraints": ["constraint k of public.users is missing on the target"],
    }


def test_sequences_tell_how_far_they_are_behind(pair: Pair) -> None:
    pair.both("CREATE TABLE t (id serial PRIMARY KEY, n bigint GENERATED ALWAYS AS IDENTITY, m int DEFAULT 0)")
    pair.source.sql("SELECT setval('t_id_seq', 1042)")
    pair.source.sql(SQL("GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO {}").format(Identifier(pair.distributor)))
    pair.target.sql("SELECT setval('t_id_seq', 1000)")
    assert pair.target.ok("pgml_schema", **schema(pair, "t"))["sequences"] == [
        {"name": "public.t_id_seq", "source": 1042, "target": 1000, "behind": 42},
        {"name": "public.t_n_seq", "source": None, "target": None, "behind": None},
    ]


# Rows that are there


def test_what_rows_got_in_steps_is_not_known(pair: Pair) -> None:
    """The table's rows have a value because of an UPDATE, which had to wait for the column: it comes without NOT NULL."""
    pair.both("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    pair.source.sql("ALTER TABLE t ADD a int; UPDATE t SET a = 7; ALTER TABLE t ALTER a SET NOT NULL")
    result = pair.target.converge("pgml_schema", **schema(pair, "t", mode="apply_additive"))
    missing = (
        "column a of public.t is missing on the target, and what rows got that were there is not known, so compare them"
    )
    assert words(result) == [missing + " afterwards"]
    assert missing[1:] in result["warnings"][0]
    assert pair.target.sql("SELECT * FROM t") == [(1, None)]
    assert words(pair.target.ok("pgml_schema", **schema(pair, "t"))) == [
        "column a of public.t may be NULL on the target only"
    ]
    assert "contains null values" in pair.target.refused("pgml_schema", **schema(pair, "t", mode="apply"))
    pair.target.sql("UPDATE t SET a = 7")
    assert pair.target.converge("pgml_schema", **schema(pair, "t", mode="apply"))["changed"]


def test_what_users_added_does_not_keep_tables_from_coming(pair: Pair) -> None:
    """And a new partition has it, too. The table itself stays as it is, until somebody alters it."""
    pair.both(
        "CREATE TABLE p (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);"
        " CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100)"
    )
    pair.source.sql(
        "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (200); CREATE TABLE n (id int PRIMARY KEY)"
    )
    pair.target.sql(
        "ALTER TABLE p ADD mine text DEFAULT 'own'; ALTER TABLE p ADD CONSTRAINT k CHECK (v > 0);"
        " CREATE UNIQUE INDEX u ON p (id, v)"
    )
    pair.grant()
    result = pair.target.converge("pgml_schema", **schema(pair, "p", "n", mode="create_missing"))
    assert sorted(result["changes"]) == ["Create table public.n", "Create table public.p2"]
    pair.target.sql("INSERT INTO p VALUES (150, 1)")
    assert pair.target.sql("SELECT tableoid::regclass::text, * FROM p") == [("p2", 150, 1, "own")]
    left = pair.target.ok("pgml_schema", **schema(pair, "p", "n", fail_on=[]))["differences"]
    assert [(each["class"], each["kind"], each["object"], each["name"]) for each in left] == [
        ("breaks_apply", "constraint", "public.p", "k"),
        ("harmless", "column", "public.p", "mine"),
        ("harmless", "index", "public.p", "u"),
    ]


@pytest.mark.parametrize("key", ["", ", PRIMARY KEY (id, d)"])
def test_a_partition_is_distributed_by_itself(pair: Pair, key: str) -> None:
    """As a table, with what it has of its parent; nobody misses the parent, whether the target has it or not."""
    pair.source.sql(
        f"CREATE TABLE p (id int NOT NULL, d int{key}) PARTITION BY LIST (d); CREATE INDEX ON p (id);"
        " CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1); CREATE TABLE p2 PARTITION OF p FOR VALUES IN (2)"
    )
    pair.grant()
    result = pair.target.converge("pgml_schema", **schema(pair, "p1", mode="create_missing"))
    assert "Create table public.p1" in result["changes"]
    everything = ["breaks_apply", "harmless"]
    assert not words(pair.target.ok("pgml_schema", **schema(pair, "p1", fail_on=everything)))
    pair.source.sql("ALTER TABLE p ADD a int")
    assert pair.target.converge("pgml_schema", **schema(pair, "p1", mode="apply_additive"))["changes"] == [
        "Add column a to public.p1"
    ]
    assert not words(pair.target.ok("pgml_schema", **schema(pair, "p1", fail_on=everything)))


def test_what_fails_for_one_table_is_done_for_another(pair: Pair) -> None:
    """A view that somebody made on the replica keeps a type from being altered."""
    pair.both("CREATE TABLE a (id int PRIMARY KEY, v int); CREATE TABLE z (id int PRIMARY KEY)")
    pair.source.sql("ALTER TABLE a ALTER v TYPE bigint; ALTER TABLE z ADD n int")
    pair.target.sql("CREATE VIEW mine AS SELECT v FROM a")
    result = pair.target.run("pgml_schema", **schema(pair, "a", "z", mode="apply"))
    assert result["failed"] and "mine" in result["msg"] and "Make column v of public.a bigint" in result["msg"]
    left = words(pair.target.ok("pgml_schema", **schema(pair, "a", "z", fail_on=[])))
    assert left == ["column v of public.a is bigint on the source and integer on the target"]


# Databases


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("UTF8", "LATIN1", ["breaks_apply", "UTF8", "LATIN1"]),
        ("LATIN1", "UTF8", ["harmless", "LATIN1", "UTF8"]),
    ],
)
def test_encodings_are_compared(pair: Pair, source: str, target: str, expected: list[str]) -> None:
    """Of those that only one side has, characters may be missing."""
    encoded(pair.source, source)
    encoded(pair.target, target)
    pair.both('CREATE TABLE "Größe" (id int PRIMARY KEY, "é" text)')
    pair.source.sql('ALTER TABLE "Größe" ADD "ü" text DEFAULT \'ß\'')
    result = pair.target.run("pgml_schema", **schema(pair, '"Größe"'))
    found = [
        [each["class"], each["source"], each["target"]] for each in result["differences"] if each["kind"] == "database"
    ]
    assert found == [expected]
    assert result["failed"] and 'column ü of public."Größe" is missing on the target' in result["msg"].replace(
        '"ü"', "ü"
    )
    pair.target.run("pgml_schema", **schema(pair, '"Größe"', mode="apply_additive"))
    assert pair.target.sql(
        "SELECT attname FROM pg_attribute WHERE attrelid = '\"Größe\"'::regclass AND attnum = 3"
    ) == [("ü",)]


SHOWN = {
    "timezone": "Europe/Berlin",
    "quote_all_identifiers": "on",
    "bytea_output": "escape",
    "extra_float_digits": "-5",
    "search_path": "elsewhere",
    "datestyle": "SQL",
    "intervalstyle": "iso_8601",
}


def test_how_a_database_shows_values_makes_no_difference(pair: Pair) -> None:
    """Bounds and defaults are the same moments in whatever time zone."""
    pair.both(
        "CREATE TABLE p (id int, at timestamptz DEFAULT '2026-01-01 00:00:00+00', b bytea DEFAULT '\\xdead',"
        " d interval DEFAULT '1 day 02:00',"
        " f float CHECK (f <> '0.1234567891'), PRIMARY KEY (id, at), CHECK (at > '2020-01-01 00:00:00+00'))"
        " PARTITION BY RANGE (at);"
        " CREATE TABLE p1 PARTITION OF p FOR VALUES FROM ('2026-01-01 00:00:00+00') TO ('2027-01-01 00:00:00+00');"
        " CREATE INDEX ON p (id) WHERE at > '2026-01-01 00:00:00+00'"
    )
    for name, value in SHOWN.items():
        pair.source.sql(f"ALTER DATABASE {pair.source.database} SET {name} TO '{value}'")
    assert words(pair.target.ok("pgml_schema", **schema(pair, "p"))) == []


def test_an_older_server_spells_the_checks_of_domains_its_own_way(primary: Cluster, servers: Any) -> None:
    check = "CREATE DOMAIN mail AS text CHECK (position('@' in VALUE) > 0); CREATE TABLE t (id int PRIMARY KEY, a mail)"
    with pair_of(primary, servers.get(13, "replica")) as pair:
        pair.both(check)
        assert words(pair.target.ok("pgml_schema", **schema(pair, "t"))) == []
        pair.target.sql("ALTER DOMAIN mail ADD CONSTRAINT k CHECK (position('.' in VALUE) > 0)")
        expected = "k of type mail is on the target only, and may refuse values that the source has"
        assert expected in pair.target.refused("pgml_schema", **schema(pair, "t"))


def test_a_not_null_that_is_not_validated_refuses_new_rows(servers: Any) -> None:
    """PostgreSQL 18 has it: rows that come are looked at, those that were there are not."""
    table = "CREATE TABLE t (id int PRIMARY KEY, a int)"
    invalid = "ALTER TABLE t ADD CONSTRAINT n NOT NULL a NOT VALID"
    with pair_of(servers.get(18, "primary"), servers.get(18, "replica")) as pair:
        pair.both(table)
        pair.target.sql(invalid)
        pair.grant()
        expected = "column a of public.t may be NULL on the source only"
        assert expected in pair.target.refused("pgml_schema", **schema(pair, "t"))
        pair.source.sql(invalid)
        assert words(pair.target.ok("pgml_schema", **schema(pair, "t"))) == []
        pair.target.sql("ALTER TABLE t ALTER a DROP NOT NULL")
        assert words(pair.target.ok("pgml_schema", **schema(pair, "t"))) == []
        pair.target.sql("ALTER TABLE t ALTER a SET NOT NULL")
        assert expected in pair.target.refused("pgml_schema", **schema(pair, "t"))
        assert pair.target.converge("pgml_schema", **schema(pair, "t", mode="apply_additive"))["changed"]


def test_the_ddl_can_be_run_as_it_stands(pair: Pair, tmp_path: Path) -> None:
    """Whatever names and texts hold; and what is for the source, or has to be thought about, is not run."""
    pair.both('CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE "kept\n;" (id int PRIMARY KEY)')
    pair.source.sql(
        'ALTER TABLE t ADD "a\nDROP TABLE ""kept\n;""; --" int;'
        "CREATE FUNCTION f(n int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN\n"
        "-- why\n\nSET LOCAL work_mem = '1MB';\nSET default_tablespace = '';\nRETURN n; END $$;"
        "CREATE TABLE n (id int PRIMARY KEY DEFAULT f(3), v text DEFAULT 'a\n\n-- b\nSET c', UNIQUE (v));"
        "CREATE TABLE r (id int, b int); CREATE PUBLICATION p FOR TABLE r"
    )
    pair.target.sql("CREATE TABLE r (id int, a int)")
    pair.grant()
    options = {"source": pair.endpoint, "schemas": ["public"], "fail_on": []}
    script = tmp_path / "mend.sql"
    script.write_text("\n".join(pair.target.ok("pgml_schema", **options)["ddl"]), encoding="utf-8")
    pair.target.cluster.psql(script, pair.target.database)
    left = words(pair.target.ok("pgml_schema", **options))
    assert [each.split(" ")[0] for each in left] == ["column", "UPDATE"], left
    function = "SELECT prosrc FROM pg_proc WHERE proname = 'f'"
    assert pair.source.value(function) == pair.target.value(function)
    assert pair.target.value("SELECT relreplident FROM pg_class WHERE relname = 'r'") == "d"


def test_versions_of_extensions_are_compared(pair: Pair) -> None:
    older = "SELECT version FROM pg_available_extension_versions WHERE name = 'hstore' ORDER BY version"
    versions = [version for (version,) in pair.source.sql(older)]
    if len(versions) < 2:
        pytest.skip("the server has no two versions of hstore")
    pair.source.sql(
        f"CREATE EXTENSION hstore VERSION '{versions[-1]}'; CREATE TABLE t (id int PRIMARY KEY, facts hstore)"
    )
    pair.target.sql(
        f"CREATE EXTENSION hstore VERSION '{versions[-2]}'; CREATE TABLE t (id int PRIMARY KEY, facts hstore)"
    )
    pair.source.sql("CREATE EXTENSION citext")
    pair.grant()
    result = pair.target.ok("pgml_schema", **schema(pair, "t"))
    assert [(each["class"], each["kind"], each["object"], each["words"]) for each in result["differences"]] == [
        (
            "harmless",
            "extension",
            "hstore",
            f"extension hstore is version {versions[-1]} on the source and {versions[-2]} on the target",
        )
    ]
    for statement in result["differences"][0]["statements"]:
        pair.target.sql(statement)
    assert not pair.target.ok("pgml_schema", **schema(pair, "t"))["differences"]


def test_a_database_is_compared_with_itself(shop: Pair) -> None:
    """A replica's login that leads to the primary finds nothing to mend there."""
    for mode in ("check", "create_missing", "apply"):
        result = shop.source.run("pgml_schema", **schema(shop, mode=mode))
        assert not result["changed"] if not result.get("failed") else "source and target at once" in result["msg"]


# Rights


@pytest.fixture
def clerk(shop: Pair) -> Iterator[dict[str, Any]]:
    """A role on the target that may only read."""
    name, password = "clerk_of_" + shop.target.database, "clerk's own"
    create_role(shop.target.cluster, name, "LOGIN", password)
    yield {"login_user": name, "login_password": password}
    shop.target.sql(SQL("DROP OWNED BY {0} CASCADE").format(Identifier(name)))
    shop.target.cluster.sql(SQL("DROP ROLE {}").format(Identifier(name)))


def test_few_rights_are_enough_to_compare(shop: Pair, clerk: dict[str, Any]) -> None:
    """Catalogs are open to everybody; what has to be altered belongs to somebody."""
    shop.source.sql("ALTER TABLE users ADD age int")
    shop.source.sql(SQL("REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {}").format(Identifier(shop.distributor)))
    result = shop.target.ok("pgml_schema", **schema(shop, **clerk, fail_on=[]))
    assert words(result) == ["column age of public.users is missing on the target"]
    message = shop.target.refused("pgml_schema", **schema(shop, **clerk, mode="apply_additive"))
    assert "must be owner of table users" in message and "public.users" in message


def test_a_type_that_may_not_be_created_keeps_no_column_from_coming(shop: Pair, clerk: dict[str, Any]) -> None:
    shop.source.sql("ALTER TABLE users ADD age int; CREATE SCHEMA other; CREATE TYPE other.mood AS ENUM ('glad')")
    shop.source.sql("CREATE TABLE moods (id int PRIMARY KEY, mood other.mood)")
    shop.grant()
    shop.target.sql(SQL("ALTER TABLE users OWNER TO {}").format(Identifier(clerk["login_user"])))
    result = shop.target.run("pgml_schema", **schema(shop, "users", "moods", **clerk, mode="apply_additive"))
    assert result["failed"] and "permission denied for database" in result["msg"]
    left = shop.target.ok("pgml_schema", **schema(shop, "users", "moods", fail_on=[]))
    assert words(left) == ["table public.moods is missing on the target"]


def test_the_source_has_to_let_its_tables_be_read_when_one_is_missing(shop: Pair) -> None:
    shop.target.sql("DROP TABLE orders")
    shop.source.sql(SQL("REVOKE ALL ON users, orders FROM {}").format(Identifier(shop.distributor)))
    message = shop.target.refused("pgml_schema", **schema(shop, mode="create_missing"))
    assert "permission denied for table orders" in message
    assert shop.source.cluster.password not in message and shop.password not in message


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_wrong_password_is_said_without_it(shop: Pair, side: str) -> None:
    if side == "source":
        result = shop.target.run("pgml_schema", **schema(shop, source={**shop.endpoint, "password": "Wr0ng!pass"}))
    else:
        result = shop.target.run("pgml_schema", **schema(shop, login_password="Wr0ng!pass"))
    assert result["failed"] and "password authentication failed" in result["msg"]
    assert "Wr0ng!pass" not in str(result)
    assert result["option"] == {"source": "source", "target": "login"}[side]


# Locks, and runs that are killed


BY_TWO = "ALTER TABLE {} ADD first int, ADD second int"
WAITING = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


def test_a_run_that_is_killed_is_gone_on_with(shop: Pair, tmp_path: Path) -> None:
    """It waits for the second table's lock, when the first table is altered."""
    for table in ("orders", "users"):
        shop.source.sql(BY_TWO.format(table))
    options = schema(shop, mode="apply_additive")
    with shop.target.transaction("LOCK TABLE users IN ACCESS SHARE MODE"):
        plan = Plan(str(tmp_path))
        with ending(Process(shop.target, tmp_path / "tmp", options, "pgml_schema", plan)) as process:
            wait_for(lambda: shop.target.sql(WAITING), 20, "the module to wait for the lock")
            process.kill()
    wait_for(lambda: not shop.target.sql(WAITING), 20, "its session to end")
    columns = "SELECT count(*) FROM pg_attribute WHERE attname IN ('first', 'second') AND attrelid = '{}'::regclass"
    assert [shop.target.value(columns.format(table)) for table in ("orders", "users")] == [2, 0]
    result = shop.target.converge("pgml_schema", **options)
    assert result["changes"] == ["Add column first to public.users", "Add column second to public.users"]


def test_a_lock_that_is_not_to_be_had_is_said(shop: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """With who has it, and what was done before."""
    monkeypatch.setattr(
        "ansible_collections.postgresml.distributed.plugins.module_utils.resources.mending.TARGET_LOCK_TIMEOUT",
        "300 ms",
    )
    for table in ("orders", "users"):
        shop.source.sql(BY_TWO.format(table))
    options = schema(shop, mode="apply_additive")
    with shop.target.transaction("LOCK TABLE users IN ACCESS SHARE MODE") as pid:
        result = shop.target.run("pgml_schema", **options)
    assert result["failed"] and "public.users" in result["msg"]
    assert str(pid) in result["msg"], result["msg"]
    columns = "SELECT count(*) FROM pg_attribute WHERE attname IN ('first', 'second') AND attrelid = '{}'::regclass"
    assert [shop.target.value(columns.format(table)) for table in ("orders", "users")] == [2, 0]
    assert shop.target.converge("pgml_schema", **options)["changed"]


def test_a_lock_on_the_source_does_not_hide_what_differs(shop: Pair) -> None:
    """Only what a missing table is made of can't be shown."""
    shop.source.sql("ALTER TABLE orders ADD v int")
    shop.target.sql("DROP TABLE users CASCADE")
    with shop.source.transaction("LOCK TABLE users, orders"):
        result = shop.target.run("pgml_schema", **schema(shop))
    assert (
        result["failed"]
        and "users is missing" in result["msg"]
        and "column v of public.orders is missing" in result["msg"]
    )
    assert "table public.users is missing on the target" in words(result)
    printed = result["diff"]["after"]
    assert "-- what has to be created can't be shown: " in printed
    assert 'ADD COLUMN IF NOT EXISTS "v" integer;' in printed


def test_a_row_that_a_definition_refuses_is_said(shop: Pair) -> None:
    """NULL where the source has NOT NULL: the table stays as it was, and others don't."""
    shop.source.sql("ALTER TABLE users ALTER email SET NOT NULL; ALTER TABLE orders ALTER total TYPE numeric(10, 1)")
    shop.target.sql("INSERT INTO users VALUES (1, NULL)")
    result = shop.target.run("pgml_schema", **schema(shop, mode="apply"))
    assert result["failed"] and "public.users" in result["msg"] and "contains null values" in result["msg"]
    shop.target.sql("DELETE FROM users")
    assert shop.target.converge("pgml_schema", **schema(shop, mode="apply"))["changed"]


# Many tables


def test_the_number_of_queries_does_not_grow(primary: Cluster, replica: Cluster) -> None:
    """With 100 tables as few as with 10, whether they are equal or not. That of pg_dump does, so no index may be missing."""
    counts: dict[int, list[int]] = {}
    for tables in (10, 100):
        with pair_of(primary, replica) as pair:
            pair.both(
                f"DO $$ BEGIN FOR i IN 1..{tables} LOOP EXECUTE format('CREATE TABLE t%s (id serial PRIMARY KEY, a int DEFAULT 1,"
                " b text, c numeric(10, 2) CHECK (c > 0))', i); EXECUTE format('CREATE INDEX ON t%s (a)', i); END LOOP; END $$"
            )
            counts[tables] = [counted(pair)]
            with (
                closing(pair.target.cluster.connect(pair.target.database)) as connection,
                connection.cursor() as cursor,
            ):
                for number in range(1, tables + 1):
                    cursor.execute(f"ALTER TABLE t{number} DROP b, ALTER a SET NOT NULL, ALTER c TYPE numeric(8, 2)")
            counts[tables].append(counted(pair))
    assert counts[10] == counts[100]
    assert max(counts[10]) < 60


def counted(pair: Pair) -> int:
    """How many statements both servers log."""
    with foreign.statements(pair.source) as here, foreign.statements(pair.target) as there:
        pair.target.ok("pgml_schema", source=pair.endpoint, all_tables=True, fail_on=[])
    assert here and there
    return len(here) + len(there)


def test_partitions_are_altered_with_their_table(pair: Pair) -> None:
    """Two hundred that lack three columns take no more statements than one does."""
    pair.both(
        "DO $$ BEGIN CREATE TABLE p (id int PRIMARY KEY) PARTITION BY LIST (id); FOR i IN 1..200 LOOP"
        " EXECUTE format('CREATE TABLE p%s PARTITION OF p FOR VALUES IN (%s)', i, i); END LOOP; END $$"
    )
    pair.source.sql("ALTER TABLE p ADD a int, ADD b int NOT NULL DEFAULT 5, ADD c text DEFAULT 'c'")
    with foreign.statements(pair.source) as here, foreign.statements(pair.target) as there:
        result = pair.target.ok("pgml_schema", **schema(pair, "p", mode="apply_additive"))
    assert result["changes"] == [f"Add column {name} to public.p" for name in "abc"]
    assert here and there and len(here) + len(there) < 60
    assert not words(pair.target.ok("pgml_schema", **schema(pair, "p", fail_on=["harmless", "breaks_apply"])))
