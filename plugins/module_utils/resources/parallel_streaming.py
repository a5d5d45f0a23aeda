# SPDX-License-Identifier: GPL-3.0-or-later
"""Versions of PostgreSQL whose parallel workers may lose transactions are kept from having any."""

from __future__ import annotations

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import capacity
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session, version_text
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import subscription
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.subscription import Subscription
from ansible_collections.postgresml.distributed.plugins.module_utils.task import Task


def without_losses(task: Task, session: Session | None, future: Subscription) -> Subscription:
    """*future* without C(streaming = parallel), where that may lose transactions."""
    if session is None or not capacity.loses_parallel(session.version):
        return future
    words = "PostgreSQL {0}, which may lose transactions that it applies in parallel".format(
        version_text(session.version)
    )
    if future.options.get("streaming") == "parallel":
        raise Refused("The server of {0} is {1}: update it, or set streaming to on.".format(session.endpoint, words))
    if "streaming" in future.options or session.version < subscription.PARALLEL_BY_DEFAULT_SINCE:
        return future
    task.warn("The replica is {0}: streaming is set to on.".format(words))
    return future._replace(options={**future.options, "streaming": "on"})
