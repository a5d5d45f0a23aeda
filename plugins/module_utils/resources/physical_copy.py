# SPDX-License-Identifier: GPL-3.0-or-later
"""A physical copy of a cluster, brought to where new slots begin and made a replica of its own, beside the replica that runs.

A slot's confirmed_flush_lsn is where its reader begins: it is sent each transaction whose commit record begins there or later. So
the copy has to hold all of those before and none of the others, which is what recovery_target_inclusive = off makes of that LSN,
see https://www.postgresql.org/docs/current/runtime-config-wal.html#GUC-RECOVERY-TARGET-INCLUSIVE. The subscription's origin is
moved there as well: https://www.postgresql.org/docs/current/functions-admin.html#PG-REPLICATION-ORIGIN-ADVANCE.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any, Callable, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import (
    DistributedError,
    Refused,
    ServerRefused,
    TimedOut,
    Unreachable,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import physical, subscribed
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.physical_checks import (
    Host,
    Request,
    Wanted,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres import control_file
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    NAME_BYTES,
    compose,
    identifier,
    literal,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import (
    copied_cluster,
    private_server,
    slot,
    subscription,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.copied_cluster import Roles
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.private_server import PrivateServer
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.subscription import Subscription
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import base_backup
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.base_backup import Pace
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.slot_guard import SlotGuard

_ORIGINS = "1000"
"""Room for the origins of whatever the upstream subscribes to"""
_ORIGINS_SETTING_SINCE = 180000
_PROBE_SECONDS = 5
_PASSING = "_seed"
_PASSFILE, _CONVERTERS = "passfile", "passfile.converter"
_APPLIED_SECONDS = 3600
"""How long the replica that is copied may take to apply what the upstream has written"""


class Copy:
    """One that is being made of *request* on *host*."""

    def __init__(
        self, host: Host, request: Request, upstream: physical.Upstream, version: int, superseded: Callable[[], bool]
    ) -> None:
        """*superseded* tells whether another run has begun since."""
        self._host, self._request, self._upstream = host, request, upstream
        self._superseded = superseded
        self._directory = os.path.join(host.work, "data")
        self._server = PrivateServer(self._directory, host.work, version, host.owner, host.programs)
        self._version = version
        self._guard: SlotGuard | None = None
        self._slots_begun = False
        self._synchronization: Any = None
        """a process that begins with it while the copy is worked at"""
        self._begins: dict[str, str] = {}
        """LSN at which each slot begins, by name"""
        self.said: list[str] = []
        self.unlogged: list[str] = []

    @property
    def begin(self) -> str:
        """Where the last of the slots begins."""
        return max(self._begins.values(), key=_number)

    def take(self, pace: Pace, restore_command: str | None) -> None:
        """Copy the files, create the slots, and have the copy replay WAL up to where they begin."""
        request = self._request
        reserved = "pgml_seed_{0}_{1}".format(os.getpid(), int(time.time()))
        self._start_guard()
        with base_backup.reserving(self._copied(0), reserved) as reservation:
            locations = {self._upstream.tablespaces[name]: here for name, here in request.tablespaces.items()}
            base_backup.take(
                self._without_password(request.copied, _PASSFILE),
                self._directory,
                locations,
                pace,
                self._host.programs,
            )
            self._host.owner.write(os.path.join(self._directory, "postgresql.auto.conf"), "")
            self._host.owner.write(os.path.join(self._directory, "standby.signal"), "")
            arguments = base_backup.synchronizing(self._directory)
            self._synchronization = self._host.programs.start(base_backup.SYNCHRONIZE, arguments)
            self._slots_begun = True
            if request.converter:
                self._convert(request.converter, restore_command)
                return
            self._create_slots()
            target = self._target(reservation)
            settings = {**self._recovery(restore_command), "recovery_target_lsn": target}
            self._server.start(settings, _Patience(self._copied(0)).look)

    def _copied(self, number: int) -> Endpoint:
        return self._request.copied.with_keywords(dbname=self._request.subscriptions[number].copied_db)

    def _source(self, wanted: Wanted) -> Endpoint:
        return self._request.source.with_keywords(dbname=wanted.source_db)

    def _start_guard(self) -> None:
        first = self._request.subscriptions[0]
        before, directory = control_file.system_identifier(self._host.directory), self._host.directory
        names, superseded = [each.slot_name for each in self._request.subscriptions], self._superseded
        self._guard = SlotGuard(
            self._source(first),
            names,
            lambda: superseded() or control_file.system_identifier(directory) not in (before, None),
            self._end_programs,
        )

    def _end_programs(self) -> None:
        base_backup.end(self._directory)
        private_server.end(self._directory, self._host.programs)

        self._forget_passwords()

    def _forget_passwords(self) -> None:
        for name in (_PASSFILE, _CONVERTERS):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self._host.work, name))

    def _create_slots(self) -> None:
        for wanted in self._request.subscriptions:
            with Session(self._source(wanted)) as source:
                slot.create(source, wanted.slot_name, failover=False)
        self._read_begins()

    def _read_begins(self) -> None:
        with Session(self._source(self._request.subscriptions[0])) as source:
            for wanted in self._request.subscriptions:
                there = slot.read(source, wanted.slot_name)
                if there is None or there.flushed is None:
                    raise Refused(
                        'Slot "{0}" has gone from the server of {1}.'.format(wanted.slot_name, source.endpoint)
                    )
                self._begins[wanted.slot_name] = there.flushed
        if self._guard:
            self._guard.created(self.begin)

    def _target(self, reservation: Session) -> str:
        """The LSN up to which the copy replays the WAL of the cluster that it is of. A record is written behind it, at which
        recovery stops: an idle server writes none for long."""
        target = self.begin
        reservation.execute("SET synchronous_commit = local")
        if self._request.copied is not self._request.source:
            self._wait_until_applied()
            target = str(reservation.value("SELECT pg_current_wal_insert_lsn()::text"))
        subscribed.mark(reservation)
        return target

    def _wait_until_applied(self) -> None:
        """Wait until the replica that is copied holds all before the slots' begin."""
        names = [each.copied_slot_name for each in self._request.subscriptions]
        end = time.monotonic() + _APPLIED_SECONDS
        while True:
            with Session(self._source(self._request.subscriptions[0]), synchronous_commit="local") as source:
                subscribed.mark(source)
                applied = source.rows(
                    "SELECT slot_name FROM pg_replication_slots WHERE slot_name = ANY(%s) AND confirmed_flush_lsn >= %s::pg_lsn",
                    [names, self.begin],
                )
            if len(applied) == len(set(names)):
                return
            if time.monotonic() > end:
                raise TimedOut(
                    "The replica that is copied has not applied within {0} s what the upstream wrote.".format(
                        _APPLIED_SECONDS
                    )
                )
            time.sleep(0.2)

    def _recovery(self, restore_command: str | None) -> dict[str, str]:
        settings = {
            "primary_conninfo": self._without_password(self._request.copied, _PASSFILE).conninfo,
            "recovery_target_inclusive": "off",
            "recovery_target_action": "promote",
            "max_prepared_transactions": str(self._upstream.standby["max_prepared_transactions"]),
            **self._room_for_origins,
        }
        return {**settings, **({"restore_command": restore_command} if restore_command else {})}

    def _without_password(self, endpoint: Endpoint, name: str) -> Endpoint:
        """*endpoint* for a program, of any database, its password in a file."""
        if "password" not in endpoint.keywords:
            return endpoint.with_keywords(dbname=None)
        path = os.path.join(self._host.work, name)
        self._host.owner.write(path, endpoint.pass_line)
        return endpoint.with_keywords(dbname=None, password=None, passfile=path)

    @property
    def _room_for_origins(self) -> dict[str, str]:
        more = {"max_active_replication_origins": _ORIGINS} if self._version >= _ORIGINS_SETTING_SINCE else {}
        return {"max_replication_slots": _ORIGINS, **more}

    def _convert(self, converter: Endpoint, restore_command: str | None) -> None:
        """Have pg_createsubscriber create the slots and bring the copy there. It subscribes the copy as well, to publications
        that it has to make itself; only how far it came is taken from that."""
        subscriptions = self._request.subscriptions
        standby = {name: str(value) for name, value in self._upstream.standby.items()}
        standby["max_worker_processes"] = str(self._upstream.standby["max_worker_processes"] + len(subscriptions))
        settings = {
            **self._recovery(restore_command),
            **standby,
            "hot_standby": "on",
            "max_logical_replication_workers": str(len(subscriptions)),
        }
        for name in ("recovery_target_inclusive", "recovery_target_action"):
            del settings[name]
        arguments = [
            "--pgdata=" + self._directory,
            "--config-file=" + self._server.configure(settings),
            "--socketdir=" + self._server.socket_directory,
            "--subscriber-port={0}".format(self._server.PORT),
            "--subscriber-username=" + self._upstream.bootstrap,
            "--publisher-server=" + self._without_password(converter, _CONVERTERS).conninfo,
        ]
        for wanted in subscriptions:
            passing = _passing(wanted.slot_name)
            arguments += ["--database=" + wanted.copied_db, "--replication-slot=" + wanted.slot_name]
            arguments += ["--publication=" + passing, "--subscription=" + passing]
        slots = [(each.source_db, each.slot_name) for each in subscriptions]
        drop_passing(converter, slots)
        try:
            self._host.programs.run("pg_createsubscriber", arguments)
        finally:
            drop_passing(converter, slots)
        self._read_begins()
        self._server.start(self._room_for_origins)

    def finish(self, own: Roles, kept_roles: Sequence[str], login: str, futures: Sequence[Subscription]) -> None:
        """Take away what came along, make the replica's own roles, and subscribe; then shut the copy down, as another cluster."""
        with self._server.explaining():
            self._make_replica(own, kept_roles, login, futures)
        self._server.stop()
        self._forget_passwords()
        if not self._request.converter:
            control_file.give_new_identifier(self._directory, self._host.owner, self._host.programs)
        self._synchronize()

    def _make_replica(self, own: Roles, kept_roles: Sequence[str], login: str, futures: Sequence[Subscription]) -> None:
        def open_(database: str) -> Session:
            return Session(self._server.endpoint(self._upstream.bootstrap, database))

        with open_(copied_cluster.MAINTENANCE) as session:
            applied = copied_cluster.positions(session)
        subscriptions = self._request.subscriptions
        kept = [each.copied_db for each in subscriptions]
        self.said += copied_cluster.drop_replication(open_)
        self.said += copied_cluster.roll_back_prepared(open_)
        if self._request.drop:
            self.said += copied_cluster.drop_databases(open_, kept)
        else:
            kept = copied_cluster.databases(open_)
        said, self.unlogged = copied_cluster.put_to_rest(open_, list(dict.fromkeys(kept)))
        self.said += said
        self.said += copied_cluster.rename_databases(open_, [(each.copied_db, each.db) for each in subscriptions])
        copied_cluster.complete(open_)
        distributor = self._request.copied.keywords["user"]
        if distributor not in [*kept_roles, *(role.name for role in own.roles)]:
            self.said += copied_cluster.drop_role(open_, distributor)
        with open_(copied_cluster.MAINTENANCE) as session:
            self.said += copied_cluster.exchange_roles(session, own, kept_roles)
        for wanted, future in zip(subscriptions, futures):
            self._subscribe(Session(self._server.endpoint(login, wanted.db)), wanted, future, applied)

    def _synchronize(self) -> None:
        """Have all of the copy on disk, most of which is there already."""
        self._end_synchronization()
        self._host.programs.run(base_backup.SYNCHRONIZE, base_backup.synchronizing(self._directory))

    def _end_synchronization(self) -> None:
        """Wait for what was begun; it may have missed files that went meanwhile."""
        begun, self._synchronization = self._synchronization, None
        if begun:
            with contextlib.suppress(ServerRefused):
                self._host.programs.finish(begun)

    def _subscribe(
        self, session: Session, wanted: Wanted, future: Subscription, applied: Mapping[tuple[str, str], str]
    ) -> None:
        """Create the subscription, which begins as soon as the copy runs as the replica."""
        position = self.begin
        before = applied.get((wanted.copied_db, wanted.name))
        if self._request.copied is not self._request.source and before:
            position = max(position, before, key=_number)
        advance = compose(
            "SELECT pg_replication_origin_advance('pg_' || oid, {position}::pg_lsn) FROM pg_subscription"
            " WHERE subname = {name} AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())",
            position=literal(position),
            name=literal(wanted.name),
        )
        with session, copied_cluster.silenced(session):
            session.apply(subscription.plan_placeholder(future))
            session.apply(subscription.plan_new(future, False, [advance]))

    def preserve(self) -> None:
        """Have the slots outlive this process for a while, from now on: whoever finds the copy ready relies on them."""
        if self._guard:
            self._guard.stay()

    def hand_over(self) -> None:
        """Leave the slots to the next step."""
        if self._guard:
            self._guard.leave()
            self._guard = None

    def close(self) -> None:
        """Leave no process behind."""
        self._end_programs()
        if self._synchronization:
            self._synchronization.kill()
        self._end_synchronization()
        self._server.close()

    def give_up(self) -> bool:
        """Drop the slots of a copy that came to nothing; False when the server that has them can't be reached, which their guard
        tries again."""
        guard, self._guard = self._guard, None
        if guard is None:
            return True
        try:
            if self._slots_begun:
                drop_slots(
                    self._request.source, [(each.source_db, each.slot_name) for each in self._request.subscriptions]
                )
        except DistributedError:
            guard.leave()
            return False
        guard.release()
        return True


class _Patience:
    """How long the server that WAL comes from may be away."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._seen = self._looked = time.monotonic()

    def look(self) -> None:
        """Raises Unreachable when that was too long."""
        now = time.monotonic()
        if now < self._looked + _PROBE_SECONDS:
            return
        self._looked = now
        try:
            Session(self._endpoint.with_keywords(dbname=None, replication="true")).close()
            self._seen = now
        except Unreachable:
            if now > self._seen + subscribed.SILENCE_SECONDS:
                raise


def drop_slots(source: Endpoint, slots: Sequence[Sequence[str]]) -> None:
    """Drop those slots, each a database and a name, once nobody reads them."""
    for database, name in slots:
        with Session(source.with_keywords(dbname=database)) as session:
            there = slot.read(session, name)
            if there and there.database == database and there.plugin == "pgoutput" and not slot.drop(session, name):
                raise Refused(slot.left_in_use(session, name))


def _passing(slot_name: str) -> str:
    """The name of what pg_createsubscriber makes for the time being."""
    return slot_name[: NAME_BYTES - len(_PASSING)] + _PASSING


def drop_passing(converter: Endpoint, slots: Sequence[Sequence[str]]) -> None:
    """Drop the publications that pg_createsubscriber has made for *slots*, or has left when it was killed."""
    for database, name in slots:
        with Session(converter.with_keywords(dbname=database)) as session:
            session.execute(compose("DROP PUBLICATION IF EXISTS {name}", name=identifier(_passing(name))))


def _number(lsn: str) -> int:
    high, _slash, low = lsn.partition("/")
    return int(high, 16) << 32 | int(low, 16)
