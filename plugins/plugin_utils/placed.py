# SPDX-License-Identifier: GPL-3.0-or-later
"""Words for where a statement comes in a schema change, and what is known when that is decided."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.plugin_utils.catalog import Catalog
from ansible_collections.postgresml.distributed.plugins.plugin_utils.ddl import Statement
from ansible_collections.postgresml.distributed.plugins.plugin_utils.scope import Scope

REPLICAS_FIRST = "replicas_first"
PRIMARY_FIRST = "primary_first"
TOGETHER = "together"
PRIMARY_ONLY = "primary_only"

READS, REWRITES, BUILDS = "reads", "rewrites", "builds an index on"

CONSENT = "set pgml_schema_change_allow_disruptive to true"

_KINDS = {"v": "view", "m": "materialized view", "f": "foreign table", "c": "composite type", "t": "TOAST table"}


class Misplaced(Exception):
    """A statement that can't be placed; its message follows the statement's label."""


@dataclass
class Part:
    """Where one thing that a statement does comes."""

    order: str
    words: str
    consent: str | None = None
    """Why the user has to agree, as words that follow the statement's label"""
    blocks: str | None = None
    """What it does with the table while others wait: READS, REWRITES or BUILDS"""
    columns: Sequence[str] = ()
    """The columns that it is about, for tables that are distributed by columns"""
    reason: str = ""
    before: list[str] = field(default_factory=list)
    pin: Any = None
    """The command whose default gives every server another value"""
    comes: str | None = None
    """A column that joins the publication's column list"""
    goes: str | None = None
    joins: bool = False
    concurrently: dict[str, str] = field(default_factory=dict)
    """The index that it builds or drops outside of a transaction, by the module's option"""
    warnings: list[str] = field(default_factory=list)
    locks: Sequence[str] = ()
    """The tables that the primary locks against writers before it"""
    alone: bool = False


@dataclass
class Placed:
    """Where a statement comes, and what each side runs."""

    statement: Statement
    order: str
    words: str
    table: str | None
    primary: str
    replica: str
    reason: str = ""
    consents: list[str] = field(default_factory=list)
    blocks: str | None = None
    before: list[str] = field(default_factory=list)
    pins: list[dict[str, str]] = field(default_factory=list)
    joins: bool = False
    concurrently: dict[str, str] = field(default_factory=dict)
    """As that of its part"""
    alone: bool = False
    """Whether it has a transaction of its own, so that what it waits for is not waited for by more"""
    warnings: list[str] = field(default_factory=list)

    @property
    def on(self) -> str:
        return "primary" if self.order == PRIMARY_ONLY else "both"


@dataclass
class Context:
    """What is known where a statement is placed."""

    statement: Statement
    primary: Catalog
    replicas: list[Catalog]
    """Those that have not run the statement yet, as they are before it"""
    base: Catalog
    """The primary, or where it has run the statement, the first replica that has not"""
    scope: Scope
    later: Sequence[Statement] = ()

    @property
    def waiting(self) -> list[Catalog]:
        """The servers that have not run the statement yet."""
        return [self.base, *(each for each in self.replicas if each is not self.base)]

    @property
    def node(self) -> Any:
        return self.statement.node

    def table(self, name: str, missing_ok: bool = False) -> dict[str, Any] | None:
        """The facts of a table of the distribution; None where there is none and that is allowed. Raises Misplaced."""
        facts = self.base.relations.get(name)
        if facts is None:
            if missing_ok:
                return None
            raise Misplaced("is about {0}, which does not exist on {1}".format(name, self.base.host))
        if facts.get("kind") in _KINDS:
            words = "is about {0}, which is a {1} and not part of what is kept equal: run it where you want it"
            raise Misplaced(words.format(name, _KINDS[facts["kind"]]))
        if not self.is_inside(facts):
            raise Misplaced("is about {0}, which is not in distribution {1}".format(name, self.scope.name))
        self._check_replicas(name, facts)
        return facts

    def is_inside(self, facts: Mapping[str, Any]) -> bool:
        """Whether a relation is in the distribution: by itself, as an index by its table, or because the change makes it."""
        table = self.base.relations.get(str(facts.get("table")), {})
        return bool(
            facts.get("distributed") or facts.get("created") or table.get("distributed") or table.get("created")
        )

    def _check_replicas(self, name: str, facts: Mapping[str, Any]) -> None:
        if facts.get("created") or facts.get("kind") not in ("r", "p"):
            return
        astray = [each.host for each in self.replicas if not each.relations.get(name, {}).get("distributed")]
        if astray:
            words = "is about {0}, which {1} {2} not receive yet: run distribute.yml first"
            raise Misplaced(words.format(name, " and ".join(astray), "do" if len(astray) > 1 else "does"))

    def listed(self, name: str, facts: Mapping[str, Any]) -> list[str] | None:
        """The columns that are published of a table; None for all."""
        if facts.get("created"):
            return None
        held = facts if self.base is self.primary else self.primary.relations.get(name, {})
        return list(held["listed"]) if held.get("listed") else None

    def lacking(self, name: str) -> list[str]:
        """The replicas that have no such relation."""
        return [each.host for each in self.replicas if name not in each.relations]

    def absent(self, name: str) -> Part:
        """Where a statement comes that has IF EXISTS, about what is not there, or on some replicas only."""
        there = [each.host for each in self.replicas if name in each.relations]
        if there:
            return Part(
                REPLICAS_FIRST,
                "is about {0}, which only {1} {2}".format(
                    name, " and ".join(there), "have" if len(there) > 1 else "has"
                ),
            )
        return Part(REPLICAS_FIRST, "does nothing, because {0} does not exist".format(name))

    def is_small(self, facts: Mapping[str, Any] | None) -> bool:
        """Whether nobody has to wait for a statement that goes through the whole table."""
        return bool(facts and (facts.get("created") or facts.get("empty")))

    def is_apart(self, facts: Mapping[str, Any]) -> bool:
        """Whether no row of a table can be on its way yet: it is made by this change, and no partition of another."""
        return bool(facts.get("created")) and not facts.get("parent")

    def finds_by_all_columns(self, name: str) -> bool:
        """Whether a replica finds rows of a table by comparing all columns, for want of a key, as with REPLICA IDENTITY FULL. One
        that it isn't sent has to be NULL there, or the row is passed over without an error."""
        publish = self.primary.publication.get("publish")
        sender = self.primary.relations.get(name) or {}
        # What its partitions have doesn't show at a partitioned table.
        full = sender.get("identity") == "f" or sender.get("kind") == "p" and not _is_keyed(sender)
        if not full or publish is not None and not {"update", "delete"} & set(publish):
            return False
        there = [each.relations[name] for each in self.replicas if name in each.relations]
        return any(each.get("identity") != "i" and not _is_keyed(each) for each in there)


def _is_keyed(facts: Mapping[str, Any]) -> bool:
    return any(each.get("type") == "p" for each in facts["constraints"].values())
