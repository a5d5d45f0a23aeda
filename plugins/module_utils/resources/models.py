# SPDX-License-Identifier: GPL-3.0-or-later
"""Trained models on the target: which are to come, to be served and to go, and the order of that."""

from __future__ import annotations

import contextlib
import re
from typing import Any, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import (
    DistributedError,
    Refused,
    ServerRefused,
    Unreachable,
)
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

_SETTINGS = {"search_path": "pg_catalog, pg_temp"}
"""Nobody's function in another schema may fit a call better than the one that is meant."""
_WHICH = ("deployed", "latest", "best")


def manage(task: Task) -> None:
    """Ship models to the database of the login options, or remove those that were."""
    which(task.params)
    if task.params["state"] == "present" and not task.params["source"]:
        raise Refused("source is missing: name the database that has the models, or use state=absent to remove them.")
    if task.params["prune"] is not None and task.params["prune"] < 1:
        raise Refused("prune is {0}: at least one model of each project stays.".format(task.params["prune"]))
    # The date of a deployment says no time zone, and the latest one is served.
    session = task.session_or_none(timezone="UTC", **_SETTINGS)
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
    values = value if isinstance(value, list) else [value]
    ids = [int(each) for each in values if isinstance(each, (int, str)) and re.match(r"[0-9]+\Z", str(each))]
    if not ids or len(ids) < len(values) or min(ids) < 1:
        raise Refused(
            "which is {0}: use deployed, latest, best, or a list of ids that models have on the source.".format(value)
        )
    return ids


def _refuse_standby(session: Session) -> None:
    if session.value("SELECT pg_is_in_recovery()"):
        raise Refused(
            "{0} is a read-only standby: ship to its primary, from where the models come with the WAL.".format(
                session.endpoint.title
            )
        )


def _present(task: Task, session: Session | None) -> None:
    params = task.params
    endpoint = Endpoint.from_source(params["source"])
    source = task.source_or_none(endpoint, **_SETTINGS)
    if source is None:
        task.note("Ship what {0} has by then".format(endpoint))
        return
    with source:
        source.without_timeouts()
        if session:
            _refuse_one_server(source, session)
        with task.lenient():
            for each in filter(None, (source, session)):
                model_suitability.required_version(each)
        if model_catalog.version(source) is None:
            task.note("Ship what {0} has by then".format(endpoint))
            return
        moment = snapshot.Snapshot(snapshot.reading_session(endpoint, **_SETTINGS))
        try:
            _bring(task, source, moment, session if session and model_catalog.version(session) else None)
        finally:
            moment.release()


def _refuse_one_server(source: Session, session: Session) -> None:
    if source.is_same_database(session):
        raise Refused("{0} is source and target at once.".format(session.endpoint.title))
    if source.is_same_server(session):
        raise Refused(
            "{0} is on the server of the source, and pgml remembers for a whole server which model each project serves, by the"
            " projects' ids alone: have pgml in one database of a server.".format(session.endpoint.title)
        )


def _bring(task: Task, source: Session, moment: snapshot.Snapshot, session: Session | None) -> None:
    """Ship from the source as it is at *moment*; without *session*, to a target that has nothing yet."""
    params = task.params
    wanted = _wanted(moment.session, params)
    held = _held(source, session, [each.digest for each in wanted]) if session else Held()
    plan = model_plan.planned(wanted, held, params, source.endpoint, Endpoint.from_login(params))
    model_suitability.refuse_untrusted([each.model for each in plan.ship], params, source.endpoint)
    touched = [each.model for each in wanted if each in plan.ship or each in plan.deploy]
    if session and touched:
        with task.lenient():
            model_suitability.refuse_unlike(touched, source, session)
        model_suitability.refuse_ahead(session, [each.model.project for each in plan.deploy])
    task.note(*plan.words)
    task.describe(*model_plan.diff_of(wanted, held, plan))
    local = {each: held.holds(each) for each in wanted}
    verified: set[Wanted] = set()
    if session and not task.check_mode:
        _carry_out(session, source, moment, plan, params, local)
        moment.release()
        verified = _served(task, source, local)
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
            "deployed": each in plan.deploy,
            "verified": each in verified,
        }
        for each in wanted
    ]


def _wanted(source: Session, params: Mapping[str, Any]) -> list[Wanted]:
    projects = model_catalog.read(source, params["projects"])
    models = model_catalog.chosen(projects, which(params), params["projects"], source.endpoint)
    digests = model_catalog.digests(source, [model.id for model in models])
    return [Wanted(model, digests[model.id]) for model in models]


def _held(source: Session, session: Session, digests: Sequence[str]) -> Held:
    """What the target has. A shipped model whose rows were changed here is not what was shipped any more."""
    shipped = model_ledger.read(session)
    now = model_catalog.digests(session, [each.model_id for each in shipped if each.digest in digests])
    return Held(
        model_catalog.read(session),
        [
            each._replace(digest=now.get(each.model_id, "changed here")) if each.digest in digests else each
            for each in shipped
        ],
        model_shipping.sequences_behind(session),
        (source.system_identifier, source.endpoint.keywords["dbname"]),
    )


def _carry_out(
    session: Session,
    source: Session,
    moment: snapshot.Snapshot,
    plan: Plan,
    params: Mapping[str, Any],
    local: dict[Wanted, int | None],
) -> None:
    """Do what is planned, one model after the other, and note the ids that they have here in *local*.

    What goes wrong with a model is no reason to keep the others waiting, and is said in the end.
    """
    model_shipping.advance(session, plan.advance)
    failures: list[DistributedError] = []
    with contextlib.closing(model_shipping.Carrier(session, source, moment)) as carrier:
        for each in local:
            try:
                if each in plan.ship:
                    local[each] = carrier.ship(each.model, each.digest, params["verify"])
                elif each in plan.deploy and params["verify"]:
                    model_predictions.compare(each.model, source, session, local[each])
                if each in plan.deploy:
                    model_shipping.deploy(session, local[each])
            except Unreachable:
                raise
            except DistributedError as error:
                failures.append(error)
    if failures:
        raise type(failures[0])(" ".join(map(str, failures)), **failures[0].details)
    model_shipping.remove(session, plan.remove)


def _served(task: Task, source: Session, local: Mapping[Wanted, int | None]) -> set[Wanted]:
    """The models that predict in a new session what they do on the source.

    The projects that serve them are asked by their names, also where nothing is compared: whatever the server has been told by
    others meanwhile, it serves the newest deployment after that.
    """
    params = task.params
    verified = set()
    with Session(Endpoint.from_login(params), **_SETTINGS) as fresh:
        fresh.without_timeouts()
        if params["deploy"]:
            _warn_of_time_zone(task, fresh)
        for each, model in local.items():
            if params["verify"] and model_predictions.compare(
                each.model, source, fresh, None if params["deploy"] else model
            ):
                verified.add(each)
            elif params["deploy"]:
                with contextlib.suppress(ServerRefused):
                    model_predictions.by_name(fresh, each.model)
    return verified


def _warn_of_time_zone(task: Task, fresh: Session) -> None:
    if fresh.value("SELECT extract(timezone FROM now()) <> 0"):
        task.warn(
            "Sessions of {0} have TimeZone {1}, and deployments are dated without one: what somebody deploys there by hand is"
            " dated before or after what comes from here, which is in UTC. Set the database's timezone to UTC.".format(
                fresh.endpoint, fresh.value("SELECT current_setting('TimeZone')")
            )
        )


def _absent(task: Task, session: Session | None) -> None:
    """Remove what was shipped, but no project, since sessions remember projects by their ids."""
    names = task.params["projects"]
    held = Held()
    if session and model_catalog.version(session) is not None:
        held = Held(
            model_catalog.read(session, names),
            model_ledger.read(session),
            model_shipping.sequences_behind(session),
            history=model_catalog.history(session),
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
        model_shipping.advance(session, plan.advance)
        for _project, model in plan.redeploy:
            model_shipping.deploy(session, model)
        model_shipping.remove(session, plan.remove)
        if forgetting:
            with session.transaction():
                model_ledger.remove(session)
