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
            Found(
                BREAKS,
                None,
                "'x' of type @.e is missing on the target, which has 'a' in its place, so that it was perhaps renamed",
            ),
            Found(
                BREAKS,
                None,
                "'y' of type @.e is missing on the target, which has 'b' in its place, so that it was perhaps renamed",
            ),
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
        "enum_renamed",
        "CREATE TYPE e AS ENUM ('a', 'z'); CREATE TABLE t (id int PRIMARY KEY, a e)",
        "CREATE TYPE e AS ENUM ('a', 'b'); CREATE TABLE t (id int PRIMARY KEY, a e)",
        (
            Found(
                BREAKS,
                None,
                "'z' of type @.e is missing on the target, which has 'b' in its place, so that it was perhaps renamed",
            ),
        ),
        row="INSERT INTO t VALUES (1, 'z')",
    ),
    Case(
        "enum_renamed_too",
        "CREATE TYPE e AS ENUM ('a', 'z', 'q'); CREATE TABLE t (id int PRIMARY KEY, a e)",
        "CREATE TYPE e AS ENUM ('a', 'b'); CREATE TABLE t (id int PRIMARY KEY, a e)",
        (
            Found(BREAKS, ADD, "'q' of type @.e is missing on the target"),
            Found(
                BREAKS,
                None,
                "'z' of type @.e is missing on the target, which has 'b' in its place, so that it was perhaps renamed",
            ),
        ),
        row="INSERT INTO t VALUES (1, 'q')",
    ),
    Case(
        "multirange",
        "CREATE TYPE r AS RANGE (subtype = numeric, multirange_type_name = m); CREATE TABLE t (id int PRIMARY KEY, a m)",
        "CREATE TYPE r AS RANGE (subtype = int, multirange_type_name = m); CREATE TABLE t (id int PRIMARY KEY, a m)",
        (Found(BREAKS, None, "type @.r is a range of numeric on the source and of integer on the target"),),
        row="INSERT INTO t VALUES (1, '{[1.5,2]}')",
    ),
    Case(
        "domain_array_check",
        "CREATE DOMAIN d AS text[]; CREATE TABLE t (id int PRIMARY KEY, a d)",
        "CREATE DOMAIN d AS text[] CONSTRAINT k CHECK (cardinality(VALUE) < 2); CREATE TABLE t (id int PRIMARY KEY, a d)",
        (Found(BREAKS, APPLY, "k of type @.d is on the target only, and may refuse values that the source has"),),
        row="INSERT INTO t VALUES (1, '{a,b}')",
    ),
    Case(
        "domain_check_renamed",
        "CREATE DOMAIN d AS int CONSTRAINT k CHECK (VALUE > 0); CREATE TABLE t (id int PRIMARY KEY, a d)",
        "CREATE DOMAIN d AS int CONSTRAINT l CHECK (VALUE > 0); CREATE TABLE t (id int PRIMARY KEY, a d)",
        (),
        row="INSERT INTO t VALUES (1, 1)",
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
            Found(BREAKS, APPLY, "k of type @.d is on the target only, and may refuse values that the source has"),
            Found(HARMLESS, APPLY, "k of type @.d is missing on the target"),
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
        (Found(BREAKS, None, "type @.c has (x bigint) on the source and (x integer) on the target"),),
        row="INSERT INTO t VALUES (1, ROW(3000000000))",
    ),
    Case(
        "composite_renamed",
        "CREATE TYPE c AS (x int, z text); CREATE TABLE t (id int PRIMARY KEY, a c)",
        "CREATE TYPE c AS (x int, y text); CREATE TABLE t (id int PRIMARY KEY, a c)",
        (Found(HARMLESS, APPLY, "z of type @.c is called y on the target"),),
        row="INSERT INTO t VALUES (1, (1, 'z'))",
    ),
    Case(
        "composite_order",
        "CREATE TYPE c AS (x int, y int); CREATE TABLE t (id int PRIMARY KEY, a c)",
        "CREATE TYPE c AS (y int, x int); CREATE TABLE t (id int PRIMARY KEY, a c)",
        (
            Found(
                BREAKS,
                None,
                "type @.c has (x integer, y integer) on the source and (y integer, x integer) on the target",
            ),
        ),
    ),
    Case(
        "row_order",
        "CREATE TABLE r (x int PRIMARY KEY, y text); CREATE TABLE t (id int PRIMARY KEY, a r)",
        "CREATE TABLE r (y text, x int PRIMARY KEY); CREATE TABLE t (id int PRIMARY KEY, a r)",
        (
            Found(
                BREAKS, None, "type @.r is a row of (integer, text) on the source and of (text, integer) on the target"
            ),
        ),
        row="INSERT INTO t VALUES (1, (1, 'y'))",
    ),
    Case(
        "row_lacking",
        "CREATE TABLE r (x int PRIMARY KEY, y text); CREATE TABLE t (id int PRIMARY KEY, a r)",
        "CREATE TABLE r (x int PRIMARY KEY); CREATE TABLE t (id int PRIMARY KEY, a r)",
        (Found(BREAKS, ADD, "column y of @.r is missing on the target"),),
        row="INSERT INTO t VALUES (1, (1, 'y'))",
    ),
    Case(
        "type_kind",
        "CREATE TYPE k AS ENUM ('a'); CREATE TABLE t (id int PRIMARY KEY, a k)",
        "CREATE DOMAIN k AS text; CREATE TABLE t (id int PRIMARY KEY, a k)",
        (Found(BREAKS, None, "type @.k is enum on the source and domain on the target"),),
    ),
]
