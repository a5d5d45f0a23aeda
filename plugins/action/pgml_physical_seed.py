# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# Copyright (c) 2026, the postgresml.distributed contributors

from __future__ import annotations

from ansible_collections.postgresml.distributed.plugins.plugin_utils import progress_text
from ansible_collections.postgresml.distributed.plugins.plugin_utils.progress_watch import Outlook, WatchedAction


class ActionModule(WatchedAction):
    """Runs the module of this name, and shows its progress, of which a server knows nothing."""

    def _outlook(self) -> Outlook:
        return Outlook("postgresml.distributed.pgml_physical_seed", {"state": "looked"}, progress_text.files_line)
