# SPDX-License-Identifier: GPL-3.0-or-later
"""The session's own connection to the source, by way of the foreign server."""

from __future__ import annotations

from typing import Any, Mapping, NamedTuple

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import (
    LOCK_TIMEOUT_SECONDS,
    Session,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    compose,
    identifier,
    literal,
    raw,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.foreign_server import Server
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.schedule import Key

SCRATCH = "pgml_link"
"""A schema that only the transaction sees that makes it and rolls it back."""


class Catalog(NamedTuple):
    """What the source has."""

    schemas: list[str]
    relations: frozenset[Key]
    """tables and views"""


def connect(session: Session, server: Server, **settings: str) -> None:
    """Connect the transaction of *session* with the source, where it waits for locks no longer than here and has *settings*.

    postgres_fdw keeps a connection until the transaction ends, whatever becomes of the server's options meanwhile.
    """
    _ask(session, server, "SELECT FROM pgml_link.pg_namespace LIMIT 1", settings)


def read_catalog(session: Session, server: Server) -> Catalog:
    """What the source has; the transaction of *session* is connected as by connect()."""
    rows = _ask(session, server, _CATALOG, {})
    schemas = sorted({row.schema for row in rows})
    return Catalog(schemas, frozenset((row.schema, row.name) for row in rows if row.name is not None))


def _ask(session: Session, server: Server, query: str, settings: Mapping[str, str]) -> list[Any]:
    with session.undone():
        session.execute(preparation(server, **settings))
        return session.rows(query)


_CATALOG = (
    "SELECT n.nspname AS schema, c.relname AS name FROM pgml_link.pg_namespace AS n LEFT JOIN pgml_link.pg_class AS c"
    " ON c.relnamespace = n.oid AND c.relkind IN ('r', 'p', 'v', 'm', 'f')"
    " WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'pgml_distributed') ORDER BY 1, 2"
)


def unasked(server: Server) -> Any:
    """What keeps the planner from asking the source. To be rolled back."""
    return compose(
        "ALTER SERVER {server} OPTIONS ({action} use_remote_estimate 'false')",
        server=identifier(server.name),
        action=raw("SET" if "use_remote_estimate" in server.options else "ADD"),
    )


def preparation(server: Server, **settings: str) -> Any:
    """What has connections of the transaction wait for locks no longer than here; and foreign tables of the source's catalogs.
    To be rolled back."""
    flags = {"lock_timeout": "{0}s".format(LOCK_TIMEOUT_SECONDS), **settings}
    given = server.options.get("options")
    text = " ".join([given or "", *["-c {0}={1}".format(name, value) for name, value in flags.items()]]).strip()
    return compose(
        "ALTER SERVER {server} OPTIONS ({action} options {text}); CREATE SCHEMA {scratch};"
        " CREATE FOREIGN TABLE {scratch}.pg_namespace (oid oid, nspname name) SERVER {server} OPTIONS (schema_name 'pg_catalog');"
        ' CREATE FOREIGN TABLE {scratch}.pg_class (relname name, relnamespace oid, relkind "char") SERVER {server}'
        " OPTIONS (schema_name 'pg_catalog')",
        server=identifier(server.name),
        action=raw("SET" if given is not None else "ADD"),
        text=literal(text),
        scratch=identifier(SCRATCH),
    )
