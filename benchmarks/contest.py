# SPDX-License-Identifier: GPL-3.0-or-later
"""Contests: ways to do the same that take turns between the same two throwaway servers.

The servers have PostgreSQL's default settings. The target's database is made anew each time, and is compared with the source's
afterwards.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from threading import Event, Thread
from typing import Any

from benchmarks import dataset
from benchmarks.common import README, version_of_theirs
from benchmarks.peers import Job, Peer, Peers, pgcopydb_version
from tests.support import majors
from tests.support.cluster import Cluster, make_directory
from tests.support.pair import Place

# As PostgreSQL has them by default, where the servers of the tests have others.
SETTINGS = {"fsync": "on", "wal_level": "replica", "dynamic_shared_memory_type": "posix", "log_statement": "none"}
SUITE = "forky"
IMAGE = f"localhost/pgml-benchmarks:{SUITE}"
RESOURCES = majors.REPOSITORY / "molecule" / "resources"


@dataclass
class Result:
    """What the runs of one contestant took."""

    seconds: list[float] = field(default_factory=list)
    seen: list[Any] = field(default_factory=list)
    """what watched each run"""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Memory:
    """Watches, in the background, how much memory the processes have that this one has started."""

    def __init__(self) -> None:
        self.peak = 0
        self._over = Event()
        self._thread = Thread(target=self._watch)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            self.peak = max(self.peak, sum(map(_proportional, descendants(os.getpid()))))


def descendants(pid: int) -> Iterator[int]:
    """The processes that a process has started, and those that they have."""
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, path.read_text(encoding="ascii").split()):
                yield child
                yield from descendants(child)


def _proportional(pid: int) -> int:
    """A process's bytes of memory, and its share of those that it has together with others."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _differences(job: Job) -> list[str]:
    return dataset.differences(job.source, job.target)


def contest(
    source: Place,
    target: Place,
    peers: Peers,
    rounds: int,
    watch: Callable[[Job], Any],
    compare: Callable[[Job], list[str]] = _differences,
) -> dict[str, Result]:
    """Let each contestant copy the source in each round, in an order that rotates."""
    results = {name: Result() for name in peers}
    names = list(peers)
    run(peers[names[0]], source, target, watch, compare)  # so that the target has written its first files of WAL
    for number in range(rounds):
        first = number % len(names)
        for name in [*names[first:], *names[:first]]:
            seconds, seen = run(peers[name], source, target, watch, compare)
            results[name].seconds.append(seconds)
            results[name].seen.append(seen)
            print(f"  {name}: {seconds:.1f} s", file=sys.stderr)
    return results


def run(
    peer: Peer, source: Place, target: Place, watch: Callable[[Job], Any], compare: Callable[[Job], list[str]]
) -> tuple[float, Any]:
    """Let a contestant copy the source; returns the seconds that it took, and what watched it."""
    target.cluster.create_database(target.database)
    with tempfile.TemporaryDirectory(prefix="pgml-") as directory, Job(source, target, Path(directory)) as job:
        peer.prepare(job)
        for place in (source, target):
            place.cluster.sql("CHECKPOINT")
        time.sleep(2)
        with watch(job) as seen:
            start = time.perf_counter()
            peer.run(job)
            seconds = time.perf_counter() - start
        if lacking := compare(job):
            raise RuntimeError(f"{peer.title} has not made a copy: {', '.join(lacking)} differ")
        peer.tidy(job)
    target.cluster.drop_database(target.database)
    return seconds, seen


@contextmanager
def servers(bin_dir: Path, **settings: str) -> Iterator[tuple[Place, Place]]:
    """The names of two databases, of a server each."""
    with ExitStack() as stack:
        source, target = (
            stack.enter_context(Cluster(make_directory(on_disk=True), bin_dir, {**SETTINGS, **settings}))
            for _ in range(2)
        )
        yield Place(source, "bench"), Place(target, "bench")


def benchmark(
    source: Place,
    target: Place,
    gigabytes: float,
    peers: Peers,
    rounds: int,
    watch: Callable[[Job], Any],
    compare: Callable[[Job], list[str]] = _differences,
) -> tuple[int, dict[str, Result]]:
    """Make the data and run the contest; returns the bytes of the data too."""
    print(f"{gigabytes} GB ...", file=sys.stderr)
    source.cluster.create_database(source.database)
    dataset.make(source, gigabytes)
    size = dataset.size(source)
    results = contest(source, target, peers, rounds, watch, compare)
    source.cluster.drop_database(source.database)
    return size, results


def ratio(result: Result, ours: Result | None) -> str:
    """How many times as long as ours it took, if ours took part."""
    return f"{result.median / ours.median:.2f}" if ours else ""


def plural(rounds: int) -> str:
    return "one round" if rounds == 1 else f"{rounds} rounds"


def setting_of(cluster: Cluster, peers: Peers) -> str:
    """The versions and the machine that numbers hold for."""
    versions = [f"PostgreSQL {cluster.sql('SHOW server_version')[0][0].split()[0]}"]
    if any(name.startswith("pgcopydb") for name in peers):
        versions.append(f"pgcopydb {pgcopydb_version()}")
    if "postgresql_db" in peers:
        versions.append(f"community.postgresql {version_of_theirs()}")
    versions += [f"ansible-core {version('ansible-core')}", f"Python {platform.python_version()}"]
    return ", ".join([*versions, f"{len(os.sched_getaffinity(0))} cores"])


def in_container(
    name: str, arguments: argparse.Namespace, newest: tuple[str, ...], passed: tuple[str, ...] = ("gigabytes",)
) -> str:
    """Run a benchmark in a container of a Debian that has a newer PostgreSQL and pgcopydb; returns what it prints.

    The options whose names are *passed* on are those that not all contests have.
    """
    script = subprocess.run(["sh", RESOURCES / "engine.sh"], stdout=subprocess.PIPE, text=True, check=True)
    engine = script.stdout.splitlines()
    subprocess.run(["sh", RESOURCES / "image.sh", SUITE], stdout=sys.stderr, check=True)
    here = Path(__file__).parent
    base = f"BASE=localhost/pgml-molecule:{SUITE}"
    build = ["build", "--quiet", "--tag", IMAGE, "--build-arg", base, "--file", str(here / "Containerfile"), str(here)]
    subprocess.run([*engine, *build], stdout=sys.stderr, check=True)
    options = ["--rm", "--network=none", "--shm-size=1g", f"--volume={majors.REPOSITORY}:/repository:ro"]
    command = ["python3", "-m", f"benchmarks.{name}", "--rounds", str(arguments.rounds)]
    for option in passed:
        command += [f"--{option}", str(getattr(arguments, option))]
    command += ["--only", *(arguments.only or newest)]
    container = [*engine, "run", *options, "--workdir=/repository", IMAGE, *command]
    return subprocess.run(container, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def present(peers: Peers, names: list[str], bin_dir: Path) -> Peers:
    """The contestants whose programs are there, or can be installed."""
    lacking = sorted({package for name in names for package in peers[name].lacks(bin_dir)})
    if lacking and os.geteuid() == 0:
        subprocess.run(["sh", majors.REPOSITORY / "scripts" / "apt.sh", *lacking], stdout=sys.stderr, check=False)
    for name in names:
        if lacking := peers[name].lacks(bin_dir):
            print(f"{peers[name].title} is left out for want of {' and '.join(lacking)}.", file=sys.stderr)
    return {name: peers[name] for name in names if not peers[name].lacks(bin_dir)}


def parser_of(name: str, description: str | None, peers: Peers, rows: int = 0) -> argparse.ArgumentParser:
    """The options that all contests have; the data is measured in rows where a number of them is given."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    if rows:
        parser.add_argument("--rows", type=int, default=rows, help="how many rows (default %(default)s)")
    else:
        parser.add_argument("--gigabytes", type=float, default=1.4, help="how much data (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="how many runs of each contestant (default %(default)s)")
    parser.add_argument("--only", nargs="+", choices=peers, metavar="NAME", help=f"the contestants: {', '.join(peers)}")
    parser.add_argument("--major", type=int, help="PostgreSQL's major version (default: the newest that is installed)")
    parser.add_argument("--write", action="store_true", help=f"write the table into benchmarks/{README.name} too")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options that were given. From now on, the servers are removed too when this process is asked to end."""
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    return arguments


def programs(parser: argparse.ArgumentParser, major: int | None, fetch: bool = False) -> Path:
    """The directory of the server programs to use; fetched if need be where no client programs have to be with them."""
    found = majors.installed()
    wanted = major or max(found, default=15)
    bin_dir = found.get(wanted) or (majors.fetch(wanted) if fetch else None)
    if bin_dir is None:
        parser.error(f"PostgreSQL {wanted} isn't installed")
    return bin_dir
