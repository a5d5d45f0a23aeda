# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers that were one server once: restored backups, copied machines, images with a cluster in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import playbooks
from tests.support.cluster import Cluster
from tests.support.playbooks import Ansible, count, inventory

pytestmark = pytest.mark.slow

DUMP = [{"name": "dump", "database": "shop", "target_database": "copy", "strategy": "dump", "tables": ["public.users"]}]
DISTRIBUTION = [
    {"name": "shop", "database": "shop", "strategy": "logical", "tables": ["public.users", "public.orders"]}
]


@pytest.fixture(scope="module")
def clones() -> Iterator[list[Cluster]]:
    """A server with a shop, and two copies of it from which the shop's rows are gone."""
    with ExitStack() as stack:
        original = stack.enter_context(playbooks.cluster())
        playbooks.load_shop(original)
        copies = [original.clone(), original.clone()]
        for server in (original, *copies):
            stack.enter_context(server)
        for copy in copies:
            copy.sql("TRUNCATE users, orders CASCADE", dbname="shop")
        identifiers = {
            server.sql("SELECT system_identifier FROM pg_control_system()")[0] for server in (original, *copies)
        }
        assert len(identifiers) == 1
        yield [original, *copies]


@pytest.mark.sampled(0)
def test_a_restored_backup_of_the_primary_may_be_its_replica(clones: list[Cluster], tmp_path: Path) -> None:
    primary, replica, _ = clones
    ansible = Ansible(tmp_path)
    hosts = inventory(primary, {"restored": replica}, DISTRIBUTION)
    ansible.ok("distribute.yml", hosts)
    assert count(replica, "shop", "users") == count(primary, "shop", "users") > 0
    ansible.ok("teardown.yml", hosts)
    assert primary.sql("SELECT slot_name FROM pg_replication_slots") == []


def test_replicas_are_no_clones_of_one_another(clones: list[Cluster], tmp_path: Path) -> None:
    """The slots of their first copies would have the same names on the primary, and each would drop the other's."""
    primary, *replicas = clones
    run = Ansible(tmp_path).run(
        "distribute.yml", inventory(primary, dict(zip(("a", "b"), replicas, strict=True)), DISTRIBUTION)
    )
    assert not run.ok
    assert "a: This host and b were cloned from one cluster" in run.message and not run.changed
    for replica in replicas:
        assert replica.sql("SELECT subname FROM pg_subscription") == []


@pytest.mark.sampled(0)
def test_dumps_have_no_slots_and_so_go_to_clones(clones: list[Cluster], tmp_path: Path) -> None:
    primary, *replicas = clones
    hosts = inventory(primary, dict(zip(("a", "b"), replicas, strict=True)), DUMP)
    ansible = Ansible(tmp_path)
    ansible.ok("distribute.yml", hosts)
    for replica in replicas:
        assert count(replica, "copy", "users") == count(primary, "shop", "users") > 0
    ansible.ok("teardown.yml", hosts)


def test_two_hosts_that_lead_to_one_server_are_no_clones(clones: list[Cluster], tmp_path: Path) -> None:
    replica = clones[1]
    ansible = Ansible(tmp_path)
    prepare = {
        "include_role": {"name": "postgresml.distributed.pgml_replica"},
        "vars": {
            "pgml_replica_login": playbooks.login(replica),
            "pgml_replica_become_user": "",
            "pgml_replica_subscriptions": ["pgml_shop"],
        },
    }
    site = ansible.write("site.yml", [{"hosts": "all", "gather_facts": False, "tasks": [prepare]}])
    hosts = {name: playbooks.host(replica) for name in ("this", "that")}
    ansible.ok(site, {"all": {"hosts": hosts}})
