# SPDX-License-Identifier: GPL-3.0-or-later
"""distribute.yml over replicas that are wired already: what is as it should be is left alone, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import playbooks
from tests.support.cluster import Cluster
from tests.support.pair import wait_for
from tests.support.playbooks import Ansible, Run

pytestmark = pytest.mark.slow

TABLES = """
CREATE TABLE users (id int PRIMARY KEY, name text);
CREATE INDEX by_name ON users (name);
CREATE TABLE orders (id int PRIMARY KEY);
INSERT INTO users VALUES (1, 'one');
"""
REPLICAS = ("ml-1", "ml-2")


class Wired:
    """A primary and two replicas that have been distributed to."""

    def __init__(self, ansible: Ansible, primary: Cluster, replicas: dict[str, Cluster]) -> None:
        self.primary, self.replicas = primary, replicas
        self._ansible = ansible

    def run(self, *arguments: str, tables: tuple[str, ...] = ("public.users", "public.orders")) -> Run:
        shop = {"name": "shop", "database": "shop", "target_database": "ml", "tables": list(tables)}
        return self._ansible.run("distribute.yml", playbooks.inventory(self.primary, self.replicas, [shop]), *arguments)

    def ok(self, *arguments: str, **distribution: Any) -> Run:
        run = self.run(*arguments, **distribution)
        assert run.ok, run.output
        return run

    def subscribed(self, name: str) -> list[str]:
        query = "SELECT srrelid::regclass::text FROM pg_subscription_rel ORDER BY 1"
        return [table for (table,) in self.replicas[name].sql(query, dbname="ml")]


def seen_to(run: Run) -> set[str]:
    """The hosts that a role has worked on."""
    hosts, task = set(), ""
    for line in run.output.splitlines():
        if line.startswith("TASK ["):
            task = line
        elif line.startswith(("ok: [", "changed: [", "fatal: [")) and "postgresml.distributed." in task:
            hosts.add(line.partition("[")[2].partition("]")[0])
    return hosts


@pytest.fixture(scope="module")
def wired(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wired]:
    with playbooks.cluster() as primary, playbooks.cluster() as first, playbooks.cluster() as second:
        primary.create_database("shop")
        primary.execute_script(TABLES, "shop")
        wired = Wired(Ansible(tmp_path_factory.mktemp("settled")), primary, {"ml-1": first, "ml-2": second})
        assert seen_to(wired.ok()) == {"prod", *REPLICAS}
        yield wired


def test_settled_replicas_are_left_alone(wired: Wired) -> None:
    for arguments in ((), ("--check",)):
        run = wired.ok(*arguments)
        assert not run.changed and seen_to(run) == {"prod"}


def test_names_that_the_look_does_not_know_are_left_to_the_roles(wired: Wired) -> None:
    run = wired.run("--check", "--extra-vars", "pgml_logical_publication=other")
    assert ("prod", "postgresml.distributed.pgml_logical : Publish the distribution shop", "") in run.changed
    assert seen_to(run) == {"prod", *REPLICAS}


def test_the_replica_that_lacks_something_is_seen_to(wired: Wired) -> None:
    wired.replicas["ml-2"].sql("DROP INDEX by_name", dbname="ml")
    predicted, run = wired.ok("--check"), wired.ok()
    assert predicted.changed == run.changed and {host for host, _task, _item in run.changed} == {"ml-2"}
    assert seen_to(run) == {"prod", "ml-2"}
    assert wired.replicas["ml-2"].sql("SELECT to_regclass('by_name')::text", dbname="ml") == [("by_name",)]


def test_tables_that_leave_and_come_back_reach_the_subscriptions(wired: Wired) -> None:
    run = wired.ok(tables=("public.users",))
    assert {host for host, _task, _item in run.changed} == {"prod", *REPLICAS}
    assert [wired.subscribed(name) for name in REPLICAS] == [["users"]] * 2
    wired.primary.sql("INSERT INTO orders VALUES (1)", dbname="shop")
    wired.ok()
    assert [wired.subscribed(name) for name in REPLICAS] == [["orders", "users"]] * 2
    for name in REPLICAS:
        rows = "SELECT count(*) = 1 FROM orders"
        wait_for(lambda: wired.replicas[name].sql(rows, dbname="ml") == [(True,)], 30, "the row")  # noqa: B023
    assert not wired.ok().changed


def test_a_slot_that_is_gone_is_told_of_its_replica_alone(wired: Wired) -> None:
    wired.replicas["ml-1"].sql("ALTER SUBSCRIPTION pgml_shop DISABLE", dbname="ml")
    slot = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'pgml_shop_ml_1' AND active"
    wait_for(lambda: wired.primary.sql(slot) == [(0,)])
    wired.primary.sql("SELECT pg_drop_replication_slot('pgml_shop_ml_1')")
    run = wired.run()
    assert not run.ok and {host for host, _message in run.failures} == {"ml-1"}
    assert 'Slot "pgml_shop_ml_1" of subscription pgml_shop is gone' in run.message
