# SPDX-License-Identifier: GPL-3.0-or-later
"""First copies of subscriptions in processes of their own, which are paused, killed, and ended by the next run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from tests.support import copies
from tests.support.copies import Process, ending
from tests.support.pair import Pair, wait_for
from tests.support.seeding import KEEPER
from tests.support.steps import PAUSED, Plan

# nap() holds up whatever calls it, for as long as the database it runs in says: never, unless a test wants it.
TABLES = """
    CREATE FUNCTION nap(id int, setting text) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
    $$ DECLARE seconds text := current_setting(setting, true);
       BEGIN IF seconds <> '' THEN PERFORM pg_sleep(seconds::float8); END IF; RETURN id; END $$;
    CREATE TABLE a (id int PRIMARY KEY, v int NOT NULL, filler text, CONSTRAINT slow CHECK (nap(id, 'nap.row') > 0));
    CREATE TABLE b (id serial PRIMARY KEY, v int NOT NULL UNIQUE, a int REFERENCES a, up int REFERENCES b);
    CREATE INDEX a_slow ON a (nap(id, 'nap.index'));
    COMMENT ON INDEX a_slow IS 'slow';
    ALTER TABLE b REPLICA IDENTITY USING INDEX b_v_key;
    CREATE TABLE p (id int, v int REFERENCES a, PRIMARY KEY (id, v)) PARTITION BY RANGE (id);
    CREATE TABLE p_low PARTITION OF p FOR VALUES FROM (MINVALUE) TO (50);
    CREATE TABLE p_high PARTITION OF p FOR VALUES FROM (50) TO (MAXVALUE);
    CREATE INDEX p_v ON p (v);
    CREATE TABLE empty (id int PRIMARY KEY);
"""
ROWS = """
    INSERT INTO a SELECT g, 1, repeat(md5(g::text), 20) FROM generate_series(1, 1500) AS g;
    INSERT INTO b (v, a) SELECT g, 1 + g % 500 FROM generate_series(1, 500) AS g;
    INSERT INTO p SELECT g, g FROM generate_series(1, 100) AS g;
"""
NAMES = ["public.a", "public.b", "public.p", "public.empty"]
IN_PIECES = {"transfer.chunks.SMALLEST_SPLIT": 600_000}
"""So that a comes in two pieces, and the third worker has the other tables."""
JOBS = 3
WATCHFUL = {"transfer.keepers._PROBE_SECONDS": 0.2, "transfer.workers.WATCH_SECONDS": 0.3}
SETTINGS = {"log_statement": "none", "max_prepared_transactions": "10"}
# Steps of a run, as Plan names them, and what is seen on a server meanwhile.
B_IS_THERE = "done: rows ('public', 'b')"
SUBSCRIBED = "DO 'DECLARE"
ALL_ROWS_ARE_THERE = "SET phase = 'build'"
CREATING = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ '^CREATE_REPLICATION_SLOT'"
BUILDING = "SELECT 1 FROM pg_stat_progress_create_index WHERE relid = 'a'::regclass AND datname = current_database()"
REGISTERED = "COMMIT after COMMENT ON SUBSCRIPTION"
"""The last step before a slot is created, when it was looked for already."""
_numbers = count()


@contextmanager
def run(pair: Pair, tmp_path: Path, plan: Plan | None = None, **params: Any) -> Iterator[Process]:
    """The task in a process of its own."""
    directory = tmp_path / str(next(_numbers))
    directory.mkdir()
    plan = (plan or Plan(""))._replace(directory=str(directory))
    plan = plan._replace(constants={**IN_PIECES, **plan.constants})
    options = pair.subscription(initial_copy="snapshot", jobs=JOBS, **params)
    with ending(Process(pair.target, directory / "tmp", options, "pgml_subscription", plan)) as process:
        yield process


def definitions(pair: Pair) -> list[str]:
    return copies.definitions(pair.target, "--no-subscriptions")


def slow(pair: Pair, what: str, seconds: float) -> None:
    """Hold up every row of a that is written to the target or indexed there."""
    pair.sql_target(f"ALTER DATABASE \"{pair.target.database}\" SET nap.{what} = '{seconds}'")


def quick(pair: Pair) -> None:
    pair.sql_target(f'ALTER DATABASE "{pair.target.database}" RESET ALL')


def write_more(pair: Pair) -> None:
    """Change what a copy that died may have brought already, and what it has not."""
    pair.sql_source(
        "UPDATE b SET v = v + 100000 WHERE id % 7 = 0; UPDATE a SET v = v + 1 WHERE id % 5 = 0;"
        " DELETE FROM b WHERE id % 11 = 0; INSERT INTO b (v) SELECT min(v) - g FROM b, generate_series(1, 9) AS g GROUP BY g;"
        " UPDATE p SET id = 200 - id WHERE id < 20; INSERT INTO empty SELECT 1000 + count(*) FROM empty"
    )


def assert_over(pair: Pair) -> None:
    """A first copy has left nothing at either side, but the subscription and its slot if it was made."""
    sessions = "SELECT query FROM pg_stat_activity WHERE usename = %s AND backend_type = 'client backend'"
    wait_for(lambda: not pair.sql_source(sessions, [pair.distributor]), 15, "the copy's sessions to end")
    assert pair.sql_target("SELECT nspname FROM pg_namespace WHERE nspname ~ '^pgml'") == []


def assert_undone(pair: Pair, before: list[str]) -> None:
    """Nothing has begun, as far as anybody can see."""
    assert_over(pair)
    assert pair.slots() == set()
    assert pair.sql_target("SELECT subname FROM pg_subscription WHERE subname = %s", [pair.name]) == []
    assert copies.changed_lines(before, definitions(pair)) == ""


def is_empty(pair: Pair) -> bool:
    return not any(number for number, _hash in copies.contents(pair.target).values())


def assert_equal(pair: Pair) -> None:
    """Both sides come to hold the same rows."""

    def different() -> dict[Any, Any]:
        here, there = copies.contents(pair.source), copies.contents(pair.target)
        assert len(here) > 4, "nothing is compared"
        return {name: (here[name], there.get(name)) for name in here if here[name] != there.get(name)}

    end = time.monotonic() + 20
    while (found := different()) and time.monotonic() < end:
        time.sleep(0.1)
    assert found == {}


def succeed(pair: Pair, tmp_path: Path) -> dict[str, Any]:
    """Run the task to its end."""
    with run(pair, tmp_path) as process:
        result = process.finish()
    assert not result.get("failed"), result["msg"]
    return result


def assert_replicates(pair: Pair, before: list[str]) -> None:
    """The copy has come to its end: rows are equal, definitions as before, there is nothing left to do, and all goes."""
    assert_over(pair)
    assert copies.changed_lines(before, definitions(pair)) == ""
    assert pair.slots() == {pair.name}
    assert pair.sql_target("SELECT subenabled FROM pg_subscription WHERE subname = %s", [pair.name]) == [(True,)]
    assert_equal(pair)
    assert not pair.subscribe()["changed"]
    pair.unsubscribe()
    assert_undone(pair, before)


def assert_goes_on(pair: Pair, tmp_path: Path, before: list[str]) -> dict[str, Any]:
    """The next run of the task ends what was begun."""
    quick(pair)
    write_more(pair)
    result = succeed(pair, tmp_path)
    assert_replicates(pair, before)
    return result


def failure(process: Process, *words: str) -> str:
    """The sentences with which a run has failed, which have one of *words* in them."""
    result = process.finish()
    assert result.get("failed"), result
    message: str = result["msg"]
    assert any(word in message for word in words), message
    assert message.endswith("."), message
    return message


def paused(process: Process) -> Path:
    """The file that holds up a run which has come to where it is to pause."""
    file: Path = process.notes / PAUSED
    copies.until(process, file.exists, "the pause")
    return file


def keeping(pair: Pair) -> set[int]:
    """The source's processes that keep a snapshot."""
    query = "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND datname = %s"
    return {pid for (pid,) in pair.sql_source(query, [KEEPER, pair.source.database])}
