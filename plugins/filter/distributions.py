# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the playbooks ask of pgml_distributions."""

from __future__ import annotations

from typing import Any, Callable

from ansible_collections.postgresml.distributed.plugins.plugin_utils import cascade, request


class FilterModule:
    """The filters' entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "cascade_levels": cascade.levels,
            "cascade_problems": cascade.problems,
            "distribution_grants": request.grants,
            "distribution_problems": request.problems,
            "distribution_slot": request.slot_name,
            "distributions_left": request.left,
            "distributions_of": request.of_strategy,
            "distributions_resolved": request.resolved,
            "onward": cascade.onward,
            "onward_grants": cascade.grants,
        }
