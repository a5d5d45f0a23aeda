# SPDX-License-Identifier: GPL-3.0-or-later
"""Models that come from a server are served by another: at once, by every session, and only when they predict the same."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support import pgml
from tests.support.cluster import Cluster
from tests.support.copies import Process, newest_pg_dump
from tests.support.models import FEATURE, MODULE, Shop, models, predicted, shop_of
from tests.support.pair import create_role, wait_for
from tests.support.steps import PAUSED, Plan


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Cluster, Cluster]]:
    with pgml.cluster() as trainer, pgml.cluster() as server:
        yield trainer, server


@pytest.fixture
def shop(servers: tuple[Cluster, Cluster]) -> Iterator[Shop]:
    with shop_of(*servers) as made:
        yield made


def test_what_is_trained_retrained_and_rolled_back_is_served_to_all_sessions(shop: Shop) -> None:
    shop.train(2)
    result = shop.ship()
    assert result["changes"] == [
        'Ship model 1 of project "price" (linear, {0} bytes)'.format(result["models"][0]["bytes"]),
        'Deploy model 1 of project "price"',
    ]
    assert [(m["source_model"], m["model"], m["verified"]) for m in result["models"]] == [(1, 200, True)]
    assert shop.served() == 10
    with closing(shop.server.cluster.connect(shop.server.database)) as pooled:
        assert pgml.predict(pooled, "price", FEATURE) == pytest.approx(10)
        shop.train(3)
        assert shop.ship()["changed"]
        assert pgml.predict(pooled, "price", FEATURE) == pytest.approx(15)
        assert shop.served() == 15
        shop.trainer.sql("SELECT pgml.deploy('price', 'rollback')")
        assert predicted(shop.trainer, "price") == 10
        assert shop.ship()["changes"] == ['Deploy model 1 of project "price"']
        assert pgml.predict(pooled, "price", FEATURE) == pytest.approx(10)
        assert shop.served() == 10
    assert models(shop.server) == [200, 201]
    assert not shop.ship()["changed"]


def test_a_dump_ships_no_model_and_this_ships_all(shop: Shop) -> None:
    for slope, project in enumerate(("price", "demand", "churn"), 2):
        shop.train(slope, project)
    _major, pg_dump = newest_pg_dump()
    environment = {"PGPASSWORD": shop.trainer.cluster.password, "PATH": "/usr/bin:/bin"}
    trainer = ["-h", shop.trainer.cluster.host, "-p", str(shop.trainer.cluster.port), "-U", "postgres"]
    dump = subprocess.run(
        [pg_dump, *trainer, "-n", "pgml", shop.trainer.database], env=environment, check=True, capture_output=True
    )
    server = ["-h", shop.server.cluster.host, "-p", str(shop.server.cluster.port), "-U", "postgres"]
    subprocess.run(
        ["psql", "-q", *server, "-d", shop.server.database],
        input=dump.stdout,
        env={**environment, "PGPASSWORD": shop.server.cluster.password},
        check=True,
        capture_output=True,
    )
    assert models(shop.server) == []
    assert len(shop.bring()["models"]) == 3
    assert [shop.served(project) for project in ("price", "demand", "churn")] == [10, 15, 20]


def test_a_later_training_changes_no_digest(shop: Shop) -> None:
    shop.train(2)
    shop.bring()
    # As a training does that reuses the project's snapshot.
    shop.trainer.sql("""UPDATE pgml.snapshots SET "columns" = '[]', analysis = '{"samples": 1}'""")
    assert not shop.bring()["changed"]


def test_foreign_tables_are_managed_while_models_come(shop: Shop, tmp_path: Path) -> None:
    shop.train(2)
    shop.server.sql("CREATE EXTENSION postgres_fdw")
    plan = Plan(str(tmp_path), pause="COMMIT after INSERT INTO pgml_distributed.models")
    process = Process(shop.server, tmp_path / "ansible", shop.options(), MODULE, plan)
    wait_for((tmp_path / PAUSED).exists, 30, "the model to come")
    source = shop.trainer.cluster.source(shop.trainer.database)
    assert shop.server.ok("pgml_fdw", server="shop", source=source)["changed"]
    (tmp_path / PAUSED).unlink()
    assert process.finish()["changed"]


def test_a_server_that_trains_too_keeps_its_own(shop: Shop) -> None:
    pgml.train(shop.server.cluster, shop.server.database, "own", 7)
    shop.train(2)
    shop.ship()
    assert (shop.served("own"), shop.served()) == (35, 10)
    pgml.train(shop.server.cluster, shop.server.database, "own", 8)
    assert shop.served("own") == 40
    assert not shop.ship()["changed"]


def test_sequences_that_are_behind_are_put_right(shop: Shop) -> None:
    pgml.train(shop.server.cluster, shop.server.database, "own", 7)
    shop.server.sql("ALTER SEQUENCE pgml.models_id_seq RESTART 150")
    shop.train(2)
    assert shop.bring()["changes"][0] == "Advance sequence pgml.models_id_seq, which is behind"
    assert models(shop.server) == [200, 201]


def test_which(shop: Shop) -> None:
    shop.train(2)
    shop.train(3, automatic_deploy=False)
    shop.train(4, automatic_deploy=False)
    # As text, -0.5 is greater than -0.1.
    shop.trainer.sql(
        "UPDATE pgml.models SET metrics = metrics || CASE id WHEN 1 THEN '{\"r2\": -0.5}' ELSE '{\"r2\": -0.1}' END::jsonb"
    )
    shop.trainer.sql("UPDATE pgml.models SET metrics = metrics || '{\"r2\": -0.5}' WHERE id = 3")
    for which, slope in (("deployed", 2), ("latest", 4), ("best", 3), ([1], 2), (3, 4)):
        shop.bring(which=which)
        assert shop.served() == slope * FEATURE


def test_models_that_are_not_deployed_are_asked_by_id(shop: Shop) -> None:
    shop.train(2)
    shop.train(3)
    result = shop.bring(which=[1, 2], deploy=False)
    assert [predicted(shop.server, model["model"]) for model in result["models"]] == [10, 15]
    assert [model["verified"] for model in result["models"]] == [True, True]
    assert shop.server.value("SELECT count(*) FROM pgml.deployments") == 0


def test_pruning_keeps_what_is_served_and_what_was_trained_here(shop: Shop) -> None:
    for slope in (2, 3, 4):
        shop.train(slope)
        shop.bring(prune=2)
    assert models(shop.server) == [201, 202]
    assert shop.server.value("SELECT count(*) FROM pgml.snapshots") == 2
    shop.ship(which=[2], prune=1)
    assert models(shop.server) == [201]
    assert shop.served() == 15
    assert "Ship model 3" in shop.bring()["changes"][0]


def test_absent_removes_what_was_shipped_and_serves_what_was_before(shop: Shop) -> None:
    shop.train(2)
    shop.train(9, "demand")
    pgml.train(shop.server.cluster, shop.server.database, "price", 7)
    local = next(m["model"] for m in shop.ship(deploy=False)["models"] if m["project"] == "price")
    shop.server.sql("SELECT pgml.deploy(%s::bigint)", [local])
    assert shop.served() == 10
    with closing(shop.server.cluster.connect(shop.server.database)) as pooled:
        pgml.predict(pooled, "price", FEATURE)
        shop.server.converge(MODULE, state="absent", projects=["price"])
        assert pgml.predict(pooled, "price", FEATURE) == pytest.approx(35)
    assert shop.served() == 35
    shop.server.converge(MODULE, state="absent")
    assert shop.server.value("SELECT array_agg(name ORDER BY name) FROM pgml.projects") == ["demand", "price"]
    assert shop.server.value("SELECT to_regnamespace('pgml_distributed')") is None


def test_what_was_changed_or_deleted_here_comes_again(shop: Shop) -> None:
    shop.train(2)
    shop.bring()
    shop.server.sql("UPDATE pgml.files SET data = data || 'x'")
    shop.bring()
    assert models(shop.server) == [200, 201]
    shop.server.sql("DELETE FROM pgml.models WHERE id = 201")
    shop.bring()
    assert models(shop.server) == [200, 202]
    shop.server.sql("DROP EXTENSION pgml; CREATE EXTENSION pgml")
    pgml.train(shop.server.cluster, shop.server.database, "own", 7)
    shop.bring()
    assert shop.served() == 10


@pytest.mark.sampled(0)
def test_a_model_of_more_than_text_can_carry(shop: Shop) -> None:
    shop.train(2)
    shop.trainer.sql(
        "ALTER TABLE pgml.files ALTER data SET STORAGE EXTERNAL;"
        f" UPDATE pgml.files SET data = data || half || half FROM (SELECT decode(repeat('00', {280 << 20}), 'hex') AS half) AS h"
    )
    result = shop.server.ok(MODULE, **shop.options())
    assert result["changes"][0] == 'Ship model 1 of project "price" (linear, 560 MB)'
    assert shop.served() == 10


def test_two_runs_at_once_ship_a_model_once(shop: Shop, tmp_path: Path) -> None:
    shop.train(2)
    runs = [Process(shop.server, tmp_path / name, shop.options(), MODULE) for name in ("one", "other")]
    assert sorted(run.finish()["changed"] for run in runs) == [False, True]
    assert models(shop.server) == [200]


def test_a_role_that_may_read_five_tables_is_enough_for_the_source(shop: Shop) -> None:
    shop.train(2)
    role, password = f"shipper_{shop.trainer.database}", "it's {{ secret }}"
    create_role(shop.trainer.cluster, role, "LOGIN", password)
    source = shop.trainer.cluster.source(shop.trainer.database, role, password)
    try:
        assert "permission denied for" in shop.refused(source=source)
        tables = [f"pgml.{name}" for name in ("projects", "snapshots", "models", "files", "deployments")]
        shop.trainer.ok("pgml_grants", role=role, tables=tables)
        result = shop.ship(source=source)
        assert result["changed"] and password not in str(result)
    finally:
        shop.trainer.sql(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_deployment_that_is_ahead_of_time_is_named(shop: Shop) -> None:
    shop.train(2)
    shop.bring()
    shop.server.sql("SET timezone = 'Asia/Tokyo'; SELECT pgml.deploy(200::bigint)")
    shop.train(3)
    assert "in UTC has not come yet" in shop.refused()
    shop.server.sql("DELETE FROM pgml.deployments WHERE id > 1")
    shop.bring()
    assert shop.served() == 15


def test_a_project_without_a_deployed_model(shop: Shop) -> None:
    shop.train(2, automatic_deploy=False)
    shop.train(3, "demand")
    assert [model["project"] for model in shop.bring()["models"]] == ["demand"]
    assert shop.refused(projects=["price"]).endswith("has no deployed model: train one there, or use which=latest.")
    assert 'has no project "nothing"' in shop.refused(projects=["price", "nothing"])
    assert "has no model 77 in these projects" in shop.refused(which=[77])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"which": "newest"}, "which is newest: use deployed, latest, best, or a list of ids"),
        ({"which": [0]}, "which is [0]: use deployed"),
        ({"which": []}, "which is []: use deployed"),
        ({"prune": 0}, "prune is 0: at least one model of each project stays."),
        ({"source": None}, "source is missing: name the database"),
    ],
)
def test_options_that_mean_nothing(shop: Shop, params: dict[str, Any], message: str) -> None:
    assert message in shop.refused(**params)


def test_the_same_database_twice(shop: Shop) -> None:
    assert "is source and target at once" in shop.refused(source=shop.server.cluster.source(shop.server.database))


def test_rows_that_were_copied_are_counted_by_their_sequences(shop: Shop) -> None:
    shop.server.sql(
        "ALTER SEQUENCE pgml.projects_id_seq RESTART 1; INSERT INTO pgml.projects VALUES (1, 'copied', 'regression')"
    )
    shop.train(2)
    assert shop.bring()["changes"][0] == "Advance sequence pgml.projects_id_seq, which is behind"
    shop.train(3)
    shop.bring()
    shop.server.sql("ALTER SEQUENCE pgml.deployments_id_seq RESTART 1")
    shop.bring(which=[1])
    assert shop.served() == 10


def test_an_extension_that_is_made_anew_gets_other_ids(shop: Shop) -> None:
    shop.train(2)
    shop.server.sql("ALTER SEQUENCE pgml.models_id_seq RESTART 1; ALTER SEQUENCE pgml.projects_id_seq RESTART 1")
    shop.bring()
    with closing(shop.server.cluster.connect(shop.server.database)) as pooled:
        assert pgml.predict(pooled, "price", FEATURE) == pytest.approx(10)
        shop.server.sql("DROP EXTENSION pgml; CREATE EXTENSION pgml")
        shop.train(3)
        shop.bring()
        assert pgml.predict(pooled, "price", FEATURE) == pytest.approx(15)
    assert models(shop.server) == [2]


def test_what_the_server_remembers_is_put_right_by_each_run(shop: Shop) -> None:
    for slope in (2, 3):
        shop.train(slope)
        shop.bring()
    with closing(shop.server.cluster.connect(shop.server.database)) as pooled:
        assert pgml.predict(pooled, "price", FEATURE) == pytest.approx(15)
        # Shared memory is not rolled back.
        shop.server.sql("BEGIN; SELECT pgml.deploy(200::bigint); ROLLBACK")
        assert pgml.predict(pooled, "price", FEATURE) == pytest.approx(10)
        assert not shop.bring(verify=False)["changed"]
        assert pgml.predict(pooled, "price", FEATURE) == pytest.approx(15)


def test_other_tasks_than_regression(shop: Shop) -> None:
    shop.trainer.sql(
        "CREATE TABLE groups AS SELECT x::real, (x % 7)::real AS z, x / 20 AS y FROM generate_series(1, 40) AS x"
    )
    train = "SELECT pgml.train(%s, %s, 'public.groups', %s, %s, test_sampling => 'last')"
    shop.trainer.sql(train, ["class", "classification", "y", "random_forest"])
    shop.trainer.sql(train, ["group", "clustering", None, "kmeans"])
    result = shop.bring()
    assert [(model["project"], model["verified"]) for model in result["models"]] == [("class", True), ("group", True)]


def test_a_time_zone_that_makes_deployments_alternate_is_warned_of(shop: Shop) -> None:
    shop.train(2)
    assert "warnings" not in shop.bring()
    shop.server.sql(f"ALTER DATABASE {shop.server.database} SET timezone = 'America/Los_Angeles'")
    (warning,) = shop.bring()["warnings"]
    assert "have TimeZone America/Los_Angeles" in warning
