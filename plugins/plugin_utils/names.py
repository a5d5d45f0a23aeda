# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of tables as in SQL, read where no server can be asked."""

from __future__ import annotations

import re

_PART = r'\s*(?:"((?:[^"]|"")+)"|([^\s".]+))\s*'
_NAME = re.compile(r"(?:{0}\.)?{0}\Z".format(_PART))


def is_name(name: str) -> bool:
    """Whether *name* reads as a table's name with or without a schema."""
    return _NAME.match(name) is not None


def parsed(name: str) -> tuple[str, str]:
    """(schema, table) of a name that is one, see is_name(); without a schema it is C(public)."""
    match = _NAME.match(name)
    if not match:
        raise ValueError(name)
    parts = [
        quoted.replace('""', '"') if quoted else _folded(plain)
        for quoted, plain in (match.group(1, 2), match.group(3, 4))
        if quoted or plain
    ]
    return (parts[0], parts[1]) if len(parts) == 2 else ("public", parts[0])


def _folded(word: str) -> str:
    """A word without quotes as PostgreSQL takes it: it folds the letters of ASCII only."""
    return "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in word)
