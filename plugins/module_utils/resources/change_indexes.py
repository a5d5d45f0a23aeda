# SPDX-License-Identifier: GPL-3.0-or-later
"""Indexes that are built or dropped concurrently, which no transaction can take back when it is interrupted."""

from __future__ import annotations

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import compose, identifier


def validity(session: Session, index: str) -> bool | None:
    """Whether an index, named with its schema as in SQL, is valid; None when there is none."""
    found = session.value("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)", [index])
    return None if found is None else bool(found)


def drop_invalid(session: Session, index: str) -> None:
    """Drop what an interrupted build has left, which queries don't use and writers pay for."""
    if validity(session, index) is False:
        row = session.row(
            "SELECT n.nspname AS schema, c.relname AS name FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " WHERE c.oid = to_regclass(%s)",
            [index],
        )
        session.execute(compose("DROP INDEX CONCURRENTLY {index}", index=identifier(row.schema, row.name)))
