# SPDX-License-Identifier: GPL-3.0-or-later
"""What is remembered in the target's database of models that were shipped there: where each comes from, and its digest."""

from __future__ import annotations

from typing import Collection, NamedTuple

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import ledger

_TABLE = """
CREATE TABLE pgml_distributed.models (
    relation oid, model_id bigint, snapshot_id bigint NOT NULL,
    source_system text NOT NULL, source_database text NOT NULL, source_model_id bigint NOT NULL, digest text NOT NULL,
    shipped_at timestamptz NOT NULL DEFAULT clock_timestamp(), PRIMARY KEY (relation, model_id));
COMMENT ON TABLE pgml_distributed.models IS
    'Models that pgml_models shipped here; relation is pgml.models, which is another one when the extension was made anew'
"""


class Shipped(NamedTuple):
    """A model that was shipped here, and is here still."""

    model_id: int
    snapshot_id: int
    project: str
    source_system: str
    source_database: str
    source_model_id: int
    digest: str

    @property
    def source(self) -> tuple[str, str]:
        """The system identifier and the database that it came from."""
        return (self.source_system, self.source_database)


def prepare(session: Session) -> None:
    """Make the table, and its schema, where they are missing."""
    if exists(session):
        return
    if session.value("SELECT to_regnamespace('pgml_distributed')") is None:
        session.execute(ledger.MAKE_SCHEMA)
    session.execute(_TABLE)


def exists(session: Session) -> bool:
    return ledger.has(session, "models")


def read(session: Session) -> list[Shipped]:
    """What was shipped to the session's database and was not removed since, the oldest first."""
    if not exists(session):
        return []
    return [
        Shipped(*row)
        for row in session.rows(
            "SELECT s.model_id, s.snapshot_id, p.name, s.source_system, s.source_database, s.source_model_id, s.digest"
            " FROM pgml_distributed.models AS s JOIN pgml.models AS m ON m.id = s.model_id"
            " JOIN pgml.projects AS p ON p.id = m.project_id"
            " WHERE s.relation = to_regclass('pgml.models') ORDER BY s.shipped_at, s.model_id"
        )
    ]


def write(session: Session, shipped: Shipped) -> None:
    """Remember a model, in the transaction that brings it. Those that somebody has deleted are forgotten."""
    session.execute(
        "DELETE FROM pgml_distributed.models AS s WHERE s.relation <> 'pgml.models'::regclass"
        " OR NOT EXISTS (SELECT FROM pgml.models WHERE id = s.model_id)"
    )
    session.execute(
        "INSERT INTO pgml_distributed.models (relation, model_id, snapshot_id, source_system, source_database, source_model_id,"
        " digest) VALUES ('pgml.models'::regclass, %s, %s, %s, %s, %s, %s)",
        [
            shipped.model_id,
            shipped.snapshot_id,
            shipped.source_system,
            shipped.source_database,
            shipped.source_model_id,
            shipped.digest,
        ],
    )


def forget(session: Session, models: Collection[int]) -> None:
    """Forget *models*, in the transaction that removes them."""
    session.execute("DELETE FROM pgml_distributed.models WHERE model_id = ANY (%s)", [list(models)])


def remove(session: Session) -> None:
    """Drop the table, and the schema when nothing else is in it; in a transaction."""
    session.execute("DROP TABLE pgml_distributed.models")
    if ledger.holds_only(session, []):
        session.execute(ledger.removal().statement)
