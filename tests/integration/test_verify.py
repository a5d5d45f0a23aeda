# SPDX-License-Identifier: GPL-3.0-or-later
"""pgml_verify_info finds equal what is equal, and every row that isn't, whatever the tables are like."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import psycopg2
import pytest
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import (
    comparison,
    hashing,
    moments,
    settling,
    verification,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.comparison import (
    Comparison,
    First,
    Verdict,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.moments import Moment
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import chunks
from psycopg2.sql import SQL, Identifier

from tests.support import copies, majors
from tests.support.cluster import Cluster, make_directory
from tests.support.pair import Pair, Place, Stopwatch, pair_of, wait_for

MODULE = "pgml_verify_info"
METHODS = ["offline", "fence", "converge"]
TABLES = """
CREATE SCHEMA "Odd %s";
CREATE TABLE plain (id int PRIMARY KEY, note text, at timestamptz);
CREATE TABLE "Odd %s"."Ta""ble.x %" ("A a" int, "select" text, "%s" numeric, PRIMARY KEY ("select", "A a"));
CREATE TABLE keyless (a int, b text);
ALTER TABLE keyless REPLICA IDENTITY FULL;
CREATE TABLE parts (id int, day date, note text, PRIMARY KEY (day, id)) PARTITION BY RANGE (day);
CREATE TABLE parts_old PARTITION OF parts FOR VALUES FROM (MINVALUE) TO ('2026-01-01') PARTITION BY LIST (id);
CREATE TABLE parts_old_all PARTITION OF parts_old DEFAULT;
CREATE TABLE parts_new PARTITION OF parts FOR VALUES FROM ('2026-01-01') TO (MAXVALUE);
CREATE TABLE filtered (id int PRIMARY KEY, note text);
CREATE TABLE listed (id int PRIMARY KEY, note text, secret text, doubled int GENERATED ALWAYS AS (id * 2) STORED);
CREATE TABLE identified (code text NOT NULL, id int, note text);
CREATE UNIQUE INDEX identified_code ON identified (code);
ALTER TABLE identified REPLICA IDENTITY USING INDEX identified_code;
CREATE TABLE empty (id int PRIMARY KEY);
"""
ROWS = """
INSERT INTO plain SELECT i, 'note ' || i, '2026-01-01' FROM generate_series(1, 1500) AS i;
INSERT INTO "Odd %s"."Ta""ble.x %" SELECT i, 'x%s ' || i, i / 3.0 FROM generate_series(1, 50) AS i;
INSERT INTO keyless SELECT i % 7, 'again' FROM generate_series(1, 70) AS i;
INSERT INTO keyless VALUES (NULL, NULL), (NULL, ''), (1, NULL);
INSERT INTO parts SELECT i, date '2025-12-01' + i % 60, 'part' FROM generate_series(1, 300) AS i;
INSERT INTO filtered SELECT i, 'f' FROM generate_series(1, 90) AS i;
INSERT INTO listed SELECT i, 'l', 'hidden ' || i FROM generate_series(1, 90) AS i;
INSERT INTO identified SELECT 'code ' || i, i, 'i' FROM generate_series(1, 40) AS i;
"""
PUBLISHED = [
    "plain",
    '"Odd %s"."Ta""ble.x %"',
    "keyless",
    "parts",
    {"name": "filtered", "where": "id % 3 <> 0"},
    {"name": "listed", "columns": ["id", "note"]},
    "identified",
    "empty",
]
LABELS = {
    'public.plain', '"Odd %s"."Ta""ble.x %"', 'public.keyless', 'public.parts', 'public.filtered', 'public.listed',
    'public.identified', 'public.empty',
}  # fmt: skip


def wire(pair: Pair, tables: str = TABLES, rows: str = ROWS, published: Any = PUBLISHED) -> None:
    """A subscription of the pair that has brought *rows*."""
    pair.both(tables)
    pair.source.sql(rows)
    pair.publish(*published, via_partition_root=True)
    pair.subscribe()


def options(pair: Pair, method: str, **params: Any) -> dict[str, Any]:
    source = pair.source.cluster.source(pair.source.database)
    named = {} if {"tables", "schemas", "all_tables"} & set(params) else {"subscription": pair.name}
    return {"source": source, "method": method, "timeout": 60, **named, **params}


def verify(pair: Pair, method: str, **params: Any) -> dict[str, Any]:
    """Compare, and change nothing."""
    before = pair.source.fingerprint(), pair.target.fingerprint()
    result = pair.target.ok(MODULE, **options(pair, method, **params))
    assert (pair.source.fingerprint(), pair.target.fingerprint()) == before
    assert result["changed"] is False
    return result


def refused(pair: Pair, method: str = "converge", **params: Any) -> str:
    before = pair.source.fingerprint()
    message = pair.target.refused(MODULE, **options(pair, method, **params))
    assert pair.source.fingerprint() == before
    return message


def differences(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What differs in each table that does."""
    found = {}
    for table in result["tables"]:
        rows = {kind: sorted(keys, key=str) for kind, keys in table["differing"].items() if keys}
        assert table["equal"] == (not rows and table["differences_complete"] and not table["undecided"])
        if not table["equal"]:
            found[table["name"]] = rows
    assert result["equal"] == (not found)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_what_is_replicated_is_equal(pair: Pair, method: str) -> None:
    wire(pair)
    result = verify(pair, method)
    assert differences(result) == {} and result["method"] == method
    tables = {table["name"]: table for table in result["tables"]}
    assert set(tables) == LABELS
    counts = {name: (table["rows_source"], table["rows_target"]) for name, table in tables.items()}
    assert counts["public.plain"] == (1500, 1500)
    assert counts["public.filtered"] == (60, 60)
    assert counts["public.parts"] == (300, 300)
    assert counts["public.empty"] == (0, 0)
    assert all((table["lsn"] is None) == (method == "offline") for table in tables.values())
    assert all((table["lock_ms"] is not None) == (method == "fence") for table in tables.values())
    assert result["not_compared"] == [
        {"name": "public.listed.secret", "reason": "column that isn't distributed"},
        {"name": "public.listed.doubled", "reason": "generated column"},
    ]
    assert result["summary"] == "8 tables have the same rows on both sides, 2,113 of them."
    (subscription,) = result["subscriptions"]
    assert subscription["enabled"] and subscription["received_lsn"] and subscription["unready"] == {}
    assert "changes" not in result and "diff" not in result


@pytest.mark.parametrize("method", METHODS)
def test_each_row_that_differs_is_found_by_its_key(pair: Pair, method: str) -> None:
    wire(pair)
    pair.target.sql(
        "UPDATE plain SET note = 'other' WHERE id = 5;"
        "DELETE FROM plain WHERE id = 6;"
        "INSERT INTO plain VALUES (2000);"
        "UPDATE plain SET at = at + interval '1 us' WHERE id = 1500;"
        'UPDATE "Odd %%s"."Ta""ble.x %%" SET "%%s" = NULL WHERE "A a" = 9;'
        'DELETE FROM "Odd %%s"."Ta""ble.x %%" WHERE "A a" = 10;'
        # One of ten equal rows less, and one more.
        "DELETE FROM keyless WHERE ctid = (SELECT min(ctid) FROM keyless WHERE a = 3);"
        "INSERT INTO keyless VALUES (4, 'again');"
        "UPDATE keyless SET b = 'null' WHERE a IS NULL AND b IS NULL;"
        "UPDATE parts SET note = 'other' WHERE id = 3;"
        "UPDATE parts SET day = '2027-01-01' WHERE id = 4;"
        "INSERT INTO filtered VALUES (3, 'f');"
        "UPDATE listed SET secret = 'not compared';"
        "UPDATE listed SET note = NULL WHERE id = 1;"
        "UPDATE identified SET id = 0 WHERE code = 'code 7';"
        "INSERT INTO empty VALUES (1)",
        {},
    )
    result = verify(pair, method)
    assert differences(result) == {
        "public.plain": {"missing": [{"id": "6"}], "extra": [{"id": "2000"}], "changed": [{"id": "1500"}, {"id": "5"}]},
        '"Odd %s"."Ta""ble.x %"': {
            "missing": [{"select": "x%s 10", "A a": "10"}],
            "changed": [{"select": "x%s 9", "A a": "9"}],
        },
        "public.keyless": {
            "missing": [{"a": "3", "b": "again"}, {"a": None, "b": None}],
            "extra": [{"a": "4", "b": "again"}, {"a": None, "b": "null"}],
        },
        "public.parts": {
            "missing": [{"day": "2025-12-05", "id": "4"}],
            "extra": [{"day": "2027-01-01", "id": "4"}],
            "changed": [{"day": "2025-12-04", "id": "3"}],
        },
        "public.filtered": {"extra": [{"id": "3"}]},
        "public.listed": {"changed": [{"id": "1"}]},
        "public.identified": {"changed": [{"code": "code 7"}]},
        "public.empty": {"extra": [{"id": "1"}]},
    }
    assert result["summary"].startswith("8 of 8 tables differ: ")
    assert "public.plain (1 missing, 1 extra, 2 changed)" in result["summary"]
    sentences = (
        "public.plain on the target lacks (id=6), has too many of (id=2000), has other values in (id=1500), (id=5).",
        "public.keyless on the target lacks (a=3, b=again), (a=NULL, b=NULL), has too many of (a=4, b=again), (a=NULL, b=null).",
    )
    assert set(sentences) < set(result["differences"]) and len(result["differences"]) == 8


def test_one_of_each_kind_of_table_and_type_is_equal(pair: Pair) -> None:
    pair.source.cluster.psql(copies.ZOO, pair.source.database)
    copies.copy(pair)
    for setting in ("datestyle = German", "timezone = Japan", "intervalstyle = iso_8601", "bytea_output = escape",
                    "extra_float_digits = -2", "search_path = zoo"):  # fmt: skip
        pair.target.sql(SQL("ALTER DATABASE {} SET " + setting).format(Identifier(pair.target.database)))
    at_rest = verify(pair, "offline", all_tables=True)
    assert differences(at_rest) == {} and len(at_rest["tables"]) > 30
    assert {"name": "zoo.counted.doubled", "reason": "generated column"} in at_rest["not_compared"]
    assert at_rest["unvalidated_constraints"] == ["later of zoo.cages", "seen_who of zoo.seen"]
    assert all(each["source"] == each["target"] is not None for each in at_rest["sequences"]) and at_rest["sequences"]
    pair.source.sql("CREATE PUBLICATION pub FOR ALL TABLES")
    pair.grant()
    pair.source.sql(SQL("ALTER ROLE {} BYPASSRLS").format(Identifier(pair.distributor)))
    pair.subscribe(initial_copy="none")
    for method in ("fence", "converge"):
        replicated = verify(pair, method)
        assert differences(replicated) == {} and len(replicated["tables"]) == len(at_rest["tables"])
    pair.target.sql(
        "ALTER TABLE zoo.types DISABLE TRIGGER ALL; UPDATE zoo.types SET c_float8 = -0.0 WHERE c_float8 = 0"
    )
    assert set(differences(verify(pair, "converge"))) == {"zoo.types"}


def test_columns_of_other_types_are_equal_when_their_text_is(pair: Pair) -> None:
    pair.source.sql(
        "CREATE TABLE t (id int PRIMARY KEY, v varchar(9), e text); INSERT INTO t VALUES (1, 'a', 'x'), (2, 'b', 'y')"
    )
    pair.target.sql(
        "CREATE TYPE mood AS ENUM ('x', 'y'); CREATE TABLE t (more int, id bigint PRIMARY KEY, v text, e mood);"
        "INSERT INTO t VALUES (7, 1, 'a', 'x'), (8, 2, 'b', 'y')"
    )
    assert differences(verify(pair, "offline", tables=["t"])) == {}
    pair.target.sql("UPDATE t SET id = 3 WHERE id = 2")
    found = differences(verify(pair, "offline", tables=["t"]))
    assert found == {"public.t": {"missing": [{"id": "2"}], "extra": [{"id": "3"}]}}


def test_servers_of_other_encodings_are_compared_too(pair: Pair) -> None:
    target, name = pair.target, f"{pair.target.database}_latin"
    target.cluster.sql(
        SQL("CREATE DATABASE {} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0").format(
            Identifier(name)
        )
    )
    try:
        other = type(target)(target.cluster, name)
        for place in (pair.source, other):
            place.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'Größe'), (2, 'é')")
        params = options(pair, "offline", tables=["t"])
        assert differences(other.ok(MODULE, **params)) == {}
        other.sql("UPDATE t SET v = 'è' WHERE id = 2")
        assert differences(other.ok(MODULE, **params)) == {"public.t": {"changed": [{"id": "2"}]}}
    finally:
        target.cluster.drop_database(name)


@pytest.mark.parametrize("method", METHODS)
def test_a_table_that_is_truncated_while_it_is_read_is_read_again(
    pair: Pair, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The snapshots show neither the rows before nor those after."""
    wire(pair)
    first_look = Comparison.first_look
    calls: list[int] = []

    def looked(run: Comparison, moment: Moment, verdicts: Sequence[Verdict]) -> list[First | None]:
        calls.append(len(verdicts))
        if len(calls) == 1:
            pair.source.sql("TRUNCATE plain; INSERT INTO plain SELECT i FROM generate_series(1, 9) AS i")
            pair.arrived("plain")
        return first_look(run, moment, verdicts)

    monkeypatch.setattr(Comparison, "first_look", looked)
    result = pair.target.run(MODULE, **options(pair, method))
    if method == "offline":
        message = "public.plain was truncated or rewritten while it was read, and method=offline is for tables at rest."
        assert result["failed"] and result["msg"] == message
        return
    assert differences(result) == {} and calls == [8, 1]
    assert {"public.plain": 9}.items() <= {table["name"]: table["rows_source"] for table in result["tables"]}.items()


@pytest.mark.parametrize("method", METHODS)
def test_tables_are_read_in_pieces_and_looked_into_by_steps(
    pair: Pair, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "SMALLEST_SPLIT", 1 << 14)
    monkeypatch.setattr(hashing, "ROWS_IN_BUCKET", 4000)
    for module in (comparison, settling):
        monkeypatch.setattr(module, "ROWS_AT_ONCE", 300)
    wire(
        pair,
        "CREATE TABLE large (id int PRIMARY KEY, note text); CREATE TABLE loose (note text);"
        "ALTER TABLE loose REPLICA IDENTITY FULL;",
        "INSERT INTO large SELECT i, repeat('x', i % 50) FROM generate_series(1, 20000) AS i;"
        "INSERT INTO loose SELECT i % 3000 FROM generate_series(1, 6000) AS i",
        ["large", "loose"],
    )
    assert differences(verify(pair, method, jobs=3)) == {}
    pair.target.sql(
        "UPDATE large SET note = 'y' WHERE id % 1999 = 0; DELETE FROM large WHERE id = 20000;"
        "DELETE FROM loose WHERE note = '77'"
    )
    result = verify(pair, method, jobs=3)
    assert differences(result) == {
        "public.large": {
            "missing": [{"id": "20000"}],
            "changed": sorted([{"id": str(1999 * i)} for i in range(1, 11)], key=str),
        },
        "public.loose": {"missing": [{"note": "77"}]},
    }
    assert [table["differences_complete"] for table in result["tables"]] == [True, True]
    reads = pair.source.cluster.log().count("ctid >= '(")
    assert reads > 2 * 3, "it was not read in pieces"
    for most, named in ((3, 3), (0, 0)):
        bounded = verify(pair, method, max_differences=most)
        (table,) = [each for each in bounded["tables"] if each["name"] == "public.large"]
        assert sum(map(len, table["differing"].values())) == named
        assert not table["equal"] and not table["differences_complete"]


def test_tables_can_be_named_instead_of_a_subscription(pair: Pair) -> None:
    wire(pair)
    pair.target.sql("UPDATE plain SET note = 'other' WHERE id < 3; DELETE FROM filtered WHERE id = 80")
    named = [
        {"name": "plain", "where": "id > 1", "columns": ["id", "note"]},
        {"name": "filtered", "where": "id < 50"},
        "parts",
    ]
    for method in ("fence", "converge"):
        result = verify(pair, method, tables=named)
        assert differences(result)["public.plain"] == {"changed": [{"id": "2"}], "extra": [{"id": "1"}]}
        counts = {table["name"]: table["rows_source"] for table in result["tables"]}
        assert counts == {"public.plain": 1499, "public.filtered": 33, "public.parts": 300}
    everything = verify(pair, "converge", schemas=["public"], exclude_tables=["plain"])
    assert {table["name"] for table in everything["tables"]} == LABELS - {"public.plain", '"Odd %s"."Ta""ble.x %"'}
    offline = verify(pair, "offline", all_tables=True, exclude_tables=["listed", "filtered"])
    assert {table["name"] for table in offline["tables"]} == LABELS - {
        "public.listed",
        "public.filtered",
        "public.parts",
    } | {
        "public.parts_old_all",
        "public.parts_new",
    }


def test_what_stands_beside_the_rows_is_told(pair: Pair) -> None:
    wire(
        pair,
        "CREATE TABLE t (id serial PRIMARY KEY, n int); CREATE UNLOGGED TABLE u (); CREATE MATERIALIZED VIEW m AS SELECT 1 AS a;",
        "INSERT INTO t (n) SELECT 1 FROM generate_series(1, 5)",
        ["t"],
    )
    pair.target.sql("ALTER TABLE t ADD CONSTRAINT small CHECK (n < 9) NOT VALID")
    with pytest.raises(psycopg2.errors.UniqueViolation):
        pair.target.sql("CREATE UNIQUE INDEX CONCURRENTLY broken ON t (n)")
    result = verify(pair, "converge", schemas=["public"])
    assert result["invalid_indexes"] == ["public.broken"]
    assert result["unvalidated_constraints"] == ["small of public.t"]
    assert result["sequences"] == [{"name": "public.t_id_seq", "source": 5, "target": 1}]
    assert [each["name"] for each in result["not_compared"]] == ["public.m", "public.u"]
    source = pair.endpoint
    result = pair.target.ok(MODULE, **{**options(pair, "converge"), "source": source})
    assert result["sequences"] == [{"name": "public.t_id_seq", "source": None, "target": 1}]


def test_it_says_the_same_in_check_mode(pair: Pair) -> None:
    wire(pair)
    pair.target.sql("DELETE FROM plain WHERE id = 1")
    for method in METHODS:
        result = pair.target.ok(MODULE, check=True, **options(pair, method))
        assert differences(result) == {"public.plain": {"missing": [{"id": "1"}]}}


@pytest.mark.sampled(3)
def test_every_major_version(each_major: Pair) -> None:
    pair = each_major
    pair.both(
        "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE n (v float8); ALTER TABLE n REPLICA IDENTITY FULL"
    )
    pair.source.sql("INSERT INTO t SELECT i, i FROM generate_series(1, 2000) AS i; INSERT INTO n VALUES (0.1), (0.1)")
    pair.publish("t", "n")
    pair.subscribe()
    for method in METHODS:
        assert differences(verify(pair, method)) == {}
    pair.target.sql("UPDATE t SET v = 'x' WHERE id = 9; INSERT INTO n VALUES (0.1)")
    for method in METHODS:
        assert differences(verify(pair, method)) == {
            "public.t": {"changed": [{"id": "9"}]},
            "public.n": {"extra": [{"v": "0.1"}]},
        }


# What is refused


def test_bad_input_is_refused_in_one_sentence(pair: Pair) -> None:
    pair.both(
        "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE other (id int PRIMARY KEY); CREATE VIEW v AS SELECT 1"
    )
    pair.publish("t")
    pair.subscribe()
    wrong = [
        ({"subscription": "nobody"}, "There is no subscription nobody in database"),
        ({"subscription": "nobody"}, f"; there is {pair.name}."),
        ({"subscription": None}, "Nothing is asked for: name a subscription, tables or schemas, or set all_tables."),
        ({"subscription": pair.name, "tables": ["t"]}, "subscription is given, and tables too"),
        ({"tables": ["other"]}, "No enabled subscription of database"),
        ({"tables": ["t", "other"]}, "receives public.other from this source: use method=offline"),
        ({"tables": ["nothing"]}, "There is no table public.nothing in database"),
        ({"tables": ["v"]}, "public.v is a view"),
        ({"tables": [{"name": "t", "where": "id ="}]}, "The filter of public.t is no condition"),
        ({"jobs": 0}, "jobs is 0: the least is 1."),
        ({"max_differences": -1}, "max_differences is -1: the least is 0."),
        ({"timeout": 0}, "timeout is 0: the least is 1."),
        ({"lock_timeout": 0}, "lock_timeout is 0: the least is 1."),
    ]
    for params, sentence in wrong:
        assert sentence in refused(pair, **params)
    message = refused(pair, "fence", lock_timeout=1000)
    assert "lock_timeout is 1000 ms and deadlock_timeout" in message and "let it be shorter" in message
    gone = {**pair.source.cluster.source(pair.source.database), "port": 1}
    result = pair.target.run(MODULE, **options(pair, "converge", source=gone))
    assert result["failed"] and result["option"] == "source" and "Can't connect to" in result["msg"]
    itself = pair.target.cluster.source(pair.target.database)
    assert "is source and target at once" in refused(pair, source=itself)


def test_tables_that_do_not_fit_are_refused(pair: Pair) -> None:
    pair.source.sql("CREATE TABLE a (id int PRIMARY KEY, v text, w text); CREATE TABLE b (id int PRIMARY KEY)")
    pair.target.sql("CREATE TABLE a (id int PRIMARY KEY)")
    assert "lacks table public.b: bring what is missing first" in refused(pair, "offline", tables=["a", "b"])
    assert "lacks columns that are to be compared: public.a (v, w)." in refused(pair, "offline", tables=["a"])
    narrow = verify(pair, "offline", tables=[{"name": "a", "columns": ["id"]}])
    assert narrow["equal"] and [each["name"] for each in narrow["not_compared"]] == ["public.a.v", "public.a.w"]
    source = {**pair.endpoint}
    message = refused(pair, "offline", tables=["a"], source=source)
    assert f'User "{pair.distributor}" has no SELECT on public.a' in message


def test_subscriptions_that_bring_nothing_are_refused(pair: Pair, primary: Cluster, replica: Cluster) -> None:
    pair.both("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE late (id int PRIMARY KEY)")
    pair.publish("t")
    pair.subscribe()
    pair.publish("t", "late")
    message = refused(pair)
    assert f"public.late joined the publications and subscription {pair.name} has not taken it in" in message
    pair.publish("t")
    with pair_of(primary, replica) as other:
        elsewhere = primary.source(other.source.database)
        assert f"Subscription {pair.name} doesn't receive from database" in refused(pair, source=elsewhere)
    pair.subscribe(enabled=False)
    assert f"Subscription {pair.name} is disabled" in refused(pair)
    assert verify(pair, "offline")["equal"]


def test_a_standby_is_compared_at_rest_only(default_major: int) -> None:
    with Cluster(make_directory(), majors.available()[default_major]) as server:
        for name in ("here", "there"):
            server.create_database(name)
            server.execute_script("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)", name)
        standby = server.clone()
        (standby.data / "standby.signal").touch()
        server.start()
        with standby:
            named = {"source": standby.source("here"), "tables": ["t"]}
            target = Place(server, "there")
            message = target.refused(MODULE, method="fence", **named)
            assert (
                "is a standby, whose WAL can't be marked: let source be its primary, or use method=offline." in message
            )
            assert target.ok(MODULE, method="offline", **named)["equal"]


def test_an_unfinished_first_copy_is_named(pair: Pair) -> None:
    pair.both("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)")
    pair.publish("t", "u")
    pair.source.sql("INSERT INTO t VALUES (1)")
    pair.subscribe(wait=False, enabled=False, initial_copy="native")
    pair.target.sql("INSERT INTO t VALUES (1)")
    pair.subscribe(wait=False, enabled=True, initial_copy="native")
    wait_for(lambda: pair.target.value("SELECT count(*) = 1 FROM pg_subscription_rel WHERE srsubstate = 'r'"))
    # Not by refused(): PostgreSQL tries that copy again meanwhile, and the catalogs change.
    result = pair.target.run(MODULE, **options(pair, "converge"))
    assert result.get("failed"), result
    message = result["msg"]
    assert f"The first copy of subscription {pair.name} goes on: public.t (" in message and "public.u" not in message


def test_an_apply_worker_that_fails_is_told(pair: Pair) -> None:
    pair.both("CREATE TABLE t (id int PRIMARY KEY)")
    pair.publish("t")
    pair.subscribe()
    pair.target.sql("INSERT INTO t VALUES (1)")
    pair.source.sql("INSERT INTO t VALUES (1)")
    message = refused(pair, timeout=2)
    assert (
        f"Subscription {pair.name} had not applied the changes before " in message and "when 2 s were over" in message
    )
    pair.subscribe(disable_on_error=True, wait=False)
    wait_for(lambda: not pair.target.value("SELECT bool_or(subenabled) FROM pg_subscription"))
    assert "is disabled" in refused(pair)


# Locks and privileges


def test_a_role_that_may_not_lock_is_told_what_it_needs(pair: Pair) -> None:
    wire(pair)
    reader = pair.endpoint
    message = refused(pair, "fence", source=reader)
    assert (
        f'User "{pair.distributor}" may not lock public.empty, public.filtered, ' in message
        or "may not lock" in message
    )
    assert "which method=fence does for a moment: GRANT UPDATE ON" in message and "method=converge" in message
    assert pair.password not in message
    assert verify(pair, "converge", source=reader)["equal"]
    pair.source.sql(
        SQL("GRANT UPDATE ON ALL TABLES IN SCHEMA public, {} TO {}").format(
            Identifier("Odd %s"), Identifier(pair.distributor)
        )
    )
    assert verify(pair, "fence", source=reader)["equal"]


def test_maintain_is_enough_since_17(newest: Pair) -> None:
    newest.both("CREATE TABLE t (id int PRIMARY KEY)")
    newest.publish("t")
    newest.subscribe()
    message = refused(newest, "fence", source=newest.endpoint)
    assert f"GRANT MAINTAIN ON public.t TO {newest.distributor} there" in message
    newest.source.sql(SQL("GRANT MAINTAIN ON t TO {}").format(Identifier(newest.distributor)))
    assert verify(newest, "fence", source=newest.endpoint)["equal"]


@contextmanager
def prepared(pair: Pair, *statements: str) -> Iterator[None]:
    with closing(pair.source.cluster.connect(pair.source.database, autocommit=False)) as connection:
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            cursor.execute("PREPARE TRANSACTION 'left alone'")
        try:
            yield
        finally:
            pair.source.sql("ROLLBACK PREPARED 'left alone'")


def test_who_keeps_a_table_from_being_locked_is_named(pair: Pair) -> None:
    wire(pair)
    with pair.source.transaction("INSERT INTO plain VALUES (0)") as pid, Stopwatch() as watch:
        message = refused(pair, "fence", timeout=3)
        assert verify(pair, "converge")["equal"]
    assert f'process {pid} of user "postgres" (idle in transaction' in message and "holds plain" in message
    assert "could not be locked and compared within 3 s" in message and watch.seconds < 10
    with prepared(pair, "DELETE FROM parts WHERE id = 200"):
        message = refused(pair, "fence", timeout=2)
        assert 'prepared transaction "left alone" of user "postgres" holds parts' in message
    assert not pair.source.sql("SELECT 1 FROM pg_locks WHERE mode = 'ShareLock' AND locktype = 'relation'")
    assert verify(pair, "fence")["equal"]


def test_nobody_waits_behind_a_lock_that_can_t_be_had(pair: Pair) -> None:
    wire(pair)
    seen = pair.source.cluster.log().count("IN SHARE MODE")
    with pair.source.transaction("INSERT INTO plain VALUES (0)") as pid:
        time.sleep(0.6)  # longer than a lock is queued for
        assert f"process {pid} of user" in refused(pair, "fence", timeout=2)
    assert pair.source.cluster.log().count("IN SHARE MODE") == seen


def test_writers_wait_no_longer_than_the_lock_is_queued_for(pair: Pair) -> None:
    """While another session keeps the fence from its lock, writers get on between its attempts."""
    wire(pair)
    slowest = 0.0
    with pair.source.transaction("INSERT INTO plain VALUES (0)"):
        thread = threading.Thread(target=lambda: pair.target.run(MODULE, **options(pair, "fence", timeout=3)))
        thread.start()
        while thread.is_alive():
            with Stopwatch() as watch:
                pair.source.sql("UPDATE plain SET note = note || '.' WHERE id = 1")
            slowest = max(slowest, watch.seconds)
        thread.join()
    assert slowest < 1.5


def test_nothing_is_locked_while_the_target_is_far_behind(pair: Pair) -> None:
    wire(pair)
    seen = pair.source.cluster.log().count("IN SHARE MODE")
    with pair.target.transaction("LOCK TABLE plain IN ACCESS EXCLUSIVE MODE"):
        pair.source.sql("INSERT INTO plain VALUES (0)")
        assert "had not applied the changes before" in refused(pair, "fence", timeout=2)
    assert pair.source.cluster.log().count("IN SHARE MODE") == seen
    assert verify(pair, "fence")["equal"] and pair.source.cluster.log().count("IN SHARE MODE") > seen


def test_the_source_keeps_no_snapshot_for_a_target_that_is_far_behind(pair: Pair) -> None:
    wire(pair)
    held = "SELECT count(*) FROM pg_stat_activity WHERE usename = %s AND state = 'idle in transaction'"
    with pair.target.transaction("LOCK TABLE plain IN ACCESS EXCLUSIVE MODE"):
        pair.source.sql("INSERT INTO plain VALUES (0)")
        thread = threading.Thread(target=lambda: pair.target.run(MODULE, **options(pair, "converge", timeout=3)))
        thread.start()
        seen = []
        while thread.is_alive():
            seen += pair.source.sql(held, [options(pair, "converge")["source"]["user"]])
            time.sleep(0.1)
        thread.join()
    assert len(seen) > 10 and set(seen) == {(0,)}


def test_a_target_that_is_behind_keeps_nobody_waiting_for_long(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lag is small at first, and the target stops to follow when the tables are locked."""
    wire(pair)
    passed = moments.passed
    calls = []

    def stalled(*arguments: Any) -> bool:
        calls.append(arguments)
        if len(calls) % 2 == 0 and len(calls) < 5:
            pair.target.sql("SELECT pg_sleep(0.1)")
            return False
        return passed(*arguments)

    monkeypatch.setattr(moments, "passed", stalled)
    result = verify(pair, "fence")
    assert result["equal"] and len(calls) == 6
    calls[:] = [()]
    monkeypatch.setattr(
        moments, "passed", lambda *arguments: bool(calls.reverse() or calls.append(())) or len(calls) % 2 == 0
    )
    assert "the target did not catch up while they were locked for 2 s" in refused(pair, "fence", timeout=1)


@pytest.mark.parametrize("missing", [True, False])
def test_rows_that_never_rest_are_undecided(pair: Pair, missing: bool) -> None:
    """A trigger of the target makes a row differ that the source keeps changing: so nobody can say that it stays so."""
    wire(pair)
    pair.target.sql(
        "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.note := 'spoilt'; RETURN NEW; END $$;"
        "CREATE TRIGGER spoil BEFORE UPDATE ON plain FOR EACH ROW EXECUTE FUNCTION spoil();"
        "ALTER TABLE plain ENABLE REPLICA TRIGGER spoil",
    )
    if missing:
        pair.target.sql("DELETE FROM plain WHERE id = 9")
    stop = threading.Event()

    def write() -> None:
        with closing(pair.source.cluster.connect(pair.source.database)) as connection, connection.cursor() as cursor:
            while not stop.is_set():
                cursor.execute("UPDATE plain SET note = clock_timestamp()::text WHERE id = 8")

    thread = threading.Thread(target=write)
    thread.start()
    try:
        wait_for(lambda: pair.target.value("SELECT note = 'spoilt' FROM plain WHERE id = 8"))
        result = verify(pair, "converge", timeout=4)
    finally:
        stop.set()
        thread.join()
    (table,) = [each for each in result["tables"] if not each["equal"]]
    assert table["undecided"] == [{"id": "8"}] and table["differences_complete"]
    assert table["differing"] == {"missing": [{"id": "9"}] if missing else [], "extra": [], "changed": []}
    assert table["decided"] == missing and not result["equal"]
    sentence = "public.plain on the target{0} may have other values in (id=8)."
    assert result["differences"] == [sentence.format(" lacks (id=9)," if missing else "")]


def test_secrets_never_show(pair: Pair) -> None:
    wire(pair)
    pair.target.sql("DELETE FROM plain WHERE id = 1")
    seen = [pair.target.run(MODULE, **options(pair, method, source=pair.endpoint)) for method in METHODS]
    seen.append(pair.target.run(MODULE, **options(pair, "offline", source={**pair.endpoint, "db": "nowhere"})))
    assert [bool(result.get("failed")) for result in seen] == [False, True, False, True]
    for secret in (pair.password, pair.source.cluster.password, pair.target.cluster.password):
        assert all(secret not in str({**result, "invocation": None}) for result in seen)
        assert secret not in pair.source.cluster.log() + pair.target.cluster.log()


def test_tables_are_compared_in_groups(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "_TABLES_AT_ONCE", 3)
    wire(pair)
    lsns = {table["lsn"] for table in verify(pair, "fence")["tables"]}
    assert len(lsns) == 3
    monkeypatch.setattr(verification, "_BYTES_AT_ONCE", 1)
    lsns = {table["lsn"] for table in verify(pair, "fence")["tables"]}
    assert len(lsns) > 3
