# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring a database's tables to another server, with pgml_dump_restore and in the other ways there are."""

from __future__ import annotations

from benchmarks import dataset
from benchmarks.common import spread, write
from benchmarks.contest import (
    Memory,
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
from benchmarks.peers import PEERS, Job

USUAL = ("ours", "pipe", "directory", "directory-z0", "pgcopydb", "fdw", "postgresql_db")
GROWING = ("ours", "pgcopydb")
NEWEST = ("ours", "pgcopydb", "pgcopydb-binary", "pgcopydb-split")
SIZES = (0.35, 0.7, 1.4, 2.8)


def watch(job: Job) -> Memory:
    return Memory()


def report(setting: str, size: int, results: dict[str, Result], rounds: int) -> str:
    """The contest as a table."""
    lines = [
        f"{setting}; {size / dataset.GB:.2f} GB, {plural(rounds)}.",
        "",
        "| | seconds: median (fastest to slowest) | times ours | memory |",
        "|---|---:|---:|---:|",
    ]
    for name, result in results.items():
        cells = [PEERS[name].title, spread(result.seconds), ratio(result, results.get("ours")), _memory(result)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def report_growth(setting: str, sizes: list[tuple[int, dict[str, Result]]], rounds: int) -> str:
    """The contests of growing data as a table."""
    titles = [PEERS[name].title for name in sizes[0][1]]
    lines = [
        f"{setting}; {plural(rounds)}.",
        "",
        "| data | " + " | ".join(f"{title} | for a GB | memory" for title in titles) + " |",
        "|---:|" + "---:|---:|---:|" * len(titles),
    ]
    for size, results in sizes:
        cells = [f"{size / dataset.GB:.2f} GB"]
        for result in results.values():
            cells += [
                spread(result.seconds),
                f"{result.median / size * dataset.GB:.1f} s",
                _memory(result),
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _memory(result: Result) -> str:
    return f"{max(memory.peak for memory in result.seen) / 10**6:.0f} MB"


def main() -> None:
    parser = parser_of("dump_restore", __doc__, PEERS)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--growth", action="store_true", help=f"measure {', '.join(map(str, SIZES))} GB instead")
    kind.add_argument("--forky", action="store_true", help="measure in a container of Debian forky instead")
    arguments = parse(parser)
    rounds = arguments.rounds
    if arguments.forky:
        name, text = "dump_restore_forky", in_container("dump_restore", arguments, NEWEST)
    else:
        bin_dir = programs(parser, arguments.major)
        peers = present(PEERS, arguments.only or list(GROWING if arguments.growth else USUAL), bin_dir)
        with servers(bin_dir) as (source, target):
            setting = setting_of(source.cluster, peers)
            if arguments.growth:
                sizes = [benchmark(source, target, size, peers, rounds, watch) for size in SIZES]
                name, text = "dump_restore_growth", report_growth(setting, sizes, rounds)
            else:
                size, results = benchmark(source, target, arguments.gigabytes, peers, rounds, watch)
                name, text = "dump_restore", report(setting, size, results, rounds)
    print(text)
    if arguments.write:
        write(name, text)


if __name__ == "__main__":
    main()
