# SPDX-License-Identifier: GPL-3.0-or-later
"""The place of a replica's cluster taken by a physical copy of its upstream's, in steps between which the server is stopped.

At each moment the data directory holds the whole old cluster, or the whole new one: they are exchanged at once. What was begun is
recorded on the replica's host, and the slots are guarded by a process of their own, so that a run may end anywhere.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any, Iterator, Mapping

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import DistributedError, Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import physical_checks, subscribed
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.physical import Upstream
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.physical_checks import (
    Found,
    Host,
    Request,
    Wanted,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres import control_file
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import (
    SECRETS,
    SOURCE_OPTIONS,
    Endpoint,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.server_programs import (
    Owner,
    ServerPrograms,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    check_name,
    enumerate_names,
    quoted,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import (
    copied_cluster,
    data_directory,
    physical_copy,
    physical_record,
    private_server,
    slot,
    subscription,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.parallel_streaming import without_losses
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.physical_copy import Copy
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.physical_record import Record
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.subscription import Subscription
from ansible_collections.postgresml.distributed.plugins.module_utils.task import Task
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import base_backup
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.base_backup import Pace

LOOKED, PREPARED, EXCHANGED, FINISHED, ABSENT = "looked", "prepared", "exchanged", "finished", "absent"
"""States that are asked for"""
NOTHING, READY, IN_PLACE, LOST, DONE, IMPOSSIBLE = "nothing", "ready", "in_place", "lost", "done", "impossible"
"""What a replica is at, see the module's RETURN"""

_SUBSCRIPTION: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "publications": {"type": "list", "elements": "str", "required": True},
    "slot_name": {"type": "str", "required": True},
    "source_db": {"type": "str"},
    "db": {"type": "str"},
    "copied_slot_name": {"type": "str"},
}
OPTIONS: dict[str, Any] = {
    "subscriptions": {"type": "list", "elements": "dict", "options": _SUBSCRIPTION, "default": []},
    "source": {"type": "dict", "options": SOURCE_OPTIONS},
    "copy_from": {"type": "dict", "options": SOURCE_OPTIONS},
    "create_subscriber": {
        "type": "dict",
        "options": {"user": {"type": "str", "required": True}, "password": {"type": "str", "no_log": True}},
    },
    "replace_cluster": {"type": "bool", "default": False},
    "keep_old_cluster": {"type": "bool", "default": False},
    "undistributed": {"type": "str", "choices": ["drop", "keep"], "default": "drop"},
    "login_roles": {"type": "list", "elements": "str", "default": []},
    "tablespaces": {"type": "dict", "default": {}},
    "max_rate": {"type": "str"},
    "restore_command": {"type": "str"},
    "wal_space": {"type": "int"},
    "required": {"type": "bool", "default": True},
    "service": {"type": "dict", "default": {}},
    "wait_timeout": {"type": "int", "default": 3600},
    "state": {
        "type": "str",
        "choices": [LOOKED, PREPARED, EXCHANGED, FINISHED, ABSENT],
        "default": PREPARED,
    },
}


def manage(task: Task) -> None:
    """Do the step that the task's options ask for."""
    steps = {LOOKED: _look, PREPARED: _prepare, EXCHANGED: _exchange, FINISHED: _finish, ABSENT: _remove}
    task.result["phase"] = NOTHING
    steps[task.params["state"]](task)


def _look(task: Task) -> None:
    """Say what was begun here, without asking a server, which may be stopped then; else whether there is anything to begin."""
    record = physical_record.read(task.params["login_port"])
    if record:
        ready = READY if record.phase == physical_record.PREPARED else NOTHING
        task.result["phase"] = IN_PLACE if record.exchanged else ready
        task.result["service"] = record.service
        progress = record.progress()
        if progress:
            task.result["files"] = progress
    elif task.params["subscriptions"]:
        with task.session() as session:
            if _subscribes(session, _request(task.params)):
                task.result["phase"] = DONE


def _prepare(task: Task) -> None:
    request, port = _request(task.params), task.params["login_port"]
    with task.session() as session, _only_run(session):
        record = physical_record.read(port)
        if record and _goes_on(task, session, record, request):
            return
        if _subscribes(session, request):
            task.result["phase"] = DONE
            return
        if record and not task.check_mode:
            _discard(port, record, request.source)
            if request.converter:
                physical_copy.drop_passing(request.converter, record.slots)
        host, found = _examine(session, request)
        if not _tolerates(task, found):
            return
        task.note(*_words(request))
        task.describe(None, "".join("{0}\n".format(words) for words in _words(request)))
        task.result["phase"] = READY
        if host and found.upstream:
            if found.upstream.unmeasured:
                task.warn(
                    "Not counted in the room that is needed, since user {0} may not ask how large it is: database {1}.".format(
                        quoted(request.copied.keywords.get("user", "")),
                        enumerate_names(map(quoted, found.upstream.unmeasured)),
                    )
                )
            if not task.check_mode:
                _make(task, session, host, request, found.upstream)


@contextlib.contextmanager
def _only_run(session: Session) -> Iterator[None]:
    """Refuse to begin while another run is at it. Whether this is the server's host at all is seen later."""
    may_see = "pg_has_role(current_user, 'pg_read_all_settings', 'MEMBER')"
    directory = session.value("SELECT current_setting('data_directory') WHERE " + may_see) or ""
    with data_directory.locked(directory) if os.access(directory, os.R_OK) else contextlib.nullcontext():
        yield


def _examine(session: Session, request: Request) -> tuple[Host | None, Found]:
    try:
        host = physical_checks.read_host(session)
    except Refused as error:
        return None, Found([str(error)], [], None)
    return host, physical_checks.check(session, host, request)


def _request(params: Mapping[str, Any]) -> Request:
    if not params["subscriptions"] or params["source"] is None:
        raise Refused("state=prepared needs subscriptions and source.")
    for option in ("wal_space", "wait_timeout"):
        if (params[option] or 0) < 0:
            raise Refused("{0} is {1}: the least is 0.".format(option, params[option]))
    source = Endpoint.from_source(params["source"])
    copied = Endpoint.from_source(params["copy_from"]) if params["copy_from"] else source
    wanted = []
    for each in params["subscriptions"]:
        check_name("subscription", each["name"])
        slot.check_name(each["slot_name"])
        if not each["publications"]:
            raise Refused("Subscription {0} needs publications.".format(quoted(each["name"])))
        source_db = each["source_db"] or params["source"]["db"]
        db = each["db"] or source_db
        if copied is not source and not each["copied_slot_name"]:
            raise Refused(
                "Subscription {0} needs copied_slot_name, the slot of the replica that copy_from is.".format(
                    quoted(each["name"])
                )
            )
        wanted.append(
            Wanted(
                each["name"],
                each["publications"],
                each["slot_name"],
                source_db,
                source_db if copied is source else db,
                db,
                each["copied_slot_name"] or "",
            )
        )
    if params["create_subscriber"] and copied is not source:
        raise Refused(
            "create_subscriber works on a copy of the upstream, not of a replica: leave copy_from or it away."
        )
    return Request(
        wanted,
        source,
        copied,
        params["replace_cluster"],
        {name: os.path.normpath(str(path)) for name, path in params["tablespaces"].items()},
        params["keep_old_cluster"],
        params["wal_space"],
        params["max_rate"],
        _converter(source, params["create_subscriber"]) if params["create_subscriber"] else None,
        params["undistributed"] == "drop",
    )


def _converter(source: Endpoint, given: Mapping[str, Any]) -> Endpoint:
    """The upstream as pg_createsubscriber logs in, where it gives up a lock as we do."""
    timeout = "-clock_timeout={0}s".format(slot.CREATION_SECONDS)
    return source.with_keywords(**{"password": None, "passfile": None, **given, "options": timeout})


def _goes_on(task: Task, session: Session, record: Record, request: Request) -> bool:
    """Whether a run that ended has left something of use, or in the way, and which."""
    if {tuple(each) for each in record.slots} != {(each.source_db, each.slot_name) for each in request.subscriptions}:
        if record.exchanged:
            raise Refused(
                "The cluster here was copied for other slots ({0}) and is not finished: finish that, or remove it with "
                "state=absent.".format(", ".join(record.slot_names))
            )
        return False
    identifier = session.system_identifier
    task.result["service"] = record.service
    if identifier == record.after:
        safe = record.phase == physical_record.STREAMING or _has_slots(record, request.source, unread=False)
        task.result["phase"] = IN_PLACE if safe else LOST
        task.note("Go on with the copied cluster, which is in its place")
        return True
    if record.phase != physical_record.PREPARED or identifier != record.before:
        return False
    if not _has_slots(record, request.source, unread=True):
        return False
    task.result["phase"] = READY
    task.note("Go on with the copied cluster, which is ready")
    return True


def _has_slots(record: Record, source: Endpoint, unread: bool) -> bool:
    """Whether the slots are still there, and if asked for as they were made."""
    with Session(source.with_keywords(dbname=record.slots[0][0])) as session:
        number = session.value(
            "SELECT count(*) FROM pg_replication_slots WHERE slot_name = ANY(%s) AND plugin = 'pgoutput'"
            " AND wal_status IS DISTINCT FROM 'lost' AND (NOT %s OR confirmed_flush_lsn <= %s::pg_lsn)",
            [record.slot_names, unread, record.begin],
        )
    return bool(number == len(record.slots))


def _subscribes(session: Session, request: Request) -> bool:
    """Whether the server has all of the subscriptions."""
    rows = session.rows(
        "SELECT d.datname, s.subname FROM pg_subscription AS s JOIN pg_database AS d ON d.oid = s.subdbid"
        " WHERE coalesce(obj_description(s.oid, 'pg_subscription'), '') <> %s",
        [subscription.PLACEHOLDER],
    )
    there = {(row.datname, row.subname) for row in rows}
    return there.issuperset((each.db, each.name) for each in request.subscriptions)


def _tolerates(task: Task, found: Found) -> bool:
    """Whether to go on: also in check mode, where an earlier task would have done something about it."""
    problems = list(found.problems)
    if task.check_mode and found.unreached:
        task.warn("In check mode only: {0}".format(" ".join(found.unreached)))
    else:
        problems += found.unreached
    if not problems:
        return True
    task.result["problems"] = problems
    text = " ".join(problems)
    if not task.params["required"]:
        task.result["phase"] = IMPOSSIBLE
        task.warn("The cluster is not copied physically, for this stands against it: {0}".format(text))
        return False
    with task.lenient():
        raise Refused(
            "The cluster can't be copied physically, and nothing was changed: {0}".format(text),
            problems=problems,
        )
    return True


def _words(request: Request) -> list[str]:
    copy = "Copy the cluster of {0}".format(request.copied)
    return [copy] + [
        'Create subscription "{0}" to publication {1} in database {2} of the copy, with slot "{3}"'.format(
            each.name, ", ".join(map(quoted, each.publications)), quoted(each.db), each.slot_name
        )
        for each in request.subscriptions
    ]


def _make(task: Task, session: Session, host: Host, request: Request, upstream: Upstream) -> None:
    """Make the copy beside the cluster that runs. When that fails nothing is left of it."""
    params, port = task.params, task.params["login_port"]
    if os.path.lexists(host.work):
        raise Refused("{0} is there, and nothing says whose it is: remove it.".format(host.work))
    futures = [_future(task, session, request, each) for each in request.subscriptions]
    own = copied_cluster.read_roles(session)
    login = session.value("SELECT current_user")
    record = _record(session, host, request, params["service"], upstream.bytes)
    copy = Copy(host, request, upstream, session.version, lambda: not physical_record.is_of(port, record.run))
    physical_record.write(port, record)
    try:
        host.owner.make_directory(host.work)
        copy.take(Pace(params["max_rate"], bool(params["restore_command"])), params["restore_command"])
        copy.finish(own, params["login_roles"], login, futures)
        copy.close()
        after = control_file.system_identifier(record.copy) or ""
        copy.preserve()
        physical_record.write(port, record._replace(phase=physical_record.PREPARED, after=after, begin=copy.begin))
        copy.hand_over()
    except BaseException as error:
        with contextlib.suppress(DistributedError):
            copy.close()
            if copy.give_up():
                _remove_files(record)
                physical_record.forget(port)
        if isinstance(error, OSError):
            raise Refused("The copy was given up: {0}.".format(error)) from None
        raise
    task.result["taken_away"] = copy.said
    for name in copy.unlogged:
        task.warn("Unlogged table {0} is not replicated: it is there without rows.".format(name))


def _future(task: Task, session: Session, request: Request, wanted: Wanted) -> Subscription:
    endpoint = request.source.with_keywords(dbname=wanted.source_db)
    future = Subscription(wanted.name, frozenset(wanted.publications), endpoint, wanted.slot_name, True, None, {})
    return without_losses(task, session, future)


def _record(session: Session, host: Host, request: Request, service: Mapping[str, Any], size: int) -> Record:
    return Record(
        phase=physical_record.COPYING,
        run="{0}-{1}".format(os.getpid(), time.time_ns()),
        directory=host.directory,
        work=host.work,
        programs=host.programs.directory,
        before=session.system_identifier,
        after="",
        source={key: value for key, value in request.source.keywords.items() if key not in SECRETS},
        slots=[(each.source_db, each.slot_name) for each in request.subscriptions],
        begin="0/0",
        tablespaces=sorted(request.tablespaces.values()),
        service=service,
        bytes=size,
    )


def _discard(port: int, record: Record, source: Endpoint) -> None:
    """Undo a copy that is of no use any more."""
    base_backup.end(record.copy)
    private_server.end(record.copy, ServerPrograms(record.programs, Owner.of(record.directory)))
    physical_copy.drop_slots(source, record.slots)
    _remove_files(record)
    physical_record.forget(port)


def _remove_files(record: Record) -> None:
    for directory in record.tablespaces:
        data_directory.empty_tablespace(directory)
    if os.path.lexists(record.work):
        data_directory.remove(record.work)


def _exchange(task: Task) -> None:
    """Put the copy in the place of the cluster, which is stopped."""
    record = physical_record.read(task.params["login_port"])
    if record and record.exchanged:
        task.result["phase"] = IN_PLACE
        return
    task.note("Put the copied cluster in the place of the old one")
    if task.check_mode:
        return
    if record is None or record.phase != physical_record.PREPARED:
        raise Refused(
            "No copy is ready for the server at port {0}: run state=prepared first.".format(task.params["login_port"])
        )
    _refuse_running(record)
    if task.params["source"] and not _has_slots(record, Endpoint.from_source(task.params["source"]), unread=True):
        raise Refused("The slots of the copy are gone, so that it is of no use any more: begin anew.")
    owner = Owner.of(record.directory)
    data_directory.carry_own_files(record.directory, record.copy, owner)
    data_directory.exchange(record.directory, record.copy)
    task.result["phase"] = IN_PLACE


def _refuse_running(record: Record) -> None:
    if data_directory.is_running(record.directory):
        raise Refused("A server runs on {0}: stop it first.".format(record.directory))


def _finish(task: Task) -> None:
    """See that the new cluster streams, and let the old one go."""
    port = task.params["login_port"]
    record = physical_record.read(port)
    if record is None and not task.check_mode:
        task.result["phase"] = DONE
        return
    task.note("Keep the old cluster aside" if task.params["keep_old_cluster"] else "Remove the old cluster")
    if record is None or task.check_mode:
        return
    request = _request(task.params)
    with task.session() as session:
        if session.system_identifier != record.after:
            raise Refused("The server at port {0} doesn't run on the copied cluster.".format(port))
    if record.phase != physical_record.STREAMING:
        for wanted in request.subscriptions:
            _wait(task, wanted, request.source.with_keywords(dbname=wanted.source_db))
        physical_record.write(port, record._replace(phase=physical_record.STREAMING))
    _let_go(record, task.params["keep_old_cluster"])
    physical_record.forget(port)
    task.result["phase"] = DONE


def _let_go(record: Record, keep: bool) -> None:
    """Put the old cluster aside, or remove it; a run before may have begun to."""
    if os.path.lexists(record.copy):
        if keep:
            os.rename(record.copy, record.directory + ".pgml_old")
        else:
            data_directory.remove_cluster(record.copy)
    if os.path.lexists(record.work):
        data_directory.remove(record.work)


def _wait(task: Task, wanted: Wanted, source: Endpoint) -> None:
    endpoint = Endpoint.from_login({**task.params, "login_db": wanted.db})
    with Session(endpoint) as session:
        current = subscription.read(session, wanted.name)
        if current is None or current.slot_name is None:
            raise Refused("{0} has no subscription {1} with a slot.".format(endpoint.title, quoted(wanted.name)))
        subscribed.wait_until_caught_up(
            session, source, current.oid, current.name, current.slot_name, task.params["wait_timeout"]
        )


def _remove(task: Task) -> None:
    """Give up a copy that isn't finished; one that is in its place already goes out of it again."""
    port = task.params["login_port"]
    record = physical_record.read(port)
    if record is None:
        return
    task.note("Give up the copied cluster")
    if task.check_mode:
        return
    if record.phase == physical_record.STREAMING:
        raise Refused("The copied cluster streams already, and the old one may be incomplete: run state=finished.")
    if record.exchanged:
        _refuse_running(record)
        data_directory.exchange(record.directory, record.copy)
    source = Endpoint.from_source(task.params["source"]) if task.params["source"] else Endpoint(record.source, "source")
    _discard(port, record, source)
    if task.params["create_subscriber"]:
        physical_copy.drop_passing(_converter(source, task.params["create_subscriber"]), record.slots)
