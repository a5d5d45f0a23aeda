# SPDX-License-Identifier: GPL-3.0-or-later
"""Foreign servers whose source restarts, rotates its password or hangs, and runs that are cut off: the next one repairs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg2
import pytest
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import foreign as foreign_room

from tests.support import foreign
from tests.support.cluster import Cluster
from tests.support.copies import Process, ending, until
from tests.support.foreign import MODULE, SERVER, absent, as_role, converge, local_role, ok, options, prepare, refused
from tests.support.pair import Pair, pair_of, wait_for

ALL = [{"remote_schema": "public"}]


@pytest.fixture
def shop(pair: Pair) -> Pair:
    return prepare(pair)


@pytest.fixture
def restartable(servers_of_its_own: tuple[Cluster, Cluster]) -> Iterator[Pair]:
    """The same on servers that may be restarted."""
    with pair_of(*servers_of_its_own) as pair:
        yield prepare(pair)


# The source


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_the_source_restarts_in_mid_scan(restartable: Pair, how: str) -> None:
    """The scan fails, the next one in the same session and the next run don't."""
    pair = restartable
    pair.sql_source("INSERT INTO users SELECT g, repeat('x', 500) FROM generate_series(100, 20000) AS g")
    converge(pair, imports=ALL, fetch_size=100)
    target = pair.target
    with (
        closing(target.cluster.connect(target.database, autocommit=False)) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("DECLARE scan CURSOR FOR SELECT * FROM shop_public.users; FETCH 10 FROM scan")
        assert len(cursor.fetchall()) == 10
        if how == "kill":
            pair.source.cluster.kill()
            pair.source.cluster.start()
        else:
            pair.source.cluster.restart()
        with pytest.raises(psycopg2.Error, match="terminating connection|server closed the connection") as error:
            cursor.execute("FETCH ALL FROM scan")
        assert not connection.closed, error.value
        connection.rollback()
        cursor.execute("SELECT count(*) FROM shop_public.users")
        assert cursor.fetchall() == [(19921,)]
        connection.rollback()
    assert not converge(pair, imports=ALL, fetch_size=100)["changed"]


def test_the_source_is_down(restartable: Pair) -> None:
    pair = restartable
    converge(pair, imports=ALL)
    pair.source.cluster.stop()
    try:
        before = pair.target.fingerprint()
        result = pair.target.run(MODULE, **options(pair, imports=ALL, fetch_size=5))
        assert result.get("failed") and "Connection refused" in result["msg"]
        assert pair.target.fingerprint() == before
        with pytest.raises(psycopg2.Error, match="Connection refused"):
            pair.sql_target("SELECT * FROM shop_public.users")
    finally:
        pair.source.cluster.start()
    assert converge(pair, imports=ALL, fetch_size=5)["changed"]


def test_a_password_that_was_rotated(shop: Pair) -> None:
    """The run with the old one fails with the source's words, the one with the new one repairs all mappings."""
    with local_role(shop.target) as role:
        params = {"imports": ALL, "usage": [role], "user_mappings": [{"role": role}]}
        converge(shop, **params)
        foreign.set_password(shop.source.cluster, shop.distributor, "rotated")
        for name in (role, "postgres"):
            with pytest.raises(psycopg2.Error, match="password authentication failed"):
                if name == role:
                    as_role(shop, role, "SELECT * FROM shop_public.users")
                else:
                    shop.sql_target("SELECT * FROM shop_public.users")
        message = refused(shop, **params)
        assert f'password authentication failed for user "{shop.distributor}"' in message
        shop.password = "rotated"
        assert len(converge(shop, **params)["changes"]) == 2
        assert as_role(shop, role, "SELECT count(*) FROM shop_public.users") == [(20,)]


def test_a_source_that_locks_its_table(shop: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run doesn't wait for it for ever, nor does anybody behind it."""
    monkeypatch.setattr(foreign_room, "_STATEMENT_TIMEOUT", "2 s")
    converge(shop, imports=ALL)
    with shop.source.transaction("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE"):
        message = refused(shop, imports=ALL, fetch_size=5)
        assert "timeout" in message and "orders" in message
        waiting = "SELECT 1 FROM pg_stat_activity WHERE usename = %s AND wait_event_type = 'Lock'"
        wait_for(lambda: not shop.sql_source(waiting, [shop.distributor]), 10, "the session at the source to give up")
    assert converge(shop, imports=ALL, fetch_size=5)["changed"]


# Runs that are cut off

CHANGES: dict[str, dict[str, Any]] = {
    "created": {"imports": [{"tables": ["users", {"name": "orders", "where": "id > 10"}]}], "analyze": True},
    "altered": {"imports": [{"tables": ["users", "stock"]}], "fetch_size": 5, "on_drift": "reimport"},
    "removed": {},
}


EACH = 4
"""Of the statements these are tried; 1 tries all, which takes some minutes."""


@contextmanager
def cut_off(pair: Pair, number: int) -> Iterator[list[str]]:
    """End the session in the target that is about to run the statement of that number, none for 0, and collect them."""
    run: list[str] = []

    def before(self: Any, statement: Any) -> None:
        if self.endpoint.option != "login" or self.closed:
            return
        run.append(statement if isinstance(statement, str) else self.text_of(statement))
        if len(run) == number:
            pid = self._connection.get_backend_pid()
            pair.target.cluster.sql("SELECT pg_terminate_backend(%s)", [pid])
            gone = "SELECT 1 FROM pg_stat_activity WHERE pid = %s"
            wait_for(lambda: not pair.target.cluster.sql(gone, [pid]), 10, "the session to end")

    def followed(name: str) -> Any:
        real = getattr(Session, name)

        def both(self: Any, statement: Any, *others: Any) -> Any:
            before(self, statement)
            return real(self, statement, *others)

        return mock.patch.object(Session, name, both)

    with followed("execute"), followed("rows"):
        yield run


@pytest.mark.sampled(2)
@pytest.mark.slow
@pytest.mark.parametrize("kind", CHANGES)
def test_a_session_that_ends_before_a_statement(shop: Pair, kind: str) -> None:
    """All is done or nothing, and the next run does the rest."""
    with local_role(shop.target) as role:
        first = options(shop, **CHANGES["created"], usage=[role], user_mappings=[{"role": role}])
        wanted = {
            "created": first,
            "altered": options(shop, **CHANGES["altered"]),
            "removed": {"server": SERVER, "state": "absent"},
        }[kind]
        empty = foreign.catalogs(shop.target)

        def begin() -> None:
            absent(shop)
            assert foreign.catalogs(shop.target) == empty
            shop.sql_source("ALTER TABLE users DROP IF EXISTS extra")
            if kind != "created":
                shop.target.ok(MODULE, **first)
                shop.sql_source("ALTER TABLE users ADD extra int")

        begin()
        with cut_off(shop, 0) as all_of_them:
            shop.target.ok(MODULE, **wanted)
        last = len(all_of_them)
        assert last > 10
        for number in sorted({*range(1, last, EACH), *range(last - 3, last + 1)}):
            begin()
            before = shop.target.fingerprint()
            with cut_off(shop, number) as run:
                result = shop.target.run(MODULE, **wanted)
            assert result.get("failed") and "lost" in result["msg"], (run[-1], result)
            if "COMMIT" not in run[:-1]:
                assert shop.target.fingerprint() == before, run[-1]
            shop.target.converge(MODULE, **wanted)
        absent(shop)
        assert foreign.catalogs(shop.target) == empty


def test_killed_while_it_waits_for_the_source(shop: Pair, tmp_path: Path) -> None:
    """The module dies; its session ends with it, and the next run is not held up."""
    converge(shop, imports=ALL)
    before = shop.target.fingerprint()
    shop.sql_source("ALTER TABLE users ADD extra int")
    with shop.source.transaction("LOCK TABLE orders, users IN ACCESS EXCLUSIVE MODE"):
        wanted = options(shop, imports=ALL, fetch_size=5, on_drift="reimport")
        with ending(Process(shop.target, tmp_path / "tmp", wanted, MODULE)) as process:
            waits = "SELECT 1 FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'"
            until(process, lambda: shop.source.sql(waits, [shop.source.database]), "it waits")
            process.kill()
    assert shop.target.fingerprint() == before
    ours = "SELECT 1 FROM pg_stat_activity WHERE datname = %s AND application_name = 'postgresml.distributed'"
    wait_for(lambda: not shop.target.sql(ours, [shop.target.database]), 30, "its session to end")
    assert converge(shop, imports=ALL, fetch_size=5, on_drift="reimport")["changed"]


def test_two_runs_at_once(shop: Pair, tmp_path: Path) -> None:
    """One waits for the other, or says that it didn't; what is there then is what one of them wanted."""
    wanted = [options(shop, imports=ALL, fetch_size=size) for size in (11, 22)]
    processes = [Process(shop.target, tmp_path / str(n), each, MODULE) for n, each in enumerate(wanted)]
    with ending(processes[0]), ending(processes[1]):
        results = [process.finish() for process in processes]
    assert not all(result.get("failed") for result in results), results
    for result in results:
        assert not result.get("failed") or re.search(r"lock|another|meanwhile|already", result["msg"]), result["msg"]
    assert foreign.server_options(shop)["fetch_size"] in ("11", "22")
    converge(shop, imports=ALL, fetch_size=33)
    absent(shop)


def test_a_run_in_vain_holds_nothing_at_the_source(shop: Pair) -> None:
    """No session of the distributor outlives the run, whether it succeeds or fails."""
    sessions = "SELECT 1 FROM pg_stat_activity WHERE usename = %s"
    ok(shop, imports=ALL)
    wait_for(lambda: not shop.sql_source(sessions, [shop.distributor]), 10, "the distributor's sessions to end")
    refused(shop, imports=[{"tables": ["no such table".replace(" ", "_")]}])
    wait_for(lambda: not shop.sql_source(sessions, [shop.distributor]), 10, "the distributor's sessions to end")
