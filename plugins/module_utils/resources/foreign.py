# SPDX-License-Identifier: GPL-3.0-or-later
"""A foreign server on the replica with all that belongs to it: one transaction for the definitions, then the snapshots."""

from __future__ import annotations

import contextlib
import time
from typing import Any, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import (
    DistributedError,
    Refused,
    ServerRefused,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import SOURCE_OPTIONS, Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session, blockers
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import enumerate_names, quoted
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import (
    copying,
    foreign_imports,
    foreign_ledger,
    foreign_link,
    foreign_plan,
    foreign_readers,
    foreign_server,
    foreign_tables,
    foreign_transaction,
    snapshots,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.foreign_ledger import Thing
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.foreign_server import WRAPPER, Server
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.foreign_transaction import (
    Definitions,
    Outcome,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.schedule import Key, analyze
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.snapshot_filling import Filling
from ansible_collections.postgresml.distributed.plugins.module_utils.task import Task
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import workers

OPTIONS: dict[str, Any] = {
    "server": {"type": "str", "required": True},
    "source": {"type": "dict", "options": SOURCE_OPTIONS},
    "options": {"type": "dict", "default": {}},
    "fetch_size": {"type": "int", "default": 10000},
    "batch_size": {"type": "int"},
    "use_remote_estimate": {"type": "bool", "default": True},
    "extensions": {"type": "list", "elements": "str"},
    "async_capable": {"type": "bool"},
    "analyze_sampling": {"type": "str", "choices": ["off", "auto", "random", "system", "bernoulli"]},
    "keep_connections": {"type": "bool"},
    "application_name": {"type": "str"},
    "connect_timeout": {"type": "int", "default": 10},
    "user_mappings": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "role": {"type": "str", "required": True},
            "user": {"type": "str"},
            "password": {"type": "str", "no_log": True},
            "password_required": {"type": "bool", "default": True, "no_log": False},
            "ssl_cert": {"type": "path"},
            "ssl_key": {"type": "path", "no_log": False},
        },
    },
    "imports": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "remote_schema": {"type": "str"},
            "local_schema": {"type": "str"},
            "tables": {"type": "list", "elements": "raw"},
            "except": {"type": "list", "elements": "str", "default": []},
            "import_default": {"type": "bool", "default": False},
            "import_generated": {"type": "bool", "default": True},
            "import_not_null": {"type": "bool", "default": True},
            "import_collate": {"type": "bool", "default": True},
        },
    },
    "usage": {"type": "list", "elements": "str", "default": []},
    "analyze": {"type": "bool", "default": False},
    "on_drift": {"type": "str", "choices": ["report", "reimport"], "default": "report"},
    "snapshots": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "into": {"type": "str", "required": True},
            "relation": {"type": "str"},
            "where": {"type": "str"},
            "query": {"type": "str"},
            "numeric_to_float8": {"type": "bool", "default": False},
            "indexes": {"type": "list", "elements": "list", "default": []},
            "refresh": {"type": "str", "choices": ["always", "if_older_than"], "default": "if_older_than"},
            "max_age": {"type": "int", "default": 86400},
        },
    },
    "jobs": {"type": "int"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}

_LOCK_NOT_AVAILABLE = "55P03"
_STATEMENT_TIMEOUT = "60 s"
"""Nothing that is asked of the source for definitions takes that long, unless somebody holds a lock there."""


def manage(task: Task) -> None:
    """Bring the server of the task's options and all that belongs to it to what they name, or remove it."""
    params = task.params
    workers.jobs(params["jobs"])
    foreign_imports.refuse_entries(params["imports"])
    snapshots.refuse_entries(params["snapshots"])
    if foreign_server.PUBLIC in params["usage"]:
        raise Refused("usage: public is no role: name the roles that are to read.")
    session = task.session_or_none()
    with session or contextlib.nullcontext():
        if params["state"] == "absent":
            if session:
                with task.lenient():
                    _remove(task, session)
        elif params["source"] is None:
            raise Refused("source is needed: it says where the tables are.")
        elif session is None:
            task.note('Create server "{0}"'.format(params["server"]))
            _predict_blindly(task, {})
        else:
            wanted = foreign_server.wanted_from(params, session.value("SELECT current_user"), session.version)
            with task.lenient():
                _bring(task, session, wanted)


def _predict_blindly(task: Task, remembered: Mapping[foreign_ledger.Key, Thing]) -> None:
    """In check mode, when the source can't be asked yet."""
    params = task.params
    if params["imports"] and not foreign_ledger.of_kind(remembered, foreign_ledger.TABLE):
        task.note("Import the tables of {0}".format(Endpoint.from_source(params["source"])))
    if params["snapshots"] and not foreign_ledger.of_kind(remembered, foreign_ledger.SNAPSHOT):
        task.note(*["Fill {0}".format(entry["into"]) for entry in params["snapshots"]])


def _bring(task: Task, session: Session, wanted: Server) -> None:
    params = task.params
    remembered = foreign_ledger.read(session, wanted.name)
    current = _read_server(session, wanted.name, remembered)
    changes = foreign_server.plan(current, wanted, str(Endpoint.from_source(params["source"])))
    task.note(*[change.words for change in changes])
    task.result["server"] = wanted.as_result()
    task.result["user_mappings"] = [wanted.mappings[role].as_result() for role in sorted(wanted.mappings)]
    before = _side(current, remembered, wanted)
    task.describe(before, {**before, **wanted.as_side()})
    _warn_of_mappings(task, current, wanted)
    obstacle = _obstacle(session, wanted, params)
    if obstacle:
        if not task.check_mode:
            raise Refused(obstacle)
        task.warn("In check mode only: {0}".format(obstacle))
        _predict_blindly(task, remembered)
        return
    secrets = [change.secret for change in changes if change.secret is not None]
    with Session(session.endpoint, secrets, search_path="pg_catalog", statement_timeout=_STATEMENT_TIMEOUT) as worker:
        asking = False
        try:
            with worker.transaction(commit=not task.check_mode):
                foreign_ledger.lock(worker)
                remembered = foreign_ledger.read(worker, wanted.name)
                for change in changes:
                    worker.run(change)
                asking = True
                outcome = Definitions(task, worker, session, wanted, remembered).bring()
        except (Refused, ServerRefused) as error:
            if not (asking and task.check_mode):
                raise _with_blockers(error, params) from None
            task.warn("In check mode only: {0}".format(error))
            _predict_blindly(task, remembered)
            return
    task.describe(*foreign_transaction.sides(wanted, before, outcome))
    _report(task, outcome)
    _analyze(task, session, wanted, outcome.unanalyzed)
    _fill(task, session, wanted, outcome)


def _with_blockers(error: DistributedError, params: Mapping[str, Any]) -> DistributedError:
    """*error*, with the sessions at the source that may hold what it could not lock there."""
    if error.details.get("sqlstate") != _LOCK_NOT_AVAILABLE or "No lock within" in str(error):
        return error
    with contextlib.suppress(DistributedError):
        found = blockers(Endpoint.from_source(params["source"]))
        words = "{0} At the source a lock was not to be had{1}. Try again when that has ended."
        return ServerRefused(words.format(error, found), **error.details)
    return error


def _read_server(session: Session, name: str, remembered: Mapping[foreign_ledger.Key, Thing]) -> Server | None:
    current = foreign_server.read(session, name)
    if current and (foreign_ledger.SERVER, "", name) not in remembered:
        raise Refused(
            'Server "{0}" is there already and was not made by this module: choose another name, or drop it.'.format(
                name
            )
        )
    return current


def _obstacle(session: Session, wanted: Server, params: Mapping[str, Any]) -> str | None:
    """What is missing on the target that an earlier task could create, in words."""
    if not session.value("SELECT 1 FROM pg_extension WHERE extname = %s", [WRAPPER]):
        return "Extension {0} is missing in {1}: create it, as community.postgresql.postgresql_ext does.".format(
            WRAPPER, session.endpoint
        )
    lacking = foreign_server.missing_extensions(session, params["extensions"] or [])
    if lacking:
        return "extensions: {0} is not installed in {1}.".format(
            enumerate_names(map(quoted, lacking)), session.endpoint
        )
    missing = foreign_server.missing_roles(session, [*wanted.mappings, *params["usage"]])
    if missing:
        return "There is no role {0} in {1}.".format(enumerate_names(map(quoted, missing)), session.endpoint)
    return None


def _warn_of_mappings(task: Task, current: Server | None, wanted: Server) -> None:
    hidden = [
        role
        for role, mapping in (current.mappings if current else {}).items()
        if mapping.options is None and role in wanted.mappings
    ]
    if hidden:
        task.warn(
            "The mapping of {0} is not compared, since only superusers and the role itself may read it.".format(
                enumerate_names(map(quoted, hidden))
            )
        )


def _report(task: Task, outcome: Outcome) -> None:
    """Tell what there is, and warn of what isn't as it should be."""
    task.result["tables"] = foreign_transaction.table_results(outcome)
    task.result["drift"] = [
        {"name": quoted(*key), "differences": list(words)} for key, words in sorted(outcome.drift.items())
    ]
    if outcome.drift:
        words = "; ".join(
            "{0}: {1}".format(quoted(*key), ", ".join(found)) for key, found in sorted(outcome.drift.items())[:10]
        )
        task.warn(
            "Foreign tables are not like the source's any more: {0}. on_drift=reimport replaces them.".format(words)
        )
    for item in outcome.items:
        if item.sent is False:
            task.warn(
                "The source doesn't evaluate all of the condition of {0}, so that more rows come than it selects.".format(
                    quoted(*item.key)
                )
            )


def _side(
    server: Server | None, remembered: Mapping[foreign_ledger.Key, Thing], wanted: Server | None = None
) -> dict[str, Any]:
    """What is there, as a side of the diff; mappings that can't be read are taken for those that are *wanted*."""
    if server is None:
        return {}
    if wanted:
        hidden = {role: wanted.mappings.get(role, m) for role, m in server.mappings.items() if m.options is None}
        server = server._replace(mappings={**server.mappings, **hidden})
    names = sorted(quoted(*thing.place) for thing in foreign_ledger.of_kind(remembered, foreign_ledger.SNAPSHOT))
    return {**server.as_side(), "snapshots": names}


def _analyze(task: Task, session: Session, server: Server, keys: Sequence[Key]) -> None:
    if not keys:
        return
    task.note("Analyze {0}".format(enumerate_names(quoted(*key) for key in keys)))
    if not task.check_mode:
        session.without_timeouts()
        for key in keys:
            with session.transaction():
                foreign_link.connect(session, server)
                session.execute(analyze(key))


def _fill(task: Task, session: Session, server: Server, outcome: Outcome) -> None:
    """Fill the snapshots that are due."""
    params = task.params
    due = [verdict.wanted for verdict in outcome.verdicts if verdict.due]
    task.note(*["Fill {0}: {1}".format(v.wanted.label, v.reason) for v in outcome.verdicts if v.due])
    things = {thing.place: thing for thing in foreign_ledger.of_kind(outcome.things, foreign_ledger.SNAPSHOT)}
    seconds = None
    if not due:
        copying.tidy(task, session)
    elif not task.check_mode:
        began = time.monotonic()
        filling = Filling(session, server, due, params["usage"], workers.jobs(params["jobs"]))
        filled = filling.fill(Endpoint.from_source(params["source"]), outcome.things)
        things.update({thing.place: thing for thing in filled})
        seconds = round(time.monotonic() - began, 3)
    task.result["snapshots"] = [
        snapshots.result_of(v, things.get(v.wanted.into), seconds if v.due else None) for v in outcome.verdicts
    ]


def _remove(task: Task, session: Session) -> None:
    """Drop all that was made for the server, in one transaction."""
    name = task.params["server"]
    copying.tidy(task, session)
    with session.transaction(commit=not task.check_mode):
        foreign_ledger.lock(session)
        remembered = foreign_ledger.read(session, name)
        current = _read_server(session, name, remembered)
        task.describe(_side(current, remembered), {})
        if current or remembered:
            _drop(task, session, current, remembered)


def _drop(task: Task, session: Session, current: Server | None, remembered: Mapping[foreign_ledger.Key, Thing]) -> None:
    name = task.params["server"]
    tables = [thing for thing in remembered.values() if thing.kind in (foreign_ledger.TABLE, foreign_ledger.VIEW)]
    there = foreign_tables.read(session, sorted({thing.schema for thing in tables}))
    schemas = [thing.schema for thing in foreign_ledger.of_kind(remembered, foreign_ledger.SCHEMA)]
    shared = foreign_ledger.shared(session, name)
    foreign_transaction.drop_snapshots(
        task, session, foreign_ledger.of_kind(remembered, foreign_ledger.SNAPSHOT), why=""
    )
    task.note(*["Drop {0}".format(quoted(*thing.place)) for thing in tables])
    foreign_plan.drop(session, [there[thing.place] for thing in tables])
    for change in foreign_server.plan_no_server(current) if current else []:
        task.note(change.words)
        foreign_plan.run_drop(session, change)
    gone = foreign_transaction.drop_schemas(task, session, schemas, shared)
    for change in foreign_readers.plan_leaving(remembered.values(), gone, shared):
        task.note(change.words)
        session.execute(change.statement)
    foreign_ledger.forget(session, name)
