# SPDX-License-Identifier: GPL-3.0-or-later
"""Schemas beside the real ones, in which tables are made and filled before they take the place of others."""

from __future__ import annotations

import time
from typing import Any, Iterable, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused, TimedOut
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    arrays,
    compose,
    identifier,
    listed,
    literal,
    raw,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.workers import RUN_LOCK, WORKERS_LOCK

NEW = "pgml_staging_"
OLD = "pgml_old_"
_SCHEMAS = "^pgml_(staging|old)_[0-9]+$"
_AT_ONCE = 100
"""Tables that one transaction drops: each takes several of the server's locks."""
_PATIENCE_SECONDS = 30
_ENDING_SECONDS = 3
"""How long a server may take to free what an ended session has held."""


class Names:
    """What the schemas of *schemas* are called while their tables are in the making, and when they are on their way out."""

    def __init__(self, schemas: Iterable[str]) -> None:
        self.numbers = {schema: number for number, schema in enumerate(sorted(set(schemas)))}

    def new(self, schema: str) -> str:
        return NEW + str(self.numbers[schema])

    def old(self, schema: str) -> str:
        return OLD + str(self.numbers[schema])


def is_first(session: Session) -> bool:
    """Whether the session now is that of the only run in its database, for as long as it lasts."""
    return bool(session.value("SELECT pg_try_advisory_lock(%s, %s)", list(RUN_LOCK)))


def lock_run(session: Session) -> None:
    """Make sure that this is the only run in the session's database. One that has just ended holds its lock until the
    server has noticed."""
    deadline = time.monotonic() + _ENDING_SECONDS
    while not is_first(session):
        if time.monotonic() > deadline:
            raise _occupied(session)
        time.sleep(0.1)


def _occupied(session: Session) -> Refused:
    other = session.row(
        "SELECT a.pid, date_trunc('second', a.backend_start)::text AS since FROM pg_locks AS l"
        " JOIN pg_stat_activity AS a USING (pid) WHERE l.locktype = 'advisory' AND l.classid = %s AND l.objid = %s"
        " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND l.granted",
        list(RUN_LOCK),
    )
    return Refused(
        "Another run fills {0}{1}: let it end first.".format(
            session.endpoint, ", process {0.pid} since {0.since}".format(other) if other else ""
        )
    )


def scratch_name(session: Session) -> str:
    """The database beside the session's in which definitions are prepared."""
    oid = session.value("SELECT oid FROM pg_database WHERE datname = current_database()")
    return "pgml_scratch_{0}".format(oid)


def drop_scratch(session: Session) -> None:
    """Drop that database, if it is there."""
    session.execute(compose("DROP DATABASE IF EXISTS {name} WITH (FORCE)", name=identifier(scratch_name(session))))


def left_over(session: Session) -> list[str]:
    """What a run that died has left: schemas, and the scratch database."""
    return [
        row.name
        for row in session.rows(
            "SELECT 'schema ' || nspname AS name FROM pg_namespace WHERE nspname ~ %s"
            " UNION ALL SELECT 'database ' || datname FROM pg_database WHERE datname = %s ORDER BY 1",
            [_SCHEMAS, scratch_name(session)],
        )
    ]


def clean(session: Session) -> None:
    """Remove what a run that died has left, its workers first. Needs lock_run()."""
    end_workers(session)
    drop_scratch(session)
    drop_schemas(session)


def end_workers(session: Session) -> None:
    """End the workers of a run that died. Needs lock_run()."""
    query = (
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND classid = %s AND objid = %s"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while session.rows(query, list(WORKERS_LOCK)):
        if time.monotonic() > deadline:
            raise TimedOut(
                "Processes of an earlier run are still at work in {0} after {1} seconds.".format(
                    session.endpoint, _PATIENCE_SECONDS
                )
            )
        time.sleep(0.1)


def drop_schemas(session: Session) -> None:
    """Drop the staging schemas and what is in them, some tables at a time."""
    while True:
        tables = session.rows(
            "SELECT n.nspname AS schema, c.relname AS name FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " WHERE n.nspname ~ %s AND c.relkind IN ('r', 'p') LIMIT %s",
            [_SCHEMAS, _AT_ONCE],
        )
        if not tables:
            break
        names = listed([identifier(row.schema, row.name) for row in tables])
        # What others made depend on a table was refused before; this is about the tables' own foreign keys.
        session.execute(compose("DROP TABLE IF EXISTS {names} CASCADE", names=names))
    for row in session.rows("SELECT nspname FROM pg_namespace WHERE nspname ~ %s", [_SCHEMAS]):
        session.execute(compose("DROP SCHEMA {name} CASCADE", name=identifier(row.nspname)))


def refuse_without_createdb(session: Session) -> None:
    """Refuse a role that can't make the scratch database."""
    if not session.value("SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user"):
        raise Refused(
            'Role "{0}" may not create databases in {1}, and one is needed for a moment to prepare the definitions: '
            "give it CREATEDB.".format(session.value("SELECT current_user"), session.endpoint)
        )


def create_scratch(session: Session) -> Endpoint:
    """An empty database that takes the names and texts of the session's, in the same order; returns the way to it."""
    name = scratch_name(session)
    options = {
        key: value for key, value in session.row(_locale_of(session.version))._asdict().items() if value is not None
    }
    statement = compose("CREATE DATABASE {name} TEMPLATE template0", name=identifier(name))
    for option, value in options.items():
        statement = compose(
            "{before} {option} {value}", before=statement, option=raw(option.upper()), value=literal(value)
        )
    session.execute(statement)
    return session.endpoint.with_keywords(dbname=name)


def _locale_of(version: int) -> str:
    """A query for the options of CREATE DATABASE, see https://www.postgresql.org/docs/current/sql-createdatabase.html."""
    columns = ["pg_encoding_to_char(encoding) AS encoding", "datcollate AS lc_collate", "datctype AS lc_ctype"]
    if version >= 150000:
        columns.append("'wal_log' AS strategy")  # without checkpoints
        columns.append(
            "CASE datlocprovider WHEN 'i' THEN 'icu' WHEN 'b' THEN 'builtin' ELSE 'libc' END AS locale_provider"
        )
    if version >= 170000:
        columns.append("CASE datlocprovider WHEN 'i' THEN datlocale END AS icu_locale")
        columns.append("CASE datlocprovider WHEN 'b' THEN datlocale END AS builtin_locale")
    elif version >= 150000:
        columns.append("daticulocale AS icu_locale")
    if version >= 160000:
        columns.append("daticurules AS icu_rules")
    return "SELECT {0} FROM pg_database WHERE datname = current_database()".format(", ".join(columns))


def moves(session: Session, tables: Sequence[Any], there: Mapping[str, str]) -> list[Any]:
    """Statements that move *tables* (keys), with their statistics objects, to the schemas that *there* gives for theirs.

    Indexes, constraints and the sequences of columns go with their table.
    """
    statements = [
        compose("ALTER TABLE {table} SET SCHEMA {schema}", table=identifier(*key), schema=identifier(there[key[0]]))
        for key in tables
    ]
    for row in session.rows(
        "SELECT sn.nspname AS schema, s.stxname AS name FROM unnest(%s::text[], %s::text[]) AS wanted(schema, name)"
        " JOIN pg_namespace AS n ON n.nspname = wanted.schema"
        " JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = wanted.name"
        " JOIN pg_statistic_ext AS s ON s.stxrelid = c.oid JOIN pg_namespace AS sn ON sn.oid = s.stxnamespace",
        arrays(tables),
    ):
        if row.schema in there:
            statements.append(
                compose(
                    "ALTER STATISTICS {name} SET SCHEMA {schema}",
                    name=identifier(row.schema, row.name),
                    schema=identifier(there[row.schema]),
                )
            )
    return statements
