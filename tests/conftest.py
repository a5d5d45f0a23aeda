# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers and databases for the tests. Every process of pytest-xdist starts servers of its own."""

from __future__ import annotations

import functools
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import majors
from tests.support.cluster import Cluster, make_directory
from tests.support.pair import Pair, Place, pair_of

# A shell that runs the tests in the background has them ignore SIGINT, and with them all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

SETTINGS = {
    "max_connections": "100",
    "max_replication_slots": "40",
    "max_wal_senders": "40",
    "max_worker_processes": "40",
    "max_logical_replication_workers": "30",
    "max_sync_workers_per_subscription": "4",
    "max_prepared_transactions": "5",
    "shared_buffers": "32MB",
    # How soon a failed worker is started anew: 5 s by default.
    "wal_retrieve_retry_interval": "300ms",
}


@functools.cache
def programs() -> dict[int, Path]:
    """The server programs that can be had, by major version."""
    return majors.available()


def program_of(major: int) -> Path:
    """The server programs of a major version; without them the test is skipped."""
    if major not in programs():
        pytest.skip(f"no server programs of PostgreSQL {major}: not installed, and not fetched from the npm registry")
    return programs()[major]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--sampled", action="store_true", help="of tests with many variations, run as many as their mark says"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes longest begins first."""
    if config.getoption("--sampled"):
        left_out = {item for group in _variations(items).values() for item in group if item not in _sample(group)}
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]
    items.sort(key=lambda item: "test_molecule" not in item.nodeid)


def _variations(items: list[pytest.Item]) -> dict[str, list[pytest.Item]]:
    """The tests that are marked as sampled, by function."""
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sampled"):
            groups.setdefault(item.nodeid.split("[")[0], []).append(item)
    return groups


def _sample(group: list[pytest.Item]) -> list[pytest.Item]:
    """As many of *group* as its mark says, from the first to the last."""
    mark = group[0].get_closest_marker("sampled")
    count = min(mark.args[0] if mark else len(group), len(group))
    return [group[number * (len(group) - 1) // max(count - 1, 1)] for number in range(count)]


class Servers:
    """The clusters of this process, two of each major version at most, started when they are first asked for."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._running: dict[tuple[int, str], Cluster] = {}

    def get(self, major: int, side: str) -> Cluster:
        if (major, side) not in self._running:
            cluster = Cluster(make_directory(), program_of(major), SETTINGS)
            self._running[major, side] = self._stack.enter_context(cluster)
        return self._running[major, side]


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(stack)


@pytest.fixture(scope="session")
def default_major() -> int:
    """The newest major version that is installed; without one that knows row filters, the newest to be had."""
    installed = [major for major in majors.installed() if major >= 15]
    if not (installed or programs()):
        pytest.skip("no PostgreSQL server programs are installed or can be fetched")
    return max(installed or programs())


@pytest.fixture(scope="session")
def primary(servers: Servers, default_major: int) -> Cluster:
    return servers.get(default_major, "primary")


@pytest.fixture(scope="session")
def replica(servers: Servers, default_major: int) -> Cluster:
    return servers.get(default_major, "replica")


@pytest.fixture
def pair(primary: Cluster, replica: Cluster) -> Iterator[Pair]:
    """Two fresh databases on servers of the default major version."""
    with pair_of(primary, replica) as made:
        yield made


@pytest.fixture
def upstream(pair: Pair) -> Place:
    """A fresh database on the primary."""
    return pair.source


@pytest.fixture(params=sorted(majors.VERSIONS))
def each_major(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Pair]:
    """Two fresh databases on servers of every major version."""
    with pair_of(servers.get(request.param, "primary"), servers.get(request.param, "replica")) as made:
        yield made


@pytest.fixture
def newest(servers: Servers) -> Iterator[Pair]:
    """Two fresh databases on servers of the newest major version."""
    major = max(majors.VERSIONS)
    with pair_of(servers.get(major, "primary"), servers.get(major, "replica")) as made:
        yield made
