# SPDX-License-Identifier: GPL-3.0-or-later
"""What pgml_fdw remembers of a foreign server in the target's database: everything that it made, so that it drops no more."""

from __future__ import annotations

import datetime
from typing import Any, Iterable, Mapping, NamedTuple, Sequence, Tuple

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import raw
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import ledger

SERVER, SCHEMA, TABLE, VIEW, SNAPSHOT, READER = "server", "schema", "table", "view", "snapshot", "reader"
"""Kinds of things. A reader is a role that was given SELECT on tables, and beside a schema one that was given USAGE on that."""
Key = Tuple[str, str, str]
"""(kind, schema or an empty string, name)"""

_TABLE = """
CREATE TABLE IF NOT EXISTS pgml_distributed.foreign_objects (
    server text, kind text, schema_name text, name text,
    relation oid, definition text NOT NULL DEFAULT '', attached text[] NOT NULL DEFAULT '{}', rows bigint, taken_at timestamptz,
    PRIMARY KEY (server, kind, schema_name, name));
COMMENT ON TABLE pgml_distributed.foreign_objects IS 'What pgml_fdw made for a foreign server'
"""


class Thing(NamedTuple):
    """Something that was made for the server."""

    kind: str
    schema: str
    name: str
    definition: str = ""
    """what was asked for"""
    attached: tuple[str, ...] = ()
    """the columns and indexes of a snapshot"""
    rows: int | None = None
    taken_at: datetime.datetime | None = None
    """the moment that a snapshot's rows are of"""

    @property
    def key(self) -> Key:
        return (self.kind, self.schema, self.name)

    @property
    def place(self) -> tuple[str, str]:
        return (self.schema, self.name)


def read(session: Session, server: str) -> dict[Key, Thing]:
    """What was made for *server* and is not known to be gone."""
    if not _exists(session):
        return {}
    things = [
        Thing(row.kind, row.schema_name, row.name, row.definition, tuple(row.attached), row.rows, row.taken_at)
        for row in session.rows(
            "SELECT f.* FROM pgml_distributed.foreign_objects AS f LEFT JOIN pg_namespace AS n ON n.nspname = f.schema_name"
            " WHERE f.server = %s AND CASE f.kind"
            "  WHEN 'server' THEN EXISTS (SELECT FROM pg_foreign_server WHERE srvname = f.server)"
            "  WHEN 'schema' THEN n.oid IS NOT NULL"
            "  WHEN 'reader' THEN (n.oid IS NOT NULL OR f.schema_name = '')"
            "   AND EXISTS (SELECT FROM pg_roles WHERE rolname = f.name)"
            "  ELSE EXISTS (SELECT FROM pg_class AS c WHERE c.relnamespace = n.oid AND c.relname = f.name"
            "   AND c.oid = f.relation AND c.relkind = CASE f.kind WHEN 'table' THEN 'f' WHEN 'view' THEN 'v' ELSE 'r' END) END"
            " ORDER BY f.kind, f.schema_name, f.name",
            [server],
        )
    ]
    return {thing.key: thing for thing in things}


_LOCK = (0x70676D6C, 2)
"""Advisory lock of whoever reads what is remembered to write it anew."""


def lock(session: Session) -> None:
    """Be the only one to change what is remembered until the transaction ends."""
    session.rows("SELECT pg_advisory_xact_lock(%s, %s)", list(_LOCK))


def lock_session(session: Session) -> None:
    """The same until the session ends."""
    session.rows("SELECT pg_advisory_lock(%s, %s)", list(_LOCK))


def shared(session: Session, server: str) -> frozenset[Key]:
    """The schemas that other servers use too, and their readers there."""
    if not _exists(session):
        return frozenset()
    return frozenset(
        (row.kind, row.schema_name, row.name)
        for row in session.rows(
            "SELECT kind, schema_name, name FROM pgml_distributed.foreign_objects"
            " WHERE server <> %s AND kind IN ('schema', 'reader') AND schema_name <> ''",
            [server],
        )
    )


def _exists(session: Session) -> bool:
    return ledger.has(session, "foreign_objects")


def of_kind(things: Mapping[Key, Thing], kind: str) -> list[Thing]:
    return [thing for thing in things.values() if thing.kind == kind]


def write(session: Session, server: str, things: Mapping[Key, Thing]) -> None:
    """Remember *things* and nothing else of *server*, in the transaction that makes it true."""
    for change in ledger.preparation(session):
        session.execute(change.statement)
    session.execute(raw(_TABLE))
    session.execute("DELETE FROM pgml_distributed.foreign_objects WHERE server = %s", [server])
    _insert(session, server, things.values())


def _insert(session: Session, server: str, things: Iterable[Thing]) -> None:
    rows = list(things)
    columns: Sequence[list[Any]] = [list(column) for column in zip(*rows)] or [[]] * len(Thing._fields)
    kinds, schemas, names, definitions, attached, counts, moments = columns
    session.execute(
        "INSERT INTO pgml_distributed.foreign_objects"
        " SELECT %s, kind, schema, name, CASE WHEN kind IN ('table', 'view', 'snapshot')"
        "  THEN format('%%I.%%I', schema, name)::regclass END, definition, string_to_array(attached, chr(1)), rows, taken_at"
        " FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::int8[], %s::timestamptz[])"
        "  AS t(kind, schema, name, definition, attached, rows, taken_at)",
        [server, kinds, schemas, names, definitions, ["\x01".join(each) for each in attached], counts, moments],
    )


def remember(session: Session, server: str, things: Sequence[Thing]) -> None:
    """Remember *things* beside others of *server*, or anew."""
    session.execute(
        "DELETE FROM pgml_distributed.foreign_objects WHERE server = %s AND kind || chr(1) || schema_name || chr(1) || name"
        " = ANY(%s)",
        [server, ["\x01".join(thing.key) for thing in things]],
    )
    _insert(session, server, things)


def forget(session: Session, server: str) -> None:
    """Forget *server*, and drop what nobody needs any more of where it was remembered."""
    if not _exists(session):
        return
    session.execute("DELETE FROM pgml_distributed.foreign_objects WHERE server = %s", [server])
    if session.value("SELECT EXISTS (SELECT FROM pgml_distributed.foreign_objects)"):
        return
    session.execute("DROP TABLE pgml_distributed.foreign_objects")
    if ledger.exists(session) and ledger.holds_only(session, []):
        session.execute(ledger.removal().statement)
