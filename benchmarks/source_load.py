# SPDX-License-Identifier: GPL-3.0-or-later
"""What a copy costs the server that it reads from."""

from __future__ import annotations

import re
import time
from contextlib import closing
from threading import Event, Thread

from benchmarks.peers import Job
from benchmarks.subscribers import OURSELVES
from tests.support.pair import wait_for

# From the weakest to the strongest.
MODES = (
    "AccessShareLock",
    "RowShareLock",
    "RowExclusiveLock",
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
)
INTERVAL = 0.05
"""Seconds from one look to the next."""

_COUNTERS = (
    "SELECT c.relname, t.seq_scan, t.seq_tup_read, i.heap_blks_read + i.heap_blks_hit, c.reltuples,"
    " pg_relation_size(relid) / current_setting('block_size')::int"
    " FROM pg_stat_user_tables AS t JOIN pg_statio_user_tables AS i USING (relid)"
    " JOIN pg_class AS c ON c.oid = relid WHERE t.schemaname = 'public'"
)
_THEIRS = (
    "a.datname = current_database() AND a.application_name <> %(ourselves)s"
    " AND a.backend_type IN ('client backend', 'walsender')"
)
_LOCKS = (
    "SELECT DISTINCT l.mode FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid) JOIN pg_class AS c ON c.oid = l.relation"
    f" WHERE l.locktype = 'relation' AND c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace AND {_THEIRS}"
)
_SNAPSHOTS = (
    f"SELECT a.pid::text FROM pg_stat_activity AS a WHERE a.backend_xmin IS NOT NULL AND {_THEIRS}"
    " UNION ALL SELECT slot_name FROM pg_replication_slots WHERE xmin IS NOT NULL"
)
_COPIES = "SELECT pid::text FROM pg_stat_progress_copy WHERE datname = current_database()"
_ALIVE = "SELECT FROM pg_stat_activity WHERE pid::text = ANY(%s)"


class Stretches:
    """Remembers since when somebody is seen without a break."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[float, float]] = {}
        """the first and the last time, of all"""
        self.longest = 0.0
        """seconds without a break"""
        self._since: dict[str, float] = {}

    def look(self, now: float, names: list[str]) -> None:
        """Take down who is seen at a time, in seconds."""
        self._since = {name: self._since.get(name, now) for name in names}
        for name, since in self._since.items():
            self.seen[name] = (self.seen.get(name, (now, now))[0], now)
            self.longest = max(self.longest, now - since)

    @property
    def whole(self) -> float:
        """Seconds from the first time to the last time that anybody was seen."""
        times = [time for both in self.seen.values() for time in both]
        return max(times) - min(times) if times else 0.0


class Load:
    """Watches, in the background, what a job does to its source."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._over = Event()
        self._thread = Thread(target=self._watch)
        self._copies, self._snapshots = Stretches(), Stretches()
        self._modes: set[str] = set()

    def __enter__(self) -> Load:
        self._before = self._counters()
        self._start = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, kind: object, *exc_info: object) -> None:
        self._over.set()
        self._thread.join()
        if kind:
            return
        self.copied = self._job.copied - self._start
        """seconds until all rows were there"""
        copiers = list(self._copies.seen)
        wait_for(lambda: not self._job.source.sql(_ALIVE, [copiers]), what="the sessions that copied to end")
        self._after = self._counters()

    @property
    def scans(self) -> float:
        """How many sequential scans of a table were begun, of the table with the most."""
        return max(after[0] - self._before[table][0] for table, after in self._after.items())

    @property
    def rows(self) -> float:
        """How often a row was read by sequential scans, in the table where it was most."""
        return self._most(1, 3)

    @property
    def blocks(self) -> float:
        """How often a block was read, in the table where it was most."""
        return self._most(2, 4)

    @property
    def lock(self) -> int:
        """The strongest lock on a table, as an index of MODES."""
        return max(map(MODES.index, self._modes), default=0)

    @property
    def copying(self) -> float:
        """Seconds from the first to the last time that a COPY was running."""
        return self._copies.whole

    @property
    def snapshot(self) -> float:
        """Seconds for which one session, or slot, has kept back the horizon of VACUUM."""
        return self._snapshots.longest

    def _most(self, counter: int, size: int) -> float:
        before = self._before
        return max((after[counter] - before[table][counter]) / after[size] for table, after in self._after.items())

    def _counters(self) -> dict[str, tuple[float, ...]]:
        return {row[0]: row[1:] for row in self._job.source.sql(_COUNTERS)}

    def _watch(self) -> None:
        source = self._job.source
        with closing(source.cluster.connect(source.database)) as connection, connection.cursor() as cursor:
            cursor.execute("SET application_name = %s", [OURSELVES])

            def look(query: str) -> list[str]:
                cursor.execute(query, {"ourselves": OURSELVES})
                return [name for (name,) in cursor.fetchall()]

            while not self._over.wait(INTERVAL):
                now = time.perf_counter()
                self._modes.update(look(_LOCKS))
                self._snapshots.look(now, look(_SNAPSHOTS))
                self._copies.look(now, look(_COPIES))


def words(mode: int) -> str:
    """A lock as SQL calls it."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", MODES[mode].removesuffix("Lock")).upper()
