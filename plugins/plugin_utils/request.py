# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user asks for in pgml_distributions, checked before any server is touched, and the names that follow from it."""

from __future__ import annotations

from typing import Any, Iterable, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import NAME_BYTES
from ansible_collections.postgresml.distributed.plugins.plugin_utils import names

STRATEGIES = ("dump", "fdw", "logical", "native")
"""With native nothing is moved: PostgresML runs where the data is."""
AUTO = "auto"
"""Whatever of these the database is measured to need."""
_DEFAULT_STRATEGY = "logical"
_KEYS = {"name", "database", "target_database", "strategy", "tables", "schemas", "exclude_tables", "snapshots"}
_NATIVE_KEYS = {"name", "database", "strategy"}
_TABLE_KEYS = {"name", "columns", "where"}


def object_name(distribution: str) -> str:
    """The name of a distribution's publication and subscription."""
    return "pgml_" + distribution


def slot_name(distribution: str, host: str) -> str:
    """The name of the slot by which *host* takes a distribution: a slot's name has lower-case letters, digits and _."""
    return "".join(
        c if c in "abcdefghijklmnopqrstuvwxyz0123456789_" else "_"
        for c in "pgml_{0}_{1}".format(distribution, host).lower()
    )


def problems(distributions: Any, hosts: Sequence[str]) -> list[str]:
    """Every mistake in *distributions*, which *hosts* are to receive, as a sentence each."""
    if not _is_list(distributions):
        return ["pgml_distributions must be a list: begin each distribution with a dash."]
    if not distributions:
        return ["pgml_distributions is empty: list at least one distribution with a name, a database and its tables."]
    found = [sentence for entry in distributions for sentence in _entry_problems(entry)]
    if found:
        return found
    return [*_name_problems(distributions, hosts), *_overlaps(distributions)]


def _entry_problems(entry: Any) -> list[str]:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str) or not entry["name"]:
        return ["pgml_distributions: {0!r} has no name.".format(entry)]
    label = 'Distribution "{0}"'.format(entry["name"])
    found = []
    unknown = sorted(set(entry) - _KEYS)
    if unknown:
        found.append(
            "{0} has unknown key {1}; known are {2}.".format(label, ", ".join(unknown), ", ".join(sorted(_KEYS)))
        )
    if not isinstance(entry.get("database"), str) or not entry["database"]:
        found.append("{0} has no database: name the one on the primary.".format(label))
    strategy = strategy_of(entry)
    if strategy not in (*STRATEGIES, AUTO):
        words = "{0} has strategy {1}, which doesn't exist: use {2} or {3}."
        found.append(words.format(label, strategy, ", ".join(STRATEGIES), AUTO))
    if strategy == "native":
        return [*found, *_native_problems(label, entry)]
    if strategy in ("logical", AUTO) and "exclude_tables" in entry:
        words = "{0} has exclude_tables, which a publication can't do: list its tables or schemas, or use strategy dump or fdw."
        found.append(words.format(label))
    if strategy != "fdw" and "snapshots" in entry:
        found.append("{0} has snapshots, which only strategy fdw makes.".format(label))
    for key in ("tables", "schemas", "exclude_tables", "snapshots"):
        if key in entry and not _is_list(entry[key]):
            found.append("{0}: {1} must be a list.".format(label, key))
    for table in entry["tables"] if _is_list(entry.get("tables")) else ():
        unknown = sorted(set(table) - _TABLE_KEYS) if isinstance(table, Mapping) else []
        if unknown:
            words = "{0}: table {1} has unknown key {2}; known are {3}."
            known = ", ".join(sorted(_TABLE_KEYS))
            found.append(words.format(label, table.get("name", "without a name"), ", ".join(unknown), known))
    for snapshot in entry["snapshots"] if _is_list(entry.get("snapshots")) else ():
        if not isinstance(snapshot, Mapping) or not isinstance(snapshot.get("into"), str):
            found.append("{0}: a snapshot has no into: name the local table that it fills.".format(label))
    return found


def _native_problems(label: str, entry: Mapping[str, Any]) -> Iterable[str]:
    moved = sorted(set(entry) & (_KEYS - _NATIVE_KEYS))
    if moved:
        yield "{0} has {1}, and strategy native moves no tables: PostgresML runs in its database on the primary.".format(
            label, ", ".join(moved)
        )


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _name_problems(distributions: Sequence[Mapping[str, Any]], hosts: Sequence[str]) -> Iterable[str]:
    listed = [entry["name"] for entry in distributions]
    for name in dict.fromkeys(name for name in listed if listed.count(name) > 1):
        yield 'Distribution "{0}" is listed more than once.'.format(name)
    databases = list(dict.fromkeys(entry["database"] for entry in of_strategy(distributions, "native")))
    if len(databases) > 1:
        yield "Strategy native is asked for in databases {0}: PostgresML can be in one database of a server.".format(
            ", ".join(databases)
        )
    yield from _long_names(distributions)
    yield from _slot_problems([entry["name"] for entry in of_strategy(distributions, "logical", AUTO)], hosts)


def _long_names(distributions: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    made = {entry["name"]: [object_name(entry["name"])] for entry in of_strategy(distributions, "logical", AUTO)}
    for entry in of_strategy(distributions, "fdw", AUTO):
        made[entry["name"]] = [*made.get(entry["name"], ()), entry["name"], *_foreign_schemas(entry)]
    for name, objects in made.items():
        for made_name in objects:
            size = len(made_name.encode("utf-8"))
            if size > NAME_BYTES:
                yield 'The name of distribution "{0}" is too long: "{1}" has {2} bytes and PostgreSQL keeps {3}.'.format(
                    name, made_name, size, NAME_BYTES
                )
                break


def _slot_problems(distributions: Iterable[str], hosts: Sequence[str]) -> Iterable[str]:
    slots: dict[str, tuple[str, str]] = {}
    for name in dict.fromkeys(distributions):
        if len(object_name(name).encode("utf-8")) > NAME_BYTES:
            continue
        for host in hosts:
            slot = slot_name(name, host)
            if len(slot) > NAME_BYTES:
                words = (
                    'The names of distribution "{0}" and host {1} are too long: slot "{2}" has {3} bytes and {4} fit.'
                )
                yield words.format(name, host, slot, len(slot), NAME_BYTES)
            elif slots.setdefault(slot, (name, host)) != (name, host):
                yield 'Distributions "{0}" and "{1}" on hosts {2} and {3} would share slot "{4}": rename one.'.format(
                    slots[slot][0], name, slots[slot][1], host, slot
                )


def _overlaps(distributions: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Tables that two distributions would write; a table inside a listed schema is seen later, by pgml_subscription."""
    taken: dict[tuple[str, str], str] = {}
    for entry in moved(distributions):
        target = entry.get("target_database") or entry["database"]
        for what in _contents(entry):
            first = taken.setdefault((target, what), entry["name"])
            if first != entry["name"]:
                yield 'Distributions "{0}" and "{1}" both fill {2} of database {3}: leave it to one of them.'.format(
                    first, entry["name"], what, target
                )


def _contents(entry: Mapping[str, Any]) -> Iterable[str]:
    if strategy_of(entry) in ("fdw", AUTO):
        for schema in _foreign_schemas(entry):
            yield "schema {0}".format(schema)
        for snapshot in entry.get("snapshots") or ():
            yield "table {0}".format(_qualified(snapshot["into"]))
    if strategy_of(entry) == "fdw":
        return
    for name in _table_names(entry):
        yield "table {0}".format(_qualified(name))
    for schema in entry.get("schemas") or ():
        yield "schema {0}".format(schema)
    if is_whole_database(entry):
        yield "every table"


def _foreign_schemas(entry: Mapping[str, Any]) -> list[str]:
    """The local schemas of a distribution by foreign tables, as far as the request tells them."""
    schemas = [names.parsed(name)[0] for name in _table_names(entry) if names.is_name(name)]
    schemas += entry.get("schemas") or ()
    return ["{0}_{1}".format(entry["name"], schema) for schema in dict.fromkeys(schemas)]


def _qualified(name: str) -> str:
    return name if "." in name else "public." + name


def _table_names(entry: Mapping[str, Any]) -> list[str]:
    return [table.get("name", "") if isinstance(table, Mapping) else str(table) for table in entry.get("tables") or ()]


def strategy_of(entry: Mapping[str, Any]) -> Any:
    """How a distribution is moved."""
    return entry.get("strategy", _DEFAULT_STRATEGY)


def of_strategy(distributions: Sequence[Mapping[str, Any]], *strategies: str) -> list[Mapping[str, Any]]:
    """Those of *distributions* that are moved by one of *strategies*."""
    return [entry for entry in distributions if strategy_of(entry) in strategies]


def resolved(
    distributions: Sequence[Mapping[str, Any]],
    known: Sequence[Mapping[str, Any]],
    chosen: Mapping[str, str],
) -> list[Mapping[str, Any]]:
    """*distributions* with the strategy that auto stands for in place of it: the one that was *chosen*, by name, or that the
    replicas remember; without those of which that isn't known.

    :param known: for each replica what its databases remember, by database and name
    """
    found: list[Mapping[str, Any]] = []
    for entry in distributions:
        if strategy_of(entry) == AUTO:
            strategies = [memory["strategy"] for memory in _memories(entry, known)]
            strategy = chosen.get(entry["name"]) or (strategies[0] if strategies else None)
            if strategy is None:
                continue
            entry = {**entry, "strategy": strategy, "automatic": True}
        found.append(entry)
    return found


def left(distributions: Sequence[Mapping[str, Any]], known: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of *distributions* that a replica remembers to come by another strategy, with that one."""
    return [
        {**entry, "strategy": strategy}
        for entry in distributions
        for strategy in dict.fromkeys(memory["strategy"] for memory in _memories(entry, known))
        if strategy != strategy_of(entry)
    ]


def _memories(entry: Mapping[str, Any], known: Sequence[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    database = entry.get("target_database") or entry["database"]
    for databases in known:
        memory = databases.get(database, {}).get(entry["name"])
        if memory:
            yield memory


def moved(distributions: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of *distributions* that bring something to the replicas."""
    return [entry for entry in distributions if strategy_of(entry) != "native"]


def is_whole_database(entry: Mapping[str, Any]) -> bool:
    """Whether a distribution names neither tables nor schemas, and so means all of them."""
    return not entry.get("tables") and not entry.get("schemas")


def grants(distributions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the distributor reads in each database of *distributions*, as pgml_grants takes it."""
    result: dict[str, dict[str, Any]] = {}
    for entry in moved(distributions):
        database = entry["database"]
        of_database = result.setdefault(database, {"database": database, **_nothing(), "foreign": _nothing()})
        readable = of_database["foreign"] if strategy_of(entry) == "fdw" else of_database
        readable["tables"] += _table_names(entry)
        readable["schemas"] += entry.get("schemas") or []
        readable["all_tables"] = readable["all_tables"] or is_whole_database(entry)
    return list(result.values())


def _nothing() -> dict[str, Any]:
    return {"tables": [], "schemas": [], "all_tables": False}


def as_upstream(distributions: Sequence[Mapping[str, Any]], hosts: Sequence[str]) -> list[dict[str, Any]]:
    """What pgml_preflight_info is to look at on the server that *hosts* take *distributions* from."""
    return [
        {**_looked_at(entry), "slots": [slot_name(entry["name"], host) for host in hosts if _has_slot(entry)]}
        for entry in moved(distributions)
    ]


def as_replica(
    distributions: Sequence[Mapping[str, Any]],
    host: str,
    upstream: str,
    source: Mapping[str, Any],
    initial_copy: str | None = None,
    first: Mapping[str, Any] | None = None,
    begun: bool = False,
) -> list[dict[str, Any]]:
    """The same on *host*, which takes them from *source*, a server of host *upstream*.

    :param first: the replica that dumps come by, its C(host) and C(source); without the latter they come as files
    :param begun: whether an interrupted run has made slots for a copy of the cluster, which are in nobody's way
    """
    return [
        {
            **{key: value for key, value in _looked_at(entry).items() if key != "exclude_tables"},
            "database": _target(entry),
            **({"slot": slot_name(entry["name"], host)} if _has_slot(entry) and not begun else {}),
            **({"initial_copy": initial_copy} if initial_copy else {}),
            "upstream": upstream,
            **(
                _handed_on(entry, first)
                if first and strategy_of(entry) == "dump"
                else {"source": {**source, "db": entry["database"]}}
            ),
        }
        for entry in moved(distributions)
    ]


def _handed_on(entry: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, Any]:
    source = {"source": {**first["source"], "db": _target(entry)}} if first.get("source") else {}
    return {"through": first["host"], **source}


def _target(entry: Mapping[str, Any]) -> str:
    return str(entry.get("target_database") or entry["database"])


def _has_slot(entry: Mapping[str, Any]) -> bool:
    return bool(strategy_of(entry) == "logical")


def _looked_at(entry: Mapping[str, Any]) -> dict[str, Any]:
    lists = {key: entry.get(key) or [] for key in ("tables", "schemas", "exclude_tables")}
    return {"name": entry["name"], "strategy": strategy_of(entry), "database": entry["database"], **lists}
