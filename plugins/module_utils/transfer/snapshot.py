# SPDX-License-Identifier: GPL-3.0-or-later
"""One moment of the source that several sessions read, and locks that keep its tables as they are meanwhile."""

from __future__ import annotations

from typing import Any, Sequence, Tuple

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Changed, ServerRefused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    arrays,
    compose,
    enumerate_names,
    identifier,
    listed,
    literal,
    quoted,
    raw,
)

_UNDEFINED = "42P01"
"""undefined_table"""
UNLOCKED, UNLOCK = "SAVEPOINT unlocked", "ROLLBACK TO SAVEPOINT unlocked"
"""A transaction gives the locks back that it took after the first by the second, and keeps its snapshot."""
Extant = Tuple[int, str, str]
"""A table of the source: oid, schema, name"""
BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


def reading_session(endpoint: Endpoint, **settings: str) -> Session:
    """A session that reads long, reads all rows or fails, and waits no longer than usual for a lock."""
    session = Session(endpoint, row_security="off", synchronize_seqscans="off", extra_float_digits="3", **settings)
    session.without_timeouts()
    return session


class Snapshot:
    """A transaction that exports its snapshot, see
    https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-SNAPSHOT-SYNCHRONIZATION.

    *session* is reading_session()'s; it sees the snapshot until release(). With *names* it is one of these.
    """

    def __init__(self, session: Session, names: Sequence[str] = ()) -> None:
        self.session = session
        if names:
            join(session, names)
        else:
            session.execute(BEGIN)
        self.name: str = session.value("SELECT pg_export_snapshot()")

    def hold(self, tables: Sequence[Extant]) -> None:
        """Lock *tables*, and see that the snapshot still shows what they hold."""
        lock(self.session, tables)
        refuse(moved(self.session, tables))

    def release(self) -> None:
        """End the transaction: the source may clean up rows again."""
        self.session.close()


def lock(session: Session, tables: Sequence[Extant], only: bool = True) -> None:
    """Have the transaction of *session* keep *tables* from being rewritten, truncated or dropped; what is below them too, unless
    *only*."""
    if not tables:
        return
    template = "ONLY {name}" if only else "{name}"
    names = listed([compose(template, name=identifier(schema, name)) for _oid, schema, name in tables])
    try:
        session.execute(compose("LOCK TABLE {names} IN ACCESS SHARE MODE", names=names))
    except ServerRefused as error:
        if error.details.get("sqlstate") != _UNDEFINED:
            raise
        raise Changed(
            "A table was dropped or renamed on the source while the copy began: nothing was copied. {0}".format(error)
        ) from None


def moved(session: Session, tables: Sequence[Extant]) -> list[Extant]:
    """Which of *tables*, that somebody has locked, have other files by now than the snapshot of *session* shows. Raises Changed
    when a name is another table's.

    A table that was rewritten or truncated after the snapshot may look empty in it, see
    https://www.postgresql.org/docs/current/mvcc-caveats.html, or has its rows in other places.
    """
    # The functions ask the catalogs of now, and pg_class is read as of the snapshot.
    there = {
        row.oid: row.stays
        for row in session.rows(
            "SELECT c.oid, c.relkind <> 'r' OR c.relfilenode = pg_relation_filenode(c.oid) AS stays"
            " FROM unnest(%s::oid[], %s::text[], %s::text[]) AS w(oid, schema, name)"
            " JOIN pg_class AS c ON c.oid = w.oid WHERE to_regclass(format('%%I.%%I', w.schema, w.name)) = c.oid",
            [[oid for oid, _schema, _name in tables], *arrays([(schema, name) for _oid, schema, name in tables])],
        )
    }
    refuse([table for table in tables if table[0] not in there])
    return [table for table in tables if not there[table[0]]]


def refuse(tables: Sequence[Extant]) -> None:
    """Raise Changed for *tables*."""
    if tables:
        raise Changed(
            "{0} changed on the source while the copy began, by TRUNCATE, a rewrite or another name: nothing was copied.".format(
                enumerate_names(quoted(schema, name) for _oid, schema, name in tables)
            )
        )


def join(session: Session, names: Sequence[str]) -> None:
    """Begin a transaction of *session* that sees an exported snapshot, the first of *names* that still is alive."""
    for number, name in enumerate(names, 1):
        session.execute(BEGIN)
        try:
            session.execute(compose("SET TRANSACTION SNAPSHOT {name}", name=literal(name)))
            return
        except ServerRefused:
            session.execute("ROLLBACK")
            if number == len(names):
                raise


def select(
    schema: str,
    name: str,
    columns: Sequence[str],
    where: str | None,
    first: int = 0,
    end: int | None = None,
    only: bool = True,
) -> Any:
    """The rows of a table, or of a range of its blocks; those of its partitions too, unless *only*."""
    conditions = []
    if first:
        conditions.append(compose("ctid >= {tid}", tid=literal("({0},0)".format(first))))
    if end is not None:
        conditions.append(compose("ctid < {tid}", tid=literal("({0},0)".format(end))))
    if where is not None:
        conditions.append(compose("({where}\n)", where=raw(where)))
    return compose(
        "SELECT {columns} FROM {only}{table}{where}",
        only=raw("ONLY " if only else ""),
        columns=listed([identifier(column) for column in columns]),
        table=identifier(schema, name),
        where=compose(" WHERE {all}", all=raw(" AND ").join(conditions)) if conditions else raw(""),
    )
