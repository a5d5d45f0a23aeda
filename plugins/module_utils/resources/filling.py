# SPDX-License-Identifier: GPL-3.0-or-later
"""A target is filled: staged tables, rows, indexes, and one transaction in which all of it becomes visible."""

from __future__ import annotations

import collections
import functools
import os
from typing import Any, Callable, Iterable, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    arrays,
    compose,
    identifier,
    listed,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import contents, exchange
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.blueprint import Blueprint, Drafts
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.schedule import (
    Cargo,
    Key,
    Schedule,
    Tally,
    analyze,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.shipment import Shipment
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import indexes, ledger, staging
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.progress import Load, Progress
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.staging import Names
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.workers import (
    Job,
    Lane,
    Move,
    Source,
    Target,
    Workers,
)


class Wishes(NamedTuple):
    """How the target is to be filled."""

    owner: str | None
    jobs: int
    emptied: Sequence[Key]
    """tables that stay and are truncated"""
    replaced: Sequence[Key]
    """tables that are exchanged for new ones"""
    from_subscriptions: bool = False
    """whether they may be taken away from the subscriptions that fill them"""


class Filling:
    """One run: fill() does all of it."""

    def __init__(self, session: Session, shipment: Shipment, drafts: Drafts, wishes: Wishes) -> None:
        self._session = session
        self._shipment = shipment
        self._drafts = drafts
        self._wishes = wishes
        self._names = Names(shipment.origin.schemas)
        self._partitioned = {table.key for table in shipment.tables if table.kind == "p"}
        self._labels = {table.key: table.label for table in shipment.tables}
        self._columns = {item.table.key: item.columns for item in shipment.contents}
        staged = set(shipment.keys) - set(wishes.emptied)
        self._staged = [key for key in shipment.keys if key in staged]
        self.tally = Tally()

    def fill(self, source: Source, cargo: Sequence[Cargo], moved: Callable[[], None]) -> None:
        """Bring *cargo*, read from *source*; *moved* is called when all rows were read."""
        self._session.apply(ledger.preparation(self._session))
        progress = Progress(self._session, [self._load(item) for item in self._shipment.contents])
        plan = self._stage()
        emptied = set(self._wishes.emptied)
        beside = [item for item in cargo if item.key not in emptied]
        inside = [item for item in cargo if item.key in emptied]
        progress.phase("copy")
        endpoint = self._session.endpoint
        settings = indexes.settings(self._session, self._wishes.jobs, self._shipment.encoding)
        with Workers(self._wishes.jobs, source, Target(endpoint, settings, 0)) as workers:
            schedule = Schedule(plan, [self._new(item.key) for item in beside], self.tally, progress)
            jobs = [self._job(item) for item in beside]
            jobs += schedule.without_rows(
                self._new(key) for key in self._staged if self._new(key) not in plan.partitioned
            )
            drop_scratch = functools.partial(staging.drop_scratch, self._session)
            ended = (lambda: None) if inside else moved
            workers.run(jobs, schedule.done, ended, meanwhile=drop_scratch, watch=progress.keep_up)
        progress.phase("attach")
        for statement in [*plan.late, *map(analyze, sorted(plan.partitioned - plan.partitions))]:
            self._session.execute(statement)
        progress.phase("exchange")
        self._publish(source, inside, moved, progress)
        progress.phase("clean")
        staging.drop_schemas(self._session)
        self._analyze(inside)
        progress.phase("done")

    def _load(self, item: contents.Contents) -> Load:
        key = item.table.key
        place = key[0] if key in self._wishes.emptied else self._names.new(key[0])
        return Load(key, place, item.size, 0 if item.table.where else item.extent.rows)

    def _new(self, key: Key) -> Key:
        return (self._names.new(key[0]), key[1])

    def _stage(self) -> Blueprint:
        """Create the tables of the staging schemas, without indexes."""
        self._drafts.bring_support(self._session, self._wishes.owner)
        if not self._staged:
            return Blueprint("", [], [], [], [], [], frozenset(), frozenset())
        plan = self._drafts.rehearse(self._session, self._names)
        with Session(self._session.endpoint, synchronous_commit="off") as loader:
            loader.without_timeouts()
            for text in [plan.preamble, *plan.tables]:
                loader.execute(text)
        return plan

    def _job(self, item: Cargo) -> Job:
        return Job(("rows", self._new(item.key), item), self._move(item, self._new(item.key), item.whole), ())

    def _move(self, item: Cargo, key: Key, alone: bool) -> Move:
        """Rows of a table that only this copy fills are frozen as they come: nobody could see them before."""
        write = contents.writing(key, self._columns[item.key], item.binary, alone)
        first = self._session.text_of(compose("TRUNCATE ONLY {table}", table=identifier(*key))) if alone else None
        return Move(self._labels[item.key], item.read, self._session.text_of(write), first)

    def _publish(self, source: Source, inside: Sequence[Cargo], moved: Callable[[], None], progress: Progress) -> None:
        """The transaction after which everybody sees the new rows, and before which nobody does."""
        wishes = self._wishes
        encoding = self._shipment.encoding
        with Session(self._session.endpoint, lock_timeout=exchange.LOCK_TIMEOUT, client_encoding=encoding) as session:
            session.without_timeouts()
            views = exchange.views_on(session, wishes.replaced, from_subscriptions=wishes.from_subscriptions)
            exchange.lock(session, [*wishes.replaced, *wishes.emptied], views)
            session.execute("SET LOCAL lock_timeout = 0")
            if wishes.emptied:
                self._fill_in_place(session, source, inside, progress)
                moved()
            if wishes.from_subscriptions:
                exchange.detach(session, wishes.replaced)
            exchange.exchange(
                session, self._names, self._staged, wishes.replaced, wishes.owner, wishes.from_subscriptions
            )
            self._set_sequences(session)
            ledger.write(session, self._copies(session))
            session.execute("COMMIT")

    def _fill_in_place(self, session: Session, source: Source, inside: Sequence[Cargo], progress: Progress) -> None:
        """Empty the tables that stay, and fill them without firing triggers or checking the foreign keys row by row."""
        session.execute("SET LOCAL session_replication_role = replica")
        names = [
            compose("{name}" if key in self._partitioned else "ONLY {name}", name=identifier(*key))
            for key in self._wishes.emptied
        ]
        session.execute(compose("TRUNCATE {names}", names=listed(names)))
        lane = Lane(source)
        left = collections.Counter(item.key for item in inside)
        try:
            for item in inside:
                # No FREEZE: it would be wrong for a table that other transactions have seen.
                rows = lane.move(self._move(item, item.key, False), session, 0)
                self.tally.add(item, rows or 0)
                left[item.key] -= 1
                progress.copied(item.key, item.size, rows or 0, not left[item.key])
        finally:
            lane.close()

    def _set_sequences(self, session: Session) -> None:
        known = [value for value in self._shipment.sequences if value.value is not None]
        session.rows(
            "SELECT setval(c.oid, s.value, s.called)"
            " FROM unnest(%s::text[], %s::text[], %s::int8[], %s::bool[]) AS s(schema, name, value, called)"
            " JOIN pg_namespace AS n ON n.nspname = s.schema"
            " JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = s.name AND c.relkind = 'S'",
            [
                [value.schema for value in known],
                [value.name for value in known],
                [value.value for value in known],
                [value.called for value in known],
            ],
        )
        # Without the right to read a sequence, the largest value in its column is as good for what comes next.
        for value in self._shipment.sequences:
            if value.value is None and value.column and value.column[2] in self._columns.get(value.column[:2], ()):
                schema, table, column = value.column
                session.rows(
                    compose(
                        "SELECT setval(%s::regclass, largest) FROM (SELECT max({column}) AS largest FROM {table}) AS t"
                        " WHERE largest > 0",
                        column=identifier(column),
                        table=identifier(schema, table),
                    ),
                    [session.text_of(identifier(value.schema, value.name))],
                )

    def _copies(self, session: Session) -> list[ledger.Copy]:
        keys = self._shipment.keys
        attached = exchange.attached(session, keys)
        oids = {
            (row.schema, row.name): row.oid
            for row in session.rows(
                "SELECT n.nspname AS schema, c.relname AS name, c.oid FROM unnest(%s::text[], %s::text[]) AS w(schema, name)"
                " JOIN pg_namespace AS n ON n.nspname = w.schema"
                " JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = w.name",
                arrays(keys),
            )
        }
        emptied = set(self._wishes.emptied)
        fingerprints = self._shipment.copied_fingerprints
        return [
            ledger.Copy(
                *key,
                oids[key],
                fingerprints.get(key, ""),
                () if key in emptied else attached[key],
                self.tally.rows.get(key, 0),
            )
            for key in keys
        ]

    def _analyze(self, inside: Sequence[Cargo]) -> None:
        for key in dict.fromkeys(item.key for item in inside):
            self._session.execute(analyze(key))


def archive_cargo(directory: str, files: Iterable[Any]) -> list[Cargo]:
    """The chunks that lie in an archive, largest first."""
    return sorted(
        (
            Cargo(
                (item.schema, item.name),
                os.path.join(directory, item.path),
                item.size,
                item.binary,
                item.whole,
                item.rows,
            )
            for item in files
        ),
        key=lambda item: -item.size,
    )
