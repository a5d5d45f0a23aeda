# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What playbook status makes of what its hosts told."""

from __future__ import annotations

from typing import Any, Callable, Mapping

from ansible.errors import AnsibleFilterError
from ansible.utils.unsafe_proxy import wrap_var
from ansible_collections.postgresml.distributed.plugins.plugin_utils import status, status_page


def status_report(*args: Any, **options: Any) -> Any:
    """What servers say of themselves holds no templates, whatever it looks like."""
    return wrap_var(status.status_report(*args, **options))


def status_verdict(report: Mapping[str, Any]) -> bool:
    """Raise the report's summary when it is degraded.

    As a keyword of a task that the controller itself evaluates, that ends ansible-playbook with exit code 1, where a failed
    task would make it 2.
    """
    if report["level"] == 1:
        raise AnsibleFilterError(report["summary"])
    return True


def _page(report: Mapping[str, Any]) -> Any:
    return wrap_var(status_page.status_page(report))


class FilterModule:
    """The filters' entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"status_page": _page, "status_report": status_report, "status_verdict": status_verdict}
