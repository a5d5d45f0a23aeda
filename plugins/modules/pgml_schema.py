#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# Copyright (c) 2026, the postgresml.distributed contributors

from __future__ import annotations

DOCUMENTATION = r"""
module: pgml_schema
short_description: Compare the definitions of distributed tables on source and target, and mend the target
version_added: 1.0.0
author:
  - The postgresml.distributed contributors (@postgresml)
description:
  - Compares what source and target have of the tables that the options name, namely columns, keys and replica identity,
    partitions, types, sequences, indexes and constraints, extensions, encodings and collations. Says of each difference what it
    breaks, and with which statements it is mended.
  - With O(mode) it mends the target. Missing tables come with C(pg_dump) and C(pg_restore), and with them the schemas, types,
    domains, functions, sequences and extensions that they need, and nothing else.
  - Columns, enum labels, indexes and foreign keys that only the target has are kept, unless rows of the source can't go in
    because of them.
  - Owners, privileges, comments, triggers, rules, row security policies and views are neither compared nor brought. The login
    role owns what is created.
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
      - For a comparison, V(indexes) and V(constraints) say whether these are compared, too.
    type: list
    elements: str
    choices: [types, tables, indexes, constraints]
    default: [tables, indexes, constraints]
  mode:
    description:
      - What is done about differences. Nothing on the source is ever changed.
      - V(check) changes nothing, and fails when there are differences of the classes in O(fail_on).
      - V(create_missing) creates tables, indexes and constraints that the target lacks. Tables that are there are left as they
        are. When rows of the source don't fit into one, all of it is refused, with every difference.
      - V(apply_additive) also adds columns, enum labels, attributes of composite types, keys and partitions' places to what is
        there, and lifts C(NOT NULL) where the source has none. Nothing that the target has is lost. Rows that are there get the
        value that the source's rows have got of the column's default.
      - V(apply) also alters types, defaults, C(NOT NULL), identities, collations, keys, sequences, and indexes and constraints
        that differ, and drops constraints and unique indexes that could refuse rows of the source. That may rewrite tables.
      - What it doesn't cover and breaks replication fails the task, after the rest is mended.
      - A column that only the target has is never dropped. When the source's rows can't come because it is C(NOT NULL) and has no
        default, that is lifted.
      - What is added is added to one object after the other, each in a transaction of its own. What V(apply) alters shares
        one, as long as all of it can be done.
    type: str
    choices: [check, create_missing, apply_additive, apply]
    default: check
  fail_on:
    description:
      - The classes of differences with which O(mode=check) fails, see RV(differences).
    type: list
    elements: str
    choices: [breaks_apply, breaks_primary, harmless]
    default: [breaks_apply, breaks_primary]
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
    details:
      - The diff is the DDL that mends the target, with the difference as a comment above it. To see it without running it, use
        Ansible's check mode with a O(mode) that mends. See also RV(ddl).
  idempotent:
    support: full
notes:
  - C(pg_dump) and C(pg_restore) of the source's major version or later must be on the host where the module runs. It looks into
    C(/usr/lib/postgresql/*/bin), C(/usr/pgsql-*/bin) and C(PATH), and takes the oldest that is new enough.
  - On the source it takes C(ACCESS SHARE) locks on the tables whose definitions are read, waits for them at most 3 seconds, and
    holds them while C(pg_dump) runs. When no table, index or constraint is missing, it only reads the catalogs.
  - How many queries it takes does not depend on how many tables there are, unless something has to be created, for which
    C(pg_dump) asks about each table.
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
- name: See whether anything would stop replication, and print with --diff what mends it
  postgresml.distributed.pgml_schema:
    source:
      host: 10.0.0.5
      db: shop
      user: pgml_distributor
      password: "{{ vault_pgml_distributor_password }}"
    tables: [users, orders]
    login_db: ml
  become: true
  become_user: postgres

- name: Add the column that somebody added to the primary, so that replication goes on
  postgresml.distributed.pgml_schema:
    source:
      host: 10.0.0.5
      db: shop
      user: pgml_distributor
      password: "{{ vault_pgml_distributor_password }}"
    tables: [users, orders]
    mode: apply_additive
    login_db: ml
  become: true
  become_user: postgres

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
    mode: create_missing
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
    mode: create_missing
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
    mode: create_missing
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
  description:
    - What differs between source and target, with O(state=present). Those that break something come first.
    - With a O(mode) that mends, those that were found before it did.
  type: list
  elements: dict
  returned: when O(state=present), the source can be reached, and O(parts) are not V([types])
  contains:
    class:
      description:
        - V(breaks_apply) stops the changes that arrive, or falsifies what they make of the target.
        - V(breaks_primary) makes C(UPDATE) and C(DELETE) on the source fail, because a published table has no replica identity.
        - V(harmless) is everything else.
      type: str
      sample: breaks_apply
    kind:
      description:
        - What differs, which is V(table), V(column), V(key), V(replica_identity), V(partition), V(index), V(constraint), V(type),
          V(sequence), V(extension) or V(database).
      type: str
      sample: column
    object:
      description: The table, type, sequence, extension or database, as in SQL.
      type: str
      sample: public.users
    name:
      description: Name of the column, index, constraint, label or attribute of it, or null.
      type: str
      sample: age
    source:
      description: How the source defines it, or null when it has none.
      type: str
      sample: integer DEFAULT 0
    target:
      description: How the target defines it, or null when it has none.
      type: str
      sample: null
    words:
      description: The difference in words.
      type: str
      sample: column age of public.users is missing on the target
    statements:
      description:
        - What mends it, on the target unless C(class) is V(breaks_primary). Empty when nothing has to be done, when it has to be
          thought about, or when C(pg_dump) has what mends it.
        - Those of one difference may need those of others before or in between. RV(ddl) has all of them as they run.
      type: list
      elements: str
      sample: [ALTER TABLE "public"."users" ADD COLUMN IF NOT EXISTS "age" integer DEFAULT 0]
    mended_by:
      description: The least O(mode) that mends it, or null when none does.
      type: str
      sample: apply_additive
summary:
  description: How many differences of each class there are.
  type: dict
  returned: when RV(differences) is
  sample: {breaks_apply: 1, breaks_primary: 0, harmless: 2}
ddl:
  description:
    - The lines of the diff, namely the statements that mend the differences, or the part of them that O(mode) does, each with the
      difference as a comment above it. Statements that no O(mode) runs, because they are for the source or have to be thought
      about, are comments, too. Ansible shows the diff of a task only when it has changed something and has not failed.
  type: list
  elements: str
  returned: in diff mode, when RV(differences) is
  sample:
    - "-- column age of public.users is missing on the target (breaks_apply)"
    - ALTER TABLE "public"."users" ADD COLUMN IF NOT EXISTS "age" integer DEFAULT 0;
sequences:
  description: Where the sequences that the tables' columns use stand on both sides. Replication carries no sequences.
  type: list
  elements: dict
  returned: when RV(differences) is
  contains:
    name:
      description: The sequence, as in SQL.
      type: str
      sample: public.users_id_seq
    source:
      description: Its last value on the source, or null when it was never used or may not be read.
      type: int
      sample: 1042
    target:
      description: Its last value on the target, or null when it was never used, may not be read, or isn't there.
      type: int
      sample: 1000
    behind:
      description: How far the target's is behind, or null when one of them is.
      type: int
      sample: 42
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
