# SPDX-License-Identifier: GPL-3.0-or-later
"""Sessions that write to a database in every way that replication has to follow, for as long as a with block runs."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

from psycopg2 import errors

from tests.support.pair import Place, wait_for

SCHEMA = """
CREATE SCHEMA busy;
CREATE TABLE busy.accounts (id int PRIMARY KEY, balance numeric(12, 2) NOT NULL, note text);
CREATE TABLE busy."Moves" ("Id" bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, account int NOT NULL, amount numeric(12, 2),
    at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE TABLE busy.lines (at timestamp, line text);
ALTER TABLE busy.lines REPLICA IDENTITY FULL;
CREATE TABLE busy.days (day int NOT NULL, n int NOT NULL, note text, PRIMARY KEY (day, n)) PARTITION BY RANGE (day);
CREATE TABLE busy.days_low PARTITION OF busy.days FOR VALUES FROM (MINVALUE) TO (50);
CREATE TABLE busy.days_high PARTITION OF busy.days FOR VALUES FROM (50) TO (MAXVALUE);
CREATE TABLE busy.emptied (id bigint PRIMARY KEY, note text);
CREATE TABLE busy.bulk (id bigint PRIMARY KEY, batch int NOT NULL, note text);
CREATE TABLE busy.prepared (id bigint PRIMARY KEY, note text);
"""
"""What is written to. Both sides need it; fill() is for the source alone."""

TABLES = [
    "busy.accounts", 'busy."Moves"', "busy.lines", "busy.days", "busy.emptied", "busy.bulk", "busy.prepared",
]  # fmt: skip

ROWS = 5000

_FILL = """
INSERT INTO busy.accounts SELECT i, i * 1.5, repeat('a', i %% 30) FROM generate_series(1, %(rows)s) AS i;
INSERT INTO busy."Moves" (account, amount) SELECT i, i FROM generate_series(1, %(rows)s) AS i;
INSERT INTO busy.lines SELECT timestamp '2026-01-01' + i %% 90 * interval '1 s', 'line' FROM generate_series(1, 300) AS i;
INSERT INTO busy.days SELECT i %% 100, i, 'first' FROM generate_series(1, %(rows)s) AS i;
INSERT INTO busy.emptied SELECT -i, 'first' FROM generate_series(1, 1000) AS i;
INSERT INTO busy.bulk SELECT -i, 0, 'first' FROM generate_series(1, %(rows)s) AS i;
INSERT INTO busy.prepared SELECT -i, 'first' FROM generate_series(1, 1000) AS i;
"""

# Each line is one transaction; %(n)s is another random number in every statement, %(serial)s one that was not there yet.
_WORK: dict[str, list[tuple[str, ...]]] = {
    "insert": [
        ('INSERT INTO busy."Moves" (account, amount) SELECT %(n)s %% 5000, i FROM generate_series(1, 10) AS i',),
        ("INSERT INTO busy.lines SELECT timestamp '2026-01-02', 'more' FROM generate_series(1, 3)",),
        ("INSERT INTO busy.days SELECT i, 10000 + %(serial)s, 'new' FROM generate_series(45, 54) AS i",),
    ],
    "update": [
        (
            "UPDATE busy.accounts SET balance = balance - 1 WHERE id %% 499 = %(n)s %% 499",
            "UPDATE busy.accounts SET balance = balance + 1, note = %(n)s WHERE id %% 499 = %(n)s %% 499",
        ),
        ("UPDATE busy.lines SET line = 'changed' WHERE ctid = (SELECT min(ctid) FROM busy.lines)",),
        ('UPDATE busy."Moves" SET amount = amount + 1 WHERE "Id" %% 997 = %(n)s %% 997',),
    ],
    "key": [
        ("UPDATE busy.accounts SET id = id + 1000000 WHERE id < 1000000 AND id %% 997 = %(n)s %% 997",),
        ("UPDATE busy.accounts SET id = id - 1000000 WHERE id > 1000000 AND id %% 3 = %(n)s %% 3",),
        # Rows move between partitions.
        ("UPDATE busy.days SET day = 99 - day WHERE n < 10000 AND n %% 499 = %(n)s %% 499",),
    ],
    "delete": [
        ('DELETE FROM busy."Moves" WHERE "Id" %% 397 = %(n)s %% 397',),
        ("DELETE FROM busy.lines WHERE ctid IN (SELECT ctid FROM busy.lines ORDER BY ctid DESC LIMIT 3)",),
        ("DELETE FROM busy.days WHERE n > 10000 AND n %% 3 = %(n)s %% 3",),
        ("DELETE FROM busy.accounts WHERE id = 7", "INSERT INTO busy.accounts VALUES (7, %(n)s, 'again')"),
    ],
    "truncate": [
        ("TRUNCATE busy.emptied", "INSERT INTO busy.emptied SELECT i, 'new' FROM generate_series(1, 200) AS i"),
        ("INSERT INTO busy.emptied VALUES (1000 + %(serial)s, 'more')",),
        ("SAVEPOINT a", "TRUNCATE busy.emptied", "ROLLBACK TO a", "INSERT INTO busy.emptied VALUES (-2000 - %(serial)s)"),
        ("TRUNCATE busy.emptied",),
    ],
    "savepoints": [
        (
            'INSERT INTO busy."Moves" (account) VALUES (1)',
            "SAVEPOINT a",
            "UPDATE busy.accounts SET note = 'a' WHERE id = 11",
            "SAVEPOINT b",
            "DELETE FROM busy.accounts WHERE id = 12",
            "ROLLBACK TO b",
            "INSERT INTO busy.accounts VALUES (2000000 + %(serial)s, 0)",
            "RELEASE a",
        ),
        ("SAVEPOINT a", "DELETE FROM busy.days", "ROLLBACK TO a", "UPDATE busy.days SET note = %(n)s WHERE n < 20"),
    ],
    "rolled back": [
        ("DELETE FROM busy.accounts WHERE id < 200", 'UPDATE busy."Moves" SET amount = 0 WHERE "Id" < 500'),
        ("TRUNCATE busy.bulk",),
    ],
    "large": [
        ("INSERT INTO busy.bulk SELECT i, 1, md5(i::text) FROM generate_series(1, %(large)s) AS i",),
        ("UPDATE busy.bulk SET note = note || %(n)s WHERE batch = 1",),
        ("DELETE FROM busy.bulk WHERE batch = 1",),
    ],
    "prepared": [
        ("INSERT INTO busy.prepared SELECT %(serial)s * 10 + i FROM generate_series(1, 5) AS i",),
        ("UPDATE busy.prepared SET note = %(n)s WHERE id %% 97 = %(n)s %% 97",),
        (
            "DELETE FROM busy.prepared WHERE id %% 89 = %(n)s %% 89",
            "SAVEPOINT a",
            "UPDATE busy.accounts SET note = 'p' WHERE id = 3",
        ),
    ],
}  # fmt: skip
_IN_ORDER = ("large",)
_PAUSE_FACTORS = {"large": 100, "truncate": 3, "prepared": 2, "rolled back": 10}
KINDS = tuple(_WORK)
# The last is for a row that another session has moved to another partition.
RETRIED = (errors.DeadlockDetected, errors.UniqueViolation, errors.SerializationFailure)


def fill(place: Place) -> None:
    """Put the first rows into SCHEMA's tables."""
    place.sql(_FILL, {"rows": ROWS})


class _Writer(threading.Thread):
    """Commits transactions of one kind until it is told to stop."""

    def __init__(self, place: Place, kind: str, large: int, pause: float, stop: threading.Event) -> None:
        super().__init__(name=f"writer of {kind}")
        self._place = place
        self._kind = kind
        self._large = large
        self._pause = pause * _PAUSE_FACTORS.get(kind, 1)
        self._stop_writing = stop
        self._random = random.Random(kind)
        self._serial = itertools.count(1)
        self.done = 0
        self.retried: Counter[str] = Counter()
        self.problem: BaseException | None = None

    def run(self) -> None:
        try:
            with closing(self._place.cluster.connect(self._place.database, autocommit=False)) as connection:
                if self._kind in ("insert", "key"):
                    with connection, connection.cursor() as cursor:
                        cursor.execute("SET synchronous_commit = off")
                for number in itertools.count():
                    if self._stop_writing.wait(self._pause * self._random.random() * 2):
                        return
                    self._write(connection, number)
        except BaseException as problem:
            self.problem = problem

    def _write(self, connection: Any, number: int) -> None:
        works = _WORK[self._kind]
        statements = works[number % len(works)] if self._kind in _IN_ORDER else self._random.choice(works)
        if self._kind == "prepared":
            connection.tpc_begin(connection.xid(1, f"{self._place.database} {number}", "writer"))
        try:
            with connection.cursor() as cursor:
                for statement in statements:
                    values = {"n": self._random.randrange(1 << 20), "serial": next(self._serial), "large": self._large}
                    cursor.execute(statement, values)
            self._end(connection)
        except RETRIED as error:
            self.retried[type(error).__name__] += 1
            connection.tpc_rollback() if self._kind == "prepared" else connection.rollback()
        else:
            self.done += 1

    def _end(self, connection: Any) -> None:
        if self._kind == "rolled back":
            connection.rollback()
        elif self._kind == "prepared":
            connection.tpc_prepare()
            time.sleep(self._pause * self._random.random())
            connection.tpc_rollback() if self._random.random() < 0.2 else connection.tpc_commit()
        else:
            connection.commit()


class Writers:
    """The sessions that write, and what they have done so far."""

    def __init__(self, threads: dict[str, _Writer]) -> None:
        self._threads = threads

    @property
    def counts(self) -> Counter[str]:
        """How many transactions of each kind have ended."""
        return Counter({kind: thread.done for kind, thread in self._threads.items()})

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def each(self, times: int = 1, seconds: float = 60) -> None:
        """Wait until each kind has ended *times* more transactions."""
        before = self.counts
        self._wait(lambda: all(self.counts[kind] >= before[kind] + times for kind in self._threads), seconds)

    def more(self, transactions: int, seconds: float = 60) -> None:
        """Wait until that many transactions more have ended."""
        end = self.total + transactions
        self._wait(lambda: self.total >= end, seconds)

    def check(self) -> None:
        """Raise what a writer has failed with."""
        for thread in self._threads.values():
            if thread.problem is not None:
                raise thread.problem

    def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        def checked() -> bool:
            self.check()
            return condition()

        wait_for(checked, seconds, f"the writers, who have done {dict(self.counts)}")


@contextmanager
def writers(place: Place, kinds: Sequence[str] = KINDS, large: int = 100_000, pause: float = 0.01) -> Iterator[Writers]:
    """Write to SCHEMA's tables while the block runs, in a session for each kind of transaction.

    *large* is the number of rows of the large transactions, *pause* the mean of the seconds between transactions. The
    server needs max_prepared_transactions. What a writer fails with is raised at the block's end, when all have stopped.
    """
    stop = threading.Event()
    threads = {kind: _Writer(place, kind, large, pause, stop) for kind in kinds}
    made = Writers(threads)
    for thread in threads.values():
        thread.start()
    try:
        yield made
    finally:
        stop.set()
        for thread in threads.values():
            thread.join()
        _forget_prepared(place)
    made.check()


def _forget_prepared(place: Place) -> None:
    """Roll back what a writer that failed has left prepared."""
    query = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
    for (gid,) in place.sql(query):
        place.sql("ROLLBACK PREPARED %s", [gid])
