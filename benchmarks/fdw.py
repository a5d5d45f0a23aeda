# SPDX-License-Identifier: GPL-3.0-or-later
"""Read a table of another server by a foreign one, and have its rows in a local table, in the ways there are."""

from __future__ import annotations

import statistics
from contextlib import nullcontext
from typing import Any

from benchmarks import foreign_tables
from benchmarks.common import spread, write
from benchmarks.contest import (
    Result,
    contest,
    in_container,
    parse,
    parser_of,
    plural,
    programs,
    ratio,
    servers,
    setting_of,
)
from benchmarks.foreign_tables import SCANS, SNAPSHOTS
from benchmarks.link import Link, round_trip
from benchmarks.peers import Job, Peers
from benchmarks.source_load import Load
from tests.support.pair import Place

ROWS = 1_500_000
DELAY = 0.5
"""Milliseconds in each direction of the slower link."""


def watch(job: Job) -> Any:
    return nullcontext()


def report_scans(ways: list[tuple[float, dict[str, Result]]]) -> str:
    """The contests of scans, each with the seconds of a round trip, as a table."""
    titles = [f"a round trip of {trip * 1000:.2f} ms: seconds | times ours" for trip, _ in ways]
    lines = [f"| all rows by a foreign table | {' | '.join(titles)} |", "|---|" + "---:|---:|" * len(ways)]
    for name in ways[0][1]:
        cells = [SCANS[name].title]
        for _, results in ways:
            cells += [spread(results[name].seconds), ratio(results[name], results.get("scan"))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def report_snapshots(results: dict[str, Result]) -> str:
    """The contest of local tables as a table."""
    lines = [
        "| all rows in a local table | seconds: median (fastest to slowest) | times ours | the source keeps a snapshot for |",
        "|---|---:|---:|---:|",
    ]
    for name, result in results.items():
        held = f"{statistics.median(load.snapshot for load in result.seen):.1f} s"
        cells = [SNAPSHOTS[name].title, spread(result.seconds), ratio(result, results.get("snapshot")), held]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def scans(
    source: Place, target: Place, peers: Peers, rounds: int, delay: float
) -> list[tuple[float, dict[str, Result]]]:
    """Let the scans take turns on loopback, and then over a link that delays what is sent by so many seconds."""
    ways = [(round_trip(source), contest(source, target, peers, rounds, watch, foreign_tables.scanned))]
    with Link(source, delay) as far:
        ways.append((round_trip(far), contest(far, target, peers, rounds, watch, foreign_tables.scanned)))
    return ways


def main() -> None:
    parser = parser_of("fdw", __doc__, {**SCANS, **SNAPSHOTS}, ROWS)
    parser.add_argument(
        "--delay",
        type=float,
        default=DELAY,
        help="milliseconds in each direction of the slower link (default %(default)s)",
    )
    parser.add_argument("--forky", action="store_true", help="measure in a container of Debian forky instead")
    arguments = parse(parser)
    if arguments.forky:
        name, text = "fdw_forky", in_container("fdw", arguments, (*SCANS, *SNAPSHOTS), ("rows", "delay"))
    else:
        bin_dir = programs(parser, arguments.major, fetch=True)
        scanning, copying = (
            {name: peer for name, peer in peers.items() if name in (arguments.only or peers)}
            for peers in (SCANS, SNAPSHOTS)
        )
        rounds = arguments.rounds
        with servers(bin_dir) as (source, target):
            foreign_tables.make(source, arguments.rows)
            size = f"{arguments.rows:,} rows, {foreign_tables.size(source) / 10**6:.0f} MB"
            parts = [f"{setting_of(source.cluster, {})}; {size}, {plural(rounds)}."]
            if scanning:
                parts.append(report_scans(scans(source, target, scanning, rounds, arguments.delay / 1000)))
            if copying:
                results = contest(source, target, copying, rounds, Load, foreign_tables.copied)
                parts.append(report_snapshots(results))
        name, text = "fdw", "\n\n".join(parts)
    print(text)
    if arguments.write:
        write(name, text)


if __name__ == "__main__":
    main()
