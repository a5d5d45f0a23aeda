# SPDX-License-Identifier: GPL-3.0-or-later
"""Sums of hashes, by which two servers tell whether they hold the same rows without sending them.

A row is hashed as text, so that both sides may have other types. The hash of its key puts it into a bucket. Each bucket has
a count and a sum, which add up over the pieces in which a table is read. A bucket that differs is looked into by more bits
of the key's hash, and in the end key by key.
"""

from __future__ import annotations

from typing import Any, Collection, Iterable, Iterator, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.insight.subjects import Side, Subject
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    compose,
    identifier,
    listed,
    literal,
    raw,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import chunks, snapshot
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.chunks import Extent

SETTINGS = {
    "timezone": "UTC",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "jit": "off",
    "work_mem": "64MB",
    "max_parallel_workers_per_gather": "0",
}
"""What a session that hashes needs besides what all have, so that both write values the same way, and no more processes than
were asked for."""

ROWS_IN_BUCKET = 500
_MOST_BITS = 16
_MOST_FINER_BITS = 17
_SHOWN_CHARACTERS = 200
"""Of each value by which a row without a key is shown."""

_PROBES = ("", "a", "twelve bytes", "thirteen bytes", "x" * 1000)
"""Texts that take each path through PostgreSQL's hash function."""

Sums = Mapping[Any, "tuple[int, int]"]
"""Bucket, or key -> how many rows, and the sum of their hashes."""


class Part(NamedTuple):
    """Rows of a table that one query reads."""

    oid: int
    schema: str
    name: str
    only: bool
    first: int = 0
    end: int | None = None


class Parts(NamedTuple):
    """A table as one side reads it."""

    parts: list[Part]
    rows: int
    """estimated"""


class Within(NamedTuple):
    """The buckets to look into."""

    bits: int
    buckets: Collection[int]


ALL_BITS = 64


class Dialect(NamedTuple):
    """How both servers hash a text."""

    native: bool
    """by their own function, which both must have in the same form, over text in the same encoding"""

    def hash(self, text: Any) -> Any:
        """The expression that hashes the expression *text* to a bigint."""
        if self.native:
            return compose('hashtextextended({text} COLLATE "C", 0)', text=text)
        return compose(
            "('x' || encode(substr(sha256(convert_to({text}, 'UTF8')), 1, 8), 'hex'))::bit(64)::bigint", text=text
        )


def dialect(source: Session, target: Session) -> Dialect:
    """The fastest way to hash that gives the same on both servers."""
    query = (
        'SELECT getdatabaseencoding(), array(SELECT hashtextextended(probe COLLATE "C", 0)'
        " FROM unnest(%s::text[]) WITH ORDINALITY AS x(probe, n) ORDER BY n)"
    )
    return Dialect(source.row(query, [list(_PROBES)]) == target.row(query, [list(_PROBES)]))


def bits_for(rows: int) -> int:
    """How many bits of the key's hash make buckets of about ROWS_IN_BUCKET rows."""
    return min((max(rows, 0) // ROWS_IN_BUCKET).bit_length(), _MOST_BITS)


def finer_bits(bits: int, buckets: int) -> int | None:
    """How many bits to look into that many *buckets* by, or None when there would be too many buckets."""
    more = _MOST_FINER_BITS - max(buckets - 1, 0).bit_length()
    finer = min(bits + more, ALL_BITS - 1)
    return finer if finer > bits else None


def merged(results: Iterable[Sequence[Any]]) -> dict[Any, tuple[int, int]]:
    """The sums of several parts, added up."""
    total: dict[Any, tuple[int, int]] = {}
    for rows in results:
        for row in rows:
            key = tuple(row.id) if isinstance(row.id, list) else row.id
            count, hashes = total.get(key, (0, 0))
            total[key] = (count + row.rows, hashes + int(row.hashes))
    return total


def apart(source: Sums, target: Sums) -> dict[Any, int]:
    """What differs, and how many rows it has on the side that has more."""
    nothing = (0, 0)
    return {
        key: max(source.get(key, nothing)[0], target.get(key, nothing)[0])
        for key in [*source, *(key for key in target if key not in source)]
        if source.get(key) != target.get(key)
    }


def batches(buckets: Mapping[int, int], rows: int) -> Iterator[list[int]]:
    """*buckets* in portions of at most *rows* rows, where one bucket hasn't more."""
    portion: list[int] = []
    size = 0
    for bucket, count in buckets.items():
        if portion and size + count > rows:
            yield portion
            portion, size = [], 0
        portion.append(bucket)
        size += count
    if portion:
        yield portion


def parts(session: Session, sides: Sequence[Side], jobs: int) -> dict[int, Parts]:
    """In which pieces to read the tables, as *session* sees them, by oid; a partitioned table by its partitions."""
    rows: dict[int, list[Any]] = {side.oid: [] for side in sides}
    for row in session.rows(_PARTS, [list(rows)]):
        rows[row.top].append(row)
    leaves = {row.oid: row for found in rows.values() for row in found}
    pieces: dict[int, list[Part]] = {oid: [] for oid in leaves}
    extents = [Extent(row.oid, row.blocks, row.bytes) for row in leaves.values()]
    for chunk in chunks.plan(extents, jobs, session.version):
        row = leaves[chunk.oid]
        pieces[chunk.oid].append(Part(row.oid, row.schema, row.name, True, chunk.first, chunk.end))
    return {
        top: Parts(
            [piece for row in found for piece in pieces[row.oid]]
            if all(row.readable for row in found)
            else [Part(top, found[0].top_schema, found[0].top_name, False)],
            sum(row.rows for row in found),
        )
        for top, found in rows.items()
    }


def sizes(session: Session, sides: Sequence[Side]) -> dict[int, int]:
    """Bytes of the tables, partitions included, by oid."""
    result = {side.oid: 0 for side in sides}
    for row in session.rows(_PARTS, [list(result)]):
        result[row.top] += row.bytes
    return result


_PARTS = (
    "WITH RECURSIVE below AS (SELECT oid AS top, oid FROM unnest(%s::oid[]) AS asked(oid)"
    "  UNION ALL SELECT below.top, i.inhrelid FROM below JOIN pg_class AS p ON p.oid = below.oid AND p.relkind = 'p'"
    "  JOIN pg_inherits AS i ON i.inhparent = p.oid)"
    " SELECT below.top, tn.nspname AS top_schema, t.relname AS top_name, c.oid, n.nspname AS schema, c.relname AS name,"
    "  has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')"
    "   AND NOT row_security_active(c.oid) AS readable,"
    "  pg_table_size(c.oid) AS bytes, (pg_relation_size(c.oid) / current_setting('block_size')::int)::int8 AS blocks,"
    "  (CASE WHEN c.reltuples > 0 THEN c.reltuples"
    "   ELSE pg_relation_size(c.oid) / current_setting('block_size')::int * 40 END)::int8 AS rows"
    " FROM below JOIN pg_class AS c ON c.oid = below.oid JOIN pg_namespace AS n ON n.oid = c.relnamespace"
    " JOIN pg_class AS t ON t.oid = below.top JOIN pg_namespace AS tn ON tn.oid = t.relnamespace"
    " WHERE c.relkind = 'r' ORDER BY 4"
)


def whole(subject: Subject, side: Side) -> Part:
    """All rows of a table, partitions included."""
    return Part(side.oid, *subject.key, only=side.kind == "r")


def sums(how: Dialect, subject: Subject, part: Part, where: str | None, bits: int, within: Within | None) -> Any:
    """The query for the sums of a part: by buckets of so many *bits*, or with ALL_BITS by keys."""
    key = how.hash(_as_text(_known_by(subject)))
    return compose(
        "SELECT {by} AS id, count(*) AS rows, sum({row}) AS hashes FROM ({rows}) AS t{within} GROUP BY 1",
        by=_key_texts(subject) if subject.identity and bits == ALL_BITS else _bucket(key, bits),
        row=how.hash(_as_text(subject.columns)),
        rows=_rows(subject, part, where),
        within=_inside(key, within),
    )


def look(how: Dialect, subject: Subject, side: Side, where: str | None, keys: Sequence[tuple[str, ...]]) -> Any:
    """The query for the sums of *keys*, found by the key's index; each is known by its number in *keys*."""
    names = ["k{0}".format(number) for number in range(len(subject.identity))]
    conditions = []
    for name, column in zip(names, subject.identity):
        plain = side.columns[column].plain
        conditions.append(
            compose(
                "{column}{text} = {key}::{type}",
                column=identifier("t", column),
                text=raw("" if plain else "::text"),
                key=identifier("k", name),
                type=raw(side.columns[column].type if plain else "text"),
            )
        )
    return compose(
        "SELECT k.number::int AS id, count(*) AS rows, sum({row}) AS hashes FROM unnest({keys}) WITH ORDINALITY"
        " AS k({names}, number) JOIN ({rows}) AS t ON {conditions} GROUP BY 1",
        row=how.hash(_as_text(subject.columns)),
        keys=listed(
            [compose("{list}::text[]", list=literal([key[n] for key in keys])) for n in range(len(subject.identity))]
        ),
        names=listed([identifier(name) for name in names]),
        rows=_rows(subject, whole(subject, side), where),
        conditions=raw(" AND ").join(conditions),
    )


def shown(how: Dialect, subject: Subject, side: Side, where: str | None, hashes: Collection[int]) -> Any:
    """The query for the values of rows without a key, by their hashes."""
    key = how.hash(_as_text(_known_by(subject)))
    values = [
        compose("left({column}::text, {most})", column=identifier("t", name), most=literal(_SHOWN_CHARACTERS))
        for name in subject.columns
    ]
    return compose(
        "SELECT DISTINCT ON (1) {key} AS id, ARRAY[{values}]::text[] AS texts FROM ({rows}) AS t{within}",
        key=key,
        values=listed(values),
        rows=_rows(subject, whole(subject, side), where),
        within=_inside(key, Within(ALL_BITS, hashes)),
    )


def _known_by(subject: Subject) -> Sequence[str]:
    return subject.identity or subject.columns


def _rows(subject: Subject, part: Part, where: str | None) -> Any:
    columns = dict.fromkeys([*subject.columns, *subject.identity])
    return snapshot.select(part.schema, part.name, list(columns), where, part.first, part.end, part.only)


def _as_text(columns: Sequence[str]) -> Any:
    return compose("ROW({columns})::text", columns=listed([identifier("t", name) for name in columns]))


def _key_texts(subject: Subject) -> Any:
    texts = [compose('({column}::text COLLATE "C")', column=identifier("t", name)) for name in subject.identity]
    return compose("ARRAY[{texts}]", texts=listed(texts))


def _bucket(key: Any, bits: int) -> Any:
    if bits == ALL_BITS:
        return key
    return compose("{key} & {mask}", key=key, mask=literal((1 << bits) - 1)) if bits else raw("0")


def _inside(key: Any, within: Within | None) -> Any:
    """The condition that a row lies in the buckets; as one literal, because there may be thousands."""
    if within is None:
        return raw("")
    buckets = "{{{0}}}".format(",".join(map(str, within.buckets)))
    return compose(
        " WHERE ({key}) IN (SELECT unnest({buckets}::bigint[]))",
        key=_bucket(key, within.bits),
        buckets=literal(buckets),
    )
