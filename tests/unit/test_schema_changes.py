# SPDX-License-Identifier: GPL-3.0-or-later
"""Where each statement of a schema change comes, and what is refused."""

from __future__ import annotations

import copy
import re
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.postgresml.distributed.plugins.filter.schema_changes import FilterModule
from ansible_collections.postgresml.distributed.plugins.plugin_utils import ddl
from ansible_collections.postgresml.distributed.plugins.plugin_utils.mentions import schema_change_mentions
from ansible_collections.postgresml.distributed.plugins.plugin_utils.rollout import schema_change_plan

GUIDE = Path(__file__).parents[2] / "docs/docsite/rst/guide_schema_change.rst"
A, R, T, P = "replicas_first", "primary_first", "together", "primary_only"
SHOP = {"name": "shop", "tables": ["public.users", "orders", "parts", {"name": "new"}], "schemas": ["stock"]}


def column(type_="text", not_null=False, has_default=False):
    return {"type": type_, "not_null": not_null, "has_default": has_default, "generated": "", "identity": ""}


def table(*columns: str, distributed=True, **more: Any) -> dict[str, Any]:
    held = {name: column() for name in columns or ("name", "age", "mood")}
    return {
        "kind": "r",
        "distributed": distributed,
        "listed": None,
        "columns": {"id": column("integer", True, True), **held},
        "key": ["id"],
        "constraints": {"pk": {"type": "p", "columns": ["id"], "expression": "PRIMARY KEY (id)", "valid": True}},
        "table": None,
        "unique": False,
        "parent": None,
        "empty": False,
        **more,
    }


def index(of: str, *columns: str, **more: Any) -> dict[str, Any]:
    facts = table(*columns, kind="i", table=of, constraints={}, key=[], **more)
    del facts["columns"]["id"]
    return facts


def check(expression: str, *columns: str, valid=True) -> dict[str, Any]:
    return {"type": "c", "columns": list(columns), "expression": expression, "valid": valid}


RELATIONS = {
    "public.users": table(),
    "public.orders": table("user_id", "total"),
    "public.logs": table(distributed=False),
    "public.parts": table(kind="p"),
    "public.part_1": table(parent="public.parts"),
    "public.loose": table(),
    "public.empty": table(empty=True),
    "public.v": table(distributed=False, kind="v"),
    "public.users_name": index("public.users", "name"),
    "public.seq": table(distributed=False, kind="S"),
    'stock."Bin Ü"': table("Größe"),
}
TYPES = {"public.mood": {"kind": "e", "distributed": True}, "public.dom": {"kind": "d", "distributed": True}}
FUNCTIONS = {"now": "s", "random": "v", "nextval": "v", "lower": "i", "gen_random_uuid": "v", "date_trunc": "s"}


def server(done=0, change: Mapping[str, Any] | None = None, without=(), publication=None, other=None, **more: Any):
    relations = {name: facts for name, facts in copy.deepcopy(RELATIONS).items() if name not in without}
    relations.update(copy.deepcopy(dict(change or {})))
    relations = {name: facts for name, facts in relations.items() if facts is not None}
    return {
        "progress": {"done": done, "total": 9, "begun": False, **more},
        "other": other,
        "facts": {
            "version": 170000,
            "publication": {
                "via_partition_root": False,
                "publish": ["insert", "update", "delete"],
                **(publication or {}),
            },
            "relations": relations,
            "types": {name: dict(facts) for name, facts in TYPES.items() if name not in without},
            "functions": FUNCTIONS,
        },
    }


def plan(sql: Any, primary=None, replicas=None, listed=SHOP, allow=False, **more: Any) -> dict[str, Any]:
    mentioned = schema_change_mentions(sql)
    primary = primary or server()
    replicas = replicas or {"ml-1": server(), "ml-2": server()}
    return schema_change_plan(mentioned, primary, replicas, listed, allow, "prod-db", **more)


def orders(sql: Any, **more: Any) -> list[str]:
    return [phase["order"] for phase in plan(sql, **more)["phases"] for _ in phase["statements"]]


def refusal(sql: Any, **more: Any) -> str:
    with pytest.raises(AnsibleFilterError) as error:
        plan(sql, **more)
    return str(error.value)


@pytest.mark.parametrize(
    ("sql", "order"),
    [
        ("ALTER TABLE users ADD COLUMN x int", A),
        ("ALTER TABLE IF EXISTS ONLY public.users ADD IF NOT EXISTS name text", A),
        ("ALTER TABLE users ADD x int NOT NULL DEFAULT 5, ADD y text DEFAULT 'now'", A),
        ("ALTER TABLE users ADD x int DEFAULT -5", A),
        (
            "ALTER TABLE users ADD x bool DEFAULT true, ADD y int[] DEFAULT ARRAY[1, 2], ADD z jsonb DEFAULT '{}'::jsonb",
            A,
        ),
        ("ALTER TABLE users ADD x date DEFAULT '2020-01-01', ADD y int DEFAULT 3 * (4 + 1)", A),
        ("ALTER TABLE users ADD x timestamptz DEFAULT '2020-01-01 00:00:00+00'", A),
        ("ALTER TABLE users ADD x text DEFAULT lower('A')", A),
        ("ALTER TABLE users ADD x timestamptz DEFAULT '2020-01-01'", T),
        ("ALTER TABLE users ADD x date DEFAULT '01/02/2020'", T),
        ("ALTER TABLE users ADD x timestamptz DEFAULT now()", T),
        ("ALTER TABLE users ADD x date DEFAULT CURRENT_DATE + 1", T),
        ("ALTER TABLE users ADD x date DEFAULT date_trunc('day', now()) - interval '1 day'", T),
        ("ALTER TABLE users ADD x timestamptz DEFAULT 'now'::text::timestamptz", T),
        ("ALTER TABLE users ADD x int DEFAULT 5, ADD y timestamp DEFAULT localtimestamp", T),
        # Rows may come into an empty table until the primary has the column.
        ("ALTER TABLE empty ADD x timestamptz DEFAULT now()", T),
        ("ALTER TABLE empty ADD x int NOT NULL", T),
        ("ALTER TABLE empty ADD x int NOT NULL DEFAULT NULL", T),
        ("ALTER TABLE empty ADD x int CHECK (x IS NOT NULL), ADD y int", T),
        ("ALTER TABLE empty ADD x int GENERATED ALWAYS AS (100 / id) STORED", T),
        ("ALTER TABLE empty ADD x dom", T),
        ("ALTER TABLE users ADD x tstzrange DEFAULT '[2020-01-01,)'", T),
        ("ALTER TABLE users ADD x int GENERATED ALWAYS AS (id + 1) VIRTUAL NOT NULL", T),
        ("ALTER TABLE users ADD IF NOT EXISTS age timestamptz NOT NULL DEFAULT now()", A),
        ("ALTER TABLE users ADD x int GENERATED ALWAYS AS (id + 1) VIRTUAL", A),
        ("ALTER TABLE users DROP COLUMN name", R),
        ("ALTER TABLE users DROP COLUMN IF EXISTS nothing", R),
        ("ALTER TABLE users ALTER name SET DEFAULT now(), ALTER age DROP DEFAULT, ALTER mood DROP NOT NULL", A),
        ("ALTER TABLE users ALTER age ADD GENERATED ALWAYS AS IDENTITY", A),
        ("ALTER TABLE users ALTER age SET GENERATED BY DEFAULT", A),
        ("ALTER TABLE users ALTER age DROP IDENTITY IF EXISTS", A),
        ("ALTER TABLE empty ALTER age SET NOT NULL", R),
        ("ALTER TABLE users ADD CONSTRAINT c CHECK (age > 0) NOT VALID", R),
        ("ALTER TABLE empty ADD CHECK (age > 0)", R),
        ("ALTER TABLE users ADD FOREIGN KEY (age) REFERENCES orders NOT VALID", R),
        ("ALTER TABLE users ADD FOREIGN KEY (age) REFERENCES logs NOT VALID", P),
        ("ALTER TABLE users ADD CONSTRAINT u UNIQUE USING INDEX users_name", R),
        ("ALTER TABLE parts ATTACH PARTITION empty FOR VALUES IN (2)", R),
        ("ALTER TABLE parts DETACH PARTITION part_1", R),
        ("ALTER INDEX users_name RENAME TO users_by_name", R),
        ("ALTER TABLE users_name RENAME TO users_by_name", R),
        ("ALTER SEQUENCE seq RENAME TO seq_2", R),
        ("ALTER TABLE seq RENAME TO seq_2", R),
        ("ALTER SEQUENCE seq MAXVALUE 10", A),
        ("CREATE INDEX CONCURRENTLY i ON users (lower(name), age) INCLUDE (mood) WHERE id > 1", R),
        ("CREATE INDEX i ON empty (age)", R),
        ("CREATE INDEX i ON ONLY parts (age)", R),
        ("DROP INDEX users_name", A),
        ("DROP INDEX CONCURRENTLY IF EXISTS users_name", A),
        ("CREATE TABLE new (id int PRIMARY KEY, m mood, d timestamptz DEFAULT now(), s serial)", A),
        ("CREATE TABLE stock.new (id int, PRIMARY KEY (id))", A),
        ("CREATE TABLE new (LIKE users INCLUDING ALL)", A),
        ("CREATE TABLE new (id int PRIMARY KEY REFERENCES users DEFERRABLE)", A),
        ("CREATE TABLE part_2 PARTITION OF parts FOR VALUES IN (2)", A),
        ("CREATE TABLE IF NOT EXISTS users (id int)", A),
        ("DROP TABLE loose", R),
        ("DROP TABLE IF EXISTS nothing", A),
        ("ALTER TABLE IF EXISTS nothing ADD x int", A),
        ("CREATE TYPE t AS ENUM ('a')", A),
        ("CREATE TYPE t AS (a int, b mood)", A),
        ("CREATE TYPE t AS RANGE (SUBTYPE = float8)", A),
        ("CREATE DOMAIN d AS mood", A),
        ("CREATE SCHEMA IF NOT EXISTS s", A),
        ("CREATE SEQUENCE s", A),
        ("CREATE EXTENSION IF NOT EXISTS citext", A),
        ("ALTER TYPE mood ADD VALUE IF NOT EXISTS 'fine' BEFORE 'bad'", A),
        ("ALTER DOMAIN dom DROP NOT NULL", A),
        ("ALTER DOMAIN dom VALIDATE CONSTRAINT c", R),
        ("DROP TYPE mood", R),
        ("DROP DOMAIN IF EXISTS nothing", R),
        ("DROP SCHEMA s", R),
        ("DROP EXTENSION citext", R),
        ("DROP SEQUENCE seq", R),
    ],
)
def test_what_needs_no_consent_has_its_place(sql, order):
    assert orders(sql) == [order]


@pytest.mark.parametrize(
    ("sql", "order", "words"),
    [
        ("ALTER TABLE users ADD x int GENERATED ALWAYS AS (id + 1) STORED", T, "rewrites the table while it is locked"),
        ("ALTER TABLE users ADD x dom", T, "rewrites the table"),
        (
            "ALTER TABLE users ADD x int CHECK (x > 0)",
            T,
            "reads the whole table while it is locked: add the column first",
        ),
        ("ALTER TABLE users ALTER age SET NOT NULL", R, "first add CHECK (age IS NOT NULL) NOT VALID"),
        ("ALTER TABLE users ADD NOT NULL age", R, "first add CHECK (age IS NOT NULL) NOT VALID"),
        ("ALTER TABLE users ADD CHECK (age > 0)", R, "add it NOT VALID, then VALIDATE CONSTRAINT"),
        ("ALTER TABLE users ADD FOREIGN KEY (age) REFERENCES orders", R, "add it NOT VALID"),
        ("ALTER TABLE users ADD UNIQUE (age)", R, "CREATE UNIQUE INDEX CONCURRENTLY, then add it USING INDEX"),
        ("ALTER TABLE users ADD EXCLUDE USING gist (age WITH =)", R, "locks the table while its index is built"),
        ("ALTER TABLE users ADD PRIMARY KEY (age)", T, "by which replication finds rows"),
        (
            "ALTER TABLE users ALTER age TYPE bigint USING age::bigint",
            T,
            "to bigint, which locks the table and may rewrite it",
        ),
        ("ALTER TABLE users ALTER age TYPE timestamptz USING date_trunc('day', age::timestamptz)", T, "may rewrite it"),
        ("ALTER TABLE users ALTER age TYPE text USING lower(age) || 'now'", T, "may rewrite it"),
        ("ALTER TABLE users ALTER age SET EXPRESSION AS (lower(name))", T, "rewrites the table"),
        ("ALTER TABLE users REPLICA IDENTITY FULL", T, "by which replication finds rows"),
        ("ALTER TABLE users ADD x int, DROP COLUMN age", T, "write them as statements of their own"),
        (
            "ALTER TABLE users ADD x timestamptz DEFAULT now(), DROP COLUMN age",
            T,
            "write them as statements of their own",
        ),
        ("ALTER TABLE users RENAME COLUMN age TO years", T, "the old name fails from then on"),
        ("ALTER TABLE users RENAME age TO years", T, "the old name fails from then on"),
        ("ALTER TABLE loose RENAME TO new", T, "renames table public.loose to public.new"),
        ("ALTER TABLE loose SET SCHEMA stock", T, "to stock.loose"),
        ("ALTER TYPE mood RENAME TO feeling", T, "renames type public.mood to feeling"),
        ("ALTER TYPE mood SET SCHEMA stock", T, "the old name fails"),
        ("ALTER TYPE mood RENAME VALUE 'a' TO 'b'", T, "the old label fails"),
        ("ALTER TYPE mood ADD ATTRIBUTE a int", T, "values have another form"),
        ("ALTER TYPE mood RENAME ATTRIBUTE a TO b", T, "renames attribute a"),
        ("ALTER DOMAIN dom SET NOT NULL", R, "reads all tables that have it"),
        ("ALTER DOMAIN dom ADD CHECK (value > 'a')", R, "reads all tables that have it"),
        ("CREATE INDEX ON users (age)", R, "write CREATE INDEX CONCURRENTLY"),
        (
            "CREATE INDEX ON parts (age)",
            R,
            "until it is built on every partition: CREATE INDEX .. ON ONLY public.parts, ",
        ),
        (
            "ALTER TABLE parts ATTACH PARTITION loose FOR VALUES IN (2)",
            R,
            "reads public.loose while it is locked: first add",
        ),
    ],
)
def test_what_disturbs_needs_consent(sql, order, words):
    message = refusal(sql)
    assert words in message
    assert message.endswith("if that may be, set pgml_schema_change_allow_disruptive to true.")
    assert orders(sql, allow=True) == [order]
    assert plan(sql, allow=True)["disruptive"]


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("ALTER TABLE logs ADD x int", "is about public.logs, which is not in distribution shop"),
        ("ALTER TABLE nothing ADD x int", "is about public.nothing, which does not exist on prod-db"),
        ("ALTER TABLE v RENAME TO w", "is about public.v, which is a view and not part"),
        ("ALTER VIEW v RENAME COLUMN a TO b", "which is a view and not part of what is kept equal"),
        ("ALTER TABLE users ADD age int", "adds column age, which public.users has already on prod-db"),
        ("ALTER TABLE users DROP nothing", "is about column nothing, which public.users does not have on prod-db"),
        ("ALTER TABLE users RENAME age TO name", "has column name already on prod-db"),
        ("ALTER TABLE users RENAME nothing TO b", "has no column nothing on prod-db"),
        (
            "ALTER TABLE users ADD x float DEFAULT random()",
            "the default random(), which each server would compute on its own",
        ),
        (
            "ALTER TABLE users ADD x uuid DEFAULT gen_random_uuid()",
            "fill the column with UPDATE in batches on the primary",
        ),
        ("ALTER TABLE users ADD x text DEFAULT 'a' || random()::text", "which each server would compute on its own"),
        ("ALTER TABLE users ADD x int DEFAULT nothing()", "calls nothing(), which is not on the primary"),
        ("ALTER TABLE users ADD x date DEFAULT 'today'", "is 'today', which is read once"),
        ("ALTER TABLE users ADD x timestamp DEFAULT 'now'::timestamp", "is 'now', which is read once"),
        ("ALTER TABLE users ADD x tstzrange DEFAULT '[now,)'", "which is read once, at another time on each server"),
        ("ALTER TABLE empty ALTER age TYPE date USING current_date", "which each server would compute on its own"),
        (
            "CREATE INDEX CONCURRENTLY i ON users (age) TABLESPACE fast",
            "builds index i on public.users in a tablespace",
        ),
        ("ALTER TABLE users ADD UNIQUE (age) USING INDEX TABLESPACE fast", "to public.users with a tablespace"),
        ("ALTER TABLE users ADD x dom DEFAULT now()", "which each server would compute on its own"),
        ("ALTER TABLE users ADD x bigserial", "gives column x numbers of its own"),
        ("ALTER TABLE users ADD x int GENERATED ALWAYS AS IDENTITY", "gives column x numbers of its own"),
        ("ALTER TABLE users ADD x int UNIQUE", "adds column x with UNIQUE: write that as a statement of its own"),
        ("ALTER TABLE users ADD x int REFERENCES orders", "adds column x with REFERENCES"),
        ("ALTER TABLE users DROP name CASCADE", "has CASCADE"),
        ("DROP TABLE loose CASCADE", "has CASCADE"),
        ("ALTER TYPE mood ADD ATTRIBUTE a int CASCADE", "has CASCADE"),
        (
            "ALTER TABLE users OWNER TO bob",
            "changes the owner of public.users, which is not part of what is kept equal",
        ),
        ("ALTER TABLE users SET (fillfactor = 50)", "sets storage parameters"),
        ("ALTER TABLE users DISABLE TRIGGER ALL", "enables or disables a trigger"),
        ("ALTER TABLE users REPLICA IDENTITY NOTHING", "UPDATE and DELETE would fail on the primary"),
        ("ALTER TABLE parts DETACH PARTITION part_1 CONCURRENTLY", "write it without"),
        (
            "ALTER TABLE users ADD x int NOT NULL",
            "adds column x to public.users NOT NULL and without a default, though there are rows",
        ),
        ("ALTER TABLE users RENAME TO people", "pgml_distributions lists the old name"),
        ("ALTER TABLE loose RENAME TO lost", "would take it out of distribution shop"),
        ("ALTER TABLE loose RENAME TO orders", "which exists already on prod-db"),
        ("CREATE INDEX CONCURRENTLY ON users (age)", "has no name"),
        (
            "CREATE INDEX CONCURRENTLY i ON parts (age)",
            "CONCURRENTLY on each partition, and ALTER INDEX .. ATTACH PARTITION",
        ),
        ("DROP SCHEMA s, stock", "drops schema stock, which pgml_distributions still lists: take it out there"),
        ("DROP INDEX CONCURRENTLY users_name, users_name", "PostgreSQL drops one at a time"),
        (
            "CREATE TABLE other (id int PRIMARY KEY)",
            "which is not in distribution shop: list it in pgml_distributions first",
        ),
        ("CREATE TABLE users (id int PRIMARY KEY)", "which exists already on prod-db"),
        ("CREATE TABLE new (id int)", "which has no primary key"),
        ("CREATE TABLE new (LIKE users)", "which has no primary key"),
        ("CREATE TABLE new (id int PRIMARY KEY DEFERRABLE)", "a DEFERRABLE one"),
        ("CREATE TABLE new (id int, PRIMARY KEY (id) INITIALLY DEFERRED)", "a DEFERRABLE one"),
        ("CREATE TABLE new (id int); ALTER TABLE new ADD PRIMARY KEY (id) DEFERRABLE", "a DEFERRABLE one"),
        ("CREATE TEMP TABLE new (id int PRIMARY KEY)", "which is temporary"),
        ("CREATE UNLOGGED TABLE new (id int PRIMARY KEY)", "which is UNLOGGED"),
        ("CREATE TABLE new (id int PRIMARY KEY) INHERITS (users)", "which inherits from another"),
        ("CREATE TABLE new OF mood (PRIMARY KEY (id))", "has its columns of a type"),
        ("CREATE TABLE new AS SELECT 1", "creates a table of a query"),
        ("SELECT 1 INTO new", "creates a table of a query"),
        ("CREATE TABLE new (id int PRIMARY KEY REFERENCES logs)", "add the foreign key by ALTER TABLE"),
        (
            "CREATE TABLE p PARTITION OF logs DEFAULT",
            "as a partition of public.logs, which is not in distribution shop",
        ),
        ("DROP TABLE users", "drops table public.users, which pgml_distributions still lists: take it out there"),
        ("DROP TABLE loose, logs", "is about public.logs, which is not in distribution shop"),
        ("DROP VIEW v", "drops a view"),
        ("CREATE SCHEMA s CREATE TABLE t (id int)", "write these as statements of their own"),
        ("CREATE TYPE mood AS ENUM ()", "creates type public.mood, which exists already on prod-db"),
        ("ALTER TABLE users ALTER age TYPE int USING random()", "which each server would compute on its own"),
        (
            "ALTER TABLE users ALTER age TYPE int USING (age || random())::int",
            "which each server would compute on its own",
        ),
        ("ALTER TABLE users ALTER age TYPE timestamptz USING now()", "which each server would compute on its own"),
        (
            "ALTER TABLE users ALTER age TYPE date USING coalesce(age::date, CURRENT_DATE)",
            "which each server would compute",
        ),
        ("ALTER TABLE users ALTER age TYPE date USING coalesce(age::date, 'today')", "which each server would compute"),
        ("ALTER TABLE users ALTER age TYPE text USING current_user", "which each server would compute on its own"),
        ("ALTER TABLE users ALTER age TYPE text USING (SELECT 'a')", "which each server would compute on its own"),
        ("ALTER TABLE users ALTER age TYPE text USING nothing(age)", "calls nothing(), which is not on the primary"),
        ("ALTER TABLE users ALTER age SET EXPRESSION AS (random())", "which each server would compute on its own"),
        ("ALTER DOMAIN dom ADD CHECK (value > 'a') NOT VALID", "would stop the replicas when it is updated: mend"),
        ("ALTER TYPE nothing ADD VALUE 'a'", "is about type public.nothing, which does not exist on prod-db"),
        ("ALTER SEQUENCE seq RESTART", "sets where sequence public.seq stands"),
        ("COMMENT ON TABLE users IS 'x'", "a comment"),
        ("INSERT INTO users VALUES (1)", "changes rows, and replication carries that by itself: run it on the primary"),
        ("TRUNCATE users", "changes rows"),
        ("BEGIN", "is about a transaction: those are made by the role"),
        ("SET search_path = stock", "is a SET, which would not last"),
        ("DO $$BEGIN END$$", "is a DO block"),
        ("REINDEX TABLE users", "changes no definition"),
        ("GRANT SELECT ON users TO bob", "privileges"),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT 2; END", "functions"),
        ("CREATE TRIGGER t BEFORE INSERT ON users EXECUTE FUNCTION f()", "triggers"),
        ("CREATE VIEW w AS SELECT 1", "views"),
        ("ALTER SYSTEM SET work_mem = '1MB'", "settings"),
        ("ALTER TABLE ALL IN TABLESPACE a SET TABLESPACE b", "tablespaces"),
        ("LISTEN x", "is not part of what is kept equal (Listen)"),
    ],
)
def test_what_cant_be_placed_is_refused(sql, words):
    message = refusal(sql)
    assert words in message
    assert message.startswith("The schema change can't be rolled out: statement 1 (line 1) ")
    assert words in refusal(sql, allow=True)


def test_all_problems_are_told_at_once():
    message = refusal(
        "ALTER TABLE logs ADD x int;\n\nALTER TABLE users ADD y int, OWNER TO bob, DROP age CASCADE;\nBEGIN"
    )
    assert [line[:34] for line in message.splitlines()] == [
        "The schema change can't be rolled ",
        "- statement 1 (line 1) is about pu",
        "- statement 2 (line 3) changes the",
        "- statement 2 (line 3) has CASCADE",
        "- statement 3 (line 4) is about a ",
    ]
    assert "- statement 1 is about public.logs" in refusal(["ALTER TABLE logs ADD x int", "BEGIN;"])


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        # What the change makes itself is known to what comes after.
        ("CREATE TYPE t AS ENUM ('a'); ALTER TABLE users ADD x t DEFAULT 'a'", [A, A]),
        ("CREATE TABLE new (id int); ALTER TABLE new ADD PRIMARY KEY (id); CREATE INDEX ON new (id)", [A, A, A]),
        ("CREATE TABLE new (id int); ALTER TABLE new REPLICA IDENTITY FULL; ALTER TABLE new ADD x serial", [A, A, A]),
        ("CREATE TABLE new (id int PRIMARY KEY); ALTER TABLE new ADD FOREIGN KEY (id) REFERENCES logs", [A, P]),
        ("CREATE TABLE x (LIKE users); ALTER TABLE parts ATTACH PARTITION x DEFAULT", [A, R]),
        (
            "CREATE INDEX i ON ONLY parts (name); CREATE INDEX CONCURRENTLY j ON part_1 (name); ALTER INDEX i ATTACH PARTITION j",
            [R, R, R],
        ),
        ("CREATE TABLE x PARTITION OF parts DEFAULT; ALTER TABLE x ALTER age SET NOT NULL", [A, R]),
        ("ALTER TABLE loose RENAME TO new; ALTER TABLE new RENAME age TO b; ALTER TABLE new DROP b", [T, T, R]),
        (
            "ALTER TABLE users ADD CONSTRAINT f FOREIGN KEY (age) REFERENCES logs NOT VALID;"
            "ALTER TABLE users VALIDATE CONSTRAINT f",
            [P, P],
        ),
        ("ALTER TYPE mood RENAME TO m2; ALTER TYPE m2 ADD VALUE 'x'", [T, A]),
        ("ALTER TABLE users ADD x int; ALTER TABLE users ALTER x SET DEFAULT 5; ALTER TABLE users DROP x", [A, R, R]),
        ("ALTER TABLE users ADD x int, ALTER x SET DEFAULT 5", [T]),
        # A check that is proven makes SET NOT NULL short.
        (
            "ALTER TABLE users ADD CONSTRAINT c CHECK (age IS NOT NULL) NOT VALID; ALTER TABLE users VALIDATE CONSTRAINT c;"
            "ALTER TABLE users ALTER age SET NOT NULL; ALTER TABLE users DROP CONSTRAINT c",
            [R, R, R, A],
        ),
        ("CREATE UNIQUE INDEX CONCURRENTLY i ON users (age); ALTER TABLE users ADD UNIQUE USING INDEX i", [R, R]),
        ("CREATE UNIQUE INDEX CONCURRENTLY i ON users (age); ALTER TABLE users ADD PRIMARY KEY USING INDEX i", [R, T]),
    ],
)
def test_statements_know_of_those_before_them(sql, found):
    assert orders(sql, allow=True) == found
    if T not in found:
        assert orders(sql) == found


def test_an_unproven_check_is_no_proof():
    sql = (
        "ALTER TABLE users ADD CONSTRAINT c CHECK (age IS NOT NULL OR id > 1); ALTER TABLE users ALTER age SET NOT NULL"
    )
    assert "statement 2 (line 1) sets column age" in refusal(sql)
    proven = {"public.users": table(constraints={"c": check("CHECK ((age IS NOT NULL))", "age")})}
    assert orders("ALTER TABLE users ALTER age SET NOT NULL", primary=server(change=proven)) == [R]
    unproven = {
        "public.users": table(constraints={"c": check("CHECK ((age IS NOT NULL)) NOT VALID", "age", valid=False)})
    }
    assert "reads the whole table" in refusal(
        "ALTER TABLE users ALTER age SET NOT NULL", primary=server(change=unproven)
    )


def test_neighbours_of_the_same_order_share_a_step():
    made = plan(
        "ALTER TABLE users ADD a int; ALTER TABLE users ADD b int; ALTER TYPE mood ADD VALUE 'x'; ALTER TABLE users ADD c mood;"
        "ALTER TABLE users ADD CONSTRAINT k CHECK (a > 0) NOT VALID; ALTER TABLE users VALIDATE CONSTRAINT k;"
        "ALTER TABLE users DROP age; ALTER TABLE users DROP mood"
    )
    steps = [(phase["order"], phase["first"], phase["last"]) for phase in made["phases"]]
    # A new label is committed before it is used, and a check is validated without a stronger lock.
    assert steps == [(A, 1, 2), (A, 3, 3), (A, 4, 4), (R, 5, 5), (R, 6, 6), (R, 7, 8)]
    assert not made["gate"] and not made["joins"] and not made["disruptive"]
    assert made["phases"][0]["primary"] == made["phases"][0]["replicas"]
    assert made["phases"][0]["replicas"][1] == {"number": 2, "sql": "ALTER TABLE users ADD b int"}


def test_an_index_that_is_built_or_dropped_concurrently_is_named_for_a_rerun():
    made = plan(
        'CREATE INDEX CONCURRENTLY U&"\\0061 b" ON users (age); DROP INDEX CONCURRENTLY public.users_name;'
        "CREATE INDEX CONCURRENTLY IF NOT EXISTS i ON ONLY /* its own */ users (age)"
    )
    runs = [run for phase in made["phases"] for run in phase["primary"]]
    assert [(run.get("builds"), run.get("drops")) for run in runs] == [
        ('public."a b"', None),
        (None, "public.users_name"),
        ("public.i", None),
    ]


def test_a_replica_need_not_have_what_nobody_needs_any_more():
    """Which schemas and extensions it has isn't asked; a table is known to be there."""
    made = plan("DROP SCHEMA s; DROP EXTENSION citext; DROP TABLE loose", listed={**SHOP, "tables": ["public.users"]})
    (phase,) = made["phases"]
    assert [run["sql"] for run in phase["primary"]] == ["DROP SCHEMA s", "DROP EXTENSION citext", "DROP TABLE loose"]
    assert [run["sql"] for run in phase["replicas"]] == [
        "DROP SCHEMA IF EXISTS s",
        "DROP EXTENSION IF EXISTS citext",
        "DROP TABLE loose",
    ]


def test_a_default_of_the_moment_is_pinned_on_the_replicas():
    made = plan('ALTER TABLE "stock"."Bin Ü" ADD "It\'s\\n" timestamptz NOT NULL DEFAULT now(), ADD b int DEFAULT 1')
    (phase,) = made["phases"]
    (pin,) = phase["pins"]
    assert (phase["order"], made["gate"], made["disruptive"]) == (T, True, False)
    assert (pin["table"], pin["column"]) == ('stock."Bin Ü"', "It's\\n")
    theirs = phase["replicas"][0]["sql"]
    literal = "'{}'".format(pin["mark"].replace("'", "''"))
    assert theirs.replace(literal, "42") == (
        'ALTER TABLE stock."Bin Ü" ADD COLUMN "It\'s\\n" timestamptz NOT NULL DEFAULT 42, ADD COLUMN b integer DEFAULT 1, '
        'ALTER COLUMN "It\'s\\n" SET DEFAULT now()'
    )
    assert "now()" in phase["primary"][0]["sql"] and "\ue000" not in "".join(made["lines"])
    two = plan("ALTER TABLE users ADD x date DEFAULT now(); ALTER TABLE users RENAME x TO y", allow=True)
    assert [phase["last"] for phase in two["phases"]] == [1, 2]


def test_a_column_is_loosened_where_rows_come_without_it():
    strict = table()
    strict["columns"]["order"] = column(not_null=True)
    sides = {
        "primary": server(change={"public.users": strict}),
        "replicas": {"ml-1": server(change={"public.users": strict})},
    }
    (phase,) = plan('ALTER TABLE users DROP "order"', **sides)["phases"]
    assert phase["before"] == ['ALTER TABLE public.users ALTER COLUMN "order" DROP NOT NULL']
    strict["columns"]["order"]["has_default"] = True
    assert plan(
        'ALTER TABLE users DROP "order"', **sides | {"replicas": {"m": server(change={"public.users": strict})}}
    )
    sides["replicas"] = {"ml-1": server(change={"public.users": strict})}
    assert plan('ALTER TABLE users DROP "order"', **sides)["phases"][0]["before"] == []
    assert "is not on ml-1: write IF EXISTS" in refusal(
        'ALTER TABLE users DROP "order"', **sides | {"replicas": {"ml-1": server()}}
    )


def unique_index(*columns: str, **more: Any) -> dict[str, Any]:
    found = {"key": list(columns), "columns": list(columns), "unique": True, "primary": False, "identity": False}
    return {**found, **more}


def test_what_forbids_rows_without_a_column_goes_on_the_replicas_before():
    """Also what only a replica has; a column by which a replica finds rows goes on all servers at once."""
    strict = table("age", "other")
    strict["columns"]["age"].update(has_default=True, not_null=True)
    strict["constraints"].update(
        Ours=check("CHECK (age IS NOT NULL)", "age"),
        k=check("CHECK (other > 'a')", "other"),
        f={"type": "f", "columns": ["age"], "expression": "", "valid": True},
        u={"type": "u", "columns": ["id", "age"], "expression": "", "valid": True},
        x={"type": "x", "columns": [], "expression": "EXCLUDE USING gist (f(age) WITH =)", "valid": True},
    )
    strict["indexes"] = {
        "u": unique_index("id", "age"),
        "by age": unique_index("id", columns=["id", "age"]),
        "x": unique_index(columns=["age"], unique=False),
        "slow": unique_index("age", unique=False),
        "other": unique_index("other"),
    }
    strict["within"] = [
        {"table": "stock.part", "name": "by_age", "type": "i", "columns": ["age"]},
        {"table": "stock.part", "name": "c", "type": "c", "columns": ["age"]},
        {"table": "stock.part", "name": "o", "type": "c", "columns": ["other"]},
    ]
    held = {"public.users": strict}
    (phase,) = plan("ALTER TABLE users DROP age", replicas={"m": server(), "n": server(change=held)})["phases"]
    assert phase["order"] == R and phase["before"] == [
        'ALTER TABLE public.users DROP CONSTRAINT IF EXISTS "Ours"',
        "ALTER TABLE public.users DROP CONSTRAINT IF EXISTS u",
        "ALTER TABLE public.users DROP CONSTRAINT IF EXISTS x",
        'DROP INDEX IF EXISTS public."by age"',
        "DROP INDEX IF EXISTS stock.by_age",
        "ALTER TABLE stock.part DROP CONSTRAINT IF EXISTS c",
    ]
    strict["key"] = ["age"]
    sides: dict[str, Any] = {"replicas": {"m": server(), "n": server(change=held)}}
    assert "by which replication finds rows" in refusal("ALTER TABLE users DROP age", **sides)
    (phase,) = plan("ALTER TABLE users DROP age", allow=True, **sides)["phases"]
    assert (phase["order"], phase["before"]) == (T, [])
    strict["key"], strict["constraints"]["pk"]["columns"] = ["id"], ["age"]
    assert orders("ALTER TABLE users DROP age", allow=True, replicas={"n": server(change=held)}) == [T]


TYPED = {
    "public.mood": {"kind": "e", "distributed": True, "tables": ["public.users", 'stock."Bin Ü"']},
    "public.dom": {"kind": "d", "distributed": True, "tables": ["public.orders"]},
    "public.apart": {"kind": "e", "distributed": False, "tables": []},
}


def typed() -> dict[str, Any]:
    made = server()
    made["facts"]["types"] = copy.deepcopy(TYPED)
    return made


LOCK = 'LOCK TABLE public.users, stock."Bin Ü" IN SHARE ROW EXCLUSIVE MODE'


@pytest.mark.parametrize(
    ("sql", "lock"),
    [
        ("ALTER TYPE mood RENAME VALUE 'a' TO 'b'", LOCK),
        ("ALTER TYPE mood ADD ATTRIBUTE a int", LOCK),
        ("ALTER TYPE mood DROP ATTRIBUTE a", LOCK),
        ("ALTER TYPE mood RENAME ATTRIBUTE a TO b", LOCK),
        ("ALTER DOMAIN dom SET NOT NULL", "LOCK TABLE public.orders IN SHARE ROW EXCLUSIVE MODE"),
        ("ALTER DOMAIN dom ADD CHECK (value > 'a')", "LOCK TABLE public.orders IN SHARE ROW EXCLUSIVE MODE"),
        ("ALTER DOMAIN dom DROP NOT NULL", None),
        ("ALTER DOMAIN dom RENAME CONSTRAINT a TO b", None),
        ("ALTER TYPE mood ADD VALUE 'x'", None),
        ("ALTER TYPE apart RENAME VALUE 'a' TO 'b'", None),
    ],
)
def test_who_writes_old_values_of_a_type_is_waited_for(sql, lock):
    """Changing a type locks no table: without that, a value of before could be committed after the mark in the stream."""
    made = plan(sql, primary=typed(), replicas={"ml-1": typed()}, allow=True)
    (phase,) = made["phases"]
    assert phase["primary"][0]["sql"] == (f"{lock};\n{sql}" if lock else sql)
    assert phase["replicas"][0]["sql"] == sql
    assert (
        ("LOCK TABLE" in "\n".join(made["lines"]))
        is ("lets no rows be written" in "\n".join(made["lines"]))
        is bool(lock)
    )


def test_the_tables_of_a_type_are_known_by_what_they_are_called_then():
    sql = (
        "ALTER TABLE loose ADD x mood[]; ALTER TABLE loose RENAME TO new; ALTER TYPE mood RENAME TO m;"
        "ALTER TYPE m RENAME VALUE 'a' TO 'b'; ALTER TYPE m RENAME VALUE 'b' TO 'c'"
    )
    made = plan(sql, primary=typed(), replicas={"ml-1": typed()}, allow=True)
    lock = LOCK.replace("public.users", "public.new, public.users")
    assert [phase["last"] for phase in made["phases"]] == [1, 3, 4, 5]
    assert made["phases"][2]["primary"][0]["sql"].split(";\n")[0] == lock
    gone = plan(
        "DROP TABLE loose; " + sql[sql.index("ALTER TYPE") :], primary=typed(), replicas={"ml-1": typed()}, allow=True
    )
    assert gone["phases"][2]["primary"][0]["sql"].split(";\n")[0] == LOCK


LISTED = {"name": "shop", "tables": [{"name": "users", "columns": ["id", "name", "new"], "where": "id > 0"}]}


@pytest.mark.parametrize(
    ("sql", "order", "primary"),
    [
        ("ALTER TABLE users ADD x int", P, None),
        ("ALTER TABLE users ADD x float DEFAULT random()", P, None),
        ("ALTER TABLE users ALTER age SET DEFAULT 1", P, None),
        ("ALTER TABLE users ALTER name SET DEFAULT 1", A, None),
        ("CREATE INDEX CONCURRENTLY i ON users (name) WHERE age > 1", P, None),
        ("ALTER TABLE users ADD CHECK (age > id) NOT VALID", P, None),
        ("ALTER TABLE users DROP age", P, None),
        (
            "ALTER TABLE users ADD new int",
            A,
            "ALTER TABLE users ADD new int;\nALTER PUBLICATION pub DROP TABLE ONLY public.users;\n"
            "ALTER PUBLICATION pub ADD TABLE ONLY public.users(id, name, new) WHERE (id > 0)",
        ),
        ("ALTER TABLE users RENAME age TO years", P, None),
    ],
)
def test_a_table_that_is_distributed_by_columns(sql, order, primary):
    listed = server(change={"public.users": table(listed=["id", "name"])})
    lesser = table("name")
    replicas = {"ml-1": server(change={"public.users": lesser})}
    made = plan(sql, primary=listed, replicas=replicas, listed=LISTED, allow=True, publication="pub")
    (phase,) = made["phases"]
    assert (phase["order"], phase["primary"][0]["sql"]) == (order, primary or sql)
    assert phase["replicas"][0]["sql"] == (None if order == P else sql)
    assert made["joins"] is (primary is not None)


@pytest.mark.parametrize(
    ("sql", "listed", "words"),
    [
        (
            "DROP CONSTRAINT pk, ADD PRIMARY KEY (name)",
            {"where": "id > 10"},
            "a row filter on id, not in its replica identity",
        ),
        (
            "REPLICA IDENTITY FULL",
            {"columns": ["id", "name"]},
            "a column list without age, mood of its replica identity",
        ),
        (
            "DROP CONSTRAINT pk; ALTER TABLE users ADD PRIMARY KEY (age)",
            {"columns": ["id"]},
            "a column list without age of",
        ),
        ("DROP CONSTRAINT pk, ADD PRIMARY KEY (name)", {"columns": ["id", "name"], "where": "name > ''"}, None),
        ("REPLICA IDENTITY FULL", {"where": "id > 10"}, None),
        ("DROP mood", {"columns": ["name"], "where": "age > 10"}, None),
    ],
)
def test_what_finds_rows_is_sent_and_filtered_by(sql, listed, words):
    """PostgreSQL refuses UPDATE and DELETE on the primary otherwise."""
    held = server(change={"public.users": table(listed=listed.get("columns"))})
    sides = {"primary": held, "listed": {"name": "shop", "tables": [{"name": "users", **listed}]}}
    sql = f"ALTER TABLE users {sql}"
    if words is None:
        assert plan(sql, allow=True, **sides)
    else:
        assert words in refusal(sql, allow=True, **sides)


def test_partitions_inherit_no_replica_identity_but_a_primary_key():
    full = server(change={"public.parts": table(kind="p", identity="f", constraints={}, key=["id", "name"])})
    sides = {"primary": full, "replicas": {"ml-1": full}}
    create = "CREATE TABLE x PARTITION OF parts FOR VALUES IN (9)"
    attach = "CREATE TABLE x (LIKE parts); ALTER TABLE parts ATTACH PARTITION x FOR VALUES IN (9)"
    for sql in (create, attach):
        assert "creates public.x, which has no primary key" in refusal(sql, **sides)
        assert plan(f"{sql}; ALTER TABLE x REPLICA IDENTITY FULL", **sides)
    (phase,) = plan(f"{create}; ALTER TABLE x REPLICA IDENTITY FULL", **sides)["phases"]
    assert phase["order"] == A
    keyed = server(change={"public.parts": table(kind="p", identity="f")})
    assert orders(create, primary=keyed, replicas={"ml-1": keyed}) == [A]


def test_what_only_replicas_have_is_told_and_kept():
    sides = {"primary": server(without=["public.loose", "public.empty", "public.users_name"])}
    message = refusal("DROP TABLE IF EXISTS loose", **sides)
    assert (
        "drops table public.loose, which prod-db does not have, and ml-1 has rows of its own in: drop it there"
        in message
    )
    for sql, name in (
        ("DROP TABLE IF EXISTS empty", "public.empty"),
        ("DROP INDEX IF EXISTS users_name", "public.users_name"),
        ("ALTER TABLE IF EXISTS loose ADD a int", "public.loose"),
    ):
        (phase,) = plan(sql, **sides)["phases"]
        assert (phase["order"], phase["why"]) == (A, f"is about {name}, which only ml-1 and ml-2 have")
    sides["listed"] = {"name": "shop"}
    assert "exists already on ml-1" in refusal("CREATE TABLE IF NOT EXISTS loose (id int PRIMARY KEY)", **sides)
    assert orders("CREATE TABLE IF NOT EXISTS empty (id int PRIMARY KEY)", **sides) == [A]


def test_a_table_is_not_made_like_one_that_replicas_have_in_part():
    part = {"ml-1": server(), "ml-2": server(change={"public.users": table("name", "age")})}
    message = refusal("CREATE TABLE new (LIKE users INCLUDING ALL)", replicas=part)
    assert "creates public.new, like public.users, of which not all columns are on ml-2: write them out" in message


def test_a_column_leaves_the_list_before_it_is_dropped():
    listed = server(change={"public.users": table(listed=["id", "name", "age"])})
    sides = {"primary": listed, "replicas": {"ml-1": server()}, "listed": LISTED}
    (phase,) = plan("ALTER TABLE users DROP age", **sides)["phases"]
    assert phase["primary"][0]["sql"].split(";\n") == [
        "ALTER PUBLICATION pgml_shop DROP TABLE ONLY public.users",
        "ALTER PUBLICATION pgml_shop ADD TABLE ONLY public.users(id, name) WHERE (id > 0)",
        "ALTER TABLE users DROP age",
    ]
    assert "still lists: take it out there" in refusal("ALTER TABLE users DROP name", **sides)
    assert "lists the old name" in refusal("ALTER TABLE users RENAME name TO b", allow=True, **sides)
    assert "doesn't list the new name" in refusal("ALTER TABLE users RENAME age TO b", allow=True, **sides)
    by_age = {"name": "shop", "tables": [{"name": "users", "where": "age > 5"}]}
    assert "lists the old name" in refusal("ALTER TABLE users RENAME age TO b", allow=True, listed=by_age)
    mixed = "ALTER TABLE users ALTER name SET DEFAULT 1, ADD x int"
    assert "mixes what the replicas hold with what they don't" in refusal(mixed, **sides)


def test_what_the_replicas_lack_is_the_primarys_own_matter():
    bare = {"ml-1": server(without=["public.users_name", "public.seq", "public.loose", "public.mood"])}
    bare["ml-1"]["facts"]["relations"]["public.users"]["constraints"] = {}
    own = server()
    own["facts"]["relations"]["public.users"]["constraints"]["k"] = {"type": "f", "columns": ["age"], "valid": False}
    sides = {"primary": own, "replicas": bare}
    for sql in (
        "DROP INDEX users_name",
        "ALTER INDEX users_name RENAME TO x",
        "ALTER SEQUENCE seq CYCLE",
        "ALTER TABLE users DROP CONSTRAINT k",
        "ALTER TABLE users VALIDATE CONSTRAINT k",
        "ALTER TABLE users RENAME CONSTRAINT k TO l",
    ):
        assert orders(sql, **sides) == [P], sql
    for sql, words in (
        (
            "ALTER TABLE parts ATTACH PARTITION loose DEFAULT",
            "is not on ml-1: list it in pgml_distributions and run distribute.yml",
        ),
        ("ALTER TABLE loose ADD x int", "which ml-1 does not receive yet: run distribute.yml first"),
        ("ALTER TABLE users ADD x mood", "uses type public.mood, which is not on ml-1"),
        ("ALTER TYPE mood ADD VALUE 'x'", "is about type public.mood, which is not on ml-1"),
    ):
        assert words in refusal(sql, **sides)
    both = {"primary": own, "replicas": {**bare, "ml-2": own}}
    assert "is not on ml-1: run pgml_schema there first" in refusal("DROP INDEX users_name", **both)
    assert orders("DROP INDEX IF EXISTS users_name", **both) == [A]


def test_partitions_of_a_table_that_is_published_by_its_root_stay():
    by_root = server(publication={"via_partition_root": True})
    for sql in ("ALTER TABLE parts ATTACH PARTITION loose DEFAULT", "ALTER TABLE parts DETACH PARTITION part_1"):
        assert "published by its root" in refusal(sql, primary=by_root)


def test_a_constraint_is_named_as_people_do():
    views = {
        "ADD UNIQUE (age)": "adds a unique constraint to public.users",
        "ADD CONSTRAINT u UNIQUE (age)": "adds unique constraint u to public.users",
        "ADD CONSTRAINT x EXCLUDE USING gist (age WITH =)": "adds exclusion constraint x to public.users",
        "ADD EXCLUDE USING gist (age WITH =)": "adds an exclusion constraint to public.users",
        "ADD CHECK (age > 1)": "adds a constraint to public.users",
    }
    for sql, words in views.items():
        assert plan(f"ALTER TABLE users {sql}", allow=True)["phases"][0]["why"] == words


def test_rows_that_nobody_updates_need_no_key():
    inserts = server(publication={"publish": ["insert"]})
    assert orders("CREATE TABLE new (id int)", primary=inserts) == [A]
    assert orders("CREATE TABLE anything (id int PRIMARY KEY)", listed={"name": "shop"}) == [A]


ELSEWHERE = {"public.users": table(publications=["pgml_other"])}


@pytest.mark.parametrize(
    ("sql", "refused"),
    [
        ("ALTER TABLE users ADD x int", True),
        ("ALTER TABLE users DROP age", True),
        ("ALTER TABLE users ALTER age DROP NOT NULL", True),
        ("ALTER TABLE users RENAME age TO years", True),
        ("ALTER TABLE users REPLICA IDENTITY FULL", True),
        ("DROP TABLE users", True),
        ("ALTER TYPE mood ADD VALUE 'x'", True),
        ("ALTER DOMAIN dom DROP NOT NULL", True),
        ("CREATE TABLE stock.x (id int PRIMARY KEY)", True),
        ("CREATE TABLE x PARTITION OF parts FOR VALUES IN (5)", True),
        ("ALTER TABLE users ALTER age SET DEFAULT 5", False),
        ("ALTER TABLE users ADD CHECK (age > 1) NOT VALID", False),
        ("CREATE INDEX CONCURRENTLY i ON users (age)", False),
        ("DROP INDEX users_name", False),
    ],
)
def test_a_table_that_others_publish_too_is_left_as_it_is(sql, refused):
    held = {**ELSEWHERE, "public.parts": table(kind="p", publications=["pgml_other"])}
    primary = server(change=held, publication={"others": {"all_tables": [], "schemas": {"stock": ["pgml_other"]}}})
    for name, each in primary["facts"]["types"].items():
        each["publications"] = ["pgml_other"] if name in TYPES else []
    options: dict[str, Any] = {"listed": {**SHOP, "tables": SHOP["tables"][1:]}, "primary": primary, "allow": True}
    if refused:
        assert "also published by pgml_other, whose subscribers would stop" in refusal(sql, **options)
    else:
        assert plan(sql, **options)
    assert plan(sql, **{**options, "primary": server()})


def test_the_gate_is_not_for_subscribers_of_others():
    whole = server(publication={"others": {"all_tables": ["everything"], "schemas": {}}})
    sql = "ALTER TABLE users RENAME age TO years"
    assert "publication everything is for all tables" in refusal(sql, primary=whole, allow=True)
    assert "also published by everything" in refusal("CREATE TABLE new (id int PRIMARY KEY)", primary=whole)
    assert orders("CREATE INDEX CONCURRENTLY i ON users (age)", primary=whole) == [R]


def by_index() -> dict[str, Any]:
    held = table(key=["name"], identity="i", identity_index="users_name")
    held["indexes"] = {"users_name": unique_index("name", identity=True), "pk": unique_index("id", primary=True)}
    held["constraints"]["users_name"] = {"type": "u", "columns": ["name"], "expression": "", "valid": True}
    facts = {"public.users": held, "public.users_name": index("public.users", "name", unique=True)}
    return {"primary": server(change=facts), "replicas": {"ml-1": server(change=facts)}}


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        (
            "ALTER TABLE users REPLICA IDENTITY FULL",
            "would have a column list without age, mood of its replica identity",
        ),
        ("ALTER TABLE users DROP CONSTRAINT pk; ALTER TABLE users ADD PRIMARY KEY (age)", "column list without age of"),
        (
            "ALTER TABLE users DROP CONSTRAINT pk; ALTER TABLE users ADD PRIMARY KEY (name)",
            "would have a row filter on id, not in its replica identity",
        ),
        (
            "CREATE UNIQUE INDEX CONCURRENTLY i ON users (name); ALTER TABLE users REPLICA IDENTITY USING INDEX i",
            "would have a row filter on id, not in its replica identity",
        ),
    ],
)
def test_what_is_published_of_a_table_fits_what_finds_its_rows(sql, words):
    sides = {"primary": server(change={"public.users": table("name", "age", "mood", listed=["id", "name"])})}
    assert words in refusal(sql, listed=LISTED, allow=True, **sides)
    assert "UPDATE and DELETE fail on the primary" in refusal(sql, listed=LISTED, allow=True, **sides)
    inserts = {"primary": server(change=RELATIONS, publication={"publish": ["insert"]})}
    assert plan(sql, listed=LISTED, allow=True, **inserts)
    elsewhere = {"name": "shop", "tables": [{"name": "users", "where": "total > 0"}]}
    assert plan("ALTER TABLE users ADD x int", listed=elsewhere)


def test_what_the_primary_did_in_one_step_is_one_step_for_those_that_lag():
    """Their workers stand at the row that it wrote at the end of that step."""
    sql = (
        "ALTER TABLE users RENAME age TO years; ALTER TABLE empty ALTER age TYPE int; ALTER TABLE loose RENAME age TO b"
    )
    filled = {"public.empty": table()}
    assert [len(phase["statements"]) for phase in plan(sql, allow=True)["phases"]] == [3]
    for done, steps in ((2, [2, 1]), (3, [3])):
        for change in ({}, filled):
            sides = {"primary": server(done, change), "replicas": {"ml-1": server(change=filled)}}
            made = plan(sql, allow=True, **sides)
            assert [len(phase["statements"]) for phase in made["phases"]] == steps, (done, change)
    sides = {"primary": server(1, filled), "replicas": {"ml-1": server(change={})}}
    assert [len(phase["statements"]) for phase in plan(sql, allow=True, **sides)["phases"]] == [1, 1, 1]


@pytest.mark.parametrize(
    ("before", "domain", "refused"),
    [
        ("CREATE DOMAIN d AS timestamptz DEFAULT now()", "d", True),
        ("CREATE DOMAIN d AS timestamptz", "d", False),
        ("ALTER DOMAIN dom SET DEFAULT 'a'", "dom", True),
        ("ALTER DOMAIN dom DROP DEFAULT", "dom", False),
    ],
)
def test_a_domain_gives_its_own_default_to_the_rows_that_are_there(before, domain, refused):
    sql = f"{before}; ALTER TABLE users ADD x {domain}"
    if refused:
        assert f"column x of public.{domain}, whose own default each server would compute" in refusal(sql)
        assert plan(f"{sql} DEFAULT 'b'", allow=True)
    else:
        assert plan(sql, allow=True)
    held = server()
    held["facts"]["types"]["public.dom"]["has_default"] = True
    assert "whose own default" in refusal("ALTER TABLE empty ADD x dom", primary=held)


def test_a_table_that_is_listed_by_columns_is_created_with_these_only():
    listed = {"name": "shop", "tables": [{"name": "new", "columns": ["id", "a"]}]}
    sql = "CREATE TABLE new (id int PRIMARY KEY, a text, b text NOT NULL)"
    assert "creates public.new, of which pgml_distributions doesn't list b" in refusal(sql, listed=listed)
    assert orders("CREATE TABLE new (id int PRIMARY KEY, a text)", listed=listed) == [A]


@pytest.mark.parametrize(
    ("after", "order"),
    [
        ("ALTER TABLE users ALTER x DROP DEFAULT", R),
        ("ALTER TABLE users ALTER x SET DEFAULT 6, ALTER age SET DEFAULT 'a'", T),
        ("ALTER TABLE users ALTER x ADD GENERATED ALWAYS AS IDENTITY", R),
        ("ALTER TABLE users RENAME x TO y; ALTER TABLE users ALTER y DROP DEFAULT", R),
        ("ALTER TABLE users ALTER age DROP DEFAULT", A),
    ],
)
def test_rows_that_come_without_a_new_column_get_the_default_that_it_was_added_with(after, order):
    assert orders(f"ALTER TABLE users ADD x int NOT NULL DEFAULT 5; {after}", allow=True)[-1] == order
    made = f"CREATE TABLE new (id int PRIMARY KEY); ALTER TABLE new ADD x int, ADD age text; {after}"
    assert set(orders(made.replace("users", "new"))) == {A}
    assert orders("ALTER TABLE users ADD x int DEFAULT 5, ALTER x SET DEFAULT 6", allow=True) == [T]
    assert orders("ALTER DOMAIN dom SET DEFAULT 'a'") == [R]


@pytest.mark.parametrize(
    ("between", "name"), [("RENAME x TO y", "y"), ("ALTER age DROP NOT NULL", "x"), ("RENAME TO new", "x")]
)
def test_a_rerun_knows_which_columns_were_added(between, name):
    """Also where the primary has run what comes after that, and by the names that they have since."""
    users = "new" if between == "RENAME TO new" else "users"
    listed = {"name": "shop"}
    sql = f"ALTER TABLE users ADD x int DEFAULT 5; ALTER TABLE users {between}; ALTER TABLE {users} ALTER {name} DROP DEFAULT"
    held = {f"public.{users}": table("name", "age", "mood", name)}
    replicas = {"ml-1": server(2, held), "ml-2": server(2, held)}
    for primary in (server(2, held), server(3, held)):
        made = plan(sql, primary=primary, replicas=replicas, listed=listed, allow=True)
        assert [(phase["order"], phase["first"]) for phase in made["phases"]] == [(R, 3)]


def test_rows_that_are_found_by_all_their_columns_are_found_while_one_comes():
    """UPDATE and DELETE of the primary were lost, without an error, when a replica had values in a column that wasn't sent."""
    full = {"public.users": table(constraints={}, identity="f", key=["id", "name", "age", "mood"])}
    sides = {"primary": server(change=full), "replicas": {"ml-1": server(), "ml-2": server(change=full)}}
    assert orders("ALTER TABLE users ADD x int DEFAULT 5", **sides) == [T]
    for sql in ("ALTER TABLE users ADD x int", "ALTER TABLE users ADD x int DEFAULT NULL"):
        assert orders(sql, **sides) == [A]
    root = {"public.parts": table(kind="p", constraints={}, key=[])}
    sides = {"primary": server(change=root), "replicas": {"ml-1": server(change=root)}, "allow": True}
    assert orders("ALTER TABLE parts DROP age; ALTER TABLE parts ADD x int DEFAULT 5", **sides) == [T, T]
    sides["primary"] = server(change=root, publication={"publish": ["insert"]})
    assert orders("ALTER TABLE parts DROP age; ALTER TABLE parts ADD x int DEFAULT 5", **sides) == [R, A]
    keyed = {"primary": server(change=full), "replicas": {"ml-1": server()}}
    assert orders("ALTER TABLE users ADD x int DEFAULT 5", **keyed) == [A]


def test_what_distribute_brought_before_a_rerun_is_not_in_the_way():
    there = {"public.users": table(constraints={"pk": {"type": "p", "columns": ["id"]}, "c": check("CHECK (true)")})}
    there["public.i"] = index("public.users", "age")
    sides = {"primary": server(1, there), "replicas": {"ml-1": server(), "ml-2": server(change=there)}, "allow": True}
    for sql, runs in (
        ("CREATE INDEX CONCURRENTLY i ON users (age)", "CREATE INDEX CONCURRENTLY IF NOT EXISTS i ON users (age)"),
        (
            "ALTER TABLE users ADD CONSTRAINT c CHECK (age > 1)",
            "ALTER TABLE users DROP CONSTRAINT IF EXISTS c, ADD CONSTRAINT c CHECK (age > 1)",
        ),
    ):
        assert plan(sql, **sides)["phases"][0]["replicas"][0]["sql"] == runs
        lacking = {**sides, "replicas": {"ml-1": server()}}
        assert plan(sql, **lacking)["phases"][0]["replicas"][0]["sql"] == sql


def test_a_column_that_some_have_gets_no_value_that_the_others_could_take():
    sql = "ALTER TABLE users ADD COLUMN IF NOT EXISTS x timestamptz DEFAULT now()"
    held = {"public.users": table("name", "age", "mood", "x")}
    assert orders(sql) == [T]
    assert plan(sql)["phases"][0]["pins"]
    both = {"primary": server(change=held), "replicas": {"ml-1": server(change=held)}}
    assert not plan(sql, **both)["phases"][0]["pins"]
    assert "where it does not exist, which is on ml-1 only" in refusal(sql, **{**both, "replicas": {"ml-1": server()}})
    assert "where it does not exist, which is on prod-db only" in refusal(sql, **{**both, "primary": server()})


def test_what_a_replica_would_refuse_in_the_middle_is_refused_before():
    held = table(constraints={"pk": {"type": "p", "columns": ["id"]}, "c": check("CHECK ((age > 0))", "age")})
    held["indexes"] = {"i": unique_index("id")}
    there = {"public.users": held, "public.i": index("public.users", "id"), "public.new": table(distributed=False)}
    sides = {"primary": server(), "replicas": {"ml-1": server(), "ml-2": server(change=there)}, "allow": True}
    for sql, words in (
        ("CREATE INDEX CONCURRENTLY i ON users (age)", "builds index public.i, which exists already on ml-2"),
        ("ALTER TABLE users ADD CONSTRAINT c CHECK (age > 1)", "constraint c, which public.users has already on ml-2"),
        ("ALTER TABLE orders RENAME TO new", "which exists already on ml-2"),
    ):
        assert words in refusal(sql, **{**sides, "listed": {"name": "shop"}})
        assert plan(sql, listed={"name": "shop"}, allow=True)
    assert plan("CREATE INDEX CONCURRENTLY IF NOT EXISTS i ON users (age)", **sides)
    begun = {"ml-1": server(), "ml-2": server(change=there, begun=True)}
    assert plan("CREATE INDEX CONCURRENTLY i ON users (age)", **{**sides, "replicas": begun})
    again = "ALTER TABLE users DROP CONSTRAINT c, ADD CONSTRAINT c CHECK (age > 1)"
    assert plan(again, primary=server(change=there), replicas={"ml-1": server(change=there)}, allow=True)
    lacking = {"primary": server(change=there), "replicas": {"ml-1": server()}, "allow": True}
    for sql in ("ALTER TABLE users REPLICA IDENTITY USING INDEX i", "ALTER TABLE users ADD UNIQUE USING INDEX i"):
        assert "takes index i of public.users, which is not on ml-1" in refusal(sql, **lacking)
        assert plan(sql, **{**lacking, "replicas": {"ml-1": server(change=there)}})


@pytest.mark.parametrize("other", ["users", "orders"])
def test_a_foreign_key_to_what_is_distributed_in_part(other):
    """Also as pgml_schema leaves it out on the target."""
    sql = f"ALTER TABLE users ADD FOREIGN KEY (age) REFERENCES {other} NOT VALID"
    for part in ({"where": "id > 0"}, {"columns": ["id", "age"]}):
        assert orders(sql, listed={"name": "shop", "tables": [{"name": other, **part}]}) == [P]
    assert orders(sql) == [R]


BACK = "; ALTER TABLE users REPLICA IDENTITY DEFAULT"


def test_an_index_that_finds_rows_is_not_dropped_lightly():
    """Also where there is a primary key, which is not what finds them."""
    sides = by_index()
    assert "by which replication finds rows of public.users" in refusal("DROP INDEX users_name" + BACK, **sides)
    assert "write it without" in refusal("DROP INDEX CONCURRENTLY users_name", **sides)
    assert "drops unique constraint users_name" in refusal(
        "ALTER TABLE users DROP CONSTRAINT users_name" + BACK, **sides
    )
    for sql in ("DROP INDEX users_name", "ALTER TABLE users DROP CONSTRAINT users_name"):
        assert orders(sql + BACK, allow=True, **sides) == [T, T]
        assert orders(BACK[2:] + "; " + sql, allow=True, **sides) == [T, A]
    assert orders("ALTER TABLE users DROP CONSTRAINT pk", allow=True, **sides) == [T]
    assert orders("DROP INDEX users_name") == [A]


@pytest.mark.parametrize(
    ("sql", "kept"),
    [
        ("ALTER TABLE users DROP CONSTRAINT pk", "ALTER TABLE users ADD PRIMARY KEY (name)"),
        ("ALTER TABLE users DROP id", "ALTER TABLE users REPLICA IDENTITY FULL"),
        ("ALTER TABLE loose DROP id; ALTER TABLE loose RENAME TO new", "ALTER TABLE new ADD PRIMARY KEY (name)"),
        (
            "ALTER TABLE users DROP CONSTRAINT pk, ADD PRIMARY KEY (name) DEFERRABLE",
            "ALTER TABLE users REPLICA IDENTITY FULL",
        ),
        ("ALTER TABLE users DROP CONSTRAINT pk", "CREATE UNIQUE INDEX CONCURRENTLY i ON users (name);"
         "ALTER TABLE users ADD CONSTRAINT j UNIQUE USING INDEX i; ALTER TABLE users REPLICA IDENTITY USING INDEX j"),
    ],
)  # fmt: skip
def test_no_table_is_left_without_what_finds_its_rows(sql, kept):
    message = refusal(sql, allow=True)
    assert "would have no replica identity afterwards, so that UPDATE and DELETE fail on the primary" in message
    assert plan(f"{sql}; {kept}", allow=True)
    inserts = server(publication={"publish": ["insert"]})
    assert plan(sql, primary=inserts, allow=True)
    without = {"public.users": table(constraints={}, key=[]), "public.loose": table(constraints={}, key=[])}
    assert plan("ALTER TABLE users DROP name", primary=server(change=without))
    in_stock = """
        CREATE UNIQUE INDEX CONCURRENTLY i ON stock."Bin Ü" ("Größe");
        ALTER TABLE stock."Bin Ü" DROP CONSTRAINT pk, ADD CONSTRAINT j PRIMARY KEY USING INDEX i;
        ALTER TABLE stock."Bin Ü" DROP COLUMN "Größe";
    """
    assert 'stock."Bin Ü" would have no replica identity afterwards' in refusal(in_stock, allow=True)


@pytest.mark.parametrize(
    "sql", ["DROP INDEX users_name", "ALTER TABLE users DROP name", "ALTER TABLE users DROP CONSTRAINT users_name"]
)
def test_no_identity_is_dropped_with_its_index(sql):
    assert "would have no replica identity afterwards" in refusal(sql, allow=True, **by_index())
    lost = "ALTER TABLE users REPLICA IDENTITY DEFAULT; ALTER TABLE users DROP CONSTRAINT pk"
    assert "would have no replica identity afterwards" in refusal(lost, allow=True, **by_index())


RANGE = {"strategy": "r", "columns": ["age"]}
LIST = {"strategy": "l", "columns": ["age"]}


@pytest.mark.parametrize(
    ("by", "bound", "said", "proven"),
    [
        (RANGE, "FROM (30) TO (40)", "age >= 30 AND age < 40", True),
        (RANGE, "FROM (30) TO (40)", "((age >= '30'::integer) AND (age < 40)) AND (name <> 'x')", True),
        (RANGE, "FROM (MINVALUE) TO ('2020-01-01')", "age < '2020-01-01'::date", True),
        (RANGE, "FROM (30) TO (40)", "age >= 30 AND age <= 39", False),
        (RANGE, "FROM (30) TO (40)", "age >= 30 OR age < 40", False),
        (RANGE, "FROM (30) TO (40)", "name >= '30' AND name < '40'", False),
        (LIST, "IN ('a', 'b')", "age = ANY (ARRAY['a'::text, 'b'::text])", True),
        (LIST, "IN ('a', 'b')", "age IN ('b')", True),
        (LIST, "IN ('a', 'b')", "age = 'a'", True),
        (LIST, "IN ('a', 'b')", "age IN ('a', 'c')", False),
        (LIST, "IN ('a', 'b')", "age <> 'a'", False),
        ({"strategy": "h", "columns": ["age"]}, "WITH (MODULUS 2, REMAINDER 1)", "age > 1", False),
        ({"strategy": "r", "columns": [None]}, "FROM (30) TO (40)", "age >= 30 AND age < 40", False),
        (None, "FROM (30) TO (40)", "age >= 30 AND age < 40", False),
    ],
)
def test_a_check_that_says_the_same_as_the_bounds_saves_reading(by, bound, said, proven):
    loose = table(constraints={"c": check(f"CHECK (({said}))", "age")})
    loose["columns"]["age"]["not_null"] = True
    held = {"public.parts": table(kind="p", partitioned_by=by), "public.loose": loose}
    sides = {"primary": server(change=held), "replicas": {"ml-1": server(change=held)}}
    sql = f"ALTER TABLE parts ATTACH PARTITION loose FOR VALUES {bound}"
    assert plan(sql, allow=True, **sides)["disruptive"] is not proven
    loose["constraints"]["c"]["valid"] = False
    sides["primary"] = server(change=held)
    assert "reads public.loose" in refusal(sql, **sides)
    loose["constraints"] = {}
    sides = {"primary": server(change=held), "replicas": {"ml-1": server(change=held)}}
    checked = f"ALTER TABLE loose ADD CONSTRAINT c CHECK ({said}) NOT VALID; ALTER TABLE loose VALIDATE CONSTRAINT c;"
    assert (
        plan(f"{checked} {sql}; ALTER TABLE parts DETACH PARTITION loose", allow=True, **sides)["disruptive"]
        is not proven
    )
    loose["columns"]["age"]["not_null"] = False
    sides["primary"] = server(change=held)
    assert plan(checked + sql, allow=True, **sides)["disruptive"]


def test_a_table_that_a_replica_has_by_itself_is_not_attached():
    sql = "ALTER TABLE parts ATTACH PARTITION empty FOR VALUES IN (5)"
    apart = {"public.empty": table(distributed=False, empty=False)}
    replicas = {"ml-1": server(), "ml-2": server(change=apart)}
    message = refusal(sql, replicas=replicas, allow=True)
    assert "attaches public.empty, which ml-2 does not receive and has rows of its own in" in message
    apart["public.empty"]["empty"] = True
    assert orders(sql, replicas={"ml-1": server(), "ml-2": server(change=apart)}) == [R]


@pytest.mark.parametrize(
    ("old", "new", "rewrites"),
    [
        ("character varying(20)", "varchar(50)", False),
        ("character varying(20)", "text", False),
        ("character varying(20)", "varchar", False),
        ("text", "varchar", False),
        ("character varying", "text", False),
        ("character varying(20)", "varchar(10)", True),
        ("character varying(20)", 'text COLLATE "C"', True),
        ("character varying(20)", "text USING lower(age)", True),
        ("character varying(20)[]", "text", True),
        ("text", "varchar(10)", True),
        ("character(20)", "text", True),
    ],
)
def test_types_that_only_take_more_rewrite_nothing(old, new, rewrites):
    held = table()
    held["columns"]["age"]["type"] = old
    sides = {"primary": server(change={"public.users": held})}
    made = plan(f"ALTER TABLE users ALTER age TYPE {new}", allow=True, **sides)
    view = " ".join(" ".join(made["lines"]).split())
    assert ("while it is rewritten" in view) is rewrites and ("without rewriting it" in view) is not rewrites
    held["constraints"]["c"] = check("CHECK (age <> 'x')", "age")
    read = plan(f"ALTER TABLE users ALTER age TYPE {new}", allow=True, primary=server(change={"public.users": held}))
    assert ("while it is read" in "\n".join(read["lines"])) is not rewrites


def with_default(**more: Any) -> dict[str, Any]:
    default = {"name": "public.rest", "empty": False}
    held = {
        "public.parts": table(kind="p", default=default),
        "public.part_1": table(parent="public.parts", parent_default=default),
        "public.rest": table(parent="public.parts", parent_default=default),
        **more,
    }
    sides = server(change=held)
    return {"primary": sides, "replicas": {"ml-1": sides}}


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("CREATE TABLE x PARTITION OF parts FOR VALUES IN (5)", "locks the default partition public.rest and reads it"),
        ("ALTER TABLE parts ATTACH PARTITION empty FOR VALUES IN (5)", "default partition public.rest and reads it"),
        ("ALTER TABLE parts DETACH PARTITION part_1", "public.rest, into which its rows go from then on"),
        ("DROP TABLE part_1", "public.rest, into which its rows go from then on"),
    ],
)
def test_partitions_beside_a_default_one_come_and_go_together(sql, words):
    message = refusal(sql, **with_default())
    assert words in message and "pgml_schema_change_allow_disruptive" in message
    made = plan(sql, allow=True, **with_default())
    assert [phase["order"] for phase in made["phases"]] == [T] and made["joins"] and made["gate"]
    assert "locks default partition public.rest while it" in "\n".join(made["lines"])
    assert refusal("DROP TABLE part_1", **with_default(**{"public.parts": None}))


def test_the_default_partition_itself_is_as_any_other():
    sides = with_default()
    assert orders("ALTER TABLE parts DETACH PARTITION rest", **sides) == [R]
    assert orders("DROP TABLE rest; DROP TABLE part_1", **sides) == [R, R]
    assert orders("CREATE TABLE x PARTITION OF parts DEFAULT; CREATE TABLE y PARTITION OF parts DEFAULT") == [A, A]
    sql = "CREATE TABLE x PARTITION OF parts DEFAULT; CREATE TABLE y PARTITION OF parts FOR VALUES IN (5)"
    assert orders(sql, allow=True) == [A, T]
    assert orders(sql.replace("y", "z") + "; ALTER TABLE x RENAME TO new; DROP TABLE z", allow=True) == [A, T, R, T]
    whole = (
        "CREATE TABLE new (id int PRIMARY KEY) PARTITION BY LIST (id); CREATE TABLE d PARTITION OF new DEFAULT;"
        "CREATE TABLE x PARTITION OF new FOR VALUES IN (5); DROP TABLE x"
    )
    assert orders(whole) == [A, A, A, R]


# --- a rerun ----------------------------------------------------------------------------------------------------------------


def test_what_is_done_everywhere_is_left_out():
    sql = "ALTER TABLE users ADD a int; ALTER TABLE loose RENAME TO new; ALTER TABLE new RENAME age TO b;"
    after = {"public.new": table("name", "age", "mood"), "public.users": table("name", "age", "mood", "a")}
    there = server(2, after, ["public.loose"])
    sql += "CREATE TABLE stock.x (i int PRIMARY KEY)"
    made = plan(sql, primary=there, replicas={"ml-1": there}, allow=True)
    assert [(phase["order"], phase["first"], phase["last"]) for phase in made["phases"]] == [(T, 3, 3), (A, 4, 4)]
    assert "-- statement 2 (line 1) is done already" in "\n".join(made["lines"])
    assert made["lines"][-1] == "4 statements, 2 steps, 2 done already."
    everything = server(4, after, ["public.loose"])
    made = plan(sql, primary=everything, replicas={"ml-1": everything})
    assert (made["phases"], made["gate"], made["joins"]) == ([], False, True)


def test_a_rerun_places_a_statement_as_the_first_run_did():
    """Where the primary has run it, by what the replicas still hold."""
    sql = "ALTER TABLE users DROP id; ALTER TABLE users DROP age; ALTER TABLE users REPLICA IDENTITY FULL"
    gone = table()
    del gone["columns"]["id"]
    gone["key"] = []
    made = plan(
        sql,
        primary=server(1, {"public.users": gone}),
        replicas={"ml-1": server(), "ml-2": server(1, {"public.users": gone})},
        allow=True,
    )
    assert [(phase["order"], phase["first"]) for phase in made["phases"]] == [(T, 1), (R, 2), (T, 3)]


def test_what_an_unfinished_run_has_made_is_still_made_by_the_change():
    sql = "CREATE TABLE new (id int PRIMARY KEY); CREATE INDEX ON new (id); ALTER TABLE new ALTER id TYPE bigint"
    there = server(1, {"public.new": table(distributed=False)})
    made = plan(sql, primary=there, replicas={"ml-1": there})
    assert [(phase["order"], phase["first"]) for phase in made["phases"]] == [(A, 2)]
    ahead = plan(sql, primary=server(), replicas={"ml-1": there})
    assert [phase["first"] for phase in ahead["phases"]] == [1]
    # distribute.yml has run in between, and rows come.
    received = server(1, {"public.new": table()})
    made = plan(sql, primary=received, replicas={"ml-1": received}, allow=True)
    assert [(phase["order"], phase["first"]) for phase in made["phases"]] == [(R, 2), (T, 3)]


def test_a_replica_that_joined_afterwards_has_nothing_to_do():
    sql = "ALTER TABLE users DROP age; ALTER TABLE users RENAME mood TO feeling"
    after = {"public.users": table("name", "feeling")}
    done, half = server(2, after), server(1, {"public.users": table("name", "mood")})
    newcomer = {**server(change=after), "known": False}
    assert plan(sql, primary=done, replicas={"ml-1": newcomer})["phases"] == []
    halfway = {**half, "progress": server()["progress"], "known": False}
    assert [phase["first"] for phase in plan(sql, primary=half, replicas={"ml-1": halfway}, allow=True)["phases"]] == [
        2
    ]
    # One that was told of the change lags.
    told = {**server(), "known": True}
    assert [phase["first"] for phase in plan(sql, primary=done, replicas={"ml-1": told})["phases"]] == [1, 2]
    unaware = {"ml-1": {**server(), "known": False}}
    first = plan(sql, primary={**server(), "known": False}, replicas=unaware, allow=True)
    assert [phase["first"] for phase in first["phases"]] == [1, 2]


def test_another_change_comes_first():
    sql = "ALTER TABLE users ADD x int"
    other = {"change": "77aa01bc23de", "done": 0, "total": 5, "begun": False}
    busy = server(other={**other, "done": 2})
    message = refusal(sql, replicas={"ml-1": busy, "ml-2": server(other=other)})
    assert "change 77aa01bc23de is unfinished, with 2 of 5 statements done on ml-1 and 0 of 5 on ml-2. Mend" in message
    assert "give it up with -e pgml_schema_change_abandon=77aa01bc23de and a change that takes back" in message
    assert "unfinished" in refusal(sql, replicas={"ml-1": server(other={**other, "begun": True})})
    done = {**server(), "finished": ["77aa01bc23de"]}
    assert "with 5 of 5 statements done on prod-db and 0 of 5 on ml-1." in refusal(
        sql, primary=done, replicas={"ml-1": server(other=other)}
    )
    # What was begun nowhere stands in nobody's way.
    assert plan(sql, replicas={"ml-1": server(other=other)})["abandon"] == ["77aa01bc23de"]


def test_what_was_run_before_is_run_again_under_another_name_only():
    sql = "ALTER TABLE users ADD x int"
    change = schema_change_mentions(sql)["change"]
    last, others_since = (
        {**server(1), "known": True, "finished": finished}
        for finished in (["77aa01bc23de", change], [change, "77aa01bc23de"])
    )
    assert plan(sql, primary=last, replicas={"ml-1": last})["phases"] == []
    message = refusal(sql, primary=others_since, replicas={"ml-1": others_since})
    assert message == (
        f"These statements were run before: as change {change}, and others since. To run them once more, give that another name, "
        "with -e pgml_schema_change_id=NAME."
    )
    again = schema_change_mentions(sql, "again")["change"]
    assert again != change and len(again) == 12
    # A replica that lags goes on, whatever else was done.
    assert plan(sql, primary=others_since, replicas={"ml-1": {**others_since, "progress": server()["progress"]}})[
        "phases"
    ]


# --- reading ----------------------------------------------------------------------------------------------------------------


def test_statements_keep_the_text_that_the_user_wrote():
    text = (
        "\ufeff-- Größe; not a statement\nALTER TABLE  ü.x\n  ADD \"a;b\" text DEFAULT 'ä;'  -- why; é\n;;\r\n"
        "/* b */ alter table Users add /* c */ B int\n;\n\nSELECT $$a;b$$ -- end"
    )
    read = ddl.read(text)
    assert [(each.number, each.line, each.text) for each in read] == [
        (1, 2, "ALTER TABLE  ü.x\n  ADD \"a;b\" text DEFAULT 'ä;'"),
        (2, 5, "alter table Users add /* c */ B int"),
        (3, 8, "SELECT $$a;b$$"),
    ]
    assert [each.line for each in ddl.read(["SELECT 1;", "SELECT 2"])] == [None, None]


def test_every_syntax_error_is_told_with_its_line():
    with pytest.raises(AnsibleFilterError) as error:
        ddl.read(
            "ALTER TABEL ü;\nALTER TABLE a ADD b int;\n\n  ALTER TABLE a\n  ADD b int int;\n\\d users\n;SELECT :x, 'ü;\n"
        )
    assert str(error.value).splitlines() == [
        "The statements can't be read:",
        '- statement 1 (line 1): syntax error at or near "TABEL".',
        '- statement 3 (line 5): syntax error at or near "int".',
        "- statement 4 (line 6): syntax error at or near \"\\\"; psql's backslash commands can't be used here, only SQL.",
        '- statement 5 (line 7): unterminated quoted string at or near "\'ü;\n".'.splitlines()[0],
        '".',
    ]


def test_semicolons_in_parentheses_part_nothing():
    with pytest.raises(AnsibleFilterError) as error:
        ddl.read("CREATE RULE r AS ON INSERT TO t DO ALSO (SELECT 1; SELECT 2); ALTER TABEL x")
    assert str(error.value).startswith("The statements can't be read: statement 2 (line 1): ")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "ALTER TABLE :t ADD a int",
            'statement 1 (line 1): syntax error at or near ":"; variables of psql can\'t be used here',
        ),
        (["ALTER TABLE a ADD b"], "statement 1: syntax error at end of input"),
        ([{"ALTER": 1}], "in YAML, quote a statement that holds a colon"),
        (["SELECT 1\x00"], "holds a null character"),
        ("SELECT 1;\nSELECT 'gr\udcfcn'", "statement 1 (line 2): it holds what is not UTF-8: save it as UTF-8."),
        ("", "There is no statement"),
        ("-- nothing", "There is no statement"),
        ([], "There is no statement"),
        (5, "must be a text or a list of texts"),
        ("'", "statement 1 (line 1): unterminated quoted string"),
    ],
)
def test_what_is_no_statement_is_told(source, words):
    with pytest.raises(AnsibleFilterError, match=re.escape(words)):
        ddl.read(source)


def test_names_are_found():
    found = schema_change_mentions(
        "ALTER TABLE Users ADD \"X\" stock.Mood[] DEFAULT f(now()), ADD y text DEFAULT pg_catalog.lower('a');"
        'ALTER TABLE shop.stock."Bin Ü" ADD FOREIGN KEY (a) REFERENCES other; DROP INDEX a.b, c;'
        'ALTER TABLE users RENAME TO "People"; CREATE INDEX i ON stock.t (a); CREATE TABLE n (LIKE m, x serial);'
        "ALTER TABLE p ATTACH PARTITION q DEFAULT; ALTER TYPE feeling ADD VALUE 'x'; ALTER DOMAIN d DROP NOT NULL;"
        "ALTER TYPE t RENAME TO u; ALTER TABLE users ADD UNIQUE USING INDEX j"
    )
    assert found["relations"] == [
        "public.users",
        'stock."Bin Ü"',
        "public.other",
        "a.b",
        "public.c",
        'public."People"',
        "stock.t",
        "stock.i",
        "public.n",
        "public.m",
        "public.p",
        "public.q",
        "public.j",
    ]
    assert found["types"] == ["stock.mood", "public.feeling", "public.d", "public.t", "public.u"]
    assert found["functions"] == ["f", "now", "pg_catalog.lower"]
    expressions = (
        "ALTER TABLE t ALTER a TYPE int USING f(g(a)), ALTER b SET EXPRESSION AS (h(a)), ADD c int DEFAULT i()"
    )
    assert schema_change_mentions(expressions)["functions"] == ["f", "g", "h", "i"]
    assert found["total"] == 11 and re.fullmatch("[0-9a-f]{12}", found["change"])


def test_a_change_is_known_by_its_statements():
    first = schema_change_mentions("ALTER TABLE a ADD b int;\n-- c\nALTER TABLE a ADD c int;")
    assert first["change"] == schema_change_mentions(["ALTER TABLE a ADD b int ", "ALTER TABLE a ADD c int;"])["change"]
    assert first["change"] != schema_change_mentions("ALTER TABLE a ADD b int")["change"]


def test_without_the_parser_it_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(ddl, "HAS_PGLAST", False)
    with pytest.raises(AnsibleFilterError, match="pip install pglast"):
        ddl.read("SELECT 1")


def test_thousands_of_statements_are_placed_soon():
    statements = "".join('ALTER TABLE users ADD COLUMN "ü{0}" int DEFAULT {0}; -- é\n'.format(n) for n in range(2000))
    began = time.process_time()
    made = plan(statements)
    assert (len(made["phases"]), made["phases"][0]["last"]) == (1, 2000)
    assert time.process_time() - began < 60


VIEW = """\
Schema change CHANGE of distribution shop, 5 statements

replicas (ml-1, ml-2)                                        | primary (prod-db)
-------------------------------------------------------------+-------------------------------------------------------------

Step 1, replicas first
  statement 1 (line 1) adds column a to public.users
 1 ALTER TABLE users ADD COLUMN a int;                       |
                                                             |  1 ALTER TABLE users ADD COLUMN a int;

Step 2, together
  statement 2 (line 2) adds column created_at to public.users; the rows that are there get the value that the primary gave
    them
                                                             |  2 ALTER TABLE users ADD created_at timestamptz NOT NULL
                                                             |      DEFAULT now();
-- apply stops here                                          |
 2 ALTER TABLE users ADD COLUMN created_at timestamptz NOT   |
   NULL DEFAULT (the value at the source), ALTER COLUMN      |
   created_at SET DEFAULT now();                             |
-- and goes on                                               |

Step 3, primary first
  statement 3 (line 4) builds index users_age on public.users; runs outside of a transaction
                                                             |  3 CREATE INDEX CONCURRENTLY users_age ON users (age);
-- wait until all rows up to here are applied                |
 3 CREATE INDEX CONCURRENTLY users_age ON users (age);       |

Step 4, together
  statement 4 (line 5) changes the type of column age of public.users to bigint; locks public.users while it is rewritten
                                                             |  4 ALTER TABLE users ALTER COLUMN age TYPE bigint;
-- apply stops here                                          |
 4 ALTER TABLE users ALTER COLUMN age TYPE bigint;           |
-- and goes on                                               |

Step 5, on the primary only
  statement 5 (line 6) adds a foreign key from public.users to public.logs; public.logs is not in distribution shop
                                                             |  5 ALTER TABLE users ADD FOREIGN KEY (age) REFERENCES logs
                                                             |    NOT VALID;

5 statements, 5 steps; reads and writes of public.users wait while statement 4 rewrites it.
"""


def test_the_plan_is_one_that_a_person_would_approve():
    made = plan(
        "ALTER TABLE users ADD COLUMN a int;\n"
        "ALTER TABLE users ADD created_at timestamptz NOT NULL\n  DEFAULT now();\n"
        "CREATE INDEX CONCURRENTLY users_age ON users (age);\n"
        "ALTER TABLE users ALTER COLUMN age TYPE bigint;\n"
        "ALTER TABLE users ADD FOREIGN KEY (age) REFERENCES logs NOT VALID;",
        allow=True,
    )
    assert "\n".join(made["lines"]) + "\n" == VIEW.replace("CHANGE", made["change"])
    text = "\n".join(plan("CREATE TABLE new (id int PRIMARY KEY)", allow=True)["lines"])
    assert "\n\nThen tables that came are published, their rows copied and waited for" in text


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("CREATE INDEX i ON users (age)", "writes to public.users wait while statement 1 builds"),
        ("ALTER TABLE users ADD UNIQUE (age)", "reads and writes of public.users wait while statement 1 builds"),
        (
            "ALTER TABLE users ADD FOREIGN KEY (age) REFERENCES orders",
            "writes to public.users wait while statement 1 reads",
        ),
        ("ALTER TABLE users ALTER age SET NOT NULL", "reads and writes of public.users wait while statement 1 reads"),
    ],
)
def test_the_plan_says_who_waits(sql, words):
    assert f"; {words}" in plan(sql, allow=True)["lines"][-1]


def test_the_guide_shows_the_plan_as_it_is():
    blocks = [
        textwrap.dedent(block)
        for block in re.findall(r"code-block:: \w+\n\n((?:    .*\n|\n)+)", GUIDE.read_text("utf-8"))
    ]
    sql = next(block for block in blocks if block.startswith("-- Users get an age"))
    shown = next(block for block in blocks if block.startswith("Schema change 6e74b3f5c243 of"))
    refused = next(block for block in blocks if block.startswith("The schema change can't be rolled out"))
    users = table("name", "nick")
    users["columns"]["nick"]["not_null"] = True
    servers = {
        "primary": server(change={"public.users": users}),
        "replicas": {host: server(change={"public.users": users}) for host in ("ml-1", "ml-2")},
    }
    assert "\n".join(line.rstrip() for line in plan(sql, **servers, allow=True)["lines"]) == shown.strip()
    assert refusal(sql, **servers) == " ".join(refused.split())


class Told(str):
    """A kind of string of its own, as Ansible's are, whatever is done to it."""

    def __str__(self) -> str:
        return self

    def lstrip(self, *characters: Any) -> Told:
        return Told(super().lstrip(*characters))


def test_strings_that_ansible_has_marked_are_read() -> None:
    """ansible-core 2.17 hands over strings that pglast doesn't take for such."""
    mentions = FilterModule().filters()["schema_change_mentions"]
    sql = "ALTER TABLE t ADD COLUMN a int[] DEFAULT '{{1,2},{3,4}}'"
    assert mentions(Told(sql))["statements"] == mentions([Told(sql)])["statements"] == [sql]
    assert mentions({Told("a"): 1})["problem"]
