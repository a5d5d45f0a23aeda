# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether UPDATE and DELETE on a table still work on the publisher once the table is published.

The rules are PostgreSQL's own, from https://www.postgresql.org/docs/current/logical-replication-publication.html,
logical-replication-row-filter.html and logical-replication-col-lists.html: such a statement fails when the table has no
replica identity, when the row filter uses a column outside of it, or when the column list leaves out a part of it.
"""

from __future__ import annotations

from typing import Any, Iterable, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    Change,
    compose,
    enumerate_names,
    identifier,
    quoted,
)


class Identity(NamedTuple):
    """A table's replica identity."""

    schema: str
    name: str
    kind: str
    """pg_class.relreplident: C(d)efault, C(n)othing, C(f)ull, C(i)ndex"""
    columns: tuple[str, ...]
    """The columns by which a row is known; empty when there are none."""

    @property
    def label(self) -> str:
        return quoted(self.schema, self.name)


class Fault(NamedTuple):
    """Why a table's UPDATE and DELETE would fail, and whether REPLICA IDENTITY FULL would heal it."""

    identity: Identity
    reason: str
    healed_by_full: bool


def read(session: Session, oids: Sequence[int]) -> dict[int, Identity]:
    """The replica identities of the tables *oids* that hold rows; partitioned tables themselves hold none."""
    return {
        row.oid: Identity(row.schema, row.name, row.kind, tuple(row.columns))
        for row in session.rows(
            "SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relreplident AS kind,"
            " array(SELECT a.attname::text FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum > 0"
            "  AND NOT a.attisdropped AND (c.relreplident = 'f' OR EXISTS (SELECT FROM pg_index AS i"
            "   WHERE i.indrelid = c.oid AND a.attnum = ANY(i.indkey) AND i.indisvalid AND i.indimmediate"
            "   AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident END))) AS columns"
            " FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " WHERE c.oid = ANY(%s) AND c.relkind = 'r'",
            [list(oids)],
        )
    }


def fault(identity: Identity, columns: Iterable[str] | None, filter_columns: Iterable[str]) -> Fault | None:
    """What is wrong with publishing UPDATE or DELETE of a table with this column list and row filter, or None."""
    if not identity.columns:
        reason = (
            "no primary key"
            if identity.kind == "d"
            else "REPLICA IDENTITY NOTHING"
            if identity.kind == "n"
            else "its index is gone"
        )
        return Fault(identity, "has no replica identity ({0})".format(reason), columns is None)
    outside = set(filter_columns) - set(identity.columns)
    if outside:
        words = "has a row filter on {0}, not in its replica identity".format(enumerate_names(map(quoted, outside)))
        return Fault(identity, words, columns is None)
    unlisted = set(identity.columns) - set(identity.columns if columns is None else columns)
    if unlisted:
        words = "has a column list without {0} of its replica identity".format(enumerate_names(map(quoted, unlisted)))
        return Fault(identity, words, False)
    return None


def full(identity: Identity) -> Change:
    """Give a table REPLICA IDENTITY FULL."""
    return Change(
        compose("ALTER TABLE {table} REPLICA IDENTITY FULL", table=identifier(identity.schema, identity.name)),
        "Set replica identity of {0} to full".format(identity.label),
    )


def refusal(faults: Sequence[Fault]) -> str:
    """One sentence for all *faults*."""
    named = [("{0} {1}".format(each.identity.label, each.reason)) for each in faults]
    remedy = "Give it a primary key or a replica identity, publish only insert and truncate"
    if all(each.healed_by_full for each in faults):
        remedy += ", or allow replica_identity: full"
    return "UPDATE and DELETE would fail on the primary once published: {0}. {1}.".format(
        "; ".join(named[:10]) + ("; and {0} more".format(len(named) - 10) if len(named) > 10 else ""), remedy
    )


def as_result(faults: Sequence[Fault]) -> list[dict[str, Any]]:
    """The faults as a return value."""
    return [{"name": each.identity.label, "reason": each.reason} for each in faults]
