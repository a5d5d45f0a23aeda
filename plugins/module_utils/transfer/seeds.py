# SPDX-License-Identifier: GPL-3.0-or-later
"""What a first copy under a slot's snapshot remembers in the target's database until the subscription has caught up."""

from __future__ import annotations

import json
from typing import Any, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    Change,
    arrays,
    compose,
    listed,
    literal,
    quoted,
    raw,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import ledger

REGISTERED, COPY, BUILD, SUBSCRIBED = "registered", "copy", "build", "subscribed"
"""Phases: the slot may be there, rows come, all rows are there, and the subscription too."""

_TABLES = """
CREATE TABLE pgml_distributed.seeds (
    subscription text PRIMARY KEY, slot_name text NOT NULL, publications text[] NOT NULL, source text NOT NULL,
    phase text NOT NULL DEFAULT 'registered', snapshots text[] NOT NULL DEFAULT '{}', keepers integer[] NOT NULL DEFAULT '{}',
    offer jsonb NOT NULL, begins_at pg_lsn, started_at timestamptz NOT NULL DEFAULT clock_timestamp());
COMMENT ON TABLE pgml_distributed.seeds IS 'Subscriptions whose first copy is under way; keepers are processes of the source';
CREATE TABLE pgml_distributed.seed_chunks (
    subscription text NOT NULL REFERENCES pgml_distributed.seeds ON DELETE CASCADE,
    schema_name text NOT NULL, table_name text NOT NULL, source_oid oid NOT NULL, first_block bigint NOT NULL,
    end_block bigint, bytes bigint NOT NULL, whole boolean NOT NULL, alone boolean NOT NULL, rows bigint,
    PRIMARY KEY (subscription, source_oid, first_block));
COMMENT ON TABLE pgml_distributed.seed_chunks IS 'What they consist of; rows is set with the rows themselves';
CREATE TABLE pgml_distributed.seed_steps (
    subscription text NOT NULL REFERENCES pgml_distributed.seeds ON DELETE CASCADE,
    number integer NOT NULL, kind text NOT NULL, schema_name text, table_name text, refers_schema text, refers_name text,
    statement text NOT NULL, PRIMARY KEY (subscription, number));
COMMENT ON TABLE pgml_distributed.seed_steps IS 'Indexes and constraints that were dropped and come back after the rows'
"""


class Seed(NamedTuple):
    """A first copy that has begun."""

    subscription: str
    slot_name: str
    publications: frozenset[str]
    source: str
    """see identity()"""
    phase: str
    snapshots: list[str]
    keepers: list[int]
    offer: dict[str, Any]
    """what is published, see digest()"""
    begins_at: str | None
    """where the slot does, once that is known"""


class SeedChunk(NamedTuple):
    """A part of a table of the source, and the table of the target that it goes to."""

    schema: str
    name: str
    source_oid: int
    first: int
    end: int | None
    bytes: int
    whole: bool
    """whether it is all of the source's table"""
    alone: bool
    """whether nothing else goes to the target's table, so that it can be frozen as it comes"""
    rows: int | None = None
    """None until it is there"""

    @property
    def key(self) -> tuple[str, str]:
        return (self.schema, self.name)


class Step(NamedTuple):
    """A statement that has to run after the rows have come."""

    number: int
    kind: str
    """C(constraint), C(index), C(foreign key), C(late), C(comment) or C(validate)"""
    key: tuple[str, str] | None
    refers: tuple[str, str] | None
    statement: str


def identity(source: Session) -> str:
    """What tells the database of *source* from every other, as long as its slots and snapshots mean anything."""
    return "{0}/{1}".format(source.system_identifier, source.endpoint.keywords.get("dbname"))


def exists(session: Session) -> bool:
    return ledger.has(session, "seeds")


def preparation(session: Session) -> list[Change]:
    """The steps that make the tables, if they are missing."""
    tables = [] if exists(session) else [Change(raw(_TABLES), "Prepare to remember the first copy")]
    return [*ledger.preparation(session), *tables]


def read(session: Session, subscription: str) -> Seed | None:
    if not exists(session):
        return None
    row = session.row(
        "SELECT subscription, slot_name, publications, source, phase, snapshots, keepers, offer,"
        "  begins_at::text FROM pgml_distributed.seeds"
        " WHERE subscription = %s",
        [subscription],
    )
    return row and Seed(*row)._replace(publications=frozenset(row.publications))


def registration(
    subscription: str, slot_name: str, publications: Sequence[str], source: str, offer: Mapping[str, Any]
) -> Change:
    """The step that comes before a slot is created."""
    statement = compose(
        "INSERT INTO pgml_distributed.seeds (subscription, slot_name, publications, source, offer) VALUES ({values})",
        values=listed(
            [literal(value) for value in (subscription, slot_name, list(publications), source, json.dumps(offer))]
        ),
    )
    return Change(statement, 'Register the first copy of subscription "{0}"'.format(subscription))


def begin(session: Session, subscription: str, begins_at: str) -> None:
    """Remember that the slot is there."""
    session.execute(
        "UPDATE pgml_distributed.seeds SET begins_at = %s WHERE subscription = %s", [begins_at, subscription]
    )


def keep(session: Session, subscription: str, snapshots: Sequence[str], keepers: Sequence[int]) -> None:
    """Remember under which names the snapshot can be had, and whose sessions keep it."""
    session.execute(
        "UPDATE pgml_distributed.seeds SET snapshots = %s, keepers = %s WHERE subscription = %s",
        [list(snapshots), list(keepers), subscription],
    )


def others(session: Session, subscription: str, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Which of the tables *keys* the first copies of other subscriptions are filling, and which these are."""
    if not exists(session):
        return {}
    return {
        (row.schema_name, row.table_name): row.subscription
        for row in session.rows(
            "SELECT DISTINCT c.schema_name, c.table_name, c.subscription FROM pgml_distributed.seed_chunks AS c"
            " JOIN pgml_distributed.seeds AS s USING (subscription)"
            " JOIN unnest(%s::text[], %s::text[]) AS w(schema, name) ON w.schema = c.schema_name AND w.name = c.table_name"
            " WHERE c.subscription <> %s AND s.phase <> 'subscribed'",
            [*arrays(keys), subscription],
        )
    }


def begun(session: Session, keys: Sequence[tuple[str, str]]) -> list[str]:
    """The subscriptions whose first copy of one of *keys* has begun, and which don't exist yet."""
    if not exists(session):
        return []
    rows = session.rows(
        "SELECT subscription FROM pgml_distributed.seeds WHERE phase <> 'subscribed' AND offer -> 'tables' ?| %s ORDER BY 1",
        [[quoted(*key) for key in keys]],
    )
    return [row.subscription for row in rows]


def plan(session: Session, subscription: str, chunks: Sequence[SeedChunk], steps: Sequence[Step]) -> None:
    """Remember what is to be done, in the transaction that takes the indexes away."""
    session.execute(
        "INSERT INTO pgml_distributed.seed_chunks (subscription, schema_name, table_name, source_oid, first_block, end_block,"
        "  bytes, whole, alone)"
        " SELECT %s, * FROM unnest(%s::text[], %s::text[], %s::oid[], %s::int8[], %s::int8[], %s::int8[], %s::bool[],"
        "  %s::bool[])",
        [subscription, *([chunk[field] for chunk in chunks] for field in range(8))],
    )
    session.execute(
        "INSERT INTO pgml_distributed.seed_steps (subscription, number, kind, schema_name, table_name, refers_schema,"
        "  refers_name, statement)"
        " SELECT %s, * FROM unnest(%s::int4[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[])",
        [
            subscription,
            [step.number for step in steps],
            [step.kind for step in steps],
            [step.key and step.key[0] for step in steps],
            [step.key and step.key[1] for step in steps],
            [step.refers and step.refers[0] for step in steps],
            [step.refers and step.refers[1] for step in steps],
            [step.statement for step in steps],
        ],
    )
    enter(session, subscription, COPY)


def entry(subscription: str, phase: str) -> Any:
    """The statement that notes that *phase* begins."""
    return compose(
        "UPDATE pgml_distributed.seeds SET phase = {phase} WHERE subscription = {subscription}",
        phase=literal(phase),
        subscription=literal(subscription),
    )


def enter(session: Session, subscription: str, phase: str) -> None:
    session.execute(entry(subscription, phase))


def chunks(session: Session, subscription: str) -> list[SeedChunk]:
    """What was planned, largest first."""
    return [
        SeedChunk(*row)
        for row in session.rows(
            "SELECT schema_name, table_name, source_oid, first_block, end_block, bytes, whole, alone, rows"
            " FROM pgml_distributed.seed_chunks WHERE subscription = %s ORDER BY bytes DESC, source_oid, first_block",
            [subscription],
        )
    ]


def unfinished_tables(session: Session) -> set[tuple[str, str]]:
    """The tables that first copies are filling, with the partitioned tables above them and all partitions of those."""
    if not exists(session):
        return set()
    return {
        (row.schema, row.name)
        for row in session.rows(
            "SELECT DISTINCT n.nspname AS schema, c.relname AS name FROM pgml_distributed.seed_chunks AS s"
            " JOIN pg_namespace AS sn ON sn.nspname = s.schema_name"
            " JOIN pg_class AS sc ON sc.relnamespace = sn.oid AND sc.relname = s.table_name"
            " CROSS JOIN LATERAL (SELECT sc.oid UNION SELECT relid FROM pg_partition_tree(pg_partition_root(sc.oid)))"
            "  AS member(oid)"
            " JOIN pg_class AS c ON c.oid = member.oid JOIN pg_namespace AS n ON n.oid = c.relnamespace"
        )
    }


def steps(session: Session, subscription: str) -> list[Step]:
    """What is left to do, in order."""
    return [
        Step(
            row.number,
            row.kind,
            None if row.table_name is None else (row.schema_name, row.table_name),
            None if row.refers_name is None else (row.refers_schema, row.refers_name),
            row.statement,
        )
        for row in session.rows(
            "SELECT number, kind, schema_name, table_name, refers_schema, refers_name, statement"
            " FROM pgml_distributed.seed_steps WHERE subscription = %s ORDER BY number",
            [subscription],
        )
    ]


def mark(session: Session, subscription: str, chunk: SeedChunk) -> str:
    """A statement for the end of the transaction that brings *chunk*; its parameter is the number of rows."""
    where = compose(
        "WHERE subscription = {subscription} AND source_oid = {oid} AND first_block = {first}",
        subscription=literal(subscription),
        oid=literal(chunk.source_oid),
        first=literal(chunk.first),
    )
    return "UPDATE pgml_distributed.seed_chunks SET rows = %s " + session.text_of(where).replace("%", "%%")


def once(session: Session, subscription: str, step: Step) -> str:
    """The statement of *step*, together with its removal from what is left to do."""
    removal = compose(
        "DELETE FROM pgml_distributed.seed_steps WHERE subscription = {subscription} AND number = {number}",
        subscription=literal(subscription),
        number=literal(step.number),
    )
    return "{0}\n;\n{1}".format(step.statement, session.text_of(removal))


def forget(session: Session, subscription: str) -> None:
    """Forget a first copy, and whatever this collection keeps in the database when that was all. Needs a transaction."""
    if not exists(session):
        return
    session.execute("DELETE FROM pgml_distributed.seeds WHERE subscription = %s", [subscription])
    if session.value("SELECT EXISTS (SELECT FROM pgml_distributed.seeds)"):
        return
    session.execute("DROP TABLE pgml_distributed.seed_chunks, pgml_distributed.seed_steps, pgml_distributed.seeds")
    if ledger.holds_only(session, []):
        session.execute(ledger.removal().statement)
