# SPDX-License-Identifier: GPL-3.0-or-later
"""One moment of the source that several sessions read, and locks that keep its tables as they are meanwhile."""

from __future__ import annotations

from typing import Any, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Changed, ServerRefused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
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

    def hold(self, tables: Sequence[tuple[int, str, str]], followed: bool = False) -> None:
        """Lock *tables* (oid, schema, name), and see that the snapshot still shows what they hold.

        A table that was rewritten or truncated after the snapshot looks empty in it, see
        https://www.postgresql.org/docs/current/mvcc-caveats.html. With *followed*, changes since the snapshot come, too, and
        TRUNCATE among them. A rewrite doesn't, but it leaves new versions of the columns' catalog rows.
        """
        if not tables:
            return
        try:
            lock(self.session, tables)
        except ServerRefused as error:
            if error.details.get("sqlstate") != _UNDEFINED:
                raise
            raise Changed(
                "A table was dropped or renamed on the source while the copy began: nothing was copied. {0}".format(
                    error
                )
            ) from None
        oids = [oid for oid, _schema, _name in tables]
        current = {
            row.oid
            for row in self.session.rows(
                "SELECT oid FROM pg_class WHERE oid = ANY(%s)"
                " AND (relkind <> 'r' OR relfilenode = pg_relation_filenode(oid))",
                [oids],
            )
        }
        if followed and len(current) < len(tables):
            current |= self._as_defined([oid for oid in oids if oid not in current])
        rewritten = [quoted(schema, name) for oid, schema, name in tables if oid not in current]
        if rewritten:
            raise Changed(
                "{0} changed on the source while the copy began, by TRUNCATE or a rewrite: nothing was copied.".format(
                    enumerate_names(rewritten)
                )
            )

    def _as_defined(self, oids: Sequence[int]) -> set[int]:
        """Which tables have the columns now that the snapshot shows, untouched."""
        query = (
            "SELECT c.oid, c.relam, array_agg(a.attnum || ':' || a.xmin ORDER BY a.attnum)::text AS columns"
            " FROM pg_class AS c LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid WHERE c.oid = ANY(%s) GROUP BY 1, 2"
        )
        with Session(self.session.endpoint) as present:
            now = {tuple(row) for row in present.rows(query, [list(oids)])}
        return {row.oid for row in self.session.rows(query, [list(oids)]) if tuple(row) in now}

    def release(self) -> None:
        """End the transaction: the source may clean up rows again."""
        self.session.close()


def lock(session: Session, tables: Sequence[tuple[int, str, str]]) -> None:
    """Have the transaction of *session* keep *tables* (oid, schema, name) from being rewritten, truncated or dropped."""
    names = listed([compose("ONLY {name}", name=identifier(schema, name)) for _oid, schema, name in tables])
    session.execute(compose("LOCK TABLE {names} IN ACCESS SHARE MODE", names=names))


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
