# SPDX-License-Identifier: GPL-3.0-or-later
"""How copies, foreign tables and models stand, from what both servers told."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import enumerate_names, quoted
from ansible_collections.postgresml.distributed.plugins.plugin_utils import names
from ansible_collections.postgresml.distributed.plugins.plugin_utils.status_facts import (
    BROKEN,
    DEGRADED,
    GOOD,
    Case,
    Finding,
    Host,
    count_text,
    time_text,
)


def replica_down(host: Host) -> Finding:
    return Finding("replica down", BROKEN, host.problem, "Start the server, or mend the way to it.")


def copies_of(case: Case) -> list[Mapping[str, Any]]:
    """The copied tables that belong to a distribution."""
    known = case.held.get("copies") or ()
    if not case.tables and not case.schemas:
        return list(known)
    return [each for each in known if each["name"] in case.tables or each["schema"] in case.schemas]


def judge_dump(case: Case) -> Finding:
    """Copies are right as of when they were made; distribute renews those that have changed since."""
    if not case.replica.reached:
        return replica_down(case.replica)
    progress = case.held.get("progress") or {}
    if progress.get("alive"):
        words = "{0} of {1} are there, in phase {2}."
        return Finding(
            "copying",
            DEGRADED,
            words.format(progress["tables_done"], count_text(progress["tables"], "table"), progress["phase"]),
            "Wait for the run that copies.",
        )
    copies = copies_of(case)
    gone = [each["name"] for each in copies if not each["present"]]
    if len(gone) == len(copies):
        words = "Database {0} of {1} has no copies of its tables."
        return Finding("not wired", BROKEN, words.format(case.target_database, case.replica.name), "Run distribute.")
    warnings = []
    if gone:
        words = "{0} {1} not where it was copied to any more: run distribute."
        warnings.append(words.format(enumerate_names(gone), "is" if len(gone) == 1 else "are"))
    return Finding("copied", GOOD, warnings=tuple(warnings))


def foreign_server_of(case: Case) -> Mapping[str, Any]:
    servers = case.held.get("foreign_servers") or ()
    found: Mapping[str, Any] = next((each for each in servers if each["name"] == case.name), {})
    return found


def judge_fdw(case: Case) -> Finding:
    if not case.replica.reached:
        return replica_down(case.replica)
    server = foreign_server_of(case)
    if not server.get("present"):
        words = "Database {0} of {1} has no foreign server {2}."
        return Finding(
            "not wired", BROKEN, words.format(case.target_database, case.replica.name, case.name), "Run distribute."
        )
    if case.upstream.asked and not case.upstream.reached:
        return Finding(
            "publisher down",
            BROKEN,
            "{0}: {1}".format(case.upstream.name, case.upstream.problem),
            "Start it, or mend the way to it. Snapshots can be read meanwhile.",
        )
    warnings = []
    if server["missing"]:
        words = "{0} {1} gone: run distribute."
        warnings.append(
            words.format(enumerate_names(server["missing"]), "is" if len(server["missing"]) == 1 else "are")
        )
    old = [each for each in server["snapshots"] if (each["age"] or 0) > case.limits.snapshot_age]
    if old:
        named = ["{0} ({1})".format(each["name"], time_text(each["age"])) for each in old]
        words = "{0} older than {1}: {2}."
        return Finding(
            "snapshot stale",
            DEGRADED,
            words.format(
                count_text(len(old), "snapshot is", "snapshots are"),
                time_text(case.limits.snapshot_age),
                enumerate_names(named),
            ),
            "Run distribute, which fills those again that are older than their max_age.",
            tuple(warnings),
        )
    return Finding("connected", GOOD, warnings=tuple(warnings))


def models(trainer: Host, server: Host, databases: tuple[str, str]) -> list[dict[str, Any]]:
    """What a host serves of models that were shipped to it, beside what the trainer has deployed.

    :param databases: those of the trainer and of the server that have PostgresML
    """
    here = (server.database(databases[1]).get("models") or {}).get("projects") or ()
    there = {
        each["project"]: each for each in (trainer.database(databases[0]).get("models") or {}).get("projects") or ()
    }
    return [
        _model(trainer, server, databases[0], project, there.get(project["project"]))
        for project in here
        if project["shipped"]
    ]


def _model(
    trainer: Host, server: Host, database: str, project: Mapping[str, Any], wanted: Mapping[str, Any] | None
) -> dict[str, Any]:
    source, served = project["source"] or {}, project["served"] or {}
    finding = Finding("serving", GOOD)
    newest = (wanted or {}).get("served") or {}
    if not trainer.reached:
        words = "{0} could not be asked which model it has deployed: {1}"
        finding = Finding("serving", GOOD, warnings=(words.format(trainer.name, trainer.problem),))
    elif not served:
        finding = Finding("model stale", DEGRADED, "No model is deployed.", "Run ship_models.")
    elif newest and (source.get("system"), source.get("database"), source.get("id")) != (
        trainer.server.get("system_identifier"),
        database,
        newest["id"],
    ):
        what = (
            "model {0} of the trainer".format(source["id"]) if source else "model {0} of its own".format(served["id"])
        )
        words = "It serves {0}, and {1} has deployed model {2} since."
        finding = Finding("model stale", DEGRADED, words.format(what, trainer.name, newest["id"]), "Run ship_models.")
    level = max(finding.level, DEGRADED if finding.warnings else GOOD)
    return {
        "host": server.name,
        "project": project["project"],
        "state": finding.state,
        "level": level,
        "error": finding.error,
        "remedy": finding.remedy,
        "warnings": list(finding.warnings),
        "served": served.get("id"),
        "algorithm": served.get("algorithm"),
        "source_model": source.get("id"),
        "trainer": trainer.name,
        "trainer_model": newest.get("id"),
    }


def qualified(listed: Sequence[Any]) -> tuple[str, ...]:
    """The names of a distribution's tables as the module writes them."""
    written = [entry.get("name", "") if isinstance(entry, Mapping) else str(entry) for entry in listed]
    return tuple(quoted(*names.parsed(name)) for name in written if names.is_name(name))
