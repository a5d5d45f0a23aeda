# SPDX-License-Identifier: GPL-3.0-or-later
"""What a model predicts, for the same features on two servers."""

from __future__ import annotations

import math
from typing import Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused, ServerRefused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    compose,
    listed,
    literal,
    raw,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.model_catalog import Model

_SAMPLES = 8
_TASKS = ("regression", "classification", "clustering", "cluster")
"""Those whose models take numbers and give numbers."""
_MOST_FEATURES = 10000
_TOLERANCE = 1e-5
"""How much two processors may make of the same float4 arithmetic, of the largest number that is predicted."""


def comparable(model: Model) -> bool:
    """Whether a model takes numbers, not too many, and gives numbers."""
    return model.task in _TASKS and 0 < model.features <= _MOST_FEATURES


def samples(features: int) -> list[list[float]]:
    """Features from -2 to 2 and, for columns that are far from that, ten and a hundred times as much; always the same."""
    return [
        [
            round(math.sin(1 + row * features + column) * 2, 3) * (1, 1, 10, 100)[(row + column) % 4]
            for column in range(features)
        ]
        for row in range(_SAMPLES)
    ]


def predicted(session: Session, model: Model, what: int | None) -> list[list[float]]:
    """What *session* predicts by the local id *what*, or by the project's name when it is None; one list for each sample."""
    asked = (
        compose("{name}::text", name=literal(model.project))
        if what is None
        else compose("{id}::bigint", id=literal(what))
    )
    query = compose(
        "SELECT {function}({asked}, features) AS prediction FROM (VALUES {samples}) AS sample(number, features) ORDER BY number",
        function=raw("pgml.predict_joint" if model.outputs > 1 and model.task == "regression" else "pgml.predict"),
        asked=asked,
        samples=listed(
            [
                compose("({number}, {features}::real[])", number=literal(number), features=literal(row))
                for number, row in enumerate(samples(model.features))
            ]
        ),
    )
    values = [row.prediction for row in session.rows(query)]
    return [list(value) if isinstance(value, list) else [value] for value in values]


def compare(model: Model, source: Session, target: Session, what: int | None) -> bool:
    """Whether both predict the same; False when the model is none that can be compared.

    :param what: the model's id in *target*, or None for what the project serves there
    :raises Refused: when they differ
    """
    if not comparable(model):
        return False
    try:
        theirs = predicted(source, model, model.id)
        ours = by_name(target, model) if what is None else predicted(target, model, what)
    except ServerRefused as error:
        raise ServerRefused(
            "{0} can't be compared, which verify=false leaves out: {1}".format(model.title, error), **error.details
        ) from None
    scale = max([abs(number) for row in theirs for number in row if number and math.isfinite(number)] or [0.0])
    for mine, other in zip(ours, theirs):
        if not equal(mine, other, scale):
            raise Refused(
                "{0} predicts {1} in {2} and {3} in {4}, for the same features.".format(
                    model.title,
                    ", ".join(map(str, mine)),
                    target.endpoint,
                    ", ".join(map(str, other)),
                    source.endpoint,
                )
            )
    return True


def by_name(session: Session, model: Model) -> list[list[float]]:
    """What *session* predicts by the project's name. In a session that asks for the first time, that also has the server look for
    the newest deployment, and serve it to all.

    In pgml 2.10.0, the first prediction by a project's name after the server's start fails, and the second works.
    """
    try:
        return predicted(session, model, None)
    except ServerRefused:
        return predicted(session, model, None)


def equal(mine: Sequence[float], other: Sequence[float], scale: float) -> bool:
    """Whether two predictions are the same, but for the last digits of a float4; *scale* is the largest number of all."""
    return len(mine) == len(other) and all(
        one is two is None
        or None not in (one, two)
        and ((math.isnan(one) and math.isnan(two)) or math.isclose(one, two, rel_tol=0, abs_tol=_TOLERANCE * scale))
        for one, two in zip(mine, other)
    )
