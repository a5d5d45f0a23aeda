# SPDX-License-Identifier: GPL-3.0-or-later
"""Two databases for one test, and what is done with them again and again."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg2
from psycopg2.sql import SQL, Identifier, Literal

from tests.support.cluster import Cluster
from tests.support.modules import run_module

_numbers = itertools.count(1)

# xmin changes whenever a row is written, even with the values it had.
_CATALOGS = (
    "SELECT 'role', xmin::text, rolname::text FROM pg_authid",
    "SELECT 'publication', xmin::text, t::text FROM pg_publication AS t",
    "SELECT 'published', xmin::text, format('%s %s', prpubid, prrelid) FROM pg_publication_rel",
    # The server itself takes two_phase from pending to enabled, some time.
    "SELECT 'subscription', CASE WHEN to_jsonb(t) ->> 'subtwophasestate' IN ('p', 'e') THEN '' ELSE xmin::text END,"
    " (to_jsonb(t) - 'subtwophasestate')::text FROM pg_subscription AS t",
    "SELECT 'subscribed', xmin::text, format('%s %s', srsubid, srrelid) FROM pg_subscription_rel",
    "SELECT 'class', xmin::text, format('%s %s %s', oid::regclass, relreplident, relacl) FROM pg_class"
    " WHERE oid >= 16384 AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S', 'i') AND relpersistence <> 't'",
    "SELECT 'foreign server', xmin::text, t::text FROM pg_foreign_server AS t",
    "SELECT 'user mapping', xmin::text, t::text FROM pg_user_mapping AS t",
    "SELECT 'foreign table', xmin::text, t::text FROM pg_foreign_table AS t",
    "SELECT 'foreign column', a.xmin::text, format('%s %s %s %s', attrelid, attname, attacl, attfdwoptions)"
    " FROM pg_attribute AS a JOIN pg_foreign_table ON ftrelid = attrelid",
    "SELECT 'default privileges', xmin::text, t::text FROM pg_default_acl AS t",
    "SELECT 'schema', xmin::text, format('%s %s', nspname, nspacl) FROM pg_namespace WHERE nspname !~ '^pg_'",
    "SELECT 'comment', xmin::text, description FROM pg_description WHERE objoid >= 16384",
    "SELECT 'shared comment', xmin::text, description FROM pg_shdescription WHERE objoid >= 16384",
    "SELECT 'file', '', format('%s %s', name, setting) FROM pg_file_settings",
    "SELECT 'slot', '', slot_name::text FROM pg_replication_slots",
)


@dataclass
class Place:
    """One database of a cluster."""

    cluster: Cluster
    database: str

    @property
    def login(self) -> dict[str, Any]:
        return self.cluster.login(self.database)

    def sql(self, statement: Any, params: Any = None) -> list[tuple[Any, ...]]:
        return self.cluster.sql(statement, params, dbname=self.database)

    def value(self, statement: Any, params: Any = None) -> Any:
        return self.sql(statement, params)[0][0]

    def fingerprint(self) -> set[tuple[Any, ...]]:
        """What the modules could have changed here."""
        return set(self.sql(" UNION ALL ".join(_CATALOGS)))

    def run(self, module: str, *, check: bool = False, **params: Any) -> dict[str, Any]:
        """Run a module against this database; a traceback is never an answer."""
        result = run_module(module, {**self.login, **params}, check=check)
        assert "Traceback" not in str(result.get("exception", "")), result["exception"]
        return result

    def ok(self, module: str, *, check: bool = False, **params: Any) -> dict[str, Any]:
        """Run a module that succeeds."""
        result = self.run(module, check=check, **params)
        assert not result.get("failed"), result["msg"]
        return result

    def refused(self, module: str, *, check: bool = False, **params: Any) -> str:
        """Run a module that fails, changing nothing, and return its message."""
        before = self.fingerprint()
        result = self.run(module, check=check, **params)
        assert result.get("failed"), f"{module} did not fail: {result}"
        assert not (changed := self.fingerprint() ^ before), f"{module} failed and has changed {changed}"
        return result["msg"]

    def converge(self, module: str, **params: Any) -> dict[str, Any]:
        """Check mode predicts exactly and changes nothing, then the run does it, then nothing is left to do."""
        before = self.fingerprint()
        predicted = self.ok(module, check=True, **params)
        assert self.fingerprint() == before, "check mode has changed something"
        result = self.ok(module, **params)
        for key in ("changed", "changes", "diff"):
            assert predicted[key] == result[key], f"check mode predicted another {key}"
        settled = self.fingerprint()
        assert result["changed"] or settled == before
        again = self.ok(module, **params)
        assert not again["changed"] and not again["changes"], again["changes"]
        assert self.fingerprint() == settled, "the second run has changed something"
        assert again["diff"]["before"] == again["diff"]["after"]
        return result

    @contextmanager
    def transaction(self, *statements: str) -> Iterator[int]:
        """A session of the superuser's that has run *statements* and holds its locks; yields its process id."""
        with closing(self.cluster.connect(self.database, autocommit=False)) as connection:
            with connection.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement)
            yield connection.get_backend_pid()
            connection.rollback()


@dataclass
class Pair:
    """A database to take rows from, one to bring them to, and the role in between."""

    source: Place
    target: Place
    distributor: str
    password: str
    name: str = field(default_factory=lambda: f"sub_{os.getpid()}_{next(_numbers)}")

    @property
    def endpoint(self) -> dict[str, Any]:
        """The source option of pgml_subscription."""
        return self.source.cluster.source(self.source.database, self.distributor, self.password)

    def sql_source(self, statement: Any, params: Any = None) -> list[tuple[Any, ...]]:
        return self.source.sql(statement, params)

    def sql_target(self, statement: Any, params: Any = None) -> list[tuple[Any, ...]]:
        return self.target.sql(statement, params)

    def both(self, statements: str) -> None:
        """Run *statements* in both databases, and let the distributor read what they have made at the source."""
        self.source.sql(statements)
        self.target.sql(statements)
        self.grant()

    def grant(self) -> None:
        found = self.source.sql("SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_|^information'")
        schemas = SQL(", ").join([Identifier(schema) for (schema,) in found])
        statements = (
            "GRANT USAGE ON SCHEMA {schemas} TO {role}; GRANT SELECT ON ALL TABLES IN SCHEMA {schemas} TO {role}"
        )
        self.source.sql(SQL(statements).format(schemas=schemas, role=Identifier(self.distributor)))

    def publish(self, *tables: Any, name: str = "pub", **params: Any) -> dict[str, Any]:
        return self.source.ok("pgml_publication", name=name, tables=list(tables), **params)

    def subscription(self, **params: Any) -> dict[str, Any]:
        """The options of a subscription to C(pub), changed by *params*; None leaves one out."""
        options = {"name": self.name, "publications": ["pub"], "source": self.endpoint, "wait_timeout": 60, **params}
        return {key: value for key, value in options.items() if value is not None}

    def subscribe(self, **params: Any) -> dict[str, Any]:
        return self.target.ok("pgml_subscription", **self.subscription(**params))

    def not_subscribed(self, **params: Any) -> str:
        """Subscribe in vain and return the message; nothing is left on either side."""
        before = self.source.fingerprint()
        message = self.target.refused("pgml_subscription", **self.subscription(**params))
        assert self.source.fingerprint() == before
        return message

    def unsubscribe(self, **params: Any) -> dict[str, Any]:
        return self.target.ok("pgml_subscription", name=self.name, state="absent", **params)

    def slots(self) -> set[str]:
        """The slots of the source database."""
        rows = self.source.sql("SELECT slot_name FROM pg_replication_slots WHERE database = current_database()")
        return {row[0] for row in rows}

    def arrived(self, table: str, seconds: float = 20) -> None:
        """Wait until both sides hold the same rows of a table."""
        query = f"SELECT t::text FROM {table} AS t ORDER BY 1"
        wait_for(lambda: self.source.sql(query) == self.target.sql(query), seconds, f"{table} to be equal")


@contextmanager
def pair_of(source: Cluster, target: Cluster, password: str = "distributor's own") -> Iterator[Pair]:
    """Two fresh databases and a distributor, gone afterwards with all that was wired between them."""
    number = f"{os.getpid()}_{next(_numbers)}"
    pair = Pair(Place(source, f"src_{number}"), Place(target, f"dst_{number}"), f"dist_{number}", password)
    create_role(source, pair.distributor, "LOGIN REPLICATION", password)
    source.create_database(pair.source.database)
    target.create_database(pair.target.database)
    try:
        yield pair
    finally:
        for cluster in (source, target):
            cluster.start()
        forget_subscriptions(pair.target)
        forget_slots(pair.source)
        for place in (pair.source, pair.target):
            place.cluster.drop_database(place.database)
        source.sql(SQL("DROP ROLE {}").format(Identifier(pair.distributor)))


def encoded(place: Place, encoding: str) -> None:
    """Make the database anew, in another encoding."""
    place.cluster.drop_database(place.database)
    options = f"ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    place.cluster.sql(f"CREATE DATABASE {place.database} {options}")


def create_role(cluster: Cluster, name: str, attributes: str, password: str) -> None:
    """Create a role."""
    statement = SQL("CREATE ROLE {} " + attributes + " PASSWORD {}")
    run_unlogged(cluster, statement.format(Identifier(name), Literal(password)))


def run_unlogged(cluster: Cluster, statement: Any, dbname: str = "postgres") -> None:
    """Run a statement that holds a password, which other tests look for in the server's log."""
    with closing(cluster.connect(dbname)) as connection, connection.cursor() as cursor:
        cursor.execute("SET log_statement = none")
        cursor.execute(statement)


def forget_subscriptions(place: Place) -> None:
    """Drop a database's subscriptions, but not their slots."""
    query = (
        "SELECT subname FROM pg_subscription"
        " WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    for (name,) in place.sql(query):
        for action in ("DISABLE", "SET (slot_name = NONE)"):
            place.sql(SQL("ALTER SUBSCRIPTION {} " + action).format(Identifier(name)))
        place.sql(SQL("DROP SUBSCRIPTION {}").format(Identifier(name)))


def forget_slots(place: Place) -> None:
    """Drop a database's slots, whoever uses them."""
    query = "SELECT slot_name, active_pid FROM pg_replication_slots WHERE database = current_database()"

    def gone() -> bool:
        for name, pid in place.sql(query):
            with suppress(psycopg2.Error):
                place.sql(
                    "SELECT pg_terminate_backend(%s)" if pid else "SELECT pg_drop_replication_slot(%s)", [pid or name]
                )
        return not place.sql(query)

    wait_for(gone, 30, "the slots to go")


def wait_for(condition: Callable[[], Any], seconds: float = 20, what: str = "the condition") -> Any:
    """Wait until a condition holds and return its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.05)
    return value


class Stopwatch:
    """Measures the time of a with block, in seconds."""

    def __enter__(self) -> Stopwatch:
        self._start = time.monotonic()
        self.seconds = 0.0
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.seconds = time.monotonic() - self._start
