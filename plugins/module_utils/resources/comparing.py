# SPDX-License-Identifier: GPL-3.0-or-later
"""The definitions of source and target read side by side, and what differs between them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Callable, Collection, Iterable, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import quoted
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import (
    definitions,
    difference,
    missing,
    publication,
    replica_identity,
    spelling,
    structures,
    table_differences,
    type_differences,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.definitions import Attachment
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.difference import (
    IDENTIFY,
    Difference,
    Servers,
    Sides,
    columns_of,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.missing import Gap
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.publication import Publication
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.structures import (
    SequenceState,
    Structure,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.tables import Table, refuse_missing
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


_RELATION, _TYPE = 1259, 1247
"""The numbers of pg_class and pg_type, the same on every server."""
_NOTHING: dict[Any, Any] = {}


class Comparison(NamedTuple):
    """What was found."""

    wanted: Sequence[Table]
    types: Mapping[str, structures.Type]
    """on the source"""
    differences: Sequence[Difference]
    """what breaks something first"""
    left_out: Sequence[dict[str, str]]
    sequences: Sequence[dict[str, Any]]

    def mended_by(self, mode: str) -> list[Difference]:
        """Those that *mode* mends."""
        modes = difference.MODES[: difference.MODES.index(mode) + 1]
        return [each for each in self.differences if each.mended_by in modes]

    def gap(self, source: Session, session: Session | None, found: Sequence[Difference], parts: Sequence[str]) -> Gap:
        """What has to be created to mend *found*, which costs a few more queries."""
        made = [each for each in found if each.dumped]
        gap = missing.read_gap(source, session, self.wanted, parts) if made else Gap([], [], [])
        tables = {each.owner for each in made if each.kind == "table"}
        named = {(each.owner, each.name) for each in made}
        own = {(each.key, each.name): each for each in gap.attachments}
        return gap._replace(
            tables=[table for table in gap.tables if table.key in tables],
            attachments=[each for each in gap.attachments if each.key in tables or _origin(each, own) in named],
            altered=self._altered([each for each in found if each.steps]),
        )

    def _altered(self, found: Sequence[Difference]) -> list[tuple[int, int]]:
        """What is altered of *found*, by catalog and object."""
        owners = {each.owner for each in found}
        types = {each.object for each in found if each.kind == "type"}
        return [(_RELATION, table.oid) for table in self.wanted if table.key in owners] + [
            (_TYPE, type_.oid) for name, type_ in self.types.items() if name in types
        ]

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
    refuse_missing(source, [key for key in keys if key not in here.tables])
    by_key = {table.key: table for table in wanted}
    left_out: list[dict[str, str]] = []
    published = structures.publications(source, keys)
    publications = [each for each in (publication.read(source, name) for name in published) if each]
    found = [*_of_publications(source, publications, by_key)]
    if session is None or there is None:
        found += [table_differences.missing_table(table, here.tables[table.key]) for table in wanted]
    else:
        generated = {key for each in publications if each.generated_columns == "stored" for key in published[each.name]}
        found += _Tables(source, session, by_key, here, there, generated).differences(left_out)
        alike = partial(spelling.alike, source_version=source.version, target_version=session.version)
        found += type_differences.of_types(here.types, there.types, alike)
        found += type_differences.of_sequences(here.sequences, there.sequences)
        extensions = {each.extension for each in here.types.values() if each.extension} | here.used_by_indexes
        found += type_differences.of_extensions(extensions, here.extensions, there.extensions)
        found += type_differences.of_databases(here.database, there.database)
    found = [each for each in found if _is_asked_for(each, parts)]
    found.sort(key=_order)
    standings = _standings(here.sequences, there.sequences if there else _NOTHING)
    return Comparison(wanted, here.types, found, left_out, standings)


def _order(each: Difference) -> tuple[int, tuple[str, ...], int]:
    """What breaks something first, object by object in the order in which statements have to run."""
    return difference.CLASSES.index(each.breaks), each.owner or (), each.steps[0][0] if each.steps else 0


def _origin(attachment: Attachment, others: Mapping[Any, Attachment]) -> tuple[Any, str]:
    """The table and the name of the index that an index of a partition belongs to."""
    while attachment.inherited in others:
        attachment = others[attachment.inherited]
    return attachment.inherited or (attachment.key, attachment.name)


def _both(read: Callable[[Session], Side], source: Session, session: Session | None) -> tuple[Side, Side | None]:
    """Both sides at once, since two servers have the work."""
    with ThreadPoolExecutor(1) as pool:
        here = pool.submit(read, source)
        there = read(session) if session else None
        return here.result(), there


_SPELLING = (
    "SET timezone = 'UTC'; SET IntervalStyle = postgres; SET bytea_output = hex; SET extra_float_digits = 1;"
    " SET quote_all_identifiers = off; SET standard_conforming_strings = on"
)
"""What the server's texts of definitions depend on, and databases and roles may have each their own way."""


def read_side(session: Session, keys: Sequence[tuple[str, str]]) -> Side:
    """What the session's database has of the tables *keys*."""
    session.execute(_SPELLING)
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


def _of_publications(
    source: Session, publications: Sequence[Publication], wanted: Mapping[tuple[str, str], Table]
) -> Iterable[Difference]:
    """Tables that are published, and whose UPDATE and DELETE fail on the source because of that."""
    seen = set()
    for published in publications:
        for fault in publication.faults_of(source, published):
            identity = fault.identity
            if (identity.schema, identity.name) in wanted and identity.label not in seen:
                seen.add(identity.label)
                steps = ((IDENTIFY, replica_identity.full(identity).statement),) if fault.healed_by_full else ()
                words = "UPDATE and DELETE fail on the source: {0} {1}, and publication {2} publishes them".format(
                    identity.label, fault.reason, quoted(published.name)
                )
                yield Difference(
                    difference.PRIMARY, "replica_identity", identity.label, None, fault.reason, None, words, steps
                )


class _Tables:
    """The tables of both sides. Most are alike, and then nothing of them is looked at more closely."""

    def __init__(
        self,
        source: Session,
        session: Session,
        wanted: Mapping[tuple[str, str], Table],
        here: Side,
        there: Side,
        generated: Collection[tuple[str, str]],
    ) -> None:
        self._source, self._session, self._wanted, self._generated = source, session, wanted, generated
        self._here = {key: self._by_itself(structure) for key, structure in here.tables.items()}
        self._there = {key: self._by_itself(structure) for key, structure in there.tables.items()}
        self._servers = Servers(
            source.version,
            session.version,
            {name: type_.domain.base for name, type_ in here.types.items() if type_.kind == "d"},
            {*here.types, *there.types},
        )

    def _by_itself(self, structure: Structure) -> Structure:
        parents = [structure.parent] if structure.parent else structure.ancestors
        return structure if all(parent in self._wanted for parent in parents) else structure.apart()

    def differences(self, left_out: list[dict[str, str]]) -> list[Difference]:
        """What differs of them; what the target can't have is added to *left_out*."""
        found: list[Difference] = []
        unlike: list[tuple[Table, Structure, Structure]] = []
        for key, table in self._wanted.items():
            structure, other = self._here[key], self._there.get(key)
            lacks = _lacks(table, structure, self._wanted)
            left_out += lacks
            if lacks:
                structure = structure.without_parts({each["name"] for each in lacks})
            if other is not None and (key in self._generated or not structure.is_like(other)):
                unlike.append((table, structure, other))
        absent = [key for key in self._wanted if key not in self._there]
        for key in sorted(absent, key=self._depth):
            make = table_differences.missing_partition if self._joins(key) else table_differences.missing_table
            found.append(make(self._wanted[key], self._here[key]))
        return found + self._of_unlike(unlike)

    def _depth(self, key: tuple[str, str]) -> int:
        parent = self._here[key].parent
        return 0 if parent is None else 1 + self._depth(parent)

    def _joins(self, key: tuple[str, str]) -> bool:
        """Whether a missing table is a partition of one that is there, or that becomes one of such."""
        parent = self._here[key].parent
        return parent is not None and (parent in self._there or self._joins(parent))

    def _of_unlike(self, unlike: Sequence[tuple[Table, Structure, Structure]]) -> list[Difference]:
        # What a first copy has set aside comes back with its end.
        unfinished = seeds.unfinished_tables(self._session)
        binary = bool(unlike) and structures.is_binary(self._session, [other.oid for _table, _own, other in unlike])
        odd = [(structure, other) for _table, structure, other in unlike if set(structure.columns) ^ set(other.columns)]
        values = _by_table(structures.missing_values(self._source, _added_columns(odd)))
        places = structures.places(self._source, [structure.oid for structure, _other in odd])
        others = structures.places(self._session, [other.oid for _structure, other in odd])
        changed = [other.oid for _table, own, other in unlike if own.columns_text != other.columns_text]
        filled = structures.filled(self._session, changed)
        found = []
        for table, structure, other in unlike:
            sides = Sides(
                table,
                structure,
                other._replace(filled=other.oid in filled),
                columns_of(table, structure, table.key in self._generated, self._servers.target_version),
                other.columns,
                self._servers,
                binary,
                values.get(structure.oid, {}),
                (places.get(structure.oid, {}), others.get(other.oid, {})),
            )
            found += [
                each
                for each in table_differences.of_table(sides)
                if table.key not in unfinished or each.kind not in ("key", "index", "constraint", "replica_identity")
            ]
        return self._not_of_parents(found)

    def _not_of_parents(self, found: Sequence[Difference]) -> list[Difference]:
        """Without what tables share with those that they are made of: what is done to columns there is done to theirs."""
        columns = {(each.owner, each.name, each.source, each.target) for each in found if each.kind == "column"}

        def is_shared(each: Difference) -> bool:
            structure = self._there.get(each.owner or ("", ""))
            if each.kind != "column" or structure is None:
                return False
            parents = [structure.parent, *structure.ancestors]
            return any((parent, each.name, each.source, each.target) in columns for parent in parents)

        return [each for each in found if not is_shared(each)]


def _by_table(values: Mapping[tuple[int, str], str]) -> dict[int, dict[str, str]]:
    found: dict[int, dict[str, str]] = {}
    for (oid, name), value in values.items():
        found.setdefault(oid, {})[name] = value
    return found


def _lacks(table: Table, structure: Structure, wanted: Mapping[tuple[str, str], Table]) -> list[dict[str, str]]:
    """The indexes and constraints that the target can't have, and why."""
    if table.columns is None and '"FOREIGN KEY' not in structure.parts_text:
        return []
    reasons = {
        name: definitions.reason_to_leave_out(table, part.columns, part.refers, wanted)
        for name, part in structure.parts.items()
    }
    return [{"name": name, "table": table.label, "reason": reason} for name, reason in reasons.items() if reason]


def _added_columns(odd: Iterable[tuple[Structure, Structure]]) -> list[tuple[int, str]]:
    """The columns that the target lacks, by table and name; partitions get those of their table."""
    lacking = {structure.key: (structure.oid, set(structure.columns) - set(other.columns)) for structure, other in odd}
    parents = {other.key: other.parent for _structure, other in odd}
    return [
        (oid, name)
        for key, (oid, names) in lacking.items()
        for name in names
        if name not in lacking.get(parents[key] or ("", ""), (0, ()))[1]
    ]


def _is_asked_for(found: Difference, parts: Sequence[str]) -> bool:
    """Tables are compared in any case."""
    return {"index": "indexes", "constraint": "constraints"}.get(found.kind) in (None, *parts)


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
