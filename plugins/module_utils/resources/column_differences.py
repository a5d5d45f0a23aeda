# SPDX-License-Identifier: GPL-3.0-or-later
"""What differs between the columns of a table on source and target. Pure."""

from __future__ import annotations

import re
from typing import Any, Iterable

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    identifier,
    quoted,
    raw,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import widening
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.difference import (
    ADD,
    ALTER,
    APPLY,
    HARMLESS,
    LOOSEN,
    TIGHTEN,
    TYPE,
    Difference,
    Sides,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.structures import (
    IDENTITIES,
    Column,
)


def of_columns(sides: Sides) -> Iterable[Difference]:
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
    statements = [
        sides.alter("ADD COLUMN IF NOT EXISTS {name} {column}", name=identifier(name), column=raw(str(first)))
    ]
    if then != first:
        statements.append(_set_default(sides, name, then))
    return sides.found(
        HARMLESS if column.generated else APPLY,
        "column",
        name,
        (column, None),
        "is missing on the target" + _doubt(sides, name, column),
        statements=tuple(statements),
        mended_by=ADD,
        remedy="Add column {0} to {1}".format(quoted(name), sides.table.label),
    )


def _as_added(sides: Sides, name: str, column: Column) -> tuple[Column, Column]:
    """A column as it is added, with the value that the source's rows have got, and as it is afterwards.

    A default that is no constant, such as now(), had another value at that moment, and one that was set later gave none.
    """
    value = sides.missing.get(name)
    if column.generated or column.default is None or _constant(column.default) == value is not None:
        return column, column
    if value is None and column.not_null:
        return column, column
    return column._replace(default=None if value is None else _text(value)), column


_CONSTANT = re.compile(r"(?:'((?:[^'\\]|'')*)'(?:::[^']+)?|(-?[0-9.]+))\Z")


def _constant(default: str | None) -> str | None:
    """The value of a default that is a number or a string, as text."""
    match = _CONSTANT.match(default or "")
    return None if match is None else match.group(2) or (match.group(1) or "").replace("''", "'")


def _doubt(sides: Sides, name: str, column: Column) -> str:
    """What to add when rows that are there may have got other values on the source, for it doesn't keep which."""
    filled = column.identity or column.default is not None and not column.generated
    return (
        ", and what rows got that were there is not known, so compare them afterwards"
        if filled and name not in sides.missing
        else ""
    )


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
            rank=LOOSEN,
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
            rank=TIGHTEN if source.default is not None else LOOSEN,
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
            rank=LOOSEN,
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
        rank=TYPE,
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
            rank=TIGHTEN,
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
            rank=LOOSEN,
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
        rank=TIGHTEN if source.identity else LOOSEN,
    )
