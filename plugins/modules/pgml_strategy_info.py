#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# Copyright (c) 2026, the postgresml.distributed contributors

from __future__ import annotations

DOCUMENTATION = r"""
module: pgml_strategy_info
short_description: Measure tables, and recommend a strategy to distribute them
version_added: 1.0.0
author:
  - The postgresml.distributed contributors (@postgresml)
description:
  - Measures the tables that are to be distributed, and how often their rows change, on the server that they come from. It
    recommends one of the strategies V(dump), V(fdw), V(logical) and V(native), tells of each what speaks for and against it, and
    what it would cost.
  - Size decides first, see O(bounds). Then small tables whose rows change often are for V(logical) instead of V(dump), see
    O(frequent_changes), and larger ones whose rows hardly ever change are for V(dump) instead of V(fdw). That is when less than a
    hundredth of O(frequent_changes) was counted, for a week or more.
  - What can't be used is replaced by the next that can, V(fdw) by V(logical) or else V(dump), V(logical) by V(fdw) or else
    V(dump), and V(native) by V(logical), V(fdw) or V(dump). V(native) replaces none of them.
  - V(dump) can always be used. V(fdw) takes a superuser on the replicas, and columns whose types can be had there.
  - V(logical) takes C(wal_level=logical), free slots and WAL senders, tables whose rows have a replica identity, room for the WAL
    of a first copy, and the right to create subscriptions on the replicas.
  - V(native) takes a server that isn't managed, and O(native_allowed).
options:
  tables:
    description:
      - Sizes and rows are those of whole tables, whatever C(columns) and C(where) leave out. C(where) is not evaluated.
    default: []
  schemas:
    default: []
  all_tables:
    description:
      - Whether all permanent tables of the database are meant.
    type: bool
    default: false
  exclude_tables:
    description:
      - Tables to leave out of those that the options above mean, written as in SQL.
    type: list
    elements: str
    default: []
  sample_seconds:
    description:
      - For how many seconds changes and WAL are watched. It takes up to 3 seconds longer, because servers publish their
        counters once a second, and it waits for that at both ends. Before PostgreSQL 15 they come later and less evenly, so
        watch for 10 seconds or more.
      - With V(0) the rates are those since the server's counters began, see RV(measured.changes_per_hour.seconds).
    type: float
    default: 0
  bounds:
    description:
      - Up to which size of the tables, with indexes, each strategy is meant. V(native) is for what is larger.
      - Each is a number of bytes, or a number with C(kB), C(MB), C(GB) or C(TB), in steps of 1024. They must ascend.
    type: dict
    suboptions:
      dump:
        description:
          - The bound of V(dump).
        type: str
        default: 10 GB
      fdw:
        description:
          - The bound of V(fdw).
        type: str
        default: 100 GB
      logical:
        description:
          - The bound of V(logical).
        type: str
        default: 10 TB
  frequent_changes:
    description:
      - The share of the rows that are inserted, updated or deleted in an hour from which on a copy is outdated too soon. With
        the default of 1 %, a copy of last night misses about a quarter of them.
      - Counters must be an hour old to count here. Of what was counted, one change for each row is left out, since that is how
        it came there. So tables that were loaded a while ago don't seem to change often.
    type: float
    default: 0.01
  replicas:
    description:
      - How many replicas will take the tables from this server. V(logical) takes a slot and a WAL sender for each.
    type: int
    default: 1
  restart_allowed:
    description:
      - Whether the server may be restarted, for C(wal_level), C(max_replication_slots) and C(max_wal_senders). A managed service
        is not restarted from here, whatever this says.
    type: bool
    default: false
  replica_superuser:
    description:
      - Whether the login on the replicas may create extensions and subscriptions there.
    type: bool
    default: true
  native_allowed:
    description:
      - Whether PostgresML may be installed in this server.
    type: bool
    default: false
  slots_ours:
    description:
      - Names of slots that count as free, with the WAL senders that serve them, because the tables' replicas have them already.
    type: list
    elements: str
    default: []
  current:
    description:
      - The strategy that is in use. When another one is recommended, the module warns, and says how to change over.
      - A bound counts only when it is crossed by 10 %, so that a database at a bound stays with what it has. That goes for
        O(frequent_changes) too.
    type: str
    choices: [dump, fdw, logical, native]
  name:
    description:
      - Name of the distribution, for the warning.
    type: str
attributes:
  platform:
    support: full
notes:
  - It reads catalogs, statistics and the sizes of files. Nobody waits for it, and it waits for no table. Where somebody holds a
    table in C(ACCESS EXCLUSIVE) mode, or waits to do so, its size is the one that C(VACUUM) or C(ANALYZE) has noted, see
    RV(measured.estimated_tables).
  - The role needs no privilege but to connect. What it can't see without more is in RV(measured.unseen).
  - The number of statements doesn't grow with the number of tables.
  - A transaction's changes count when it ends. C(TRUNCATE) counts as none.
seealso:
  - module: postgresml.distributed.pgml_dump_restore
  - module: postgresml.distributed.pgml_fdw
  - module: postgresml.distributed.pgml_subscription
  - name: The cumulative statistics system
    description: PostgreSQL's page on the counters that it reads.
    link: https://www.postgresql.org/docs/current/monitoring-stats.html
extends_documentation_fragment:
  - postgresml.distributed.attributes
  - postgresml.distributed.attributes.action_group
  - postgresml.distributed.attributes.info_module
  - postgresml.distributed.login
  - postgresml.distributed.tables
"""

EXAMPLES = r"""
- name: Ask which strategy fits the shop
  postgresml.distributed.pgml_strategy_info:
    schemas: [public, warehouse]
    replicas: 2
    login_db: shop
  become: true
  become_user: postgres
  register: fit

- name: Show it, and why not the others
  ansible.builtin.debug:
    msg: "{{ [fit.recommendation.reason] + fit.alternatives | map(attribute='reasons') | flatten }}"

- name: Warn when what is in use fits no more
  postgresml.distributed.pgml_strategy_info:
    name: shop
    current: dump
    all_tables: true
    sample_seconds: 10
    bounds:
      dump: 50 GB
      fdw: 200 GB
    slots_ours: [pgml_shop_ml_1]
    login_db: shop
  become: true
  become_user: postgres
"""

RETURN = r"""
recommendation:
  description: The strategy that fits, of those that are possible.
  type: dict
  returned: success
  contains:
    strategy:
      description: Its name, V(dump), V(fdw), V(logical) or V(native).
      type: str
      sample: dump
    reason:
      description: Why, in a sentence.
      type: str
      sample: The tables take 1.2 GB, and dump is meant for less than 10 GB.
alternatives:
  description: All four strategies, by the size that they are meant for.
  type: list
  elements: dict
  returned: success
  contains:
    strategy:
      description: Its name.
      type: str
      sample: logical
    feasible:
      description: Whether it is possible here.
      type: bool
      sample: false
    reasons:
      description: What speaks for it and against it, a sentence each.
      type: list
      elements: str
      sample:
        - It is meant for 100 GB to 10 TB, and the tables take 1.2 GB.
        - wal_level is replica, and changing it takes a restart, which is not allowed (restart_allowed is false).
measured:
  description: What was found.
  type: dict
  returned: success
  contains:
    bytes:
      description: What the tables take on disk.
      type: dict
      contains:
        heap:
          description: Rows, with the maps of free space and visibility.
          type: int
          sample: 901775360
        toast:
          description: What is stored out of line.
          type: int
          sample: 8192
        indexes:
          description: All indexes.
          type: int
          sample: 386547056
        total:
          description: All of that, as C(pg_total_relation_size()) has it.
          type: int
          sample: 1288330608
    tables:
      description: How many tables are meant, partitioned tables and their partitions among them.
      type: int
      sample: 16
    rows:
      description: About how many rows they have, as the planner estimates it.
      type: int
      sample: 640000
    estimated_tables:
      description: Tables that were locked, so that their sizes are those that C(VACUUM) or C(ANALYZE) has noted.
      type: list
      elements: str
      sample: []
    changes_per_hour:
      description: How many rows change. Null where that isn't counted, which is so on standbys and with C(track_counts=off).
      type: dict
      contains:
        inserted:
          description: Rows that are inserted in an hour.
          type: float
          sample: 1250.5
        updated:
          description: Rows that are updated in an hour.
          type: float
          sample: 310.0
        deleted:
          description: Rows that are deleted in an hour.
          type: float
          sample: 12.5
        total:
          description: All of these.
          type: float
          sample: 1573.0
        seconds:
          description: For how long they were counted. That is the age of the server's counters, or how long they were watched.
          type: float
          sample: 864000.5
    wal_bytes_per_second:
      description:
        - How much WAL the whole server writes. Without O(sample_seconds) it is null before PostgreSQL 14, and on standbys.
      type: float
      sample: 48210.2
    wal_level:
      description: What the server runs with.
      type: str
      sample: replica
    version:
      description: Its version.
      type: str
      sample: "15.18"
    service:
      description: Whether it is V(self-managed), or one of V(rds), V(cloudsql) and V(azure), which have settings of their own.
      type: str
      sample: self-managed
    standby:
      description: Whether it is a standby.
      type: bool
      sample: false
    free_slots:
      description: How many replication slots are free, of C(max_replication_slots).
      type: int
      sample: 10
    free_senders:
      description: How many WAL senders are free, of C(max_wal_senders).
      type: int
      sample: 10
    free_disk_bytes:
      description: What is free where the server has its WAL, null when that can't be seen from where the module runs.
      type: int
      sample: 52613349376
    without_identity:
      description: Tables that have no replica identity, or whose C(columns) leave out a part of it.
      type: list
      elements: dict
      contains:
        name:
          description: Name of the table, as in SQL.
          type: str
          sample: public.audit_log
        reason:
          description: What is wrong.
          type: str
          sample: has no replica identity (no primary key)
    extensions:
      description: Extensions that the columns' types are of.
      type: list
      elements: str
      sample: [vector]
    types_without_binary:
      description: Types of columns that C(COPY) brings as text, because their binary form isn't the same on every server.
      type: list
      elements: str
      sample: [email_address]
    types_without_fdw:
      description: Tables and views whose row types are types of columns, which foreign tables can't have.
      type: list
      elements: str
      sample: []
    left_out:
      description: What O(schemas) or O(all_tables) mean and only V(fdw) and V(native) can bring.
      type: list
      elements: dict
      contains:
        name:
          description: Its name, as in SQL.
          type: str
          sample: public.sessions
        reason:
          description: What it is.
          type: str
          sample: unlogged table
    unseen:
      description: What could not be seen, a sentence each.
      type: list
      elements: str
      sample: []
estimates:
  description:
    - What each strategy costs, by its name. A copy is taken to be as slow as 20 MB of rows in a second, with the indexes that
      are built after them.
  type: dict
  returned: success
  contains:
    dump:
      description: Those of V(dump). Each of the others has the same keys.
      type: dict
      contains:
        first_copy_seconds:
          description: How long the first copy takes.
          type: float
          sample: 43.0
        replica_bytes:
          description: What it takes on a replica's disk. With V(dump) new tables stand beside the old ones for a while.
          type: int
          sample: 2576661216
        wal_kept_bytes:
          description: The WAL that the primary keeps during the first copy, null when it isn't known how much it writes.
          type: int
          sample: 0
        training_memory_bytes:
          description:
            - The memory that PostgresML takes where it trains on the largest table, all rows and columns of it, with Python's
              libraries. That is 72 bytes for each row and 56 for each value. The model itself comes on top.
          type: int
          sample: 126208000
sqlstate:
  description: PostgreSQL's error code, see U(https://www.postgresql.org/docs/current/errcodes-appendix.html).
  type: str
  returned: when the server refused a statement
  sample: "42501"
"""

from ansible_collections.postgresml.distributed.plugins.module_utils import task
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import strategy


def main() -> None:
    task.run(strategy.OPTIONS, strategy.manage, info=True)


if __name__ == "__main__":
    main()
