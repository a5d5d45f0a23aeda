# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether two servers of different versions mean the same by definitions that they print differently."""

from __future__ import annotations

import re

_SQL_SYNTAX_SINCE = 140000
"""Since then calls in SQL syntax, such as EXTRACT, are printed as such, and not as calls of the functions behind them, see
https://www.postgresql.org/docs/release/14.0/."""

_TOKEN = re.compile(r"'(?:[^']|'')*'|\w+|[<>=!~*/%^&|#@+-]+")
_SYNTAX = frozenset(
    (
        "extract",
        "date_part",
        "from",
        "timezone",
        "at",
        "time",
        "zone",
        "substring",
        "for",
        "trim",
        "btrim",
        "ltrim",
        "rtrim",
    )
    + (
        "both",
        "leading",
        "trailing",
        "overlay",
        "placing",
        "position",
        "in",
        "normalize",
        "is_normalized",
        "is",
        "normalized",
    )
    + ("xmlexists", "text")
)
_EXTRACT = frozenset(("extract", "date_part"))
_NUMBERS = frozenset(("numeric", "double", "precision"))
"""What EXTRACT is since then, what it was before, and what it is compared with becomes of it."""


def alike(one: str, other: str, source_version: int, target_version: int) -> bool:
    """Whether the definitions are the same, as far as texts tell."""
    if one == other:
        return True
    if (source_version < _SQL_SYNTAX_SINCE) == (target_version < _SQL_SYNTAX_SINCE):
        return False
    return _words(one) == _words(other)


def _words(text: str) -> list[str]:
    """What a definition is about, without the words by which the versions call functions. Those stand in another order, too."""
    found = [token.lower().strip("'") for token in _TOKEN.findall(text)]
    dropped = _SYNTAX | _NUMBERS if _EXTRACT.intersection(found) else _SYNTAX
    left = [token for token in found if token not in dropped]
    return left if len(left) == len(found) else sorted(left)
