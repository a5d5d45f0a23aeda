# SPDX-License-Identifier: GPL-3.0-or-later
"""What there is to copy from one database to another, whether the target takes it, and the copy itself."""

from __future__ import annotations

import contextlib
import re
import tempfile
from typing import Any, Iterator, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import (
    DistributedError,
    Refused,
    ServerRefused,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    compose,
    enumerate_names,
    expression,
    identifier,
    quoted,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import (
    contents,
    definitions,
    exchange,
    schema,
    shipment,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.blueprint import Drafts
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.filling import Filling, Wishes
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.schedule import Cargo, Tally
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.shipment import Shipment
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.tables import Table
from ansible_collections.postgresml.distributed.plugins.module_utils.task import Task
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import (
    chunks,
    indexes,
    ledger,
    seeds,
    staging,
    workers,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.workers import Source


class Request(NamedTuple):
    """What is asked for, as the source has it."""

    wanted: list[Table]
    fingerprints: dict[tuple[str, str], str]
    not_moved: list[dict[str, str]]


class Verdict(NamedTuple):
    """Which of the tables are to be copied, and why."""

    keys: list[tuple[str, str]]
    reason: str


def read_request(source: Session, params: Mapping[str, Any]) -> Request:
    """The tables that the options name, checked as far as the source alone can tell."""
    wanted = schema.requested(source, params)
    if not wanted:
        excluded = params["exclude_tables"]
        raise Refused("Nothing is left to copy{0}.".format(": exclude_tables names all of it" if excluded else ""))
    contents.refuse_unreadable(source, wanted)
    fingerprints = contents.fingerprints(source, wanted)
    schemas = None if params["all_tables"] else params["schemas"]
    return Request(wanted, fingerprints, shipment.not_moved(source, schemas))


def judge(
    session: Session | None,
    params: Mapping[str, Any],
    wanted: Sequence[Table],
    fingerprints: Mapping[tuple[str, str], str],
) -> Verdict:
    """What has to be copied into the target that *session* is at, if it is there."""
    keys = [table.key for table in wanted]
    there = definitions.read(session, keys) if session else {}
    missing = [key for key in keys if key not in there]
    if params["refresh"] == "never":
        return Verdict(missing, "missing on the target" if missing else "all tables are there, and refresh is never")
    if params["refresh"] == "always":
        return Verdict(keys, "refresh is always")
    if missing or session is None:
        return Verdict(keys, "missing on the target")
    copies = ledger.read(session, keys)
    changed = [key for key in keys if key not in copies or copies[key].fingerprint != fingerprints.get(key)]
    if changed:
        return Verdict(keys, "changed on the source: {0}".format(enumerate_names(quoted(*key) for key in changed)))
    moving = moving_filters(session, wanted)
    if moving:
        return Verdict(keys, "the filter of {0} selects other rows at another time".format(enumerate_names(moving)))
    return Verdict([], "unchanged on the source since the last copy")


def moving_filters(session: Session | None, wanted: Sequence[Table]) -> list[str]:
    """The tables whose filters may select other rows at another time, although no row has changed."""
    return [
        table.label
        for table in wanted
        if table.where is not None
        and (session is None or _TIMES.search(table.where) or not _stands_still(session, table))
    ]


_TIMES = re.compile(r"\b(now|today|tomorrow|yesterday)\b", re.IGNORECASE)
"""Strings that are dates of the moment they are read in."""


def _stands_still(session: Session, table: Table) -> bool:
    """Whether a filter depends on nothing but the row. That is what an index predicate must do, so one is tried on an
    empty copy of the table, in a transaction that is rolled back."""
    try:
        with session.transaction(commit=False):
            session.execute(compose("CREATE TEMP TABLE pgml_probe (LIKE {table})", table=identifier(*table.key)))
            session.execute(
                compose("CREATE INDEX ON pg_temp.pgml_probe ((1)) WHERE {filter}", filter=expression(table.where or ""))
            )
    except ServerRefused:
        return False
    return True


def report(
    task: Task,
    session: Session | None,
    wanted: Sequence[Table],
    verdict: Verdict,
    not_moved: list[dict[str, str]],
) -> None:
    """Say what will change, and what is already there."""
    there = definitions.read(session, [table.key for table in wanted]) if session else {}
    copies = ledger.read(session, [table.key for table in wanted]) if session else {}
    chosen = set(verdict.keys)
    words = {True: "Replace", False: "Create"}
    if task.params["replace"] == "truncate":
        words[True] = "Empty and fill"
    task.note(*["{0} table {1}".format(words[t.key in there], t.label) for t in wanted if t.key in chosen])
    task.describe(
        {"tables": sorted(quoted(*key) for key in there)},
        {
            "tables": sorted({table.label for table in wanted if table.key in there or table.key in chosen}),
            **({"copied": sorted(quoted(*key) for key in chosen)} if chosen else {}),
        },
    )
    task.result.update(
        reason=verdict.reason,
        not_moved=not_moved,
        left_out=[],
        rows=0,
        relations=[table.label for table in wanted],
        tables=[
            {"name": table.label, "rows": copies[table.key].rows if table.key in copies else None}
            for table in wanted
            if table.kind == "r"
        ],
    )


def refuse_target(
    session: Session,
    params: Mapping[str, Any],
    wanted: Sequence[Table],
    attached: Mapping[tuple[str, str], Sequence[str]],
) -> None:
    """Refuse, before anything is made, what the target would refuse in the end. *attached* is what the source's tables
    consist of."""
    begun = seeds.begun(session, [table.key for table in wanted])
    if begun:
        raise Refused(
            "The first copy of subscription {0} in {1} has begun with tables that are asked for, and goes on from where they "
            "are: let it come to its end, or remove it with state=absent.".format(
                enumerate_names(map(quoted, begun)), session.endpoint
            )
        )
    there = definitions.read(session, [table.key for table in wanted])
    others = [quoted(*key) for key, found in there.items() if found.kind not in ("r", "p")]
    if others:
        raise Refused(
            "On the target {0} {1}: drop or rename {2} there.".format(
                enumerate_names(others),
                "is something else than a table" if len(others) == 1 else "are something else than tables",
                "it" if len(others) == 1 else "them",
            )
        )
    staging.refuse_without_createdb(session)
    if there and params["replace"] == "fail":
        raise Refused(
            "{0} {1} there on the target already, and replace is fail.".format(
                enumerate_names(quoted(*key) for key in there), "is" if len(there) == 1 else "are"
            )
        )
    if there and params["replace"] == "truncate":
        _refuse_to_empty(session, wanted, there)
    if there and params["replace"] == "swap":
        exchange.views_on(session, list(there), from_subscriptions=params["replace_subscribed"])
        exchange.refuse_unfinished(session, list(there))
        brought = {key: copy.attached for key, copy in ledger.read(session, list(there)).items()}
        exchange.refuse_losses(exchange.attached(session, list(there)), attached, brought)
    if params["owner"] and not session.value("SELECT 1 FROM pg_roles WHERE rolname = %s", [params["owner"]]):
        raise Refused('owner: there is no role "{0}" in {1}.'.format(params["owner"], session.endpoint))


def refuse_lacking_labels(source: Session, session: Session, wanted: Sequence[Table]) -> None:
    """Refuse an enum that lacks labels on the target: a type that is there is not altered."""
    here = definitions.read(source, [table.key for table in wanted])
    there = definitions.labels(session)
    for key, table in here.items():
        for column in table.columns.values():
            name = column.type[:-2] if column.type.endswith("[]") else column.type
            lacking = [label for label in column.labels if name in there and label not in there[name]]
            if lacking:
                raise Refused(
                    "Type {0} of {1}.{2} lacks {3} on the target: add it there with ALTER TYPE ... ADD VALUE.".format(
                        name, quoted(*key), quoted(column.name), enumerate_names(map(repr, lacking))
                    )
                )


def _refuse_to_empty(session: Session, wanted: Sequence[Table], there: Mapping[tuple[str, str], Any]) -> None:
    """Refuse to fill tables in place when some are missing, or when foreign keys may be wrong afterwards: nobody checks them."""
    missing = [table.label for table in wanted if table.key not in there]
    if missing:
        raise Refused(
            "replace=truncate fills tables that are there, and {0} {1} missing on the target: use replace=swap.".format(
                enumerate_names(missing), "is" if len(missing) == 1 else "are"
            )
        )
    whole = [table.key for table in wanted if table.where is None]
    loose = exchange.foreign_keys_elsewhere(session, list(there), whole)
    if loose:
        raise Refused(
            "On the target {0} may be violated when only a part of the rows is filled in: drop it there, or use "
            "replace=swap.".format(enumerate_names(loose))
        )


def make_ready(session: Session) -> None:
    """Take the target for this run, and remove what one that died has left."""
    session.without_timeouts()
    staging.lock_run(session)
    staging.clean(session)


def tidy(task: Task, session: Session | None) -> None:
    """Remove what a run that died after its last transaction has left."""
    left = staging.left_over(session) if session else []
    if session and left and staging.is_first(session):
        task.note(*["Drop {0}, which a run that died has left".format(name) for name in left])
        if not task.check_mode:
            staging.clean(session)


@contextlib.contextmanager
def workspace() -> Iterator[str]:
    """A directory for definitions, as long as they are needed."""
    with tempfile.TemporaryDirectory(prefix="pgml-") as directory:
        yield directory


def cargo_of(source: Session, goods: Shipment, params: Mapping[str, Any]) -> list[Cargo]:
    """The chunks of a shipment that are read from a server, largest first."""
    items = {item.extent.oid: item for item in goods.contents}
    result = []
    for chunk in chunks.plan([item.extent for item in goods.contents], workers.jobs(params["jobs"]), source.version):
        item = items[chunk.oid]
        binary = _binary(item, params["format"])
        read = contents.reading(item, chunk, binary)
        result.append(Cargo(item.table.key, source.text_of(read), chunk.bytes, binary, chunk.whole))
    return result


def _binary(item: contents.Contents, wish: str) -> bool:
    if wish == "binary" and not item.binary:
        raise Refused(
            "format is binary, and {0} has columns whose binary form differs between servers: use auto.".format(
                item.table.label
            )
        )
    return item.binary and wish != "text"


def fill(
    task: Task,
    session: Session,
    goods: Shipment,
    drafts: Drafts,
    source: Source,
    cargo: Sequence[Cargo],
    moved: Any,
) -> None:
    """Make the tables of *goods*, let the *cargo* come into them from *source*, and tell how much that was.

    :param moved: called when the last row is read
    """
    params = task.params
    found = definitions.read(session, goods.keys)
    there = [key for key in goods.keys if key in found]
    emptied = there if params["replace"] == "truncate" else []
    replaced = [] if emptied else there
    wishes = Wishes(params["owner"], workers.jobs(params["jobs"]), emptied, replaced, params["replace_subscribed"])
    tally = bring(session, goods, drafts, source, cargo, moved, wishes)
    formats = {item.key: "binary" if item.binary else "text" for item in cargo}
    task.result.update(
        left_out=goods.left_out,
        rows=sum(tally.rows.values()),
        bytes=goods.size,
        tables=[
            {
                "name": item.table.label,
                "rows": tally.rows.get(item.table.key, 0),
                "bytes": item.size,
                "format": formats[item.table.key],
                "chunks": tally.chunks.get(item.table.key, 0),
            }
            for item in goods.contents
        ],
    )


def bring(
    session: Session,
    goods: Shipment,
    drafts: Drafts,
    source: Source,
    cargo: Sequence[Cargo],
    moved: Any,
    wishes: Wishes,
) -> Tally:
    """Fill the tables of *goods* as *wishes* say, and leave nothing behind when that fails."""
    definitions.refuse_missing_extensions(session, drafts.extensions())
    indexes.refuse_no_space(session, goods.size)
    run = Filling(session, goods, drafts, wishes)
    try:
        run.fill(source, cargo, moved)
    except BaseException:
        with contextlib.suppress(DistributedError):
            staging.clean(session)
        raise
    return run.tally
