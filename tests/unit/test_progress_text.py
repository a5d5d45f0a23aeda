# SPDX-License-Identifier: GPL-3.0-or-later
"""The line that is shown of a run while it works."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.postgresml.distributed.plugins.plugin_utils.progress_text import (
    Look,
    duration,
    files_line,
    line,
    size,
)

MB = 1 << 20


def look(seconds: float = 0, **seen: Any) -> Look:
    return Look(seconds, {"run": None, "copies": [], "builds": [], "subscriptions": [], **seen})


def run(done: int = 0, **changed: Any) -> dict[str, Any]:
    known = {"phase": "copy", "process": 7, "tables": 8, "tables_done": 3, "bytes": 980 * MB, "bytes_done": done * MB}
    return {**known, **changed}


def copied(name: str, done: int, whole: int | None, rows: int = 1) -> dict[str, Any]:
    return {"name": name, "bytes": whole and whole * MB, "bytes_done": done * MB, "rows": rows}


def build(table: str, step: str = "building index: scanning table", done: int = 4, total: int = 10) -> dict[str, Any]:
    return {"table": table, "step": step, "done": done, "total": total}


def test_nothing_is_going_on() -> None:
    ready = {"name": "pgml_shop", "tables": 2, "ready": 2, "unready": {}}
    assert line(look(), None, None) is None
    assert line(look(subscriptions=[ready]), look(), "pgml_shop") is None


def test_tables_bytes_rate_and_time_left() -> None:
    copies = [copied("public.orders", 120, 300), copied("public.users", 9, None, 1_200_000)]
    now = look(10, run=run(412), copies=copies, builds=[build("public.stock")])
    rest = (
        "copying public.orders 120 MB of 300 MB, public.users 1,200,000 rows;"
        " building indexes of public.stock (scanning table 40 %)"
    )
    assert line(now, None, None) == f"copied 3 of 8 tables, 412 MB of 980 MB (42 %); {rest}"
    before = look(0, run=run(32))
    assert line(now, before, None) == f"copied 3 of 8 tables, 412 MB of 980 MB (42 %), 38 MB/s, 15 s left; {rest}"


def test_a_copy_that_stands_still_says_so() -> None:
    assert line(look(10, run=run(412)), look(0, run=run(412)), None) == (
        "copied 3 of 8 tables, 412 MB of 980 MB (42 %), 0 bytes/s"
    )


@pytest.mark.parametrize(
    "before", [look(9, run=run(32)), look(0, run=run(32, process=6)), look(0, run=run(500)), look(0)]
)
def test_no_rate_from_looks_that_can_not_be_compared(before: Look) -> None:
    """Too near, at another run, further than now, at none."""
    text = line(look(10, run=run(412)), before, None)
    assert text and "/s" not in text and "left" not in text


def test_bytes_that_are_not_known_are_not_told() -> None:
    now = look(10, run=run(bytes=0, tables=1, tables_done=0), copies=[copied("kept.a", 0, None)])
    assert line(now, look(run=run(bytes=0)), None) == "copied 0 of 1 table; copying kept.a 1 row"


def test_all_rows_are_there() -> None:
    whole = run(980, tables_done=8)
    assert line(look(run=whole), None, None) == "all rows of 8 tables are there, checking and analyzing them"
    builds = [build("a", "building index: sorting live tuples", 0, 0), *[build("b")] * 3]
    assert line(look(run=whole, builds=builds), None, None) == (
        "all rows of 8 tables are there; building indexes of a (sorting live tuples), b (scanning table 40 %),"
        " b (scanning table 40 %) and 1 more"
    )


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        ("define", "making the tables"),
        ("attach", "tying the tables to each other"),
        ("exchange", "putting the tables in their place"),
        ("clean", "removing what is no longer needed"),
        ("validate", "checking foreign keys"),
    ],
)
def test_phases(phase: str, words: str) -> None:
    assert line(look(run=run(phase=phase)), None, None) == words
    text = line(look(run=run(phase=phase), copies=[copied("a", 1, 2)]), None, None)
    assert text == f"{words}; copying a 1.0 MB of 2.0 MB"


def test_catching_up() -> None:
    now = look(10, run=run(150, phase="catch up", bytes=200 * MB))
    words = "all rows are there, applying what was written meanwhile: 50 MB of WAL left"
    assert line(now, look(0, run=run(900)), None) == words
    before = look(0, run=run(50, phase="catch up", bytes=200 * MB))
    assert line(now, before, None) == f"{words}, 10 MB/s, 5 s left"


def test_a_copy_of_postgresql_itself() -> None:
    """Of the subscription that the task is about."""
    mine = {"name": "mine", "tables": 5, "ready": 2, "unready": {"a": "copying", "b": "catching up", "c": "copied"}}
    other = {"name": "other", "tables": 9, "ready": 1, "unready": {"z": "waiting"}}
    now = look(10, subscriptions=[mine, other], copies=[copied("a", 70, None, 5)])
    assert line(now, look(0, copies=[copied("a", 20, None)]), "mine") == (
        "copied 2 of 5 tables, 2 catching up, 5.0 MB/s; copying a 5 rows"
    )


def test_many_copies_are_cut_short() -> None:
    text = line(look(run=run(), copies=[copied(f"t{number}", 1, 2) for number in range(6)]), None, None)
    assert text and text.endswith("t3 1.0 MB of 2.0 MB and 2 more")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (10 << 10, "10 kB"),
        (1536 << 20, "1.5 GB"),
        (5 << 50, "5.0 PB"),
    ],
)
def test_sizes(number: int, text: str) -> None:
    assert size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (5400, "1 h 30 min"), (7500, "2 h 05 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def files(seconds: float = 0, done: int = 0, complete: bool = False, run: str = "a") -> Look:
    there = {"run": run, "bytes": 980 * MB, "bytes_done": done * MB, "complete": complete}
    return Look(seconds, {"phase": "nothing", "files": there})


def test_files_that_are_copied() -> None:
    text = "copied 412 MB of 980 MB of files (42 %)"
    assert files_line(files(10, 412), None) == text
    assert files_line(files(10, 412), files(0, 32)) == f"{text}, 38 MB/s, 15 s left"
    assert files_line(files(10, 412), files(0, 412)) == f"{text}, 0 bytes/s"
    for other in (files(9, 32), files(0, 32, run="b"), Look(0, {"phase": "nothing"})):
        assert files_line(files(10, 412), other) == text
    assert files_line(files(10, 990), None) == "copied 990 MB of 990 MB of files (100 %)"
    assert files_line(files(20, 1000, complete=True), files(10, 412)) == "all files are there, making a replica of them"
    assert files_line(Look(0, {"phase": "ready"}), files()) is None
