# SPDX-License-Identifier: GPL-3.0-or-later
"""Local snapshots of foreign tables: taken, compared with what they were taken from, and held up where a test wants it."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from psycopg2.sql import SQL, Identifier

from tests.support import copies
from tests.support.copies import Process, ending
from tests.support.pair import Pair, Place
from tests.support.steps import Plan

MODULE = "pgml_fdw"
FAR = "far"
"""the schema of the foreign tables"""

TABLES = """
    CREATE TABLE a (id int PRIMARY KEY, v int NOT NULL, price numeric(10, 2), note text);
    CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a, amount numeric);
    INSERT INTO a SELECT g, 1, g / 7.0, nullif(repeat('x', g % 5), '') FROM generate_series(1, 500) AS g;
    INSERT INTO b SELECT g, 1 + g % 100, g / 3.0 FROM generate_series(1, 900) AS g;
"""

# Whoever reads the rows of gated stops at the 400th as long as a test has closed the gate.
GATE = """
    CREATE FUNCTION gate(id int) RETURNS int LANGUAGE plpgsql VOLATILE SET lock_timeout = 0 AS
    $$ BEGIN
        IF id = 400 THEN PERFORM pg_advisory_lock_shared(77); PERFORM pg_advisory_unlock_shared(77); END IF;
        RETURN id;
    END $$;
    CREATE VIEW gated AS SELECT gate(id) AS id, v, price, note FROM a;
"""
_WAITING = (
    "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = 77 AND NOT granted"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


def prepare(pair: Pair, statements: str) -> Pair:
    """Make what *statements* say at the source, readable for the distributor, and let the target have foreign tables."""
    pair.sql_source(statements)
    pair.grant()
    pair.sql_target("CREATE EXTENSION IF NOT EXISTS postgres_fdw")
    return pair


def options(pair: Pair, *snapshots: dict[str, Any], **params: Any) -> dict[str, Any]:
    """The module's options for these snapshots, of all that is in the source's schema public; None leaves one out."""
    wanted = {
        "server": "shop",
        "source": pair.endpoint,
        "imports": [{"remote_schema": "public", "local_schema": FAR}],
        "snapshots": list(snapshots),
        "jobs": 2,
        **params,
    }
    return {key: value for key, value in wanted.items() if value is not None}


def take(pair: Pair, *snapshots: dict[str, Any], **params: Any) -> dict[str, Any]:
    """Run the module, and leave nothing behind."""
    result = pair.target.ok(MODULE, **options(pair, *snapshots, **params))
    assert residue(pair) == []
    return result


def converge(pair: Pair, *snapshots: dict[str, Any], **params: Any) -> dict[str, Any]:
    """Check mode predicts and changes nothing, the run does it, and the next one has nothing to do."""
    wanted = options(pair, *snapshots, **params)
    before = state(pair.target), progress(pair.target)
    pair.target.ok(MODULE, check=True, **wanted)
    assert (state(pair.target), progress(pair.target)) == before, "check mode has changed something"
    result = pair.target.converge(MODULE, **wanted)
    assert residue(pair) == []
    return result


def refused(pair: Pair, *snapshots: dict[str, Any], **params: Any) -> str:
    """Run the module in vain and return its message, one sentence or some; nothing is changed and nothing left behind."""
    before, source = state(pair.target), pair.source.fingerprint()
    result = pair.target.run(MODULE, **options(pair, *snapshots, **params))
    assert result.get("failed"), f"it did not fail: {result['changes']}, {result.get('warnings')}"
    assert residue(pair) == []
    after = state(pair.target)
    assert after == before, copies.changed_lines(*(sorted(map(str, each)) for each in (before, after)))
    assert pair.source.fingerprint() == source
    message: str = result["msg"]
    assert message.endswith("."), message
    return message


def entry(result: dict[str, Any], name: str) -> dict[str, Any]:
    """What the module says of one snapshot."""
    [found] = [each for each in result["snapshots"] if each["name"] == name]
    assert set(found) == {"name", "rows", "taken_at", "refreshed", "reason", "seconds"}
    assert found["reason"] and isinstance(found["reason"], str)
    assert (found["seconds"] is None) == (not found["refreshed"] or found["rows"] is None)
    return dict(found)


def state(place: Place) -> list[Any]:
    """All that a database holds: definitions, privileges, rows, and what the module remembers."""
    return [
        *copies.definitions(place),
        *sorted(copies.contents(place).items()),
        *sorted(place.fingerprint(), key=str),
        *remembered(place),
    ]


def remembered(place: Place) -> list[tuple[Any, ...]]:
    """The rows of the module's own tables, each with the transaction that wrote it, but for what it says of its progress."""
    names = place.sql(
        "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace('pgml_distributed')::oid AND relkind = 'r'"
        " AND relname NOT IN ('progress', 'progress_tables') ORDER BY 1"
    )
    found = []
    for (name,) in names:
        found += place.sql(
            SQL("SELECT xmin::text, t::text FROM pgml_distributed.{} AS t ORDER BY 2").format(Identifier(name))
        )
    return found


def progress(place: Place) -> list[tuple[Any, ...]]:
    """What the module says of how far it has come."""
    there = place.value("SELECT to_regclass('pgml_distributed.progress')")
    return place.sql("SELECT xmin::text, t::text FROM pgml_distributed.progress AS t") if there else []


def residue(pair: Pair) -> list[str]:
    """What is left of a run: schemas of its own, sessions on either server."""
    return copies.residue(pair)


def content(
    place: Place, relation: str, expressions: Sequence[str] | None = None, where: str = "true"
) -> tuple[int, Any]:
    """How many rows a relation (as in SQL) or a subquery shows, and the sum of their hashes, whatever the order of both."""
    if expressions is None:
        expressions = columns(place, relation)
    row = ", ".join(f"t.{each}" if each.startswith('"') else each for each in expressions)
    [found] = place.sql(
        f"SELECT count(*), sum(hashtextextended(ROW({row})::text, 0)) FROM {relation} AS t WHERE {where}"
    )
    return found


def columns(place: Place, relation: str) -> list[str]:
    """The names of a relation's columns, as in SQL and in double quotes."""
    rows = place.sql(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
        ' ORDER BY attname COLLATE "C"',
        [relation],
    )
    return ['"{}"'.format(name.replace('"', '""')) for (name,) in rows]


def types(place: Place, relation: str) -> dict[str, str]:
    """The types of a relation's columns."""
    rows = place.sql(
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped",
        [relation],
    )
    return dict(rows)


def indexes(place: Place, relation: str) -> dict[str, list[str]]:
    """The columns of a relation's indexes, by name."""
    rows = place.sql(
        "SELECT x.relname, array(SELECT attname FROM pg_attribute WHERE attrelid = x.oid ORDER BY attnum)::text[]"
        " FROM pg_index JOIN pg_class AS x ON x.oid = indexrelid WHERE indrelid = %s::regclass AND indisvalid",
        [relation],
    )
    return dict(rows)


def age(place: Place, seconds: float) -> None:
    """Make all that was taken so much older."""
    found = place.sql(
        "SELECT attrelid::regclass::text FROM pg_attribute JOIN pg_class AS c ON c.oid = attrelid"
        " WHERE relnamespace = 'pgml_distributed'::regnamespace AND relkind = 'r' AND attname = 'taken_at'"
    )
    assert len(found) == 1, found
    assert place.sql(f"UPDATE {found[0][0]} SET taken_at = taken_at - %s * interval '1 s' RETURNING 1", [seconds])


def set_version(pair: Pair, number: int) -> None:
    """Give v that value in all rows of a, and a row more to a, which is the next of those since version 1."""
    pair.sql_source(f"UPDATE a SET v = {number}; INSERT INTO a VALUES ({1000 + number}, {number})")


def version(pair: Pair, table: str = "kept.a") -> int:
    """The version of a snapshot, all of whose rows are of one, and all of them there."""
    [(count, versions)] = pair.sql_target(f"SELECT count(*), array_agg(DISTINCT v) FROM {table}")
    assert len(versions) == 1, f"rows of versions {versions} are mixed"
    assert count == 499 + versions[0]
    return int(versions[0])


def moment(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text)


def now(place: Place) -> datetime.datetime:
    found: datetime.datetime = place.value("SELECT clock_timestamp()")
    return found


@contextmanager
def not_read(source: Place) -> Iterator[None]:
    """Nobody asks the source for rows of its tables while the block runs."""
    seen = len(source.cluster.log())
    yield
    assert reads(source, seen) == []


def reads(source: Place, seen: int) -> list[str]:
    """The statements that have asked for rows of tables since the source's log was *seen* so long."""
    statements = r"(?m)^.*(?:statement|execute \S+): +(?:COPY|DECLARE) .*(?:\n\t.*)*$"
    return [each for each in re.findall(statements, source.cluster.log()[seen:]) if "FROM pg_catalog." not in each]


@contextmanager
def gate_closed(pair: Pair) -> Iterator[Callable[[], None]]:
    """Hold up whoever reads the rows of gated, until what it yields is called or the block ends."""
    with closing(pair.source.cluster.connect(pair.source.database)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(77)")
        yield lambda: cursor.execute("SELECT pg_advisory_unlock(77)")


def at_the_gate(pair: Pair) -> list[int]:
    """The sessions that stand there."""
    return [pid for (pid,) in pair.sql_source(_WAITING)]


@contextmanager
def running(pair: Pair, directory: Path, *snapshots: dict[str, Any], **params: Any) -> Iterator[Process]:
    """The module in a process of its own, which is gone with all that it has started when the block ends."""
    plan: Plan | None = params.pop("plan", None)
    with ending(Process(pair.target, directory, options(pair, *snapshots, **params), MODULE, plan)) as process:
        yield process
