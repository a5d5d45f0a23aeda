# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots that are killed or cut off while they are filled: the old rows stay, and the next run ends what was begun."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import copies, playbooks, rooms
from tests.support.cluster import Cluster
from tests.support.copies import until
from tests.support.pair import Pair, pair_of, wait_for
from tests.support.snapshots import (
    GATE,
    MODULE,
    TABLES,
    at_the_gate,
    content,
    gate_closed,
    prepare,
    residue,
    running,
    take,
    version,
)
from tests.support.steps import STEPS, Plan

pytestmark = pytest.mark.slow

WAYS: dict[str, dict[str, Any]] = {
    "of a table": {"relation": "far.gated", "into": "kept.a", "refresh": "always", "indexes": [["id"]]},
    "of a query": {"query": "SELECT * FROM far.gated WHERE v > 0", "into": "kept.a", "refresh": "always"},
}


@pytest.fixture(scope="module")
def servers_of_its_own() -> Iterator[tuple[Cluster, Cluster]]:
    """Two servers that may be restarted."""
    with playbooks.cluster(log_statement="none") as source, playbooks.cluster(log_statement="none") as target:
        yield source, target


@pytest.fixture
def far(servers_of_its_own: tuple[Cluster, Cluster]) -> Iterator[Pair]:
    with pair_of(*servers_of_its_own) as pair:
        yield prepare(pair, TABLES + GATE)


@pytest.fixture(params=WAYS)
def kept(far: Pair, request: pytest.FixtureRequest) -> dict[str, Any]:
    """A snapshot that has version 1, while the source has version 2."""
    entry = WAYS[request.param]
    take(far, entry)
    next_version(far)
    return entry


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "tmp"


def next_version(pair: Pair) -> None:
    """Write all rows anew, and one more."""
    pair.sql_source("UPDATE a SET v = v + 1; INSERT INTO a SELECT max(id) + 1, max(v) FROM a")


def assert_recovers(pair: Pair, kept: dict[str, Any]) -> None:
    """The next run makes it equal, and nothing is left."""
    assert take(pair, kept)["changed"]
    assert content(pair.target, "kept.a") == content(pair.source, "a")
    assert not take(pair, {**kept, "refresh": "if_older_than"})["changed"]


def assert_let_go(pair: Pair) -> None:
    """The source is not kept waiting for a run that is dead, even if there never is another."""
    wait_for(lambda: not copies.sessions(pair.source.cluster), 15, "the source's sessions to end")


def test_killed_while_it_is_filled(far: Pair, kept: dict[str, Any], directory: Path) -> None:
    with gate_closed(far) as open_gate, running(far, directory, kept) as process:
        until(process, lambda: at_the_gate(far), "the gate")
        process.kill()
        open_gate()
        assert version(far) == 1
        wait_for(lambda: not process.processes(), 15, "the processes that it has started to end")
        assert process.left_files() == []
    assert_let_go(far)
    assert_recovers(far, kept)


def test_killed_at_the_gate_the_source_is_let_go(far: Pair, kept: dict[str, Any], directory: Path) -> None:
    """Even when it has not a row to send to anybody, it notices since PostgreSQL 14 that nobody waits for it."""
    with gate_closed(far), running(far, directory, kept) as process:
        until(process, lambda: at_the_gate(far), "the gate")
        process.kill()
        wait_for(lambda: not at_the_gate(far), 20, "the source's session to end")
    assert_recovers(far, kept)


def test_absent_cleans_up_after_one_that_was_killed(far: Pair, directory: Path) -> None:
    before = copies.definitions(far.target)
    with gate_closed(far) as open_gate, running(far, directory, WAYS["of a table"]) as process:
        until(process, lambda: at_the_gate(far), "the gate")
        process.kill()
        open_gate()
    result = far.target.ok(MODULE, server="shop", state="absent")
    assert result["changed"] and residue(far) == []
    assert copies.changed_lines(before, copies.definitions(far.target)) == ""
    assert not far.target.ok(MODULE, server="shop", state="absent")["changed"]


@pytest.mark.sampled(1)
def test_killed_after_any_step(far: Pair, kept: dict[str, Any], tmp_path: Path) -> None:
    """What no other test stops at, such as the moments around the exchange."""
    current = version(far)
    for number in range(1, 200):
        directory = tmp_path / str(number)
        directory.mkdir()
        with running(far, directory / "tmp", kept, plan=Plan(str(directory), kill=number)) as process:
            process.wait(60)
            steps = (directory / STEPS).read_text(encoding="utf-8").splitlines()
            if len(steps) < number:
                assert not process.finish().get("failed")
        now = version(far)
        assert now in (current, current + 1), steps[-1]
        assert remembered_rows(far) == [(499 + now,)], steps[-1]
        if now > current:
            next_version(far)
            current = now
        if len(steps) < number:
            break
    assert number > 5, steps
    assert_recovers(far, kept)
    assert far.target.ok(MODULE, server="shop", state="absent")["changed"]
    assert residue(far) == []


def remembered_rows(pair: Pair) -> list[tuple[int]]:
    """What the module would say of snapshots if it was asked now."""
    return pair.sql_target("SELECT rows FROM pgml_distributed.foreign_objects WHERE kind = 'snapshot'")


def test_the_first_one_killed_after_any_step(far: Pair, tmp_path: Path) -> None:
    """Server, tables and snapshot are made by runs that get a step further each time; then all of it is removed."""
    before = copies.definitions(far.target)
    entry = WAYS["of a table"]
    for number in range(1, 200, 2):
        directory = tmp_path / str(number)
        directory.mkdir()
        with running(far, directory / "tmp", entry, plan=Plan(str(directory), kill=number)) as process:
            process.wait(60)
            steps = (directory / STEPS).read_text(encoding="utf-8").splitlines()
        if far.sql_target("SELECT to_regclass('kept.a')::text") != [(None,)]:
            assert version(far) == 1 and remembered_rows(far) == [(500,)], steps[-1]
        if number % 4 == 1:
            far.target.ok(MODULE, server="shop", state="absent")
            assert copies.changed_lines(before, copies.definitions(far.target)) == "", steps[-1]
        if len(steps) < number:
            break
    assert number > 5, steps
    assert_recovers(far, entry)


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_source_goes_away_while_it_is_filled(far: Pair, kept: dict[str, Any], directory: Path, how: str) -> None:
    with gate_closed(far), running(far, directory, kept) as process:
        until(process, lambda: at_the_gate(far), "the gate")
        getattr(far.source.cluster, how)()
        far.source.cluster.start()
        result = process.finish()
    assert result.get("failed") and result["msg"].endswith("."), result
    assert "kept.a" in result["msg"] or "far.gated" in result["msg"], result["msg"]
    assert not [word for word in (far.password, far.target.cluster.password) if word in json.dumps(result)]
    assert version(far) == 1 and residue(far) == []
    assert_recovers(far, kept)


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_target_goes_away_while_it_is_filled(far: Pair, kept: dict[str, Any], directory: Path, how: str) -> None:
    with gate_closed(far) as open_gate, running(far, directory, kept) as process:
        until(process, lambda: at_the_gate(far), "the gate")
        getattr(far.target.cluster, how)()
        far.target.cluster.start()
        open_gate()
        result = process.finish()
    assert result.get("failed") and result["msg"].endswith("."), result
    assert version(far) == 1
    assert_let_go(far)
    assert_recovers(far, kept)


def test_a_session_at_the_source_is_terminated(far: Pair, kept: dict[str, Any], directory: Path) -> None:
    with gate_closed(far), running(far, directory, kept) as process:
        [pid] = until(process, lambda: at_the_gate(far), "the gate")
        far.sql_source("SELECT pg_terminate_backend(%s)", [pid])
        result = process.finish()
    assert result.get("failed") and result["msg"].endswith("."), result
    assert "terminating connection" in result["msg"] or "was lost" in result["msg"], result["msg"]
    assert version(far) == 1 and residue(far) == []
    assert_recovers(far, kept)


def test_two_runs_at_once(far: Pair, kept: dict[str, Any], tmp_path: Path) -> None:
    """The second one says so, and does not take away what the first one is filling."""
    with gate_closed(far) as open_gate, running(far, tmp_path / "first", kept) as process:
        until(process, lambda: at_the_gate(far), "the gate")
        with running(far, tmp_path / "second", kept) as other:
            second = other.finish(30)
        assert second.get("failed") and "run" in second["msg"] and second["msg"].endswith("."), second
        assert version(far) == 1 and not process.ended
        open_gate()
        result = process.finish()
    assert not result.get("failed"), result
    assert version(far) == 2 and residue(far) == []
    assert_recovers(far, kept)


def test_a_run_that_has_nothing_to_fill_passes_by(far: Pair, kept: dict[str, Any], tmp_path: Path) -> None:
    """It leaves alone what another one is filling."""
    with gate_closed(far) as open_gate, running(far, tmp_path / "first", kept) as process:
        until(process, lambda: at_the_gate(far), "the gate")
        with running(far, tmp_path / "second", {**kept, "refresh": "if_older_than"}) as other:
            second = other.finish(30)
        assert not second.get("failed") and not second["changed"], second
        open_gate()
        result = process.finish()
    assert not result.get("failed"), result
    assert version(far) == 2 and residue(far) == []


def test_target_runs_full_while_it_is_filled(far: Pair, kept: dict[str, Any], directory: Path) -> None:
    with rooms.small(far.target) as room:
        prepare(far, "SELECT 1")
        take(far, kept)
        next_version(far)
        far.sql_source("ALTER TABLE a ALTER note SET STORAGE EXTERNAL; UPDATE a SET note = repeat(md5(id::text), 300)")
        with gate_closed(far) as open_gate, running(far, directory, kept) as process:
            until(process, lambda: at_the_gate(far), "the gate")
            rooms.fill(room, 100_000)
            open_gate()
            result = process.finish()
        assert result.get("failed"), result
        assert any(words in result["msg"] for words in ("No space left", "could not extend", "disk full")), result[
            "msg"
        ]
        assert residue(far) == [] and version(far) == 2
        rooms.clear(room)
        assert_recovers(far, kept)
