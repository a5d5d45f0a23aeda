#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# Copyright (c) 2026, the postgresml.distributed contributors

from __future__ import annotations

DOCUMENTATION = r"""
module: pgml_schema
short_description: Bring the definitions of distributed tables from the source to the target
version_added: 1.0.0
author:
  - The postgresml.distributed contributors (@postgresml)
description:
  - Creates on the target the tables that the options name and that are missing there, as the source defines them, with C(pg_dump)
    and C(pg_restore). With them come the schemas, types, domains, functions, sequences and extensions that they need, and
    nothing else.
  - A table that exists on the target is left as it is when rows of the source fit into it, and is refused with every difference
    when they don't.
  - Owners, privileges, comments, triggers, rules, row security policies and views are not brought. The login role owns what is
    created.
  - Rows are not copied and sequences are not set.
options:
  source:
    description:
      - The database that defines the tables. Needed with O(state=present), and with O(state=absent) when O(schemas) or
        O(all_tables) say which tables are meant.
  tables:
    description:
      - A table with C(columns) gets those columns only, and no index or constraint that uses others.
    default: []
  schemas:
    default: []
  all_tables:
    description:
      - Whether all permanent tables of the source's database are meant.
    type: bool
    default: false
  exclude_tables:
    description:
      - Tables to leave out of those that the options above mean, written as in SQL.
    type: list
    elements: str
    default: []
  parts:
    description:
      - V(types) are the types that the columns have, with what these types need, such as their schemas, extensions and the
        functions of a domain's constraints. V([types]) makes no table, and views may be among the tables, so that
        M(postgresml.distributed.pgml_fdw) finds the types of what it imports. A type that exists is left as it is; an enum that
        lacks labels of the source's is refused. The row type of a table doesn't come without it, see RV(left_out).
      - V(tables) are the tables with their primary keys or whatever else identifies their rows, in one transaction.
      - V(indexes) and V(constraints) are the others. Building them after the rows have come is faster than maintaining them
        meanwhile. Those of one table share a transaction.
      - A foreign key is left out when the target doesn't get all of the table that it refers to, see RV(left_out).
      - Tables that a first copy of M(postgresml.distributed.pgml_subscription) is filling are passed over, because their indexes
        and constraints come back with its end.
    type: list
    elements: str
    choices: [types, tables, indexes, constraints]
    default: [tables, indexes, constraints]
  state:
    description:
      - V(absent) drops the tables on the target, in one statement. Types, functions and schemas stay. It refuses while
        something else depends on the tables.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
notes:
  - C(pg_dump) and C(pg_restore) of the source's major version or later must be on the host where the module runs. It looks into
    C(/usr/lib/postgresql/*/bin), C(/usr/pgsql-*/bin) and C(PATH), and takes the oldest that is new enough.
  - On the source it takes C(ACCESS SHARE) locks on the tables whose definitions are read, waits for them at most 3 seconds, and
    holds them while C(pg_dump) runs. When nothing is missing, it only reads the catalogs.
  - The source's role needs C(SELECT) on the tables and C(USAGE) on their schemas.
  - On the target, locks are waited for at most 60 seconds.
seealso:
  - module: postgresml.distributed.pgml_publication
  - module: postgresml.distributed.pgml_subscription
  - name: pg_dump
    description: PostgreSQL's page on the program that writes the definitions.
    link: https://www.postgresql.org/docs/current/app-pgdump.html
requirements:
  - pg_dump and pg_restore
extends_documentation_fragment:
  - postgresml.distributed.attributes
  - postgresml.distributed.attributes.action_group
  - postgresml.distributed.login
  - postgresml.distributed.source
  - postgresml.distributed.tables
"""

EXAMPLES = r"""
- name: Create tables and primary keys before the first copy
  postgresml.distributed.pgml_schema:
    source:
      host: 10.0.0.5
      db: shop
      user: pgml_distributor
      password: "{{ vault_pgml_distributor_password }}"
    tables:
      - users
      - name: orders
        columns: [id, total, created_at]
    parts: [tables]
    login_db: ml
  become: true
  become_user: postgres

- name: Create the other indexes and the constraints after it
  postgresml.distributed.pgml_schema:
    source:
      host: 10.0.0.5
      db: shop
      user: pgml_distributor
      password: "{{ vault_pgml_distributor_password }}"
    tables: [users, orders]
    parts: [indexes, constraints]
    login_db: ml
  become: true
  become_user: postgres

- name: Create nothing but the types that columns of the tables have, for foreign tables
  postgresml.distributed.pgml_schema:
    source:
      host: 10.0.0.5
      db: shop
      user: pgml_distributor
      password: "{{ vault_pgml_distributor_password }}"
    schemas: [public]
    parts: [types]
    login_db: ml
  become: true
  become_user: postgres

- name: Drop the tables
  postgresml.distributed.pgml_schema:
    tables: [users, orders]
    state: absent
    login_db: ml
  become: true
  become_user: postgres
"""

RETURN = r"""
changes:
  description: What was done, or would be done in check mode, in words and in order.
  type: list
  elements: str
  returned: success
  sample:
    - Create table public.users
    - Create index users_email_lower_idx of public.users
tables:
  description: The tables that are meant, partitions included, as in SQL.
  type: list
  elements: str
  returned: when O(state=present), the source can be reached, and O(parts) are not V([types])
  sample: [public.users, sales."Order Lines"]
left_out:
  description: The indexes, constraints and row types that the target can't have, and why.
  type: list
  elements: dict
  returned: when O(state=present) and the source can be reached
  contains:
    name:
      description: Name of the index, the constraint, or the type.
      type: str
      sample: orders_user_id_fkey
    table:
      description: Its table, as in SQL.
      type: str
      sample: public.orders
    reason:
      description: Why it is left out.
      type: str
      sample: it refers to public.users, which is not distributed
differences:
  description: Why tables on the target don't fit, by table.
  type: dict
  returned: when a table on the target doesn't fit
  sample:
    public.users:
      - column email is text on the source and integer on the target
option:
  description: The options with which no connection could be opened, V(login) or V(source).
  type: str
  returned: when a server can't be reached
  sample: source
sqlstate:
  description: PostgreSQL's error code, see U(https://www.postgresql.org/docs/current/errcodes-appendix.html).
  type: str
  returned: when a server refused a statement
  sample: "42501"
"""

from ansible_collections.postgresml.distributed.plugins.module_utils import task
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import schema


def main() -> None:
    task.run(schema.OPTIONS, schema.manage)


if __name__ == "__main__":
    main()
