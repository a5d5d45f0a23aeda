# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots that can't be taken are refused with one sentence, and nothing is changed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import copies
from tests.support.pair import Pair
from tests.support.snapshots import (
    MODULE,
    TABLES,
    columns,
    content,
    converge,
    entry,
    options,
    prepare,
    refused,
    residue,
    state,
    take,
)

pytestmark = pytest.mark.slow

A = {"relation": "far.a", "into": "kept.a"}


@pytest.fixture
def far(pair: Pair) -> Pair:
    """A snapshot of one of two tables, which is older than the source."""
    prepare(pair, TABLES)
    take(pair, A)
    pair.sql_source("UPDATE a SET v = 2")
    return pair


INTO_THE_NEXT = "); DROP TABLE kept.a; CREATE TABLE kept.x AS (SELECT 1 AS x"
"""What makes two statements of each that ends with a closing bracket, wherever it stands in them."""

ASKED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "neither": ({"into": "kept.b"}, ["relation", "query"]),
    "both": ({"relation": "far.a", "query": "SELECT 1 AS a", "into": "kept.b"}, ["relation", "query"]),
    "a condition for a query": ({"query": "SELECT 1 AS a", "where": "a > 1", "into": "kept.b"}, ["where"]),
    "no such relation": ({"relation": "far.none", "into": "kept.b"}, ["far.none"]),
    "no such schema": ({"relation": "nowhere.a", "into": "kept.b"}, ["nowhere.a"]),
    "a relation without schema": ({"relation": "a", "into": "kept.b"}, ["public.a"]),
    "a name that is none": ({"relation": "far.a; DROP TABLE kept.a", "into": "kept.b"}, ["far.a; DROP TABLE kept.a"]),
    "three parts": ({"relation": "far.a.b", "into": "kept.b"}, ["far.a.b"]),
    "an empty relation": ({"relation": "", "into": "kept.b"}, ["table name"]),
    "an empty query": ({"query": " ", "into": "kept.b"}, ["kept.b", "syntax error"]),
    "no syntax": ({"query": "SELECT FROM WHERE", "into": "kept.b"}, ["kept.b", "syntax error"]),
    "no such table in a query": ({"query": "SELECT * FROM far.none", "into": "kept.b"}, ["kept.b", "far.none"]),
    "two statements": ({"query": "SELECT 1 AS a; DROP TABLE kept.a", "into": "kept.b"}, ["kept.b"]),
    "two statements behind a comment": (
        {"query": "SELECT 1 AS a --\n; DROP TABLE kept.a", "into": "kept.b"},
        ["kept.b"],
    ),
    "out of the brackets": ({"query": "SELECT 1 AS a) TO STDOUT; DROP TABLE kept.a; --", "into": "kept.b"}, ["kept.b"]),
    "two statements in brackets": ({"query": "SELECT 1 AS a" + INTO_THE_NEXT, "into": "kept.b"}, ["kept.b"]),
    "two statements in a condition": (
        {"relation": "far.b", "where": "true" + INTO_THE_NEXT, "into": "kept.b"},
        ["kept.b"],
    ),
    "an INSERT": ({"query": "INSERT INTO kept.a (id, v) VALUES (0, 0) RETURNING id", "into": "kept.b"}, ["kept.b"]),
    "a DELETE in a WITH": (
        {"query": "WITH gone AS (DELETE FROM kept.a RETURNING id) SELECT id FROM gone", "into": "kept.b"},
        ["kept.b"],
    ),
    "SELECT INTO": ({"query": "SELECT 1 AS a INTO kept.c", "into": "kept.b"}, ["kept.b"]),
    "no query": ({"query": "SHOW ALL", "into": "kept.b"}, ["kept.b"]),
    "no query but EXPLAIN": ({"query": "EXPLAIN SELECT 1", "into": "kept.b"}, ["kept.b"]),
    "two columns of one name": ({"query": "SELECT 1 AS a, 2 AS a", "into": "kept.b"}, ["kept.b", '"a"']),
    "a division by zero": (
        {"query": "SELECT id, 1 / (id - 400) AS x FROM far.a", "into": "kept.b"},
        ["division by zero"],
    ),
    "no condition": ({"relation": "far.b", "where": "id >", "into": "kept.b"}, ["kept.b", "syntax error"]),
    "an empty condition": ({"relation": "far.b", "where": "", "into": "kept.b"}, ["kept.b", "condition"]),
    "no such column in a condition": ({"relation": "far.b", "where": "w > 1", "into": "kept.b"}, ["w"]),
    "no boolean": ({"relation": "far.b", "where": "id + 1", "into": "kept.b"}, ["boolean"]),
    "a condition and a statement": ({"relation": "far.b", "where": "true; DROP TABLE b", "into": "kept.b"}, ["kept.b"]),
    "a condition and brackets": ({"relation": "far.b", "where": "id = 1) OR (id = 2", "into": "kept.b"}, ["kept.b"]),
    "a condition and a comment": (
        {"relation": "far.b", "where": "true) TO STDOUT; DROP TABLE b; --", "into": "kept.b"},
        ["kept.b"],
    ),
    "a condition that fails": (
        {"relation": "far.b", "where": "1 / (id - 400) > 9", "into": "kept.b"},
        ["division by zero"],
    ),
    "no such column to index": (
        {"relation": "far.b", "indexes": [["a"], ["a", "w"]], "into": "kept.b"},
        ["kept.b", "no column w"],
    ),
    "no column to index": ({"relation": "far.b", "indexes": [["a"], []], "into": "kept.b"}, ["kept.b", "indexes"]),
    "a type without order": (
        {"query": "SELECT '{}'::json AS j", "indexes": [["j"]], "into": "kept.b"},
        ["kept.b", "json"],
    ),
    "younger than now": ({"relation": "far.b", "max_age": -1, "into": "kept.b"}, ["max_age", "-1"]),
    "into itself": ({"relation": "far.b", "into": "far.b"}, ["far.b"]),
    "into another foreign table": ({"relation": "far.a", "into": "far.b"}, ["far.b"]),
    "into somebody's table": ({"relation": "far.b", "into": "theirs"}, ["public.theirs"]),
    "into a view": ({"relation": "far.b", "into": "their_view"}, ["public.their_view"]),
    "into an index": ({"relation": "far.b", "into": "their_index"}, ["public.their_index"]),
    "into a name that is none": ({"relation": "far.b", "into": "kept.b c"}, ["kept.b c"]),
    "into nothing": ({"relation": "far.b", "into": ""}, ["table name"]),
    "into a name that is too long": ({"relation": "far.b", "into": "kept." + "x" * 64}, ["63"]),
    "into a catalog": ({"relation": "far.b", "into": "pg_catalog.b"}, ["pg_catalog"]),
    "into what the module remembers": ({"relation": "far.b", "into": "pgml_distributed.b"}, ["pgml_distributed"]),
    "into a table in the making": ({"relation": "far.b", "into": "pgml_staging_0.b"}, ["pgml_staging_0"]),
}


@pytest.mark.sampled(12)
@pytest.mark.parametrize("mistake", ASKED)
def test_what_is_asked_for_is_wrong(far: Pair, mistake: str) -> None:
    wrong, words = ASKED[mistake]
    far.sql_target(
        "CREATE TABLE theirs (id int); INSERT INTO theirs VALUES (1); CREATE VIEW their_view AS SELECT 1 AS x;"
        "CREATE INDEX their_index ON theirs (id)"
    )
    message = refused(far, A, wrong)
    for word in words:
        assert word in message, message
    assert "pgml_staging" not in message or "pgml_staging" in wrong["into"], message


@pytest.mark.parametrize(
    "mistake", ["no syntax", "no such column in a condition", "no such column to index", "into a view"]
)
def test_check_mode_says_so_too(far: Pair, mistake: str) -> None:
    """At least as a warning, since an earlier task might mend it."""
    far.sql_target("CREATE VIEW their_view AS SELECT 1 AS x")
    wrong, words = ASKED[mistake]
    before = state(far.target)
    result = far.target.run(MODULE, check=True, **options(far, A, wrong))
    assert state(far.target) == before
    said = " ".join([result.get("msg", ""), *result.get("warnings", [])])
    assert all(word in said for word in words), said


def test_a_semicolon_at_the_end_of_a_query_is_no_other_statement(far: Pair) -> None:
    """Or there is a sentence that says so."""
    result = far.target.run(MODULE, **options(far, A, {"query": "SELECT id FROM far.b;", "into": "kept.b"}))
    assert residue(far) == []
    if result.get("failed"):
        assert ";" in result["msg"], result["msg"]
    else:
        assert content(far.target, "kept.b")[0] == 900


def test_a_condition_does_not_get_out_of_that_of_the_import(far: Pair) -> None:
    filtered = [{"tables": [{"name": "a", "where": "id > 100"}], "local_schema": "far"}]
    take(far, A, imports=filtered)
    for where in ("true) OR (true", "true --", "true /*", "true) OR true --", "id = 1 OR id = 200", "true ORDER BY 1"):
        kept = {"relation": "far.a", "where": where, "into": "kept.b", "refresh": "always"}
        result = far.target.run(MODULE, **options(far, A, kept, imports=filtered))
        assert residue(far) == []
        if not result.get("failed"):
            assert far.sql_target("SELECT min(id) > 100, count(*) = count(DISTINCT id) FROM kept.b") == [
                (True, True)
            ], where


def test_two_into_the_same(far: Pair) -> None:
    for into in ("kept.c", '"kept".C'):
        message = refused(far, A, {"relation": "far.a", "into": "kept.c"}, {"relation": "far.b", "into": into})
        assert "kept.c" in message


def test_jobs(far: Pair) -> None:
    for wrong in (0, -1):
        assert "jobs" in refused(far, {**A, "refresh": "always"}, jobs=wrong)


def test_somebodys_table_in_the_place_of_a_snapshot_stays(far: Pair) -> None:
    """It has the name of a snapshot that was dropped, and is none."""
    far.sql_target("DROP TABLE kept.a; CREATE TABLE kept.a (mine int); INSERT INTO kept.a VALUES (7)")
    for snapshots in ((A,), ({**A, "refresh": "always"},)):
        assert "kept.a" in refused(far, *snapshots)
    take(far)
    assert far.sql_target("TABLE kept.a") == [(7,)]
    far.target.ok(MODULE, server="shop", state="absent")
    assert far.sql_target("TABLE kept.a") == [(7,)]


def test_a_snapshot_of_another_server_is_refused(far: Pair) -> None:
    other = {"server": "other", "imports": [{"remote_schema": "public", "local_schema": "others"}]}
    take(far, **other)
    message = refused(far, {"relation": "others.b", "into": "kept.a"}, **other)
    assert "kept.a" in message
    far.target.ok(MODULE, server="other", state="absent")
    assert content(far.target, "kept.a")[0] == 500


def test_the_tables_of_another_server_may_be_read(far: Pair) -> None:
    """It is a local relation like any other."""
    other = {"server": "other", "imports": [{"remote_schema": "public", "local_schema": "others"}]}
    take(far, **other)
    converge(far, A, {"relation": "others.b", "into": "kept.b"})
    assert content(far.target, "kept.b") == content(far.source, "b")


def test_a_query_that_fails_leaves_the_old_rows(far: Pair) -> None:
    far.sql_target("CREATE VIEW mine AS SELECT id, 1 / (1000 - id) AS x FROM far.a")
    kept = [
        {"relation": "mine", "into": "kept.view", "refresh": "always"},
        {"query": "SELECT id, 1 / (1000 - id) AS x FROM far.a", "into": "kept.query", "refresh": "always"},
        {"relation": "far.a", "where": "1 / (1000 - id) < 9", "into": "kept.table", "refresh": "always"},
    ]
    take(far, *kept)
    far.sql_source("INSERT INTO a VALUES (1000, 2)")
    for each in kept:
        others = [{**other, "refresh": "if_older_than"} for other in kept if other != each]
        message = refused(far, each, *others)
        assert "division by zero" in message and each["into"] in message


def test_rows_that_row_security_hides_are_refused(far: Pair) -> None:
    """They would be missing, and nobody would know."""
    far.sql_source("CREATE VIEW seen AS SELECT * FROM b; ALTER TABLE b ENABLE ROW LEVEL SECURITY")
    far.sql_source("CREATE POLICY few ON b USING (id < 10); CREATE TABLE c (id int)")
    far.grant()
    message = refused(far, A, {"relation": "far.b", "into": "kept.b"}, imports=imports("a", "b"))
    assert "row-level security" in message.lower() and 'table "b"' in message, message
    far.sql_source(f'ALTER ROLE "{far.distributor}" BYPASSRLS')
    try:
        take(far, A, {"relation": "far.b", "into": "kept.b"})
        assert content(far.target, "kept.b") == content(far.source, "b")
    finally:
        far.sql_source(f'ALTER ROLE "{far.distributor}" NOBYPASSRLS')


def test_rows_that_row_security_hides_from_a_query_are_refused(far: Pair) -> None:
    take(far, A, imports=imports("a", "b"))
    far.sql_target("CREATE VIEW mine AS SELECT * FROM far.b")
    far.sql_source("ALTER TABLE b ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON b USING (id < 10)")
    for entry_of_b in ({"query": "SELECT * FROM far.b"}, {"relation": "mine"}):
        message = refused(far, A, {**entry_of_b, "into": "kept.b"}, imports=imports("a", "b"))
        assert "row-level security" in message.lower(), message


def imports(*tables: str) -> list[dict[str, Any]]:
    return [{"tables": list(tables), "local_schema": "far"}]


def test_a_relation_that_may_not_be_read(far: Pair) -> None:
    far.sql_source(f'REVOKE SELECT ON a FROM "{far.distributor}"')
    before = state(far.target)
    result = far.target.run(MODULE, **options(far, {**A, "refresh": "always"}))
    assert result.get("failed") and "permission denied for table a" in result["msg"], result["msg"]
    assert state(far.target) == before and residue(far) == []


def test_a_lock_at_the_source_is_named(far: Pair) -> None:
    with far.source.transaction("LOCK TABLE a IN ACCESS EXCLUSIVE MODE") as pid:
        before = copies.definitions(far.target), copies.contents(far.target)
        result = far.target.run(MODULE, **options(far, {**A, "refresh": "always"}))
    assert result.get("failed"), result
    assert str(pid) in result["msg"] and result["msg"].endswith("."), result["msg"]
    assert (copies.definitions(far.target), copies.contents(far.target)) == before and residue(far) == []


def test_check_mode_before_anything_is_there(pair: Pair) -> None:
    """The extension, and the relation of a query, may come with earlier tasks."""
    pair.sql_source(TABLES)
    pair.grant()
    before = state(pair.target)
    kept = [A, {"query": "SELECT * FROM far.a", "into": "kept.queried"}]
    result = pair.target.ok(MODULE, check=True, **options(pair, *kept))
    assert result["changed"] and state(pair.target) == before
    pair.sql_target("CREATE EXTENSION postgres_fdw")
    before = state(pair.target)
    predicted = pair.target.ok(MODULE, check=True, **options(pair, *kept))
    assert state(pair.target) == before
    for name in ("kept.a", "kept.queried"):
        found = entry(predicted, name)
        assert (found["refreshed"], found["rows"], found["taken_at"]) == (True, None, None)
    assert take(pair, *kept)["changes"] == predicted["changes"]


def test_an_operator_of_somebodys_in_an_open_schema_is_not_used(far: Pair) -> None:
    """Whoever may create in public could have a run of a superuser's execute what he likes."""
    far.sql_target(
        "CREATE FUNCTION mine(numeric, int) RETURNS boolean LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'somebody was here'; END $$;"
        "CREATE OPERATOR public.> (LEFTARG = numeric, RIGHTARG = int, FUNCTION = mine)"
    )
    kept = {"query": "SELECT id, price FROM far.a WHERE price > 3", "into": "kept.b"}
    far.sql_target("GRANT CREATE ON SCHEMA public TO PUBLIC")
    take(far, kept)
    assert content(far.target, "kept.b") == content(far.source, "a", columns(far.target, "kept.b"), "price > 3")
    far.sql_target("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    assert "somebody was here" in far.target.run(MODULE, **options(far, {**kept, "refresh": "always"}))["msg"]
