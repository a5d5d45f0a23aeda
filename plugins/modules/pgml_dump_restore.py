#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# Copyright (c) 2026, the postgresml.distributed contributors

from __future__ import annotations

DOCUMENTATION = r"""
module: pgml_dump_restore
short_description: Copy tables from a source to a target, or by way of an archive
version_added: 1.0.0
author:
  - The postgresml.distributed contributors (@postgresml)
description:
  - Copies tables with their rows, indexes, constraints, sequences, statistics, triggers, policies and comments, and whatever
    types, functions and extensions they need, as one snapshot of the source has them.
  - Rows go through parallel C(COPY), in binary where that is safe, and indexes are built after them.
  - Tables are made and filled beside the live ones. One transaction exchanges all of them, so that a query sees either all old
    or all new rows. A run that fails or is killed leaves the live tables as they were, and the next one removes what it left.
  - It copies again when the source has changed since, see O(refresh).
options:
  source:
    description:
      - The database that the rows come from. Needed unless O(archive_state) is V(restored) alone, or O(state=absent).
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
  method:
    description:
      - V(stream) copies from the source to the target, with nothing on disk between them.
      - V(archive) puts O(archive) between them.
    type: str
    choices: [stream, archive]
    default: stream
  archive:
    description:
      - Directory of the archive, on the host where the module runs. It is replaced as a whole when a new one is complete.
      - It holds C(tables.dump) and, if needed, C(support.dump), which are C(pg_dump)'s archives of the definitions, one gzip
        file of C(COPY) output for each chunk of rows, and C(manifest.json). Only the user who dumped it may read it.
    type: path
  archive_state:
    description:
      - V(dumped) writes the archive, V(restored) fills the target from it.
      - With V(dumped) alone nothing is done at the target, and tables with a filter are dumped on every run.
      - V(restored) restores all that the archive holds.
    type: list
    elements: str
    choices: [dumped, restored]
    default: [dumped, restored]
  refresh:
    description:
      - What to do about tables that were copied before.
      - V(if_changed) copies all tables again when one of them has changed on the source, which is told from the server's
        counts of inserted, updated and deleted rows, the tables' files and their definitions. PostgreSQL publishes these
        counts about a second after a commit, or when a session that keeps working comes to rest; a change that is not
        counted yet is seen by the next run. A filter that uses the time, or anything else but the row, always copies.
      - V(always) copies on every run. V(never) copies tables that are missing.
    type: str
    choices: [if_changed, always, never]
    default: if_changed
  replace:
    description:
      - What happens to tables that are on the target already.
      - V(swap) exchanges them for new ones, which take over their owners and privileges. Views on them are made anew. It
        refuses when something else depends on them, or when they have indexes, constraints, triggers or columns that only
        the target has.
      - V(truncate) keeps the tables and everything about them. They are emptied and filled in one transaction, one after the
        other, and can't be read until it ends. All of them must be there, and their foreign keys must not refer to
        tables that are not filled as a whole with them, because PostgreSQL doesn't check these then. The login
        role must be a superuser, or be allowed to set C(session_replication_role).
      - V(fail) refuses to touch them.
    type: str
    choices: [swap, truncate, fail]
    default: swap
  replace_subscribed:
    description:
      - Whether O(replace=swap) may take tables away from the subscriptions that fill them, as is needed when a distribution that
        was streamed is to come by dump. Without it they are refused.
      - The subscription goes on without these tables, and no longer writes to them. Remove it afterwards with
        M(postgresml.distributed.pgml_subscription). Its workers are ended in the transaction of the exchange, and the server
        starts others within C(wal_retrieve_retry_interval).
      - Tables that the subscription still copies are refused. Ending its workers needs a superuser when its owner is one.
    type: bool
    default: false
  owner:
    description:
      - Role that owns the tables afterwards. Without it, the login role owns new tables, and others keep their owner.
    type: str
  no_privileges:
    description:
      - Whether the privileges that the source's tables grant are left there. If not, the roles that they name must exist on
        the target.
    type: bool
    default: true
  compress:
    description:
      - Level of gzip for the rows in O(archive), 0 to 9.
    type: int
    default: 1
  format:
    description:
      - Format of the rows. V(auto) is binary for a table all of whose columns have types with the same binary form on every
        server, else text. These are PostgreSQL's own types and arrays of them (but C(xml) and those that name objects, such
        as C(regclass)), enums, domains over such types, and C(citext), C(hstore), C(vector), C(halfvec) and C(sparsevec).
      - V(binary) refuses other tables, V(text) is text for all.
    type: str
    choices: [auto, binary, text]
    default: auto
  jobs:
    description:
      - How many tables are copied, and indexes built, at a time. That many sessions read from the source, and one holds the
        snapshot.
      - Without it, the CPUs of the host where the module runs, at most 4.
    type: int
  state:
    description:
      - V(absent) forgets that the tables were copied and removes what a run that died has left. The tables stay.
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
    details:
      - With O(refresh=always), or a filter that uses the time, every run copies.
notes:
  - C(pg_dump) and C(pg_restore) of the major version of the source and the target, or later, must be on the host where the
    module runs. It looks into C(/usr/lib/postgresql/*/bin), C(/usr/pgsql-*/bin) and C(PATH), and takes the oldest that is
    new enough.
  - On the source it takes C(ACCESS SHARE) locks on the tables, waits for them at most 3 seconds, and holds them and its
    snapshot until the last row is read. Indexes are built after that.
  - The source's role needs C(SELECT) on the tables and C(USAGE) on their schemas. Where row security would hide rows from
    it, the module refuses. A sequence that it may not read is set to the largest value in its column.
  - The login role needs C(CREATEDB) on the target. Definitions are prepared in a database C(pgml_scratch_N), which exists
    for a moment.
  - Tables are made in schemas C(pgml_staging_N), and old ones go by way of C(pgml_old_N). What is remembered is in schema
    C(pgml_distributed), where table C(progress) tells how far a run has come.
  - Foreign keys to tables that are not copied, or copied in part, are left out, and so are triggers, rules and policies that
    refer to other tables, and policies for roles that the target lacks, or for any role with O(method=archive).
  - Tables of more than 1 GB may be read in several pieces. A transaction that took its snapshot before the run, and reads such a
    table only after it, sees it without rows, as it does after C(TRUNCATE),
    see U(https://www.postgresql.org/docs/current/mvcc-caveats.html). Other tables are the same for everybody.
  - Views, materialized views, foreign tables, unlogged tables and large objects are not copied.
  - One run at a time can fill a database.
  - The exchange needs the tables for itself for a moment. It tries for 60 seconds, queueing for 0.2 seconds at a time. If a query
    reads one of them for longer, the run fails and names the session.
seealso:
  - module: postgresml.distributed.pgml_schema
  - module: postgresml.distributed.pgml_subscription
  - name: COPY
    description: PostgreSQL's page on the statement that moves the rows.
    link: https://www.postgresql.org/docs/current/sql-copy.html
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
- name: Copy two tables, and copy them again whenever they have changed
  postgresml.distributed.pgml_dump_restore:
    source:
      host: 10.0.0.5
      db: shop
      user: pgml_distributor
      password: "{{ vault_pgml_distributor_password }}"
    tables:
      - users
      - name: orders
        where: total > 0
        columns: [id, user_id, total, created_at]
    login_db: ml
  become: true
  become_user: postgres

- name: Keep an archive of a schema beside the target, and restore it
  postgresml.distributed.pgml_dump_restore:
    source:
      host: 10.0.0.5
      db: shop
      user: pgml_distributor
      password: "{{ vault_pgml_distributor_password }}"
    schemas: [public]
    exclude_tables: [public.audit]
    method: archive
    archive: /var/lib/postgresql/shop.archive
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
    - Replace table public.orders
reason:
  description: Why rows were copied, or why not.
  type: str
  returned: when O(state=present)
  sample: "changed on the source: public.orders"
tables:
  description: The tables that hold rows, partitions one by one.
  type: list
  elements: dict
  returned: when O(state=present) and the target is filled
  contains:
    name:
      description: Name of the table, as in SQL.
      type: str
      sample: public.users
    rows:
      description: How many rows were copied, now or, when nothing changed, the last time.
      type: int
      sample: 700000
    bytes:
      description: Size on the source, without indexes.
      type: int
      returned: when copied
      sample: 76546048
    format:
      description: V(binary) or V(text).
      type: str
      returned: when copied
      sample: binary
    chunks:
      description: The number of pieces it was copied in.
      type: int
      returned: when copied
      sample: 1
relations:
  description: All tables that are meant, partitioned ones too, as in SQL. On the target they are what O(tables) is here.
  type: list
  elements: str
  returned: when O(state=present) and the source can be reached
  sample: [public.users, public.orders]
rows:
  description: How many rows were copied.
  type: int
  returned: when O(state=present)
  sample: 700000
bytes:
  description: Size of the copied tables on the source, without indexes.
  type: int
  returned: when copied
  sample: 76546048
seconds:
  description: How long it took.
  type: float
  returned: when O(state=present)
  sample: 12.345
left_out:
  description: The constraints, indexes, triggers, rules and policies that the target can't have, and why.
  type: list
  elements: dict
  returned: when copied
  contains:
    name:
      description: Its name.
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
not_moved:
  description: What O(schemas) or O(all_tables) mean and the module doesn't copy.
  type: list
  elements: dict
  returned: when O(state=present)
  contains:
    name:
      description: Its name, as in SQL.
      type: str
      sample: public.daily_sales
    reason:
      description: What it is.
      type: str
      sample: materialized view
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
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import dump_restore


def main() -> None:
    task.run(dump_restore.OPTIONS, dump_restore.manage)


if __name__ == "__main__":
    main()
