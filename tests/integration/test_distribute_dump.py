# SPDX-License-Identifier: GPL-3.0-or-later
"""distribute.yml and teardown.yml with strategy dump: the first replica from the primary, the others from the first."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support import playbooks
from tests.support.cluster import Cluster
from tests.support.playbooks import SHOP_TABLES, Ansible, Run, differences, snapshot

# A Molecule scenario tells of it in short.
pytestmark = [pytest.mark.slow, pytest.mark.sampled(0)]

AWKWARD = 'We.ird, "d=b" é'
AWKWARD_TARGET = "Ziel, 'd=b'.Ü"
AWKWARD_TABLES = ('"Sch.ema"."Ta""ble, ü"', 'public."it\'s {{ here }} 100%"')
AWKWARD_SQL = """
CREATE SCHEMA "Sch.ema";
CREATE TABLE "Sch.ema"."Ta""ble, ü" ("Id.1" int PRIMARY KEY, secret int NOT NULL);
INSERT INTO "Sch.ema"."Ta""ble, ü" SELECT i, i FROM generate_series(1, 50) AS i;
CREATE TABLE public."it's {{ here }} 100%" ("%s" int, "{{ x }}" text);
INSERT INTO public."it's {{ here }} 100%" VALUES (1, 'one');
"""
SHOP = {
    "name": "shop",
    "database": "shop",
    "target_database": "ml",
    "strategy": "dump",
    "schemas": ["public", "warehouse"],
    "exclude_tables": ["audit_log"],
}
WEIRD = {
    "name": 'Été "26"/x',
    "database": AWKWARD,
    "target_database": AWKWARD_TARGET,
    "strategy": "dump",
    "tables": [
        {"name": AWKWARD_TABLES[0], "columns": ["Id.1"], "where": '"Id.1" > 3'},
        playbooks.Unsafe(AWKWARD_TABLES[1]),
    ],
}
PLAIN = {**WEIRD, "tables": [playbooks.Unsafe(AWKWARD_TABLES[1])]}
LOG = {"name": "log", "database": "crm", "target_database": "crm", "tables": ["events"]}
CHANGE = "UPDATE users SET full_name = full_name || '.' WHERE user_id = 1"
DROP = ("-e", "pgml_teardown_drop=true")
NAMES = ("ml-1", "ml-2")


class Step(NamedTuple):
    playbook: str
    arguments: tuple[str, ...] = ()
    fan_out: str | None = None
    change: bool = False
    distributions: tuple[Any, ...] = (SHOP, WEIRD)


STEPS = {
    "first check": Step("distribute.yml", ("--check", "--diff")),
    "first run": Step("distribute.yml"),
    "second run": Step("distribute.yml"),
    "changed check": Step("distribute.yml", ("--check", "--diff"), change=True),
    "changed run": Step("distribute.yml"),
    "without the first": Step("distribute.yml", ("--limit", "ml-2")),
    "archive check": Step("distribute.yml", ("--check",), "archive", change=True, distributions=(SHOP, PLAIN)),
    "archive run": Step("distribute.yml", (), "archive", distributions=(SHOP, PLAIN)),
    "archive again": Step("distribute.yml", ("--diff",), "archive", distributions=(SHOP, PLAIN)),
    "teardown check": Step("teardown.yml", ("--check",)),
    "teardown": Step("teardown.yml"),
    "second teardown": Step("teardown.yml"),
    "mixture": Step("distribute.yml", (), "primary", distributions=(SHOP, LOG)),
    "teardown with drop": Step("teardown.yml", DROP, distributions=(SHOP, LOG)),
}


class Story:
    """What each step said, and how each server was before the first step and after every one."""

    def __init__(self, ansible: Ansible, primary: Cluster, replicas: dict[str, Cluster]) -> None:
        self.servers = {"prod": primary, **replicas}
        self.archives = {name: ansible.directory / name for name in replicas}
        for path in self.archives.values():
            path.mkdir()
        self.runs: dict[str, Run] = {}
        self.after: dict[str, dict[str, Any]] = {"nothing": self._look()}
        self.rows: dict[str, dict[str, Any]] = {}
        self.copies: dict[str, int] = {}
        for name, step in STEPS.items():
            if step.change:
                primary.sql(CHANGE, dbname="shop")
            hosts = playbooks.inventory(primary, replicas, step.distributions, pgml_dump_fan_out=step.fan_out)
            for replica, variables in hosts["all"]["children"]["pgml_replicas"]["hosts"].items():
                variables["pgml_dump_archives"] = str(self.archives[replica])
            seen = len(primary.log())
            self.runs[name] = ansible.run(step.playbook, hosts, *step.arguments)
            self.copies[name] = len(re.findall(r"COPY .*\busers\b.* TO STDOUT", primary.log()[seen:], re.IGNORECASE))
            self.after[name] = self._look()
            self.rows[name] = {name: _rows(server) for name, server in self.servers.items()}

    def _look(self) -> dict[str, Any]:
        archives = {name: sorted(path.iterdir()) for name, path in self.archives.items()}
        return {name: {**snapshot(server), "archives": archives.get(name)} for name, server in self.servers.items()}

    def changed_between(self, step: str, later: str) -> dict[str, list[str]]:
        """In which parts each server differs between the ends of two steps."""
        return {name: differences(self.after[step][name], self.after[later][name]) for name in self.servers}

    def ok(self, step: str) -> Run:
        assert self.runs[step].ok, self.runs[step].output
        return self.runs[step]


def _rows(server: Cluster) -> dict[str, str]:
    """A fingerprint of the rows of each table, of those that exist."""
    wanted = [("shop", table) for table in SHOP_TABLES] + [("ml", table) for table in SHOP_TABLES]
    wanted += [(AWKWARD, table) for table in AWKWARD_TABLES] + [(AWKWARD_TARGET, table) for table in AWKWARD_TABLES]
    existing = playbooks.databases(server)
    return {
        table: server.sql(f"SELECT md5(string_agg(t::text, ',' ORDER BY t::text)) FROM {table} AS t", dbname=dbname)[0][
            0
        ]
        for dbname, table in wanted
        if dbname in existing and server.sql("SELECT to_regclass(%s)", [table], dbname=dbname)[0][0]
    }


@pytest.fixture(scope="module")
def primary() -> Iterator[Cluster]:
    with playbooks.cluster(wal_level="replica", log_statement="all") as server:
        playbooks.load_shop(server)
        server.create_database(AWKWARD)
        server.execute_script(AWKWARD_SQL, AWKWARD)
        server.create_database("crm")
        server.execute_script("CREATE TABLE events (id int PRIMARY KEY); INSERT INTO events VALUES (1), (2)", "crm")
        yield server


@pytest.fixture(scope="module")
def story(primary: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with playbooks.cluster() as first, playbooks.cluster() as second:
        ansible = Ansible(tmp_path_factory.mktemp("dump"))
        yield Story(ansible, primary, {"ml-1": first, "ml-2": second})


NOTHING: dict[str, list[str]] = {"prod": [], "ml-1": [], "ml-2": []}


@pytest.mark.parametrize("step", ["first", "changed", "archive", "teardown"])
def test_check_mode_changes_nothing_and_predicts(story: Story, step: str) -> None:
    run = "teardown" if step == "teardown" else f"{step} run"
    predicted, real = story.ok(f"{step} check").changed, story.ok(run).changed
    before = list(STEPS)[list(STEPS).index(f"{step} check") - 1] if step != "first" else "nothing"
    assert story.changed_between(before, f"{step} check") == NOTHING
    assert (predicted - real, real - predicted) == ({}, {})
    assert {"ml-1", "ml-2"} <= {host for host, _, _ in real}


@pytest.mark.parametrize(("first", "again"), [("first run", "second run"), ("archive run", "archive again")])
def test_a_second_run_changes_nothing(story: Story, first: str, again: str) -> None:
    assert {counters["changed"] for counters in story.ok(again).recap.values()} == {0}
    assert story.changed_between(first, again) == NOTHING


@pytest.mark.parametrize("step", ["first run", "changed run", "archive run", "mixture"])
def test_the_replicas_have_the_rows_of_the_primary(story: Story, step: str) -> None:
    story.ok(step)
    rows = story.rows[step]
    filtered = AWKWARD_TABLES[0]
    expected = {table: value for table, value in rows["prod"].items() if table != filtered}
    assert len(expected) == len(SHOP_TABLES) + 1
    for name in NAMES:
        assert {table: value for table, value in rows[name].items() if table != filtered} == expected
        assert rows[name][filtered] == rows["ml-1"][filtered] != rows["prod"][filtered]


def test_rows_and_columns_and_tables_that_are_not_asked_for_stay_away(story: Story) -> None:
    story.ok("first run")
    for name in NAMES:
        schemas = story.after["first run"][name]["schemas"]
        assert "secret" not in schemas[AWKWARD_TARGET] and '"Id.1" integer' in schemas[AWKWARD_TARGET]
        assert "CREATE TABLE public.audit_log" not in schemas["ml"]


def test_the_primary_is_only_read(story: Story) -> None:
    """Its settings stay as they are, it is not restarted, and who reads it may not replicate."""
    changed = set(story.changed_between("nothing", "archive run")["prod"])
    assert changed == {"globals", "schemas", "pg_hba.conf"}
    (role,) = [line for line in story.after["first run"]["prod"]["globals"].splitlines() if "ALTER ROLE pgml" in line]
    assert "NOREPLICATION" in role and "NOSUPERUSER" in role


def test_the_primary_is_read_once(story: Story) -> None:
    assert {step: number for step, number in story.copies.items() if number} == {
        "first run": 1,
        "changed run": 1,
        "archive run": 1,
        "mixture": 2,
    }


def test_the_first_replica_is_open_to_the_others_only(story: Story) -> None:
    after = story.after["first run"]
    assert 'host "ml",' in after["ml-1"]["pg_hba.conf"].decode() and "pgml_distributor" in after["ml-1"]["globals"]

    assert "pgml_distributor" not in after["ml-2"]["globals"] and b"pgml" not in after["ml-2"]["pg_hba.conf"]


def test_a_run_without_the_first_replica_says_what_to_do(story: Story) -> None:
    run = story.runs["without the first"]
    assert [host for host, _ in run.failures] == ["ml-2"]
    assert "ml-1 was not filled in this run" in run.message and "pgml_dump_fan_out=primary" in run.message


def test_an_unknown_way_to_fan_out_is_refused(story: Story, primary: Cluster, tmp_path: Path) -> None:
    hosts = playbooks.inventory(primary, {"ml-1": story.servers["ml-1"]}, [SHOP], pgml_dump_fan_out="sideways")
    run = Ansible(tmp_path).run("distribute.yml", hosts)
    assert run.message == "pgml_dump_fan_out is sideways; use replica, archive or primary."


def test_archives_are_everybodys_own(story: Story) -> None:
    names = [path.name for path in story.after["archive run"]["ml-1"]["archives"]]
    assert names == ["pgml_%C3%89t%C3%A9%20%2226%22%2Fx", "pgml_shop"]
    assert [path.name for path in story.after["archive run"]["ml-2"]["archives"]] == names
    assert {path.stat().st_mode & 0o77 for path in story.archives["ml-2"].parent.glob("ml-?/*")} <= {0}


def test_teardown_leaves_nothing_but_the_tables(story: Story) -> None:
    story.ok("teardown")
    assert story.changed_between("nothing", "teardown")["prod"] == []
    assert story.rows["teardown"] == story.rows["archive run"]
    for name in NAMES:
        after, before = story.after["teardown"][name], story.after["nothing"][name]
        assert [part for part in differences(before, after) if part != "schemas"] == []
        assert "pgml" not in "".join(after["schemas"].values())
    assert not story.ok("second teardown").changed


def test_both_strategies_go_together(story: Story) -> None:
    story.ok("mixture")
    after = story.after["mixture"]
    assert [name for name, _, _ in after["prod"]["slots"]] == ["pgml_log_ml_1", "pgml_log_ml_2"]
    assert "pgml_distributor" not in after["ml-1"]["globals"]
    assert " REPLICATION" in next(x for x in after["prod"]["globals"].splitlines() if "ALTER ROLE pgml" in x)


def test_teardown_drops_the_tables_on_demand(story: Story) -> None:
    story.ok("teardown with drop")
    for name in NAMES:
        there = story.rows["teardown with drop"][name]
        assert not set(there) & set(SHOP_TABLES)
    assert story.after["teardown with drop"]["prod"]["slots"] == []
