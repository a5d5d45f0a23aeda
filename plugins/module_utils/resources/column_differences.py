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
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import spelling, widening
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.difference import (
    ADD,
    ALTER,
    APPLY,
    COLUMN,
    HARMLESS,
    LOOSEN,
    TIGHTEN,
    TYPE,
    Difference,
    Sides,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.structures import IDENTITIES, Column


def of_columns(sides: Sides) -> Iterable[Difference]:
    """Columns are found by their names."""
    lacking = [name for name in sides.columns if name not in sides.others]
    more = [name for name in sides.others if name not in sides.columns]
    for name, former in _perhaps_renamed(sides, lacking, more):
        lacking.remove(name)
        more.remove(former)
        yield _renamed(sides, name, former)
    for name in lacking:
        yield from _missing(sides, name, sides.columns[name])
    for name in more:
        yield _of_the_target(sides, name, sides.others[name])
    for name, column in sides.columns.items():
        other = sides.others.get(name)
        if other is not None and other != column:
            yield from _column(sides, name, column, other)


def _perhaps_renamed(sides: Sides, lacking: list[str], more: list[str]) -> list[tuple[str, str]]:
    """The columns of the same type at the same place that the other side doesn't have."""
    here, there = sides.places
    return [
        (name, other)
        for name in lacking
        for other in more
        if sides.columns[name].type == sides.others[other].type and here.get(name, 0) == there.get(other)
    ]


def _renamed(sides: Sides, name: str, other: str) -> Difference:
    action = "RENAME COLUMN {other} TO {name}"
    return sides.found(
        APPLY,
        "column",
        name,
        (sides.columns[name], None),
        "is missing on the target, which has {0} in its place, so that it was perhaps renamed".format(quoted(other)),
        steps=((COLUMN, sides.alter(action, other=identifier(other), name=identifier(name))),),
        unfit=True,
    )


def _missing(sides: Sides, name: str, column: Column) -> Iterable[Difference]:
    """Rows that are on their way without the column get what it was added with, so that a default that was set since is another
    difference, unless nobody knows what that was."""
    first = _as_added(sides, name, column)
    add = sides.alter("ADD COLUMN IF NOT EXISTS {name} {column}", name=identifier(name), column=raw(str(first)))
    steps = [(COLUMN, add)]
    later = column.default != first.default
    if later and name not in sides.missing:
        steps.append((COLUMN, _set_default(sides, name, column)))
    doubtful = _is_doubtful(sides, name, column)
    yield sides.found(
        HARMLESS if column.generated else APPLY,
        "column",
        name,
        (column, None),
        "is missing on the target" + (_DOUBT if doubtful else ""),
        steps=tuple(steps),
        mended_by=ADD,
        remedy="Add column {0} to {1}".format(quoted(name), sides.table.label),
        unfit=not column.generated,
        doubtful=doubtful,
    )
    if later and name in sides.missing:
        yield _other_default(sides, name, column, first)


_DOUBT = ", and what rows got that were there is not known, so compare them afterwards"


def _as_added(sides: Sides, name: str, column: Column) -> Column:
    """A column as it is added, with the value that the source's rows have got.

    A default that is no constant, such as now(), had another value at that moment, one that was dropped since gave one, and one
    that was set later gave none.
    """
    value = sides.missing.get(name)
    if column.generated or column.identity or value is not None and _constant(column.default) == value:
        return column
    if value is not None:
        return column._replace(default=_text(value))
    if column.default is None:
        return column._replace(not_null=column.not_null and not sides.target.filled)
    return column if column.not_null else column._replace(default=None)


_CONSTANT = re.compile(r"(?:'((?:[^']|'')*)'(?:::[^']+)?|(-?[0-9.]+))\Z")


def _constant(default: str | None) -> str | None:
    """The value of a default that is a number or a string, as text."""
    match = _CONSTANT.match(default or "")
    return None if match is None else match.group(2) or (match.group(1) or "").replace("''", "'")


def _is_doubtful(sides: Sides, name: str, column: Column) -> bool:
    """Whether rows that are there may have got other values on the source, which doesn't keep which."""
    if column.generated or name in sides.missing or not sides.target.filled:
        return False
    return bool(column.identity) or column.not_null or column.default is not None or _is_old(sides, name)


def _is_old(sides: Sides, name: str) -> bool:
    """Whether it was there before a column that both have, so that it isn't new but was dropped or renamed."""
    here, _there = sides.places
    return any(here.get(name, 0) < here.get(each, 0) for each in sides.columns if each in sides.others)


def _text(value: str) -> str:
    text = "'{0}'".format(value.replace("\\", "\\\\").replace("'", "''"))
    return "E" + text if "\\" in text else text


def _of_the_target(sides: Sides, name: str, column: Column) -> Difference:
    if column.is_required and not column.generated:
        return sides.found(
            APPLY,
            "column",
            name,
            (None, column),
            "is required on the target and gets no value",
            steps=((LOOSEN, sides.alter("ALTER COLUMN {name} DROP NOT NULL", name=identifier(name))),),
            mended_by=ADD,
            remedy="Let column {0} of {1} be NULL".format(quoted(name), sides.table.label),
            unfit=True,
        )
    if not column.generated and (column.default is not None or column.identity) and _finds_rows_by_all(sides):
        words = "has values on the target only, where rows are found by all of their columns, so that changes are passed over"
        return sides.found(APPLY, "column", name, (None, column), words)
    return sides.found(HARMLESS, "column", name, (None, column), "is on the target only, and stays")


def _finds_rows_by_all(sides: Sides) -> bool:
    """Whether the target compares whole rows with what it is sent, for want of a key."""
    return sides.source.identity == "f" and not sides.target.identity_columns


def _column(sides: Sides, name: str, source: Column, target: Column) -> Iterable[Difference]:
    """What differs of a column that both have."""
    if (source.generated or target.generated) and source._replace(not_null=False) != target._replace(not_null=False):
        yield from _generated(sides, name, source, target)
        return
    retyped = False
    if (source.type, source.collation) != (target.type, target.collation):
        difference = _type(sides, name, source, target)
        retyped = bool(difference.steps)  # which take the default along
        yield difference
    if source.not_null != target.not_null and not (source.unvalidated and target.unvalidated):
        yield _nullable(sides, name, source, target)
    if source.generated:
        return
    if source.identity != target.identity and not sides.source.is_partition and not sides.target.is_partition:
        yield _column_identity(sides, name, source, target)
    elif not retyped and not _same_default(sides, source, target):
        yield _other_default(sides, name, source, target)


def _other_default(sides: Sides, name: str, source: Column, target: Column) -> Difference:
    return sides.found(
        HARMLESS,
        "column",
        name,
        (_clause("DEFAULT", source.default), _clause("DEFAULT", target.default)),
        "has another default on the target",
        steps=((TIGHTEN if source.default is not None else LOOSEN, _set_default(sides, name, source)),),
        mended_by=ALTER,
        remedy="Set the default of column {0} of {1}".format(quoted(name), sides.table.label),
    )


def _same_default(sides: Sides, source: Column, target: Column) -> bool:
    if source.default is None or target.default is None:
        return source.default == target.default
    return spelling.alike(source.default, target.default, sides.servers.source_version, sides.servers.target_version)


def _clause(keyword: str, value: str | None) -> str | None:
    return None if value is None else "{0} {1}".format(keyword, value)


def _set_default(sides: Sides, name: str, column: Column) -> Any:
    if column.default is None:
        return sides.alter("ALTER COLUMN {name} DROP DEFAULT", name=identifier(name))
    return sides.alter("ALTER COLUMN {name} SET DEFAULT {value}", name=identifier(name), value=raw(column.default))


def _generated(sides: Sides, name: str, source: Column, target: Column) -> Iterable[Difference]:
    """What a generated column holds is not replicated, and it can't be written."""
    values = (source, target)
    if not source.generated:
        stored = target.generated == "s"
        yield sides.found(
            APPLY,
            "column",
            name,
            values,
            "is generated on the target",
            steps=((LOOSEN, sides.alter("ALTER COLUMN {name} DROP EXPRESSION", name=identifier(name))),)
            if stored
            else (),
            mended_by=ADD if stored else None,
            remedy="Let column {0} of {1} take values".format(quoted(name), sides.table.label),
            unfit=True,
        )
    elif not target.generated:
        words = "is generated on the source, and gets no values on the target"
        yield sides.found(APPLY, "column", name, values, words)
    elif source.type == target.type and not _same_default(sides, source, target):
        yield sides.found(APPLY, "column", name, values, "is generated differently on the target")
    elif source._replace(default=None) != target._replace(default=None):
        yield sides.found(HARMLESS, "column", name, values, "is generated differently on the target")


def _type(sides: Sides, name: str, source: Column, target: Column) -> Difference:
    here, there = (each.type + (" COLLATE " + each.collation if each.collation else "") for each in (source, target))
    same = source.type == target.type
    fits = same or widening.holds(target.type, source.type, sides.servers.domains, sides.binary)
    words = "is {0} on the source and {1} on the target".format(here, there)
    if fits and not same:
        return sides.found(HARMLESS, "column", name, (here, there), words + ", where all its values fit")
    return sides.found(
        HARMLESS if fits else APPLY,
        "column",
        name,
        (here, there),
        words,
        steps=tuple(_retype(sides, name, source, target, here)),
        mended_by=ALTER,
        remedy="Make column {0} of {1} {2}".format(quoted(name), sides.table.label, here),
        unfit=not fits,
        doubtful=not same and sides.target.filled and not widening.holds(source.type, target.type, {}, False),
    )


def _retype(sides: Sides, name: str, source: Column, target: Column, type_: str) -> Iterable[tuple[int, Any]]:
    """A default is not converted with its column."""
    own = {source.type, target.type} & set(sides.servers.own_types)
    action = "ALTER COLUMN {name} TYPE {type} USING {name}" + ("::text::{plain}" if own else "::{plain}")
    if target.default is not None:
        yield LOOSEN, sides.alter("ALTER COLUMN {name} DROP DEFAULT", name=identifier(name))
    yield TYPE, sides.alter(action, name=identifier(name), type=raw(type_), plain=raw(source.type))
    if source.default is not None:
        yield TIGHTEN, _set_default(sides, name, source)


def _nullable(sides: Sides, name: str, source: Column, target: Column) -> Difference:
    if source.not_null:
        return sides.found(
            HARMLESS,
            "column",
            name,
            ("NOT NULL", "NULL"),
            "may be NULL on the target only",
            steps=((TIGHTEN, sides.alter("ALTER COLUMN {name} SET NOT NULL", name=identifier(name))),),
            mended_by=ALTER,
            remedy="Let column {0} of {1} not be NULL".format(quoted(name), sides.table.label),
        )
    keyed = any(
        name in part.columns
        for part in sides.target.parts.values()
        if part.type == "p" or part.name == sides.target.identity_index
    )
    return sides.found(
        APPLY,
        "column",
        name,
        ("NULL", "NOT NULL"),
        "may be NULL on the source only",
        steps=((LOOSEN, sides.alter("ALTER COLUMN {name} DROP NOT NULL", name=identifier(name))),),
        mended_by=ALTER if keyed else ADD,
        remedy="Let column {0} of {1} be NULL".format(quoted(name), sides.table.label),
    )


def _column_identity(sides: Sides, name: str, source: Column, target: Column) -> Difference:
    if not source.identity:
        action = "ALTER COLUMN {name} DROP IDENTITY"
    elif target.identity:
        action = "ALTER COLUMN {name} SET GENERATED " + IDENTITIES[source.identity]
    else:
        action = "ALTER COLUMN {name} ADD GENERATED " + IDENTITIES[source.identity] + " AS IDENTITY{options}"
    here, there = (
        "GENERATED {0} AS IDENTITY".format(IDENTITIES[each.identity]) if each.identity else None
        for each in (source, target)
    )
    options = raw(" ({0})".format(source.options) if source.options else "")
    steps = [(TIGHTEN if source.identity else LOOSEN, sides.alter(action, name=identifier(name), options=options))]
    if source.default != target.default:  # a column has either
        steps.insert(
            0 if source.identity else 1, (LOOSEN if source.identity else TIGHTEN, _set_default(sides, name, source))
        )
    return sides.found(
        HARMLESS,
        "column",
        name,
        (here, there),
        "is {0} on the source and {1} on the target".format(here or "no identity column", there or "none"),
        steps=tuple(steps),
        mended_by=ALTER,
        remedy="Alter the identity of column {0} of {1}".format(quoted(name), sides.table.label),
    )
