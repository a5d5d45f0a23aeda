# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the playbooks tell before anything is changed."""

from __future__ import annotations

from typing import Any, Callable

from ansible_collections.postgresml.distributed.plugins.plugin_utils import preflight, request


class FilterModule:
    """The filter's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "preflight_findings": preflight.findings,
            "preflight_replica": request.as_replica,
            "preflight_upstream": request.as_upstream,
        }
