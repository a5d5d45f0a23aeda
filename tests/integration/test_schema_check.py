# SPDX-License-Identifier: GPL-3.0-or-later
"""Definitions that differ are found, judged and mended; and what is said of them is what replication does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import psycopg2
import pytest
from psycopg2.sql import SQL, Literal

from tests.support import copies
from tests.support.cluster import Cluster
from tests.support.differing import ADD, APPLY, BREAKS, CREATE, Case, copy_of, make, rest, rows, run_in
from tests.support.differing_columns import CASES as COLUMNS
from tests.support.differing_tables import CASES as TABLES
from tests.support.differing_types import CASES as TYPES
from tests.support.pair import Pair, pair_of, run_unlogged, wait_for

KEPT = "{} is on the target only, and stays"
CASES = [*COLUMNS, *TABLES, *TYPES]
NEEDY = ("added_serial", "added_typed", "key_referred", "part_swapped", "retyped_new", "sequence_lacking")
"""Cases in which the statements of one difference need what another one's do, or what C(pg_dump) has: they are run as the module
prints them."""
ALONE = [case for case in CASES if case.schema not in NEEDY]


def each(cases: list[Case]) -> Any:
    """The parameters of a test of each case."""
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.schema) for case in cases])


class World(NamedTuple):
    """Two databases with all cases, and what the module says of them."""

    pair: Pair
    report: dict[str, Any]

    def options(self, pair: Pair, **params: Any) -> dict[str, Any]:
        return {"source": pair.endpoint, "schemas": [case.schema for case in CASES], "fail_on": [], **params}


@pytest.fixture(scope="module")
def world(primary: Cluster, replica: Cluster) -> Iterator[World]:
    with pair_of(primary, replica) as pair:
        make(pair.source, CASES, "source")
        make(pair.target, CASES, "target")
        pair.grant()
        pair.source.sql("CREATE PUBLICATION everything FOR ALL TABLES")
        world = World(pair, {})
        before = pair.target.fingerprint()
        report = pair.target.ok("pgml_schema", **world.options(pair))
        assert pair.target.fingerprint() == before
        yield world._replace(report=report)


def seen(differences: list[dict[str, Any]]) -> list[tuple[str, str | None, str]]:
    return [(each["class"], each["mended_by"], each["words"]) for each in differences]


# What is found


@each(CASES)
def test_each_difference_is_found(world: World, case: Case) -> None:
    assert sorted(map(str, seen(case.of(world.report["differences"])))) == sorted(map(str, case.expected))


def test_nothing_else_is_found(world: World) -> None:
    """And what is found is ordered, counted and printed."""
    differences = world.report["differences"]
    assert len(differences) == sum(len(case.of(differences)) for case in CASES)
    classes = [each["class"] for each in differences]
    assert classes == sorted(classes)
    assert world.report["summary"] == {name: classes.count(name) for name in world.report["summary"]}
    assert not world.report["changed"]
    for each in differences:
        assert each["object"] in each["words"]
        assert each["name"] is None or each["kind"] == "type" or each["name"].split('"')[0] in each["words"]
        assert (each["source"], each["target"]) != (None, None)
    printed = world.report["diff"]["after"]
    for each in [each for each in differences if each["class"] != "breaks_primary"]:
        assert f"-- {each['words']} ({each['class']}" in printed
        assert ("think about it" in printed.split(each["words"], 1)[1].split("\n", 1)[0]) == (
            bool(each["statements"]) and each["mended_by"] is None
        )
        assert each["mended_by"] == CREATE or all(statement in printed for statement in each["statements"])


def test_the_whole_database_has_the_same_differences(world: World) -> None:
    options = {"source": world.pair.endpoint, "all_tables": True, "fail_on": []}
    assert world.pair.target.ok("pgml_schema", **options)["differences"] == world.report["differences"]


def test_a_check_fails_by_class(world: World) -> None:
    """With all that was found, so that a play can print it."""
    options = world.options(world.pair)
    del options["fail_on"]
    result = world.pair.target.run("pgml_schema", **options)
    assert result["failed"] and result["differences"] == world.report["differences"]
    counts = world.report["summary"]
    assert f"and {counts['breaks_apply'] + counts['breaks_primary'] - 10} more" in result["msg"]
    options["schemas"] = ["added", "identity_none", "kept_nullable"]
    message = world.pair.target.refused("pgml_schema", **options)
    assert (
        "column a of added.t is missing on the target; UPDATE and DELETE fail on the source: identity_none.t" in message
    )
    assert "kept_nullable" not in message
    message = world.pair.target.refused("pgml_schema", **options, fail_on=["breaks_primary"])
    assert "identity_none.t" in message and "added" not in message
    harmless = {"source": world.pair.endpoint, "schemas": ["kept_nullable", "index_lacking"]}
    world.pair.target.ok("pgml_schema", **harmless)
    message = world.pair.target.refused("pgml_schema", **harmless, fail_on=["harmless"])
    assert "index i of index_lacking.t is missing on the target" in message
    world.pair.target.ok(
        "pgml_schema", **harmless, fail_on=["harmless"], parts=["tables"], exclude_tables=["kept_nullable.t"]
    )


# What mends it


@pytest.fixture(scope="module")
def by_hand(world: World) -> Iterator[tuple[dict[str, str], list[dict[str, Any]]]]:
    """The errors of each case's statements, run on a copy of the target, and what is found afterwards."""
    errors: dict[str, str] = {}
    with copy_of(world.pair) as copied:
        with closing(copied.target.cluster.connect(copied.target.database)) as connection:
            for case in ALONE:
                try:
                    with connection.cursor() as cursor:
                        for each in case.of(world.report["differences"]):
                            for statement in each["statements"] if each["class"] != "breaks_primary" else ():
                                cursor.execute(statement)
                except psycopg2.Error as error:
                    errors[case.schema] = str(error)
        yield errors, copied.target.ok("pgml_schema", **world.options(copied))["differences"]


@each(ALONE)
def test_the_statements_mend_it_by_hand(world: World, by_hand: Any, case: Case) -> None:
    """What has no statements stays."""
    errors, left = by_hand
    assert case.schema not in errors, errors[case.schema]
    for_target = [each for each in case.of(world.report["differences"]) if each["class"] != "breaks_primary"]
    expected = [each for each in for_target if not each["statements"]]
    found = [each for each in case.of(left) if each["class"] != "breaks_primary" and each not in expected]
    # A column that was let be NULL is still there.
    assert not [each for each in found if each["words"] != KEPT.format(each["words"].split(" is ")[0])]
    # What identifies rows is mended by what it is made of.
    stays = [each for each in expected if each["kind"] != "replica_identity" or not each["mended_by"]]
    assert len(case.of(left)) >= len(stays)


def test_statements_that_need_others_mend_it_as_one_script(world: World, tmp_path: Path) -> None:
    """The DDL has what they need, before or in between."""
    cases = [case for case in CASES if case.schema in NEEDY]
    options = world.options(world.pair, schemas=[case.schema for case in cases])
    with copy_of(world.pair) as copied:
        run_ddl(copied, copied.target.ok("pgml_schema", **options)["ddl"], tmp_path)
        left = copied.target.ok("pgml_schema", **options)["differences"]
    assert [case.schema for case in cases if case.of(left)] == []


def run_ddl(pair: Pair, ddl: list[str], directory: Path) -> None:
    """Run what the module printed, as it stands."""
    script = directory / "mend.sql"
    script.write_text("\n".join(ddl), encoding="utf-8")
    pair.target.cluster.psql(script, pair.target.database)


def mendable(mode: str) -> list[Case]:
    """The cases of which *mode* leaves nothing broken."""
    return [c for c in CASES if not any(f.severity == BREAKS for f in c.found if f.mended_by not in upto(mode))]


def upto(mode: str) -> list[str]:
    modes = [CREATE, ADD, APPLY]
    return modes[: modes.index(mode) + 1]


@pytest.mark.parametrize("mode", [CREATE, ADD, APPLY])
def test_a_mode_mends_what_it_says_and_nothing_else(world: World, mode: str) -> None:
    """It is predicted, and done once."""
    cases = mendable(mode)
    options = world.options(world.pair, mode=mode, schemas=[case.schema for case in cases])
    del options["fail_on"]
    before = [each for case in cases for each in case.of(world.report["differences"])]
    with copy_of(world.pair) as copied:
        result = copied.target.converge("pgml_schema", **options)
        assert result["changed"]
        assert sorted(map(str, seen(result["differences"]))) == sorted(map(str, seen(before)))
        left = copied.target.ok("pgml_schema", **{**options, "mode": "check", "fail_on": []})["differences"]
        # Of what could not stay as it was, something may stay.
        more, less = Counter(seen(left)), Counter(seen(rest(before, mode)))
        # A primary key takes NULL from its columns.
        assert [each[2] for each in less - more] in ([], ["column id of key_nullable.t may be NULL on the target only"])
        assert not [each for each in more - less if each[1:] != (None, KEPT.format(each[2].split(" is ")[0]))]
        if mode == ADD:
            for case in COLUMNS:
                if case in cases and "INSERT INTO t" in case.target and case.schema != "added_random":
                    here, there = rows(copied, case)
                    assert here and here == there, case.schema
        if mode == APPLY:
            # Sequences that serial columns had or have are no columns', and tables of the target alone stay.
            others = ("added_serial", "identity_serial", "part_extra", "domain_check_renamed")
            same = [case for case in cases if not case.of(left) and case.schema not in others]
            assert len(same) > 60
            difference = dumped(copied, same)
            assert not difference, difference


def test_the_ddl_as_one_script_does_what_the_mode_does(world: World, tmp_path: Path) -> None:
    """What check mode prints can be given to psql."""
    schemas = [case.schema for case in mendable(APPLY)]
    options = world.options(world.pair, mode=APPLY, schemas=schemas, fail_on=["breaks_apply"])
    with copy_of(world.pair) as copied:
        run_ddl(copied, copied.target.ok("pgml_schema", check=True, **options)["ddl"], tmp_path)
        again = copied.target.ok("pgml_schema", **options)
        assert not again["changed"], again["changes"]


def dumped(pair: Pair, cases: list[Case]) -> str:
    """What pg_dump finds different, in whatever order."""
    schemas = [f"--schema={case.quoted}" for case in cases]
    here, there = (
        sorted(line.rstrip(",") for line in copies.definitions(place, "--no-acl", *schemas) if line[:2] != "--")
        for place in (pair.source, pair.target)
    )
    assert len(here) > 500
    return copies.changed_lines(here, there)


@pytest.mark.parametrize("mode", [CREATE, ADD, APPLY])
def test_what_stays_broken_is_said(world: World, mode: str) -> None:
    """After what can be mended was."""
    cases = [case for case in CASES if case not in mendable(mode)]
    with copy_of(world.pair) as copied:
        options = world.options(copied, mode=mode, schemas=[case.schema for case in cases])
        predicted = copied.target.run("pgml_schema", check=True, **options)
        result = copied.target.run("pgml_schema", **options)
        assert result["failed"] and "Traceback" not in result["msg"]
        assert predicted.get("changes") == result.get("changes") or mode == CREATE
        assert "fit" in result["msg"]


# What replication does


@pytest.fixture(scope="module")
def live(world: World) -> Iterator[Pair]:
    """Copies of both databases."""
    with copy_of(world.pair, source_too=True) as copied:
        copied.source.sql("DROP PUBLICATION everything")
        yield copied


class Outcome(NamedTuple):
    """How a change arrived."""

    stopped: bool
    equal: bool


@pytest.mark.sampled(24)
@each([case for case in CASES if case.row])
def test_replication_does_what_the_class_says(world: World, live: Pair, case: Case) -> None:
    """What breaks it stops the apply worker or falsifies the row; the statements let it go on; the rest does no harm."""
    assert case.row
    published = live.source.value(
        "SELECT string_agg(oid::regclass::text, ', ') FROM pg_class WHERE relkind IN ('r', 'p')"
        " AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %s)",
        [case.schema],
    )
    live.source.sql(f"CREATE PUBLICATION live FOR TABLE {published}")
    where = live.source.cluster.source(live.source.database)
    connection = "host={host} port={port} dbname={db} user={user} password={password}".format(**where)
    statement = "CREATE SUBSCRIPTION live CONNECTION {} PUBLICATION live WITH (copy_data = false)"
    run_unlogged(live.target.cluster, SQL(statement).format(Literal(connection)), live.target.database)
    try:
        run_in(live.source, case, case.row)
        outcome = await_outcome(live, case)
        assert (outcome.stopped or not outcome.equal) == (case.severity == BREAKS), outcome
        mendable = all(found.mended_by for found in case.found if found.severity == BREAKS)
        if outcome.stopped and mendable and case.schema not in NEEDY:
            for each in case.of(world.report["differences"]):
                for statement in each["statements"]:
                    live.target.sql(statement)
            wait_for(lambda: caught_up(live), 20, "the changes to be applied")
            here, there = rows(live, case)
            assert here == there
    finally:
        live.target.sql("ALTER SUBSCRIPTION live DISABLE")
        live.target.sql("DROP SUBSCRIPTION live")
        live.source.sql("DROP PUBLICATION live")


def await_outcome(pair: Pair, case: Case) -> Outcome:
    """Wait until the change has arrived or the worker has failed."""
    errors = "SELECT sum(apply_error_count) FROM pg_stat_subscription_stats WHERE subname = 'live'"
    end = pair.source.value("SELECT pg_current_wal_insert_lsn()")
    wait_for(lambda: pair.target.value(errors) or caught_up(pair, end), 20, "the change to arrive or to fail")
    stopped = bool(pair.target.value(errors))
    here, there = ([], []) if stopped else rows(pair, case)
    return Outcome(stopped, here == there)


def caught_up(pair: Pair, end: str | None = None) -> bool:
    """Whether all that was written until *end*, or until now, is applied."""
    query = "SELECT confirmed_flush_lsn >= coalesce(%s::pg_lsn, pg_current_wal_insert_lsn()) FROM pg_replication_slots"
    return bool(pair.source.value(query + " WHERE slot_name = 'live'", [end]))
