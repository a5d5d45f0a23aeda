# SPDX-License-Identifier: GPL-3.0-or-later
"""Physical seeds that are killed or cut off: the replica is the old cluster or the new one, and a rerun comes to the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import physical
from tests.support.cluster import Cluster
from tests.support.pair import wait_for
from tests.support.physical import Hits, Seeding, identifier
from tests.support.steps import STEPS, Plan

pytestmark = pytest.mark.slow

STATES = ("prepared", "exchanged", "finished")
QUICK = {"transfer.slot_guard.GRACE_SECONDS": 5, "transfer.slot_guard._PAUSE_SECONDS": 0.2}
LAST = 41
"""After this step there is none."""


@pytest.fixture(scope="module")
def templates() -> Iterator[list[Cluster]]:
    with physical.templates() as made:
        yield made


@pytest.fixture
def two(templates: list[Cluster]) -> Iterator[Seeding]:
    with physical.seeding(templates) as made:
        made.replica.sql("CREATE TABLE old AS SELECT 42 AS answer")
        yield made


def until_killed(two: Seeding, tmp_path: Path, number: int) -> Iterator[str]:
    """Do all steps, the process killed after *number* of them; yields the state while what it has left lives."""
    left = number
    with ExitStack() as stack:
        for state in STATES:
            if state == "exchanged":
                two.replica.stop()
            plan = Plan("", kill=left, constants=QUICK if number % 2 else {})
            process = stack.enter_context(two.process(tmp_path, state, plan))
            process.wait(60)
            steps = (process.notes / STEPS).read_text(encoding="utf-8").splitlines()
            print(state, number, *steps[left - 1 :], sep="\n")
            if len(steps) == left:
                yield state
                return
            assert not (result := process.finish()).get("failed"), result["msg"]
            left -= len(steps)
            if state == "exchanged":
                two.replica.start()


@pytest.mark.sampled(6)
@pytest.mark.parametrize("number", range(1, LAST + 1))
def test_killed_after_a_step(two: Seeding, tmp_path: Path, number: int) -> None:
    before = identifier(two.replica)
    killed = False
    with Hits(two.source):
        for state in until_killed(two, tmp_path, number):
            killed, exchanged = True, identifier(two.replica) != before
            if state == "prepared":
                assert not exchanged and two.replica.sql("SELECT answer FROM old") == [(42,)]
            if state == "finished":
                assert exchanged
            if number % 2 and not exchanged:
                wait_for(lambda: not two.slots(), 20, "the slots to go")
            two.resume()
    assert killed or number == LAST, "there are fewer steps"
    two.assert_done()
    two.applied_without_errors()
