#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# Copyright (c) 2026, the postgresml.distributed contributors

from __future__ import annotations

DOCUMENTATION = r"""
module: pgml_preflight_info
short_description: Look for what stands against a distribution, before anything is changed
version_added: 1.0.0
author:
  - The postgresml.distributed contributors (@postgresml)
description:
  - Looks at one server for what a run of the playbook C(distribute.yml) would meet there, all of it at once. It only reads.
  - What it finds is a result and no failure, see RV(findings). A server that can't be reached is a finding, too.
  - What takes two servers to be seen, such as disk space on one for tables of the other, is told by the filter
    P(postgresml.distributed.preflight_findings#filter) from the results of both.
  - What the run mends by itself is no finding. That is the role and the password that replicas connect with, its lines in
    C(pg_hba.conf), databases of the replica that are missing, and settings whose restart is allowed.
options:
  as_upstream:
    description:
      - What is to come from this server.
    type: dict
    suboptions:
      distributor:
        description:
          - The role that replicas connect as. The run makes it.
        type: str
        required: true
      subscriptions:
        description:
          - How many subscriptions are to take from here. Each needs three slots and three senders, for itself and for the two
            tables that it copies at a time, and three senders stay free.
        type: int
        default: 0
      max_slot_wal_keep_size:
        description:
          - The bound of the WAL that slots hold back. It matters on a managed service alone, where the run can't set it.
        type: str
      restart:
        description:
          - Whether the run may restart the server, so that settings that are too low are no finding.
        type: bool
        default: false
      managed:
        description:
          - Whether the server is a managed service, on which settings and C(pg_hba.conf) are not changed from here.
        type: bool
        default: false
      replica_identity:
        description:
          - What is done about tables without a replica identity, as in M(postgresml.distributed.pgml_publication).
        type: str
        choices: [require, full, ignore]
        default: require
      distributions:
        description:
          - The distributions. Tables of one that is in O(as_replica.distributions), too, come here in the same run and are not
            looked for.
        type: list
        elements: dict
        default: []
        suboptions:
          name:
            description: &name
              - Name of the distribution.
            type: str
            required: true
          strategy:
            description: &strategy
              - How it is moved. With V(auto), which is yet to be chosen, only that is looked at which all strategies need.
            type: str
            required: true
            choices: [auto, dump, fdw, logical]
          database:
            description:
              - Database that it is in.
            type: str
            required: true
          tables:
            description: &tables
              - Its tables, as a name or as a mapping with C(name), C(columns) and C(where). Without tables and schemas the whole
                database is meant.
            type: list
            elements: raw
            default: []
          schemas:
            description: &schemas
              - Its schemas.
            type: list
            elements: str
            default: []
          exclude_tables:
            description:
              - Tables that are left out.
            type: list
            elements: str
            default: []
          publication:
            description: &publication
              - Name of its publication. By default C(pgml_) and the distribution's name.
            type: str
          slots:
            description:
              - The slots by which subscriptions are to take it.
            type: list
            elements: str
            default: []
  as_replica:
    description:
      - What is to come to this server.
    type: dict
    suboptions:
      restart:
        description:
          - Whether the run may restart the server, so that settings that are too low are no finding.
        type: bool
        default: true
      managed:
        description:
          - Whether the server is a managed service, on which settings are not changed from here.
        type: bool
        default: false
      jobs:
        description:
          - How many workers a first copy has. By default as many as there are processors, up to 8.
        type: int
      distributions:
        description:
          - The distributions.
        type: list
        elements: dict
        default: []
        suboptions:
          name:
            description: *name
            type: str
            required: true
          strategy:
            description: *strategy
            type: str
            required: true
            choices: [auto, dump, fdw, logical]
          database:
            description:
              - Database that it goes to.
            type: str
            required: true
          tables:
            description: *tables
            type: list
            elements: raw
            default: []
          schemas:
            description: *schemas
            type: list
            elements: str
            default: []
          publication:
            description: *publication
            type: str
          subscription:
            description:
              - Name of its subscription. By default C(pgml_) and the distribution's name.
            type: str
          slot:
            description:
              - Name of the subscription's slot on the upstream.
            type: str
          server:
            description:
              - Name of its foreign server. By default the distribution's name.
            type: str
          initial_copy:
            description:
              - How the rows that are there come, as in M(postgresml.distributed.pgml_subscription). With V(none) tables may hold
                rows.
            type: str
            choices: [snapshot, native, none]
          upstream:
            description:
              - The inventory's name of the host that it comes from.
            type: str
            required: true
          through:
            description:
              - The inventory's name of the host that hands it on, if that is another one.
            type: str
          source:
            description:
              - The database that it comes from, as it is reached from where the module runs. Without it none is reached.
            type: dict
            suboptions:
              host:
                description:
                  - Name or address of the source's server.
                type: str
                required: true
              port:
                description:
                  - Port of the source's server.
                type: int
                default: 5432
              db:
                description:
                  - Database on the source.
                type: str
                required: true
              user:
                description:
                  - Role to log in as at the source.
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
                  - Whether the connection to the source uses TLS and what it checks.
                type: str
                choices: [allow, disable, prefer, require, verify-ca, verify-full]
              ca_cert:
                description:
                  - File with the certificates of the authorities that may have signed the source's certificate.
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
                  - More libpq keywords.
                type: dict
                default: {}
  asked_at:
    description:
      - When the controller asked, in seconds since 1970. Clocks of servers that can't reach one another yet are compared by it.
    type: float
attributes:
  platform:
    platforms: postgresql
notes:
  - Its statements wait for locks no longer than a second. Whether tables of the replica hold rows, and how large the upstream's
    are, takes C(ACCESS SHARE) for a moment.
  - Row filters that are new to a publication are spelled by the server on empty tables, in a transaction that is rolled back.
  - Disk space is seen of a server on the host where the module runs, by a role that may read its settings.
seealso:
  - plugin: postgresml.distributed.preflight_findings
    plugin_type: filter
extends_documentation_fragment:
  - postgresml.distributed.attributes
  - postgresml.distributed.attributes.info_module
  - postgresml.distributed.attributes.action_group
  - postgresml.distributed.login
"""

EXAMPLES = r"""
- name: See whether two tables can be replicated from here
  postgresml.distributed.pgml_preflight_info:
    as_upstream:
      distributor: pgml_distributor
      subscriptions: 1
      distributions:
        - name: shop
          strategy: logical
          database: shop
          tables: [public.users, public.orders]
          slots: [pgml_shop_ml_1]
    login_db: postgres
  become: true
  become_user: postgres
  register: upstream

- name: See whether this server can take them
  postgresml.distributed.pgml_preflight_info:
    as_replica:
      distributions:
        - name: shop
          strategy: logical
          database: ml
          tables: [public.users, public.orders]
          slot: pgml_shop_ml_1
          upstream: prod
          source:
            host: shop.example.com
            db: shop
            user: pgml_distributor
            password: "{{ vault_distributor_password }}"
    login_db: postgres
  become: true
  become_user: postgres
  register: replica

- name: Stop at errors
  ansible.builtin.assert:
    that: replica.findings | selectattr('severity', 'eq', 'error') | length == 0
    fail_msg: "{{ replica.findings | map(attribute='message') | join(' ') }}"
"""

RETURN = r"""
findings:
  description: What stands against the run, in no order of importance.
  type: list
  elements: dict
  returned: success
  contains:
    kind:
      description: >-
        What it is about, V(unreachable), V(version), V(standby), V(setting), V(limit), V(distributor), V(database), V(table),
        V(replica_identity), V(name), V(extension), V(server) or V(unseen).
      type: str
    severity:
      description: V(error) where the run would fail, V(warning) where it would go on.
      type: str
    message:
      description: What is wrong, and what to do.
      type: str
  sample:
    - kind: database
      severity: error
      message: 'Database "shopp" of distribution shop does not exist: create it, or correct its name.'
facts:
  description:
    - What other servers are held against. All but V(endpoint) and V(sources) are left out where the server can't be reached.
  type: dict
  returned: success
  contains:
    endpoint:
      description: The database that was asked.
      type: str
    system_identifier:
      description: What tells the cluster from every other.
      type: str
    started:
      description: When the server was started, which tells it from a clone.
      type: str
    version:
      description: The server's C(server_version_num).
      type: int
    is_in_recovery:
      description: Whether it is a standby.
      type: bool
    clock:
      description: >-
        RV(ignore:server), the server's clock in seconds since 1970; RV(ignore:ahead), by how many seconds it is ahead of this
        host's; RV(ignore:round_trip), how long the question took; and O(asked_at).
      type: dict
    distributor_exists:
      description: Of an upstream, whether its distributor exists.
      type: bool
    sets_password:
      description: Of an upstream, whether the run gives the distributor its password.
      type: bool
    free_connections:
      description: Of an upstream, how many sessions the distributor could have.
      type: int
    slots:
      description: Of an upstream, which of the slots are there.
      type: list
      elements: str
    tables:
      description: Of an upstream, the tables of each distribution.
      type: dict
    sizes:
      description: Of an upstream, the bytes of these tables with indexes, of each distribution whose rows are moved.
      type: dict
    published:
      description: Of an upstream, the distributions whose publication is there as it is asked for.
      type: list
      elements: str
    wal_space:
      description: Of an upstream, as M(postgresml.distributed.pgml_publication) returns it.
      type: int
    arriving:
      description: Of a replica, what each distribution would meet there, and whether it is new.
      type: list
      elements: dict
    settled:
      description: >-
        Of a replica, whether all distributions come by subscriptions whose tables are ready, and
        M(postgresml.distributed.pgml_schema), M(postgresml.distributed.pgml_subscription) and
        M(postgresml.distributed.pgml_distribution) would change nothing and warn of nothing, nor would settings be raised.
      type: bool
    space:
      description: Of a replica, a directory and the bytes free in it, for each database; nothing where they can't be seen.
      type: dict
    jobs:
      description: Of a replica, how many workers a first copy has.
      type: int
    sources:
      description: >-
        The databases that distributions come from. RV(ignore:reached) tells whether a session could be opened;
        RV(ignore:answered), whether a server was there at all; RV(ignore:message), what was said;
        RV(ignore:system_identifier), which server that is; RV(ignore:ahead), by how many seconds its clock is ahead of this
        server's.
      type: list
      elements: dict
distributions:
  description:
    - What is remembered of distributions in each database of O(as_replica.distributions), by the names of databases and
      distributions. Nothing where the database isn't there, or has never received any.
  type: dict
  returned: success
  sample:
    ml:
      shop:
        strategy: logical
        automatic: true
        upstream: prod
"""

from ansible_collections.postgresml.distributed.plugins.module_utils import task
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import preflight


def main() -> None:
    task.run(preflight.OPTIONS, preflight.look, info=True)


if __name__ == "__main__":
    main()
