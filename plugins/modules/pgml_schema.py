#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
x
"""
EXAMPLES = r"""
"""
RETURN = r"""
"""

from ansible_collections.postgresml.distributed.plugins.module_utils import task
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import schema


def main() -> None:
    task.run(schema.OPTIONS, schema.manage)


if __name__ == "__main__":
    main()
