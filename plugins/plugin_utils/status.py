# SPDX-License-Identifier: GPL-3.0-or-later
"""What playbook status tells: what each server was found to have, beside what the inventory asks for."""

from __future__ import annotations

import datetime
from typing import Any, Iterable, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.plugin_utils import (
    request,
    status_held,
    status_logical,
    status_strays,
    status_text,
)
from ansible_collections.postgresml.distributed.plugins.plugin_utils.status_facts import (
    BROKEN,
    DEGRADED,
    GOOD,
    VERDICTS,
    Case,
    Finding,
    Host,
    Limits,
    limits,
)


def status_report(
    gathered: Mapping[str, Mapping[str, Any]],
    distributions: Sequence[Mapping[str, Any]],
    bounds: Mapping[str, Any] | None = None,
    trainer: str | None = None,
    ship_to: Sequence[str] = (),
) -> dict[str, Any]:
    """What filter status_report returns.

    :param gathered: of each host its C(upstream), unless it is the primary; what pgml_replication_info returned of it, as
        C(result); and the database that has PostgresML, as C(models_database)
    """
    bound = limits(bounds or {})
    hosts = {name: Host(name, found) for name, found in gathered.items()}
    cases = list(_cases(hosts, distributions, bound))
    entries = [_entry(case) for case in cases]
    models = list(_models(gathered, hosts, trainer, ship_to))
    strays = status_strays.strays(hosts, list(_wired(hosts, distributions)))
    servers = [_server(host, entries) for host in hosts.values() if host.asked]
    levels = [each["level"] for each in (*entries, *models, *servers)]
    level = max([GOOD, *levels, *(DEGRADED for each in strays if each["removable"])])
    report = {
        "level": level,
        "verdict": VERDICTS[level],
        "checked_at": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "limits": bound._asdict(),
        "hosts": servers,
        "distributions": entries,
        "models": models,
        "strays": strays,
    }
    report["summary"] = status_text.summary(report)
    report["lines"] = status_text.lines(report)
    return report


def _cases(hosts: Mapping[str, Host], distributions: Sequence[Mapping[str, Any]], bound: Limits) -> Iterable[Case]:
    for entry in request.moved(distributions):
        for host in hosts.values():
            if host.upstream is None or not host.asked:
                continue
            target = entry.get("target_database") or entry["database"]
            yield Case(
                name=entry["name"],
                strategy=_strategy(entry, host, target),
                source_database=entry["database"],
                target_database=target,
                tables=status_held.qualified(entry.get("tables") or ()),
                schemas=tuple(entry.get("schemas") or ()),
                replica=host,
                upstream=hosts[host.upstream],
                limits=bound,
            )


def _wired(hosts: Mapping[str, Host], distributions: Sequence[Mapping[str, Any]]) -> Iterable[tuple[str, str, str]]:
    """(distribution, replica, upstream) of all that comes by logical replication, or may, because its replica can't be asked."""
    for entry in request.moved(distributions):
        for host in hosts.values():
            if host.upstream and _strategy(entry, host, entry.get("target_database") or entry["database"]) in (
                "logical",
                "auto",
            ):
                yield entry["name"], host.name, host.upstream


def _remembered(host: Host, database: str, name: str) -> Mapping[str, Any]:
    remembered = host.database(database).get("remembered") or ()
    found: Mapping[str, Any] = next((each for each in remembered if each["name"] == name), {})
    return found


def _strategy(entry: Mapping[str, Any], host: Host, database: str) -> str:
    """How a distribution comes to a host: with strategy auto, that is remembered there."""
    asked = str(request.strategy_of(entry))
    return str(_remembered(host, database, entry["name"]).get("strategy") or asked) if asked == "auto" else asked


def _entry(case: Case) -> dict[str, Any]:
    finding, part = _judged(case)
    warnings = [*finding.warnings, *_migrating(case)]
    slot = case.slot if case.strategy == "logical" else {}
    return {
        "distribution": case.name,
        "replica": case.replica.name,
        "upstream": case.upstream.name,
        "strategy": case.strategy,
        "automatic": bool(_remembered(case.replica, case.target_database, case.name).get("automatic")),
        "database": case.source_database,
        "target_database": case.target_database,
        "state": finding.state,
        "level": max(finding.level, DEGRADED if warnings else GOOD),
        "error": finding.error,
        "remedy": finding.remedy,
        "warnings": warnings,
        "rows": sum(each["rows"] for each in part["tables"]) if part["tables"] else None,
        "bytes": sum(each["bytes"] for each in part["tables"]) if part["tables"] else None,
        "lag": part["lag"],
        "wal": {
            "kept_bytes": slot.get("retained_bytes"),
            "status": slot.get("wal_status"),
            "hours_left": case.upstream.hours_left(slot),
        },
        "age": max((each["age"] for each in part["tables"] if each.get("age") is not None), default=None),
        "drift": status_logical.drift(case) if case.strategy == "logical" else [],
        "tables": [{key: value for key, value in each.items() if key != "columns"} for each in part["tables"]],
        "progress": case.held.get("progress") if finding.state == "copying" else None,
    }


def _judged(case: Case) -> tuple[Finding, dict[str, Any]]:
    """How it stands, and the tables that it has brought."""
    nothing = {"bytes": None, "not_sent_bytes": None, "not_flushed_bytes": None, "seconds": None}
    if case.strategy == "logical":
        return status_logical.judge(case), {
            "tables": case.subscription.get("tables") or [],
            "lag": status_logical.lag(case),
        }
    if case.strategy == "dump":
        return status_held.judge_dump(case), {"tables": status_held.copies_of(case), "lag": nothing}
    if case.strategy == "fdw":
        snapshots = status_held.foreign_server_of(case).get("snapshots") or []
        return status_held.judge_fdw(case), {"tables": snapshots, "lag": nothing}
    if not case.replica.reached:
        return status_held.replica_down(case.replica), {"tables": [], "lag": nothing}
    words = "{0} remembers no distribution of that name in database {1}.".format(
        case.replica.name, case.target_database
    )
    return Finding("not wired", BROKEN, words, "Run distribute."), {"tables": [], "lag": nothing}


def _migrating(case: Case) -> Iterable[str]:
    before = _remembered(case.replica, case.target_database, case.name).get("strategy")
    if before and before != case.strategy:
        words = "It comes by {0}, and the inventory says {1}: run distribute, which migrates it."
        yield words.format(before, case.strategy)


def _models(
    gathered: Mapping[str, Mapping[str, Any]], hosts: Mapping[str, Host], trainer: str | None, ship_to: Sequence[str]
) -> Iterable[dict[str, Any]]:
    if not trainer or trainer not in hosts:
        return
    for name in ship_to:
        if name in hosts and hosts[name].reached:
            databases = (gathered[trainer].get("models_database") or "", gathered[name].get("models_database") or "")
            yield from status_held.models(hosts[trainer], hosts[name], databases)


def _server(host: Host, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    server = host.server
    down = "publisher down" if host.upstream is None else "replica down"
    return {
        "name": host.name,
        "upstream": host.upstream,
        "state": "up" if host.reached else down,
        "level": GOOD if host.reached else BROKEN,
        "error": None if host.reached else host.problem,
        "version": server.get("version"),
        "outdated": server.get("outdated") or [],
        "wal_rate": server.get("wal_rate"),
        "wal_limit": server.get("wal_limit"),
        "wal_space": server.get("wal_space"),
        "wal_kept": max((slot["retained_bytes"] or 0 for slot in server.get("slots") or ()), default=0),
        "slots": len(server.get("slots") or ()),
        "received": max((each["level"] for each in entries if each["replica"] == host.name), default=GOOD),
    }
