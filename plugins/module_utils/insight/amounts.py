# SPDX-License-Identifier: GPL-3.0-or-later
"""Amounts as people write and read them."""

from __future__ import annotations

import re

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_STEP = 1024
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?b)?\Z", re.IGNORECASE)


def parse_size(option: str, text: str) -> int:
    """Bytes of a size such as C(10GB), C(1.5 TB) or C(1048576), in steps of 1024 as PostgreSQL has them."""
    found = _SIZE.match(text.strip())
    if not found:
        raise Refused(
            "{0} is {1!r}, which is no size: write a number of bytes, or one with kB, MB, GB, TB or PB.".format(
                option, text
            )
        )
    units = [unit.lower() for unit in _UNITS]
    return int(float(found.group(1)) * _STEP ** units.index((found.group(2) or "B").lower()))


def size(count: float) -> str:
    """Bytes for a sentence: C(10 GB), C(12.3 GB), C(170 MB)."""
    power = 0
    while round(count) >= _STEP and power < len(_UNITS) - 1:
        count /= _STEP
        power += 1
    digits = 0 if count >= 100 or round(count, 1) == round(count) else 1
    return "{0:,.{1}f} {2}".format(count, digits, _UNITS[power])


def share(fraction: float) -> str:
    """A part of something for a sentence: C(12 %), C(0.34 %)."""
    percent = 100 * fraction
    return "{0:,.0f} %".format(percent) if percent >= 10 else "{0:.2g} %".format(percent)
