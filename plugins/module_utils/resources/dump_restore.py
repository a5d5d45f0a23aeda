# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables are copied from a source to a target, or by way of an archive, whenever the source's have changed."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import SOURCE_OPTIONS, Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import quoted
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import (
    archiving,
    blueprint,
    contents,
    copying,
    definitions,
    shipment,
    tables,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.blueprint import Drafts
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.tables import Table
from ansible_collections.postgresml.distributed.plugins.module_utils.task import Task
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import ledger, snapshot, workers
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.snapshot import Snapshot
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.workers import Source

OPTIONS: dict[str, Any] = {
    "source": {"type": "dict", "options": SOURCE_OPTIONS},
    "tables": {"type": "list", "elements": "raw", "default": []},
    "schemas": {"type": "list", "elements": "str", "default": []},
    "all_tables": {"type": "bool", "default": False},
    "exclude_tables": {"type": "list", "elements": "str", "default": []},
    "method": {"type": "str", "choices": ["stream", "archive"], "default": "stream"},
    "archive": {"type": "path"},
    "archive_state": {
        "type": "list",
        "elements": "str",
        "choices": ["dumped", "restored"],
        "default": ["dumped", "restored"],
    },
    "refresh": {"type": "str", "choices": ["if_changed", "always", "never"], "default": "if_changed"},
    "replace": {"type": "str", "choices": ["swap", "truncate", "fail"], "default": "swap"},
    "replace_subscribed": {"type": "bool", "default": False},
    "owner": {"type": "str"},
    "no_privileges": {"type": "bool", "default": True},
    "compress": {"type": "int", "default": 1},
    "format": {"type": "str", "choices": ["auto", "binary", "text"], "default": "auto"},
    "jobs": {"type": "int"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}


def manage(task: Task) -> None:
    """Copy what the task's options ask for, or forget that it was copied."""
    params = task.params
    began = time.monotonic()
    _refuse_options(params)
    if params["state"] == "absent":
        _forget(task)
    elif params["method"] == "stream":
        _stream(task)
    else:
        params = task.params = {**params, "archive": os.path.realpath(params["archive"])}
        if not task.check_mode:
            archiving.put_back(params["archive"])
        if "dumped" in params["archive_state"]:
            archiving.dump(task)
        if "restored" in params["archive_state"]:
            archiving.restore(task)
    if params["state"] == "present":
        task.result["seconds"] = round(time.monotonic() - began, 3)


def _refuse_options(params: Mapping[str, Any]) -> None:
    workers.jobs(params["jobs"])
    if not 0 <= params["compress"] <= 9:
        raise Refused("compress is {0}: gzip's levels are 0 to 9.".format(params["compress"]))
    if params["method"] == "archive" and not params["archive"] and params["state"] == "present":
        raise Refused("archive is needed with method=archive: the directory of the archive.")
    if params["method"] == "stream" and params["archive"]:
        raise Refused("archive is given and method is stream: use method=archive, or leave it out.")
    if params["method"] == "stream" and len(set(params["archive_state"])) == 1:
        raise Refused("archive_state is given and method is stream: use method=archive, or leave it out.")
    if params["archive"] and not os.path.isabs(params["archive"]):
        raise Refused("archive is {0}: write its whole path, from / on.".format(params["archive"]))
    if not params["archive_state"]:
        raise Refused("archive_state is empty: it needs dumped, restored, or both.")
    reads_source = params["method"] == "stream" or "dumped" in params["archive_state"]
    if params["state"] == "present" and reads_source and not params["source"]:
        raise Refused("source is needed: it says where the rows come from.")
    if reads_source and not (params["tables"] or params["schemas"] or params["all_tables"]):
        raise Refused("Nothing is asked for: name tables or schemas, or set all_tables.")


def _stream(task: Task) -> None:
    session = task.session_or_none()
    with session or contextlib.nullcontext():
        source = task.source_or_none(Endpoint.from_source(task.params["source"]))
        if source is None:
            _predict_blindly(task, session)
            return
        with source:
            if session and source.is_same_database(session):
                raise Refused("{0} is source and target at once.".format(session.endpoint.title))
            request = copying.read_request(source, task.params)
            verdict = copying.judge(session, task.params, request.wanted, request.fingerprints)
            copying.report(task, session, request.wanted, verdict, request.not_moved)
            if not verdict.keys:
                copying.tidy(task, session)
                return
            wanted = [table for table in request.wanted if table.key in set(verdict.keys)]
            if session:
                with task.lenient():
                    copying.refuse_lacking_labels(source, session, wanted)
                    copying.refuse_target(session, task.params, wanted, blueprint.arriving(source, wanted))
            if session and not task.check_mode:
                _copy(task, source, session, request, wanted)


def _predict_blindly(task: Task, session: Session | None) -> None:
    """In check mode, when the source can't be asked yet."""
    params = task.params
    named = [request.name for request in tables.parse_requests(params["tables"]) or []]
    if session:
        there = definitions.read(session, tables.parse_names(session, named))
        named = [name for name in named if tables.parse_names(session, [name])[0] not in there]
    named += ["schema {0}".format(name) for name in params["schemas"]]
    task.note(*["Copy {0}".format(name) for name in named + ["all tables"] * params["all_tables"]])


def _copy(task: Task, source: Session, session: Session, request: copying.Request, wanted: Sequence[Table]) -> None:
    params = task.params
    copying.make_ready(session)
    moment = Snapshot(snapshot.reading_session(source.endpoint, search_path="pg_catalog"))
    try:
        moment.hold([(table.oid, table.schema, table.name) for table in wanted])
        goods = shipment.read(
            moment.session,
            wanted,
            request.fingerprints,
            shipment.encoding_of(session),
            params["no_privileges"],
            [row.rolname for row in session.rows("SELECT rolname FROM pg_roles")],
            request.not_moved,
        )
        contents.refuse_bad_filters(source, goods.contents)
        with copying.workspace() as directory:
            blueprint.dump(moment.session, moment.name, goods.origin, directory, task.run_command)
            copying.fill(
                task,
                session,
                goods,
                Drafts(goods.origin, directory, task.run_command),
                Source(source.endpoint, [moment.name], goods.encoding),
                copying.cargo_of(source, goods, params),
                moment.release,
            )
    finally:
        moment.release()


def _forget(task: Task) -> None:
    """Forget the copies of the tables, remove what a run that died has left, and the ledger when it is empty."""
    params = task.params
    session = task.session_or_none()
    if session is None:
        return
    with session:
        named = [request.name for request in tables.parse_requests(params["tables"]) or []]
        keys = tables.parse_names(session, named)
        if params["schemas"] or params["all_tables"]:
            wanted = None if params["all_tables"] else params["schemas"]
            keys += [key for key in ledger.known(session) if wanted is None or key[0] in wanted]
        kept = set(tables.parse_names(session, params["exclude_tables"]))
        known = [key for key in ledger.belonging(session, keys) if key not in kept]
        task.note(*["Forget the copy of {0}".format(quoted(*key)) for key in known])
        copying.tidy(task, session)
        if ledger.exists(session):
            if ledger.holds_only(session, known):
                task.apply(session, [ledger.removal()])
            elif not task.check_mode:
                ledger.forget(session, known)
