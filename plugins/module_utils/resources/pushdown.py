# SPDX-License-Identifier: GPL-3.0-or-later
"""Conditions of views over foreign tables, put so that the source can evaluate them.

postgres_fdw sends what is built from immutable operations only, since the source's clock and settings may differ
(https://www.postgresql.org/docs/current/postgres-fdw.html#POSTGRES-FDW-REMOTE-QUERY-OPTIMIZATION). A part without columns,
such as C(now() - interval '14 days'), can be computed here before the query begins. As a subquery, C((SELECT ...)), it
becomes a parameter of what is sent.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import ServerRefused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import compose, raw

_TOKEN = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|[A-Za-z_\u0080-\uffff][\w$\u0080-\uffff]*|\d[\w.]*|::|[()\[\],.;]"""
    r"""|[-+*/<>=~!@#%^&|`?:]+|\s+|.""",
    re.DOTALL,
)
_NAME = re.compile(r'[^\W\d]|"')
_KEYWORDS = (
    "current_date",
    "current_timestamp",
    "current_time",
    "localtime",
    "localtimestamp",
    "current_user",
    "session_user",
)
"""Functions without parentheses."""
_TYPE = re.compile(
    r'(?:"(?:[^"]|"")*"|\w+)(?:\.(?:"(?:[^"]|"")*"|\w+))?'
    r"(?: precision| varying)?(?:\(\d+(?:,\d+)?\))?(?: with(?:out)? time zone)?(?:\[\])*"
)


class Pushdown:
    """Rewrites conditions as the server prints them. *session* is one of its own, in no transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def rewritten(self, condition: str) -> str:
        """*condition* with its largest parts that have no columns and aren't constant as subqueries."""
        tokens = _TOKEN.findall(condition)
        pairs = _pairs(tokens)
        out = []
        position = 0
        while position < len(tokens):
            end = _end_of_part(tokens, pairs, position)
            if end is not None:
                part = tokens[position : end + 1]
                type_ = self._type("".join(part)) if _calls(part) and not self._is_volatile(part) else None
                if type_:
                    # ANY (SELECT ...) would mean the rows of a query.
                    listed = _before(tokens, position) in ("any", "all", "some", "in")
                    out.append(("((SELECT {0})::{1})" if listed else "(SELECT {0})").format("".join(part), type_))
                    position = end + 1
                    continue
            out.append(tokens[position])
            position += 1
        return "".join(out)

    def _type(self, part: str) -> str | None:
        """The type of *part*, if it is an expression by itself."""
        with contextlib.suppress(ServerRefused):
            type_: str = self._session.value(compose("SELECT pg_typeof(({part}))::text", part=raw(part)))
            return type_ if type_ not in ("record", "unknown") else None
        return None

    def _is_volatile(self, part: list[str]) -> bool:
        names = [_unquoted(name) for name in _called(part)]
        return bool(
            self._session.value(
                "SELECT EXISTS (SELECT FROM pg_proc WHERE proname = ANY(%s) AND provolatile = 'v')", [names]
            )
        )


def _pairs(tokens: list[str]) -> dict[int, int]:
    """Where each opening parenthesis is closed."""
    pairs, opened = {}, []
    for number, token in enumerate(tokens):
        if token == "(":
            opened.append(number)
        elif token == ")" and opened:
            pairs[opened.pop()] = number
    return pairs


def _end_of_part(tokens: list[str], pairs: dict[int, int], start: int) -> int | None:
    """Where the expression ends that begins at *start*: in parentheses, a call or a keyword, with its casts."""
    if start in pairs:
        end = pairs[start]
    elif start > 0 and tokens[start - 1] == ".":
        return None
    elif _NAME.match(tokens[start]) and start + 1 in pairs:
        end = pairs[start + 1]
    elif _NAME.match(tokens[start]) and tokens[start + 1 : start + 2] == ["."] and start + 3 in pairs:
        end = pairs[start + 3]
    elif tokens[start].lower() in _KEYWORDS:
        end = start
    else:
        return None
    while end + 1 < len(tokens) and tokens[end + 1] == "::":
        match = _TYPE.match("".join(tokens[end + 2 :]))
        if not match:
            break
        end, length = end + 1, match.end()
        while length > 0:
            end += 1
            length -= len(tokens[end])
    return end


def _called(part: list[str]) -> list[str]:
    return [name for name, after in zip(part, part[1:]) if after == "(" and _NAME.match(name)]


def _calls(part: list[str]) -> bool:
    """Whether *part* calls something: constants are sent as they are."""
    return bool(_called(part)) or any(token.lower() in _KEYWORDS for token in part)


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _before(tokens: list[str], position: int) -> str:
    """The word before *position*."""
    words = [token for token in tokens[:position] if not token.isspace()]
    return words[-1].lower() if words else ""


def frozen_moments(written: str, spelled: str) -> list[str]:
    """The strings in a condition that were dates when it was *written* and are constants where it is *spelled*."""
    strings = {token for token in _TOKEN.findall(written) if token.startswith("'") and _MOMENT.search(token)}
    return sorted(strings - set(_TOKEN.findall(spelled)))


_MOMENT = re.compile(r"\b(now|today|tomorrow|yesterday)\b", re.IGNORECASE)


def is_sent(session: Session, query: Any) -> bool:
    """Whether the source evaluates all conditions of *query* on one foreign table, as the plan tells."""
    plan = session.value(compose("EXPLAIN (FORMAT JSON, COSTS OFF) {query}", query=query))
    return "Filter" not in _keys(plan)


def _keys(plan: Any) -> set[str]:
    if isinstance(plan, dict):
        return set(plan).union(*map(_keys, plan.values())) if plan else set()
    if isinstance(plan, list):
        return set().union(*map(_keys, plan))
    return set()
