# SPDX-License-Identifier: GPL-3.0-or-later
"""What can't be copied is refused with one sentence, and neither server nor archive is touched."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Servers
from tests.support import copies
from tests.support.cluster import Cluster
from tests.support.copies import MODULE, copy, options, refused, residue, running, until
from tests.support.pair import Pair, create_role, pair_of

TABLES = """
    CREATE TABLE a (id int PRIMARY KEY, v int NOT NULL);
    CREATE TABLE b (id int PRIMARY KEY, v int NOT NULL, a int REFERENCES a);
    INSERT INTO a SELECT g, 1 FROM generate_series(1, 500) AS g;
    INSERT INTO b SELECT g, 1, g FROM generate_series(1, 500) AS g;
"""


@pytest.fixture
def two(pair: Pair) -> Pair:
    pair.sql_source(TABLES)
    return pair


@pytest.fixture
def live(two: Pair) -> Pair:
    """The tables are at the target, and others at the source."""
    copy(two)
    two.sql_source("UPDATE a SET v = 2; UPDATE b SET v = 2")
    return two


def assert_sentence(message: str, *words: str) -> None:
    for word in words:
        assert word in message, message
    assert "\n" not in message and message.endswith("."), message


# What is asked for


ASKED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no such table": ({"tables": ["a", "nowhere.tables", "tabel"]}, ["nowhere.tables", "public.tabel"]),
    "no such schema": ({"schemas": ["public", "nowhere"]}, ["nowhere"]),
    "no table to exclude": ({"exclude_tables": ["tabel"]}, ["tabel"]),
    "nothing": ({"tables": None, "all_tables": None}, ["tables", "schemas", "all_tables"]),
    "nothing left": ({"exclude_tables": ["a", "b"]}, ["exclude_tables"]),
    "unlogged": ({"tables": ["light"]}, ["public.light", "unlogged"]),
    "a view": ({"tables": ["a_view"]}, ["public.a_view", "view"]),
    "unknown keys": ({"tables": [{"name": "a", "were": "true"}]}, ["were", "where"]),
    "no name": ({"tables": [{"where": "true"}]}, ["name"]),
    "twice": ({"tables": ["a", {"name": "public.a", "where": "true"}]}, ["public.a"]),
    "no such column": ({"tables": [{"name": "a", "columns": ["id", "w"]}]}, ["public.a", "w"]),
    "no condition": ({"tables": [{"name": "a", "where": "id >"}]}, ["public.a"]),
    "no such column in a condition": ({"tables": [{"name": "a", "where": "w > 1"}]}, ["public.a", "w"]),
    "two statements": ({"tables": [{"name": "a", "where": "true; DROP TABLE a"}]}, ["public.a"]),
    "no jobs": ({"jobs": 0}, ["jobs"]),
    "less than none": ({"jobs": -1}, ["jobs"]),
    "too much compression": ({"compress": 10, "method": "archive", "archive": "/nowhere/archive"}, ["compress"]),
    "no source": ({"source": None}, ["source"]),
    "no archive": ({"method": "archive"}, ["archive"]),
    "an archive for a stream": ({"archive_state": ["restored"]}, ["archive"]),
    "no such owner": ({"owner": "nobody at all"}, ["nobody at all"]),
}


@pytest.mark.sampled(8)
@pytest.mark.parametrize("mistake", ASKED)
def test_what_is_asked_for_is_wrong(two: Pair, mistake: str) -> None:
    params, words = ASKED[mistake]
    two.sql_source("CREATE UNLOGGED TABLE light (id int); CREATE VIEW a_view AS SELECT * FROM a")
    message = refused(two, **params)
    for word in words:
        assert word in message
    assert "Traceback" not in message


def test_no_privilege(two: Pair) -> None:
    two.sql_source(f'GRANT SELECT ON a TO "{two.distributor}"')
    assert_sentence(refused(two, source=two.endpoint), "public.b", two.distributor, "SELECT")


def test_row_security_in_the_way(two: Pair) -> None:
    """The rows that a policy hides would be missing, and nobody would know."""
    two.sql_source("ALTER TABLE b ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON b USING (id < 10)")
    two.grant()
    assert_sentence(refused(two, source=two.endpoint), "public.b", two.distributor, "BYPASSRLS")


@pytest.mark.parametrize("which", ["source", "login"])
def test_wrong_password(two: Pair, which: str) -> None:
    wrong = "wr0ng 'pass' {{ word }}"
    params = options(two, **({"source": {**two.endpoint, "password": wrong}} if which == "source" else {}))
    params.update({"login_password": wrong} if which == "login" else {})
    result = two.target.run(MODULE, **params)
    assert result["failed"] and "password authentication failed" in result["msg"]
    assert result["option"] == which
    assert wrong not in json.dumps(result, ensure_ascii=False).replace('\\"', '"')
    for server in (two.source.cluster, two.target.cluster):
        assert server.password not in json.dumps(result)
    assert residue(two) == []


def test_the_source_is_the_target(live: Pair) -> None:
    itself = live.target.cluster.source(live.target.database)
    assert_sentence(refused(live, source=itself), live.target.database)


def test_the_servers_client_programs_are_missing(servers: Servers, primary: Any, replica: Any) -> None:
    newest = servers.get(18, "primary")
    with pair_of(newest, servers.get(18, "replica")) as pair:
        pair.sql_source(TABLES)
        result = pair.target.run(MODULE, **options(pair))
        if not result.get("failed"):
            pytest.skip("client programs of PostgreSQL 18 are installed")
        assert_sentence(result["msg"], "pg_dump of PostgreSQL 18 or later")
        assert residue(pair) == [] and copies.tables(pair.target) == []


def test_a_lock_at_the_source_is_named(two: Pair) -> None:
    with two.source.transaction("LOCK TABLE b IN ACCESS EXCLUSIVE MODE") as pid:
        result = two.target.run(MODULE, **options(two))
    assert result["failed"], result
    assert_sentence(result["msg"], "holds b", str(pid))
    assert residue(two) == [] and copies.tables(two.target) == []


# What the target lacks or has


def test_an_extension_that_the_targets_server_lacks(two: Pair) -> None:
    two.sql_source("CREATE EXTENSION citext; CREATE TABLE needs (t citext)")
    two.sql_source("UPDATE pg_extension SET extname = 'pgml_nowhere' WHERE extname = 'citext'")
    assert_sentence(refused(two), "pgml_nowhere", two.target.database)
    assert copy(two, exclude_tables=["needs"])["changed"]


def test_a_role_that_may_not_create_databases(two: Pair) -> None:
    role = f"{two.distributor}_t"
    create_role(two.target.cluster, role, "LOGIN", "x")
    try:
        two.target.cluster.sql(f'GRANT ALL ON DATABASE "{two.target.database}" TO {role}')
        assert_sentence(refused(two, login_user=role, login_password="x"), role, "CREATEDB")
    finally:
        two.sql_target(f"DROP OWNED BY {role}")
        two.sql_target(f"DROP ROLE {role}")


DEPENDANTS: dict[str, tuple[str, list[str]]] = {
    "materialized view": ("CREATE MATERIALIZED VIEW summed AS SELECT sum(v) FROM a", ["materialized view summed"]),
    "foreign key": ("CREATE TABLE outside (a int CONSTRAINT to_a REFERENCES a)", ["to_a on table outside"]),
    "publication": ("CREATE PUBLICATION onward FOR TABLE a", ["table a in publication onward"]),
    "function of the row type": (
        "CREATE FUNCTION double(r a) RETURNS int LANGUAGE sql AS 'SELECT r.v * 2'",
        ["function double(a)"],
    ),
    "column of the row type": ("CREATE TABLE kept (r b)", ["table kept"]),
    "heir": ("CREATE TABLE heir () INHERITS (b)", ["table heir"]),
    "index": ("CREATE INDEX own ON b (v)", ["index own", "public.b"]),
    "trigger": (
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        "CREATE TRIGGER own BEFORE INSERT ON b FOR EACH ROW EXECUTE FUNCTION f()",
        ["trigger own", "public.b"],
    ),
    "constraint": ("ALTER TABLE b ADD CONSTRAINT own CHECK (v < 9)", ["constraint own", "public.b"]),
    "column": ("ALTER TABLE b ADD own int", ["column own", "public.b"]),
    "policy": ("CREATE POLICY own ON b USING (true)", ["policy own", "public.b"]),
    "rule": ("CREATE RULE own AS ON DELETE TO b DO ALSO NOTHING", ["rule own", "public.b"]),
    "statistics": ("CREATE STATISTICS own ON id, v FROM b", ["statistics own", "public.b"]),
    "default": ("CREATE SEQUENCE s OWNED BY b.v; CREATE TABLE uses (id int DEFAULT nextval('s'))", ["table uses"]),
    "SQL function": (
        "CREATE FUNCTION all_of() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT count(*) FROM a; END",
        ["function all_of()"],
    ),
}


UNDO = {
    "materialized view": "DROP MATERIALIZED VIEW summed",
    "foreign key": "DROP TABLE outside",
    "publication": "DROP PUBLICATION onward",
    "function of the row type": "DROP FUNCTION double(a)",
    "column of the row type": "DROP TABLE kept",
    # Autovacuum would write into pg_class, some time, that b has no heirs any more.
    "heir": "DROP TABLE heir; ANALYZE b",
    "index": "DROP INDEX own",
    "trigger": "DROP FUNCTION f() CASCADE",
    "constraint": "ALTER TABLE b DROP CONSTRAINT own",
    "column": "ALTER TABLE b DROP own",
    "policy": "DROP POLICY own ON b",
    "rule": "DROP RULE own ON b",
    "statistics": "DROP STATISTICS own",
    "default": "DROP TABLE uses; DROP SEQUENCE s",
    "SQL function": "DROP FUNCTION all_of()",
}


@pytest.fixture(scope="module")
def settled(primary: Cluster, replica: Cluster) -> Iterator[Pair]:
    """As live, for tests that leave it as it was."""
    with pair_of(primary, replica) as pair:
        pair.sql_source(TABLES)
        copy(pair)
        pair.sql_source("UPDATE a SET v = 2; UPDATE b SET v = 2")
        yield pair


@pytest.mark.sampled(6)
@pytest.mark.parametrize("what", DEPENDANTS)
def test_what_depends_on_a_live_table_is_named_before_anything_moves(settled: Pair, what: str) -> None:
    statement, words = DEPENDANTS[what]
    settled.sql_target(statement)
    seen = len(settled.source.cluster.log())
    try:
        assert_sentence(refused(settled), *words)
        assert " TO STDOUT" not in settled.source.cluster.log()[seen:]
        # An earlier task may be about to remove it, so that check mode says it and goes on.
        checked = settled.target.run(MODULE, check=True, **options(settled))
        assert words[0] in str(checked.get("warnings")) + str(checked.get("msg"))
    finally:
        settled.sql_target(UNDO[what])


def test_what_depends_on_a_view_keeps_it(live: Pair) -> None:
    live.sql_target("CREATE VIEW seen AS SELECT * FROM a; CREATE MATERIALIZED VIEW summed AS SELECT max(v) FROM seen")
    assert copy(live)["changed"]
    live.sql_target("REFRESH MATERIALIZED VIEW summed")
    assert live.sql_target("SELECT * FROM summed") == [(2,)]


def test_fail_refuses_tables_that_are_there(live: Pair) -> None:
    assert_sentence(refused(live, replace="fail"), "public.a", "public.b")
    live.sql_target("DROP TABLE b")
    assert_sentence(refused(live, replace="fail"), "public.a")
    live.sql_target("DROP TABLE a")
    assert copy(live, replace="fail")["changed"]


IN_THE_WAY: dict[str, tuple[str, list[str]]] = {
    "a view of the table's name": ("CREATE VIEW a AS SELECT 1", ["public.a"]),
    "a table of the index's name": ("CREATE TABLE a_pkey (id int)", ["a_pkey"]),
    "a type of the table's name": ("CREATE TYPE b AS ENUM ('x')", ["b"]),
    "another type": ("CREATE TYPE mood AS ENUM ('other')", ["mood"]),
    "another function": ("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 2'", ["f()"]),
}


@pytest.mark.parametrize("what", IN_THE_WAY)
def test_what_has_a_name_that_is_needed_is_named(two: Pair, what: str) -> None:
    statement, words = IN_THE_WAY[what]
    two.sql_source(
        "CREATE TYPE mood AS ENUM ('sad'); CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1';"
        "ALTER TABLE a ADD m mood DEFAULT 'sad', ADD f int DEFAULT f()"
    )
    two.sql_target(statement)
    result = two.target.run(MODULE, **options(two))
    assert residue(two) == []
    if what == "another function" and not result.get("failed"):
        # Functions may differ on purpose; then the target's own stays.
        assert two.sql_target("SELECT f()") == [(2,)]
        return
    assert result["failed"], result
    assert_sentence(result["msg"], *words)


def test_another_run_is_at_work(two: Pair, tmp_path: Path) -> None:
    slow = [{"name": "a", "where": "pg_sleep(0.01)::text = ''"}]
    with running(two, tmp_path / "tmp", tables=slow) as process:
        reading = "SELECT 1 FROM pg_stat_progress_copy"
        until(process, lambda: two.source.cluster.sql(reading), "rows are read")
        result = two.target.run(MODULE, **options(two))
        assert result["failed"], result
        assert_sentence(result["msg"], two.target.database)
        # The first is not disturbed.
        assert not process.finish().get("failed")
    assert residue(two) == []
    assert two.sql_target("SELECT count(*) FROM a") == [(500,)]
    assert copy(two)["changed"]


# Archives


@pytest.fixture
def archive(live: Pair, tmp_path: Path) -> Path:
    """An archive of version 2, while version 1 is live."""
    path = tmp_path / "archives" / "archive"
    path.parent.mkdir()
    dumped = options(live, method="archive", archive=str(path), archive_state=["dumped"])
    assert live.target.ok(MODULE, **dumped)["changed"]
    return path


def restored(archive: Path, **params: Any) -> dict[str, Any]:
    return {"source": None, "method": "archive", "archive": str(archive), "archive_state": ["restored"], **params}


def rows_file(archive: Path) -> Path:
    return max((archive / "rows").iterdir(), key=lambda path: path.stat().st_size)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for position in range(len(content) // 2, len(content) // 2 + 20):
        content[position] ^= 0xFF
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose_rows(path: Path) -> None:
    """Leave a file that is whole, and holds less than it should."""
    rows = gzip.decompress(path.read_bytes())
    binary = rows.startswith(b"PGCOPY")
    path.write_bytes(gzip.compress(rows[:19] + b"\xff\xff" if binary else b"".join(rows.splitlines(True)[:-1])))


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "rows flipped": lambda archive: flip(rows_file(archive)),
    "rows cut": lambda archive: cut(rows_file(archive)),
    "rows emptied": lambda archive: rows_file(archive).write_bytes(b""),
    "rows lost": lambda archive: lose_rows(rows_file(archive)),
    "rows removed": lambda archive: rows_file(archive).unlink(),
    "definitions cut": lambda archive: cut(archive / "tables.dump"),
    "definitions removed": lambda archive: (archive / "tables.dump").unlink(),
    "definitions of something else": lambda archive: (archive / "tables.dump").write_bytes(b"something else"),
    "manifest cut": lambda archive: cut(archive / "manifest.json"),
    "manifest removed": lambda archive: (archive / "manifest.json").unlink(),
    "manifest of something else": lambda archive: (archive / "manifest.json").write_text('{"name": "x"}'),
    "manifest that is no object": lambda archive: (archive / "manifest.json").write_text("[1, 2]"),
    "all removed": lambda archive: shutil.rmtree(archive),
    "a file instead": lambda archive: (shutil.rmtree(archive), archive.write_text("x")),
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_archive_leaves_the_live_tables_alone(live: Pair, archive: Path, damage: str) -> None:
    DAMAGE[damage](archive)
    assert_sentence(refused(live, **restored(archive)), str(archive))
    assert live.sql_target("SELECT DISTINCT v FROM a") == [(1,)]


def test_an_archive_of_a_newer_major(live: Pair, archive: Path) -> None:
    manifest = (archive / "manifest.json").read_text(encoding="utf-8")
    version = str(live.source.value("SELECT current_setting('server_version_num')"))
    assert version in manifest
    (archive / "manifest.json").write_text(manifest.replace(version, "990001"), encoding="utf-8")
    assert_sentence(refused(live, **restored(archive)), "PostgreSQL 99.1", "15" if version.startswith("15") else "")


def test_an_archive_lacks_a_table(live: Pair, archive: Path) -> None:
    live.target.ok(
        MODULE, **options(live, method="archive", archive=str(archive), archive_state=["dumped"], tables=["a"])
    )
    assert_sentence(refused(live, **restored(archive, tables=["a", "b"], replace="truncate")), str(archive), "public.b")


@pytest.mark.parametrize("path", ["/proc/archive", "/dev/null/archive"])
def test_an_archive_can_not_be_written(two: Pair, path: str) -> None:
    assert_sentence(refused(two, method="archive", archive=path), str(Path(path).parent))


def test_somebody_elses_directory_is_no_archive(two: Pair, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.tex").write_text("years of work")
    assert_sentence(refused(two, method="archive", archive=str(theirs)), str(theirs))
    assert [path.read_text() for path in theirs.iterdir()] == ["years of work"]
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
