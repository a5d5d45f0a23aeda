#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# Copyright (c) 2026, the postgresml.distributed contributors

from __future__ import annotations

DOCUMENTATION = r"""
module: pgml_subscription
short_description: Manage a subscription on the replica, and its slot on the upstream
version_added: 1.0.0
author:
  - The postgresml.distributed contributors (@postgresml)
description:
  - Creates, alters and drops a subscription of logical replication on the replica, and waits for its first copy.
  - It creates and drops the replication slot on the upstream too, in an order that survives dying at any step. The next run
    finds what there is and goes on, or takes it away with O(state=absent). Source and target may be in one cluster.
  - Before it creates anything, it looks for whatever would stop the first copy, namely missing publications, tables and
    columns, missing privileges, tables that hold rows or that another subscription fills, C(wal_level), and free slots.
  - An omitted option leaves what is there, and takes the server's default when a subscription is created.
  - Tables that joined or left the publications are taken in or given up, when there are any and the subscription is enabled.
options:
  name:
    description:
      - Name of the subscription, exact.
    type: str
    required: true
  publications:
    description:
      - Exact names of the publications to subscribe to. They replace those subscribed to. Needed to create a subscription.
    type: list
    elements: str
  source:
    description:
      - The upstream's database. Needed to create a subscription.
      - It becomes the subscription's connection string, so that the replica's server has to reach it, and its files have to
        be on the replica, readable for the server. The module connects with the same string from where it runs.
      - An existing connection string is compared value by value, password included. Only superusers may read it. For others
        it is not compared, which they are warned of.
      - Without it the connection string that is there is used, if it may be read. If it may not, tables are neither
        refreshed nor waited for.
  slot_name:
    description:
      - Name of the slot on the upstream, of lower-case letters, digits and underscores. When a subscription is created it
        is O(name) by default, and no slot of that name may exist.
      - Another name for an existing subscription makes it go on with that slot, which has to exist.
      - With O(state=absent), the slot to drop when the subscription is gone already, see RV(debts).
    type: str
  enabled:
    description:
      - Whether the subscription replicates. A new one does unless this is V(false), which creates the slot all the same, so
        that the upstream keeps WAL from then on.
    type: bool
  owner:
    description:
      - Role that owns the subscription. Without it, the role that creates it.
    type: str
  binary:
    description:
      - Whether the upstream sends rows in binary format. PostgreSQL 14 or later, refused on older ones. The first copy too
        is binary when both servers are 16 or later.
    type: bool
  streaming:
    description:
      - Whether large transactions are sent before they commit. PostgreSQL 14 or later, V(parallel) 16 or later, refused on
        older ones.
      - The server's default is V(off), and V(parallel) since PostgreSQL 18.
    type: str
    choices: ["off", "on", parallel]
  synchronous_commit:
    description:
      - C(synchronous_commit) of the workers that apply changes. The server's default is V(off), which loses nothing, because
        the upstream keeps what the replica has not flushed.
    type: str
    choices: [local, remote_write, remote_apply, "on", "off"]
  two_phase:
    description:
      - Whether prepared transactions are sent when they are prepared. PostgreSQL 15 or later, refused on older ones.
      - Of an existing subscription it can be altered since PostgreSQL 18, which disables it for a moment. On 15 to 17 that
        is refused.
    type: bool
  disable_on_error:
    description:
      - Whether an error disables the subscription instead of being tried again and again. PostgreSQL 15 or later, refused on
        older ones.
    type: bool
  password_required:
    description:
      - Whether O(source) must have a password when O(owner) is no superuser. Only superusers may set it to V(false).
        PostgreSQL 16 or later, refused on older ones.
    type: bool
  run_as_owner:
    description:
      - Whether changes are applied as the subscription's owner, instead of as each table's owner. PostgreSQL 16 or later,
        refused on older ones, which always apply them as the subscription's owner.
    type: bool
  origin:
    description:
      - Whether changes that the upstream itself got by replication are sent, V(any), or not, V(none). PostgreSQL 16 or later,
        refused on older ones.
    type: str
    choices: [any, none]
  failover:
    description:
      - Whether the slot is synchronized to the upstream's standbys. PostgreSQL 17 or later on both servers, refused by older
        replicas. Altering it disables the subscription for a moment.
    type: bool
  initial_copy:
    description:
      - How the rows come that the upstream has when the subscription is created. Without it V(snapshot) where that is possible,
        and else V(native) with a warning that says why.
      - V(snapshot) lets O(jobs) workers read the tables under the snapshot of the new slot and write them into tables without
        indexes, which are built afterwards, several at a time. Then the subscription goes on from the slot. It applies the
        publications' row filters and column lists itself.
      - V(native) leaves it to C(CREATE SUBSCRIPTION) with C(copy_data), which reads each table with one worker and keeps up
        its indexes row by row.
      - For either the tables have to be empty, else they are refused by name.
      - V(none) is right when the tables hold the upstream's rows already. Changes before the slot was created don't come.
      - Tables that join the publications of an existing subscription later are copied by PostgreSQL itself, unless this is
        V(none).
    type: str
    choices: [snapshot, native, none]
  replace_copies:
    description:
      - Whether the first copy may replace rows that M(postgresml.distributed.pgml_dump_restore) has brought to the tables, as
        is needed when a distribution that came by dump is to be streamed. Without it they are refused, as other rows always are.
      - The rows of the new slot's snapshot come into tables beside those that are there, which are read until all are exchanged
        in one transaction, as M(postgresml.distributed.pgml_dump_restore) does with C(replace=swap). From then on the
        subscription goes on from the slot. Published tables that are empty are exchanged with the others.
      - It needs O(initial_copy=snapshot), C(CREATEDB) for the login role, C(pg_dump), and disk for both copies. A partitioned
        table is replaced as a whole, so that all of its partitions have to be published.
    type: bool
    default: false
  jobs:
    description:
      - How many workers copy and build indexes with O(initial_copy=snapshot). By default as many as the host that the module
        runs on has processors, and at most 4.
    type: int
  wal_space:
    description:
      - Bytes that are free where the upstream keeps its WAL, as M(postgresml.distributed.pgml_publication) returns them there.
        Without it they are measured when the upstream is on the same host, and not considered else.
      - A copy with O(initial_copy=snapshot) is refused when the WAL that is written meanwhile is estimated to take more than
        half of that, or more than C(max_slot_wal_keep_size).
    type: int
  wait:
    description:
      - Whether to return only when all tables are ready, which means that their first copy is done and they have caught up.
        A disabled subscription is not waited for.
      - With O(initial_copy=snapshot) the copy is waited for in any case, and this is about what the upstream had written when
        the subscription was enabled.
      - When the copy can't go on it fails, with the publisher's own error where there is one. If the subscription is new and
        no table was copied, the subscription and its slot are removed again. Otherwise both stay, and a rerun goes on.
      - A source that can't be reached is waited for too, for five minutes at most, because PostgreSQL goes on by itself when
        the source is back. After that both stay.
    type: bool
    default: true
  wait_timeout:
    description:
      - How many seconds to wait for. After that it fails, naming the tables that are not ready, and the copy goes on.
    type: int
    default: 3600
  state:
    description:
      - Whether the subscription is there.
      - V(absent) disables it, waits at most 30 seconds for its slot to be released, and drops the slot, the subscription, and
        what unfinished first copies left on the upstream. The tables keep their rows.
      - When the upstream can't be reached, or the slot is still in use, V(absent) detaches the subscription from its slot and
        drops it all the same. It succeeds with a warning, and what stays on the upstream is returned as RV(debts).
      - V(absent) without such a subscription, but with O(source) and O(slot_name), drops that slot, provided that it is idle,
        belongs to C(pgoutput) and to the source's database. This settles a debt. With the upstream unreachable it warns.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode:
    support: full
    details:
      - An earlier task of the same play might create what is missing. So an upstream that can't be reached, and whatever
        would be refused because of what is on the servers, are warnings in check mode, and a missing database holds no
        subscription, for which it asks the database C(postgres).
  diff_mode:
    support: full
  idempotent:
    support: full
notes:
  - On the upstream, the creation of a slot waits for the transactions that are writing, at most 10 seconds for each, and blocks
    nobody meanwhile. Then it gives up, names them and leaves no slot. The first copy takes C(ACCESS SHARE) on a table while it
    copies it.
  - Creating a subscription needs a superuser, or since PostgreSQL 16 a member of C(pg_create_subscription) with C(CREATE) on
    the database. PostgreSQL 13 lets only superusers look at subscriptions.
  - O(source.user) needs C(LOGIN), C(REPLICATION), C(SELECT) on the published columns and C(USAGE) on their schemas, and
    nothing else, see M(postgresml.distributed.pgml_grants). In C(pg_hba.conf) its line names the database, not
    C(replication).
  - With O(initial_copy=native) the first copy needs one more slot on the upstream for each table that is being copied.
  - With O(initial_copy=snapshot) the login role has to own the tables and may set C(session_replication_role), which
    superusers may. C(pg_dump) of the target's major version or later tells what the indexes were. Without it they stay, which
    takes longer and is warned of. Two sessions on the upstream keep the snapshot until the last row is read, and
    C(ACCESS SHARE) on all tables for as long, so that a rewrite or C(TRUNCATE) waits for them. To know when the subscription
    has caught up, a logical decoding message is written to the upstream's WAL.
  - A run that is killed leaves what it has copied. Those two sessions outlive it for 10 minutes without their locks, and the
    next run of the task goes on where it stopped, unless tables were rewritten. After that they drop the slot, and the next run
    begins anew. While indexes are built the slot stays until the next run goes on, or O(state=absent) removes it. The schema
    C(pgml_distributed) of the target's database remembers all that, and is gone when it is done.
  - Passwords reach the replica outside of statements, hence neither its log nor C(pg_stat_activity).
  - Replicas before PostgreSQL 15 ignore row filters and column lists in the first copy.
seealso:
  - module: postgresml.distributed.pgml_publication
  - module: postgresml.distributed.pgml_settings
  - module: community.postgresql.postgresql_subscription
  - name: CREATE SUBSCRIPTION
    description: PostgreSQL's page on the options.
    link: https://www.postgresql.org/docs/current/sql-createsubscription.html
extends_documentation_fragment:
  - postgresml.distributed.attributes
  - postgresml.distributed.attributes.action_group
  - postgresml.distributed.login
  - postgresml.distributed.source
"""

EXAMPLES = r"""
- name: Subscribe, and return when all tables are ready
  postgresml.distributed.pgml_subscription:
    name: shop_ml_1
    publications: [shop]
    source:
      host: 10.0.0.5
      db: shop
      user: pgml_distributor
      password: "{{ pgml_distributor_password }}"
    login_db: ml
  become: true
  become_user: postgres

- name: The same over TLS, with an hour more for a large first copy
  postgresml.distributed.pgml_subscription:
    name: shop_ml_1
    publications: [shop]
    source:
      host: prod-db.example.com
      db: shop
      user: pgml_distributor
      password: "{{ pgml_distributor_password }}"
      ssl_mode: verify-full
      ca_cert: /etc/ssl/certs/company.pem
    wait_timeout: 7200
    login_db: ml

- name: Let PostgreSQL itself make the first copy
  postgresml.distributed.pgml_subscription:
    name: shop_ml_1
    publications: [shop]
    source:
      host: 10.0.0.5
      db: shop
      user: pgml_distributor
      password: "{{ pgml_distributor_password }}"
    initial_copy: native
    login_db: ml

- name: Take in what was added to the publications
  postgresml.distributed.pgml_subscription:
    name: shop_ml_1
    login_db: ml

- name: Subscribe to one more publication, and disable the subscription on errors (PostgreSQL 15 or later)
  postgresml.distributed.pgml_subscription:
    name: shop_ml_1
    publications: [shop, shop_events]
    disable_on_error: true
    login_db: ml

- name: Pause
  postgresml.distributed.pgml_subscription:
    name: shop_ml_1
    enabled: false
    login_db: ml

- name: Remove the subscription and its slot
  postgresml.distributed.pgml_subscription:
    name: shop_ml_1
    state: absent
    login_db: ml
  register: removal

- name: Settle what an unreachable upstream left behind, once it is back
  postgresml.distributed.pgml_subscription:
    name: shop_ml_1
    state: absent
    slot_name: "{{ item.slot_name }}"
    source:
      host: 10.0.0.5
      db: shop
      user: pgml_distributor
      password: "{{ pgml_distributor_password }}"
    login_db: ml
  loop: "{{ removal.debts | default([]) }}"

- name: Say once how to log in
  module_defaults:
    group/postgresml.distributed.pgml:
      login_unix_socket: /var/run/postgresql
      login_db: ml
  block:
    - name: Make room for the workers of one subscription
      postgresml.distributed.pgml_settings:
        minimum:
          max_logical_replication_workers: 6
          max_worker_processes: 16

    - name: Subscribe without waiting for the first copy
      postgresml.distributed.pgml_subscription:
        name: shop_ml_1
        publications: [shop]
        source:
          host: 10.0.0.5
          db: shop
          user: pgml_distributor
          password: "{{ pgml_distributor_password }}"
        wait: false
"""

RETURN = r"""
changes:
  description: What was done, or would be done in check mode, in words and in order.
  type: list
  elements: str
  returned: success
  sample:
    - Create subscription "shop_ml_1" to publication shop of database "shop" at 10.0.0.5:5432 as user "pgml_distributor"
subscription:
  description:
    - The subscription as it is now, or would be.
    - Beside the keys below it has one for each of O(binary), O(streaming), O(synchronous_commit), O(two_phase),
      O(disable_on_error), O(password_required), O(run_as_owner), O(origin) and O(failover). For a subscription that is
      created only those that were given, later all that the server knows.
  type: dict
  returned: when O(state=present)
  contains:
    name:
      description: Its name.
      type: str
      sample: shop_ml_1
    publications:
      description: The publications that it subscribes to.
      type: list
      elements: str
      sample: [shop]
    source:
      description: The connection string as libpq keywords, without the password. Empty when it may not be read.
      type: dict
      sample: {"host": "10.0.0.5", "port": "5432", "dbname": "shop", "user": "pgml_distributor"}
    slot_name:
      description: Its slot on the upstream.
      type: str
      sample: shop_ml_1
    enabled:
      description: Whether it replicates.
      type: bool
      sample: true
    owner:
      description: Its owner; null when it is created without O(owner).
      type: str
      sample: postgres
initial_copy:
  description: How the first copy is made.
  type: dict
  returned: when the subscription is created
  contains:
    method:
      description: One of the choices of O(initial_copy).
      type: str
      sample: snapshot
    reason:
      description: Why it is not V(snapshot), or what was gone on with; null otherwise.
      type: str
      sample: null
    tables:
      description: The tables, with the keys C(name) and C(rows).
      type: list
      elements: dict
      returned: with V(snapshot)
      sample: [{"name": "public.orders", "rows": 812345}]
    rows:
      description: Rows that were copied.
      type: int
      returned: with V(snapshot)
      sample: 812345
    seconds:
      description: Seconds that it took until the subscription was enabled.
      type: float
      returned: with V(snapshot)
      sample: 12.345
debts:
  description:
    - Slots that stay on the upstream and hold back its WAL until somebody drops them.
    - To settle them, run the module for each with O(state=absent), O(source) and O(slot_name).
  type: list
  elements: dict
  returned: when O(state=absent) could not drop them
  contains:
    slot_name:
      description: Name of the slot.
      type: str
      sample: shop_ml_1
    host:
      description: Host of the upstream; null when it is not known.
      type: str
      sample: 10.0.0.5
    port:
      description: Port of the upstream.
      type: int
      sample: 5432
    database:
      description: Database of the slot; null when it is not known.
      type: str
      sample: shop
tables:
  description:
    - Tables and their states, of V(waiting), V(copying), V(copied), V(catching up) and V(ready). After a timeout all of the
      subscription's, otherwise those that are not ready.
  type: dict
  returned: when it fails because the first copy can't go on or takes too long
  sample: {"public.orders": "copying", "public.users": "ready"}
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
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import subscribing, subscription


def main() -> None:
    task.run(subscription.OPTIONS, subscribing.manage)


if __name__ == "__main__":
    main()
