# SPDX-License-Identifier: GPL-3.0-or-later
"""What training does to the source: on a foreign table it keeps VACUUM from removing rows, on a local snapshot it doesn't."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.copies import until
from tests.support.pair import Pair, wait_for
from tests.support.snapshots import GATE, TABLES, at_the_gate, gate_closed, prepare, residue, running, take

pytestmark = [pytest.mark.slow, pytest.mark.sampled(0)]

A = {"relation": "far.a", "into": "kept.a"}

# As pgml.train does: it reads the relation by 100 rows, and learns from them before its transaction ends.
TRAIN = """
    CREATE FUNCTION train(relation regclass) RETURNS bigint LANGUAGE plpgsql AS $$
    DECLARE learner refcursor; sample record; samples bigint := 0;
    BEGIN
        OPEN learner FOR EXECUTE format('SELECT * FROM %s', relation);
        LOOP
            FETCH learner INTO sample;
            EXIT WHEN NOT FOUND;
            samples := samples + 1;
        END LOOP;
        CLOSE learner;
        PERFORM pg_advisory_xact_lock(88); -- learns, as long as somebody else holds this
        RETURN samples;
    END $$
"""
_LEARNS = (
    "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = 88 AND NOT granted"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
_HELD = "SELECT state, backend_xmin::text, age(backend_xmin) FROM pg_stat_activity WHERE usename = %s"
_KEPT_ROWS = re.compile(r"(\d+) (?:are dead but not yet removable|dead row versions cannot be removed yet)")


@pytest.fixture
def far(pair: Pair) -> Pair:
    """A table of 500 rows, of which autovacuum keeps away, a snapshot of it, and something that trains on either."""
    prepare(pair, TABLES + "ALTER TABLE a SET (autovacuum_enabled = off)")
    take(pair, A)
    pair.sql_target(TRAIN)
    return pair


@contextmanager
def training(pair: Pair, relation: str) -> Iterator[list[Any]]:
    """Train on a relation, in a transaction that has read all rows and doesn't end before the block does.

    Yields what it returns then, which is empty before."""
    samples: list[Any] = []

    def train() -> None:
        samples.extend(pair.sql_target("SELECT train(%s)", [relation]))

    thread = threading.Thread(target=train)
    with closing(pair.target.cluster.connect(pair.target.database)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(88)")
        thread.start()
        try:
            wait_for(lambda: pair.sql_target(_LEARNS), 20, "the rows to be read")
            yield samples
        finally:
            cursor.execute("SELECT pg_advisory_unlock(88)")
            thread.join()
    assert samples == [(500,)]


def held(pair: Pair) -> list[tuple[str, str, int]]:
    """What the sessions of the distributor hold at the source: state, xmin and its age in transactions."""
    return [row for row in pair.sql_source(_HELD, [pair.distributor]) if row[1] is not None]


def write(pair: Pair, times: int) -> None:
    """Update all rows again and again, a transaction each."""
    for _ in range(times):
        pair.sql_source("UPDATE a SET v = v + 1")


def not_removed(pair: Pair) -> int:
    """Run VACUUM on the source's table and return the number of dead rows that it could not remove."""
    with closing(pair.source.cluster.connect(pair.source.database)) as connection, connection.cursor() as cursor:
        cursor.execute("VACUUM (VERBOSE) a")
        [count] = {
            int(each) for notice in connection.notices for each in _KEPT_ROWS.findall(notice) if "toast" not in notice
        }
    return count


def test_training_on_a_foreign_table_holds_back_vacuum_at_the_source(far: Pair) -> None:
    with training(far, "far.a") as samples:
        [(state, xmin, age)] = held(far)
        assert state == "idle in transaction"
        write(far, 10)
        [(still, same, older)] = held(far)
        assert (still, same) == (state, xmin) and older >= age + 10
        assert not_removed(far) == 5000
        assert samples == []
    wait_for(lambda: not held(far), 10, "the transaction to end")
    assert not_removed(far) == 0


def test_training_on_a_snapshot_does_not(far: Pair) -> None:
    with training(far, "kept.a") as samples:
        assert far.sql_source(_HELD, [far.distributor]) == []
        write(far, 10)
        assert far.sql_source(_HELD, [far.distributor]) == []
        assert not_removed(far) == 0
        assert samples == []


def test_taking_a_snapshot_holds_it_back_until_the_copy_ends(far: Pair, tmp_path: Path) -> None:
    """The price of a snapshot: as long as rows are read, and no longer."""
    prepare(far, GATE)
    kept = {"relation": "far.gated", "into": "kept.gated"}
    with gate_closed(far) as open_gate, running(far, tmp_path / "tmp", A, kept) as process:
        until(process, lambda: at_the_gate(far), "the gate")
        assert held(far)
        write(far, 2)
        assert not_removed(far) == 1000
        open_gate()
        result = process.finish()
    assert not result.get("failed"), result
    assert residue(far) == [] and held(far) == []
    assert not_removed(far) == 0
    with training(far, "kept.gated"):
        assert held(far) == []
