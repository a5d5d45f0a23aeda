# SPDX-License-Identifier: GPL-3.0-or-later
"""Which models come, are served and go, from what both servers have; without a server."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import (
    model_catalog,
    model_plan,
    model_predictions,
    model_suitability,
    models,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.model_catalog import Model, Project
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.model_ledger import Shipped
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.model_plan import Held, Plan, Wanted

NOTHING = Plan(ship=[], deploy=[])
SOURCE, TARGET = (Endpoint({"dbname": name}, "login") for name in ("source", "target"))
OPTIONS: dict[str, Any] = {"deploy": True, "prune": None}


def model(number: int, project: str = "price", **values: Any) -> Model:
    fields: dict[str, Any] = {
        "id": number,
        "project": project,
        "task": "regression",
        "algorithm": "linear",
        "runtime": "python",
        "sampling": "last",
        "snapshot_id": number,
        "status": "successful",
        "features": 2,
        "outputs": 1,
        "score": "0.5",
        "files": 1,
        "size": 100,
        "deployed": False,
    }
    return Model(**{**fields, **values})


def wanted(number: int, digest: str, project: str = "price") -> Wanted:
    return Wanted(model(number, project), digest)


def shipped(number: int, digest: str, project: str = "price") -> Shipped:
    return Shipped(number, number, project, "1", "ml", number, digest)


def held(*these: Shipped, served: int | None = None, own: tuple[int, ...] = (), **values: Any) -> Held:
    """A target with one project."""
    ids = [each.model_id for each in these] + list(own)
    there = tuple(model(number, deployed=number == served) for number in ids)
    return Held({"price": Project("price", "regression", there)}, these, **{"source": ("1", "ml"), **values})


def planned(what: list[Wanted], there: Held, **options: Any) -> Plan:
    return model_plan.planned(what, there, {**OPTIONS, **options}, SOURCE, TARGET)


def test_a_new_model_comes_and_is_served() -> None:
    new = wanted(1, "a")
    plan = planned([new], Held())
    assert plan == Plan(ship=[new], deploy=[new])
    assert plan.words == [
        'Ship model 1 of project "price" (linear, 100 bytes)',
        'Deploy model 1 of project "price"',
    ]


def test_a_model_that_came_before_is_served_if_another_one_is() -> None:
    old = wanted(1, "a")
    there = (shipped(200, "a"), shipped(201, "b"))
    assert planned([old], held(*there, served=200)) == NOTHING
    assert planned([old], held(*there, served=201)).deploy == [old]
    assert planned([old], held(*there, served=201), deploy=False) == NOTHING


def test_the_same_digest_in_another_project_is_another_model() -> None:
    assert planned([wanted(1, "a", "demand")], held(shipped(200, "a"), served=200)).ship


def test_sequences_are_advanced_only_for_what_comes_or_is_deployed() -> None:
    there = held(shipped(200, "a"), served=200, behind=("pgml.models_id_seq",))
    assert planned([wanted(1, "a")], there).advance == ()
    assert planned([wanted(1, "a")], there._replace(projects={})).advance == ("pgml.models_id_seq",)
    assert planned([wanted(2, "b")], there).advance == ("pgml.models_id_seq",)


@pytest.mark.parametrize(
    ("digest", "prune", "served", "deploy", "gone"),
    [
        ("d", 3, 202, True, [200]),
        ("d", 1, 202, True, [200, 201, 202]),
        ("d", 1, 202, False, [200, 201]),  # served, so it stays
        ("a", 1, 202, True, [201, 202]),  # served again
        ("d", 4, 202, True, []),
    ],
)
def test_pruning(digest: str, prune: int, served: int, deploy: bool, gone: list[int]) -> None:
    there = held(shipped(200, "a"), shipped(201, "b"), shipped(202, "c"), served=served)
    plan = planned([wanted(4, digest)], there, prune=prune, deploy=deploy)
    assert [each.model_id for each in plan.remove] == gone


def test_what_another_source_has_shipped_is_not_pruned() -> None:
    there = held(shipped(200, "a"), shipped(201, "b")._replace(source_system="2"), shipped(202, "c"), served=202)
    plan = planned([wanted(4, "d")], there, prune=2)
    assert [each.model_id for each in plan.remove] == [200]


def test_more_projects_than_a_server_remembers() -> None:
    many = [wanted(number, "a", str(number)) for number in range(1023)]
    assert len(planned(many, held()).ship) == 1023
    with pytest.raises(Refused, match="would serve 1024 projects"):
        planned(many, held(own=(7,), served=7))


def test_what_the_target_has_trained_itself_is_not_covered() -> None:
    there = held(shipped(200, "a"), own=(7,), served=7)
    with pytest.raises(Refused, match=r"that were not shipped there \(7\)"):
        planned([wanted(1, "a")], there)
    assert planned([wanted(1, "a")], there, deploy=False).words == []


def test_projects_of_one_name_and_two_tasks() -> None:
    there = Held({"price": Project("price", "clustering", ())})
    with pytest.raises(
        Refused, match="is for regression in database .*, and for clustering in database .*: rename one"
    ):
        planned([wanted(1, "a")], there, deploy=False)


def test_one_model_of_a_project_can_be_served() -> None:
    both = [wanted(1, "a"), wanted(2, "b")]
    with pytest.raises(Refused, match='Models 1, 2 are all of project "price", which serves one'):
        planned(both, Held())
    assert len(planned(both, Held(), deploy=False).ship) == 2


def test_removal_serves_what_was_served_before() -> None:
    there = held(shipped(200, "a"), own=(7, 8), served=200, history={"price": [200, 7, 200, 8]})
    assert model_plan.removal(there, there.shipped).redeploy == [("price", 7)]
    assert model_plan.removal(there._replace(history={"price": [200]}), there.shipped).redeploy == []
    other = held(shipped(200, "a"), own=(7,), served=7, history={"price": [7, 200]})
    assert model_plan.removal(other, other.shipped).redeploy == []


def chosen(which: Any, *these: Model, names: list[str] | None = None) -> list[int]:
    projects = {"price": Project("price", "regression", these)}
    return [each.id for each in model_catalog.chosen(projects, which, names, SOURCE)]


def test_the_best_is_the_one_with_the_greatest_number() -> None:
    assert chosen("best", model(1, score="0.9"), model(2, score="10")) == [2]
    assert chosen("best", model(1, score="-0.5"), model(2, score="-0.1")) == [2]
    assert chosen(
        "best", model(1, score="9e-1"), model(2, score="0.3"), model(3, score=None), model(4, score="NaN")
    ) == [1]
    assert chosen("best", model(1, score="0.5"), model(2, score="0.5")) == [2]


def test_what_cant_predict_is_not_the_latest() -> None:
    assert chosen("latest", model(1), model(2, status="in_progress"), model(3, files=0), model(4, sampling=None)) == [1]
    assert chosen("latest", model(1, status="failed")) == []
    with pytest.raises(Refused, match="has no model that can predict: train one there"):
        chosen("latest", model(1, status="failed"), names=["price"])


@pytest.mark.parametrize(
    ("value", "meaning"), [("latest", "latest"), ([3, "4"], [3, 4]), ("7", [7]), (7, [7]), ([7, 7], [7, 7])]
)
def test_which(value: Any, meaning: Any) -> None:
    assert models.which({"which": value}) == meaning


@pytest.mark.parametrize("value", ["newest", [], [0], [-1], [True, 3], [3.7], [3, "x"], None, {}])
def test_which_that_means_nothing(value: Any) -> None:
    with pytest.raises(Refused, match="use deployed, latest, best, or a list of ids"):
        models.which({"which": value})


@pytest.mark.parametrize("runtime", ["python", "openai", None])
def test_only_data_comes_from_a_source_that_is_not_trusted(runtime: str | None) -> None:
    safe, unsafe = model(1, runtime="rust"), model(2, runtime=runtime)
    model_suitability.refuse_untrusted([safe], {"trust_source": False}, SOURCE)
    model_suitability.refuse_untrusted([safe, unsafe], {"trust_source": True}, SOURCE)
    with pytest.raises(Refused, match="Model 2 of project .* loading it would run whatever code"):
        model_suitability.refuse_untrusted([safe, unsafe], {"trust_source": False}, SOURCE)


def test_samples_are_always_the_same_and_differ_from_one_another() -> None:
    first = model_predictions.samples(3)
    assert first == model_predictions.samples(3)
    assert len({tuple(row) for row in first}) == len(first) and all(len(row) == 3 for row in first)


@pytest.mark.parametrize(
    ("mine", "other", "scale", "equal"),
    [
        ([1.0], [1.0], 1, True),
        ([1.0], [1.000001], 1, True),
        ([1.0], [1.001], 1, False),
        ([1.0], [1.001], 1000, True),  # what is left of a difference of thousands
        ([0.0], [0.0], 0, True),
        ([0.0], [1e-9], 0, False),
        ([float("nan")], [float("nan")], 1, True),
        ([float("nan")], [1.0], 1, False),
        ([float("inf")], [float("inf")], 1, True),
        ([1.0, 2.0], [1.0], 1, False),
    ],
)
def test_predictions_are_equal_but_for_the_last_digits(
    mine: list[float], other: list[float], scale: float, equal: bool
) -> None:
    assert model_predictions.equal(mine, other, scale) == equal
