# SPDX-License-Identifier: GPL-3.0-or-later
"""What pgml_distributions may say, and the names that follow from it."""

from __future__ import annotations

import pytest
from ansible_collections.postgresml.distributed.plugins.plugin_utils import request

SHOP = {"name": "shop", "database": "shop", "tables": ["users", {"name": "public.orders", "where": "id > 1"}]}

NATIVE = {"name": "here", "database": "shop", "strategy": "native"}

LIVE = {
    "name": "live",
    "database": "shop",
    "strategy": "fdw",
    "tables": ["users", 'public."Order Lines"'],
    "schemas": ["public", "stock"],
    "exclude_tables": ["stock.log"],
    "snapshots": [{"relation": "live_public.users", "into": "training.users"}],
}


def test_a_sound_request_has_no_problems():
    other = {"name": "crm", "database": "crm", "strategy": "logical", "schemas": ["public"], "target_database": "ml"}
    rest = {
        "name": "rest",
        "database": "shop",
        "strategy": "dump",
        "schemas": ["stock"],
        "exclude_tables": ["stock.log"],
    }
    assert request.problems([SHOP, other, rest, LIVE, NATIVE], ["ml-1", "ml-2"]) == []
    assert request.problems([NATIVE], []) == []
    assert request.grants([NATIVE]) == []


@pytest.mark.parametrize(
    ("distributions", "words"),
    [
        ([], "pgml_distributions is empty"),
        ("shop", "pgml_distributions must be a list"),
        (SHOP, "pgml_distributions must be a list"),
        ([{"database": "shop"}], "has no name"),
        ([{"name": "shop"}], '"shop" has no database'),
        ([{**SHOP, "tabels": []}], "unknown key tabels"),
        (
            [{**SHOP, "strategy": "turbo"}],
            "strategy turbo, which doesn't exist: use dump, fdw, logical, native or auto",
        ),
        ([{**SHOP, "strategy": "native"}], "has tables, and strategy native moves no tables"),
        ([NATIVE, {**NATIVE, "name": "b", "database": "crm"}], "in databases shop, crm: PostgresML can be in one"),
        ([NATIVE, NATIVE], "listed more than once"),
        ([{**NATIVE, "tabels": []}], "unknown key tabels"),
        ([{**SHOP, "exclude_tables": ["orders"]}], "exclude_tables, which a publication can't do"),
        ([{**SHOP, "snapshots": LIVE["snapshots"]}], '"shop" has snapshots, which only strategy fdw makes'),
        ([{**SHOP, "strategy": "dump", "snapshots": []}], "has snapshots, which only strategy fdw makes"),
        ([{**LIVE, "snapshots": {"into": "x"}}], "snapshots must be a list"),
        ([{**LIVE, "snapshots": [{"relation": "live_public.users"}]}], "a snapshot has no into"),
        ([{**LIVE, "name": "x" * 64}], f'"{"x" * 64}" has 64 bytes and PostgreSQL keeps 63'),
        ([{**LIVE, "name": "x" * 58, "schemas": []}], f'"{"x" * 58}_public" has 65 bytes'),
        ([{**LIVE, "tables": [], "schemas": ["s" * 59]}], f'"live_{"s" * 59}" has 64 bytes'),
        ([{**SHOP, "strategy": "dump", "exclude_tables": "orders"}], "exclude_tables must be a list"),
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
        (
            [SHOP, LIVE, {**SHOP, "name": "b", "tables": ["training.users"]}],
            "both fill table training.users of database shop",
        ),
        ([LIVE, {**SHOP, "tables": [], "schemas": ["live_stock"]}], "both fill schema live_stock of database shop"),
        ([LIVE, {**LIVE, "name": "live_st", "schemas": ["x"]}], "both fill table training.users"),
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


def test_names_need_to_fit_only_where_they_name_something():
    dump = {**SHOP, "name": "x" * 100, "strategy": "dump"}
    other = {**dump, "name": "X" * 100, "target_database": "other"}
    assert request.problems([dump, other], ["ml-1", "ml.1"]) == []


def test_foreign_tables_need_room_for_their_schemas_only():
    names = ["x" * 56, "é" * 28, "X" * 56]
    live = [{**LIVE, "name": name, "snapshots": []} for name in names]
    assert request.problems(live, ["ml-1", "ml.1"]) == []


def test_foreign_tables_are_in_nobodys_way():
    """They have schemas of their own, so that the same tables may come by another strategy, too."""
    copied = {**SHOP, "name": "copied", "strategy": "dump", "tables": ["users"]}
    whole = {"name": "whole", "database": "shop", "strategy": "fdw"}
    twice = {**whole, "name": "twice"}
    assert request.problems([copied, {**LIVE, "schemas": []}, whole, twice], ["ml-1"]) == []


def test_logical_is_the_strategy_of_who_names_none():
    assert request.of_strategy([SHOP, LIVE], "fdw") == [LIVE]
    dump = {**SHOP, "name": "dump", "strategy": "dump"}
    named = {**SHOP, "name": "named", "strategy": "logical"}
    assert request.of_strategy([SHOP, dump, named], "logical") == [SHOP, named]
    assert request.of_strategy([SHOP, dump, named], "dump") == [dump]


def test_the_distributor_reads_what_all_distributions_of_a_database_name():
    whole = {"name": "all", "database": "crm"}
    more = {"name": "more", "database": "shop", "schemas": ["stock"]}
    nothing = {"tables": [], "schemas": [], "all_tables": False}
    live = {"tables": ["users", 'public."Order Lines"'], "schemas": ["public", "stock"], "all_tables": False}
    assert request.grants([SHOP, whole, more, LIVE]) == [
        {
            "database": "shop",
            "tables": ["users", "public.orders"],
            "schemas": ["stock"],
            "all_tables": False,
            "foreign": live,
        },
        {"database": "crm", "tables": [], "schemas": [], "all_tables": True, "foreign": nothing},
    ]
    assert request.grants([{**whole, "strategy": "fdw"}]) == [
        {"database": "crm", **nothing, "foreign": {**nothing, "all_tables": True}}
    ]
