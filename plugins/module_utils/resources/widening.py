# SPDX-License-Identifier: GPL-3.0-or-later
"""Which types hold every value of another one."""

from __future__ import annotations

import re
from typing import Mapping

_INTEGERS = ("smallint", "integer", "bigint")
_FLOATS = ("real", "double precision")
_TEXTS = ("character varying", "text")
_PADDED = ("character", "bpchar")
_GROWING = (
    "bit varying",
    "character",
    "interval",
    "time with time zone",
    "time without time zone",
    "timestamp with time zone",
    "timestamp without time zone",
)
"""Types of which one with a larger modifier holds more."""
_MODIFIED = re.compile(r"(?P<name>[^(\[]*)(?:\((?P<modifiers>[\d,-]+)\))?(?P<rest>[^\[]*)(?P<array>(?:\[\])*)\Z")


class _Type:
    """What format_type() spells."""

    def __init__(self, text: str) -> None:
        match = _MODIFIED.match(text)
        parts = match.groupdict() if match else {"name": text, "modifiers": None, "rest": "", "array": ""}
        self.name = (parts["name"] or "") + (parts["rest"] or "")
        self.limits = [int(number) for number in parts["modifiers"].split(",")] if parts["modifiers"] else []
        self.array = parts["array"]


def holds(wide: str, narrow: str, domains: Mapping[str, str], binary: bool) -> bool:
    """Whether every value of type *narrow* is one of type *wide*, both as format_type() spells them.

    :param domains: domain -> what it is based on
    :param binary: whether values travel in binary format, in which numbers of other lengths don't fit
    """
    while narrow in domains and narrow != wide:
        narrow = domains[narrow]
    one, two = _Type(wide), _Type(narrow)
    if one.array != two.array:
        return wide == "text" and not binary
    if one.name in _TEXTS and two.name in _TEXTS:
        return not one.limits or (one.name == two.name and bool(two.limits) and one.limits[0] >= two.limits[0])
    if one.name == two.name:
        return _within(one, two)
    return not binary and _travels(one, two)


def _within(one: _Type, two: _Type) -> bool:
    """Of the same name, by their modifiers."""
    if not one.limits or one.limits == two.limits:
        return True
    if two.limits and one.name in _GROWING:
        return one.limits[0] >= two.limits[0]
    if one.name != "numeric" or not two.limits:
        return False
    # (precision, scale): digits before the point, and after it, have to fit.
    (precision, scale), (digits, fraction) = (
        each.limits if len(each.limits) == 2 else [each.limits[0], 0] for each in (one, two)
    )
    return scale >= fraction and precision - scale >= digits - fraction


def _travels(one: _Type, two: _Type) -> bool:
    """Of other names, as text."""
    for family in (_INTEGERS, _FLOATS):
        if one.name in family and two.name in family:
            return family.index(one.name) >= family.index(two.name)
    return (one.name == "numeric" and two.name in _INTEGERS and not one.limits) or (
        # The spaces that pad a value would count.
        one.name in _TEXTS and not one.limits and two.name not in _PADDED
    )
