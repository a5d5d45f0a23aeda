# SPDX-License-Identifier: GPL-3.0-or-later
"""The first copy of a subscription to tables that pgml_dump_restore has filled.

The rows of the slot's snapshot come into tables beside those that are there, which everybody reads until all are exchanged in
one transaction. They stay copies until the transaction that creates the subscription. So whoever comes after a run that died
finds old copies or new ones, and begins anew, or subscribes.
"""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import offering
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import enumerate_names
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import (
    blueprint,
    copying,
    definitions,
    exchange,
    shipment,
    tables,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.blueprint import Drafts
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.filling import Wishes
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.schedule import Key
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.seeding import Seeding
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.tables import Table
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import (
    ledger,
    seeds,
    snapshot,
    staging,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.snapshot import Snapshot
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.workers import Source


class Replacing(Seeding):
    """One subscription's first copy in the place of what is there: begin(), then fill()."""

    _wanted: Sequence[Table] = ()

    def _prepare(self, published: Mapping[str, Any]) -> None:
        """Read what is published under the snapshot, which is to be what *published* says."""
        with snapshot.reading_session(self._source.endpoint) as moment:
            snapshot.join(moment, self._names)
            offer = self._offer(moment)
            offering.refuse_changes(self._name, published, offering.digest(moment, self._publications, offer))
            self._wanted = wanted_of(moment, offer)

    @property
    def _names(self) -> list[str]:
        return self._keepers.names if self._keepers else []

    def fill(self) -> None:
        """Copy beside what is there, and exchange."""
        session, source = self._session, self._source
        staging.clean(session)
        moment = Snapshot(snapshot.reading_session(source.endpoint, search_path="pg_catalog"), self._names)

        def moved() -> None:
            moment.release()
            self.leave(forever=True)

        try:
            moment.hold([(table.oid, table.schema, table.name) for table in self._wanted])
            goods = shipment.read(
                moment.session,
                self._wanted,
                {table.key: "" for table in self._wanted},
                shipment.encoding_of(session),
                True,
                [row.rolname for row in session.rows("SELECT rolname FROM pg_roles")],
                [],
            )
            there = definitions.read(session, goods.keys)
            wishes = Wishes(None, self._jobs, [], [key for key in goods.keys if key in there])
            with copying.workspace() as directory:
                blueprint.dump(moment.session, moment.name, goods.origin, directory, self._task.run_command)
                self.tally = copying.bring(
                    session,
                    goods,
                    Drafts(goods.origin, directory, self._task.run_command),
                    Source(source.endpoint, [moment.name, *self._names], goods.encoding),
                    copying.cargo_of(source, goods, {**self._task.params, "format": "auto"}),
                    moved,
                    wishes,
                )
        finally:
            moment.release()
        seeds.enter(session, self._name, seeds.BUILD)
        self._phase = seeds.BUILD


def refuse(source: Session, session: Session, offer: Mapping[Key, offering.Offer]) -> None:
    """Refuse, before anything is made, what the exchange would refuse in the end."""
    wanted = wanted_of(source, offer)
    there = list(definitions.read(session, [table.key for table in wanted]))
    staging.refuse_without_createdb(session)
    copying.refuse_lacking_labels(source, session, wanted)
    exchange.views_on(session, there, otherwise="")
    brought = {key: copy.attached for key, copy in ledger.read(session, there).items()}
    attached = exchange.attached(session, there)
    exchange.refuse_losses(attached, blueprint.arriving(source, wanted), brought, otherwise="")


def wanted_of(source: Session, offer: Mapping[Key, offering.Offer]) -> list[Table]:
    """The tables of *offer* with all that is in one partitioned table with them, because only that can be exchanged."""
    shapes = {row.oid: row for row in source.rows(_SHAPES, [[table.oid for table in offer.values()]])}
    whole: dict[int, Table] = {}
    parts: dict[int, Table] = {}
    for key, offered in offer.items():
        shape = shapes[offered.oid]
        columns = tuple(name for name in shape.columns if name in offered.columns)
        table = Table(
            offered.oid, *key, offered.kind, None if columns == tuple(shape.columns) else columns, offered.where
        )
        if shape.top == offered.oid:
            whole[table.oid] = table
            continue
        parts[table.oid] = table
        if table.columns is not None:
            raise Refused(
                "Partition {0} is published with some of its columns, and the whole of its table is to be replaced: publish all "
                "columns, or the table by publish_via_partition_root.".format(table.label)
            )
        whole.setdefault(shape.top, Table(shape.top, shape.top_schema, shape.top_name, "p"))
    found = tables.with_partitions(source, list(whole.values()))
    if not parts:
        return found
    below = {table.oid: table for table in tables.with_partitions(source, list(parts.values()))}
    one_by_one = {whole[shapes[oid].top].key for oid in parts}
    unpublished = [t.label for t in found if t.kind == "r" and t.top in one_by_one and t.oid not in below]
    if unpublished:
        raise Refused(
            "{0} {1} not published, and a partitioned table is replaced with all of its partitions: publish {2}, or empty the "
            "partitions that are.".format(
                enumerate_names(unpublished),
                "is" if len(unpublished) == 1 else "are",
                "it" if len(unpublished) == 1 else "them",
            )
        )
    return [table._replace(where=below[table.oid].where) if table.oid in below else table for table in found]


_SHAPES = (
    "SELECT c.oid, t.oid AS top, n.nspname AS top_schema, t.relname AS top_name,"
    " array(SELECT attname::text FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped"
    "  AND attgenerated = '' ORDER BY attnum) AS columns"
    " FROM pg_class AS c JOIN pg_class AS t ON t.oid = coalesce(pg_partition_root(c.oid)::oid, c.oid)"
    " JOIN pg_namespace AS n ON n.oid = t.relnamespace WHERE c.oid = ANY(%s::oid[])"
)
