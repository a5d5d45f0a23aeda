# SPDX-License-Identifier: GPL-3.0-or-later
"""plan(): from what is there and what is wanted to the statements between, without a server."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import Change
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import (
    distribution,
    grants,
    libraries,
    publication,
    settings,
    subscription,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.distribution_ledger import Remembered
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.grants import Grants
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.libraries import Libraries
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.publication import (
    OPERATIONS,
    Publication,
    Published,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.settings import Setting
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.subscription import (
    ALTERABLE,
    Subscription,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.tables import Table
from psycopg2 import sql


def text(part: Any) -> str:
    """A composed statement as text; values as Python shows them, since no connection is there to quote them."""
    if isinstance(part, sql.Composed):
        return "".join(text(each) for each in part.seq)
    if isinstance(part, sql.Identifier):
        return ".".join('"{}"'.format(name.replace('"', '""')) for name in part.strings)
    return str(part.string) if isinstance(part, sql.SQL) else repr(part.wrapped)


def texts(changes: list[Change]) -> list[str]:
    return [text(change.statement) for change in changes]


def published(**tables: tuple[tuple[str, ...] | None, str | None]) -> dict[tuple[str, str], Published]:
    return {("public", name): Published(Table(1, "public", name, "r", *parts)) for name, parts in tables.items()}


WHOLE = (None, None)
THERE = Publication(
    "p", False, published(a=WHOLE, b=WHOLE), frozenset(), frozenset(OPERATIONS), False, "none", "me", None
)
REMEMBERED = Remembered("shop", "dump", False, "prod-db")
NOTHING = Publication("p", None, None, None, None, None, None, None, None)


@pytest.mark.parametrize(
    ("wanted", "statements"),
    [
        ({}, []),
        ({"tables": published(b=WHOLE, a=WHOLE)}, []),
        ({"publish": frozenset(OPERATIONS), "via_partition_root": False, "owner": "me", "comment": ""}, []),
        ({"tables": published(a=WHOLE)}, ['DROP TABLE ONLY "public"."b"']),
        ({"tables": published(a=WHOLE, b=WHOLE, c=WHOLE)}, ['ADD TABLE ONLY "public"."c"']),
        (
            {"tables": published(a=(("x",), "(x > 1)"), b=WHOLE)},
            ['DROP TABLE ONLY "public"."a"', 'ADD TABLE ONLY "public"."a" ("x") WHERE ((x > 1)\n)'],
        ),
        ({"schemas": frozenset(["s", "r"])}, ['ADD TABLES IN SCHEMA "r", "s"']),
        ({"publish": frozenset(["insert"])}, ["SET (publish = 'insert')"]),
        ({"via_partition_root": True}, ["SET (publish_via_partition_root = True)"]),
        ({"owner": 'o"o'}, ['OWNER TO "o""o"']),
    ],
)
def test_publication_plans_only_what_differs(wanted: dict[str, Any], statements: list[str]) -> None:
    changes = publication.plan(THERE, NOTHING._replace(**wanted), 150000)
    assert texts(changes) == ['ALTER PUBLICATION "p" ' + statement for statement in statements]
    assert all(change.transactional and change.secret is None for change in changes)


@pytest.mark.parametrize(("version", "named"), [(130000, False), (179999, False), (180000, True)])
def test_new_publications_name_generated_columns_from_18_on(version: int, named: bool) -> None:
    (change,) = publication.plan(None, NOTHING._replace(tables=published(a=WHOLE)), version)
    assert text(change.statement).startswith('CREATE PUBLICATION "p" FOR TABLE ONLY "public"."a" WITH (publish = ')
    assert ("publish_generated_columns" in text(change.statement)) is named
    assert change.words == 'Create publication "p" for 1 table'


def test_publication_members_leave_before_others_come() -> None:
    wanted = NOTHING._replace(tables=published(c=WHOLE), schemas=frozenset(["s"]), publish=frozenset(["insert"]))
    statements = texts(publication.plan(THERE, wanted, 150000))
    assert [statement.split()[3] for statement in statements] == ["DROP", "ADD", "ADD", "SET"]


def test_all_tables_needs_recreation() -> None:
    wanted = NOTHING._replace(all_tables=True, tables={}, schemas=frozenset())
    with pytest.raises(Refused, match="recreate"):
        publication.plan(THERE, wanted, 150000)
    statements = texts(publication.plan(THERE._replace(comment="c"), wanted, 150000, recreate=True))
    assert [statement.split()[0] for statement in statements] == ["DROP", "CREATE", "ALTER", "COMMENT"]
    assert "FOR ALL TABLES" in statements[1] and publication.plan_absent(None) == []


SOURCE = Endpoint({"host": "h", "port": 1, "user": "u", "password": "hush", "dbname": "d"}, "source")
OPTIONS = {"binary": "false", "two_phase": "false", "failover": "false", "synchronous_commit": "off", "origin": "any"}
SUB = Subscription("s", frozenset(["p"]), SOURCE, "s", True, "me", OPTIONS, 7)
ANY = Subscription("s", None, None, None, None, None, {})


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({}, []),
        ({"publications": frozenset(["p"]), "endpoint": SOURCE, "slot_name": "s", "enabled": True, "owner": "me"}, []),
        ({"options": {"binary": "false"}}, []),
        ({"options": {"binary": "true", "origin": "none"}}, ["Set binary = true, origin = none"]),
        ({"options": {"failover": "true"}}, ["Disable", "Wait", "Set failover = true", "Enable"]),
        ({"options": {"two_phase": "true"}, "enabled": False}, ["Disable", "Wait", "Set two_phase = true"]),
        ({"enabled": False}, ["Disable", "Wait"]),
        ({"publications": frozenset(["p", "q"])}, ["Set publications"]),
        ({"owner": "you"}, ['Set owner of subscription "s" to "you"']),
        ({"endpoint": SOURCE.with_keywords(password="other")}, ["Set connection"]),
        ({"endpoint": SOURCE.with_keywords(host="other"), "slot_name": "t"}, ["Set slot_name = t", "Set connection"]),
    ],
)
def test_subscription_plans_only_what_differs(wanted: dict[str, Any], words: list[str]) -> None:
    changes = subscription.plan(SUB, ANY._replace(**wanted), 180000)
    assert len(changes) == len(words)
    assert all(change.words.startswith(start) for change, start in zip(changes, words))
    assert not any("hush" in text(change.statement) or "other" in change.words for change in changes if change.secret)


def test_a_disabled_subscription_is_not_disabled_to_be_altered() -> None:
    changes = subscription.plan(SUB._replace(enabled=False), ANY._replace(options={"failover": "true"}), 180000)
    assert [change.words for change in changes] == ['Set failover = true of subscription "s"']


def test_an_unreadable_connection_is_not_compared() -> None:
    assert subscription.plan(SUB._replace(endpoint=None), ANY._replace(endpoint=SOURCE), 180000) == []


@pytest.mark.parametrize("version", [150018, 170010])
def test_two_phase_can_be_altered_from_18_on(version: int) -> None:
    with pytest.raises(Refused, match="can alter it only from 18 on"):
        subscription.plan(SUB, ANY._replace(options={"two_phase": "true"}), version)


PARAMS: dict[str, Any] = {
    **dict.fromkeys(subscription.OPTIONS),
    "name": "s",
    "wait": True,
    "wait_timeout": 1,
    "state": "present",
}
VALUES = {"streaming": "on", "synchronous_commit": "on", "origin": "none"}


@pytest.mark.parametrize("option", ALTERABLE, ids=lambda option: option.name)
def test_options_are_refused_before_the_version_that_knows_them(option: subscription.Option) -> None:
    params = {**PARAMS, option.name: VALUES.get(option.name, True)}
    if option.since > 130000:
        with pytest.raises(Refused, match=f"{option.name} needs PostgreSQL {option.since // 10000} or later"):
            subscription.wanted_from(params, option.since - 1)
    wanted = subscription.wanted_from(params, option.since)
    assert wanted.options == {option.name: VALUES.get(option.name, "true")}


def test_parallel_streaming_needs_16() -> None:
    params = {**PARAMS, "streaming": "parallel"}
    with pytest.raises(Refused, match="streaming: parallel needs PostgreSQL 16"):
        subscription.wanted_from(params, 159999)
    assert subscription.wanted_from(params, 160000).options == {"streaming": "parallel"}


def test_the_password_is_a_secret_of_its_statement_only() -> None:
    wanted = SUB.over(None)
    for changes in (
        subscription.plan_placeholder(wanted),
        subscription.plan_new(wanted, True),
        subscription.plan_detached(wanted, SOURCE),
    ):
        assert not any("hush" in text(change.statement) + change.words for change in changes)
    assert "hush" not in str(wanted.as_result())


def test_refresh_is_planned_only_when_tables_differ() -> None:
    a, b, c = (("public", name) for name in "abc")
    assert subscription.plan_refresh(SUB, {a: 1, b: 1}, {b: "r", a: "i"}, True) == []
    (change,) = subscription.plan_refresh(SUB, {a: 1, b: 1}, {c: "r", a: "r"}, False)
    assert change.words == 'Refresh subscription "s": 1 table new, 1 table gone' and not change.transactional
    assert "copy_data = False" in text(change.statement)


A, B = ("public", "a"), ("s", "b")


@pytest.mark.parametrize(
    ("current", "wanted", "statements"),
    [
        ({}, {}, []),
        ({"readable": [A], "usable": ["s"]}, {"readable": [A], "usable": ["s"]}, []),
        ({"readable": [A, B]}, {"readable": [B]}, ['REVOKE ALL ON TABLE "public"."a" FROM "r"']),
        (
            {},
            {"readable": [A, B]},
            [
                'LOCK TABLE "public"."a", "s"."b" IN ACCESS SHARE MODE; GRANT SELECT ON TABLE "public"."a", "s"."b" TO "r"'
            ],
        ),
        (
            {"usable": ["s"]},
            {"usable": ["t"]},
            ['REVOKE ALL ON SCHEMA "s" FROM "r"', 'GRANT USAGE ON SCHEMA "t" TO "r"'],
        ),
        (
            {"readable": [A], "other": [A]},
            {"readable": [A]},
            [
                'REVOKE ALL ON TABLE "public"."a" FROM "r"',
                'LOCK TABLE "public"."a" IN ACCESS SHARE MODE; GRANT SELECT ON TABLE "public"."a" TO "r"',
            ],
        ),
        (
            {"usable": ["s"], "more_than_usable": ["s"]},
            {"usable": ["s"]},
            ['REVOKE ALL ON SCHEMA "s" FROM "r"', 'GRANT USAGE ON SCHEMA "s" TO "r"'],
        ),
    ],
)
def test_grants_plan_only_what_differs(current: Any, wanted: Any, statements: list[str]) -> None:
    before, after = (Grants(**{key: frozenset(value) for key, value in side.items()}) for side in (current, wanted))
    assert texts(grants.plan("r", before, after)) == statements


@pytest.mark.parametrize(
    ("name", "running", "configured", "minimum", "restart", "too_low", "waits"),
    [
        ("max_wal_senders", "10", "10", "10", True, False, False),
        ("max_wal_senders", "9", "9", "10", True, True, True),
        ("max_wal_senders", "9", "10", "10", True, False, True),
        ("max_wal_senders", "10", "9", "10", True, True, False),
        ("max_wal_senders", "100", "100", "20", True, False, False),
        ("work_mem", "9", "9", "10", False, True, False),
        ("wal_level", "replica", "replica", "logical", True, True, True),
        ("wal_level", "replica", "logical", "logical", True, False, True),
        ("wal_level", "logical", "logical", "replica", True, False, False),
        ("max_slot_wal_keep_size", "-1", "-1", "1024", False, True, False),
        ("max_slot_wal_keep_size", "2048", "2048", "1024", False, False, False),
    ],
)
def test_settings_are_raised_only(
    name: str, running: str, configured: str, minimum: str, restart: bool, too_low: bool, waits: bool
) -> None:
    setting = Setting(name, running, configured, minimum, restart)
    assert (setting.differs, setting.waits) == (too_low, waits)
    changes = settings.plan([setting])
    assert len(changes) == (2 if too_low else 0)
    if too_low:
        assert text(changes[0].statement) == f"ALTER SYSTEM SET \"{name}\" = '{minimum}'"
        assert not changes[0].transactional


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("", []),
        ("auto_explain", ["auto_explain"]),
        (" auto_explain , pg_stat_statements ", ["auto_explain", "pg_stat_statements"]),
        ("a,,b", ["a", "b"]),
        ('""', []),
        ('"$libdir/a b", c', ["$libdir/a b", "c"]),
        ('"a,b" ,"c""d"', ["a,b", 'c"d']),
        ("a b, Ünï", ["a b", "Ünï"]),
    ],
)
def test_lists_of_libraries_are_read_as_postgresql_reads_them(value: str, names: list[str]) -> None:
    assert libraries.split(value) == names


@pytest.mark.parametrize("value", ['"a', '"a" b'])
def test_a_list_that_postgresql_would_refuse_is_refused(value: str) -> None:
    with pytest.raises(Refused):
        libraries.split(value)


@pytest.mark.parametrize(
    ("configured", "beneath", "add", "remove", "wanted", "values"),
    [
        ([], [], ["pgml"], [], ["pgml"], "SET \"x\" = 'pgml'"),
        (["a", "b"], ["a", "b"], ["pgml"], [], ["a", "b", "pgml"], "SET \"x\" = 'a', 'b', 'pgml'"),
        (["b", "$libdir/pgml"], [], ["pgml"], [], ["b", "$libdir/pgml"], None),
        (["/usr/lib/pgml.so"], [], ["pgml", "pgml"], [], ["/usr/lib/pgml.so"], None),
        (["a"], [], ["c", "b", "c"], [], ["a", "c", "b"], "SET \"x\" = 'a', 'c', 'b'"),
        (["a", "pgml"], ["a"], [], ["pgml"], ["a"], 'RESET "x"'),
        (["a", "pgml", "b"], ["a"], [], ["pgml"], ["a", "b"], "SET \"x\" = 'a', 'b'"),
        (["pgml"], [], [], ["pgml"], [], 'RESET "x"'),
        (["a"], [], [], ["pgml"], ["a"], None),
    ],
)
def test_what_is_in_a_list_of_libraries_stays(
    configured: list[str], beneath: list[str], add: list[str], remove: list[str], wanted: list[str], values: str | None
) -> None:
    listed = Libraries("x", configured, configured, beneath, add, remove, True)
    assert (listed.wanted, listed.differs, listed.waits) == (wanted, values is not None, values is not None)
    assert listed.problem("here") is None
    changes = settings.plan([listed])
    assert [text(change.statement) for change in changes[:1]] == ([f"ALTER SYSTEM {values}"] if values else [])


def test_a_list_that_alter_system_can_not_empty_is_left_to_people() -> None:
    listed = Libraries("x", ["pgml"], ["pgml"], ["pgml"], [], ["pgml"], True)
    assert listed.problem("here") == "x of here is pgml in a file that ALTER SYSTEM can't empty: take pgml out there."


@pytest.mark.parametrize(
    ("known", "wanted", "words"),
    [
        ({}, REMEMBERED, ['Remember that distribution "shop" comes from prod-db by dump']),
        ({"shop": REMEMBERED}, REMEMBERED, []),
        ({"shop": REMEMBERED._replace(recorded_at=datetime.datetime(2026, 1, 1))}, REMEMBERED, []),
        (
            {"shop": REMEMBERED},
            REMEMBERED._replace(automatic=True),
            ['Remember that distribution "shop" comes from prod-db by dump'],
        ),
        ({"shop": REMEMBERED}, None, ['Forget distribution "shop"']),
        ({"other": REMEMBERED}, None, []),
    ],
)
def test_a_distribution_is_remembered_only_when_it_is_another(
    known: dict[str, Remembered], wanted: Remembered | None, words: list[str]
) -> None:
    assert [change.words for change in distribution.plan("shop", known, wanted)] == words
