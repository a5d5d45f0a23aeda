# SPDX-License-Identifier: GPL-3.0-or-later
"""A strategy that is chosen, outgrown, and changed by hand, on a replica and on one that takes its data from there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import playbooks
from tests.support.cluster import Cluster
from tests.support.playbooks import Ansible, Run, caught_up, count

pytestmark = [pytest.mark.slow, pytest.mark.sampled(0)]

TABLES = ["public.users", "public.orders"]
SHOP: dict[str, Any] = {"name": "shop", "database": "shop", "target_database": "ml", "tables": TABLES}
STEPS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "chosen": ("distribute.yml", "auto", ()),
    "kept": ("distribute.yml", "auto", ()),
    "outgrown": ("distribute.yml", "auto", ("-e", '{"pgml_strategy_bounds": {"dump": "10 kB"}}')),
    "to be streamed": ("distribute.yml", "logical", ("--check",)),
    "streamed": ("distribute.yml", "logical", ()),
    "still streamed": ("distribute.yml", "logical", ()),
    "compared": ("verify.yml", "logical", ()),
    "to be copied": ("distribute.yml", "dump", ("--check",)),
    "copied": ("distribute.yml", "dump", ()),
    "still copied": ("distribute.yml", "dump", ()),
    "read": ("distribute.yml", "fdw", ()),
    "good": ("status.yml", "fdw", ()),
    "gone": ("teardown.yml", "fdw", ()),
}


class Story:
    """What each step said, and what the servers had after it."""

    def __init__(self, ansible: Ansible, primary: Cluster, replicas: dict[str, Cluster]) -> None:
        self.runs: dict[str, Run] = {}
        self.left: dict[str, dict[str, list[str]]] = {}
        self.rows: dict[str, dict[str, list[int]]] = {}
        for step, (playbook, strategy, arguments) in STEPS.items():
            hosts = playbooks.inventory(primary, replicas, [{**SHOP, "strategy": strategy}])
            hosts["all"]["children"]["pgml_replicas"]["hosts"]["ml-2"]["pgml_upstream"] = "ml-1"
            self.runs[step] = ansible.run(playbook, hosts, *arguments)
            self.left[step] = {name: _wired(server) for name, server in {"prod": primary, **replicas}.items()}
            self.rows[step] = {
                name: [count(server, "ml", table) for table in TABLES] for name, server in replicas.items()
            }
            if step == "streamed":
                primary.sql("UPDATE users SET full_name = 'Somebody Else' WHERE user_id = 1", dbname="shop")
                caught_up(primary)

    def ok(self, step: str) -> Run:
        assert self.runs[step].ok, self.runs[step].output
        return self.runs[step]


def _wired(server: Cluster) -> list[str]:
    dbname = "ml" if "ml" in playbooks.databases(server) else "shop"
    query = (
        "SELECT 'slot ' || slot_name FROM pg_replication_slots UNION ALL SELECT 'publication ' || pubname FROM pg_publication"
        " UNION ALL SELECT 'subscription ' || subname FROM pg_subscription"
        " UNION ALL SELECT 'server ' || srvname FROM pg_foreign_server"
        " UNION ALL SELECT 'replicates' FROM pg_roles WHERE rolname = 'pgml_distributor' AND rolreplication ORDER BY 1"
    )
    return [name for (name,) in server.sql(query, dbname=dbname)]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    ansible = Ansible(tmp_path_factory.mktemp("auto"))
    with playbooks.cluster() as primary, playbooks.cluster() as first, playbooks.cluster() as second:
        playbooks.load_shop(primary)
        yield Story(ansible, primary, {"ml-1": first, "ml-2": second})


def test_a_small_database_is_copied_and_the_reason_told(story: Story) -> None:
    assert "shop comes by dump. The tables take " in story.ok("chosen").output
    assert story.left["chosen"] == {"prod": [], "ml-1": [], "ml-2": []}
    assert not story.ok("kept").changed


def test_what_outgrows_a_bound_is_told_and_stays(story: Story) -> None:
    run = story.ok("outgrown")
    assert not run.changed
    words = " ".join(run.output.split())
    assert "distribution shop" in words and "run distribute" in words
    assert story.left["outgrown"] == story.left["chosen"]


@pytest.mark.parametrize(("check", "step"), [("to be streamed", "streamed"), ("to be copied", "copied")])
def test_check_mode_predicts_a_migration(story: Story, check: str, step: str) -> None:
    """Two parts of a run may each predict a step that is one in the end."""
    predicted, real = set(story.ok(check).changed), set(story.ok(step).changed)
    assert (predicted - real, real - predicted) == (set(), set())


@pytest.mark.parametrize("step", ["kept", "still streamed", "still copied"])
def test_a_second_run_changes_nothing(story: Story, step: str) -> None:
    assert not story.ok(step).changed


def test_streamed_from_replica_to_replica(story: Story) -> None:
    story.ok("compared")
    assert story.left["streamed"] == {
        "prod": ["publication pgml_shop", "replicates", "slot pgml_shop_ml_1"],
        "ml-1": ["publication pgml_shop", "replicates", "slot pgml_shop_ml_2", "subscription pgml_shop"],
        "ml-2": ["subscription pgml_shop"],
    }


def test_the_old_way_is_gone(story: Story) -> None:
    assert story.left["copied"] == {"prod": [], "ml-1": [], "ml-2": []}
    story.ok("read")
    assert story.left["read"] == {"prod": [], "ml-1": ["server shop"], "ml-2": ["server shop"]}
    story.ok("good")
    story.ok("gone")
    assert story.left["gone"] == {"prod": [], "ml-1": [], "ml-2": []}


def test_the_rows_are_there_after_each_step(story: Story) -> None:
    expected = story.rows["chosen"]["ml-1"]
    assert min(expected) > 0
    for step, rows in story.rows.items():
        assert rows == {"ml-1": expected, "ml-2": expected}, step
