# SPDX-License-Identifier: GPL-3.0-or-later
"""Which models are to come to the target, to be served there and to go, and in which order."""

from __future__ import annotations

from typing import Any, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import enumerate_names
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.model_catalog import Model, Project
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.model_ledger import Shipped

_MOST_PROJECTS = 1023
"""The server's memory of deployed models has 1024 places, and is cleared when they are taken."""


class Held(NamedTuple):
    """What the target has."""

    projects: Mapping[str, Project] = {}
    shipped: Sequence[Shipped] = ()
    """the oldest first"""
    behind: Sequence[str] = ()
    """sequences that would give ids which are taken"""
    source: tuple[str, str] = ("", "")
    """the system identifier and the database of the source that is asked now"""
    history: Mapping[str, Sequence[int]] = {}
    """the models of each project's deployments, the newest first"""

    def of(self, project: str) -> list[Shipped]:
        """The models of *project* that were shipped."""
        return [shipped for shipped in self.shipped if shipped.project == project]

    def own(self, project: str) -> list[int]:
        """The models of *project* that were not."""
        shipped = {each.model_id for each in self.of(project)}
        models = self.projects[project].models if project in self.projects else ()
        return [model.id for model in models if model.id not in shipped]

    def served(self, project: str) -> int | None:
        """The model that *project* has deployed."""
        deployed = self.projects[project].deployed if project in self.projects else None
        return deployed.id if deployed else None

    def holds(self, wanted: Wanted) -> int | None:
        """The model that is the wanted one, if it has come."""
        ids = [each.model_id for each in self.of(wanted.model.project) if each.digest == wanted.digest]
        return ids[-1] if ids else None


class Wanted(NamedTuple):
    """A model of the source."""

    model: Model
    digest: str


class Plan(NamedTuple):
    """What is to be done, in this order."""

    advance: Sequence[str] = ()
    """sequences to be put behind the ids that are taken"""
    ship: Sequence[Wanted] = ()
    deploy: Sequence[Wanted] = ()
    redeploy: Sequence[tuple[str, int]] = ()
    """projects that lose the model that they serve, each with one that is to be served instead, before"""
    remove: Sequence[Shipped] = ()

    @property
    def words(self) -> list[str]:
        return [
            *["Advance sequence {0}, which is behind".format(name) for name in self.advance],
            *[
                "Ship {0} ({1}, {2})".format(each.model.label, each.model.algorithm, _size(each.model.size))
                for each in self.ship
            ],
            *["Deploy {0}".format(each.model.label) for each in self.deploy],
            *['Deploy model {1} of project "{0}", which it served before'.format(*each) for each in self.redeploy],
            *[
                'Remove model {0} of project "{1}", shipped from model {2}'.format(
                    each.model_id, each.project, each.source_model_id
                )
                for each in self.remove
            ],
        ]


def planned(
    wanted: Sequence[Wanted], held: Held, params: Mapping[str, Any], source: Endpoint, target: Endpoint
) -> Plan:
    """What brings *held* to *wanted*.

    :raises Refused: when the target has something else of that name
    """
    for each in wanted:
        _refuse_clash(each.model, held, params["deploy"], source, target)
    if params["deploy"]:
        _refuse_rivals(wanted)
        _refuse_too_many(wanted, held, target)
    ship = [each for each in wanted if held.holds(each) is None]
    deploy = [
        each
        for each in wanted
        if params["deploy"] and (each in ship or held.served(each.model.project) != held.holds(each))
    ]
    return Plan(
        advance=held.behind if ship or deploy else (),
        ship=ship,
        deploy=deploy,
        remove=_superfluous(wanted, held, params) if params["prune"] else (),
    )


def _refuse_clash(model: Model, held: Held, deploy: bool, source: Endpoint, target: Endpoint) -> None:
    project = held.projects.get(model.project)
    if project is None:
        return
    if project.task != model.task:
        raise Refused(
            'Project "{0}" is for {1} in {2}, and for {3} in {4}: rename one of them.'.format(
                model.project, model.task, source, project.task, target
            )
        )
    own = held.own(model.project)
    if deploy and own:
        raise Refused(
            'Project "{0}" has models in {1} that were not shipped there ({2}), and would alternate between them and'
            " those that were: delete them there, rename the project on the source, or use deploy=false.".format(
                model.project, target, enumerate_names(map(str, own))
            )
        )


def _refuse_rivals(wanted: Sequence[Wanted]) -> None:
    names = [each.model.project for each in wanted]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        ids = [str(each.model.id) for each in wanted if each.model.project == name]
        raise Refused(
            'Models {0} are all of project "{1}", which serves one: name one of them, or use deploy=false.'.format(
                ", ".join(ids), name
            )
        )


def _refuse_too_many(wanted: Sequence[Wanted], held: Held, target: Endpoint) -> None:
    names = {name for name, project in held.projects.items() if project.deployed} | {
        each.model.project for each in wanted
    }
    if len(names) > _MOST_PROJECTS:
        raise Refused(
            "{0} would serve {1} projects, and pgml forgets what all of them serve beyond {2}: ship fewer.".format(
                target.title, len(names), _MOST_PROJECTS
            )
        )


def _superfluous(wanted: Sequence[Wanted], held: Held, params: Mapping[str, Any]) -> list[Shipped]:
    """The oldest of the shipped models beyond those that are kept; what is wanted now, or served, stays."""
    found = []
    for project in dict.fromkeys(each.model.project for each in wanted):
        these = [each for each in wanted if each.model.project == project]
        staying = {held.holds(each) for each in these}
        if not params["deploy"]:
            staying.add(held.served(project))
        coming = [each for each in these if held.holds(each) is None]
        # Those of another source are for that to prune.
        spare = [each for each in held.of(project) if each.model_id not in staying and each.source == held.source]
        excess = len([each for each in held.of(project) if each.source == held.source]) + len(coming) - params["prune"]
        found += spare[: max(excess, 0)]
    return found


def diff_of(wanted: Sequence[Wanted], held: Held, plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    """The projects before and after, their models by digest."""
    before = {}
    after = {}
    removed = {each.model_id for each in plan.remove}
    for project in sorted({each.model.project for each in wanted}):
        shipped = held.of(project)
        served = held.served(project)
        digest = next((each.digest for each in shipped if each.model_id == served), None)
        if project in held.projects:
            before[project] = {
                "deployed": digest or (served and "model {0}".format(served)),
                "shipped": sorted(each.digest for each in shipped),
            }
        after[project] = {
            "deployed": next(
                (each.digest for each in plan.deploy if each.model.project == project),
                before.get(project, {}).get("deployed"),
            ),
            "shipped": sorted(
                [each.digest for each in shipped if each.model_id not in removed]
                + [each.digest for each in plan.ship if each.model.project == project]
            ),
        }
    return before, after


def removal(held: Held, gone: Sequence[Shipped]) -> Plan:
    """How *gone* go: what a project serves is exchanged for its newest deployment of another model, if it has one."""
    ids = {each.model_id for each in gone}
    redeploy = []
    for project in dict.fromkeys(each.project for each in gone):
        served = held.served(project)
        left = [model for model in held.history.get(project, ()) if model not in ids]
        if served in ids and left:
            redeploy.append((project, left[0]))
    return Plan(advance=held.behind if redeploy else (), redeploy=redeploy, remove=gone)


def _size(size: int) -> str:
    value = float(size)
    for unit in ("bytes", "KB", "MB"):
        if value < 1024:
            return "{0:.0f} {1}".format(value, unit)
        value /= 1024
    return "{0:.1f} GB".format(value)
