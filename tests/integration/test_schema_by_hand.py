# SPDX-License-Identifier: GPL-3.0-or-later
"""Somebody changes a definition on one side alone while rows are written: what broke is said and healed, and no row is lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.support import playbooks
from tests.support import writers as busy
from tests.support.pair import Pair, pair_of, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.sampled(0)]

ADDED = "CREATE TYPE busy.mood AS ENUM ('glad'); ALTER TABLE busy.accounts ADD mood busy.mood, ADD CONSTRAINT rich CHECK (id > 0)"
ERRORS = "SELECT sum(apply_error_count) FROM pg_stat_subscription_stats"


class Change(NamedTuple):
    """A change that somebody makes on the primary."""

    statements: str
    row: str
    """what hits it, at last"""
    words: str
    mode: str
    changes: list[str]


CHANGES = {
    "a column with a constant default": Change(
        "ALTER TABLE busy.accounts ADD age int NOT NULL DEFAULT 7",
        "UPDATE busy.accounts SET note = 'aged' WHERE id = (SELECT min(id) FROM busy.accounts)",
        "column age of busy.accounts is missing on the target",
        "apply_additive",
        ["Add column age to busy.accounts"],
    ),
    "a column with now() as default": Change(
        "ALTER TABLE busy.accounts ADD seen timestamptz NOT NULL DEFAULT now()",
        "UPDATE busy.accounts SET note = 'seen' WHERE id = (SELECT min(id) FROM busy.accounts)",
        "column seen of busy.accounts is missing on the target",
        "apply_additive",
        ["Add column seen to busy.accounts"],
    ),
    "a column of a partitioned table": Change(
        "ALTER TABLE busy.days ADD seen timestamptz DEFAULT now()",
        "INSERT INTO busy.days VALUES (7, -7, 'seen')",
        "column seen of busy.days is missing on the target",
        "apply_additive",
        ["Add column seen to busy.days"],
    ),
    "a label": Change(
        "ALTER TYPE busy.mood ADD VALUE 'sad' BEFORE 'glad'",
        "UPDATE busy.accounts SET mood = 'sad' WHERE id = (SELECT min(id) FROM busy.accounts)",
        "'sad' of type busy.mood is missing on the target",
        "apply_additive",
        ["Add 'sad' to type busy.mood"],
    ),
    "NOT NULL lifted": Change(
        "ALTER TABLE busy.accounts ALTER balance DROP NOT NULL",
        "INSERT INTO busy.accounts VALUES (5000000, NULL)",
        "column balance of busy.accounts may be NULL on the source only",
        "apply_additive",
        ["Let column balance of busy.accounts be NULL"],
    ),
    "a constraint dropped": Change(
        "ALTER TABLE busy.accounts DROP CONSTRAINT rich",
        "INSERT INTO busy.accounts VALUES (-20, 0)",
        "constraint rich of busy.accounts is on the target only, and may refuse rows that the source has",
        "apply",
        ["Drop constraint rich of busy.accounts"],
    ),
    "a wider type": Change(
        "ALTER TABLE busy.accounts ALTER balance TYPE numeric(20, 2)",
        "UPDATE busy.accounts SET balance = 1e15 WHERE id = (SELECT min(id) FROM busy.accounts)",
        "column balance of busy.accounts is numeric(20,2) on the source and numeric(12,2) on the target",
        "apply",
        ["Make column balance of busy.accounts numeric(20,2)"],
    ),
}


@pytest.fixture(scope="module")
def replicating() -> Iterator[tuple[Pair, busy.Writers]]:
    """Two databases that replicate while rows are written, until the last test."""
    settings = {"log_statement": "none", "max_prepared_transactions": "10"}
    with (
        playbooks.cluster(**settings) as source,
        playbooks.cluster(**settings) as target,
        pair_of(source, target) as pair,
    ):
        pair.both(busy.SCHEMA + ADDED)
        busy.fill(pair.source)
        pair.publish(*busy.TABLES)
        pair.subscribe()
        with busy.writers(pair.source, large=2000) as running:
            running.each()
            yield pair, running
        for table in busy.TABLES:
            pair.arrived(table, 60)


def schema(pair: Pair, **params: Any) -> dict[str, Any]:
    return {"source": pair.endpoint, "tables": busy.TABLES, **params}


def errors(pair: Pair) -> int:
    return int(pair.target.value(ERRORS))


def caught_up(pair: Pair) -> None:
    """Wait until all that was written by now is applied."""
    query = "SELECT bool_and(confirmed_flush_lsn >= %s) FROM pg_replication_slots WHERE database = current_database()"
    end = pair.source.value("SELECT pg_current_wal_insert_lsn()")
    wait_for(lambda: pair.source.value(query, [end]), 60, "the changes to be applied")


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_change_by_hand_broke_is_healed(replicating: tuple[Pair, busy.Writers], name: str) -> None:
    pair, running = replicating
    change = CHANGES[name]
    caught_up(pair)
    assert not pair.target.ok("pgml_schema", **schema(pair))["summary"]["breaks_apply"]
    before = errors(pair)
    pair.source.sql(change.statements)
    pair.source.sql(change.row)
    wait_for(lambda: errors(pair) > before, 30, "the apply worker to fail")
    running.each()
    message = pair.target.refused("pgml_schema", **schema(pair))
    assert change.words in message and f"mode={change.mode}" in message, message
    predicted = pair.target.ok("pgml_schema", check=True, **schema(pair, mode=change.mode))
    result = pair.target.ok("pgml_schema", **schema(pair, mode=change.mode))
    assert predicted["changes"] == result["changes"] and predicted["diff"] == result["diff"]
    # Defaults that were now() when their columns came are set by the mode that is no addition.
    assert [each for each in result["changes"] if "Set the default of column seen" not in each] == change.changes
    assert not pair.target.ok("pgml_schema", **schema(pair, mode=change.mode))["changed"]
    caught_up(pair)
    healed = errors(pair)
    running.each()
    caught_up(pair)
    assert errors(pair) == healed


def test_a_column_that_the_target_has_first_breaks_nothing(replicating: tuple[Pair, busy.Writers]) -> None:
    """What the remedy in PostgreSQL's own manual comes to, and a feature that somebody computes on the replica."""
    pair, running = replicating
    caught_up(pair)
    before = errors(pair)
    pair.target.sql(
        "ALTER TABLE busy.accounts ADD early text; ALTER TABLE busy.bulk ADD feature float NOT NULL DEFAULT 0"
    )
    result = pair.target.ok("pgml_schema", **schema(pair))
    words = {each["words"] for each in result["differences"] if each["name"] in ("early", "feature")}
    assert words == {
        "column early of busy.accounts is on the target only, and stays",
        "column feature of busy.bulk is on the target only, and stays",
    }
    running.each()
    pair.source.sql("ALTER TABLE busy.accounts ADD early text")
    pair.source.sql("UPDATE busy.accounts SET early = 'bird' WHERE id = (SELECT min(id) FROM busy.accounts)")
    running.each()
    caught_up(pair)
    assert errors(pair) == before
    assert not pair.target.ok("pgml_schema", **schema(pair, mode="apply"))["changed"]
    # So that the rows can be compared.
    pair.target.sql("ALTER TABLE busy.bulk DROP feature")


def test_no_row_is_lost(replicating: tuple[Pair, busy.Writers]) -> None:
    """After all of that, while rows are still written."""
    pair, running = replicating
    running.each()
    result = pair.target.ok("pgml_verify_info", source=pair.endpoint, tables=busy.TABLES, timeout=120)
    assert result["equal"], result["summary"]
