# SPDX-License-Identifier: GPL-3.0-or-later
"""What is remembered of one distribution: how it comes to the target's database, and from which host."""

from __future__ import annotations

import contextlib
from typing import Any, Mapping

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session, database_exists
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import Change, check_name
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import distribution_ledger
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.distribution_ledger import Remembered
from ansible_collections.postgresml.distributed.plugins.module_utils.task import Task

OPTIONS: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "strategy": {"type": "str", "choices": ["dump", "fdw", "logical"]},
    "automatic": {"type": "bool", "default": False},
    "upstream": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}
INFO_OPTIONS: dict[str, Any] = {"databases": {"type": "list", "elements": "str", "required": True}}
CONSTRAINTS: dict[str, Any] = {"required_if": [("state", "present", ("strategy", "upstream"))]}


def manage(task: Task) -> None:
    """Remember or forget the distribution that the task's options name."""
    wanted = wanted_from(task.params)
    name: str = task.params["name"]
    if wanted:
        task.result["distribution"] = _shown(wanted)
    session = task.session_or_none()
    with session or contextlib.nullcontext():
        known = distribution_ledger.read(session) if session else {}
        task.describe(_shown(known.get(name)), _shown(wanted))
        changes = plan(name, known, wanted)
        if changes and wanted:
            changes = [*distribution_ledger.preparation(session), *changes]
        elif changes and session and set(known) == {name}:
            changes += distribution_ledger.removal(session)
        task.apply(session, changes)


def tell(task: Task) -> None:
    """Return what the databases of the task's options remember."""
    login = Endpoint.from_login(task.params)
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(task.params["databases"]):
        endpoint = login.with_keywords(dbname=name)
        if database_exists(endpoint):
            with Session(endpoint) as session:
                found[name] = {known: _without_name(each) for known, each in distribution_ledger.read(session).items()}
    task.result["distributions"] = found


def _without_name(distribution: Remembered) -> dict[str, Any]:
    return {key: value for key, value in _shown(distribution).items() if key != "name"}


def wanted_from(params: Mapping[str, Any]) -> Remembered | None:
    """What the module's options ask to remember; None with C(state=absent)."""
    check_name("distribution", params["name"])
    if params["state"] == "absent":
        return None
    if not params["upstream"]:
        raise Refused("upstream is empty: it is the inventory's name of the host that the rows come from.")
    return Remembered(params["name"], params["strategy"], params["automatic"], params["upstream"])


def plan(name: str, known: Mapping[str, Remembered], wanted: Remembered | None) -> list[Change]:
    """The step from what is *known* of distribution *name* to what is *wanted*."""
    current = known.get(name)
    if _shown(current) == _shown(wanted):
        return []
    return [distribution_ledger.writing(wanted)] if wanted else [distribution_ledger.forgetting(name)]


def _shown(distribution: Remembered | None) -> dict[str, Any]:
    """The distribution as a return value and a side of the diff, without the moment, which is not asked for."""
    shown = {} if distribution is None else dict(distribution._asdict())
    shown.pop("recorded_at", None)
    return shown
