#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# Copyright (c) 2026, the postgresml.distributed contributors

from __future__ import annotations

DOCUMENTATION = r"""
module: pgml_physical_seed
short_description: Put a physical copy of the upstream's cluster in a replica's place, and subscribe it
version_added: 1.0.0
author:
  - The postgresml.distributed contributors (@postgresml)
description:
  - Has a replica's first copy come as files, with the indexes that are in them, which takes little more than
    C(pg_basebackup) does. The copy is made a cluster of its own that subscribes to the upstream, and takes the place of the
    replica's whole cluster.
  - It takes three steps, and between them somebody has to stop and start the replica's server, which the role
    P(postgresml.distributed.pgml_logical#role) does. O(state=prepared) makes the copy ready while the replica's server
    runs, O(state=exchanged) exchanges the two directories while it is stopped, and O(state=finished) waits until the new
    cluster streams and removes the old one.
  - The copy is made with C(pg_basebackup). Then slots are created on the upstream, and the copy replays WAL up to the place
    at which the last of them begins, in a server of its own that nobody else can reach. What came along and must not run
    there is taken out of it, namely all subscriptions, without a word to their publishers, publications, slots, prepared
    transactions, and scheduled jobs of C(pg_cron) and C(pgagent). The subscriptions of O(subscriptions) begin where the
    slots do.
  - The replica keeps its configuration, port, C(pg_hba.conf), keys and certificates, which means all files in its data
    directory that aren't the cluster's. It keeps its roles too, with their passwords, memberships and settings. The roles
    of the upstream lose C(LOGIN) and password, the distributor is dropped, and the system identifier is a new one.
options:
  subscriptions:
    description:
      - What the replica is to subscribe to, one for each of its databases. Needed except with O(state=looked) and
        O(state=absent).
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description:
          - Name of the subscription, exact.
        type: str
        required: true
      publications:
        description:
          - Exact names of its publications. Each has to be C(FOR ALL TABLES).
        type: list
        elements: str
        required: true
      slot_name:
        description:
          - Name of its slot on the upstream, which must not exist.
        type: str
        required: true
      source_db:
        description:
          - Its database on the upstream. By default that of O(source).
        type: str
      db:
        description:
          - Its database on the replica, to which the copied one is renamed. By default the same name.
        type: str
      copied_slot_name:
        description:
          - The slot from which the same subscription of the replica in O(copy_from) reads. Needed with O(copy_from).
        type: str
  source:
    description:
      - The upstream, whose cluster is copied unless O(copy_from) says otherwise, and which has the slots. It becomes the
        connection string of the subscriptions, as in M(postgresml.distributed.pgml_subscription). Needed as
        O(subscriptions) is.
      - O(source.user) needs C(REPLICATION), may connect to the databases of O(subscriptions), and needs a line for the
        database C(replication) in the upstream's C(pg_hba.conf).
    type: dict
    suboptions: &source
      host:
        description:
          - Name or address of the server.
        type: str
        required: true
      port:
        description:
          - Port of the server.
        type: int
        default: 5432
      db:
        description:
          - A database of it.
        type: str
        required: true
      user:
        description:
          - Role to log in as.
        type: str
        required: true
      password:
        description:
          - Password of that role.
        type: str
      passfile:
        description:
          - Pass file that holds the password.
        type: path
      ssl_mode:
        description:
          - Whether the connection uses TLS and what it checks.
        type: str
        choices: [allow, disable, prefer, require, verify-ca, verify-full]
      ca_cert:
        description:
          - File with the certificates of the authorities that may have signed the server's certificate.
        type: path
        aliases: [ssl_rootcert]
      ssl_cert:
        description:
          - File with the client's certificate.
        type: path
      ssl_key:
        description:
          - File with the key of that certificate.
        type: path
      connect_params:
        description:
          - More libpq keywords. They win over the options above, and must not hold a password.
        type: dict
        default: {}
  copy_from:
    description:
      - A replica of the upstream that has the same subscriptions already, and is copied in its place, so that the upstream
        is not read twice. Its databases are those of O(subscriptions[].db).
    type: dict
    suboptions: *source
  create_subscriber:
    description:
      - A superuser of the upstream, as whom C(pg_createsubscriber) of PostgreSQL 17 or later brings the copy to where the
        slots begin. Up to PostgreSQL 18 it has to create publications for that, which are dropped again. C(pg_hba.conf) has to
        let it in to the databases of O(subscriptions), and to C(replication).
      - Without it the module does the same itself, on all versions, for which O(source.user) suffices.
    type: dict
    suboptions:
      user:
        description:
          - Name of the role.
        type: str
        required: true
      password:
        description:
          - Password of the role.
        type: str
  replace_cluster:
    description:
      - Whether the replica's cluster may hold tables of users, which are gone then.
    type: bool
    default: false
  keep_old_cluster:
    description:
      - Whether O(state=finished) leaves the old cluster, in the directory of the same name with C(.pgml_old) behind it.
    type: bool
    default: false
  undistributed:
    description:
      - What becomes of the copied databases that are none of O(subscriptions).
    type: str
    choices: [drop, keep]
    default: drop
  login_roles:
    description:
      - Roles of the upstream that keep C(LOGIN) and their passwords.
    type: list
    elements: str
    default: []
  tablespaces:
    description:
      - For each tablespace of the cluster that is copied, by name, an empty or new directory on the replica.
    type: dict
    default: {}
  max_rate:
    description:
      - How much may be read of the cluster that is copied in a second, as C(pg_basebackup) takes it, in kilobytes or with
        the suffix C(M). With it the checkpoint before is spread as the server's own are, so that the copy begins some
        minutes later.
    type: str
  restore_command:
    description:
      - Command that fetches a file of WAL from an archive, as the setting of that name. With it the server that is copied
        sends only what is not archived yet.
    type: str
  wal_space:
    description:
      - Bytes that are free where the upstream keeps its WAL, as in M(postgresml.distributed.pgml_subscription).
    type: int
  required:
    description:
      - Whether O(state=prepared) fails when something stands against the copy. Otherwise it warns, and returns
        RV(phase=impossible).
    type: bool
    default: true
  service:
    description:
      - How the replica's server is stopped and started, which O(state=looked) returns when a run was interrupted meanwhile.
    type: dict
    default: {}
  wait_timeout:
    description:
      - How many seconds O(state=finished) waits for each subscription to have caught up. After that it fails, and both
        clusters stay.
    type: int
    default: 3600
  state:
    description:
      - V(looked) changes nothing and returns how far a run came, or that the replica subscribes. It doesn't ask a server where a
        run was interrupted, nor without O(subscriptions).
      - V(prepared) makes the copy ready, or goes on with one that is.
      - V(exchanged) puts it in the place of the old cluster, whose server is stopped.
      - V(finished) waits until the new cluster streams, and removes the old one.
      - V(absent) gives up what isn't finished, and drops its slots. The server has to be stopped when the copy is in its
        place already, which the old cluster then takes again.
    type: str
    choices: [looked, prepared, exchanged, finished, absent]
    default: prepared
attributes:
  check_mode:
    support: full
    details:
      - An earlier task of the same play might open the way to the upstream. So a server that can't be reached is a warning
        in check mode.
  diff_mode:
    support: partial
    details:
      - The diff lists what would be copied and subscribed.
  idempotent:
    support: full
notes:
  - It runs on the host of the replica's server, as the owner of its files or as root, and logs in to the replica as a
    superuser. The programs of the server's own version are needed, C(initdb), C(pg_basebackup), C(pg_ctl) and C(pg_resetwal).
  - All that stands against a copy is looked for first, and reported at once. Both servers need to be of one major version,
    processor, C library and ICU, with the upstream's locales and its extensions' files on the replica. The replica must
    have no subscriptions, slots or standbys, and the data directory must not be a file system of its own. There has to be
    disk for both clusters.
  - On the upstream a base backup takes a checkpoint, two senders, and a temporary slot that keeps WAL until the copy has
    it. No lock is taken on tables. With O(max_rate) it reads no faster than that. The creation of a slot waits at most 10
    seconds for transactions that write, and blocks nobody.
  - A run that is killed leaves the old cluster or the new one in the replica's place, never a part. A process that outlives
    it drops the slots when nobody goes on with them, at once when the copy isn't ready, and after 10 minutes when it is.
    The next run goes on, or begins anew. The file C(.pgml_physical_seed_PORT.json) in the home of the account that the task
    runs as remembers that, without passwords.
  - While it is made, the copy lies beside the data directory, in a directory of the same name with C(.pgml_seed) behind it.
    Lines on standard error show how far it is.
  - Unlogged tables come without rows and are named in a warning. All else in the databases comes along, such as large
    objects, which logical replication doesn't keep up, and user mappings with their passwords.
seealso:
  - module: postgresml.distributed.pgml_subscription
  - name: pg_basebackup
    description: PostgreSQL's page on the program.
    link: https://www.postgresql.org/docs/current/app-pgbasebackup.html
  - name: pg_createsubscriber
    description: PostgreSQL's page on the program.
    link: https://www.postgresql.org/docs/current/app-pgcreatesubscriber.html
extends_documentation_fragment:
  - postgresml.distributed.attributes
  - postgresml.distributed.attributes.action_group
  - postgresml.distributed.login
"""

EXAMPLES = r"""
- name: Copy the cluster beside the one that runs
  postgresml.distributed.pgml_physical_seed: &copy
    subscriptions:
      - name: pgml_shop
        publications: [pgml_shop]
        slot_name: pgml_shop_ml_1
        db: ml
    source:
      host: 10.0.0.5
      db: shop
      user: pgml_distributor
      password: "{{ pgml_distributor_password }}"
    replace_cluster: true
    max_rate: 100M
    login_db: postgres
  become: true
  become_user: postgres
  register: copy

- name: Put it in the old one's place
  when: copy.phase == 'ready'
  become: true
  block:
    - name: Stop the server
      ansible.builtin.service:
        name: postgresql@17-main
        state: stopped

    - name: Exchange the directories
      postgresml.distributed.pgml_physical_seed:
        state: exchanged
        login_db: postgres
      become_user: postgres

    - name: Start the server
      ansible.builtin.service:
        name: postgresql@17-main
        state: started

    - name: Wait until it streams, and remove the old cluster
      postgresml.distributed.pgml_physical_seed:
        <<: *copy
        state: finished
      become_user: postgres

- name: Give up a copy that is not in its place
  postgresml.distributed.pgml_physical_seed:
    source:
      host: 10.0.0.5
      db: shop
      user: pgml_distributor
      password: "{{ pgml_distributor_password }}"
    state: absent
    login_db: postgres
  become: true
  become_user: postgres
"""

RETURN = r"""
phase:
  description:
    - What the replica is at. V(nothing) was begun. A copy is V(ready), or V(in_place) of the old cluster, or is in its
      place while its slots are V(lost), for which only O(state=absent) is left. V(done) says that the replica subscribes
      and nothing is left to do, and V(impossible) that it can't have a copy.
    - In check mode V(ready) is what O(state=prepared) would bring about.
  type: str
  returned: success
  sample: ready
problems:
  description: What stands against a copy, a sentence each.
  type: list
  elements: str
  returned: when something does
  sample:
    - The replica has subscription shop, whose slots would stay on the upstream for ever: remove it first.
service:
  description: The option O(service) of the run that was interrupted.
  type: dict
  returned: when one was
  sample: {}
files:
  description: How far the copy of the files is.
  type: dict
  returned: with O(state=looked), while one is made
  contains:
    run:
      description: The run that makes it.
      type: str
      sample: 4711-1767225600000000000
    bytes:
      description: How many bytes the upstream's databases have, as far as the user may ask.
      type: int
      sample: 1500000000000
    bytes_done:
      description: How many of them are there.
      type: int
      sample: 432013312000
    complete:
      description: Whether all files are there.
      type: bool
      sample: false
taken_away:
  description: What came along with the copy and was taken out of it or put to rest.
  type: list
  elements: str
  returned: when a copy was made
  sample:
    - Drop copied publication pgml_shop in database shop
changes:
  description: What was done, or would be.
  type: list
  elements: str
  returned: success
  sample:
    - Copy the cluster of database "shop" at 10.0.0.5:5432 as user "pgml_distributor"
    - Create subscription "pgml_shop" to publication pgml_shop in database ml of the copy, with slot "pgml_shop_ml_1"
diff:
  description: The same, in diff mode.
  type: dict
  returned: in diff mode
  sample:
    before: ""
    after: |
      Copy the cluster of database "shop" at 10.0.0.5:5432 as user "pgml_distributor"
option:
  description: Which options a failed connection was made of, C(login) or C(source).
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
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import physical_seed


def main() -> None:
    task.run(physical_seed.OPTIONS, physical_seed.manage)


if __name__ == "__main__":
    main()
