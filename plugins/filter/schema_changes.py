# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the role pgml_schema_change asks of its statements."""

from __future__ import annotations

from typing import Any, Callable

from ansible_collections.postgresml.distributed.plugins.plugin_utils import mentions, rollout


class FilterModule:
    """The filters' entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "schema_change_mentions": mentions.schema_change_mentions,
            "schema_change_plan": rollout.schema_change_plan,
        }
