# SPDX-License-Identifier: GPL-3.0-or-later
"""verify.yml looks at all distributions of all replicas, changes nothing, and fails with the rows that differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import playbooks
from tests.support.cluster import Cluster
from tests.support.playbooks import Ansible, Run, caught_up, differences, snapshot

pytestmark = pytest.mark.slow

LIVE = {
    "name": "shop",
    "database": "shop",
    "target_database": "ml",
    "tables": [
        {"name": "public.users", "columns": ["user_id", "email", "country"]},
        {"name": "public.products", "where": "product_id % 3 <> 0"},
        'public."Order Lines"',
        "public.page_views",
    ],
}
COPIED = {
    "name": 'Été "26"',
    "database": "shop",
    "target_database": "copies",
    "strategy": "dump",
    "schemas": ["warehouse"],
    "tables": [{"name": "public.payments", "where": "order_id > 5", "columns": ["payment_id", "order_id", "amount"]}],
}
CHECKER_PASSWORD = "the {{ checker's }} own"


class Servers:
    def __init__(self, primary: Cluster, replicas: dict[str, Cluster], ansible: Ansible) -> None:
        self.primary = primary
        self.replicas = replicas
        self._ansible = ansible

    def run(self, playbook: str, *arguments: str, **variables: Any) -> Run:
        hosts = playbooks.inventory(self.primary, self.replicas, [LIVE, COPIED], **variables)
        return self._ansible.run(playbook, hosts, *arguments)

    def verify(self, *arguments: str, **variables: Any) -> Run:
        """Compare, and change nothing anywhere."""
        before = self._look()
        run = self.run("verify.yml", *arguments, **variables)
        after = self._look()
        assert {name: differences(before[name], after[name]) for name in before} == {name: [] for name in before}
        assert not run.changed and all(counts["changed"] == 0 for counts in run.recap.values()), run.output
        return run

    def _look(self) -> dict[str, dict[str, Any]]:
        return {name: snapshot(server) for name, server in {"prod": self.primary, **self.replicas}.items()}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with playbooks.cluster() as primary, playbooks.cluster() as first, playbooks.cluster() as second:
        playbooks.load_shop(primary)
        made = Servers(primary, {"ml-1": first, "ml-2": second}, Ansible(tmp_path_factory.mktemp("ansible")))
        run = made.run("distribute.yml")
        assert run.ok, run.output
        caught_up(primary)
        yield made


def test_equal_replicas_are_found_equal(servers: Servers) -> None:
    for arguments in ((), ("--check",)):
        run = servers.verify(*arguments)
        assert run.ok, run.output
        assert run.output.count("shop: 10 tables have the same rows on both sides, ") == 2
        assert run.output.count("tables have the same rows on both sides, ") == 4


def test_all_differences_are_told_before_it_fails(servers: Servers) -> None:
    first, second = servers.replicas.values()
    first.sql(
        "UPDATE users SET country = 'XX' WHERE user_id = 7; DELETE FROM products WHERE product_id = 4", dbname="ml"
    )
    first.sql("DELETE FROM payments WHERE payment_id = (SELECT min(payment_id) FROM payments)", dbname="copies")
    second.sql("INSERT INTO users VALUES (-1, 'x@example.org', 'XX')", dbname="ml")
    gone = servers.primary.sql("SELECT min(payment_id) FROM payments WHERE order_id > 5", dbname="shop")[0][0]
    try:
        run = servers.verify()
    finally:
        back = servers.primary.sql("SELECT country FROM users WHERE user_id = 7", dbname="shop")[0]
        first.sql("UPDATE users SET country = %s WHERE user_id = 7", back, dbname="ml")
        second.sql("DELETE FROM users WHERE user_id = -1", dbname="ml")
    messages = dict(run.failures)
    assert not run.ok and set(messages) == {"ml-1", "ml-2"}, run.output
    assert 'Distribution "shop" on ml-1: 2 of 10 tables differ: ' in messages["ml-1"]
    assert "public.users on the target has other values in (user_id=7)." in messages["ml-1"]
    assert "public.products on the target lacks (product_id=4)." in messages["ml-1"]
    assert 'Distribution "Été "26"" on ml-1: 1 of 2 tables differs: public.payments (1 missing).' in messages["ml-1"]
    assert f"public.payments on the target lacks (payment_id={gone})." in messages["ml-1"]
    assert messages["ml-2"] == (
        'Distribution "shop" on ml-2: 1 of 10 tables differs: public.users (1 extra). '
        "public.users on the target has too many of (user_id=-1)."
    )


def test_what_can_not_be_compared_is_told_and_the_rest_is(servers: Servers) -> None:
    servers.replicas["ml-1"].sql("DELETE FROM products WHERE product_id = 4", dbname="ml")
    servers.replicas["ml-2"].sql("ALTER SUBSCRIPTION pgml_shop DISABLE", dbname="ml")
    try:
        run = servers.verify()
    finally:
        servers.replicas["ml-2"].sql("ALTER SUBSCRIPTION pgml_shop ENABLE", dbname="ml")
    messages = dict(run.failures)
    assert 'Distribution "shop" on ml-2: Subscription pgml_shop is disabled' in messages["ml-2"]
    assert "public.products on the target lacks (product_id=4)." in messages["ml-1"]
    assert "Été" in run.output and 'Distribution "Été' not in messages["ml-2"]


def test_another_role_may_compare_with_a_lock(servers: Servers) -> None:
    run = servers.verify("--limit", "ml-2", pgml_verify_method="fence")
    assert "may not lock" in run.message and "pgml_distributor" in run.message and not run.ok
    servers.primary.sql("CREATE ROLE checker LOGIN SUPERUSER PASSWORD %s", [CHECKER_PASSWORD])
    variables = {
        "pgml_verify_method": "fence",
        "pgml_verify_user": "checker",
        "pgml_verify_password": playbooks.Unsafe(CHECKER_PASSWORD),
    }
    run = servers.verify("--limit", "ml-2", "-vvv", **variables)
    assert run.ok, run.output
    for secret in (CHECKER_PASSWORD, playbooks.PASSWORD, servers.primary.password):
        assert secret not in run.output
