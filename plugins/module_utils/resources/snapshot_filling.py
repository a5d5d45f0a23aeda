# SPDX-License-Identifier: GPL-3.0-or-later
"""Local snapshots are filled beside their predecessors, all from one moment of the source, and exchanged in one transaction."""

from __future__ import annotations

import contextlib
import datetime
import functools
import itertools
import re
from typing import Any, Collection, Iterator, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import (
    DistributedError,
    Refused,
    ServerRefused,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    arrays,
    compose,
    enumerate_names,
    identifier,
    identifiers,
    listed,
    quoted,
    raw,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import (
    contents,
    copying,
    exchange,
    foreign_ledger,
    shipment,
    snapshot_reading,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.blueprint import Blueprint
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.foreign_ledger import SNAPSHOT, Thing
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.foreign_server import Server
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.schedule import (
    Cargo,
    Key,
    Schedule,
    Tally,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.snapshots import Wanted
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.tables import Table
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import (
    chunks,
    indexes,
    ledger,
    snapshot,
    staging,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.progress import Load, Progress
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.snapshot import Snapshot
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.staging import Names
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.workers import (
    Job,
    Move,
    Source,
    Target,
    Workers,
    writing_session,
)


class Filling:
    """One run: fill() does all of it and returns what there is to remember."""

    def __init__(
        self, session: Session, server: Server, wanted: Sequence[Wanted], readers: Sequence[str], jobs: int
    ) -> None:
        self._session = session
        self._server = server
        self._wanted = wanted
        self._copied = [(each, each.item) for each in wanted if each.item]
        self._readers = readers
        self._jobs = jobs
        self._names = Names(each.into[0] for each in wanted)
        self._tally = Tally()
        self._path = session.path_for_users
        self._origins: list[tuple[snapshot_reading.Origin, list[snapshot.Extant]]] = []
        self._columns: dict[Key, list[tuple[str, str]]] = {}

    def fill(self, endpoint: Endpoint, remembered: Mapping[Any, Thing]) -> list[Thing]:
        """Fill the snapshots, those that can be copied from the source at *endpoint*."""
        copying.make_ready(self._session)
        brought = {each.into: remembered[(SNAPSHOT, *each.into)].attached for each in self._there(remembered)}
        exchange.refuse_losses(exchange.attached(self._session, list(brought)), {}, brought, "")
        exchange.views_on(self._session, list(brought), "")
        _refuse_losses(self._session, list(brought))
        self._session.apply(ledger.preparation(self._session))
        try:
            taken_at = self._load(endpoint)
            return self._publish(list(brought), taken_at)
        finally:
            with contextlib.suppress(DistributedError):
                staging.clean(self._session)

    def _there(self, remembered: Mapping[Any, Thing]) -> list[Wanted]:
        return [each for each in self._wanted if (SNAPSHOT, *each.into) in remembered]

    def _new(self, key: Key) -> Key:
        return (self._names.new(key[0]), key[1])

    def _load(self, endpoint: Endpoint) -> datetime.datetime:
        """Bring the rows into staged tables and build their indexes; returns the moment they are of."""
        session = self._session
        self._stage()
        zone = session.value("SHOW timezone")
        encoding = shipment.encoding_of(session)
        taken_at: datetime.datetime = session.value("SELECT clock_timestamp()")
        with contextlib.ExitStack() as stack:
            moment, cargo = None, []
            if self._copied:
                moment = Snapshot(snapshot.reading_session(endpoint, timezone=zone))
                stack.callback(moment.release)
                cargo = self._cargo(moment)
            loads = self._loads(cargo)
            indexes.refuse_no_space(session, sum(load.bytes for load in loads))
            progress = Progress(session, loads)
            progress.phase("copy")
            schedule = Schedule(self._plan(), [self._new(item.key) for item in cargo], self._tally, progress)
            held = [tables[0] for origin, tables in self._origins if origin.divisible]
            source = Source(snapshot_reading.in_zone(endpoint, zone), [moment.name] if moment else [], encoding, held)
            target = Target(session.endpoint, indexes.settings(session, self._jobs, encoding), 0)
            with Workers(self._jobs, source, target) as crew:
                if moment and held and crew.hold(functools.partial(self._lock_again, moment)):
                    self._refuse_moved(moment)
                jobs = [Job(("rows", self._new(item.key), item), self._move(item), ()) for item in cargo]
                crew.run(jobs, schedule.done, moment.release if moment else _nothing, watch=progress.keep_up)
                self._run_queries(progress)
                jobs = schedule.without_rows([self._new(each.into) for each in self._wanted if not each.item])
                crew.run(jobs, schedule.done, _nothing)
            progress.phase("exchange")
        return taken_at

    def _loads(self, cargo: Sequence[Cargo]) -> list[Load]:
        """What is to come. How much of a table a condition leaves isn't known, nor what a query brings."""
        filtered = {each.into for each, item in self._copied if each.where or item.where}
        sizes = {each.into: 0 for each in self._wanted}
        for item in cargo:
            sizes[item.key] += 0 if item.key in filtered else item.size
        return [Load(key, self._names.new(key[0]), size) for key, size in sizes.items()]

    def _stage(self) -> None:
        """Create the tables in the staging schemas, without indexes."""
        with Session(self._session.endpoint, search_path=self._path) as loader:
            for name in self._names.numbers:
                loader.execute(compose("CREATE SCHEMA {name}", name=identifier(self._names.new(name))))
            for each in self._wanted:
                key = self._new(each.into)
                loader.execute(
                    compose("CREATE TABLE {table} AS {query} WITH NO DATA", table=identifier(*key), query=each.query)
                )
                if each.as_float8:
                    _make_float8(loader, key)
                self._columns[key] = _columns(loader, key)

    def _plan(self) -> Blueprint:
        builds = []
        for each, columns, name in indexes_of(self._wanted):
            table = self._new(each.into)
            create = compose(
                "CREATE INDEX {name} ON {table} ({columns})",
                name=identifier(name),
                table=identifier(*table),
                columns=identifiers(columns),
            )
            builds.append((table, self._session.text_of(create)))
        return Blueprint("", [], [], builds, [], [], frozenset(), frozenset())

    def _cargo(self, moment: Snapshot) -> list[Cargo]:
        """The pieces that the rows come in, largest first; the source keeps their tables as they are until they are read."""
        reader = moment.session
        reader.execute(snapshot.UNLOCKED)
        self._origins = snapshot_reading.read_origins(reader, [item.table.remote for _each, item in self._copied])
        self._lock_again(moment)  # who asks for a table's size has a lock on it
        self._refuse_moved(moment)
        staged = self._staged([each for each, _item in self._copied])
        cargo = []
        for (each, item), (origin, _held) in zip(self._copied, self._origins):
            there = staged[each.into]
            rows = snapshot_reading.rows_of(item, each.where, self._columns[self._new(each.into)])
            try:
                reader.refuse_more_than_queries([rows])
            except ServerRefused as error:
                raise Refused("snapshots: {0} can't be read: {1}".format(each.label, error), **error.details) from None
            for chunk in chunks.plan([origin.extent], self._jobs if origin.divisible else 1, reader.version):
                read = snapshot_reading.copy_out(snapshot_reading.in_range(rows, chunk), there.binary)
                cargo.append(Cargo(each.into, reader.text_of(read), chunk.bytes, there.binary, chunk.whole))
        return sorted(cargo, key=lambda item: -item.size)

    def _lock(self, moment: Snapshot) -> None:
        """Keep the tables from being rewritten, with all that is below them."""
        snapshot.lock(moment.session, [held[0] for _origin, held in self._origins if held], only=False)

    def _lock_again(self, moment: Snapshot) -> None:
        """Let somebody pass who waits for a stronger lock."""
        moment.session.execute(snapshot.UNLOCK)
        self._lock(moment)

    def _refuse_moved(self, moment: Snapshot) -> None:
        snapshot.refuse(snapshot.moved(moment.session, [table for _origin, held in self._origins for table in held]))

    def _move(self, item: Cargo) -> Move:
        """Rows of a table that comes whole are frozen as they come: nobody could see them before."""
        key = self._new(item.key)
        names = [name for name, _type in self._columns[key]]
        write = contents.writing(key, names, item.binary, item.whole)
        first = self._session.text_of(compose("TRUNCATE ONLY {table}", table=identifier(*key))) if item.whole else None
        return Move(quoted(*item.key), item.read, self._session.text_of(write), first)

    def _run_queries(self, progress: Progress) -> None:
        """Each query in a transaction of its own, which is all the time that the source spends on it."""
        encoding = shipment.encoding_of(self._session)
        settings = indexes.settings(self._session, 1, encoding)
        source = Source(self._session.endpoint, [], encoding)
        staged = self._staged([each for each in self._wanted if not each.item])
        for each in self._wanted:
            if each.item:
                continue
            binary = staged[each.into].binary
            rows = compose(
                "SELECT {columns} FROM {query} AS q",
                columns=snapshot_reading.as_columns(self._columns[self._new(each.into)], {}),
                query=compose("({query})", query=each.query),
            )
            cargo = Cargo(
                each.into, self._session.text_of(snapshot_reading.copy_out(rows, binary)), 0, binary, whole=True
            )
            lane = snapshot_reading.QueryLane(source, self._path, self._server)
            try:
                with writing_session(self._session.endpoint, settings) as writer, writer.transaction():
                    move = self._move(cargo)
                    writer.execute(move.first)
                    count = lane.move(move, writer, 0) or 0
                self._tally.add(cargo, count)
                progress.copied(self._new(each.into), 0, count, whole=True)
            finally:
                lane.close()

    def _staged(self, wanted: Sequence[Wanted]) -> dict[Key, contents.Contents]:
        """What is known of the staged tables, by what they will be."""
        places = {self._new(each.into): each.into for each in wanted}
        found = contents.read(self._session, _tables(self._session, list(places)))
        return {places[item.table.key]: item for item in found}

    def _free_index_names(self, session: Session, replaced: Sequence[Key]) -> None:
        """Rename staged indexes whose names others have where they are to go: PostgreSQL looked in the staging schema only."""
        for row in session.rows(_TAKEN, {"into": list(self._names.numbers), **_pairs(replaced)}):
            new = "{0}_{1}".format(row.name[:_MOST_OF_A_NAME], row.oid)
            names = {"index": identifier(row.schema, row.name), "new": identifier(new)}
            session.execute(compose("ALTER INDEX {index} RENAME TO {new}", **names))

    def _publish(self, replaced: Sequence[Key], taken_at: datetime.datetime) -> list[Thing]:
        """The transaction after which everybody sees the new rows, and before which nobody does."""
        keys = [each.into for each in self._wanted]
        with Session(self._session.endpoint, lock_timeout=exchange.LOCK_TIMEOUT) as session:
            session.without_timeouts()
            foreign_ledger.lock_session(session)
            exchange.lock(session, replaced, exchange.views_on(session, replaced, ""))
            session.execute("SET LOCAL lock_timeout = 0")
            comments = exchange.comments(session, dict.fromkeys(replaced, "TABLE"))
            self._free_index_names(session, replaced)
            exchange.exchange(session, self._names, keys, replaced, None)
            for comment in comments:
                session.tried(raw(comment.statement))  # unless the column is gone
            for role in self._readers:
                names = listed([identifier(*key) for key in keys])
                session.execute(compose("GRANT SELECT ON {names} TO {role}", names=names, role=identifier(role)))
            attached = exchange.attached(session, keys)
            things = [
                Thing(
                    SNAPSHOT,
                    *each.into,
                    each.definition,
                    attached[each.into],
                    self._tally.rows.get(each.into, 0),
                    taken_at,
                )
                for each in self._wanted
            ]
            foreign_ledger.remember(session, self._server.name, things)
            session.execute("COMMIT")
        return things


def indexes_of(wanted: Sequence[Wanted]) -> Iterator[tuple[Wanted, Sequence[str], str]]:
    """Each index with its columns and a name. PostgreSQL may choose the same one for two that are built at the same time, since
    neither is to be seen by the other."""
    taken = {each.into for each in wanted}
    for each in wanted:
        for columns in each.indexes:
            name = _free_name("_".join((each.into[1], *columns, "idx")), each.into[0], taken)
            taken.add((each.into[0], name))
            yield each, columns, name


def _free_name(name: str, schema: str, taken: Collection[Key]) -> str:
    """A name as PostgreSQL would choose it, or if that is too long or taken, one that begins like it."""
    others = ("{0}_{1}".format(name[:_MOST_OF_A_NAME], number) for number in itertools.count(1))
    fitting = [name] if len(name.encode("utf-8")) <= _LONGEST_NAME else []
    return next(free for free in itertools.chain(fitting, others) if (schema, free) not in taken)


def _pairs(keys: Sequence[Key]) -> dict[str, list[str]]:
    return dict(zip(("schemas", "names"), arrays(keys)))


_LONGEST_NAME = 63
"""bytes: https://www.postgresql.org/docs/current/sql-syntax-lexical.html#SQL-SYNTAX-IDENTIFIERS"""
_MOST_OF_A_NAME = 12
"""Characters that leave room for an oid in a name, even if each of them takes four bytes."""

_TAKEN = (
    "SELECT x.oid, s.nspname AS schema, x.relname AS name FROM unnest(%(into)s::text[]) WITH ORDINALITY AS w(name, number)"
    " JOIN pg_namespace AS n ON n.nspname = w.name JOIN pg_namespace AS s ON s.nspname = 'pgml_staging_' || (w.number - 1)"
    " JOIN pg_class AS x ON x.relnamespace = s.oid AND x.relkind = 'i'"
    " JOIN pg_class AS o ON o.relnamespace = n.oid AND o.relname = x.relname"
    " WHERE NOT EXISTS (SELECT FROM pg_index AS i JOIN pg_class AS t ON t.oid = i.indrelid"
    "  JOIN pg_namespace AS tn ON tn.oid = t.relnamespace WHERE i.indexrelid = o.oid"
    "  AND (tn.nspname, t.relname) IN (SELECT * FROM unnest(%(schemas)s::text[], %(names)s::text[])))"
)


def _refuse_losses(session: Session, keys: Sequence[Key]) -> None:
    """Refuse to lose what somebody put on a snapshot and exchange.attached() doesn't tell of."""
    lost = [
        row.words
        for row in session.rows(
            "WITH t AS (SELECT c.oid, c.relrowsecurity FROM unnest(%s::text[], %s::text[]) AS w(schema, name)"
            "  JOIN pg_namespace AS n ON n.nspname = w.schema"
            "  JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = w.name)"
            " SELECT 'row-level security of ' || oid::regclass AS words FROM t WHERE relrowsecurity"
            " UNION ALL SELECT 'sequence ' || d.objid::regclass FROM t JOIN pg_depend AS d ON d.refobjid = t.oid"
            "  AND d.refclassid = 'pg_class'::regclass AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')"
            "  JOIN pg_class AS q ON q.oid = d.objid AND q.relkind = 'S' ORDER BY 1",
            arrays(keys),
        )
    ]
    if lost:
        raise Refused(
            "The target alone has {0}, and would lose it with the old snapshot: drop it there.".format(
                enumerate_names(lost, 5)
            )
        )


def _nothing() -> None:
    pass


def _make_float8(session: Session, key: Key) -> None:
    names = [name for name, type_ in _columns(session, key) if _NUMERIC.match(type_)]
    if names:
        alter = [compose("ALTER COLUMN {name} TYPE float8", name=identifier(name)) for name in names]
        session.execute(compose("ALTER TABLE {table} {alter}", table=identifier(*key), alter=listed(alter)))


_NUMERIC = re.compile(r"numeric(\([-\d,]+\))?$")


def _columns(session: Session, key: Key) -> list[tuple[str, str]]:
    """(name, built-in type) of a table; the type is empty when the source may have it under another name."""
    return [
        (row.name, row.type)
        for row in session.rows(
            "SELECT a.attname AS name, CASE WHEN a.atttypid < 16384 THEN format_type(a.atttypid, a.atttypmod) ELSE '' END"
            " AS type FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid"
            " JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " WHERE n.nspname = %s AND c.relname = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
            list(key),
        )
    ]


def _tables(session: Session, keys: Sequence[Key]) -> list[Table]:
    return [
        Table(row.oid, row.schema, row.name, "r")
        for row in session.rows(
            "SELECT c.oid, n.nspname AS schema, c.relname AS name FROM unnest(%s::text[], %s::text[]) AS w(schema, name)"
            " JOIN pg_namespace AS n ON n.nspname = w.schema"
            " JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = w.name",
            arrays(keys),
        )
    ]
