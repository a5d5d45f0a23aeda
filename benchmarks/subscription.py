# SPDX-License-Identifier: GPL-3.0-or-later
"""Copy a database's tables to another server until what changes at the source arrives there, in the ways there are.

Beside the time it measures what the source has to bear meanwhile.
"""

from __future__ import annotations

import statistics

from benchmarks import dataset
from benchmarks.common import spread, write
from benchmarks.contest import (
    Result,
    benchmark,
    in_container,
    parse,
    parser_of,
    plural,
    present,
    programs,
    ratio,
    servers,
    setting_of,
)
from benchmarks.source_load import Load, words
from benchmarks.subscribers import PEERS

USUAL = ("ours", "native", "pgcopydb")
NEWEST = ("ours", "native-binary", "pgcopydb", "pgcopydb-binary")


def report(setting: str, size: int, results: dict[str, Result], rounds: int) -> str:
    """The contest as a table."""
    lines = [
        f"{setting}; {size / dataset.GB:.2f} GB, {plural(rounds)}.",
        "",
        "| | seconds until it streams: median (fastest to slowest) | times ours | until the copy is done |",
        "|---|---:|---:|---:|",
    ]
    for name, result in results.items():
        copied = f"{statistics.median(load.copied for load in result.seen):.2f} s"
        cells = [PEERS[name].title, spread(result.seconds), ratio(result, results.get("ours")), copied]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def report_load(results: dict[str, Result]) -> str:
    """What the source has to bear, as a table."""
    lines = [
        "| what the source feels | scans of a table | a row is read | a block is read | strongest lock | `COPY` runs for"
        " | a snapshot is held for | until it streams |",
        "|---|---:|---:|---:|---|---:|---:|---:|",
    ]
    for name, result in results.items():
        loads: list[Load] = result.seen
        cells = [PEERS[name].title, f"{max(load.scans for load in loads):.0f}"]
        cells += [f"{max(load.rows for load in loads):.2f} times", f"{max(load.blocks for load in loads):.2f} times"]
        cells.append(f"`{words(max(load.lock for load in loads))}`")
        for seconds in ([load.copying for load in loads], [load.snapshot for load in loads], result.seconds):
            cells.append(f"{statistics.median(seconds):.1f} s")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = parser_of("subscription", __doc__, PEERS)
    parser.add_argument("--forky", action="store_true", help="measure in a container of Debian forky instead")
    arguments = parse(parser)
    if arguments.forky:
        name, text = "subscription_forky", in_container("subscription", arguments, NEWEST)
    else:
        bin_dir = programs(parser, arguments.major)
        peers = present(PEERS, arguments.only or list(USUAL), bin_dir)
        with servers(bin_dir, wal_level="logical") as (source, target):
            setting = setting_of(source.cluster, peers)
            size, results = benchmark(source, target, arguments.gigabytes, peers, arguments.rounds, Load)
        name = "subscription"
        text = "\n\n".join([report(setting, size, results, arguments.rounds), report_load(results)])
    print(text)
    if arguments.write:
        write(name, text)


if __name__ == "__main__":
    main()
