# SPDX-License-Identifier: GPL-3.0-or-later
"""The privileges of the distributor in one database: SELECT on what is distributed, USAGE on its schemas, no more."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    Change,
    check_name,
    compose,
    enumerate_names,
    identifier,
    identifiers,
    listed,
    quoted,
    raw,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import tables
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.tables import Table
from ansible_collections.postgresml.distributed.plugins.module_utils.task import Task

OPTIONS: dict[str, Any] = {
    "role": {"type": "str", "required": True},
    "tables": {"type": "list", "elements": "raw", "default": []},
    "schemas": {"type": "list", "elements": "str", "default": []},
    "all_tables": {"type": "bool", "default": False},
    "foreign": {
        "type": "dict",
        "default": {},
        "options": {
            "tables": {"type": "list", "elements": "raw", "default": []},
            "schemas": {"type": "list", "elements": "str", "default": []},
            "all_tables": {"type": "bool", "default": False},
        },
    },
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}


class Grants(NamedTuple):
    """What a role was granted by name in one database. Relations are (schema, name) pairs."""

    readable: frozenset[tuple[str, str]] = frozenset()
    usable: frozenset[str] = frozenset()
    other: frozenset[tuple[str, str]] = frozenset()
    """relations on which the role holds more than SELECT: sequences, columns, and the right to grant count as that"""
    more_than_usable: frozenset[str] = frozenset()
    """schemas on which it holds more than USAGE"""
    views: frozenset[tuple[str, str]] = frozenset()
    """of those that are readable, what is no table"""

    def as_result(self) -> dict[str, Any]:
        return {
            "select": sorted(quoted(*key) for key in self.readable),
            "usage": sorted(self.usable),
        }


def manage(task: Task) -> None:
    """Bring the role's privileges in the database of the login options to what the options name."""
    params = task.params
    check_name("role", params["role"])
    session = task.session_or_none()
    with session or contextlib.nullcontext():
        if session:
            with task.lenient():
                _bring(task, session)
                return
        if params["state"] == "present":
            task.note('Let "{0}" read what there is by then'.format(params["role"]))


def _bring(task: Task, session: Session) -> None:
    params = task.params
    current = read(session, params["role"])
    wanted = Grants() if params["state"] == "absent" else _wanted(session, params)
    task.describe(current.as_result(), wanted.as_result())
    task.result["grants"] = wanted.as_result()
    task.apply(session, plan(params["role"], current, wanted))


def read(session: Session, role: str) -> Grants:
    """The privileges granted to *role* by name; a role that doesn't exist has none."""
    relations = session.rows(
        "WITH grantee AS (SELECT oid FROM pg_roles WHERE rolname = %s), acls AS ("
        " SELECT oid AS relation, relacl AS acl, '' AS suffix FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'S')"
        " UNION ALL SELECT attrelid, attacl, ' of a column' FROM pg_attribute WHERE attacl IS NOT NULL)"
        " SELECT n.nspname AS schema, c.relname AS name, array_agg(a.privilege_type || acls.suffix"
        "  || CASE WHEN a.is_grantable THEN ' to grant' ELSE '' END || CASE c.relkind WHEN 'S' THEN ' of a sequence' ELSE '' END)"
        "  AS privileges FROM acls, grantee, pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace,"
        " aclexplode(acls.acl) AS a WHERE c.oid = acls.relation AND a.grantee = grantee.oid GROUP BY 1, 2",
        [role],
    )
    schemas = session.rows(
        "SELECT n.nspname AS schema,"
        "  array_agg(a.privilege_type || CASE WHEN a.is_grantable THEN ' to grant' ELSE '' END) AS privileges"
        " FROM pg_namespace AS n, aclexplode(n.nspacl) AS a"
        " WHERE a.grantee = (SELECT oid FROM pg_roles WHERE rolname = %s) GROUP BY 1",
        [role],
    )
    return Grants(
        readable=frozenset((row.schema, row.name) for row in relations if "SELECT" in row.privileges),
        usable=frozenset(row.schema for row in schemas if "USAGE" in row.privileges),
        other=frozenset((row.schema, row.name) for row in relations if set(row.privileges) != {"SELECT"}),
        more_than_usable=frozenset(row.schema for row in schemas if set(row.privileges) != {"USAGE"}),
    )


def _wanted(session: Session, params: Any) -> Grants:
    requests = tables.parse_requests(params["tables"]) or []
    once = dict(zip(tables.parse_names(session, [request.name for request in requests]), requests))
    found = tables.resolve(session, list(once.values()))
    found += tables.in_schemas(session, params["schemas"]) if params["schemas"] else []
    found = tables.in_schemas(session, None) if params["all_tables"] else tables.with_partitions(session, found)
    found += _read_through_foreign_tables(session, params["foreign"])
    keys = frozenset(table.key for table in found)
    schemas = frozenset([*params["schemas"], *params["foreign"]["schemas"]])
    views = frozenset(table.key for table in found if table.kind not in ("r", "p"))
    return Grants(readable=keys, usable=frozenset(schema for schema, name in keys) | schemas, views=views)


def _read_through_foreign_tables(session: Session, foreign: Any) -> list[Table]:
    """Without partitions, which are read with the privileges on their table."""
    names = [request.name for request in tables.parse_requests(foreign["tables"]) or []]
    keys = list(dict.fromkeys(tables.parse_names(session, names)))
    return tables.importable(session, keys, foreign["schemas"], foreign["all_tables"])


def plan(role: str, current: Grants, wanted: Grants) -> list[Change]:
    """The statements from *current* to *wanted*: first what goes, then what comes."""
    grantee = identifier(role)
    changes = []
    gone = (current.readable - wanted.readable) | current.other
    if gone:
        changes.append(
            _change(
                "REVOKE ALL ON TABLE {names} FROM {role}",
                _relations(gone),
                grantee,
                'Revoke all on {0} from "{1}"',
                map(_label, gone),
                role,
            )
        )
    schemas = (current.usable - wanted.usable) | current.more_than_usable
    if schemas:
        changes.append(
            _change(
                "REVOKE ALL ON SCHEMA {names} FROM {role}",
                identifiers(sorted(schemas)),
                grantee,
                'Revoke all on schema {0} from "{1}"',
                map(quoted, schemas),
                role,
            )
        )
    new_schemas = (wanted.usable - current.usable) | (wanted.usable & schemas)
    if new_schemas:
        changes.append(
            _change(
                "GRANT USAGE ON SCHEMA {names} TO {role}",
                identifiers(sorted(new_schemas)),
                grantee,
                'Grant usage on schema {0} to "{1}"',
                map(quoted, new_schemas),
                role,
            )
        )
    new = (wanted.readable - current.readable) | (wanted.readable & gone)
    if new:
        # A TRUNCATE meanwhile would make GRANT fail with "tuple concurrently updated".
        locked = new - wanted.views
        lock = compose("LOCK TABLE {names} IN ACCESS SHARE MODE; ", names=_relations(locked)) if locked else raw("")
        changes.append(
            _change(
                "{lock}GRANT SELECT ON TABLE {names} TO {role}",
                _relations(new),
                grantee,
                'Grant select on {0} to "{1}"',
                map(_label, new),
                role,
                lock=lock,
            )
        )
    return changes


def _change(template: str, names: Any, grantee: Any, words: str, labels: Any, role: str, **parts: Any) -> Change:
    return Change(compose(template, names=names, role=grantee, **parts), words.format(enumerate_names(labels), role))


def _relations(keys: Any) -> Any:
    return listed([identifier(*key) for key in sorted(keys)])


def _label(key: Sequence[str]) -> str:
    return quoted(*key)
