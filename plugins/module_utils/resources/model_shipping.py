# SPDX-License-Identifier: GPL-3.0-or-later
"""Models on their way: each comes in one transaction, is served after that, and goes in one transaction."""

from __future__ import annotations

import time
from typing import Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import (
    DistributedError,
    Refused,
    ServerRefused,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    compose,
    identifier,
    identifiers,
    listed,
    literal,
    raw,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import (
    model_catalog,
    model_ledger,
    model_predictions,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.model_catalog import Model
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.model_ledger import Shipped
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.snapshot import Snapshot
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.workers import Lane, Move, Source

_TABLES = ("projects", "snapshots", "models", "files", "deployments")
_RUN_LOCK = (0x70676D6C, 3)
"""Beside those of transfer/workers.py and resources/foreign_ledger.py."""
_PATIENCE_SECONDS = 60
"""How long another run may be at work."""


def lock_run(session: Session) -> None:
    """Make sure that this is the only run that ships to the session's database, for as long as the session lasts."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not session.value("SELECT pg_try_advisory_lock(%s, %s)", list(_RUN_LOCK)):
        if time.monotonic() > deadline:
            raise Refused("Another run ships models to {0}: let it end first.".format(session.endpoint))
        time.sleep(0.1)


def sequences_behind(session: Session) -> list[str]:
    """The sequences of ids that give values which rows have already, as they do where rows came by COPY, or which models had
    that were shipped before the extension was made anew: a session that has such a model in memory would go on with it."""
    return [name for name in ("pgml.{0}_id_seq".format(table) for table in _TABLES) if _taken(session, name)]


def _taken(session: Session, sequence: str) -> int | None:
    """The greatest id of the sequence's table, if the sequence has not passed it."""
    table = sequence[: -len("_id_seq")]
    remembered = table == "pgml.models" and model_ledger.exists(session)
    found = session.value(
        "SELECT max(id) FROM (SELECT id FROM {0}{1}) AS taken"
        " HAVING max(id) >= (SELECT last_value + is_called::int FROM {2})".format(
            table, " UNION ALL SELECT model_id FROM pgml_distributed.models" if remembered else "", sequence
        )
    )
    return None if found is None else int(found)


def advance(session: Session, sequences: Sequence[str]) -> None:
    """Put *sequences* behind what is taken. Changing a sequence keeps others from using it until the transaction ends."""
    for name in sequences:
        with session.transaction():
            session.execute("ALTER SEQUENCE {0} NO CYCLE".format(name))
            taken = _taken(session, name)
            if taken is not None:
                session.rows("SELECT setval(%s, %s)", [name, taken])


class Carrier:
    """Takes models from the source, as it was at one moment, to the target."""

    def __init__(self, target: Session, source: Session, moment: Snapshot) -> None:
        """:param source: where predictions are asked for; errors would end the transaction of *moment*"""
        self._target = target
        self._source = source
        self._moment = moment
        self._lane = self._new_lane()
        self._columns = model_catalog.columns(target)

    def _new_lane(self) -> Lane:
        return Lane(Source(self._source.endpoint, [self._moment.name], "UTF8"))

    def close(self) -> None:
        self._lane.close()

    def ship(self, model: Model, digest: str, verify: bool) -> int:
        """Bring *model*, and return the id that it has here. After a failure, others can be brought.

        Until the transaction ends nobody else sees it, and a model that arrives damaged, or predicts something else, never is.
        """
        try:
            with self._target.transaction():
                return self._ship(model, digest, verify)
        except DistributedError:
            self._lane.close()
            self._lane = self._new_lane()
            raise

    def _ship(self, model: Model, digest: str, verify: bool) -> int:
        target = self._target
        model_ledger.prepare(target)
        project = _project(target, model)
        snapshot, local = (_next_id(target, name) for name in ("snapshots", "models"))
        self._copy("snapshots", "id = {0}".format(model.snapshot_id), {"id": snapshot}, model)
        keys = {"id": local, "project_id": project, "snapshot_id": snapshot}
        self._copy("models", "id = {0}".format(model.id), keys, model)
        self._copy("files", "model_id = {0}".format(model.id), {"model_id": local}, model)
        # What the source says of a model and what it sends are two things, and only the first was looked at.
        arrived = target.row(
            "SELECT m.runtime::text AS runtime, m.algorithm, m.num_features, m.status FROM pgml.models AS m"
            " JOIN pgml.snapshots AS s ON s.id = m.snapshot_id WHERE m.id = %s AND m.project_id = %s AND s.id = %s",
            [local, project, snapshot],
        )
        sent = (model.runtime, model.algorithm, model.features, model.status)
        if arrived is None or tuple(arrived) != sent or model_catalog.digests(target, [local]) != {local: digest}:
            raise ServerRefused("{0} arrived as something else than was sent: nothing was kept.".format(model.title))
        if verify:
            model_predictions.compare(model, self._source, target, local)
        system, database = self._source.system_identifier, self._source.endpoint.keywords["dbname"]
        model_ledger.write(target, Shipped(local, snapshot, model.project, system, database, model.id, digest))
        return local

    def _copy(self, table: str, condition: str, values: Mapping[str, int], model: Model) -> None:
        """Copy the rows of *table* that meet *condition*, with *values* in the place of theirs. Binary, because the text of
        bytes is twice as long, and the server can't make one of more than 1 GB."""
        columns = [name for name in self._columns[table] if name in values or name != "id"]
        read = compose(
            "COPY (SELECT {columns} FROM {table} WHERE {condition}) TO STDOUT (FORMAT binary)",
            columns=listed(
                [
                    compose("{value}::bigint", value=literal(values[name])) if name in values else identifier(name)
                    for name in columns
                ]
            ),
            table=identifier("pgml", table),
            condition=raw(condition),
        )
        write = compose(
            "COPY {table} ({columns}) FROM STDIN (FORMAT binary)",
            table=identifier("pgml", table),
            columns=identifiers(columns),
        )
        label = "Table pgml.{0} of {1}".format(table, model.label)
        rows = self._lane.move(Move(label, self._target.text_of(read), self._target.text_of(write)), self._target, 0)
        if rows != 1:
            raise ServerRefused("{0} came with {1} rows instead of one: nothing was kept.".format(label, rows))


def deploy(session: Session, model: int | None) -> None:
    """Have all sessions of the server serve *model*, at once.

    In a transaction of its own: what is served is in shared memory, which no rollback takes back, and must be there for all.
    """
    session.rows("SELECT * FROM pgml.deploy(%s::bigint)", [model])


def remove(session: Session, gone: Sequence[Shipped]) -> None:
    """Delete models that were shipped, with their files, deployments and snapshots."""
    if not gone:
        return
    ids = [each.model_id for each in gone]
    with session.transaction():
        session.execute("DELETE FROM pgml.models WHERE id = ANY (%s)", [ids])
        session.execute(
            "DELETE FROM pgml.snapshots AS s WHERE id = ANY (%s)"
            " AND NOT EXISTS (SELECT FROM pgml.models WHERE snapshot_id = s.id)",
            [[each.snapshot_id for each in gone]],
        )
        model_ledger.forget(session, ids)


def _project(session: Session, model: Model) -> int:
    """The id of the model's project here. One that is there stays, since sessions remember it by its id."""
    found = session.value("SELECT id FROM pgml.projects WHERE name = %s", [model.project])
    if found is None:
        found = session.value(
            compose(
                "INSERT INTO pgml.projects (name, task) VALUES ({name}, {task}::pgml.task) RETURNING id",
                name=literal(model.project),
                task=literal(model.task),
            )
        )
    return int(found)


def _next_id(session: Session, table: str) -> int:
    return int(session.value("SELECT nextval(%s)", ["pgml.{0}_id_seq".format(table)]))
