# SPDX-License-Identifier: GPL-3.0-or-later
"""Names as people read them, names that can't be, and requests that can't be read."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import version_text
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    check_name,
    enumerate_names,
    quoted,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import slot
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.tables import (
    TableRequest,
    parse_requests,
)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (("public", "a_1"), "public.a_1"),
        (("Public", "a"), '"Public".a'),
        (("a.b", 'c"d'), '"a.b"."c""d"'),
        (("1a",), '"1a"'),
        (("",), '""'),
        (("größe",), '"größe"'),
        (("a b",), '"a b"'),
        (("_x",), "_x"),
    ],
)
def test_names_are_quoted_only_where_needed(names: tuple[str, ...], text: str) -> None:
    assert quoted(*names) == text


@pytest.mark.parametrize("name", ["a", "x" * 63, "ü" * 31, "with space", 'qu"ote'])
def test_names_that_the_server_takes(name: str) -> None:
    check_name("publication", name)


@pytest.mark.parametrize(
    ("name", "words"),
    [("", "is empty"), ("x" * 64, "64 bytes long"), ("ü" * 32, "64 bytes long"), ("a\x00b", "null character")],
)
def test_names_that_the_server_would_cut_or_refuse(name: str, words: str) -> None:
    with pytest.raises(Refused, match=words) as caught:
        check_name("publication", name)
    assert "publication name" in str(caught.value)


@pytest.mark.parametrize("name", ["a", "sub_1", "x" * 63, "1"])
def test_slot_names_that_are_possible(name: str) -> None:
    slot.check_name(name)


@pytest.mark.parametrize("name", ["", "Sub", "a-b", "a b", "ä", "x" * 64, "a.b", "a\n"])
def test_slot_names_that_are_not(name: str) -> None:
    with pytest.raises(Refused, match="1 to 63 lower-case letters"):
        slot.check_name(name)


def test_long_lists_are_cut() -> None:
    assert enumerate_names(["b", "a"]) == "a, b"
    assert enumerate_names([f"t{i:02}" for i in range(12)]).endswith("t09 and 2 more")


def test_versions_read_as_people_write_them() -> None:
    assert version_text(150018) == "15.18" and version_text(180004) == "18.4"


def test_requests_take_the_short_and_the_long_form() -> None:
    assert parse_requests(None) is None and parse_requests([]) == []
    assert parse_requests(["a", {"name": "b", "columns": ["x"], "where": "x > 1"}, {"name": "c"}]) == [
        TableRequest("a", None, None),
        TableRequest("b", ("x",), "x > 1"),
        TableRequest("c", None, None),
    ]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (7, "7 is neither a name nor a mapping"),
        (None, "None is neither"),
        (["a"], "is neither"),
        ({}, "is neither"),
        ({"name": 7}, "is neither"),
        ({"name": "a", "filter": "x"}, "a has unknown key filter; known are name, columns and where"),
        ({"name": "a", "columns": "x"}, "columns of a must be a list"),
        ({"name": "a", "columns": []}, "columns of a must be a list"),
        ({"name": "a", "columns": [1]}, "columns of a must be a list"),
        ({"name": "a", "where": ""}, "where of a must be an SQL condition"),
        ({"name": "a", "where": "  \n"}, "where of a must be an SQL condition"),
        ({"name": "a", "where": True}, "where of a must be an SQL condition"),
    ],
)
def test_requests_that_can_not_be_read(entry: Any, words: str) -> None:
    with pytest.raises(Refused, match=words):
        parse_requests([entry])
