# SPDX-License-Identifier: GPL-3.0-or-later
"""A distribution between two databases, and what status tells of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.postgresml.distributed.plugins.plugin_utils import status

from tests.support.pair import Pair, Place, wait_for

MODULE = "pgml_replication_info"
HOST = "ml-1"


class Watched:
    """One distribution of C(public.t) from host C(prod) to HOST, named like the source's database."""

    def __init__(self, pair: Pair, **entry: Any) -> None:
        self.pair = pair
        self.source, self.target = pair.source, pair.target
        self.name = self.source.database
        self.object = f"pgml_{self.name}"
        self.slot = f"{self.object}_ml_1"
        databases = {"database": self.source.database, "target_database": self.target.database}
        self.entry = {"name": self.name, **databases, "tables": ["public.t"], **entry}
        pair.both("CREATE TABLE t (id int PRIMARY KEY, x text)")
        self.source.sql("INSERT INTO t SELECT n, repeat('x', 100) FROM generate_series(1, 1000) AS n")

    def publish(self) -> None:
        self.pair.publish("t", name=self.object)

    def subscribe(self, **params: Any) -> None:
        options = {"name": self.object, "publications": [self.object], "slot_name": self.slot, **params}
        self.pair.subscribe(**options)

    def wire(self, **params: Any) -> None:
        """Publish, subscribe, and wait until nothing is left to do."""
        self.publish()
        self.subscribe(**params)
        self.pair.arrived("t")

    def gather(self, trainer: str = "", server: str = "") -> dict[str, Any]:
        """What the playbook collects of both hosts."""
        return {
            "prod": {"upstream": None, "result": look(self.source), "models_database": trainer},
            HOST: {"upstream": "prod", "result": look(self.target), "models_database": server},
        }

    def report(self, *entries: Any, **bounds: Any) -> dict[str, Any]:
        return status.status_report(self.gather(), list(entries or [self.entry]), bounds)

    def judged(self, **bounds: Any) -> dict[str, Any]:
        """What is told of the distribution."""
        (entry,) = self.report(**bounds)["distributions"]
        return entry

    def becomes(self, state: str, **bounds: Any) -> dict[str, Any]:
        """Wait for a state, and return what is told then."""
        told: dict[str, Any] = {}

        def there() -> bool:
            told.update(self.judged(**bounds))
            return bool(told["state"] == state)

        wait_for(there, 60, f"state {state}, not {told.get('state')}")
        return told


def look(place: Place) -> dict[str, Any]:
    """What the module returns, or says, changing nothing."""
    return place.run(MODULE, databases=[place.database], sample_seconds=0.1)


def unchanged(place: Place, action: Callable[[], Any]) -> Any:
    """Do *action* and see that *place* is as before."""
    before = place.fingerprint()
    result = action()
    assert place.fingerprint() == before
    return result
