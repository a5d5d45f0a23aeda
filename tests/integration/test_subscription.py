# SPDX-License-Identifier: GPL-3.0-or-later
"""Subscriptions: created, altered option by option, refreshed when needed, and left alone otherwise."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg2.sql import SQL, Identifier

from tests.support.pair import Pair, Place, Stopwatch, create_role, forget_subscriptions, wait_for

TABLES = """
    CREATE TABLE a (id bigint PRIMARY KEY, x int);
    CREATE TABLE b (id int PRIMARY KEY, t text);
"""


def fill(pair: Pair) -> Pair:
    """Two tables in both databases, rows at the source, a published."""
    pair.both(TABLES)
    pair.sql_source("INSERT INTO a SELECT g, g FROM generate_series(1, 100) AS g")
    pair.sql_source("INSERT INTO b SELECT g, 'b' || g FROM generate_series(1, 100) AS g")
    pair.publish("a")
    return pair


@pytest.fixture
def shop(pair: Pair) -> Pair:
    return fill(pair)


@pytest.fixture
def new_shop(newest: Pair) -> Pair:
    return fill(newest)


def stored(pair: Pair, column: str) -> Any:
    return pair.target.value(f"SELECT {column} FROM pg_subscription WHERE subname = %s", [pair.name])


def assert_streams(pair: Pair, number: int) -> None:
    pair.sql_source("INSERT INTO a VALUES (%s, 0)", [number])
    pair.arrived("a")


def test_a_subscription_is_created_copied_and_returned(shop: Pair) -> None:
    result = shop.target.converge("pgml_subscription", **shop.subscription())
    assert len(result["changes"]) == 1 and f'Create subscription "{shop.name}"' in result["changes"][0]
    assert shop.sql_target("SELECT count(*), sum(x) FROM a") == [(100, 5050)]
    assert shop.sql_target("SELECT DISTINCT srsubstate FROM pg_subscription_rel") == [("r",)]
    assert shop.slots() == {shop.name}
    subscription = result["subscription"]
    assert subscription["slot_name"] == shop.name and subscription["enabled"] is True
    assert subscription["publications"] == ["pub"] and subscription["source"]["dbname"] == shop.source.database
    assert "password" not in subscription["source"] and result["diff"]["before"] == {}
    assert_streams(shop, 1000)


def test_what_is_not_mentioned_stays(shop: Pair) -> None:
    shop.subscribe(synchronous_commit="local", enabled=False, slot_name="other_slot")
    assert not shop.target.converge("pgml_subscription", name=shop.name)["changed"]
    assert not shop.target.converge("pgml_subscription", **shop.subscription())["changed"]
    assert stored(shop, "subsynccommit") == "local" and stored(shop, "subenabled") is False
    assert stored(shop, "subslotname") == "other_slot"


OPTIONS: list[tuple[str, Any, Any, int]] = [
    ("binary", True, False, 14),
    ("streaming", "on", "off", 14),
    ("streaming", "parallel", "on", 16),
    ("synchronous_commit", "remote_apply", "off", 13),
    ("two_phase", True, False, 18),
    ("disable_on_error", True, False, 15),
    ("password_required", False, True, 16),
    ("run_as_owner", True, False, 16),
    ("origin", "none", "any", 16),
    ("failover", True, False, 17),
]


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("option", "value", "back", "since"), OPTIONS)
def test_every_option_is_altered_and_altered_back(
    new_shop: Pair, option: str, value: Any, back: Any, since: int
) -> None:
    new_shop.subscribe(**{option: back})
    for number, wanted in enumerate((value, back)):
        result = new_shop.target.converge("pgml_subscription", **new_shop.subscription(**{option: wanted}))
        assert any(f"Set {option} = {str(wanted).lower()}" in change for change in result["changes"])
        assert str(result["subscription"][option]).lower() == str(wanted).lower()
        assert stored(new_shop, "subenabled") is True
        assert_streams(new_shop, 1000 + number)


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("option", "value", "back", "since"), OPTIONS)
def test_every_option_is_taken_at_creation(new_shop: Pair, option: str, value: Any, back: Any, since: int) -> None:
    result = new_shop.subscribe(**{option: value})
    assert str(result["subscription"][option]).lower() == str(value).lower()
    assert not new_shop.subscribe(**{option: value})["changed"]
    assert_streams(new_shop, 1000)
    slot = new_shop.sql_source(
        "SELECT failover, two_phase FROM pg_replication_slots WHERE slot_name = %s", [new_shop.name]
    )
    assert slot == [(option == "failover", option == "two_phase")]


def test_options_of_newer_versions_are_refused_with_a_sentence(each_major: Pair) -> None:
    pair = each_major
    fill(pair)
    major = pair.target.cluster.major
    newer = [(option, value, since) for option, value, _, since in OPTIONS if since > major]
    newer = [each for each in newer if each[0] != "two_phase" or major < 15]
    needed = {"two_phase": 15, "streaming": 16 if major >= 14 else 14}

    def assert_refused(message: str, option: str, since: int) -> None:
        words = f"needs PostgreSQL {needed.get(option, since)} or later on the replica; this one is {major}."
        assert option in message and words in message

    for option, value, since in newer:
        assert_refused(pair.not_subscribed(**{option: value}), option, since)
    pair.subscribe()
    for option, value, since in newer:
        message = pair.target.refused("pgml_subscription", **pair.subscription(**{option: value}))
        assert_refused(message, option, since)
    if 15 <= major < 18:
        message = pair.target.refused("pgml_subscription", **pair.subscription(two_phase=True))
        assert "two_phase" in message and "can alter it only from 18 on" in message


def test_several_options_change_in_one_run(new_shop: Pair) -> None:
    new_shop.subscribe()
    options = {"failover": True, "binary": True, "synchronous_commit": "on", "two_phase": True, "enabled": False}
    result = new_shop.target.converge("pgml_subscription", **new_shop.subscription(**options))
    assert options.items() <= result["subscription"].items()
    assert new_shop.target.converge("pgml_subscription", **new_shop.subscription(enabled=True))["changed"]
    assert_streams(new_shop, 1000)


@pytest.mark.parametrize(("way", "rows"), [("snapshot", 100), ("native", 0)])
def test_disabled_subscriptions_are_not_waited_for(shop: Pair, way: str, rows: int) -> None:
    with Stopwatch() as watch:
        shop.target.converge("pgml_subscription", **shop.subscription(enabled=False, initial_copy=way))
    assert watch.seconds < 5 and shop.sql_target("SELECT count(*) FROM a") == [(rows,)]
    shop.sql_source("INSERT INTO a VALUES (101, 0)")
    shop.target.converge("pgml_subscription", **shop.subscription(enabled=True))
    shop.arrived("a", 0.1 if way == "native" else 20)


def test_new_tables_are_refreshed_and_lost_ones_leave(shop: Pair) -> None:
    shop.subscribe()
    shop.publish("a", "b")
    result = shop.target.converge("pgml_subscription", **shop.subscription())
    assert result["changes"] == [f'Refresh subscription "{shop.name}": 1 table new, 0 tables gone']
    shop.arrived("b", 0.1)
    shop.publish("b")
    result = shop.target.converge("pgml_subscription", **shop.subscription())
    assert result["changes"] == [f'Refresh subscription "{shop.name}": 0 tables new, 1 table gone']


def test_publications_are_added_and_removed_with_a_refresh_only_when_needed(shop: Pair) -> None:
    shop.publish("b", name="Second, pub")
    shop.publish("a", name="third")
    shop.subscribe()
    seen = len(shop.target.cluster.log())
    result = shop.target.converge("pgml_subscription", **shop.subscription(publications=["third", "pub"]))
    assert result["changes"] == [f'Set publications of subscription "{shop.name}"']
    assert "REFRESH PUBLICATION" not in shop.target.cluster.log()[seen:]
    result = shop.target.converge("pgml_subscription", **shop.subscription(publications=["pub", "Second, pub"]))
    assert len(result["changes"]) == 2 and "1 table new" in result["changes"][1]
    shop.arrived("b", 0.1)
    result = shop.target.converge("pgml_subscription", **shop.subscription(publications=["pub"]))
    assert "1 table gone" in result["changes"][1]
    assert not shop.subscribe(publications=["pub", "pub"])["changed"]


def test_no_initial_copy_leaves_the_rows_there_alone(shop: Pair) -> None:
    shop.sql_target("INSERT INTO a VALUES (1, -1)")
    shop.target.converge("pgml_subscription", **shop.subscription(initial_copy="none"))
    assert shop.sql_target("SELECT * FROM a") == [(1, -1)]
    shop.publish("a", "b")
    shop.target.converge("pgml_subscription", **shop.subscription(initial_copy="none"))
    assert shop.sql_target("SELECT count(*) FROM b") == [(0,)]
    shop.sql_source("INSERT INTO b VALUES (101, 'later')")
    wait_for(lambda: shop.sql_target("SELECT id FROM b") == [(101,)])


def test_owner_is_set(shop: Pair) -> None:
    owner = f"Owner, {shop.name}"
    create_role(shop.target.cluster, owner, "SUPERUSER LOGIN", "x")
    try:
        assert shop.target.converge("pgml_subscription", **shop.subscription(owner=owner))["changed"]
        assert stored(shop, "pg_get_userbyid(subowner)") == owner
        assert shop.target.converge("pgml_subscription", **shop.subscription(owner="postgres"))["changed"]
        assert_streams(shop, 1000)
    finally:
        shop.target.cluster.sql(SQL("DROP ROLE {}").format(Identifier(owner)))


def test_connections_are_compared_as_values(shop: Pair) -> None:
    shop.subscribe()
    named = {
        **shop.endpoint,
        "connect_params": {"application_name": "it's = \\ here"},
        "port": str(shop.endpoint["port"]),
    }
    result = shop.target.converge("pgml_subscription", **shop.subscription(source=named))
    assert result["changes"] == [f'Set connection of subscription "{shop.name}"']
    assert shop.target.converge("pgml_subscription", **shop.subscription())["changed"]
    assert_streams(shop, 1000)


def test_a_changed_password_is_taken_over(shop: Pair) -> None:
    shop.subscribe()
    with shop.source.transaction("SET log_statement = none"):
        shop.sql_source(SQL("ALTER ROLE {} PASSWORD 'another'").format(Identifier(shop.distributor)))
    result = shop.target.converge(
        "pgml_subscription", **shop.subscription(source={**shop.endpoint, "password": "another"})
    )
    assert result["changes"] == [f'Set connection of subscription "{shop.name}"']
    assert_streams(shop, 1000)


def test_source_and_target_in_one_cluster_do_not_hang(shop: Pair) -> None:
    cluster = shop.source.cluster
    place = Place(cluster, shop.source.database + "_too")
    cluster.create_database(place.database)
    try:
        place.sql(TABLES)
        with Stopwatch() as watch:
            assert place.converge("pgml_subscription", **shop.subscription())["changed"]
        assert watch.seconds < 15
        assert place.sql("SELECT count(*) FROM a") == [(100,)]
        assert shop.slots() == {shop.name}
        with Stopwatch() as watch:
            assert place.converge("pgml_subscription", name=shop.name, state="absent")["changed"]
        assert watch.seconds < 10 and shop.slots() == set()
    finally:
        forget_subscriptions(place)
        cluster.drop_database(place.database)


def test_two_subscriptions_must_not_fill_one_table(shop: Pair) -> None:
    shop.subscribe()
    shop.publish("b", "a", name="second")
    other = {"name": shop.name + "_b", "publications": ["second"], "initial_copy": "none"}
    message = shop.not_subscribed(**other)
    assert "public.a" in message and f"from subscription {shop.name} already" in message and "public.b" not in message
    shop.publish("b", name="second")
    shop.subscribe(**other)
    shop.publish("a", "b", name="second")
    message = shop.target.refused("pgml_subscription", **shop.subscription(**other))
    assert "two distributions must not fill the same table" in message


def test_a_slot_that_vanished_is_noticed(shop: Pair) -> None:
    shop.subscribe(enabled=False)
    shop.sql_source("SELECT pg_drop_replication_slot(%s)", [shop.name])
    for params in ({}, {"enabled": True}):
        message = shop.target.refused("pgml_subscription", **shop.subscription(**params))
        assert f'Slot "{shop.name}"' in message and "is gone" in message and "state=absent" in message
    shop.unsubscribe()
    shop.sql_target("TRUNCATE a")
    shop.subscribe()
    assert_streams(shop, 1000)


def test_a_foreign_slot_of_the_same_name_is_not_touched(shop: Pair) -> None:
    shop.sql_source("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", [shop.name])
    message = shop.not_subscribed()
    assert f'Slot "{shop.name}" exists' in message and "slot_name" in message
    shop.subscribe(slot_name="another_" + shop.name)
    assert shop.slots() == {shop.name, "another_" + shop.name}
    shop.unsubscribe()
    assert shop.slots() == {shop.name}


def test_a_member_of_pg_create_subscription_needs_no_superuser(new_shop: Pair) -> None:
    cluster, role = new_shop.target.cluster, f"creator_{new_shop.name}"
    create_role(cluster, role, "LOGIN", "pw")
    names = {"role": Identifier(role), "database": Identifier(new_shop.target.database)}
    new_shop.sql_target(
        SQL("GRANT pg_create_subscription TO {role}; GRANT CREATE ON DATABASE {database} TO {role}").format(**names)
    )
    new_shop.sql_target(SQL("ALTER TABLE a OWNER TO {role}; ALTER TABLE b OWNER TO {role}").format(**names))
    login = {"login_user": role, "login_password": "pw"}
    try:
        params = new_shop.subscription(origin="none", **login)
        assert new_shop.target.ok("pgml_subscription", check=True, **params)["changed"]
        assert new_shop.target.ok("pgml_subscription", **params)["changed"]
        again = new_shop.target.ok("pgml_subscription", **params)
        assert not again["changed"]
        new_shop.publish("a", "b")
        assert new_shop.target.ok("pgml_subscription", **params, enabled=True, disable_on_error=True)["changed"]
        new_shop.arrived("b", 0.1)
        warnings = new_shop.target.ok("pgml_subscription", **params).get("warnings", [])
        assert any("only superusers can read it" in warning for warning in warnings)
        removed = new_shop.target.converge(
            "pgml_subscription", name=new_shop.name, state="absent", source=new_shop.endpoint, **login
        )
        assert removed["changed"] and new_shop.slots() == set()
        assert again["diff"]["before"] == again["diff"]["after"]
    finally:
        forget_subscriptions(new_shop.target)
        new_shop.sql_target(SQL("DROP OWNED BY {role} CASCADE; DROP ROLE {role}").format(**names))


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"publications": None}, ["publications and source are needed"]),
        ({"source": None}, ["publications and source are needed"]),
        ({"publications": []}, ["publications"]),
        ({"name": "x" * 64}, ["subscription name", "64 bytes", "63"]),
        ({"name": "Capital"}, ['slot_name "Capital" is not possible', "lower-case letters"]),
        ({"slot_name": "da-sh"}, ['slot_name "da-sh" is not possible']),
        ({"name": "ok", "slot_name": "x" * 64}, ["slot_name", "1 to 63"]),
        ({"login_db": "no such"}, ["Can't connect", 'database "no such" does not exist', "login_*"]),
        ({"login_password": "wrong one"}, ["password authentication failed", "login_*"]),
    ],
)
def test_wrong_input_gets_one_clear_sentence(shop: Pair, params: dict[str, Any], words: list[str]) -> None:
    message = shop.not_subscribed(**params)
    for word in words:
        assert word in message
    assert "\n" not in message and "wrong one" not in message


def test_wrong_connection_parameters_get_a_sentence(shop: Pair) -> None:
    for wrong in ({"nonsense": "1"}, {"connect_timeout": "soon"}):
        message = shop.not_subscribed(source={**shop.endpoint, "connect_params": wrong})
        assert next(iter(wrong)) in message and "source" in message
    message = shop.not_subscribed(source={**shop.endpoint, "connect_params": {"password": "hush"}})
    assert "source.connect_params holds password" in message and "hush" not in message


def test_check_mode_forgives_what_an_earlier_task_would_make(shop: Pair) -> None:
    cases: list[dict[str, Any]] = [
        {"login_db": "still_to_come"},
        {"source": {**shop.endpoint, "user": "still_to_come"}},
        {"source": {**shop.endpoint, "db": "still_to_come"}},
        {"publications": ["still to come"]},
    ]
    for params in cases:
        before = shop.source.fingerprint(), shop.target.fingerprint()
        result = shop.target.ok("pgml_subscription", check=True, **shop.subscription(**params))
        assert result["changed"] and (result.get("warnings") or "login_db" in params)
        assert (shop.source.fingerprint(), shop.target.fingerprint()) == before
    shop.sql_target("DROP TABLE a")
    result = shop.target.ok("pgml_subscription", check=True, **shop.subscription())
    assert result["changed"] and "lacks table public.a" in str(result["warnings"])


def test_many_tables_take_queries_that_do_not_grow(pair: Pair) -> None:
    pair.both(
        "DO $$ BEGIN FOR i IN 1..200 LOOP EXECUTE 'CREATE TABLE t' || i || ' (id int PRIMARY KEY)'; END LOOP; END $$"
    )
    pair.publish(*[f"t{i}" for i in range(1, 201)])
    pair.subscribe()
    seen = len(pair.source.cluster.log()), len(pair.target.cluster.log())
    assert not pair.subscribe()["changed"]
    logged = pair.source.cluster.log()[seen[0] :] + pair.target.cluster.log()[seen[1] :]
    assert logged.count("LOG:  statement:") < 25
