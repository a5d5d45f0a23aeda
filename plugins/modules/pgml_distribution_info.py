#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# Copyright (c) 2026, the postgresml.distributed contributors

from __future__ import annotations

DOCUMENTATION = r"""
module: pgml_distribution_info
short_description: Read how distributions come to a replica
version_added: 1.0.0
author:
  - The postgresml.distributed contributors (@postgresml)
description:
  - Reads what M(postgresml.distributed.pgml_distribution) has remembered in the databases of a replica.
options:
  databases:
    description:
      - Names of the databases, exact. One that doesn't exist remembers nothing.
    type: list
    elements: str
    required: true
notes:
  - It reads one table of schema C(pgml_distributed) in each database.
seealso:
  - module: postgresml.distributed.pgml_distribution
  - module: postgresml.distributed.pgml_replication_info
extends_documentation_fragment:
  - postgresml.distributed.attributes
  - postgresml.distributed.attributes.action_group
  - postgresml.distributed.attributes.info_module
  - postgresml.distributed.login
"""

EXAMPLES = r"""
- name: Read how distributions come here
  postgresml.distributed.pgml_distribution_info:
    databases: [ml]
  become: true
  become_user: postgres
  register: known
"""

RETURN = r"""
distributions:
  description: What is remembered, by database and by the distribution's name.
  type: dict
  returned: success
  sample:
    ml:
      shop:
        strategy: logical
        automatic: true
        upstream: prod-db
option:
  description: The options with which no connection could be opened, V(login).
  type: str
  returned: when the server can't be reached
  sample: login
"""

from ansible_collections.postgresml.distributed.plugins.module_utils import task
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import distribution


def main() -> None:
    task.run(distribution.INFO_OPTIONS, distribution.tell, info=True)


if __name__ == "__main__":
    main()
