#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# Copyright (c) 2026, the postgresml.distributed contributors

from __future__ import annotations

DOCUMENTATION = r"""
module: pgml_progress_info
short_description: Tell what is on its way into a database at this moment
version_added: 1.0.0
author:
  - The postgresml.distributed contributors (@postgresml)
description:
  - Tells how far a run of M(postgresml.distributed.pgml_dump_restore), M(postgresml.distributed.pgml_subscription) or
    M(postgresml.distributed.pgml_fdw) has come that fills this database, which tables are being copied, on which ones indexes are
    built, and how many tables of each subscription have their first copy.
  - Those modules show it by themselves while they run. This is for everybody else who wants to know.
  - It asks the target only, never the source, and gives up rather than wait for a lock.
attributes:
  platform:
    support: full
notes:
  - PostgreSQL 13 doesn't tell of copies, so that RV(copies) is empty there.
seealso:
  - module: postgresml.distributed.pgml_dump_restore
  - module: postgresml.distributed.pgml_subscription
  - module: postgresml.distributed.pgml_fdw
  - name: Progress reporting
    description: PostgreSQL's page on the views that are read.
    link: https://www.postgresql.org/docs/current/progress-reporting.html
extends_documentation_fragment:
  - postgresml.distributed.attributes
  - postgresml.distributed.attributes.action_group
  - postgresml.distributed.attributes.info_module
  - postgresml.distributed.login
"""

EXAMPLES = r"""
- name: See what is on its way
  postgresml.distributed.pgml_progress_info:
    login_db: ml
  become: true
  become_user: postgres
  register: progress

- name: Show how much of it is there
  ansible.builtin.debug:
    msg: "{{ progress.run.bytes_done | human_readable }} of {{ progress.run.bytes | human_readable }}"
  when: progress.run is not none
"""

RETURN = r"""
run:
  description: The run of a module that fills the database, null when there is none.
  type: dict
  returned: success
  contains:
    phase:
      description:
        - What it does. V(define) is before the first row, V(copy) brings rows and builds indexes, V(attach) ties tables to each
          other, V(exchange) and V(clean) put them in their place. V(validate) checks foreign keys, and V(catch up) applies what
          the source has written meanwhile.
      type: str
      sample: copy
    process:
      description: The process of its session.
      type: int
      sample: 4711
    seconds:
      description: For how long it has been at work.
      type: int
      sample: 42
    tables:
      description: How many tables it fills.
      type: int
      sample: 8
    tables_done:
      description: Of how many of them all rows are there.
      type: int
      sample: 3
    bytes:
      description:
        - How many bytes of rows are to come, as the source keeps them, without indexes. Tables of which only some rows come are
          left out by M(postgresml.distributed.pgml_fdw). With the phase V(catch up) it is bytes of WAL.
      type: int
      sample: 1027604480
    bytes_done:
      description: How many of them are there, of copies that are done.
      type: int
      sample: 432013312
    rows:
      description: How many rows it has brought, in copies that are done.
      type: int
      sample: 2400000
copies:
  description: The tables that are being copied.
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: Its name, as in SQL.
      type: str
      sample: public.orders
    bytes:
      description: How many bytes of rows are to come, null when that isn't known.
      type: int
      sample: 314572800
    bytes_done:
      description: How many of them are there, estimated by the number of rows where that is possible.
      type: int
      sample: 125829120
    rows:
      description: How many rows are there.
      type: int
      sample: 1200000
builds:
  description: The tables on which indexes are being built, once for each of those.
  type: list
  elements: dict
  returned: success
  contains:
    table:
      description: The table's name, as in SQL.
      type: str
      sample: public.orders
    step:
      description: What PostgreSQL says that it does.
      type: str
      sample: "building index: scanning table"
    done:
      description: How many blocks or rows this step is through with.
      type: int
      sample: 4000
    total:
      description: How many it has, 0 when that isn't known.
      type: int
      sample: 10000
subscriptions:
  description: The subscriptions of the database.
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: Its name.
      type: str
      sample: pgml_shop
    tables:
      description: How many tables it has.
      type: int
      sample: 8
    ready:
      description: How many of them have their first copy and replicate.
      type: int
      sample: 7
    unready:
      description: The states of the others.
      type: dict
      sample: {"public.orders": "copying"}
option:
  description: The options with which no connection could be opened, V(login).
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
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import progress


def main() -> None:
    task.run(progress.OPTIONS, progress.manage, info=True)


if __name__ == "__main__":
    main()
