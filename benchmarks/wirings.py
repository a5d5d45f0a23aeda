# SPDX-License-Identifier: GPL-3.0-or-later
"""The same publication and subscription as plays of different collections."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from benchmarks.common import Tasks
from tests.support.cluster import Cluster
from tests.support.pair import Pair, Place, pair_of

# One COMMIT per hundred tables keeps within the locks that a server has room for by default.
_MAKE_TABLES = """
DO $$ BEGIN
    FOR number IN 1..{count} LOOP
        EXECUTE format('CREATE TABLE %1$I (id bigint PRIMARY KEY, name text, amount numeric(12, 2),'
                       ' at timestamptz DEFAULT ''2026-01-01'', note jsonb)', 't_' || lpad(number::text, 5, '0'));
        EXECUTE format('INSERT INTO %1$I VALUES (1, %1$L, 1.5)', 't_' || lpad(number::text, 5, '0'));
        IF number % 100 = 0 THEN COMMIT; END IF;
    END LOOP;
END $$
"""

_PUBLISHED = (
    "SELECT md5(string_agg(format('%I.%I', schemaname, tablename), ',' ORDER BY schemaname, tablename)) AS tables"
    " FROM pg_publication_tables WHERE pubname = 'pub'"
)
_SUBSCRIBED = (
    "SELECT md5(string_agg(format('%I.%I', n.nspname, c.relname), ',' ORDER BY n.nspname, c.relname)) AS tables"
    " FROM pg_subscription_rel AS sr JOIN pg_subscription AS s ON s.oid = sr.srsubid"
    " JOIN pg_class AS c ON c.oid = sr.srrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace"
    " WHERE s.subname = '{name}'"
)
_UNREADY = (
    "SELECT sr.srrelid FROM pg_subscription_rel AS sr JOIN pg_subscription AS s ON s.oid = sr.srsubid"
    " WHERE s.subname = '{name}' AND sr.srsubstate <> 'r'"
)
_SLOT = "SELECT slot_name FROM pg_replication_slots WHERE slot_name = '{name}' AND wal_status <> 'lost'"
_WITHOUT_IDENTITY = (
    "SELECT c.oid::regclass FROM pg_publication_rel AS pr JOIN pg_publication AS p ON p.oid = pr.prpubid"
    " JOIN pg_class AS c ON c.oid = pr.prrelid WHERE p.pubname = 'pub' AND c.relreplident <> 'f' AND NOT EXISTS"
    " (SELECT FROM pg_index AS i WHERE i.indrelid = c.oid"
    "  AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident END)"
)


@dataclass
class Wiring:
    """A play that wires two databases, and what its runs took that had nothing to do."""

    title: str
    tasks: Tasks
    first_tasks: Tasks = field(default_factory=list)
    """the tasks of the first run, which copy no rows because both sides have them"""
    places: tuple[Place, ...] = ()
    seconds: list[float] = field(default_factory=list)
    """of the whole play"""
    module_seconds: list[float] = field(default_factory=list)
    """of its modules alone"""
    statements: dict[int, int] = field(default_factory=dict)
    """SQL statements by number of tables"""
    changed: set[str] = field(default_factory=set)
    """the tasks that were changed"""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def ours(pair: Pair, tables: list[str]) -> Wiring:
    """This collection's two tasks."""
    publication = {**pair.source.login, "name": "pub", "tables": tables}
    subscription = {**pair.target.login, "name": pair.name, "publications": ["pub"], "source": pair.endpoint}

    def tasks(**extra: Any) -> Tasks:
        return [
            {"name": "publication", "postgresml.distributed.pgml_publication": publication},
            {"name": "subscription", "postgresml.distributed.pgml_subscription": {**subscription, **extra}},
        ]

    return Wiring("postgresml.distributed", tasks(), tasks(initial_copy="none"), (pair.source, pair.target))


def theirs(pair: Pair, tables: list[str]) -> Wiring:
    """The same two tasks with community.postgresql."""
    publication = {**pair.source.login, "name": "pub", "tables": tables}
    source = {key: pair.endpoint[key] for key in ("host", "port", "user", "password")}
    connparams = {**source, "dbname": pair.endpoint["db"]}
    subscription = {**pair.target.login, "name": pair.name, "publications": ["pub"], "connparams": connparams}

    def tasks(**extra: Any) -> Tasks:
        return [
            {"name": "publication", "community.postgresql.postgresql_publication": publication},
            {"name": "subscription", "community.postgresql.postgresql_subscription": {**subscription, **extra}},
        ]

    first = tasks(subsparams={"copy_data": False})
    return Wiring("community.postgresql", tasks(), first, (pair.source, pair.target))


def theirs_with_checks(pair: Pair, tables: list[str]) -> Wiring:
    """The same with community.postgresql and one task for each thing that our two look after as well."""
    wiring = theirs(pair, tables)
    publication, subscription = wiring.tasks
    distributor = {**pair.source.login, "login_user": pair.distributor, "login_password": pair.password}
    refresh = {**pair.target.login, "name": pair.name, "state": "refresh"}

    def query(name: str, place: Place, text: str, **keywords: Any) -> dict[str, Any]:
        options = {**place.login, "query": text.replace("{name}", pair.name)}
        return {"name": name, "community.postgresql.postgresql_query": options, "register": name, **keywords}

    wiring.title += " with the same checks"
    wiring.tasks = [
        publication,
        query("without_identity", pair.source, _WITHOUT_IDENTITY, failed_when="without_identity.rowcount > 0"),
        subscription,
        {
            "name": "distributor",
            "community.postgresql.postgresql_ping": distributor,
            "register": "distributor",
            "failed_when": "not distributor.is_available",
        },
        query("slot", pair.source, _SLOT, failed_when="slot.rowcount != 1"),
        query("published", pair.source, _PUBLISHED),
        query("subscribed", pair.target, _SUBSCRIBED),
        {
            "name": "refresh",
            "community.postgresql.postgresql_subscription": refresh,
            "when": "published.query_result != subscribed.query_result",
        },
        query("unready", pair.target, _UNREADY, until="unready.rowcount == 0", retries=3600, delay=1),
    ]
    return wiring


def bare() -> Wiring:
    """Ansible with two tasks that do nothing."""
    return Wiring("ping", [{"name": f"ping {number}", "ansible.builtin.ping": {}} for number in (1, 2)])


@contextmanager
def wired(primary: Cluster, replica: Cluster, count: int, run: Callable[[Tasks], object]) -> Iterator[list[Wiring]]:
    """All wirings of *count* tables, made by running their first tasks and seen to replicate."""
    tables = [f"public.t_{number:05d}" for number in range(1, count + 1)]
    with ExitStack() as stack:
        wirings = []
        for wiring_of in (ours, theirs):
            # A password of letters, because community.postgresql doesn't quote it.
            pair = stack.enter_context(pair_of(primary, replica, password="benchmark"))
            for place in (pair.source, pair.target):
                place.sql(_MAKE_TABLES.replace("{count}", str(count)))
            pair.grant()
            wirings.append(wiring_of(pair, tables))
            run(wirings[-1].first_tasks)
            pair.source.sql("INSERT INTO t_00001 VALUES (2, 'arrives')")
            pair.arrived("t_00001")
        wirings.append(theirs_with_checks(pair, tables))
        for cluster in (primary, replica):
            cluster.sql("VACUUM ANALYZE")
            cluster.sql("CHECKPOINT")
        yield wirings
