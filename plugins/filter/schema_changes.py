# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the role pgml_schema_change asks of its statements."""

from __future__ import annotations

import functools
from typing import Any, Callable, Mapping

from ansible.errors import AnsibleFilterError
from ansible.utils.unsafe_proxy import wrap_var
from ansible_collections.postgresml.distributed.plugins.plugin_utils import mentions, rollout


def _told(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what *function* refuses instead of raising it: of an exception, Ansible shows more of its own words than of ours.

    What it returns holds SQL, and no templates, whatever that looks like.
    """

    @functools.wraps(function)
    def filtered(*args: Any, **options: Any) -> Any:
        try:
            return wrap_var(function(*_plain(args), **_plain(options)))
        except AnsibleFilterError as error:
            return {"problem": str(error)}

    return filtered


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
            "schema_change_mentions": _told(mentions.schema_change_mentions),
            "schema_change_plan": _told(rollout.schema_change_plan),
        }
