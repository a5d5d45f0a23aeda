# SPDX-License-Identifier: GPL-3.0-or-later
"""Replicas that take their data from replicas: who feeds whom, in which order, and what is there to be taken."""

from __future__ import annotations

from typing import Any, Iterable, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import quoted
from ansible_collections.postgresml.distributed.plugins.plugin_utils import names, request


def problems(feeds: Mapping[str, str], primary: str, distributions: Any) -> list[str]:
    """Every mistake in *feeds*, the upstreams by host, and in *distributions* that can't be passed on, as a sentence each."""
    found = []
    for host, upstream in feeds.items():
        if upstream not in (primary, *feeds):
            found.append(
                "{0} has pgml_upstream {1}, which is neither {2} nor another host of pgml_replicas.".format(
                    host, upstream, primary
                )
            )
        elif upstream == host or host in _above(feeds, upstream):
            found.append("{0} has pgml_upstream {1}, which takes its own data from {0}.".format(host, upstream))
    through = sorted({upstream for upstream in feeds.values() if upstream in feeds})
    if found or not through or not isinstance(distributions, Sequence):
        return found
    for entry in request.moved([entry for entry in distributions if isinstance(entry, Mapping)]):
        if request.is_whole_database(entry) and request.strategy_of(entry) != "dump":
            found.append(
                'Distribution "{0}" is a whole database, which {1} can\'t pass on, because there is more in it there: '
                "list its schemas or tables.".format(entry.get("name"), through[0])
            )
    return found


def _above(feeds: Mapping[str, str], host: str) -> Iterable[str]:
    seen: list[str] = []
    while host in feeds and host not in seen:
        seen.append(host)
        host = feeds[host]
    return [*seen[1:], host]


def levels(feeds: Mapping[str, str]) -> list[list[str]]:
    """The hosts of *feeds*, each after its upstream: those of the primary, those of these, and so on."""
    found: list[list[str]] = []
    placed: set[str] = set()
    while len(placed) < len(feeds):
        level = [
            host
            for host, upstream in feeds.items()
            if host not in placed and (upstream in placed or upstream not in feeds)
        ]
        if not level:
            break
        found.append(level)
        placed.update(level)
    return found


def onward(distribution: Mapping[str, Any]) -> dict[str, Any]:
    """A distribution by logical replication or foreign tables, as a replica that has it offers it to the next."""
    database = distribution.get("target_database") or distribution["database"]
    passed = {**distribution, "database": database}
    if request.strategy_of(distribution) == "fdw":
        return {**passed, **_foreign(distribution)}
    # A row that a filter leaves out was left out before.
    tables = [
        {k: v for k, v in table.items() if k != "where"} if isinstance(table, Mapping) else table
        for table in distribution.get("tables") or ()
    ]
    return {**passed, "tables": tables}


def grants(distributions: Sequence[Mapping[str, Any]], copied: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the distributor reads at a replica that passes *distributions* on, by logical replication or foreign tables, and
    *copied*, the database and tables of each that came by dump, or what is wanted where the source is yet *unasked*; as
    pgml_grants takes it."""
    copies = [{**copy, "strategy": "dump"} for copy in copied.values() if copy["tables"] or copy["unasked"]]
    return request.grants([*map(onward, distributions), *copies])


def _foreign(distribution: Mapping[str, Any]) -> dict[str, Any]:
    """Foreign tables lead through the replica; its snapshots are what snapshots are taken of."""
    server = distribution["name"]
    schemas = {schema: "{0}_{1}".format(server, schema) for schema in distribution.get("schemas") or ()}
    tables: dict[str, list[str]] = {}
    readable: list[str] = []
    for entry in distribution.get("tables") or ():
        schema, name = names.parsed(entry["name"] if isinstance(entry, Mapping) else entry)
        local = "{0}_{1}".format(server, schema)
        if schema not in schemas:
            tables.setdefault(local, []).append(quoted(local, name))
        readable.append(quoted(local, name))
        if isinstance(entry, Mapping) and entry.get("where"):
            readable.append(quoted(local, name + "_unfiltered"))
    imports: list[dict[str, Any]] = [{"tables": each, "local_schema": local} for local, each in tables.items()]
    imports += [{"remote_schema": local, "local_schema": local} for local in schemas.values()]
    snapshots = []
    for snapshot in distribution.get("snapshots") or ():
        schema, name = names.parsed(snapshot["into"])
        imports.append({"tables": [quoted(schema, name)], "local_schema": "{0}_{1}".format(server, schema)})
        readable.append(quoted(schema, name))
        kept = {key: snapshot[key] for key in ("into", "indexes", "refresh", "max_age") if key in snapshot}
        snapshots.append({**kept, "relation": quoted("{0}_{1}".format(server, schema), name)})
    return {
        "tables": readable,
        "schemas": list(schemas.values()),
        "exclude_tables": [],
        "imports": imports,
        "snapshots": snapshots,
    }
