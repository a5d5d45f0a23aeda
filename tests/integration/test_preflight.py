# SPDX-License-Identifier: GPL-3.0-or-later
"""What pgml_preflight_info finds on one server: each kind where it begins, and not before."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from psycopg2.sql import SQL, Identifier

from tests.conftest import program_of
from tests.support.cluster import Cluster, make_directory
from tests.support.pair import Pair, Place, Stopwatch, pair_of, wait_for

MODULE = "pgml_preflight_info"
TABLES = "CREATE TABLE users (id int PRIMARY KEY, name text); CREATE TABLE log (entry text)"
REMEMBERED = """
CREATE SCHEMA pgml_distributed;
CREATE TABLE pgml_distributed.distributions (
    name text PRIMARY KEY, strategy text NOT NULL, automatic boolean NOT NULL, upstream text NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp());
INSERT INTO pgml_distributed.distributions VALUES ('shop', 'logical', true, 'prod')
"""


def upstream(pair: Pair, *entries: dict[str, Any], **options: Any) -> dict[str, Any]:
    """The option as_upstream for *entries*, each a change of a distribution of table users by dump."""
    base = {"name": "shop", "strategy": "dump", "database": pair.source.database, "tables": ["users"]}
    return {"distributor": pair.distributor, "distributions": [{**base, **entry} for entry in entries], **options}


def replica(pair: Pair, *entries: dict[str, Any], **options: Any) -> dict[str, Any]:
    """The option as_replica likewise."""
    base = {
        "name": "shop",
        "strategy": "dump",
        "database": pair.target.database,
        "tables": ["users"],
        "upstream": "prod",
        "source": pair.endpoint,
    }
    return {"distributions": [{**base, **entry} for entry in entries], **options}


def looked(place: Place, **options: Any) -> dict[str, Any]:
    """What the module returns, having changed nothing, in check mode and outside of it."""
    before = place.fingerprint()
    result = place.ok(MODULE, **{**options, "login_db": "postgres"})
    assert place.ok(MODULE, check=True, **{**options, "login_db": "postgres"})["findings"] == result["findings"]
    assert place.fingerprint() == before and not result["changed"]
    return result


def found(result: dict[str, Any]) -> list[tuple[str, str]]:
    return [(each["severity"], each["kind"]) for each in result["findings"]]


def test_nothing_is_found_where_nothing_is_wrong(pair: Pair) -> None:
    pair.source.sql(TABLES)
    above = looked(pair.source, as_upstream=upstream(pair, {}))
    below = looked(pair.target, as_replica=replica(pair, {}), asked_at=1.5)
    assert found(above) == found(below) == []
    assert above["facts"]["tables"] == {"shop": ["public.users"]}
    size = pair.source.value("SELECT pg_total_relation_size('users')")
    assert above["facts"]["sizes"] == {"shop": size} and size > 0
    assert above["facts"]["wal_space"] > 0
    assert above["facts"]["distributor_exists"] and above["facts"]["sets_password"]
    assert below["facts"]["arriving"][0]["new"]
    (source,) = below["facts"]["sources"]
    assert source["reached"] and source["system_identifier"] == above["facts"]["system_identifier"]
    assert abs(source["ahead"]) < 1 and below["facts"]["clock"]["asked_at"] == 1.5


def test_what_is_remembered_of_distributions_is_returned(pair: Pair) -> None:
    assert looked(pair.target, as_replica=replica(pair, {}))["distributions"] == {pair.target.database: {}}
    missing = looked(pair.target, as_replica=replica(pair, {"database": "no such database"}))
    assert missing["distributions"] == {"no such database": {}} and found(missing) == []
    pair.target.sql(REMEMBERED)
    assert looked(pair.target, as_replica=replica(pair, {}))["distributions"] == {
        pair.target.database: {"shop": {"strategy": "logical", "automatic": True, "upstream": "prod"}}
    }


def test_a_strategy_that_is_yet_to_be_chosen(pair: Pair) -> None:
    """What each of them needs is looked at, and no more."""
    pair.source.sql(TABLES)
    pair.target.sql(TABLES + "; INSERT INTO users VALUES (1)")
    above = looked(pair.source, as_upstream=upstream(pair, {"strategy": "auto", "tables": ["log"]}))
    assert found(above) == [] and above["facts"]["tables"] == {"shop": ["public.log"]} and above["facts"]["sizes"] == {}
    missing = looked(pair.source, as_upstream=upstream(pair, {"strategy": "auto", "tables": ["missing"]}))
    assert found(missing) == [("error", "table")]
    met = arrives(pair, {"strategy": "auto"})
    assert met["new"] and met["filled"] == []
    pair.target.sql(REMEMBERED)
    assert not arrives(pair, {"strategy": "auto"})["new"]


@pytest.fixture(scope="module")
def tight(default_major: int) -> Iterator[Cluster]:
    """A server with limits that just suffice for a little."""
    origins = {"max_active_replication_origins": "4"} if default_major >= 18 else {}
    settings = {
        "wal_level": "logical",
        "max_replication_slots": "4",
        "max_wal_senders": "7",
        "max_sync_workers_per_subscription": "1",
        "max_logical_replication_workers": "4",
        "max_worker_processes": "9",
        "max_connections": "30",
        **origins,
    }
    with Cluster(make_directory(), program_of(default_major), settings) as server:
        yield server


@pytest.fixture
def one(tight: Cluster) -> Iterator[Pair]:
    """Two databases of that server."""
    with pair_of(tight, tight) as made:
        yield made


@contextmanager
def slots(place: Place, *names: str, plugin: str | None = None) -> Iterator[None]:
    """Slots that somebody else has, physical without a plugin."""
    for name in names:
        if plugin:
            place.sql("SELECT pg_create_logical_replication_slot(%s, %s)", [name, plugin])
        else:
            place.sql("SELECT pg_create_physical_replication_slot(%s)", [name])
    yield
    for name in names:
        place.sql("SELECT pg_drop_replication_slot(%s)", [name])


def test_settings_of_an_upstream_are_held_against_the_need(one: Pair) -> None:
    """A subscription takes three slots, beside those of others, and as many senders and three more."""
    asked = {"as_upstream": upstream(one, subscriptions=1)}
    with slots(one.source, "theirs"):
        assert found(looked(one.source, **asked)) == []
    with slots(one.source, "theirs", "more"):
        result = looked(one.source, **asked)
        assert found(result) == [("error", "setting")] * 2
        for each, (name, now, need) in zip(
            result["findings"], (("max_replication_slots", 4, 5), ("max_wal_senders", 7, 8)), strict=True
        ):
            assert each["message"] == (
                f"{name} is {now} and has to be {need}, which takes a restart: run ALTER SYSTEM SET {name} = {need} and restart "
                "the server yourself, or allow it with pgml_primary_restart: true."
            )
        allowed = {"as_upstream": upstream(one, subscriptions=1, restart=True)}
        assert found(looked(one.source, **allowed)) == []
        managed = {"as_upstream": upstream(one, subscriptions=1, restart=True, managed=True)}
        messages = [each["message"] for each in looked(one.source, **managed)["findings"]]
        assert messages[0] == (
            "max_replication_slots is 4 and has to be 5; the server is managed, so set it where its service is."
        )
    # What others have is no matter where nothing is replicated.
    one.source.sql(TABLES)
    with slots(one.source, "theirs", "more"):
        assert found(looked(one.source, as_upstream=upstream(one, {}))) == []


def test_a_managed_upstream_bounds_the_wal_by_itself(one: Pair) -> None:
    options = {"subscriptions": 1, "max_slot_wal_keep_size": "50GB"}
    assert found(looked(one.source, as_upstream=upstream(one, **options))) == []
    (finding,) = looked(one.source, as_upstream=upstream(one, managed=True, **options))["findings"]
    assert finding["message"].startswith("max_slot_wal_keep_size is -1 and has to be 50GB; the server is managed")


def test_slots_that_are_missing_find_room(one: Pair) -> None:
    """Slots by our names that nobody lists any more count as used, and those that are there are not missing."""
    one.source.sql(TABLES)
    entry = {"strategy": "logical", "slots": ["pgml_shop_a", "pgml_shop_b"]}
    asked = {"as_upstream": upstream(one, entry, subscriptions=1, restart=True)}
    with slots(one.source, "pgml_old_a", "pgml_old_b"):
        assert found(looked(one.source, **asked)) == []
        with slots(one.source, "pgml_old_c"):
            (finding,) = looked(one.source, **asked)["findings"]
            assert finding["message"] == (
                "Replication slots (max_replication_slots = 4): 1 left, and 2 needed: drop those that nobody reads, or raise it."
            )
            with slots(one.source, "pgml_shop_b", plugin="pgoutput"):
                result = looked(one.source, **asked)
                assert "All replication slots are in use (4 of max_replication_slots = 4: pgml_old_a, " in str(result)
                assert result["facts"]["slots"] == ["pgml_shop_b"]


@pytest.mark.parametrize(
    ("plugin", "words"), [(None, "a physical slot"), ("test_decoding", "of plugin test_decoding in database ")]
)
def test_a_slot_of_our_name_that_is_not_ours(one: Pair, plugin: str | None, words: str) -> None:
    one.source.sql(TABLES)
    asked = {"as_upstream": upstream(one, {"strategy": "logical", "slots": ["pgml_shop_a"]})}
    with slots(one.source, "pgml_shop_a", plugin=plugin):
        result = looked(one.source, **asked)
    assert found(result) == [("error", "name")]
    assert f"Slot pgml_shop_a, which distribution shop is to have, is {words}" in result["findings"][0]["message"]


def test_settings_of_a_replica_are_held_against_the_need(one: Pair) -> None:
    """A subscription takes a worker and an origin, and one each for the tables that it copies at a time."""
    entries = [{"name": name, "strategy": "logical", "tables": [name]} for name in ("a", "b", "c")]
    assert found(looked(one.target, as_replica=replica(one, *entries[:2], restart=False, jobs=1))) == []
    result = looked(one.target, as_replica=replica(one, *entries, restart=False, jobs=1))
    settings = [each["message"].split(" is ")[0] for each in result["findings"]]
    assert settings[0] == "max_logical_replication_workers" and settings[-1] == "max_worker_processes"
    assert len(settings) == 3 and "pgml_replica_restart: true" in result["findings"][0]["message"]
    assert found(looked(one.target, as_replica=replica(one, *entries, jobs=1))) == []


def test_origins_and_connections_that_are_left(one: Pair) -> None:
    entries = [{"name": name, "strategy": "logical", "tables": [name]} for name in ("a", "b")]
    one.target.sql("SELECT pg_replication_origin_create('theirs'), pg_replication_origin_create('more')")
    try:
        free = one.target.value("SELECT 30 - 3 - count(*) FROM pg_stat_activity WHERE datid IS NOT NULL")
        fits = replica(one, *entries, restart=False, jobs=free - 2)
        assert found(looked(one.target, as_replica=fits)) == []
        one.target.sql("SELECT pg_replication_origin_create('third')")
        result = looked(one.target, as_replica={**fits, "jobs": free - 1})
        messages = [each["message"] for each in result["findings"]]
        assert found(result) == [("error", "limit")] * 2
        assert ": 1 left, and 2 needed: raise max_" in messages[0]
        assert f"{free} left, and {free + 1} needed" in messages[1]
    finally:
        one.target.sql("SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin")


def test_tables_and_databases_that_are_not_there(pair: Pair) -> None:
    pair.source.sql(TABLES)
    entries = [
        {"name": "a", "tables": ["users", "missing"]},
        {"name": "b", "schemas": ["nowhere"], "tables": []},
        {"name": "c", "strategy": "fdw", "tables": ["gone"]},
        {"name": "d", "strategy": "logical", "tables": ["log"]},
        {"name": "e", "database": "no such database"},
        {"name": "f", "strategy": "logical", "tables": [{"name": "users", "columns": ["age"]}]},
        {"name": "g", "strategy": "fdw", "tables": ["log"]},
        {"name": "h", "strategy": "logical"},
    ]
    result = looked(pair.source, as_upstream=upstream(pair, *entries))
    messages = [each["message"] for each in result["findings"]]
    assert found(result) == [("error", kind) for kind in ("table",) * 3 + ("replica_identity", "table", "database")]
    for words, message in zip(
        (
            "There is no table public.missing in ",
            "There is no schema nowhere in ",
            "There is no table public.gone in ",
            "public.log has no replica identity (no primary key)",
            "public.users has no column age",
            'Database "no such database" of distribution e does not exist: create it, or correct its name.',
        ),
        messages,
        strict=True,
    ):
        assert words in message
    assert set(result["facts"]["tables"]) == {"g", "h"} and set(result["facts"]["sizes"]) == {"h"}
    full = looked(pair.source, as_upstream=upstream(pair, entries[3], replica_identity="full"))
    assert found(full) == []


def test_tables_that_come_in_the_same_run_are_not_looked_for(pair: Pair) -> None:
    """A replica that others take their data from."""
    entry = {"strategy": "logical", "database": pair.target.database, "tables": ["not_yet"]}
    wanted = {"as_upstream": upstream(pair, entry), "as_replica": replica(pair, entry)}
    result = looked(pair.target, **wanted)
    assert found(result) == [] and result["facts"]["tables"] == {}
    assert found(looked(pair.target, as_upstream=wanted["as_upstream"])) == [("error", "table")]


def test_a_publication_that_can_not_become_ours(pair: Pair) -> None:
    pair.source.sql(TABLES + "; CREATE PUBLICATION pgml_shop FOR ALL TABLES WITH (publish = 'insert')")
    result = looked(pair.source, as_upstream=upstream(pair, {"strategy": "logical"}))
    assert found(result) == [("error", "table")] and "allow recreate" in result["findings"][0]["message"]


def test_a_lock_is_not_waited_for(pair: Pair) -> None:
    """The size is an estimate then, and rows are not looked for."""
    pair.source.sql(TABLES + "; INSERT INTO users SELECT i, 'name' FROM generate_series(1, 10000) AS i; ANALYZE users")
    size = pair.source.value("SELECT pg_relation_size('users') + pg_relation_size('users_pkey')")
    pair.target.sql(TABLES)
    with pair.source.transaction("LOCK users"), pair.target.transaction("LOCK users"), Stopwatch() as watch:
        above = pair.source.ok(MODULE, as_upstream=upstream(pair, {}), login_db="postgres")
        below = pair.target.ok(MODULE, as_replica=replica(pair, {"strategy": "logical"}), login_db="postgres")
    assert watch.seconds < 15
    assert found(above) == [] and above["facts"]["sizes"]["shop"] == size
    assert found(below) == [("warning", "unseen")]


def arrives(pair: Pair, *entries: dict[str, Any], **options: Any) -> Any:
    """What the replica would meet with the first of the distributions."""
    result = looked(pair.target, as_replica=replica(pair, *entries, **options))
    assert found(result) == []
    return result["facts"]["arriving"][0]


def test_what_is_where_tables_are_to_come(pair: Pair) -> None:
    logical = {"strategy": "logical", "tables": ["users", "log", "seen"]}
    pair.target.sql(TABLES + "; INSERT INTO users VALUES (1); CREATE VIEW seen AS SELECT 1 AS one")
    nothing = {"filled": [], "fed": {}, "others": {}}
    for entry in (
        logical,
        {"strategy": "dump", "tables": [], "schemas": ["public"]},
        {"strategy": "dump", "tables": []},
    ):
        met = arrives(pair, entry)
        assert met["new"] and met["filled"] == ["public.users"] and met["others"] == {"public.seen": "a view"}
    assert arrives(pair, {**logical, "initial_copy": "none"})["filled"] == []
    assert nothing.items() <= arrives(pair, {"tables": ["log"]}).items()
    assert nothing.items() <= arrives(pair, {"tables": [], "schemas": ["elsewhere"]}).items()
    pair.target.sql(REMEMBERED)
    assert nothing.items() <= arrives(pair, logical).items()


def test_what_has_come_already_is_not_new(pair: Pair) -> None:
    pair.source.sql(TABLES + "; INSERT INTO users VALUES (1)")
    pair.grant()
    pair.target.ok("pgml_dump_restore", tables=["users"], source=pair.endpoint)
    assert not arrives(pair, {})["new"]
    pair.target.sql("CREATE TABLE orders (id int PRIMARY KEY)")
    pair.source.sql("CREATE TABLE orders (id int PRIMARY KEY)")
    pair.grant()
    pair.publish("orders", name="pgml_shop")
    pair.subscribe(name="pgml_shop", publications=["pgml_shop"])
    logical = {"strategy": "logical", "tables": ["orders"]}
    assert not arrives(pair, logical)["new"]
    # Its own tables are nobody else's when it comes by another strategy, and another distribution's they are not.
    assert arrives(pair, {"tables": ["orders"]})["fed"] == {}
    assert arrives(pair, {**logical, "name": "more"})["fed"] == {"public.orders": "pgml_shop"}
    (finding,) = looked(pair.target, as_replica=replica(pair, {**logical, "publication": "other"}))["findings"]
    assert finding["message"].startswith(
        "Subscription pgml_shop takes publication pgml_shop and not other: drop it, or"
    )


def test_a_replica_with_nothing_left_to_do_is_settled(pair: Pair) -> None:
    """As soon as anything is left that a module would do, it is not."""
    pair.both("CREATE TABLE orders (id int PRIMARY KEY, note text); CREATE INDEX by_note ON orders (note)")
    entry = {"strategy": "logical", "tables": ["orders"]}

    def published(**changed: Any) -> list[str]:
        return list(looked(pair.source, as_upstream=upstream(pair, {**entry, **changed}))["facts"]["published"])

    def settled(**changed: Any) -> bool:
        result = looked(pair.target, as_replica=replica(pair, {**entry, "slot": pair.name, **changed}))
        return bool(result["facts"]["settled"])

    assert published() == []
    pair.publish("orders", name="pgml_shop")
    assert published() == ["shop"] and published(tables=[{"name": "orders", "columns": ["id"]}]) == []

    assert not settled()
    subscription = {"name": "pgml_shop", "publications": ["pgml_shop"], "slot_name": pair.name}
    pair.subscribe(**subscription)
    assert not settled(), "nothing is remembered"
    memory = {"name": "shop", "strategy": "logical", "upstream": "prod"}
    pair.target.ok("pgml_distribution", **memory, automatic=True)
    assert not settled(), "the choice isn't left to us any more"
    pair.target.ok("pgml_distribution", **memory)
    assert settled()
    assert not settled(upstream="other") and not settled(slot="other") and not settled(source=None)
    assert not settled(source={**pair.endpoint, "connect_params": {"application_name": "other"}})

    pair.target.sql("DROP INDEX by_note")
    assert not settled(), "an index is missing"
    pair.target.sql("CREATE INDEX by_note ON orders (note)")
    assert settled()

    pair.source.sql("CREATE TABLE later (id int PRIMARY KEY)")
    pair.grant()
    assert not settled(tables=["orders", "later"]), "a table is missing"
    pair.target.sql("CREATE TABLE later (id int PRIMARY KEY); INSERT INTO later VALUES (1)")
    pair.source.sql("INSERT INTO later VALUES (1); ALTER PUBLICATION pgml_shop ADD TABLE later")
    assert not settled(), "the subscription doesn't know of a table"
    pair.target.sql("ALTER SUBSCRIPTION pgml_shop REFRESH PUBLICATION")
    pair.target.sql("ALTER SUBSCRIPTION pgml_shop DISABLE")
    assert not settled(tables=["orders", "later"]), "a table is not ready"
    pair.target.sql("TRUNCATE later")
    pair.subscribe(**subscription, enabled=True)
    assert settled(tables=["orders", "later"])

    pair.target.sql("ALTER SYSTEM SET max_connections = 90")
    try:
        pair.target.sql("SELECT pg_reload_conf()")
        wait_for(lambda: pair.target.value("SELECT bool_or(pending_restart) FROM pg_settings"))
        assert not settled(tables=["orders", "later"]), "a setting waits for a restart"
    finally:
        pair.target.sql("ALTER SYSTEM RESET max_connections")
        pair.target.sql("SELECT pg_reload_conf()")
    wait_for(lambda: settled(tables=["orders", "later"]))
    pair.target.ok("pgml_subscription", name="pgml_shop", state="absent")
    assert not settled()


def test_a_foreign_server_of_our_name_that_is_not_ours(pair: Pair) -> None:
    entry = {"strategy": "fdw"}
    assert arrives(pair, entry)["new"]
    pair.target.sql("CREATE EXTENSION postgres_fdw; CREATE SERVER shop FOREIGN DATA WRAPPER postgres_fdw")
    result = looked(pair.target, as_replica=replica(pair, entry))
    assert found(result) == [("error", "name")]
    assert result["findings"][0]["message"].startswith("Foreign server shop is there already in ")
    pair.target.sql("DROP SERVER shop")
    pair.target.ok("pgml_fdw", server="shop", source=pair.endpoint)
    assert not arrives(pair, entry)["new"]


def test_a_schema_of_somebody_else_is_not_read(pair: Pair) -> None:
    """Functions of its owner would run with the administrator's rights."""
    owner = Identifier(pair.distributor + "_x")
    pair.target.cluster.sql(SQL("CREATE ROLE {}").format(owner))
    try:
        pair.target.sql(REMEMBERED)
        pair.target.sql(SQL("ALTER TABLE pgml_distributed.distributions OWNER TO {}").format(owner))
        result = looked(pair.target, as_replica=replica(pair, {}))
        assert found(result) == [("error", "name")] and "pgml_distributed" in result["findings"][0]["message"]
    finally:
        pair.target.sql(SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(owner))


def test_a_server_out_of_reach_is_a_finding(pair: Pair) -> None:
    """Refused by its password, or by nobody being there; the source is looked for all the same."""
    asked = {"as_replica": replica(pair, {}), "login_db": "postgres"}
    for login in ({"login_password": "wrong"}, {"login_port": 1}, {"login_host": "no-such-host.invalid"}):
        result = pair.target.ok(MODULE, **{**asked, **login})
        assert found(result) == [("error", "unreachable")]
        assert "Can't connect to database" in result["findings"][0]["message"]
        assert result["facts"]["sources"][0]["reached"] and result["distributions"] == {}


AHEAD = """
#include <dlfcn.h>
#include <stddef.h>
#include <sys/time.h>
int gettimeofday(struct timeval *now, void *zone) {
    int (*real)(struct timeval *, void *) = dlsym((void *) -1L, "gettimeofday");
    int result = real(now, zone);
    now->tv_sec += 60;
    return result;
}
"""
"""What makes a server's clock a minute fast"""


def test_a_clock_that_is_ahead_is_measured(pair: Pair) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no compiler makes a server's clock go wrong")
    directory = make_directory()
    library = directory / "ahead.so"
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(library), "-ldl"]
    subprocess.run(command, input=AHEAD, text=True, check=True)
    place = pair.target.cluster
    with Cluster(directory, place.bin_dir, environment={"LD_PRELOAD": str(library)}) as fast:
        wanted = {"as_replica": replica(pair, {}), "asked_at": time.time()}
        facts = Place(fast, "postgres").ok(MODULE, **wanted)["facts"]
    assert 59 < facts["clock"]["ahead"] < 61 and 59 < facts["clock"]["server"] - wanted["asked_at"] < 75
    assert -61 < facts["sources"][0]["ahead"] < -59


@pytest.mark.parametrize(
    ("change", "answered"),
    [
        ({"password": "wrong"}, True),
        ({"user": "nobody at all"}, True),
        ({"db": "no such database"}, True),
        ({"port": 1}, False),
        ({"host": "no-such-host.invalid"}, False),
        ({"ssl_mode": "require"}, False),
    ],
)
def test_a_source_that_answers_is_told_from_one_that_is_out_of_reach(
    pair: Pair, change: dict[str, Any], answered: bool
) -> None:
    result = looked(pair.target, as_replica=replica(pair, {"source": {**pair.endpoint, **change}}))
    assert found(result) == []  # what it means depends on the upstream
    (source,) = result["facts"]["sources"]
    assert (source["reached"], source["answered"]) == (False, answered) and "Can't connect to" in source["message"]


def test_an_expired_distributor_and_its_limit(pair: Pair) -> None:
    role = Identifier(pair.distributor)
    place = pair.source
    before = looked(place, as_upstream=upstream(pair))["facts"]["free_connections"]
    assert before > 4
    place.sql(SQL("ALTER ROLE {} CONNECTION LIMIT 4 VALID UNTIL '2100-01-01'").format(role))
    result = looked(place, as_upstream=upstream(pair))
    assert found(result) == [] and result["facts"]["free_connections"] == 4
    place.sql(SQL("ALTER ROLE {} VALID UNTIL '2001-01-01'").format(role))
    assert found(looked(place, as_upstream=upstream(pair))) == [("error", "distributor")]
    unknown = looked(place, as_upstream={**upstream(pair), "distributor": "nobody at all"})
    assert not unknown["facts"]["distributor_exists"] and unknown["facts"]["free_connections"] == before


def test_bad_options_fail(pair: Pair) -> None:
    assert "connect_params holds password" in pair.target.refused(MODULE, connect_params={"password": "x"})
    wrong = replica(pair, {"source": {**pair.endpoint, "connect_params": {"no_such_keyword": "x"}}})
    assert "The source options make no connection string" in pair.target.refused(MODULE, as_replica=wrong)


def test_no_password_is_returned(pair: Pair) -> None:
    result = looked(pair.target, as_replica=replica(pair, {"source": {**pair.endpoint, "port": 1}}))
    assert pair.password not in str(result)


def test_every_version_is_looked_at(each_major: Pair) -> None:
    pair = each_major
    pair.source.sql(TABLES)
    entries = [{"strategy": "logical", "slots": ["pgml_shop_a"]}, {"name": "b"}, {"name": "c", "strategy": "fdw"}]
    above = looked(pair.source, as_upstream=upstream(pair, *entries, subscriptions=1))
    assert [each for each in found(above) if each != ("warning", "version")] == []
    below = [{key: value for key, value in entry.items() if key != "slots"} for entry in entries]
    assert found(looked(pair.target, as_replica=replica(pair, *below))) == []
    assert above["facts"]["version"] // 10000 == pair.source.cluster.major
