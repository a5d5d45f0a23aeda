# SPDX-License-Identifier: GPL-3.0-or-later
"""Every state that status can report of copies, of foreign tables and of models, brought about on real servers."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.postgresml.distributed.plugins.plugin_utils import status

from tests.support import pgml
from tests.support.models import Shop, shop_of
from tests.support.pair import Pair
from tests.support.watched import HOST, Watched, look


def test_copies(pair: Pair) -> None:
    watched = Watched(pair, strategy="dump")
    assert watched.judged()["state"] == "not wired"
    pair.target.sql("DROP TABLE t")
    pair.target.ok("pgml_dump_restore", source=pair.endpoint, tables=["public.t"])
    told = watched.judged()
    assert (told["state"], told["level"], told["rows"]) == ("copied", 0, 1000)
    assert told["bytes"] == pair.target.value("SELECT pg_total_relation_size('t')") and 0 <= told["age"] < 60
    assert watched.judged(lag_bytes=0)["lag"]["bytes"] is None
    pair.target.sql("ALTER TABLE t RENAME TO u")
    assert watched.judged()["state"] == "not wired"


def test_copies_while_they_are_made(pair: Pair) -> None:
    watched = Watched(pair, strategy="dump")
    pair.target.sql("DROP TABLE t")
    pair.target.ok("pgml_dump_restore", source=pair.endpoint, tables=["public.t"])
    with pair.target.transaction("SELECT 1") as process:
        pair.target.sql(
            "UPDATE pgml_distributed.progress SET process = %s, started_at = clock_timestamp(), phase = 'copy', tables = 1,"
            " tables_done = 0",
            [process],
        )
        told = watched.judged()
        assert (told["state"], told["level"]) == ("copying", 1)
        assert told["error"] == "0 of 1 table are there, in phase copy." and told["progress"]["alive"]
    assert watched.judged()["state"] == "copied"


def test_copies_of_two_distributions_are_told_apart(pair: Pair) -> None:
    watched = Watched(pair, strategy="dump")
    pair.both('CREATE SCHEMA other; CREATE TABLE other."T 1" (id int)')
    pair.target.sql("DROP SCHEMA other CASCADE; DROP TABLE t")
    pair.target.ok("pgml_dump_restore", source=pair.endpoint, tables=["public.t", 'other."T 1"'])
    other = {**watched.entry, "name": "other", "tables": [], "schemas": ["other"]}
    named = {**watched.entry, "name": "named", "tables": [{"name": 'other."T 1"', "columns": ["id"]}]}
    told = [
        [table["name"] for table in each["tables"]]
        for each in watched.report(watched.entry, other, named)["distributions"]
    ]
    assert told == [["public.t"], ['other."T 1"'], ['other."T 1"']]


def test_a_partitioned_table_counts_once(pair: Pair) -> None:
    watched = Watched(pair, strategy="dump")
    pair.sql_source(
        "CREATE TABLE days (day int) PARTITION BY RANGE (day); CREATE TABLE low PARTITION OF days FOR VALUES FROM (0) TO (5);"
        " CREATE TABLE high PARTITION OF days FOR VALUES FROM (5) TO (9);"
        " INSERT INTO days SELECT g FROM generate_series(0, 8) AS g"
    )
    pair.grant()
    pair.target.ok("pgml_dump_restore", source=pair.endpoint, tables=["public.days"])
    for entry in ({"tables": ["public.days"]}, {"tables": [], "schemas": ["public"]}):
        (told,) = watched.report({**watched.entry, **entry})["distributions"]
        assert [(each["name"], each["rows"]) for each in told["tables"]] == [("public.days", 9)]


def test_foreign_tables_and_their_snapshots(pair: Pair) -> None:
    watched = Watched(pair, strategy="fdw")
    told = watched.judged()
    assert (told["state"], told["level"]) == ("not wired", 2)
    pair.target.sql("CREATE EXTENSION postgres_fdw")
    pair.target.ok(
        "pgml_fdw",
        server=watched.name,
        source=pair.endpoint,
        imports=[{"remote_schema": "public", "tables": ["t"], "local_schema": "live"}],
        snapshots=[{"into": "public.t_now", "relation": "live.t"}],
    )
    told = watched.judged()
    assert (told["state"], told["level"], told["rows"]) == ("connected", 0, 1000)
    assert [each["name"] for each in told["tables"]] == ["public.t_now"]
    pair.target.sql(
        "UPDATE pgml_distributed.foreign_objects SET taken_at = taken_at - interval '3 d' WHERE kind = 'snapshot'"
    )
    told = watched.judged()
    assert (told["state"], told["level"]) == ("snapshot stale", 1)
    assert told["error"] == "1 snapshot is older than 2 d: public.t_now (3 d)." and "max_age" in told["remedy"]
    assert watched.judged(snapshot_age="4d")["state"] == "connected"
    pair.target.sql("DROP FOREIGN TABLE live.t")
    assert watched.judged(snapshot_age="4d")["warnings"] == ["live.t is gone: run distribute."]
    gathered = watched.gather()
    gathered["prod"]["result"] = {"msg": "Can't connect to it."}
    (told,) = status.status_report(gathered, [watched.entry])["distributions"]
    assert (told["state"], told["level"], told["error"]) == ("publisher down", 2, "prod: Can't connect to it.")


def test_a_strategy_that_is_remembered(pair: Pair) -> None:
    watched = Watched(pair, strategy="auto")
    told = watched.judged()
    assert (told["state"], told["strategy"]) == ("not wired", "auto")
    pair.target.sql(
        "CREATE SCHEMA pgml_distributed; CREATE TABLE pgml_distributed.distributions (name text PRIMARY KEY, strategy text NOT"
        " NULL, automatic boolean NOT NULL, upstream text NOT NULL, recorded_at timestamptz NOT NULL DEFAULT now())"
    )
    pair.target.sql("INSERT INTO pgml_distributed.distributions VALUES (%s, 'logical', true, 'prod')", [watched.name])
    watched.wire()
    told = watched.becomes("streaming")
    assert (told["strategy"], told["automatic"], told["level"]) == ("logical", True, 0)
    watched.entry["strategy"] = "dump"
    (warning,) = watched.judged()["warnings"]
    assert warning == "It comes by logical, and the inventory says dump: run distribute, which migrates it."


def test_models() -> None:
    with pgml.cluster() as first, pgml.cluster() as second, shop_of(first, second) as shop:
        shop.train(2)
        shop.bring()
        told = _judged(shop)
        assert (told["state"], told["level"], told["host"]) == ("serving", 0, HOST)
        assert told["trainer_model"] == told["source_model"] != told["served"]
        newest = shop.train(3)
        told = _judged(shop)
        assert (told["state"], told["level"], told["trainer_model"]) == ("model stale", 1, newest)
        assert (
            told["error"]
            == f"It serves model {told['source_model']} of the trainer, and prod has deployed model {newest} since."
        )
        shop.bring()
        assert _judged(shop)["state"] == "serving"
        shop.server.sql("TRUNCATE pgml.deployments")
        told = _judged(shop)
        assert (told["state"], told["error"]) == ("model stale", "No model is deployed.")


def _judged(shop: Shop) -> dict[str, Any]:
    gathered = {
        "prod": {"upstream": None, "result": look(shop.trainer), "models_database": shop.trainer.database},
        HOST: {"upstream": "prod", "result": look(shop.server), "models_database": shop.server.database},
    }
    (told,) = status.status_report(gathered, [], {}, "prod", [HOST])["models"]
    return told


@pytest.mark.parametrize("bounds", [{"lag_bytes": "much"}, {"snapshot_age": "2 weeks"}, {"wal_hours": "x"}])
def test_bounds_that_can_not_be_read(bounds: dict[str, str]) -> None:
    ((name, value),) = bounds.items()
    with pytest.raises(Exception, match=f"pgml_status_{name} is {value}: use "):
        status.status_report({}, [], bounds)
