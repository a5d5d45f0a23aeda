#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# Copyright (c) 2026, the postgresml.distributed contributors

from __future__ import annotations

DOCUMENTATION = r"""
module: pgml_verify_info
short_description: Prove that source and target hold the same rows, while writes go on
version_added: 1.0.0
author:
  - The postgresml.distributed contributors (@postgresml)
description:
  - Compares the rows of tables on a source with those on the target, and names the keys of rows that are missing, extra or
    changed on the target. It only reads, on both sides.
  - Both servers hash all columns of each row as text and add the hashes up by buckets, so that a table is read once on each
    side and no row is sent. Only buckets that differ are looked into. Columns may be of other types as long as their text is the
    same.
  - Of a subscription, what is compared is what its publications publish, with their row filters and column lists, and a
    partitioned table as a whole when it is published that way.
  - Rows that differ are a result and no failure, see RV(equal).
options:
  source:
    description:
      - The database that the rows come from. For O(method=fence) and O(method=converge) it has to be the one that the
        subscription receives from, and no standby.
    required: true
  subscription:
    description:
      - Name of the subscription on the target whose tables are compared, exact.
      - Either this or O(tables), O(schemas) or O(all_tables) is needed, not both.
    type: str
  tables:
    description:
      - With O(method=fence) and O(method=converge), each must be one that an enabled subscription of the target receives from
        O(source). Then C(columns) and C(where) narrow what is published.
      - C(where) selects rows of the source. The target is to hold these and no others. A condition that uses the time selects
        other rows now than when they were copied.
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
      - Tables to leave out of those that the three options above mean, written as in SQL.
    type: list
    elements: str
    default: []
  method:
    description:
      - V(converge) locks nothing. It compares the source as it is with the target once it has applied all of that, and reads
        whatever differs again until both sides agree, or have differed in the same way three times, each time after the target
        has caught up and without a change on the source meanwhile.
      - V(fence) is exact, and sees all tables of a group at one moment. It locks tables of the source against writes until
        the target has applied what was written before, which takes as long as the target is behind, a few milliseconds as a
        rule. After 2 seconds it lets go and tries again. The rows are read after that, from snapshots. O(source.user) needs the
        right to take the lock.
      - V(offline) waits for nothing, and compares one snapshot of each side. It is for tables that nobody writes to, such as
        those copied by M(postgresml.distributed.pgml_dump_restore).
    type: str
    choices: [converge, fence, offline]
    default: converge
  jobs:
    description:
      - How many sessions read at a time, on each side. Tables of more than 1 GB are read in several pieces.
      - Without it, the CPUs of the host where the module runs, at most 4.
    type: int
  max_differences:
    description:
      - How many rows are named for each table at most. With V(0) the module only says whether tables are equal.
    type: int
    default: 100
  lock_timeout:
    description:
      - How many milliseconds O(method=fence) may stand in the queue for its lock on the source, and let writers wait behind
        it, before it gives way and tries again after a while. It must be less than the source's C(deadlock_timeout).
    type: int
    default: 500
  timeout:
    description:
      - How many seconds it may take in all. Rows that never came to rest by then are RV(tables[].undecided). When tables
        could not be read, locked or caught up with by then, the module fails.
    type: int
    default: 3600
attributes:
  platform:
    support: full
notes:
  - On the source it takes C(ACCESS SHARE) locks on the tables while it reads them, and O(method=fence) a C(SHARE) lock before
    that. Tables are compared in groups of at most 50 and about 1 GB, and no snapshot is held for longer than a group takes.
    O(method=offline) has one snapshot for all.
  - The source's role needs C(SELECT) on the tables and C(USAGE) on their schemas, and row security must not hide rows from it.
    O(method=fence) also needs C(UPDATE), C(DELETE) or C(TRUNCATE) on them, since PostgreSQL 17 C(MAINTAIN) is enough.
  - O(method=fence) can't lock a table while C(VACUUM) or C(ANALYZE) works on it, autovacuum included, or while a transaction that
    has written it is open, prepared ones included.
  - To know that the target has caught up, O(method=fence) and O(method=converge) write a logical decoding message of a few bytes
    into the source's WAL. It changes no table, and subscriptions don't receive it.
  - A table that is truncated or rewritten while it is read is read again, except with O(method=offline), which fails.
  - The columns of the replica identity, or else of the primary key, tell which row is which. Without them, or when they are not
    published, a row is missing or extra, but never changed.
seealso:
  - module: postgresml.distributed.pgml_subscription
  - module: postgresml.distributed.pgml_dump_restore
  - name: pg_logical_emit_message
    description: PostgreSQL's page on the function by which the source's WAL is marked.
    link: https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-REPLICATION
extends_documentation_fragment:
  - postgresml.distributed.attributes
  - postgresml.distributed.attributes.action_group
  - postgresml.distributed.attributes.info_module
  - postgresml.distributed.login
  - postgresml.distributed.source
  - postgresml.distributed.tables
"""

EXAMPLES = r"""
- name: Compare what a subscription brings with its source
  postgresml.distributed.pgml_verify_info:
    subscription: pgml_shop
    source:
      host: 10.0.0.5
      db: shop
      user: pgml_distributor
      password: "{{ vault_pgml_distributor_password }}"
    login_db: ml
  become: true
  become_user: postgres
  register: comparison

- name: Fail when rows differ
  ansible.builtin.assert:
    that: comparison.equal
    fail_msg: "{{ comparison.summary }}"

- name: Compare two tables exactly, as a role that may lock them
  postgresml.distributed.pgml_verify_info:
    tables: [users, orders]
    method: fence
    source:
      host: 10.0.0.5
      db: shop
      user: shop_owner
      password: "{{ vault_shop_owner_password }}"
    login_db: ml
  become: true
  become_user: postgres

- name: Compare a copy of a schema that nobody writes to
  postgresml.distributed.pgml_verify_info:
    schemas: [archive]
    method: offline
    source:
      host: 10.0.0.5
      db: shop
      user: pgml_distributor
      password: "{{ vault_pgml_distributor_password }}"
    login_db: ml
  become: true
  become_user: postgres
"""

RETURN = r"""
equal:
  description: Whether all tables were found to hold the same rows on both sides.
  type: bool
  returned: success
  sample: false
summary:
  description: The same in a sentence, with the tables that differ.
  type: str
  returned: success
  sample: "1 of 2 tables differs: public.orders (1 missing, 2 changed)."
differences:
  description: For each table that differs, or may, a sentence that names the first rows.
  type: list
  elements: str
  returned: success
  sample: ["public.orders on the target lacks (order_id=17), has other values in (order_id=18), (order_id=21)."]
method:
  description: The method that was used.
  type: str
  returned: success
  sample: converge
tables:
  description: The tables that were compared.
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: Name of the table, as in SQL.
      type: str
      sample: public.orders
    equal:
      description: Whether it was found to hold the same rows on both sides.
      type: bool
      sample: false
    decided:
      description:
        - Whether it is known if it is equal. If not, RV(tables[].equal) is V(false), because rows had not come to rest when the
          time was over.
      type: bool
      sample: true
    rows_source:
      description: How many rows were counted on the source, of those that are meant.
      type: int
      sample: 40000
    rows_target:
      description: How many rows were counted on the target. With O(method=converge) that is a moment later.
      type: int
      sample: 39999
    chunks:
      description: The number of buckets that were compared at first.
      type: int
      sample: 128
    differing:
      description: Rows that differ, as O(max_differences) bounds them, each as a mapping of column to value as text.
      type: dict
      contains:
        missing:
          description: Rows that the target lacks.
          type: list
          elements: dict
          sample: [{"order_id": "17"}]
        extra:
          description: Rows that only the target has.
          type: list
          elements: dict
          sample: []
        changed:
          description: Rows that have other values on the target.
          type: list
          elements: dict
          sample: [{"order_id": "18"}, {"order_id": "21"}]
    differences_complete:
      description: Whether there are no more differences than those.
      type: bool
      sample: true
    undecided:
      description: Rows that had not come to rest when the time was over, only with O(method=converge).
      type: list
      elements: dict
      sample: []
    lsn:
      description: The position in the source's WAL up to which the target had applied everything, null with O(method=offline).
      type: str
      sample: 0/1C93398
    lock_ms:
      description: For how many milliseconds the table was locked against writes, null without O(method=fence).
      type: float
      sample: 3.2
    seconds:
      description: How long its queries took, those of both sides added up.
      type: float
      sample: 0.12
not_compared:
  description: What belongs to the tables or schemas that are meant and doesn't travel, or is left out by a column list.
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: Its name, as in SQL.
      type: str
      sample: public.users.full_name
    reason:
      description: Why.
      type: str
      sample: generated column
sequences:
  description: Where the sequences of the tables' columns stand. Neither method brings them after the first copy.
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: Its name, as in SQL.
      type: str
      sample: public.orders_order_id_seq
    source:
      description: Its last value on the source, null when that may not be read.
      type: int
      sample: 40000
    target:
      description: Its last value on the target, null when it isn't there or may not be read.
      type: int
      sample: 1
invalid_indexes:
  description: Indexes of the target's tables that no query uses, because they are invalid.
  type: list
  elements: str
  returned: success
  sample: [public.orders_user_id_idx]
unvalidated_constraints:
  description: Constraints of the target's tables that were never checked for all rows.
  type: list
  elements: str
  returned: success
  sample: [orders_user_id_fkey of public.orders]
subscriptions:
  description: The subscriptions that bring the tables.
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: Its name.
      type: str
      sample: pgml_shop
    enabled:
      description: Whether it replicates.
      type: bool
      sample: true
    received_lsn:
      description: The position in the source's WAL that it has received, null when no worker runs.
      type: str
      sample: 0/1C93418
    unready:
      description: The states of tables whose first copy isn't done.
      type: dict
      sample: {}
seconds:
  description: How long it took.
  type: float
  returned: success
  sample: 0.412
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
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import verification


def main() -> None:
    task.run(verification.OPTIONS, verification.manage, info=True)


if __name__ == "__main__":
    main()
