# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands against a distribution, looked for on one server before anything is changed anywhere. It only reads."""

from __future__ import annotations

import contextlib
import time
from typing import Any, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import TooOld, TurnedAway, Unreachable
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import (
    preflight_replica,
    preflight_upstream,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.findings import Findings
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.task import Task

OPTIONS: dict[str, Any] = {
    "as_upstream": {"type": "dict", "options": preflight_upstream.OPTIONS},
    "as_replica": {"type": "dict", "options": preflight_replica.OPTIONS},
    "asked_at": {"type": "float"},
}


class Clock(NamedTuple):
    """A server's clock beside that of this host."""

    server: float
    """seconds since 1970"""
    ahead: float
    """seconds that it is ahead of this host's"""
    round_trip: float
    """seconds that the question took, which the others may be wrong by"""


def look(task: Task) -> None:
    """Say what stands against what this server is to be. Nothing that is found makes it fail."""
    found = Findings()
    facts: dict[str, Any] = {}
    remembered: dict[str, Any] = {}
    login = Endpoint.from_login(task.params)
    sources = _sources(task.params["as_replica"])
    facts["endpoint"] = str(login)
    clock: Clock | None = None
    session = _open(login, found)
    with session or contextlib.nullcontext(), found.refusals("server"):
        if session:
            clock = _read_server(session, task.params["asked_at"], facts)
            remembered = _look(task, session, facts, found)
    facts["sources"] = [_reach(upstream, endpoint, clock) for upstream, endpoint in sources]
    task.result.update(findings=[each._asdict() for each in found.found], facts=facts, distributions=remembered)


def _open(login: Endpoint, found: Findings) -> Session | None:
    try:
        return Session(login, lock_timeout=preflight_upstream.LOCK_TIMEOUT)
    except Unreachable as error:
        found.error("unreachable", str(error))
    except TooOld as error:
        found.error("version", str(error))
    return None


def _look(task: Task, session: Session, facts: dict[str, Any], found: Findings) -> dict[str, Any]:
    params = task.params
    if facts["is_in_recovery"]:
        words = "The server of {0} is a standby, on which nothing can be changed: give the address of its primary."
        found.error("standby", words.format(session.endpoint))
        return {}
    remembered: dict[str, Any] = {}
    coming: Sequence[Mapping[str, Any]] = ()
    if params["as_replica"]:
        coming = params["as_replica"]["distributions"]
        more, remembered = preflight_replica.look(task, session, found)
        facts.update(more)
    if params["as_upstream"]:
        facts.update(preflight_upstream.look(session, params["as_upstream"], coming, found))
    return remembered


def _read_server(session: Session, asked_at: float | None, facts: dict[str, Any]) -> Clock:
    clock = _clock(session)
    row = session.row(
        "SELECT system_identifier::text AS system_identifier, pg_postmaster_start_time()::text AS started,"
        " pg_is_in_recovery() AS is_in_recovery FROM pg_control_system()"
    )
    facts.update(row._asdict(), version=session.version)
    facts["clock"] = {**clock._asdict(), "asked_at": asked_at}
    return clock


def _clock(session: Session) -> Clock:
    before = time.time()
    server = float(session.value("SELECT extract(epoch FROM clock_timestamp())"))
    after = time.time()
    return Clock(server, server - (before + after) / 2, after - before)


def _sources(as_replica: Mapping[str, Any] | None) -> list[tuple[str, Endpoint]]:
    """The databases that rows come from, each once, with the hosts of the inventory that they are on."""
    found: dict[tuple[str, str], tuple[str, Endpoint]] = {}
    for entry in (as_replica or {}).get("distributions", ()):
        if entry["source"]:
            endpoint, giver = Endpoint.from_source(entry["source"]), entry["through"] or entry["upstream"]
            found.setdefault((giver, str(endpoint)), (giver, endpoint))
    return list(found.values())


def _reach(upstream: str, endpoint: Endpoint, own: Clock | None) -> dict[str, Any]:
    """Whether a session can be opened at the source, and which server that is."""
    result: dict[str, Any] = {"upstream": upstream, "endpoint": str(endpoint), "reached": False, "answered": False}
    try:
        with Session(endpoint) as source:
            clock = _clock(source)
            identifier = source.system_identifier
    except TurnedAway as error:
        return {**result, "answered": True, "message": str(error)}
    except (Unreachable, TooOld) as error:
        return {**result, "message": str(error)}
    return {
        **result,
        "reached": True,
        "answered": True,
        "message": "",
        "system_identifier": identifier,
        "ahead": own and clock.ahead - own.ahead,
    }
