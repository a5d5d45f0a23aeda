# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# Copyright (c) 2026, the postgresml.distributed contributors

from __future__ import annotations


class ModuleDocFragment:
    """The options that name tables. Defaults and what an omitted option means are each module's own."""

    DOCUMENTATION = r"""
options:
  tables:
    description:
      - Tables, each as a name or as a mapping with the keys C(name), C(columns) and C(where), of which C(name) is
        required.
      - C(name) is written as in SQL. A part that holds capitals, dots, spaces or quotes needs double quotes, as in
        C(sales."Order Lines"). A name without schema means schema C(public), whatever C(search_path) is.
      - C(columns) is a list of exact column names, without quotes. Without it, all columns are meant.
      - C(where) is an SQL condition on the table's own columns, without the word C(WHERE). Without it, all rows are meant.
      - A partitioned table stands for its partitions, and an inheritance parent for its children, which get the parent's
        C(columns) and C(where).
      - Whatever is not a permanent table is refused by name, such as views, foreign, unlogged and temporary tables.
    type: list
    elements: raw
  schemas:
    description:
      - Schemas, of which all permanent tables are meant. The names are exact, without quotes.
    type: list
    elements: str
"""
