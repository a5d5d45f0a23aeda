# SPDX-License-Identifier: GPL-3.0-or-later
"""The local roles that may read what comes from a foreign server."""

from __future__ import annotations

from typing import Collection, Iterable, Mapping, NamedTuple, Sequence, Tuple

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


class Given(NamedTuple):
    """What roles have been given by name; what they own, they need not be given."""

    select: frozenset[Tuple[str, Key]]
    """(role, relation)"""
    usage: frozenset[Tuple[str, str]]
    """(role, schema)"""
    owned: frozenset[Tuple[str, Key]]
    own_schemas: frozenset[Tuple[str, str]]
    there: frozenset[Key]
    """the relations that exist"""


def read(session: Session, roles: Collection[str], keys: Sequence[Key]) -> Given:
    """What *roles* have of the relations *keys* and of their schemas."""
    relations = session.rows(
        "SELECT n.nspname AS schema, c.relname AS name, pg_get_userbyid(c.relowner) AS owner, array("
        "  SELECT pg_get_userbyid(a.grantee)::text FROM aclexplode(c.relacl) AS a"
        "  WHERE a.privilege_type = 'SELECT' AND pg_get_userbyid(a.grantee) = ANY(%s)) AS readers"
        " FROM unnest(%s::text[], %s::text[]) AS w(schema, name) JOIN pg_namespace AS n ON n.nspname = w.schema"
        " JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = w.name",
        [list(roles), *arrays(keys)],
    )
    schemas = session.rows(
        "SELECT n.nspname AS name, pg_get_userbyid(n.nspowner) AS owner, array("
        "  SELECT pg_get_userbyid(a.grantee)::text FROM aclexplode(n.nspacl) AS a"
        "  WHERE a.privilege_type = 'USAGE' AND pg_get_userbyid(a.grantee) = ANY(%s)) AS readers"
        " FROM pg_namespace AS n WHERE n.nspname = ANY(%s)",
        [list(roles), list({schema for schema, _name in keys})],
    )
    return Given(
        frozenset((role, (row.schema, row.name)) for row in relations for role in row.readers),
        frozenset((role, row.name) for row in schemas for role in row.readers),
        frozenset((row.owner, (row.schema, row.name)) for row in relations),
        frozenset((row.owner, row.name) for row in schemas),
        frozenset((row.schema, row.name) for row in relations),
    )


def plan(
    given: Given,
    roles: Mapping[str, Sequence[Key]],
    remembered: Iterable[Thing],
    shared: Collection[foreign_ledger.Key],
) -> tuple[list[Change], list[Thing]]:
    """What gives *roles* the relations for them, and takes all that was *given* from those *remembered* that are not among
    them any more; and what to remember of it. Other servers need what is *shared* with them."""
    known = [thing for thing in remembered if thing.kind == READER]
    schemas = sorted({schema for keys in roles.values() for schema, _name in keys})
    changes = [
        _plan_no_tables(thing.name, lost)
        for thing in known
        if thing.name not in roles and not thing.schema
        for lost in [sorted(key for role, key in given.select if role == thing.name)]
        if lost
    ]
    changes += [
        _plan_no_schema(thing)
        for thing in known
        if thing.schema and (thing.name not in roles or thing.schema not in schemas) and thing.key not in shared
    ]
    things = []
    for role, keys in roles.items():
        closed = [each for each in schemas if (role, each) not in given.usage | given.own_schemas]
        entered = [thing.schema for thing in known if thing.name == role and thing.schema in schemas]
        entered += [schema for schema in schemas if (READER, schema, role) in shared]
        things += [Thing(READER, schema, role) for schema in dict.fromkeys(["", *entered, *closed])]
        new = [key for key in keys if key in given.there and (role, key) not in given.select | given.owned]
        changes += _plan_grant(role, closed, sorted(new))
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


def _plan_no_tables(role: str, keys: Sequence[Key]) -> Change:
    names = listed([identifier(*key) for key in keys])
    statement = compose("REVOKE SELECT ON {names} FROM {role}", names=names, role=identifier(role))
    return Change(statement, 'Take {0} from "{1}"'.format(enumerate_names(quoted(*key) for key in keys), role))


def _plan_no_schema(thing: Thing) -> Change:
    statement = compose(
        "REVOKE USAGE ON SCHEMA {schema} FROM {role}", schema=identifier(thing.schema), role=identifier(thing.name)
    )
    return Change(statement, 'Take schema {0} from "{1}"'.format(quoted(thing.schema), thing.name))


def plan_leaving(
    remembered: Iterable[Thing], gone: Collection[str], shared: Collection[foreign_ledger.Key]
) -> list[Change]:
    """What takes from the readers the schemas that are not *gone* and that no other server gave them."""
    return [
        _plan_no_schema(thing)
        for thing in remembered
        if thing.kind == READER and thing.schema and thing.schema not in gone and thing.key not in shared
    ]
