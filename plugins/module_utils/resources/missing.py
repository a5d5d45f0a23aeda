# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables, indexes and constraints that the target lacks, brought from the source with pg_dump and pg_restore."""

from __future__ import annotations

import itertools
import os
import re
import tempfile
from typing import Any, Iterable, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.archive import (
    Archive,
    Entry,
    Script,
    as_pattern,
    picked,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.client_tools import RunCommand
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    compose,
    identifier,
    listed,
    quoted,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import column_types, definitions
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.definitions import Attachment
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.tables import Table
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import seeds

_PARTS = {"key": "tables", "index": "indexes", "constraint": "constraints", "foreign key": "constraints"}


class Gap(NamedTuple):
    """What the target lacks."""

    tables: Sequence[Table]
    attachments: Sequence[Attachment]
    left_out: Sequence[dict[str, str]]
    altered: Sequence[tuple[int, int]] = ()
    """(catalog, object) of what is altered, which may need types, functions and sequences"""

    @property
    def words(self) -> list[str]:
        """What is created."""
        return ["Create table {0}".format(table.label) for table in self.tables] + [
            "Create {0} {1} of {2}".format(a.kind, quoted(a.name), quoted(*a.key))
            for a in self.attachments
            if a.kind != "key" and not a.attach
        ]


def read_gap(source: Session, session: Session | None, wanted: Sequence[Table], parts: Sequence[str]) -> Gap:
    """What the target lacks of *parts* of the tables *wanted*."""
    keys = [table.key for table in wanted]
    there = definitions.read(session, keys) if session else {}
    # What a first copy has set aside comes back with its end.
    unfinished = seeds.unfinished_tables(session) if session else set()
    by_key = {table.key: table for table in wanted}
    missing = [table for table in wanted if table.key not in there]
    known = {(a.key, a.name) for a in definitions.attachments(session, there)} if session else set()
    lacking, left_out = [], []
    for attachment in definitions.attachments(source, keys):
        if _PARTS[attachment.kind] not in parts or (attachment.key, attachment.name) in known:
            continue
        if attachment.key in unfinished:
            continue
        if attachment.key in there and (attachment.kind == "key" or attachment.inherited in known):
            continue  # a partition has the indexes of its table, by whatever names
        reason = definitions.reason_to_leave_out(by_key[attachment.key], attachment.columns, attachment.refers, by_key)
        if reason:
            left_out.append({"name": attachment.name, "table": quoted(*attachment.key), "reason": reason})
        elif attachment.inherited and attachment.inherited[0] not in by_key:
            lacking.append(attachment._replace(attach=None))  # nobody asks for the table that it is a partition of
        else:
            lacking.append(attachment)
    return Gap(missing if "tables" in parts else [], lacking, left_out)


class Scripts(NamedTuple):
    """What creates on the target what it lacks."""

    support: Sequence[Any] = ()
    """schemas, types, functions, sequences"""
    tables: Sequence[Any] = ()
    """with their keys, for one transaction"""
    rest: Sequence[Sequence[Any]] = ()
    """indexes and constraints, table by table"""


def scripts(source: Session, session: Session, gap: Gap, run_command: RunCommand) -> Scripts:
    """What creates on the target what it lacks."""
    if not gap.tables and not gap.attachments and not gap.altered:
        return Scripts()
    new = {table.key for table in gap.tables}
    with tempfile.TemporaryDirectory(prefix="pgml-") as directory:
        support = _Support(source, session, directory, gap, run_command)
        keys = [a for a in gap.attachments if a.key in new and a.kind == "key"]
        later = [a for a in gap.attachments if a not in keys]
        every = sorted(new | {attachment.key for attachment in later} | support.sequences)
        if not every:
            return Scripts(support.scripts)
        archive = Archive(os.path.join(directory, "tables"), source.version // 10000, run_command)
        archive.dump(source.endpoint, [*column_types.BARE, *["--table=" + as_pattern(*key) for key in every]])
        entries = archive.entries()
        own = picked(entries, support.identities, support.texts)
        sequences = [entry for entry in own if entry.text.startswith(support.sequence_texts)]
        first = archive.script(sequences, session.version)
        tables = archive.script([entry for entry in own if entry not in sequences], session.version)
        keyed = archive.script(_of(entries, keys), session.version)
        rest = archive.script(_of(entries, later), session.version)
        return Scripts(
            [*support.scripts, first],
            [tables, *_column_drops(source, gap.tables), keyed],
            list(_table_by_table(rest, later)),
        )


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
        starts = (
            [(relation, table.oid) for table in gap.tables] + [a.identity for a in gap.attachments] + [*gap.altered]
        )
        needed = definitions.needed_objects(source, starts)
        there = definitions.existing(session, needed.values())
        lacking = {identity: words for identity, words in needed.items() if words not in there}
        self.identities = set(lacking) - {a.identity for a in gap.attachments} - set(gap.altered)
        new = [table.oid for table in gap.tables]
        self.texts, owned = definitions.loose_ends(source, new)
        self.sequences = definitions.sequences(source, [oid for catalog, oid in lacking if catalog == relation]) - owned
        self.sequence_texts = tuple("SEQUENCE {0} {1} ".format(*key) for key in self.sequences)
        schemas = definitions.schemas(source, [oid for catalog, oid in lacking if catalog == namespace])
        self.scripts: list[Any] = [compose("CREATE SCHEMA {name}", name=identifier(name)) for name in schemas]
        others = {identity for identity in self.identities if identity[0] not in (relation, namespace)}
        if definitions.stand_alone(source, others):
            archive = Archive(os.path.join(directory, "support"), source.version // 10000, run_command)
            archive.dump(source.endpoint, [*column_types.BARE, "--exclude-table=*.*"])
            self.scripts.append(archive.script(picked(archive.entries(), others, ()), session.version))


def run(loader: Session, steps: Iterable[Any]) -> None:
    """Run *steps* in one transaction."""
    wanted = [text for text in (step.whole if isinstance(step, Script) else step for step in steps) if text]
    if wanted:
        with loader.transaction():
            for text in wanted:
                loader.execute(text)


def shown(session: Session, steps: Iterable[Any]) -> list[str]:
    """The lines of *steps* that people want to see: pg_restore sets a session up, too, before and between the definitions."""
    lines = []
    for step in steps:
        if isinstance(step, Script):
            pieces: Iterable[str] = step.pieces.values()
        else:
            pieces = [step if isinstance(step, str) else session.text_of(step) + ";"]
        for piece in pieces:
            lines += _AROUND.sub("", piece).splitlines()
    return lines


_AROUND = re.compile(
    r"\A(?:(?:--|SET |SELECT pg_catalog\.set_config).*\n|[ \t]*\n)+"
    r"|(?:\n[ \t]*|\nSET default_.*|\n--(?: PostgreSQL database dump complete)?)+\Z"
)
