#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# Copyright (c) 2026, the postgresml.distributed contributors

from __future__ import annotations

DOCUMENTATION = r"""
module: pgml_fdw
short_description: Manage a foreign server on the replica, its tables, and local snapshots of them
version_added: 1.0.0
author:
  - The postgresml.distributed contributors (@postgresml)
description:
  - Creates, alters and drops a foreign server of C(postgres_fdw), its user mappings, foreign tables, and views that have the
    source filter them.
  - Fills local tables from the source and exchanges them for their predecessors, see O(snapshots), so that training reads
    local rows and no transaction on the source lasts as long as the training.
  - Server, mappings, tables, views and privileges are one transaction. It succeeds only when every mapping that the login
    role can try has reached the source through the server and may read every table there. Otherwise nothing is changed, and
    the error is in the source's own words.
  - What the call names is all there is. An option or a mapping of the server that it doesn't name is dropped, whoever made
    it, and so is a table or a snapshot that an earlier call made. Other tables are left alone.
options:
  server:
    description:
      - Name of the foreign server, exact.
    type: str
    required: true
  source:
    description:
      - The database that the tables are in. Needed with O(state=present).
      - It becomes the options of the foreign server, so that the replica's server has to reach it, and its files have to be
        on the replica, readable for the server. The module connects with the same values from where it runs, to copy
        snapshots.
      - C(user) and C(password) belong to the mapping of the role that the module logs in as, and to those of O(user_mappings)
        that don't say otherwise. C(passfile) belongs to the server and therefore to all mappings, and PostgreSQL lets only
        superusers and mappings with C(password_required=false) use it.
  options:
    description:
      - More options of the server, of libpq or C(postgres_fdw), such as C(fdw_tuple_cost), C(parallel_commit) or C(options).
      - What has an option of the module is refused here, and so are user names and passwords.
    type: dict
    default: {}
  fetch_size:
    description:
      - Rows that one round trip brings. PostgreSQL's own default is 100.
    type: int
    default: 10000
  batch_size:
    description:
      - Rows that one round trip inserts. PostgreSQL 14 or later, refused on older ones.
    type: int
  use_remote_estimate:
    description:
      - Whether the planner asks the source what a query costs there.
    type: bool
    default: true
  extensions:
    description:
      - Extensions whose functions and operators are the same on both sides, so that conditions with them are sent to the
        source. They have to be installed on the replica.
    type: list
    elements: str
  async_capable:
    description:
      - Whether several foreign tables of one query are scanned at a time. PostgreSQL 14 or later, refused on older ones.
    type: bool
  analyze_sampling:
    description:
      - Where C(ANALYZE) takes its sample. PostgreSQL 16 or later, refused on older ones, which read all rows.
    type: str
    choices: ["off", auto, random, system, bernoulli]
  keep_connections:
    description:
      - Whether a session keeps its connection to the source for its next transaction. PostgreSQL 14 or later, refused on
        older ones.
    type: bool
  application_name:
    description:
      - What the source's C(pg_stat_activity) shows. PostgreSQL 15 or later knows escapes such as C(%u).
    type: str
  connect_timeout:
    description:
      - Seconds after which a source that doesn't answer is given up.
    type: int
    default: 10
  user_mappings:
    description:
      - Which local roles may go to the source, and as whom. A role without a mapping can read no foreign table.
      - The role that the module logs in as has one in any case, with C(user) and C(password) of O(source) unless it is listed
        here.
    type: list
    elements: dict
    default: []
    suboptions:
      role:
        description:
          - The local role, exact, or V(public) for all that have no mapping of their own.
        type: str
        required: true
      user:
        description:
          - Role to log in as at the source. C(user) of O(source) by default.
        type: str
      password:
        description:
          - Its password. When O(user_mappings[].user) is not given either, C(password) of O(source).
        type: str
      password_required:
        description:
          - Whether a local role that is no superuser needs a password at the source. V(false) lets it use the server's own
            identity there, such as its pass file or certificate. Only superusers may set it.
        type: bool
        default: true
      ssl_cert:
        description:
          - File with the client's certificate, on the replica. Only superusers may set it.
        type: path
      ssl_key:
        description:
          - File with the key of O(user_mappings[].ssl_cert). Only superusers may set it.
        type: path
  imports:
    description:
      - What of the source becomes foreign tables. Partitioned tables, views and materialized views can be imported too.
        Partitions come with their table, and by themselves when they are named, which needs PostgreSQL 14.
      - Types that columns have must be on the replica, see O(postgresml.distributed.pgml_schema#module:parts).
    type: list
    elements: dict
    default: []
    suboptions:
      remote_schema:
        description:
          - Schema on the source, exact. All of it is imported unless O(imports[].tables) names some.
          - Without it the names in O(imports[].tables) say their schemas, and without these it is all schemas of the
            database.
        type: str
      local_schema:
        description:
          - Schema on the replica, exact. It is created when it is missing. Without it O(server), an underscore and the
            source's schema.
          - A relation that is there and has not come from this module is a collision, which is refused by name.
        type: str
      tables:
        description:
          - Tables, each as a name or as a mapping with the keys C(name), C(columns) and C(where), of which C(name) is
            required.
          - C(name) is written as in SQL. A part that holds capitals, dots, spaces or quotes needs double quotes. Without
            schema it is in O(imports[].remote_schema), or else in C(public).
          - C(columns) is a list of exact column names, without quotes.
          - C(where) is an SQL condition on the table's own columns, without the word C(WHERE) and without subqueries.
            V('now') and V('today') as strings are refused, since a view would keep them as they were. The table's name is
            then that of a view over a foreign table whose name ends in C(_unfiltered). The source evaluates the condition,
            and a warning tells when it can't. Since PostgreSQL 15 the view reads as the role that uses it, before that as its
            owner. It is no protection, for who may use it since PostgreSQL 15 may also read the table below.
          - An empty list is refused.
        type: list
        elements: raw
      except:
        description:
          - Tables that are left out of those of O(imports[].remote_schema), or of the database. Names as in
            O(imports[].tables). One that the source doesn't have is refused.
        type: list
        elements: str
        default: []
      import_default:
        description:
          - Whether columns get the defaults that they have on the source.
        type: bool
        default: false
      import_generated:
        description:
          - Whether columns that are generated on the source are so here. Their values come from the source in any case.
        type: bool
        default: true
      import_not_null:
        description:
          - Whether C(NOT NULL) constraints come along.
        type: bool
        default: true
      import_collate:
        description:
          - Whether columns get the collations that they have on the source.
        type: bool
        default: true
  usage:
    description:
      - Local roles that get C(USAGE) on the schemas, and C(SELECT) on the tables, views and snapshots. To read from the
        source a role needs a mapping, too. Before PostgreSQL 15, roles without one get no filtered views, which would read as
        their owner.
      - They get no privilege on the server itself, which would show them the password of their own mapping.
    type: list
    elements: str
    default: []
  analyze:
    description:
      - Whether C(ANALYZE) runs for foreign tables that have no statistics yet. Before PostgreSQL 16 this reads all of their
        rows.
    type: bool
    default: false
  on_drift:
    description:
      - What to do about foreign tables whose columns are not those of the source any more, and about those that are gone
        there.
      - V(report) leaves them, warns, and returns RV(drift).
      - V(reimport) replaces them in the same transaction, with the owner and the privileges that they have here. What depends
        on them, such as somebody's view, prevents that and is named.
      - Tables that are new on the source are imported in either case. One that O(imports[].tables) names and that is gone
        from the source is an error.
    type: str
    choices: [report, reimport]
    default: report
  snapshots:
    description:
      - Local tables that are filled from the source. Each is filled beside its predecessor and takes its place in an instant,
        with its owner and its privileges, so that readers see all old rows or all new ones.
      - They are plain tables, since C(pgml.train) takes no materialized views.
    type: list
    elements: dict
    default: []
    suboptions:
      into:
        description:
          - The local table, written as in SQL, in C(public) when it has no schema. A schema that is missing is created. A
            table that is there and is no snapshot of O(server) is refused.
        type: str
        required: true
      relation:
        description:
          - Local name, as in SQL, of the foreign table or view whose rows to take, in C(public) when it has no schema.
          - Rows of a table or view that O(imports) made come straight from the source by C(COPY), the tables larger than 1 GB
            with O(jobs) sessions side by side. All sessions see the same moment.
        type: str
      where:
        description:
          - An SQL condition on the columns of O(snapshots[].relation), which the source evaluates if O(imports) made that.
        type: str
      query:
        description:
          - A query whose rows to take instead, which the replica runs. Names without schema are looked up in C(public), as
            long as nobody but its owner and superusers may create something there.
        type: str
      numeric_to_float8:
        description:
          - Whether columns of type C(numeric) become C(double precision). C(pgml.train) rounds numerics to integers.
        type: bool
        default: false
      indexes:
        description:
          - Indexes to build, each as a list of exact column names.
        type: list
        elements: list
        default: []
      refresh:
        description:
          - When to fill it again. V(if_older_than) does so when the rows are older than O(snapshots[].max_age), V(always) at
            each run.
          - It is filled in any case when it is missing, and when this entry, or the foreign table that it names, has changed.
        type: str
        choices: [always, if_older_than]
        default: if_older_than
      max_age:
        description:
          - Seconds.
        type: int
        default: 86400
  jobs:
    description:
      - How many sessions read from the source at a time for O(snapshots). By default as many as the host that the module runs
        on has processors, and at most 4.
    type: int
  state:
    description:
      - Whether the server is there.
      - V(absent) drops the server, its mappings, tables, views and snapshots, and the schemas that were made for them and are
        empty then. What others built on them prevents that and is named. The source is not needed.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode:
    support: full
    details:
      - The transaction is carried out and rolled back, so that the source is asked in check mode, too. When it can't be
        reached, or when something is missing that an earlier task might create, that is a warning.
  diff_mode:
    support: full
  idempotent:
    support: full
    details:
      - With O(snapshots[].refresh=always) every run fills that table again.
notes:
  - The extension C(postgres_fdw) has to be there, see M(community.postgresql.postgresql_ext).
  - Passwords of mappings are in the catalog C(pg_user_mapping) of the replica, which superusers read, and C(pg_dump) writes
    them to its output. They get there outside of statements, hence neither into logs nor into C(pg_stat_activity), unless a
    server with C(debug_print_parse) and the like is told them by a login role that is no superuser. They are compared with
    those that are there as far as the login role may read them, which superusers may, else they are left, with a warning.
  - The login role needs C(USAGE) on the foreign data wrapper C(postgres_fdw) and C(CREATE) on the database, or to be a
    superuser. For mappings of other roles it has to own the server, and to prove them it has to be a superuser or a member of
    these roles.
  - Reading a foreign table holds a transaction open at the source until the local one ends, and C(VACUUM) there can't remove
    rows that were deleted after it began. Training may take hours. That is what O(snapshots) are for.
  - On the source, C(source.user) needs C(LOGIN), C(SELECT) on the tables and C(USAGE) on their schemas, and nothing else, see
    M(postgresml.distributed.pgml_grants). The module reads catalogs and has queries planned there, which takes C(ACCESS
    SHARE) on the tables for a moment. Rows are read for O(snapshots) and O(analyze) only. Snapshots lock their tables until
    the last row of all of them is read. No lock is waited for longer than 3 seconds there, either.
  - The condition of a view is sent to the source only when it is built from immutable operations. What depends on the time,
    such as C(now() - interval '14 days'), is computed here first. Comparing a column with a value of another type, such as a
    C(timestamptz) with a C(date), can keep it from being sent.
seealso:
  - module: postgresml.distributed.pgml_schema
  - module: postgresml.distributed.pgml_grants
  - name: postgres_fdw
    description: PostgreSQL's page on the wrapper and its options.
    link: https://www.postgresql.org/docs/current/postgres-fdw.html
extends_documentation_fragment:
  - postgresml.distributed.attributes
  - postgresml.distributed.attributes.action_group
  - postgresml.distributed.login
  - postgresml.distributed.source
"""

EXAMPLES = r"""
- name: Let the data scientists read two tables of the shop, one of them in part
  postgresml.distributed.pgml_fdw:
    server: shop
    source: &shop
      host: 10.0.0.5
      db: shop
      user: pgml_distributor
      password: "{{ vault_pgml_distributor_password }}"
    user_mappings:
      - role: science
    imports:
      - tables:
          - public.users
          - name: public.orders
            columns: [id, user_id, total, created_at]
            where: created_at > now() - interval '14 days'
    usage: [science]
    login_db: ml
  become: true
  become_user: postgres

- name: Keep the orders in a local table for training, not older than an hour
  postgresml.distributed.pgml_fdw:
    server: shop
    source: *shop
    imports:
      - remote_schema: public
        except: [audit_log]
    snapshots:
      - relation: shop_public.orders
        where: status = 'paid'
        into: training.orders
        numeric_to_float8: true
        indexes:
          - [user_id]
        max_age: 3600
    login_db: ml

- name: Follow the source's tables whenever their columns change
  postgresml.distributed.pgml_fdw:
    server: shop
    source: *shop
    imports:
      - remote_schema: public
        local_schema: shop
    on_drift: reimport
    login_db: ml

- name: Remove all of it
  postgresml.distributed.pgml_fdw:
    server: shop
    state: absent
    login_db: ml
"""

RETURN = r"""
changes:
  description: What was done, or would be done in check mode, in words and in order.
  type: list
  elements: str
  returned: success
  sample:
    - Create server "shop" for database "shop" at 10.0.0.5:5432 as user "pgml_distributor"
    - Import shop_public.users
server:
  description: The foreign server as it is now, or would be.
  type: dict
  returned: when O(state=present)
  contains:
    name:
      description: Its name.
      type: str
      sample: shop
    options:
      description: Its options as PostgreSQL keeps them, all of them strings.
      type: dict
      sample: {host: 10.0.0.5, port: "5432", dbname: shop, fetch_size: "10000", use_remote_estimate: "true"}
user_mappings:
  description: Its mappings, without passwords.
  type: list
  elements: dict
  returned: when O(state=present)
  contains:
    role:
      description: The local role.
      type: str
      sample: science
    user:
      description: The role at the source.
      type: str
      sample: pgml_distributor
    password_required:
      description: Whether a role that is no superuser needs a password.
      type: bool
      sample: true
tables:
  description: The foreign tables, each with the view over it if it is filtered.
  type: list
  elements: dict
  returned: when O(state=present) and the source was reached
  contains:
    name:
      description: Local schema and name as in SQL, of the view if there is one.
      type: str
      sample: shop_public.orders
    remote:
      description: Schema and name on the source as in SQL.
      type: str
      sample: public.orders
    where:
      description: The condition of the view as PostgreSQL keeps it; null without one.
      type: str
      sample: (created_at > ( SELECT (now() - '14 days'::interval)))
    sent:
      description: Whether the source evaluates the condition; null without one.
      type: bool
      sample: true
drift:
  description: Foreign tables that are not like the source's tables any more. Empty when they were replaced.
  type: list
  elements: dict
  returned: when O(state=present) and the source was reached
  contains:
    name:
      description: Local schema and name as in SQL.
      type: str
      sample: shop_public.orders
    differences:
      description: What differs, in words.
      type: list
      elements: str
      sample: [column total is numeric(12,2) on the source and integer here]
snapshots:
  description: The local tables of O(snapshots).
  type: list
  elements: dict
  returned: when O(state=present)
  contains:
    name:
      description: Schema and name as in SQL.
      type: str
      sample: training.orders
    rows:
      description: Rows that it has; null in check mode when it is to be filled.
      type: int
      sample: 1500000
    taken_at:
      description:
        - The moment that its rows are of, or a moment before a query ran, in ISO format.
        - null in check mode when it is to be filled.
      type: str
      sample: "2026-03-01T12:00:00.123456+00:00"
    refreshed:
      description: Whether it was filled in this run, or would be.
      type: bool
      sample: true
    reason:
      description: Why, or why not.
      type: str
      sample: older than 3600 seconds
    seconds:
      description: How long that took; null when it was not filled.
      type: float
      sample: 4.2
option:
  description: The options with which no connection could be opened, V(login) or V(source).
  type: str
  returned: when a server can't be reached
  sample: source
sqlstate:
  description: PostgreSQL's error code, see U(https://www.postgresql.org/docs/current/errcodes-appendix.html).
  type: str
  returned: when a server refused a statement
  sample: "28P01"
"""

from ansible_collections.postgresml.distributed.plugins.module_utils import task
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import foreign


def main() -> None:
    task.run(foreign.OPTIONS, foreign.manage)


if __name__ == "__main__":
    main()
