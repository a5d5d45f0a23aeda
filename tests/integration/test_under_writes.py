# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows are equal on both sides although they are written during the first copy and after it."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2 import errors

from tests.support import playbooks
from tests.support.cluster import Cluster
from tests.support.modules import run_module
from tests.support.pair import wait_for
from tests.support.playbooks import SHOP_TABLES, Ansible, caught_up

pytestmark = [pytest.mark.slow, pytest.mark.sampled(0)]

SCALE = 0.2
FILTER = "product_id % 3 <> 0"
COLUMNS = ["user_id", "email", "country", "interests", "updated_at"]
TABLES: list[Any] = [
    *(table for table in SHOP_TABLES if table not in ("public.users", "public.products")),
    {"name": "public.products", "where": FILTER},
    {"name": "public.users", "columns": COLUMNS},
]
LEAVES = [f"public.page_views_{part}" for part in ("2026_01", "2026_02", "2026_03", "2026_04", "2026_05", "2026_06")]

VIEW = (
    "INSERT INTO page_views (viewed_at, session_id, path, device, dwell_ms)"
    " SELECT timestamptz '2025-12-25' + random() * interval '200 days', gen_random_uuid(), '/new', 'phone', i"
    " FROM generate_series(1, 20) AS i"
)
PAYMENT = (
    "INSERT INTO payments (order_id, method, amount, paid_at, gateway)"
    " SELECT order_id, 'card', random() * 100, now(), '{\"a\": [1, null]}' FROM orders ORDER BY random() LIMIT 30"
)
LINE = (
    'INSERT INTO "Order Lines" (order_id, "Line No", product_id, quantity, "Unit Price")'
    " SELECT order_id, 100 + %(n)s %% 30000, 1, 1 + %(n)s %% 5, 9.99 FROM orders WHERE order_id %% 97 = %(n)s %% 97"
    " ON CONFLICT DO NOTHING"
)
USER = (
    "INSERT INTO users (email, full_name, country) VALUES ('new' || %(n)s || '@example.org', 'New', 'DE')"
    " ON CONFLICT DO NOTHING"
)
PRODUCT = (
    "INSERT INTO products (sku, category_id, name, price, features) SELECT 'NEW-' || %(n)s || '-' || i, 5, 'New', i,"
    " array_fill(random()::real, ARRAY[16]) FROM generate_series(1, 5) AS i ON CONFLICT DO NOTHING"
)

# Each is one transaction; %(n)s is a random number.
WORK: dict[str, list[tuple[str, ...]]] = {
    "shop": [
        (USER, "UPDATE users SET interests = interests || 'x'::text WHERE user_id %% 211 = %(n)s %% 211"),
        ("UPDATE users SET user_id = user_id + 1000000 WHERE email LIKE 'new%%' AND user_id < 900000",),
        ("DELETE FROM users WHERE email LIKE 'new%%' AND user_id %% 3 = 0",),
        ("INSERT INTO orders (user_id) SELECT 1 + %(n)s %% 100 FROM generate_series(1, 5)", LINE),
        ("UPDATE orders SET status = 'shipped' WHERE order_id %% 307 = %(n)s %% 307",),
        ("DELETE FROM payments WHERE order_id %% 89 = %(n)s %% 89",),
    ],
    "lines": [
        (LINE,),
        ('UPDATE "Order Lines" SET quantity = quantity + 1 WHERE order_id %% 101 = %(n)s %% 101',),
        ('UPDATE "Order Lines" SET "Line No" = "Line No" - 50 WHERE "Line No" > 30050',),
        ('DELETE FROM "Order Lines" WHERE order_id %% 103 = %(n)s %% 103',),
        (PRODUCT,),
        # Rows enter and leave the filtered table.
        ("UPDATE products SET product_id = product_id + 1000001 WHERE sku LIKE 'NEW%%' AND product_id < 4000000",),
        ("DELETE FROM products WHERE sku LIKE 'NEW%%' AND product_id %% 4 = 0",),
        ("UPDATE products SET price = price + 1 WHERE product_id %% 41 = %(n)s %% 41",),
    ],
    "views": [
        (VIEW,),
        # Rows move between partitions.
        ("UPDATE page_views SET viewed_at = viewed_at + interval '31 days' WHERE view_id %% 199 = %(n)s %% 199",),
        ("DELETE FROM page_views WHERE view_id %% 193 = %(n)s %% 193",),
        ("SAVEPOINT a", VIEW, "ROLLBACK TO a", VIEW, "SAVEPOINT b", "DELETE FROM page_views_2026_01", "ROLLBACK TO b"),
        ("UPDATE warehouse.stock SET on_hand = on_hand + 1 WHERE product_id %% 83 = %(n)s %% 83",),
        (
            "DELETE FROM warehouse.stock WHERE site = 'WAW' AND product_id %% 7 = %(n)s %% 7",
            "UPDATE warehouse.stock SET site = 'WAW' WHERE site = 'MAN' AND product_id %% 7 = %(n)s %% 7",
        ),
    ],
    "emptying": [
        ("TRUNCATE payments", PAYMENT),
        (PAYMENT, "SAVEPOINT a", "TRUNCATE payments", "ROLLBACK TO a"),
        ("TRUNCATE page_views_2026_03",),
        (VIEW, "TRUNCATE page_views_default", VIEW),
        ("INSERT INTO categories SELECT max(category_id) + 1, 1, 'More' FROM categories",),
        ("UPDATE categories SET category_id = category_id + 1000 WHERE category_id BETWEEN 17 AND 999",),
    ],
}
RETRIED = (errors.DeadlockDetected, errors.UniqueViolation, errors.ForeignKeyViolation, errors.CheckViolation)


class Writer(threading.Thread):
    """Writes until it is told to stop, and counts its transactions."""

    def __init__(self, server: Cluster, name: str, stop: threading.Event) -> None:
        super().__init__(name=name)
        self._server = server
        self._stop_writing = stop
        self._random = random.Random(name)
        self.committed = [0] * len(WORK[name])
        self.retried: Counter[str] = Counter()
        self.problem: BaseException | None = None

    def run(self) -> None:
        try:
            with closing(self._server.connect("shop", autocommit=False)) as connection:
                while not self._stop_writing.is_set():
                    self._write(connection)
                    time.sleep(0.01)
        except BaseException as problem:
            self.problem = problem

    def _write(self, connection: Any) -> None:
        which = self._random.randrange(len(self.committed))
        rolled_back = self._random.random() < 0.1
        try:
            with connection.cursor() as cursor:
                for statement in WORK[self.name][which]:
                    cursor.execute(statement, {"n": self._random.randrange(1 << 20)})
        except RETRIED as error:
            self.retried[type(error).__name__] += 1
            rolled_back = True
        if rolled_back:
            connection.rollback()
        else:
            connection.commit()
            self.committed[which] += 1


@contextmanager
def writers(server: Cluster) -> Iterator[Callable[[], int]]:
    """Write to the shop for as long as the block runs; yields how many transactions have been committed."""
    stop = threading.Event()
    threads = [Writer(server, name, stop) for name in WORK]
    for thread in threads:
        thread.start()
    try:
        yield lambda: sum(sum(thread.committed) for thread in threads)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    for thread in threads:
        assert thread.problem is None, thread.problem
        assert all(thread.committed), f"{thread.name}: {thread.committed}, {thread.retried}"


class Copy:
    """Notices how many transactions were committed while the first copy was under way."""

    def __init__(self, replica: Cluster, committed: Callable[[], int]) -> None:
        self._replica = replica
        self._committed = committed
        self.began = self.ended = 0

    def watch(self, process: Any) -> None:
        while process.poll() is None:
            states = self._states()
            if states and not self.began:
                self.began = self._committed()
            if states and set(states) == {"r"} and not self.ended:
                self.ended = self._committed()
                return
            time.sleep(0.02)

    def _states(self) -> list[str]:
        """Of the tables; a copy that is not PostgreSQL's own has a table that is gone when it is."""
        query = (
            "SELECT srsubstate FROM pg_subscription_rel"
            " UNION ALL SELECT 'd' WHERE to_regclass('pgml_distributed.seeds') IS NOT NULL"
        )
        try:
            return [state for (state,) in self._replica.sql(query, dbname="ml")]
        except psycopg2.OperationalError:
            return []


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Cluster, Cluster]]:
    with playbooks.cluster(log_statement="none") as primary, playbooks.cluster(log_statement="none") as replica:
        playbooks.load_shop(primary, scale=SCALE)
        yield primary, replica


def rows(server: Cluster, dbname: str, table: str, columns: str = "*", where: str = "true") -> Counter[str]:
    """The rows of a table as text, and how often each is there."""
    query = f"SELECT t::text FROM (SELECT {columns} FROM {table} WHERE {where}) AS t"
    return Counter(row for (row,) in server.sql(query, dbname=dbname))


def difference(primary: Cluster, replica: Cluster, table: Any) -> dict[str, int]:
    """The rows of a distributed table that only one side has, as few as fit on a screen."""
    name = table if isinstance(table, str) else table["name"]
    columns = "*" if isinstance(table, str) else ", ".join(table.get("columns", "*"))
    where = "true" if isinstance(table, str) else table.get("where", "true")
    here = rows(primary, "shop", name, columns, where)
    there = rows(replica, "ml", name, columns)
    assert here or name.endswith("2026_03"), f"{name} is empty, so that nothing is shown"
    lost = {f"lost: {row}": number for row, number in (here - there).items()}
    forged = {f"forged: {row}": number for row, number in (there - here).items()}
    return dict([*lost.items()][:5] + [*forged.items()][:5])


def test_rows_are_equal_under_writes(servers: tuple[Cluster, Cluster], tmp_path: Path) -> None:
    primary, replica = servers
    distribution = {"name": "shop", "database": "shop", "target_database": "ml", "tables": TABLES}
    hosts = playbooks.inventory(primary, {"ml-1": replica}, [distribution])
    with writers(primary) as committed:
        process = Ansible(tmp_path).start("distribute.yml", hosts)
        copy = Copy(replica, committed)
        try:
            copy.watch(process)
        finally:
            run = playbooks.finish(process)
        assert run.ok, run.output
        after_copy = committed()
        wait_for(lambda: committed() > after_copy + 300, 60, "more to be written after the copy")
    assert copy.ended - copy.began > 10, "the copy ended before anything was written"
    caught_up(primary)
    assert {str(table): difference(primary, replica, table) for table in TABLES + LEAVES} == {
        str(table): {} for table in TABLES + LEAVES
    }
    assert replica.sql("SELECT sum(apply_error_count) FROM pg_stat_subscription_stats") == [(0,)]
    _notices_differences(primary, replica)


def test_privileges_are_granted_while_a_table_is_truncated(servers: tuple[Cluster, Cluster]) -> None:
    """TRUNCATE and GRANT both write the table's row of pg_class, and GRANT takes no lock that would put them in order."""
    primary, _ = servers
    primary.sql("CREATE ROLE courier LOGIN")
    with closing(primary.connect("shop", autocommit=False)) as connection, connection.cursor() as cursor:
        cursor.execute("TRUNCATE public.audit_log")
        end = threading.Timer(1, connection.commit)
        end.start()
        options = {"role": "courier", "tables": ["public.audit_log"], **primary.login("shop")}
        try:
            result = run_module("pgml_grants", options)
        finally:
            end.join()
    assert not result.get("failed"), result["msg"]
    assert primary.sql("SELECT has_table_privilege('courier', 'public.audit_log', 'SELECT')", dbname="shop") == [
        (True,)
    ]


def _notices_differences(primary: Cluster, replica: Cluster) -> None:
    """The comparison fails when a single row or value differs."""
    spoilt: list[tuple[str, Any]] = [
        (
            'DELETE FROM "Order Lines" WHERE ctid = (SELECT min(ctid) FROM "Order Lines")',
            'public."Order Lines"',
        ),
        (
            "UPDATE page_views_2026_05 SET dwell_ms = dwell_ms + 1"
            " WHERE view_id = (SELECT min(view_id) FROM page_views_2026_05)",
            "public.page_views",
        ),
        ("UPDATE users SET country = 'XX' WHERE user_id = 2", TABLES[-1]),
        (
            "INSERT INTO payments SELECT 9999999, order_id, 9999999, method, 1, paid_at FROM payments LIMIT 1",
            "payments",
        ),
    ]
    for statement, table in spoilt:
        assert not difference(primary, replica, table)
        replica.sql(statement, dbname="ml")
        assert difference(primary, replica, table), f"unnoticed: {statement}"
