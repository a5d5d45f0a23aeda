# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run has begun that is to copy rows for a subscription, taken back."""

from __future__ import annotations

import time
from typing import Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused, ServerRefused, TimedOut
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    arrays,
    compose,
    identifier,
    listed,
    raw,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import definitions, slot
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.schedule import Key
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import keepers, seeds, staging
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.seeds import Seed

_AT_ONCE = 100
"""Tables that are emptied in one transaction."""
_PATIENCE_SECONDS = 30
_TRIGGER_ON_TRUNCATE = 32
"""The bit of pg_trigger.tgtype"""


def slot_of(source: Session, seed: Seed) -> slot.Slot | None:
    """The slot of a first copy, if it is there and can be used."""
    there = slot.read(source, seed.slot_name)
    return there if there and there.flushed == seed.begins_at and there.wal_status != "lost" else None


def end_keepers(source: Session, backends: Sequence[int]) -> None:
    """End the sessions of a dead run's keepers."""
    query = "SELECT pid FROM pg_stat_activity WHERE pid = ANY(%s) AND application_name = %s AND pid <> pg_backend_pid()"
    parameters = [list(backends), keepers.APPLICATION_NAME]
    source.rows("SELECT pg_terminate_backend(pid) FROM ({0}) AS k".format(query), parameters)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while source.rows(query, parameters):
        if time.monotonic() > deadline:
            raise TimedOut("Sessions of a run that died still keep a snapshot at {0}.".format(source.endpoint))
        time.sleep(0.05)


def clear(session: Session, source: Session | None, seed: Seed, slot_is_ours: bool = True) -> None:
    """Undo a first copy: no snapshot, no slot, empty tables with all their indexes. Needs the lock of the only run.

    :param slot_is_ours: whether the run came so far as to create its slot, if that is known
    """
    if seed.phase == seeds.SUBSCRIBED:
        with session.transaction():
            seeds.forget(session, seed.subscription)
        return
    staging.clean(session)
    if source:
        end_keepers(source, seed.keepers)
        there = slot.read(source, seed.slot_name)
        ours = there and slot_is_ours and seed.begins_at in (None, there.flushed)
        if ours and not slot.drop(source, seed.slot_name):
            raise Refused(slot.left_in_use(source, seed.slot_name))
    seeds.enter(session, seed.subscription, seeds.REGISTERED)  # from here on nobody goes on with it
    keys = {chunk.key for chunk in seeds.chunks(session, seed.subscription)}
    _empty(session, definitions.read(session, keys))
    steps = seeds.steps(session, seed.subscription)
    named = definitions.read(session, {key for step in steps for key in (step.key, step.refers) if key})
    with session.transaction():
        session.execute("SET LOCAL session_replication_role = replica; SET LOCAL search_path = pg_catalog")
        for step in steps:
            if {step.key, step.refers} - {None} <= set(named):
                _bring_back(session, step.statement)
        seeds.forget(session, seed.subscription)


def _bring_back(session: Session, statement: str) -> None:
    """Run a step, unless somebody has done it meanwhile, or has dropped what it is about."""
    session.execute("SAVEPOINT step")
    try:
        session.execute(statement)
    except ServerRefused as error:
        if error.details.get("sqlstate") not in _OVERTAKEN:
            raise
        session.execute("ROLLBACK TO SAVEPOINT step")
    session.execute("RELEASE SAVEPOINT step")


GONE = ("42P01", "42704", "3F000")
"""undefined table and object, no such schema"""
_OVERTAKEN = ("42P07", "42710", "42P16", *GONE)
"""duplicate table and object, a second primary key"""


def _empty(session: Session, there: Mapping[Key, definitions.Definition]) -> None:
    """Empty tables, without triggers, some at a time because each takes several locks."""
    kept = not_truncated(session, list(there))
    only = {key: "ONLY " if table.kind == "r" else "" for key, table in there.items()}
    statements = [compose("DELETE FROM {only}{table}", only=raw(only[key]), table=identifier(*key)) for key in kept]
    names = [compose("{only}{table}", only=raw(only[key]), table=identifier(*key)) for key in there if key not in kept]
    for start in range(0, len(names), _AT_ONCE):
        statements.append(compose("TRUNCATE {names}", names=listed(names[start : start + _AT_ONCE])))
    for statement in statements:
        with session.transaction():
            session.execute("SET LOCAL session_replication_role = replica")
            session.execute(statement)


def not_truncated(session: Session, keys: Sequence[Key]) -> set[Key]:
    """The tables that TRUNCATE is refused for because foreign keys point to them, or whose triggers would fire."""
    return {
        (row.schema, row.name)
        for row in session.rows(
            "SELECT w.schema, w.name FROM unnest(%s::text[], %s::text[]) AS w(schema, name)"
            " JOIN pg_namespace AS n ON n.nspname = w.schema"
            " JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = w.name"
            " WHERE EXISTS (SELECT FROM pg_constraint AS k WHERE k.contype = 'f' AND k.confrelid = c.oid)"
            "  OR EXISTS (SELECT FROM pg_trigger AS t"
            "   WHERE t.tgrelid = c.oid AND t.tgtype & %s <> 0 AND t.tgenabled IN ('A', 'R'))",
            [*arrays(keys), _TRIGGER_ON_TRUNCATE],
        )
    }
