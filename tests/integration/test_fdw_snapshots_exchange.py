# SPDX-License-Identifier: GPL-3.0-or-later
"""Local snapshots take the place of their predecessors: what readers see, what stays, and which moment the rows are of."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import exchange
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import chunks

from tests.support import copies
from tests.support.pair import Pair, Place
from tests.support.snapshots import (
    GATE,
    MODULE,
    TABLES,
    at_the_gate,
    content,
    converge,
    entry,
    gate_closed,
    indexes,
    moment,
    now,
    options,
    prepare,
    reads,
    residue,
    running,
    set_version,
    state,
    take,
    version,
)

pytestmark = [pytest.mark.slow, pytest.mark.sampled(0)]

A = {"relation": "far.a", "into": "kept.a"}


@pytest.fixture
def far(pair: Pair) -> Pair:
    """Two tables at the source, whose rows all have the same v."""
    return prepare(pair, TABLES)


# In an instant


class Reader(threading.Thread):
    """Reads a snapshot again and again, twice in each transaction, and keeps all that it sees."""

    def __init__(self, place: Place, isolation: str, table: str) -> None:
        super().__init__()
        self._place = place
        self._isolation = isolation
        self._query = f"SELECT min(v), max(v), count(*) FROM {table}"
        self._done = threading.Event()
        self.seen: list[Any] = []
        self.problems: list[str] = []

    def run(self) -> None:
        with closing(self._place.cluster.connect(self._place.database, autocommit=False)) as connection:
            while not self._done.is_set():
                try:
                    with connection.cursor() as cursor:
                        cursor.execute(f"SET TRANSACTION ISOLATION LEVEL {self._isolation}")
                        for _ in range(2):
                            cursor.execute(self._query)
                            self.seen += [row for row in cursor.fetchall() if row not in self.seen[-1:]]
                    connection.commit()
                except psycopg2.Error as error:
                    self.problems.append(str(error))
                    connection.rollback()

    def stop(self) -> None:
        self._done.set()
        self.join()


WAYS: dict[str, dict[str, Any]] = {
    "of a table": {"relation": "far.a"},
    "of a query": {"query": "SELECT id, v FROM far.a"},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_reader_sees_all_old_or_all_new_rows(far: Pair, way: str) -> None:
    kept = {**WAYS[way], "into": "kept.a", "refresh": "always", "indexes": [["id"]]}
    take(far, kept)
    far.sql_target("CREATE VIEW viewed AS SELECT * FROM kept.a")
    readers = [
        Reader(far.target, isolation, table)
        for table in ("kept.a", "viewed")
        for isolation in ("READ COMMITTED", "REPEATABLE READ")
    ]
    for reader in readers:
        reader.start()
    try:
        for number in range(2, 9):
            set_version(far, number)
            assert far.target.ok(MODULE, **options(far, kept))["changed"]
    finally:
        for reader in readers:
            reader.stop()
    assert residue(far) == []
    for reader in readers:
        assert reader.problems == []
        assert reader.seen == [(v, v, 499 + v) for v in range(1, 9)][: len(reader.seen)], reader.seen
        assert len(reader.seen) > 2


@pytest.mark.parametrize("way", WAYS)
def test_an_old_transaction_never_sees_a_table_without_rows(far: Pair, way: str) -> None:
    """It began before the exchange, and reads the table for the first time after it."""
    kept = {**WAYS[way], "into": "kept.a", "refresh": "always"}
    take(far, kept)
    set_version(far, 2)
    with closing(far.target.cluster.connect(far.target.database, autocommit=False)) as connection:
        connection.set_session(isolation_level="REPEATABLE READ")
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            far.target.ok(MODULE, **options(far, kept))
            cursor.execute("SELECT count(*) FROM kept.a")
            assert cursor.fetchall() in ([(500,)], [(501,)])
    assert residue(far) == []


def test_a_reader_that_holds_the_old_table_is_named(far: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_LOCK_PATIENCE_SECONDS", 1)
    kept = {**A, "refresh": "always"}
    take(far, kept)
    set_version(far, 2)
    with far.target.transaction("SELECT count(*) FROM kept.a") as pid:
        before = state(far.target)
        result = far.target.run(MODULE, **options(far, kept))
        assert result.get("failed"), result
        assert str(pid) in result["msg"] and "kept.a" in result["msg"] and result["msg"].endswith("."), result["msg"]
        assert state(far.target) == before
        assert version(far) == 1
    assert residue(far) == []
    take(far, kept)
    assert version(far) == 2


HELD = "SELECT pid, query FROM pg_stat_activity WHERE usename = %s AND (backend_xmin IS NOT NULL OR xact_start IS NOT NULL)"
"""The sessions of the distributor that have a transaction."""


def test_the_source_is_let_go_before_the_exchange_and_others_read_meanwhile(far: Pair, tmp_path: Path) -> None:
    """While the exchange waits for somebody who reads the old table, no transaction is open at the source."""
    kept = {**A, "refresh": "always"}
    take(far, kept)
    set_version(far, 2)
    waiting = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'kept.a'::regclass"
    with running(far, tmp_path / "tmp", kept) as process:
        with far.target.transaction("SELECT count(*) FROM kept.a"):
            copies.until(process, lambda: far.sql_target(waiting), "the exchange")
            assert far.sql_source(HELD, [far.distributor]) == []
            assert version(far) == 1
        result = process.finish()
    assert not result.get("failed"), result
    assert version(far) == 2 and residue(far) == []


def test_the_source_is_let_go_before_indexes_are_built(far: Pair, tmp_path: Path) -> None:
    far.sql_target(
        "CREATE FUNCTION wait_for_it() RETURNS event_trigger LANGUAGE plpgsql SET lock_timeout = 0 AS"
        " $$ BEGIN IF current_query() LIKE '%pgml_staging%' THEN PERFORM pg_advisory_xact_lock_shared(99); END IF; END $$;"
        "CREATE EVENT TRIGGER wait_for_it ON ddl_command_start WHEN TAG IN ('CREATE INDEX') EXECUTE FUNCTION wait_for_it()"
    )
    kept = [{**A, "indexes": [["id"]]}, {"query": "SELECT * FROM far.b", "into": "kept.b", "indexes": [["a"]]}]
    waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = 99 AND NOT granted"
    with running(far, tmp_path / "tmp", *kept) as process:
        with far.target.transaction("SELECT pg_advisory_xact_lock(99)"):
            copies.until(process, lambda: far.sql_target(waiting), "an index")
            copies.until(
                process, lambda: not far.sql_source(HELD, [far.distributor]), "the source's transactions to end"
            )
            assert far.sql_target(waiting)
        result = process.finish()
    assert not result.get("failed"), result
    assert indexes(far.target, "kept.a") and indexes(far.target, "kept.b") and residue(far) == []


# What others made of it


@contextmanager
def roles(pair: Pair, *names: str) -> Iterator[list[str]]:
    made = [f"{pair.distributor}_{name}" for name in names]
    pair.sql_target("; ".join(f"CREATE ROLE {name} LOGIN PASSWORD 'x'" for name in made))
    try:
        yield made
    finally:
        pair.sql_target(f"DROP OWNED BY {', '.join(made)} CASCADE; DROP ROLE {', '.join(made)}")


@pytest.mark.parametrize("way", WAYS)
def test_owner_privileges_comments_and_views_survive(far: Pair, way: str) -> None:
    kept = {**WAYS[way], "into": "kept.a", "refresh": "always"}
    take(far, kept)
    with roles(far, "reader", "owner") as (reader, owner):
        far.sql_target(
            f"""
            GRANT SELECT ON kept.a TO {reader} WITH GRANT OPTION; GRANT UPDATE (v), REFERENCES ON kept.a TO {reader};
            GRANT USAGE ON SCHEMA kept TO {reader}, {owner}; GRANT INSERT ON kept.a TO PUBLIC;
            ALTER TABLE kept.a OWNER TO {owner};
            COMMENT ON TABLE kept.a IS 'The orders'; COMMENT ON COLUMN kept.a.v IS 'A version';
            CREATE VIEW "on A" WITH (security_barrier) AS SELECT id, v FROM kept.a WHERE id > 100;
            CREATE VIEW on_view AS SELECT count(*), max(v) FROM "on A";
            COMMENT ON VIEW "on A" IS 'A view';
            GRANT SELECT ON "on A", on_view TO {reader}; ALTER VIEW on_view OWNER TO {owner};
            GRANT SELECT ON "on A" TO {owner};
            """
        )
        before = sorted(copies.definitions(far.target))  # GRANTs come in the order in which they were made
        set_version(far, 2)
        take(far, kept)
        assert copies.changed_lines(before, sorted(copies.definitions(far.target))) == ""
        login = far.target.cluster.connect(far.target.database, reader, "x")
        with closing(login) as connection, connection.cursor() as cursor:
            cursor.execute('SELECT (SELECT max(v) FROM kept.a), (SELECT max(v) FROM "on A"), max FROM on_view')
            assert cursor.fetchall() == [(2, 2, 2)]


OWN: dict[str, str] = {
    "an index": "CREATE INDEX mine ON kept.a (v)",
    "a key": "ALTER TABLE kept.a ADD CONSTRAINT mine PRIMARY KEY (id)",
    "a column": "ALTER TABLE kept.a ADD mine int DEFAULT 1",
    "a trigger": "CREATE TRIGGER mine BEFORE UPDATE ON kept.a FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "a policy": "CREATE POLICY mine ON kept.a USING (id < 10); ALTER TABLE kept.a ENABLE ROW LEVEL SECURITY",
    "a rule": "CREATE RULE mine AS ON DELETE TO kept.a DO INSTEAD NOTHING",
    "statistics": "CREATE STATISTICS kept.mine ON id, v FROM kept.a",
    "a materialized view": "CREATE MATERIALIZED VIEW mine AS SELECT * FROM kept.a",
    "a column of its row type": "CREATE TABLE mine (a kept.a)",
    "a publication": "CREATE PUBLICATION mine FOR TABLE kept.a",
    "a sequence": "CREATE SEQUENCE kept.mine OWNED BY kept.a.id; ALTER TABLE kept.a ALTER id SET DEFAULT nextval('kept.mine')",
    "row security alone": "ALTER TABLE kept.a ENABLE ROW LEVEL SECURITY; COMMENT ON SCHEMA kept IS 'mine'",
    "a child": "CREATE TABLE mine () INHERITS (kept.a)",
}


@pytest.mark.sampled(6)
@pytest.mark.parametrize("what", OWN)
def test_what_others_added_stays_or_is_named(far: Pair, what: str) -> None:
    """It isn't lost without a word."""
    kept = {**A, "refresh": "always"}
    take(far, kept)
    far.sql_target(OWN[what])
    before = copies.definitions(far.target)
    assert "mine" in "\n".join(before)
    set_version(far, 2)
    result = far.target.run(MODULE, **options(far, kept))
    assert residue(far) == []
    assert copies.changed_lines(before, copies.definitions(far.target)) == ""
    if result.get("failed"):
        words = ("mine", "row-level security of kept.a")
        assert any(word in result["msg"] for word in words) and result["msg"].endswith("."), result["msg"]
        assert far.sql_target("SELECT max(v) FROM kept.a") == [(1,)]
    else:
        assert far.sql_target("SELECT max(v) FROM kept.a") == [(2,)]


def test_usage_gives_and_takes_the_right_to_read_snapshots(far: Pair) -> None:
    with roles(far, "science") as (science,):
        may = "SELECT has_table_privilege(%s, 'kept.a', 'SELECT'), has_schema_privilege(%s, 'kept', 'USAGE')"
        take(far, A)
        assert far.sql_target(may, [science] * 2) == [(False, False)]
        assert not entry(converge(far, A, usage=[science]), "kept.a")["refreshed"]
        assert far.sql_target(may, [science] * 2) == [(True, True)]
        take(far, {**A, "refresh": "always"}, usage=[science])
        assert far.sql_target(may, [science] * 2) == [(True, True)]
        login = far.target.cluster.connect(far.target.database, science, "x")
        with closing(login) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM kept.a")
            assert cursor.fetchall() == [(500,)]
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                cursor.execute("DELETE FROM kept.a")
        other = {"relation": "far.b", "into": "kept.b"}
        take(far, A, other, usage=[science])
        assert far.sql_target("SELECT has_table_privilege(%s, 'kept.b', 'SELECT')", [science]) == [(True,)]
        converge(far, A, other)
        assert far.sql_target(may, [science] * 2) == [(False, False)]
        assert far.sql_target("SELECT has_table_privilege(%s, 'kept.b', 'SELECT')", [science]) == [(False,)]


# One moment


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut tables as small as these into ranges, as others of some GB are."""
    monkeypatch.setattr(chunks, "SMALLEST_SPLIT", 1 << 16)


class Mover(threading.Thread):
    """Moves amounts between the first and the last rows of a table, the sum of which stays."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place
        self._done = threading.Event()
        self.moves = 0

    def run(self) -> None:
        with closing(self._place.cluster.connect(self._place.database)) as connection, connection.cursor() as cursor:
            while not self._done.is_set():
                number = 1 + self.moves % 400
                cursor.execute(
                    "UPDATE accounts SET amount = amount + CASE WHEN id = %s THEN 7 ELSE -7 END WHERE id IN (%s, %s)",
                    [number, number, 4001 - number],
                )
                self.moves += 1

    def stop(self) -> None:
        self._done.set()
        self.join()


def test_all_parts_of_a_table_are_of_one_moment(far: Pair, split: None) -> None:
    far.sql_source(
        "CREATE TABLE accounts (id int PRIMARY KEY, amount int NOT NULL, filler char(300)) WITH (fillfactor = 60);"
        "INSERT INTO accounts SELECT g, 100, 'x' FROM generate_series(1, 4000) AS g"
    )
    far.grant()
    kept = {"relation": "far.accounts", "into": "kept.accounts", "refresh": "always"}
    mover = Mover(far.source)
    mover.start()
    try:
        for _ in range(6):
            seen, moves = len(far.source.cluster.log()), mover.moves
            far.target.ok(MODULE, **options(far, kept, jobs=2))
            pieces = [line for line in reads(far.source, seen) if "COPY" in line and "accounts" in line]
            assert len(pieces) == 2 and all("ctid" in line for line in pieces), pieces
            assert mover.moves > moves, "nobody has written meanwhile"
            assert far.sql_target("SELECT count(*), sum(amount) FROM kept.accounts") == [(4000, 400000)]
    finally:
        mover.stop()
    assert residue(far) == []
    take(far, kept)
    assert content(far.target, "kept.accounts") == content(far.source, "accounts")


@pytest.mark.parametrize("way", ["of a table", "of a query"])
def test_the_moment_is_told(far: Pair, way: str, tmp_path: Path) -> None:
    """Rows that were committed before taken_at are there, and those after it are not."""
    prepare(far, GATE)
    source: dict[str, Callable[[str], dict[str, Any]]] = {
        "of a table": lambda name: {"relation": name},
        "of a query": lambda name: {"query": f"SELECT * FROM {name}"},
    }
    kept = {**source[way]("far.gated"), "into": "kept.a"}
    with gate_closed(far) as open_gate, running(far, tmp_path / "tmp", kept) as process:
        began = now(far.source)
        copies.until(process, lambda: at_the_gate(far), "the gate")
        reading = now(far.source)
        set_version(far, 2)
        assert not process.ended
        open_gate()
        result = process.finish()
    assert not result.get("failed"), result
    assert version(far) == 1
    assert began - datetime.timedelta(seconds=5) < moment(entry(result, "kept.a")["taken_at"]) <= reading
