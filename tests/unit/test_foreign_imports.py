# SPDX-License-Identifier: GPL-3.0-or-later
"""What pgml_fdw imports for tables, schemas, or a whole database."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.postgresml.distributed.plugins.plugin_utils import names
from ansible_collections.postgresml.distributed.plugins.plugin_utils.imports import foreign_imports

FILTERED = {"name": "public.orders", "where": "id > 1"}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("users", ("public", "users")),
        (" Sales . ÉtÉ ", ("sales", "ÉtÉ")),
        ('"Order Lines"', ("public", "Order Lines")),
        ('"Sch.ema"."Ta""ble, ü"', ("Sch.ema", 'Ta"ble, ü')),
        ('public."it\'s {{ here }} 100%"', ("public", "it's {{ here }} 100%")),
    ],
)
def test_names_are_read_as_postgresql_reads_them(name, key):
    assert names.parsed(name) == key


@pytest.mark.parametrize("name", ["", "a.b.c", "Order Lines", '"half', 'a"b"', ".a", "a.", '""'])
def test_what_is_no_name_is_not_read(name):
    assert not names.is_name(name)
    with pytest.raises(ValueError):
        names.parsed(name)


@pytest.mark.parametrize(
    ("arguments", "imports"),
    [
        ([["users", FILTERED]], [{"tables": ["users", FILTERED]}]),
        ([[], ["public"]], [{"remote_schema": "public", "except": []}]),
        (
            [[], ["public", "Stock"], ["LOG", '"Stock".log']],
            [
                {"remote_schema": "public", "except": ["public.log"]},
                {"remote_schema": "Stock", "except": ['"Stock".log']},
            ],
        ),
        # Once, with its filter.
        ([[FILTERED], ["public"]], [{"tables": [FILTERED]}, {"remote_schema": "public", "except": ["public.orders"]}]),
        ([[]], [{"except": []}]),
        ([[], [], ["log"]], [{"except": ["public.log"]}]),
        (
            [["users"], ["s"], [], {"local_schema": "here"}],
            [
                {"tables": ["users"], "local_schema": "here"},
                {"remote_schema": "s", "except": [], "local_schema": "here"},
            ],
        ),
    ],
)
def test_a_request_becomes_imports(arguments, imports):
    assert foreign_imports(*arguments) == imports


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([["a.b.c"]], "tables: 'a.b.c' is no table's name: write it as in SQL"),
        ([[{"where": "true"}]], "tables: None is no table's name"),
        ([[], ["public"], ["Order Lines"]], "exclude_tables: 'Order Lines' is no table's name"),
        ([[], ["public"], ["s.log", "log"]], "exclude_tables: s.log is in none of the schemas that are asked for."),
        ([["users"], [], ["log"]], "exclude_tables: public.log is in none of the schemas"),
    ],
)
def test_a_mistake_is_named(arguments, words):
    with pytest.raises(AnsibleFilterError, match=words.replace("(", "[(]")):
        foreign_imports(*arguments)
