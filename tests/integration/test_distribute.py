# SPDX-License-Identifier: GPL-3.0-or-later
"""distribute.yml and teardown.yml from a virgin primary to replicas and back again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import playbooks
from tests.support.cluster import Cluster, kill_tree
from tests.support.pair import wait_for
from tests.support.playbooks import SHOP_TABLES, Ansible, Run, count, differences, snapshot

pytestmark = pytest.mark.slow

AWKWARD = 'We.ird, "d=b" é'
AWKWARD_TARGET = "Ziel, 'd=b'.Ü"
AWKWARD_TABLES = ('"Sch.ema"."Ta""ble, ü"', '"Ünï, x"."semi;colon--"', 'public."it\'s {{ here }} 100%"')
AWKWARD_SQL = '''
CREATE SCHEMA "Sch.ema";
CREATE SCHEMA "Ünï, x";
CREATE TABLE "Sch.ema"."Ta""ble, ü" ("Id.1" int PRIMARY KEY, "Wert, ""x""" text, "naïve col" text, secret int NOT NULL);
INSERT INTO "Sch.ema"."Ta""ble, ü" SELECT i, 'w' || i, 'n', i FROM generate_series(1, 50) AS i;
CREATE TABLE "Ünï, x"."semi;colon--" ("a b" text, "C'd" int, PRIMARY KEY ("a b", "C'd"));
INSERT INTO "Ünï, x"."semi;colon--" VALUES ('a', 1), ('B "b"', 2);
CREATE TABLE public."it's {{ here }} 100%" ("%s" int PRIMARY KEY, "{{ x }}" text);
INSERT INTO public."it's {{ here }} 100%" VALUES (1, 'one');
'''
DISTRIBUTIONS = [
    {"name": "shop", "database": "shop", "target_database": "ml", "strategy": "logical", "tables": SHOP_TABLES},
    {
        "name": 'Été "26".x',
        "database": AWKWARD,
        "target_database": AWKWARD_TARGET,
        "tables": [
            {
                "name": AWKWARD_TABLES[0],
                "columns": ["Id.1", 'Wert, "x"', "naïve col"],
                "where": '"Id.1" > 3',
            },
            AWKWARD_TABLES[1],
            playbooks.Unsafe(AWKWARD_TABLES[2]),
        ],
    },
]
LOADED = "SELECT pg_conf_load_time() > (pg_stat_file(current_setting('hba_file'))).modification"
DROP = ("-e", "pgml_teardown_drop=true")
STEPS: dict[str, tuple[str, ...]] = {
    "first check": ("distribute.yml", "--check", "--diff"),
    "first run": ("distribute.yml",),
    "second run": ("distribute.yml",),
    "teardown check": ("teardown.yml", "--check"),
    "teardown": ("teardown.yml",),
    "second teardown": ("teardown.yml",),
    "onto filled tables": ("distribute.yml",),
    "teardown with drop": ("teardown.yml", *DROP),
    "anew": ("distribute.yml",),
    "last check": ("distribute.yml", "--check", "--diff"),
}


class Story:
    """What each step said, and how each server was before the first step and after every one.

    A step is taken, after those before it, when a test first asks for it.
    """

    def __init__(self, ansible: Ansible, primary: Cluster, replicas: dict[str, Cluster]) -> None:
        self.servers = {"prod": primary, **replicas}
        self.runs: dict[str, Run] = {}
        self.after: dict[str, dict[str, Any]] = {"nothing": self._look()}
        self.hba_loaded: dict[str, bool] = {}
        self.rows: dict[str, dict[str, Any]] = {}
        self._ansible = ansible
        self._hosts = playbooks.inventory(primary, replicas, DISTRIBUTIONS)
        self._steps = iter(STEPS.items())

    def taken(self, step: str) -> Run:
        """The run of a step."""
        while step not in self.runs:
            name, (playbook, *arguments) = next(self._steps)
            self.runs[name] = self._ansible.run(playbook, self._hosts, *arguments)
            self.after[name] = self._look()
            self.hba_loaded[name] = self.servers["prod"].sql(LOADED)[0][0]
            self.rows[name] = {host: _rows(server) for host, server in self.servers.items() if host != "prod"}
        return self.runs[step]

    def _look(self) -> dict[str, Any]:
        return {name: snapshot(server) for name, server in self.servers.items()}

    def changed_between(self, step: str, later: str) -> dict[str, list[str]]:
        """In which parts each server differs between the ends of two steps."""
        return {name: differences(self.after[step][name], self.after[later][name]) for name in self.servers}

    def ok(self, step: str) -> Run:
        run = self.taken(step)
        assert run.ok, run.output
        return run


def _rows(server: Cluster) -> dict[str, int]:
    """How many rows a few of the target's tables hold, of those that exist."""
    targets = [("ml", table) for table in SHOP_TABLES] + [(AWKWARD_TARGET, table) for table in AWKWARD_TABLES]
    existing = playbooks.databases(server)
    return {
        table: count(server, dbname, table)
        for dbname, table in targets
        if dbname in existing and server.sql("SELECT to_regclass(%s)", [table], dbname=dbname)[0][0]
    }


@pytest.fixture(scope="module")
def primary() -> Iterator[Cluster]:
    with playbooks.cluster(wal_level="replica") as server:
        playbooks.load_shop(server)
        server.create_database(AWKWARD)
        server.execute_script(AWKWARD_SQL, AWKWARD)
        yield server


@pytest.fixture(scope="module")
def story(primary: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with playbooks.cluster() as first, playbooks.cluster() as second:
        ansible = Ansible(tmp_path_factory.mktemp("distribute"))
        yield Story(ansible, primary, {"ml-1": first, "ml-2": second})


NOTHING: dict[str, list[str]] = {"prod": [], "ml-1": [], "ml-2": []}


def test_check_mode_changes_nothing(story: Story) -> None:
    story.ok("first check")
    assert story.changed_between("nothing", "first check") == NOTHING
    assert story.rows["first check"] == {"ml-1": {}, "ml-2": {}}


def test_check_mode_predicts_what_changes(story: Story) -> None:
    predicted, real = story.ok("first check").changed, story.ok("first run").changed
    assert (predicted - real, real - predicted) == ({}, {})
    assert {host for host, _, _ in real} == {"prod", "ml-1", "ml-2"}
    assert any("Restart" in task for _, task, _ in real)


def test_all_rows_arrive_on_every_replica(story: Story, primary: Cluster) -> None:
    story.ok("first run")
    expected = {table: count(primary, "shop", table) for table in SHOP_TABLES}
    expected |= {table: count(primary, AWKWARD, table) for table in AWKWARD_TABLES}
    expected[AWKWARD_TABLES[0]] -= 3
    assert story.rows["first run"] == {"ml-1": expected, "ml-2": expected}


def test_the_primary_gets_what_it_needs_and_no_more(story: Story) -> None:
    story.ok("first run")
    before, after = story.after["nothing"]["prod"], story.after["first run"]["prod"]
    assert [name for name, _, _ in after["slots"]] == [
        "pgml__t___26__x_ml_1",
        "pgml__t___26__x_ml_2",
        "pgml_shop_ml_1",
        "pgml_shop_ml_2",
    ]
    new_roles = set(after["globals"].splitlines()) - set(before["globals"].splitlines())
    assert len([line for line in new_roles if line.startswith("CREATE ROLE")]) == 1
    assert any("PASSWORD 'SCRAM-SHA-256$" in line for line in new_roles)
    lines = after["pg_hba.conf"].decode().splitlines()
    added = [line for line in lines if line and line not in before["pg_hba.conf"].decode()]
    assert [line for line in added if not line.startswith("#")] == [
        'host "shop","We.ird, ""d=b"" é" "pgml_distributor" 127.0.0.1/32 scram-sha-256'
    ]
    assert after["pg_hba.conf's mode"] == before["pg_hba.conf's mode"]
    assert after["data"] == before["data"]


def test_columns_that_are_not_listed_stay_away(story: Story) -> None:
    story.ok("first run")
    dump = story.after["first run"]["ml-1"]["schemas"][AWKWARD_TARGET]
    assert '"naïve col" text' in dump
    assert "secret integer" not in dump


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("step", "since"), [("second run", "first run"), ("last check", "anew")])
def test_a_second_run_changes_nothing(story: Story, step: str, since: str) -> None:
    run = story.ok(step)
    assert {host: counters["changed"] for host, counters in run.recap.items()} == dict.fromkeys(
        ["localhost", "prod", "ml-1", "ml-2"], 0
    )
    assert not run.changed
    assert story.changed_between(since, step) == NOTHING


def test_teardown_in_check_mode_changes_nothing_and_predicts(story: Story) -> None:
    predicted, real = story.ok("teardown check").changed, story.ok("teardown").changed
    assert story.changed_between("second run", "teardown check") == NOTHING
    assert (predicted - real, real - predicted) == ({}, {})
    assert len(real) > 5


def test_teardown_restores_the_primary(story: Story) -> None:
    story.ok("teardown")
    # Settings stay raised, and the restart has been.
    assert set(story.changed_between("nothing", "teardown")["prod"]) == {"started", "postgresql.auto.conf"}
    assert story.after["teardown"]["prod"]["slots"] == []
    assert story.hba_loaded["teardown"]


def test_teardown_leaves_the_data(story: Story) -> None:
    story.ok("teardown")
    assert story.rows["teardown"] == story.rows["first run"]
    for name in ("ml-1", "ml-2"):
        assert story.after["teardown"][name]["subscriptions"] == []


@pytest.mark.sampled(0)
def test_a_second_teardown_changes_nothing(story: Story) -> None:
    assert not story.ok("second teardown").changed
    assert story.changed_between("teardown", "second teardown") == NOTHING


@pytest.mark.sampled(0)
def test_filled_tables_are_refused(story: Story) -> None:
    run = story.taken("onto filled tables")
    assert not run.ok
    for name in ("ml-1", "ml-2"):
        assert f'{name}: Tables public."Order Lines", public.categories, ' in run.message
    assert "hold rows in database ml" in run.message and "empty them" in run.message and not run.changed
    assert story.rows["onto filled tables"] == story.rows["teardown"]
    assert story.after["onto filled tables"]["prod"]["slots"] == []


@pytest.mark.sampled(0)
def test_teardown_drops_the_tables_on_demand(story: Story) -> None:
    story.ok("teardown with drop")
    assert story.rows["teardown with drop"] == {"ml-1": {}, "ml-2": {}}
    assert story.changed_between("teardown", "teardown with drop")["prod"] == []


@pytest.mark.sampled(0)
def test_distribution_works_anew(story: Story) -> None:
    story.ok("anew")
    assert story.rows["anew"] == story.rows["first run"]
    before, after = story.after["first run"], story.after["anew"]
    assert before["prod"]["schemas"] == after["prod"]["schemas"]
    assert before["prod"]["pg_hba.conf"] == after["prod"]["pg_hba.conf"]
    assert before["ml-1"]["schemas"] == after["ml-1"]["schemas"]


LEDGER = """
CREATE TABLE ledger (id int PRIMARY KEY, entry text UNIQUE);
CREATE INDEX ON ledger (length(entry));
CREATE TABLE notes (id int PRIMARY KEY, ledger int NOT NULL REFERENCES ledger);
"""
ROWS = "INSERT INTO ledger SELECT i, 'entry ' || i FROM generate_series(1, 100) AS i; INSERT INTO notes VALUES (1, 1)"
ENDLESS = """
CREATE FUNCTION endless() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(600); RETURN NEW; END';
CREATE TRIGGER endless BEFORE INSERT ON ledger FOR EACH ROW EXECUTE FUNCTION endless();
ALTER TABLE ledger ENABLE ALWAYS TRIGGER endless;
"""
COPIED = "SELECT count(rows) = 1 FROM pgml_distributed.seed_chunks HAVING count(*) = 2"
KEEPERS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'postgresml.distributed: keeps a snapshot'"


@pytest.mark.sampled(0)
def test_teardown_takes_back_a_first_copy_that_was_killed(tmp_path: Path) -> None:
    """With its slot, its snapshot and its rows; indexes and constraints come back."""
    ansible = Ansible(tmp_path)
    distribution = {"name": "ledger", "database": "ml", "tables": ["public.ledger", "public.notes"]}
    with playbooks.cluster() as primary, playbooks.cluster() as replica:
        for server in (primary, replica):
            server.create_database("ml")
            server.execute_script(LEDGER, "ml")
        primary.execute_script(ROWS, "ml")
        replica.execute_script(ENDLESS, "ml")
        before = snapshot(primary), snapshot(replica)
        hosts = playbooks.inventory(primary, {"ml-1": replica}, [distribution])
        process = ansible.start("distribute.yml", hosts)
        wait_for(lambda: process.poll() is not None or _tells(replica, COPIED), 180, "one of two tables")
        kill_tree(process.pid)
        playbooks.finish(process)
        assert primary.sql("SELECT slot_name, active FROM pg_replication_slots") == [("pgml_ledger_ml_1", False)]
        assert primary.sql(KEEPERS) == [(2,)]
        predicted = ansible.ok("teardown.yml", hosts, "--check").changed
        assert ansible.ok("teardown.yml", hosts).changed == predicted
        assert primary.sql(KEEPERS) == [(0,)]
        after = snapshot(primary), snapshot(replica)
        settings = {"started", "postgresql.auto.conf"}
        assert set(differences(before[0], after[0])) <= settings and after[0]["slots"] == []
        assert set(differences(before[1], after[1])) <= settings
        assert count(replica, "ml", "ledger") == count(replica, "ml", "notes") == 0


def _tells(server: Cluster, query: str) -> bool:
    """Whether the collection's own tables in database C(ml), if there are any, give true."""
    if not server.sql("SELECT to_regclass('pgml_distributed.seeds')", dbname="ml")[0][0]:
        return False
    return bool(server.sql(query, dbname="ml"))
