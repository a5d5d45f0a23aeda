# SPDX-License-Identifier: GPL-3.0-or-later
"""What counts as the same definition, and as a type that holds another one's values."""

from __future__ import annotations

import pytest
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import spelling, widening


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("date_part('year'::text, a)", "EXTRACT(year FROM a)", True),
        ("""("position"(a, '@'::text) > 0)""", "(POSITION(('@'::text) IN (a)) > 0)", True),
        ("(date_part('year'::text, a) > (2000)::double precision)", "(EXTRACT(year FROM a) > (2000)::numeric)", True),
        ("(date_part('year'::text, a) > (2000)::double precision)", "(EXTRACT(year FROM a) > (2001)::numeric)", False),
        ("(a > (2000)::double precision)", "(a > (2000)::numeric)", False),
        ("CHECK ((date_part('year'::text, d) > 1))", "CHECK ((EXTRACT(month FROM d) > 1))", False),
        ("timezone('UTC'::text, now())", "(now() AT TIME ZONE 'UTC'::text)", True),
        ('"overlaps"(a, b, c, d)', "((a, b) OVERLAPS (c, d))", True),
        ("CHECK ((a > b))", "CHECK ((b > a))", False),
        ("(a - b)", "(b - a)", False),
        ("USING btree (a, b)", "USING btree (b, a)", False),
    ],
)
def test_versions_spell_calls_differently_and_nothing_else(one: str, other: str, same: bool) -> None:
    assert spelling.alike(one, other, 130000, 150000) is same
    assert not spelling.alike(one, other, 140000, 150000)
    assert spelling.alike(one, one, 130000, 150000)


@pytest.mark.parametrize(
    ("wide", "narrow", "fits"),
    [
        ("text", "character varying(5)", True),
        ("text", "character(5)", False),
        ("text", "bpchar", False),
        ("character(7)", "character(5)", True),
        ("character(5)", "character(7)", False),
        ("bit(7)", "bit(5)", False),
        ("bit varying(7)[]", "bit varying(5)[]", True),
        ("vector(7)", "vector(5)", False),
        ("interval(3)", "interval(0)", True),
        ("interval(3)", "interval", False),
        ("timestamp(3) with time zone", "timestamp(0) with time zone", True),
        ("timestamp(3) with time zone", "timestamp(0) without time zone", False),
        ("numeric(12,2)", "numeric(10,2)", True),
        ("numeric(12,4)", "numeric(10,1)", False),
        ("d", "character(5)", False),
    ],
)
def test_a_type_holds_the_values_of_another(wide: str, narrow: str, fits: bool) -> None:
    assert widening.holds(wide, narrow, {}, False) is fits
