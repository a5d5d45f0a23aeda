# SPDX-License-Identifier: GPL-3.0-or-later
"""A replica remembers how its distributions come, and nothing stays of that in the end."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.pair import Pair, Place

SHOP: dict[str, Any] = {"name": "shop", "strategy": "dump", "upstream": "prod-db"}
ROWS = "SELECT name, strategy, automatic, upstream FROM pgml_distributed.distributions ORDER BY 1"
SCHEMA = "SELECT to_regnamespace('pgml_distributed')::text"


def test_it_is_remembered_changed_and_forgotten(pair: Pair) -> None:
    place = pair.target
    made = place.converge("pgml_distribution", **SHOP)
    assert made["changes"] == [
        *["Prepare schema pgml_distributed"] * 2,
        'Remember that distribution "shop" comes from prod-db by dump',
    ]
    assert made["distribution"] == {**SHOP, "automatic": False} == made["diff"]["after"]
    at = place.value("SELECT recorded_at FROM pgml_distributed.distributions")

    other = 'it\'s "más"'
    place.converge("pgml_distribution", name=other, strategy="fdw", upstream="ml-1", automatic=True)
    changed = place.converge("pgml_distribution", **{**SHOP, "strategy": "logical", "automatic": True})
    assert changed["changes"] == ['Remember that distribution "shop" comes from prod-db by logical']
    assert place.sql(ROWS) == [(other, "fdw", True, "ml-1"), ("shop", "logical", True, "prod-db")]
    assert place.value("SELECT max(recorded_at) FROM pgml_distributed.distributions WHERE name = 'shop'") > at

    assert place.converge("pgml_distribution", name=other, state="absent")["changes"] == [
        f'Forget distribution "{other}"'
    ]
    assert not place.ok("pgml_distribution", name=other, state="absent")["changed"]
    assert place.converge("pgml_distribution", name="shop", state="absent")["changes"] == [
        'Forget distribution "shop"',
        "Drop the list of distributions, which is empty",
        "Drop schema pgml_distributed, which is empty",
    ]
    assert place.value(SCHEMA) is None
    assert not place.ok("pgml_distribution", name="shop", state="absent")["changed"]


def test_what_is_remembered_is_told_by_database(pair: Pair) -> None:
    pair.target.ok("pgml_distribution", **SHOP)
    names = [pair.target.database, pair.source.database, "nowhere"]
    told = Place(pair.target.cluster, "postgres").ok("pgml_distribution_info", databases=names)
    remembered = {"shop": {"strategy": "dump", "automatic": False, "upstream": "prod-db"}}
    assert not told["changed"] and told["distributions"][pair.target.database] == remembered
    assert "nowhere" not in told["distributions"]


def test_a_missing_database_is_predicted_and_holds_nothing(pair: Pair) -> None:
    nowhere = Place(pair.target.cluster, f"{pair.target.database}_missing")
    assert not nowhere.ok("pgml_distribution", name="shop", state="absent")["changed"]
    predicted = nowhere.ok("pgml_distribution", check=True, **SHOP)
    pair.target.converge("pgml_distribution", **SHOP)
    assert predicted["changes"][-1] == 'Remember that distribution "shop" comes from prod-db by dump'
    assert "does not exist" in nowhere.run("pgml_distribution", **SHOP)["msg"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({**SHOP, "name": ""}, "The distribution name is empty."),
        ({**SHOP, "name": "é" * 32}, "is 64 bytes long and PostgreSQL keeps 63"),
        (
            {**SHOP, "upstream": ""},
            "upstream is empty: it is the inventory's name of the host that the rows come from.",
        ),
        ({"name": "shop", "upstream": "prod-db"}, "strategy"),
        ({"name": "shop", "strategy": "dump"}, "upstream"),
        ({**SHOP, "strategy": "auto"}, "must be one of: dump, fdw, logical"),
    ],
)
def test_wrong_options_are_refused(pair: Pair, options: dict[str, Any], words: str) -> None:
    assert words in pair.target.refused("pgml_distribution", **options)


def test_what_somebody_else_has_made_is_refused(pair: Pair) -> None:
    role = f"mallory_{pair.name}"
    pair.sql_target(
        f"CREATE ROLE {role}; GRANT CREATE ON DATABASE {pair.target.database} TO {role}; SET ROLE {role};"
        " CREATE SCHEMA pgml_distributed; CREATE TABLE pgml_distributed.distributions (name text)"
    )
    try:
        message = pair.target.refused("pgml_distribution", **SHOP)
        assert f'is role "{role}"\'s, whose functions would run with the rights of this session' in message
    finally:
        pair.sql_target(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.parametrize("last", ["pgml_dump_restore", "pgml_fdw", "pgml_distribution"])
def test_whoever_comes_last_drops_the_schema(pair: Pair, last: str) -> None:
    pair.sql_source("CREATE TABLE users (id int PRIMARY KEY); INSERT INTO users VALUES (1)")
    pair.sql_target("CREATE EXTENSION postgres_fdw")
    pair.grant()
    things: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "pgml_dump_restore": ({"source": pair.endpoint, "tables": ["users"]}, {"tables": ["users"], "state": "absent"}),
        "pgml_fdw": ({"server": "shop", "source": pair.endpoint}, {"server": "shop", "state": "absent"}),
        "pgml_distribution": (SHOP, {"name": "shop", "state": "absent"}),
    }
    for module, (made, _) in things.items():
        pair.target.ok(module, **made)
    gone = set()
    for module in [*(name for name in things if name != last), last]:
        if "pgml_distribution" not in gone:
            assert pair.target.sql(ROWS) == [("shop", "dump", False, "prod-db")]
        assert pair.target.value(SCHEMA) == "pgml_distributed"
        pair.target.converge(module, **things[module][1])
        gone.add(module)
    assert pair.target.value(SCHEMA) is None
