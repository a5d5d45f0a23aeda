#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# Copyright (c) 2026, the postgresml.distributed contributors

from __future__ import annotations

DOCUMENTATION = r"""
module: pgml_distribution
short_description: Remember on a replica how a distribution comes to it
version_added: 1.0.0
author:
  - The postgresml.distributed contributors (@postgresml)
description:
  - Notes in the replica's database by which strategy the tables of a distribution come to it, from which host, and whether
    somebody chose the strategy or C(auto) did. So a later run can tell a distribution that was asked to come another way from
    one that always came this way, and no strategy is changed unasked.
  - It moves no rows. Run it once a strategy is wired and the other one is removed.
  - It is remembered in the table C(distributions) of the schema C(pgml_distributed), which the other modules use too. Both are
    gone when the last distribution is forgotten and no other module remembers anything there.
options:
  name:
    description:
      - Name of the distribution, at most 63 bytes long.
    type: str
    required: true
  strategy:
    description:
      - How its tables come, by M(postgresml.distributed.pgml_dump_restore), M(postgresml.distributed.pgml_fdw) or
        M(postgresml.distributed.pgml_subscription). Needed with O(state=present).
    type: str
    choices: [dump, fdw, logical]
  automatic:
    description:
      - Whether the strategy was chosen from measurements, and not by somebody.
    type: bool
    default: false
  upstream:
    description:
      - The inventory's name of the host that they come from. Needed with O(state=present).
    type: str
  state:
    description:
      - Whether the distribution is remembered. V(absent) forgets it, and leaves its tables and whatever fills them alone.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode:
    support: full
    details:
      - A missing database is taken for one that an earlier task would create.
  diff_mode:
    support: full
  idempotent:
    support: full
notes:
  - The login role needs C(CREATE) on the database the first time, and owns what is made. It refuses a schema or table
    C(pgml_distributed) that belongs to somebody else than that role or a superuser.
  - O(state=absent) takes an C(ACCESS EXCLUSIVE) lock on the table C(distributions) when its last row goes, and waits for that
    at most 3 seconds. No other table is locked.
seealso:
  - module: postgresml.distributed.pgml_dump_restore
  - module: postgresml.distributed.pgml_fdw
  - module: postgresml.distributed.pgml_subscription
extends_documentation_fragment:
  - postgresml.distributed.attributes
  - postgresml.distributed.attributes.action_group
  - postgresml.distributed.login
"""

EXAMPLES = r"""
- name: Remember that the shop's tables are streamed to this replica
  postgresml.distributed.pgml_distribution:
    name: shop
    strategy: logical
    upstream: prod-db
    login_db: ml
  become: true
  become_user: postgres

- name: Remember what strategy auto has chosen
  postgresml.distributed.pgml_distribution:
    name: events
    strategy: dump
    automatic: true
    upstream: ml-1
    login_db: ml

- name: Forget it, after its tables were taken away
  postgresml.distributed.pgml_distribution:
    name: shop
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
    - Remember that distribution "shop" comes from prod-db by logical
distribution:
  description: What is remembered now, or would be.
  type: dict
  returned: when O(state=present)
  contains:
    name:
      description: Its name.
      type: str
      sample: shop
    strategy:
      description: How its tables come.
      type: str
      sample: logical
    automatic:
      description: Whether the strategy was chosen from measurements.
      type: bool
      sample: false
    upstream:
      description: The inventory's name of the host that they come from.
      type: str
      sample: prod-db
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
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import distribution


def main() -> None:
    task.run(distribution.OPTIONS, distribution.manage, **distribution.CONSTRAINTS)


if __name__ == "__main__":
    main()
