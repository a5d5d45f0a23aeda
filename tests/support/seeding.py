# SPDX-License-Identifier: GPL-3.0-or-later
"""First copies under a slot's snapshot: made, and searched for what they left behind."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from tests.support import copies
from tests.support.pair import Pair, Place, wait_for

KEEPER = "postgresml.distributed: keeps a snapshot"


def mirror(pair: Pair) -> None:
    """Give the target the source's definitions, as pg_dump writes them, and let the distributor read the source."""
    pair.sql_target("\n".join(copies.definitions(pair.source, "--no-publications", "--no-owner", "--no-privileges")))
    pair.grant()


def publish_all(pair: Pair, **options: str) -> None:
    """Publish every table, those whose rows can't be changed afterwards too."""
    settings = ", ".join(f"{name} = {value}" for name, value in options.items())
    pair.sql_source("CREATE PUBLICATION pub FOR ALL TABLES" + (f" WITH ({settings})" if settings else ""))


def seed(pair: Pair, **params: Any) -> dict[str, Any]:
    """Subscribe with a copy under the slot's snapshot; the target's definitions are the same after it, and nothing else is
    left than the subscription and its slot."""
    with unchanged_definitions(pair):
        result = pair.subscribe(**params)
    assert result["initial_copy"]["method"] == "snapshot", result["initial_copy"]
    assert residue(pair) == []
    assert pair.name in pair.slots() and not any("_sync_" in name for name in pair.slots())
    return result


def not_seeded(pair: Pair, **params: Any) -> str:
    """Subscribe in vain and return the message: the target has its definitions and no rows, and neither side has more than
    before."""
    before = pair.source.fingerprint()
    with unchanged_definitions(pair):
        result = pair.target.run("pgml_subscription", **pair.subscription(**params))
    assert result.get("failed"), result
    assert pair.source.fingerprint() == before
    assert residue(pair) == []
    assert (
        pair.sql_target(
            "SELECT * FROM pg_subscription AS s JOIN pg_database AS d ON d.oid = s.subdbid"
            " WHERE d.datname = current_database()"
        )
        == []
    )
    message: str = result["msg"]
    return message


@contextlib.contextmanager
def unchanged_definitions(pair: Pair) -> Iterator[None]:
    """Compare what pg_dump says of the target before and after."""
    before = copies.definitions(pair.target, "--no-subscriptions")
    assert len(before) > 10, "nothing is compared"
    yield
    changed = copies.changed_lines(before, copies.definitions(pair.target, "--no-subscriptions"))
    assert not changed, changed


def residue(pair: Pair, seconds: float = 10) -> list[str]:
    """What is left of a first copy after some seconds: what the target remembers, sessions on either server."""
    end = time.monotonic() + seconds
    while (left := _sessions(pair)) and time.monotonic() < end:
        time.sleep(0.05)
    remembered = pair.sql_target("SELECT to_regnamespace('pgml_distributed')::text")
    return left + [name for (name,) in remembered if name]


def _sessions(pair: Pair) -> list[str]:
    """Clients of the two databases but those of the test, and of the subscription that streams."""
    return [
        f"{place.database}: {row}"
        for place in (pair.source, pair.target)
        for (row,) in place.sql(
            "SELECT format('%s %s %s', application_name, state, left(query, 200)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
    ]


def rows(place: Place, query: str) -> list[str]:
    """What a query returns, whatever the order."""
    return sorted(row for (row,) in place.sql(f"SELECT q::text FROM ({query}) AS q"))


def assert_equal(pair: Pair, query: str, target: str | None = None) -> None:
    """The query, or another one at the target, returns the same rows on both sides, and some."""
    here = rows(pair.source, query)
    assert here, "nothing is compared"
    assert rows(pair.target, target or query) == here


def assert_streams(pair: Pair, change: str, query: str, target: str | None = None) -> None:
    """A change of the source, which the query shows, arrives."""
    before = rows(pair.source, query)
    pair.sql_source(change)
    after = rows(pair.source, query)
    assert after != before, "nothing was changed"
    wait_for(lambda: rows(pair.target, target or query) == after, 20, f"{change} to arrive")
