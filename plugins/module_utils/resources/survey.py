# SPDX-License-Identifier: GPL-3.0-or-later
"""What a first copy under a slot's snapshot would read and fill, and why it can't be made here."""

from __future__ import annotations

from typing import Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import ServerRefused
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import capacity, offering
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import contents, definitions, tables
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.contents import Contents
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.schedule import Key
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.tables import Table
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import keepers, snapshot


class TargetTable(NamedTuple):
    """A table of the target, and the tables of the source that it is filled from."""

    key: Key
    parts: list[Contents]
    binary: bool


def assess(session: Session, source: Session, offer: Mapping[Key, offering.Offer], jobs: int) -> tuple[str | None, int]:
    """Why *jobs* workers can't do this here, so that PostgreSQL has to make the first copy, and the bytes there are to copy."""
    targets = read(source, session, offer)
    return _reason(session, source, offer, targets, jobs), sum(item.size for target in targets for item in target.parts)


def _reason(
    session: Session, source: Session, offer: Mapping[Key, offering.Offer], targets: Sequence[TargetTable], jobs: int
) -> str | None:
    if source.value("SELECT pg_is_in_recovery()"):
        return "the source is a standby"
    try:
        with session.transaction(commit=False):
            session.execute("SET LOCAL session_replication_role = replica")
    except ServerRefused:
        return "the role that logs in to the target may not set session_replication_role"
    parts = [item.table for target in targets for item in target.parts]
    hindrance = source.value(_HINDRANCE, {"parts": [t.oid for t in parts], "roots": [t.oid for t in offer.values()]})
    if hindrance:
        return str(hindrance)
    needed, room = len(parts) * (jobs + keepers.COUNT), capacity.locks(source)
    if needed > room:
        return "{0:,} locks on tables are needed, and the source has room for {1:,} (max_locks_per_transaction)".format(
            needed, room
        )
    if any(set(offer[target.key].columns) - set(item.columns) for target in targets for item in target.parts):
        return "generated columns are published"
    return None


def extants(targets: Sequence[TargetTable]) -> list[snapshot.Extant]:
    """The source's tables, as snapshot.lock() takes them."""
    return [(item.table.oid, item.table.schema, item.table.name) for target in targets for item in target.parts]


_HINDRANCE = (
    "SELECT format('user \"%%s\" may read only some columns of %%s', current_user, c.oid::regclass) AS reason"
    " FROM pg_class AS c WHERE c.oid = ANY(%(parts)s) AND NOT (has_table_privilege(c.oid, 'SELECT')"
    "  AND has_schema_privilege(c.relnamespace, 'USAGE'))"
    " UNION ALL SELECT format('row security applies to user \"%%s\" in %%s', current_user, c.oid::regclass)"
    " FROM pg_class AS c WHERE c.oid = ANY(%(parts)s) AND row_security_active(c.oid)"
    " UNION ALL SELECT CASE WHEN c.relkind = 'f' THEN format('partition %%s is a foreign table', c.oid::regclass)"
    "  ELSE 'a partitioned table and one of its partitions are both published' END FROM unnest(%(roots)s::oid[]) AS root(oid)"
    "  CROSS JOIN LATERAL pg_partition_tree(root.oid) AS t JOIN pg_class AS c ON c.oid = t.relid"
    "  WHERE c.relkind = 'f' OR c.oid <> root.oid AND c.oid = ANY(%(roots)s) LIMIT 1"
)


def read(source: Session, session: Session, offer: Mapping[Key, offering.Offer]) -> list[TargetTable]:
    """What is published, as *source* sees it, and how it can go to the target."""
    roots = [Table(table.oid, *key, table.kind, table.columns, table.where) for key, table in offer.items()]
    parts: dict[Key, list[Contents]] = {table.key: [] for table in roots}
    for item in contents.read(source, tables.with_partitions(source, roots)):
        parts[item.table.key if item.table.key in parts else item.table.top or item.table.key].append(item)
    here = definitions.read(source, [item.table.key for items in parts.values() for item in items])
    there = definitions.read(session, offer)

    def same_types(key: Key, item: Contents) -> bool:
        columns = there[key].columns if key in there else {}
        return all(
            name in columns and columns[name].type == here[item.table.key].columns[name].type for name in item.columns
        )

    return [
        TargetTable(key, items, all(i.binary and same_types(key, i) for i in items)) for key, items in parts.items()
    ]
