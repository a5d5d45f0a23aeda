# SPDX-License-Identifier: GPL-3.0-or-later
"""By what replication finds the rows of a table, as the facts about it tell."""

from __future__ import annotations

from typing import Any, Mapping


def finds_rows(facts: Mapping[str, Any]) -> bool:
    """Whether a table has a replica identity, without which UPDATE and DELETE fail where they are published. A primary key
    that is DEFERRABLE is none."""
    identity = facts.get("identity", "d")
    if identity == "i":
        return facts.get("identity_index") in (facts.get("indexes") or {})
    return bool(identity == "f" or identity == "d" and _primary_keys(facts))


def _primary_keys(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The primary key, if there is one by which rows can be found."""
    return [each for each in facts["constraints"].values() if each.get("type") == "p" and not each.get("deferrable")]


def key_of_partitions(facts: Mapping[str, Any]) -> list[str]:
    """What rows of a table's new partitions are found by: they inherit its primary key, and no other replica identity."""
    if facts.get("identity", "d") == "d":
        return list(facts["key"])
    keys = _primary_keys(facts)
    return list(keys[0].get("columns") or ["?"]) if keys else []


def columns(facts: Mapping[str, Any]) -> set[str] | None:
    """The columns of a table's replica identity; None where it has none, or they are not known."""
    identity = facts.get("identity", "d")
    found: list[str] = []
    if identity == "f":
        found = list(facts["columns"])
    elif identity == "i":
        found = (facts.get("indexes") or {}).get(facts.get("identity_index"), {}).get("key") or []
    elif identity == "d":
        found = next((each.get("columns") or [] for each in _primary_keys(facts)), [])
    return set(found) if found and "?" not in found else None
