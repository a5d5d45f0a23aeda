# SPDX-License-Identifier: GPL-3.0-or-later
"""What PostgresML does to who moves its models, and that our test double of it does so too."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import closing

import psycopg2
import pytest

from tests.support import pgml
from tests.support.cluster import Cluster, make_directory
from tests.support.pair import Place

ROWS = (
    "SELECT (SELECT count(*) FROM pgml.projects), (SELECT count(*) FROM pgml.models), (SELECT count(*) FROM pgml.files),"
    " (SELECT count(*) FROM pgml.deployments)"
)
PREDICT = "SELECT pgml.predict('price'::text, ARRAY[1]::real[])"
UNWRAP = r"called `Option::unwrap\(\)` on a `None` value"
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    with pgml.cluster() as made:
        yield made


@pytest.fixture
def place(server: Cluster) -> Iterator[Place]:
    """A fresh database with the extension. Projects of other databases are in the way of its own: it begins its ids elsewhere."""
    number = next(_numbers)
    made = Place(server, f"models_{number}")
    pgml.create_database(server, made.database)
    for table in ("projects", "models"):
        made.sql(f"ALTER SEQUENCE pgml.{table}_id_seq RESTART {number * 1000}")
    yield made
    server.drop_database(made.database)


def pg_dump(place: Place, *options: str) -> str:
    """What pg_dump makes of a database without complaint."""
    command = [
        pgml.programs() / "pg_dump",
        "-h",
        place.cluster.host,
        "-p",
        str(place.cluster.port),
        "-U",
        place.cluster.user,
    ]
    environment = {**os.environ, "PGPASSWORD": place.cluster.password}
    done = subprocess.run(
        [*command, *options, place.database], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout


def copy_rows(source: Place, target: Place) -> None:
    """Copy the rows as upstream's documentation has it."""
    directory = make_directory()
    try:
        source.sql("SELECT pgml.dump_all(%s)", [str(directory)])
        target.sql("SELECT pgml.load_all(%s)", [str(directory)])
    finally:
        subprocess.run(["rm", "-r", directory], check=True)


def test_trains_predicts_and_lists(place: Place) -> None:
    model = pgml.train(place.cluster, place.database)
    assert place.sql("SELECT id, name, algorithm, runtime, deployed FROM pgml.trained_models") == [
        (model, "price", "linear", "python", True)
    ]
    assert place.value("SELECT status FROM pgml.snapshots") == "in_progress"
    with closing(place.cluster.connect(place.database)) as session:
        assert pgml.predict(session, "price", 4) == pytest.approx(8)
        assert pgml.predict(session, model, 4) == pytest.approx(8)


@pytest.mark.parametrize("algorithm", ["ridge", "random_forest"])
def test_trains_other_algorithms(place: Place, algorithm: str) -> None:
    model = pgml.train(place.cluster, place.database, algorithm=algorithm)
    assert place.value("SELECT algorithm FROM pgml.models WHERE id = %s", [model]) == algorithm


def test_python_is_not_that_of_the_tests(place: Place) -> None:
    assert place.value("SELECT pgml.python_version()").startswith(pgml.python_version())
    assert place.value("SELECT count(*) FROM pgml.python_pip_freeze() WHERE package ~ '^pytest'") == 0


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["-n", "pgml"],
        ["-t", "pgml.models", "--strict-names"],
        ["-t", "pgml.*"],
        ["-e", "pgml"],
        ["--data-only", "-n", "pgml"],
    ],
    ids=" ".join,
)
def test_pg_dump_loses_models(place: Place, options: list[str]) -> None:
    pgml.train(place.cluster, place.database)
    assert place.sql(ROWS) == [(1, 1, 1, 1)]
    dump = pg_dump(place, *options)
    assert "COPY pgml." not in dump and "estimator" not in dump


def test_sequences_stay_behind(place: Place) -> None:
    database = f"{place.database}_copy"
    pgml.create_database(place.cluster, database)
    copy = Place(place.cluster, database)
    try:
        place.sql("ALTER SEQUENCE pgml.projects_id_seq RESTART; ALTER SEQUENCE pgml.models_id_seq RESTART")
        pgml.train(place.cluster, place.database)
        copy_rows(place, copy)
        assert copy.sql(ROWS) == [(1, 1, 1, 1)]
        with pytest.raises(psycopg2.Error, match="projects_pkey"):
            pgml.train(copy.cluster, database, "another")
        with pytest.raises(psycopg2.Error, match="deployments_pkey"):
            copy.sql("SELECT * FROM pgml.deploy(1::bigint)")
    finally:
        place.cluster.drop_database(database)


def arrives(place: Place, model: int) -> None:
    """Let the row of a deployment arrive, as by replication."""
    query = "INSERT INTO pgml.deployments (project_id, model_id, strategy) SELECT project_id, id, 'specific'"
    place.sql(f"{query} FROM pgml.models WHERE id = %s", [model])


def test_sessions_serve_what_was_deployed_and_not_what_has_arrived(place: Place) -> None:
    pgml.train(place.cluster, place.database)
    with closing(place.cluster.connect(place.database)) as session:
        assert pgml.predict(session, "price", 1) == pytest.approx(2)
        new = pgml.train(place.cluster, place.database, slope=5, automatic_deploy=False)
        arrives(place, new)
        assert pgml.predict(session, "price", 1) == pytest.approx(2)
        place.sql("SELECT * FROM pgml.deploy(%s::bigint)", [new])
        assert pgml.predict(session, "price", 1) == pytest.approx(5)


def test_a_new_session_makes_all_others_serve_what_has_arrived(place: Place) -> None:
    pgml.train(place.cluster, place.database)
    with closing(place.cluster.connect(place.database)) as session:
        pgml.predict(session, "price", 1)
        arrives(place, pgml.train(place.cluster, place.database, slope=5, automatic_deploy=False))
        assert place.value(PREDICT) == pytest.approx(5)
        assert pgml.predict(session, "price", 1) == pytest.approx(5)


def test_deployment_outlives_its_transaction(place: Place) -> None:
    old = pgml.train(place.cluster, place.database)
    with (
        closing(place.cluster.connect(place.database)) as reader,
        closing(place.cluster.connect(place.database, autocommit=False)) as writer,
    ):
        assert pgml.predict(reader, "price", 1) == pytest.approx(2)
        with writer.cursor() as cursor:
            cursor.execute("SELECT * FROM pgml.train('price', NULL, 'rows_of_price', 'y', runtime => 'python')")
        writer.rollback()
        with pytest.raises(psycopg2.Error, match=r"pgml.models WHERE id = \d+ could not be loaded"):
            pgml.predict(reader, "price", 1)
        assert place.sql("SELECT id FROM pgml.models") == [(old,)]
        place.sql("SELECT * FROM pgml.deploy(%s::bigint)", [old])
        assert pgml.predict(reader, "price", 1) == pytest.approx(2)


def test_first_prediction_after_a_start_fails(place: Place) -> None:
    model = pgml.train(place.cluster, place.database)
    place.cluster.restart()
    with closing(place.cluster.connect(place.database)) as session:
        assert pgml.predict(session, model, 1) == pytest.approx(2)
        with pytest.raises(psycopg2.Error, match=UNWRAP):
            pgml.predict(session, "price", 1)
        assert pgml.predict(session, "price", 1) == pytest.approx(2)
    assert place.value(PREDICT) == pytest.approx(2)


def test_crash_forgets_what_is_served(place: Place) -> None:
    pgml.train(place.cluster, place.database)
    place.cluster.kill()
    place.cluster.start()
    with pytest.raises(psycopg2.Error, match=UNWRAP):
        place.sql(PREDICT)


@pytest.mark.skipif("pgml.is_real()", reason="PostgresML is installed in one version")
def test_older_version_and_update(server: Cluster) -> None:
    pgml.create_database(server, "older", version="2.9.3")
    place = Place(server, "older")
    try:
        place.sql("ALTER SEQUENCE pgml.projects_id_seq RESTART 900000")
        assert place.value("SELECT pgml.version()").startswith("2.9.3")
        pgml.train(server, "older")
        server.restart()
        assert place.value(PREDICT) == pytest.approx(2)
        place.sql("ALTER EXTENSION pgml UPDATE TO '2.10.0'")
        assert place.value("SELECT pgml.version()").startswith("2.10.0")
        server.restart()
        with pytest.raises(psycopg2.Error, match=UNWRAP):
            place.sql(PREDICT)
    finally:
        server.drop_database("older")


def test_deployments_cannot_be_updated(place: Place) -> None:
    pgml.train(place.cluster, place.database)
    with pytest.raises(psycopg2.Error, match="updated_at"):
        place.sql("UPDATE pgml.deployments SET strategy = 'specific'")


def test_two_databases_share_one_map(place: Place) -> None:
    other = f"{place.database}_other"
    pgml.create_database(place.cluster, other)
    try:
        place.sql("ALTER SEQUENCE pgml.projects_id_seq RESTART 77; ALTER SEQUENCE pgml.models_id_seq RESTART 1")
        Place(place.cluster, other).sql(
            "ALTER SEQUENCE pgml.projects_id_seq RESTART 77; ALTER SEQUENCE pgml.models_id_seq RESTART 50"
        )
        pgml.train(place.cluster, place.database)
        with closing(place.cluster.connect(place.database)) as session:
            assert pgml.predict(session, "price", 1) == pytest.approx(2)
            pgml.train(place.cluster, other)
            with pytest.raises(psycopg2.Error, match="WHERE id = 50 could not be loaded"):
                pgml.predict(session, "price", 1)
    finally:
        place.cluster.drop_database(other)


def test_reused_id_serves_the_old_estimator(place: Place) -> None:
    model = pgml.train(place.cluster, place.database)
    with closing(place.cluster.connect(place.database)) as session:
        assert pgml.predict(session, model, 1) == pytest.approx(2)
        other = pgml.train(place.cluster, place.database, slope=5)
        place.sql(
            "UPDATE pgml.files SET data = (SELECT data FROM pgml.files WHERE model_id = %s) WHERE model_id = %s",
            [other, model],
        )
        assert pgml.predict(session, model, 1) == pytest.approx(2)
    with closing(place.cluster.connect(place.database)) as fresh:
        assert pgml.predict(fresh, model, 1) == pytest.approx(5)


def test_failed_training_leaves_no_row(place: Place) -> None:
    with pytest.raises(psycopg2.Error, match="Column `z` not found"):
        pgml.train(place.cluster, place.database, y_column_name="z")
    assert place.sql(ROWS) == [(0, 0, 0, 0)]


def test_unknown_projects_and_models(place: Place) -> None:
    with pytest.raises(psycopg2.Error, match="No deployed model exists for the project named: `none`"):
        place.sql("SELECT pgml.predict('none'::text, ARRAY[1]::real[])")
    with pytest.raises(psycopg2.Error, match="WHERE id = 1 could not be loaded"):
        place.sql("SELECT pgml.predict(1::bigint, ARRAY[1]::real[])")


def test_readers_need_privileges(place: Place) -> None:
    pgml.train(place.cluster, place.database)
    place.sql("CREATE ROLE app LOGIN PASSWORD 'app'")
    try:
        with closing(place.cluster.connect(place.database, "app", "app")) as session:
            with pytest.raises(psycopg2.Error, match="permission denied for schema pgml"):
                pgml.predict(session, "price", 1)
            place.sql("GRANT USAGE ON SCHEMA pgml TO app")
            with pytest.raises(psycopg2.Error, match="permission denied for table deployments"):
                pgml.predict(session, "price", 1)
            place.sql("GRANT SELECT ON ALL TABLES IN SCHEMA pgml TO app")
            assert pgml.predict(session, "price", 1) == pytest.approx(2)
    finally:
        place.sql("DROP OWNED BY app; DROP ROLE app")


def test_extension_wants_to_be_preloaded() -> None:
    with (
        pgml.cluster(shared_preload_libraries="") as bare,
        pytest.raises(psycopg2.Error, match="shared_preload_libraries"),
    ):
        pgml.create_database(bare, "models")


def test_server_runs_with_another_scikit_learn() -> None:
    version, environment = pgml.other_sklearn()
    with pgml.cluster(environment) as other:
        pgml.create_database(other, "models")
        assert other.sql("SELECT pgml.python_package_version('sklearn')", dbname="models") == [(version,)]
        pgml.train(other, "models")
        assert other.sql(PREDICT, dbname="models")[0][0] == pytest.approx(2)
