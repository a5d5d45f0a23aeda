# SPDX-License-Identifier: GPL-3.0-or-later
"""Which strategy fits a database: by its size, by how often its rows change, and by what is possible there."""

from __future__ import annotations

import math
from typing import Any, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import amounts, feasibility, measuring
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.feasibility import (
    STRATEGIES,
    Allowed,
    Estimate,
    Verdict,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.measuring import Measured
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import schema
from ansible_collections.postgresml.distributed.plugins.module_utils.task import Task

_BOUNDED = STRATEGIES[:-1]

OPTIONS: dict[str, Any] = {
    "tables": {"type": "list", "elements": "raw", "default": []},
    "schemas": {"type": "list", "elements": "str", "default": []},
    "all_tables": {"type": "bool", "default": False},
    "exclude_tables": {"type": "list", "elements": "str", "default": []},
    "sample_seconds": {"type": "float", "default": 0},
    "bounds": {
        "type": "dict",
        "apply_defaults": True,
        "options": {
            "dump": {"type": "str", "default": "10 GB"},
            "fdw": {"type": "str", "default": "100 GB"},
            "logical": {"type": "str", "default": "10 TB"},
        },
    },
    "frequent_changes": {"type": "float", "default": 0.01},
    "replicas": {"type": "int", "default": 1},
    "restart_allowed": {"type": "bool", "default": False},
    "replica_superuser": {"type": "bool", "default": True},
    "native_allowed": {"type": "bool", "default": False},
    "slots_ours": {"type": "list", "elements": "str", "default": []},
    "current": {"type": "str", "choices": list(STRATEGIES)},
    "name": {"type": "str"},
}

SLACK = 1.1
"""How far a bound has to be crossed before another strategy than the one in use is recommended: a database at a bound stays."""
RARE = 0.01
"""The part of frequent_changes below which rows hardly ever change."""
COUNTED_SECONDS, RARE_SECONDS = 3600, 7 * 86400
"""How old counters have to be to say that rows change often, and that they hardly ever change."""

_INSTEAD: dict[str, Sequence[str]] = {
    "dump": (),
    "fdw": ("logical", "dump"),
    "logical": ("fdw", "dump"),
    "native": ("logical", "fdw", "dump"),
}
"""What comes next when a strategy can't be used: first what copes with that much. PostgresML in the primary stands in for
nothing, for a crash there costs more than a slower way."""


class Policy(NamedTuple):
    """What decides, beside what was measured."""

    bounds: Mapping[str, int]
    """bytes up to which each strategy but the last is meant"""
    frequent: float
    """the share of rows changed in an hour from which on a copy is outdated too soon"""
    allowed: Allowed
    current: str | None = None


class Choice(NamedTuple):
    """What is recommended."""

    strategy: str
    reason: str
    """a sentence"""


def manage(task: Task) -> None:
    """Measure what the task's options name, and recommend a strategy."""
    params = task.params
    policy = _policy(params)
    with task.session() as session:
        wanted = schema.requested(session, {**params, "state": "present"})
        if not wanted:
            raise Refused("Nothing is left to measure: no table is meant.")
        schemas = None if params["all_tables"] else params["schemas"]
        measured = measuring.read(session, wanted, schemas, params["sample_seconds"], params["slots_ours"])
    verdicts = feasibility.judge(measured, policy.allowed)
    choice = recommend(measured, policy, verdicts)
    if policy.current and choice.strategy != policy.current:
        task.warn(warning(policy.current, choice, params["name"]))
    task.result.update(
        recommendation=choice._asdict(),
        alternatives=alternatives(measured, policy, verdicts),
        measured=measuring.as_result(measured),
        estimates={strategy: _as_result(each) for strategy, each in feasibility.estimate(measured).items()},
    )


def _policy(params: Mapping[str, Any]) -> Policy:
    """The options, refused where they make no sense."""
    if not (params["tables"] or params["schemas"] or params["all_tables"]):
        raise Refused("Nothing is asked for: name tables or schemas, or set all_tables.")
    bounds = {name: amounts.parse_size("bounds.{0}".format(name), params["bounds"][name]) for name in _BOUNDED}
    if not 0 < bounds["dump"] < bounds["fdw"] < bounds["logical"]:
        raise Refused(
            "bounds must ascend from dump by fdw to logical, and are {0}.".format(
                ", ".join(map(amounts.size, bounds.values()))
            )
        )
    for option, least in (("sample_seconds", 0), ("replicas", 1)):
        if not least <= params[option] < math.inf:
            raise Refused("{0} is {1}: the least is {2}.".format(option, params[option], least))
    if not 0 < params["frequent_changes"] < math.inf:
        raise Refused(
            "frequent_changes is {0}: it is a share of the rows, such as 0.01, and more than 0.".format(
                params["frequent_changes"]
            )
        )
    allowed = Allowed(
        params["replicas"],
        params["restart_allowed"],
        params["replica_superuser"],
        params["native_allowed"],
        params["current"] == "logical",
    )
    return Policy(bounds, params["frequent_changes"], allowed, params["current"])


def recommend(measured: Measured, policy: Policy, verdicts: Mapping[str, Verdict]) -> Choice:
    """The strategy that fits, or the next to it that can be used."""
    wanted, words = _fitting(measured, policy)
    if verdicts[wanted].feasible:
        return Choice(wanted, words + ".")
    strategy = next(each for each in _INSTEAD[wanted] if verdicts[each].feasible)
    return Choice(
        strategy,
        "{0}, which can't be used here, so that {1} is the nearest: {2}".format(
            words, strategy, _amid(verdicts[wanted].obstacles[0])
        ),
    )


def _amid(sentence: str) -> str:
    """A sentence as it goes on after a colon."""
    return sentence[0].lower() + sentence[1:] if sentence.startswith(("The ", "Of ")) else sentence


def _fitting(measured: Measured, policy: Policy) -> tuple[str, str]:
    """The strategy that size and changes ask for, and why, without the full stop."""
    band, words = _by_size(measured.total, policy)
    often, limit = change_share(measured), _outdated(policy)
    if band == "dump" and often is not None and often >= limit:
        outdated = "{0}, but {1} of the rows change in an hour, and from {2} on a copy is outdated too soon: logical follows them"
        return "logical", outdated.format(words, amounts.share(often), amounts.share(limit))
    seldom, limit = _seldom_share(measured), limit * RARE
    if band == "fdw" and seldom is not None and seldom < limit:
        still = "{0}, but only {1} of the rows change in an hour, less than {2}: dump copies them once"
        return "dump", still.format(words, amounts.share(seldom), amounts.share(limit))
    return band, words


def _by_size(size: int, policy: Policy) -> tuple[str, str]:
    """The strategy that is meant for *size*, or the one in use if it is meant for nearly that, and words for it."""
    current = policy.current
    if current and not _is_for(current, size, policy.bounds) and _is_for(current, size, policy.bounds, SLACK):
        words = "The tables take {0}, within 10 % of what {1} is meant for, which is {2}"
        return current, words.format(amounts.size(size), current, _meant_for(current, policy.bounds))
    band = next(strategy for strategy in STRATEGIES if _is_for(strategy, size, policy.bounds))
    words = "The tables take {0}, and {1} is meant for {2}"
    return band, words.format(amounts.size(size), band, _meant_for(band, policy.bounds))


def _is_for(strategy: str, size: int, bounds: Mapping[str, int], slack: float = 1.0) -> bool:
    number = STRATEGIES.index(strategy)
    least = bounds[STRATEGIES[number - 1]] if number else 0
    return least / slack <= size < bounds.get(strategy, math.inf) * slack


def _outdated(policy: Policy) -> float:
    """The share of changed rows from which on a copy is outdated too soon, seen from what is in use."""
    if policy.current is None:
        return policy.frequent
    return policy.frequent * SLACK if policy.current == "dump" else policy.frequent / SLACK


def _meant_for(strategy: str, bounds: Mapping[str, int]) -> str:
    number = STRATEGIES.index(strategy)
    if number == 0:
        return "less than {0}".format(amounts.size(bounds[strategy]))
    least = amounts.size(bounds[STRATEGIES[number - 1]])
    if strategy not in bounds:
        return "{0} and more".format(least)
    return "{0} to {1}".format(least, amounts.size(bounds[strategy]))


def change_share(measured: Measured) -> float | None:
    """The share of the rows that changes in an hour: as it was watched, or else counted for long enough."""
    if measured.sample and measured.sample.changes is not None:
        return measured.sample.changes.total / max(measured.rows, 1)
    return _counted_share(measured, COUNTED_SECONDS)


def _seldom_share(measured: Measured) -> float | None:
    """The same, counted for so long that what happens seldom is in it."""
    return _counted_share(measured, RARE_SECONDS)


def _counted_share(measured: Measured, least_seconds: float) -> float | None:
    """What was counted, less one change for each row: that is its own arrival, when it was loaded since the counters began."""
    counted = measured.counted
    if counted is None or counted.changes is None or counted.seconds < least_seconds:
        return None
    hours = counted.seconds / 3600
    return max(0.0, counted.changes.total * hours - measured.rows) / hours / max(measured.rows, 1)


def alternatives(measured: Measured, policy: Policy, verdicts: Mapping[str, Verdict]) -> list[dict[str, Any]]:
    """All strategies with what speaks for and against them, as a return value."""
    return [
        {
            "strategy": strategy,
            "feasible": verdicts[strategy].feasible,
            "reasons": [_of_size(strategy, measured, policy), *_of_changes(strategy, measured, policy)]
            + [*verdicts[strategy].obstacles, *verdicts[strategy].notes],
        }
        for strategy in STRATEGIES
    ]


def _of_size(strategy: str, measured: Measured, policy: Policy) -> str:
    return "It is meant for {0}, and the tables take {1}.".format(
        _meant_for(strategy, policy.bounds), amounts.size(measured.total)
    )


def _of_changes(strategy: str, measured: Measured, policy: Policy) -> list[str]:
    often = change_share(measured)
    if often is None:
        return ["How often rows change is not known: watch them with sample_seconds."] if strategy == "dump" else []
    words = "About {0} of the rows change in an hour".format(amounts.share(often))
    if strategy == "dump":
        return [
            words
            + (
                ": a copy is outdated too soon."
                if often >= _outdated(policy)
                else ": a copy serves until the next run."
            )
        ]
    if strategy == "logical":
        return [words + ", and each change follows."]
    return [words + ", and what is read is what is there."]


def warning(current: str, choice: Choice, name: str | None) -> str:
    """What to tell someone who uses another strategy, in a sentence."""
    return "{0} comes by {1}, and {2} is recommended now: {3}; to change over, set strategy: {2} for {4} and run {5}.".format(
        'Distribution "{0}"'.format(name) if name else "It",
        current,
        choice.strategy,
        _amid(choice.reason)[:-1],
        "distribution {0}".format(name) if name else "the distribution",
        "distribute.yml",
    )


def _as_result(estimate: Estimate) -> dict[str, Any]:
    return {
        "first_copy_seconds": round(estimate.seconds, 1),
        "replica_bytes": estimate.replica_bytes,
        "wal_kept_bytes": estimate.wal,
        "training_memory_bytes": estimate.memory,
    }
