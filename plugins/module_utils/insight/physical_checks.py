# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that stands against a physical copy, on both servers and this host, found at once."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from typing import Iterator, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import (
    DistributedError,
    Refused,
    Unreachable,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import capacity, physical
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres import control_file
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.server_programs import (
    Owner,
    ServerPrograms,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session, version_text
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import enumerate_names, quoted
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import data_directory, slot

_SENDERS = 2
"""Replication connections of a base backup; the slots' readers come after it."""
_PROGRAMS = ("initdb", "pg_basebackup", "pg_ctl", "pg_resetwal")
_RIGHT_BOUNDARY_SINCE = 170006
"""Earlier ones may have recovery stop behind the record at which a slot begins, and not before it."""
_TIMES_AS_FAST = 5
"""How many times as fast as rows, with their indexes to be made, files are copied. WAL has as much less time to pile up, so that
its growth is watched from a larger size on."""


class Wanted(NamedTuple):
    """A subscription that the replica is to have."""

    name: str
    publications: Sequence[str]
    slot_name: str
    source_db: str
    copied_db: str
    """the name of its database in the cluster that is copied"""
    db: str
    """and on the replica"""
    copied_slot_name: str
    """the slot of the replica that is copied; empty when it is the upstream itself"""


class Request(NamedTuple):
    """What is asked for."""

    subscriptions: Sequence[Wanted]
    source: Endpoint
    """the upstream that has the slots, of any of its databases"""
    copied: Endpoint
    """the cluster that is copied: the upstream, or a replica of it"""
    replace: bool
    tablespaces: Mapping[str, str]
    keep_old: bool
    wal_space: int | None
    max_rate: str | None
    converter: Endpoint | None
    """the upstream as pg_createsubscriber logs in; None without it"""
    drop: bool
    """whether databases that are not distributed go"""


class Host(NamedTuple):
    """The replica's server as a part of this host."""

    directory: str
    owner: Owner
    programs: ServerPrograms

    @property
    def work(self) -> str:
        return self.directory + ".pgml_seed"

    @property
    def kept(self) -> str:
        """Where the old cluster stays, if it is to."""
        return self.directory + ".pgml_old"


def read_host(session: Session) -> Host:
    """Raises Refused where the server isn't on this host, or doesn't tell this role, or its files aren't this account's."""
    if not session.value("SELECT rolsuper FROM pg_roles WHERE rolname = current_user"):
        raise Refused("The replica's login role is no superuser.")
    row = session.row(
        "SELECT current_setting('data_directory') AS directory, (SELECT setting FROM pg_config WHERE name = 'BINDIR') AS programs"
    )
    directory = os.path.realpath(row.directory)
    identifier = control_file.system_identifier(directory) if os.path.isdir(directory) else None
    if identifier is None:
        raise Refused(
            "{0} of {1} can't be read here: run this on the server's host, as the owner of its files.".format(
                directory, session.endpoint
            )
        )
    if identifier != session.system_identifier:
        raise Refused("{0} is not on this host: another cluster is in {1}.".format(session.endpoint.title, directory))
    owner = Owner.of(directory)
    return Host(directory, owner, ServerPrograms(row.programs, owner))


class Found(NamedTuple):
    """What the checks found out."""

    problems: Sequence[str]
    unreached: Sequence[str]
    """why a server couldn't be asked, by all that an earlier task of the play may still bring about"""
    upstream: physical.Upstream | None


def check(session: Session, host: Host, request: Request) -> Found:
    """Look at everything."""
    problems: list[str] = []
    unreached: list[str] = []
    upstream = None
    with _noted(problems):
        _of_host(host, request, problems)
    size = 0
    with _noted(problems, unreached), contextlib.ExitStack() as stack:
        names = list(dict.fromkeys(each.copied_db for each in request.subscriptions))
        sessions = [stack.enter_context(Session(request.copied.with_keywords(dbname=name))) for name in names]
        upstream = physical.read_upstream(sessions)
        problems += physical.problems(upstream, physical.read_replica(session), request.tablespaces, request.replace)
        if sessions[0].is_same_server(session):
            problems.append("The replica is the server that would be copied.")
        problems += _of_names([each.name for each in upstream.databases], request)
        size = upstream.bytes
    with _noted(problems):
        problems += _of_room(host, size, request)
    for wanted in request.subscriptions:
        with _noted(problems, unreached), Session(request.source.with_keywords(dbname=wanted.source_db)) as source:
            problems += _of_publications(source, wanted)
    with _noted(problems, unreached), Session(
        request.source.with_keywords(dbname=request.subscriptions[0].source_db)
    ) as source:
        slot.check_room(source, len(request.subscriptions) + (1 if request.copied is request.source else 0))
    with _noted(problems, unreached), Session(
        request.source.with_keywords(dbname=request.subscriptions[0].source_db)
    ) as source:
        problems += _of_capacity(session, source, size, request)
    with _noted(problems, unreached):
        _try_replication(request.copied)
    if request.converter:
        with _noted(problems, unreached):
            _try_replication(request.converter)
            problems += _of_converter(request, session.version)
    return Found(list(dict.fromkeys(problems)), list(dict.fromkeys(unreached)), upstream)


@contextlib.contextmanager
def _noted(problems: list[str], unreached: list[str] | None = None) -> Iterator[None]:
    """Let one check's failure be one of the problems, or of what could not be asked, and the others go on."""
    try:
        yield
    except DistributedError as error:
        if unreached is not None and isinstance(error, Unreachable):
            unreached.append(str(error))
        else:
            problems.append(str(error))


def _of_host(host: Host, request: Request, problems: list[str]) -> None:
    for name in _PROGRAMS:
        if not host.programs.has(name):
            problems.append(
                "{0} is not there: install the server's and the client's packages.".format(host.programs.path(name))
            )
    if request.converter and not host.programs.has("pg_createsubscriber"):
        problems.append(
            "{0} is not there, which comes with PostgreSQL 17.".format(host.programs.path("pg_createsubscriber"))
        )
    obstacle = data_directory.can_exchange(host.directory, host.owner)
    if obstacle:
        problems.append(obstacle)
    if os.path.islink(os.path.join(host.directory, "pg_wal")):
        problems.append("pg_wal of {0} is elsewhere, where a copy has no place for it yet.".format(host.directory))
    if os.path.lexists(host.kept):
        problems.append("{0} is still there, the cluster that was kept before: remove it.".format(host.kept))


_ALWAYS_THERE = ("postgres", "template0", "template1")


_UNREADY = "SELECT 1 FROM pg_subscription_rel WHERE srsubstate <> 'r'"


def _of_converter(request: Request, version: int) -> list[str]:
    """What pg_createsubscriber of this version can't do, or mustn't."""
    found = []
    if version < _RIGHT_BOUNDARY_SINCE:
        found.append(
            "pg_createsubscriber of PostgreSQL {0} may apply a transaction twice: update it, or leave create_subscriber "
            "away.".format(version_text(version))
        )
    for wanted in request.subscriptions:
        endpoint = (request.converter or request.source).with_keywords(dbname=wanted.source_db)
        with Session(endpoint) as session:
            if not session.value("SELECT rolsuper FROM pg_roles WHERE rolname = current_user"):
                found.append(
                    "create_subscriber.user is no superuser of the upstream, as pg_createsubscriber needs one."
                )
            if session.value(_UNREADY):
                found.append(
                    "Database {0} has a subscription whose first copy is unfinished, and pg_createsubscriber would drop the "
                    "slots of that: leave create_subscriber away.".format(quoted(wanted.source_db))
                )
    return found


def _of_names(copied: Sequence[str], request: Request) -> list[str]:
    """A copy holds each database once, by a name that no other one of it has."""
    found = []
    names = [each.copied_db for each in request.subscriptions]
    for name in sorted({name for name in names if names.count(name) > 1}):
        found.append("Database {0} is distributed twice, and comes as a whole, once.".format(quoted(name)))
    targets = [each.db for each in request.subscriptions]
    for name in sorted({name for name in targets if targets.count(name) > 1} - set(names)):
        found.append("Database {0} is the target of two subscriptions.".format(quoted(name)))
    staying = {name for name in copied if name in _ALWAYS_THERE or not request.drop} - set(names)
    for each in request.subscriptions:
        if each.copied_db in _ALWAYS_THERE and each.db != each.copied_db:
            found.append("Database {0} keeps its name on a copy.".format(quoted(each.copied_db)))
        if each.db in staying:
            found.append(
                "Database {0} can't be named {1} on the copy, which has another one of that name.".format(
                    quoted(each.copied_db), quoted(each.db)
                )
            )
    return found


def _of_room(host: Host, size: int, request: Request) -> list[str]:
    """Tablespaces can't be measured by everybody, so that all file systems are taken together."""
    parents = [os.path.dirname(host.directory), *map(os.path.dirname, request.tablespaces.values())]
    devices = {os.stat(path).st_dev: path for path in parents if os.path.isdir(path)}
    free = sum(shutil.disk_usage(path).free for path in devices.values())
    if size < free:
        return []
    return [
        "The cluster takes {0:,} MB, and {1:,} MB are free at {2}: the old one stays until the new one streams.".format(
            size >> 20, free >> 20, enumerate_names(devices.values())
        )
    ]


def _of_publications(source: Session, wanted: Wanted) -> list[str]:
    whole = {row.pubname: row.puballtables for row in source.rows("SELECT pubname, puballtables FROM pg_publication")}
    found = []
    for name in wanted.publications:
        if name not in whole:
            found.append("{0} has no publication {1}.".format(source.endpoint.title, quoted(name)))
        elif not whole[name]:
            found.append(
                "Publication {0} is of some tables of database {1}, and a cluster comes as a whole: only whole databases can "
                "come so.".format(quoted(name), quoted(wanted.source_db))
            )
    there = slot.read(source, wanted.slot_name)
    if there:
        found.append(
            'Slot "{0}" is on the server of {1} already{2}: drop it, or choose another slot_name.'.format(
                wanted.slot_name, source.endpoint, ", and in use" if there.active else ""
            )
        )
    return found


def _of_capacity(session: Session, source: Session, size: int, request: Request) -> list[str]:
    upstream = capacity.read_upstream(source, size // _TIMES_AS_FAST, request.wal_space)
    # Files hold no snapshot, however old their rows are.
    upstream = upstream._replace(age=0)
    way = capacity.Way(0, _SENDERS, len(request.subscriptions), _speed(request.max_rate))
    return capacity.problems(upstream, capacity.read_replica(session), size, way)


def _speed(max_rate: str | None) -> float | None:
    """Bytes per second of what pg_basebackup takes as a rate; it says itself what it doesn't take."""
    match = re.match(r"\s*([0-9.]+)\s*([kM]?)\s*\Z", max_rate or "")
    return float(match.group(1)) * {"": 1024, "k": 1024, "M": 1 << 20}[match.group(2)] if match else None


def _try_replication(copied: Endpoint) -> None:
    """A physical copy has a way in of its own, and so has the server that replays WAL for it."""
    try:
        with Session(copied.with_keywords(dbname=None, replication="true")) as session:
            session.rows("IDENTIFY_SYSTEM")
    except Unreachable as error:
        raise Unreachable(
            "{0} Its pg_hba.conf needs a line for database replication and that user, as the role pgml_primary writes it "
            "for the distributor with pgml_primary_base_backups.".format(error),
            **error.details,
        ) from None
