# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# Copyright (c) 2026, the postgresml.distributed contributors

from __future__ import annotations


class ModuleDocFragment:
    """What modules promise to Ansible. A module adds C(support) to each, where there is no default here."""

    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description:
      - Predicts V(changed) and RV(ignore:changes) in check mode, and leaves the servers as they are.
  diff_mode:
    description:
      - Returns both sides of what changes, or would change, in diff mode. Passwords are left out of it.
  idempotent:
    description:
      - A second run with the same options changes nothing, provided that nobody else changed the servers in between.
  platform:
    description:
      - What the module manages.
    support: full
    platforms: postgresql
"""

    ACTION_GROUP = r"""
options: {}
attributes:
  action_group:
    description:
      - Takes the options that C(group/postgresml.distributed.pgml) has in C(module_defaults).
    support: full
    membership:
      - postgresml.distributed.pgml
"""

    # To be used beside the standard fragment.
    INFO_MODULE = r"""
options: {}
attributes:
  check_mode:
    support: full
    details:
      - It only reads, in check mode and outside of it.
  diff_mode:
    support: N/A
    details:
      - It only reads.
  idempotent:
    support: full
    details:
      - It only reads.
"""
