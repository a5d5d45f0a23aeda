#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# Copyright (c) 2026, the postgresml.distributed contributors

from __future__ import annotations

DOCUMENTATION = r"""
module: pgml_grants
short_description: Give a role the privileges to read distributed tables, and no others
version_added: 1.0.0
author:
  - The postgresml.distributed contributors (@postgresml)
description:
  - Brings what a role is granted by name on the relations and schemas of one database to C(SELECT) on the distributed tables
    and C(USAGE) on their schemas.
  - Whatever else the role was granted by name on tables, views, materialized views, foreign tables and schemas of this
    database is revoked. So it is for a role that serves distribution only, not for one that people or applications use.
  - What the role has through C(PUBLIC), memberships or ownership is not touched, and neither are privileges on functions and
    the database. Privileges on columns and sequences, and the right to grant, count as more than C(SELECT) and are revoked.
  - O(tables) and O(schemas) mean the tables, partitions and inheritance children that there are at the time of the run.
    C(columns) and C(where) don't narrow C(SELECT), so that the list of M(postgresml.distributed.pgml_publication) serves here
    too.
  - All changes of a call are one transaction.
options:
  role:
    description:
      - Name of the role, exact. It has to exist, except in check mode and with O(state=absent).
    type: str
    required: true
  tables:
    default: []
  schemas:
    default: []
  all_tables:
    description:
      - Whether the role may read all permanent tables of the database that there are at the time of the run.
        O(tables) then adds nothing.
    type: bool
    default: false
  foreign:
    description:
      - What the role may read for M(postgresml.distributed.pgml_fdw), beside the options above. Views, materialized views,
        foreign and unlogged tables count here, since foreign tables can stand for them.
    type: dict
    default: {}
    suboptions:
      tables:
        description:
          - Tables and views, as in O(tables). A partitioned table doesn't stand for its partitions, which are read with it.
        type: list
        elements: raw
        default: []
      schemas:
        description:
          - Schemas of which all of these may be read. The names are exact, without quotes.
        type: list
        elements: str
        default: []
      all_tables:
        description:
          - Whether all of these in the database may be read.
        type: bool
        default: false
  state:
    description:
      - V(present) means exactly the tables of O(tables), O(schemas), O(all_tables) and O(foreign), hence none when all of them
        are omitted.
      - V(absent) revokes all that the module manages, as is needed before the role can be dropped.
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
  - In check mode, a database or a table that isn't there is taken for something that an earlier task would create.
  - It takes C(ACCESS SHARE) locks on the tables that are granted, for the length of one short transaction. Each lock is waited
    for at most 3 seconds.
  - The login role has to own the tables and schemas, or be a superuser. A privilege that another role than
    the owner granted stays.
  - It is the same on all PostgreSQL versions from 13 on.
seealso:
  - module: postgresml.distributed.pgml_publication
  - module: postgresml.distributed.pgml_subscription
  - module: community.postgresql.postgresql_privs
  - name: Security of logical replication
    description: PostgreSQL's page on what the connecting role needs.
    link: https://www.postgresql.org/docs/current/logical-replication-security.html
extends_documentation_fragment:
  - postgresml.distributed.attributes
  - postgresml.distributed.attributes.action_group
  - postgresml.distributed.login
  - postgresml.distributed.tables
"""

EXAMPLES = r"""
- name: Let the distributor read two tables, and nothing else
  postgresml.distributed.pgml_grants:
    role: pgml_distributor
    tables:
      - users
      - sales."Order Lines"
    login_db: shop
  become: true
  become_user: postgres

- name: Let it read all tables of a schema, and one table beside it
  postgresml.distributed.pgml_grants:
    role: pgml_distributor
    schemas: [sales]
    tables: [users]
    login_db: shop

- name: Let it read the whole database
  postgresml.distributed.pgml_grants:
    role: pgml_distributor
    all_tables: true
    login_db: shop

- name: Let it read what foreign tables stand for, views included
  postgresml.distributed.pgml_grants:
    role: pgml_distributor
    foreign:
      schemas: [sales]
    login_db: shop

- name: Take everything back
  postgresml.distributed.pgml_grants:
    role: pgml_distributor
    state: absent
    login_db: shop

- name: Publish and grant one list of tables
  vars:
    distributed:
      - users
      - name: orders
        columns: [id, total]
  module_defaults:
    group/postgresml.distributed.pgml:
      login_host: 10.0.0.5
      login_password: "{{ vault_postgres_password }}"
      login_db: shop
  block:
    - name: Publish them
      postgresml.distributed.pgml_publication:
        name: shop
        tables: "{{ distributed }}"

    - name: Let the distributor read them
      postgresml.distributed.pgml_grants:
        role: pgml_distributor
        tables: "{{ distributed }}"
"""

RETURN = r"""
changes:
  description: What was done, or would be done in check mode, in words and in order.
  type: list
  elements: str
  returned: success
  sample:
    - Grant usage on schema public to "pgml_distributor"
    - Grant select on public.users to "pgml_distributor"
grants:
  description: What the role is granted now, or would be.
  type: dict
  returned: success, unless check mode finds something missing
  contains:
    select:
      description: The tables that it may read, partitions included, as in SQL.
      type: list
      elements: str
      sample: [public.users, sales."Order Lines"]
    usage:
      description: The schemas that it may use.
      type: list
      elements: str
      sample: [public, sales]
option:
  description: The options with which no connection could be opened, V(login).
  type: str
  returned: when the server can't be reached
  sample: login
sqlstate:
  description: PostgreSQL's error code, see U(https://www.postgresql.org/docs/current/errcodes-appendix.html).
  type: str
  returned: when a server refused a statement
  sample: "42501"
"""

from ansible_collections.postgresml.distributed.plugins.module_utils import task
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import grants


def main() -> None:
    task.run(grants.OPTIONS, grants.manage)


if __name__ == "__main__":
    main()
