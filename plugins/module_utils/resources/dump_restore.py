# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables are copied from a source to a target, or by way of an archive, whenever the source's have changed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from typing import Any, Iterator, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import (
    DistributedError,
    Refused,
    ServerRefused,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import SOURCE_OPTIONS, Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    compose,
    enumerate_names,
    expression,
    identifier,
    identifiers,
    quoted,
    raw,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import (
    blueprint,
    contents,
    definitions,
    exchange,
    filling,
    schema,
    shipment,
    tables,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.blueprint import Drafts
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.filling import Cargo, Filling, Wishes
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.shipment import RowFile, Shipment
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.tables import Table
from ansible_collections.postgresml.distributed.plugins.module_utils.task import Task
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import (
    chunks,
    indexes,
    ledger,
    snapshot,
    staging,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.snapshot import Snapshot
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.workers import (
    Job,
    Move,
    Source,
    Target,
    Workers,
)

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
    "owner": {"type": "str"},
    "no_privileges": {"type": "bool", "default": True},
    "compress": {"type": "int", "default": 1},
    "format": {"type": "str", "choices": ["auto", "binary", "text"], "default": "auto"},
    "jobs": {"type": "int"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}


class Request(NamedTuple):
    """What is asked for, as the source has it."""

    wanted: list[Table]
    fingerprints: dict[tuple[str, str], str]
    not_moved: list[dict[str, str]]


class Verdict(NamedTuple):
    """Which of the tables are to be copied, and why."""

    keys: list[tuple[str, str]]
    reason: str


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
            _put_back(params["archive"])
        if "dumped" in params["archive_state"]:
            _dump(task)
        if "restored" in params["archive_state"]:
            _restore(task)
    if params["state"] == "present":
        task.result["seconds"] = round(time.monotonic() - began, 3)


def _refuse_options(params: Mapping[str, Any]) -> None:
    if params["jobs"] is not None and params["jobs"] < 1:
        raise Refused("jobs is {0}: at least one is needed.".format(params["jobs"]))
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


def _jobs(params: Mapping[str, Any]) -> int:
    return chunks.count_jobs(params["jobs"])


# From source to target


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
            request = _read_request(source, task.params)
            verdict = _judge(session, task.params, request.wanted, request.fingerprints)
            _report(task, session, request.wanted, verdict, request.not_moved)
            if not verdict.keys:
                _tidy(task, session)
                return
            wanted = [table for table in request.wanted if table.key in set(verdict.keys)]
            if session:
                with task.lenient():
                    _refuse_lacking_labels(source, session, wanted)
                    _refuse_target(session, task.params, wanted, blueprint.arriving(source, wanted))
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


def _read_request(source: Session, params: Mapping[str, Any]) -> Request:
    """The tables that the options name, checked as far as the source alone can tell."""
    wanted = schema.requested(source, params)
    if not wanted:
        excluded = params["exclude_tables"]
        raise Refused("Nothing is left to copy{0}.".format(": exclude_tables names all of it" if excluded else ""))
    contents.refuse_unreadable(source, wanted)
    fingerprints = contents.fingerprints(source, wanted)
    schemas = None if params["all_tables"] else params["schemas"]
    return Request(wanted, fingerprints, shipment.not_moved(source, schemas))


def _judge(
    session: Session | None,
    params: Mapping[str, Any],
    wanted: Sequence[Table],
    fingerprints: Mapping[tuple[str, str], str],
) -> Verdict:
    """What has to be copied into the target that *session* is at, if it is there."""
    keys = [table.key for table in wanted]
    there = definitions.read(session, keys) if session else {}
    missing = [key for key in keys if key not in there]
    if params["refresh"] == "never":
        return Verdict(missing, "missing on the target" if missing else "all tables are there, and refresh is never")
    if params["refresh"] == "always":
        return Verdict(keys, "refresh is always")
    if missing or session is None:
        return Verdict(keys, "missing on the target")
    copies = ledger.read(session, keys)
    changed = [key for key in keys if key not in copies or copies[key].fingerprint != fingerprints.get(key)]
    if changed:
        return Verdict(keys, "changed on the source: {0}".format(enumerate_names(quoted(*key) for key in changed)))
    moving = _moving(session, wanted)
    if moving:
        return Verdict(keys, "the filter of {0} selects other rows at another time".format(enumerate_names(moving)))
    return Verdict([], "unchanged on the source since the last copy")


def _moving(session: Session | None, wanted: Sequence[Table]) -> list[str]:
    """The tables whose filters may select other rows at another time, although no row has changed."""
    return [
        table.label
        for table in wanted
        if table.where is not None
        and (session is None or _TIMES.search(table.where) or not _stands_still(session, table))
    ]


_TIMES = re.compile(r"\b(now|today|tomorrow|yesterday)\b", re.IGNORECASE)
"""Strings that are dates of the moment they are read in."""


def _stands_still(session: Session, table: Table) -> bool:
    """Whether a filter depends on nothing but the row. That is what an index predicate must do, so one is tried on an
    empty copy of the table, in a transaction that is rolled back."""
    try:
        with session.transaction(commit=False):
            session.execute(compose("CREATE TEMP TABLE pgml_probe (LIKE {table})", table=identifier(*table.key)))
            session.execute(
                compose("CREATE INDEX ON pg_temp.pgml_probe ((1)) WHERE {filter}", filter=expression(table.where or ""))
            )
    except ServerRefused:
        return False
    return True


def _report(
    task: Task,
    session: Session | None,
    wanted: Sequence[Table],
    verdict: Verdict,
    not_moved: list[dict[str, str]],
) -> None:
    """Say what will change, and what is already there."""
    there = definitions.read(session, [table.key for table in wanted]) if session else {}
    copies = ledger.read(session, [table.key for table in wanted]) if session else {}
    chosen = set(verdict.keys)
    words = {True: "Replace", False: "Create"}
    if task.params["replace"] == "truncate":
        words[True] = "Empty and fill"
    task.note(*["{0} table {1}".format(words[t.key in there], t.label) for t in wanted if t.key in chosen])
    task.describe(
        {"tables": sorted(quoted(*key) for key in there)},
        {
            "tables": sorted({table.label for table in wanted if table.key in there or table.key in chosen}),
            **({"copied": sorted(quoted(*key) for key in chosen)} if chosen else {}),
        },
    )
    task.result.update(
        reason=verdict.reason,
        not_moved=not_moved,
        left_out=[],
        rows=0,
        relations=[table.label for table in wanted],
        tables=[
            {"name": table.label, "rows": copies[table.key].rows if table.key in copies else None}
            for table in wanted
            if table.kind == "r"
        ],
    )


def _refuse_target(
    session: Session,
    params: Mapping[str, Any],
    wanted: Sequence[Table],
    attached: Mapping[tuple[str, str], Sequence[str]],
) -> None:
    """Refuse, before anything is made, what the target would refuse in the end. *attached* is what the source's tables
    consist of."""
    there = definitions.read(session, [table.key for table in wanted])
    others = [quoted(*key) for key, found in there.items() if found.kind not in ("r", "p")]
    if others:
        raise Refused(
            "On the target {0} {1}: drop or rename {2} there.".format(
                enumerate_names(others),
                "is something else than a table" if len(others) == 1 else "are something else than tables",
                "it" if len(others) == 1 else "them",
            )
        )
    staging.refuse_without_createdb(session)
    if there and params["replace"] == "fail":
        raise Refused(
            "{0} {1} there on the target already, and replace is fail.".format(
                enumerate_names(quoted(*key) for key in there), "is" if len(there) == 1 else "are"
            )
        )
    if there and params["replace"] == "truncate":
        _refuse_to_empty(session, wanted, there)
    if there and params["replace"] == "swap":
        exchange.views_on(session, list(there))
        brought = {key: copy.attached for key, copy in ledger.read(session, list(there)).items()}
        exchange.refuse_losses(exchange.attached(session, list(there)), attached, brought)
    if params["owner"] and not session.value("SELECT 1 FROM pg_roles WHERE rolname = %s", [params["owner"]]):
        raise Refused('owner: there is no role "{0}" in {1}.'.format(params["owner"], session.endpoint))


def _refuse_lacking_labels(source: Session, session: Session, wanted: Sequence[Table]) -> None:
    """Refuse an enum that lacks labels on the target: a type that is there is not altered."""
    here = definitions.read(source, [table.key for table in wanted])
    there = definitions.labels(session)
    for key, table in here.items():
        for column in table.columns.values():
            name = column.type[:-2] if column.type.endswith("[]") else column.type
            lacking = [label for label in column.labels if name in there and label not in there[name]]
            if lacking:
                raise Refused(
                    "Type {0} of {1}.{2} lacks {3} on the target: add it there with ALTER TYPE ... ADD VALUE.".format(
                        name, quoted(*key), quoted(column.name), enumerate_names(map(repr, lacking))
                    )
                )


def _refuse_to_empty(session: Session, wanted: Sequence[Table], there: Mapping[tuple[str, str], Any]) -> None:
    """Refuse to fill tables in place when some are missing, or when foreign keys may be wrong afterwards: nobody checks them."""
    missing = [table.label for table in wanted if table.key not in there]
    if missing:
        raise Refused(
            "replace=truncate fills tables that are there, and {0} {1} missing on the target: use replace=swap.".format(
                enumerate_names(missing), "is" if len(missing) == 1 else "are"
            )
        )
    whole = [table.key for table in wanted if table.where is None]
    loose = exchange.foreign_keys_elsewhere(session, list(there), whole)
    if loose:
        raise Refused(
            "On the target {0} may be violated when only a part of the rows is filled in: drop it there, or use "
            "replace=swap.".format(enumerate_names(loose))
        )


def _copy(task: Task, source: Session, session: Session, request: Request, wanted: Sequence[Table]) -> None:
    params = task.params
    _make_ready(session)
    moment = Snapshot(snapshot.reading_session(source.endpoint, search_path="pg_catalog"))
    try:
        moment.hold([(table.oid, table.schema, table.name) for table in wanted])
        goods = shipment.read(
            moment.session,
            wanted,
            request.fingerprints,
            shipment.encoding_of(session),
            params["no_privileges"],
            _roles(session),
            request.not_moved,
        )
        contents.refuse_bad_filters(source, goods.contents)
        with _workspace() as directory:
            blueprint.dump(moment.session, moment.name, goods.origin, directory, task.run_command)
            _fill(
                task,
                session,
                goods,
                Drafts(goods.origin, directory, task.run_command),
                Source(source.endpoint, moment.name, goods.encoding),
                _cargo(source, goods, params),
                moment.release,
            )
    finally:
        moment.release()


def _make_ready(session: Session) -> None:
    """Take the target for this run, and remove what one that died has left."""
    session.without_timeouts()
    staging.lock_run(session)
    staging.clean(session)


def _tidy(task: Task, session: Session | None) -> None:
    """Remove what a run that died after its last transaction has left."""
    left = staging.left_over(session) if session else []
    if session and left and staging.is_first(session):
        task.note(*["Drop {0}, which a run that died has left".format(name) for name in left])
        if not task.check_mode:
            staging.clean(session)


def _roles(session: Session) -> list[str]:
    return [row.rolname for row in session.rows("SELECT rolname FROM pg_roles")]


@contextlib.contextmanager
def _workspace() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="pgml-") as directory:
        yield directory


def _cargo(source: Session, goods: Shipment, params: Mapping[str, Any]) -> list[Cargo]:
    """The chunks of a shipment that are read from a server, largest first."""
    items = {item.extent.oid: item for item in goods.contents}
    result = []
    for chunk in chunks.plan([item.extent for item in goods.contents], _jobs(params), source.version):
        item = items[chunk.oid]
        binary = _binary(item, params["format"])
        table = item.table
        if chunk.whole and table.where is None:
            what = compose(
                "{table}{columns}",
                table=identifier(*table.key),
                columns=compose(" ({names})", names=identifiers(item.columns)) if item.columns else raw(""),
            )
        else:
            rows = snapshot.select(table.schema, table.name, item.columns, table.where, chunk.first, chunk.end)
            what = compose("({rows})", rows=rows)
        read = compose("COPY {what} TO STDOUT (FORMAT {format})", what=what, format=raw("binary" if binary else "text"))
        result.append(Cargo(table.key, source.text_of(read), chunk.bytes, binary, chunk.whole))
    return result


def _binary(item: contents.Contents, wish: str) -> bool:
    if wish == "binary" and not item.binary:
        raise Refused(
            "format is binary, and {0} has columns whose binary form differs between servers: use auto.".format(
                item.table.label
            )
        )
    return item.binary and wish != "text"


def _fill(
    task: Task,
    session: Session,
    goods: Shipment,
    drafts: Drafts,
    source: Source,
    cargo: Sequence[Cargo],
    moved: Any,
) -> None:
    params = task.params
    blueprint.refuse_missing_extensions(session, drafts.extensions())
    _refuse_no_space(session, goods)
    there = definitions.read(session, goods.keys)
    emptied = [key for key in goods.keys if key in there] if params["replace"] == "truncate" else []
    replaced = [] if emptied else [key for key in goods.keys if key in there]
    wishes = Wishes(params["owner"], _jobs(params), emptied, replaced)
    run = Filling(session, goods, drafts, wishes)
    try:
        run.fill(source, cargo, moved)
    except BaseException:
        with contextlib.suppress(DistributedError):
            staging.clean(session)
        raise
    formats = {item.key: "binary" if item.binary else "text" for item in cargo}
    task.result.update(
        left_out=goods.left_out,
        rows=sum(run.tally.rows.values()),
        bytes=goods.size,
        tables=[
            {
                "name": item.table.label,
                "rows": run.tally.rows.get(item.table.key, 0),
                "bytes": item.size,
                "format": formats[item.table.key],
                "chunks": run.tally.chunks.get(item.table.key, 0),
            }
            for item in goods.contents
        ],
    )


def _refuse_no_space(session: Session, goods: Shipment) -> None:
    place = indexes.free_bytes(session)
    if place and place[1] < goods.size:
        raise Refused(
            "The rows take {0:,} MB and {1} has {2:,} MB free: make room on the target first.".format(
                goods.size >> 20, place[0], place[1] >> 20
            )
        )


# By way of an archive


def _dump(task: Task) -> None:
    """Bring the archive up to the source."""
    params = task.params
    source = task.source_or_none(Endpoint.from_source(params["source"]))
    path = params["archive"]
    if source is None:
        task.note("Dump to {0}".format(path))
        return
    with source:
        request = _read_request(source, params)
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


def _reason_to_dump(path: str, refresh: str, request: Request, session: Session | None) -> str | None:
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
    moving = _moving(session, request.wanted)
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


def _put_back(path: str) -> None:
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


def _write_archive(task: Task, source: Session, request: Request, path: str) -> None:
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
            _put_back(path)
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
    for number, item in enumerate(_cargo(source, goods, params)):
        path = os.path.join(shipment.ROWS, "{0}.gz".format(number))
        jobs.append(Job((item, path), Move(quoted(*item.key), item.read, os.path.join(directory, path)), ()))
    reader = Source(source.endpoint, moment.name, goods.encoding)
    with Workers(_jobs(params), reader, Target(None, {}, params["compress"])) as workers:
        workers.run(jobs, done, moment.release)
    return files


def _restore(task: Task) -> None:
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
        _report(task, session, goods.tables, verdict, goods.not_moved)
        if not verdict.keys:
            _tidy(task, session)
            return
        if session:
            with task.lenient():
                attached = {(item[0], item[1]): item[2] for item in goods.origin.attached}
                _refuse_target(session, params, goods.tables, attached)
        if session and not task.check_mode:
            _make_ready(session)
            with _workspace() as directory:
                for name in (blueprint.TABLES_FILE, blueprint.SUPPORT_FILE):
                    with contextlib.suppress(FileNotFoundError):
                        shutil.copy(os.path.join(path, name), directory)
                drafts = Drafts(goods.origin, directory, task.run_command)
                source = Source(None, "", goods.encoding)
                _fill(task, session, goods, drafts, source, filling.archive_cargo(path, files), lambda: None)


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


def _judge_archive(session: Session | None, params: Mapping[str, Any], goods: Shipment) -> Verdict:
    """Like _judge(); a filter has selected its rows already."""
    plain = [table._replace(where=None) for table in goods.tables]
    verdict = _judge(session, params, plain, goods.copied_fingerprints)
    if 0 < len(verdict.keys) < len(goods.tables):
        raise Refused(
            "refresh is never and {0} {1} missing on the target, but an archive is restored as a whole: use "
            "refresh=if_changed.".format(
                enumerate_names(quoted(*key) for key in verdict.keys), "is" if len(verdict.keys) == 1 else "are"
            )
        )
    return verdict


# Nothing at all


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
        remembered = set(ledger.known(session))
        kept = set(tables.parse_names(session, params["exclude_tables"]))
        known = [key for key in dict.fromkeys(keys) if key in remembered and key not in kept]
        task.note(*["Forget the copy of {0}".format(quoted(*key)) for key in known])
        _tidy(task, session)
        if ledger.exists(session):
            if ledger.holds_only(session, known):
                task.apply(session, [ledger.removal()])
            elif not task.check_mode:
                ledger.forget(session, known)
