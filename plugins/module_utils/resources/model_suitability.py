# SPDX-License-Identifier: GPL-3.0-or-later
"""What the target must have for models to be loaded there and to predict the same, and whom it has to trust."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import enumerate_names
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import model_catalog
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.model_catalog import Model


def required_version(session: Session) -> str:
    """The version of pgml in the session's database, which has to have it."""
    version = model_catalog.version(session)
    if version is None:
        raise Refused("{0} has no extension pgml: create it, as role pgml_native does.".format(session.endpoint.title))
    return version


def refuse_untrusted(models: Sequence[Model], params: Mapping[str, Any], endpoint: Endpoint) -> None:
    """Refuse models that run code when they are loaded, unless the source is trusted."""
    for model in models:
        if model.runtime != model_catalog.SAFE and not params["trust_source"]:
            raise Refused(
                "{0} has runtime {1}, and loading it would run whatever code somebody has put into pgml.files of {2}, as the"
                " operating system's user of the server: use trust_source=true if all who can write there are trusted.".format(
                    model.title, model.runtime, endpoint
                )
            )


def refuse_unlike(models: Sequence[Model], source: Session, session: Session) -> None:
    """Refuse models of another version, or with values or libraries that the target doesn't have."""
    theirs, ours = (_versions(each) for each in (source, session))
    if theirs != ours:
        raise Refused(
            "{0} has pgml {1} and {2} has {3}: models go between equal versions only, so update one of them.".format(
                source.endpoint.title, theirs, session.endpoint, ours
            )
        )
    missing = model_catalog.missing_labels(session, set().union(*[model.labels for model in models]))
    if missing:
        raise Refused(
            "{0} doesn't know {1}, which {2}: the extension was updated in another way there; add the value by ALTER TYPE ..."
            " ADD VALUE.".format(
                session.endpoint.title,
                ", ".join(missing),
                "a model needs" if len(models) == 1 else "models need",
            )
        )
    there, here = (model_catalog.columns(each) for each in (source, session))
    if there != here:
        odd = {
            "pgml.{0}.{1}".format(name, column)
            for name in here
            for column in set(here[name]) ^ set(there.get(name, ()))
        }
        raise Refused(
            "{0} and {1} don't both have the columns {2}: the extension was updated in another way in one of them.".format(
                source.endpoint.title, session.endpoint, enumerate_names(odd)
            )
        )
    if all(model.runtime == model_catalog.SAFE for model in models):
        return
    wanted, found = (model_catalog.python_versions(each) for each in (source, session))
    unlike = [
        "{0} {1} instead of {2}".format(name, found.get(name, "(none)"), wanted.get(name, "(none)"))
        for name in ("Python", *model_catalog.PACKAGES)
        if found.get(name) != wanted.get(name)
    ]
    if unlike:
        raise Refused(
            "{0} has {1}, with which the models of {2} may not load or may predict something else: install the same versions"
            " there.".format(session.endpoint.title, ", ".join(unlike), source.endpoint)
        )


def _versions(session: Session) -> str:
    """The versions of the extension and of its library, which can have been updated without it."""
    version = required_version(session)
    library = str(session.value("SELECT split_part(pgml.version(), ' ', 1)"))
    return version if version == library else "{0} with library {1}".format(version, library)


def refuse_ahead(session: Session, projects: Sequence[str]) -> None:
    """Refuse to deploy what new sessions wouldn't be served: they take the deployment with the latest date."""
    row = session.row(
        "SELECT p.name, d.id, d.created_at::text AS created FROM pgml.deployments AS d"
        " JOIN pgml.projects AS p ON p.id = d.project_id"
        " WHERE p.name = ANY (%s) AND d.created_at > clock_timestamp() AT TIME ZONE 'UTC' ORDER BY d.created_at DESC LIMIT 1",
        [list(projects)],
    )
    if row:
        raise Refused(
            'Deployment {0.id} of project "{0.name}" in {1} is of {0.created}, which in UTC has not come yet, so new sessions'
            " would go on to be served its model: a session in another time zone made it; delete it from"
            " pgml.deployments.".format(row, session.endpoint)
        )
