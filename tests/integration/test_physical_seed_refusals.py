# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands against a physical seed is said at once, a sentence each, and nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import program_of
from tests.support import physical, playbooks
from tests.support.cluster import Cluster
from tests.support.pair import create_role
from tests.support.physical import PASSWORD, SETTINGS, Seeding, files

BEGINNING = "The cluster can't be copied physically, and nothing was changed: "


@pytest.fixture(scope="module")
def templates() -> Iterator[list[Cluster]]:
    with physical.templates() as made:
        yield made


@pytest.fixture(scope="module")
def shared(templates: list[Cluster]) -> Iterator[Seeding]:
    """For tests that change nothing that lasts."""
    with physical.seeding(templates) as made:
        yield made


@pytest.fixture
def two(templates: list[Cluster]) -> Iterator[Seeding]:
    with physical.seeding(templates) as made:
        yield made


def problem(made: Seeding, **params: Any) -> str:
    """The one sentence of a refusal."""
    message = made.refused(**params)
    assert message.startswith(BEGINNING), message
    (found,) = made.run("prepared", **params)["problems"]
    assert message == BEGINNING + found
    return found


def test_replica_with_tables_of_users(two: Seeding) -> None:
    two.replica.create_database("Mine")
    two.replica.sql("CREATE TABLE x (id int)", dbname="Mine")
    found = problem(two, replace_cluster=False)
    assert found == (
        'The replica\'s cluster holds tables of users in database "Mine": allow it to be replaced, or remove them.'
    )
    two.replica.sql("DROP TABLE x; CREATE EXTENSION pg_stat_statements; CREATE VIEW v AS SELECT 1", dbname="Mine")
    assert two.step("prepared", check=True, replace_cluster=False)["phase"] == "ready"


def test_replica_with_subscriptions_slots_and_readers(two: Seeding) -> None:
    two.replica.sql("SELECT pg_create_physical_replication_slot('standby')")
    two.replica.sql("CREATE SUBSCRIPTION mine CONNECTION 'host=/x' PUBLICATION p WITH (connect = false)")
    message = two.refused()
    for words in ("The replica has subscription mine", "Others read from slot standby of the replica."):
        assert words in message
    two.replica.sql("SELECT pg_drop_replication_slot('standby')")
    two.replica.sql("ALTER SUBSCRIPTION mine SET (slot_name = NONE)")
    two.replica.sql("DROP SUBSCRIPTION mine")


def test_everything_at_once(two: Seeding) -> None:
    two.replica.sql("CREATE TABLE x (id int)")
    two.replica.sql("SELECT pg_create_physical_replication_slot('standby')")
    two.source.sql("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [two.slot])
    two.source.sql("CREATE PUBLICATION few FOR TABLE t")
    two.kept.mkdir()
    result = two.run(
        "prepared",
        replace_cluster=False,
        tablespaces={"nowhere": "/tmp/x"},
        subscriptions=[two.subscription(publications=["few", "none"])],
    )
    expected = [
        "data.pgml_old is still there, the cluster that was kept before: remove it.",
        "The upstream has no tablespace nowhere.",
        "holds tables of users in database postgres",
        "Others read from slot standby",
        "Publication few is of some tables of database shop",
        "has no publication none.",
        f'Slot "{two.slot}" is on the server of',
    ]
    assert len(result["problems"]) == len(expected), result["problems"]
    for words in expected:
        assert sum(words in each for each in result["problems"]) == 1, (words, result["problems"])
    assert result["msg"] == BEGINNING + " ".join(result["problems"])
    assert not two.work.exists() and not two.record.exists()


def test_it_may_be_impossible(two: Seeding) -> None:
    two.kept.mkdir()
    before = two.state()
    result = two.step("prepared", required=False)
    assert (result["phase"], result["changed"]) == ("impossible", False)
    (warning,) = result["warnings"]
    assert (
        warning.startswith("The cluster is not copied physically, for this stands against it: ")
        and "pgml_old" in warning
    )
    assert two.state() == before
    predicted = two.step("prepared", check=True)
    assert predicted["phase"] == "ready" and predicted["warnings"][0].startswith("In check mode only: ")


def test_slot_is_there_and_used(shared: Seeding) -> None:
    shared.source.sql("SELECT pg_create_logical_replication_slot('taken', 'pgoutput')")
    try:
        found = problem(shared, subscriptions=[shared.subscription(slot_name="taken")])
        assert found.startswith('Slot "taken" is on the server of database "shop"')
        assert found.endswith(" already: drop it, or choose another slot_name.")
    finally:
        shared.source.sql("SELECT pg_drop_replication_slot('taken')")


def test_publication_of_some_tables(shared: Seeding) -> None:
    shared.source.sql("CREATE PUBLICATION few FOR TABLE t, hits")
    assert problem(shared, subscriptions=[shared.subscription(publications=["few"])]) == (
        "Publication few is of some tables of database shop, and a cluster comes as a whole: only whole databases can come so."
    )
    shared.source.sql("DROP PUBLICATION few")


def test_tablespaces(two: Seeding) -> None:
    place, full = two.primary.directory / "place", two.replica.directory / "full"
    for path in (place, full):
        path.mkdir()
    physical.own(two.primary, place)
    (full / "file").touch()
    two.primary.sql(f"CREATE TABLESPACE fast LOCATION '{place}'")
    assert problem(two) == "Tablespace fast of the upstream has no place here: name a directory for it."
    assert problem(two, tablespaces={"fast": str(full)}) == f"The directory {full} for tablespace fast is not empty."
    assert problem(two, tablespaces={"fast": "here"}) == "The directory here for tablespace fast is no absolute path."
    missing = two.replica.directory / "none" / "there"
    assert str(missing.parent) in problem(two, tablespaces={"fast": str(missing)})


def test_no_way_in_for_a_base_backup(two: Seeding) -> None:
    hba = two.primary.data / "pg_hba.conf"
    lines = [line for line in hba.read_text().splitlines() if "replication" not in line]
    hba.write_text("\n".join(lines) + "\n")
    two.primary.sql("SELECT pg_reload_conf()")
    found = problem(two)
    assert "no pg_hba.conf entry for replication connection" in found
    assert found.endswith(
        "Its pg_hba.conf needs a line for database replication and that user, as the role pgml_primary writes it for the"
        " distributor with pgml_primary_base_backups."
    )


def test_wrong_password(shared: Seeding) -> None:
    message = shared.refused(source=shared.primary.source("shop", shared.distributor, "wrong"))
    assert "password authentication failed" in message
    assert message.count("password authentication failed") == 2  # as a client and for a base backup


def test_role_that_may_not_replicate(two: Seeding) -> None:
    create_role(two.primary, "reader", "LOGIN", PASSWORD)
    two.primary.sql("GRANT pg_read_all_data TO reader")
    message = two.refused(source=two.primary.source("shop", "reader", PASSWORD))
    assert "replication" in message.lower(), message


def test_role_that_may_not_read(two: Seeding) -> None:
    """The files hold everything, whatever the distributor may read."""
    two.primary.sql(f"REVOKE pg_read_all_data FROM {two.distributor}")
    two.seed()
    assert two.target.sql("SELECT count(*) FROM t") == [(500,)]


def test_extension_whose_files_are_missing(two: Seeding) -> None:
    two.source.sql(
        "SET allow_system_table_mods = on; INSERT INTO pg_extension SELECT 99999, 'postgis', 10, 11, false, '3.5'"
    )
    assert problem(two) == "The replica's server lacks the files of extension postgis: install it."


def test_library_that_is_missing(two: Seeding) -> None:
    two.source.sql(
        "SET allow_system_table_mods = on; UPDATE pg_proc SET probin = '$libdir/nothing_such' WHERE proname = 'noted'"
    )
    assert problem(two) == 'The replica\'s server lacks library "$libdir/nothing_such" of the upstream.'


@pytest.mark.parametrize("setting", ["max_wal_senders", "max_replication_slots"])
def test_limits_of_the_primary(two: Seeding, setting: str) -> None:
    two.primary.settings[setting] = "0" if setting == "max_wal_senders" else "1"
    two.primary.restart()
    if setting == "max_replication_slots":
        two.source.sql("SELECT pg_create_physical_replication_slot('other')")
    assert setting in two.refused()


def test_no_room_for_wal_on_the_primary(shared: Seeding) -> None:
    assert "of which half may be used: make room, or copy when less is written." in shared.refused(wal_space=0)


def test_no_superuser(two: Seeding) -> None:
    create_role(two.replica, "plain", "LOGIN", "its own")
    two.replica.sql("GRANT pg_read_all_settings, pg_monitor TO plain")
    assert "The replica's login role is no superuser." in two.refused(login_user="plain", login_password="its own")


def test_not_on_this_host(two: Seeding, templates: list[Cluster]) -> None:
    """The server says a directory that isn't here."""
    away = two.replica.directory / "away"
    two.replica.data.rename(away)
    found = two.run("prepared")
    assert (
        found["failed"]
        and "can't be read here: run this on the server's host, as the owner of its files." in found["msg"]
    )
    assert two.slots() == set() and not two.record.exists()
    away.rename(two.replica.data)


def test_something_of_that_name_is_there(two: Seeding) -> None:
    two.work.mkdir()
    (two.work / "precious").touch()
    message = two.refused()
    assert message == f"{two.work} is there, and nothing says whose it is: remove it."
    assert files(two.work) != {}


def test_wrong_order_of_steps(two: Seeding) -> None:
    assert "No copy is ready" in two.refused("exchanged")
    two.prepare()
    message = two.run("exchanged")["msg"]
    assert message == f"A server runs on {two.replica.data}: stop it first."
    assert "doesn't run on the copied cluster" in two.run("finished")["msg"]
    two.step("absent")
    two.assert_nothing_left()


@pytest.mark.parametrize("target", ["postgres", "other"])
def test_name_that_another_database_has(two: Seeding, target: str) -> None:
    two.primary.create_database("other")
    found = problem(two, subscriptions=[two.subscription(db=target)], undistributed="keep")
    assert found == f"Database shop can't be named {target} on the copy, which has another one of that name."
    if target == "other":
        two.target.database = target
        two.seed(subscriptions=[two.subscription(db=target)])
        two.assert_equal((("shop", target),))


def test_options_that_make_no_sense(shared: Seeding) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"wal_space": -1}, "wal_space is -1: the least is 0."),
        ({"max_rate": "fast"}, 'pg_basebackup said: transfer rate "fast" is not a valid value.'),
        ({"subscriptions": []}, "state=prepared needs subscriptions and source."),
        (
            {"subscriptions": [shared.subscription(), shared.subscription(name="b", slot_name="b")]},
            "Database shop is distributed twice, and comes as a whole, once.",
        ),
        ({"copy_from": shared.replica.source("ml", "x", "y")}, "Subscription sub needs copied_slot_name"),
        ({"subscriptions": [shared.subscription(slot_name="No Slot")]}, "No Slot"),
        ({"subscriptions": [shared.subscription(publications=[])]}, "Subscription sub needs publications."),
    ]
    for params, words in cases:
        assert words in shared.refused(**params)


def test_upstream_out_of_reach(two: Seeding) -> None:
    two.primary.stop()
    message = two.refused()
    assert "Connection refused" in message and message.count("Connection refused") <= 2, message


def test_another_major_version(templates: list[Cluster]) -> None:
    old = playbooks.cluster_of(program_of(14), **SETTINGS)
    with old, templates[1].clone() as replica:
        two = Seeding(old, replica)
        create_role(old, two.distributor, "LOGIN REPLICATION", PASSWORD)
        old.create_database("shop")
        two.source.sql("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION pub FOR ALL TABLES")
        message = two.refused()
        assert "The upstream is PostgreSQL 14" in message and "files are alike only within a major version." in message
