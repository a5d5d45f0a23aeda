# SPDX-License-Identifier: GPL-3.0-or-later
"""By which strategy each distribution fills the target's database, so that a later run doesn't choose another one unasked."""

from __future__ import annotations

import datetime
from typing import NamedTuple

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    Change,
    compose,
    literal,
    raw,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import ledger

_TABLE = """
CREATE TABLE pgml_distributed.distributions (
    name text PRIMARY KEY, strategy text NOT NULL, automatic boolean NOT NULL, upstream text NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp());
COMMENT ON TABLE pgml_distributed.distributions IS
    'How each distribution comes here; automatic when strategy auto has chosen it, upstream is the host it comes from'
"""


class Remembered(NamedTuple):
    """A distribution that fills this database."""

    name: str
    strategy: str
    """dump, fdw or logical"""
    automatic: bool
    """whether strategy auto chose it"""
    upstream: str
    """the inventory's name of the host that it comes from"""
    recorded_at: datetime.datetime | None = None


def exists(session: Session) -> bool:
    return ledger.has(session, "distributions")


def read(session: Session) -> dict[str, Remembered]:
    """What is remembered in the session's database, by name."""
    if not exists(session):
        return {}
    rows = session.rows("SELECT name, strategy, automatic, upstream, recorded_at FROM pgml_distributed.distributions")
    return {row.name: Remembered(*row) for row in rows}


def preparation(session: Session | None) -> list[Change]:
    """The steps that make the table, if it is missing; without a session the database is."""
    if session and exists(session):
        return []
    there = session and session.value("SELECT to_regnamespace('pgml_distributed')")
    made = [] if there else [raw(ledger.MAKE_SCHEMA)]
    return [Change(statement, "Prepare schema {0}".format(ledger.SCHEMA)) for statement in [*made, raw(_TABLE)]]


def writing(wanted: Remembered) -> Change:
    """The step that remembers *wanted* in place of what was known of its name."""
    statement = compose(
        "INSERT INTO pgml_distributed.distributions (name, strategy, automatic, upstream)"
        " VALUES ({name}, {strategy}, {automatic}, {upstream}) ON CONFLICT (name) DO UPDATE SET strategy = excluded.strategy,"
        " automatic = excluded.automatic, upstream = excluded.upstream, recorded_at = excluded.recorded_at",
        name=literal(wanted.name),
        strategy=literal(wanted.strategy),
        automatic=literal(wanted.automatic),
        upstream=literal(wanted.upstream),
    )
    words = 'Remember that distribution "{0}" comes from {1} by {2}'
    return Change(statement, words.format(wanted.name, wanted.upstream, wanted.strategy))


def forgetting(name: str) -> Change:
    return Change(
        compose("DELETE FROM pgml_distributed.distributions WHERE name = {name}", name=literal(name)),
        'Forget distribution "{0}"'.format(name),
    )


def removal(session: Session) -> list[Change]:
    """The steps that drop the table, and the schema when nothing else is in it."""
    table = Change(raw("DROP TABLE pgml_distributed.distributions"), "Drop the list of distributions, which is empty")
    return [table, *([ledger.removal()] if ledger.holds_only(session, [], ["distributions"]) else [])]
