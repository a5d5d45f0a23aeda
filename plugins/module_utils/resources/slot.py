# SPDX-License-Identifier: GPL-3.0-or-later
"""Replication slots on the upstream."""

from __future__ import annotations

import contextlib
import struct
import time
from typing import Any, Iterator, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused, ServerRefused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session, version_text
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    NAME_BYTES,
    compose,
    identifier,
    literal,
    raw,
)

PATIENCE_SECONDS = 30
"""How long a slot may stay active after its subscription was disabled."""
CREATION_SECONDS = 10
"""How long the creation of a slot may wait for the transactions that run: it blocks nobody meanwhile."""
_MOST_PEEKED_BYTES = 256 << 20
"""WAL that is looked through"""
_IN_USE = "55006"
"""object_in_use"""
_PATIENCE = "{0} s".format(CREATION_SECONDS)
_OPTIONS_SINCE = 150000
"""Before, CREATE_REPLICATION_SLOT had a grammar of its own."""

FIRST_COPY_SLOTS_SINCE = 140000
FAILOVER_SINCE = 170000


class Slot(NamedTuple):
    """A logical replication slot."""

    name: str
    database: str
    plugin: str
    active: bool
    wal_status: str | None
    flushed: str | None
    """up to where it was used; where it begins as long as nobody has"""


def check_name(name: str) -> None:
    """Refuse a name that no slot can have, see
    https://www.postgresql.org/docs/current/warm-standby.html#STREAMING-REPLICATION-SLOTS-MANIPULATION."""
    if not name or len(name) > NAME_BYTES or not set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_"):
        raise Refused(
            'slot_name "{0}" is not possible: a slot\'s name has 1 to {1} lower-case letters, digits and underscores.'.format(
                name, NAME_BYTES
            )
        )


def read(source: Session, name: str) -> Slot | None:
    """The slot *name* of the session's server."""
    row = source.row(
        "SELECT slot_name, database, plugin, active, wal_status, confirmed_flush_lsn::text AS flushed FROM pg_replication_slots"
        " WHERE slot_name = %s",
        [name],
    )
    return row and Slot(*row)


def check_room(source: Session, needed: int) -> None:
    """Refuse when the server can't have *needed* more slots, or doesn't write what they need."""
    row = source.row(
        "SELECT current_setting('wal_level') AS wal_level, current_setting('max_replication_slots')::int AS most,"
        " (SELECT count(*) FROM pg_replication_slots) AS used,"
        " (SELECT string_agg(quote_ident(slot_name), ', ' ORDER BY slot_name) FROM pg_replication_slots) AS names"
    )
    if row.wal_level != "logical":
        raise Refused(
            "The server of {0} has wal_level = {1}: logical replication needs logical, which takes a restart.".format(
                source.endpoint, row.wal_level
            )
        )
    if row.most - row.used < needed:
        raise Refused(
            "All replication slots are in use on the server of {0}: {1} of max_replication_slots = {2}, and {3} more {4} "
            "needed ({5}).".format(
                source.endpoint, row.used, row.most, needed, "is" if needed == 1 else "are", row.names or "none"
            )
        )


def create(source: Session, name: str, failover: bool) -> None:
    """Create a slot for pgoutput. It gives up when older transactions don't end, and leaves nothing then."""
    query = "SELECT pg_create_logical_replication_slot({name}, 'pgoutput'{failover})"
    failing_over = raw(", false, false, true" if failover else "")
    with Session(source.endpoint, lock_timeout=_PATIENCE) as patient:
        _create(source, patient, name, compose(query, name=literal(name), failover=failing_over))


@contextlib.contextmanager
def exporting(source: Session, name: str, failover: bool) -> Iterator[tuple[str, str]]:
    """The same, yielding where the slot begins and the name of a snapshot that shows what was committed there. It can be imported
    until the block ends, see https://www.postgresql.org/docs/current/logicaldecoding-explanation.html#LOGICALDECODING-EXPORTED-SNAPSHOTS.
    """
    options = "(SNAPSHOT 'export'{0})".format(", FAILOVER" if failover else "")
    command = compose(
        "CREATE_REPLICATION_SLOT {name} LOGICAL pgoutput {options}",
        name=identifier(name),
        options=raw(options if source.version >= _OPTIONS_SINCE else "EXPORT_SNAPSHOT"),
    )
    with Session(source.endpoint.with_keywords(replication="database"), lock_timeout=_PATIENCE) as patient:
        row = _create(source, patient, name, command)
        yield row.consistent_point, row.snapshot_name


def check_failover(source: Session, wanted: str | None) -> None:
    """Refuse C(failover) where the source doesn't know it."""
    if wanted == "true" and source.version < FAILOVER_SINCE:
        raise Refused(
            "failover needs PostgreSQL {0} or later on the upstream; the server of {1} is {2}.".format(
                FAILOVER_SINCE // 10000, source.endpoint, version_text(source.version)
            )
        )


def _create(source: Session, patient: Session, name: str, command: Any) -> Any:
    try:
        return patient.row(command)
    except ServerRefused as error:
        if error.details.get("sqlstate") != "55P03":
            raise
        raise Refused(
            'Slot "{0}" was not created: on the server of {1} transactions kept running for {2} s{3}. Nothing was '
            "changed; try again when they have ended.".format(name, source.endpoint, CREATION_SECONDS, _running(source))
        ) from None


def truncated(source: Session, name: str, publications: Sequence[str]) -> set[int]:
    """The oids of tables whose TRUNCATE the slot will bring; none when there is more WAL than can be looked through quickly.

    The messages are those of https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html.
    """
    query = (
        "SELECT m.data FROM pg_replication_slots AS s CROSS JOIN LATERAL pg_logical_slot_peek_binary_changes(s.slot_name,"
        "  NULL, NULL, 'proto_version', '1', 'publication_names', %s) AS m"
        " WHERE s.slot_name = %s AND pg_current_wal_lsn() - s.confirmed_flush_lsn < %s AND get_byte(m.data, 0) = ascii('T')"
    )
    names = ",".join('"{0}"'.format(each.replace('"', '""')) for each in publications)
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            rows = source.rows(query, [names, name, _MOST_PEEKED_BYTES])
            break
        except ServerRefused as error:
            # The session that created the slot has yet to end.
            if error.details.get("sqlstate") != _IN_USE or time.monotonic() > end:
                raise
            time.sleep(0.05)
    return {oid for row in rows for oid in _oids(bytes(row.data))}


def _oids(message: bytes) -> Sequence[int]:
    """Those of a TRUNCATE message: a letter, a count, a byte of options, the oids."""
    (count,) = struct.unpack_from("!i", message, 1)
    return struct.unpack_from("!{0}I".format(count), message, 6)


def drop(source: Session, name: str) -> bool:
    """Drop a slot once nobody uses it; False when it is still active after PATIENCE_SECONDS."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        slot = read(source, name)
        if slot is None:
            return True
        if not slot.active:
            source.execute("SELECT pg_drop_replication_slot(%s)", [name])
            return True
        if time.monotonic() > end:
            return False
        time.sleep(0.2)


def left_in_use(source: Session, name: str) -> str:
    """The sentence about a slot that drop() couldn't drop."""
    return 'Slot "{0}", which a run that died has left, is still in use on the server of {1}: try again later.'.format(
        name, source.endpoint
    )


def names_of_first_copies(session: Session, subscription: int, tables: Sequence[int]) -> list[str]:
    """The slots that first copies of these tables may have on the publisher; before 14 they were temporary."""
    if session.version < FIRST_COPY_SLOTS_SINCE:
        return []
    return ["pg_{0}_sync_{1}_{2}".format(subscription, table, session.system_identifier) for table in tables]


def left_by(source: Session, system_identifier: str, live: Sequence[int]) -> list[str]:
    """The first-copy slots that the cluster *system_identifier* made for subscriptions it no longer has."""
    return [
        row.slot_name
        for row in source.rows(
            "SELECT slot_name FROM pg_replication_slots WHERE slot_name ~ %s AND NOT active"
            " AND NOT split_part(slot_name, '_', 2)::oid = ANY(%s::oid[]) ORDER BY 1",
            ["^pg_[0-9]+_sync_[0-9]+_" + system_identifier + "$", list(live)],
        )
    ]


def _running(source: Session) -> str:
    """The transactions that slot creation waits for, oldest first, prepared ones too."""
    rows: list[Any] = source.rows(
        "SELECT 'process ' || a.pid || coalesce(' of user \"' || a.usename || '\"', '')"
        "  || coalesce(', ' || a.state || ' for ' || date_trunc('second', clock_timestamp() - a.xact_start), '') AS what"
        " FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)"
        " WHERE l.locktype = 'transactionid' AND l.granted AND l.mode = 'ExclusiveLock' AND a.pid <> pg_backend_pid()"
        " UNION ALL SELECT 'prepared transaction \"' || gid || '\"' FROM pg_prepared_xacts LIMIT 3"
    )
    return ": " + "; ".join(row.what for row in rows) if rows else ""
