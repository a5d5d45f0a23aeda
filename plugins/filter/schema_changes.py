# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the role pgml_schema_change asks of its statements."""

from __future__ import annotations

import functools
import importlib
from typing import Any, Callable, Mapping

from ansible.errors import AnsibleFilterError
from ansible.utils.unsafe_proxy import wrap_var

_PLACE = "ansible_collections.postgresml.distributed.plugins.plugin_utils."


def _told(module: str, name: str, *args: Any, **options: Any) -> Any:
    """Return what function *name* refuses instead of raising it: of an exception, Ansible shows more of its words than of ours.

    What it returns holds SQL, and no templates, whatever that looks like. Its module brings PostgreSQL's grammar along, and
    Ansible loads this file with any filter of ours, so it is imported by those that need it only.
    """
    function = getattr(importlib.import_module(_PLACE + module), name)
    try:
        return wrap_var(function(*_plain(args), **_plain(options)))
    except AnsibleFilterError as error:
        return {"problem": str(error)}


def _plain(value: Any) -> Any:
    """*value* with strings that are nothing but that: Ansible's own kinds of strings are none for the parser."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value


class FilterModule:
    """The filters' entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "schema_change_mentions": functools.partial(_told, "mentions", "schema_change_mentions"),
            "schema_change_plan": functools.partial(_told, "rollout", "schema_change_plan"),
        }
