# SPDX-License-Identifier: GPL-3.0-or-later
"""From the foreign tables that are there to those that are wanted: what is new, what is replaced, what goes, what has drifted."""

from __future__ import annotations

from typing import Any, Iterable, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused, ServerRefused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    Change,
    compose,
    enumerate_names,
    identifier,
    listed,
    quoted,
    raw,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import (
    foreign_imports,
    foreign_ledger,
    foreign_tables,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.foreign_imports import (
    Import,
    Item,
    Whole,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.foreign_ledger import Thing
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.foreign_tables import Definition
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.schedule import Key

_KINDS = {foreign_tables.FOREIGN_TABLE: foreign_ledger.TABLE, foreign_tables.VIEW: foreign_ledger.VIEW}
_STILL_NEEDED = "2BP01"
"""dependent_objects_still_exist"""
GONE = "the table is gone from the source"


class Replacement(NamedTuple):
    """An item that takes the place of what is there."""

    item: Item
    reason: str


class Plan(NamedTuple):
    """What is to happen to the foreign tables of a server."""

    new: Sequence[Item]
    replaced: Sequence[Replacement]
    dropped: Mapping[Key, str]
    """with the reasons"""
    drift: Mapping[Key, Sequence[str]]
    """what stays although it differs, and how it does"""

    @property
    def words(self) -> list[str]:
        return [
            *["Import {0}".format(quoted(*item.key)) for item in self.new],
            *["Replace {0}: {1}".format(quoted(*r.item.key), r.reason) for r in self.replaced],
            *["Drop {0}: {1}".format(quoted(*key), reason) for key, reason in self.dropped.items()],
        ]


def plan(
    items: Sequence[Item],
    there: Mapping[Key, Definition],
    remembered: Mapping[foreign_ledger.Key, Thing],
    imports: Sequence[Import | Whole],
    reimport: bool,
) -> Plan:
    """What leads from the relations that are *there*, of which those *remembered* are the server's, to *items*."""
    _refuse_collisions(items, there, remembered)
    new, replaced = [], []
    drift: dict[Key, Sequence[str]] = {}
    for item in items:
        here = [there.get(definition.key) for definition in item.definitions]
        if not any(here):
            new.append(item)
        elif None in here and _request_of(item, remembered) == item.request:
            replaced.append(Replacement(item, "a part of it is missing here"))
        elif here != item.definitions:
            if _request_of(item, remembered) != item.request:
                replaced.append(Replacement(item, "it is asked for in another way"))
            elif reimport:
                replaced.append(Replacement(item, ", ".join(_differences(item, there))))
            else:
                drift[item.key] = _differences(item, there)
    dropped = {}
    for key, gone in _leftovers(items, there, remembered, imports).items():
        if not gone or reimport:
            dropped[key] = GONE if gone else "it is not asked for"
        else:
            drift[key] = [GONE]
    return Plan(new, replaced, dropped, drift)


def _refuse_collisions(
    items: Iterable[Item], there: Mapping[Key, Definition], remembered: Mapping[foreign_ledger.Key, Thing]
) -> None:
    taken = [
        key
        for item in items
        for key in [definition.key for definition in item.definitions]
        if key in there and (_KINDS.get(there[key].kind, ""), *key) not in remembered
    ]
    if taken:
        raise Refused(
            "{0} {1} there already and {2} not come from this server: rename {3}, or choose another local_schema.".format(
                enumerate_names(quoted(*key) for key in taken),
                "is" if len(taken) == 1 else "are",
                "has" if len(taken) == 1 else "have",
                "it" if len(taken) == 1 else "them",
            )
        )


def _request_of(item: Item, remembered: Mapping[foreign_ledger.Key, Thing]) -> str | None:
    thing = remembered.get((foreign_ledger.TABLE, *item.table.key))
    return thing.definition if thing else None


def _differences(item: Item, there: Mapping[Key, Definition]) -> list[str]:
    return foreign_tables.differences(item.table, there[item.table.key]) or ["it was altered here"]


def _leftovers(
    items: Iterable[Item],
    there: Mapping[Key, Definition],
    remembered: Mapping[foreign_ledger.Key, Thing],
    imports: Sequence[Import | Whole],
) -> dict[Key, bool]:
    """What was made and is no part of *items*, and whether that is because the source has it no more."""
    items = list(items)
    wanted = {definition.key for item in items for definition in item.definitions}
    imported = {(item.key[0], item.table.remote) for item in items}
    result = {}
    for kind, schema, name in remembered:
        key = (schema, name)
        if kind in _KINDS.values() and key not in wanted and key in there:
            found = there[key]
            meant = kind == foreign_ledger.TABLE and any(each.means(found) for each in imports)
            result[key] = meant and (schema, found.remote) not in imported
    return result


def carry_out(session: Session, steps: Plan, there: Mapping[Key, Definition]) -> None:
    """Carry out *steps* in the transaction in which their items were imported."""
    after = {definition.key: definition for r in steps.replaced for definition in r.item.definitions}
    replaced = [key for key in after if key in there]
    takeover = foreign_tables.takeover(session, replaced, after)
    drop(session, [there[key] for key in [*replaced, *steps.dropped]])
    for item in [*steps.new, *[r.item for r in steps.replaced]]:
        for statement in foreign_imports.moves(item):
            session.execute(statement)
    for text in takeover:
        session.execute(raw(text))


def drop(session: Session, relations: Sequence[Definition]) -> None:
    """Drop foreign tables, and views over them; refuses what others depend on."""
    views = [relation.key for relation in relations if relation.kind == foreign_tables.VIEW]
    tables = [relation.key for relation in relations if relation.kind == foreign_tables.FOREIGN_TABLE]
    foreign_tables.refuse_losses(session, [*tables, *views])
    for what, keys in (("VIEW", views), ("FOREIGN TABLE", tables)):
        if keys:
            drop_unneeded(session, what, [identifier(*key) for key in keys])


def drop_unneeded(session: Session, what: str, names: Sequence[Any]) -> None:
    """DROP, which the server refuses when others depend on it."""
    run_drop(session, Change(compose("DROP {what} {names}", what=raw(what), names=listed(names)), ""))


def run_drop(session: Session, change: Change) -> None:
    """Carry out a *change* that drops something; refuses what others depend on."""
    try:
        session.execute(change.statement)
    except ServerRefused as error:
        if error.details.get("sqlstate") != _STILL_NEEDED:
            raise
        raise Refused("Something here depends on what is to be dropped: {0} Drop that first.".format(error)) from None


def things(items: Iterable[Item], kept: Mapping[Key, Sequence[str]], remembered: Mapping[Any, Thing]) -> list[Thing]:
    """What there is to remember of *items*, and of those tables that stay although they are gone from the source."""
    result = [
        Thing(_KINDS[definition.kind], *definition.key, item.request)
        for item in items
        for definition in item.definitions
    ]
    gone = [key for key, words in kept.items() if list(words) == [GONE]]
    return result + [thing for thing in remembered.values() if thing.place in gone and thing.kind in _KINDS.values()]
