# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the role pgml_foreign asks of its variables."""

from __future__ import annotations

from typing import Any, Callable

from ansible_collections.postgresml.distributed.plugins.plugin_utils import imports


class FilterModule:
    """The filter's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"foreign_imports": imports.foreign_imports}
