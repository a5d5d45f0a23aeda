# SPDX-License-Identifier: GPL-3.0-or-later
"""What somebody else has made in schema pgml_distributed runs with nobody's rights but their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.pair import Pair, Place

WORDS = "whose functions would run with the rights of this session: drop it, or give it to the role that logs in."
CHANGE = {"change": "0123456789ab", "total": 1, "statements": [{"number": 1, "sql": "ALTER TABLE t ADD more int"}]}


@pytest.fixture
def mallory(pair: Pair) -> Iterator[str]:
    """A role that may make schemas on both servers."""
    pair.both("CREATE TABLE t (id int PRIMARY KEY)")
    pair.publish("t")
    name = f"mallory_{pair.name}"
    for place in (pair.source, pair.target):
        place.sql(f"CREATE ROLE {name}; GRANT CREATE ON DATABASE {place.database} TO {name}")
    yield name
    for place in (pair.source, pair.target):
        place.sql(f"DROP OWNED BY {name}; DROP ROLE {name}")


def trap(place: Place, name: str, table: str) -> None:
    """Let *name* make the schema, and *table* with a trigger."""
    place.sql(
        f"SET ROLE {name}; CREATE SCHEMA pgml_distributed; CREATE FUNCTION pgml_distributed.run() RETURNS trigger"
        " LANGUAGE plpgsql AS $$ BEGIN RAISE 'mine'; END $$;"
        f" CREATE TABLE pgml_distributed.{table} (change text, statement int, PRIMARY KEY (change, statement));"
        f" CREATE TRIGGER run BEFORE INSERT ON pgml_distributed.{table} FOR EACH ROW EXECUTE FUNCTION pgml_distributed.run()"
    )


def test_what_fills_a_replica_refuses_it(pair: Pair, mallory: str) -> None:
    trap(pair.target, mallory, "progress")
    for module, options in (
        ("pgml_dump_restore", {"source": pair.source.cluster.source(pair.source.database), "all_tables": True}),
        ("pgml_fdw", {"server": "shop", "source": pair.endpoint}),
        ("pgml_subscription", {"name": pair.name, "publications": ["pub"], "source": pair.endpoint}),
    ):
        message = pair.target.refused(module, **options)
        assert f'is role "{mallory}"\'s, ' in message and message.endswith(WORDS), message
    assert pair.sql_source("SELECT FROM pg_replication_slots WHERE database = current_database()") == []


@pytest.mark.parametrize("state", ["prepared", "present", "finished"])
def test_a_schema_change_refuses_it_on_the_primary(pair: Pair, mallory: str, state: str) -> None:
    trap(pair.source, mallory, "pub_gate")
    options = {"publication": "pub", "state": state, **CHANGE, "together": state == "present"}
    assert pair.source.refused("pgml_schema_change", **options).endswith(WORDS)
    # Its schema being given to the login makes no friend of what is in it.
    pair.sql_source("ALTER SCHEMA pgml_distributed OWNER TO postgres")
    assert pair.source.refused("pgml_schema_change", **options).endswith(WORDS)


def test_a_schema_change_refuses_it_on_a_replica(pair: Pair, mallory: str) -> None:
    pair.subscribe()
    trap(pair.target, mallory, "pub_passed")
    options = {"subscription": pair.name, "source": pair.endpoint, "state": "prepared", **CHANGE}
    pair.source.ok("pgml_schema_change", publication="pub", state="prepared", **CHANGE)
    assert pair.target.refused("pgml_schema_change", **options).endswith(WORDS)
