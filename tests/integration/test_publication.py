# SPDX-License-Identifier: GPL-3.0-or-later
"""Publications: what is published, in which spelling it is asked for, and that a second run changes nothing."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.support.modules import module
from tests.support.pair import Pair, Place, create_role

TABLES = """
    CREATE TABLE a (id bigint PRIMARY KEY, x int, t text, at timestamptz);
    CREATE TABLE b (id int PRIMARY KEY, x int);
    CREATE SCHEMA s;
    CREATE TABLE s.c (id int PRIMARY KEY);
    CREATE TABLE s.d (id int PRIMARY KEY);
"""


@pytest.fixture
def shop(upstream: Place) -> Place:
    """A database with the tables a, b, s.c and s.d."""
    upstream.sql(TABLES)
    return upstream


def published(place: Place, name: str = "pub") -> list[tuple[Any, ...]]:
    """The tables of a publication as its subscribers see them, with columns and filter."""
    return place.sql(
        "SELECT schemaname || '.' || tablename, attnames::text[], rowfilter FROM pg_publication_tables"
        " WHERE pubname = %s ORDER BY 1",
        [name],
    )


def names(place: Place, name: str = "pub") -> list[str]:
    return [row[0] for row in published(place, name)]


@pytest.mark.parametrize(
    "where",
    [
        "id in (1, 2,3)",
        "id BETWEEN 1 AND 5",
        "  ( (id>1) )  ",
        "id > 1 AND NOT (id = 7 OR id = 9)",
        "t LIKE '1%' OR t = '{x}' OR t ~~ '%s'",
        "id = 1 -- a comment",
        "CASE WHEN id > 5 THEN true ELSE id < 2 END",
        "A.id != 5",
    ],
)
def test_a_filter_in_another_spelling_is_no_change(shop: Place, where: str) -> None:
    params = {"name": "pub", "tables": [{"name": "a", "where": where}], "publish": ["insert"]}
    assert shop.converge("pgml_publication", **params)["changed"]
    stored = published(shop)[0][2]
    spelled = {"name": "pub", "tables": [{"name": "public.a", "where": stored}]}
    assert stored is not None
    assert not shop.ok("pgml_publication", **spelled)["changed"]


def test_filters_and_column_lists_are_added_changed_and_removed(shop: Place) -> None:
    every = ["id", "x", "t", "at"]
    steps: list[tuple[Any, list[str], str | None]] = [
        ("a", every, None),
        ({"name": "a", "where": "id > 5"}, every, "(id > 5)"),
        ({"name": "a", "where": "id > 6"}, every, "(id > 6)"),
        ({"name": "a", "where": "id > 6", "columns": ["x", "id"]}, ["id", "x"], "(id > 6)"),
        ({"name": "a", "where": "id > 6", "columns": ["id", "t"]}, ["id", "t"], "(id > 6)"),
        ({"name": "a", "columns": ["t", "id"]}, ["id", "t"], None),
        ("a", every, None),
    ]
    shop.ok("pgml_publication", name="pub", tables=["b"])
    for entry, columns, where in steps:
        result = shop.converge("pgml_publication", name="pub", tables=[entry, "b"])
        assert result["changed"], entry
        assert published(shop)[0] == ("public.a", columns, where)
        assert names(shop) == ["public.a", "public.b"]


def test_columns_in_another_order_are_no_change(shop: Place) -> None:
    shop.converge("pgml_publication", name="pub", tables=[{"name": "a", "columns": ["t", "id", "x"]}])
    again = shop.ok("pgml_publication", name="pub", tables=[{"name": "a", "columns": ["x", "t", "id"]}])
    assert not again["changed"]


def test_schemas_and_tables_mix(shop: Place) -> None:
    steps: list[tuple[dict[str, Any], list[str]]] = [
        ({"tables": ["a"], "schemas": ["s"]}, ["public.a", "s.c", "s.d"]),
        ({"tables": ["b", "s.c"], "schemas": ["s"]}, ["public.b", "s.c", "s.d"]),
        ({"tables": ["b", "s.c"], "schemas": []}, ["public.b", "s.c"]),
        ({"tables": [], "schemas": ["s", "public"]}, ["public.a", "public.b", "s.c", "s.d"]),
        ({"tables": [{"name": "a", "where": "id > 1"}], "schemas": ["s"]}, ["public.a", "s.c", "s.d"]),
    ]
    for params, expected in steps:
        assert shop.converge("pgml_publication", name="pub", **params)["changed"]
        assert names(shop) == expected


def test_tables_that_are_not_mentioned_stay(shop: Place) -> None:
    shop.ok("pgml_publication", name="pub", tables=["a"], schemas=["s"])
    assert not shop.ok("pgml_publication", name="pub", schemas=["s"])["changed"]
    assert not shop.ok("pgml_publication", name="pub", tables=["a"])["changed"]
    assert not shop.ok("pgml_publication", name="pub")["changed"]
    shop.ok("pgml_publication", name="pub", comment="words")
    assert names(shop) == ["public.a", "s.c", "s.d"]


PARTITIONED = """
    CREATE TABLE p (id int, m date, PRIMARY KEY (id, m)) PARTITION BY RANGE (m);
    CREATE TABLE p1 PARTITION OF p FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
    CREATE TABLE p2 PARTITION OF p FOR VALUES FROM ('2026-02-01') TO ('2026-03-01') PARTITION BY HASH (id);
    CREATE TABLE p2a PARTITION OF p2 FOR VALUES WITH (MODULUS 1, REMAINDER 0);
"""


def test_partitioned_tables_and_their_root(upstream: Place) -> None:
    upstream.sql(PARTITIONED)
    assert upstream.converge("pgml_publication", name="pub", tables=["p"])["changed"]
    assert names(upstream) == ["public.p1", "public.p2a"]
    assert upstream.converge("pgml_publication", name="pub", tables=["p"], via_partition_root=True)["changed"]
    assert names(upstream) == ["public.p"]
    assert not upstream.ok("pgml_publication", name="pub", tables=["p"])["changed"]
    assert upstream.ok("pgml_publication", name="pub")["publication"]["via_partition_root"] is True
    filtered = [{"name": "p", "where": "id > 1", "columns": ["id", "m"]}]
    assert upstream.converge("pgml_publication", name="pub", tables=filtered)["changed"]
    assert upstream.converge("pgml_publication", name="pub", tables=["p"], via_partition_root=False)["changed"]
    upstream.sql("CREATE TABLE p3 PARTITION OF p FOR VALUES FROM ('2026-03-01') TO ('2026-04-01')")
    assert not upstream.ok("pgml_publication", name="pub", tables=["p"])["changed"]
    assert names(upstream) == ["public.p1", "public.p2a", "public.p3"]


def test_a_filter_of_a_partitioned_table_comes_and_goes_with_its_root(upstream: Place) -> None:
    """PostgreSQL allows it only while the root is published, so the two have to change in the right order."""
    upstream.sql(
        "CREATE TABLE parted (id int, m int, PRIMARY KEY (id, m)) PARTITION BY LIST (m);"
        "CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1)"
    )
    upstream.converge("pgml_publication", name="pub", tables=["parted"])
    filtered = {"name": "parted", "where": "id > 1"}
    upstream.converge("pgml_publication", name="pub", tables=[filtered], via_partition_root=True)
    upstream.converge("pgml_publication", name="pub", tables=["parted"], via_partition_root=False)
    assert published(upstream) == [("public.parted_1", ["id", "m"], None)]


def test_inheritance_children_are_published_with_their_parent(upstream: Place) -> None:
    upstream.sql(
        "CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent);"
        "CREATE TABLE grandchild (PRIMARY KEY (id)) INHERITS (child)"
    )
    assert upstream.converge("pgml_publication", name="pub", tables=["parent"])["changed"]
    assert names(upstream) == ["public.child", "public.grandchild", "public.parent"]
    upstream.sql("CREATE TABLE latecomer (PRIMARY KEY (id)) INHERITS (parent)")
    result = upstream.converge("pgml_publication", name="pub", tables=["parent"])
    assert result["changes"] == ['Add public.latecomer to publication "pub"']


@pytest.mark.parametrize(
    ("publish", "stored"),
    [
        (["insert"], "t f f f"),
        (["truncate", "delete", "update", "insert"], "t t t t"),
        (["INSERT, Update"], "t t f f"),
        (["truncate ", " insert"], "t f f t"),
        (["insert,insert", "insert"], "t f f f"),
    ],
)
def test_publish_is_taken_in_any_order_and_spelling(shop: Place, publish: list[str], stored: str) -> None:
    shop.converge("pgml_publication", name="pub", tables=["a"], publish=publish)
    query = "SELECT format('%s %s %s %s', pubinsert, pubupdate, pubdelete, pubtruncate) FROM pg_publication"
    assert shop.value(query) == stored
    assert not shop.ok("pgml_publication", name="pub", publish=list(reversed(publish)))["changed"]


def test_truncate_is_turned_back_on(shop: Place) -> None:
    shop.ok("pgml_publication", name="pub", tables=["a"], publish=["insert", "update", "delete"])
    everything = ["insert", "update", "delete", "truncate"]
    result = shop.converge("pgml_publication", name="pub", publish=everything)
    assert result["changes"] == ["Set publish = 'insert, update, delete, truncate' of publication \"pub\""]
    assert shop.value("SELECT pubtruncate FROM pg_publication")


def test_all_tables_to_a_list_and_back_takes_recreate(shop: Place) -> None:
    assert shop.converge("pgml_publication", name="pub", tables=["a"])["changed"]
    message = shop.refused("pgml_publication", name="pub", all_tables=True)
    assert '"pub" is not for all tables' in message and "recreate" in message
    options = {"publish": ["insert"], "comment": "kept"}
    assert shop.converge("pgml_publication", name="pub", all_tables=True, recreate=True, **options)["changed"]
    assert names(shop) == ["public.a", "public.b", "s.c", "s.d"]
    message = shop.refused("pgml_publication", name="pub", tables=["a"])
    assert '"pub" is for all tables' in message and "recreate" in message
    assert shop.converge("pgml_publication", name="pub", tables=["a"], recreate=True)["changed"]
    assert names(shop) == ["public.a"]
    publication = shop.ok("pgml_publication", name="pub")["publication"]
    assert publication["publish"] == ["insert"] and publication["comment"] == "kept"


def test_recreate_alone_changes_nothing(shop: Place) -> None:
    shop.ok("pgml_publication", name="pub", tables=["a"])
    assert not shop.converge("pgml_publication", name="pub", tables=["a"], recreate=True)["changed"]


AWKWARD = [
    "We.ird",
    'qu"ote',
    "sp ace",
    "Capital",
    "größe 表",
    "semi;colon--",
    "per%cent%s",
    "{brace}",
    "back\\slash",
    "'",
]


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_names_work_everywhere(upstream: Place, name: str) -> None:
    quoted = '"' + name.replace('"', '""') + '"'
    upstream.sql(
        f"CREATE SCHEMA {quoted}; CREATE TABLE {quoted}.{quoted} ({quoted} int PRIMARY KEY)".replace("%", "%%"), []
    )
    create_role(upstream.cluster, name, "SUPERUSER", "x")
    try:
        entry = {"name": f"{quoted}.{quoted}", "columns": [name], "where": f"{quoted} > 1"}
        params = {"name": name, "tables": [entry], "owner": name, "comment": name}
        assert upstream.converge("pgml_publication", **params)["changed"]
        assert names(upstream, name) == [f"{name}.{name}"]
        mixed = {"name": name, "tables": [f"{quoted}.{quoted}"], "schemas": [name]}
        assert upstream.converge("pgml_publication", **mixed)["changed"]
        assert upstream.converge("pgml_publication", name=name, state="absent")["changed"]
    finally:
        upstream.sql(f"DROP OWNED BY {quoted} CASCADE; DROP ROLE {quoted}".replace("%", "%%"), [])


def test_owner_and_comment(shop: Place, pair: Pair) -> None:
    create_role(shop.cluster, "Owner, too", "SUPERUSER", "x")
    try:
        first = shop.converge("pgml_publication", name="pub", tables=["a"], owner="Owner, too", comment="it's")
        assert len(first["changes"]) == 3
        assert shop.value("SELECT pg_get_userbyid(pubowner) FROM pg_publication") == "Owner, too"
        assert shop.value("SELECT obj_description(oid, 'pg_publication') FROM pg_publication") == "it's"
        assert shop.converge("pgml_publication", name="pub", owner="postgres", comment="")["changed"]
        assert shop.value("SELECT obj_description(oid, 'pg_publication') FROM pg_publication") is None
        message = shop.refused("pgml_publication", name="pub", owner="nobody here")
        assert 'role "nobody here" does not exist' in message
    finally:
        shop.sql('DROP ROLE "Owner, too"')


def test_generated_columns_on_18(newest: Pair) -> None:
    upstream = newest.source
    upstream.sql("CREATE TABLE g (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED)")
    assert upstream.converge("pgml_publication", name="pub", tables=["g"])["changed"]
    assert published(upstream)[0][1] == ["id"]
    assert upstream.converge("pgml_publication", name="pub", generated_columns="stored")["changed"]
    assert published(upstream)[0][1] == ["id", "twice"]
    assert upstream.converge("pgml_publication", name="pub", generated_columns="none")["changed"]
    assert upstream.converge("pgml_publication", name="new", tables=["g"], generated_columns="stored")["changed"]
    assert published(upstream, "new")[0][1] == ["id", "twice"]


def test_generated_columns_need_18(shop: Place) -> None:
    if shop.cluster.major >= 18:
        pytest.skip("this server is new enough")
    message = shop.refused("pgml_publication", name="pub", tables=["a"], generated_columns="stored")
    assert "generated_columns needs PostgreSQL 18 or later" in message


def test_check_mode_and_diff_show_both_sides(shop: Place) -> None:
    shop.ok("pgml_publication", name="pub", tables=["a"])
    result = shop.converge("pgml_publication", name="pub", tables=[{"name": "a", "where": "id>1"}, "b"])
    before, after = result["diff"]["before"], result["diff"]["after"]
    assert [table["name"] for table in before["tables"]] == ["public.a"]
    assert after["tables"][0] == {"name": "public.a", "columns": None, "where": "(id > 1)"}
    assert after == result["publication"]
    removed = shop.converge("pgml_publication", name="pub", state="absent")
    assert removed["diff"]["after"] == {} and removed["diff"]["before"] == after
    assert "diff" not in module("pgml_publication", {**shop.login, "name": "pub", "tables": ["a"]}, diff=False)


def test_a_filter_is_asked_of_the_server_without_locking_the_table(shop: Place) -> None:
    """A vacuum holds SHARE UPDATE EXCLUSIVE, writers hold ROW EXCLUSIVE: neither is in the way of the question."""
    with shop.transaction("LOCK TABLE a IN SHARE UPDATE EXCLUSIVE MODE", "LOCK TABLE a IN ROW EXCLUSIVE MODE"):
        result = shop.ok("pgml_publication", check=True, name="pub", tables=[{"name": "a", "where": "id>1"}])
    assert result["publication"]["tables"][0]["where"] == "(id > 1)"


def test_many_tables_take_one_call(upstream: Place) -> None:
    upstream.sql(
        "DO $$ BEGIN FOR i IN 1..300 LOOP EXECUTE 'CREATE TABLE t' || i || ' (id int PRIMARY KEY)'; END LOOP; END $$"
    )
    tables = [f"t{i}" for i in range(1, 301)]
    assert upstream.converge("pgml_publication", name="pub", tables=tables)["changed"]
    seen = len(upstream.cluster.log())
    assert not upstream.ok("pgml_publication", name="pub", tables=tables)["changed"]
    assert upstream.cluster.log()[seen:].count("LOG:  statement:") < 15


def test_the_room_for_wal_is_returned_where_it_can_be_seen(shop: Place) -> None:
    """It is no change, and nothing that a second run would compare."""
    status = os.statvfs(shop.cluster.data / "pg_wal")
    result = shop.converge("pgml_publication", name="pub", tables=["a"])
    assert result["wal_space"] == pytest.approx(status.f_bavail * status.f_frsize, rel=0.5)
    create_role(shop.cluster, "keeper of a", "LOGIN", "secret")
    try:
        shop.sql('GRANT CREATE ON DATABASE {} TO "keeper of a"'.format(shop.database))
        shop.sql('ALTER PUBLICATION pub OWNER TO "keeper of a"; ALTER TABLE a OWNER TO "keeper of a"')
        login = {"login_user": "keeper of a", "login_password": "secret"}
        assert shop.ok("pgml_publication", name="pub", tables=["a"], **login)["wal_space"] is None
    finally:
        shop.sql('REASSIGN OWNED BY "keeper of a" TO postgres; DROP OWNED BY "keeper of a"; DROP ROLE "keeper of a"')
