# SPDX-License-Identifier: GPL-3.0-or-later
"""What a PostgresML server has: its projects and their models, read for all of them at once."""

from __future__ import annotations

from typing import Any, Collection, Iterable, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused, ServerRefused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import enumerate_names

SAFE = "rust"
"""The runtime whose models are data. Those of Python are pickles."""
PACKAGES = ("numpy", "sklearn", "xgboost", "lightgbm", "catboost")
"""What the extension imports for any model of Python, by the names of the modules."""


class Model(NamedTuple):
    """A trained model."""

    id: int
    project: str
    task: str
    algorithm: str
    runtime: str | None
    sampling: str | None
    """how its snapshot was sampled; None without a snapshot, and then it can't predict"""
    snapshot_id: int | None
    status: str
    features: int
    """how many numbers a prediction takes"""
    outputs: int
    """how many it gives"""
    score: str | None
    """the metric by which models of the task are compared, as the server has it"""
    files: int
    size: int
    """bytes of its files"""
    deployed: bool
    """whether it is the newest deployment of its project"""

    @property
    def label(self) -> str:
        return 'model {0} of project "{1}"'.format(self.id, self.project)

    @property
    def title(self) -> str:
        """The same at the beginning of a sentence."""
        return "M" + self.label[1:]

    @property
    def number(self) -> float:
        """The score as a number: a text comparison would put 0.9 above 10, and -0.5 above -0.1."""
        try:
            value = float(self.score or "")
        except ValueError:
            return float("-inf")
        return value if value == value else float("-inf")  # pylint: disable=comparison-with-itself

    @property
    def labels(self) -> set[tuple[str, str]]:
        """The values of its enum columns, each with the type's name."""
        found = {("task", self.task), ("runtime", str(self.runtime)), ("strategy", "specific")}
        return found | ({("sampling", self.sampling)} if self.sampling else set())

    @property
    def defect(self) -> str | None:
        """Why it can't predict, if so."""
        if self.status != "successful":
            return "its status is {0}".format(self.status)
        if self.files == 0:
            return "it has no file in pgml.files"
        if self.files > 1:
            return "it has {0} files, as language models do, which pgml.deploy can't load by id".format(self.files)
        if self.sampling is None:
            return "it has no row in pgml.snapshots, without which it can't be loaded"
        return None


class Project(NamedTuple):
    """A project and its models in the order in which they were made."""

    name: str
    task: str
    models: tuple[Model, ...]

    @property
    def deployed(self) -> Model | None:
        """What a session that has not asked for the project before is served."""
        return next((model for model in self.models if model.deployed), None)

    @property
    def latest(self) -> Model | None:
        usable = [model for model in self.models if model.defect is None]
        return usable[-1] if usable else None

    @property
    def best(self) -> Model | None:
        """The newest of those with the best score."""
        usable = [model for model in reversed(self.models) if model.defect is None]
        return max(usable, key=lambda model: model.number) if usable else None


def version(session: Session) -> str | None:
    """The version of the extension in the session's database, or None without it."""
    found = session.value("SELECT extversion FROM pg_extension WHERE extname = 'pgml'")
    return None if found is None else str(found)


def read(session: Session, names: Collection[str] | None = None) -> dict[str, Project]:
    """The projects by their names, those of *names* or all."""
    rows = session.rows(
        "SELECT p.name AS project, p.task::text, m.id, m.algorithm, m.runtime::text,"
        "  s.test_sampling::text AS sampling, m.snapshot_id, m.status, m.num_features AS features,"
        "  coalesce(cardinality(s.y_column_name), 1) AS outputs, m.metrics ->> CASE p.task::text"
        "   WHEN 'regression' THEN 'r2' WHEN 'classification' THEN 'f1' WHEN 'decomposition' THEN 'cumulative_explained_variance'"
        "   ELSE 'silhouette' END AS score,"
        "  coalesce(f.files, 0)::int AS files, coalesce(f.size, 0) AS size, m.id IS NOT DISTINCT FROM d.model_id AS deployed"
        " FROM pgml.projects AS p LEFT JOIN pgml.models AS m ON m.project_id = p.id"
        " LEFT JOIN pgml.snapshots AS s ON s.id = m.snapshot_id"
        # The length of a value that is stored elsewhere is known without reading it.
        " LEFT JOIN (SELECT model_id, count(*) AS files, sum(octet_length(data)) AS size FROM pgml.files GROUP BY 1) AS f"
        "  ON f.model_id = m.id"
        " LEFT JOIN (SELECT DISTINCT ON (project_id) project_id, model_id FROM pgml.deployments"
        "  ORDER BY project_id, created_at DESC, id DESC) AS d ON d.project_id = p.id"
        " WHERE %s::text[] IS NULL OR p.name = ANY (%s) ORDER BY p.name, m.id",
        [None if names is None else list(names), None if names is None else list(names)],
    )
    projects: dict[str, Project] = {}
    for row in rows:
        project = projects.get(row.project) or Project(row.project, row.task, ())
        if row.id is not None:
            values = {field: getattr(row, field) for field in Model._fields}
            project = project._replace(models=project.models + (Model(**{**values, "size": int(row.size)}),))
        projects[row.project] = project
    return projects


def history(session: Session) -> dict[str, list[int]]:
    """The models that each project has deployed and still has, the newest first."""
    return {
        row.project: row.models
        for row in session.rows(
            "SELECT p.name AS project, array_agg(d.model_id ORDER BY d.created_at DESC, d.id DESC) AS models"
            " FROM pgml.deployments AS d JOIN pgml.projects AS p ON p.id = d.project_id"
            " JOIN pgml.models AS m ON m.id = d.model_id AND m.project_id = p.id AND m.status = 'successful'"
            " WHERE EXISTS (SELECT FROM pgml.files WHERE model_id = m.id) GROUP BY 1"
        )
    }


def digests(session: Session, models: Iterable[int]) -> dict[int, str]:
    """The SHA-256 of each of *models* that has one file: of the file, and of what says how it is asked. The server computes it.

    Not of the snapshot, which a later training of the same project may change.
    """
    return {
        row.id: row.digest
        for row in session.rows(
            "SELECT m.id, encode(sha256(sha256(f.data) || convert_to(jsonb_build_array("
            "  p.task::text, m.algorithm, m.runtime::text, m.num_features, m.hyperparams)::text, 'UTF8')), 'hex') AS digest"
            " FROM unnest(%s::bigint[]) AS wanted(id) JOIN pgml.models AS m USING (id)"
            " JOIN pgml.projects AS p ON p.id = m.project_id JOIN pgml.files AS f ON f.model_id = m.id"
            " WHERE (SELECT count(*) FROM pgml.files WHERE model_id = m.id) = 1",
            [list(models)],
        )
    }


def columns(session: Session) -> dict[str, list[str]]:
    """The columns of the tables that a model is in; updates leave them in another order than a new installation has."""
    return {
        row.name: row.columns
        for row in session.rows(
            "SELECT c.relname::text AS name, array_agg(a.attname::text ORDER BY a.attname) AS columns FROM pg_class AS c"
            " JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
            " WHERE c.relnamespace = 'pgml'::regnamespace AND c.relname IN ('snapshots', 'models', 'files') GROUP BY 1"
        )
    }


def missing_labels(session: Session, wanted: Collection[tuple[str, str]]) -> list[str]:
    """Those of *wanted* (type, label) that the enum types of schema pgml don't have, for a sentence."""
    known = {
        (row.type, row.label)
        for row in session.rows(
            "SELECT t.typname::text AS type, e.enumlabel::text AS label FROM pg_enum AS e"
            " JOIN pg_type AS t ON t.oid = e.enumtypid JOIN pg_namespace AS n ON n.oid = t.typnamespace WHERE n.nspname = 'pgml'"
        )
    }
    return sorted("{1} of type pgml.{0}".format(*pair) for pair in set(wanted) - known)


def python_versions(session: Session) -> dict[str, str]:
    """The versions of Python, major and minor, and of PACKAGES as the server imports them; those that it can't are left out."""
    found = {"Python": ".".join(str(session.value("SELECT pgml.python_version()")).split(".")[:2])}
    for name in PACKAGES:
        try:
            found[name] = str(session.value("SELECT pgml.python_package_version(%s::text)", [name]))
        except ServerRefused:
            pass
    return found


def chosen(projects: dict[str, Project], which: Any, names: Sequence[str] | None, where: Endpoint) -> list[Model]:
    """The models that *which* means of those in the database *where*: C(deployed), C(latest), C(best), or a list of ids.

    Of the projects that *names* lists, each has to have one; of all projects, those that have none are left out.

    :raises Refused: when a project or a model is not there, or can't predict
    """
    unknown = sorted(set(names or ()) - set(projects))
    if unknown:
        raise Refused(
            "{0} has no project {1}.".format(where.title, enumerate_names('"{0}"'.format(name) for name in unknown))
        )
    if not isinstance(which, str):
        return _by_id(projects, which, where)
    found = []
    for project in projects.values():
        model: Model | None = getattr(project, which)
        if model is not None:
            _refuse_defect(model, where)
            found.append(model)
        elif names is not None:
            raise Refused(
                'Project "{0}" of {1} has no {2}: train one there{3}.'.format(
                    project.name,
                    where,
                    "deployed model" if which == "deployed" else "model that can predict",
                    ", or use which=latest" if which == "deployed" and project.latest else "",
                )
            )
    return found


def _by_id(projects: dict[str, Project], ids: Sequence[int], where: Endpoint) -> list[Model]:
    models = {model.id: model for project in projects.values() for model in project.models}
    unknown = [str(number) for number in ids if number not in models]
    if unknown:
        raise Refused("{0} has no model {1} in these projects.".format(where.title, ", ".join(unknown)))
    found = [models[number] for number in dict.fromkeys(ids)]
    for model in found:
        _refuse_defect(model, where)
    return found


def _refuse_defect(model: Model, where: Endpoint) -> None:
    if model.defect:
        raise Refused("{0} of {1} can't be shipped: {2}.".format(model.title, where, model.defect))
