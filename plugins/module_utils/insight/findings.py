# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands against a distribution, a sentence each, and settings and limits held against what is needed."""

from __future__ import annotations

import contextlib
from typing import Any, Iterator, Mapping, NamedTuple

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import (
    Refused,
    ServerRefused,
    Unreachable,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import settings

ERROR, WARNING = "error", "warning"


class Finding(NamedTuple):
    """Something that a run would meet."""

    kind: str
    severity: str
    message: str
    """what is wrong, and what to do"""


class Permission(NamedTuple):
    """What the run may do about settings."""

    managed: bool
    """whether settings are changed elsewhere"""
    restart: bool
    variable: str
    """the variable that allows a restart"""


class Findings:
    """All that was found on a server."""

    def __init__(self) -> None:
        self.found: list[Finding] = []

    def error(self, kind: str, message: str) -> None:
        self.found.append(Finding(kind, ERROR, message))

    def warn(self, kind: str, message: str) -> None:
        self.found.append(Finding(kind, WARNING, message))

    @contextlib.contextmanager
    def refusals(self, kind: str) -> Iterator[None]:
        """Make findings of what is refused in the block; what a server doesn't let us see is no obstacle yet."""
        try:
            yield
        except Unreachable as error:
            self.error("unreachable", str(error))
        except Refused as error:
            self.error("replica_identity" if "replica_identity" in error.details else kind, str(error))
        except ServerRefused as error:
            self.warn("unseen", "Not everything could be looked at. {0}".format(error))

    def hold_settings(self, session: Session, minimum: Mapping[str, Any], permission: Permission) -> bool:
        """See that settings have what is needed, or get it in the run; returns whether they have it."""
        lacking = [each for each in settings.read(session, minimum, {}) if each.differs or each.waits]
        for setting in lacking:
            words = "{0} is {1} and has to be {2}".format(
                setting.name, settings.shown(setting.running), minimum[setting.name]
            )
            if permission.managed:
                self.error("setting", words + "; the server is managed, so set it where its service is.")
            elif setting.waits and not permission.restart:
                remedy = "restart the server yourself"
                if setting.differs:
                    remedy = "run ALTER SYSTEM SET {0} = {1} and ".format(setting.name, minimum[setting.name]) + remedy
                words += ", which takes a restart: {0}, or allow it with {1}: true."
                self.error("setting", words.format(remedy, permission.variable))
        return not lacking

    def hold_limit(self, kind: str, what: str, free: int, needed: int, remedy: str) -> None:
        """See that there is as much left as is needed."""
        if free < needed:
            words = "{0}: {1:,} left, and {2:,} needed: {3}."
            self.error(kind, words.format(what, max(free, 0), needed, remedy))
