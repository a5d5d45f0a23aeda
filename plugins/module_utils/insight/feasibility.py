# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands against each strategy, and what it costs, from what was measured. Nothing here talks to a server."""

from __future__ import annotations

from typing import Callable, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.insight import amounts, capacity, measuring
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.measuring import Measured
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import enumerate_names

STRATEGIES = ("dump", "fdw", "logical", "native")
"""By the size that they are meant for."""

_ROW_BYTES, _VALUE_BYTES = 72, 56
"""What PostgresML has in memory for a row and for a value of it while it trains with Python's libraries: the result of its query,
two matrices of C(float4), and a list and an array that Python makes of them. The model itself comes on top."""


class Allowed(NamedTuple):
    """What the user lets happen."""

    replicas: int
    restart: bool
    replica_superuser: bool
    native: bool
    replicated: bool = False
    """whether the replicas have their first copy by logical replication already"""


class Verdict(NamedTuple):
    """Whether a strategy can be used here, and why."""

    obstacles: Sequence[str]
    """sentences; it can't be used when there are any"""
    notes: Sequence[str]
    """sentences about what it takes"""

    @property
    def feasible(self) -> bool:
        return not self.obstacles


class Estimate(NamedTuple):
    """What a strategy costs."""

    seconds: float
    """of the first copy"""
    replica_bytes: int
    """on the replica's disk, with indexes, at the most"""
    wal: int | None
    """bytes that the primary keeps during the first copy; None when the rate of WAL is unknown"""
    memory: int
    """bytes, where PostgresML trains on the largest table"""


def judge(measured: Measured, allowed: Allowed) -> dict[str, Verdict]:
    """Each strategy's verdict."""
    judges: dict[str, Callable[[Measured, Allowed], Verdict]] = {
        "dump": _dump,
        "fdw": _fdw,
        "logical": _logical,
        "native": _native,
    }
    return {strategy: judges[strategy](measured, allowed) for strategy in STRATEGIES}


def estimate(measured: Measured) -> dict[str, Estimate]:
    """Each strategy's costs; copies are taken to be as slow as capacity.BYTES_PER_SECOND."""
    memory = _training_memory(measured)
    seconds = measured.data / capacity.BYTES_PER_SECOND
    wal = None if measured.wal_per_second is None else int(measured.wal_per_second * seconds)
    return {
        "dump": Estimate(seconds, 2 * measured.total, 0, memory),  # the new tables stand beside the old ones
        "fdw": Estimate(0.0, 0, 0, memory),
        "logical": Estimate(seconds, measured.total, wal, memory),
        "native": Estimate(0.0, 0, 0, memory),
    }


def _training_memory(measured: Measured) -> int:
    """For the largest table, partitions together."""
    needed: dict[tuple[str, str], int] = {}
    for each in measured.storage:
        key = each.table.top or each.table.key
        needed[key] = needed.get(key, 0) + each.rows * (_ROW_BYTES + _VALUE_BYTES * each.columns)
    return max(needed.values(), default=0)


def _extensions(measured: Measured, allowed: Allowed) -> list[str]:
    names = measured.types.extensions
    if not names:
        return []
    words = "The replicas need extension{0} {1}, which the columns' types are of{2}"
    wait = (
        "."
        if allowed.replica_superuser
        else ": have a superuser create {0} there.".format("it" if len(names) == 1 else "them")
    )
    return [words.format("" if len(names) == 1 else "s", enumerate_names(names), wait)]


def _not_brought(measured: Measured, but: Sequence[str] = ()) -> list[str]:
    left = ["{0} ({1})".format(each["name"], each["reason"]) for each in measured.left_out if each["reason"] not in but]
    return ["It doesn't bring {0}.".format(enumerate_names(left))] if left else []


def _dump(measured: Measured, allowed: Allowed) -> Verdict:
    notes = _extensions(measured, allowed) + _not_brought(measured)
    if measured.types.text_only:
        notes.append(
            "Tables with columns of {0} are copied as text, which is slower.".format(
                enumerate_names(measured.types.text_only)
            )
        )
    return Verdict([], notes)


def _fdw(measured: Measured, allowed: Allowed) -> Verdict:
    obstacles = []
    if not allowed.replica_superuser:
        obstacles.append("The login on the replicas is no superuser, and only one may create extension postgres_fdw.")
    if measured.types.of_tables:
        obstacles.append(
            "Foreign tables can't have columns of the row types of {0}, which are not brought.".format(
                enumerate_names(measured.types.of_tables)
            )
        )
    return Verdict(obstacles, ["Each query reads the primary."] + _extensions(measured, allowed))


def _native(measured: Measured, allowed: Allowed) -> Verdict:
    obstacles = []
    if measured.server.service != measuring.SELF_MANAGED:
        obstacles.append("{0} doesn't let PostgresML be installed.".format(_SERVICES[measured.server.service]))
    if not allowed.native:
        obstacles.append("PostgresML may not be installed in the production server (native_allowed is false).")
    memory = amounts.size(_training_memory(measured))
    return Verdict(obstacles, ["Training takes the primary's memory, about {0} for the largest table.".format(memory)])


_SERVICES = {"rds": "Amazon RDS", "cloudsql": "Cloud SQL", "azure": "Azure Database for PostgreSQL"}
_REMEDIES = {
    "rds": "set rds.logical_replication to 1 in its parameter group, and reboot it",
    "cloudsql": "set its flag cloudsql.logical_decoding to on, which restarts it",
    "azure": "set its server parameter wal_level to logical in the portal, and restart it",
}
"""https://aws.amazon.com/premiumsupport/knowledge-center/rds-postgresql-use-logical-replication/,
https://cloud.google.com/sql/docs/postgres/replication/configure-logical-replication,
https://learn.microsoft.com/en-us/azure/postgresql/flexible-server/concepts-logical"""


def _logical(measured: Measured, allowed: Allowed) -> Verdict:
    server = measured.server
    obstacles: list[str] = []
    notes: list[str] = []
    if server.standby:
        obstacles.append(
            "The server is a standby, where no publication can be made: let replicas take from its primary."
        )
    restart = _restart(measured, allowed)
    (notes if _may_restart(measured, allowed) else obstacles).extend(restart)
    if measured.faults:
        one = len(measured.faults) == 1
        obstacles.append(
            "{0}, so that UPDATE and DELETE would fail there once {1} published: give {2} a primary key or another replica "
            "identity.".format(
                enumerate_names("{0} {1}".format(fault.identity.label, fault.reason) for fault in measured.faults),
                "it is" if one else "they are",
                "it" if one else "each",
            )
        )
    if not allowed.replica_superuser:
        obstacles.append("The login on the replicas may not create subscriptions.")
    if not allowed.replicated:
        obstacles += _too_much_wal(measured)
    if measured.full:
        notes.append(
            "Replicas search the whole table for each changed row of {0}, whose replica identity is FULL, unless an index "
            "helps.".format(enumerate_names(measured.full))
        )
    return Verdict(obstacles, notes + _extensions(measured, allowed) + _not_brought(measured))


def _may_restart(measured: Measured, allowed: Allowed) -> bool:
    """A managed service is never configured from here."""
    return allowed.restart and measured.server.service == measuring.SELF_MANAGED


def _restart(measured: Measured, allowed: Allowed) -> list[str]:
    """What takes a restart of the server."""
    server, managed = measured.server, measured.server.service != measuring.SELF_MANAGED
    found = []
    if server.wal_level != "logical":
        words = "wal_level is {0}, and changing it takes a restart{1}."
        how = "" if _may_restart(measured, allowed) else ", which is not allowed (restart_allowed is false)"
        if managed:
            how = ": {0} does it when you {1}".format(_SERVICES[server.service], _REMEDIES[server.service])
        found.append(words.format(server.wal_level, how))
    for setting, free in (("max_replication_slots", server.slots), ("max_wal_senders", server.senders)):
        if free < allowed.replicas:
            found.append(
                "Of {0}, {1} {2} left and {3} needed: raising it takes a restart{4}.".format(
                    setting,
                    max(free, 0),
                    "is" if free == 1 else "are",
                    "1 is" if allowed.replicas == 1 else "{0} are".format(allowed.replicas),
                    ", where the service is managed" if managed else "",
                )
            )
    return found


def _too_much_wal(measured: Measured) -> list[str]:
    """Whether a first copy would be refused for the WAL that is written meanwhile, as pgml_subscription would."""
    wal, server = estimate(measured)["logical"].wal, measured.server
    found: list[str] = []
    if wal is None:
        return found
    words = "The primary would write {0} of WAL during the first copy, and ".format(amounts.size(wal))
    if server.free_disk is not None and wal > capacity.SHARE_OF_SPACE * server.free_disk:
        found.append(
            words + "only {0} of disk are free, of which half may be used.".format(amounts.size(server.free_disk))
        )
    if server.wal_limit is not None and wal > server.wal_limit:
        found.append(words + "a slot may keep {0} (max_slot_wal_keep_size).".format(amounts.size(server.wal_limit)))
    return found
