# SPDX-License-Identifier: GPL-3.0-or-later
"""Definitions that a first copy has set aside are left to it, and types come without tables."""

from __future__ import annotations

import pytest
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.seeding import Seeding

from tests.support.pair import Pair

TABLES = """
CREATE TABLE users (id int PRIMARY KEY, email text UNIQUE);
CREATE INDEX ON users (lower(email));
CREATE TABLE orders (id int PRIMARY KEY, user_id int REFERENCES users, day int) PARTITION BY RANGE (id);
CREATE TABLE orders_low PARTITION OF orders FOR VALUES FROM (0) TO (100);
CREATE TABLE orders_high PARTITION OF orders FOR VALUES FROM (100) TO (200);
CREATE INDEX ON orders (day);
"""
ROWS = """
INSERT INTO users SELECT i, i::text FROM generate_series(1, 50) AS i;
INSERT INTO orders SELECT id, id, id FROM users
"""
ATTACHED = (
    "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'"
    " UNION ALL SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace ORDER BY 1"
)


@pytest.mark.parametrize("via_root", [False, True])
def test_what_a_first_copy_has_set_aside_comes_back_with_its_end(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, via_root: bool
) -> None:
    """Brought between two runs, it would be in the way of the second."""
    pair.both(TABLES)
    pair.source.sql(ROWS)
    whole = pair.target.sql(ATTACHED)
    pair.publish("users", "orders", via_partition_root=via_root)
    schema = {"source": pair.endpoint, "tables": ["users", "orders"], "mode": "create_missing"}
    assert not pair.target.ok("pgml_schema", **schema)["changed"]

    def die(_run: Seeding) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Seeding, "fill", die)
        pair.subscribe()
    assert len(pair.target.sql(ATTACHED)) < len(whole)
    assert not pair.target.converge("pgml_schema", **schema)["changed"]
    assert pair.subscribe()["initial_copy"]["reason"] == "a run that died had begun it"
    assert pair.target.sql(ATTACHED) == whole
    assert not pair.target.ok("pgml_schema", **schema)["changed"]
    pair.arrived("orders")
    pair.target.sql("DROP INDEX users_lower_idx")
    assert pair.target.converge("pgml_schema", **schema)["changes"] == ["Create index users_lower_idx of public.users"]
    pair.unsubscribe()


TYPES = """
CREATE SCHEMA "Ty.pes";
CREATE TYPE mood AS ENUM ('glad', 'it''s "so-so"');
CREATE TYPE unused AS ENUM ('never');
CREATE FUNCTION has_at(text) RETURNS boolean IMMUTABLE LANGUAGE sql AS $$ SELECT $1 LIKE '%@%' $$;
CREATE FUNCTION stamp() RETURNS text LANGUAGE sql AS $$ SELECT 'now' $$;
CREATE SEQUENCE numbers;
CREATE DOMAIN address AS text CHECK (has_at(VALUE));
CREATE DOMAIN ticket AS bigint DEFAULT nextval('numbers');
CREATE TYPE "Ty.pes"."Pair, of" AS (left_one mood, right_one address[]);
CREATE TYPE float_span AS RANGE (subtype = float8, subtype_diff = float8mi);
CREATE TABLE people (id serial, mood mood, moods mood[], address address, stamp text DEFAULT stamp(), ticket ticket);
CREATE TABLE pairs (id int, pair "Ty.pes"."Pair, of", span float_span, secret unused);
CREATE VIEW glad AS SELECT id, moods FROM people;
"""
BROUGHT = """
SELECT format('%s %s', CASE typtype WHEN 'd' THEN pg_get_constraintdef(k.oid) ELSE typtype::text END, t.oid::regtype)
FROM pg_type AS t LEFT JOIN pg_constraint AS k ON k.contypid = t.oid
WHERE t.oid >= 16384 AND typcategory <> 'A' AND typtype <> 'm' AND typnamespace <> 'pg_toast'::regnamespace ORDER BY 1
"""
ALL = [
    'Create schema "Ty.pes"',
    "Create function public.has_at(pg_catalog.text)",
    "Create sequence public.numbers",
    'Create type "Ty.pes"."Pair, of"',
    "Create type public.address",
    "Create type public.float_span",
    "Create type public.mood",
    "Create type public.ticket",
]


def types_of(pair: Pair, *names: object, **params: object) -> dict[str, object]:
    """The options that bring the types of some tables."""
    return {"source": pair.endpoint, "tables": list(names), "parts": ["types"], "mode": "create_missing", **params}


def test_types_come_without_tables(pair: Pair) -> None:
    """With what they need, but without what defaults of columns need."""
    pair.source.sql(TYPES)
    pair.grant()
    result = pair.target.converge(
        "pgml_schema", **types_of(pair, "people", {"name": "pairs", "columns": ["id", "pair", "span"]})
    )
    assert result["changes"] == ALL
    assert result["left_out"] == []
    assert pair.target.sql(BROUGHT) == [row for row in pair.source.sql(BROUGHT) if row[0] not in UNBROUGHT]
    assert pair.target.sql("SELECT relname FROM pg_class WHERE oid >= 16384 AND relkind IN ('r', 'v', 'S')") == [
        ("numbers",)
    ]
    assert pair.target.sql("SELECT to_regproc('stamp')") == [(None,)]
    # Now they are like any other.
    pair.target.sql("CREATE TABLE filled AS SELECT ROW('glad', ARRAY['a@b'])::\"Ty.pes\".\"Pair, of\" AS pair")


UNBROUGHT = ("e unused", "c people", "c pairs", "c glad")


@pytest.mark.parametrize(
    ("params", "changes"),
    [
        ({"tables": ["glad"]}, ["Create type public.mood"]),
        ({"schemas": ["public"], "exclude_tables": ["pairs"]}, [*ALL[1:3], ALL[4], *ALL[6:]]),
        ({"all_tables": True}, [*ALL, "Create type public.unused"]),
        ({"tables": []}, []),
    ],
)
def test_the_types_of_views_and_of_whole_schemas_come(pair: Pair, params: dict[str, object], changes: object) -> None:
    pair.source.sql(TYPES)
    result = pair.target.converge("pgml_schema", **types_of(pair, **params))
    assert result["changes"] == changes


@pytest.mark.xfail(
    strict=True, reason="check mode shows other DDL, because the types are there when it is shown afterwards"
)
def test_types_and_tables_come_together(pair: Pair) -> None:
    pair.source.sql(TYPES)
    pair.grant()
    result = pair.target.converge("pgml_schema", **types_of(pair, "people", parts=["types", "tables"]))
    assert result["changes"] == [*ALL[1:3], ALL[4], *ALL[6:], "Create table public.people"]


def test_an_enum_without_all_labels_is_refused(pair: Pair) -> None:
    pair.source.sql(TYPES)
    pair.target.sql("CREATE TYPE mood AS ENUM ('glad')")
    message = pair.target.refused("pgml_schema", **types_of(pair, "glad"))
    assert message == ("Type mood lacks 'it\\'s \"so-so\"' on the target: add it there with ALTER TYPE ... ADD VALUE.")
    predicted = pair.target.ok("pgml_schema", check=True, **types_of(pair, "glad"))
    assert not predicted["changed"] and predicted["warnings"] == ["In check mode only: " + message]


def test_a_type_that_a_table_made_is_named(pair: Pair) -> None:
    pair.source.sql("CREATE TABLE made (id int); CREATE TABLE uses (made made, mades made[])")
    result = pair.target.converge("pgml_schema", **types_of(pair, "uses"))
    assert result["left_out"] == [
        {
            "name": "public.made",
            "table": "public.made",
            "reason": "it is the row type of a table, which is not brought",
        }
    ]
    assert result["changes"] == []


def test_tables_whose_types_are_wanted_must_exist(pair: Pair) -> None:
    pair.source.sql(TYPES)
    assert "There is no table public.peple" in pair.target.refused("pgml_schema", **types_of(pair, "peple"))
    assert "did you mean public.people?" in pair.target.refused("pgml_schema", **types_of(pair, "peple"))
    assert "There is no schema nowhere" in pair.target.refused("pgml_schema", **types_of(pair, schemas=["nowhere"]))


def test_an_extension_that_types_need_is_created_or_named(pair: Pair) -> None:
    """The source has one that only its own catalog knows, as if its files had been removed."""
    if not pair.source.sql("SELECT 1 FROM pg_available_extensions WHERE name = 'hstore'"):
        pytest.skip("the server has no hstore")
    pair.source.sql("CREATE EXTENSION hstore; CREATE TABLE facts (id int, fact hstore)")
    result = pair.target.converge("pgml_schema", **types_of(pair, "facts"))
    assert result["changes"] == ["Create extension hstore"]
    assert pair.target.sql("SELECT 'a=>1'::hstore -> 'a'") == [("1",)]
    pair.target.sql("DROP EXTENSION hstore")
    pair.source.sql("UPDATE pg_extension SET extname = 'gone' WHERE extname = 'hstore'")
    message = pair.target.refused("pgml_schema", **types_of(pair, "facts"))
    assert "The tables need extension gone, which the server of" in message
    pair.source.sql("UPDATE pg_extension SET extname = 'hstore' WHERE extname = 'gone'")
