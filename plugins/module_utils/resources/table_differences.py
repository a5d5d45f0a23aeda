# SPDX-License-Identifier: GPL-3.0-or-later
"""What differs between the definitions of source and target, what that breaks, and what mends it. Pure: no server is asked.

What the apply worker does with a row is from https://www.postgresql.org/docs/current/logical-replication-subscription.html and
logical-replication-architecture.html: tables and columns are found by name, more columns of the target take their defaults,
values travel as text unless the subscription is binary, and NOT NULL, CHECK and unique indexes of the target hold for what
arrives, while foreign keys don't, because their triggers don't fire.
"""

from __future__ import annotations

from typing import Any, Iterable, Mapping

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
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.difference import (
    ADD,
    ALTER,
    APPLY,
    ATTACH,
    CREATE,
    HARMLESS,
    RELEASE,
    Difference,
    Sides,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.structures import (
    Part,
    Structure,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.tables import Table


def of_table(sides: Sides) -> list[Difference]:
    """What differs of one table."""
    if sides.target.kind not in ("r", "p"):
        words = "{0} is no table on the target".format(sides.table.label)
        return [sides.found(APPLY, "table", None, ("table", _KINDS[sides.target.kind]), words)]
    return [*_shape(sides), *column_differences.of_columns(sides), *_identity(sides), *part_differences.of_parts(sides)]


_KINDS = {"r": "table", "p": "partitioned table", "v": "view", "m": "materialized view", "f": "foreign table"}


def _shape(sides: Sides) -> Iterable[Difference]:
    """Whether it is partitioned, and of what it is a partition."""
    source, target, label = sides.source, sides.target, sides.table.label
    if source.partitioned_by != target.partitioned_by:
        here, there = (
            "PARTITION BY " + each.partitioned_by if each.partitioned_by else "not partitioned"
            for each in (source, target)
        )
        yield sides.found(
            APPLY,
            "table",
            None,
            (here, there),
            "{0} is {1} on the source and {2} on the target".format(label, here, there),
        )
    if (source.parent, source.bound) == (target.parent, target.bound):
        return
    here, there = (_place(each) for each in (source, target))
    statements = []
    if target.parent:
        statements.append(_partition(sides, target.parent, "DETACH PARTITION {table}"))
    if source.parent:
        statements.append(_partition(sides, source.parent, "ATTACH PARTITION {table} {bound}"))
    words = "{0} is {1} on the source and {2} on the target".format(label, here, there)
    yield sides.found(
        APPLY,
        "partition",
        None,
        (here, there),
        words,
        statements=tuple(statements),
        mended_by=ALTER if target.parent else ADD,
        remedy="Make {0} {1}".format(label, here),
        rank=ATTACH if source.parent else RELEASE,
    )


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


def _identity(sides: Sides) -> Iterable[Difference]:
    """Whether the target can find the rows that change, and by what it is told which they are."""
    source, target = sides.source, sides.target
    sent = set() if source.identity == "n" else set(source.identity_columns)
    found_by = set(target.identity_columns)
    if source.kind == "r" and target.kind == "r":
        if found_by and source.identity != "f" and sent and not found_by <= sent:
            yield sides.found(
                APPLY,
                "replica_identity",
                None,
                (_by(source), _by(target)),
                "rows of {0} are known by {1} on the source and by {2} on the target".format(
                    sides.table.label, _by(source), _by(target)
                ),
            )
        elif source.identity != "f" and sent and not found_by:
            yield sides.found(
                APPLY,
                "replica_identity",
                None,
                (_by(source), None),
                "{0} has no primary key on the target".format(sides.table.label),
            )
    here, there = (_replica_identity(each) for each in (source, target))
    if here != there:
        yield sides.found(
            HARMLESS,
            "replica_identity",
            None,
            (here, there),
            "{0} has REPLICA IDENTITY {1} on the source and {2} on the target".format(sides.table.label, here, there),
            statements=(sides.alter("REPLICA IDENTITY {identity}", identity=_spelled(source)),),
            mended_by=ALTER,
            remedy="Set the replica identity of {0} to {1}".format(sides.table.label, here),
            rank=ATTACH,
        )


def _by(structure: Structure) -> str:
    return enumerate_names(map(quoted, structure.identity_columns))


def _replica_identity(structure: Structure) -> str:
    if structure.identity == "i":
        return "USING INDEX {0}".format(quoted(structure.identity_index)) if structure.identity_index else "NOTHING"
    return {"d": "DEFAULT", "f": "FULL", "n": "NOTHING"}[structure.identity]


def _spelled(structure: Structure) -> Any:
    if structure.identity == "i" and structure.identity_index:
        return compose("USING INDEX {name}", name=identifier(structure.identity_index))
    return raw(_replica_identity(structure))


def reason_to_leave_out(table: Table, part: Part, wanted: Mapping[tuple[str, str], Table]) -> str | None:
    """Why an index or a constraint of *table* can't be on the target, or None when it can."""
    if table.columns is not None and not set(part.columns) <= set(table.columns):
        return "it uses columns that are not distributed"
    if part.refers is None:
        return None
    other = wanted.get(part.refers)
    if other is None:
        return "it refers to {0}, which is not distributed".format(quoted(*part.refers))
    if other.where is not None or other.columns is not None:
        return "it refers to {0}, of which only a part is distributed".format(other.label)
    return None


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
    )
