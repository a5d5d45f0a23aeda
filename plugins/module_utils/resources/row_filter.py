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
    listed,
    sequence,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.tables import Table

_SCRATCH = "pgml_distributed_scratch"
"""A schema and a publication that are only ever seen by the transaction that makes them and rolls them back."""

FILTER_COLUMNS = (
    "array(SELECT a.attname::text FROM pg_attribute AS a WHERE a.attrelid = pr.prrelid AND a.attnum IN"
    " (SELECT m[1]::int2 FROM regexp_matches(pr.prqual::text, ':varattno ([0-9]+)', 'g') AS m))"
)
"""The columns that pg_publication_rel.prqual uses. pg_depend doesn't tell them from those of a column list."""

_SPELLED = (
    "SELECT c.relname AS name, pg_get_expr(pr.prqual, pr.prrelid) AS filter, " + FILTER_COLUMNS + " AS columns"
    " FROM pg_publication AS p JOIN pg_publication_rel AS pr ON pr.prpubid = p.oid"
    " JOIN pg_class AS c ON c.oid = pr.prrelid WHERE p.pubname = %s"
)


def spelled_by_server(
    session: Session, filtered: Mapping[tuple[str, str], Table]
) -> dict[tuple[str, str], tuple[str, frozenset[str]]]:
    """The row filters of tables in the server's spelling, and the columns they use.

    Empty tables of the same shape are published with these filters, in a transaction that is rolled back. It takes no lock
    on the tables themselves but ACCESS SHARE, and the server refuses what no row filter may hold.
    """
    result: dict[tuple[str, str], tuple[str, frozenset[str]]] = {}
    for tables in _without_namesakes(filtered.values()):
        try:
            rows = _ask(session, list(tables.values()))
        except ServerRefused:
            _name_culprit(session, tables.values())
            raise
        for row in rows:
            result[tables[row.name].key] = (row.filter, frozenset(row.columns))
    return result


def _without_namesakes(tables: Iterable[Table]) -> list[dict[str, Table]]:
    """*tables* by name, in as many groups as it takes, because one schema is to hold a group's copies."""
    groups: list[dict[str, Table]] = []
    for table in tables:
        group = next((each for each in groups if table.name not in each), None)
        if group is None:
            group = {}
            groups.append(group)
        group[table.name] = table
    return groups


def _ask(session: Session, tables: Sequence[Table]) -> list[Any]:
    members = [compose("ONLY {copy} WHERE {filter}", **_parts(table)) for table in tables]
    with session.transaction(commit=False):
        session.execute(compose("CREATE SCHEMA {scratch}", scratch=identifier(_SCRATCH)))
        session.execute(sequence(compose("CREATE TABLE {copy} (LIKE {table})", **_parts(table)) for table in tables))
        session.refuse_more_than_queries(
            [compose("SELECT FROM ONLY {copy} WHERE {filter}", **_parts(table)) for table in tables]
        )
        session.execute(
            compose(
                "CREATE PUBLICATION {scratch} FOR TABLE {members}",
                scratch=identifier(_SCRATCH),
                members=listed(members),
            )
        )
        return session.rows(_SPELLED, [_SCRATCH])


def _parts(table: Table) -> dict[str, Any]:
    return {
        "copy": identifier(_SCRATCH, table.name),
        "table": identifier(*table.key),
        "filter": expression(table.where or ""),
    }


def _name_culprit(session: Session, tables: Iterable[Table]) -> None:
    for table in tables:
        try:
            _ask(session, [table])
        except ServerRefused as error:
            raise Refused(
                "The row filter of {0} can't be published: {1} A filter is one condition on columns by their plain "
                "names.".format(table.label, error)
            ) from None
