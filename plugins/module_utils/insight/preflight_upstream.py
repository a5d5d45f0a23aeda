# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands against a distribution on the server that it comes from."""

from __future__ import annotations

from typing import Any, Collection, Iterable, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import ServerRefused
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import capacity
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.findings import Findings, Permission
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    enumerate_names,
    quoted,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import publication, schema, tables
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.tables import Table

STRATEGIES = ["auto", "dump", "fdw", "logical"]
"""Of auto, which is yet to be chosen, only that is looked at which all of them need."""

OPTIONS: dict[str, Any] = {
    "distributor": {"type": "str", "required": True},
    "subscriptions": {"type": "int", "default": 0},
    "max_slot_wal_keep_size": {"type": "str"},
    "restart": {"type": "bool", "default": False},
    "managed": {"type": "bool", "default": False},
    "replica_identity": {"type": "str", "choices": ["require", "full", "ignore"], "default": "require"},
    "distributions": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "strategy": {"type": "str", "required": True, "choices": STRATEGIES},
            "database": {"type": "str", "required": True},
            "tables": {"type": "list", "elements": "raw", "default": []},
            "schemas": {"type": "list", "elements": "str", "default": []},
            "exclude_tables": {"type": "list", "elements": "str", "default": []},
            "publication": {"type": "str"},
            "slots": {"type": "list", "elements": "str", "default": []},
        },
    },
}


class Contents(NamedTuple):
    """What the distributions hold, by their names."""

    tables: dict[str, list[str]]
    sizes: dict[str, int]
    """bytes of those whose rows are moved"""
    published: list[str]
    """the distributions whose publication is there as it is asked for"""


LOCK_TIMEOUT = "1 s"
"""Of whatever looks: a lock that somebody holds that long is no reason to wait."""
_LOCK_NOT_AVAILABLE = "55P03"
PLUGIN = "pgoutput"
_PER_SUBSCRIPTION = 3
"""A subscription takes a slot and a sender for itself, and one each for the two tables that it copies at a time."""
_SPARE_SENDERS = 3


def look(
    session: Session, wanted: Mapping[str, Any], coming: Sequence[Mapping[str, Any]], found: Findings
) -> dict[str, Any]:
    """Look at the upstream of *wanted*, the option as_upstream, and return the facts that its replicas are held against.

    :param coming: the distributions that it is itself a replica of, whose tables may not be there yet
    """
    facts = _distributor(session, wanted["distributor"], found)
    with found.refusals("setting"):
        facts["slots"] = _replication(session, wanted, found)
    if any(entry["strategy"] == "logical" for entry in wanted["distributions"]):
        for words in capacity.outdated(session.version):
            found.warn("version", words)
    facts["wal_space"] = capacity.wal_space(session)
    facts.update(_contents(session, wanted, {entry["name"] for entry in coming}, found)._asdict())
    return facts


def _distributor(session: Session, name: str, found: Findings) -> dict[str, Any]:
    row = session.row(
        "SELECT r.rolname IS NOT NULL AS known, r.rolvaliduntil <= clock_timestamp() AS expired,"
        " has_table_privilege('pg_authid', 'SELECT') AS readable, current_setting('max_connections')::int"
        "  - current_setting('superuser_reserved_connections')::int"
        "  - coalesce(current_setting('reserved_connections', true)::int, 0) - count(a.pid) AS free,"
        " r.rolconnlimit - count(a.pid) FILTER (WHERE a.usesysid = r.oid) AS allowed, r.rolconnlimit AS most"
        " FROM (SELECT 1) AS one LEFT JOIN pg_roles AS r ON r.rolname = %s"
        " LEFT JOIN pg_stat_activity AS a ON a.datid IS NOT NULL AND a.pid <> pg_backend_pid()"
        " GROUP BY r.oid, r.rolname, r.rolvaliduntil, r.rolconnlimit",
        [name],
    )
    if row.expired:
        words = "The password of role {0} has expired (VALID UNTIL), so that nobody can connect as it: give it a later date."
        found.error("distributor", words.format(quoted(name)))
    limited = row.most is not None and row.most >= 0
    return {
        "distributor_exists": row.known,
        "sets_password": row.readable or not row.known,
        "free_connections": min(row.free, row.allowed) if limited else row.free,
    }


def _replication(session: Session, wanted: Mapping[str, Any], found: Findings) -> list[str]:
    """See that the server can have the slots and senders, and return which of ours are there."""
    permission = Permission(wanted["managed"], wanted["restart"], "pgml_primary_restart")
    entries = {slot: entry for entry in wanted["distributions"] for slot in entry["slots"]}
    there = {
        row.slot_name: row
        for row in session.rows("SELECT slot_name, plugin, database, slot_type FROM pg_replication_slots ORDER BY 1")
    }
    ours = _ours(there, entries, found)
    if not wanted["subscriptions"]:
        return ours
    row = session.row(_USED, [list(entries)])
    needed = wanted["subscriptions"] * _PER_SUBSCRIPTION + row.others
    minimum: dict[str, Any] = {
        "wal_level": "logical",
        "max_wal_senders": needed + _SPARE_SENDERS,
        "max_replication_slots": needed,
    }
    if not row.others and wanted["max_slot_wal_keep_size"]:
        minimum["max_slot_wal_keep_size"] = wanted["max_slot_wal_keep_size"]
    if row.standbys and row.max_senders < minimum["max_wal_senders"]:
        found.error(
            "setting",
            "max_wal_senders is {0} and has to be {1}, and physical standbys stop when theirs is lower: raise it on every "
            "standby first, then here.".format(row.max_senders, minimum["max_wal_senders"]),
        )
    else:
        found.hold_settings(session, minimum, permission)
    _hold_room(there, entries, row, minimum, found)
    return ours


_USED = (
    "SELECT (SELECT count(*)::int FROM pg_replication_slots WHERE slot_name !~ '^(pgml_|pg_[0-9]+_sync_)'"
    "  AND NOT slot_name = ANY(%s::text[])) AS others,"
    " (SELECT count(*)::int FROM pg_stat_replication AS r LEFT JOIN pg_replication_slots AS s ON s.active_pid = r.pid"
    "  WHERE s.slot_type IS DISTINCT FROM 'logical') AS standbys,"
    " (SELECT count(*)::int FROM pg_stat_get_wal_senders() AS s WHERE s.pid > 0) AS senders,"
    " current_setting('max_wal_senders')::int AS max_senders, current_setting('max_replication_slots')::int AS max_slots"
)


def _ours(there: Mapping[str, Any], entries: Mapping[str, Any], found: Findings) -> list[str]:
    """Those of the slots that are there and can be what a subscription takes; others are in its way."""
    ours = []
    for name, entry in sorted(entries.items()):
        row = there.get(name)
        if row is None:
            continue
        if (row.plugin, row.database) == (PLUGIN, entry["database"]):
            ours.append(name)
            continue
        what = "a physical slot"
        if row.slot_type == "logical":
            what = "of plugin {0} in database {1}".format(row.plugin, quoted(row.database))
        words = "Slot {0}, which distribution {1} is to have, is {2}: drop it, or rename the distribution."
        found.error("name", words.format(name, quoted(entry["name"]), what))
    return ours


def _hold_room(
    there: Mapping[str, Any], entries: Mapping[str, Any], row: Any, minimum: Mapping[str, Any], found: Findings
) -> None:
    """See that there is room for the slots that are missing, and a sender for each, once the settings have their *minimum*."""
    missing = len(set(entries) - set(there))
    slots = max(row.max_slots, minimum["max_replication_slots"])
    found.hold_limit(
        "limit",
        "All replication slots are in use ({0} of max_replication_slots = {1}: {2})".format(
            len(there), slots, enumerate_names(there) or "none"
        )
        if len(there) >= slots
        else "Replication slots (max_replication_slots = {0})".format(slots),
        slots - len(there),
        missing,
        "drop those that nobody reads, or raise it",
    )
    senders = max(row.max_senders, minimum["max_wal_senders"])
    found.hold_limit(
        "limit",
        "Senders (max_wal_senders = {0})".format(senders),
        senders - row.senders,
        missing,
        "raise it, or end what else takes WAL from here",
    )


def _contents(session: Session, wanted: Mapping[str, Any], coming: Collection[str], found: Findings) -> Contents:
    here = [entry for entry in wanted["distributions"] if entry["name"] not in coming]
    contents = Contents({}, {}, [])
    databases = list(dict.fromkeys(entry["database"] for entry in here))
    query = "SELECT datname FROM pg_database WHERE datname = ANY(%s::text[]) AND datallowconn"
    there = {row.datname for row in session.rows(query, [databases])}
    for database in databases:
        entries = [entry for entry in here if entry["database"] == database]
        if database not in there:
            labels = enumerate_names(quoted(entry["name"]) for entry in entries)
            words = 'Database "{0}" of distribution {1} does not exist: create it, or correct its name.'
            found.error("database", words.format(database, labels))
            continue
        with found.refusals("database"), Session(
            session.endpoint.with_keywords(dbname=database), lock_timeout=LOCK_TIMEOUT
        ) as inside:
            for entry in entries:
                with found.refusals("table"):
                    if entry["strategy"] == "logical" and _is_published(inside, entry, wanted["replica_identity"]):
                        contents.published.append(entry["name"])
                    relations = _relations(inside, entry)
                    contents.tables[entry["name"]] = [table.label for table in relations]
                    if entry["strategy"] in ("dump", "logical"):
                        contents.sizes[entry["name"]] = _size(inside, relations)
    return contents


def _relations(session: Session, entry: Mapping[str, Any]) -> list[Table]:
    """What a distribution holds, refused where foreign tables can't carry that."""
    everything = not entry["tables"] and not entry["schemas"]
    if entry["strategy"] == "fdw":
        names = [each.name for each in tables.parse_requests(entry["tables"]) or ()]
        return tables.importable(session, tables.parse_names(session, names), entry["schemas"], everything)
    return schema.requested(session, {**entry, "all_tables": everything, "state": "present"})


def _is_published(session: Session, entry: Mapping[str, Any], replica_identity: str) -> bool:
    """Whether a distribution's publication is there as it is asked for; refuses what can't be published."""
    everything = not entry["tables"] and not entry["schemas"]
    members = {"tables": None, "schemas": None} if everything else {}
    options = dict.fromkeys(["publish", "via_partition_root", "generated_columns", "owner", "comment"])
    request = {
        **entry,
        **options,
        **members,
        "name": entry["publication"] or "pgml_" + entry["name"],
        "all_tables": everything,
        "replica_identity": replica_identity,
        "recreate": False,
    }
    _future, _faults, changes = publication.foresee(session, request, publication.read(session, request["name"]))
    return not changes


def _size(session: Session, relations: Iterable[Table]) -> int:
    """Bytes of tables with their indexes: by the catalog's estimate where somebody holds a lock that we would wait for."""
    oids: Sequence[int] = [table.oid for table in relations if table.kind == "r"]
    try:
        return int(session.value("SELECT sum(pg_total_relation_size(oid)) FROM unnest(%s::oid[]) AS oid", [oids]) or 0)
    except ServerRefused as error:
        if error.details.get("sqlstate") != _LOCK_NOT_AVAILABLE:
            raise
    pages = session.value(
        "SELECT sum(greatest(c.relpages, 0)) FROM pg_class AS c LEFT JOIN pg_index AS i ON i.indexrelid = c.oid"
        " WHERE c.oid = ANY(%(oids)s::oid[]) OR i.indrelid = ANY(%(oids)s::oid[])"
        " OR c.oid IN (SELECT reltoastrelid FROM pg_class WHERE oid = ANY(%(oids)s::oid[]))",
        {"oids": oids},
    )
    return int(pages or 0) * 8192
