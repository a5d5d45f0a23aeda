# SPDX-License-Identifier: GPL-3.0-or-later
"""Wrong input gets a sentence, and neither server is touched."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from tests.support import majors, playbooks
from tests.support.cluster import Cluster
from tests.support.pair import wait_for
from tests.support.playbooks import PASSWORD, Ansible, Run, Unsafe, count, differences, snapshot

pytestmark = pytest.mark.slow

GOOD = {"name": "good", "database": "shop", "target_database": "ml", "tables": ["public.categories", "warehouse.stock"]}
PRIMARY_ROOM = {"max_replication_slots": "16", "max_wal_senders": "20"}
REPLICA_ROOM = {
    "max_replication_slots": "20",
    "max_logical_replication_workers": "20",
    "max_worker_processes": "30",
}


class Wired:
    """A primary and a replica between which a good distribution exists already."""

    def __init__(self, ansible: Ansible, primary: Cluster, replica: Cluster) -> None:
        self.ansible = ansible
        self.primary = primary
        self.replica = replica

    def hosts(self, *distributions: Any, **variables: Any) -> dict[str, Any]:
        return playbooks.inventory(self.primary, {"ml-1": self.replica}, [GOOD, *distributions], **variables)

    def refused(self, hosts: dict[str, Any], *arguments: str) -> Run:
        """Distribute in vain, changing nothing on either server."""
        before = snapshot(self.primary), snapshot(self.replica)
        run = self.ansible.run("distribute.yml", hosts, *arguments)
        assert not run.ok, run.output
        assert not run.changed, run.output
        assert differences(before[0], snapshot(self.primary)) == []
        assert differences(before[1], snapshot(self.replica)) == []
        return run


def change(hosts: dict[str, Any], host: str, **variables: Any) -> dict[str, Any]:
    """An inventory in which one host has other variables."""
    changed = copy.deepcopy(hosts)
    for group in changed["all"]["children"].values():
        if host in group["hosts"]:
            group["hosts"][host].update(variables)
    return changed


@pytest.fixture(scope="module")
def wired(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wired]:
    # Room for a second distribution, so that settings are no reason for a change later on.
    with playbooks.cluster(**PRIMARY_ROOM) as primary, playbooks.cluster(**REPLICA_ROOM) as replica:
        playbooks.load_shop(primary)
        both = Wired(Ansible(tmp_path_factory.mktemp("wrong")), primary, replica)
        both.ansible.ok("distribute.yml", both.hosts())
        yield both


def distribution(**parts: Any) -> dict[str, Any]:
    return {"name": "wrong", "database": "shop", "target_database": "ml", "tables": ["public.orders"], **parts}


LONG = "x" * 70
MISTAKES: dict[str, tuple[list[Any], list[str]]] = {
    "entries": (
        [
            distribution(name="a", strategy="turbo"),
            distribution(name="b", tabels=["x"]),
            {"name": "c", "tables": ["x"]},
            distribution(name="d", tables="public.orders"),
            distribution(name="e", snapshots=[]),
            {"database": "shop"},
        ],
        [
            'Distribution "a" has strategy turbo, which doesn\'t exist: use dump, fdw, logical, native or auto.',
            'Distribution "b" has unknown key tabels; known are database, exclude_tables, name,',
            'Distribution "c" has no database',
            'Distribution "d": tables must be a list.',
            'Distribution "e" has snapshots, which only strategy fdw makes.',
            "has no name",
        ],
    ),
    "names and targets": (
        [
            distribution(name=LONG, tables=["public.payments"]),
            distribution(name="n" * 58, tables=["public.products"]),
            distribution(name="one"),
            distribution(name="two", tables=[{"name": "orders", "where": "order_id > 10"}]),
            distribution(name="good", tables=["public.users"]),
        ],
        [
            f'The name of distribution "{LONG}" is too long: "pgml_{LONG}" has 75 bytes and PostgreSQL keeps 63.',
            f'The names of distribution "{"n" * 58}" and host ml-1 are too long',
            'Distributions "one" and "two" both fill table public.orders of database ml: leave it to one of them.',
            'Distribution "good" is listed more than once.',
        ],
    ),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_every_mistake_in_the_distributions_is_told_at_once(wired: Wired, kind: str) -> None:
    wrong, sentences = MISTAKES[kind]
    message = wired.refused(wired.hosts(*wrong)).message
    for sentence in sentences:
        assert sentence in message


@pytest.mark.parametrize("limit", ["prod", "ml-1"])
def test_a_limit_does_not_leave_the_request_unchecked(wired: Wired, limit: str) -> None:
    wrong, sentences = next(iter(MISTAKES.values()))
    assert sentences[0] in wired.refused(wired.hosts(*wrong), "--limit", limit).message


def _without_replicas(wired: Wired) -> dict[str, Any]:
    hosts = wired.hosts()
    del hosts["all"]["children"]["pgml_replicas"]
    return hosts


def _missing_inventory(wired: Wired) -> dict[str, tuple[dict[str, Any], str]]:
    return {
        "replicas": (_without_replicas(wired), "1 hosts in group pgml_primary and 0 in pgml_replicas: put exactly one"),
        "password": (wired.hosts(pgml_distributor_password=None), "pgml_distributor_password is not set"),
        "distributions": (wired.hosts(pgml_distributions=None), "pgml_distributions is empty: list at least one"),
    }


@pytest.mark.sampled(2)
@pytest.mark.parametrize("what", ["replicas", "password", "distributions"])
@pytest.mark.parametrize("playbook", ["distribute.yml", "teardown.yml"])
def test_what_the_inventory_lacks_is_told(wired: Wired, what: str, playbook: str) -> None:
    hosts, sentence = _missing_inventory(wired)[what]
    run = wired.ansible.run(playbook, hosts)
    assert not run.ok and sentence in run.message
    assert set(run.recap) == {"localhost"}


CONNECTIONS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "login password of the primary": (
        "prod",
        {"pgml_login_password": "wrong"},
        ["password authentication failed for user"],
    ),
    "login password of the replica": (
        "ml-1",
        {"pgml_login_password": "wrong"},
        ["password authentication failed for user"],
    ),
    "primary down": ("prod", {"pgml_login_port": 1}, ["onnection refused"]),
    "replica down": ("ml-1", {"pgml_login_port": 1}, ["onnection refused"]),
    "primary out of the replica's reach": (
        "prod",
        {"pgml_endpoint_port": 1},
        ['Can\'t connect to database "shop" at 127.0.0.1:1 as user', "Connection refused", "Check the source options."],
    ),
    "unknown host": (
        "prod",
        {"pgml_endpoint_host": "no-such-host.invalid"},
        ["no-such-host.invalid", "Check the source options."],
    ),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", CONNECTIONS)
def test_a_server_that_cannot_be_reached_is_named(wired: Wired, kind: str) -> None:
    host, variables, sentences = CONNECTIONS[kind]
    run = wired.refused(change(wired.hosts(), host, **variables))
    for sentence in sentences:
        assert sentence in run.message


WRONG: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "unknown table": (
        distribution(tables=["public.ordrs"]),
        "prod",
        ["There is no table public.ordrs in", "did you mean public.orders"],
    ),
    "unknown database": (
        distribution(database="shopp"),
        "prod",
        ['Database "shopp" of distribution wrong does not exist'],
    ),
    "unknown schema": (distribution(tables=[], schemas=["warehous"]), "prod", ["There is no schema warehous in"]),
    "unknown column": (
        distribution(tables=[{"name": "public.orders", "columns": ["order_id", "total"]}]),
        "prod",
        ["public.orders has no column total; it has order_id,"],
    ),
    "no replica identity": (
        distribution(tables=["public.audit_log"]),
        "prod",
        ["UPDATE and DELETE would fail on the primary", "public.audit_log has no replica identity", "primary key"],
    ),
    "a view": (distribution(tables=["public.order_totals"]), "prod", ["public.order_totals is a view"]),
    "unreadable name": (distribution(tables=['public."orders']), "prod", ["can't be read", "double quotes"]),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_distribution_is_refused_before_anything_is_changed(wired: Wired, kind: str) -> None:
    wrong, host, sentences = WRONG[kind]
    run = wired.refused(wired.hosts(wrong))
    assert [failed for failed, _ in run.failures] == [host]
    for sentence in sentences:
        assert sentence in run.message


def test_a_table_of_two_distributions_is_refused_though_it_hides_in_a_schema(wired: Wired) -> None:
    before = snapshot(wired.replica)
    hosts = wired.hosts(distribution(name="hidden", tables=[], schemas=["warehouse"]))
    run = wired.ansible.run("distribute.yml", hosts)
    assert not run.ok
    assert "takes warehouse.stock from subscription pgml_good already: two distributions" in run.message
    assert differences(before, snapshot(wired.replica)) == []
    assert [name for name, _, _ in snapshot(wired.primary)["slots"]] == ["pgml_good_ml_1"]
    wired.ansible.ok("teardown.yml", hosts)
    wired.replica.sql("TRUNCATE public.categories, warehouse.stock", dbname="ml")
    wired.ansible.ok("distribute.yml", wired.hosts())


@pytest.fixture
def all_slots_used(wired: Wired) -> Iterator[None]:
    """Slots that look like our own, left by a distribution that somebody forgot."""
    free = wired.primary.sql(
        "SELECT current_setting('max_replication_slots')::int - count(*) FROM pg_replication_slots"
    )[0][0]
    for number in range(free):
        wired.primary.sql("SELECT pg_create_physical_replication_slot(%s)", [f"pgml_left_{number}"])
    yield
    for number in range(free):
        wired.primary.sql("SELECT pg_drop_replication_slot(%s)", [f"pgml_left_{number}"])


def test_no_free_slot(wired: Wired, all_slots_used: None) -> None:
    hosts = wired.hosts(distribution(target_database="ml3"), pgml_primary_restart=False)
    before = snapshot(wired.primary)["slots"]
    run = wired.ansible.run("distribute.yml", hosts)
    assert not run.ok
    assert "prod: All replication slots are in use" in run.message
    assert "max_replication_slots = 16" in run.message and "pgml_left_0" in run.message
    assert snapshot(wired.primary)["slots"] == before
    assert wired.replica.sql("SELECT subname FROM pg_subscription") == [("pgml_good",)]


def test_another_password_of_the_distributor_is_taken_up(wired: Wired) -> None:
    other = "an other = 'password'"
    hosts = wired.hosts(pgml_distributor_password=Unsafe(other))
    first = wired.ansible.ok("distribute.yml", hosts)
    assert {host for host, _, _ in first.changed} == {"prod", "ml-1"}
    assert not wired.ansible.ok("distribute.yml", hosts).changed
    with closing(wired.primary.connect("shop", "pgml_distributor", other)):
        pass
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        wired.primary.connect("shop", "pgml_distributor", PASSWORD)
    wired.primary.sql("INSERT INTO categories VALUES (100, 1, 'After the change')", dbname="shop")
    wait_for(lambda: count(wired.replica, "ml", "categories") == 17, 20, "the row to arrive")


def test_a_server_that_must_be_restarted_without_permission(tmp_path: Path) -> None:
    with playbooks.cluster(wal_level="replica", max_wal_senders="2") as primary, playbooks.cluster() as replica:
        playbooks.load_shop(primary)
        hosts = playbooks.inventory(primary, {"ml-1": replica}, [GOOD], pgml_primary_restart=None)
        before = snapshot(primary), snapshot(replica)
        run = Ansible(tmp_path).run("distribute.yml", hosts)
        assert not run.ok
        for name, value, need in (("max_wal_senders", "2", "6"), ("wal_level", "replica", "logical")):
            assert (
                f"prod: {name} is {value} and has to be {need}, which takes a restart: run ALTER SYSTEM SET {name} = {need} and "
                "restart the server yourself, or allow it with pgml_primary_restart: true." in run.message
            )
        assert differences(before[0], snapshot(primary)) == []
        assert differences(before[1], snapshot(replica)) == []


OLDER: dict[str, tuple[Callable[[], Any], str]] = {
    "schemas": (lambda: distribution(tables=[], schemas=["warehouse"]), "schemas needs PostgreSQL 15 or later"),
    "where": (
        lambda: distribution(tables=[{"name": "public.orders", "where": "order_id > 1"}]),
        "where needs PostgreSQL 15 or later",
    ),
}


@pytest.mark.parametrize("option", OLDER)
def test_an_option_that_an_older_server_lacks(option: str, tmp_path: Path) -> None:
    older = next((bin_dir for major in (14, 13) if (bin_dir := majors.available().get(major))), None)
    if older is None:
        pytest.skip("no server programs of PostgreSQL 14 or 13")
    wrong, sentence = OLDER[option][0](), OLDER[option][1]
    with playbooks.cluster_of(older) as primary:
        playbooks.load_shop(primary)
        before = snapshot(primary)
        hosts = playbooks.inventory(primary, {"ml-1": primary}, [wrong])
        run = Ansible(tmp_path).run("distribute.yml", hosts)
        assert not run.ok and not run.changed
        assert f"prod: {sentence}" in run.message
        after = snapshot(primary)
        assert after["slots"] == before["slots"] and after["subscriptions"] == before["subscriptions"]
        assert primary.sql("SELECT count(*) FROM pg_publication", dbname="shop") == [(0,)]
