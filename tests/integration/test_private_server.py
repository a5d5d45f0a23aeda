# SPDX-License-Identifier: GPL-3.0-or-later
"""The server that nobody else can reach, on a cluster that is stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from ansible_collections.postgresml.distributed.plugins.module_utils.errors import DistributedError, ServerRefused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.server_programs import (
    Owner,
    ServerPrograms,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import private_server
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
        programs = ServerPrograms(str(bin_dir), owner)
        server = PrivateServer(str(cluster.data), str(beside), 10000 * default_major, owner, programs)
        try:
            yield server
        finally:
            with suppress(DistributedError):
                private_server.end(str(cluster.data), programs)
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


def test_says_what_its_log_says_when_no_session_can_be_opened(private: PrivateServer) -> None:
    private.start({})
    with pytest.raises(ServerRefused) as raised, private.explaining():
        Session(private.endpoint("postgres", "nowhere"))
    assert str(raised.value) == 'The copied cluster can\'t be made a replica: database "nowhere" does not exist.'


def test_says_what_the_session_says_when_the_log_says_nothing(private: PrivateServer) -> None:
    private.start({})
    with (
        pytest.raises(ServerRefused) as raised,
        private.explaining(),
        Session(private.endpoint("postgres", "postgres")) as session,
    ):
        os.kill(session.value("SELECT pg_backend_pid()"), signal.SIGKILL)
        session.value("SELECT 1")
    assert str(raised.value).startswith("The copied cluster can't be made a replica: The connection to ")
