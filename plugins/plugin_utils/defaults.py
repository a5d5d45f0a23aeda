# SPDX-License-Identifier: GPL-3.0-or-later
"""What the default of a new column gives to the rows that are there: the same on every server, or not."""

from __future__ import annotations

import re
from typing import Any, Mapping

from ansible_collections.postgresml.distributed.plugins.plugin_utils import nodes

CONSTANT, STABLE, VOLATILE = range(3)
_VOLATILITIES = {"i": CONSTANT, "s": STABLE, "v": VOLATILE}
_RANGES = ("daterange", "datemultirange", "tsrange", "tsmultirange", "tstzrange", "tstzmultirange")
_MOMENTS = ("date", "time", "timetz", "timestamp", "timestamptz", *_RANGES)
_ZONED = ("timetz", "timestamptz")
_STABLE_BY_SETTINGS = """
to_char to_date to_timestamp to_number date_trunc date_part extract timezone make_timestamptz format concat concat_ws
array_to_string array_to_json row_to_json to_json to_jsonb json_build_array json_build_object jsonb_build_array
jsonb_build_object quote_literal quote_nullable
"""
_ABOUT_SETTINGS = frozenset(_STABLE_BY_SETTINGS.split())
"""Stable functions of PostgreSQL that say the same wherever the settings are the same"""
_WORDS = re.compile(r"\b(now|today|tomorrow|yesterday)\b", re.IGNORECASE)
_ISO = re.compile(r"\s*(\d{4}-\d\d-\d\d|\d\d:\d\d)|\s*-?(infinity|epoch)\s*\Z", re.IGNORECASE)
_ZONE = re.compile(r"(\d\s*(Z|UTC|GMT)|:\d\d(\.\d+)?\s*[+-]\d\d?(:?\d\d)?|infinity|epoch)\s*\Z", re.IGNORECASE)


class NotJudged(Exception):
    """Says why a default can't be judged, in words that follow "the default of column x"."""


def judge(expression: Any, type_name: str, functions: Mapping[str, str]) -> int:
    """CONSTANT, STABLE (one value for all rows, which differs from server to server) or VOLATILE, of the default of a column of a
    type. Raises NotJudged. Where it is not sure, it says STABLE, which is never wrong."""
    kind = nodes.kind(expression)
    if kind == "A_Const":
        return _of_constant(expression, type_name)
    if kind == "TypeCast":
        return _of_cast(expression, type_name, functions)
    if kind in ("A_ArrayExpr", "RowExpr"):
        elements = expression.elements if kind == "A_ArrayExpr" else expression.args
        return max([judge(each, type_name, functions) for each in elements or ()] or [CONSTANT])
    if kind == "FuncCall":
        arguments = [judge(each, "text", functions) for each in expression.args or ()]
        return max([_of_function(expression, functions), *arguments])
    if kind == "A_Expr" and _is_arithmetic(expression):
        return CONSTANT
    called = [_of_function(node, functions) for node in nodes.walk(expression) if nodes.kind(node) == "FuncCall"]
    return max([STABLE, *called])


def differs(expression: Any, type_name: str, functions: Mapping[str, str]) -> bool:
    """Whether rows that each server reckons anew may get other values than elsewhere, where the settings are the same. Raises
    NotJudged."""
    kinds = [nodes.kind(node) for node in nodes.walk(expression)]
    if "SQLValueFunction" in kinds or "SubLink" in kinds:
        return True
    moments = {type_name} | {
        nodes.type_name(node.typeName) for node in nodes.walk(expression) if nodes.kind(node) == "TypeCast"
    }
    for node in nodes.walk(expression):
        if nodes.kind(node) == "FuncCall" and _of_function(node, functions) != CONSTANT:
            name = nodes.function(node)
            if functions[name] != "s" or name.replace("pg_catalog.", "") not in _ABOUT_SETTINGS:
                return True
    texts = [node.val.sval for node in nodes.walk(expression) if nodes.kind(node) == "A_Const" and _is_text(node)]
    return bool(moments & set(_MOMENTS)) and any(_WORDS.search(text) for text in texts)


def _is_text(constant: Any) -> bool:
    return nodes.kind(constant.val) == "String"


def _of_function(call: Any, functions: Mapping[str, str]) -> int:
    name = nodes.function(call)
    if name not in functions:
        raise NotJudged("calls {0}(), which is not on the primary".format(name))
    return _VOLATILITIES.get(functions[name], VOLATILE)


def _of_constant(node: Any, type_name: str) -> int:
    if node.isnull or nodes.kind(node.val) != "String" or type_name not in _MOMENTS:
        return STABLE if type_name.startswith("reg") and nodes.kind(node.val) == "String" else CONSTANT
    text = node.val.sval
    if _WORDS.search(text):
        words = "is '{0}', which is read once, at another time on each server: write now() or current_date"
        raise NotJudged(words.format(text))
    if not _ISO.match(text) or type_name in _ZONED and not _ZONE.search(text):
        return STABLE
    return CONSTANT


def _of_cast(node: Any, type_name: str, functions: Mapping[str, str]) -> int:
    target = nodes.type_name(node.typeName)
    if nodes.kind(node.arg) == "A_Const":
        if target == "text" and type_name in _MOMENTS:
            return STABLE
        return judge(node.arg, target, functions)
    inner = judge(node.arg, target, functions)
    if nodes.kind(node.arg) in ("A_ArrayExpr", "RowExpr", "TypeCast") and inner == CONSTANT and target not in _MOMENTS:
        return CONSTANT
    return max(STABLE, inner)


def _is_arithmetic(expression: Any) -> bool:
    """Whether only numbers are reckoned with."""
    inner = list(nodes.walk(expression))
    numbers = all(nodes.kind(node.val) in ("Integer", "Float") for node in inner if nodes.kind(node) == "A_Const")
    return numbers and all(nodes.kind(node) in ("A_Expr", "A_Const", "Integer", "Float", "String") for node in inner)
