# SPDX-License-Identifier: GPL-3.0-or-later
"""What differs between the types, sequences, extensions and databases of source and target. Pure."""

from __future__ import annotations

import re
from typing import Any, Callable, Iterable, Mapping

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    compose,
    identifier,
    literal,
    quoted,
    raw,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import widening
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.difference import (
    ADD,
    ALTER,
    APPLY,
    CREATE,
    HARMLESS,
    IDENTIFY,
    TIGHTEN,
    TYPE,
    Difference,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.structures import (
    Column,
    Database,
    Domain,
    SequenceState,
    Type,
)

_KINDS = {"row": "row type", "e": "enum", "d": "domain", "c": "composite type", "r": "range type", "b": "base type"}


_Alike = Callable[[str, str], bool]
"""Whether source and target mean the same by two definitions."""


def of_types(source: Mapping[str, Type], target: Mapping[str, Type], alike: _Alike) -> Iterable[Difference]:
    """What differs between the types that both sides have. One that is missing is missing with its table."""
    for name, type_ in source.items():
        other = target.get(name)
        if other is None or type_.extension or (type_.kind, type_.text) == (other.kind, other.text):
            continue
        if type_.kind == "row" == other.kind:
            yield from _row(name, type_, other)
        elif type_.kind != other.kind:
            here, there = _KINDS[type_.kind], _KINDS[other.kind]
            yield _found(
                APPLY, name, None, (here, there), "is {0} on the source and {1} on the target".format(here, there)
            )
        elif type_.kind == "e":
            yield from _enum(name, type_.labels, other.labels)
        elif type_.kind == "d":
            yield from _domain(name, type_.domain, other.domain, alike)
        elif type_.kind == "c":
            yield from _composite(name, type_, other)
        else:
            here, there = (", ".join(map(str, each.labels)) for each in (type_, other))
            yield _found(
                APPLY,
                name,
                None,
                (here, there),
                "is a range of {0} on the source and of {1} on the target".format(here, there),
            )


def _found(
    breaks: str, type_: str, name: str | None, values: tuple[str | None, str | None], words: str, **rest: Any
) -> Difference:
    shown = repr(name) if rest.pop("label", False) else quoted(name or "")
    subject = "type {0}".format(type_) if name is None else "{0} of type {1}".format(shown, type_)
    return Difference(breaks, "type", type_, name, *values, "{0} {1}".format(subject, words), **rest)


def _steps(*statements: Any) -> tuple[tuple[int, Any], ...]:
    return tuple((TYPE, statement) for statement in statements)


def _enum(type_: str, source: list[str], target: list[str]) -> Iterable[Difference]:
    lacking = [label for label in source if label not in target]
    more = [label for label in target if label not in source]
    renamed = {one: other for one, other in zip(source, target) if one in lacking and other in more}
    source = [renamed.get(label, label) for label in source]  # what the target has until somebody has decided
    for label in source:
        if label not in target:
            yield _missing_label(type_, source, target, label)
    for label, other in renamed.items():
        yield _renamed_label(type_, label, other)
    for label in target:
        if label not in source:
            yield _found(HARMLESS, type_, label, (None, label), "is on the target only, and stays", label=True)
    if [label for label in source if label in target] != [label for label in target if label in source]:
        values = (", ".join(source), ", ".join(target))
        yield _found(HARMLESS, type_, None, values, "has its labels in another order on the target, and sorts by that")


def _renamed_label(type_: str, label: str, other: str) -> Difference:
    statement = compose(
        "ALTER TYPE {type} RENAME VALUE {other} TO {label}", type=raw(type_), other=literal(other), label=literal(label)
    )
    words = "is missing on the target, which has {0!r} in its place, so that it was perhaps renamed".format(other)
    return _found(APPLY, type_, label, (label, other), words, label=True, steps=_steps(statement), unfit=True)


def _missing_label(type_: str, source: list[str], target: list[str], label: str) -> Difference:
    number = source.index(label)
    after = next((each for each in source[number + 1 :] if each in target), None)
    place = raw("")
    if number:  # what precedes it on the source is there by then
        place = compose(" AFTER {label}", label=literal(source[number - 1]))
    elif after is not None:
        place = compose(" BEFORE {label}", label=literal(after))
    statement = compose(
        "ALTER TYPE {type} ADD VALUE {label}{place}", type=raw(type_), label=literal(label), place=place
    )
    return _found(
        APPLY,
        type_,
        label,
        (label, None),
        "is missing on the target",
        label=True,
        steps=_steps(statement),
        mended_by=ADD,
        remedy="Add {0!r} to type {1}".format(label, type_),
        unfit=True,
    )


def _domain(type_: str, source: Domain, target: Domain, alike: _Alike) -> Iterable[Difference]:
    if source.base != target.base:
        words = "is {0} on the source and {1} on the target".format(source.base, target.base)
        fits = widening.holds(target.base, source.base, {}, False)
        yield _found(HARMLESS if fits else APPLY, type_, None, (source.base, target.base), words, unfit=not fits)
        return
    if source.not_null != target.not_null:
        yield _found(
            APPLY if target.not_null else HARMLESS,
            type_,
            None,
            ("NOT NULL" if source.not_null else "NULL", "NOT NULL" if target.not_null else "NULL"),
            "may be NULL on the {0} only".format("source" if target.not_null else "target"),
            steps=_steps(_alter_domain(type_, "{0} NOT NULL".format("DROP" if target.not_null else "SET"))),
            mended_by=ADD if target.not_null else ALTER,
            remedy="Let type {0} {1}be NULL".format(type_, "" if target.not_null else "not "),
        )
    if source.default != target.default and not alike(source.default or "", target.default or ""):
        action = "DROP DEFAULT" if source.default is None else "SET DEFAULT {value}"
        yield _found(
            HARMLESS,
            type_,
            None,
            (source.default, target.default),
            "has another default on the target",
            steps=_steps(_alter_domain(type_, action, value=raw(source.default or ""))),
            mended_by=ALTER,
            remedy="Set the default of type {0}".format(type_),
        )
    yield from _checks(type_, source.checks, target.checks, alike)


def _checks(type_: str, source: Mapping[str, str], target: Mapping[str, str], alike: _Alike) -> Iterable[Difference]:
    """Constraints are the same when they say the same, whatever they are called."""
    for name, check in sorted(target.items()):
        if not any(alike(each, check) for each in source.values()):
            yield _found(
                APPLY,
                type_,
                name,
                (source.get(name), check),
                "is on the target only, and may refuse values that the source has",
                steps=_steps(_alter_domain(type_, "DROP CONSTRAINT {name}", name=identifier(name))),
                mended_by=ALTER,
                remedy="Drop constraint {0} of type {1}".format(quoted(name), type_),
            )
    for name, check in sorted(source.items()):
        if not any(alike(check, each) for each in target.values()):
            action = "ADD CONSTRAINT {name} {check}"
            yield _found(
                HARMLESS,
                type_,
                name,
                (check, target.get(name)),
                "is missing on the target",
                steps=_steps(_alter_domain(type_, action, name=identifier(name), check=raw(check))),
                mended_by=ALTER,
                remedy="Add constraint {0} to type {1}".format(quoted(name), type_),
            )


def _alter_domain(type_: str, action: str, **parts: Any) -> Any:
    return compose("ALTER DOMAIN {type} {action}", type=raw(type_), action=compose(action, **parts))


def _composite(type_: str, source: Type, target: Type) -> Iterable[Difference]:
    """A value of a composite type travels as its attributes in order, without their names."""
    here, there = list(source.attributes.items()), list(target.attributes.items())
    renamed = [(name, other, column) for (name, column), (other, _column) in zip(here, there) if name != other]
    swapped = {name for name, _other, _column in renamed} & set(target.attributes)
    if [column for _name, column in here] == [column for _name, column in there] and not swapped:
        for name, other, column in renamed:
            yield _renamed_attribute(type_, name, other, column)
    elif here[: len(there)] == there:
        for name, column in here[len(there) :]:
            yield _missing_attribute(type_, name, column)
    elif there[: len(here)] == here:
        for name, column in there[len(here) :]:
            yield _attribute_of_the_target(type_, name, column)
    else:
        shown = [", ".join("{0} {1}".format(quoted(name), column) for name, column in each) for each in (here, there)]
        words = "has ({0}) on the source and ({1}) on the target".format(*shown)
        yield _found(APPLY, type_, None, (shown[0], shown[1]), words, unfit=True)


def _row(type_: str, source: Type, target: Type) -> Iterable[Difference]:
    """What a column of a table's row type holds travels as that table's columns in order, of which the last may come with it."""
    here, there = list(source.attributes.values()), list(target.attributes.values())
    if here[: len(there)] != there:
        shown = [", ".join(map(str, each)) for each in (here, there)]
        words = "is a row of ({0}) on the source and of ({1}) on the target".format(*shown)
        yield _found(APPLY, type_, None, (shown[0], shown[1]), words)


def _attribute_of_the_target(type_: str, name: str, column: Column) -> Difference:
    return _found(
        APPLY,
        type_,
        name,
        (None, str(column)),
        "is on the target only, so that values don't fit",
        steps=_steps(_alter_type(type_, "DROP ATTRIBUTE {name}", name=identifier(name))),
        mended_by=ALTER,
        remedy="Drop attribute {0} of type {1}".format(quoted(name), type_),
    )


def _renamed_attribute(type_: str, name: str, other: str, column: Column) -> Difference:
    action = "RENAME ATTRIBUTE {other} TO {name}"
    return _found(
        HARMLESS,
        type_,
        name,
        (str(column), str(column)),
        "is called {0} on the target".format(quoted(other)),
        steps=_steps(_alter_type(type_, action, other=identifier(other), name=identifier(name))),
        mended_by=ALTER,
        remedy="Rename attribute {0} of type {1} to {2}".format(quoted(other), type_, quoted(name)),
    )


def _missing_attribute(type_: str, name: str, column: Column) -> Difference:
    statement = _alter_type(type_, "ADD ATTRIBUTE {name} {column}", name=identifier(name), column=raw(str(column)))
    return _found(
        APPLY,
        type_,
        name,
        (str(column), None),
        "is missing on the target",
        steps=_steps(statement),
        mended_by=ADD,
        remedy="Add attribute {0} to type {1}".format(quoted(name), type_),
        unfit=True,
    )


def _alter_type(type_: str, action: str, **parts: Any) -> Any:
    return compose("ALTER TYPE {type} {action}", type=raw(type_), action=compose(action, **parts))


def of_sequences(
    source: Mapping[tuple[str, str], SequenceState], target: Mapping[tuple[str, str], SequenceState]
) -> Iterable[Difference]:
    """What differs between the definitions of sequences that both sides have."""
    for key, sequence in source.items():
        other = target.get(key)
        if other is None:
            continue
        changed = {name: value for name, value in sequence.options.items() if other.options[name] != value}
        if changed:
            yield Difference(
                HARMLESS,
                "sequence",
                quoted(*key),
                None,
                _options(changed),
                _options({name: other.options[name] for name in changed}),
                "sequence {0} has {1} on the source and {2} on the target".format(
                    quoted(*key), _options(changed), _options({name: other.options[name] for name in changed})
                ),
                (
                    (
                        TIGHTEN,
                        compose(
                            "ALTER SEQUENCE {name} {options}", name=identifier(*key), options=raw(_options(changed))
                        ),
                    ),
                ),
                ALTER,
                "Alter sequence {0}".format(quoted(*key)),
            )


def _options(options: Mapping[str, Any]) -> str:
    return " ".join(
        ("CYCLE" if value else "NO CYCLE") if name == "CYCLE" else "{0} {1}".format(name, value)
        for name, value in options.items()
    )


def of_extensions(needed: Iterable[str], source: Mapping[str, str], target: Mapping[str, str]) -> Iterable[Difference]:
    """What differs between the extensions whose types and operators the tables use."""
    for name in sorted(needed):
        here, there = source[name], target.get(name)
        if there is None:
            yield Difference(
                HARMLESS,  # the table that needs it is missing, too
                "extension",
                quoted(name),
                None,
                here,
                None,
                "extension {0} is missing on the target".format(quoted(name)),
                mended_by=CREATE,
                dumped=True,
            )
        elif here != there:
            action = "ALTER EXTENSION {name} UPDATE TO {version}"
            statement = compose(action, name=identifier(name), version=literal(here))
            yield Difference(
                HARMLESS,
                "extension",
                quoted(name),
                None,
                here,
                there,
                "extension {0} is version {1} on the source and {2} on the target".format(quoted(name), here, there),
                ((IDENTIFY, statement),) if _numbers(here) > _numbers(there) else (),
            )


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall("[0-9]+", version)]


def of_databases(source: Database, target: Database) -> Iterable[Difference]:
    """What differs between how both databases store and sort texts."""
    label = quoted(target.name)
    if source.encoding != target.encoding:
        safe = target.encoding == "UTF8" and source.encoding != "SQL_ASCII" or target.encoding == "SQL_ASCII"
        yield Difference(
            HARMLESS if safe else APPLY,
            "database",
            label,
            None,
            source.encoding,
            target.encoding,
            "the encoding is {0} on the source and {1} on the target{2}".format(
                source.encoding, target.encoding, "" if safe else ", which may not take all texts"
            ),
        )
    if source.locale != target.locale:
        words = "texts are sorted by {0} on the source and by {1} on the target".format(source.locale, target.locale)
        yield Difference(HARMLESS, "database", label, None, source.locale, target.locale, words)
    elif source.version != target.version and source.version and target.version:
        words = "texts are sorted by version {0} of {1} on the source and by {2} on the target".format(
            source.version, source.locale, target.version
        )
        yield Difference(HARMLESS, "database", label, None, source.version, target.version, words)
    if target.outdated:
        words = (
            "the target's server sorts by another version of {0} than when the database was made: REINDEX what is on texts, "
            "then refresh its version"
        )
        statement = compose("ALTER DATABASE {name} REFRESH COLLATION VERSION", name=identifier(target.name))
        yield Difference(
            HARMLESS,
            "database",
            label,
            None,
            None,
            target.version,
            words.format(target.locale),
            ((IDENTIFY, statement),),
        )
