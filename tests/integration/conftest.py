# SPDX-License-Identifier: GPL-3.0-or-later
"""Databases for first copies that are disturbed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import playbooks
from tests.support.cluster import Cluster
from tests.support.first_copies import NAMES, ROWS, SETTINGS, TABLES, definitions
from tests.support.pair import Pair, pair_of


@pytest.fixture(scope="module")
def servers_of_its_own() -> Iterator[tuple[Cluster, Cluster]]:
    """Two servers that may be restarted."""
    with playbooks.cluster(**SETTINGS) as source, playbooks.cluster(**SETTINGS) as target:
        yield source, target


@pytest.fixture
def live(servers_of_its_own: tuple[Cluster, Cluster]) -> Iterator[Pair]:
    """A published database, and one with the same tables without rows."""
    with pair_of(*servers_of_its_own) as pair:
        pair.both(TABLES)
        pair.sql_source(ROWS)
        pair.publish(*NAMES)
        yield pair


@pytest.fixture
def before(live: Pair) -> list[str]:
    """What defines the target before anything has begun."""
    return definitions(live)
