# SPDX-License-Identifier: GPL-3.0-or-later
"""What differs on the target is created and altered, as far as the server lets it."""

from __future__ import annotations

import contextlib
from typing import Any, Iterable, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import (
    DistributedError,
    Refused,
    ServerRefused,
    Unreachable,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import difference, missing
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.difference import Difference
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.missing import Scripts

TARGET_LOCK_TIMEOUT = "60 s"
"""The target is no production server, and its apply worker may hold a table for the length of a transaction."""
_SHOWN = 10


def mend(endpoint: Endpoint, alterations: Sequence[Difference], scripts: Scripts) -> None:
    """Create and alter: new columns may need new types, and new indexes the columns.

    What only adds goes object by object, so that one which fails doesn't keep the others from it.
    """
    failures: list[DistributedError] = []
    supported = True
    # What pg_restore writes sets its session up, too, so that alterations have their own.
    with Session(endpoint, lock_timeout=TARGET_LOCK_TIMEOUT) as loader:
        if alterations:
            failures += _created(loader, scripts.support)
            supported = not failures
            with Session(endpoint, lock_timeout=TARGET_LOCK_TIMEOUT) as alterer:
                for group in _added(alterations):
                    failures += _tried(alterer, group)
                failures += _altered(alterer, [each for each in alterations if each.mended_by == difference.ALTER])
        if supported:
            missing.run(loader, [*([] if alterations else scripts.support), *scripts.tables])
            for steps in scripts.rest:
                failures += _created(loader, steps)
    if failures:
        words = " ".join(str(failure) for failure in failures[:_SHOWN])
        raise Refused(
            "{0} What had to be done together with it isn't done, the rest is. A rerun tries it again.".format(words),
            **failures[0].details,
        )


def _created(loader: Session, steps: Sequence[Any]) -> list[DistributedError]:
    try:
        missing.run(loader, steps)
    except ServerRefused as error:
        return [error]
    return []


def _added(alterations: Sequence[Difference]) -> Iterable[list[Difference]]:
    """What only adds, by transactions: a new label can't be used before it is committed, and partitions join when tables have
    their columns."""
    adding = [each for each in alterations if each.mended_by != difference.ALTER]
    yield from ([each] for each in adding if each.owner is None)
    by_owner: dict[tuple[bool, Any], list[Difference]] = {}
    for each in adding:
        if each.owner is not None:
            joins = any(when == difference.ATTACH for when, _statement in each.steps)
            by_owner.setdefault((joins, each.owner), []).append(each)
    yield from (by_owner[key] for key in by_owner if not key[0])
    yield from (by_owner[key] for key in by_owner if key[0])


def _altered(alterer: Session, altering: Sequence[Difference]) -> list[DistributedError]:
    """Alter all in one transaction, because one part may need another. If that can't be, what breaks something goes before what
    is harmless and may be what can't be done."""
    if not _tried(alterer, altering):
        return []
    serious = [each for each in altering if each.breaks != difference.HARMLESS]
    failures = _tried(alterer, serious)
    for each in altering:
        if each not in serious:
            failures += _tried(alterer, [each])
    return failures


def _tried(alterer: Session, group: Sequence[Difference]) -> list[DistributedError]:
    """Run the steps of *group*, in their order over all objects; what the server doesn't take leaves nothing of them."""
    steps = _woven(group)
    try:
        # Alone, because some statements can't run in a transaction.
        with contextlib.nullcontext() if len(steps) < 2 else alterer.transaction():
            for each, statement in steps:
                _run(alterer, statement, each)
    except Unreachable:
        raise
    except DistributedError as error:
        return [error]
    return []


def _woven(group: Sequence[Difference]) -> list[tuple[Difference, Any]]:
    """The steps of all of *group* in their order."""
    steps = [(when, number, statement) for number, each in enumerate(group) for when, statement in each.steps]
    return [(group[number], statement) for _when, number, statement in sorted(steps, key=lambda step: step[:2])]


def in_order(alterations: Sequence[Difference]) -> list[tuple[Difference, Any]]:
    """The statements that mend *alterations*, in the order in which mend() runs them."""
    groups = [*_added(alterations), [each for each in alterations if each.mended_by == difference.ALTER]]
    return [step for group in groups for step in _woven(group)]


def _run(alterer: Session, statement: Any, each: Difference) -> None:
    try:
        alterer.execute(statement)
    except ServerRefused as error:
        raise Refused("{0}: {1}".format(each.remedy, error), **error.details) from None
