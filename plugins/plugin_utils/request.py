# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user asks for in pgml_distributions, checked before any server is touched, and the names that follow from it."""

from __future__ import annotations

from typing import Any, Iterable, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import NAME_BYTES

STRATEGIES = ("dump", "logical")
_DEFAULT_STRATEGY = "logical"
_KEYS = {"name", "database", "target_database", "strategy", "tables", "schemas", "exclude_tables"}
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
    if strategy not in STRATEGIES:
        found.append(
            "{0} has strategy {1}, which this version can't do: use {2}.".format(
                label, strategy, " or ".join(STRATEGIES)
            )
        )
    if strategy == "logical" and "exclude_tables" in entry:
        words = (
            "{0} has exclude_tables, which a publication can't do: list its tables or schemas, or use strategy dump."
        )
        found.append(words.format(label))
    for key in ("tables", "schemas", "exclude_tables"):
        if key in entry and not _is_list(entry[key]):
            found.append("{0}: {1} must be a list.".format(label, key))
    for table in entry["tables"] if _is_list(entry.get("tables")) else ():
        unknown = sorted(set(table) - _TABLE_KEYS) if isinstance(table, Mapping) else []
        if unknown:
            words = "{0}: table {1} has unknown key {2}; known are {3}."
            known = ", ".join(sorted(_TABLE_KEYS))
            found.append(words.format(label, table.get("name", "without a name"), ", ".join(unknown), known))
    return found


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _name_problems(distributions: Sequence[Mapping[str, Any]], hosts: Sequence[str]) -> Iterable[str]:
    names = [entry["name"] for entry in distributions]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        yield 'Distribution "{0}" is listed more than once.'.format(name)
    slots: dict[str, tuple[str, str]] = {}
    for name in dict.fromkeys(entry["name"] for entry in of_strategy(distributions, "logical")):
        size = len(object_name(name).encode("utf-8"))
        if size > NAME_BYTES:
            yield 'The name of distribution "{0}" is too long: "{1}" has {2} bytes and PostgreSQL keeps {3}.'.format(
                name, object_name(name), size, NAME_BYTES
            )
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
    for entry in distributions:
        target = entry.get("target_database") or entry["database"]
        for what in _contents(entry):
            first = taken.setdefault((target, what), entry["name"])
            if first != entry["name"]:
                yield 'Distributions "{0}" and "{1}" both fill {2} of database {3}: leave it to one of them.'.format(
                    first, entry["name"], what, target
                )


def _contents(entry: Mapping[str, Any]) -> Iterable[str]:
    for name in _table_names(entry):
        yield "table {0}".format(name if "." in name else "public." + name)
    for schema in entry.get("schemas") or ():
        yield "schema {0}".format(schema)
    if is_whole_database(entry):
        yield "every table"


def _table_names(entry: Mapping[str, Any]) -> list[str]:
    return [table.get("name", "") if isinstance(table, Mapping) else str(table) for table in entry.get("tables") or ()]


def strategy_of(entry: Mapping[str, Any]) -> Any:
    """How a distribution is moved."""
    return entry.get("strategy", _DEFAULT_STRATEGY)


def of_strategy(distributions: Sequence[Mapping[str, Any]], strategy: str) -> list[Mapping[str, Any]]:
    """Those of *distributions* that are moved by *strategy*."""
    return [entry for entry in distributions if strategy_of(entry) == strategy]


def is_whole_database(entry: Mapping[str, Any]) -> bool:
    """Whether a distribution names neither tables nor schemas, and so means all of them."""
    return not entry.get("tables") and not entry.get("schemas")


def grants(distributions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the distributor reads in each database of *distributions*, as pgml_grants takes it."""
    result: dict[str, dict[str, Any]] = {}
    for entry in distributions:
        database = entry["database"]
        readable = result.setdefault(database, {"database": database, "tables": [], "schemas": [], "all_tables": False})
        readable["tables"] += _table_names(entry)
        readable["schemas"] += entry.get("schemas") or []
        readable["all_tables"] = readable["all_tables"] or is_whole_database(entry)
    return list(result.values())
