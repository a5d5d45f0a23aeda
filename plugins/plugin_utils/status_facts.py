# SPDX-License-Identifier: GPL-3.0-or-later
"""What pgml_replication_info told of each host, the bounds of what is good, and how both are written for people."""

from __future__ import annotations

import re
from typing import Any, Callable, Mapping, NamedTuple

from ansible.errors import AnsibleFilterError
from ansible_collections.postgresml.distributed.plugins.plugin_utils import request

GOOD, DEGRADED, BROKEN = 0, 1, 2
VERDICTS = ("good", "degraded", "broken")
"""By level, which is also the exit code of the playbook."""
_TIMES = {"": 1, "s": 1, "min": 60, "h": 3600, "d": 86400}
_SIZES = {"": 1, "b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30, "tb": 1 << 40}


class Limits(NamedTuple):
    """From where on something is not good any more."""

    lag_bytes: int = 256 << 20
    lag_seconds: float = 300
    snapshot_age: float = 172800
    """seconds"""
    wal_hours: float = 1


def limits(given: Mapping[str, Any]) -> Limits:
    """The bounds of the variables pgml_status_*. Those that aren't set are None, or empty before ansible-core 2.19."""
    readers: dict[str, Callable[[str, Any], Any]] = {
        "lag_bytes": _size,
        "lag_seconds": _duration,
        "snapshot_age": _duration,
        "wal_hours": _number,
    }
    return Limits(**{name: readers[name](name, value) for name, value in given.items() if value not in (None, "")})


def _size(name: str, value: Any) -> int:
    return int(_measured(name, value, _SIZES, "bytes, or a number with kB, MB, GB or TB, such as 256MB"))


def _duration(name: str, value: Any) -> float:
    return _measured(name, value, _TIMES, "seconds, or a number with s, min, h or d, such as 24h")


def _measured(name: str, value: Any, units: Mapping[str, int], wanted: str) -> float:
    match = re.match(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*\Z", str(value).lower())
    if not match or match[2] not in units:
        raise _unreadable(name, value, wanted)
    return float(match[1]) * units[match[2]]


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise _unreadable(name, value, "a number of hours") from None


def _unreadable(name: str, value: Any, wanted: str) -> AnsibleFilterError:
    return AnsibleFilterError("pgml_status_{0} is {1}: use {2}.".format(name, value, wanted))


class Host:
    """A server of the inventory as it was found."""

    def __init__(self, name: str, found: Mapping[str, Any]) -> None:
        self.name = name
        self.upstream: str | None = found.get("upstream")
        """None of the primary"""
        self._result = found.get("result") or {}

    @property
    def asked(self) -> bool:
        """Whether it was looked at, which --limit may prevent."""
        return bool(self._result)

    @property
    def reached(self) -> bool:
        return "server" in self._result

    @property
    def problem(self) -> str:
        """Why nothing is known of it."""
        if not self.asked:
            return "It was not looked at."
        text = " ".join(str(self._result.get("msg") or "It can't be reached.").split())
        return text if text[-1] in ".!?" else text + "."

    @property
    def server(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._result.get("server") or {}
        return found

    def database(self, name: str) -> Mapping[str, Any]:
        """What is in a database; nothing, if there is no such database."""
        return _named(self._result.get("databases") or (), name)

    @property
    def databases(self) -> list[Mapping[str, Any]]:
        return list(self._result.get("databases") or ())

    def slot(self, name: str) -> Mapping[str, Any]:
        return _named(self.server.get("slots") or (), name)

    def hours_left(self, slot: Mapping[str, Any]) -> float | None:
        """Until the WAL that is kept for a slot meets a limit, or fills the disk, if the slot stays where it is; None when no
        limit is known, nothing is written, or nothing is kept."""
        if not slot.get("retained_bytes"):
            return None
        room = [each for each in (slot.get("safe_wal_bytes"), self.server.get("wal_space")) if each is not None]
        rate = self.server.get("wal_rate") or 0
        return round(min(room) / rate / 3600, 1) if room and rate else None


def _named(entries: Any, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next((each for each in entries if each["name"] == name), {})
    return found


class Case(NamedTuple):
    """One distribution at one replica."""

    name: str
    strategy: str
    source_database: str
    target_database: str
    tables: tuple[str, ...]
    """those that are listed, as the module writes names"""
    schemas: tuple[str, ...]
    replica: Host
    upstream: Host
    limits: Limits

    @property
    def held(self) -> Mapping[str, Any]:
        """What the replica's database has."""
        return self.replica.database(self.target_database)

    @property
    def offered(self) -> Mapping[str, Any]:
        """What the upstream publishes."""
        database = self.target_database if self.upstream.upstream else self.source_database
        publications = self.upstream.database(database).get("publications") or ()
        return _named(publications, request.object_name(self.name))

    @property
    def subscription(self) -> Mapping[str, Any]:
        return _named(self.held.get("subscriptions") or (), request.object_name(self.name))

    @property
    def slot_name(self) -> str:
        return str(self.subscription.get("slot_name") or request.slot_name(self.name, self.replica.name))

    @property
    def slot(self) -> Mapping[str, Any]:
        return self.upstream.slot(self.slot_name)


class Finding(NamedTuple):
    """How it stands, and what to do about it."""

    state: str
    level: int
    error: str | None = None
    remedy: str | None = None
    warnings: tuple[str, ...] = ()
    """each of them makes good degraded"""


def size_text(value: float | None) -> str:
    """Bytes for people."""
    if value is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1024:
            return (
                "{0:.0f} {1}".format(value, unit) if unit == "B" or value >= 10 else "{0:.1f} {1}".format(value, unit)
            )
        value /= 1024
    return "{0:.1f} TB".format(value)


def time_text(seconds: float | None) -> str:
    """A duration for people."""
    if seconds is None:
        return "-"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return "{0:.0f} {1}".format(seconds / size, unit)
    return "{0:.0f} s".format(seconds)


def count_text(number: int, singular: str, plural: str | None = None) -> str:
    """A number with the noun that fits it."""
    return "{0:,} {1}".format(number, singular if number == 1 else plural or singular + "s")
