# SPDX-License-Identifier: GPL-3.0-or-later
"""The local roles that may read what comes from a foreign server."""

from __future__ import annotations

from typing import Any, Collection, Iterable, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    Change,
    arrays,
    compose,
    enumerate_names,
    identifier,
    identifiers,
    listed,
    quoted,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import foreign_ledger
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.foreign_ledger import READER, Thing
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.schedule import Key


def plan(
    session: Session,
    roles: Sequence[str],
    keys: Sequence[Key],
    remembered: Iterable[Thing],
    shared: Collection[foreign_ledger.Key],
) -> tuple[list[Change], list[Thing]]:
    """What gives *roles* the relations *keys* and takes them from those *remembered* that are not among them any more; and what
    to remember of it. Other servers need what is *shared* with them."""
    schemas = sorted({schema for schema, _name in keys})
    known = [thing for thing in remembered if thing.kind == READER]
    changes: list[Change] = []
    things = []
    for thing in known:
        if thing.name not in roles:
            changes += _plan_no_tables(session, thing.name, keys) if not thing.schema else []
        if thing.schema and (thing.name not in roles or thing.schema not in schemas) and thing.key not in shared:
            changes.append(_plan_no_schema(thing))
    for role in dict.fromkeys(roles):
        closed = _without_usage(session, role, schemas)
        entered = [thing.schema for thing in known if thing.name == role and thing.schema in schemas]
        entered += [schema for schema in schemas if (READER, schema, role) in shared]
        things += [Thing(READER, schema, role) for schema in dict.fromkeys(["", *entered, *closed])]
        changes += _plan_grant(role, closed, _unreadable(session, role, keys))
    return changes, things


def _plan_grant(role: str, schemas: Sequence[str], keys: Sequence[Key]) -> list[Change]:
    changes = []
    if schemas:
        statement = compose(
            "GRANT USAGE ON SCHEMA {schemas} TO {role}", schemas=identifiers(schemas), role=identifier(role)
        )
        words = 'Let "{0}" use schema {1}'.format(role, enumerate_names(map(quoted, schemas)))
        changes.append(Change(statement, words))
    if keys:
        statement = compose(
            "GRANT SELECT ON {names} TO {role}", names=listed([identifier(*key) for key in keys]), role=identifier(role)
        )
        words = 'Let "{0}" read {1}'.format(role, enumerate_names(quoted(*key) for key in keys))
        changes.append(Change(statement, words))
    return changes


def _plan_no_tables(session: Session, role: str, keys: Sequence[Key]) -> list[Change]:
    unreadable = set(_unreadable(session, role, keys))
    readable = [key for key in keys if key not in unreadable]
    if not readable:
        return []
    names: Any = listed([identifier(*key) for key in readable])
    statement = compose("REVOKE SELECT ON {names} FROM {role}", names=names, role=identifier(role))
    return [Change(statement, 'Take {0} from "{1}"'.format(enumerate_names(quoted(*key) for key in readable), role))]


def _plan_no_schema(thing: Thing) -> Change:
    statement = compose(
        "REVOKE USAGE ON SCHEMA {schema} FROM {role}", schema=identifier(thing.schema), role=identifier(thing.name)
    )
    return Change(statement, 'Take schema {0} from "{1}"'.format(quoted(thing.schema), thing.name))


def plan_leaving(session: Session, remembered: Iterable[Thing], shared: Collection[foreign_ledger.Key]) -> list[Change]:
    """What takes from the readers the schemas that stay and that no other server gave them."""
    places = [thing for thing in remembered if thing.kind == READER and thing.schema and thing.key not in shared]
    query = "SELECT nspname FROM pg_namespace WHERE nspname = ANY(%s)"
    there = {row.nspname for row in session.rows(query, [[thing.schema for thing in places]])}
    return [_plan_no_schema(thing) for thing in places if thing.schema in there]


def _unreadable(session: Session, role: str, keys: Sequence[Key]) -> list[Key]:
    """Those of the relations *keys* that are there, and that *role* neither owns nor was given SELECT on."""
    return [
        (row.schema, row.name)
        for row in session.rows(
            "SELECT n.nspname AS schema, c.relname AS name FROM unnest(%s::text[], %s::text[]) AS w(schema, name)"
            " JOIN pg_namespace AS n ON n.nspname = w.schema"
            " JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = w.name"
            " JOIN pg_roles AS r ON r.rolname = %s"
            " WHERE c.relowner <> r.oid AND NOT EXISTS (SELECT FROM aclexplode(c.relacl) AS a"
            "  WHERE a.grantee = r.oid AND a.privilege_type = 'SELECT') ORDER BY 1, 2",
            [*arrays(keys), role],
        )
    ]


def _without_usage(session: Session, role: str, schemas: Sequence[str]) -> list[str]:
    return [
        row.nspname
        for row in session.rows(
            "SELECT n.nspname FROM pg_namespace AS n JOIN pg_roles AS r ON r.rolname = %s"
            " WHERE n.nspname = ANY(%s) AND n.nspowner <> r.oid AND NOT EXISTS (SELECT FROM aclexplode(n.nspacl) AS a"
            "  WHERE a.grantee = r.oid AND a.privilege_type = 'USAGE') ORDER BY 1",
            [role, list(schemas)],
        )
    ]
