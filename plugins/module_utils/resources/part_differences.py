# SPDX-License-Identifier: GPL-3.0-or-later
"""What differs between the indexes and constraints of a table on source and target. Pure."""

from __future__ import annotations

import re
from typing import Any, Iterable

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    compose,
    identifier,
    quoted,
    raw,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import spelling
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.difference import (
    ADD,
    ALTER,
    APPLY,
    BUILD,
    CREATE,
    HARMLESS,
    REFER,
    RELEASE,
    UNREFER,
    Difference,
    Sides,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.structures import Column, Part


def of_parts(sides: Sides) -> Iterable[Difference]:
    """Indexes and constraints, by name, and by definition where names differ."""
    source, target = sides.source.own_parts, sides.target.own_parts
    pairs = [(part, target[name]) for name, part in source.items() if name in target]
    lacking = [part for name, part in source.items() if name not in target]
    more = [part for name, part in target.items() if name not in source]
    for part in list(lacking):
        twin = _twin(sides, part, more)
        if twin:
            lacking.remove(part)
            more.remove(twin)
            if not _same(sides, part, twin):
                pairs.append((part, twin))
            else:
                words = "is called {0} on the target".format(quoted(twin.name))
                yield sides.found(HARMLESS, _kind(part), part.name, (part.name, twin.name), words)
    moves = sides.source.parent != sides.target.parent
    for part in lacking:
        if not (moves and part.unique):  # its table brings that with it
            yield _missing_part(sides, part)
    if moves:
        return
    for part in more:
        yield _part_of_the_target(sides, part)
    for part, other in pairs:
        if not _same(sides, part, other):
            yield _other_part(sides, part, other)
        elif part.valid and not other.valid:
            yield _invalid_part(sides, part)


def _twin(sides: Sides, part: Part, others: Iterable[Part]) -> Part | None:
    """The same by another name, or the primary key, of which a table has one."""
    return next((each for each in others if _same(sides, part, each) or part.type == each.type == "p"), None)


def name_on_target(sides: Sides, name: str) -> str:
    """What the target calls an index or a constraint of the source, if it has it."""
    part, target = sides.source.parts.get(name), sides.target.parts
    if part is None or name in target:
        return name
    return next((each.name for each in target.values() if _same(sides, part, each)), name)


def _same(sides: Sides, one: Part, other: Part) -> bool:
    if one.type != other.type:
        return False
    definition = other.definition
    # NOT VALID is a part of what the server prints.
    if not other.valid and one.valid:
        definition = definition.replace(" NOT VALID", "")
    return spelling.alike(one.definition, definition, sides.servers.source_version, sides.servers.target_version)


def _kind(part: Part) -> str:
    return "index" if part.type == "i" else part.kind


def _named(part: Part) -> str:
    kind = {"f": "foreign key", "p": "primary key"}.get(part.type, _kind(part))
    return "{0} {1}".format(kind, quoted(part.name))


def _missing_part(sides: Sides, part: Part) -> Difference:
    """What replication needs, and valid checks, are added here; others are created as they are for new tables."""
    identifies = part.type == "p" or part.name == sides.source.identity_index
    dumped = not identifies and not (part.type == "c" and part.valid)
    return sides.found(
        APPLY if identifies and not sides.target.identity_columns and sides.source.identity in "di" else HARMLESS,
        _kind(part),
        part.name,
        (part.definition, None),
        "is missing on the target",
        steps=((_when(part), _made(sides, part)),),
        mended_by=ADD if identifies else CREATE,
        remedy="Create {0} of {1}".format(_named(part), sides.table.label),
        dumped=dumped,
    )


def _when(part: Part) -> int:
    return REFER if part.type == "f" else BUILD


def _made(sides: Sides, part: Part) -> Any:
    if part.type == "i":
        before, after = part.definition.split(" INDEX ON ", 1)
        return compose(
            "{before} INDEX {name} ON {after}", before=raw(before), name=identifier(part.name), after=raw(after)
        )
    return sides.alter(
        "ADD CONSTRAINT {name} {definition}", name=identifier(part.name), definition=raw(part.definition)
    )


def _unmade(sides: Sides, part: Part) -> tuple[int, Any]:
    if part.type == "i":
        return RELEASE, compose("DROP INDEX {name}", name=identifier(sides.table.schema, part.name))
    drop = sides.alter("DROP CONSTRAINT {name}", name=identifier(part.name))
    return UNREFER if part.type == "f" else RELEASE, drop


def _may_refuse(sides: Sides, part: Part) -> bool:
    """Whether rows of the source could fail it: foreign keys are not looked at while changes are applied."""
    own = [sides.others[name] for name in part.columns if name not in sides.columns and name in sides.others]
    if part.type == "c":
        unknown = bool(own) and len(own) == len(part.columns) and all(map(_stays_null, own))
        return "NOT ENFORCED" not in part.definition and not (unknown and not _KNOWS_NULL.search(part.definition))
    if not part.unique:
        return False
    if any(each.identity or _stays_null(each) or _counts(each) for each in own):
        return "NULLS NOT DISTINCT" in part.definition
    keys = [set(each.columns) for each in sides.source.parts.values() if _is_plain_key(each)]
    return not (_is_plain_key(part) and any(key <= set(part.columns) for key in keys))


_KNOWS_NULL = re.compile(r"\b(IS|CASE|COALESCE|GREATEST|LEAST|concat|concat_ws|num_nulls|num_nonnulls)\b", re.I)
"""What makes more of NULL than NULL, which a CHECK lets pass."""


def _stays_null(column: Column) -> bool:
    """Whether a row that comes without a value of the column has none."""
    return column.default is None and not column.not_null


def _counts(column: Column) -> bool:
    return "nextval(" in (column.default or "")


_PLAIN_KEY = re.compile(r"(PRIMARY KEY|UNIQUE|CREATE UNIQUE INDEX ON .* USING btree) \([^()]*\)\Z")


def _is_plain_key(part: Part) -> bool:
    """Whether it says no more than that no two rows have the same values in its columns."""
    return part.valid and bool(_PLAIN_KEY.match(part.definition)) and "WITHOUT OVERLAPS" not in part.definition


def _part_of_the_target(sides: Sides, part: Part) -> Difference:
    values = (None, part.definition)
    if not _may_refuse(sides, part):
        return sides.found(HARMLESS, _kind(part), part.name, values, "is on the target only, and stays")
    return sides.found(
        APPLY,
        _kind(part),
        part.name,
        values,
        "is on the target only, and may refuse rows that the source has",
        steps=(_unmade(sides, part),),
        mended_by=ALTER,
        remedy="Drop {0} of {1}".format(_named(part), sides.table.label),
    )


def _other_part(sides: Sides, source: Part, target: Part) -> Difference:
    refuses = _may_refuse(sides, target)
    # What is partitioned otherwise may not have it.
    by_hand = source.unique and sides.source.partitioned_by != sides.target.partitioned_by
    return sides.found(
        APPLY if refuses else HARMLESS,
        _kind(source),
        source.name,
        (source.definition, target.definition),
        "is another one on the target" + (", and may refuse rows that the source has" if refuses else ""),
        steps=() if by_hand else (_unmade(sides, target), (_when(source), _made(sides, source))),
        mended_by=None if by_hand else ALTER,
        remedy="Make {0} of {1} anew".format(_named(source), sides.table.label),
    )


def _invalid_part(sides: Sides, part: Part) -> Difference:
    if part.type != "i" and not part.unique:
        return sides.found(
            HARMLESS,
            _kind(part),
            part.name,
            (part.definition, "NOT VALID"),
            "is not validated on the target",
            steps=((REFER, sides.alter("VALIDATE CONSTRAINT {name}", name=identifier(part.name))),),
            mended_by=ALTER,
            remedy="Validate constraint {0} of {1}".format(quoted(part.name), sides.table.label),
        )
    by_hand = part.type != "i" and sides.target.kind == "p"
    steps = (_unmade(sides, part), (BUILD, _made(sides, part)))
    return sides.found(
        HARMLESS,
        _kind(part),
        part.name,
        (part.definition, "INVALID"),
        "is invalid on the target, so that no query uses it",
        steps=() if by_hand else steps,
        mended_by=None if by_hand else ALTER,
        remedy="Make {0} of {1} anew".format(_named(part), sides.table.label),
    )
