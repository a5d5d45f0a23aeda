# SPDX-License-Identifier: GPL-3.0-or-later
"""Types that differ."""

from __future__ import annotations

from tests.support.differing import ADD, APPLY, BREAKS, HARMLESS, Case, Found

CASES = [
    Case(
        "enum_middle",
        "CREATE TYPE e AS ENUM ('a', 'b', 'c'); CREATE TABLE t (id int PRIMARY KEY, a e)",
        "CREATE TYPE e AS ENUM ('a', 'c'); CREATE TABLE t (id int PRIMARY KEY, a e)",
        (Found(BREAKS, ADD, "'b' of type @.e is missing on the target"),),
        row="INSERT INTO t VALUES (1, 'b')",
    ),
    Case(
        "enum_ends",
        "CREATE TYPE e AS ENUM ('x', 'a', 'b', 'y', 'z'); CREATE TABLE t (id int PRIMARY KEY, a e[])",
        "CREATE TYPE e AS ENUM ('a', 'b'); CREATE TABLE t (id int PRIMARY KEY, a e[])",
        (
            Found(BREAKS, ADD, "'x' of type @.e is missing on the target"),
            Found(BREAKS, ADD, "'y' of type @.e is missing on the target"),
            Found(BREAKS, ADD, "'z' of type @.e is missing on the target"),
        ),
        row="INSERT INTO t VALUES (1, '{x,z}')",
    ),
    Case(
        "enum_disjoint",
        "CREATE TYPE e AS ENUM ('x', 'y'); CREATE TABLE t (id int PRIMARY KEY, a e)",
        "CREATE TYPE e AS ENUM ('a', 'b'); CREATE TABLE t (id int PRIMARY KEY, a e)",
        (
            Found(BREAKS, ADD, "'x' of type @.e is missing on the target"),
            Found(BREAKS, ADD, "'y' of type @.e is missing on the target"),
            Found(HARMLESS, None, "'a' of type @.e is on the target only, and stays"),
            Found(HARMLESS, None, "'b' of type @.e is on the target only, and stays"),
        ),
        row="INSERT INTO t VALUES (1, 'y')",
    ),
    Case(
        "enum_extra",
        "CREATE TYPE e AS ENUM ('a', 'b'); CREATE TABLE t (id int PRIMARY KEY, a e)",
        "CREATE TYPE e AS ENUM ('a', 'x', 'b'); CREATE TABLE t (id int PRIMARY KEY, a e)",
        (Found(HARMLESS, None, "'x' of type @.e is on the target only, and stays"),),
        row="INSERT INTO t VALUES (1, 'a')",
    ),
    Case(
        "enum_order",
        "CREATE TYPE e AS ENUM ('a', 'b'); CREATE TABLE t (id int PRIMARY KEY, a e)",
        "CREATE TYPE e AS ENUM ('b', 'a'); CREATE TABLE t (id int PRIMARY KEY, a e)",
        (Found(HARMLESS, None, "type @.e has its labels in another order on the target, and sorts by that"),),
        row="INSERT INTO t VALUES (1, 'a')",
    ),
    Case(
        "enum_odd",
        "CREATE TYPE e AS ENUM ('a', 'it''s 100% {x} \"q\" Ü'); CREATE TABLE t (id int PRIMARY KEY, a e)",
        "CREATE TYPE e AS ENUM ('a'); CREATE TABLE t (id int PRIMARY KEY, a e)",
        (Found(BREAKS, ADD, ("'it\\'s 100% {x} \"q\" Ü' of type @.e is missing on the target")),),
        row="INSERT INTO t VALUES (1, 'it''s 100% {x} \"q\" Ü')",
    ),
    Case(
        "domain_check_extra",
        "CREATE DOMAIN d AS int; CREATE TABLE t (id int PRIMARY KEY, a d)",
        "CREATE DOMAIN d AS int CONSTRAINT k CHECK (VALUE > 0); CREATE TABLE t (id int PRIMARY KEY, a d)",
        (Found(BREAKS, APPLY, "k of type @.d is on the target only, and may refuse values that the source has"),),
        row="INSERT INTO t VALUES (1, -1)",
    ),
    Case(
        "domain_check_lacking",
        "CREATE DOMAIN d AS int CONSTRAINT k CHECK (VALUE > 0); CREATE TABLE t (id int PRIMARY KEY, a d)",
        "CREATE DOMAIN d AS int; CREATE TABLE t (id int PRIMARY KEY, a d)",
        (Found(HARMLESS, APPLY, "k of type @.d is missing on the target"),),
        row="INSERT INTO t VALUES (1, 1)",
    ),
    Case(
        "domain_check_other",
        "CREATE DOMAIN d AS int CONSTRAINT k CHECK (VALUE > 0); CREATE TABLE t (id int PRIMARY KEY, a d)",
        "CREATE DOMAIN d AS int CONSTRAINT k CHECK (VALUE > 5); CREATE TABLE t (id int PRIMARY KEY, a d)",
        (
            Found(
                BREAKS,
                APPLY,
                ("k of type @.d is another constraint on the target, and may refuse values that the source has"),
            ),
        ),
        row="INSERT INTO t VALUES (1, 1)",
    ),
    Case(
        "domain_strict",
        "CREATE DOMAIN d AS int; CREATE TABLE t (id int PRIMARY KEY, a d)",
        "CREATE DOMAIN d AS int NOT NULL; CREATE TABLE t (id int PRIMARY KEY, a d)",
        (Found(BREAKS, ADD, "type @.d may be NULL on the source only"),),
    ),
    Case(
        "domain_loose",
        "CREATE DOMAIN d AS int NOT NULL; CREATE TABLE t (id int PRIMARY KEY, a d)",
        "CREATE DOMAIN d AS int; CREATE TABLE t (id int PRIMARY KEY, a d)",
        (Found(HARMLESS, APPLY, "type @.d may be NULL on the target only"),),
        row="INSERT INTO t VALUES (1, 1)",
    ),
    Case(
        "domain_default",
        "CREATE DOMAIN d AS int DEFAULT 5; CREATE TABLE t (id int PRIMARY KEY, a d)",
        "CREATE DOMAIN d AS int DEFAULT 6; CREATE TABLE t (id int PRIMARY KEY, a d)",
        (Found(HARMLESS, APPLY, "type @.d has another default on the target"),),
        row="INSERT INTO t VALUES (1, DEFAULT)",
    ),
    Case(
        "domain_base",
        "CREATE DOMAIN d AS varchar(20); CREATE TABLE t (id int PRIMARY KEY, a d)",
        "CREATE DOMAIN d AS varchar(10); CREATE TABLE t (id int PRIMARY KEY, a d)",
        (
            Found(
                BREAKS, None, "type @.d is character varying(20) on the source and character varying(10) on the target"
            ),
        ),
        row="INSERT INTO t VALUES (1, 'fifteen letters')",
    ),
    Case(
        "composite_lacking",
        "CREATE TYPE c AS (x int, y text); CREATE TABLE t (id int PRIMARY KEY, a c)",
        "CREATE TYPE c AS (x int); CREATE TABLE t (id int PRIMARY KEY, a c)",
        (Found(BREAKS, ADD, "y of type @.c is missing on the target"),),
        row="INSERT INTO t VALUES (1, (1, 'y'))",
    ),
    Case(
        "composite_extra",
        "CREATE TYPE c AS (x int); CREATE TABLE t (id int PRIMARY KEY, a c)",
        "CREATE TYPE c AS (x int, y text); CREATE TABLE t (id int PRIMARY KEY, a c)",
        (Found(BREAKS, APPLY, "y of type @.c is on the target only, so that values don't fit"),),
        row="INSERT INTO t VALUES (1, ROW(1))",
    ),
    Case(
        "composite_type",
        "CREATE TYPE c AS (x bigint); CREATE TABLE t (id int PRIMARY KEY, a c)",
        "CREATE TYPE c AS (x int); CREATE TABLE t (id int PRIMARY KEY, a c)",
        (Found(BREAKS, None, "x of type @.c is bigint on the source and integer on the target"),),
        row="INSERT INTO t VALUES (1, ROW(3000000000))",
    ),
    Case(
        "composite_order",
        "CREATE TYPE c AS (x int, y int); CREATE TABLE t (id int PRIMARY KEY, a c)",
        "CREATE TYPE c AS (y int, x int); CREATE TABLE t (id int PRIMARY KEY, a c)",
        (Found(BREAKS, None, "type @.c has its attributes in another order on the target"),),
    ),
    Case(
        "type_kind",
        "CREATE TYPE k AS ENUM ('a'); CREATE TABLE t (id int PRIMARY KEY, a k)",
        "CREATE DOMAIN k AS text; CREATE TABLE t (id int PRIMARY KEY, a k)",
        (Found(BREAKS, None, "type @.k is enum on the source and domain on the target"),),
    ),
]
