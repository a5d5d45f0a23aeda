# SPDX-License-Identifier: GPL-3.0-or-later
"""Which types hold every value of another one, when values travel as text."""

from __future__ import annotations

import re

_INTEGERS = ("smallint", "integer", "bigint")
_FLOATS = ("real", "double precision")
_TEXTS = ("character varying", "text")
_MODIFIED = re.compile(r"(?P<name>.*?)(?:\((?P<modifiers>[\d,-]+)\))?(?P<array>(?:\[\])*)\Z")


def holds(wide: str, narrow: str) -> bool:
    """Whether every value of type *narrow* is one of type *wide*, both as format_type() spells them."""
    one, two = _MODIFIED.match(wide), _MODIFIED.match(narrow)
    if not one or not two or one.group("array") != two.group("array"):
        return False
    names = (one.group("name"), two.group("name"))
    limits = _numbers(one.group("modifiers")), _numbers(two.group("modifiers"))
    for family in (_INTEGERS, _FLOATS):
        if names[0] in family and names[1] in family:
            return family.index(names[0]) >= family.index(names[1])
    if names[0] == "numeric" and names[1] in _INTEGERS:
        return not limits[0]
    if names[0] in _TEXTS and names[1] in _TEXTS:
        return not limits[0] or (names[0] == names[1] and bool(limits[1]) and limits[0][0] >= limits[1][0])
    if names[0] == names[1] == "numeric":
        return _numeric_holds(*limits)
    return False


def _numbers(modifiers: str | None) -> list[int]:
    return [int(number) for number in modifiers.split(",")] if modifiers else []


def _numeric_holds(wide: list[int], narrow: list[int]) -> bool:
    """(precision, scale): digits before the point, and after it, have to fit."""
    if not wide:
        return True
    if not narrow:
        return False
    return wide[1] >= narrow[1] and wide[0] - wide[1] >= narrow[0] - narrow[1]
