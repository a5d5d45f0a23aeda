# SPDX-License-Identifier: GPL-3.0-or-later
"""Row filters as the server spells them, so that another spelling of the same filter is no change."""

from __future__ import annotations

from typing import Any, Iterable, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused, ServerRefused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    compose,
    expression,
    identifier,
    sequence,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.tables import Table

_SPELLED = (
    "SELECT c.relname AS name, pg_get_expr(k.conbin, k.conrelid) AS filter,"
    " array(SELECT a.attname::text FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum = ANY(k.conkey)) AS columns,"
    " EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum = ANY(k.conkey) AND a.atttypid >= 16384)"
    " OR EXISTS (SELECT FROM pg_depend AS d WHERE d.classid = 'pg_constraint'::regclass AND d.objid = k.oid"
    "  AND d.refclassid <> 'pg_class'::regclass AND d.refobjid >= 16384) AS foreign_to_filters"
    " FROM pg_constraint AS k JOIN pg_class AS c ON c.oid = k.conrelid"
    " WHERE c.relnamespace = pg_my_temp_schema() AND k.conname = 'filter'"
)


def spelled_by_server(
    session: Session, filtered: Mapping[tuple[str, str], Table]
) -> dict[tuple[str, str], tuple[str, frozenset[str]]]:
    """The row filters of tables in the server's spelling, and the columns they use.

    Each becomes a CHECK constraint of a temporary table of the same shape, in a transaction that is rolled back: that
    takes no lock on the table but ACCESS SHARE. An index shows that the filter is immutable, as a row filter must be, see
    https://www.postgresql.org/docs/current/logical-replication-row-filter.html#LOGICAL-REPLICATION-ROW-FILTER-RESTRICTIONS.
    """
    result: dict[tuple[str, str], tuple[str, frozenset[str]]] = {}
    for tables in _without_namesakes(filtered.values()):
        try:
            rows = _ask(session, list(tables.values()))
        except ServerRefused:
            _name_culprit(session, tables.values())
            raise
        for row in rows:
            if row.foreign_to_filters:
                raise Refused(
                    "The row filter of {0} can't be published: it uses a type, function or operator that is not PostgreSQL's "
                    "own.".format(tables[row.name].label)
                )
            result[tables[row.name].key] = (row.filter, frozenset(row.columns))
    return result


def _without_namesakes(tables: Iterable[Table]) -> list[dict[str, Table]]:
    """*tables* by name, in as many groups as it takes, because temporary tables are all in one schema."""
    groups: list[dict[str, Table]] = []
    for table in tables:
        group = next((each for each in groups if table.name not in each), None)
        if group is None:
            group = {}
            groups.append(group)
        group[table.name] = table
    return groups


def _ask(session: Session, tables: Sequence[Table]) -> list[Any]:
    with session.transaction(commit=False):
        session.execute(sequence([_temporary(table) for table in tables]))
        return session.rows(_SPELLED)


def _temporary(table: Table) -> Any:
    return compose(
        "CREATE TEMPORARY TABLE {temporary} (LIKE {table});"
        " ALTER TABLE {temporary} ADD CONSTRAINT filter CHECK {filter};"
        " CREATE INDEX ON {temporary} ((1)) WHERE {filter}",
        temporary=identifier("pg_temp", table.name),
        table=identifier(*table.key),
        filter=expression(table.where or ""),
    )


def _name_culprit(session: Session, tables: Iterable[Table]) -> None:
    for table in tables:
        try:
            _ask(session, [table])
        except ServerRefused as error:
            raise Refused("The row filter of {0} can't be published: {1}".format(table.label, error)) from None
