# SPDX-License-Identifier: GPL-3.0-or-later
"""Table definitions on the target: the missing ones are brought from the source, unfit ones are refused."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from typing import Any, Collection, Iterable, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused, Unreachable
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.archive import (
    Archive,
    Entry,
    Script,
    as_pattern,
    picked,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.client_tools import RunCommand
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import SOURCE_OPTIONS, Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    Change,
    compose,
    enumerate_names,
    identifier,
    listed,
    quoted,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import (
    column_types,
    definitions,
    tables,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.definitions import Attachment, Definition
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.tables import Table
from ansible_collections.postgresml.distributed.plugins.module_utils.task import Task
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import seeds

OPTIONS: dict[str, Any] = {
    "source": {"type": "dict", "options": SOURCE_OPTIONS},
    "tables": {"type": "list", "elements": "raw", "default": []},
    "schemas": {"type": "list", "elements": "str", "default": []},
    "all_tables": {"type": "bool", "default": False},
    "exclude_tables": {"type": "list", "elements": "str", "default": []},
    "parts": {
        "type": "list",
        "elements": "str",
        "choices": ["types", "tables", "indexes", "constraints"],
        "default": ["tables", "indexes", "constraints"],
    },
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}

_PARTS = {"key": "tables", "index": "indexes", "constraint": "constraints", "foreign key": "constraints"}

TARGET_LOCK_TIMEOUT = "60 s"
"""The target is no production server, and its apply worker may hold a table for the length of a transaction."""


class Gap(NamedTuple):
    """What the target lacks."""

    tables: Sequence[Table]
    attachments: Sequence[Attachment]
    left_out: Sequence[dict[str, str]]


def manage(task: Task) -> None:
    """Bring the definitions of the task's options to the target, or drop the tables there."""
    params = task.params
    endpoint = Endpoint.from_source(params["source"]) if params["source"] else None
    session = task.session_or_none()
    with session or contextlib.nullcontext():
        if params["state"] == "absent":
            _drop(task, session, endpoint)
            return
        if endpoint is None:
            raise Refused("source is needed: it says where the definitions come from.")
        source = task.source_or_none(endpoint)
        if source is None:
            _predict_blindly(task, session)
            return
        with source:
            _bring(task, source, session)


def _predict_blindly(task: Task, session: Session | None) -> None:
    """In check mode, when the source can't be asked yet: what the target lacks of the tables that are named."""
    params = task.params
    if not set(params["parts"]) - {"types"}:
        return
    named = [request.name for request in tables.parse_requests(params["tables"]) or []]
    if session:
        keys = tables.parse_names(session, named)
        there = definitions.read(session, keys)
        lacking = [quoted(*key) for key in keys if key not in there]
        if params["all_tables"] and not tables.in_schemas(session, None):
            lacking.append("all of the database")
        filled = {table.schema for table in tables.in_schemas(session, None)}
        lacking += ["all of schema {0}".format(quoted(name)) for name in params["schemas"] if name not in filled]
    else:
        lacking = named + params["schemas"] + (["all of the database"] if params["all_tables"] else [])
    task.note(*["Create table {0}".format(label) for label in lacking])


def _bring(task: Task, source: Session, session: Session | None) -> None:
    task.result["left_out"] = []
    if "types" in task.params["parts"]:
        _bring_types(task, source, session)
    if set(task.params["parts"]) - {"types"}:
        _bring_tables(task, source, session)
    task.describe(None, {"created": task.outcome["changes"]} if task.outcome["changes"] else None)


def _bring_types(task: Task, source: Session, session: Session | None) -> None:
    """The types that columns need, whether the tables are to come or not."""
    lack = column_types.read(source, session, task.params)
    task.note(*["Create {0}".format(words) for words in lack.words])
    if "tables" not in task.params["parts"]:
        task.result["left_out"] += lack.left_out
    if session:
        with task.lenient():
            column_types.refuse_unfit(source, session, lack)
    if session and not task.check_mode:
        with Session(session.endpoint, lock_timeout=TARGET_LOCK_TIMEOUT) as loader:
            run(loader, column_types.statements(source, session, lack, task.run_command))


def _bring_tables(task: Task, source: Session, session: Session | None) -> None:
    wanted = requested(source, task.params)
    gap = read_gap(source, session, wanted, task.params["parts"])
    orphans = {attachment.key for attachment in gap.attachments} - {table.key for table in gap.tables}
    task.note(*["Create table {0}".format(table.label) for table in gap.tables])
    task.note(
        *[
            "Create {0} {1} of {2}".format(a.kind, quoted(a.name), quoted(*a.key))
            for a in gap.attachments
            if a.kind != "key" and not a.attach
        ]
    )
    task.result["tables"] = [table.label for table in wanted]
    task.result["left_out"] += gap.left_out
    if session and not task.check_mode:
        _refuse_orphans(session, orphans)
        create(source, session, gap, task.run_command)


def requested(source: Session, params: Mapping[str, Any]) -> list[Table]:
    """The tables that the options name on the source, with their partitions."""
    if params["all_tables"]:
        found = tables.in_schemas(source, None)
    else:
        found = tables.resolve(source, tables.parse_requests(params["tables"]) or [])
        keys = {table.key for table in found}
        others = tables.in_schemas(source, params["schemas"]) if params["schemas"] else []
        found += [table for table in others if table.key not in keys]
    found = tables.with_partitions(source, found)
    excluded = set(tables.parse_names(source, params["exclude_tables"]))
    unknown = excluded - {table.key for table in found}
    if unknown and params["state"] == "present":
        raise Refused(
            "exclude_tables: {0} is not among the tables that are asked for.".format(
                enumerate_names(quoted(*key) for key in unknown)
            )
        )
    gone = {table.oid for table in tables.with_partitions(source, [t for t in found if t.key in excluded])}
    return [table for table in found if table.oid not in gone]


def read_gap(source: Session, session: Session | None, wanted: Sequence[Table], parts: Sequence[str]) -> Gap:
    """What the target lacks of *parts* of the tables *wanted*; refuses tables that don't fit."""
    keys = [table.key for table in wanted]
    here = definitions.read(source, keys)
    there = definitions.read(session, keys) if session else {}
    # What a first copy has set aside comes back with its end.
    unfinished = seeds.unfinished_tables(session) if session else set()
    _refuse_unfit(wanted, here, {k: v._replace(identified=True) if k in unfinished else v for k, v in there.items()})
    missing = [table for table in wanted if table.key not in there]
    known = {(a.key, a.name) for a in definitions.attachments(session, there)} if session else set()
    lacking, left_out = [], []
    for attachment in definitions.attachments(source, keys):
        if _PARTS[attachment.kind] not in parts or (attachment.key, attachment.name) in known:
            continue
        if attachment.key in unfinished:
            continue
        if attachment.kind == "key" and attachment.key in there:
            continue
        reason = reason_to_leave_out(attachment, {table.key: table for table in wanted})
        if reason:
            left_out.append({"name": attachment.name, "table": quoted(*attachment.key), "reason": reason})
        else:
            lacking.append(attachment)
    return Gap(missing if "tables" in parts else [], lacking, left_out)


def reason_to_leave_out(attachment: Attachment, wanted: Mapping[tuple[str, str], Table]) -> str | None:
    """Why an index or a constraint can't be on the target, or None when it can."""
    table = wanted[attachment.key]
    if table.columns is not None and not attachment.columns <= set(table.columns):
        return "it uses columns that are not distributed"
    if attachment.refers is None:
        return None
    other = wanted.get(attachment.refers)
    if other is None:
        return "it refers to {0}, which is not distributed".format(quoted(*attachment.refers))
    if other.where is not None or other.columns is not None:
        return "it refers to {0}, of which only a part is distributed".format(other.label)
    return None


def _refuse_unfit(
    wanted: Sequence[Table],
    here: Mapping[tuple[str, str], Definition],
    there: Mapping[tuple[str, str], Definition],
) -> None:
    unfit = {}
    for table in wanted:
        if table.key in there:
            found = definitions.differences(table, here[table.key], there[table.key])
            if found:
                unfit[table.label] = found
    if unfit:
        words = "; ".join("{0}: {1}".format(label, ", ".join(found)) for label, found in sorted(unfit.items())[:10])
        raise Refused(
            "Tables exist on the target and don't fit the source: {0}. Alter or drop them there.".format(words),
            differences=unfit,
        )


def _refuse_orphans(session: Session, keys: Collection[tuple[str, str]]) -> None:
    missing = set(keys) - set(definitions.read(session, keys))
    if missing:
        raise Refused(
            "There is no table {0} in {1}: let parts hold tables.".format(
                enumerate_names(quoted(*key) for key in missing), session.endpoint
            )
        )


def create(source: Session, session: Session, gap: Gap, run_command: RunCommand) -> None:
    """Create what the target lacks: tables with their keys in one transaction, the rest table by table."""
    if not gap.tables and not gap.attachments:
        return
    new = {table.key for table in gap.tables}
    keys = [a for a in gap.attachments if a.kind == "key" and a.key in new]
    later = [a for a in gap.attachments if a not in keys]
    with tempfile.TemporaryDirectory(prefix="pgml-") as directory:
        support = _Support(source, session, directory, gap, run_command)
        archive = Archive(os.path.join(directory, "tables"), source.version // 10000, run_command)
        every = new | {attachment.key for attachment in later}
        archive.dump(
            source.endpoint,
            [*column_types.BARE, *["--table=" + as_pattern(*key) for key in sorted(every | support.sequences)]],
        )
        entries = archive.entries()

        with Session(session.endpoint, lock_timeout=TARGET_LOCK_TIMEOUT) as loader:
            tables_script = archive.script(picked(entries, support.identities, support.texts), session.version)
            keys_script = archive.script(_of(entries, keys), session.version)
            drops = _column_drops(source, gap.tables)
            run(loader, [*support.scripts, tables_script.whole, *drops, keys_script.whole])
            for steps in _table_by_table(archive.script(_of(entries, later), session.version), later):
                run(loader, steps)


def _of(entries: Iterable[Entry], attachments: Sequence[Attachment]) -> list[Entry]:
    return picked(entries, {a.identity for a in attachments}, {a.attach for a in attachments if a.attach})


def _table_by_table(script: Script, attachments: Sequence[Attachment]) -> Iterable[list[str]]:
    """The pieces of *script*, those of one table together as long as they stand together; foreign keys stand last."""
    owners = {a.identity: a.key for a in attachments}
    owners_by_text = {a.attach: a.key for a in attachments if a.attach}
    for _key, pieces in itertools.groupby(
        script.pieces.items(), lambda item: owners.get(item[0].identity) or owners_by_text.get(item[0].text)
    ):
        yield [script.preamble, *(text for _entry, text in pieces)]


def run(loader: Session, scripts: Iterable[Any]) -> None:
    """Run *scripts* in one transaction."""
    wanted = [script for script in scripts if script]
    if wanted:
        with loader.transaction():
            for script in wanted:
                loader.execute(script)


def _column_drops(source: Session, missing: Sequence[Table]) -> list[Any]:
    """Columns that are not distributed don't stay: NULL would be forged, and NOT NULL would refuse the rows."""
    new = {table.key for table in missing}
    here = definitions.read(source, [table.key for table in missing if table.columns is not None])
    statements = []
    for table in missing:
        if table.columns is None or table.top in new:
            continue
        others = [name for name in here[table.key].columns if name not in table.columns]
        if others:
            drops = listed([compose("DROP COLUMN {name} CASCADE", name=identifier(name)) for name in others])
            statements.append(compose("ALTER TABLE {table} {drops}", table=identifier(*table.key), drops=drops))
    return statements


class _Support:
    """What tables and attachments need around them, of which the target gets what it lacks."""

    def __init__(self, source: Session, session: Session, directory: str, gap: Gap, run_command: RunCommand) -> None:
        relation = source.value("SELECT 'pg_class'::regclass::oid")
        namespace = source.value("SELECT 'pg_namespace'::regclass::oid")
        starts = [(relation, table.oid) for table in gap.tables] + [a.identity for a in gap.attachments]
        needed = definitions.needed_objects(source, starts)
        there = definitions.existing(session, needed.values())
        lacking = {identity: words for identity, words in needed.items() if words not in there}
        self.identities = set(lacking) - {a.identity for a in gap.attachments}
        self.texts, owned = definitions.loose_ends(source, [table.oid for table in gap.tables])
        self.sequences = definitions.sequences(source, [oid for catalog, oid in lacking if catalog == relation]) - owned
        schemas = definitions.schemas(source, [oid for catalog, oid in lacking if catalog == namespace])
        self.scripts: list[Any] = [compose("CREATE SCHEMA {name}", name=identifier(name)) for name in schemas]
        others = {identity for identity in self.identities if identity[0] not in (relation, namespace)}
        if definitions.stand_alone(source, others):
            archive = Archive(os.path.join(directory, "support"), source.version // 10000, run_command)
            archive.dump(source.endpoint, [*column_types.BARE, "--exclude-table=*.*"])
            self.scripts.append(archive.script(picked(archive.entries(), others, ()), session.version).whole)


def _drop(task: Task, session: Session | None, endpoint: Endpoint | None) -> None:
    """Drop the tables on the target that the options name; which those of a schema are, the source says."""
    params = task.params
    if session is None:
        return
    if params["schemas"] or params["all_tables"]:
        if endpoint is None:
            raise Refused("source is needed: it says which tables of a schema or a database are meant.")
        source = task.source_or_none(endpoint)
        if source is None:
            return
        with source:
            _refuse_source(source, session)
            keys = [table.key for table in requested(source, params)]
    else:
        with contextlib.suppress(Unreachable), contextlib.ExitStack() as stack:
            if endpoint:
                _refuse_source(stack.enter_context(Session(endpoint)), session)
        keys = tables.parse_names(session, [request.name for request in tables.parse_requests(params["tables"]) or []])
    there = definitions.read(session, keys)
    task.describe({"tables": sorted(quoted(*key) for key in there)}, None)
    if there:
        names = listed([identifier(*key) for key in sorted(there)])
        words = "Drop table {0}".format(enumerate_names(quoted(*key) for key in there))
        task.apply(session, [Change(compose("DROP TABLE {names}", names=names), words)])


def _refuse_source(source: Session, session: Session) -> None:
    if source.is_same_database(session):
        raise Refused("{0} is source and target at once: its tables are not dropped.".format(session.endpoint.title))
