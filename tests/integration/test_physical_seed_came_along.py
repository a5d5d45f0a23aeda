# SPDX-License-Identifier: GPL-3.0-or-later
"""What comes along with a physical copy of a primary never runs on the replica, and the primary doesn't notice the copy."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import pytest

from tests.support import copies, physical
from tests.support.cluster import Cluster, make_directory
from tests.support.pair import Place, create_role, forget_slots, forget_subscriptions, wait_for
from tests.support.physical import Seeding, definitions

FEED = "CREATE TABLE {0} (id int PRIMARY KEY)"


@pytest.fixture(scope="module")
def templates() -> Iterator[list[Cluster]]:
    with physical.templates() as made:
        yield made


@pytest.fixture
def two(templates: list[Cluster]) -> Iterator[Seeding]:
    with physical.seeding(templates) as made:
        yield made


class Third:
    """A server that the primary subscribes to: to a table whose rows are there, and to one whose first copy never ends."""

    def __init__(self, cluster: Cluster, two: Seeding) -> None:
        self.cluster, self._two = cluster, two

    def end(self) -> None:
        forget_subscriptions(self._two.source)
        forget_slots(Place(self.cluster, "postgres"))

    def feed(self) -> None:
        create_role(self.cluster, "feeder", "LOGIN REPLICATION", "feed")
        self.cluster.sql("GRANT pg_read_all_data TO feeder")
        for name in ("fed", "stuck"):
            self.cluster.sql(FEED.format(name))
            self.cluster.sql(
                f"INSERT INTO {name} SELECT generate_series(1, 10); CREATE PUBLICATION {name} FOR TABLE {name}"
            )
            self._two.source.sql(FEED.format(name))
        self._two.source.sql("ALTER TABLE stuck ADD CHECK (id > 10)")
        for name in ("fed", "stuck"):
            conninfo = f"host=127.0.0.1 port={self.cluster.port} user=feeder password=feed dbname=postgres"
            self._two.source.sql(f"CREATE SUBSCRIPTION {name} CONNECTION '{conninfo}' PUBLICATION {name}")
        wait_for(lambda: self._states() == {"fed": "r", "stuck": "d"}, 20, "the tables' states")
        # A copy that is under way would hold up every new slot of the primary's.
        self._two.source.sql("ALTER SYSTEM SET wal_retrieve_retry_interval = '1h'")
        self._two.source.sql("SELECT pg_reload_conf()")
        wait_for(self._waits, 20, "the first copy to have failed")

    def _waits(self) -> bool:
        """Whether nothing happens any more."""
        before = self.slots(), self.calls()
        time.sleep(0.7)
        return [row[1] is None for row in sorted(before[0])] == [False, True, False] and before == (
            self.slots(), self.calls(),
        )  # fmt: skip

    def _states(self) -> dict[str, str]:
        return dict(self._two.source.sql("SELECT srrelid::regclass::text, srsubstate::text FROM pg_subscription_rel"))

    def slots(self) -> set[tuple[Any, ...]]:
        """The slots, with who reads them."""
        return set(self.cluster.sql("SELECT slot_name, active_pid FROM pg_replication_slots"))

    def calls(self) -> int:
        """How many connections the feeder has asked for."""
        return self.cluster.log().count("connection authorized: user=feeder")

    def goes_on(self) -> None:
        """What the primary takes from here still comes."""
        self.cluster.sql("INSERT INTO fed SELECT max(id) + 1 FROM fed")
        query = "SELECT count(*) FROM fed"
        wait_for(lambda: self._two.source.sql(query) == self.cluster.sql(query), 20, "the primary's own feed")


@contextmanager
def third_of(template: Cluster, two: Seeding) -> Iterator[Third]:
    with template.clone() as cluster:
        cluster.settings["log_connections"] = "on"
        cluster.restart()
        third = Third(cluster, two)
        try:
            third.feed()
            yield third
        finally:
            third.end()


def fingerprint(two: Seeding) -> set[Any]:
    return two.source.fingerprint() | Place(two.primary, "postgres").fingerprint()


def test_subscriptions_never_call_their_publisher(two: Seeding, templates: list[Cluster]) -> None:
    with third_of(templates[1], two) as third:
        before = fingerprint(two), third.slots(), third.calls()
        prepared = two.prepare()
        for name in ("fed", "stuck"):
            assert f"Drop copied subscription {name} in database shop" in prepared["taken_away"]
        assert (third.slots(), third.calls()) == before[1:]
        two.swap()
        two.step("finished")
        third.goes_on()
        two.assert_equal()
        assert (third.slots(), third.calls()) == before[1:]
        assert fingerprint(two) == before[0] | {("slot", "", two.slot)}
        assert two.target.sql("SELECT subname FROM pg_subscription") == [("sub",)]
        assert two.target.sql("SELECT external_id ~ '^pg_' FROM pg_replication_origin_status") == [(True,)]
        assert two.target.sql("SELECT count(*) FROM pg_replication_origin") == [(1,)]
        orphans = "SELECT count(*) FROM pg_subscription_rel WHERE srsubid NOT IN (SELECT oid FROM pg_subscription)"
        assert two.target.sql(orphans) == [(0,)]


def test_a_subscription_that_was_made_by_hand_and_has_our_name(two: Seeding, templates: list[Cluster]) -> None:
    two.source.sql(
        "CREATE SUBSCRIPTION sub CONNECTION 'host=/nonexistent' PUBLICATION other WITH (connect = false, slot_name = 'theirs')"
    )
    two.seed()
    two.assert_done()
    assert two.source.sql("SELECT subslotname FROM pg_subscription") == [("theirs",)]


def test_slots_and_publications(two: Seeding) -> None:
    two.primary.create_database("other")
    slots = [
        "SELECT pg_create_physical_replication_slot('phys', true)",
        "SELECT pg_create_logical_replication_slot('logi', 'test_decoding')",
    ]
    for statement in slots:
        two.source.sql(statement)
    two.primary.sql("SELECT pg_create_logical_replication_slot('elsewhere', 'pgoutput')", dbname="other")
    two.source.sql("CREATE PUBLICATION more FOR TABLE t WHERE (id > 5)")
    before = fingerprint(two)
    two.seed(undistributed="keep")
    assert two.replica.sql("SELECT count(*) FROM pg_replication_slots") == [(0,)]
    assert two.target.sql("SELECT count(*) FROM pg_publication") == [(0,)]
    assert fingerprint(two) == before | {("slot", "", two.slot)}
    two.primary.sql(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name <> %s", [two.slot]
    )
    two.assert_done()


def test_tablespaces(two: Seeding) -> None:
    theirs, mine, new = (make_directory() for _ in range(3))
    new.rmdir()
    try:
        two.primary.sql(f"CREATE TABLESPACE fast LOCATION '{theirs}'")
        two.source.sql("CREATE TABLE spaced (id int PRIMARY KEY) TABLESPACE fast; INSERT INTO spaced VALUES (1), (2)")
        two.replica.sql(f"CREATE TABLESPACE own LOCATION '{mine}'")
        two.replica.sql("CREATE TABLE old (id int) TABLESPACE own")
        two.seed(tablespaces={"fast": str(new)})
        two.assert_done()
        assert two.replica.sql("SELECT spcname, pg_tablespace_location(oid) FROM pg_tablespace WHERE oid >= 16384") == [
            ("fast", str(new))
        ]
        path = two.target.value("SELECT pg_relation_filepath('spaced')")
        assert (two.replica.data / path).resolve().is_relative_to(new)
        assert list(mine.iterdir()) == [], "files of the old cluster are left"
        assert new.stat().st_uid == two.replica.data.stat().st_uid
    finally:
        for directory in (theirs, mine, new):
            with suppress(FileNotFoundError):
                two.primary.stop("immediate")
                two.replica.stop("immediate")
                shutil.rmtree(directory)


def test_an_unlogged_table_is_there_without_rows(two: Seeding) -> None:
    two.source.sql(
        'CREATE UNLOGGED TABLE "Passing" (id serial); INSERT INTO "Passing" VALUES (1); CREATE INDEX ON "Passing" (id)'
    )
    (warning,) = two.seed()["warnings"]
    assert 'shop.public."Passing"' in warning
    assert two.target.sql('SELECT count(*) FROM "Passing"') == [(0,)]
    two.target.sql('INSERT INTO "Passing" DEFAULT VALUES')


TRAPS = """
    CREATE SCHEMA trap;
    CREATE FUNCTION trap.spring() RETURNS event_trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'sprung by %', tg_tag; END $$;
    CREATE FUNCTION trap.obj_description(oid, name) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'sprung'; END $$;
    ALTER DATABASE shop SET search_path = trap, pg_catalog;
    ALTER DATABASE shop SET default_transaction_read_only = on;
    ALTER ROLE postgres SET default_transaction_read_only = on;
    ALTER ROLE ALL SET session_replication_role = origin;
    ALTER DATABASE shop SET default_transaction_deferrable = on;
    ALTER DATABASE shop SET default_transaction_isolation = 'serializable';
    ALTER DATABASE shop SET session_preload_libraries = 'auto_explain';
"""


@pytest.mark.parametrize("enabled", ["ENABLE", "ENABLE ALWAYS", "ENABLE REPLICA"])
def test_event_triggers_and_settings(two: Seeding, enabled: str) -> None:
    two.source.sql(TRAPS)
    unhindered(two.source, "CREATE EVENT TRIGGER trap ON ddl_command_start EXECUTE FUNCTION trap.spring()")
    unhindered(two.source, f"ALTER EVENT TRIGGER trap {enabled}")
    before = definitions(two.source)
    two.prepare()
    two.swap()
    two.step("finished")
    assert copies.changed_lines(before, definitions(two.target)) == ""
    unhindered(two.source, "INSERT INTO t (v) VALUES ('written'); UPDATE t SET v = 'all' WHERE id < 9; TRUNCATE more.p")
    query = "SELECT count(*), count(*) FILTER (WHERE v = 'all'), (SELECT count(*) FROM more.p) FROM t"
    wait_for(lambda: unhindered(two.target, query) == [(501, 8, 0)], 20, "what was written later")


def unhindered(place: Place, statement: str) -> list[Any]:
    """Run a statement in spite of the database's settings."""
    with closing(place.cluster.connect(place.database)) as connection, connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = off")
        cursor.execute("SET search_path = public")
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def test_jobs_are_stopped(two: Seeding) -> None:
    """Of pg_cron, or what looks like it: its tables are all that is touched."""
    two.primary.sql(
        "CREATE SCHEMA cron; CREATE TABLE cron.job (jobid bigint, command text, active bool);"
        "INSERT INTO cron.job VALUES (1, 'DELETE', true), (2, 'VACUUM', true), (3, '', false);"
        "SET allow_system_table_mods = on; INSERT INTO pg_extension SELECT 99999, 'pg_cron', 10, oid, false, '1.5'"
        " FROM pg_namespace WHERE nspname = 'cron'"
    )
    result = two.prepare(undistributed="keep")
    assert "Stop 2 copied jobs of pg_cron in database postgres" in result["taken_away"]
    two.swap(undistributed="keep")
    assert two.replica.sql("SELECT count(*) FILTER (WHERE active), count(*) FROM cron.job") == [(0, 3)]
    assert two.primary.sql("SELECT count(*) FILTER (WHERE active) FROM cron.job") == [(2,)]
    two.step("finished")
