# SPDX-License-Identifier: GPL-3.0-or-later
"""What a copy is cut into, and the order in which its pieces and the indexes after them are worked at."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.blueprint import Blueprint
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.schedule import Cargo, Schedule, Tally
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import chunks, workers
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.chunks import Chunk, Extent
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.stream import BLOCK, Stream
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.workers import Job, Move

GB = 1 << 30


def extent(oid: int, size: int) -> Extent:
    return Extent(oid, size // 8192, size)


def test_small_tables_stay_whole_and_the_largest_comes_first() -> None:
    planned = chunks.plan([extent(1, GB // 8), extent(2, GB // 2), extent(3, 0)], 2, 150000)
    assert planned == [Chunk(2, GB // 2), Chunk(1, GB // 8), Chunk(3, 0)]


@pytest.mark.parametrize(("size", "jobs", "parts"), [(GB, 2, 1), (GB + 8192, 2, 2), (10 * GB, 4, 4), (3 * GB, 8, 3)])
def test_a_large_table_is_cut_so_that_all_workers_have_some_of_it(size: int, jobs: int, parts: int) -> None:
    assert len(chunks.plan([extent(1, size)], jobs, 150000)) == parts


def test_the_ranges_of_a_table_meet_and_the_last_is_open() -> None:
    planned = sorted(chunks.plan([extent(1, 5 * GB)], 4, 150000), key=lambda chunk: chunk.first)
    assert planned[0].first == 0 and planned[-1].end is None
    assert [chunk.end for chunk in planned[:-1]] == [chunk.first for chunk in planned[1:]]
    assert not any(chunk.whole for chunk in planned)


def test_rows_outside_the_heap_count() -> None:
    assert len(chunks.plan([Extent(1, 1000, 4 * GB)], 2, 150000)) == 2
    assert len(chunks.plan([Extent(1, 1, 4 * GB)], 2, 150000)) == 1  # a block can't be cut


@pytest.mark.parametrize(("jobs", "version"), [(1, 150000), (4, 130000)])
def test_nothing_is_cut_without_a_use(jobs: int, version: int) -> None:
    assert [chunk.whole for chunk in chunks.plan([extent(1, 50 * GB)], jobs, version)] == [True]


def job(name: str, shared: str = "", exclusive: str = "", move: Move | None = None) -> Job:
    return Job(name, move, [], frozenset(shared), frozenset(exclusive))


def test_rows_come_first_and_locks_are_not_waited_for() -> None:
    rows = job("rows", move=Move("t", "", ""))
    queue = workers._Queue(
        [job("index 1", shared="t"), job("constraint", exclusive="t"), job("other", shared="u"), rows]
    )
    taken: list[Job] = []
    for expected in ("rows", "index 1", "other", None):
        found = queue.next(taken)
        assert (found and found.key) == expected
        taken += [found] if found else []
    found = queue.next([])
    assert found and found.key == "constraint"


def test_what_is_last_waits_for_all_the_rest() -> None:
    moving, ending = job("rows", move=Move("t", "", "")), job("end")._replace(last=True)
    queue = workers._Queue([ending, moving, job("index")])
    assert [queue.next([]), queue.next([moving]), queue.next([moving])] == [moving, job("index"), None]
    assert queue.next([job("index")]) is None
    assert queue.next([]) == ending


def run(plan: Blueprint, cargo: list[Cargo]) -> list[str]:
    """What a schedule does, in order, one job at a time."""
    order = Schedule(plan, [("s", item.key[1]) for item in cargo], Tally(), mock.Mock())
    every = {("s", item.key[1]) for item in cargo} | {key for key, _text in plan.constraints}
    moves = [Job(("rows", ("s", item.key[1]), item), Move("", "", ""), []) for item in cargo]
    queue = workers._Queue([*moves, *order.without_rows(sorted(every))])
    said = []
    while (found := queue.next([])) is not None:
        kind, key, _item = found.key
        said.append(f"{kind} {key[1]}")
        queue.add(order.done(found, 1 if found.move else None))
    return said


def cargo(name: str) -> Cargo:
    return Cargo(("public", name), "", 1, True, True)


def plan(**parts: Any) -> Blueprint:
    empty = Blueprint("", [], [], [], [], [], frozenset(), frozenset())
    return empty._replace(**parts)


def test_a_table_gets_keys_then_indexes_then_statistics() -> None:
    made = plan(constraints=[(("s", "a"), "pk")], indexes=[(("s", "a"), "i"), (("s", "a"), "j")])
    assert run(made, [cargo("a")]) == ["rows a", "constraint a", "index a", "index a", "analyze a"]


def test_a_table_that_came_in_pieces_is_frozen_afterwards() -> None:
    assert run(plan(), [cargo("a"), cargo("a")]) == ["rows a", "rows a", "vacuum a"]
    made = plan(indexes=[(("s", "b"), "i")])
    said = run(made, [cargo("a"), cargo("a"), cargo("b")])
    assert said == ["rows a", "rows a", "rows b", "index b", "analyze b", "vacuum a"]


def test_a_foreign_key_waits_for_both_tables() -> None:
    keys = [(("s", "b"), ("s", "a"), "fk")]
    said = run(plan(constraints=[(("s", "a"), "pk")], foreign_keys=keys), [cargo("b"), cargo("a")])
    assert said.index("foreign key b") > said.index("constraint a")
    assert said.count("foreign key b") == 1


def test_partitions_are_analyzed_with_their_root() -> None:
    assert run(plan(partitions=frozenset([("s", "p1")])), [cargo("p1")]) == ["rows p1"]


def test_a_stream_gives_back_what_was_written_in_blocks() -> None:
    stream = Stream()
    stream.sink.write(b"x" * (BLOCK + 1))
    stream.end(None)
    blocks = [stream.read(), stream.read()]
    assert b"".join(blocks) == b"x" * (BLOCK + 1)
    assert max(map(len, blocks)) <= BLOCK
    assert stream.read() == b""


def test_a_stream_hands_over_a_failure_and_not_an_end() -> None:
    stream = Stream()
    stream.end(OSError("no more"))
    with pytest.raises(OSError, match="no more"):
        stream.read()
