# SPDX-License-Identifier: GPL-3.0-or-later
"""Proof that each mapping reaches the source through the server, and may read every table there."""

from __future__ import annotations

from typing import Any, Callable, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import ServerRefused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    arrays,
    compose,
    enumerate_names,
    identifier,
    identifiers,
    listed,
    quoted,
    raw,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import foreign_link
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.foreign_server import PUBLIC, Server
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.schedule import Key

_ANYBODY = "pgml_anybody_{0}"
"""A role that only the transaction sees that makes it and rolls it back; with the database's oid, since roles are everywhere."""
_AT_ONCE = 100
"""Tables that are locked at the source at a time, with their indexes: the locks that a server has room for are few thousands."""


def prove(
    session: Session, server: Server, labels: Mapping[Key, str], more: Sequence[Key], warn: Callable[[str], None]
) -> None:
    """Have the source plan a query on each of the relations that have *labels*, as each mapped role; raises what it answers.

    With C(use_remote_estimate) the source is asked for the plan of what it would be sent, which takes the privileges that the
    query would take, and reads no row. *more* is what the relations need here. Runs inside the transaction that makes them.
    """
    with session.undone():
        session.execute(foreign_link.preparation(server))
        session.execute(_asking(server))
        known = {(foreign_link.SCRATCH, "pg_namespace"): "the source", **labels}
        for role in _provable(session, server, warn):
            _let_in(session, role, [*known, *more])
            session.execute(compose("SET LOCAL ROLE {role}", role=identifier(role)))
            keys = list(known)
            for start in range(0, len(keys), _AT_ONCE):
                with session.undone():  # which gives back the locks at the source
                    for key in keys[start : start + _AT_ONCE]:
                        _plan(session, role, key, known[key])
            session.execute("RESET ROLE")


def _asking(server: Server) -> Any:
    """What has the planner ask the source, to be rolled back."""
    asked = server.options.get("use_remote_estimate")
    return compose(
        "ALTER SERVER {server} OPTIONS ({action} use_remote_estimate 'true')",
        server=identifier(server.name),
        action=raw("SET" if asked else "ADD"),
    )


def _provable(session: Session, server: Server, warn: Callable[[str], None]) -> list[str]:
    """The mapped roles that the session can become; for those without a mapping of their own, one is made."""
    row = session.row("SELECT current_user AS name, rolsuper FROM pg_roles WHERE rolname = current_user")
    roles = [role for role in server.mappings if role != PUBLIC]
    member = {
        each.rolname
        for each in session.rows(
            "SELECT rolname FROM pg_roles WHERE rolname = ANY(%s) AND pg_has_role(current_user, oid, 'MEMBER')", [roles]
        )
    }
    if PUBLIC in server.mappings and row.rolsuper:
        anybody = _ANYBODY.format(session.value("SELECT oid FROM pg_database WHERE datname = current_database()"))
        session.execute(compose("CREATE ROLE {role}", role=identifier(anybody)))
        member.add(anybody)
    unproven = [role for role in server.mappings if role not in member and not (role == PUBLIC and row.rolsuper)]
    if unproven:
        warn(
            'Whether {0} can reach the source was not tried: role "{1}" is neither a superuser nor a member.'.format(
                enumerate_names(map(quoted, unproven)), row.name
            )
        )
    return sorted(member)


def _let_in(session: Session, role: str, keys: Sequence[Key]) -> None:
    """Give *role* for the moment what it needs here, since the question is what it may do there."""
    lacking = [
        (row.schema, row.name)
        for row in session.rows(
            "SELECT n.nspname AS schema, c.relname AS name FROM unnest(%(schemas)s::text[], %(names)s::text[]) AS w(schema, name)"
            " JOIN pg_namespace AS n ON n.nspname = w.schema"
            " JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = w.name"
            " WHERE NOT (has_schema_privilege(%(role)s, n.oid, 'USAGE') AND has_table_privilege(%(role)s, c.oid, 'SELECT'))",
            {**dict(zip(("schemas", "names"), arrays(keys))), "role": role},
        )
    ]
    if lacking:
        session.execute(
            compose(
                "GRANT USAGE ON SCHEMA {schemas} TO {role}; GRANT SELECT ON {tables} TO {role}",
                schemas=identifiers(sorted({schema for schema, _name in lacking})),
                tables=listed([identifier(*key) for key in lacking]),
                role=identifier(role),
            )
        )


def _plan(session: Session, role: str, key: Key, label: str) -> None:
    try:
        session.rows(compose("EXPLAIN SELECT * FROM {table}", table=identifier(*key)))
    except ServerRefused as error:
        who = "A role without a mapping of its own" if role.startswith(_ANYBODY[:-3]) else 'Role "{0}"'.format(role)
        raise ServerRefused("{0} can't read {1}. {2}".format(who, label, error), **error.details) from None
