#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# Copyright (c) 2026, the postgresml.distributed contributors

from __future__ import annotations

DOCUMENTATION = r"""
module: pgml_publication
short_description: Manage a publication on the upstream
version_added: 1.0.0
author:
  - The postgresml.distributed contributors (@postgresml)
description:
  - Creates, alters and drops a publication of logical replication, on the server that owns the data.
  - All changes of a call are one transaction. Subscribers never see a part of them.
  - An omitted option leaves what is there. O(tables) and O(schemas) replace the tables and schemas that are published, and V([])
    removes them all.
  - A table on which C(UPDATE) or C(DELETE) would fail once it is published is found before anything is changed, see
    O(replica_identity).
  - Row filters are compared in the server's own spelling, so that a filter written in another way is no change.
options:
  name:
    description:
      - Name of the publication, exact.
    type: str
    required: true
  schemas:
    description:
      - Schemas of which all tables are published, now and later. The names are exact, without quotes.
      - PostgreSQL 15 or later, refused on older ones. Needs a superuser.
      - May be combined with O(tables), but not with column lists, which PostgreSQL doesn't allow beside schemas.
  all_tables:
    description:
      - Publish all tables of the database, now and later. Needs a superuser. V(true) excludes O(tables) and O(schemas).
      - A publication can't be altered from or to this. See O(recreate).
      - Giving O(tables) or O(schemas) means V(false).
    type: bool
  publish:
    description:
      - Operations to publish, of V(insert), V(update), V(delete) and V(truncate), in any order and case.
      - All four when a publication is created without this option.
      - The first copy is the same whatever is published.
    type: list
    elements: str
  via_partition_root:
    description:
      - Publish changes of partitions as changes of their topmost published table, so that the replica may have other
        partitions or none.
      - V(false) when a publication is created without this option.
    type: bool
  generated_columns:
    description:
      - Whether stored generated columns are published of tables without column list.
      - PostgreSQL 18 or later, refused on older ones. V(none) when a publication is created without this option.
    type: str
    choices: [none, stored]
  owner:
    description:
      - Role that owns the publication. Without it, the role that creates it.
    type: str
  comment:
    description:
      - Comment on the publication. An empty one removes it.
    type: str
  replica_identity:
    description:
      - What to do about tables on which C(UPDATE) or C(DELETE) would fail on this server once the publication has them.
        That is so when a table has no replica identity, a row filter uses a column outside of it, or a column list leaves
        out a part of it.
      - V(require) refuses them by name.
      - V(full) gives them C(REPLICA IDENTITY FULL) in the same transaction, returned as RV(replica_identity_full). Every
        C(UPDATE) and C(DELETE) then writes the whole old row to the WAL. It is not undone by O(state=absent). Tables that
        have a column list are refused, because it would have to contain all columns.
      - V(ignore) doesn't look.
      - Nothing is looked for when neither V(update) nor V(delete) is in O(publish).
    type: str
    choices: [require, full, ignore]
    default: require
  recreate:
    description:
      - Allow to drop and create the publication in one transaction, when that is the only way to what is asked for, which
        is from O(all_tables=true) to O(all_tables=false) or back.
      - Subscriptions go on with what the new publication holds. A table that is new to them joins when they are refreshed,
        which M(postgresml.distributed.pgml_subscription) does.
    type: bool
    default: false
  state:
    description:
      - Whether the publication is there. V(absent) doesn't touch subscriptions, which fail from then on.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode:
    support: full
    details:
      - Row filters not seen before are spelled by the server on an empty temporary table, in a transaction that is rolled
        back, in check mode too.
      - A database or a table that isn't there is taken for one that an earlier task would create, with a warning.
  diff_mode:
    support: full
  idempotent:
    support: full
notes:
  - O(tables) may have row filters (C(where)) and column lists (C(columns)) since PostgreSQL 15. On older ones they are refused.
  - The server takes row filters of built-in types and built-in immutable functions only, hence neither C(now()) nor columns of an
    enumerated type. When C(UPDATE) or C(DELETE) is published, a row filter must keep to columns of the replica identity, and a
    column list must contain all of them.
  - A partition that is created later is published with its parent. An inheritance child that is created later joins at the next
    run.
  - Locks on the tables that join, leave or change are C(SHARE UPDATE EXCLUSIVE), which stops neither reads nor writes, but
    waits for C(VACUUM) and DDL. O(replica_identity=full) takes C(ACCESS EXCLUSIVE) on each table that it alters, without
    rewriting it. Each lock is waited for at most 3 seconds, and those that are held are held that long too.
  - O(schemas) and O(all_tables) take no locks on tables.
  - The login role has to own the publication and the tables that join it, and needs C(CREATE) on the database for a new
    publication. For row filters it needs C(TEMPORARY) on the database.
  - Subscribers before PostgreSQL 15 ignore row filters and column lists in their first copy, and those before 18 leave out
    generated columns in it.
seealso:
  - module: postgresml.distributed.pgml_subscription
  - module: postgresml.distributed.pgml_grants
  - module: community.postgresql.postgresql_publication
  - name: Publications
    description: PostgreSQL's chapter on publications, row filters and column lists.
    link: https://www.postgresql.org/docs/current/logical-replication-publication.html
extends_documentation_fragment:
  - postgresml.distributed.attributes
  - postgresml.distributed.attributes.action_group
  - postgresml.distributed.login
  - postgresml.distributed.tables
"""

EXAMPLES = r"""
- name: Publish three tables, one of them in part
  postgresml.distributed.pgml_publication:
    name: shop
    tables:
      - users
      - sales."Order Lines"
      - name: public.orders
        columns: [id, user_id, total, created_at]
        where: id >= 1000000
    login_db: shop
  become: true
  become_user: postgres

- name: Publish only new rows, so that the filter may use any column
  postgresml.distributed.pgml_publication:
    name: shop_events
    tables:
      - name: events
        where: kind = 'purchase' AND created_at >= '2026-01-01'
    publish: [insert]
    login_db: shop

- name: Publish a schema and one table beside it (PostgreSQL 15 or later)
  postgresml.distributed.pgml_publication:
    name: shop_all
    schemas: [sales]
    tables: [users]
    via_partition_root: true
    login_db: shop

- name: Publish a table without primary key, whatever that costs in WAL
  postgresml.distributed.pgml_publication:
    name: shop_audit
    tables: [audit_log]
    replica_identity: full
    login_db: shop

- name: Publish the whole database
  postgresml.distributed.pgml_publication:
    name: everything
    all_tables: true
    replica_identity: ignore
    login_db: shop

- name: Publish one table in its stead
  postgresml.distributed.pgml_publication:
    name: everything
    tables: [users]
    recreate: true
    login_db: shop

- name: Drop a publication
  postgresml.distributed.pgml_publication:
    name: everything
    state: absent
    login_db: shop

- name: Say once how to log in
  module_defaults:
    group/postgresml.distributed.pgml:
      login_host: 10.0.0.5
      login_user: admin
      login_password: "{{ vault_admin_password }}"
      login_db: shop
      ssl_mode: verify-full
      ca_cert: /etc/ssl/certs/company.pem
  block:
    - name: Publish the users
      postgresml.distributed.pgml_publication:
        name: shop_users
        tables: [users]

    - name: Let the distributor read them
      postgresml.distributed.pgml_grants:
        role: pgml_distributor
        tables: [users]
"""

RETURN = r"""
changes:
  description: What was done, or would be done in check mode, in words and in order.
  type: list
  elements: str
  returned: success
  sample:
    - Take out public.orders to alter columns or filter
    - Put back public.orders to publication "shop"
publication:
  description: The publication as it is now, or would be.
  type: dict
  returned: when O(state=present)
  contains:
    name:
      description: Its name.
      type: str
      sample: shop
    all_tables:
      description: Whether it publishes all tables of the database.
      type: bool
      sample: false
    tables:
      description: The tables that are published by name, with their inheritance children and without their partitions.
      type: list
      elements: dict
      contains:
        name:
          description: Schema and name as in SQL.
          type: str
          sample: sales."Order Lines"
        columns:
          description: The column list, in the table's order; null when there is none.
          type: list
          elements: str
          sample: [id, user_id]
        where:
          description: The row filter in the server's spelling; null when there is none.
          type: str
          sample: ((id > 1) AND (id < 100))
    schemas:
      description: The schemas that are published.
      type: list
      elements: str
      sample: [sales]
    publish:
      description: The operations that are published.
      type: list
      elements: str
      sample: [insert, update, delete, truncate]
    via_partition_root:
      description: Whether changes of partitions appear as changes of their topmost published table.
      type: bool
      sample: false
    generated_columns:
      description: Which generated columns are published; V(none) before PostgreSQL 18.
      type: str
      sample: none
    owner:
      description: Its owner; null when check mode would create it without O(owner).
      type: str
      sample: postgres
    comment:
      description: Its comment.
      type: str
      sample: ""
replica_identity_full:
  description: The tables that were given C(REPLICA IDENTITY FULL), or would be.
  type: list
  elements: str
  returned: when O(state=present)
  sample: [public.audit_log]
left_out:
  description: What lies in O(schemas), or in the database with O(all_tables=true), and can't be published.
  type: list
  elements: dict
  returned: when O(state=present)
  contains:
    name:
      description: Schema and name as in SQL.
      type: str
      sample: public.sessions
    reason:
      description: What it is, of V(unlogged table), V(foreign table) and V(materialized view).
      type: str
      sample: unlogged table
wal_space:
  description:
    - Bytes that are free where the server keeps its WAL, for O(postgresml.distributed.pgml_subscription#module:wal_space).
    - null when the server is on another host than the module, or its data directory may not be seen.
  type: int
  returned: when O(state=present)
  sample: 214748364800
replica_identity:
  description: The tables that O(replica_identity) refuses.
  type: list
  elements: dict
  returned: when it fails because of them
  contains:
    name:
      description: Schema and name as in SQL.
      type: str
      sample: public.audit_log
    reason:
      description: Why C(UPDATE) and C(DELETE) would fail.
      type: str
      sample: has no replica identity (no primary key)
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
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import publication


def main() -> None:
    task.run(publication.OPTIONS, publication.manage)


if __name__ == "__main__":
    main()
