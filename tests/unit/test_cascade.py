# SPDX-License-Identifier: GPL-3.0-or-later
"""Replicas that take their data from replicas, and strategies that are chosen, remembered and left."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.postgresml.distributed.plugins.plugin_utils import cascade, request

SHOP: dict[str, Any] = {"name": "shop", "database": "shop", "target_database": "ml", "tables": ["users"]}
LIVE: dict[str, Any] = {**SHOP, "name": "live", "strategy": "fdw"}


@pytest.mark.parametrize(
    ("feeds", "levels"),
    [
        ({}, []),
        ({"ml-1": "prod", "ml-2": "prod"}, [["ml-1", "ml-2"]]),
        ({"ml-2": "ml-1", "ml-1": "prod", "ml-3": "ml-2", "ml-4": "prod"}, [["ml-1", "ml-4"], ["ml-2"], ["ml-3"]]),
    ],
)
def test_each_host_comes_after_its_upstream(feeds: dict[str, str], levels: list[list[str]]) -> None:
    assert cascade.levels(feeds) == levels


@pytest.mark.parametrize(
    ("feeds", "distributions", "problem"),
    [
        ({"ml-1": "prod", "ml-2": "ml-1"}, [SHOP], None),
        (
            {"ml-1": "ml-9"},
            [SHOP],
            "ml-1 has pgml_upstream ml-9, which is neither prod nor another host of pgml_replicas.",
        ),
        ({"ml-1": "ml-1"}, [SHOP], "ml-1 has pgml_upstream ml-1, which takes its own data from ml-1."),
        (
            {"ml-1": "ml-2", "ml-2": "ml-3", "ml-3": "ml-2"},
            [SHOP],
            "ml-2 has pgml_upstream ml-3, which takes its own data from ml-2.",
        ),
        (
            {"ml-1": "prod", "ml-2": "ml-1"},
            [{"name": "all", "database": "shop"}],
            'Distribution "all" is a whole database, which ml-1 can\'t pass on, because there is more in it there: list its '
            "schemas or tables.",
        ),
        ({"ml-1": "prod", "ml-2": "ml-1"}, [{"name": "all", "database": "shop", "strategy": "dump"}], None),
        ({"ml-1": "prod", "ml-2": "ml-1"}, [{"name": "in", "database": "shop", "strategy": "native"}], None),
        ({"ml-1": "prod"}, [{"name": "all", "database": "shop"}], None),
    ],
)
def test_upstreams_that_lead_nowhere_are_named(
    feeds: dict[str, str], distributions: list[Any], problem: str | None
) -> None:
    found = cascade.problems(feeds, "prod", distributions)
    assert (problem in found) if problem else found == []


def test_a_replica_passes_on_what_it_has_subscribed_to() -> None:
    listed = [{"name": "orders", "columns": ["id"], "where": "id > 3"}, "users"]
    passed = cascade.onward({**SHOP, "tables": listed, "schemas": ["sales"]})
    assert passed["database"] == "ml"
    assert passed["tables"] == [{"name": "orders", "columns": ["id"]}, "users"]
    assert passed["schemas"] == ["sales"]


def test_foreign_tables_are_imported_through_the_replica_and_snapshots_from_its_snapshots() -> None:
    passed = cascade.onward(
        {
            **LIVE,
            "tables": ['"Order Lines"', {"name": "sales.orders", "where": "id > 3"}],
            "schemas": ["warehouse"],
            "snapshots": [
                {"relation": "live_sales.orders", "into": "training.orders", "where": "id > 5", "max_age": 60}
            ],
        }
    )
    assert passed["database"] == "ml"
    assert passed["imports"] == [
        {"tables": ['live_public."Order Lines"'], "local_schema": "live_public"},
        {"tables": ["live_sales.orders"], "local_schema": "live_sales"},
        {"remote_schema": "live_warehouse", "local_schema": "live_warehouse"},
        {"tables": ["training.orders"], "local_schema": "live_training"},
    ]
    assert passed["snapshots"] == [{"into": "training.orders", "max_age": 60, "relation": "live_training.orders"}]
    assert set(passed["tables"]) == {
        'live_public."Order Lines"',
        "live_sales.orders",
        "live_sales.orders_unfiltered",
        "training.orders",
    }


def test_the_distributor_reads_what_is_passed_on_and_no_more() -> None:
    nothing = {"database": "ml", "tables": [], "schemas": [], "unasked": False}
    copied = {"copy": {**nothing, "tables": ["public.stock"]}, "none": nothing}
    (grants,) = cascade.grants([SHOP, LIVE], copied)
    assert grants["database"] == "ml"
    assert grants["tables"] == ["users", "public.stock"]
    assert grants["foreign"]["tables"] == ["live_public.users"]
    assert not grants["all_tables"]
    assert not grants["foreign"]["all_tables"]
    (predicted,) = cascade.grants([], {"copy": {**nothing, "schemas": ["sales"], "unasked": True}})
    assert predicted["schemas"] == ["sales"] and not predicted["all_tables"]


KNOWN = [{"ml": {"shop": {"strategy": "dump", "automatic": True, "upstream": "prod"}}}, {}]


@pytest.mark.parametrize(
    ("strategy", "known", "chosen", "resolved"),
    [
        ("auto", KNOWN, {}, "dump"),
        ("auto", [], {"shop": "logical"}, "logical"),
        ("auto", [], {}, None),
        ("auto", [{"other": KNOWN[0]["ml"]}], {}, None),
        ("fdw", KNOWN, {}, "fdw"),
    ],
)
def test_auto_stands_for_what_is_remembered_or_was_chosen(
    strategy: str, known: list[Any], chosen: dict[str, str], resolved: str | None
) -> None:
    found = request.resolved([{**SHOP, "strategy": strategy}], known, chosen)
    assert [entry["strategy"] for entry in found] == ([resolved] if resolved else [])
    assert all(entry.get("automatic", False) == (strategy == "auto") for entry in found)


@pytest.mark.parametrize(
    ("strategy", "left"), [("dump", []), ("logical", ["dump"]), ("fdw", ["dump"]), ("native", ["dump"])]
)
def test_a_strategy_that_was_changed_is_left(strategy: str, left: list[str]) -> None:
    assert [entry["strategy"] for entry in request.left([{**SHOP, "strategy": strategy}], KNOWN)] == left


def test_automatic_strategies_may_become_any_of_them() -> None:
    hosts = ["ml-1"]
    assert request.problems([{**SHOP, "strategy": "auto"}], hosts) == []
    (problem,) = request.problems([{**SHOP, "strategy": "auto", "exclude_tables": ["x"]}], hosts)
    assert "exclude_tables, which a publication can't do" in problem
    long = {**SHOP, "name": "x" * 58, "strategy": "auto"}
    assert any("too long" in problem for problem in request.problems([long], hosts))
