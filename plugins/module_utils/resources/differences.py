# SPDX-License-Identifier: GPL-3.0-or-later
"""What differs between the definitions of source and target, what that breaks, and what mends it. Pure: no server is asked.

What the apply worker does with a row is from https://www.postgresql.org/docs/current/logical-replication-subscription.html and
logical-replication-architecture.html: tables and columns are found by name, more columns of the target take their defaults,
values travel as text unless the subscription is binary, and NOT NULL, CHECK and unique indexes of the target hold for what
arrives, while foreign keys don't, because their triggers don't fire.
"""

from __future__ import annotations

import re
from typing import Any, Iterable, Mapping, NamedTuple

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    compose,
    enumerate_names,
    identifier,
    quoted,
    raw,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import widening
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.structures import (
    IDENTITIES,
    Column,
    Part,
    Structure,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.tables import Table

APPLY, PRIMARY, HARMLESS = "breaks_apply", "breaks_primary", "harmless"
CLASSES = (APPLY, PRIMARY, HARMLESS)

CREATE, ADD, ALTER = "create_missing", "apply_additive", "apply"
MODES = (CREATE, ADD, ALTER)
"""Each does what those before it do."""

# The order in which the statements of one table run: out of the way first, back in place last.
_RELEASE, _LOOSEN, _COLUMN, _TYPE, _TIGHTEN, _ATTACH = range(6)


class Difference(NamedTuple):
    """One thing that source and target don't have the same way."""

    breaks: str
    """one of CLASSES"""
    kind: str
    object: str
    """as in SQL"""
    name: str | None
    source: str | None
    target: str | None
    words: str
    statements: tuple[Any, ...] = ()
    """psycopg2.sql.Composable"""
    mended_by: str | None = None
    """the least of MODES that mends it"""
    remedy: str = ""
    """what the statements do, in words"""
    rank: int = _COLUMN
    """when among the statements of its object"""
    owner: tuple[str, str] | None = None
    """the table"""


class Sides(NamedTuple):
    """A table as source and target define it, and what the request takes of it."""

    table: Table
    source: Structure
    target: Structure
    columns: Mapping[str, Column]
    """of the source, which arrive or are generated"""
    others: Mapping[str, Column]
    """of the target"""
    binary: bool
    missing: Mapping[str, str]
    """column -> what rows have that were there when it was added"""

    def found(
        self, breaks: str, kind: str, name: str | None, values: tuple[Any, Any], words: str, **rest: Any
    ) -> Difference:
        source, target = (None if value is None else str(value) for value in values)
        text = "{0} of {1} {2}".format(quoted(name), self.table.label, words) if name is not None else words
        return Difference(
            breaks,
            kind,
            self.table.label,
            name,
            source,
            target,
            "{0} {1}".format(kind, text) if name is not None else text,
            **{"owner": self.table.key, **rest},
        )

    def alter(self, action: str, **parts: Any) -> Any:
        return compose(
            "ALTER TABLE {table} {action}", table=identifier(*self.table.key), action=compose(action, **parts)
        )


def of_table(sides: Sides) -> list[Difference]:
    """What differs of one table."""
    if sides.target.kind not in ("r", "p"):
        words = "{0} is no table on the target".format(sides.table.label)
        return [sides.found(APPLY, "table", None, ("table", _KINDS[sides.target.kind]), words)]
    return [*_shape(sides), *_columns(sides), *_identity(sides), *_parts(sides)]


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
        rank=_ATTACH if source.parent else _RELEASE,
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


def _columns(sides: Sides) -> Iterable[Difference]:
    for name, column in sides.columns.items():
        there = sides.others.get(name)
        if there is None:
            yield _missing_column(sides, name, column)
        elif there != column:
            yield from _column(sides, name, column, there)
    for name, column in sides.others.items():
        if name not in sides.columns:
            yield _column_of_the_target(sides, name, column)


def _missing_column(sides: Sides, name: str, column: Column) -> Difference:
    first, then = _as_added(sides, name, column)
    statements = [sides.alter("ADD COLUMN {name} {column}", name=identifier(name), column=raw(str(first)))]
    if then != first:
        statements.append(_set_default(sides, name, then))
    return sides.found(
        HARMLESS if column.generated else APPLY,
        "column",
        name,
        (column, None),
        "is missing on the target" + _doubt(column, first),
        statements=tuple(statements),
        mended_by=ADD,
        remedy="Add column {0} to {1}".format(quoted(name), sides.table.label),
    )


def _as_added(sides: Sides, name: str, column: Column) -> tuple[Column, Column]:
    """A column as it is added, with the value that the source's rows have got, and as it is afterwards."""
    if column.generated or name not in sides.missing:
        return column, column
    # A default that is no constant, such as now(), had another value at that moment.
    return column._replace(default=_text(sides.missing[name])), column


def _doubt(column: Column, first: Column) -> str:
    """What to add when rows that are there may have got other values on the source."""
    calls = column.default is not None and "(" in column.default and not column.generated
    return ", and its default is no constant, so compare the rows when it is there" if calls and first is column else ""


def _text(value: str) -> str:
    text = "'{0}'".format(value.replace("\\", "\\\\").replace("'", "''"))
    return "E" + text if "\\" in text else text


def _column_of_the_target(sides: Sides, name: str, column: Column) -> Difference:
    if column.is_required and not column.generated:
        return sides.found(
            APPLY,
            "column",
            name,
            (None, column),
            "is required on the target and gets no value",
            statements=(sides.alter("ALTER COLUMN {name} DROP NOT NULL", name=identifier(name)),),
            mended_by=ADD,
            remedy="Let column {0} of {1} be NULL".format(quoted(name), sides.table.label),
            rank=_LOOSEN,
        )
    return sides.found(HARMLESS, "column", name, (None, column), "is on the target only, and stays")


def _column(sides: Sides, name: str, source: Column, target: Column) -> Iterable[Difference]:
    """What differs of a column that both have."""
    if source.generated or target.generated:
        if source[:1] + source[2:] != target[:1] + target[2:]:
            yield _generated(sides, name, source, target)
            return
    elif (source.type, source.collation) != (target.type, target.collation):
        yield _type(sides, name, source, target)
    if source.not_null != target.not_null:
        yield from _nullable(sides, name, source, target)
    if source.generated:
        return
    if source.identity != target.identity:
        yield _column_identity(sides, name, source, target)
    if source.default != target.default:
        yield sides.found(
            HARMLESS,
            "column",
            name,
            (_clause("DEFAULT", source.default), _clause("DEFAULT", target.default)),
            "has another default on the target",
            statements=(_set_default(sides, name, source),),
            mended_by=ALTER,
            remedy="Set the default of column {0} of {1}".format(quoted(name), sides.table.label),
            rank=_TIGHTEN if source.default is not None else _LOOSEN,
        )


def _clause(keyword: str, value: str | None) -> str | None:
    return None if value is None else "{0} {1}".format(keyword, value)


def _set_default(sides: Sides, name: str, column: Column) -> Any:
    if column.default is None:
        return sides.alter("ALTER COLUMN {name} DROP DEFAULT", name=identifier(name))
    return sides.alter("ALTER COLUMN {name} SET DEFAULT {value}", name=identifier(name), value=raw(column.default))


def _generated(sides: Sides, name: str, source: Column, target: Column) -> Difference:
    """Generated columns are not replicated, and can't be written."""
    if not source.generated:
        return sides.found(
            APPLY,
            "column",
            name,
            (source, target),
            "is generated on the target",
            statements=(sides.alter("ALTER COLUMN {name} DROP EXPRESSION", name=identifier(name)),)
            if target.generated == "s"
            else (),
            mended_by=ADD if target.generated == "s" else None,
            remedy="Let column {0} of {1} take values".format(quoted(name), sides.table.label),
            rank=_LOOSEN,
        )
    if not target.generated:
        return sides.found(
            APPLY,
            "column",
            name,
            (source, target),
            "is generated on the source, and gets no values on the target",
        )
    return sides.found(HARMLESS, "column", name, (source, target), "is generated differently on the target")


def _type(sides: Sides, name: str, source: Column, target: Column) -> Difference:
    here, there = (each.type + (" COLLATE " + each.collation if each.collation else "") for each in (source, target))
    same = source.type == target.type
    fits = same or (not sides.binary and widening.holds(target.type, source.type))
    words = "is {0} on the source and {1} on the target".format(here, there)
    if fits and not same:
        return sides.found(HARMLESS, "column", name, (here, there), words + ", where all its values fit")
    action = "ALTER COLUMN {name} TYPE {type} USING {name}::{plain}"
    return sides.found(
        HARMLESS if fits else APPLY,
        "column",
        name,
        (here, there),
        words,
        statements=(sides.alter(action, name=identifier(name), type=raw(here), plain=raw(source.type)),),
        mended_by=ALTER,
        remedy="Make column {0} of {1} {2}".format(quoted(name), sides.table.label, here),
        rank=_TYPE,
    )


def _nullable(sides: Sides, name: str, source: Column, target: Column) -> Iterable[Difference]:
    if source.not_null:
        yield sides.found(
            HARMLESS,
            "column",
            name,
            ("NOT NULL", "NULL"),
            "may be NULL on the target only",
            statements=(sides.alter("ALTER COLUMN {name} SET NOT NULL", name=identifier(name)),),
            mended_by=ALTER,
            remedy="Let column {0} of {1} not be NULL".format(quoted(name), sides.table.label),
            rank=_TIGHTEN,
        )
    elif not any(part.type == "p" and name in part.columns for part in sides.target.parts.values()):
        yield sides.found(
            APPLY,
            "column",
            name,
            ("NULL", "NOT NULL"),
            "may be NULL on the source only",
            statements=(sides.alter("ALTER COLUMN {name} DROP NOT NULL", name=identifier(name)),),
            mended_by=ADD,
            remedy="Let column {0} of {1} be NULL".format(quoted(name), sides.table.label),
            rank=_LOOSEN,
        )


def _column_identity(sides: Sides, name: str, source: Column, target: Column) -> Difference:
    if not source.identity:
        action = "ALTER COLUMN {name} DROP IDENTITY"
    elif target.identity:
        action = "ALTER COLUMN {name} SET GENERATED " + IDENTITIES[source.identity]
    else:
        action = "ALTER COLUMN {name} ADD GENERATED " + IDENTITIES[source.identity] + " AS IDENTITY"
    here, there = (
        "GENERATED {0} AS IDENTITY".format(IDENTITIES[each.identity]) if each.identity else None
        for each in (source, target)
    )
    return sides.found(
        HARMLESS,
        "column",
        name,
        (here, there),
        "is {0} on the source and {1} on the target".format(here or "no identity column", there or "none"),
        statements=(sides.alter(action, name=identifier(name)),),
        mended_by=ALTER,
        remedy="Alter the identity of column {0} of {1}".format(quoted(name), sides.table.label),
        rank=_TIGHTEN if source.identity else _LOOSEN,
    )


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
            rank=_ATTACH,
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


def _parts(sides: Sides) -> Iterable[Difference]:
    """Indexes and constraints, by name, and by definition where names differ."""
    if sides.source.parent != sides.target.parent:
        return  # some are those of the parent, as long as there is one
    source, target = sides.source.parts, sides.target.parts
    lacking = [part for name, part in source.items() if name not in target]
    more = [part for name, part in target.items() if name not in source]
    for part in list(lacking):
        twin = next((each for each in more if _same(each, part)), None)
        if twin:
            lacking.remove(part)
            more.remove(twin)
            yield sides.found(
                HARMLESS,
                _kind(part),
                part.name,
                (part.name, twin.name),
                "is called {0} on the target".format(quoted(twin.name)),
            )
    for part in lacking:
        yield _missing_part(sides, part)
    for part in more:
        yield _part_of_the_target(sides, part)
    for name, part in source.items():
        if name in target and not _same(part, target[name]):
            yield _other_part(sides, part, target[name])
        elif name in target and part.valid and not target[name].valid:
            yield _invalid_part(sides, part)


def _same(one: Part, other: Part) -> bool:
    return (one.kind, one.type, one.definition) == (other.kind, other.type, other.definition) or (
        # NOT VALID is a part of what the server prints.
        one.type == other.type and one.definition == other.definition.replace(" NOT VALID", "") and not other.valid
    )


def _kind(part: Part) -> str:
    return "index" if part.type == "i" else part.kind


def _missing_part(sides: Sides, part: Part) -> Difference:
    """A missing key is added here; other indexes and constraints are created as they are for new tables."""
    key = part.type == "p" and not sides.target.identity_columns
    return sides.found(
        APPLY if key and sides.source.identity == "d" else HARMLESS,
        _kind(part),
        part.name,
        (part.definition, None),
        "is missing on the target",
        statements=(_made(sides, part),),
        mended_by=ADD if part.type == "p" else CREATE,
        remedy="Create {0} {1} of {2}".format(_made_kind(part), part.name, sides.table.label),
        rank=_TIGHTEN,
    )


def _made_kind(part: Part) -> str:
    return {"f": "foreign key", "p": "primary key"}.get(part.type, _kind(part))


def _made(sides: Sides, part: Part) -> Any:
    if part.type == "i":
        before, after = part.definition.split(" INDEX ON ", 1)
        return compose(
            "{before} INDEX {name} ON {after}", before=raw(before), name=identifier(part.name), after=raw(after)
        )
    return sides.alter(
        "ADD CONSTRAINT {name} {definition}", name=identifier(part.name), definition=raw(part.definition)
    )


def _unmade(sides: Sides, part: Part) -> Any:
    if part.type == "i":
        return compose("DROP INDEX {name}", name=identifier(sides.table.schema, part.name))
    return sides.alter("DROP CONSTRAINT {name}", name=identifier(part.name))


def _may_refuse(sides: Sides, part: Part) -> bool:
    """Whether rows of the source could fail it: foreign keys are not looked at while changes are applied."""
    if not (part.unique or part.type == "c") or not set(part.columns) <= set(sides.columns):
        return False
    keys = [set(each.columns) for each in sides.source.parts.values() if _is_plain_key(each)]
    return not (_is_plain_key(part) and any(key <= set(part.columns) for key in keys))


_PLAIN_KEY = re.compile(r"(PRIMARY KEY|UNIQUE|CREATE UNIQUE INDEX ON .* USING btree) \([^()]*\)\Z")


def _is_plain_key(part: Part) -> bool:
    """Whether it says no more than that no two rows have the same values in its columns."""
    return part.valid and bool(_PLAIN_KEY.match(part.definition))


def _part_of_the_target(sides: Sides, part: Part) -> Difference:
    kind = _made_kind(part)
    if not _may_refuse(sides, part):
        return sides.found(
            HARMLESS, _kind(part), part.name, (None, part.definition), "is on the target only, and stays"
        )
    return sides.found(
        APPLY,
        _kind(part),
        part.name,
        (None, part.definition),
        "is on the target only, and may refuse rows that the source has",
        statements=(_unmade(sides, part),),
        mended_by=ALTER,
        remedy="Drop {0} {1} of {2}".format(kind, quoted(part.name), sides.table.label),
        rank=_RELEASE,
    )


def _other_part(sides: Sides, source: Part, target: Part) -> Difference:
    return sides.found(
        APPLY if _may_refuse(sides, target) else HARMLESS,
        _kind(source),
        source.name,
        (source.definition, target.definition),
        "is another one on the target"
        + (", and may refuse rows that the source has" if _may_refuse(sides, target) else ""),
        statements=(_unmade(sides, target), _made(sides, source)),
        mended_by=ALTER,
        remedy="Make {0} {1} of {2} anew".format(_made_kind(source), source.name, sides.table.label),
        rank=_TIGHTEN,
    )


def _invalid_part(sides: Sides, part: Part) -> Difference:
    if part.type == "i" or part.unique:
        statements = (compose("REINDEX INDEX {name}", name=identifier(sides.table.schema, part.name)),)
        return sides.found(
            HARMLESS,
            _kind(part),
            part.name,
            (part.definition, "INVALID"),
            "is invalid on the target, so that no query uses it",
            statements=statements,
            mended_by=ALTER,
            remedy="Build {0} of {1} anew".format(quoted(part.name), sides.table.label),
            rank=_TIGHTEN,
        )
    return sides.found(
        HARMLESS,
        _kind(part),
        part.name,
        (part.definition, "NOT VALID"),
        "is not validated on the target",
        statements=(sides.alter("VALIDATE CONSTRAINT {name}", name=identifier(part.name)),),
        mended_by=ALTER,
        remedy="Validate constraint {0} of {1}".format(quoted(part.name), sides.table.label),
        rank=_TIGHTEN,
    )


def sides_of(table: Table, source: Structure, target: Structure, binary: bool, missing: Mapping[str, str]) -> Sides:
    """Both sides of *table*, as far as it is asked for."""
    columns = source.columns
    if table.columns is not None:
        columns = {name: columns[name] for name in table.columns if name in columns}
    return Sides(table, source, target, columns, target.columns, binary, missing)


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
