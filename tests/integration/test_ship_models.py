# SPDX-License-Identifier: GPL-3.0-or-later
"""From rows of the primary to predictions on three servers: distribute.yml, ship_models.yml and teardown.yml."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from tests.support import pgml, playbooks
from tests.support.cluster import Cluster
from tests.support.models import FEATURE, predicted
from tests.support.pair import Place
from tests.support.playbooks import PASSWORD, Ansible, snapshot

pytestmark = [pytest.mark.slow, pytest.mark.sampled(0)]

RELATION = "public.houses"
DISTRIBUTIONS = [{"name": "shop", "database": "shop", "target_database": "ml", "tables": [RELATION]}]
PREDICTING = ("near", "far")
SERVERS = ("trainer", *PREDICTING)


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Cluster]]:
    with ExitStack() as stack:
        made = {name: stack.enter_context(pgml.cluster(wal_level="logical")) for name in ("prod", *SERVERS)}
        made["prod"].create_database("shop")
        made["prod"].sql("CREATE TABLE houses (x real PRIMARY KEY, y real)", dbname="shop")
        for name in SERVERS:
            pgml.create_database(made[name], "ml")
        pgml.train(made["far"], "ml", "own", 7)
        yield made


def inventory(servers: dict[str, Cluster], **variables: Any) -> dict[str, Any]:
    replicas = {name: servers[name] for name in SERVERS}
    hosts = playbooks.inventory(servers["prod"], replicas, DISTRIBUTIONS, pgml_ship_models=True, **variables)
    # As PostgresML's own container is, on a port of its own.
    hosts["all"]["children"]["pgml_replicas"]["hosts"]["trainer"]["pgml_managed"] = True
    return hosts


def train(servers: dict[str, Cluster], slope: int) -> None:
    """Change all rows on the primary, wait until the trainer has them, and train there."""
    servers["prod"].sql(
        "TRUNCATE houses; INSERT INTO houses SELECT x, %s * x FROM generate_series(1, 40) AS x", [slope], "shop"
    )
    playbooks.caught_up(servers["prod"])
    servers["trainer"].sql(
        f"SELECT pgml.train('price', 'regression', '{RELATION}', 'y', test_sampling => 'last', preprocess => '{{}}')",
        dbname="ml",
    )


def everywhere(servers: dict[str, Cluster]) -> set[float]:
    """What sessions get that are new."""
    return {predicted(Place(servers[name], "ml"), "price") for name in SERVERS}


def test_what_is_trained_on_replicated_rows_is_served_everywhere(servers: dict[str, Cluster], tmp_path: Path) -> None:
    ansible = Ansible(tmp_path)
    hosts = inventory(servers)
    before = {name: snapshot(servers[name]) for name in servers}
    # Nothing is trained yet, and the way to the trainer is opened.
    ansible.ok("distribute.yml", hosts)
    train(servers, 2)
    predicted_run = ansible.ok("ship_models.yml", hosts, "--check")
    run = ansible.ok("ship_models.yml", hosts, "-vvv")
    assert PASSWORD not in run.output
    assert run.changed == predicted_run.changed and len(run.changed) == 2
    assert everywhere(servers) == {2 * FEATURE}
    with ExitStack() as stack:
        pooled = [stack.enter_context(closing(servers[name].connect("ml"))) for name in PREDICTING]

        def cached() -> set[float]:
            return {round(pgml.predict(session, "price", FEATURE), 3) for session in pooled}

        assert cached() == {2 * FEATURE}
        train(servers, 3)
        ansible.ok("ship_models.yml", hosts)
        assert everywhere(servers) == cached() == {3 * FEATURE}
        servers["trainer"].sql("SELECT pgml.deploy('price', 'rollback')", dbname="ml")
        ansible.ok("ship_models.yml", hosts)
        assert everywhere(servers) == cached() == {2 * FEATURE}
    again = ansible.ok("distribute.yml", hosts)
    assert not again.changed, again.output
    assert predicted(Place(servers["far"], "ml"), "own") == 7 * FEATURE
    ansible.ok("teardown.yml", hosts, "-e", "pgml_teardown_drop=true")
    for name in PREDICTING:
        with pytest.raises(psycopg2.Error):
            predicted(Place(servers[name], "ml"), "price")
    assert predicted(Place(servers["far"], "ml"), "own") == 7 * FEATURE
    after = {name: snapshot(servers[name]) for name in servers}
    for name, parts in before.items():
        for part in ("globals", "schemas", "slots", "subscriptions", "pg_hba.conf"):
            assert after[name][part] == parts[part], (name, part)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"pgml_trainer": "nobody"}, "Models go from nobody to "),
        ({"pgml_ship_to": ["trainer"]}, "Models go from trainer to trainer: let pgml_trainer be one host"),
        ({"pgml_ship_to": []}, "Models go from trainer to no host: "),
        ({"pgml_shipper_password": ""}, "pgml_shipper_password is not set, or not a string"),
    ],
)
def test_a_request_that_cant_work(
    servers: dict[str, Cluster], tmp_path: Path, variables: dict[str, Any], message: str
) -> None:
    run = Ansible(tmp_path).run("ship_models.yml", inventory(servers, **variables))
    assert not run.ok and message in run.message, run.output
