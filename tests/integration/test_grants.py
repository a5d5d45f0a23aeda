# SPDX-License-Identifier: GPL-3.0-or-later
"""The distributor's privileges: exactly what is distributed, and nothing that was there before."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg2.sql import SQL, Identifier

from tests.support.cluster import Cluster
from tests.support.pair import Pair, Place, create_role

TABLES = """
    CREATE TABLE a (id int); CREATE TABLE b (id int); CREATE VIEW v AS SELECT 1 AS x;
    CREATE SCHEMA s; CREATE TABLE s.c (id int); CREATE TABLE s.d (id int);
    CREATE SCHEMA "Odd ""S,"; CREATE TABLE "Odd ""S,"."T, ""x" (id int);
    CREATE TABLE p (id int) PARTITION BY RANGE (id);
    CREATE TABLE s.p1 PARTITION OF p FOR VALUES FROM (1) TO (9) PARTITION BY RANGE (id);
    CREATE TABLE p1a PARTITION OF s.p1 FOR VALUES FROM (1) TO (9);
"""
ODD = '"Odd ""S,"."T, ""x"'


@pytest.fixture
def shop(upstream: Place) -> Place:
    upstream.sql(TABLES)
    return upstream


@pytest.fixture
def role(pair: Pair) -> str:
    return pair.distributor


def granted(place: Place, role: str) -> dict[str, str]:
    """Everything that the access control lists of the database say of a role."""
    rows = place.sql(
        "SELECT object, string_agg(a.privilege_type || CASE WHEN a.is_grantable THEN '*' ELSE '' END, ' '"
        " ORDER BY a.privilege_type) FROM (SELECT format('%%I.%%I', n.nspname, c.relname) AS object, c.relacl AS acl"
        "  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
        "  UNION ALL SELECT nspname, nspacl FROM pg_namespace) AS o, aclexplode(o.acl) AS a"
        " WHERE a.grantee = %s::regrole GROUP BY 1",
        ['"' + role.replace('"', '""') + '"'],
    )
    return dict(rows)


def test_select_and_usage_and_nothing_else(shop: Place, role: str) -> None:
    result = shop.converge("pgml_grants", role=role, tables=["a", "s.c", ODD])
    assert result["changed"] and result["grants"]["select"] == [ODD, "public.a", "s.c"]
    assert granted(shop, role) == {
        "public.a": "SELECT",
        "s.c": "SELECT",
        ODD: "SELECT",
        "public": "USAGE",
        "s": "USAGE",
        'Odd "S,': "USAGE",
    }


def test_what_is_no_longer_distributed_is_revoked(shop: Place, role: str) -> None:
    shop.ok("pgml_grants", role=role, tables=["a", "b", "s.c"])
    result = shop.converge("pgml_grants", role=role, tables=["b"])
    assert f'Revoke all on public.a, s.c from "{role}"' in result["changes"]
    assert granted(shop, role) == {"public.b": "SELECT", "public": "USAGE"}
    assert shop.converge("pgml_grants", role=role, state="absent")["changed"]
    assert granted(shop, role) == {}
    assert not shop.ok("pgml_grants", role=role, state="absent")["changed"]


def test_what_is_too_much_is_revoked(shop: Place, role: str) -> None:
    name = SQL("{}").format(Identifier(role))
    for statement in (
        "ALL ON a",
        "SELECT, INSERT ON b",
        "UPDATE ON s.d",
        "SELECT ON v",
        "ALL ON SCHEMA s",
        "CREATE ON SCHEMA public",
    ):
        shop.sql(SQL("GRANT " + statement + " TO {}").format(name))
    assert shop.converge("pgml_grants", role=role, tables=["a", "s.c"])["changed"]
    held = granted(shop, role)
    assert held == {"public.a": "SELECT", "s.c": "SELECT", "public": "USAGE", "s": "USAGE"}


def test_the_right_to_grant_is_revoked(shop: Place, role: str) -> None:
    shop.sql(SQL("GRANT SELECT ON a TO {} WITH GRANT OPTION").format(Identifier(role)))
    assert shop.converge("pgml_grants", role=role, tables=["a"])["changed"]
    assert granted(shop, role) == {"public.a": "SELECT", "public": "USAGE"}


def test_columns_and_sequences_that_are_too_much_are_revoked(shop: Place, role: str) -> None:
    shop.sql("CREATE SEQUENCE counter")
    for statement in ("UPDATE (id) ON a", "SELECT (id) ON b", "USAGE ON SEQUENCE counter"):
        shop.sql(SQL("GRANT " + statement + " TO {}").format(Identifier(role)))
    shop.converge("pgml_grants", role=role, tables=["a"])
    query = "SELECT has_column_privilege(%s, 'a', 'id', 'UPDATE'), has_column_privilege(%s, 'b', 'id', 'SELECT')"
    assert shop.sql(query, [role, role]) == [(False, False)]
    assert shop.sql("SELECT has_sequence_privilege(%s, 'counter', 'USAGE')", [role]) == [(False,)]


def test_partitions_follow_their_table(shop: Place, role: str) -> None:
    """The copy of a partitioned table reads its partitions, unless it is published as its root."""
    shop.converge("pgml_grants", role=role, tables=["p"])
    assert granted(shop, role) == {
        "public.p": "SELECT",
        "public.p1a": "SELECT",
        "s.p1": "SELECT",
        "public": "USAGE",
        "s": "USAGE",
    }
    shop.sql("CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20)")
    result = shop.converge("pgml_grants", role=role, tables=["p"])
    assert result["changes"] == [f'Grant select on public.p2 to "{role}"']


def test_schemas_and_the_whole_database(shop: Place, role: str) -> None:
    shop.converge("pgml_grants", role=role, schemas=["s"])
    assert granted(shop, role) == {"s.c": "SELECT", "s.d": "SELECT", "s.p1": "SELECT", "s": "USAGE", **below_p1()}
    shop.sql("CREATE TABLE s.new (id int)")
    assert shop.converge("pgml_grants", role=role, schemas=["s"])["changed"]
    assert shop.converge("pgml_grants", role=role, schemas=["s"], tables=["a"])["changed"]
    assert granted(shop, role)["public.a"] == "SELECT"
    assert shop.converge("pgml_grants", role=role, all_tables=True)["changed"]
    held = granted(shop, role)
    assert ODD in held and "public.v" not in held and held["s.new"] == "SELECT"


def below_p1() -> dict[str, str]:
    return {"public.p1a": "SELECT", "public": "USAGE"}


@pytest.mark.parametrize("name", ['Quo"ted', "with, comma", "per%cent", "ro{le}", "größe", "public too"])
def test_awkward_role_names(shop: Place, primary: Cluster, name: str) -> None:
    create_role(primary, name, "LOGIN", "x")
    try:
        assert shop.converge("pgml_grants", role=name, tables=["a", ODD])["changed"]
        assert granted(shop, name)[ODD] == "SELECT"
        assert shop.converge("pgml_grants", role=name, tables=["a"])["changed"]
        assert shop.converge("pgml_grants", role=name, state="absent")["changed"]
        assert granted(shop, name) == {}
    finally:
        shop.sql(SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(Identifier(name)))


def test_other_roles_and_public_are_left_alone(shop: Place, primary: Cluster, role: str) -> None:
    shop.sql("GRANT SELECT ON a TO public; GRANT INSERT ON b TO pg_monitor")
    before = shop.sql("SELECT relacl::text FROM pg_class WHERE oid IN ('a'::regclass, 'b'::regclass) ORDER BY oid")
    shop.ok("pgml_grants", role=role, tables=["a", "b"])
    shop.ok("pgml_grants", role=role, state="absent")
    after = shop.sql("SELECT relacl::text FROM pg_class WHERE oid IN ('a'::regclass, 'b'::regclass) ORDER BY oid")
    assert before == after


def test_a_role_that_is_yet_to_come(shop: Place) -> None:
    before = shop.fingerprint()
    result = shop.ok("pgml_grants", check=True, role="yet_to_come", tables=["a"])
    assert result["changed"] and shop.fingerprint() == before
    assert 'role "yet_to_come" does not exist' in shop.refused("pgml_grants", role="yet_to_come", tables=["a"])
    assert not shop.ok("pgml_grants", role="yet_to_come", state="absent")["changed"]


def test_tables_and_databases_that_are_yet_to_come(shop: Place, role: str) -> None:
    """Check mode takes them for what an earlier task would create; a run doesn't, and absent has nothing to do there."""
    result = shop.ok("pgml_grants", check=True, role=role, tables=["a", "to_come"])
    assert result["changed"] and role in result["changes"][0]
    shop.refused("pgml_grants", role=role, tables=["a", "to_come"])
    result = shop.ok("pgml_grants", check=True, role=role, tables=["a"], login_db="to_come")
    assert result["changed"]
    shop.refused("pgml_grants", role=role, tables=["a"], login_db="to_come")
    assert not shop.ok("pgml_grants", role=role, state="absent", login_db="to_come")["changed"]


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"tables": ["aa"]}, ["no table public.aa"]),
        ({"tables": ["v"]}, ["public.v is a view"]),
        ({"schemas": ["none"]}, ["no schema"]),
        ({"role": "x" * 64}, ["role name", "64 bytes"]),
        ({"role": ""}, ["role name is empty"]),
    ],
)
def test_wrong_input_gets_one_clear_sentence(shop: Place, role: str, params: dict[str, Any], words: list[str]) -> None:
    message = shop.refused("pgml_grants", **{"role": role, **params})
    assert all(word in message for word in words)


def test_grants_are_one_transaction(shop: Place, role: str) -> None:
    shop.ok("pgml_grants", role=role, tables=["a"])
    with shop.transaction("LOCK TABLE b IN ACCESS EXCLUSIVE MODE"):
        before = shop.fingerprint()
        result = shop.run("pgml_grants", role=role, tables=["b"])
        assert not result.get("failed") or shop.fingerprint() == before


@pytest.mark.parametrize(
    ("foreign", "readable"),
    [
        ({"tables": ["v", {"name": "s.p1", "where": "true"}, "a"]}, ["public.a", "public.v", "s.p1"]),
        ({"schemas": ["s"]}, ["public.b", "s.c", "s.d", "s.m"]),
        ({"all_tables": True}, [ODD, "public.a", "public.b", "public.p", "public.v", "s.c", "s.d", "s.m"]),
        ({"schemas": ["empty"]}, ["public.b"]),
    ],
)
def test_views_count_where_foreign_tables_stand_for_them(
    shop: Place, role: str, foreign: dict[str, Any], readable: list[str]
) -> None:
    """And partitions don't, which are read with their table. What is distributed otherwise is not narrowed."""
    shop.sql("CREATE MATERIALIZED VIEW s.m AS SELECT 1 AS x; CREATE SCHEMA empty")
    others = {} if "tables" in foreign else {"tables": ["b"]}
    result = shop.converge("pgml_grants", role=role, foreign=foreign, **others)
    assert result["grants"]["select"] == readable
    there = granted(shop, role)
    assert sorted(name for name, privileges in there.items() if privileges == "SELECT") == readable
    assert {schema for schema in foreign.get("schemas", []) if there.get(schema) != "USAGE"} == set()
    assert shop.converge("pgml_grants", role=role, **others)["changed"]


def test_what_foreign_tables_stand_for_must_exist(shop: Place, role: str) -> None:
    message = shop.refused("pgml_grants", role=role, foreign={"tables": ["public.w"]})
    assert message.startswith("There is no table public.w in ")
    message = shop.refused("pgml_grants", role=role, foreign={"schemas": ["nowhere"]})
    assert message.startswith("There is no schema nowhere in ")
