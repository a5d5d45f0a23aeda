# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables are dumped to an archive, a directory, and restored from it."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import Any, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import enumerate_names, quoted
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import (
    blueprint,
    contents,
    copying,
    filling,
    shipment,
    tables,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.blueprint import Drafts
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.shipment import RowFile, Shipment
from ansible_collections.postgresml.distributed.plugins.module_utils.task import Task
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import snapshot, workers
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.snapshot import Snapshot
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.workers import (
    Job,
    Move,
    Source,
    Target,
    Workers,
)


def dump(task: Task) -> None:
    """Bring the archive up to the source."""
    params = task.params
    source = task.source_or_none(Endpoint.from_source(params["source"]))
    path = params["archive"]
    if source is None:
        task.note("Dump to {0}".format(path))
        return
    with source:
        request = copying.read_request(source, params)
        with contextlib.ExitStack() as stack:
            target = task.session_or_none() if "restored" in params["archive_state"] else None
            session = stack.enter_context(target) if target else None
            reason = _reason_to_dump(path, params["refresh"], request, session)
        task.result.update(reason=reason or "unchanged on the source since the dump", not_moved=request.not_moved)
        if reason is None:
            return
        task.note("Dump {0} table{1} to {2}".format(len(request.wanted), "s" * (len(request.wanted) != 1), path))
        with task.lenient():
            _refuse_place(path)
        if task.check_mode:
            return
        _write_archive(task, source, request, path)


def _reason_to_dump(path: str, refresh: str, request: copying.Request, session: Session | None) -> str | None:
    if refresh == "always":
        return "refresh is always"
    if not os.path.exists(os.path.join(path, shipment.MANIFEST)):
        return "there is no archive yet"
    if refresh == "never":
        return None
    try:
        goods, _files = shipment.load(path)
    except Refused as error:
        return str(error)
    if goods.fingerprints != request.fingerprints:
        return "changed on the source"
    moving = copying.moving_filters(session, request.wanted)
    if moving:
        return "the filter of {0} may select other rows at another time".format(enumerate_names(moving))
    return None


def _refuse_place(path: str) -> None:
    parent = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(parent):
        raise Refused("There is no directory {0} to put the archive into: create it.".format(parent))
    if not os.access(parent, os.W_OK | os.X_OK):
        raise Refused("The archive can't be written: {0} is closed to this user.".format(parent))
    if os.path.exists(path) and not os.path.isdir(path):
        raise Refused("{0} is no directory: the archive needs one of its own.".format(path))
    if os.path.isdir(path) and os.listdir(path) and not os.path.exists(os.path.join(path, shipment.MANIFEST)):
        raise Refused("{0} holds something else than an archive: choose another directory.".format(path))


def put_back(path: str) -> None:
    """Return the archive to its place, when a run died between moving it away and putting a new one there."""
    if not os.path.lexists(path) and os.path.isdir(os.path.join(path + ".old", shipment.ROWS)):
        os.rename(path + ".old", path)


def _remove_left_over(path: str) -> None:
    """Remove what a run that died has left beside the archive, and nobody else's directory of that name."""
    if not os.path.lexists(path):
        return
    if os.path.islink(path) or not os.path.isdir(os.path.join(path, shipment.ROWS)):
        raise Refused("{0} is in the way, and no run of ours has left it: move it elsewhere.".format(path))
    shutil.rmtree(path, ignore_errors=True)


def _write_archive(task: Task, source: Session, request: copying.Request, path: str) -> None:
    """Write a new archive beside the old one and put it in its place."""
    params = task.params
    fresh, old = path + ".new", path + ".old"
    for left in (fresh, old):
        _remove_left_over(left)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, fresh, ignore_errors=True)
        try:
            os.makedirs(os.path.join(fresh, shipment.ROWS), mode=0o700)
            os.chmod(fresh, 0o700)
        except OSError as error:
            raise Refused("The archive can't be written: {0}: {1}.".format(fresh, error.strerror)) from None
        moment = Snapshot(snapshot.reading_session(source.endpoint, search_path="pg_catalog"))
        stack.callback(moment.release)
        moment.hold([(table.oid, table.schema, table.name) for table in request.wanted])
        goods = shipment.read(
            moment.session,
            request.wanted,
            request.fingerprints,
            shipment.encoding_of(source),
            params["no_privileges"],
            (),
            request.not_moved,
        )
        contents.refuse_bad_filters(source, goods.contents)
        blueprint.dump(moment.session, moment.name, goods.origin, fresh, task.run_command)
        files = _write_rows(source, goods, moment, params, fresh)
        shipment.save(goods, files, fresh)
        try:
            if os.path.isdir(path):
                os.rename(path, old)
            os.rename(fresh, path)
        except OSError as error:
            put_back(path)
            raise Refused("The archive can't be put at {0}: {1}.".format(path, error.strerror)) from None
    shutil.rmtree(old, ignore_errors=True)
    task.result.update(left_out=goods.left_out, rows=sum(item.rows for item in files), bytes=goods.size)


def _write_rows(
    source: Session, goods: Shipment, moment: Snapshot, params: Mapping[str, Any], directory: str
) -> list[RowFile]:
    files: list[RowFile] = []

    def done(job: Job, rows: int | None) -> Sequence[Job]:
        item, path = job.key
        size = os.path.getsize(os.path.join(directory, path))
        schema_name, name = item.key
        files.append(RowFile(schema_name, name, path, rows or 0, size, item.binary, item.whole))
        return ()

    jobs = []
    for number, item in enumerate(copying.cargo_of(source, goods, params)):
        path = os.path.join(shipment.ROWS, "{0}.gz".format(number))
        jobs.append(Job((item, path), Move(quoted(*item.key), item.read, os.path.join(directory, path)), ()))
    reader = Source(source.endpoint, [moment.name], goods.encoding)
    with Workers(workers.jobs(params["jobs"]), reader, Target(None, {}, params["compress"])) as crew:
        crew.run(jobs, done, moment.release)
    return files


def restore(task: Task) -> None:
    """Bring the target up to the archive."""
    params = task.params
    path = params["archive"]
    session = task.session_or_none()
    with session or contextlib.nullcontext():
        if task.check_mode and task.outcome["changed"]:
            task.note("Restore {0}".format(path))
            return
        goods, files = shipment.load(path)
        if session:
            shipment.refuse_newer(goods, session)
            _refuse_others(session, params, goods)
        verdict = _judge_archive(session, params, goods)
        copying.report(task, session, goods.tables, verdict, goods.not_moved)
        if not verdict.keys:
            copying.tidy(task, session)
            return
        if session:
            with task.lenient():
                attached = {(item[0], item[1]): item[2] for item in goods.origin.attached}
                copying.refuse_target(session, params, goods.tables, attached)
        if session and not task.check_mode:
            copying.make_ready(session)
            with copying.workspace() as directory:
                for name in (blueprint.TABLES_FILE, blueprint.SUPPORT_FILE):
                    with contextlib.suppress(FileNotFoundError):
                        shutil.copy(os.path.join(path, name), directory)
                drafts = Drafts(goods.origin, directory, task.run_command)
                source = Source(None, (), goods.encoding)
                copying.fill(task, session, goods, drafts, source, filling.archive_cargo(path, files), lambda: None)


def _refuse_others(session: Session, params: Mapping[str, Any], goods: Shipment) -> None:
    """Refuse to restore tables that the archive doesn't hold."""
    named = [request.name for request in tables.parse_requests(params["tables"]) or []]
    missing = set(tables.parse_names(session, named)) - set(goods.keys)
    if missing:
        raise Refused(
            "The archive {0} doesn't hold {1}: dump it again with {2}.".format(
                params["archive"],
                enumerate_names(quoted(*key) for key in missing),
                "it" if len(missing) == 1 else "them",
            )
        )


def _judge_archive(session: Session | None, params: Mapping[str, Any], goods: Shipment) -> copying.Verdict:
    """Like copying.judge(); a filter has selected its rows already."""
    plain = [table._replace(where=None) for table in goods.tables]
    verdict = copying.judge(session, params, plain, goods.copied_fingerprints)
    if 0 < len(verdict.keys) < len(goods.tables):
        raise Refused(
            "refresh is never and {0} {1} missing on the target, but an archive is restored as a whole: use "
            "refresh=if_changed.".format(
                enumerate_names(quoted(*key) for key in verdict.keys), "is" if len(verdict.keys) == 1 else "are"
            )
        )
    return verdict
