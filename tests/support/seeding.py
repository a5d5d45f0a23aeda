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
    lines = copies.definitions(pair.source, "--no-publications", "--no-owner", "--no-privileges")
    pair.sql_target("\n".join(line for line in lines if line != "SET transaction_timeout = 0;"))
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
    left = residue(pair)
    assert left == []
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
    left = residue(pair)
    assert left == []
    ours = "SELECT oid FROM pg_database WHERE datname = current_database()"
    assert pair.sql_target(f"SELECT subname FROM pg_subscription WHERE subdbid = ({ours})") == []
    message: str = result["msg"]
    return message


@contextlib.contextmanager
def unchanged_definitions(pair: Pair) -> Iterator[None]:
    """Compare what pg_dump and the catalogs say of the target before and after."""
    before = definitions(pair.target)
    assert len(before) > 10, "nothing is compared"
    yield
    changed = copies.changed_lines(before, definitions(pair.target))
    assert not changed, changed


def definitions(place: Place) -> list[str]:
    """What pg_dump says of a database, and what it doesn't say of indexes, constraints and their triggers."""
    return copies.definitions(place, "--no-subscriptions") + rows(place, _CATALOGS)


_CATALOGS = """
    SELECT 'index', concat_ws(' / ', indexrelid::regclass, pg_get_indexdef(indexrelid), i.indisvalid, i.indisclustered,
        i.indisreplident, i.indimmediate, x.reltablespace, obj_description(indexrelid, 'pg_class'), pg_get_userbyid(x.relowner),
        (SELECT string_agg(attstattarget::text, ',' ORDER BY attnum) FROM pg_attribute WHERE attrelid = indexrelid),
        (SELECT string_agg(inhparent::regclass::text, ',') FROM pg_inherits WHERE inhrelid = indexrelid)) AS what
    FROM pg_index AS i JOIN pg_class AS x ON x.oid = indexrelid JOIN pg_class AS c ON c.oid = indrelid
    WHERE c.relkind IN ('r', 'p') AND indexrelid >= 16384
    UNION ALL SELECT 'constraint', concat_ws(' / ', conrelid::regclass, conname, pg_get_constraintdef(k.oid), convalidated,
        conislocal, coninhcount, obj_description(k.oid, 'pg_constraint'))
    FROM pg_constraint AS k WHERE conrelid >= 16384 AND NOT (contype = 'f' AND conparentid <> 0)
    UNION ALL SELECT 'trigger', concat_ws(' / ', tgrelid::regclass, tgfoid::regproc, tgtype, tgenabled) FROM pg_trigger
"""


def residue(pair: Pair, seconds: float = 10) -> list[str]:
    """What is left of a first copy after some seconds: what the target remembers, sessions on either server."""
    end = time.monotonic() + seconds
    while (left := _sessions(pair)) and time.monotonic() < end:
        time.sleep(0.05)
    remembered = pair.sql_target("SELECT to_regnamespace('pgml_distributed')::text")
    return left + [name for (name,) in remembered if name]


def _sessions(pair: Pair) -> list[str]:
    """The clients of the two databases that have a name, which those of the test don't."""
    return [
        f"{place.database}: {row}"
        for place in (pair.source, pair.target)
        for (row,) in place.sql(
            "SELECT format('%s %s %s', application_name, state, left(query, 200)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND backend_type = 'client backend' AND application_name <> ''"
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
