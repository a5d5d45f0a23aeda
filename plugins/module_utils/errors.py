# SPDX-License-Identifier: GPL-3.0-or-later
"""What can go wrong, in terms a user can act on. task.py turns these into the module's one failure."""

from __future__ import annotations

from typing import Any


class DistributedError(Exception):
    """A sentence that says what is wrong, where, and what to do; *details* become return values.

    Neither may hold a secret.
    """

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details = details


class Refused(DistributedError):
    """What was asked for can't or mustn't be done."""


class Missing(Refused):
    """Tables or schemas that are named aren't there."""


class Changed(Refused):
    """What is read changed at the moment when that began; the next try may meet a quieter one."""


class Unreachable(DistributedError):
    """No session could be opened, or it was lost; *option* is C(login) or C(source)."""


class TurnedAway(Unreachable):
    """The server was reached and let no session in: by its pg_hba.conf, for a password, a role, a database or its limits."""


class TooOld(Refused):
    """The server's version is older than what this collection works with."""


class ServerRefused(DistributedError):
    """PostgreSQL refused a statement; *sqlstate* is its error code."""


class TimedOut(DistributedError):
    """A wait ended before what it waited for had come."""
