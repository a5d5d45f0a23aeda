# SPDX-License-Identifier: GPL-3.0-or-later
"""Local snapshots of foreign tables: equal to what they were taken from, taken again when it is time, exchanged in an instant."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from tests.conftest import Servers
from tests.support import copies
from tests.support.pair import Pair, encoded, pair_of
from tests.support.snapshots import (
    FAR,
    MODULE,
    TABLES,
    age,
    columns,
    content,
    converge,
    entry,
    indexes,
    moment,
    not_read,
    now,
    options,
    prepare,
    reads,
    refused,
    remembered,
    residue,
    set_version,
    state,
    take,
    types,
    version,
)

pytestmark = pytest.mark.slow

A = {"relation": "far.a", "into": "kept.a"}


@pytest.fixture
def far(pair: Pair) -> Pair:
    """Two tables at the source, whose rows all have the same v."""
    return prepare(pair, TABLES)


@pytest.fixture
def shop(pair: Pair) -> Pair:
    """The sample shop, and its types at the target."""
    copies.load_shop(pair, 0.02)
    pair.sql_target(
        "CREATE TYPE order_status AS ENUM ('placed', 'paid', 'shipped', 'delivered', 'returned', 'cancelled');"
        "CREATE DOMAIN email_address AS text CHECK (VALUE ~ '^[^@[:space:]]+@[^@[:space:]]+$')"
    )
    return prepare(pair, "SELECT 1")


# Equal


SHOP = {"users", "categories", "products", "orders", "Order Lines", "payments", "page_views", "audit_log", "stock"}


def test_the_shop_is_kept_as_it_is(shop: Pair) -> None:
    """By the distributor, from tables and a partitioned one; every type of a column is the same."""
    imports = [{"remote_schema": name, "local_schema": FAR} for name in ("public", "warehouse")]
    kept = [{"relation": f'far."{name}"', "into": f'kept."{name}"'} for name in sorted(SHOP)]
    began = now(shop.source)
    result = converge(shop, *kept, imports=imports)
    ended = now(shop.source)
    remote = {table["name"]: table["remote"] for table in result["tables"]}
    assert len(result["snapshots"]) == len(SHOP) <= len(remote)
    for name in SHOP:
        here = next(there for local, there in remote.items() if local in (f"far.{name}", f'far."{name}"'))
        table = f'kept."{name}"'
        assert content(shop.target, table) == content(shop.source, here)
        assert types(shop.target, table) == types(shop.source, here)
        found = entry(result, f"kept.{name}" if name.islower() else table)
        assert found["rows"] == content(shop.source, here)[0] > 10 and found["refreshed"]
        assert began <= moment(found["taken_at"]) <= ended
        assert shop.sql_target("SELECT relkind::text FROM pg_class WHERE oid = %s::regclass", [table]) == [("r",)]


_NOT_IMPORTED = (
    "SELECT 'zoo.history' UNION SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relname ~ '\n'"
)
"""One has columns of the row type of a table, which the target has not. PostgreSQL itself can't estimate those whose names have
lines."""


def test_the_zoo_is_kept_as_it_is(pair: Pair) -> None:
    """With every odd value, name and kind of table, read by a superuser, whom no policy hides rows from."""
    for place in (pair.source, pair.target):
        place.cluster.psql(copies.ZOO, place.database)
    # Types, functions and extensions stay.
    found = pair.sql_target(
        "SELECT format('%I.%I', nspname, relname) FROM pg_class JOIN pg_namespace AS n ON n.oid = relnamespace"
        " WHERE relkind IN ('r', 'p') AND NOT relispartition AND nspname !~ '^pg_|^information_schema$'"
    )
    pair.sql_target(f"DROP TABLE {', '.join(name for (name,) in found)} CASCADE")
    prepare(pair, "SELECT 1")
    superuser = pair.source.cluster.source(pair.source.database)
    not_imported = [name for (name,) in pair.sql_source(_NOT_IMPORTED)]
    params: dict[str, Any] = {"source": superuser, "imports": [{"except": not_imported}], "server": "z"}
    tables = {table["remote"]: table["name"] for table in take(pair, **params)["tables"]}
    kept = {remote: kept_name(pair, local) for remote, local in tables.items()}
    result = converge(pair, *({"relation": tables[remote], "into": kept[remote]} for remote in tables), **params)
    assert len(kept) > 25
    rows = {each["name"]: each["rows"] for each in result["snapshots"]}
    for remote, table in kept.items():
        assert content(pair.target, table) == content(pair.source, remote), remote
        assert types(pair.target, table) == types(pair.source, remote), remote
        assert rows[table] == content(pair.source, remote)[0], remote


def kept_name(pair: Pair, local: str) -> str:
    """The name in another schema."""
    name: str = pair.target.value(
        "SELECT format('%%I.%%I', nspname || '_kept', relname) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace"
        " WHERE c.oid = %s::regclass",
        [local],
    )
    return name


@pytest.mark.sampled(3)
@pytest.mark.parametrize("majors", [(13, 13), (14, 14), (16, 16), (17, 17), (18, 18), (13, 18), (18, 13)])
def test_on_other_major_versions(servers: Servers, majors: tuple[int, int]) -> None:
    """A part of a table, and a query, from one version to the same or another one."""
    with pair_of(servers.get(majors[0], "primary"), servers.get(majors[1], "replica")) as pair:
        prepare(pair, TABLES)
        kept: list[dict[str, Any]] = [
            {**A, "where": "id % 2 = 0", "indexes": [["id"]]},
            {
                "query": "SELECT v, sum(price) AS price FROM far.a GROUP BY v",
                "into": "kept.sums",
                "numeric_to_float8": True,
            },
        ]
        pair.target.converge(MODULE, **options(pair, *kept))
        for number in (1, 2):
            assert content(pair.target, "kept.a") == content(pair.source, "a", where="id % 2 = 0")
            sums = pair.sql_source("SELECT v, sum(price)::float8 FROM a GROUP BY v")
            assert pair.sql_target("SELECT * FROM kept.sums") == sums and sums[0][0] == number
            set_version(pair, number + 1)
            assert take(pair, *({**each, "refresh": "always"} for each in kept))["changed"]


def test_the_conditions_of_an_import_and_of_a_snapshot_both_hold(far: Pair) -> None:
    imports = [
        {
            "tables": [{"name": "a", "where": "id <= 300 AND v = 1", "columns": ["id", "v", "price"]}],
            "local_schema": FAR,
        }
    ]
    seen = len(far.source.cluster.log())
    converge(far, {**A, "where": "id > 250 OR price < 10"}, imports=imports)
    wanted = content(far.source, "a", columns(far.target, "kept.a"), "id <= 300 AND v = 1 AND (id > 250 OR price < 10)")
    assert content(far.target, "kept.a") == wanted and wanted[0] == 119
    assert columns(far.target, "kept.a") == ['"id"', '"price"', '"v"']
    # The source sends no row that isn't wanted.
    assert all(re_in("300", each) and re_in("250", each) for each in reads(far.source, seen)), reads(far.source, seen)


def re_in(text: str, line: str) -> bool:
    return text in line or "FETCH" in line


def test_a_query_with_a_join_and_an_aggregate(shop: Pair) -> None:
    query = """SELECT u.country, o.status, count(*) AS orders, sum("Line Total") AS "Total", max(o.placed_at) AS "last one's"
        FROM {0}users AS u JOIN {0}orders AS o USING (user_id) JOIN {0}"Order Lines" AS l USING (order_id)
        GROUP BY u.country, o.status -- and nothing else"""
    result = converge(shop, {"query": query.format("far."), "into": "kept.countries"})
    names = '"country"', '"status"', '"orders"', '"Total"', '"last one\'s"'
    wanted = content(shop.source, f"({query.format('public.')}\n)", names)
    assert content(shop.target, "kept.countries", names) == wanted and wanted[0] > 20
    assert entry(result, "kept.countries")["rows"] == wanted[0]
    assert types(shop.target, "kept.countries") == {
        "country": "character(2)",
        "status": "order_status",
        "orders": "bigint",
        "Total": "numeric",
        "last one's": "timestamp with time zone",
    }


@pytest.mark.parametrize(
    "query", ["TABLE far.a", "VALUES (1, 'one'), (2, NULL)", "WITH w AS (SELECT * FROM far.a) TABLE w"]
)
def test_a_query_need_not_begin_with_select(far: Pair, query: str) -> None:
    result = converge(far, {"query": query, "into": "kept"})
    assert content(far.target, "public.kept") == content(far.target, f"({query})", columns(far.target, "kept"))
    assert entry(result, "public.kept")["rows"] > 1


def test_somebodys_own_view_of_both_sides(far: Pair) -> None:
    take(far)
    far.sql_target(
        "CREATE TABLE labels (v int, label text); INSERT INTO labels VALUES (1, 'first');"
        'CREATE VIEW "My View" AS SELECT id, price, label FROM far.a JOIN labels USING (v)'
    )
    converge(far, {"relation": '"My View"', "where": "label = 'first' AND id < 10", "into": "kept.mine"})
    assert content(far.target, "kept.mine") == content(far.target, '"My View"', where="id < 10")
    assert far.sql_target("SELECT count(*) FROM kept.mine") == [(9,)]


def test_times_without_a_zone_are_those_of_the_target(far: Pair) -> None:
    """As they are when the target evaluates the condition."""
    far.sql_source(
        "CREATE TABLE t (at timestamptz);"
        "INSERT INTO t SELECT timestamptz '2026-01-01 00:00+00' + g * interval '1 h' FROM generate_series(-20, 20) AS g"
    )
    far.grant()
    far.sql_source(f"ALTER DATABASE \"{far.source.database}\" SET timezone = 'America/New_York'")
    far.sql_target(f"ALTER DATABASE \"{far.target.database}\" SET timezone = 'Asia/Tokyo'")
    where = "at >= '2026-01-01 00:00'"
    imports = [
        {"remote_schema": "public", "local_schema": FAR},
        {"tables": [{"name": "t", "where": where}], "local_schema": "part"},
    ]
    kept = [
        {"relation": "far.t", "where": where, "into": "kept.t"},
        {"relation": "part.t", "into": "kept.part"},
        {"query": f"SELECT * FROM far.t WHERE {where}", "into": "kept.queried"},
    ]
    take(far, *kept, imports=imports)
    wanted = content(far.target, f"(SELECT * FROM far.t WHERE {where})", ["at"])
    assert wanted[0] == 30
    for each in kept:
        assert content(far.target, each["into"]) == wanted, each


def test_a_login_that_is_no_superuser(far: Pair) -> None:
    login = f"{far.distributor}_login"
    far.sql_target(
        f"CREATE ROLE {login} LOGIN PASSWORD 'x'; GRANT CREATE ON DATABASE \"{far.target.database}\" TO {login};"
        f"GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO {login}"
    )
    try:
        as_login: dict[str, Any] = {"login_user": login, "login_password": "x"}
        kept: list[dict[str, Any]] = [
            {**A, "refresh": "always", "indexes": [["id"]], "numeric_to_float8": True},
            {"query": "SELECT * FROM far.a", "into": "kept.queried", "refresh": "always"},
        ]
        for number in (1, 2):
            take(far, *kept, **as_login)
            assert version(far) == version(far, "kept.queried") == number
            set_version(far, number + 1)
        assert far.sql_target("SELECT tableowner FROM pg_tables WHERE schemaname = 'kept'") == [(login,)] * 2
        far.target.ok(MODULE, server="shop", state="absent", **as_login)
        assert residue(far) == []
    finally:
        far.sql_target(f"DROP OWNED BY {login} CASCADE; DROP ROLE {login}")


def test_numerics_become_float8_where_that_is_asked_for(far: Pair) -> None:
    far.sql_source(
        "INSERT INTO b VALUES (1001, 1, 'NaN'), (1002, 1, NULL), (1003, 1, 12345678901234567890.12345), (1004, 1, 1e-30);"
        "CREATE TABLE many (one numeric, two numeric(10, 3), three numeric[], four int, five real);"
        "INSERT INTO many VALUES (0.1, 0.1, '{0.1}', 1, 0.1)"
    )
    far.grant()
    kept: list[dict[str, Any]] = [
        {"relation": "far.b", "into": "kept.exact"},
        {"relation": "far.b", "into": "kept.float", "numeric_to_float8": True},
        {"query": "SELECT a, sum(amount) AS s FROM far.b GROUP BY a", "into": "kept.sums", "numeric_to_float8": True},
        {"relation": "far.many", "into": "kept.many", "numeric_to_float8": True},
    ]
    converge(far, *kept)
    assert content(far.target, "kept.exact") == content(far.source, "b")
    assert types(far.target, "kept.exact")["amount"] == "numeric"
    assert content(far.target, "kept.float", ["id", "amount"]) == content(far.source, "b", ["id", "amount::float8"])
    assert types(far.target, "kept.float") == {"id": "integer", "a": "integer", "amount": "double precision"}
    assert types(far.target, "kept.sums") == {"a": "integer", "s": "double precision"}
    assert content(far.target, "kept.sums", ["a", "s"]) == content(
        far.source, "(SELECT a, sum(amount)::float8 AS s FROM b GROUP BY a)", ["a", "s"]
    )
    found = types(far.target, "kept.many")
    assert (found["one"], found["two"]) == ("double precision", "double precision")
    assert (found["four"], found["five"]) == ("integer", "real")
    assert far.sql_target("SELECT one, two FROM kept.many") == [(0.1, 0.1)]


def test_indexes_are_built_and_keep_their_names(far: Pair) -> None:
    far.sql_source('CREATE TABLE odd (id int, "a column, ""quoted""" int, "%s" text)')
    far.grant()
    long = "sixty_three_bytes_long_so_that_nothing_can_be_put_in_front_of_it"[:63]
    kept: list[dict[str, Any]] = [
        {**A, "indexes": [["id"], ["v", "price"], ["price"]]},
        {"relation": "far.odd", "into": f"kept.{long}", "indexes": [['a column, "quoted"', "%s"], ["%s"]]},
        {"query": "SELECT id, v FROM far.a", "into": "kept.queried", "indexes": [["v", "id"]]},
    ]
    converge(far, *kept)
    tables = "kept.a", f"kept.{long}", "kept.queried"
    found = [indexes(far.target, table) for table in tables]
    assert sorted(found[0].values()) == [["id"], ["price"], ["v", "price"]]
    assert sorted(found[1].values()) == [["%s"], ['a column, "quoted"', "%s"]]
    assert sorted(found[2].values()) == [["v", "id"]]
    assert all(name.startswith("a_") for name in found[0]) and all(name.startswith("queried_") for name in found[2])
    take(far, *({**each, "refresh": "always"} for each in kept))
    assert [indexes(far.target, table) for table in tables] == found


def test_indexes_of_the_same_name_in_turn(far: Pair) -> None:
    """PostgreSQL would call both of them a_v_id_idx, and fail when they are built at the same time."""
    one = {"query": "SELECT id, v FROM far.a", "into": "kept.a", "indexes": [["v", "id"]]}
    other = {"query": "SELECT id FROM far.a", "into": "kept.a_v", "indexes": [["id"]]}
    take(far, one, other)
    assert [*indexes(far.target, "kept.a"), *indexes(far.target, "kept.a_v")] == ["a_v_id_idx", "a_v_id_idx_1"]
    for kept in (({**one, "refresh": "always"}, other), (one, {**other, "refresh": "always"})):
        take(far, *kept)
        assert list(indexes(far.target, "kept.a").values()) == [["v", "id"]]
        assert list(indexes(far.target, "kept.a_v").values()) == [["id"]]


def test_an_index_of_somebodys_that_has_the_name(far: Pair) -> None:
    take(far, A)
    far.sql_target("CREATE TABLE kept.theirs (id int); CREATE INDEX a_id_idx ON kept.theirs (id)")
    take(far, {**A, "indexes": [["id"]]})
    assert list(indexes(far.target, "kept.a").values()) == [["id"]]
    assert indexes(far.target, "kept.theirs") == {"a_id_idx": ["id"]}


# Again, or not


def test_rows_are_not_read_again_before_their_time(far: Pair) -> None:
    kept = {**A, "max_age": 3600}
    first = entry(take(far, kept), "kept.a")
    set_version(far, 2)
    age(far.target, 3500)
    with not_read(far.source):
        result = take(far, kept)
    again = entry(result, "kept.a")
    assert not result["changed"] and not again["refreshed"] and again["rows"] == 500
    assert moment(first["taken_at"]) - moment(again["taken_at"]) == datetime.timedelta(seconds=3500)
    assert version(far) == 1
    age(far.target, 101)
    before = state(far.target)
    with not_read(far.source):
        predicted = far.target.ok(MODULE, check=True, **options(far, kept))
    assert state(far.target) == before and predicted["changed"]
    soon = entry(predicted, "kept.a")
    assert (soon["refreshed"], soon["rows"], soon["taken_at"], soon["seconds"]) == (True, None, None, None)
    result = take(far, kept)
    then = entry(result, "kept.a")
    assert result["changes"] == predicted["changes"] and then["reason"] == soon["reason"] and "3600" in then["reason"]
    assert then["refreshed"] and then["rows"] == 501 and moment(then["taken_at"]) > moment(first["taken_at"])
    assert version(far) == 2
    assert not take(far, kept)["changed"]


def test_a_day_is_the_age_unless_another_is_given(far: Pair) -> None:
    take(far, A)
    age(far.target, 86300)
    assert not take(far, A)["changed"]
    age(far.target, 101)
    assert take(far, A)["changed"] and not take(far, A)["changed"]


def test_always_and_no_age_at_all_read_each_time(far: Pair) -> None:
    ways: list[dict[str, Any]] = [{**A, "refresh": "always"}, {**A, "max_age": 0}]
    for number, kept in enumerate(ways, 2):
        take(far, kept)
        set_version(far, number)
        for _ in range(2):
            assert far.target.ok(MODULE, check=True, **options(far, kept))["changed"]
            result = take(far, kept)
            assert result["changed"] and entry(result, "kept.a")["refreshed"]
        assert content(far.target, "kept.a") == content(far.source, "a")


def test_a_lower_age_than_before_counts_at_once(far: Pair) -> None:
    take(far, A)
    age(far.target, 100)
    assert not take(far, {**A, "max_age": 200})["changed"]
    assert take(far, {**A, "max_age": 50})["changed"]


CHANGES: dict[str, dict[str, Any]] = {
    "a condition": {"where": "id < 100"},
    "indexes": {"indexes": [["v"]]},
    "the other numbers": {"numeric_to_float8": True},
    "the relation": {"relation": "far.b"},
    "a query instead": {"relation": None, "query": "SELECT id, v FROM far.a"},
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_entry_is_taken_at_once_and_so_is_the_change_back(far: Pair, what: str) -> None:
    kept = {key: value for key, value in {**A, **CHANGES[what]}.items() if value is not None}
    take(far, A)
    first = columns(far.target, "kept.a"), types(far.target, "kept.a"), content(far.target, "kept.a")
    result = converge(far, kept)
    assert entry(result, "kept.a")["refreshed"]
    then = columns(far.target, "kept.a"), types(far.target, "kept.a"), content(far.target, "kept.a")
    assert then != first or indexes(far.target, "kept.a")
    converge(far, A)
    assert (columns(far.target, "kept.a"), types(far.target, "kept.a"), content(far.target, "kept.a")) == first
    assert indexes(far.target, "kept.a") == {}


def test_another_condition_of_the_import_is_a_change(far: Pair) -> None:
    def imports(where: str) -> list[dict[str, Any]]:
        return [{"tables": [{"name": "a", "where": where}], "local_schema": FAR}]

    take(far, A, imports=imports("id < 100"))
    result = converge(far, A, imports=imports("id < 50"))
    assert entry(result, "kept.a")["rows"] == 49


def test_the_same_entry_in_other_words_is_no_change(far: Pair) -> None:
    converge(far, {**A, "indexes": [["id"]]})
    other = {"relation": '"far" . "a"', "into": '"kept".A', "indexes": [["id"]], "max_age": 90000}
    assert not take(far, other)["changed"]


def test_a_foreign_table_that_was_replaced_is_read_anew(far: Pair) -> None:
    kept = [A, {"query": "SELECT * FROM far.a", "into": "kept.queried"}, {"relation": "far.b", "into": "kept.b"}]
    take(far, *kept)
    far.sql_source("ALTER TABLE a ADD more int DEFAULT 3, DROP note, ALTER v TYPE bigint")
    result = take(far, *kept)
    assert result["drift"] and not entry(result, "kept.a")["refreshed"]
    result = converge(far, *kept, on_drift="reimport")
    assert result["drift"] == [] and entry(result, "kept.a")["refreshed"] and not entry(result, "kept.b")["refreshed"]
    assert content(far.target, "kept.a") == content(far.source, "a")
    assert types(far.target, "kept.a") == types(far.source, "a")


def test_drift_that_is_only_reported(far: Pair) -> None:
    """A snapshot has the columns of its foreign table, if the source can still give them."""
    kept = {**A, "refresh": "always"}
    take(far, kept)
    far.sql_source("ALTER TABLE a ADD more int DEFAULT 3")
    set_version(far, 2)
    result = take(far, kept)
    assert result["drift"] and version(far) == 2 and '"more"' not in columns(far.target, "kept.a")
    far.sql_source("ALTER TABLE a RENAME note TO remark")
    set_version(far, 3)
    before = state(far.target)
    result = far.target.run(MODULE, **options(far, kept))
    assert result.get("failed") and "note" in result["msg"] and result["msg"].endswith("."), result
    assert state(far.target) == before and version(far) == 2 and residue(far) == []
    assert take(far, kept, on_drift="reimport")["drift"] == []
    assert version(far) == 3 and '"remark"' in columns(far.target, "kept.a")


def test_drift_of_a_type_that_is_only_reported(far: Pair) -> None:
    """integer becomes text at the source: the rows are right, or there is a sentence, but none of them is wrong."""
    kept = {**A, "refresh": "always"}
    take(far, kept)
    far.sql_source("ALTER TABLE a ALTER v TYPE text USING v || '0', ALTER note TYPE varchar(10)")
    result = far.target.run(MODULE, **options(far, kept))
    assert residue(far) == []
    if result.get("failed"):
        assert "far.a" in result["msg"] and result["msg"].endswith("."), result["msg"]
        assert version(far) == 1
    else:
        assert far.sql_target("SELECT DISTINCT v FROM kept.a") == [(10,)]
    far.sql_source("UPDATE a SET v = 'no number' WHERE id = 400")
    before = state(far.target)
    result = far.target.run(MODULE, **options(far, kept))
    assert result.get("failed") and state(far.target) == before and residue(far) == [], result


def test_a_snapshot_that_was_dropped_comes_back(far: Pair) -> None:
    take(far, A)
    far.sql_target("DROP TABLE kept.a")
    assert entry(converge(far, A), "kept.a")["refreshed"]
    assert version(far) == 1
    far.sql_target("DROP SCHEMA kept CASCADE")
    converge(far, A)
    assert version(far) == 1


def test_a_snapshot_that_is_not_named_any_more_is_dropped(far: Pair) -> None:
    other = {"relation": "far.b", "into": "kept.b"}
    take(far, A, other)
    oid = far.sql_target("SELECT 'kept.b'::regclass::oid")
    result = converge(far, other)
    assert any("kept.a" in words for words in result["changes"])
    assert far.sql_target("SELECT to_regclass('kept.a')::text, 'kept.b'::regclass::oid") == [(None, oid[0][0])]
    converge(far)
    assert far.sql_target("SELECT to_regclass('kept.b')::text") == [(None,)]
    converge(far, A)
    assert version(far) == 1


def test_rows_that_somebody_deleted_here_are_not_counted_twice(far: Pair) -> None:
    """What the module says of rows is what it took, and refreshing brings them back."""
    take(far, A)
    far.sql_target("DELETE FROM kept.a WHERE id < 100")
    take(far, {**A, "refresh": "always"})
    assert version(far) == 1


def test_absent_leaves_nothing(far: Pair) -> None:
    before = copies.definitions(far.target)
    far.sql_target("CREATE SCHEMA there")
    there = copies.definitions(far.target)
    take(far, A, {"relation": "far.b", "into": "there.b"}, {"query": "SELECT 1 AS one", "into": "public.one"})
    far.target.converge(MODULE, server="shop", state="absent")
    assert copies.changed_lines(there, copies.definitions(far.target)) == ""
    assert before != there and residue(far) == []
    assert far.sql_target("SELECT nspname FROM pg_namespace WHERE nspname IN ('kept', 'far')") == []
    left = [row for row in remembered(far.target) if "kept" in row[1] or "shop" in row[1]]
    assert left == []


def test_absent_needs_no_source_and_names_who_depends_on_a_snapshot(far: Pair) -> None:
    take(far, A)
    far.sql_target('CREATE VIEW "on A" AS SELECT count(*) FROM kept.a')
    message = far.target.refused(MODULE, server="shop", state="absent")
    assert '"on A"' in message and "kept.a" in message
    message = refused(far)
    assert '"on A"' in message and "kept.a" in message
    assert version(far) == 1
    far.sql_target('DROP VIEW "on A"')
    far.target.ok(MODULE, server="shop", state="absent")
    assert far.sql_target("SELECT to_regclass('kept.a')::text") == [(None,)]


@pytest.mark.parametrize(("here", "there"), [("UTF8", "LATIN1"), ("LATIN1", "UTF8")])
def test_texts_come_in_the_encoding_of_the_target(pair: Pair, here: str, there: str) -> None:
    encoded(pair.source, here)
    encoded(pair.target, there)
    prepare(pair, "CREATE TABLE a (id int, word text, d name); INSERT INTO a VALUES (1, 'größe é', 'ß')")
    take(pair, A, {"query": "SELECT word, d FROM far.a", "into": "kept.b"})
    for table in ("a", "b"):
        assert pair.sql_target(f"SELECT word, d, length(word) FROM kept.{table}") == [("größe é", "ß", 7)]
