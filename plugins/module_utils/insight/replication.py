# SPDX-License-Identifier: GPL-3.0-or-later
"""All that this collection has wired at one server, as the one that gives and as the one that receives."""

from __future__ import annotations

import contextlib
import time
from typing import Any, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import (
    holdings,
    replica_state,
    server_log,
    upstream_state,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.task import Task

OPTIONS: dict[str, Any] = {
    "databases": {"type": "list", "elements": "str"},
    "sample_seconds": {"type": "float", "default": 1.0},
}

_LOCK_TIMEOUT = "200 ms"
"""The size of a table is asked under ACCESS SHARE; whoever holds it against that isn't waited for."""


def manage(task: Task) -> None:
    """Read the server of the task's login options, and each of its databases that are asked for."""
    seconds = task.params["sample_seconds"]
    if not 0 <= seconds <= 60:
        raise Refused("sample_seconds is {0}: use 0 to 60.".format(seconds))
    endpoint = Endpoint.from_login(task.params)
    names = list(dict.fromkeys(task.params["databases"] or [task.params["login_db"]]))
    with Session(endpoint, lock_timeout=_LOCK_TIMEOUT) as session:
        before = upstream_state.mark(session)
        server = upstream_state.server(session)
        databases = [_database(session, endpoint, name) for name in _existing(session, names)]
        server["slots"] = upstream_state.slots(session)
        average = upstream_state.average_wal_rate(session)
        if server["slots"]:
            time.sleep(max(0.0, before.clock + seconds - time.monotonic()))
        after = upstream_state.mark(session)
        server["lsn"] = after.lsn
        server["wal_rate"] = upstream_state.wal_rate(average, before, after)
        server["slots_in_use"] = _slots_in_use(session)
    task.result["server"] = server
    task.result["databases"] = databases


def _existing(session: Session, names: Sequence[str]) -> list[str]:
    known = {
        row.datname for row in session.rows("SELECT datname FROM pg_database WHERE datname = ANY(%s)", [list(names)])
    }
    return [name for name in names if name in known]


def _database(session: Session, endpoint: Endpoint, name: str) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        here = session
        if name != endpoint.keywords.get("dbname"):
            here = stack.enter_context(Session(endpoint.with_keywords(dbname=name), lock_timeout=_LOCK_TIMEOUT))
        subscriptions = replica_state.subscriptions(here)
        replica_state.watch(here, subscriptions)
        _add_last_errors(here, subscriptions)
        return {
            "name": name,
            "remembered": holdings.remembered(here),
            "subscriptions": subscriptions,
            "publications": upstream_state.publications(here),
            "copies": holdings.copies(here),
            "foreign_servers": holdings.foreign_servers(here),
            "models": holdings.models(here),
            "progress": holdings.progress(here),
        }


def _add_last_errors(session: Session, subscriptions: Sequence[dict[str, Any]]) -> None:
    """Only of those that have stopped, because the log also has what was mended since."""
    stopped = [each["failing"] or (each["apply_errors"] and not each["enabled"]) for each in subscriptions]
    errors = server_log.last_errors(session) if any(stopped) else {}
    for each, has_stopped in zip(subscriptions, stopped):
        each["last_error"] = errors.get(each["oid"]) if has_stopped else None


def _slots_in_use(session: Session) -> list[str]:
    """The slots that subscriptions of any database of this server name."""
    return [
        row.subslotname
        for row in session.rows(
            "SELECT DISTINCT subslotname FROM pg_subscription WHERE subslotname IS NOT NULL ORDER BY 1"
        )
    ]
