# SPDX-License-Identifier: GPL-3.0-or-later
"""Trained models on the target: which are to come, to be served and to go, and the order of that."""

from __future__ import annotations

import contextlib
from typing import Any, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import SOURCE_OPTIONS, Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import (
    model_catalog,
    model_ledger,
    model_plan,
    model_predictions,
    model_shipping,
    model_suitability,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.model_plan import Held, Plan, Wanted
from ansible_collections.postgresml.distributed.plugins.module_utils.task import Task
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import snapshot

OPTIONS: dict[str, Any] = {
    "source": {"type": "dict", "options": SOURCE_OPTIONS},
    "projects": {"type": "list", "elements": "str"},
    "which": {"type": "raw", "default": "deployed"},
    "deploy": {"type": "bool", "default": True},
    "prune": {"type": "int"},
    "verify": {"type": "bool", "default": True},
    "trust_source": {"type": "bool", "default": False},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}

_WHICH = ("deployed", "latest", "best")


def manage(task: Task) -> None:
    """Ship models to the database of the login options, or remove those that were."""
    which(task.params)
    if task.params["state"] == "present" and not task.params["source"]:
        raise Refused("source is missing: name the database that has the models, or use state=absent to remove them.")
    if task.params["prune"] is not None and task.params["prune"] < 1:
        raise Refused("prune is {0}: at least one model of each project stays.".format(task.params["prune"]))
    # The date of a deployment says no time zone, and the latest one is served.
    session = task.session_or_none(timezone="UTC")
    with session or contextlib.nullcontext():
        if session:
            session.without_timeouts()
            _refuse_standby(session)
            if not task.check_mode:
                model_shipping.lock_run(session)
        (_present if task.params["state"] == "present" else _absent)(task, session)


def which(params: Mapping[str, Any]) -> Any:
    """The option as one of its words, or as a list of ids."""
    value = params["which"]
    if isinstance(value, str) and value in _WHICH:
        return value
    try:
        ids = [int(each) for each in (value if isinstance(value, list) else [value]) if not isinstance(each, bool)]
    except (TypeError, ValueError):
        ids = []
    if not ids or min(ids) < 1:
        raise Refused(
            "which is {0}: use deployed, latest, best, or a list of ids that models have on the source.".format(value)
        )
    return ids


def _refuse_standby(session: Session) -> None:
    if session.value("SELECT pg_is_in_recovery()"):
        raise Refused(
            "{0} is a read-only standby: ship to its primary, from where the models come with the WAL. A session that is opened"
            " after that is served them.".format(session.endpoint.title)
        )


def _present(task: Task, session: Session | None) -> None:
    params = task.params
    endpoint = Endpoint.from_source(params["source"])
    source = task.source_or_none(endpoint)
    if source is None:
        task.note("Ship what {0} has by then".format(endpoint))
        return
    with source:
        if session and source.is_same_database(session):
            raise Refused("{0} is source and target at once.".format(session.endpoint.title))
        with task.lenient():
            for each in filter(None, (source, session)):
                model_suitability.version(each)
        if model_catalog.version(source) is None:
            task.note("Ship what {0} has by then".format(endpoint))
            return
    reading = snapshot.reading_session(endpoint, timezone="UTC")
    moment = snapshot.Snapshot(reading)
    try:
        _bring(task, moment, session if session and model_catalog.version(session) else None)
    finally:
        moment.release()


def _bring(task: Task, moment: snapshot.Snapshot, session: Session | None) -> None:
    """Ship from the source as it is at *moment*; without *session*, to a target that has nothing yet."""
    params = task.params
    source = moment.session
    wanted = _wanted(source, params)
    held = _held(session, [each.digest for each in wanted]) if session else Held()
    plan = model_plan.planned(wanted, held, params, str(source.endpoint), str(Endpoint.from_login(params)))
    coming = [each.model for each in plan.ship]
    model_suitability.refuse_untrusted(coming, params, source.endpoint)
    if session and coming:
        model_suitability.refuse_unlike(coming, source, session)
    if session and plan.deploy:
        model_suitability.refuse_ahead(session, [each.model.project for each, _known in plan.deploy])
    task.note(*plan.words)
    task.describe(*model_plan.sides(wanted, held, plan))
    local: dict[Wanted, int | None] = {each: held.holds(each) for each in wanted}
    verified: set[Wanted] = set()
    if session and not task.check_mode:
        local.update(_carry_out(session, moment, plan, params))
        verified = _verified(session, source, local, params) if params["verify"] else set()
    task.result["models"] = [
        {
            "project": each.model.project,
            "source_model": each.model.id,
            "model": local[each],
            "algorithm": each.model.algorithm,
            "runtime": each.model.runtime,
            "bytes": each.model.size,
            "digest": each.digest,
            "shipped": each in plan.ship,
            "deployed": each in [deployed for deployed, _known in plan.deploy],
            "verified": each in verified,
        }
        for each in wanted
    ]


def _wanted(source: Session, params: Mapping[str, Any]) -> list[Wanted]:
    projects = model_catalog.read(source, params["projects"])
    models = model_catalog.chosen(projects, which(params), params["projects"], str(source.endpoint))
    digests = model_catalog.digests(source, [model.id for model in models])
    return [Wanted(model, digests[model.id]) for model in models]


def _held(session: Session, digests: Sequence[str]) -> Held:
    """What the target has. A shipped model whose rows were changed here is not what was shipped any more."""
    shipped = model_ledger.read(session)
    now = model_catalog.digests(session, [each.model_id for each in shipped if each.digest in digests])
    return Held(
        model_catalog.read(session),
        [each._replace(digest=now.get(each.model_id, "")) if each.digest in digests else each for each in shipped],
        model_shipping.sequences_behind(session),
    )


def _carry_out(session: Session, moment: snapshot.Snapshot, plan: Plan, params: Mapping[str, Any]) -> dict[Wanted, int]:
    """Do what is planned, and return the ids that the models which came have here."""
    model_shipping.advance(session, plan.advance)
    local = {}
    with contextlib.closing(model_shipping.Carrier(session, moment)) as carrier:
        for each in plan.ship:
            local[each] = carrier.ship(each.model, each.digest, params["verify"])
    for each, known in plan.deploy:
        model_shipping.deploy(session, local[each] if known is None else known)
    model_shipping.remove(session, plan.remove)
    return local


def _verified(
    session: Session, source: Session, local: Mapping[Wanted, int | None], params: Mapping[str, Any]
) -> set[Wanted]:
    """The models that predict in a new session what they do on the source, asked by their projects' names if they are served."""
    with Session(session.endpoint) as fresh:
        return {
            each
            for each, model in local.items()
            if model_predictions.compare(each.model, source, fresh, None if params["deploy"] else model)
        }


def _absent(task: Task, session: Session | None) -> None:
    """Remove what was shipped, but no project, since sessions remember projects by their ids."""
    names = task.params["projects"]
    held = Held()
    if session and model_catalog.version(session) is not None:
        held = Held(
            model_catalog.read(session, names), model_ledger.read(session), history=model_catalog.history(session)
        )
    gone = [each for each in held.shipped if names is None or each.project in names]
    plan = model_plan.removal(held, gone)
    before = {
        name: {"shipped": sorted(each.digest for each in held.of(name))} for name in {each.project for each in gone}
    }
    task.describe(before, {})
    task.note(*plan.words)
    forgetting = session is not None and model_ledger.exists(session) and len(gone) == len(held.shipped)
    if forgetting:
        task.note("Drop table pgml_distributed.models, which nothing is left for")
    if session and not task.check_mode:
        for _project, model in plan.redeploy:
            model_shipping.deploy(session, model)
        model_shipping.remove(session, plan.remove)
        if forgetting:
            with session.transaction():
                model_ledger.remove(session)
