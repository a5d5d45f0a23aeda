# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring a database's tables to another server, with pgml_dump_restore and in the other ways there are.

The ways take turns between the same two throwaway servers, which have PostgreSQL's default settings. The target's database is
made anew each time, and is compared with the source's afterwards.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from threading import Event, Thread

from benchmarks import dataset
from benchmarks.common import README, spread, version_of_theirs, write
from benchmarks.peers import PEERS, Job, pgcopydb_version
from tests.support import majors
from tests.support.cluster import Cluster, make_directory
from tests.support.pair import Place

# As PostgreSQL has them by default, where the servers of the tests have others.
SETTINGS = {"fsync": "on", "wal_level": "replica", "dynamic_shared_memory_type": "posix", "log_statement": "none"}
USUAL = ("ours", "pipe", "directory", "directory-z0", "pgcopydb", "fdw", "postgresql_db")
GROWING = ("ours", "pgcopydb")
NEWEST = ("ours", "pgcopydb", "pgcopydb-binary", "pgcopydb-split")
SIZES = (0.35, 0.7, 1.4, 2.8)
SUITE = "forky"
IMAGE = f"localhost/pgml-benchmarks:{SUITE}"
RESOURCES = majors.REPOSITORY / "molecule" / "resources"


@dataclass
class Result:
    """What the runs of one contestant took."""

    seconds: list[float] = field(default_factory=list)
    memory: int = 0
    """the most bytes that its processes had at a time"""

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
            self.peak = max(self.peak, sum(map(_proportional, _descendants(os.getpid()))))


def _descendants(pid: int) -> Iterator[int]:
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, path.read_text(encoding="ascii").split()):
                yield child
                yield from _descendants(child)


def _proportional(pid: int) -> int:
    """A process's bytes of memory, and its share of those that it has together with others."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def contest(source: Place, target: Place, names: list[str], rounds: int) -> dict[str, Result]:
    """Let each contestant copy the source in each round, in an order that rotates."""
    results = {name: Result() for name in names}
    run(names[0], source, target)  # so that the target has written its first files of WAL
    for number in range(rounds):
        first = number % len(names)
        for name in [*names[first:], *names[:first]]:
            seconds, memory = run(name, source, target)
            results[name].seconds.append(seconds)
            results[name].memory = max(results[name].memory, memory)
            print(f"  {name}: {seconds:.1f} s", file=sys.stderr)
    return results


def run(name: str, source: Place, target: Place) -> tuple[float, int]:
    """Let a contestant copy the source; returns the seconds and the bytes of memory that it took."""
    target.cluster.create_database(target.database)
    for place in (source, target):
        place.cluster.sql("CHECKPOINT")
    time.sleep(2)
    with tempfile.TemporaryDirectory(prefix="pgml-") as directory, Memory() as memory:
        start = time.perf_counter()
        PEERS[name].run(Job(source, target, Path(directory)))
        seconds = time.perf_counter() - start
    if lacking := dataset.differences(source, target):
        raise RuntimeError(f"{PEERS[name].title} has not made a copy: {', '.join(lacking)} differ")
    target.cluster.drop_database(target.database)
    return seconds, memory.peak


@contextmanager
def servers(bin_dir: Path) -> Iterator[tuple[Place, Place]]:
    """The names of two databases, of a server each."""
    with ExitStack() as stack:
        source, target = (stack.enter_context(Cluster(make_directory(), bin_dir, SETTINGS)) for _ in range(2))
        yield Place(source, "bench"), Place(target, "bench")


def benchmark(
    source: Place, target: Place, gigabytes: float, names: list[str], rounds: int
) -> tuple[int, dict[str, Result]]:
    """Make the data and run the contest; returns the bytes of the data too."""
    print(f"{gigabytes} GB ...", file=sys.stderr)
    source.cluster.create_database(source.database)
    dataset.make(source, gigabytes)
    size = dataset.size(source)
    results = contest(source, target, names, rounds)
    source.cluster.drop_database(source.database)
    return size, results


def report(setting: str, size: int, results: dict[str, Result], rounds: int) -> str:
    """The contest as a table."""
    ours = results.get("ours")
    lines = [
        f"{setting}; {size / dataset.GB:.2f} GB, {_rounds(rounds)}.",
        "",
        "| | seconds: median (fastest to slowest) | times ours | memory |",
        "|---|---:|---:|---:|",
    ]
    for name, result in results.items():
        ratio = f"{result.median / ours.median:.2f}" if ours else ""
        lines.append(f"| {PEERS[name].title} | {spread(result.seconds)} | {ratio} | {_megabytes(result.memory)} |")
    return "\n".join(lines)


def report_growth(setting: str, sizes: list[tuple[int, dict[str, Result]]], rounds: int) -> str:
    """The contests of growing data as a table."""
    titles = [PEERS[name].title for name in sizes[0][1]]
    lines = [
        f"{setting}; {_rounds(rounds)}.",
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
                _megabytes(result.memory),
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _rounds(rounds: int) -> str:
    return "one round" if rounds == 1 else f"{rounds} rounds"


def _megabytes(size: int) -> str:
    return f"{size / 10**6:.0f} MB"


def setting_of(cluster: Cluster, names: list[str]) -> str:
    """The versions and the machine that numbers hold for."""
    versions = [f"PostgreSQL {cluster.sql('SHOW server_version')[0][0].split()[0]}"]
    if any(PEERS[name].program == "pgcopydb" for name in names):
        versions.append(f"pgcopydb {pgcopydb_version()}")
    if "postgresql_db" in names:
        versions.append(f"community.postgresql {version_of_theirs()}")
    versions += [f"ansible-core {version('ansible-core')}", f"Python {platform.python_version()}"]
    return ", ".join([*versions, f"{len(os.sched_getaffinity(0))} cores"])


def in_container(arguments: argparse.Namespace) -> str:
    """Run this command in a container of a Debian that has a newer PostgreSQL and pgcopydb; returns what it prints."""
    script = subprocess.run(["sh", RESOURCES / "engine.sh"], stdout=subprocess.PIPE, text=True, check=True)
    engine = script.stdout.splitlines()
    subprocess.run(["sh", RESOURCES / "image.sh", SUITE], stdout=sys.stderr, check=True)
    here = Path(__file__).parent
    base = f"BASE=localhost/pgml-molecule:{SUITE}"
    build = ["build", "--quiet", "--tag", IMAGE, "--build-arg", base, "--file", str(here / "Containerfile"), str(here)]
    subprocess.run([*engine, *build], stdout=sys.stderr, check=True)
    options = ["--rm", "--network=none", "--shm-size=1g", f"--volume={majors.REPOSITORY}:/repository:ro"]
    command = ["python3", "-m", "benchmarks.dump_restore", "--rounds", str(arguments.rounds)]
    command += ["--gigabytes", str(arguments.gigabytes), "--only", *(arguments.only or NEWEST)]
    container = [*engine, "run", *options, "--workdir=/repository", IMAGE, *command]
    return subprocess.run(container, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def present(names: list[str]) -> list[str]:
    """The contestants whose programs are there, or can be installed."""
    if any(PEERS[name].program == "pgcopydb" for name in names) and not shutil.which("pgcopydb") and os.geteuid() == 0:
        subprocess.run(["sh", majors.REPOSITORY / "scripts" / "apt.sh", "pgcopydb"], stdout=sys.stderr, check=False)
    for name in names:
        if not PEERS[name].there:
            print(f"{PEERS[name].title} is left out, because {PEERS[name].program} isn't installed.", file=sys.stderr)
    return [name for name in names if PEERS[name].there]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dump_restore", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.4, help="how much data (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="how many runs of each contestant (default %(default)s)")
    parser.add_argument("--only", nargs="+", choices=PEERS, metavar="NAME", help=f"the contestants: {', '.join(PEERS)}")
    parser.add_argument("--major", type=int, help="PostgreSQL's major version (default: the newest that is installed)")
    parser.add_argument("--write", action="store_true", help=f"write the table into benchmarks/{README.name} too")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--growth", action="store_true", help=f"measure {', '.join(map(str, SIZES))} GB instead")
    kind.add_argument("--forky", action="store_true", help="measure in a container of Debian forky instead")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that the servers are removed then too
    if arguments.forky:
        name, text = "dump_restore_forky", in_container(arguments)
    else:
        programs = majors.installed()
        major = arguments.major or max(programs, default=15)
        if major not in programs:
            parser.error(f"PostgreSQL {major} isn't installed")
        names = present(arguments.only or list(GROWING if arguments.growth else USUAL))
        with servers(programs[major]) as (source, target):
            setting = setting_of(source.cluster, names)
            if arguments.growth:
                sizes = [benchmark(source, target, size, names, arguments.rounds) for size in SIZES]
                name, text = "dump_restore_growth", report_growth(setting, sizes, arguments.rounds)
            else:
                size, results = benchmark(source, target, arguments.gigabytes, names, arguments.rounds)
                name, text = "dump_restore", report(setting, size, results, arguments.rounds)
    print(text)
    if arguments.write:
        write(name, text)


if __name__ == "__main__":
    main()
