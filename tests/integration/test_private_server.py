# SPDX-License-Identifier: GPL-3.0-or-later
"""The server that nobody else can reach, on a cluster that is stopped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.postgresml.distributed.plugins.module_utils.errors import ServerRefused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.server_programs import (
    Owner,
    ServerPrograms,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.private_server import PrivateServer

from tests.conftest import program_of
from tests.support.cluster import Cluster, make_directory


@pytest.fixture
def private(default_major: int) -> Iterator[PrivateServer]:
    bin_dir: Path = program_of(default_major)
    with Cluster(make_directory(), bin_dir) as cluster:
        cluster.stop()
        owner = Owner.of(str(cluster.data))
        beside = cluster.directory / "beside"
        owner.make_directory(str(beside))
        server = PrivateServer(
            str(cluster.data), str(beside), 10000 * default_major, owner, ServerPrograms(str(bin_dir), owner)
        )
        try:
            yield server
        finally:
            server.close()


def test_says_why_it_does_not_start_where_it_ends_at_once(private: PrivateServer) -> None:
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1
        if looks > 500:
            raise TimeoutError("it is still waited for")

    with pytest.raises(ServerRefused, match="contains errors"):
        private.start({"max_prepared_transactions": "99999999"}, look)
