# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether two servers of different versions mean the same by definitions that they print differently."""

from __future__ import annotations

import re

_SQL_SYNTAX_SINCE = 140000
"""Since then calls in SQL syntax, such as EXTRACT, are printed as such, and not as calls of the functions behind them, see
https://www.postgresql.org/docs/release/14.0/."""

_TOKEN = re.compile(r"'(?:[^']|'')*'|\w+|[<>=!~*/%^&|#@+-]+")
_PRINTED_AS_CALLS = """
extract date_part timezone zone substring trim btrim ltrim rtrim overlay overlaps position normalize is_normalized normalized
xmlexists
"""
_CALLS = frozenset(_PRINTED_AS_CALLS.split())
"""One of them is in every definition that is printed in two ways."""
_AROUND_CALLS = "from at time for both leading trailing placing in is text"
_SYNTAX = _CALLS.union(_AROUND_CALLS.split())
_EXTRACT = frozenset(("extract", "date_part"))
_NUMBERS = frozenset(("numeric", "double", "precision"))
"""What EXTRACT is since then, what it was before, and what it is compared with becomes of it."""


def alike(one: str, other: str, source_version: int, target_version: int) -> bool:
    """Whether the definitions are the same, as far as texts tell."""
    if one == other:
        return True
    if (source_version < _SQL_SYNTAX_SINCE) == (target_version < _SQL_SYNTAX_SINCE):
        return False
    words, others = _words(one), _words(other)
    if _CALLS.isdisjoint(words) or _CALLS.isdisjoint(others):
        return False
    return _subject(words) == _subject(others)


def _words(text: str) -> list[str]:
    return [token.lower().strip("'") for token in _TOKEN.findall(text)]


def _subject(words: list[str]) -> list[str]:
    """What a definition is about, without the words by which the versions call functions, and their order."""
    dropped = _SYNTAX if _EXTRACT.isdisjoint(words) else _SYNTAX | _NUMBERS
    return sorted(word for word in words if word not in dropped)
