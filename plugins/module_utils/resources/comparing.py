# SPDX-License-Identifier: GPL-3.0-or-later
"""The definitions of source and target read side by side, and what differs between them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Iterable, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import quoted
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import (
    definitions,
    difference,
    missing,
    publication,
    replica_identity,
    structures,
    table_differences,
    type_differences,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.difference import Difference
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.missing import Gap
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.structures import (
    SequenceState,
    Structure,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.tables import Table
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import seeds


class Side(NamedTuple):
    """What one server has of the tables."""

    tables: Mapping[tuple[str, str], Structure]
    types: Mapping[str, structures.Type]
    sequences: Mapping[tuple[str, str], SequenceState]
    extensions: Mapping[str, str]
    used_by_indexes: frozenset[str]
    """extensions"""
    database: structures.Database


_NOTHING: dict[Any, Any] = {}


class Comparison(NamedTuple):
    """What was found."""

    wanted: Sequence[Table]
    differences: Sequence[Difference]
    """what breaks something first"""
    left_out: Sequence[dict[str, str]]
    sequences: Sequence[dict[str, Any]]

    def mended_by(self, mode: str) -> list[Difference]:
        """Those that *mode* mends."""
        modes = difference.MODES[: difference.MODES.index(mode) + 1]
        return [each for each in self.differences if each.mended_by in modes]

    def gap(self, source: Session, session: Session | None, parts: Sequence[str]) -> Gap:
        """What has to be created, which costs a few more queries."""
        owners = {each.owner for each in self.differences if each.mended_by == difference.CREATE and each.owner}
        widened = {each.owner for each in self.differences if each.mended_by == difference.ADD and each.target is None}
        gap = missing.read_gap(source, session, self.wanted, parts) if owners else Gap([], [], [])
        return gap._replace(
            attachments=[each for each in gap.attachments if each.key in owners],
            widened=[table for table in self.wanted if table.key in widened],
        )

    def as_result(self, session: Session) -> dict[str, Any]:
        """The return values."""
        return {
            "differences": [
                {
                    "class": each.breaks,
                    "kind": each.kind,
                    "object": each.object,
                    "name": each.name,
                    "source": each.source,
                    "target": each.target,
                    "words": each.words,
                    "statements": [session.text_of(statement) for statement in each.statements],
                    "mended_by": each.mended_by,
                }
                for each in self.differences
            ],
            "summary": {name: sum(each.breaks == name for each in self.differences) for name in difference.CLASSES},
            "sequences": list(self.sequences),
        }


def compare(source: Session, session: Session | None, wanted: Sequence[Table], parts: Sequence[str]) -> Comparison:
    """What differs of *wanted* between the source and the database of *session*, which may not be there yet."""
    keys = [table.key for table in wanted]
    here, there = _both(lambda each: read_side(each, keys), source, session)
    by_key = {table.key: table for table in wanted}
    left_out: list[dict[str, str]] = []
    found = [*_of_publications(source, by_key)]
    if session is None or there is None:
        found += [table_differences.missing_table(table, here.tables[table.key]) for table in wanted]
    else:
        found += _of_tables(source, session, by_key, here, there, left_out)
        found += type_differences.of_types(here.types, there.types)
        found += type_differences.of_sequences(here.sequences, there.sequences)
        extensions = {each.extension for each in here.types.values() if each.extension} | here.used_by_indexes
        found += type_differences.of_extensions(extensions, here.extensions, there.extensions)
        found += type_differences.of_databases(here.database, there.database)
    found = [each for each in found if _is_asked_for(each, parts)]
    found.sort(key=lambda each: (difference.CLASSES.index(each.breaks), each.owner or ("",), each.rank))
    return Comparison(wanted, found, left_out, _standings(here.sequences, there.sequences if there else _NOTHING))


def _both(read: Callable[[Session], Side], source: Session, session: Session | None) -> tuple[Side, Side | None]:
    """Both sides at once, since two servers have the work."""
    with ThreadPoolExecutor(1) as pool:
        here = pool.submit(read, source)
        there = read(session) if session else None
        return here.result(), there


def read_side(session: Session, keys: Sequence[tuple[str, str]]) -> Side:
    """What the session's database has of the tables *keys*."""
    tables = structures.read(session, keys)
    oids = [table.oid for table in tables.values()]
    return Side(
        tables,
        structures.types(session, oids),
        structures.sequences(session, oids),
        structures.extensions(session),
        frozenset(structures.extensions_of_indexes(session, oids)),
        structures.database(session),
    )


def _of_publications(source: Session, wanted: Mapping[tuple[str, str], Table]) -> Iterable[Difference]:
    """Tables that are published, and whose UPDATE and DELETE fail on the source because of that."""
    seen = set()
    for name in structures.publications(source, wanted):
        published = publication.read(source, name)
        for fault in publication.faults_of(source, published) if published else ():
            identity = fault.identity
            if (identity.schema, identity.name) in wanted and identity.label not in seen:
                seen.add(identity.label)
                statements = (replica_identity.full(identity).statement,) if fault.healed_by_full else ()
                words = "UPDATE and DELETE fail on the source: {0} {1}, and publication {2} publishes them".format(
                    identity.label, fault.reason, quoted(name)
                )
                yield Difference(
                    difference.PRIMARY, "replica_identity", identity.label, None, fault.reason, None, words, statements
                )


def _of_tables(
    source: Session,
    session: Session,
    wanted: Mapping[tuple[str, str], Table],
    here: Side,
    there: Side,
    left_out: list[dict[str, str]],
) -> list[Difference]:
    """What differs of the tables themselves. Most are alike, and then nothing of them is looked at more closely."""
    found: list[Difference] = []
    unlike: list[tuple[Table, Structure, Structure]] = []
    for key, table in wanted.items():
        structure, other = here.tables[key], there.tables.get(key)
        lacks = _lacks(table, structure, wanted)
        left_out += lacks
        structure = _without(structure, lacks)
        if other is None:
            found.append(table_differences.missing_table(table, structure))
        elif not structure.is_like(other):
            unlike.append((table, structure, other))
    # What a first copy has set aside comes back with its end.
    unfinished = seeds.unfinished_tables(session)
    added = structures.missing_values(source, _added_columns(unlike))
    binary = bool(unlike) and structures.is_binary(session, [other.oid for _table, _structure, other in unlike])
    for table, structure, other in unlike:
        values = {name: value for (oid, name), value in added.items() if oid == structure.oid}
        sides = difference.sides_of(table, structure, other, binary, values)
        found += [
            each
            for each in table_differences.of_table(sides)
            if table.key not in unfinished or each.kind not in ("key", "index", "constraint", "replica_identity")
        ]
    return _not_of_parents(found, {table.key: other.parent for table, _structure, other in unlike})


def _not_of_parents(
    found: Sequence[Difference], parents: Mapping[tuple[str, str], tuple[str, str] | None]
) -> list[Difference]:
    """What partitions don't share with their parent: what is done to its columns is done to theirs."""
    columns = {(each.owner, each.name, each.source, each.target) for each in found if each.kind == "column"}
    return [
        each
        for each in found
        if each.kind != "column"
        or each.owner is None
        or (parents.get(each.owner), each.name, each.source, each.target) not in columns
    ]


def _lacks(table: Table, structure: Structure, wanted: Mapping[tuple[str, str], Table]) -> list[dict[str, str]]:
    """The indexes and constraints that the target can't have, and why."""
    if table.columns is None and '"FOREIGN KEY' not in structure.parts_text:
        return []
    reasons = {
        name: definitions.reason_to_leave_out(table, part.columns, part.refers, wanted)
        for name, part in structure.parts.items()
    }
    return [{"name": name, "table": table.label, "reason": reason} for name, reason in reasons.items() if reason]


def _without(structure: Structure, lacks: Sequence[Mapping[str, str]]) -> Structure:
    return structure.without_parts({each["name"] for each in lacks}) if lacks else structure


def _added_columns(unlike: Iterable[tuple[Table, Structure, Structure]]) -> list[tuple[int, str]]:
    """The columns that the target lacks, by table and name."""
    return [
        (structure.oid, name)
        for _table, structure, other in unlike
        if structure.columns_text != other.columns_text
        for name in set(structure.columns) - set(other.columns)
    ]


def _is_asked_for(difference: Difference, parts: Sequence[str]) -> bool:
    asked = {"index": "indexes", "constraint": "constraints"}.get(difference.kind, "tables")
    return asked in parts or difference.kind not in ("index", "constraint")


def _standings(
    here: Mapping[tuple[str, str], SequenceState], there: Mapping[tuple[str, str], SequenceState]
) -> list[dict[str, Any]]:
    """Where sequences stand on both sides."""
    result = []
    for key, sequence in sorted(here.items()):
        other = there.get(key)
        values = sequence.last_value, other.last_value if other else None
        behind = None if values[0] is None or values[1] is None else values[0] - values[1]
        result.append({"name": quoted(*key), "source": values[0], "target": values[1], "behind": behind})
    return result
