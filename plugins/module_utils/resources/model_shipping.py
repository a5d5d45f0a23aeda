# SPDX-License-Identifier: GPL-3.0-or-later
"""Models on their way: each comes in one transaction, is served after that, and goes in one transaction."""

from __future__ import annotations

import time
from typing import Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused, ServerRefused
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
_PATIENCE_SECONDS = 60
"""How long another run may be at work."""


def lock_run(session: Session) -> None:
    """Make sure that this is the only run that ships to the session's database, for as long as the session lasts."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not session.value("SELECT pg_try_advisory_lock(hashtext('postgresml.distributed models'))"):
        if time.monotonic() > deadline:
            raise Refused("Another run ships models to {0}: let it end first.".format(session.endpoint))
        time.sleep(0.1)


def sequences_behind(session: Session) -> list[str]:
    """The sequences of ids that give values which rows have already, as they do where rows came by COPY."""
    query = " UNION ALL ".join(
        "SELECT '{0}' AS name FROM pgml.{0}_id_seq AS s WHERE (SELECT max(id) FROM pgml.{0})"
        " > CASE WHEN s.is_called THEN s.last_value ELSE s.last_value - 1 END".format(name)
        for name in _TABLES
    )
    return ["pgml.{0}_id_seq".format(row.name) for row in session.rows(query)]


def advance(session: Session, sequences: Sequence[str]) -> None:
    """Put *sequences* behind what is taken. Changing a sequence keeps others from using it until the transaction ends."""
    for name in sequences:
        with session.transaction():
            session.execute("ALTER SEQUENCE {0} NO CYCLE".format(name))
            last = session.value("SELECT max(id) FROM {0}".format(name[: -len("_id_seq")]))
            if last is not None and last > session.value("SELECT last_value FROM {0}".format(name)):
                session.rows("SELECT setval(%s, %s)", [name, last])


class Carrier:
    """Takes models from the source, as it was at one moment, to the target."""

    def __init__(self, target: Session, moment: Snapshot) -> None:
        self._target = target
        self._source = moment.session
        self._lane = Lane(Source(moment.session.endpoint, [moment.name], "UTF8"))
        self._columns = _columns(target)

    def close(self) -> None:
        self._lane.close()

    def ship(self, model: Model, digest: str, verify: bool) -> int:
        """Bring *model*, and return the id that it has here.

        Until the transaction ends nobody else sees it, and a model that arrives damaged, or predicts something else, never is.
        """
        target = self._target
        with target.transaction():
            target.execute(model_ledger.TABLE)
            project = _project(target, model)
            snapshot, local = (_next_id(target, name) for name in ("snapshots", "models"))
            self._copy("snapshots", "id = {0}".format(model.snapshot_id), {"id": snapshot}, model)
            keys = {"id": local, "project_id": project, "snapshot_id": snapshot}
            self._copy("models", "id = {0}".format(model.id), keys, model)
            self._copy("files", "model_id = {0}".format(model.id), {"model_id": local}, model)
            if model_catalog.digests(target, [local]) != {local: digest}:
                raise ServerRefused(
                    "M{0} arrived as something else than was sent: nothing was kept.".format(model.label[1:])
                )
            if verify:
                model_predictions.compare(model, self._source, target, local)
            model_ledger.write(
                target,
                Shipped(
                    local,
                    snapshot,
                    model.project,
                    self._source.system_identifier,
                    self._source.endpoint.keywords["dbname"],
                    model.id,
                    digest,
                ),
            )
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
        self._lane.move(Move(label, self._target.text_of(read), self._target.text_of(write)), self._target, 0)


def deploy(session: Session, model: int) -> None:
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


def _columns(session: Session) -> dict[str, list[str]]:
    """The columns of the tables that a model is in; updates leave them in another order than a new installation has."""
    return {
        row.name: row.columns
        for row in session.rows(
            "SELECT c.relname::text AS name, array_agg(a.attname::text ORDER BY a.attname) AS columns FROM pg_class AS c"
            " JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
            " WHERE c.relnamespace = 'pgml'::regnamespace AND c.relname IN ('snapshots', 'models', 'files') GROUP BY 1"
        )
    }
