# SPDX-License-Identifier: GPL-3.0-or-later
"""Values that the upstream's rows got from a default that was computed once, such as C(now()), when a column was added."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    compose,
    literal,
    quoted,
    raw,
)

SHOWN = "(the value at the source)"


def _mark(pin: Mapping[str, str]) -> str:
    """A pin's mark as the literal that stands in statements."""
    return "'{0}'".format(pin["mark"].replace("'", "''"))


def shown(sql: str, pins: Sequence[Mapping[str, str]]) -> str:
    """*sql* for people."""
    for pin in pins:
        sql = sql.replace(_mark(pin), SHOWN)
    return sql


def resolved(
    params: Mapping[str, Any], session: Session, statements: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """*statements* with the values of the source in place of marks."""
    pins = [pin for pin in params["pins"] if any(_mark(pin) in (each["sql"] or "") for each in statements)]
    if not pins:
        return [dict(each) for each in statements]
    if not params["source"]:
        raise Refused("source is needed: it says which values the new columns have there.")
    with Session(Endpoint.from_source(params["source"])) as source:
        values = {_mark(pin): _value(source, session, pin) for pin in pins}
    result = []
    for each in statements:
        sql = each["sql"]
        for mark, value in values.items():
            sql = sql and sql.replace(mark, value)
        result.append({**each, "sql": sql})
    return result


def _value(source: Session, session: Session, pin: Mapping[str, str]) -> str:
    """The value as a literal. A column that was added without rewriting keeps it in pg_attribute, in each partition, see
    https://www.postgresql.org/docs/current/catalog-pg-attribute.html."""
    rows = source.rows(
        "WITH root AS (SELECT to_regclass(%s)::oid AS oid), tables AS (SELECT oid FROM root UNION"
        " SELECT t.relid::oid FROM root, pg_partition_tree(root.oid) AS t)"
        " SELECT DISTINCT (a.attmissingval::text::text[])[1] AS value FROM tables"
        " JOIN pg_attribute AS a ON a.attrelid = tables.oid WHERE a.attname = %s AND NOT a.attisdropped AND a.atthasmissing",
        [pin["table"], pin["column"]],
    )
    if len(rows) == 1:
        return session.text_of(literal(rows[0].value))
    table = source.value("SELECT to_regclass(%s)::text", [pin["table"]])
    if table and not rows and not source.value(compose("SELECT EXISTS (SELECT FROM {table})", table=raw(table))):
        return "NULL"
    raise Refused(
        "Which value the rows of {0} got for column {1} can't be read at the source any more, because the table was rewritten: "
        "add the column here with that value by hand, and give this schema change up.".format(
            pin["table"], quoted(pin["column"])
        )
    )
