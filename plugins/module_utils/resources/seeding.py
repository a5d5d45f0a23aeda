# SPDX-License-Identifier: GPL-3.0-or-later
"""The first copy of a subscription under the snapshot of its slot.

What the slot's snapshot shows was committed before the slot begins, and what the slot sends was committed after: together
they are everything, once. So the tables are filled by many workers from that snapshot, while their indexes are away; then the
subscription goes on from the slot without a copy of its own. After each step the next run finds what this one has done.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any, Callable, Collection, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused, ServerRefused
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import offering
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    arrays,
    compose,
    identifier,
    quoted,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import (
    contents,
    definitions,
    set_aside,
    shipment,
    slot,
    subscription,
    survey,
    tables,
    undoing,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.blueprint import Blueprint
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.schedule import (
    Cargo,
    Key,
    Schedule,
    Tally,
    analyze,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.subscription import Subscription
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.survey import TargetTable
from ansible_collections.postgresml.distributed.plugins.module_utils.task import Task
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import (
    chunks,
    indexes,
    seeds,
    snapshot,
    workers,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.keepers import Keepers
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.progress import Load, Progress
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.seeds import Seed, SeedChunk
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.workers import (
    Job,
    Move,
    Source,
    Target,
    Workers,
)

_VIOLATED = "23503"
"""foreign_key_violation"""
_MOST_HELD = 1000
"""Tables that each worker locks at most, because a server has room for some thousand locks."""


class Seeding:
    """One subscription's first copy: begin() or go_on(), then fill()."""

    def __init__(self, task: Task, session: Session, source: Session, future: Subscription) -> None:
        self._task = task
        self._session = session
        self._source = source
        self._future = future
        self._name = future.name
        self._publications = sorted(future.publications or ())
        self._slot = future.slot_name or ""
        self._jobs = workers.jobs(task.params["jobs"])
        self._keepers: Keepers | None = None
        self._phase = seeds.REGISTERED
        self.slot_is_ours = False
        self._targets: dict[Key, TargetTable] = {}
        self._published: dict[Key, int] = {}
        """oids"""
        self.tally = Tally()

    def begin(self, offer: Mapping[Key, offering.Offer]) -> None:
        """Register the slot, create it, keep its snapshot, and take away what the rows would have to be put into one by one."""
        session, future = self._session, self._future
        _rehearse(session, future)
        published = offering.digest(self._source, self._publications, offer)
        registration = seeds.registration(
            self._name, self._slot, self._publications, seeds.identity(self._source), published
        )
        session.apply([*seeds.preparation(session), registration, *subscription.plan_placeholder(future)])
        failover = future.options.get("failover") == "true"
        self.slot_is_ours = True  # also when the connection breaks before the answer
        with contextlib.ExitStack() as stack:
            try:
                begins_at, name = stack.enter_context(slot.exporting(self._source, self._slot, failover))
            except (Refused, ServerRefused):
                self.slot_is_ours = False
                raise
            seeds.begin(session, self._name, begins_at)
            self._keep([name])
        self._prepare(published)

    def _prepare(self, published: Mapping[str, Any]) -> None:
        """What comes before the first row."""
        self._read_again(published)
        self._plan()

    def go_on(self, seed: Seed) -> bool:
        """Take up what a run has left that died; False when that can't be, because its snapshot or its slot is gone.

        Raises Changed when tables are not what they were, and another error when the next run may go on.
        """
        if seed.phase not in (seeds.COPY, seeds.BUILD):
            return False
        if seed.slot_name != self._slot or seed.publications != self._future.publications:
            return False
        if seed.phase == seeds.COPY:
            try:
                self._keep(seed.snapshots, seed.keepers)
            except ServerRefused:  # nobody has the snapshot any more
                return False
        undoing.end_keepers(self._source, seed.keepers)
        if not undoing.slot_of(self._source, seed):
            return False
        if seed.phase == seeds.COPY:
            self._read_again(seed.offer)
        self._phase = seed.phase
        self.slot_is_ours = True
        return True

    def _keep(self, names: Sequence[str], others: Sequence[int] = ()) -> Keepers:
        """Keep the snapshot of *names*, which *others* keep, too."""
        self._keepers = Keepers(self._source.endpoint, self._slot, names)
        seeds.keep(self._session, self._name, self._keepers.names, [*self._keepers.backends, *others])
        self._keepers.stay()
        return self._keepers

    def _read_again(self, expected: Mapping[str, Any]) -> None:
        """Read what is published under the snapshot, which is to be what was *expected*, and lock it."""
        if self._keepers is None:
            return
        with snapshot.reading_session(self._source.endpoint) as moment:
            snapshot.join(moment, self._keepers.names)
            moment.execute(snapshot.UNLOCKED)
            offer = self._offer(moment)
            offering.refuse_changes(self._name, expected, offering.digest(moment, self._publications, offer))
            self._published = {key: table.oid for key, table in offer.items()}
            offering.check_offer(moment, self._session, offer, self._name)
            targets = survey.read(moment, self._session, offer)
            moment.execute(snapshot.UNLOCK)  # who asks for a table's size has a lock on it
            self._keepers.hold(survey.extants(targets))
            self._refuse_moved(moment, targets)
        self._targets = {target.key: target for target in targets}

    def _hold(self, crew: Workers) -> None:
        """Have all workers lock what they read, and look again at what others have done who had to pass for that."""
        if self._keepers and crew.hold(self._keepers.hold_again):
            with snapshot.reading_session(self._source.endpoint) as moment:
                snapshot.join(moment, self._keepers.names)
                self._refuse_moved(moment, list(self._targets.values()))

    def _refuse_moved(self, moment: Session, targets: Sequence[TargetTable]) -> None:
        """Refuse tables that no longer hold what the snapshot shows, unless the slot brings the TRUNCATE that did that."""
        moved = snapshot.moved(moment, survey.extants(targets))
        if not moved:
            return
        roots = {item.table.oid: self._published[target.key] for target in targets for item in target.parts}
        with Session(self._source.endpoint) as source:
            brought = slot.truncated(source, self._slot, self._publications)
        snapshot.refuse([table for table in moved if not {table[0], roots[table[0]]} & brought])

    def _offer(self, source: Session) -> dict[Key, offering.Offer]:
        return offering.offered(source, self._publications, self._session.version)

    @property
    def keys(self) -> list[Key]:
        """The tables that the subscription fills."""
        seed = seeds.read(self._session, self._name)
        return tables.parse_names(self._session, list(seed.offer["tables"]) if seed else [])

    def check_offer(self) -> None:
        """Refuse to subscribe to something else than was copied: PostgreSQL would take it for copied."""
        seed = seeds.read(self._session, self._name)
        if seed:
            with Session(self._source.endpoint) as source:
                offer = self._offer(source)
                offering.refuse_changes(self._name, seed.offer, offering.digest(source, self._publications, offer))
                offering.check_offer(source, self._session, offer, self._name)

    def check_slot(self) -> None:
        """Refuse to subscribe when the server has given the slot up."""
        seed = seeds.read(self._session, self._name)
        with Session(self._source.endpoint) as source:
            if seed and not undoing.slot_of(source, seed):
                raise Refused(
                    'Slot "{0}" is gone, or the server of {1} has given up its WAL (max_slot_wal_keep_size, or '
                    "idle_replication_slot_timeout): allow more there and run it again, which begins anew.".format(
                        self._slot, source.endpoint
                    )
                )

    def _plan(self) -> None:
        """Take the indexes away, and remember what is to come, in one transaction."""
        session = self._session
        try:
            aside = set_aside.plan(session, list(self._targets), self._task.run_command)
        except (Refused, ServerRefused) as error:
            self._task.warn("The rows come into tables with their indexes, which takes longer: {0}".format(error))
            aside = set_aside.NOTHING
        extents = {item.extent.oid: (target, item) for target in self._targets.values() for item in target.parts}
        planned = chunks.plan([item.extent for _bed, item in extents.values()], self._jobs, self._source.version)
        with session.transaction():
            for drop in aside.drops:
                session.execute(drop)
            kinds = {key: table.kind for key, table in definitions.read(session, self._targets).items()}
            shared = undoing.not_truncated(session, list(self._targets)) | {
                key for key, kind in kinds.items() if kind != "r"
            }
            counts: dict[Key, int] = {}
            for chunk in planned:
                key = extents[chunk.oid][0].key
                counts[key] = counts.get(key, 0) + 1
            seeds.plan(
                session,
                self._name,
                [
                    SeedChunk(
                        *extents[chunk.oid][0].key,
                        chunk.oid,
                        chunk.first,
                        chunk.end,
                        chunk.bytes,
                        chunk.whole,
                        counts[extents[chunk.oid][0].key] == 1 and extents[chunk.oid][0].key not in shared,
                    )
                    for chunk in planned
                ],
                aside.steps,
            )
        self._phase = seeds.COPY

    def fill(self) -> None:
        """Copy what isn't there yet, and build what was taken away."""
        session = self._session
        planned = seeds.chunks(session, self._name)
        left = [chunk for chunk in planned if chunk.rows is None]
        for chunk in planned:
            if chunk.rows is not None:
                self.tally.add(Cargo(chunk.key, "", 0, True, True), chunk.rows)
        progress = Progress(session, self._loads(planned), len({c.key for c in planned} - {c.key for c in left}))
        progress.phase("copy")
        plan = self._blueprint({chunk.key for chunk in planned})
        thawed = {chunk.key for chunk in planned if not chunk.alone}
        schedule = Schedule(plan, [chunk.key for chunk in left], self.tally, progress, thawed)
        encoding = shipment.encoding_of(session)
        settings = {
            **indexes.settings(session, self._jobs, encoding),
            "session_replication_role": "replica",
            "row_security": "off",
        }
        names = self._keepers.names if self._keepers else []
        source = Source(self._source.endpoint, names, encoding, self._held({chunk.source_oid for chunk in left}))
        whole = sorted({chunk.key for chunk in planned} - {chunk.key for chunk in left})
        with Workers(self._jobs, source, Target(session.endpoint, settings, 0)) as crew:
            if source.held:
                self._hold(crew)
            jobs = [self._job(chunk) for chunk in left] + schedule.without_rows(whole)
            crew.run(jobs, schedule.done, self._rows_are_there, watch=functools.partial(self._watch, progress))
        progress.phase("attach")
        roots = plan.partitioned - plan.partitions - set(thawed)
        with workers.writing_session(session.endpoint, settings) as builder:
            for statement in [*plan.late, *map(analyze, sorted(roots))]:
                builder.execute(statement)

    def _loads(self, planned: Sequence[SeedChunk]) -> list[Load]:
        rows = {
            key: 0 if any(part.table.where for part in target.parts) else sum(part.extent.rows for part in target.parts)
            for key, target in self._targets.items()
        }
        chunks_of: dict[Key, list[SeedChunk]] = {}
        for chunk in planned:
            chunks_of.setdefault(chunk.key, []).append(chunk)
        return [
            Load(
                key,
                key[0],
                sum(chunk.bytes for chunk in of_table),
                rows.get(key, 0),
                sum(chunk.bytes for chunk in of_table if chunk.rows is not None),
            )
            for key, of_table in chunks_of.items()
        ]

    def _held(self, oids: Collection[int]) -> list[snapshot.Extant]:
        """The source's tables that each worker locks."""
        tables_ = [i.table for target in self._targets.values() for i in target.parts if i.table.oid in oids]
        return [(t.oid, t.schema, t.name) for t in tables_] if len(tables_) <= _MOST_HELD else []

    def _job(self, chunk: SeedChunk) -> Job:
        target = self._targets[chunk.key]
        item = next(part for part in target.parts if part.table.oid == chunk.source_oid)
        session = self._session
        piece = chunks.Chunk(chunk.source_oid, chunk.bytes, chunk.first, chunk.end, chunk.whole)
        read = session.text_of(contents.reading(item, piece, target.binary))
        write = session.text_of(contents.writing(chunk.key, item.columns, target.binary, chunk.alone))
        first = session.text_of(compose("TRUNCATE ONLY {table}", table=identifier(*chunk.key))) if chunk.alone else None
        move = Move(item.table.label, read, write, first, seeds.mark(session, self._name, chunk))
        return Job(("rows", chunk.key, Cargo(chunk.key, read, chunk.bytes, target.binary, chunk.whole)), move, ())

    def _rows_are_there(self) -> None:
        seeds.enter(self._session, self._name, seeds.BUILD)
        self._phase = seeds.BUILD
        self.leave(forever=True)

    def _watch(self, progress: Progress) -> None:
        progress.keep_up()
        if self._keepers and self._keepers.look():
            seeds.keep(self._session, self._name, self._keepers.names, self._keepers.backends)
            self._keepers.stay()

    def _blueprint(self, filled: Collection[Key]) -> Blueprint:
        """What is left to build, by the tables whose rows it waits for."""
        session = self._session
        steps = seeds.steps(session, self._name)
        above = _filled_above(session, [step.key for step in steps if step.key], filled)

        def of(kind: str) -> list[tuple[Key, str]]:
            return [
                (above.get(step.key, step.key), seeds.once(session, self._name, step))
                for step in steps
                if step.kind == kind and step.key
            ]

        foreign_keys = [
            (above.get(s.key, s.key), above.get(s.refers, s.refers), seeds.once(session, self._name, s))
            for s in steps
            if s.kind == "foreign key" and s.key and s.refers
        ]
        late = [seeds.once(session, self._name, step) for step in steps if step.kind in ("late", "comment")]
        partitioning = definitions.partitioning(session, set_aside.family(session, filled))
        return Blueprint("", [], of("constraint"), of("index"), foreign_keys, late, *partitioning)

    def leave(self, forever: bool) -> None:
        """Let the source's snapshot go, unless it isn't *forever*: then it is there for the next run, for a while."""
        if self._keepers and forever:
            self._keepers.release()
        elif self._keepers:
            self._keepers.leave()
        self._keepers = None

    @property
    def can_be_taken_up(self) -> bool:
        """Whether the next run could go on: the snapshot is alive, or no longer needed."""
        if self._phase == seeds.COPY:
            return self._keepers is not None and self._keepers.alive
        return self._phase == seeds.BUILD


def _filled_above(session: Session, keys: Sequence[Key], filled: Collection[Key]) -> dict[Key, Key]:
    """The partitioned tables among *filled* by way of which partitions among *keys* are filled."""
    rows = session.rows(
        "SELECT DISTINCT w.schema, w.name, an.nspname AS above_schema, ac.relname AS above_name"
        " FROM unnest(%s::text[], %s::text[]) AS w(schema, name) JOIN pg_namespace AS n ON n.nspname = w.schema"
        " JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = w.name AND c.relispartition"
        " CROSS JOIN LATERAL pg_partition_ancestors(c.oid) AS a(oid) JOIN pg_class AS ac ON ac.oid = a.oid"
        " JOIN pg_namespace AS an ON an.oid = ac.relnamespace WHERE a.oid <> c.oid",
        arrays(keys),
    )
    above = [((row.schema, row.name), (row.above_schema, row.above_name)) for row in rows]
    return {key: top for key, top in above if top in filled and key not in filled}


def _rehearse(session: Session, future: Subscription) -> None:
    """See that the target's server, and not only this module, can subscribe."""
    try:
        session.apply([subscription.plan_rehearsal(future)])
    except ServerRefused as error:
        if error.details.get("sqlstate") != subscription.REHEARSED:
            raise Refused(
                "The server of {0} can't subscribe to {1}: {2}".format(session.endpoint, future.endpoint, error)
            ) from None


def finish(session: Session, name: str, warn: Callable[[str], None]) -> None:
    """Check the foreign keys, while changes are applied already."""
    for step in seeds.steps(session, name):
        try:
            session.execute(seeds.once(session, name, step))
        except ServerRefused as error:
            if error.details.get("sqlstate") in undoing.GONE:
                continue
            if error.details.get("sqlstate") != _VIOLATED:
                raise
            warn(
                "A foreign key of {0} was left NOT VALID, because the rows that are replicated violate it: {1}".format(
                    quoted(*step.key) if step.key else name, error
                )
            )
