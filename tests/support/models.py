# SPDX-License-Identifier: GPL-3.0-or-later
"""A database whose models are shipped, and one of a server that predicts with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from tests.support import pgml
from tests.support.cluster import Cluster
from tests.support.pair import Place, pair_of

MODULE = "pgml_models"
FEATURE = 5.0
"""What all are asked for: a model of y = slope * x gives five times the slope."""


@dataclass
class Shop:
    """Both databases."""

    trainer: Place
    server: Place

    def train(self, slope: float, project: str = "price", **options: Any) -> int:
        return pgml.train(self.trainer.cluster, self.trainer.database, project, slope, **options)

    def options(self, **params: Any) -> dict[str, Any]:
        source = self.trainer.cluster.source(self.trainer.database)
        return {"source": source, "trust_source": True, **params}

    def ship(self, **params: Any) -> dict[str, Any]:
        return self.server.converge(MODULE, **self.options(**params))

    def bring(self, **params: Any) -> dict[str, Any]:
        """Ship, where other tests have shown check mode and the second run."""
        return self.server.ok(MODULE, **self.options(**params))

    def refused(self, **params: Any) -> str:
        before = rows(self.server), rows(self.trainer)
        message = self.server.refused(MODULE, **self.options(**params))
        assert (rows(self.server), rows(self.trainer)) == before
        return message

    def served(self, project: str = "price") -> float:
        """What a session is served that has not asked before."""
        return predicted(self.server, project)


@contextmanager
def shop_of(trainer: Cluster, server: Cluster, version: str | None = None) -> Iterator[Shop]:
    """Two fresh databases with the extension; *version* is that of the one that predicts, if not the newest."""
    with pair_of(trainer, server) as pair:
        pgml.create_extension(trainer, pair.source.database)
        pgml.create_extension(server, pair.target.database, version)
        # Ids that are equal on both sides would hide that they are mixed up.
        pair.target.sql(
            "ALTER SEQUENCE pgml.projects_id_seq RESTART 100; ALTER SEQUENCE pgml.models_id_seq RESTART 200"
        )
        yield Shop(pair.source, pair.target)


def predicted(place: Place, what: str | int) -> float:
    with closing(place.cluster.connect(place.database)) as session:
        return round(pgml.predict(session, what, FEATURE), 3)


def rows(place: Place) -> dict[str, list[Any]]:
    """All that the extension's tables hold."""
    tables = ("projects", "snapshots", "models", "files", "deployments")
    return {table: place.sql(f"SELECT t::text FROM pgml.{table} AS t ORDER BY id") for table in tables}


def models(place: Place) -> list[int]:
    return [row[0] for row in place.sql("SELECT id FROM pgml.models ORDER BY id")]
