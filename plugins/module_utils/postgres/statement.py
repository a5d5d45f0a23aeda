# SPDX-License-Identifier: GPL-3.0-or-later
"""Composing SQL. Whatever a user wrote enters a statement here as an identifier or a literal, never as text."""

from __future__ import annotations

import re
from typing import Any, Iterable, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused

try:
    from psycopg2 import sql
except ImportError:  # task.py reports it
    pass

NAME_BYTES = 63
"""Bytes of a name that PostgreSQL keeps; it cuts longer ones, see
https://www.postgresql.org/docs/current/sql-syntax-lexical.html#SQL-SYNTAX-IDENTIFIERS."""


SECRET_MARK = "\ue000secret\ue000"
"""Stands in a statement's text for a secret; characters of the private use area, which no catalog is likely to hold."""


class Change(NamedTuple):
    """A step towards what is wanted: the statement, the words for a person, and where it may run."""

    statement: Any
    """psycopg2.sql.Composable"""
    words: str
    transactional: bool = True
    secret: str | None = None
    """What SECRET in the statement stands for; such a statement runs in a session of its own, see Session.apply()."""


def compose(template: str, **parts: Any) -> Any:
    """*template* with its C({names}) replaced by *parts*, which are psycopg2.sql objects."""
    return sql.SQL(template).format(**parts)


def identifier(*names: str) -> Any:
    """A quoted, possibly qualified, name."""
    return sql.Identifier(*names)


def identifiers(names: Iterable[str]) -> Any:
    """Quoted names with commas between."""
    return sql.SQL(", ").join([sql.Identifier(name) for name in names])


def literal(value: Any) -> Any:
    """A quoted value."""
    return sql.Literal(value)


def expression(text: str) -> Any:
    """An expression that the user wrote and the server checks, such as a row filter, in parentheses of its own."""
    return sql.Composed([sql.SQL("("), sql.SQL(text), sql.SQL("\n)")])


def arrays(keys: Iterable[tuple[str, str]]) -> list[list[str]]:
    """The schemas and the names of tables, as parameters of C(unnest(%s::text[], %s::text[]))."""
    return [list(column) for column in zip(*keys)] or [[], []]


def listed(parts: Sequence[Any]) -> Any:
    """*parts* with commas between."""
    return sql.SQL(", ").join(parts)


def sequence(statements: Iterable[Any]) -> Any:
    """Several statements to be sent at once."""
    return sql.SQL(";\n").join(list(statements))


def union_all(queries: Iterable[Any]) -> Any:
    """The rows of all *queries*."""
    return sql.SQL(" UNION ALL ").join(list(queries))


def with_options(options: Mapping[str, Any]) -> Any:
    """A C(WITH (...)) or C(SET (...)) list without the keyword; booleans as true and false."""
    return listed(
        [compose("{name} = {value}", name=sql.SQL(name), value=literal(value)) for name, value in options.items()]
    )


def check_name(kind: str, name: str) -> None:
    """Refuse a name that the server would cut or not take."""
    size = len(name.encode("utf-8"))
    if not name:
        raise Refused("The {0} name is empty.".format(kind))
    if size > NAME_BYTES:
        raise Refused(
            'The {0} name "{1}" is {2} bytes long and PostgreSQL keeps {3}: choose a shorter one.'.format(
                kind, name, size, NAME_BYTES
            )
        )
    if "\x00" in name:
        raise Refused("The {0} name holds a null character, which PostgreSQL can't store.".format(kind))


def secret() -> Any:
    """The place of a Change's secret in its statement."""
    return sql.SQL(SECRET_MARK)


def raw(text: str) -> Any:
    """A keyword or another piece of SQL that the code itself knows."""
    return sql.SQL(text)


def quoted(*names: str) -> str:
    """A name as PostgreSQL prints it for people: quotes only where needed."""
    return ".".join(name if _PLAIN.match(name) else '"{0}"'.format(name.replace('"', '""')) for name in names)


_PLAIN = re.compile(r"[a-z_][a-z0-9_]*\Z")


def enumerate_names(names: Iterable[str], most: int = 10) -> str:
    """Names for a sentence, in order, the first *most* of them."""
    ordered = sorted(names)
    text = ", ".join(ordered[:most])
    if len(ordered) > most:
        text += " and {0} more".format(len(ordered) - most)
    return text
