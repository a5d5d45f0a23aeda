# SPDX-License-Identifier: GPL-3.0-or-later
"""One server's part of a schema change: run once, remembered with what it did, and at the same place of the stream on both sides."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Servers
from tests.support.pair import Pair, Place, pair_of, wait_for

CHANGE = "0123456789ab"
OTHER = "ba9876543210"
TABLES = """
    CREATE TABLE t (id bigint PRIMARY KEY, x int, y text);
    CREATE TABLE u (id bigint PRIMARY KEY, v text);
"""
ROWS = """
    INSERT INTO t SELECT g, g, 'first' FROM generate_series(1, 500) AS g;
    INSERT INTO u SELECT g, 'first' FROM generate_series(1, 500) AS g;
"""


def part(*statements: Any, first: int = 1, total: int | None = None, **params: Any) -> dict[str, Any]:
    """The options of a part of a change; what can't run in a transaction says so itself."""
    listed = [
        {"number": number, "sql": sql, "transactional": sql is None or "CONCURRENTLY" not in sql}
        for number, sql in enumerate(statements, first)
    ]
    total = first + len(statements) - 1 if total is None else total
    return {"change": CHANGE, "total": total, "statements": listed, **params}


def upstream(pair: Pair, *statements: Any, **params: Any) -> dict[str, Any]:
    return part(*statements, **{"publication": "pub", **params})


def replica(pair: Pair, *statements: Any, **params: Any) -> dict[str, Any]:
    return part(*statements, **{"subscription": pair.name, "source": pair.endpoint, **params})


@pytest.fixture
def shop(pair: Pair) -> Pair:
    pair.both(TABLES)
    pair.sql_source(ROWS)
    pair.publish("t", "u")
    pair.subscribe()
    return pair


def comment(pair: Pair, side: str) -> str | None:
    place, catalog, name = (
        (pair.source, "publication", "pub") if side == "source" else (pair.target, "subscription", pair.name)
    )
    column = "pubname" if side == "source" else "subname"
    return place.value(f"SELECT obj_description(oid, 'pg_{catalog}') FROM pg_{catalog} WHERE {column} = %s", [name])


def test_additions_run_once_and_are_remembered(shop: Pair) -> None:
    add = ["ALTER TABLE t ADD COLUMN age int", "CREATE TABLE public.v (id int PRIMARY KEY)"]
    shop.target.sql(f"COMMENT ON SUBSCRIPTION {shop.name} IS E'mine\\nand more'")
    result = shop.target.converge("pgml_schema_change", **replica(shop, *add))
    assert result["changes"] == [f"Run statement {n}: {sql}" for n, sql in enumerate(add, 1)]
    assert result["progress"] == {"done": 2, "total": 2, "begun": False} and result["other"] is None
    assert comment(shop, "target") == f"mine\nand more\nSchema changes: {CHANGE} 2/2"
    result = shop.source.converge("pgml_schema_change", **upstream(shop, *add))
    assert result["diff"]["after"] == {"statements": add}
    again = shop.source.ok("pgml_schema_change", **upstream(shop, *add))
    assert again["lsn"] and not again["changed"]
    shop.sql_source("UPDATE t SET age = 1")
    shop.arrived("t")
