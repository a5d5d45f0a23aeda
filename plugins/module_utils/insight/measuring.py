# SPDX-License-Identifier: GPL-3.0-or-later
"""What a server has of the tables that are to be distributed, and how they change, from catalogs and statistics alone.

No statement waits for a lock. Sizes come from the files, which the server opens under C(ACCESS SHARE) for an instant, see
https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-ADMIN-DBSIZE. Of relations that somebody holds, or
waits for, in C(ACCESS EXCLUSIVE), the catalog's own estimate is taken instead. Each query is for all tables at once.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import ServerRefused
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import capacity, rates
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.rates import Rates
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session, version_text
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import quoted
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import contents, replica_identity, tables
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.tables import Table

_LOCK_MILLISECONDS = 100
"""How long a lock is waited for that somebody took since pg_locks was looked at."""
_NO_LOCK = "55P03"

SELF_MANAGED = "self-managed"


class Storage(NamedTuple):
    """What a table that has rows of its own takes."""

    table: Table
    heap: int
    """bytes, with the maps of free space and visibility"""
    toast: int
    """bytes of what is stored out of line, with its index"""
    indexes: int
    """bytes"""
    rows: int
    """as the planner estimates them from the last ANALYZE and the present size"""
    columns: int
    guessed: bool
    """whether part of it was locked, so that its size is that of the last VACUUM or ANALYZE"""

    @property
    def total(self) -> int:
        return self.heap + self.toast + self.indexes


class Server(NamedTuple):
    """What the server is, and has to give."""

    version: int
    service: str
    """self-managed, rds, cloudsql or azure"""
    standby: bool
    wal_level: str
    slots: int
    """replication slots that are free, or ours already"""
    free_slots: int
    senders: int
    """WAL senders that are free, or serve slots of ours"""
    free_senders: int
    wal_limit: int | None
    """bytes of WAL that a slot may keep (max_slot_wal_keep_size); None without a limit"""
    free_disk: int | None
    """bytes that are free where WAL is; None when that can't be seen"""


class Types(NamedTuple):
    """Types of the tables' columns that need something, by name."""

    extensions: Sequence[str]
    text_only: Sequence[str]
    """those that COPY moves as text, because their binary form isn't the same on every server"""
    of_tables: Sequence[str]
    """row types of tables and views, which foreign tables can't bring"""


class Measured(NamedTuple):
    """All that is known."""

    server: Server
    storage: Sequence[Storage]
    table_count: int
    """partitioned tables too"""
    sample: Rates | None
    """how rows changed while they were watched"""
    counted: Rates | None
    """how they changed since the counters began"""
    faults: Sequence[replica_identity.Fault]
    full: Sequence[str]
    """tables whose replica identity is FULL"""
    types: Types
    left_out: Sequence[dict[str, str]]
    unseen: Sequence[str]
    """sentences about what couldn't be seen"""

    @property
    def total(self) -> int:
        return sum(each.total for each in self.storage)

    @property
    def data(self) -> int:
        """Bytes that a copy moves: indexes are built where it arrives."""
        return sum(each.heap + each.toast for each in self.storage)

    @property
    def rows(self) -> int:
        return sum(each.rows for each in self.storage)

    @property
    def wal_per_second(self) -> float | None:
        """Bytes, as they were watched, or else on average."""
        found = [rate.wal for rate in (self.sample, self.counted) if rate and rate.wal is not None]
        return found[0] if found else None


def read(
    session: Session, wanted: Sequence[Table], schemas: Sequence[str] | None, sample: float, ours: Sequence[str]
) -> Measured:
    """Measure the tables *wanted*, with their partitions; *schemas* are those that are meant as a whole, None all of them."""
    leaves = [table for table in wanted if table.kind == "r"]
    oids = [table.oid for table in leaves]
    storage = _storage(session, leaves)
    unseen: list[str] = []
    server = _server(session, ours, unseen)
    counted, sampled = rates.read(session, oids, sample, server.standby, unseen)
    identities = replica_identity.read(session, oids)
    faults = [
        replica_identity.fault(identities[each.oid], each.columns, ()) for each in leaves if each.oid in identities
    ]
    return Measured(
        server,
        storage,
        len(wanted),
        sampled,
        counted,
        [fault for fault in faults if fault],
        [each.label for each in identities.values() if each.kind == "f"],
        _types(session, leaves),
        [] if schemas == [] else tables.not_movable(session, schemas),
        unseen,
    )


def _storage(session: Session, leaves: Sequence[Table]) -> list[Storage]:
    by_oid = {table.oid: table for table in leaves}
    return [
        Storage(
            by_oid[row.owner],
            int(row.heap),
            int(row.toast),
            int(row.indexes),
            int(row.rows),
            len(by_oid[row.owner].columns or ()) or row.columns,
            row.guessed,
        )
        for row in _sized(session, list(by_oid))
    ]


def _sized(session: Session, oids: Sequence[int]) -> list[Any]:
    """The rows of _STORAGE; when a lock is in the way that wasn't there a moment before, with estimates for all tables."""
    try:
        with session.transaction():
            session.shorten_lock_timeout(_LOCK_MILLISECONDS)
            return session.rows(_STORAGE, {"oids": list(oids), "guess": False})
    except ServerRefused as error:
        if error.details.get("sqlstate") != _NO_LOCK:
            raise
    return session.rows(_STORAGE, {"oids": list(oids), "guess": True})


_STORAGE = (
    "WITH t AS MATERIALIZED (SELECT oid, reltoastrelid FROM pg_class WHERE oid = ANY(%(oids)s)),"
    " part AS (SELECT oid AS owner, oid, 'heap' AS kind FROM t"
    "  UNION ALL SELECT oid, reltoastrelid, 'toast' FROM t WHERE reltoastrelid <> 0"
    "  UNION ALL SELECT t.oid, i.indexrelid, 'toast' FROM t JOIN pg_index AS i ON i.indrelid = t.reltoastrelid"
    "  UNION ALL SELECT t.oid, i.indexrelid, 'index' FROM t JOIN pg_index AS i ON i.indrelid = t.oid),"
    # Whoever waits for such a lock stands before us in the queue.
    " held AS MATERIALIZED (SELECT DISTINCT relation AS oid FROM pg_locks WHERE locktype = 'relation'"
    "  AND mode = 'AccessExclusiveLock' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())),"
    " measured AS MATERIALIZED (SELECT p.owner, p.kind, c.reltuples, c.relpages, h.oid IS NOT NULL OR %(guess)s AS guessed,"
    "  CASE WHEN h.oid IS NOT NULL OR %(guess)s THEN c.relpages * current_setting('block_size')::int8"
    "   ELSE coalesce(pg_relation_size(c.oid), 0) END AS main,"
    "  CASE WHEN h.oid IS NOT NULL OR %(guess)s THEN 0 ELSE coalesce(pg_relation_size(c.oid, 'fsm')"
    "   + pg_relation_size(c.oid, 'vm') + pg_relation_size(c.oid, 'init'), 0) END AS others"
    "  FROM part AS p JOIN pg_class AS c ON c.oid = p.oid LEFT JOIN held AS h ON h.oid = p.oid)"
    " SELECT owner, bool_or(guessed) AS guessed, coalesce(sum(main + others) FILTER (WHERE kind = 'heap'), 0) AS heap,"
    "  coalesce(sum(main + others) FILTER (WHERE kind = 'toast'), 0) AS toast,"
    "  coalesce(sum(main + others) FILTER (WHERE kind = 'index'), 0) AS indexes,"
    # As the planner does, https://www.postgresql.org/docs/current/row-estimation-examples.html. Without an ANALYZE reltuples
    # is -1, and before PostgreSQL 14 both are 0.
    "  max(CASE WHEN kind <> 'heap' THEN 0 WHEN relpages > 0 AND reltuples >= 0"
    "   THEN round(reltuples::numeric / relpages * (main / current_setting('block_size')::int8))"
    "   ELSE pg_stat_get_live_tuples(owner) END) AS rows,"
    "  (SELECT count(*) FROM pg_attribute WHERE attrelid = owner AND attnum > 0 AND NOT attisdropped) AS columns"
    " FROM measured GROUP BY owner"
)


def _server(session: Session, ours: Sequence[str], unseen: list[str]) -> Server:
    row = session.row(_SERVER, {"ours": list(ours)})
    disk = capacity.wal_space(session)
    if disk is None:
        unseen.append(
            "Free disk can't be seen: the server has to run where the module does, which must be allowed to look at its files, "
            'and user "{0}" must be a member of pg_read_all_settings.'.format(session.endpoint.keywords.get("user"))
        )
    return Server(
        session.version,
        _service(session),
        row.standby,
        row.wal_level,
        row.slots - row.slots_taken,
        row.slots - row.slots_taken - row.slots_ours,
        row.senders - row.senders_taken,
        row.senders - row.senders_taken - row.senders_ours,
        None if row.wal_limit < 0 else row.wal_limit << 20,
        disk,
    )


_SERVER = (
    "SELECT pg_is_in_recovery() AS standby, current_setting('wal_level') AS wal_level,"
    " (SELECT setting::int8 FROM pg_settings WHERE name = 'max_slot_wal_keep_size') AS wal_limit,"
    " current_setting('max_replication_slots')::int AS slots, current_setting('max_wal_senders')::int AS senders,"
    " count(slot_name) FILTER (WHERE slot_name <> ALL(%(ours)s::text[])) AS slots_taken,"
    " count(slot_name) FILTER (WHERE slot_name = ANY(%(ours)s::text[])) AS slots_ours,"
    " count(active_pid) FILTER (WHERE slot_name = ANY(%(ours)s::text[])) AS senders_ours,"
    " (SELECT count(*) FROM pg_stat_get_wal_senders() AS s WHERE s.pid > 0)"
    "  - count(active_pid) FILTER (WHERE slot_name = ANY(%(ours)s::text[])) AS senders_taken"
    " FROM pg_replication_slots"
)


def _service(session: Session) -> str:
    """Which managed service the server is one of: each has settings of its own. Those of libraries that aren't loaded are in no
    view, but can be asked for by name."""
    found = session.value(
        "SELECT s.service FROM " + _SERVICES + " WHERE EXISTS (SELECT FROM pg_settings WHERE name ~ s.mine)"
    )
    if found is None:
        with contextlib.suppress(ServerRefused):  # it is there, and only told to superusers
            found = session.value(
                "SELECT s.service FROM " + _SERVICES + " WHERE current_setting(s.known, true) IS NOT NULL"
            )
    return found or SELF_MANAGED


_SERVICES = (
    "(VALUES ('rds', '^rds\\.', 'rds.logical_replication'), ('cloudsql', '^cloudsql\\.', 'cloudsql.logical_decoding'),"
    " ('azure', '^azure\\.', 'azure.accepted_password_auth_method')) AS s(service, mine, known)"
)


def _types(session: Session, leaves: Sequence[Table]) -> Types:
    chosen = {table.oid: table.columns for table in leaves}
    found = [
        row
        for row in session.rows(_TYPES, {"oids": list(chosen), **contents.TYPE_LISTS})
        if any(name in (chosen[oid] or (name,)) for oid, name in zip(row.tables, row.columns))
    ]
    return Types(
        sorted({name for row in found for name in row.extensions}),
        sorted(row.name for row in found if not row.binary),
        sorted({quoted(*row.relation) for row in found if row.relation}),
    )


_TYPES = (
    "WITH a AS MATERIALIZED (SELECT atttypid, array_agg(attrelid) AS tables, array_agg(attname::text) AS columns"
    "  FROM pg_attribute WHERE attrelid = ANY(%(oids)s) AND attnum > 0 AND NOT attisdropped AND attgenerated = ''"
    "  GROUP BY 1),"
    # What a type is made of: the base of a domain, the element of an array.
    " base AS (SELECT t.oid, CASE WHEN d.typelem <> 0 AND d.typlen = -1 THEN d.typelem ELSE d.oid END AS base"
    "  FROM pg_type AS t JOIN pg_type AS d ON d.oid = CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END)"
    " SELECT format_type(t.oid, NULL) AS name, a.tables, a.columns, " + contents.BINARY + " AS binary,"
    "  array(SELECT e.extname::text FROM pg_depend AS x JOIN pg_extension AS e ON e.oid = x.refobjid"
    "   WHERE x.classid = 'pg_type'::regclass AND x.objid IN (t.oid, base.base) AND x.deptype = 'e'"
    "   AND x.refclassid = 'pg_extension'::regclass) AS extensions,"
    "  CASE WHEN r.oid IS NOT NULL THEN ARRAY[n.nspname::text, r.relname::text] END AS relation"
    " FROM a JOIN pg_type AS t ON t.oid = a.atttypid JOIN base ON base.oid = t.oid JOIN pg_type AS b ON b.oid = base.base"
    " LEFT JOIN pg_class AS r ON r.oid = b.typrelid AND r.relkind <> 'c' LEFT JOIN pg_namespace AS n ON n.oid = r.relnamespace"
)


def as_result(measured: Measured) -> dict[str, Any]:
    """The same as a return value."""
    server, types = measured.server, measured.types
    return {
        "bytes": {
            "heap": sum(each.heap for each in measured.storage),
            "toast": sum(each.toast for each in measured.storage),
            "indexes": sum(each.indexes for each in measured.storage),
            "total": measured.total,
        },
        "tables": measured.table_count,
        "rows": measured.rows,
        "estimated_tables": sorted(each.table.label for each in measured.storage if each.guessed),
        "changes_per_hour": rates.as_result(measured.sample or measured.counted),
        "wal_bytes_per_second": None if measured.wal_per_second is None else round(measured.wal_per_second, 1),
        "wal_level": server.wal_level,
        "version": version_text(server.version),
        "service": server.service,
        "standby": server.standby,
        "free_slots": server.free_slots,
        "free_senders": server.free_senders,
        "free_disk_bytes": server.free_disk,
        "without_identity": replica_identity.as_result(measured.faults),
        "extensions": list(types.extensions),
        "types_without_binary": list(types.text_only),
        "types_without_fdw": list(types.of_tables),
        "left_out": list(measured.left_out),
        "unseen": list(measured.unseen),
    }
