# SPDX-License-Identifier: GPL-3.0-or-later
"""What pgml_distributions may say, and the names that follow from it."""

from __future__ import annotations

import pytest
from ansible_collections.postgresml.distributed.plugins.plugin_utils import request

SHOP = {"name": "shop", "database": "shop", "tables": ["users", {"name": "public.orders", "where": "id > 1"}]}


def test_a_sound_request_has_no_problems():
    other = {"name": "crm", "database": "crm", "strategy": "logical", "schemas": ["public"], "target_database": "ml"}
    assert request.problems([SHOP, other], ["ml-1", "ml-2"]) == []


@pytest.mark.parametrize(
    ("distributions", "words"),
    [
        ([], "pgml_distributions is empty"),
        ("shop", "pgml_distributions must be a list"),
        (SHOP, "pgml_distributions must be a list"),
        ([{"database": "shop"}], "has no name"),
        ([{"name": "shop"}], '"shop" has no database'),
        ([{**SHOP, "tabels": []}], "unknown key tabels"),
        ([{**SHOP, "strategy": "dump"}], "strategy dump, which this version can't do: use logical"),
        ([{**SHOP, "tables": "users"}], "tables must be a list"),
        (
            [{**SHOP, "tables": [{"name": "users", "colums": ["id"]}]}],
            "table users has unknown key colums; known are columns",
        ),
        ([SHOP, SHOP], "listed more than once"),
        ([{**SHOP, "name": "x" * 59}], "has 64 bytes and PostgreSQL keeps 63"),
        ([{**SHOP, "name": "x" * 56}], "host replica-1 are too long"),
        ([{**SHOP, "name": "é" * 30}], "has 65 bytes"),
        ([SHOP, {**SHOP, "name": "b", "tables": ["public.users"]}], "both fill table public.users of database shop"),
        (
            [SHOP, {**SHOP, "name": "b", "database": "x", "target_database": "shop", "tables": ["orders"]}],
            "table public.orders",
        ),
        ([{**SHOP, "tables": []}, {**SHOP, "name": "b", "tables": []}], "both fill every table"),
        ([SHOP, {**SHOP, "name": "SHOP", "tables": []}], "would share slot"),
    ],
)
def test_a_problem_is_a_sentence(distributions, words):
    found = request.problems(distributions, ["replica-1"])
    assert len(found) == 1
    assert words in found[0]
    assert found[0].endswith(".")


def test_hosts_that_would_share_a_slot_are_named():
    (sentence,) = request.problems([SHOP], ["ml-1", "ml.1"])
    assert "ml-1" in sentence
    assert "ml.1" in sentence
    assert "pgml_shop_ml_1" in sentence


def test_the_distributor_reads_what_all_distributions_of_a_database_name():
    whole = {"name": "all", "database": "crm"}
    more = {"name": "more", "database": "shop", "schemas": ["stock"]}
    assert request.grants([SHOP, whole, more]) == [
        {"database": "shop", "tables": ["users", "public.orders"], "schemas": ["stock"], "all_tables": False},
        {"database": "crm", "tables": [], "schemas": [], "all_tables": True},
    ]
