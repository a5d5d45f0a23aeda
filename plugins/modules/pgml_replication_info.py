#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# Copyright (c) 2026, the postgresml.distributed contributors

from __future__ import annotations

DOCUMENTATION = r"""
module: pgml_replication_info
short_description: See what is wired at a server, how far it is, and what it costs
version_added: 1.0.0
author:
  - The postgresml.distributed contributors (@postgresml)
description:
  - Reads what this collection has wired at one server, as the one that gives rows and as the one that receives them.
  - What it knows of lag is known at the upstream, from the end of its WAL to what the replica has confirmed. So run it at both
    servers; playbook C(status) does that, and puts both together.
  - Slots, publications and subscriptions are those whose names begin with C(pgml_).
options:
  databases:
    description:
      - The databases to look into, one connection each. One that doesn't exist is left out of RV(databases).
      - Without it, O(login_db).
    type: list
    elements: str
  sample_seconds:
    description:
      - For how many seconds at least the growth of WAL is watched on a server that has slots. The time that the module takes
        otherwise counts.
      - RV(server.wal_rate) is what was seen in that time, or the average since the statistics were reset if that is more.
    type: float
    default: 1.0
attributes:
  platform:
    support: full
notes:
  - It reads catalogs and statistics, and the end of the log when a subscription fails.
  - It waits for nobody's lock. The size of a table that somebody has locked is told as it was when that was last vacuumed or
    analyzed.
  - What others send and receive is shown to superusers and members of C(pg_monitor). Slots of subscriptions and what
    is remembered in schema C(pgml_distributed) need a superuser, or the owner of both.
  - A subscription without a worker, or one that has counted errors, is watched for a few seconds, because a worker that fails is
    started anew by PostgreSQL after C(wal_retrieve_retry_interval).
seealso:
  - module: postgresml.distributed.pgml_verify_info
  - module: postgresml.distributed.pgml_subscription
extends_documentation_fragment:
  - postgresml.distributed.attributes
  - postgresml.distributed.attributes.action_group
  - postgresml.distributed.attributes.info_module
  - postgresml.distributed.login
"""

EXAMPLES = r"""
- name: See what a replica receives
  postgresml.distributed.pgml_replication_info:
    databases: [ml]
    login_db: postgres
  become: true
  become_user: postgres
  register: replica

- name: Fail when a subscription fails
  ansible.builtin.assert:
    that: replica.databases | map(attribute='subscriptions') | flatten | selectattr('failing') | length == 0

- name: See for whom the primary keeps WAL
  postgresml.distributed.pgml_replication_info:
    login_db: shop
  become: true
  become_user: postgres
  register: primary

- name: Show the slots that hold it back
  ansible.builtin.debug:
    msg: "{{ primary.server.slots | rejectattr('active') | map(attribute='name') }}"
"""

RETURN = r"""
server:
  description: The server, mostly as the one that gives.
  type: dict
  returned: success
  contains:
    version:
      description: PostgreSQL's version.
      type: str
      sample: "17.6"
    system_identifier:
      description: What tells this cluster from every other.
      type: str
      sample: "7312345678901234567"
    in_recovery:
      description: Whether it is a standby.
      type: bool
      sample: false
    now:
      description: Its clock.
      type: str
      sample: "2026-11-29 15:10:20.123456+00"
    uptime:
      description: Seconds since it was started.
      type: int
      sample: 86400
    wal_level:
      description: The setting.
      type: str
      sample: logical
    lsn:
      description: The end of its WAL, of a standby what it has received.
      type: str
      sample: 0/1C93398
    wal_rate:
      description: Bytes of WAL that it writes in a second, see O(sample_seconds).
      type: float
      sample: 120345.6
    wal_limit:
      description: Bytes of WAL after which a slot is lost (C(max_slot_wal_keep_size)), null without a limit.
      type: int
      sample: 53687091200
    wal_space:
      description: Bytes that are free where it keeps its WAL, null when that can't be seen from the host where the module runs.
      type: int
      sample: 101234567890
    outdated:
      description: Sentences about errors of its minor version that its next one mends.
      type: list
      elements: str
      sample: []
    slots_in_use:
      description: The slots, of whichever server, that subscriptions of all databases of this one take changes from.
      type: list
      elements: str
      sample: [pgml_shop_ml_1]
    slots:
      description: The slots on it.
      type: list
      elements: dict
      contains:
        name:
          description: Its name.
          type: str
          sample: pgml_shop_ml_1
        database:
          description: The database whose changes it has.
          type: str
          sample: shop
        active:
          description: Whether somebody receives from it.
          type: bool
          sample: true
        wal_status:
          description: Whether its WAL is still there, V(lost) if not.
          type: str
          sample: reserved
        invalidation_reason:
          description: Why it can't be used any more, null if it can, and before PostgreSQL 17.
          type: str
          sample: wal_removed
        restart_lsn:
          description: From where on WAL is kept for it.
          type: str
          sample: 0/1C93000
        confirmed_flush_lsn:
          description: Up to where the subscriber has everything.
          type: str
          sample: 0/1C93398
        retained_bytes:
          description: Bytes of WAL from RV(server.slots[].restart_lsn) to the end.
          type: int
          sample: 920
        safe_wal_bytes:
          description: Bytes of WAL that may be written before it is lost, null without a limit.
          type: int
          sample: 53687091200
        behind_bytes:
          description: Bytes of WAL from RV(server.slots[].confirmed_flush_lsn) to the end, which is the lag.
          type: int
          sample: 0
        not_sent_bytes:
          description: Of those, what was not sent yet. Null while nobody receives.
          type: int
          sample: 0
        not_flushed_bytes:
          description: Of those, what was sent and not confirmed. Null while nobody receives.
          type: int
          sample: 0
        inactive_seconds:
          description: For how long nobody has received from it, null while somebody does, and before PostgreSQL 17.
          type: int
          sample: null
        replay_lag_seconds:
          description: PostgreSQL's measure of the time until the subscriber has applied what is written, null when it is idle.
          type: float
          sample: 0.002
        spilled_bytes:
          description: Bytes of large transactions that were written to disk while they were decoded, null before PostgreSQL 14.
          type: int
          sample: 0
        sender:
          description: The process that sends, null while nobody receives.
          type: dict
          sample: {"pid": 4711, "application_name": pgml_shop, "state": streaming}
databases:
  description: Those of O(databases) that exist.
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: Its name.
      type: str
      sample: ml
    remembered:
      description: By which strategy each distribution comes here, from which host, and whether strategy C(auto) has chosen it.
      type: list
      elements: dict
      sample: [{"name": shop, "strategy": logical, "automatic": false, "upstream": prod-db}]
    subscriptions:
      description: What it receives by logical replication.
      type: list
      elements: dict
      contains:
        name:
          description: Its name.
          type: str
          sample: pgml_shop
        oid:
          description: Its oid.
          type: int
          sample: 16412
        enabled:
          description: Whether it replicates.
          type: bool
          sample: true
        owner:
          description: The role whose rights its workers have.
          type: str
          sample: postgres
        publications:
          description: Its publications.
          type: list
          elements: str
          sample: [pgml_shop]
        slot_name:
          description: Its slot on the upstream.
          type: str
          sample: pgml_shop_ml_1
        placeholder:
          description: Whether it is only registered, by a run that is at work or has died.
          type: bool
          sample: false
        first_copy:
          description: The phase of a first copy under a snapshot, null when there is none any more.
          type: str
          sample: null
        worker:
          description: The process that applies changes, null when there is none.
          type: int
          sample: 4712
        copiers:
          description: The processes that copy tables.
          type: list
          elements: int
          sample: []
        received_lsn:
          description: Up to where it has received.
          type: str
          sample: 0/1C93398
        latest_end_lsn:
          description: What it has last reported to the upstream.
          type: str
          sample: 0/1C93398
        heard_seconds_ago:
          description: Seconds since the last message of the upstream.
          type: float
          sample: 4.2
        level_seconds_ago:
          description: Seconds since it last had applied everything that had been sent. The upstream's clock is one side of that.
          type: float
          sample: 4.2
        apply_errors:
          description: How often applying failed, null before PostgreSQL 15.
          type: int
          sample: 0
        sync_errors:
          description: How often a first copy failed, null before PostgreSQL 15.
          type: int
          sample: 0
        conflicts:
          description: The conflicts that PostgreSQL 18 counts, those that there were.
          type: dict
          sample: {"insert_exists": 3}
        last_error:
          description:
            - What the server's log has of the last error, of a subscription that fails or was disabled by one. It is there from
              PostgreSQL 15 on, when the server collects its log (C(logging_collector)) as C(stderr) and the login is a superuser.
          type: str
          sample: null
        failing:
          description: Whether it was seen to fail while the module watched it.
          type: bool
          sample: false
        tables:
          description: Its tables.
          type: list
          elements: dict
          contains:
            name:
              description: Its name, as in SQL.
              type: str
              sample: public.orders
            state:
              description: How far its first copy is, C(ready) when it is done.
              type: str
              sample: ready
            rows:
              description: An estimate of its rows.
              type: int
              sample: 40000
            bytes:
              description: What it takes with its indexes.
              type: int
              sample: 8192000
            columns:
              description: Its columns that can be written.
              type: list
              elements: str
              sample: [id, total]
    publications:
      description: What it publishes.
      type: list
      elements: dict
      contains:
        name:
          description: Its name.
          type: str
          sample: pgml_shop
        tables:
          description: Its tables, with the columns that are published and the row filter. Null while somebody has locked one.
          type: list
          elements: dict
          sample: [{"name": public.orders, "columns": [id, total], "where": null}]
    copies:
      description: The tables that M(postgresml.distributed.pgml_dump_restore) has copied, with their age in seconds.
      type: list
      elements: dict
      sample:
        - name: public.orders
          schema: public
          present: true
          rows: 40000
          bytes: 8192000
          copied_at: "2026-11-29 15:10:20.123456+00"
          age: 3600
    foreign_servers:
      description: The servers that M(postgresml.distributed.pgml_fdw) has made, with foreign tables and views, and snapshots.
      type: list
      elements: dict
      sample:
        - name: live
          present: true
          tables: [live_public.orders]
          missing: []
          snapshots:
            - name: public.orders_now
              rows: 40000
              bytes: 8192000
              taken_at: "2026-11-29 15:10:20.123456+00"
              age: 3600
    models:
      description: The projects of PostgresML and what they serve, null where it isn't installed.
      type: dict
      sample:
        version: 2.9.3
        projects:
          - project: price
            task: regression
            models: 3
            shipped: 2
            served: {"id": 201, "algorithm": linear, "bytes": 812}
            source: {"system": "7312345678901234567", "database": ml, "id": 4}
    progress:
      description: How far the copy that is at work has come, or the last one, null without any.
      type: dict
      sample:
        process: 4713
        alive: true
        phase: copy
        tables: 10
        tables_done: 3
        bytes: 81920000
        bytes_done: 24576000
        rows: 120000
        started_at: "2026-11-29 15:10:20.123456+00:00"
        updated_at: "2026-11-29 15:10:24.123456+00:00"
option:
  description: The options with which no connection could be opened, always V(login).
  type: str
  returned: when the server can't be reached
  sample: login
sqlstate:
  description: PostgreSQL's error code, see U(https://www.postgresql.org/docs/current/errcodes-appendix.html).
  type: str
  returned: when the server refused a statement
  sample: "42501"
"""

from ansible_collections.postgresml.distributed.plugins.module_utils import task
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import replication


def main() -> None:
    task.run(replication.OPTIONS, replication.manage, info=True)


if __name__ == "__main__":
    main()
