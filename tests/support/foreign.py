# SPDX-License-Identifier: GPL-3.0-or-later
"""Foreign servers of one pair of databases: made, looked at in the catalogs, and read through."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from psycopg2.sql import SQL, Identifier

from tests.support.cluster import Cluster
from tests.support.pair import Pair, Place, create_role

MODULE = "pgml_fdw"
SERVER = "shop"
PASSWORD = "a local role's own"
_numbers = itertools.count(1)

SHOP = """
    CREATE TABLE users (id int PRIMARY KEY, name text NOT NULL, born date DEFAULT '2000-01-01');
    CREATE TABLE orders (id bigint PRIMARY KEY, user_id int NOT NULL, total numeric(12,2), status varchar(20),
        ordered date, created_at timestamptz NOT NULL);
    CREATE TABLE stock (id int PRIMARY KEY, pieces int);
    INSERT INTO users SELECT g, 'user ' || g FROM generate_series(1, 20) AS g;
    INSERT INTO orders SELECT g, g % 20 + 1, g * 1.5, (ARRAY['paid', 'new', 'pending', NULL])[g % 4 + 1],
        CURRENT_DATE - g, now() - g * interval '1 day' FROM generate_series(1, 60) AS g;
    INSERT INTO stock SELECT g, g * 10 FROM generate_series(1, 5) AS g;
"""


def options(pair: Pair, **params: Any) -> dict[str, Any]:
    """The module's options, changed by *params*; None leaves one out."""
    wanted = {"server": SERVER, "source": pair.endpoint, **params}
    return {key: value for key, value in wanted.items() if value is not None}


def converge(pair: Pair, **params: Any) -> dict[str, Any]:
    """Check mode predicts, the run does it, a second one does nothing, and the source stays as it is all the time."""
    before = pair.source.fingerprint()
    result = pair.target.converge(MODULE, **options(pair, **params))
    assert pair.source.fingerprint() == before
    return result


def ok(pair: Pair, *, check: bool = False, **params: Any) -> dict[str, Any]:
    return pair.target.ok(MODULE, check=check, **options(pair, **params))


def refused(pair: Pair, **params: Any) -> str:
    """Run in vain, and return the message, which is made of sentences; nothing is changed on either side."""
    before = pair.source.fingerprint()
    message = pair.target.refused(MODULE, **options(pair, **params))
    assert pair.source.fingerprint() == before
    assert message[-1] in ".!?" and len(message) < 1000, message
    return message


def possible(pair: Pair, word: str, **params: Any) -> bool:
    """Whether a run succeeds, and converges then; else it is refused with *word*."""
    if pair.target.run(MODULE, **options(pair, **params)).get("failed"):
        message = refused(pair, **params)
        assert word in message, message
        return False
    assert not converge(pair, **params)["changed"]
    return True


def absent(pair: Pair, **params: Any) -> dict[str, Any]:
    return pair.target.converge(MODULE, server=SERVER, state="absent", **params)


def prepare(pair: Pair, statements: str = SHOP) -> Pair:
    """Fill the source, let the distributor read it, and have the wrapper at the target."""
    pair.sql_source(statements)
    pair.grant()
    pair.sql_target("CREATE EXTENSION postgres_fdw")
    return pair


def server_options(pair: Pair, server: str = SERVER) -> dict[str, str]:
    """A server's options as the catalog has them."""
    query = (
        "SELECT option_name, option_value FROM pg_foreign_server, pg_options_to_table(srvoptions) WHERE srvname = %s"
    )
    return dict(pair.sql_target(query, [server]))


def mappings(pair: Pair, server: str = SERVER) -> dict[str, dict[str, str]]:
    """The options of a server's mappings by role, those of the public one as C(public)."""
    query = (
        "SELECT CASE umuser WHEN 0 THEN 'public' ELSE pg_get_userbyid(umuser)::text END, umoptions"
        " FROM pg_user_mapping JOIN pg_foreign_server AS s ON s.oid = umserver WHERE srvname = %s"
    )
    found = {}
    for role, entries in pair.sql_target(query, [server]):
        found[role] = dict(entry.split("=", 1) for entry in entries or [])
    return found


def relations(place: Place, kinds: str = "fv") -> set[str]:
    """The relations of these kinds (pg_class.relkind) outside of the system's schemas, as in SQL."""
    query = (
        "SELECT format('%%I.%%I', nspname, relname) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace"
        " WHERE position(relkind::text IN %s) > 0 AND nspname !~ '^pg_|^information_schema$'"
    )
    return {name for (name,) in place.sql(query, [kinds])}


def columns(place: Place, relation: str) -> dict[str, str]:
    """The columns of a relation with their types, NOT NULL where it is."""
    query = (
        "SELECT attname::text, format_type(atttypid, atttypmod) || CASE WHEN attnotnull THEN ' NOT NULL' ELSE '' END"
        " FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
    )
    return dict(place.sql(query, [relation]))


def remote_sql(pair: Pair, query: str) -> str:
    """What the source is asked for a query."""
    plan = [line.strip() for (line,) in pair.sql_target("EXPLAIN (VERBOSE, COSTS off) " + query)]
    return "\n".join(line for line in plan if line.startswith("Remote SQL:"))


def as_role(pair: Pair, role: str, query: str) -> list[tuple[Any, ...]]:
    """The rows that a role sees, in a session of its own."""
    target = pair.target
    with closing(target.cluster.connect(target.database, role, PASSWORD)) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall()


@contextmanager
def local_role(place: Place, attributes: str = "", name: str | None = None) -> Iterator[str]:
    """A login role with PASSWORD, which is gone afterwards with all that it has in this database."""
    name = name or f"role_{os.getpid()}_{next(_numbers)}"
    create_role(place.cluster, name, f"LOGIN {attributes}", PASSWORD)
    try:
        yield name
    finally:
        place.sql(SQL("DROP OWNED BY {0} CASCADE; DROP ROLE {0}").format(Identifier(name)))


@contextmanager
def remote_role(pair: Pair, password: str = "another's") -> Iterator[str]:
    """A second role at the source, which may read what is there now."""
    with local_role(pair.source) as name:
        set_password(pair.source.cluster, name, password)
        for (schema,) in pair.sql_source("SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_|^information'"):
            names = {"schema": Identifier(schema), "role": Identifier(name)}
            pair.sql_source(SQL("GRANT USAGE ON SCHEMA {schema} TO {role}").format(**names))
            pair.sql_source(SQL("GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}").format(**names))
        yield name


def set_password(cluster: Cluster, role: str, password: str) -> None:
    """Change a role's password without a trace in the server's log."""
    with closing(cluster.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SET log_statement = none")
        cursor.execute(SQL("ALTER ROLE {} PASSWORD %s").format(Identifier(role)), [password])


def catalogs(place: Place) -> dict[str, int]:
    """How many rows each catalog has for the database, statistics aside: what is left over shows here."""
    names = place.sql(
        "SELECT c.oid::regclass::text FROM pg_class AS c WHERE relnamespace = 'pg_catalog'::regnamespace"
        " AND relkind = 'r' AND NOT relisshared AND relname NOT IN ('pg_statistic', 'pg_statistic_ext_data') ORDER BY 1"
    )
    # A session that has needed temporary tables leaves its schema to the next one.
    filters = {"pg_namespace": " WHERE nspname !~ '^pg_(toast_)?temp_'"}
    queries = [f"SELECT '{name}', count(*) FROM {name}{filters.get(name, '')}" for (name,) in names]
    shared = "(SELECT oid FROM pg_database WHERE datname = current_database())"
    queries.append(f"SELECT 'pg_shdepend', count(*) FROM pg_shdepend WHERE dbid = {shared}")
    return dict(place.sql(" UNION ALL ".join(queries)))


@contextmanager
def statements(place: Place) -> Iterator[list[str]]:
    """What the server logs as run while the block lasts, by anybody: it logs all statements."""
    seen = len(place.cluster.log())
    found: list[str] = []
    yield found
    found += re.split(r"(?m)^.*? LOG:  (?:statement|execute [^:]+): ", place.cluster.log()[seen:])[1:]
