# SPDX-License-Identifier: GPL-3.0-or-later
"""Definitions of tables under the names of staging schemas, as PostgreSQL itself spells them.

What pg_dump says of the source's tables is restored into an empty scratch database. There the tables move to staging schemas, and
pg_dump says it again. So no definition is ever edited as text, and the target gets none before it is asked for.
"""

from __future__ import annotations

import os
from typing import Any, Collection, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused, ServerRefused
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
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import definitions, exchange, missing
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.definitions import Attachment
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.tables import Table
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import staging
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.staging import Names

_RELATION, _DEFAULT, CONSTRAINT, _NAMESPACE, _EXTENSION = 1259, 2604, 2606, 2615, 3079
"""The numbers of pg_class, pg_attrdef, pg_constraint, pg_namespace and pg_extension, the same on every server."""
_NO_STATEMENT = (_RELATION, _DEFAULT, CONSTRAINT, _NAMESPACE)
"""Catalogs whose objects pg_dump's archive without tables doesn't hold, or that are made otherwise here."""

TABLES_FILE, SUPPORT_FILE = "tables.dump", "support.dump"


class Origin(NamedTuple):
    """What there is to know of the source's tables and what they need, beside pg_dump's two archives."""

    version: int
    keys: list[tuple[str, str]]
    schemas: list[str]
    """that tables and statistics objects are in"""
    support: list[tuple[int, int, str, str]]
    """(catalog, object, identity, statements that comment on it) of what the tables need"""
    sequences: list[tuple[str, str, int]]
    """(schema, name, number) of those that defaults use and no column owns"""
    left_out: list[tuple[int, int]]
    """entries that the target can't have"""
    drops: list[tuple[str, str, list[str]]]
    """(schema, table, columns that are not copied)"""
    statistics: list[str]
    """statements that make the tables' statistics objects"""
    attached: list[tuple[str, str, list[str]]]
    """(schema, table, what it consists of in words), see exchange.attached()"""
    no_privileges: bool


class Blueprint(NamedTuple):
    """The tables as statements, in the order in which they run. All name the staging schemas."""

    preamble: str
    """settings for a session that runs the rest"""
    tables: list[str]
    constraints: list[tuple[tuple[str, str], str]]
    """(staging key, statement) of what needs a table for itself"""
    indexes: list[tuple[tuple[str, str], str]]
    foreign_keys: list[tuple[tuple[str, str], tuple[str, str], str]]
    """(staging key, staging key it refers to, statement)"""
    late: list[str]
    """what is quick, or about partitioned tables: attachments, triggers, policies, comments"""
    partitioned: frozenset[tuple[str, str]]
    partitions: frozenset[tuple[str, str]]
    """staging keys of partitioned tables and of their partitions"""


def read_origin(
    session: Session, tables: Sequence[Table], no_privileges: bool, roles: Collection[str]
) -> tuple[Origin, list[dict[str, str]]]:
    """The Origin of *tables* at the source, and what is left out of their definitions, with reasons.

    *roles* are those of the target, if it is known.
    """
    by_key = {table.key: table for table in tables}
    oids = [table.oid for table in tables]
    left_out: list[dict[str, str]] = []
    identities = []
    statistics = []
    starts = [(_RELATION, oid) for oid in oids]
    for attachment in definitions.attachments(session, by_key):
        reason = definitions.reason_to_leave_out(by_key[attachment.key], attachment.columns, attachment.refers, by_key)
        if reason:
            left_out.append({"name": attachment.name, "table": quoted(*attachment.key), "reason": reason})
            identities.append(attachment.identity)
        else:
            starts.append(attachment.identity)
    for belonging in definitions.belongings(session, oids, roles):
        if belonging.reason:
            left_out.append({"name": belonging.name, "table": belonging.table, "reason": belonging.reason})
            identities.append(belonging.identity)
        else:
            starts.append(belonging.identity)
            statistics += [belonging.statements] if belonging.statements else []
    needed = definitions.needed_objects(session, starts)
    starting = set(starts)
    comments = definitions.comments(session, list(needed))
    standalone = definitions.standalone_sequences(
        session, [oid for catalog, oid in needed if catalog == _RELATION], oids
    )
    here = definitions.read(session, [table.key for table in tables if table.columns is not None])
    origin = Origin(
        session.version,
        sorted(by_key),
        sorted({key[0] for key in by_key} | set(definitions.statistics_schemas(session, oids))),
        [
            (catalog, oid, words, comments.get((catalog, oid), ""))
            for (catalog, oid), words in needed.items()
            if (catalog, oid) not in starting
        ],
        standalone,
        identities,
        [
            (table.schema, table.name, [name for name in here[table.key].columns if name not in table.columns])
            for table in tables
            if table.columns is not None and table.top not in by_key
        ],
        statistics,
        [(key[0], key[1], words) for key, words in arriving(session, tables, left_out).items()],
        no_privileges,
    )
    return origin, left_out


def arriving(
    session: Session, tables: Sequence[Table], left_out: Sequence[Mapping[str, str]] | None = None
) -> dict[tuple[str, str], list[str]]:
    """What the tables will consist of on the target, in the words of exchange.attached(): without columns that are not copied,
    and without what is *left_out*, or would be."""
    by_key = {table.key: table for table in tables}
    if left_out is None:
        reasons = [
            (a, definitions.reason_to_leave_out(by_key[a.key], a.columns, a.refers, by_key))
            for a in definitions.attachments(session, by_key)
        ]
        left_out = [{"table": quoted(*a.key), "name": a.name} for a, reason in reasons if reason]
    gone = {(item["table"], item["name"]) for item in left_out}
    result = {}
    for key, words in exchange.attached(session, list(by_key)).items():
        columns = by_key[key].columns
        result[key] = [
            each
            for each in words
            if (quoted(*key), _unquoted(each)) not in gone
            and not (each.startswith("column ") and columns is not None and _unquoted(each) not in columns)
        ]
    return result


def _unquoted(words: str) -> str:
    """The name in the words of exchange.attached()."""
    name = words.split(" ", 1)[1]
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def restored(facts: Mapping[str, Any]) -> Origin:
    """The Origin that JSON made of lists."""
    return Origin(
        facts["version"],
        [(key[0], key[1]) for key in facts["keys"]],
        facts["schemas"],
        [(item[0], item[1], item[2], item[3]) for item in facts["support"]],
        [(item[0], item[1], item[2]) for item in facts["sequences"]],
        [(item[0], item[1]) for item in facts["left_out"]],
        [(item[0], item[1], item[2]) for item in facts["drops"]],
        facts["statistics"],
        [(item[0], item[1], item[2]) for item in facts["attached"]],
        facts["no_privileges"],
    )


def dump(session: Session, snapshot: str, origin: Origin, directory: str, run_command: RunCommand) -> None:
    """Write pg_dump's archives of what *origin* tells of into *directory*, as *snapshot* sees it."""
    both = ["--snapshot=" + snapshot, *(["--no-privileges"] if origin.no_privileges else [])]
    major = session.version // 10000
    relations = [as_pattern(*key) for key in [*origin.keys, *[item[:2] for item in origin.sequences]]]
    Archive(os.path.join(directory, TABLES_FILE), major, run_command).dump(
        session.endpoint, [*both, *["--table=" + relation for relation in relations]]
    )
    if _stand_alone(origin):
        Archive(os.path.join(directory, SUPPORT_FILE), major, run_command).dump(
            session.endpoint, [*both, "--exclude-table=*.*", "--no-comments"]
        )


def _stand_alone(origin: Origin) -> list[tuple[int, int]]:
    """What of the support is made by statements of its own."""
    return [(item[0], item[1]) for item in origin.support if item[0] not in _NO_STATEMENT]


class Drafts:
    """The definitions in *directory*, and what can be made of them in a database."""

    def __init__(self, origin: Origin, directory: str, run_command: RunCommand) -> None:
        self._origin = origin
        self._directory = directory
        self._run_command = run_command

    def extensions(self) -> list[str]:
        """The extensions that the tables need."""
        return [
            words.split(" ", 1)[1] for catalog, _oid, words, _comments in self._origin.support if catalog == _EXTENSION
        ]

    def bring_support(self, session: Session, owner: str | None = None) -> None:
        """Create what the tables need and the database lacks, in one transaction. *owner* gets the sequences."""
        origin = self._origin
        there = definitions.existing(session, [words for _catalog, _oid, words, _comments in origin.support])
        lacking = [item for item in origin.support if item[2] not in there]
        schemas = [words.split(" ", 1)[1] for catalog, _oid, words, _comments in lacking if catalog == _NAMESPACE]
        scripts: list[Any] = ["CREATE SCHEMA " + name for name in schemas]
        others = {(item[0], item[1]) for item in lacking if item[0] not in _NO_STATEMENT}
        if others:
            archive = self._archive(SUPPORT_FILE)
            scripts.append(archive.script(picked(archive.entries(), others, ()), session.version).whole)
        new = {(item[0], item[1]) for item in lacking}
        sequences = [item for item in origin.sequences if (_RELATION, item[2]) in new]
        if sequences:
            archive = self._archive(TABLES_FILE)
            entries = picked(archive.entries(), {(_RELATION, item[2]) for item in sequences}, ())
            scripts.append(archive.script(entries, session.version).whole)
            scripts += [
                compose("ALTER SEQUENCE {name} OWNER TO {owner}", name=identifier(*item[:2]), owner=identifier(owner))
                for item in sequences
                if owner is not None
            ]
        standing = {item[2] for item in origin.sequences}
        scripts += [
            item[3]
            for item in lacking
            if item[0] != _RELATION or item[1] in standing or item[2].startswith("composite type ")
        ]
        missing.run(session, scripts)

    def rehearse(self, target: Session, names: Names) -> Blueprint:
        """The Blueprint, made in a scratch database on the target's server. The caller drops it, which takes a checkpoint
        and therefore a while."""
        endpoint = staging.create_scratch(target)
        with Session(endpoint, synchronous_commit="off", lock_timeout="0") as scratch:
            scratch.without_timeouts()
            self._restore(scratch)
            self._move(scratch, names)
            return self._read_again(scratch, names)

    def _restore(self, scratch: Session) -> None:
        origin = self._origin
        self.bring_support(scratch)
        archive = self._archive(TABLES_FILE)
        not_again = {*origin.left_out, *[(_RELATION, item[2]) for item in origin.sequences]}
        script = archive.script([e for e in archive.entries() if e.identity not in not_again], scratch.version)
        scratch.execute(script.preamble)
        for entry, text in script.pieces.items():
            try:
                scratch.execute(text)
            except ServerRefused as error:
                # Comments on what is left out are left out, too.
                if not (origin.left_out and entry.text.startswith("COMMENT ")):
                    raise Refused(
                        "The definition of {0} can't be brought to the target: {1}".format(_what(entry), error)
                    ) from None
        if not any(entry.text.startswith("STATISTICS ") for entry in script.pieces):
            for text in origin.statistics:
                scratch.execute(text)
        for of_schema, table, columns in origin.drops:
            if columns:
                drops = listed([compose("DROP COLUMN {name} CASCADE", name=identifier(name)) for name in columns])
                scratch.execute(compose("ALTER TABLE {table} {drops}", table=identifier(of_schema, table), drops=drops))

    def _move(self, scratch: Session, names: Names) -> None:
        scratch.execute("SET search_path = pg_catalog")
        there = {name: names.new(name) for name in names.numbers}
        for name in there.values():
            scratch.execute(compose("CREATE SCHEMA {name}", name=identifier(name)))
        for statement in staging.moves(scratch, self._origin.keys, there):
            scratch.execute(statement)

    def _read_again(self, scratch: Session, names: Names) -> Blueprint:
        path = os.path.join(self._directory, "staging.dump")
        archive = Archive(path, scratch.version // 10000, self._run_command)
        archive.dump(
            scratch.endpoint,
            [
                *(["--no-privileges"] if self._origin.no_privileges else []),
                *["--schema=" + as_pattern_of_schema(names.new(name)) for name in names.numbers],
            ],
        )
        before = archive.script(archive.entries("pre-data"), scratch.version)
        after = archive.script(archive.entries("post-data"), scratch.version)
        os.unlink(path)
        keys = [(names.new(key[0]), key[1]) for key in self._origin.keys]
        plan = sorted_out(after, definitions.attachments(scratch, keys), *definitions.partitioning(scratch, keys))
        return plan._replace(preamble=before.preamble, tables=[*before.pieces.values(), *plan.tables])

    def _archive(self, name: str) -> Archive:
        return Archive(os.path.join(self._directory, name), self._origin.version // 10000, self._run_command)


def sorted_out(
    after: Script,
    attachments: Sequence[Attachment],
    partitioned: frozenset[tuple[str, str]],
    partitions: frozenset[tuple[str, str]],
) -> Blueprint:
    """The part of a Blueprint that comes *after* the rows."""
    known = {attachment.identity: attachment for attachment in attachments}
    plan = Blueprint("", [], [], [], [], [], partitioned, partitions)
    for entry, text in after.pieces.items():
        attachment = known.get(entry.identity) if after.preamble else None
        if entry.text.startswith("STATISTICS "):  # they take effect with ANALYZE
            plan.tables.append(text)
        elif attachment is None or {attachment.key, attachment.refers} & partitioned:
            plan.late.append(text)
        elif attachment.refers:
            plan.foreign_keys.append((attachment.key, attachment.refers, text))
        elif entry.text.startswith("INDEX "):
            plan.indexes.append((attachment.key, text))
        else:
            plan.constraints.append((attachment.key, text))
    return plan


def _what(entry: Entry) -> str:
    return entry.text.rsplit(" ", 1)[0].lower()


def as_pattern_of_schema(name: str) -> str:
    """A schema's name as pg_dump's --schema takes it."""
    return '"{0}"'.format(name.replace('"', '""'))
