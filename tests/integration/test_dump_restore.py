# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies of tables: equal to what they were made from, made anew when it changes, and exchanged in one moment."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import chunks

from tests.support import copies, playbooks
from tests.support.cluster import Cluster
from tests.support.copies import MODULE, copy, definitions, differences, options, redefined, residue, rows
from tests.support.pair import Pair, Place, wait_for

pytestmark = pytest.mark.slow

TWO = """
    CREATE TABLE a (id int PRIMARY KEY, v int NOT NULL);
    CREATE TABLE b (id int PRIMARY KEY, v int NOT NULL, a int REFERENCES a);
"""
TWO_ROWS = """
    INSERT INTO a SELECT g, 1 FROM generate_series(1, 500) AS g;
    INSERT INTO b SELECT g, 1, g FROM generate_series(1, 500) AS g;
"""


@pytest.fixture
def zoo(pair: Pair) -> Pair:
    pair.source.cluster.psql(copies.ZOO, pair.source.database)
    copies.wait_until_left(pair.source)
    return pair


@pytest.fixture
def shop(pair: Pair) -> Pair:
    copies.load_shop(pair, 0.02)
    return pair


@pytest.fixture
def two(pair: Pair) -> Pair:
    """Two tables whose rows all have the same v."""
    pair.sql_source(TWO)
    pair.sql_source(TWO_ROWS)
    return pair


def assert_equal(pair: Pair, *arguments: str) -> None:
    """Every definition, as pg_dump with *arguments* writes it, every row and every sequence."""
    assert redefined(pair, *arguments) == ""
    assert differences(pair) == {}


def set_version(pair: Pair, version: int) -> None:
    """Give v another value in all rows of both tables, in one transaction, and one row more to each."""
    pair.sql_source(
        f"UPDATE a SET v = {version}; UPDATE b SET v = {version};"
        f" INSERT INTO a (id, v) VALUES ({1000 + version}, {version});"
        f" INSERT INTO b (id, v, a) VALUES ({1000 + version}, {version}, 1)"
    )


# Equal


WAYS: dict[str, dict[str, Any]] = {
    "stream": {"jobs": 1},
    "four jobs": {"jobs": 4},
    "text": {"format": "text"},
    "archive": {"method": "archive", "jobs": 3},
}


def params_of(way: str, directory: Path) -> dict[str, Any]:
    params = WAYS[way]
    return {**params, "archive": str(directory / "archive")} if "method" in params else params


@pytest.mark.parametrize("way", WAYS)
def test_the_zoo_is_copied_as_it_is(zoo: Pair, way: str, tmp_path: Path) -> None:
    params = params_of(way, tmp_path)
    result = copy(zoo, **params)
    assert result["changed"] and result["left_out"] == [] and result["not_moved"] == []
    assert_equal(zoo)
    if params.get("format") == "text":
        assert {table["format"] for table in result["tables"]} == {"text"}
    else:
        assert {table["format"] for table in result["tables"]} == {"binary", "text"}
    expected = {name: count for name, (count, _hash) in copies.contents(zoo.source).items()}
    assert len(result["tables"]) == len(expected)
    assert result["rows"] == sum(table["rows"] for table in result["tables"]) == sum(expected.values())
    assert result["bytes"] == sum(table["bytes"] for table in result["tables"]) > 100_000
    assert result["seconds"] > 0 and all(table["chunks"] == 1 for table in result["tables"] if table["rows"])
    again = copy(zoo, **params)
    assert not again["changed"] and not again["changes"] and again["rows"] == 0
    assert_equal(zoo)


def test_marked_indexes_of_one_table_do_not_wait_for_each_other(two: Pair) -> None:
    """What makes an index the replica identity locks the table more than building it, in the same transaction."""
    two.sql_source(
        "INSERT INTO a SELECT g, g FROM generate_series(1000, 100000) AS g;"
        "CREATE UNIQUE INDEX identity ON a (v, id); CREATE INDEX clustered ON a (v);"
        "ALTER TABLE a REPLICA IDENTITY USING INDEX identity, CLUSTER ON clustered"
    )
    copies.wait_until_left(two.source)
    copy(two, jobs=2)
    assert_equal(two)


@pytest.mark.parametrize("replace", ["swap", "truncate"])
def test_the_zoo_is_copied_again_over_itself(zoo: Pair, replace: str) -> None:
    # What holds for new rows only is no place for the old ones, when they come as new ones into a table that stays.
    zoo.sql_source("ALTER TABLE zoo.cages DROP CONSTRAINT later; ALTER TABLE zoo.seen DROP CONSTRAINT seen_who")
    copy(zoo)
    zoo.sql_source(
        "UPDATE zoo.keyless SET a = a + 1; INSERT INTO zoo.counted (late) VALUES (NULL); DELETE FROM zoo.seen"
    )
    zoo.sql_target("DELETE FROM zoo.wide; INSERT INTO zoo.nothing DEFAULT VALUES")
    assert copy(zoo, refresh="always", replace=replace)["changed"]
    assert_equal(zoo)


def test_the_shop_is_copied_as_it_is_and_read_by_the_distributor(shop: Pair) -> None:
    """With the rights that a distribution gives, and as check mode has said."""
    shop.grant()
    shop.sql_source(f'GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO "{shop.distributor}"')
    result = shop.target.converge(MODULE, **options(shop, source=shop.endpoint))
    assert result["changed"] and residue(shop) == []
    assert_equal(shop, "--no-privileges")
    lines = next(table for table in result["tables"] if table["name"] == 'public."Order Lines"')
    assert lines["rows"] == playbooks.count(shop.source.cluster, shop.source.database, '"Order Lines"') > 1000


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut tables as small as these into ranges, as others of some GB are."""
    monkeypatch.setattr(chunks, "SMALLEST_SPLIT", 1 << 16)


@pytest.mark.parametrize("way", ["stream", "archive"])
def test_a_large_table_is_read_in_pieces(split: None, pair: Pair, way: str, tmp_path: Path) -> None:
    pair.sql_source(
        "CREATE TABLE large (id int PRIMARY KEY, filler char(700), toasted text);"
        "ALTER TABLE large ALTER filler SET STORAGE PLAIN, ALTER toasted SET STORAGE EXTERNAL;"
        "INSERT INTO large SELECT g, g, CASE WHEN g % 50 = 0 THEN repeat('x', 9000) END FROM generate_series(1, 5000) AS g;"
        "DELETE FROM large WHERE id % 7 = 0; CREATE TABLE small (id int); INSERT INTO small VALUES (1)"
    )
    result = copy(pair, **{**params_of(way, tmp_path), "jobs": 3})
    assert_equal(pair)
    found = {table["name"]: (table["chunks"], table["rows"]) for table in result["tables"]}
    assert found == {"public.large": (3, 5000 - 5000 // 7), "public.small": (1, 1)}
    assert not copy(pair, **{**params_of(way, tmp_path), "jobs": 3})["changed"]


def test_columns_of_the_row_type_of_a_table_outside_come_with_their_type_or_a_sentence(pair: Pair) -> None:
    pair.sql_source(
        "CREATE TABLE kind (id int, t text); CREATE TABLE kept (id int, k kind); INSERT INTO kept VALUES (1, '(2,x)')"
    )
    result = pair.target.run(MODULE, **options(pair, tables=["kept"]))
    assert residue(pair) == []
    if result.get("failed"):
        assert "public.kind" in result["msg"] and result["msg"].endswith(".")
    else:
        assert pair.sql_target("SELECT k::text FROM kept") == [("(2,x)",)]


def test_references_to_tables_by_name_are_right_or_refused(pair: Pair) -> None:
    """A value of type regclass is another number at the target, where the name may be that of the table that goes."""
    pair.sql_source("CREATE TABLE named (id int); CREATE TABLE names (t regclass)")
    copy(pair)
    pair.sql_source("INSERT INTO names VALUES ('named'); INSERT INTO named VALUES (1)")
    result = pair.target.run(MODULE, **options(pair, refresh="always"))
    assert residue(pair) == []
    if result.get("failed"):
        assert "public.names" in result["msg"]
    else:
        assert pair.sql_target("SELECT t::text FROM names") == [("named",)]


# Part of it


def test_rows_and_columns_are_chosen(shop: Pair) -> None:
    tables: list[Any] = [
        {
            "name": "users",
            "columns": ["user_id", "country", "interests"],
            "where": "user_id % 3 = 0 AND country <> 'x''y'",
        },
        {"name": "page_views", "where": "device = 'phone'"},
        "warehouse.stock",
    ]
    result = copy(shop, tables=tables)
    assert result["changed"]
    listed = shop.sql_target("SELECT attname FROM pg_attribute WHERE attrelid = 'users'::regclass AND attnum > 0")
    assert [name for (name,) in listed] == ["user_id", "country", "interests"]
    columns = ["user_id", "country", "interests"]
    wanted = rows(shop.source, "public", "users", columns, "user_id % 3 = 0")
    assert rows(shop.target, "public", "users", columns) == wanted and wanted[0] > 50
    partitions = [table for schema, table in copies.tables(shop.source) if table.startswith("page_views")]
    for table in partitions:
        assert rows(shop.target, "public", table) == rows(shop.source, "public", table, None, "device = 'phone'")
    assert len(partitions) == 7 and {table["name"] for table in result["tables"]} >= {f"public.{t}" for t in partitions}
    assert rows(shop.target, "warehouse", "stock") == rows(shop.source, "warehouse", "stock")
    # products is not there.
    assert [(item["table"], item["reason"]) for item in result["left_out"] if item["table"] == "warehouse.stock"]
    assert {schema for schema, _ in copies.tables(shop.target)} == {"public", "warehouse"}
    assert not copy(shop, tables=tables)["changed"]
    tables[1]["where"] = "device = 'tablet'"
    assert copy(shop, tables=tables)["changed"]
    assert rows(shop.target, "public", "page_views_2026_02") == rows(
        shop.source, "public", "page_views_2026_02", None, "device = 'tablet'"
    )


def test_schemas_are_taken_and_tables_are_excluded(shop: Pair) -> None:
    copy(shop, schemas=["warehouse"])
    assert copies.tables(shop.target) == [("warehouse", "stock")]
    excluded = ['public."Order Lines"', "page_views", "warehouse.stock"]
    copy(shop, exclude_tables=excluded, refresh="always")
    there = set(copies.tables(shop.target))
    here = {each for each in copies.tables(shop.source) if each[1] != "Order Lines" and "page_views" not in each[1]}
    assert there == here and len(here) == 7


def test_what_does_not_travel_is_named(two: Pair) -> None:
    two.sql_source(
        "CREATE VIEW seen AS SELECT * FROM a; CREATE MATERIALIZED VIEW kept AS SELECT * FROM a;"
        "CREATE UNLOGGED TABLE light (id int); CREATE EXTENSION postgres_fdw; CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw;"
        "CREATE FOREIGN TABLE far (id int) SERVER s"
    )
    result = copy(two)
    assert {item["name"] for item in result["not_moved"]} == {
        "public.seen",
        "public.kept",
        "public.light",
        "public.far",
    }
    assert all(item["reason"] for item in result["not_moved"])
    assert copies.tables(two.target) == [("public", "a"), ("public", "b")]


# Again, or not


@contextmanager
def not_read(source: Place) -> Iterator[None]:
    """No table of the source is read while the block runs."""
    query = (
        "SELECT relname, seq_scan, seq_tup_read, idx_scan, idx_tup_fetch FROM pg_stat_user_tables"
        " WHERE schemaname <> 'pg_toast' ORDER BY 1"
    )
    before, seen = source.sql(query), len(source.cluster.log())
    yield
    assert source.sql(query) == before
    assert "COPY " not in source.cluster.log()[seen:]


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("way", ["stream", "archive"])
def test_the_second_run_reads_no_row(two: Pair, way: str, filtered: bool, tmp_path: Path) -> None:
    tables = {"tables": ["a", {"name": "b", "where": "v > 0", "columns": ["id", "v"]}]} if filtered else {}
    params = {**params_of(way, tmp_path), **tables}
    first = copy(two, **params)
    assert first["rows"] == 1000
    with not_read(two.source):
        second = copy(two, **params)
        predicted = two.target.ok(MODULE, check=True, **options(two, **params))
    assert (
        not second["changed"] and not predicted["changed"] and second["reason"] and second["reason"] != first["reason"]
    )
    with pytest.raises(AssertionError), not_read(two.source):  # it would be noticed
        copy(two, refresh="always", **params)


def test_a_change_is_noticed(two: Pair) -> None:
    copy(two)
    for change in (
        "UPDATE b SET v = 2 WHERE id = 7",
        "DELETE FROM b WHERE id = 8",
        "INSERT INTO a VALUES (9999, 1)",
        "TRUNCATE b",
        "ALTER TABLE b ADD more text DEFAULT 'x'",
        "CREATE INDEX b_v ON b (v)",
        "ALTER TABLE a ADD CONSTRAINT high CHECK (v < 100)",
        "COMMENT ON COLUMN a.v IS 'a version'",
        "ALTER TABLE b RENAME more TO less",
    ):
        two.sql_source(change)
        wait_for(lambda: copy(two)["changed"], 10, f"{change} to be noticed")
        assert_equal(two)
    assert not copy(two)["changed"]


@pytest.mark.parametrize(
    "change",
    [
        "CREATE STATISTICS b_stats ON v, a FROM b",
        "COMMENT ON INDEX b_pkey IS 'a key'",
        "COMMENT ON CONSTRAINT b_a_fkey ON b IS 'a key'",
        "ALTER INDEX b_pkey SET (fillfactor = 50)",
        "CREATE RULE keep AS ON DELETE TO b DO INSTEAD NOTHING",
        "ALTER TABLE b ALTER v SET STATISTICS 500",
        "ALTER TABLE b CLUSTER ON b_pkey",
        "ALTER TYPE mood ADD VALUE 'calm'",
        "ALTER SEQUENCE b_n_seq INCREMENT BY 7",
    ],
)
def test_a_change_of_the_definitions_alone_is_noticed(two: Pair, change: str) -> None:
    two.sql_source("CREATE TYPE mood AS ENUM ('sad'); ALTER TABLE b ADD n serial, ADD m mood")
    copy(two)
    two.sql_source(change)
    assert two.target.ok(MODULE, check=True, **options(two))["changed"]


def test_vacuum_is_no_change(two: Pair) -> None:
    """Autovacuum comes some time after every load, and writes maps beside the rows."""
    copy(two)
    for statement in ("ANALYZE", "VACUUM", "VACUUM (FREEZE, ANALYZE)", "CHECKPOINT"):
        two.sql_source(statement)
        assert not copy(two)["changed"], statement


def test_partitions_are_bounded_in_the_databases_own_order(two: Pair) -> None:
    """In the order of bytes, a is after B."""
    for place in (two.source, two.target):
        if place.cluster.major < 15:
            pytest.skip("databases with an ICU locale need PostgreSQL 15")
        place.cluster.drop_database(place.database)
        locale = "TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en'"
        place.cluster.sql(f'CREATE DATABASE "{place.database}" {locale}')
    two.sql_source(
        "CREATE TABLE words (w text PRIMARY KEY) PARTITION BY RANGE (w);"
        "CREATE TABLE words_a PARTITION OF words FOR VALUES FROM ('a') TO ('B');"
        "CREATE TABLE words_b PARTITION OF words FOR VALUES FROM ('B') TO ('zz');"
        "INSERT INTO words VALUES ('a'), ('A'), ('b'), ('B'), ('c'), ('Z')"
    )
    copy(two)
    assert_equal(two)


def test_a_lost_table_comes_back(two: Pair) -> None:
    copy(two)
    two.sql_target("DROP TABLE b")
    assert copy(two)["changed"]
    assert_equal(two)


def test_never_copies_what_is_missing_only_and_always_copies(two: Pair) -> None:
    assert copy(two, refresh="never")["rows"] == 1000
    set_version(two, 2)
    with not_read(two.source):
        assert not copy(two, refresh="never")["changed"]
    assert two.sql_target("SELECT DISTINCT v FROM a") == [(1,)]
    for _ in range(2):
        assert copy(two, refresh="always")["changed"]
        assert_equal(two)


@pytest.mark.parametrize("way", ["stream", "archive"])
def test_check_mode_predicts_and_touches_nothing(zoo: Pair, way: str, tmp_path: Path) -> None:
    params = options(zoo, **params_of(way, tmp_path))
    before = playbooks.snapshot(zoo.source.cluster), playbooks.snapshot(zoo.target.cluster)
    predicted = zoo.target.ok(MODULE, check=True, **params)
    assert residue(zoo) == [] and list(tmp_path.iterdir()) == []
    after = playbooks.snapshot(zoo.source.cluster), playbooks.snapshot(zoo.target.cluster)
    assert [playbooks.differences(*each) for each in zip(before, after, strict=True)] == [[], []]
    assert predicted["changed"] and zoo.target.ok(MODULE, **params)["changed"]
    assert not zoo.target.ok(MODULE, check=True, **params)["changed"]
    zoo.sql_source("INSERT INTO zoo.empty VALUES (1, 'no more')")
    assert zoo.target.ok(MODULE, check=True, **params)["changed"] and zoo.sql_target("SELECT t FROM zoo.empty") == []
    assert zoo.target.ok(MODULE, **params)["changed"]
    assert zoo.sql_target("SELECT t FROM zoo.empty") == [("no more",)]


# In one moment


class Reader(threading.Thread):
    """Reads two tables in one statement and in one transaction, in turn, and keeps all that it sees."""

    def __init__(self, place: Place, first: str, second: str, isolation: str, once: str = "") -> None:
        super().__init__()
        self._place = place
        self._tables = first, second
        self._isolation = isolation
        self._once = once or (
            "SELECT min(x.v), max(x.v), count(*), min(y.v), max(y.v)"
            f" FROM {first} AS x FULL JOIN {second} AS y USING (id)"
        )
        self._done = threading.Event()
        self.seen: list[Any] = []
        self.problems: list[str] = []

    def run(self) -> None:
        with closing(self._place.cluster.connect(self._place.database, autocommit=False)) as connection:
            while not self._done.is_set():
                try:
                    with connection.cursor() as cursor:
                        cursor.execute(f"SET TRANSACTION ISOLATION LEVEL {self._isolation}")
                        cursor.execute(self._once)
                        self._note(*cursor.fetchall())
                        both = []
                        for table in self._tables:
                            cursor.execute(f"SELECT min(v), max(v), count(*) FROM {table}")
                            both += cursor.fetchall()
                        self._note((both[0][0], both[0][1], both[0][2], both[1][0], both[1][1]))
                        assert both[0][2] == both[1][2]
                    connection.commit()
                except psycopg2.Error as error:
                    self.problems.append(str(error))
                    connection.rollback()

    def _note(self, row: Any) -> None:
        if not self.seen or self.seen[-1] != row:
            self.seen.append(row)

    def stop(self) -> None:
        self._done.set()
        self.join()


def test_a_reader_sees_all_old_or_all_new_rows(two: Pair) -> None:
    copy(two)
    two.sql_target(
        "CREATE VIEW a_and_b AS SELECT min(x.v) AS l, max(x.v) AS m, count(*) AS n, min(y.v) AS o, max(y.v) AS p"
        " FROM b AS y FULL JOIN a AS x USING (id)"
    )
    readers = [
        Reader(two.target, *order, isolation, once)
        for once in ("", "SELECT * FROM a_and_b")
        for order in (("a", "b"), ("b", "a"))
        for isolation in ("READ COMMITTED", "REPEATABLE READ")
    ]
    for reader in readers:
        reader.start()
    try:
        for version in (2, 3, 4):
            set_version(two, version)
            result = two.target.ok(MODULE, **options(two, refresh="always"))
            assert result["changed"]
    finally:
        for reader in readers:
            reader.stop()
    assert residue(two) == []
    assert differences(two) == {}
    for reader in readers:
        assert reader.problems == []
        assert reader.seen == [(v, v, 499 + v, v, v) for v in (1, 2, 3, 4)]


def seen_by_an_old_snapshot(two: Pair) -> Any:
    """What a transaction finds after the exchange that had its snapshot, but no lock, before."""
    copy(two)
    set_version(two, 2)
    with closing(two.target.cluster.connect(two.target.database, autocommit=False)) as connection:
        connection.set_session(isolation_level="REPEATABLE READ")
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            result = two.target.ok(MODULE, **options(two, refresh="always", jobs=3))
            cursor.execute("SELECT (SELECT count(*) FROM a), (SELECT count(*) FROM b)")
            found = cursor.fetchall()
    assert residue(two) == []
    return {table["chunks"] for table in result["tables"]}, found


def test_an_old_snapshot_never_sees_tables_without_rows(two: Pair) -> None:
    pieces, found = seen_by_an_old_snapshot(two)
    assert pieces == {1} and found in ([(500, 500)], [(501, 501)])


def test_a_view_shows_the_new_rows_and_privileges_stay(two: Pair) -> None:
    two.sql_source("ALTER TABLE b ADD n serial")
    copy(two)
    reader, owner = f"{two.distributor}_r", f"{two.distributor}_o"
    two.sql_target(f"CREATE ROLE {reader} LOGIN PASSWORD 'x'; CREATE ROLE {owner}")
    try:
        two.sql_target(
            f"""
            GRANT SELECT ON a TO {reader} WITH GRANT OPTION; GRANT UPDATE (v), REFERENCES ON b TO {reader};
            ALTER TABLE b OWNER TO {owner}; GRANT INSERT ON b TO PUBLIC; GRANT USAGE ON SEQUENCE b_n_seq TO {reader};
            GRANT USAGE ON SCHEMA public TO {owner};
            CREATE VIEW "on A" WITH (security_barrier) AS SELECT a.id, a.v, b.v AS w FROM a JOIN b USING (id);
            CREATE VIEW checked AS SELECT id, v FROM a WHERE v > 0 WITH CASCADED CHECK OPTION;
            CREATE VIEW on_view AS SELECT count(*), max(w) FROM "on A";
            COMMENT ON VIEW "on A" IS 'A view';
            ALTER VIEW on_view ALTER count SET DEFAULT 3;
            GRANT SELECT ON "on A", on_view TO {reader};
            ALTER VIEW on_view OWNER TO {owner}; GRANT SELECT ON "on A" TO {owner};
            """
        )
        kept = sorted(definitions(two.target))  # GRANTs come in the order in which they were made
        set_version(two, 2)
        assert copy(two)["changed"]
        assert copies.changed_lines(kept, sorted(definitions(two.target))) == ""
        login = two.target.cluster.connect(two.target.database, reader, "x")
        with closing(login) as connection, connection.cursor() as cursor:
            cursor.execute('SELECT (SELECT max(v) FROM a), count(*), min(w) FROM "on A"')
            assert cursor.fetchall() == [(2, 501, 2)]
            cursor.execute("SELECT * FROM on_view")
            assert cursor.fetchall() == [(501, 2)]
        assert not copy(two)["changed"]
    finally:
        two.sql_target(f"DROP OWNED BY {reader}, {owner} CASCADE; DROP ROLE {reader}, {owner}")


def test_truncate_keeps_the_tables_themselves(two: Pair) -> None:
    copy(two)
    two.sql_target("CREATE MATERIALIZED VIEW kept AS SELECT * FROM a; CREATE INDEX own ON b (v)")
    query = "SELECT 'a'::regclass::oid, 'b'::regclass::oid, 'own'::regclass::oid, 'kept'::regclass::oid"
    before = two.sql_target(query)
    set_version(two, 2)
    assert copy(two, replace="truncate")["changed"]
    assert two.sql_target(query) == before
    assert differences(two) == {}
    assert not copy(two, replace="truncate")["changed"]


def test_a_truncating_copy_that_fails_keeps_the_rows(two: Pair) -> None:
    copy(two)
    two.sql_target("ALTER TABLE b ADD CONSTRAINT low CHECK (v < 2)")
    before = copies.contents(two.target)
    set_version(two, 2)
    result = two.target.run(MODULE, **options(two, replace="truncate"))
    assert result.get("failed") and "public.b" in result["msg"] and "low" in result["msg"]
    assert copies.contents(two.target) == before and residue(two) == []


def test_the_owner_is_the_one_that_is_asked_for(zoo: Pair) -> None:
    owner = f"{zoo.distributor}_owner"
    zoo.sql_target(f"CREATE ROLE {owner}")
    try:
        copy(zoo, owner=owner)
        query = (
            "SELECT DISTINCT relkind, pg_get_userbyid(relowner)::text FROM pg_class AS c"
            " JOIN pg_namespace AS n ON n.oid = relnamespace"
            " WHERE relkind IN ('r', 'p', 'S') AND nspname !~ '^pg_|^information_schema$|^pgml_' ORDER BY 1"
        )
        assert zoo.sql_target(query) == [("S", owner), ("p", owner), ("r", owner)]
        assert differences(zoo) == {}
        assert not copy(zoo, owner=owner)["changed"]
    finally:
        zoo.sql_target(f"REASSIGN OWNED BY {owner} TO CURRENT_USER; DROP OWNED BY {owner}; DROP ROLE {owner}")


def test_privileges_come_when_they_are_asked_for(two: Pair) -> None:
    two.sql_source("GRANT SELECT ON a TO pg_monitor; GRANT UPDATE (v) ON b TO pg_monitor")
    copy(two)
    query = "SELECT has_table_privilege('pg_monitor', 'a', 'SELECT'), has_column_privilege('pg_monitor', 'b', 'v', 'UPDATE')"
    assert two.sql_target(query) == [(False, False)]
    two.sql_target("DROP TABLE a, b")
    copy(two, no_privileges=False)
    assert two.sql_target(query) == [(True, True)]
    assert_equal(two)


def test_absent_forgets_and_keeps_the_tables(two: Pair) -> None:
    copy(two)
    two.sql_target("CREATE SCHEMA pgml_staging_9")
    assert two.sql_target("SELECT count(*) FROM pg_namespace WHERE nspname = 'pgml_distributed'") == [(1,)]
    params = options(two, source=None, all_tables=None, tables=["a", "b"], state="absent")
    assert two.target.converge(MODULE, **params)["changed"]
    assert two.sql_target("SELECT count(*) FROM pg_namespace WHERE nspname ~ '^pgml_'") == [(0,)]
    assert residue(two) == [] and differences(two) == {}
    assert copy(two)["changed"]


# Archives


def members(archive: Path) -> dict[str, bytes]:
    return {str(path.relative_to(archive)): path.read_bytes() for path in sorted(archive.rglob("*")) if path.is_file()}


def test_an_archive_is_dumped_and_restored_apart(zoo: Pair, tmp_path: Path, primary: Cluster) -> None:
    archive = tmp_path / "archive"
    dump = options(zoo, method="archive", archive=str(archive), archive_state=["dumped"])
    restore = {"method": "archive", "archive": str(archive), "archive_state": ["restored"]}
    assert zoo.target.converge(MODULE, **dump)["changed"]
    assert copies.tables(zoo.target) == [] and residue(zoo) == []
    files = members(archive)
    assert {"tables.dump", "manifest.json"} <= set(files) and any(name.startswith("rows/") for name in files)
    assert isinstance(json.loads(files["manifest.json"]), dict)
    assert archive.stat().st_mode & 0o077 == 0
    for password in (zoo.source.cluster.password, zoo.target.cluster.password):
        assert not [name for name, content in files.items() if password.encode() in content]
    with not_read(zoo.source):
        assert zoo.target.converge(MODULE, **restore)["changed"]
    assert_equal(zoo)
    assert members(archive) == files and residue(zoo) == []
    zoo.sql_source("INSERT INTO zoo.empty VALUES (1, 'no more')")
    assert zoo.target.converge(MODULE, **dump)["changed"]
    assert zoo.target.converge(MODULE, **restore)["changed"]
    assert_equal(zoo)
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]


def test_more_compression_makes_smaller_archives(shop: Pair, tmp_path: Path) -> None:
    sizes = []
    for level in (0, 1, 9):
        archive = tmp_path / str(level)
        copy(shop, method="archive", archive=str(archive), archive_state=["dumped"], compress=level)
        sizes.append(sum(path.stat().st_size for path in (archive / "rows").iterdir()))
    assert sizes[0] > 2 * sizes[1] and sizes[1] > sizes[2]
