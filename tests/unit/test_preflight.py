# SPDX-License-Identifier: GPL-3.0-or-later
"""What takes two hosts to be seen, each where it begins and one below."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.postgresml.distributed.plugins.plugin_utils import preflight, request

PASSWORD = "secret"


def looked(identifier: str = "1", **facts: Any) -> dict[str, Any]:
    """The result of a host where nothing was found."""
    base = {"endpoint": "x", "system_identifier": identifier, "started": "s" + identifier, "version": 170010}
    return {"findings": [], "facts": {**base, **facts}, "distributions": {}}


def upstream(**facts: Any) -> dict[str, Any]:
    base = {"tables": {"shop": ["public.users"]}, "sizes": {"shop": 5 << 20}, "slots": [], "free_connections": 50}
    return looked("1", **{"distributor_exists": True, "sets_password": True, **base, **facts})


def arriving(**parts: Any) -> dict[str, Any]:
    base = {"name": "shop", "strategy": "logical", "database": "ml", "upstream": "prod", "source_database": "shop"}
    names = {"slot": "pgml_shop_ml_1", "subscription": "pgml_shop"}
    nothing = {"parts": False, "new": True, "filled": [], "fed": {}, "others": {}}
    return {**base, **names, **nothing, **parts}


def replica(*distributions: dict[str, Any], identifier: str = "2", **facts: Any) -> dict[str, Any]:
    entries = list(distributions) or [arriving()]
    return looked(
        identifier, **{"jobs": 2, "space": {"ml": ["/data", 5 << 20]}, "sources": [], "arriving": entries, **facts}
    )


def source(**parts: Any) -> dict[str, Any]:
    good = {"reached": True, "answered": True, "message": "", "system_identifier": "1", "ahead": 0.0}
    return {"upstream": "prod", "endpoint": 'database "shop" at a:5432 as user "d"', **good, **parts}


AWAY = {"reached": False, "message": "Can't connect."}


def told(above: dict[str, Any], *replicas: dict[str, Any], managed: Any = ()) -> list[str]:
    hosts = {"prod": above, **{f"ml-{number}": each for number, each in enumerate(replicas, 1)}}
    return [each["line"] for each in preflight.findings(hosts, managed)]


def test_nothing_is_told_where_nothing_is_wrong() -> None:
    assert told(upstream(), replica(sources=[source()])) == []


def test_each_host_tells_its_own_with_errors_first() -> None:
    above, below = upstream(), replica()
    above["findings"] = [
        {"kind": "version", "severity": "warning", "message": "Old."},
        {"kind": "table", "severity": "error", "message": "None."},
    ]
    below["findings"] = [{"kind": "name", "severity": "error", "message": "Taken."}]
    assert told(above, below) == ["prod: None.", "prod: warning: Old.", "ml-1: Taken."]


def test_a_host_that_gave_no_answer_is_told() -> None:
    assert told(upstream(), {"unreachable": True, "msg": "Task failed: No route\nto host"}) == [
        "ml-1: Ansible can't reach this host: No route to host."
    ]
    assert told({"failed": False, "msg": "psycopg2 is missing."}) == [
        "prod: Nothing could be looked at here: psycopg2 is missing."
    ]


def test_a_source_out_of_reach_is_always_told() -> None:
    away = source(**AWAY, answered=False)
    assert told(upstream(distributor_exists=False), replica(sources=[away])) == ["ml-1: Can't connect."]
    # Also where the upstream itself was left out, as --limit does.
    assert told({**replica(), "facts": {}}, replica(sources=[away])) == ["ml-1: Can't connect."]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("managed", [True, False])
@pytest.mark.parametrize("sets", [True, False])
def test_a_replica_that_is_turned_away_is_told_where_the_run_does_not_let_it_in(
    known: bool, managed: bool, sets: bool
) -> None:
    above = upstream(distributor_exists=known, sets_password=sets)
    lines = told(above, replica(sources=[source(**AWAY)]), managed=["prod"] if managed else [])
    assert bool(lines) == (known and not sets)
    assert all(("warning" in line) != managed for line in lines)


def test_another_server_behind_the_endpoint_is_told() -> None:
    lines = told(upstream(), replica(sources=[source(system_identifier="3")]))
    assert lines == [
        'ml-1: Behind database "shop" at a:5432 is another server than the one that is administered as prod: correct its '
        "pgml_endpoint_host."
    ]


def test_one_database_is_not_source_and_target() -> None:
    same = {"identifier": "1", "started": "s1"}
    assert told(upstream(), replica(**same)) == []
    assert told(upstream(), replica(arriving(database="shop"), **same, space={})) == [
        "ml-1: Database shop is source and target of distribution shop at once, for prod is the same server."
    ]
    # A restored backup of the upstream may be its replica.
    assert told(upstream(), replica(arriving(database="shop"), identifier="1", started="later", space={})) == []


def test_replicas_are_neither_one_server_nor_clones() -> None:
    (line,) = told(upstream(), replica(), replica())
    assert line == "ml-1: This host and ml-2 are one server, which each would take for its own: list it once."
    (line,) = told(upstream(), replica(), replica(started="later"))
    assert line.startswith("ml-1: This host and ml-2 were cloned from one cluster (system identifier 2): ")
    dump = arriving(strategy="dump")
    assert told(upstream(), replica(dump), replica(dump, started="later")) == []
    assert told(upstream(), replica(), replica(identifier="3")) == []


@pytest.mark.parametrize(("seconds", "words"), [(5.0, None), (-5.0, None), (6, "6 s behind"), (-6, "6 s ahead of")])
def test_clocks_that_are_apart_are_a_warning(seconds: float, words: str | None) -> None:
    lines = told(upstream(), replica(sources=[source(ahead=seconds), source(ahead=seconds, endpoint="another")]))
    assert len(lines) == (words is not None)
    assert all(line.startswith(f"ml-1: warning: The clock of this server is {words} that of prod, ") for line in lines)


@pytest.mark.parametrize(("seconds", "told_of"), [(15, False), (16, True), (-15, False), (-16, True)])
def test_clocks_are_compared_roughly_before_the_servers_reach_one_another(seconds: float, told_of: bool) -> None:
    above = upstream(clock={"server": 1000.0 + seconds, "asked_at": 1000.0}, distributor_exists=False)
    below = replica(clock={"server": 2000.0, "asked_at": 2000.0}, sources=[source(**AWAY, ahead=None)])
    assert bool(told(above, below)) == told_of


def test_versions() -> None:
    parts = arriving(parts=True)
    assert told(upstream(version=150000), replica(parts, version=150000)) == []
    lines = told(upstream(version=150000), replica(parts, version=140019))
    assert lines[0].startswith(
        "ml-1: Distribution shop has row filters or column lists, which this server, PostgreSQL 14, "
    )
    assert lines[1].startswith("ml-1: warning: PostgreSQL 14 here is older than 15 on prod, ")
    assert told(upstream(version=150000), replica(arriving(new=False, parts=True), version=140019)) == []
    assert told(upstream(version=140019), replica(parts, version=140000)) == []
    assert told(upstream(), replica(arriving(strategy="fdw"), version=140019)) == []


def test_a_slot_without_its_subscription_is_in_the_way() -> None:
    there = upstream(slots=["pgml_shop_ml_1"])
    (line,) = told(there, replica())
    assert line.startswith(
        "ml-1: Slot pgml_shop_ml_1 exists on prod already, and subscription pgml_shop doesn't exist here: "
    )
    assert told(there, replica(arriving(new=False))) == []


def test_what_is_where_tables_are_to_come() -> None:
    (line,) = told(upstream(), replica(arriving(filled=["public.users", "public.others"])))
    assert line.startswith(
        "ml-1: Table public.users holds rows in database ml, and the first copy would add to them: empty it, or set "
    )
    both = ["public.users", "public.orders"]
    (line,) = told(upstream(tables={"shop": both}), replica(arriving(filled=both)))
    assert (
        "Tables public.orders, public.users hold rows in database ml, and the first copy would add to them: empty them"
        in line
    )
    (line,) = told(upstream(), replica(arriving(strategy="dump", filled=["public.users"])))
    assert line.startswith(
        "ml-1: warning: Table public.users holds rows in database ml that no earlier copy has brought"
    )
    (line,) = told(upstream(), replica(arriving(fed={"public.users": "theirs", "public.others": "more"})))
    assert line.startswith("ml-1: Database ml takes public.users from subscription theirs already: two distributions")
    (line,) = told(upstream(), replica(arriving(others={"public.users": "a view", "public.others": "a view"})))
    assert (
        line
        == "ml-1: public.users of database ml is a view, where distribution shop brings a table: drop or rename it."
    )
    assert told(upstream(), replica(arriving(filled=["a"], fed={"a": "b"}, others={"a": "a view"}))) == []


def test_tables_have_to_fit_on_the_disk_all_together() -> None:
    second = arriving(name="second")
    above = upstream(sizes={"shop": 3 << 20, "second": 2 << 20})
    assert told(above, replica(arriving(), second)) == []
    assert told(above, replica(arriving(), second, space={"ml": ["/data", (5 << 20) - 1]})) == [
        "ml-1: What is to come takes 5 MB, and /data has 4 MB free: make room."
    ]
    assert told(above, replica(arriving(), arriving(name="second", new=False), space={"ml": ["/data", 3 << 20]})) == []
    assert told(above, replica(arriving(), space={"ml": None})) == []


def test_first_copies_need_their_connections_at_once() -> None:
    other = replica(identifier="3", jobs=3)
    assert told(upstream(free_connections=15), replica(), other) == []
    assert told(upstream(free_connections=14), replica(), other) == [
        "prod: First copies of ml-1, ml-2 take 15 connections, and 14 are left (max_connections, or the role's limit): raise it."
    ]
    assert told(upstream(free_connections=7), replica()) == []


def test_what_is_looked_at_is_made_of_the_distributions() -> None:
    distributions = [
        {"name": "Shop", "database": "shop", "target_database": "ml", "tables": ["users"]},
        {"name": "carried", "database": "shop", "strategy": "dump", "exclude_tables": ["log"]},
        {"name": "here", "database": "shop", "strategy": "native"},
    ]
    above = request.as_upstream(distributions, ["ml-1", "ml-2"])
    assert [each["slots"] for each in above] == [["pgml_shop_ml_1", "pgml_shop_ml_2"], []]
    assert above[1]["exclude_tables"] == ["log"] and above[0]["tables"] == ["users"]
    below = request.as_replica(distributions, "ml-1", "prod", {"host": "a", "password": PASSWORD}, "native")
    assert [(each["database"], each.get("slot")) for each in below] == [("ml", "pgml_shop_ml_1"), ("shop", None)]
    assert (
        below[0]["source"] == {"host": "a", "password": PASSWORD, "db": "shop"} and below[0]["initial_copy"] == "native"
    )
    assert "initial_copy" not in request.as_replica(distributions, "ml-1", "prod", {})[0]


def test_dumps_come_by_the_first_replica() -> None:
    entry = {"name": "carried", "database": "shop", "target_database": "ml", "strategy": "dump"}
    moved = [entry, {**entry, "name": "live", "strategy": "logical"}]
    carried, live = request.as_replica(
        moved, "ml-2", "prod", {"host": "a"}, None, {"host": "ml-1", "source": {"host": "b"}}
    )
    assert carried["source"] == {"host": "b", "db": "ml"} and (carried["through"], carried["upstream"]) == (
        "ml-1",
        "prod",
    )
    assert live["source"] == {"host": "a", "db": "shop"} and "through" not in live
    as_file, _ = request.as_replica(moved, "ml-2", "prod", {"host": "a"}, None, {"host": "ml-1", "source": None})
    assert "source" not in as_file and as_file["through"] == "ml-1"
