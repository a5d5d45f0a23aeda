# SPDX-License-Identifier: GPL-3.0-or-later
"""Definitions that a first copy has set aside are left to it."""

from __future__ import annotations

import pytest
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.seeding import Seeding

from tests.support.pair import Pair

TABLES = """
CREATE TABLE users (id int PRIMARY KEY, email text UNIQUE);
CREATE INDEX ON users (lower(email));
CREATE TABLE orders (id int PRIMARY KEY, user_id int REFERENCES users, day int) PARTITION BY RANGE (id);
CREATE TABLE orders_low PARTITION OF orders FOR VALUES FROM (0) TO (100);
CREATE TABLE orders_high PARTITION OF orders FOR VALUES FROM (100) TO (200);
CREATE INDEX ON orders (day);
"""
ROWS = """
INSERT INTO users SELECT i, i::text FROM generate_series(1, 50) AS i;
INSERT INTO orders SELECT id, id, id FROM users
"""
ATTACHED = (
    "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'"
    " UNION ALL SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace ORDER BY 1"
)


@pytest.mark.parametrize("via_root", [False, True])
def test_what_a_first_copy_has_set_aside_comes_back_with_its_end(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, via_root: bool
) -> None:
    """Brought between two runs, it would be in the way of the second."""
    pair.both(TABLES)
    pair.source.sql(ROWS)
    whole = pair.target.sql(ATTACHED)
    pair.publish("users", "orders", via_partition_root=via_root)
    schema = {"source": pair.endpoint, "tables": ["users", "orders"]}
    assert not pair.target.ok("pgml_schema", **schema)["changed"]

    def die(_run: Seeding) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Seeding, "fill", die)
        pair.subscribe()
    assert len(pair.target.sql(ATTACHED)) < len(whole)
    assert not pair.target.converge("pgml_schema", **schema)["changed"]
    assert pair.subscribe()["initial_copy"]["reason"] == "a run that died had begun it"
    assert pair.target.sql(ATTACHED) == whole
    assert not pair.target.ok("pgml_schema", **schema)["changed"]
    pair.arrived("orders")
    pair.target.sql("DROP INDEX users_lower_idx")
    assert pair.target.converge("pgml_schema", **schema)["changes"] == ["Create index users_lower_idx of public.users"]
    pair.unsubscribe()
