# SPDX-License-Identifier: GPL-3.0-or-later
"""Have a physical copy of a server stream as a logical replica, beside copies of tables and the copying of files alone.

Beside the time it measures how long the source's processors work for it.
"""

from __future__ import annotations

import os
import statistics
import subprocess
from pathlib import Path
from typing import NamedTuple

from benchmarks import dataset, subscribers
from benchmarks.common import spread, write
from benchmarks.contest import (
    Result,
    benchmark,
    descendants,
    parse,
    parser_of,
    plural,
    present,
    programs,
    ratio,
    servers,
    setting_of,
)
from benchmarks.dump_restore import SIZES
from benchmarks.peers import Job, Peer, Peers
from benchmarks.subscribers import NAME, drop_subscription, streamed, wait_for_row
from tests.support.cluster import Cluster, make_directory
from tests.support.pair import Place

# The first one warms up the target, which those of physical copies don't use.
USUAL = ("ours", "native", "physical", "basebackup")
GROWING = ("physical", "basebackup")
_TICK = os.sysconf("SC_CLK_TCK")


class Times(NamedTuple):
    """What a process has used of the processors, in ticks."""

    own: int
    ended: int
    """of its children that have ended and that it has waited for"""


class Work:
    """Measures what the processors do for the source's server meanwhile, in all of its processes."""

    def __init__(self, job: Job) -> None:
        self._postmaster = int((job.source.cluster.data / "postmaster.pid").read_text(encoding="utf-8").split()[0])
        self.seconds = 0.0

    def __enter__(self) -> Work:
        self._before = self._ticks()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.seconds = (self._ticks() - self._before) / _TICK

    def _ticks(self) -> int:
        """What it has used since it started. What a process has used goes over to the one that waits for its end, so that a look
        during which anyone came or ended may count it twice or not at all, and is repeated."""
        while True:
            before = self._look()
            after = self._look()
            if {pid: times.ended for pid, times in before.items()} == {
                pid: times.ended for pid, times in after.items()
            }:
                return sum(times.own + times.ended for times in after.values())

    def _look(self) -> dict[int, Times]:
        pids = [self._postmaster, *descendants(self._postmaster)]
        return {pid: times for pid in pids if (times := _times(pid))}


def _times(pid: int) -> Times | None:
    """See proc(5); the second field, the name, may hold anything. None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    user, system, ended_user, ended_system = map(int, text.rpartition(")")[2].split()[11:15])
    return Times(user + system, ended_user + ended_system)


def make_replica(job: Job) -> None:
    """Have a new server as the target, with nothing in it: its whole cluster is replaced."""
    usual = job.target.cluster
    cluster = Cluster(make_directory(on_disk=True), usual.bin_dir, usual.settings)
    job.target = Place(job.stack.enter_context(cluster), job.target.database)


def publish(job: Job) -> None:
    make_replica(job)
    job.source.sql(f"CREATE PUBLICATION {NAME} FOR ALL TABLES")


def physical(job: Job) -> None:
    """All steps, with the server stopped and started in between as the role does it."""
    cluster = job.target.cluster
    options = {
        **cluster.login(),
        "subscriptions": [{"name": NAME, "publications": [NAME], "slot_name": NAME}],
        "source": job.source.cluster.source(job.source.database),
    }

    def step(state: str) -> None:
        job.module("pgml_physical_seed", {**options, "state": state})

    step("prepared")
    cluster.stop()
    step("exchanged")
    cluster.start()
    step("finished")
    streamed(job)
    wait_for_row(job)


def make_room(job: Job) -> None:
    make_replica(job)
    cluster = job.target.cluster
    cluster.stop()
    job.run("rm", "-r", str(cluster.data))


def basebackup(job: Job) -> None:
    """Copy the files as the module does, and no more."""
    source, target = job.source.cluster, job.target.cluster
    options = ["--checkpoint=fast", "--wal-method=stream", "--no-slot", "--no-manifest"]
    login = [f"--host={source.host}", f"--port={source.port}", f"--username={source.user}", "--no-password"]
    job.run(str(target.bin_dir / "pg_basebackup"), f"--pgdata={target.data}", *login, *options)


def differences(job: Job) -> list[str]:
    """What a copy lacks, of which a server is started where none runs yet."""
    cluster = job.target.cluster
    if not cluster.running:
        job.run("chown", "--recursive", f"--reference={cluster.directory}", str(cluster.data))
        cluster.password = job.source.cluster.password
        cluster.start()
    return dataset.differences(job.source, job.target)


PEERS: Peers = {
    "physical": Peer("**`pgml_physical_seed`**", physical, prepare=publish, tidy=drop_subscription),
    "basebackup": Peer("`pg_basebackup` alone", basebackup, prepare=make_room),
    "ours": subscribers.PEERS["ours"],
    "native": subscribers.PEERS["native"],
}


def report(setting: str, size: int, results: dict[str, Result], rounds: int) -> str:
    """The contest as a table."""
    lines = [
        f"{setting}; {size / dataset.GB:.2f} GB, {plural(rounds)}.",
        "",
        "| | seconds until it streams: median (fastest to slowest) | times `pgml_physical_seed` | times `pg_basebackup`"
        " | seconds of the source's processors |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in PEERS:
        if result := results.get(name):
            cells = [PEERS[name].title, spread(result.seconds)]
            cells += [ratio(result, results.get(other)) for other in GROWING]
            cells.append(spread([work.seconds for work in result.seen]))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def report_growth(setting: str, sizes: list[tuple[int, dict[str, Result]]], rounds: int) -> str:
    """The contests of growing data as a table."""
    titles = [PEERS[name].title for name in sizes[0][1]]
    lines = [
        f"{setting}; {plural(rounds)}.",
        "",
        "| data | "
        + " | ".join(f"{title} | for a GB | the source's processors" for title in titles)
        + " | times `pg_basebackup` |",
        "|---:|" + "---:|---:|---:|" * len(titles) + "---:|",
    ]
    for size, results in sizes:
        cells = [f"{size / dataset.GB:.2f} GB"]
        for result in results.values():
            cells += [
                spread(result.seconds),
                f"{result.median / size * dataset.GB:.2f} s",
                f"{statistics.median(work.seconds for work in result.seen):.2f} s",
            ]
        ours = results.get("physical")
        cells.append(ratio(ours, results.get("basebackup")) if ours else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def file_system(cluster: Cluster) -> str:
    """The kind that a cluster's files are on."""
    command = ["findmnt", "--noheadings", "--output=FSTYPE", "--target", str(cluster.data)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def main() -> None:
    parser = parser_of("physical_seed", __doc__, PEERS)
    parser.add_argument("--growth", action="store_true", help=f"measure {', '.join(map(str, SIZES))} GB instead")
    arguments = parse(parser)
    rounds = arguments.rounds
    bin_dir = programs(parser, arguments.major)
    peers = present(PEERS, arguments.only or list(GROWING if arguments.growth else USUAL), bin_dir)
    with servers(bin_dir, wal_level="logical") as (source, target):
        setting = f"{setting_of(source.cluster, peers)}, {file_system(source.cluster)}"
        if arguments.growth:
            sizes = [benchmark(source, target, size, peers, rounds, Work, differences) for size in SIZES]
            name, text = "physical_seed_growth", report_growth(setting, sizes, rounds)
        else:
            size, results = benchmark(source, target, arguments.gigabytes, peers, rounds, Work, differences)
            name, text = "physical_seed", report(setting, size, results, rounds)
    print(text)
    if arguments.write:
        write(name, text)


if __name__ == "__main__":
    main()
