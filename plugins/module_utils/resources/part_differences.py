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
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.difference import (
    ADD,
    ALTER,
    APPLY,
    CREATE,
    HARMLESS,
    RELEASE,
    TIGHTEN,
    Difference,
    Sides,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.structures import (
    Part,
)


def of_parts(sides: Sides) -> Iterable[Difference]:
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
        rank=TIGHTEN,
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
        rank=RELEASE,
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
        rank=TIGHTEN,
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
            rank=TIGHTEN,
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
        rank=TIGHTEN,
    )
