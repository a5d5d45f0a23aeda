# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read of PostgreSQL's parse trees: names, columns, types."""

from __future__ import annotations

from typing import Any, Iterator, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import quoted

SERIALS = ("smallserial", "serial", "bigserial", "serial2", "serial4", "serial8")
_BUILT_IN = """
abstime aclitem bit bool box bpchar bytea char cid cidr circle date datemultirange daterange float4 float8
inet int2 int2vector int4 int4multirange int4range int8 int8multirange int8range interval json jsonb jsonpath
line lseg macaddr macaddr8 money name numeric nummultirange numrange oid oidvector path pg_lsn pg_snapshot
point polygon refcursor regclass regcollation regconfig regdictionary regnamespace regoper regoperator regproc
regprocedure regrole regtype text tid time timestamp timestamptz timetz tsmultirange tsquery tsrange
tstzmultirange tstzrange tsvector txid_snapshot uuid varbit varchar xid xid8 xml
"""
BUILT_IN = frozenset(_BUILT_IN.split())
"""Types of pg_catalog, which come before those of public."""


def kind(node: Any) -> str:
    """The name of a node's class."""
    return type(node).__name__


def option(value: Any) -> str:
    """The name of an enumeration's value."""
    return str(value.name)


def relation(node: Any) -> str:
    """The canonical name of a RangeVar; without a schema it is in public."""
    return quoted(node.schemaname or "public", node.relname)


def of_strings(parts: Sequence[Any]) -> str:
    """The canonical name of a list of strings, a database's name before it left out."""
    names = [part.sval for part in parts][-2:]
    return quoted(*names) if len(names) == 2 else quoted("public", names[0])


def type_name(node: Any) -> str:
    """The canonical name of a TypeName's type: those of PostgreSQL itself without a schema."""
    names = [part.sval for part in node.names]
    if names[0] == "pg_catalog" or len(names) == 1 and names[0] in (*SERIALS, *BUILT_IN):
        return str(names[-1])
    return of_strings(node.names)


def is_own_type(name: str) -> bool:
    """Whether a canonical name of type_name() is that of a type that PostgreSQL doesn't come with."""
    return "." in name


def strings(parts: Sequence[Any] | None) -> list[str]:
    """A list of names."""
    return [part.sval for part in parts or ()]


def walk(node: Any) -> Iterator[Any]:
    """*node* and all that is below it."""
    if isinstance(node, (tuple, list)):
        for each in node:
            yield from walk(each)
    elif type(node).__module__ == "pglast.ast":
        yield node
        for name in node:
            value = getattr(node, name)
            if value is not None and not isinstance(value, (str, int)):
                yield from walk(value)


def columns(*expressions: Any) -> list[str]:
    """The columns that expressions speak of."""
    found = []
    for expression in expressions:
        for node in walk(expression):
            if kind(node) == "ColumnRef" and kind(node.fields[-1]) == "String":
                found.append(node.fields[-1].sval)
    return list(dict.fromkeys(found))


def functions(expression: Any) -> list[str]:
    """The functions that an expression calls, as they are written."""
    return list(dict.fromkeys(function(node) for node in walk(expression) if kind(node) == "FuncCall"))


def function(call: Any) -> str:
    """The name of a function that is called, with a schema where it has one."""
    return quoted(*strings(call.funcname)[-2:])


def constraints(column: Any, *kinds: str) -> list[Any]:
    """The constraints of a column's definition that are of one of *kinds*."""
    return [each for each in column.constraints or () if option(each.contype) in kinds]


def default(column: Any) -> Any:
    """The default of a column's definition, or None."""
    found = constraints(column, "CONSTR_DEFAULT")
    return found[0].raw_expr if found else None


def dropped(node: Any) -> list[str]:
    """The names of what a DROP statement drops."""
    names = []
    for each in node.objects:
        if kind(each) == "TypeName":
            names.append(of_strings(each.names))
        elif kind(each) == "String":
            names.append(quoted(each.sval))
        else:
            names.append(of_strings(each))
    return names
