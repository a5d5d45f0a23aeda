# SPDX-License-Identifier: GPL-3.0-or-later
"""One server's part of a schema change: run once, remembered with what it did, at the same place of the stream on both sides."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Servers
from tests.support import copies
from tests.support.cluster import Cluster
from tests.support.pair import Pair, Place, create_role, pair_of, wait_for
from tests.support.steps import STEPS, Plan

CHANGE = "0123456789ab"
OTHER = "ba9876543210"
MODULE = "pgml_schema_change"
TABLES = """
    CREATE TABLE t (id bigint PRIMARY KEY, x int, y text);
    CREATE TABLE u (id bigint PRIMARY KEY, v text);
"""
ROWS = """
    INSERT INTO t SELECT g, g, 'first' FROM generate_series(1, 500) AS g;
    INSERT INTO u SELECT g, 'first' FROM generate_series(1, 500) AS g;
"""
RENAME = "ALTER TABLE t RENAME COLUMN x TO renamed"
RETYPE = "ALTER TABLE t ALTER COLUMN renamed TYPE text USING 'v' || renamed"
REKEY = "ALTER TABLE t DROP CONSTRAINT t_pkey, ALTER COLUMN y SET NOT NULL, ADD PRIMARY KEY (y, id)"


def part(*statements: Any, first: int = 1, total: int | None = None, **params: Any) -> dict[str, Any]:
    """The options of a part of a change. What can't run in a transaction is given as such."""
    listed = [
        {"number": number, **(sql if isinstance(sql, dict) else {"sql": sql})}
        for number, sql in enumerate(statements, first)
    ]
    total = max(first + len(statements) - 1, 1) if total is None else total
    return {"change": CHANGE, "total": total, "statements": listed, "timeout": 60, **params}


def on_upstream(*statements: Any, **params: Any) -> dict[str, Any]:
    return part(*statements, **{"publication": "pub", **params})


def replica(pair: Pair, *statements: Any, **params: Any) -> dict[str, Any]:
    return part(*statements, **{"subscription": pair.name, "source": pair.endpoint, **params})


def comment(place: Place) -> str | None:
    """The comment of the publication, or of the subscription, of a database that has one."""
    query = (
        "SELECT obj_description(oid, 'pg_publication') FROM pg_publication UNION ALL"
        " SELECT obj_description(oid, 'pg_subscription') FROM pg_subscription"
        " WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    return str(place.value(query))


def gate_objects(place: Place) -> int:
    """How much of the gate there is."""
    return int(
        place.value(
            "SELECT (SELECT count(*) FROM pg_namespace WHERE nspname = 'pgml_distributed')"
            " + (SELECT count(*) FROM pg_class WHERE relname ~ '_(gate|passed)$')"
            " + (SELECT count(*) FROM pg_proc WHERE proname ~ '_wait$' AND oid >= 16384)"
        )
    )


def apply_errors(pair: Pair) -> int:
    if pair.target.cluster.major < 15:
        return pair.target.cluster.log().count('background worker "logical replication worker"')
    query = "SELECT apply_error_count FROM pg_stat_subscription_stats WHERE subname = %s"
    return int(pair.target.value(query, [pair.name]))


def at_the_gate(pair: Pair) -> Any:
    """Whether the subscription's worker stands at a row of the gate."""
    return pair.sql_target(
        "SELECT 1 FROM pg_locks JOIN pg_stat_subscription USING (pid) WHERE locktype = 'advisory' AND subname = %s",
        [pair.name],
    )


def prepare(*pairs: Pair) -> None:
    pairs[0].source.converge(MODULE, **on_upstream(state="prepared"))
    for pair in pairs:
        pair.target.converge(MODULE, **replica(pair, state="prepared"))


def finish(*pairs: Pair) -> None:
    """Take the gate away; nothing of it stays."""
    pairs[0].source.converge(MODULE, **on_upstream(state="finished"))
    for pair in pairs:
        pair.target.converge(MODULE, **replica(pair, state="finished"))
        assert gate_objects(pair.target) == 0
        names = [row[0] for row in pair.sql_target("SELECT srrelid::regclass::text FROM pg_subscription_rel")]
        assert not [name for name in names if "gate" in name]
    assert gate_objects(pairs[0].source) == 0


def change_together(*pairs: Pair, first: int, total: int, sql: list[str]) -> None:
    options = {"first": first, "total": total, "together": True}
    assert pairs[0].source.ok(MODULE, **on_upstream(*sql, **options))["changed"]
    for pair in pairs:
        assert pair.target.ok(MODULE, **replica(pair, *sql, **options))["changed"]


@contextmanager
def writing(place: Place) -> Iterator[Any]:
    """Insert, update and delete rows of t and u until the block ends, whatever the columns of t are called."""
    stop, problems, done = threading.Event(), [], itertools.count()
    written = [0]

    def write() -> None:
        try:
            with closing(place.cluster.connect(place.database)) as connection, connection.cursor() as cursor:
                for number in done:
                    if stop.wait(0.002):
                        return
                    cursor.execute("INSERT INTO t (id, y) VALUES (%s, 'new')", [1000 + number])
                    cursor.execute("UPDATE t SET y = 'changed ' || id WHERE id = %s", [1 + number % 900])
                    cursor.execute("DELETE FROM t WHERE id = %s", [200 + number * 3])
                    cursor.execute(
                        "BEGIN; INSERT INTO u VALUES (%s, 'new'); UPDATE u SET v = 'x' WHERE id = 7; COMMIT",
                        [1000 + number],
                    )
                    written[0] = number
        except BaseException as problem:
            problems.append(problem)

    def more(transactions: int = 20) -> None:
        end = written[0] + transactions
        wait_for(lambda: problems or written[0] >= end, 30, "the writer")

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield more
    finally:
        stop.set()
        thread.join()
    assert not problems, problems


def fill(pair: Pair) -> Pair:
    pair.both(TABLES)
    pair.sql_source(ROWS)
    pair.publish("t", "u")
    pair.subscribe()
    return pair


@pytest.fixture
def shop(pair: Pair) -> Pair:
    return fill(pair)


def test_a_part_runs_once_and_is_remembered_beside_other_comments(shop: Pair) -> None:
    add = ["ALTER TABLE t ADD COLUMN age int", "CREATE TABLE public.v (id int PRIMARY KEY)"]
    shop.target.sql(f"COMMENT ON SUBSCRIPTION {shop.name} IS E'mine\\nand more'")
    result = shop.target.converge(MODULE, **replica(shop, *add))
    assert result["changes"] == [f"Run statement {n}: {sql}" for n, sql in enumerate(add, 1)]
    assert result["progress"] == {"done": 2, "total": 2, "begun": False} and result["other"] is None
    assert comment(shop.target) == f"mine\nand more\nSchema changes: {CHANGE} 2/2"
    assert not shop.subscribe()["changed"]
    shop.source.ok("pgml_publication", name="pub", comment="of ours")
    result = shop.source.converge(MODULE, **on_upstream(add[0], None))
    assert result["changes"][1] == "Pass over statement 2, which is for other servers"
    assert result["diff"]["after"] == add[0] + ";\n" and result["lsn"]
    # The comment of the publication and the line of progress don't touch one another.
    assert not shop.source.converge("pgml_publication", name="pub", comment="of ours")["changed"]
    assert shop.source.converge("pgml_publication", name="pub", comment="else")["changed"]
    assert comment(shop.source) == f"else\nSchema changes: {CHANGE} 2/2"
    options = {"name": "pub", "all_tables": True, "comment": "", "recreate": True}
    assert shop.source.ok("pgml_publication", **options)["publication"]["comment"] == ""
    assert comment(shop.source) == f"Schema changes: {CHANGE} 2/2"
    shop.sql_source("UPDATE t SET age = 1")
    shop.arrived("t")


def test_a_server_is_told_of_a_change_before_it_begins(primary_alone: Place) -> None:
    place = primary_alone
    change = on_upstream("ALTER TABLE t ADD COLUMN a int", "ALTER TABLE t ADD COLUMN b int")
    told = {**change, "statements": [], "begin": 0}
    assert place.ok(MODULE, **{**change, "statements": []})["known"] is False
    assert place.converge(MODULE, **told)["changes"] == [f"Take part in schema change {CHANGE}"]
    assert comment(place) == f"Schema changes: {CHANGE} 0/2"
    result = place.ok(MODULE, **{**told, "change": OTHER}, check=True, abandon=[CHANGE])
    assert result["other"] is None and result["known"] is False
    assert f"Schema change {CHANGE} is unfinished" in place.refused(MODULE, **{**told, "change": OTHER})
    assert place.ok(MODULE, **change)["known"] and comment(place) == f"Schema changes: {CHANGE} 2/2"
    assert not place.ok(MODULE, **told)["changed"]


def test_whoever_gives_up_a_change_looks_again_when_its_run_has_ended(primary_alone: Place) -> None:
    place, results = primary_alone, []
    told = {**on_upstream(total=1), "change": OTHER, "begin": 0, "abandon_unbegun": [CHANGE]}
    place.sql(f"COMMENT ON PUBLICATION pub IS 'Schema changes: {CHANGE} 0/2'")
    lock = "SELECT pg_advisory_lock(hashtext('postgresml.distributed schema change'), hashtext('publication pub'))"
    with place.transaction(lock):
        message = place.refused(MODULE, **{**told, "timeout": 0})
        assert "Another run has been at a schema change of publication pub" in message
        waiting = threading.Thread(target=lambda: results.append(place.run(MODULE, **told)))
        waiting.start()
        tries = (
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND query ~ '^SELECT pg_try_advisory'"
        )
        wait_for(lambda: place.sql(tries))
        place.sql(f"COMMENT ON PUBLICATION pub IS 'Schema changes: {CHANGE} 1/2'")
    waiting.join()
    assert f"Schema change {CHANGE} is unfinished" in results[0]["msg"], results
    assert comment(place) == f"Schema changes: {CHANGE} 1/2"
    place.sql(f"COMMENT ON PUBLICATION pub IS 'Schema changes: {CHANGE} 0/2'")
    assert place.converge(MODULE, **told)["changes"][0] == f"Give up schema change {CHANGE}"
    assert comment(place) == f"Schema changes: {OTHER} 0/1"


def test_a_failed_statement_leaves_nothing_and_is_taken_up_again(primary_alone: Place) -> None:
    place = primary_alone
    bad = [
        "ALTER TABLE t ADD COLUMN a int",
        {"sql": "CREATE INDEX CONCURRENTLY made ON t (a)", "builds": "public.made"},
        "ALTER TABLE t ADD b int",
        "ALTER TABLE w ADD c int",
    ]
    result = place.run(MODULE, **on_upstream(*bad))
    assert result["failed"] and result["sqlstate"] == "42P01"
    for words in (
        "Statement 4 of 4 failed.", 'relation "w" does not exist.', "Nothing of statements 3 to 4 stays",
        "the first 2 of 4 are done on publication pub of database",
        "Mend what stopped it and run the same again, which goes on from",
        f"give it up with -e pgml_schema_change_abandon={CHANGE} and a change that takes back what is done.",
    ):  # fmt: skip
        assert words in result["msg"], result["msg"]
    assert result["progress"] == {"done": 2, "total": 4, "begun": False}
    assert comment(place) == f"Schema changes: {CHANGE} 2/4"
    columns = "SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 0"
    assert place.value(columns) == "id x y a"
    # Another change waits until this one has come to its end, or is given up.
    other = {**on_upstream("ALTER TABLE t ADD d int"), "change": OTHER}
    message = place.refused(MODULE, **other)
    assert f"Schema change {CHANGE} is unfinished on publication pub" in message and "2 of 4 statements" in message
    assert f"-e pgml_schema_change_abandon={CHANGE} and a change" in message
    assert place.ok(MODULE, **{**other, "statements": []})["other"] == {
        "change": CHANGE,
        "done": 2,
        "total": 4,
        "begun": False,
    }
    assert "comes next" in place.refused(MODULE, **on_upstream("ALTER TABLE u ADD c int", first=4))
    assert "3 statements" not in place.refused(MODULE, **on_upstream("SELECT 1", first=3, total=5))
    place.sql("CREATE TABLE w (id int)")
    assert place.converge(MODULE, **on_upstream(*bad))["progress"]["done"] == 4
    assert place.value(columns) == "id x y a b"
    worse = {
        **on_upstream(
            "ALTER TABLE t ADD e int",
            {"sql": "CREATE UNIQUE INDEX CONCURRENTLY twice ON t (y)", "builds": "public.twice"},
        ),
        "change": OTHER,
    }
    result = place.run(MODULE, **worse)
    assert "Statement 2 of 2 failed." in result["msg"] and "could not create unique index" in result["msg"]
    assert place.sql("SELECT 1 FROM pg_index WHERE NOT indisvalid") == []
    third = {**on_upstream("ALTER TABLE t ADD f int"), "change": "111111111111"}
    assert "or give it up with" in place.refused(MODULE, **third)
    result = place.converge(MODULE, **third, abandon=[OTHER])
    assert result["changes"][0] == f"Give up schema change {OTHER}"
    assert comment(place) == f"Schema changes: {CHANGE} 4/4, 111111111111 1/1"


@pytest.fixture
def primary_alone(upstream: Place) -> Place:
    """The same tables, published to nobody."""
    upstream.sql(TABLES + ROWS)
    upstream.ok("pgml_publication", name="pub", tables=["t", "u"])
    return upstream


def test_indexes_that_were_begun_are_brought_to_their_end(primary_alone: Place) -> None:
    for state in ("valid", "invalid", "missing"):
        finish_index(primary_alone, state)


def finish_index(place: Place, state: str) -> None:
    name = 'public."Ma""de"'
    build = {"sql": 'CREATE INDEX CONCURRENTLY IF NOT EXISTS "Ma""de" ON t (x)', "builds": name}
    drop = {"sql": 'DROP INDEX CONCURRENTLY "Ma""de"', "drops": name}
    place.sql(f"COMMENT ON PUBLICATION pub IS 'Schema changes: {CHANGE} 1/3+'")
    if state != "missing":
        place.sql('CREATE INDEX "Ma""de" ON t (x)')
    if state == "invalid":
        place.sql('UPDATE pg_index SET indisvalid = false WHERE indexrelid = \'"Ma""de"\'::regclass')
    before = place.sql("SELECT oid FROM pg_class WHERE relname = 'Ma\"de'")
    progress = place.ok(MODULE, **on_upstream(total=3))["progress"]
    assert progress == {"done": 1, "total": 3, "begun": True}
    parts = on_upstream(build, {**drop, "sql": None}, first=2)
    assert place.converge(MODULE, **parts)["progress"] == {"done": 3, "total": 3, "begun": False}
    after = place.sql(
        "SELECT c.oid, indisvalid FROM pg_class AS c JOIN pg_index ON indexrelid = c.oid WHERE relname = 'Ma\"de'"
    )
    assert [row[1] for row in after] == [True] and ((after[0][:1] in before) == (state == "valid"))
    place.sql(f"COMMENT ON PUBLICATION pub IS 'Schema changes: {CHANGE} 0/1+'")
    for _ in range(2):
        assert place.ok(MODULE, **on_upstream(drop))["progress"]["done"] == 1
        assert place.sql("SELECT 1 FROM pg_class WHERE relname = 'Ma\"de'") == []
        place.sql(f"COMMENT ON PUBLICATION pub IS 'Schema changes: {CHANGE} 0/1+'")


def test_parts_that_make_no_sense_are_refused(shop: Pair) -> None:
    both = {"sql": "DROP INDEX CONCURRENTLY i", "builds": "public.i", "drops": "public.i"}
    assert "mutually exclusive: builds|drops" in shop.source.refused(MODULE, **on_upstream(both))
    for change, words in ({"change": "x"}, "12 hexadecimal"), ({"total": 0}, "least is 1"), ({"pins": [{}]}, "mark"):
        assert words in shop.source.refused(MODULE, **{**on_upstream(), **change})
    assert "no publication nope" in shop.source.refused(MODULE, **{**on_upstream(), "publication": "nope"})
    assert "has no subscription nope" in shop.target.refused(MODULE, **{**replica(shop), "subscription": "nope"})


def test_locks_are_waited_for_shortly_and_again(primary_alone: Place) -> None:
    place = primary_alone
    options = on_upstream("ALTER TABLE u ADD COLUMN a int", "ALTER TABLE t ADD COLUMN a int", lock_timeout=100)
    with place.transaction("LOCK TABLE t IN ACCESS SHARE MODE") as pid:
        result = place.run(MODULE, **{**options, "timeout": 1})
        assert result["failed"] and result["sqlstate"] == "55P03", result
        assert "Statement 2 of 2 failed." in result["msg"] and f"process {pid} of user" in result["msg"]
        assert comment(place) == "None"
        waiting = threading.Thread(target=lambda: results.append(place.run(MODULE, **options)))
        results: list[dict[str, Any]] = []
        waiting.start()
        before = place.cluster.log().count("ALTER TABLE t ADD COLUMN a int")
        wait_for(lambda: place.cluster.log().count("ALTER TABLE t ADD COLUMN a int") > before + 2)
    waiting.join()
    assert results[0]["progress"]["done"] == 2 and comment(place) == f"Schema changes: {CHANGE} 2/2"


def test_a_replica_drops_a_column_when_it_has_applied_what_was_written_before(shop: Pair) -> None:
    drop = "ALTER TABLE t DROP COLUMN y"
    with shop.target.transaction("LOCK TABLE t IN EXCLUSIVE MODE"):
        shop.sql_source("INSERT INTO t VALUES (1000, 1, 'with y')")
        lsn = shop.source.ok(MODULE, **on_upstream(drop))["lsn"]
        options = replica(shop, drop, wait_for=lsn, before=["ALTER TABLE t ALTER COLUMN y DROP NOT NULL"])
        message = shop.target.refused(MODULE, **{**options, "timeout": 1})
        assert f"had not applied the changes before {lsn}" in message
    result = shop.target.converge(MODULE, **options)
    assert result["changes"][0] == "Run first: ALTER TABLE t ALTER COLUMN y DROP NOT NULL"
    shop.sql_source("INSERT INTO t VALUES (1001, 2)")
    shop.arrived("t")
    assert apply_errors(shop) == 0


def test_a_replica_that_does_not_follow_is_noticed_at_once_and_while_it_is_waited_for(shop: Pair) -> None:
    asked = replica(shop, caught_up_within=60)
    shop.target.converge(MODULE, **asked)
    with shop.target.transaction("LOCK TABLE u IN EXCLUSIVE MODE"):
        shop.sql_source("INSERT INTO u VALUES (-1, 'waits')")
        message = shop.target.refused(MODULE, **{**asked, "caught_up_within": 1})
        assert "behind the source after 1 s" in message and "before definitions are changed" in message
    shop.arrived("u")
    shop.target.ok(MODULE, **asked)
    shop.sql_target("ALTER TABLE u ADD CHECK (id <> -2)")
    shop.sql_source("INSERT INTO u VALUES (-2, 'violates')")
    message = shop.target.refused(MODULE, **asked)
    assert "can't apply changes: it failed" in message, message
    lsn = shop.source.value("SELECT pg_logical_emit_message(true, '', '')")
    if shop.target.cluster.major >= 15:
        started = apply_errors(shop)
        message = shop.target.refused(MODULE, **replica(shop, "SELECT 1", wait_for=lsn, timeout=600))
        assert "can't apply what the upstream wrote" in message and apply_errors(shop) < started + 20, message
    shop.sql_target(f"ALTER SUBSCRIPTION {shop.name} DISABLE")
    assert "is disabled" in shop.target.refused(MODULE, **asked)


def test_a_replica_reads_and_writes_values_as_the_upstream_does(shop: Pair) -> None:
    for name, value in {"TimeZone": "Asia/Tokyo", "bytea_output": "escape", "extra_float_digits": "-9"}.items():
        shop.sql_source(f"ALTER DATABASE {shop.source.database} SET {name} = '{value}'")
    sql = (
        "ALTER TABLE u ALTER COLUMN v TYPE text USING"
        " concat_ws(' ', timestamptz '2026-01-01 00:00+00', '\\x41'::bytea, 0.123456789123::float8)"
    )
    settings = shop.source.ok(MODULE, **on_upstream(sql))["settings"]
    assert settings["TimeZone"] == "Asia/Tokyo" and len(settings) == 6
    shop.target.converge(MODULE, **replica(shop, sql, settings=settings))
    assert shop.sql_target("SELECT DISTINCT v FROM u") == shop.sql_source("SELECT DISTINCT v FROM u")
    other = {**replica(shop, "CREATE TABLE m (price money)", "ALTER TABLE m ADD i int"), "change": OTHER}
    message = shop.target.refused(MODULE, **{**other, "settings": {"search_path": "x"}})
    assert "settings can't hold search_path" in message
    # A locale that the replica doesn't have is in nobody's way, unless there is money.
    shop.target.ok(MODULE, **{**replica(shop, "SELECT 1"), "change": "1" * 12, "settings": {"lc_monetary": "nowhere"}})
    shop.target.refused(MODULE, **{**other, "settings": {"lc_monetary": "nowhere"}})
    shop.sql_target("ALTER TABLE t ADD price money")
    message = shop.target.refused(MODULE, **replica(shop, caught_up_within=60, settings={"lc_monetary": "nowhere"}))
    assert "has no locale nowhere" in message
    message = shop.target.refused(MODULE, **replica(shop, caught_up_within=60, settings={"TimeZone": "Mars/North"}))
    assert "Mars/North" in message


def test_values_of_defaults_that_are_computed_once_come_from_the_source(shop: Pair) -> None:
    shop.both(
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p DEFAULT; CREATE TABLE e ()"
    )
    shop.sql_source("INSERT INTO p VALUES (1)")
    adds = [f"ALTER TABLE {table} ADD COLUMN at timestamptz DEFAULT now()" for table in ("t", "p", "e")]
    shop.source.ok(MODULE, **on_upstream(*adds))
    pins = [
        {"mark": f"\ue000missing public.{table}.at\ue000", "table": f"public.{table}", "column": "at"}
        for table in ("t", "p", "e")
    ]
    marked = [
        f"ALTER TABLE {pin['table']} ADD COLUMN at timestamptz DEFAULT '{pin['mark']}', ALTER COLUMN at SET DEFAULT now()"
        for pin in pins
    ]
    result = shop.target.converge(MODULE, **replica(shop, *marked, pins=pins))
    assert "DEFAULT (the value at the source), ALTER" in result["changes"][0]
    assert shop.sql_source("SELECT DISTINCT at FROM t") == shop.sql_target("SELECT DISTINCT at FROM t")
    shop.sql_target("INSERT INTO p1 (id) VALUES (2)")
    assert shop.sql_target("SELECT at > now() - interval '1 h' FROM p") == [(True,)]
    assert shop.sql_target(
        "SELECT attmissingval::text FROM pg_attribute WHERE attrelid = 'p1'::regclass AND attname = 'at'"
    ) == shop.sql_source(
        "SELECT attmissingval::text FROM pg_attribute WHERE attrelid = 'p1'::regclass AND attname = 'at'"
    )
    shop.sql_source("VACUUM FULL t")
    message = shop.target.refused(MODULE, **{**replica(shop, marked[0], pins=pins), "change": OTHER})
    assert "rows of public.t got for column at" in message


def test_facts_say_what_a_plan_needs(pair: Pair) -> None:
    pair.both("""
        CREATE TYPE mood AS ENUM ('ok'); CREATE DOMAIN moods AS mood[] DEFAULT '{}';
        CREATE TYPE unused AS ENUM ('x'); CREATE SCHEMA "S";
        CREATE TABLE "S"."T t" (id int PRIMARY KEY, feels moods NOT NULL, name varchar(7) DEFAULT 'x', CHECK (id > 0));
        CREATE TABLE p (id int, d date, PRIMARY KEY (id, d)) PARTITION BY RANGE (d);
        CREATE TABLE p1 PARTITION OF p DEFAULT; CREATE TABLE other (id int GENERATED ALWAYS AS IDENTITY);
        CREATE TABLE f (a int, b int); ALTER TABLE f REPLICA IDENTITY FULL; INSERT INTO f VALUES (1, 1);
        CREATE FUNCTION now(int) RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 1';
        ALTER TABLE p1 ADD CONSTRAINT own CHECK (id > d - '2000-01-01'); CREATE UNIQUE INDEX by_d ON p1 (id, abs(id));
        CREATE TABLE byi (id int PRIMARY KEY, n int NOT NULL, m mood); CREATE UNIQUE INDEX byi_n ON byi (n);
        ALTER TABLE byi REPLICA IDENTITY USING INDEX byi_n;
    """)
    pair.publish({"name": '"S"."T t"', "columns": ["id", "feels"]}, "p", "byi")
    pair.source.sql("CREATE PUBLICATION others FOR TABLE p1; CREATE PUBLICATION whole FOR TABLE byi")
    pair.subscribe(initial_copy="none")
    asked = {
        "relations": ['"S"."T t"', "public.p", "public.p1", "public.byi", "public.other", "public.f", "public.nope",
                      '"S"."T t_pkey"', "public.other_id_seq"],
        "types": ["public.mood", "public.unused", "public.nope", "public.moods"],
        "functions": ["now", "pg_catalog.now", "random", "nope", "lower"],
    }  # fmt: skip
    facts = pair.source.converge(MODULE, **on_upstream(**asked))["facts"]
    assert facts["functions"] == {"now": "v", "pg_catalog.now": "s", "random": "v", "lower": "i"}
    assert facts["types"] == {
        "public.mood": {
            "kind": "e", "has_default": False, "distributed": True, "tables": ['"S"."T t"', "public.byi"],
            "publications": ["whole"],
        },
        "public.unused": {
            "kind": "e", "has_default": False, "distributed": False, "tables": [], "publications": [],
        },
        "public.moods": {
            "kind": "d", "has_default": True, "distributed": True, "tables": ['"S"."T t"'], "publications": [],
        },
    }  # fmt: skip
    others = facts["publication"].pop("others")
    assert others == {"all_tables": [], "schemas": {}}
    assert facts["publication"] == {
        "all_tables": False, "schemas": [], "via_partition_root": False, "publish": ["insert", "update", "delete", "truncate"],
    }  # fmt: skip
    assert facts["database"] == pair.source.database and facts["version"] // 10000 == pair.source.cluster.major
    found = facts["relations"]
    assert set(found) == set(asked["relations"]) - {"public.nope"}
    table = found['"S"."T t"']
    assert (
        table["kind"] == "r" and table["distributed"] and table["listed"] == ["id", "feels"] and table["key"] == ["id"]
    )
    assert table["columns"]["name"] == {
        "type": "character varying(7)", "not_null": False, "has_default": True, "generated": "", "identity": "",
    }  # fmt: skip
    assert {k["type"] for k in table["constraints"].values()} >= {"p", "c"} and table["empty"]
    assert table["constraints"]["T t_id_check"] == {
        "type": "c", "columns": ["id"], "expression": "CHECK ((id > 0))", "valid": True,
    }  # fmt: skip
    assert found['"S"."T t_pkey"']["table"] == '"S"."T t"' and found['"S"."T t_pkey"']["unique"]
    assert found['"S"."T t_pkey"']["distributed"] and found['"S"."T t_pkey"']["kind"] == "i"
    assert (
        found["public.p1"]["parent"] == "public.p"
        and found["public.p1"]["distributed"]
        and found["public.p"]["distributed"]
    )
    assert not found["public.other"]["distributed"] and found["public.other"]["columns"]["id"]["identity"] == "a"
    assert found["public.other_id_seq"]["kind"] == "S" and not found["public.other_id_seq"]["distributed"]
    assert found["public.f"]["key"] == ["a", "b"] and not found["public.f"]["empty"]
    assert found["public.p"]["default"] == found["public.p1"]["parent_default"] == {"name": "public.p1", "empty": True}
    assert found["public.p"]["partitioned_by"] == {"strategy": "r", "columns": ["d"]}
    assert found["public.p1"]["default"] is found["public.f"]["partitioned_by"] is None
    assert found["public.p"]["within"] == [
        {"table": "public.p1", "name": "by_d", "type": "i", "columns": ["id"]},
        {"table": "public.p1", "name": "own", "type": "c", "columns": ["id", "d"]},
    ]
    by_index = found["public.byi"]
    assert (by_index["identity"], by_index["identity_index"], by_index["key"]) == ("i", "byi_n", ["n"])
    assert by_index["indexes"]["byi_n"] == {
        "key": ["n"], "columns": ["n"], "unique": True, "primary": False, "identity": True,
    }  # fmt: skip
    assert (table["identity"], table["identity_index"], table["publications"]) == ("d", "T t_pkey", [])
    assert found["public.p"]["publications"] == found["public.p1"]["publications"] == ["others"]
    there = pair.target.converge(MODULE, **replica(pair, **asked))["facts"]
    assert {k: v["distributed"] for k, v in there["relations"].items()} == {
        k: v["distributed"] for k, v in found.items()
    }
    without = {name: {**each, "publications": []} for name, each in facts["types"].items()}
    assert "publication" not in there and there["types"] == without


def traces(pair: Pair) -> list[set[Any]]:
    """What the gate touches in the catalogs of both sides, but for comments."""
    kinds = ("publication", "published", "subscription", "subscribed", "schema")
    return [{row for row in place.fingerprint() if row[0] in kinds} for place in (pair.source, pair.target)]


@contextmanager
def large_transaction(pair: Pair) -> Iterator[None]:
    """A transaction that is open while the block runs, and sent before it ends. It writes to t after the block only."""
    fill = "INSERT INTO u SELECT {0} + g, repeat('x', 50) FROM generate_series(1, 3000) AS g"
    with closing(pair.source.cluster.connect(pair.source.database, autocommit=False)) as connection:
        with connection.cursor() as cursor:
            cursor.execute(fill.format(1000000))
            yield
            cursor.execute(fill.format(2000000) + "; INSERT INTO t VALUES (-1, '1', 'large')")
        connection.commit()


GATED = [(15, "tables"), (13, "tables"), (18, "all"), (15, "schema")]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("major", "kind"), GATED)
def test_the_gate_holds_under_writes(servers: Servers, major: int, kind: str) -> None:
    """Nothing stops, is lost, or is left of it: renamed, of another type and rewritten, with another primary key."""
    members = {"tables": {"tables": ["t", "u"]}, "schema": {"schemas": ["public"]}, "all": {"all_tables": True}}
    with pair_of(servers.get(major, "primary"), servers.get(major, "replica")) as pair:
        pair.both(TABLES)
        pair.sql_source(ROWS)
        pair.sql_source(f"ALTER ROLE {pair.distributor} SET logical_decoding_work_mem = '64kB'")
        pair.source.ok("pgml_publication", name="pub", **members[kind])
        pair.subscribe(streaming={13: None, 15: "on", 18: "parallel"}[major])
        before, errors = traces(pair), apply_errors(pair)
        with writing(pair.source) as more:
            prepare(pair)
            more()
            with large_transaction(pair):
                change_together(pair, first=1, total=5, sql=[RENAME])
                more()
                change_together(pair, first=2, total=5, sql=[RETYPE])
            change_together(pair, first=3, total=5, sql=[REKEY, "ALTER TABLE t ADD COLUMN z int, DROP COLUMN renamed"])
            change_together(pair, first=5, total=5, sql=["ALTER TABLE t ADD COLUMN again int"])
            more()
            finish(pair)
            more()
        pair.arrived("t")
        pair.arrived("u")
        assert apply_errors(pair) == errors
        assert comment(pair.target) == comment(pair.source) == f"Schema changes: {CHANGE} 5/5"
        assert traces(pair) == before


@pytest.mark.sampled(1)
@pytest.mark.parametrize("major", [18, 15])
def test_a_worker_that_waits_for_long_connects_again_without_an_error(servers: Servers, major: int) -> None:
    with pair_of(servers.get(major, "primary"), servers.get(major, "replica")) as pair:
        pair.sql_source(
            f"ALTER ROLE {pair.distributor} SET wal_sender_timeout = '2s';"
            f" ALTER ROLE {pair.distributor} SET logical_decoding_work_mem = '64kB'"
        )
        pair.both(TABLES)
        pair.sql_source(ROWS)
        pair.publish("t", "u")
        pair.subscribe(disable_on_error=True, streaming={15: "on", 18: "parallel"}[major])
        prepare(pair)
        sql = [RENAME, RETYPE]
        pair.source.ok(MODULE, **on_upstream(*sql, together=True))
        pair.sql_source("INSERT INTO t VALUES (1000, '1', 'behind')")
        with pair.target.transaction("LOCK TABLE t IN ACCESS SHARE MODE"):
            options = replica(pair, *sql, together=True, lock_timeout=100)
            message = pair.target.refused(MODULE, **{**options, "timeout": 1})
            assert "Statement 1 of 2 failed." in message and at_the_gate(pair)
            active = "SELECT active FROM pg_replication_slots WHERE slot_name = %s"
            wait_for(lambda: not pair.source.value(active, [pair.name]), 30, "the source to give the connection up")
        assert pair.target.converge(MODULE, **options)["progress"]["done"] == 2
        pair.arrived("t")
        finish(pair)
        assert apply_errors(pair) == 0
        assert pair.target.value("SELECT subenabled FROM pg_subscription WHERE subname = %s", [pair.name])


@contextmanager
def second_replica(pair: Pair) -> Iterator[Pair]:
    """Another database that subscribes to the same publication."""
    place = Place(pair.target.cluster, pair.target.database + "_2")
    place.cluster.create_database(place.database)
    other = Pair(pair.source, place, pair.distributor, pair.password)
    try:
        yield other
    finally:
        for (name,) in place.sql(
            "SELECT subname FROM pg_subscription JOIN pg_database AS d ON d.oid = subdbid AND datname = current_database()"
        ):
            other.target.ok("pgml_subscription", name=name, state="absent")
        place.cluster.drop_database(place.database)


def test_two_replicas_come_to_the_gate_each_in_its_time(shop: Pair) -> None:
    with second_replica(shop) as second:
        second.sql_target(TABLES)
        second.subscribe()
        with writing(shop.source) as more:
            prepare(shop, second)
            with second.target.transaction("LOCK TABLE u IN SHARE MODE"):
                more()
                shop.source.ok(MODULE, **on_upstream(RENAME, together=True))
                early = replica(second, RENAME, together=True, timeout=1)
                assert "has not applied what the upstream wrote before" in second.target.refused(MODULE, **early)
            more()
            shop.target.ok(MODULE, **replica(shop, RENAME, together=True))
            wait_for(lambda: at_the_gate(second))
            assert not at_the_gate(shop)
            message = second.target.refused(MODULE, **replica(second, caught_up_within=1))
            assert "stands at the gate of a schema change that has stopped: run that to its end" in message
            # The gate can't be taken away under the one that stands there.
            assert "still stands at the gate" in second.target.refused(
                MODULE, **replica(second, state="finished", timeout=0)
            )
            second.target.ok(MODULE, **replica(second, RENAME, together=True))
            finish(shop, second)
        for pair in (shop, second):
            pair.arrived("t")
            assert apply_errors(pair) == 0


INDEXED = {"sql": "CREATE INDEX CONCURRENTLY i ON u (a)", "builds": "public.i"}
STEPWISE: list[tuple[str, dict[str, Any]]] = [
    ("source", {"state": "prepared"}),
    ("target", {"state": "prepared"}),
    ("source", {"sql": ["ALTER TABLE u ADD COLUMN a int", INDEXED], "first": 1}),
    ("target", {"sql": ["ALTER TABLE u ADD COLUMN a int", INDEXED], "first": 1}),
    ("source", {"sql": [RENAME], "first": 3, "together": True}),
    ("target", {"sql": [RENAME], "first": 3, "together": True}),
    ("source", {"state": "finished"}),
    ("target", {"state": "finished"}),
]


def test_runs_that_are_killed_after_every_step_come_to_the_same_end(shop: Pair, tmp_path: Path) -> None:
    before, killed = traces(shop), 0
    for side, options in STEPWISE:
        place = shop.source if side == "source" else shop.target
        params = part(*options.get("sql", []), **{"total": 3, **{k: v for k, v in options.items() if k != "sql"}})
        params.update(
            {"publication": "pub"} if side == "source" else {"subscription": shop.name, "source": shop.endpoint}
        )
        while True:
            directory = tmp_path / str(killed)
            with copies.ending(
                copies.Process(place, directory, params, MODULE, Plan(str(directory), kill=1))
            ) as process:
                process.wait(60)
                if not (directory / STEPS).exists():
                    assert not process.finish().get("failed")
                    break
            killed += 1
    assert killed > len(STEPWISE)
    shop.sql_source("INSERT INTO t VALUES (1000, 1, 'after')")
    shop.arrived("t")
    assert apply_errors(shop) == 0 and traces(shop) == before
    assert comment(shop.target) == comment(shop.source) == f"Schema changes: {CHANGE} 3/3"
    assert shop.sql_source("SELECT 1 FROM pg_index WHERE NOT indisvalid") == []


def test_the_gate_is_refused_where_it_would_do_harm(shop: Pair) -> None:
    prepared = replica(shop, state="prepared")
    assert "run state=prepared on the upstream first" in shop.target.refused(MODULE, **prepared)
    # In check mode the tasks before would have put it up.
    assert len(shop.target.ok(MODULE, check=True, **prepared)["changes"]) == 3
    assert "has no gate: run state=prepared first" in shop.target.refused(
        MODULE, **replica(shop, RENAME, together=True)
    )
    assert shop.target.ok(MODULE, check=True, **replica(shop, RENAME, together=True))["changed"]
    assert shop.target.ok(MODULE, check=True, **replica(shop, RENAME, together=True, first=3))["changed"]
    shop.source.ok(MODULE, **on_upstream(state="prepared"))
    assert "source is needed" in shop.target.refused(MODULE, **{**prepared, "source": None})
    shop.both("CREATE TABLE late (id int PRIMARY KEY)")
    shop.publish("t", "u", "late")
    assert gate_objects(shop.source) == 2, "the publication's own module has taken the gate away"
    shop.source.ok("pgml_publication", name="pub", tables=["t", "u"])
    shop.target.ok(MODULE, **prepared)
    shop.publish("t", "u", "late")
    # A run that died after a table came, and before its rows were taken, has had the gate.
    assert not shop.target.ok(MODULE, **prepared)["changed"]
    shop.target.ok(MODULE, **{**prepared, "state": "finished"})
    level = f"ALTER DATABASE {shop.target.database} SET default_transaction_isolation = 'repeatable read'"
    shop.target.sql(level)
    assert "would wait at the gate for ever" in shop.target.refused(MODULE, **prepared)
    shop.target.sql(f"ALTER DATABASE {shop.target.database} RESET default_transaction_isolation")
    message = shop.target.refused(MODULE, **prepared)
    assert "public.late is published and subscription" in message and "run distribute.yml first" in message
    worker = "SELECT pid FROM pg_stat_subscription WHERE subname = %s AND pid IS NOT NULL"
    ((pid,),) = wait_for(lambda: shop.target.sql(worker, [shop.name]), 20, "the worker")
    os.kill(pid, signal.SIGSTOP)  # it would set the state right
    try:
        shop.sql_target("UPDATE pg_subscription_rel SET srsubstate = 's' WHERE srrelid = 'u'::regclass")
        assert "The first copy of public.u" in shop.target.refused(MODULE, **prepared)
        shop.sql_target("UPDATE pg_subscription_rel SET srsubstate = 'r' WHERE srrelid = 'u'::regclass")
    finally:
        os.kill(pid, signal.SIGCONT)
    shop.sql_target(f"ALTER SUBSCRIPTION {shop.name} DISABLE")
    assert "is disabled" in shop.target.refused(MODULE, **prepared)
    shop.source.ok(MODULE, **on_upstream(state="finished"))
    shop.source.ok("pgml_publication", name="pub", publish=["update"])
    assert "doesn't publish inserts" in shop.source.refused(MODULE, **on_upstream(state="prepared"))


def test_commits_that_wait_for_a_replica_would_never_end_at_the_gate(
    servers_of_its_own: tuple[Cluster, Cluster],
) -> None:
    with pair_of(*servers_of_its_own) as pair:
        fill(pair)
        pair.sql_source(f"ALTER SYSTEM SET synchronous_standby_names = '{pair.name}'")
        pair.sql_source("SELECT pg_reload_conf()")
        state = "SELECT sync_state FROM pg_stat_replication WHERE application_name = %s"
        wait_for(lambda: pair.source.value(state, [pair.name]) == "sync", 20, "the replica to be synchronous")
        message = pair.source.refused(MODULE, **on_upstream(state="prepared"))
        assert f"wait for {pair.name}, which would wait at the gate" in message
        pair.sql_source("ALTER SYSTEM RESET synchronous_standby_names")
        pair.sql_source("SELECT pg_reload_conf()")
        wait_for(lambda: pair.source.value(state, [pair.name]) == "async", 20, "the replica not to be synchronous")
        assert pair.source.ok(MODULE, **on_upstream(state="prepared"))["changed"]
        pair.source.ok(MODULE, **on_upstream(state="finished"))


@contextmanager
def owner_of(pair: Pair) -> Iterator[dict[str, str]]:
    """The login of a role that is no superuser, and owns the tables, the publication and the subscription."""
    name = f"owner_{pair.name}"
    sides = [(pair.source, "PUBLICATION pub"), (pair.target, f"SUBSCRIPTION {pair.name}")]
    for place, wired in sides:
        create_role(place.cluster, name, "LOGIN", "owner's own")
        place.sql(
            f"GRANT CREATE ON DATABASE {place.database} TO {name}; GRANT CREATE ON SCHEMA public TO {name};"
            f" GRANT pg_create_subscription TO {name}; ALTER TABLE t OWNER TO {name}; ALTER TABLE u OWNER TO {name};"
            f" ALTER {wired} OWNER TO {name}"
        )
    try:
        yield {"login_user": name, "login_password": "owner's own"}
    finally:
        for place, _wired in sides:
            place.sql(f"REASSIGN OWNED BY {name} TO postgres; DROP OWNED BY {name}; DROP ROLE {name}")


def test_owners_who_are_no_superusers_change_what_is_theirs(newest: Pair) -> None:
    pair = newest
    fill(pair)
    with owner_of(pair) as owner:
        # The superuser's tables first, which the subscription's owner could not write to.
        prepare(pair)
        change_together(pair, first=1, total=2, sql=[RENAME])
        finish(pair)
        for place, options in (
            (pair.source, on_upstream(state="prepared")),
            (pair.target, replica(pair, state="prepared")),
            (pair.source, on_upstream(RETYPE, first=2, total=2, together=True)),
            (pair.target, replica(pair, RETYPE, first=2, total=2, together=True)),
            (pair.source, on_upstream(state="finished")),
            (pair.target, replica(pair, state="finished")),
        ):
            assert place.converge(MODULE, **options, **owner)["changed"]
        pair.sql_source("INSERT INTO t VALUES (1000, 'text', 'after')")
        pair.arrived("t")
        assert apply_errors(pair) == 0
        message = pair.source.refused(
            MODULE, **{**on_upstream("DROP TABLE pg_catalog.pg_class"), "change": OTHER}, **owner
        )
        assert "Statement 1 of 1 failed." in message and "must be owner of" in message
