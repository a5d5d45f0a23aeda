# SPDX-License-Identifier: GPL-3.0-or-later
"""distribute.yml and teardown.yml with strategy fdw: tables that are read from the primary, and snapshots of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from psycopg2.errors import InsufficientPrivilege, UndefinedObject

from tests.support import playbooks
from tests.support.cluster import Cluster
from tests.support.playbooks import PASSWORD, SHOP_TABLES, Ansible, Run, Unsafe, differences, snapshot

# A Molecule scenario tells of it in short.
pytestmark = [pytest.mark.slow, pytest.mark.sampled(0)]

AWKWARD = 'We.ird, "d=b" é'
AWKWARD_TARGET = "Ziel, 'd=b'.Ü"
AWKWARD_NAME = 'Été "26"/x'
AWKWARD_TABLES = ('"Sch.ema"."Ta""ble, ü"', 'public."it\'s {{ here }} 100%"')
AWKWARD_LOCAL = ('"Été ""26""/x_Sch.ema"."Ta""ble, ü"', '"Été ""26""/x_public"."it\'s {{ here }} 100%"')
AWKWARD_SQL = """
CREATE SCHEMA "Sch.ema";
CREATE TABLE "Sch.ema"."Ta""ble, ü" ("Id.1" int PRIMARY KEY, secret int NOT NULL);
INSERT INTO "Sch.ema"."Ta""ble, ü" SELECT i, i FROM generate_series(1, 50) AS i;
CREATE TABLE public."it's {{ here }} 100%" ("%s" int, "{{ x }}" text);
INSERT INTO public."it's {{ here }} 100%" VALUES (1, 'one');
"""
READ = [*SHOP_TABLES, "public.order_totals"]
PHONES = "device = 'phone'"
SHOP = {
    "name": "shop",
    "database": "shop",
    "target_database": "ml",
    "strategy": "fdw",
    "schemas": ["public", "warehouse"],
    "tables": [{"name": "page_views", "where": PHONES}],
    "exclude_tables": ["audit_log"],
    "snapshots": [
        {
            "relation": 'shop_public."Order Lines"',
            "into": "training.lines",
            "numeric_to_float8": True,
            "indexes": [["order_id", "Line No"]],
        },
        {"relation": "shop_public.orders", "where": "status = 'delivered'", "into": "training.orders"},
    ],
}
# Depends on the time, and means the same rows at any.
RECENTLY = "placed_at > now() - (now() - timestamptz '2026-05-01')"
RECENT = {
    "name": "recent",
    "database": "shop",
    "target_database": "ml",
    "strategy": "fdw",
    "tables": [{"name": "public.orders", "columns": ["order_id", "user_id", "placed_at"], "where": RECENTLY}],
}
WEIRD = {
    "name": AWKWARD_NAME,
    "database": AWKWARD,
    "target_database": AWKWARD_TARGET,
    "strategy": "fdw",
    "tables": [
        {"name": AWKWARD_TABLES[0], "columns": ["Id.1"], "where": '"Id.1" > 3'},
        Unsafe(AWKWARD_TABLES[1]),
    ],
}
ALL = (SHOP, RECENT, WEIRD)
COPIED = {"name": "copied", "database": "shop", "target_database": "ml", "strategy": "dump", "tables": ["public.users"]}
DROP = ("-e", "pgml_teardown_drop=true")
ROTATED = "another 'password' \\ €"


class Step(NamedTuple):
    playbook: str
    arguments: tuple[str, ...] = ()
    password: str = PASSWORD
    distributions: tuple[Any, ...] = ALL


EVERYTHING = (*ALL, COPIED)
STEPS = {
    "first check": Step("distribute.yml", ("--check", "--diff")),
    "first run": Step("distribute.yml", ("--diff",)),
    "second run": Step("distribute.yml"),
    "second check": Step("distribute.yml", ("--check", "--diff")),
    "rotation check": Step("distribute.yml", ("--check", "--diff"), ROTATED, EVERYTHING),
    "rotation": Step("distribute.yml", ("--diff",), ROTATED, EVERYTHING),
    "teardown check": Step("teardown.yml", ("--check", *DROP), ROTATED, EVERYTHING),
    "teardown": Step("teardown.yml", DROP, ROTATED, EVERYTHING),
    "second teardown": Step("teardown.yml", (), ROTATED, EVERYTHING),
}


class Story:
    """What each step said, and how each server was before the first step and after every one."""

    def __init__(self, ansible: Ansible, primary: Cluster, replica: Cluster) -> None:
        self.primary, self.replica = primary, replica
        self.runs: dict[str, Run] = {}
        self.after: dict[str, dict[str, Any]] = {"nothing": self._look()}
        self.rows: dict[str, dict[str, str]] = {}
        self.readers: dict[str, dict[str, Any]] = {}
        self.plans: dict[str, str] = {}
        for name, step in STEPS.items():
            hosts = playbooks.inventory(
                primary,
                {"ml-1": replica},
                step.distributions,
                pgml_distributor_password=Unsafe(step.password),
                pgml_foreign_user_mappings=[{"role": "science"}],
                pgml_foreign_usage=["science", "intern"],
            )
            self.runs[name] = ansible.run(step.playbook, hosts, *step.arguments)
            self.after[name] = self._look()
            if step.playbook == "distribute.yml" and "--check" not in step.arguments and self.runs[name].ok:
                self.rows[name] = _rows(replica)
                self.readers[name] = {role: _reads(replica, role) for role in ("science", "intern")}
                explained = replica.sql("EXPLAIN VERBOSE SELECT * FROM recent_public.orders", dbname="ml")
                self.plans[name] = "\n".join(line for (line,) in explained)

    def _look(self) -> dict[str, Any]:
        return {"prod": snapshot(self.primary), "ml-1": snapshot(self.replica)}

    def changed_between(self, step: str, later: str) -> dict[str, list[str]]:
        """In which parts each server differs between the ends of two steps."""
        return {name: differences(self.after[step][name], self.after[later][name]) for name in ("prod", "ml-1")}

    def ok(self, step: str) -> Run:
        assert self.runs[step].ok, self.runs[step].output
        return self.runs[step]


def _local(table: str) -> str:
    schema, name = table.split(".", 1)
    return f"shop_{schema}.{name}"


def _fingerprint(server: Cluster, dbname: str, relation: str) -> str:
    """Of every value of every row."""
    query = f"SELECT count(*) || ' ' || md5(string_agg(t::text, ',' ORDER BY t::text)) FROM {relation} AS t"
    return str(server.sql(query, dbname=dbname)[0][0])


def _rows(replica: Cluster) -> dict[str, str]:
    """A fingerprint of whatever can be read there."""
    of_shop = {table: _fingerprint(replica, "ml", _local(table)) for table in READ}
    recent = {"recent": _fingerprint(replica, "ml", "recent_public.orders")}
    weird = {table: _fingerprint(replica, AWKWARD_TARGET, table) for table in AWKWARD_LOCAL}
    taken = {table: _fingerprint(replica, "ml", table) for table in ("training.lines", "training.orders")}
    return {**of_shop, **recent, **weird, **taken}


def _reads(replica: Cluster, role: str) -> dict[str, Any]:
    """What a role that is no superuser gets when it counts the rows."""
    found: dict[str, Any] = {}
    for relation in ("shop_public.users", "recent_public.orders", "training.orders"):
        try:
            found[relation] = replica.sql(f"SET ROLE {role}; SELECT count(*) FROM {relation}", dbname="ml")[0][0]
        except (InsufficientPrivilege, UndefinedObject) as error:
            found[relation] = str(error).partition("\n")[0]
    return found


@pytest.fixture(scope="module")
def primary() -> Iterator[Cluster]:
    with playbooks.cluster(wal_level="replica") as server:
        playbooks.load_shop(server)
        server.create_database(AWKWARD)
        server.execute_script(AWKWARD_SQL, AWKWARD)
        yield server


@pytest.fixture(scope="module")
def story(primary: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with playbooks.cluster() as replica:
        replica.sql("CREATE ROLE science")
        replica.sql("CREATE ROLE intern")
        yield Story(Ansible(tmp_path_factory.mktemp("fdw")), primary, replica)


NOTHING: dict[str, list[str]] = {"prod": [], "ml-1": []}


@pytest.mark.parametrize(
    ("check", "before", "run"),
    [
        ("first check", "nothing", "first run"),
        ("second check", "second run", "second run"),
        ("rotation check", "second check", "rotation"),
        ("teardown check", "rotation", "teardown"),
    ],
)
def test_check_mode_changes_nothing_and_predicts(story: Story, check: str, before: str, run: str) -> None:
    predicted, real = story.ok(check).changed, story.ok(run).changed
    assert story.changed_between(before, check) == NOTHING
    assert (predicted - real, real - predicted) == ({}, {})


def test_a_second_run_changes_nothing(story: Story) -> None:
    assert {counters["changed"] for counters in story.ok("second run").recap.values()} == {0}
    assert story.changed_between("first run", "second run") == NOTHING


@pytest.mark.parametrize("step", ["first run", "second run", "rotation"])
def test_every_value_is_that_of_the_primary(story: Story, step: str) -> None:
    story.ok(step)
    rows, primary = story.rows[step], story.primary
    for table in READ:
        theirs = f"(SELECT * FROM page_views WHERE {PHONES})" if table == "public.page_views" else table
        assert rows[table] == _fingerprint(primary, "shop", theirs), table
    orders = f"(SELECT order_id, user_id, placed_at FROM orders WHERE {RECENTLY})"
    assert rows["recent"] == _fingerprint(primary, "shop", orders)
    assert rows[AWKWARD_LOCAL[0]] == _fingerprint(
        primary, AWKWARD, f'(SELECT "Id.1" FROM {AWKWARD_TABLES[0]} WHERE "Id.1" > 3)'
    )
    assert rows[AWKWARD_LOCAL[1]] == _fingerprint(primary, AWKWARD, AWKWARD_TABLES[1])
    delivered = "(SELECT * FROM orders WHERE status = 'delivered')"
    assert rows["training.orders"] == _fingerprint(primary, "shop", delivered)


def test_snapshots_are_plain_tables_whose_numbers_can_be_learned_from(story: Story) -> None:
    story.ok("first run")
    schema = story.after["first run"]["ml-1"]["schemas"]["ml"]
    assert "CREATE TABLE training.lines (" in schema and '"Unit Price" double precision' in schema
    assert 'USING btree (order_id, "Line No")' in schema


def test_the_primary_evaluates_the_condition(story: Story) -> None:
    story.ok("first run")
    (remote,) = [line for line in story.plans["first run"].splitlines() if "Remote SQL" in line]
    assert "WHERE ((placed_at > " in remote
    assert "Filter" not in story.plans["first run"]


def test_columns_and_tables_that_are_not_asked_for_stay_away(story: Story) -> None:
    story.ok("first run")
    schemas = story.after["first run"]["ml-1"]["schemas"]
    assert "audit_log" not in schemas["ml"] and "secret" not in schemas[AWKWARD_TARGET]


def test_who_has_no_mapping_reads_snapshots_only(story: Story) -> None:
    """Both roles may use the tables, one of them may go to the primary."""
    story.ok("first run")
    users, recent, taken = story.readers["first run"]["science"].values()
    assert users == playbooks.count(story.primary, "shop", "users")
    assert recent == playbooks.count(story.primary, "shop", f"orders WHERE {RECENTLY}")
    assert taken == playbooks.count(story.primary, "shop", "orders WHERE status = 'delivered'")
    users, recent, found = story.readers["first run"]["intern"].values()
    assert users == recent == 'user mapping not found for "intern"'
    assert found == taken


def test_the_primary_is_only_opened_for_reading(story: Story) -> None:
    """Its settings stay as they are, it is not restarted, and who reads it may not replicate."""
    changed = set(story.changed_between("nothing", "rotation")["prod"])
    assert changed == {"globals", "schemas", "pg_hba.conf"}
    (role,) = [line for line in story.after["first run"]["prod"]["globals"].splitlines() if "ALTER ROLE pgml" in line]
    assert "NOREPLICATION" in role and "NOSUPERUSER" in role


def test_a_rotated_password_reaches_the_mappings(story: Story) -> None:
    """And shows nowhere, not even in the diff."""
    story.ok("rotation")
    assert story.readers["rotation"] == story.readers["first run"]
    for run in story.runs.values():
        assert PASSWORD not in run.output and ROTATED not in run.output and "€" not in run.output


def test_a_copy_of_the_same_table_is_in_nobodys_way(story: Story) -> None:
    story.ok("rotation")
    copied = _fingerprint(story.primary, "shop", "users")
    assert story.rows["rotation"]["public.users"] == copied
    assert "CREATE TABLE public.users" in story.after["rotation"]["ml-1"]["schemas"]["ml"]


def test_teardown_leaves_no_trace(story: Story) -> None:
    """But the types, and the databases."""
    story.ok("teardown")
    assert story.changed_between("nothing", "teardown")["prod"] == []
    before, after = story.after["nothing"]["ml-1"], story.after["teardown"]["ml-1"]
    assert [part for part in differences(before, after) if part != "schemas"] == []
    of_the_copy = "FUNCTION public.touch_updated_at() RETURNS trigger"
    left = [of_the_copy, "DOMAIN public.email_address AS text", "TYPE public.order_status AS ENUM ("]
    for dbname, things in (("ml", left), (AWKWARD_TARGET, [])):
        assert sorted(re.findall(r"^CREATE (.*)", after["schemas"][dbname], re.MULTILINE)) == sorted(things)
    assert story.replica.sql("SELECT srvname FROM pg_foreign_server", dbname="ml") == []
    assert not story.ok("second teardown").changed
