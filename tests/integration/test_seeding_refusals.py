# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a first copy can be made under a slot's snapshot, and whether the servers have room for it, is known beforehand."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Unreachable
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import capacity
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres import client_tools
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import slot
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import indexes, snapshot, staging
from psycopg2.sql import SQL, Identifier

from tests.support.pair import Pair, Place, create_role, forget_subscriptions
from tests.support.seeding import assert_equal, assert_streams, seed

ROWS = "INSERT INTO a SELECT g, repeat('x', 1000) FROM generate_series(1, 3000) AS g"


def filled(pair: Pair) -> Pair:
    pair.both("CREATE TABLE a (id int PRIMARY KEY, t text)")
    pair.sql_source(ROWS)
    pair.publish("a")
    return pair


@pytest.fixture
def shop(pair: Pair) -> Pair:
    return filled(pair)


@pytest.fixture
def new_shop(newest: Pair) -> Pair:
    return filled(newest)


def refused_only_as_snapshot(pair: Pair, reason: str, **params: Any) -> None:
    """Asked for it is refused; unasked for PostgreSQL makes the copy, and a warning says why."""
    message = pair.not_subscribed(initial_copy="snapshot", **params)
    assert message.startswith("initial_copy is snapshot, which is not possible because ") and reason in message
    predicted = pair.target.ok("pgml_subscription", check=True, **pair.subscription(**params))
    assert any(reason in warning for warning in predicted["warnings"])
    result = pair.subscribe(**params)
    assert result["initial_copy"]["method"] == predicted["initial_copy"]["method"] == "native"
    assert reason in result["initial_copy"]["reason"]
    assert any("The first copy is made by PostgreSQL itself, because" in w and reason in w for w in result["warnings"])
    pair.arrived("a", 0.1)


def test_without_pg_dump_the_indexes_stay(shop: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(client_tools, "_DIRECTORIES", ())
    with monkeypatch.context() as patched:
        patched.setenv("PATH", str(tmp_path))
        result = shop.subscribe(initial_copy="snapshot")
    (warning,) = result["warnings"]
    assert warning.startswith("The rows come into tables with their indexes, which takes longer: pg_dump of PostgreSQL")
    assert "none is here" in warning
    assert_equal(shop, "SELECT * FROM a")
    assert shop.sql_target("SELECT count(*) FROM pg_index WHERE indrelid = 'a'::regclass AND indisprimary") == [(1,)]


def test_without_session_replication_role_postgresql_copies(new_shop: Pair) -> None:
    role = f"creator_{new_shop.name}"
    create_role(new_shop.target.cluster, role, "LOGIN", "pw")
    names = {"role": Identifier(role), "database": Identifier(new_shop.target.database)}
    new_shop.sql_target(
        SQL(
            "GRANT pg_create_subscription TO {role}; GRANT CREATE ON DATABASE {database} TO {role}; ALTER TABLE a OWNER TO {role}"
        ).format(**names)
    )
    try:
        login = {"login_user": role, "login_password": "pw"}
        refused_only_as_snapshot(new_shop, "may not set session_replication_role", **login)
    finally:
        forget_subscriptions(new_shop.target)
        new_shop.sql_target(SQL("DROP OWNED BY {role} CASCADE; DROP ROLE {role}").format(**names))


def test_generated_columns_that_are_published_postgresql_copies(new_shop: Pair) -> None:
    new_shop.sql_source("CREATE TABLE g (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED)")
    new_shop.sql_target("CREATE TABLE g (id int PRIMARY KEY, twice int)")
    new_shop.sql_source("INSERT INTO g SELECT generate_series(1, 9)")
    new_shop.grant()
    new_shop.sql_source("CREATE PUBLICATION made FOR TABLE a, g WITH (publish_generated_columns = stored)")
    refused_only_as_snapshot(new_shop, "generated columns are published", publications=["made"])
    assert_equal(new_shop, "SELECT * FROM g")


def test_a_user_that_may_read_some_columns_only_postgresql_copies(shop: Pair) -> None:
    names = {"role": Identifier(shop.distributor)}
    shop.sql_source(SQL("REVOKE SELECT ON a FROM {role}; GRANT SELECT (id) ON a TO {role}").format(**names))
    shop.publish({"name": "a", "columns": ["id"]})
    message = shop.not_subscribed(initial_copy="snapshot")
    assert "may read only some columns of" in message
    result = shop.subscribe()
    assert result["initial_copy"]["method"] == "native" and "some columns" in result["initial_copy"]["reason"]
    assert_equal(shop, "SELECT id FROM a")


@pytest.mark.parametrize(
    ("other", "words"),
    [("", "Another run has created subscription {0}: run it again."), ("_2", "from subscription {0}_2 already")],
)
def test_another_run_fills_the_tables_first(
    shop: Pair, monkeypatch: pytest.MonkeyPatch, other: str, words: str
) -> None:
    """When all was well so far."""
    enough = indexes.refuse_no_space

    def later(*arguments: Any) -> None:
        monkeypatch.setattr(indexes, "refuse_no_space", enough)
        shop.subscribe(name=shop.name + other)

    monkeypatch.setattr(indexes, "refuse_no_space", later)
    message = shop.target.run("pgml_subscription", **shop.subscription())["msg"]
    assert words.format(shop.name) in message
    assert_equal(shop, "SELECT * FROM a")
    assert shop.slots() == {shop.name + other}
    shop.target.ok("pgml_subscription", name=shop.name + other, state="absent")


def test_a_run_that_fills_the_database_is_named_and_one_that_has_just_ended_is_not(shop: Pair) -> None:
    """A server frees what an ended session held a moment later."""
    cluster = shop.target.cluster
    place = {"host": cluster.host, "port": cluster.port, "user": cluster.user, "password": cluster.password}
    with Session(Endpoint({**place, "dbname": shop.target.database}, "login")) as other:
        assert staging.is_first(other)
        message = shop.not_subscribed(initial_copy="snapshot")
        assert re.search(r"^Another run fills .*, process \d+ since 20.*: let it end first\.$", message), message
        ending = threading.Timer(1, other.close)
        ending.start()
        shop.subscribe(initial_copy="snapshot")
        ending.join()
    assert_equal(shop, "SELECT * FROM a")


@pytest.mark.parametrize(("way", "creation"), [("snapshot", "exporting"), ("native", "create")])
def test_a_slot_is_dropped_whose_creation_got_no_answer(
    shop: Pair, monkeypatch: pytest.MonkeyPatch, way: str, creation: str
) -> None:
    create = getattr(slot, creation)

    def unanswered(*arguments: Any, **options: Any) -> Any:
        with create(*arguments, **options) or contextlib.nullcontext():
            assert shop.slots() == {shop.name}
        raise Unreachable("The connection was lost.", option="source")

    monkeypatch.setattr(slot, creation, unanswered)
    assert shop.not_subscribed(initial_copy=way).startswith("The connection was lost.")
    assert shop.slots() == set()


def test_more_locks_than_the_source_has_room_for_postgresql_copies(shop: Pair) -> None:
    refused_only_as_snapshot(shop, "20,001 locks on tables are needed, and the source has room for ", jobs=19_999)


def test_partitions_with_row_security_postgresql_copies(pair: Pair) -> None:
    """By way of their root, which has none."""
    pair.both(
        "CREATE TABLE a (id int PRIMARY KEY) PARTITION BY RANGE (id);"
        " CREATE TABLE a_1 PARTITION OF a FOR VALUES FROM (0) TO (10)"
    )
    pair.sql_source("INSERT INTO a SELECT generate_series(1, 9); ALTER TABLE a_1 ENABLE ROW LEVEL SECURITY")
    pair.publish("a", via_partition_root=True)
    refused_only_as_snapshot(pair, "row security applies to user")
    assert_equal(pair, "SELECT * FROM a")


def test_a_tree_and_its_partition_are_not_copied_twice(pair: Pair) -> None:
    pair.both(
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);"
        " CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM (0) TO (10)"
    )
    pair.publish("p", via_partition_root=True)
    pair.publish("p_1", name="part")
    message = pair.not_subscribed(publications=["pub", "part"], initial_copy="snapshot")
    assert "a partitioned table and one of its partitions are both published" in message


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"jobs": 0}, "jobs is 0"),
        ({"jobs": -1}, "jobs is -1"),
        ({"wal_space": -1}, "wal_space is -1: the least is 0."),
        ({"wait_timeout": -5}, "wait_timeout is -5: the least is 0."),
        ({"initial_copy": "maybe"}, "must be one of"),
    ],
)
def test_wrong_input_gets_a_sentence(shop: Pair, params: dict[str, Any], words: str) -> None:
    assert words in shop.not_subscribed(**params)


@pytest.mark.parametrize("failover", [False, True])
def test_slots_of_newer_versions_export_a_snapshot(new_shop: Pair, failover: bool) -> None:
    """A copy needs a pg_dump of that version, too; the slot does not."""
    keywords = {key: str(value) for key, value in new_shop.endpoint.items() if key != "db"}
    endpoint = Endpoint({**keywords, "dbname": new_shop.source.database}, "source")
    with Session(endpoint) as source:
        with slot.exporting(source, new_shop.name, failover) as (begins_at, name):
            new_shop.sql_source("INSERT INTO a VALUES (9999, 'later')")
            with Session(endpoint) as reader:
                snapshot.join(reader, [name])
                assert reader.value("SELECT count(*) FROM public.a") == 3000
        there = slot.read(source, new_shop.name)
    assert there and there.flushed == begins_at and not there.active
    query = "SELECT failover, plugin FROM pg_replication_slots WHERE slot_name = %s"
    assert new_shop.sql_source(query, [new_shop.name]) == [(failover, "pgoutput")]


def no_slot_was_created(pair: Pair, seen: int) -> bool:
    return "CREATE_REPLICATION_SLOT" not in pair.source.cluster.log()[seen:]


def test_wal_without_space_is_refused_before_there_is_a_slot(shop: Pair) -> None:
    seen = len(shop.source.cluster.log())
    message = shop.not_subscribed(wal_space=1)
    assert "The copy of" in message and "MB are free there, of which half may be used" in message
    assert no_slot_was_created(shop, seen)
    seed(shop, wal_space=1 << 40)
    assert_equal(shop, "SELECT * FROM a")


def test_wal_space_is_no_matter_of_native_copies(shop: Pair) -> None:
    assert shop.subscribe(wal_space=1, initial_copy="native")["changed"]


@contextlib.contextmanager
def setting(place: Place, name: str, value: str) -> Iterator[None]:
    """A server with a setting that takes no restart."""
    try:
        place.sql(f"ALTER SYSTEM SET {name} = {value}")
        place.sql("SELECT pg_reload_conf()")
        yield
    finally:
        place.sql(f"ALTER SYSTEM RESET {name}")
        place.sql("SELECT pg_reload_conf()")


def test_wal_that_a_slot_may_not_keep_is_refused(shop: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = len(shop.source.cluster.log())
    with setting(shop.source, "max_slot_wal_keep_size", "'1GB'"):
        with monkeypatch.context() as patched:
            patched.setattr(capacity, "BYTES_PER_SECOND", 1)
            message = shop.not_subscribed(wal_space=1 << 60)
        assert "(max_slot_wal_keep_size): it would be lost" in message
        assert no_slot_was_created(shop, seen)
        seed(shop)


@pytest.mark.parametrize("jobs", [1, 3])
def test_connections_of_the_distributor_may_be_just_enough(shop: Pair, jobs: int) -> None:
    """One is there when they are counted."""
    limit = SQL("ALTER ROLE {role} CONNECTION LIMIT ").format(role=Identifier(shop.distributor))
    shop.sql_source(limit + SQL(str(jobs + 4)))
    message = shop.not_subscribed(jobs=jobs)
    assert f"to the source: {jobs + 3} left, and {jobs + 4} needed." in message
    shop.sql_source(limit + SQL(str(jobs + 5)))
    seed(shop, jobs=jobs)
    assert_equal(shop, "SELECT * FROM a")
    assert_streams(shop, "DELETE FROM a WHERE id < 9", "SELECT * FROM a")
