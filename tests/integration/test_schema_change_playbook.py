# SPDX-License-Identifier: GPL-3.0-or-later
"""schema_change.yml changes definitions on a primary and two replicas, while rows are written and replication goes on."""

from __future__ import annotations

import random
import re
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.postgresml.distributed.plugins.plugin_utils import ddl
from psycopg2 import errors

from tests.support import playbooks, writers
from tests.support.cluster import Cluster
from tests.support.modules import run_module
from tests.support.pair import Place, wait_for
from tests.support.playbooks import Ansible, Run, Unsafe, caught_up

pytestmark = [pytest.mark.slow, pytest.mark.sampled(0)]

OF_A_CHANGE = (
    "SELECT relname::text FROM pg_class WHERE relnamespace = to_regnamespace('pgml_distributed')::oid AND relkind = 'r'"
    " AND relname NOT IN ('distributions', 'copies', 'progress', 'progress_tables')"
    " UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = to_regnamespace('pgml_distributed')::oid"
)
"""What a schema change keeps in schema pgml_distributed while it isn't finished."""

SCHEMA = """
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TABLE people (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL, email text, mood mood,
    code bigint NOT NULL UNIQUE, amount int, legacy text NOT NULL);
CREATE TABLE things (id int PRIMARY KEY, code int NOT NULL, label varchar(20), amount int);
CREATE TABLE "Days" (day int NOT NULL, n bigint NOT NULL, note text, PRIMARY KEY (day, n)) PARTITION BY RANGE (day);
CREATE TABLE days_low PARTITION OF "Days" FOR VALUES FROM (0) TO (10);
CREATE TABLE days_high PARTITION OF "Days" FOR VALUES FROM (10) TO (20);
CREATE TABLE old (id int PRIMARY KEY, note text);
CREATE TABLE elsewhere (id int PRIMARY KEY, note text);
CREATE SEQUENCE numbers;
CREATE TYPE phase AS ENUM ('begun', 'ended');
CREATE DOMAIN weight AS int;
CREATE TABLE parcels (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, phase phase, weight weight, extra text DEFAULT 'e',
    mark bigint DEFAULT 0);
CREATE TABLE zones (zone int NOT NULL, n bigint NOT NULL, PRIMARY KEY (zone, n)) PARTITION BY LIST (zone);
CREATE TABLE zone_1 PARTITION OF zones FOR VALUES IN (1);
CREATE TABLE zone_2 PARTITION OF zones FOR VALUES IN (2);
CREATE TABLE zone_rest PARTITION OF zones DEFAULT;
"""
TABLES = [
    "public.people",
    "public.things",
    'public."Days"',
    "public.old",
    "public.parcels",
    "public.zones",
    *writers.TABLES,
]
BUSY = ("insert", "update", "key", "delete", "truncate", "savepoints", "large")

# Each is a transaction. What fits to one definition only is rolled back under the others.
WORK = (
    "INSERT INTO people (name, code, legacy, mood) VALUES ('a', nextval('numbers'), 'b', 'ok')",
    "INSERT INTO people (name, code) VALUES ('a', nextval('numbers'))",
    "INSERT INTO people (name, code, age, born, mood) VALUES ('c', nextval('numbers'), 7, now(), 'ok')",
    "INSERT INTO people (full_name, code, mood) VALUES ('d', nextval('numbers'), 'great')",
    "UPDATE people SET age = coalesce(age, 0) + 1, created_at = now() WHERE code %% 7 = %(n)s %% 7",
    "UPDATE people SET mood = 'great' WHERE code %% 11 = %(n)s %% 11",
    "UPDATE people SET amount = 5 WHERE code %% 13 = %(n)s %% 13",
    "DELETE FROM people WHERE code %% 97 = %(n)s %% 97",
    "INSERT INTO things (id, code, label, amount) SELECT n, n, 'l', 3 FROM nextval('numbers') AS n",
    "INSERT INTO things (code, label, amount) SELECT n, 'm', 3000000000 FROM nextval('numbers') AS n",
    "UPDATE things SET code = code + 1000000 WHERE code < 1000000 AND code %% 31 = %(n)s %% 31",
    "UPDATE things SET amount = amount + 1 WHERE code %% 7 = %(n)s %% 7",
    "DELETE FROM things WHERE code %% 89 = %(n)s %% 89",
    "INSERT INTO \"Days\" SELECT %(n)s %% 20, nextval('numbers'), 'first'",
    "INSERT INTO \"Days\" SELECT %(n)s %% 40, nextval('numbers'), 'second'",
    'UPDATE "Days" SET day = (day + 10) %% 20 WHERE n %% 17 = %(n)s %% 17',
    'DELETE FROM "Days" WHERE n %% 101 = %(n)s %% 101',
    "INSERT INTO old VALUES (nextval('numbers'), 'old')",
    "INSERT INTO fresh (note) VALUES ('new')",
    "UPDATE fresh SET note = note || '.' WHERE id %% 5 = %(n)s %% 5",
)
# These keep their transactions open for a while: what they wrote under one definition is committed under the next.
SLOW = (
    ("INSERT INTO parcels (phase) VALUES ('begun')", "INSERT INTO parcels (phase) VALUES ('started')"),
    (
        "UPDATE parcels SET phase = 'begun' WHERE id %% 5 = %(n)s %% 5",
        "UPDATE parcels SET phase = 'started' WHERE id %% 5 = 1",
    ),
    ("UPDATE parcels SET weight = 6 WHERE id %% 7 = 1", "INSERT INTO parcels (weight) VALUES (5)"),
    ("INSERT INTO parcels (mark) SELECT nextval('numbers')", "INSERT INTO parcels (extra) VALUES ('x')"),
    ("INSERT INTO zones SELECT 1 + %(n)s %% 3, nextval('numbers')",),
)
UNFITTING = (
    errors.UndefinedColumn,
    errors.UndefinedTable,
    errors.NotNullViolation,
    errors.CheckViolation,
    errors.InvalidTextRepresentation,
    errors.UniqueViolation,
    errors.DeadlockDetected,
    errors.NumericValueOutOfRange,
    errors.FeatureNotSupported,
)


class Writer(threading.Thread):
    """Writes to the tables as they are at the time, until it is told to stop."""

    def __init__(self, place: Place, seed: int, stop: threading.Event, work: Sequence[str] = WORK) -> None:
        super().__init__(name=f"writer {seed}")
        self._work = work
        self._place = place
        self._stop_writing = stop
        self._random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.problem: BaseException | None = None

    def run(self) -> None:
        try:
            with closing(self._place.cluster.connect(self._place.database)) as connection:
                while not self._stop_writing.wait(0.02):
                    self._write(connection)
        except BaseException as problem:
            self.problem = problem

    def _write(self, connection: Any) -> None:
        statement = self._random.choice(self._work)
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement, {"n": self._random.randrange(1 << 20)})
        except UNFITTING:
            return
        self.done[statement] += 1


@contextmanager
def writing(place: Place) -> Iterator[Writer]:
    """Write to all tables for as long as the block runs."""
    stop = threading.Event()
    writer = Writer(place, 6, stop)
    writer.start()
    try:
        with writers.writers(place, BUSY, large=5000, pause=0.1):
            yield writer
    finally:
        stop.set()
        writer.join()
    if writer.problem:
        raise writer.problem


@contextmanager
def writing_slowly(place: Place) -> Iterator[Counter[str]]:
    """Write in transactions that stay open for a while, for as long as the block runs; yields what was written."""
    stop = threading.Event()
    threads = [
        Writer(place, seed, stop, [text + "; SELECT pg_sleep(0.15)" for text in work])
        for seed, work in enumerate([*SLOW, SLOW[0]])
    ]
    done: Counter[str] = Counter()
    for thread in threads:
        thread.done = done
        thread.start()
    try:
        yield done
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    for thread in threads:
        if thread.problem:
            raise thread.problem


class Servers:
    """A primary, two replicas, one distribution between them."""

    def __init__(self, primary: Cluster, replicas: dict[str, Cluster], ansible: Ansible) -> None:
        self.primary = Place(primary, "shop")
        self.replicas = {name: Place(server, "ml") for name, server in replicas.items()}
        self.tables = list(TABLES)
        self._ansible = ansible

    def inventory(self, **variables: Any) -> dict[str, Any]:
        distributions = [
            {"name": "shop", "database": "shop", "target_database": "ml", "tables": self.tables},
            {"name": "copied", "database": "shop", "target_database": "copies", "strategy": "dump"},
        ]
        replicas = {name: place.cluster for name, place in self.replicas.items()}
        return playbooks.inventory(self.primary.cluster, replicas, distributions, **variables)

    def distribute(self) -> Run:
        hosts = self.inventory()
        del hosts["all"]["vars"]["pgml_distributions"][1]
        return self._ansible.ok("distribute.yml", hosts)

    def change(self, *statements: str, arguments: Sequence[str] = (), **variables: Any) -> Run:
        """Run the playbook with *statements*."""
        more = {"statements": [Unsafe(text) for text in statements]} if statements else {}
        named = {f"pgml_schema_change_{key}": value for key, value in {**more, **variables}.items()}
        return self._ansible.run("schema_change.yml", self.inventory(**named), *arguments)

    def start(self, *statements: str, **variables: Any) -> Any:
        named = {"statements": list(statements), **variables}
        hosts = self.inventory(**{f"pgml_schema_change_{key}": value for key, value in named.items()})
        return self._ansible.start("schema_change.yml", hosts)

    def changed(self, *statements: str, **variables: Any) -> Run:
        """Run it, and see that it has succeeded and that replication goes on."""
        run = self.change(*statements, **variables)
        assert run.ok, run.output
        self.streams()
        return run

    def refused(self, *statements: str, arguments: Sequence[str] = (), **variables: Any) -> str:
        """Run it, and see that it fails and has touched nothing."""
        before = self.look()
        run = self.change(*statements, arguments=arguments, **variables)
        assert not run.ok, run.output
        assert self.touched(before) == []
        return run.message

    def look(self) -> dict[str, set[tuple[Any, ...]]]:
        """What could have been touched on the servers that run."""
        places = {"prod": self.primary, **self.replicas}
        return {name: place.fingerprint() for name, place in places.items() if place.cluster.running}

    def touched(self, before: dict[str, set[tuple[Any, ...]]]) -> list[str]:
        """What has been since *before*."""
        after = self.look()
        return [f"{name}: {line}" for name in before for line in before[name] ^ after[name]]

    def streams(self) -> None:
        """Replication has made no error, and follows."""
        caught_up(self.primary.cluster)
        for name, place in self.replicas.items():
            query = "SELECT coalesce(sum(apply_error_count + sync_error_count), 0) FROM pg_stat_subscription_stats"
            assert place.value(query) == 0, f"{name}: {place.cluster.log()[-3000:]}"

    def equal(self) -> None:
        """All rows of the distribution are equal; nobody writes."""
        caught_up(self.primary.cluster)
        source = self.primary.cluster.source("shop")
        for name, place in self.replicas.items():
            options = {"subscription": "pgml_shop", "source": source, **place.login}
            result = run_module("pgml_verify_info", options)
            assert not result.get("failed") and result["equal"], f"{name}: {result}"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    settings = {"log_statement": "ddl", "max_worker_processes": "30"}
    with (
        playbooks.cluster(**settings) as primary,
        playbooks.cluster(**settings) as first,
        playbooks.cluster(**settings) as second,
    ):
        made = Servers(primary, {"ml-1": first, "ml-2": second}, Ansible(tmp_path_factory.mktemp("ansible")))
        primary.create_database("shop")
        made.primary.sql(SCHEMA + writers.SCHEMA)
        writers.fill(made.primary)
        made.primary.sql(
            "INSERT INTO people (name, code, legacy) SELECT 'x', -i, 'y' FROM generate_series(1, 2000) AS i"
        )
        made.primary.sql("INSERT INTO things SELECT -i, -i, 'x', i FROM generate_series(1, 2000) AS i")
        made.primary.sql("INSERT INTO \"Days\" SELECT i %% 20, -i, 'x' FROM generate_series(1, 2000) AS i", ())
        made.distribute()
        yield made


def columns(place: Place, table: str) -> dict[str, str]:
    """The columns of a table, and how each is defined."""
    query = (
        "SELECT attname, format('%%s %%s %%s', format_type(atttypid, atttypmod), CASE WHEN attnotnull THEN 'NOT NULL' END,"
        " pg_get_expr(adbin, adrelid)) FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum"
        " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
    )
    return dict(place.sql(query, [table]))  # type: ignore[arg-type]


ADDITIONS = (
    "ALTER TABLE people ADD COLUMN age int, ADD COLUMN born timestamptz",
    "ALTER TABLE people ADD COLUMN active boolean NOT NULL DEFAULT true",
    "ALTER TABLE people ADD COLUMN created_at timestamptz NOT NULL DEFAULT now()",
    "ALTER TABLE busy.accounts ADD COLUMN extra text DEFAULT 'e'",
    "ALTER TABLE people ADD COLUMN rank int NOT NULL DEFAULT 7",
    "ALTER TABLE people ALTER COLUMN rank SET DEFAULT 8",
)


@pytest.mark.sampled(0)
def test_columns_are_added_while_rows_are_written(servers: Servers) -> None:
    before = servers.look()
    checked = servers.change(*ADDITIONS, arguments=["--check", "--diff"])
    assert checked.ok and servers.touched(before) == [], checked.output
    with writing(servers.primary) as writer:
        run = servers.changed(*ADDITIONS)
        wait_for(lambda: any("SET age" in text for text in writer.done), 30, "the new columns to be written")
    for host in ("prod", "ml-1", "ml-2"):
        assert run.recap[host]["changed"] == checked.recap[host]["changed"] > 0, checked.output
    servers.equal()
    there = columns(servers.primary, "people")
    for place in servers.replicas.values():
        assert columns(place, "people") == there
        assert columns(place, "busy.accounts")["extra"] == "text  'e'::text"
    settled = servers.look()
    again = servers.changed(*ADDITIONS)
    assert not again.changed and servers.touched(settled) == [], again.output


STEPS = (
    "ALTER TYPE mood ADD VALUE 'great'",
    "ALTER TABLE things ADD CONSTRAINT labelled CHECK (label IS NOT NULL) NOT VALID",
    "ALTER TABLE things VALIDATE CONSTRAINT labelled",
    "ALTER TABLE things ALTER COLUMN label SET NOT NULL",
    "ALTER TABLE things DROP CONSTRAINT labelled",
    "CREATE INDEX CONCURRENTLY things_label ON things (label)",
    "ALTER TABLE people DROP COLUMN legacy",
    "ALTER TABLE people ALTER COLUMN name DROP NOT NULL, ALTER COLUMN amount SET DEFAULT 4",
    "ALTER TABLE people ADD COLUMN grid int[] DEFAULT '{{1,2},{3,4}}'",
)


def test_removals_and_steps_while_rows_are_written(servers: Servers, tmp_path: Path) -> None:
    """A column that is NOT NULL goes, another becomes it, a label and an index come."""
    path = tmp_path / "change.sql"
    path.write_text("-- In steps; as a file.\n" + ";\n".join(STEPS) + ";\n", encoding="utf-8")
    with writing(servers.primary) as writer:
        servers.changed(arguments=["-e", f"pgml_schema_change_file={path}"])
        wait_for(lambda: any("'great'" in text for text in writer.done), 30, "the new label to be written")
    servers.equal()
    there = [columns(servers.primary, table) for table in ("people", "things")]
    assert "legacy" not in there[0] and there[1]["label"].startswith("character varying(20) NOT NULL")
    for place in servers.replicas.values():
        assert [columns(place, table) for table in ("people", "things")] == there
        assert place.value("SELECT bool_and(grid = '{{1,2},{3,4}}') FROM people")
        assert place.value("SELECT indisvalid FROM pg_index WHERE indexrelid = 'things_label'::regclass")
        assert place.sql("SELECT conname FROM pg_constraint WHERE conname = 'labelled'") == []


TOGETHER = (
    "ALTER TABLE people RENAME COLUMN name TO full_name",
    "ALTER TABLE things ALTER COLUMN amount TYPE bigint",
    "ALTER TABLE things DROP CONSTRAINT things_pkey, ADD CONSTRAINT things_key PRIMARY KEY (code)",
    "ALTER TABLE things ALTER COLUMN id ADD GENERATED BY DEFAULT AS IDENTITY (START 10000000)",
)


def test_names_types_and_keys_change_while_rows_are_written(servers: Servers) -> None:
    message = servers.refused(*TOGETHER)
    assert "pgml_schema_change_allow_disruptive" in message and "statement 2" in message
    with writing(servers.primary) as writer:
        servers.changed(*TOGETHER, allow_disruptive=True)
        wait_for(lambda: any("3000000000" in text for text in writer.done), 30, "the new type to be written")
    servers.equal()
    there = [columns(servers.primary, table) for table in ("people", "things")]
    assert "full_name" in there[0] and there[1]["amount"].startswith("bigint")
    for place in servers.replicas.values():
        assert [columns(place, table) for table in ("people", "things")] == there
        assert place.sql(
            "SELECT attidentity FROM pg_attribute WHERE attrelid = 'things'::regclass AND attname = 'id'"
        ) == [("d",)]
        assert place.sql(OF_A_CHANGE) == []
    assert servers.primary.sql(OF_A_CHANGE) == []


RACES = (
    "ALTER TABLE zones DETACH PARTITION zone_1",
    "DROP TABLE zone_2",
    "CREATE TABLE zone_7 PARTITION OF zones FOR VALUES IN (7)",
    "ALTER TABLE parcels DROP COLUMN extra, DROP COLUMN mark",
    "ALTER TYPE phase RENAME VALUE 'begun' TO 'started'",
    "ALTER DOMAIN weight ADD CONSTRAINT light CHECK (VALUE < 1000)",
)


@pytest.mark.sampled(0)
def test_what_is_under_way_on_the_primary_is_waited_for(servers: Servers) -> None:
    """Rows move to a default partition, a column goes that replicas are strict about, and values of a type are written that the
    type has no more: in transactions that began before, and end after."""
    for place in servers.replicas.values():
        place.sql("ALTER TABLE parcels ADD CHECK (extra IS NOT NULL), ALTER extra DROP DEFAULT")
        place.sql("CREATE UNIQUE INDEX ON parcels (mark) WHERE mark >= 0")
        place.sql("ALTER TABLE parcels ALTER mark SET DEFAULT 1")
    servers.primary.sql("ALTER TABLE parcels ALTER mark SET DEFAULT -1")
    with writing_slowly(servers.primary) as done:
        wait_for(lambda: any("'begun'" in text for text in done), 30, "old labels to be written")
        servers.changed(*RACES, allow_disruptive=True)
        wait_for(lambda: any("'started'" in text for text in done), 30, "new labels to be written")
        servers.streams()
    servers.equal()
    for place in (servers.primary, *servers.replicas.values()):
        assert place.value("SELECT count(*) FROM parcels WHERE phase = 'started'") > 0
        assert place.value("SELECT count(*) FROM zone_rest WHERE zone IN (1, 2)") > 0
        assert place.value("SELECT to_regclass('zone_2') IS NULL AND to_regclass('zone_7') IS NOT NULL")
        assert set(columns(place, "parcels")) == {"id", "phase", "weight"}


RELATIONS = (
    "CREATE TABLE fresh (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text)",
    "DROP TABLE old",
    'CREATE TABLE days_new PARTITION OF "Days" FOR VALUES FROM (20) TO (25)',
    "CREATE TABLE days_attached (day int NOT NULL, n bigint NOT NULL, note text, PRIMARY KEY (day, n))",
    'ALTER TABLE "Days" ATTACH PARTITION days_attached FOR VALUES FROM (25) TO (30)',
    'ALTER TABLE "Days" ATTACH PARTITION days_loaded FOR VALUES FROM (30) TO (40)',
    'ALTER TABLE "Days" DETACH PARTITION days_low',
)


@pytest.mark.sampled(0)
def test_tables_come_and_go_while_rows_are_written(servers: Servers) -> None:
    message = servers.refused(*RELATIONS[:2])
    assert "public.fresh" in message and "public.old" in message
    servers.primary.sql('CREATE TABLE days_loaded (LIKE "Days" INCLUDING ALL, CHECK (day >= 30 AND day < 40))')
    servers.primary.sql("INSERT INTO days_loaded SELECT 35, i, 'loaded' FROM generate_series(1, 1000) AS i")
    servers.tables.append("public.days_loaded")
    servers.distribute()
    servers.tables = [table for table in servers.tables if table != "public.old"] + ["public.fresh"]
    with writing(servers.primary) as writer:
        servers.changed(*RELATIONS)
        wait_for(lambda: any("INSERT INTO fresh" in text for text in writer.done), 30, "the new table to be written")
    servers.equal()
    partitions = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = '\"Days\"'::regclass ORDER BY 1"
    assert servers.primary.sql(partitions) == [("days_attached",), ("days_high",), ("days_loaded",), ("days_new",)]
    for place in servers.replicas.values():
        assert place.sql(partitions) == servers.primary.sql(partitions)
        assert place.value("SELECT count(*) FROM days_loaded WHERE note = 'loaded'") > 0
        assert place.value("SELECT to_regclass('old') IS NULL AND to_regclass('days_low') IS NOT NULL")
        assert place.value("SELECT count(*) FROM fresh") > 0


def test_a_replica_that_is_down_stops_all_before_anything_is_touched(servers: Servers) -> None:
    servers.replicas["ml-2"].cluster.stop()
    try:
        message = servers.refused("ALTER TABLE people ADD COLUMN never int")
    finally:
        servers.replicas["ml-2"].cluster.start()
    assert "Can't connect to" in message


@pytest.mark.sampled(0)
@pytest.mark.parametrize(
    "statement",
    ["ALTER TABLE people RENAME COLUMN brief TO short", "ALTER TABLE people DROP COLUMN brief"],
    ids=["together", "primary first"],
)
def test_a_replica_that_dies_after_the_primary_s_part_catches_up_in_a_rerun(servers: Servers, statement: str) -> None:
    """While a session keeps the replica from applying, the primary changes, and the replica waits."""
    for place in (servers.primary, *servers.replicas.values()):
        place.sql("ALTER TABLE people ADD COLUMN IF NOT EXISTS brief int")
    second = servers.replicas["ml-2"]
    change = ddl.change_id([statement])
    with writing(servers.primary):
        with closing(second.cluster.connect("ml", autocommit=False)) as session, session.cursor() as cursor:
            known = f"SELECT obj_description(oid, 'pg_publication') ~ ' {change} 0/1$' FROM pg_publication"
            with servers.primary.transaction("SELECT FROM people LIMIT 1"):
                # The replica was seen to follow, and the primary's part waits for this transaction.
                process = servers.start(statement, allow_disruptive=True)
                wait_for(lambda: servers.primary.value(known), 60, "the change to be begun")
                cursor.execute("LOCK TABLE people IN SHARE MODE")
            try:
                wait_for(lambda: "brief" not in columns(servers.primary, "people"), 60, "the primary's part")
                second.cluster.kill()
            finally:
                run = playbooks.finish(process)
        assert not run.ok and run.failures[0][0] == "ml-2", run.output
        assert "an unknown number on ml-2 of its 1 statements done." in run.message
        second.cluster.start()
        assert "brief" in columns(second, "people")
        refused = servers.change("ALTER TABLE things ADD COLUMN other int")
        assert not refused.ok and "unfinished, with 1 of 1 statements done on prod" in refused.message, refused.output
        assert "and 0 of 1 on ml-2. Mend what stopped it and run the same again" in refused.message
        assert "other" not in columns(servers.primary, "things")
        servers.changed(statement, allow_disruptive=True)
    servers.equal()
    for place in (servers.primary, *servers.replicas.values()):
        assert "brief" not in columns(place, "people")
        assert place.sql(OF_A_CHANGE) == []


@pytest.mark.sampled(0)
def test_a_lock_that_can_t_be_had_names_who_holds_it_and_the_rerun_goes_on(servers: Servers) -> None:
    statement = "ALTER TABLE people ADD COLUMN patient int"
    options = {"lock_timeout": 200, "timeout": 2}
    with servers.replicas["ml-2"].transaction("SELECT FROM people LIMIT 1") as pid:
        run = servers.change(statement, **options)
    assert run.failures[0][0] == "ml-2" and f"process {pid}" in run.failures[0][1], run.output
    assert "has stopped, with 0 on prod, 1 on ml-1, 0 on ml-2 of its 1 statements done. The" in run.message, run.output
    assert "patient" in columns(servers.replicas["ml-1"], "people")
    assert "patient" not in columns(servers.primary, "people")
    with servers.primary.transaction("SELECT FROM people LIMIT 1") as pid:
        run = servers.change(statement, **options)
    assert run.failures[0][0] == "prod", run.output
    for words in (
        f"process {pid}",
        "no statement of it is done on publication pgml_shop",
        "goes on from there",
        "has stopped, with 0 on prod, 1 on ml-1, 1 on ml-2 of",
    ):
        assert words in run.message
    assert "patient" in columns(servers.replicas["ml-2"], "people")
    assert "patient" not in columns(servers.primary, "people")
    servers.changed(statement)
    assert "patient" in columns(servers.primary, "people")
    # How far each is, as the guide tells to ask for it.
    guide = (Path(__file__).parents[2] / "docs/docsite/rst/guide_schema_change.rst").read_text(encoding="utf-8")
    for place, query in zip(
        (servers.primary, servers.replicas["ml-1"]), re.findall(r"SELECT obj_description[^;]+", guide), strict=True
    ):
        assert place.value(query).endswith(f"{ddl.change_id([statement])} 1/1")


def test_a_replica_that_does_not_follow_stops_all_before_anything_is_touched(servers: Servers) -> None:
    second = servers.replicas["ml-2"]
    second.sql("ALTER SUBSCRIPTION pgml_shop DISABLE")
    try:
        message = servers.refused("ALTER TABLE people ADD COLUMN never int")
    finally:
        second.sql("ALTER SUBSCRIPTION pgml_shop ENABLE")
    assert "Subscription pgml_shop is disabled" in message


@pytest.mark.sampled(0)
def test_the_same_is_run_again_under_another_name_and_with_the_primary_s_settings(servers: Servers) -> None:
    add, drop = "ALTER TABLE people ADD COLUMN twice text", "ALTER TABLE people DROP COLUMN twice"
    servers.changed(add)
    convert = "ALTER TABLE people ALTER COLUMN twice TYPE timestamptz USING twice::timestamp"
    servers.primary.sql("UPDATE people SET twice = '2026-01-01 12:00' WHERE code < 0")
    servers.primary.sql("ALTER DATABASE shop SET timezone = 'Asia/Tokyo'")
    servers.changed(convert, drop.replace("twice", "IF EXISTS nothing"), allow_disruptive=True)
    servers.equal()
    servers.changed(drop)
    message = servers.refused(add)
    assert "were run before: as change" in message and "-e pgml_schema_change_id=NAME" in message
    assert servers.changed(add, id=2).changed


def test_what_can_t_be_placed_is_refused_before_anything_is_touched(servers: Servers) -> None:
    good = "ALTER TABLE people ADD COLUMN never int"
    message = servers.refused(good, good.replace("never", "again"), "ALTER TABLE people ADD COLUM x int y")
    assert message.startswith("The statements can't be read: statement 3: syntax error at or near")
    message = servers.refused(good, "ALTER TABLE elsewhere ADD COLUMN a int", "CREATE INDEX ON people (email)")
    assert message.startswith("The schema change can't be rolled out") and "tatement 1" not in message, message
    assert "tatement 2" in message and "public.elsewhere" in message
    assert "tatement 3" in message and "CONCURRENTLY" in message


def test_requests_that_make_no_sense_are_refused(servers: Servers, tmp_path: Path) -> None:
    good = "ALTER TABLE people ADD COLUMN never int"
    path = tmp_path / "there.sql"
    path.write_text(good + ";", encoding="utf-8")
    assert "neither is there" in servers.refused()
    assert "both are there" in servers.refused(good, file=str(path))
    assert f"There is no file {path}.no on the controller" in servers.refused(file=f"{path}.no")
    assert "There is no distribution shops: set pgml_schema_change_distribution to one of shop." in servers.refused(
        good, distribution="shops"
    )
    assert "copied by dump: run the statements on the primary" in servers.refused(good, distribution="copied")
    assert "--limit leaves out ml-2" in servers.refused(good, arguments=["--limit", "all:!ml-2"])
    assert "--tags primary leaves its tasks out" in servers.refused(good, arguments=["--tags", "primary"])
