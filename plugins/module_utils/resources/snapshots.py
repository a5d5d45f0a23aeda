# SPDX-License-Identifier: GPL-3.0-or-later
"""Local tables that are filled from the source: which are due, how they are filled, and how they take their place."""

from __future__ import annotations

import datetime
import json
from typing import Any, Collection, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused, ServerRefused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    check_name,
    compose,
    enumerate_names,
    expression,
    identifier,
    identifiers,
    quoted,
    raw,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import tables
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.foreign_imports import (
    Item,
    refuse_schema,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.foreign_ledger import SNAPSHOT, Thing
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.schedule import Key


class Wanted(NamedTuple):
    """An entry of C(snapshots)."""

    into: Key
    relation: Key | None
    rows: Any
    """the relation, or the query of somebody's, as a query; psycopg2.sql.Composable"""
    item: Item | None
    """the foreign table that the rows come from straight, or None when the query has to run"""
    where: str | None
    as_float8: bool
    indexes: tuple[tuple[str, ...], ...]
    always: bool
    max_age: int
    definition: str = ""
    """all that the rows depend on, to be remembered"""

    @property
    def label(self) -> str:
        return quoted(*self.into)

    @property
    def query(self) -> Any:
        """What the target would run."""
        if self.where is None:
            return self.rows
        return compose("{rows} WHERE {where}", rows=self.rows, where=expression(self.where))


class Verdict(NamedTuple):
    """Whether a snapshot is to be filled, and why."""

    wanted: Wanted
    due: bool
    reason: str


def refuse_entries(entries: Sequence[Mapping[str, Any]]) -> None:
    """Refuse entries of C(snapshots) that no server could make sense of."""
    for entry in entries:
        label = entry["into"]
        if (entry["relation"] is None) == (entry["query"] is None):
            raise Refused("snapshots: {0} needs either relation or query.".format(label))
        if entry["query"] is not None and entry["where"] is not None:
            raise Refused("snapshots: {0} has where beside query: write the condition into the query.".format(label))
        if entry["where"] is not None and not entry["where"].strip():
            raise Refused("snapshots: where of {0} must be an SQL condition.".format(label))
        if entry["max_age"] < 0:
            raise Refused(
                "snapshots: max_age of {0} is {1}: seconds can't be negative.".format(label, entry["max_age"])
            )
        if not all(columns and all(isinstance(name, str) for name in columns) for columns in entry["indexes"]):
            raise Refused("snapshots: indexes of {0} must be lists of at least one column name.".format(label))


def parse(
    session: Session, entries: Sequence[Mapping[str, Any]], items: Sequence[Item], drift: Collection[Key]
) -> list[Wanted]:
    """The C(snapshots) of the options; refuses what can't be filled. *session* is in the transaction that made *items*; those in
    *drift* are not like the source's tables, so that their rows can't come straight from these."""
    into = tables.parse_names(session, [entry["into"] for entry in entries])
    twice = {quoted(*key) for key in into if into.count(key) > 1}
    if twice:
        raise Refused("snapshots: {0} is filled by more than one entry.".format(enumerate_names(twice)))
    by_key = {item.key: item for item in items}
    wanted = [_checked(session, _parse(session, key, entry, by_key), entry) for key, entry in zip(into, entries)]
    return [each._replace(item=None) if each.item and each.item.key in drift else each for each in wanted]


def _parse(session: Session, into: Key, entry: Mapping[str, Any], items: Mapping[Key, Item]) -> Wanted:
    label = quoted(*into)
    refuse_schema(into[0])
    check_name("table", into[1])
    item, relation = None, None
    rows = expression(entry["query"] or "")
    if entry["relation"] is not None:
        relation = tables.parse_names(session, [entry["relation"]])[0]
        item = items.get(relation)
        if relation == into or any(definition.key == into for definition in (item.definitions if item else ())):
            raise Refused("snapshots: {0} can't be filled from itself.".format(label))
        rows = compose("SELECT * FROM {relation}", relation=identifier(*relation))
    return Wanted(
        into,
        relation,
        rows,
        item,
        entry["where"],
        entry["numeric_to_float8"],
        tuple(tuple(columns) for columns in entry["indexes"]),
        entry["refresh"] == "always",
        entry["max_age"],
    )


def _checked(session: Session, wanted: Wanted, entry: Mapping[str, Any]) -> Wanted:
    """*wanted* with its definition, once the target has understood its query, and indexes could be built."""
    session.execute("SET LOCAL search_path = {0}".format(session.path_for_users))
    try:
        columns = _try(session, wanted)
    except ServerRefused as error:
        raise Refused("snapshots: {0} can't be filled: {1}".format(wanted.label, error), **error.details) from None
    session.execute("SET LOCAL search_path = pg_catalog")
    relation = tables.parse_names(session, [entry["relation"]]) if entry["relation"] is not None else None
    asked = [relation, *[entry[name] for name in ("where", "query", "numeric_to_float8", "indexes")]]
    source = [wanted.item.request, wanted.item.table.remote] if wanted.item else None
    return wanted._replace(definition=json.dumps([asked, source, columns]))


def _try(session: Session, wanted: Wanted) -> list[tuple[str, str]]:
    """(name, type) of what the query returns, which isn't run for it."""
    with session.undone():
        if wanted.relation is None:
            session.refuse_more_than_queries([wanted.query])
        session.execute(compose("CREATE TEMP TABLE pgml_probe AS {query} WITH NO DATA", query=wanted.rows))
        rows = session.rows(
            "SELECT attname AS name, format_type(atttypid, atttypmod) AS type FROM pg_attribute"
            " WHERE attrelid = 'pg_temp.pgml_probe'::regclass AND attnum > 0 ORDER BY attnum"
        )
        if wanted.relation is not None and wanted.where is not None:
            session.refuse_more_than_queries(_conditions(wanted.relation, wanted.where))
        _refuse_unknown_columns(wanted, [row.name for row in rows])
        for columns in wanted.indexes:
            session.execute(compose("CREATE INDEX ON pg_temp.pgml_probe ({columns})", columns=identifiers(columns)))
    return [(row.name, row.type) for row in rows]


def _conditions(relation: Key, where: str) -> list[Any]:
    """Queries that the server takes both when *where* is one expression, which can't leave an array's brackets."""
    rows = compose("FROM pg_temp.pgml_probe AS {name}", name=identifier(relation[1]))
    return [
        compose("SELECT ARRAY[{where}\n] {rows}", where=raw(where), rows=rows),
        compose("SELECT {rows} WHERE {where}", where=expression(where), rows=rows),
    ]


def _refuse_unknown_columns(wanted: Wanted, names: Sequence[str]) -> None:
    unknown = {name for index in wanted.indexes for name in index if name not in names}
    if unknown:
        raise Refused(
            "snapshots: {0} has no column {1} to index; it has {2}.".format(
                wanted.label, enumerate_names(map(quoted, unknown)), enumerate_names(map(quoted, names), 20)
            )
        )


def judge(session: Session, wanted: Sequence[Wanted], remembered: Mapping[Any, Thing]) -> list[Verdict]:
    """Which of *wanted* are to be filled now; refuses tables that are none of ours."""
    now = session.value("SELECT clock_timestamp()")
    taken = [each for each in wanted if (SNAPSHOT, *each.into) not in remembered and _exists(session, each.into)]
    if taken:
        raise Refused(
            "snapshots: {0} {1} there already and no snapshot of this server: choose another name.".format(
                enumerate_names(each.label for each in taken), "is" if len(taken) == 1 else "are"
            )
        )
    return [_judge(each, remembered.get((SNAPSHOT, *each.into)), now) for each in wanted]


def _exists(session: Session, key: Key) -> bool:
    return bool(
        session.value(
            "SELECT EXISTS (SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " WHERE n.nspname = %s AND c.relname = %s)",
            list(key),
        )
    )


def _judge(wanted: Wanted, thing: Thing | None, now: datetime.datetime) -> Verdict:
    if thing is None:
        return Verdict(wanted, True, "it is missing")
    if thing.definition != wanted.definition:
        return Verdict(wanted, True, "it is asked for in another way, or its source's columns have changed")
    if wanted.always:
        return Verdict(wanted, True, "refresh is always")
    age = (now - thing.taken_at).total_seconds() if thing.taken_at else None
    if age is None or age > wanted.max_age:
        return Verdict(
            wanted, True, "older than {0} second{1}".format(wanted.max_age, "" if wanted.max_age == 1 else "s")
        )
    return Verdict(
        wanted, False, "not older than {0} second{1}".format(wanted.max_age, "" if wanted.max_age == 1 else "s")
    )


def result_of(verdict: Verdict, thing: Thing | None, seconds: float | None) -> dict[str, Any]:
    """A snapshot as a return value."""
    known = thing is not None and not (verdict.due and seconds is None)
    return {
        "name": verdict.wanted.label,
        "rows": thing.rows if thing and known else None,
        "taken_at": thing.taken_at.isoformat() if thing and known and thing.taken_at else None,
        "refreshed": verdict.due,
        "reason": verdict.reason,
        "seconds": seconds,
    }
