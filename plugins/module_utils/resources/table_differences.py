# SPDX-License-Identifier: GPL-3.0-or-later
"""What differs between the definitions of source and target, what that breaks, and what mends it. Pure: no server is asked.

What the apply worker does with a row is from https://www.postgresql.org/docs/current/logical-replication-subscription.html and
logical-replication-architecture.html: tables and columns are found by name, more columns of the target take their defaults,
values travel as text unless the subscription is binary, and NOT NULL, CHECK and unique indexes of the target hold for what
arrives, while foreign keys don't, because their triggers don't fire.
"""

from __future__ import annotations

from typing import Any, Iterable, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    compose,
    enumerate_names,
    identifier,
    quoted,
    raw,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import (
    column_differences,
    part_differences,
    spelling,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.difference import (
    ADD,
    ALTER,
    APPLY,
    ATTACH,
    CREATE,
    HARMLESS,
    IDENTIFY,
    RELEASE,
    Difference,
    Sides,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.structures import Structure
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.tables import Table

_KINDS = {"r": "table", "p": "partitioned table", "v": "view", "m": "materialized view", "f": "foreign table"}


def of_table(sides: Sides) -> list[Difference]:
    """What differs of one table."""
    if sides.target.kind not in ("r", "p"):
        words = "{0} is no table on the target".format(sides.table.label)
        return [sides.found(APPLY, "table", None, ("table", _KINDS[sides.target.kind]), words, unfit=True)]
    parts = list(part_differences.of_parts(sides))
    return [*_shape(sides), *column_differences.of_columns(sides), *_identity(sides, parts), *parts]


def _shape(sides: Sides) -> Iterable[Difference]:
    """Whether it is partitioned, and of what it is a partition."""
    source, target, label = sides.source, sides.target, sides.table.label
    if target.persistence == "u" != source.persistence:
        words = "{0} is UNLOGGED on the target, so that its rows are gone when the server crashes".format(label)
        yield sides.found(
            APPLY,
            "table",
            None,
            ("LOGGED", "UNLOGGED"),
            words,
            steps=((IDENTIFY, sides.alter("SET LOGGED")),),
            mended_by=ALTER,
            remedy="Make {0} LOGGED".format(label),
        )
    if not _partitioned_alike(sides):
        here, there = (
            "PARTITION BY " + each.partitioned_by if each.partitioned_by else "not partitioned"
            for each in (source, target)
        )
        # The target finds the partitions of rows by itself.
        breaks = APPLY if source.partitioned_by else HARMLESS
        words = "{0} is {1} on the source and {2} on the target".format(label, here, there)
        yield sides.found(breaks, "table", None, (here, there), words)
    here, there = (_place(each) for each in (source, target))
    if here == there:
        return
    steps = []
    if target.parent:
        steps.append((RELEASE, _partition(sides, target.parent, "DETACH PARTITION {table}")))
    if source.parent:
        steps.append((ATTACH, _partition(sides, source.parent, "ATTACH PARTITION {table} {bound}")))
    yield sides.found(
        APPLY,
        "partition",
        None,
        (here, there),
        "{0} is {1} on the source and {2} on the target".format(label, here, there),
        steps=tuple(steps),
        mended_by=ALTER if target.parent else ADD,
        remedy="Make {0} {1}".format(label, here),
    )


def _partitioned_alike(sides: Sides) -> bool:
    here, there = sides.source.partitioned_by, sides.target.partitioned_by
    if here is None or there is None:
        return here == there
    return spelling.alike(here, there, sides.servers.source_version, sides.servers.target_version)


def _partition(sides: Sides, parent: tuple[str, str], action: str) -> Any:
    return compose(
        "ALTER TABLE {parent} " + action,
        parent=identifier(*parent),
        table=identifier(*sides.table.key),
        bound=raw(sides.source.bound or ""),
    )


def _place(structure: Structure) -> str:
    if structure.parent is None:
        return "no partition"
    return "partition of {0} {1}".format(quoted(*structure.parent), structure.bound)


def _identity(sides: Sides, parts: Sequence[Difference]) -> Iterable[Difference]:
    """Whether the target can find the rows that change, and by what it is told which they are."""
    source, target = sides.source, sides.target
    sent, found_by = _sent(sides), set(target.identity_columns)
    if source.identity == "i" and source.identity_index:
        source = source._replace(identity_index=part_differences.name_on_target(sides, source.identity_index))
    here, there = (_replica_identity(each) for each in (source, target))
    altered = any(each.name == source.identity_index and each.mended_by == ALTER for each in parts)
    identified = ADD if source.identity == "i" and not found_by and not altered else ALTER
    # What mends the index or the key mends this.
    mended_by = next((each.mended_by for each in parts if each.kind == "key"), None)
    if here != there and "i" in (source.identity, target.identity):
        mended_by = identified
    if source.kind == "r" and sent:
        if not found_by and source.identity != "f":
            words = "{0} has no primary key on the target".format(sides.table.label)
            yield sides.found(
                APPLY, "replica_identity", None, (_by(source), None), words, mended_by=mended_by, unfit=True
            )
        elif not found_by <= sent:
            values = (_by(source), enumerate_names(map(quoted, target.identity_columns)))
            words = "rows of {0} are known by {1} on the source and by {2} on the target".format(
                sides.table.label, *values
            )
            yield sides.found(APPLY, "replica_identity", None, values, words, mended_by=mended_by)
    if here != there:
        yield sides.found(
            HARMLESS,
            "replica_identity",
            None,
            (here, there),
            "{0} has REPLICA IDENTITY {1} on the source and {2} on the target".format(sides.table.label, here, there),
            steps=((IDENTIFY, sides.alter("REPLICA IDENTITY {identity}", identity=_spelled(source))),),
            mended_by=identified,
            remedy="Set the replica identity of {0} to {1}".format(sides.table.label, here),
        )


def _sent(sides: Sides) -> set[str]:
    """The columns whose old values arrive with a change of a row."""
    if sides.source.identity == "f":
        return {name for name, column in sides.columns.items() if not column.generated}
    return set() if sides.source.identity == "n" else set(sides.source.identity_columns)


def _by(structure: Structure) -> str:
    return "all columns" if structure.identity == "f" else enumerate_names(map(quoted, structure.identity_columns))


def _replica_identity(structure: Structure) -> str:
    if structure.identity == "i":
        return "USING INDEX {0}".format(quoted(structure.identity_index)) if structure.identity_index else "NOTHING"
    return {"d": "DEFAULT", "f": "FULL", "n": "NOTHING"}[structure.identity]


def _spelled(structure: Structure) -> Any:
    if structure.identity == "i" and structure.identity_index:
        return compose("USING INDEX {name}", name=identifier(structure.identity_index))
    return raw(_replica_identity(structure))


def missing_table(table: Table, source: Structure) -> Difference:
    """A table that the target doesn't have."""
    return Difference(
        APPLY,
        "table",
        table.label,
        None,
        "{0} columns".format(len(table.columns or source.columns)),
        None,
        "table {0} is missing on the target".format(table.label),
        mended_by=CREATE,
        remedy="Create table {0}".format(table.label),
        owner=table.key,
        dumped=True,
    )


def missing_partition(table: Table, source: Structure) -> Difference:
    """A partition that the target doesn't have of a table that it has: it is made there, with all that the table has there."""
    statement = compose(
        "CREATE TABLE {table} PARTITION OF {parent} {bound}{partitioned}",
        table=identifier(*table.key),
        parent=identifier(*(source.parent or ())),
        bound=raw(source.bound or "DEFAULT"),
        partitioned=raw(" PARTITION BY " + source.partitioned_by if source.partitioned_by else ""),
    )
    return missing_table(table, source)._replace(steps=((ATTACH, statement),), dumped=False)
