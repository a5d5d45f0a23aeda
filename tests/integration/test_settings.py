# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings: raised to what is needed, in the server's own units, and never lowered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import program_of
from tests.support.cluster import Cluster, make_directory
from tests.support.pair import Place, create_role

INITIAL = {"wal_level": "replica", "shared_buffers": "16MB", "max_wal_senders": "5", "max_replication_slots": "5"}


@pytest.fixture(scope="module")
def server(default_major: int) -> Iterator[Place]:
    with Cluster(make_directory(), program_of(default_major), INITIAL) as cluster:
        yield Place(cluster, "postgres")


@pytest.fixture
def plain(server: Place) -> Iterator[Place]:
    """A server with wal_level = replica whose settings are as its files say, and are so again afterwards."""
    yield server
    server.sql("ALTER SYSTEM RESET ALL")
    server.cluster.restart()


def test_what_takes_a_restart_waits_for_it(plain: Place) -> None:
    minimum = {"wal_level": "logical", "max_wal_senders": 8, "max_slot_wal_keep_size": "2GB"}
    result = plain.converge("pgml_settings", minimum=minimum)
    assert result["pending_restart"] == ["max_wal_senders", "wal_level"]
    assert result["changes"] == [
        "Bound max_slot_wal_keep_size from -1 to 2048",
        "Raise max_wal_senders from 5 to 8",
        "Raise wal_level from replica to logical",
        "Reload the configuration",
    ]
    assert plain.value("SHOW max_slot_wal_keep_size") == "2GB"
    assert plain.value("SHOW max_wal_senders") == "5"
    again = plain.ok("pgml_settings", minimum=minimum)
    assert not again["changed"] and again["pending_restart"] == ["max_wal_senders", "wal_level"]
    plain.cluster.restart()
    assert plain.value("SHOW max_wal_senders") == "8"
    assert plain.ok("pgml_settings", minimum=minimum)["pending_restart"] == []


def test_check_mode_predicts_what_will_wait(plain: Place) -> None:
    predicted = plain.ok("pgml_settings", check=True, minimum={"max_wal_senders": 8})
    assert predicted["pending_restart"] == ["max_wal_senders"]
    assert predicted["diff"] == {"before": {"max_wal_senders": "5"}, "after": {"max_wal_senders": "8"}}


def test_raised_twice_before_the_restart_keeps_the_higher(plain: Place) -> None:
    plain.ok("pgml_settings", minimum={"max_wal_senders": 20})
    assert not plain.converge("pgml_settings", minimum={"max_wal_senders": 10})["changed"]
    assert plain.converge("pgml_settings", minimum={"max_wal_senders": 30})["changed"]
    plain.cluster.restart()
    assert plain.value("SHOW max_wal_senders") == "30"


def test_nothing_is_lowered(plain: Place) -> None:
    for name, value in (("max_wal_senders", 1), ("wal_level", "minimal"), ("max_connections", "10")):
        assert not plain.converge("pgml_settings", minimum={name: value})["changed"]


LIBRARIES = "shared_preload_libraries"


def test_a_library_is_added_to_those_that_are_there(plain: Place) -> None:
    """The server starts with both: a name of its own for each, in the file that ALTER SYSTEM writes."""
    plain.sql("ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements'")
    result = plain.converge("pgml_settings", minimum={LIBRARIES: ["auto_explain"], "max_wal_senders": 5})
    assert result["changes"] == [f"Add auto_explain to {LIBRARIES}", "Reload the configuration"]
    assert result["pending_restart"] == [LIBRARIES]
    assert result["diff"]["after"][LIBRARIES] == "pg_stat_statements, auto_explain"
    plain.cluster.restart()
    assert plain.value(f"SHOW {LIBRARIES}") == "pg_stat_statements, auto_explain"
    assert plain.value("SHOW auto_explain.log_min_duration") == "-1"
    again = plain.ok("pgml_settings", minimum={LIBRARIES: ["pg_stat_statements", "$libdir/auto_explain.so"]})
    assert not again["changed"] and again["pending_restart"] == []
    taken = plain.converge("pgml_settings", minimum={}, remove={LIBRARIES: ["pg_stat_statements"]})
    assert taken["changes"] == [f"Take pg_stat_statements out of {LIBRARIES}", "Reload the configuration"]
    assert taken["pending_restart"] == [LIBRARIES]
    plain.cluster.restart()
    assert plain.value(f"SHOW {LIBRARIES}") == "auto_explain"
    plain.converge("pgml_settings", minimum={}, remove={LIBRARIES: ["auto_explain"]})
    assert LIBRARIES not in (plain.cluster.data / "postgresql.auto.conf").read_text()
    plain.cluster.restart()
    assert plain.value(f"SHOW {LIBRARIES}") == ""


def test_libraries_of_a_managed_service_are_asked_for(plain: Place) -> None:
    message = plain.refused("pgml_settings", minimum={LIBRARIES: ["pgml"]}, write=False)
    assert f"needs {LIBRARIES} = pgml; it is managed" in message


@pytest.mark.parametrize(
    ("asked", "shown"),
    [("1GB", "1GB"), ("1024MB", "1GB"), (2048, "2GB"), ("1 GB", "1GB"), ("1048577kB", "1025MB"), ("2TB", "2TB")],
)
def test_units_are_the_servers_own(plain: Place, asked: Any, shown: str) -> None:
    assert plain.converge("pgml_settings", minimum={"max_slot_wal_keep_size": asked})["changed"]
    assert plain.value("SHOW max_slot_wal_keep_size") == shown
    assert not plain.ok("pgml_settings", minimum={"max_slot_wal_keep_size": shown})["changed"]


def test_memory_in_pages_is_compared_right(plain: Place) -> None:
    assert not plain.converge("pgml_settings", minimum={"shared_buffers": "16MB"})["changed"]
    assert plain.converge("pgml_settings", minimum={"shared_buffers": "17MB"})["changed"]


def test_unlimited_wal_is_bounded_unless_it_is_asked_for(plain: Place) -> None:
    assert plain.converge("pgml_settings", minimum={"max_slot_wal_keep_size": "10GB"})["changed"]
    assert plain.value("SHOW max_slot_wal_keep_size") == "10GB"
    assert plain.converge("pgml_settings", minimum={"max_slot_wal_keep_size": "-1"})["changed"]
    assert plain.value("SHOW max_slot_wal_keep_size") == "-1"


def test_the_last_word_of_the_files_counts(plain: Place) -> None:
    """postgresql.conf says 5 and postgresql.auto.conf, read after it, says more."""
    plain.sql("ALTER SYSTEM SET max_replication_slots = 50")
    assert not plain.converge("pgml_settings", minimum={"max_replication_slots": 40})["changed"]


def test_settings_that_are_not_ours_are_refused(plain: Place) -> None:
    message = plain.refused("pgml_settings", minimum={"wal_level": "logical", "max_wal_senders": 2}, write=False)
    assert "wal_level = logical" in message and "max_wal_senders" not in message and "managed" in message
    assert not plain.ok("pgml_settings", minimum={"max_wal_senders": 2}, write=False)["changed"]


@pytest.mark.parametrize(
    ("minimum", "words"),
    [
        ({"max_wal_sender": 5}, ["no setting max_wal_sender"]),
        ({"max_wal_senders": "many"}, ["max_wal_senders", "many", "not a whole number"]),
        ({"max_wal_senders": "5GB"}, ["max_wal_senders", "unit"]),
        ({"max_slot_wal_keep_size": "5 furlongs"}, ["max_slot_wal_keep_size", "5 furlongs"]),
        ({"wal_receiver_timeout": "60s"}, ["wal_receiver_timeout", "60s"]),
        ({"max_wal_senders": None}, ["max_wal_senders"]),
        ({"wal_level": "logicl"}, ["wal_level", "logicl"]),
        ({"shared_preload_libraries": 5}, ["shared_preload_libraries = 5 is no list"]),
        ({"shared_preload_libraries": [""]}, ["shared_preload_libraries", "is no list"]),
        ({"shared_preload_libraries": ['a"b']}, ["shared_preload_libraries", 'a"b']),
        ({"max_wal_senders": 99999999999}, ["max_wal_senders", "99999999999"]),
    ],
)
def test_wrong_input_gets_one_clear_sentence(plain: Place, minimum: dict[str, Any], words: list[str]) -> None:
    message = plain.refused("pgml_settings", minimum=minimum)
    assert all(word in message for word in words)


def test_a_role_that_may_not_is_told_so(plain: Place) -> None:
    create_role(plain.cluster, "powerless", "LOGIN", "pw")
    login = {"login_user": "powerless", "login_password": "pw"}
    try:
        assert not plain.ok("pgml_settings", minimum={"max_wal_senders": 2}, **login)["changed"]
        assert "permission denied" in plain.refused("pgml_settings", minimum={"max_wal_senders": 9}, **login) or (
            "superuser" in plain.refused("pgml_settings", minimum={"max_wal_senders": 9}, **login)
        )
    finally:
        plain.sql("DROP ROLE powerless")


@pytest.mark.parametrize("spelling", ["hot_standby", "Replica"])
def test_another_spelling_of_wal_level_is_understood(default_major: int, spelling: str) -> None:
    with Cluster(make_directory(), program_of(default_major), {"wal_level": spelling}) as cluster:
        place = Place(cluster, "postgres")
        assert place.ok("pgml_settings", minimum={"wal_level": "replica"})["changed"] is False
        assert place.ok("pgml_settings", minimum={"wal_level": "logical"})["pending_restart"] == ["wal_level"]
