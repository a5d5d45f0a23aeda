#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# Copyright (c) 2026, the postgresml.distributed contributors

from __future__ import annotations

DOCUMENTATION = r"""
module: pgml_settings
short_description: Raise server settings to what is needed, and never lower them
version_added: 1.0.0
author:
  - The postgresml.distributed contributors (@postgresml)
description:
  - Compares settings of the server with the least values that are needed, raises those that are lower with C(ALTER SYSTEM), and
    reloads the configuration.
  - Settings that are high enough stay as they are, wherever they come from.
  - Lists of libraries keep what they have, in its order, and get what they lack behind it.
  - It never restarts the server. RV(pending_restart) names the settings that have too little until somebody does.
options:
  minimum:
    description:
      - The least value of each setting, by its name in C(pg_settings).
      - Settings of type integer take whole numbers, alone in the setting's own unit, or with one of the memory units C(B), C(kB),
        C(MB), C(GB) and C(TB), such as V(50GB).
      - C(wal_level) takes V(minimal), V(replica) and V(logical), in this order.
      - C(shared_preload_libraries), C(session_preload_libraries) and C(local_preload_libraries) take lists of names that have to
        be among their values. A library that is there by a path counts as there.
      - Other settings that are not integers are not possible.
      - C(max_slot_wal_keep_size) bounds the WAL that slots hold back. Its default V(-1), no bound, counts as not set, hence is
        replaced by the bound that is asked for.
      - A setting that the server doesn't have is refused, such as C(max_active_replication_origins) before PostgreSQL 18, where
        C(max_replication_slots) stands for it.
    type: dict
    required: true
  remove:
    description:
      - Names of libraries that must not be among the values of C(shared_preload_libraries), C(session_preload_libraries) or
        C(local_preload_libraries), a list for each of these settings. Others stay, in their order.
      - What remains is written with C(ALTER SYSTEM), or the entry of C(postgresql.auto.conf) is taken away where the other files
        say the same.
    type: dict
    default: {}
  write:
    description:
      - Whether settings may be changed. With V(false) it fails when one is too low, naming all that are. This is for managed
        services, whose settings are changed elsewhere.
    type: bool
    default: true
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details:
      - The diff holds the values that the next start would have.
  idempotent:
    support: partial
    details:
      - A role that may not read C(pg_file_settings) sees only the values that run. Until the restart it writes again what waits
        for one.
notes:
  - Nothing on the server waits for this, and it takes no locks on tables.
  - The login role has to be a superuser, or since PostgreSQL 15 to be granted C(ALTER SYSTEM) on the settings, and C(EXECUTE) on
    the function C(pg_reload_conf). PostgreSQL 17 and later refuse it when C(allow_alter_system) is off.
  - The values go to C(postgresql.auto.conf), which wins over C(postgresql.conf). Options on the server's command line win over
    both and are not seen.
  - O(login_db) may be any database.
seealso:
  - module: community.postgresql.postgresql_alter_system
  - name: Settings of logical replication
    description: PostgreSQL's page on how many slots, senders and workers are needed.
    link: https://www.postgresql.org/docs/current/logical-replication-config.html
extends_documentation_fragment:
  - postgresml.distributed.attributes
  - postgresml.distributed.attributes.action_group
  - postgresml.distributed.login
"""

EXAMPLES = r"""
- name: Make room for four subscriptions on the upstream
  postgresml.distributed.pgml_settings:
    minimum:
      wal_level: logical
      max_wal_senders: 12
      max_replication_slots: 12
      max_slot_wal_keep_size: 50GB
    login_db: postgres
  become: true
  become_user: postgres
  register: settings

- name: Say what waits for a restart
  ansible.builtin.debug:
    msg: "Restart PostgreSQL for {{ settings.pending_restart | join(', ') }}"
  when: settings.pending_restart | length > 0

- name: Have a library loaded at the next start, whatever else is
  postgresml.distributed.pgml_settings:
    minimum:
      shared_preload_libraries: [pg_stat_statements]
    login_db: postgres

- name: Check a managed service, and change nothing
  postgresml.distributed.pgml_settings:
    minimum:
      wal_level: logical
      max_replication_slots: 10
    write: false
    login_host: shop.example.com
    login_user: admin
    login_password: "{{ vault_admin_password }}"
    login_db: postgres

- name: Say once how to log in
  module_defaults:
    group/postgresml.distributed.pgml:
      login_unix_socket: /var/run/postgresql
      login_db: postgres
  block:
    - name: Make room for the workers of a replica
      postgresml.distributed.pgml_settings:
        minimum:
          max_logical_replication_workers: 8
          max_worker_processes: 16
"""

RETURN = r"""
changes:
  description: What was done, or would be done in check mode, in words and in order.
  type: list
  elements: str
  returned: success
  sample:
    - Raise max_replication_slots from 10 to 12
    - Reload the configuration
pending_restart:
  description:
    - The settings of O(minimum) that have too little until the server is restarted, and those of O(remove) that have too much.
  type: list
  elements: str
  returned: success
  sample: [max_replication_slots]
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
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import settings


def main() -> None:
    task.run(settings.OPTIONS, settings.manage)


if __name__ == "__main__":
    main()
