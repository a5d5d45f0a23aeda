# SPDX-License-Identifier: GPL-3.0-or-later
"""All of a table's definition as one server has it, in texts that are equal when the definitions are.

One query reads every table with its columns, keys, indexes and constraints, others read types, sequences and the rest, so that
the number of queries doesn't depend on the number of tables. What depends on how a table came about and not on what it is, such
as the order of its columns, is left out.
"""

from __future__ import annotations

import json
from typing import Any, Collection, Iterable, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import arrays, quoted


class Column(NamedTuple):
    """A column of a table, or an attribute of a composite type."""

    type: str
    """as format_type() spells it"""
    not_null: bool = False
    default: str | None = None
    """or the expression that generates it"""
    identity: str = ""
    """pg_attribute.attidentity"""
    generated: str = ""
    """pg_attribute.attgenerated"""
    collation: str | None = None
    """when it isn't the type's own, as in SQL"""
    options: str | None = None
    """of its identity's sequence, when they aren't the usual ones"""
    unvalidated: bool = False
    """whether NOT NULL is said of new rows only, with NOT VALID"""

    def __str__(self) -> str:
        """What CREATE TABLE has after the column's name."""
        parts = [self.type]
        if self.collation:
            parts.append("COLLATE " + self.collation)
        if self.not_null:
            parts.append("NOT NULL")
        if self.generated:
            parts.append(
                "GENERATED ALWAYS AS ({0}){1}".format(self.default, " STORED" if self.generated == "s" else "")
            )
        elif self.default is not None:
            parts.append("DEFAULT " + self.default)
        if self.identity:
            parts.append("GENERATED {0} AS IDENTITY".format(IDENTITIES[self.identity]))
            if self.options:
                parts.append("({0})".format(self.options))
        return " ".join(parts)

    @property
    def is_required(self) -> bool:
        """Whether a row can't come without it."""
        return self.not_null and self.default is None and not self.identity


IDENTITIES = {"a": "ALWAYS", "d": "BY DEFAULT"}


class Part(NamedTuple):
    """An index or a constraint of a table."""

    name: str
    kind: str
    """C(key) of the primary key, C(constraint) or C(index)"""
    type: str
    """pg_constraint.contype, or C(i) of an index"""
    definition: str
    """without the name"""
    columns: tuple[str, ...]
    unique: bool
    """whether it refuses rows that are like others: C(PRIMARY KEY), C(UNIQUE) and C(EXCLUDE)"""
    valid: bool
    refers: tuple[str, str] | None
    """the table that a foreign key points to"""
    inherited: bool
    """whether it is a part of one of the table's parent"""


class Structure(NamedTuple):
    """A table."""

    key: tuple[str, str]
    oid: int
    kind: str
    """pg_class.relkind"""
    persistence: str
    """pg_class.relpersistence"""
    identity: str
    """pg_class.relreplident"""
    identity_index: str | None
    """of REPLICA IDENTITY USING INDEX"""
    identity_columns: tuple[str, ...]
    """by which a row is known, when replica identity isn't FULL; those of the primary key when that is all there is"""
    parent: tuple[str, str] | None
    """the table of which it is a partition"""
    bound: str | None
    ancestors: tuple[tuple[str, str], ...]
    """the tables from which it inherits columns"""
    partitioned_by: str | None
    columns_text: str
    parts_text: str
    filled: bool = False
    """whether it may hold rows, see filled()"""

    @property
    def label(self) -> str:
        return quoted(*self.key)

    @property
    def columns(self) -> dict[str, Column]:
        return {name: Column(*fields) for name, fields in json.loads(self.columns_text).items()}

    @property
    def parts(self) -> dict[str, Part]:
        found = {}
        for fields in json.loads(self.parts_text):
            part = Part(*fields)
            refers = (part.refers[0], part.refers[1]) if part.refers else None
            found[part.name] = part._replace(columns=tuple(part.columns), refers=refers)
        return found

    @property
    def own_parts(self) -> dict[str, Part]:
        """Without what it has of its parent."""
        return {name: part for name, part in self.parts.items() if self.parent is None or not part.inherited}

    @property
    def is_partition(self) -> bool:
        """Whether it is one, of whatever table."""
        return self.bound is not None

    def apart(self) -> Structure:
        """The table by itself, where nobody asks for its parent."""
        return self._replace(parent=None, ancestors=())

    def without_parts(self, names: Collection[str]) -> Structure:
        """The table without some of its indexes and constraints."""
        left = [part for part in json.loads(self.parts_text) if part[0] not in names]
        return self._replace(parts_text=json.dumps(left))

    def is_like(self, other: Structure) -> bool:
        """Whether both are defined the same, whatever server they are on."""
        return self._replace(oid=other.oid, filled=other.filled) == other


def read(session: Session, keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Structure]:
    """The tables of *keys* that exist."""
    return {
        (row.schema, row.name): Structure(
            (row.schema, row.name),
            row.oid,
            row.kind,
            row.persistence,
            row.identity,
            row.identity_index,
            tuple(row.identity_columns or ()),
            (row.parent_schema, row.parent_name) if row.parent_name else None,
            row.bound,
            tuple((schema, name) for schema, name in json.loads(row.ancestors or "[]")),
            row.partitioned_by,
            row.columns or "{}",
            row.parts or "[]",
        )
        for row in session.rows(_tables(session.version), dict(zip(("schemas", "names"), arrays(keys))))
    }


_IDENTITY_OPTIONS = (
    "SELECT CASE WHEN (s.seqincrement, s.seqmin, s.seqstart, s.seqcache, s.seqcycle) <> (1, 1, 1, 1, false) THEN"
    " format('INCREMENT BY %%s MINVALUE %%s MAXVALUE %%s START WITH %%s CACHE %%s', s.seqincrement, s.seqmin, s.seqmax,"
    "  s.seqstart, s.seqcache) || CASE WHEN s.seqcycle THEN ' CYCLE' ELSE '' END END FROM pg_depend AS sd"
    " JOIN pg_sequence AS s ON s.seqrelid = sd.objid WHERE sd.classid = 'pg_class'::regclass AND sd.deptype = 'i'"
    " AND sd.refclassid = 'pg_class'::regclass AND sd.refobjid = c.oid AND sd.refobjsubid = a.attnum"
)

_COLUMNS = (
    "SELECT json_object_agg(a.attname, json_build_array(format_type(a.atttypid, a.atttypmod), a.attnotnull,"
    "  pg_get_expr(d.adbin, d.adrelid), a.attidentity, a.attgenerated, CASE WHEN a.attcollation <> t.typcollation"
    "   THEN (SELECT format('%%I.%%I', n.nspname, l.collname) FROM pg_collation AS l JOIN pg_namespace AS n"
    "    ON n.oid = l.collnamespace WHERE l.oid = a.attcollation) END,"
    "  CASE WHEN a.attidentity <> '' THEN (" + _IDENTITY_OPTIONS + ") END, {unvalidated}) ORDER BY a.attname)::text"
    " FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid"
    " LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum"
    " WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
)

_USED_COLUMNS = (
    "(SELECT coalesce(json_agg(a.attname ORDER BY a.attname), '[]') FROM (SELECT DISTINCT refobjsubid FROM pg_depend"
    "  WHERE classid = o.classid AND objid = o.objid AND refclassid = 'pg_class'::regclass AND refobjid = c.oid"
    "  AND refobjsubid > 0) AS d JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = d.refobjsubid)"
)

_PARTS = (
    "SELECT json_agg(json_build_array(o.name, o.kind, o.type, o.definition, "
    + _USED_COLUMNS
    + ", o.alone, o.valid, o.refers, o.inherited) ORDER BY o.name)::text FROM ("
    " SELECT k.conname AS name, CASE k.contype WHEN 'p' THEN 'key' ELSE 'constraint' END AS kind, k.contype AS type,"
    "  pg_get_constraintdef(k.oid) AS definition, 'pg_constraint'::regclass::oid AS classid, k.oid AS objid,"
    "  k.contype IN ('p', 'u', 'x') AS alone, k.convalidated AS valid,"
    "  (SELECT json_build_array(fn.nspname, f.relname) FROM pg_class AS f JOIN pg_namespace AS fn ON fn.oid = f.relnamespace"
    "   WHERE f.oid = k.confrelid) AS refers, k.conparentid <> 0 OR k.contype = 'c' AND NOT k.conislocal AS inherited"
    "  FROM pg_constraint AS k WHERE k.conrelid = c.oid AND k.contype IN ('p', 'u', 'x', 'c', 'f')"
    " UNION ALL SELECT x.relname, 'index', 'i',"
    "  replace(replace(pg_get_indexdef(i.indexrelid), format(' INDEX %%I ON ', x.relname), ' INDEX ON '), ' INDEX ON ONLY ',"
    "   ' INDEX ON '), 'pg_class'::regclass, i.indexrelid, i.indisunique, i.indisvalid, NULL, x.relispartition"
    "  FROM pg_index AS i JOIN pg_class AS x ON x.oid = i.indexrelid WHERE i.indrelid = c.oid"
    "   AND NOT EXISTS (SELECT FROM pg_constraint AS k WHERE k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x'))"
    ") AS o"
)

_TABLES = (
    "SELECT n.nspname AS schema, c.relname AS name, c.oid, c.relkind AS kind, c.relpersistence AS persistence,"
    " c.relreplident AS identity,"
    " (SELECT json_agg(json_build_array(en.nspname, e.relname))::text FROM pg_inherits AS ei JOIN pg_class AS e"
    "  ON e.oid = ei.inhparent JOIN pg_namespace AS en ON en.oid = e.relnamespace WHERE ei.inhrelid = c.oid"
    "  AND NOT c.relispartition) AS ancestors,"
    " pn.nspname AS parent_schema, p.relname AS parent_name, pg_get_expr(c.relpartbound, c.oid) AS bound,"
    " CASE c.relkind WHEN 'p' THEN pg_get_partkeydef(c.oid) END AS partitioned_by, r.relname AS identity_index,"
    " (SELECT array_agg(a.attname::text ORDER BY a.attname) FROM pg_attribute AS a WHERE a.attrelid = c.oid"
    "  AND a.attnum = ANY(coalesce((i.indkey::int2[])[0:i.indnkeyatts - 1], (k.indkey::int2[])[0:k.indnkeyatts - 1])))"
    "  AS identity_columns,"
    " (" + _COLUMNS + ") AS columns, (" + _PARTS + ") AS parts"
    " FROM unnest(%(schemas)s::text[], %(names)s::text[]) AS wanted(schema, name)"
    " JOIN pg_namespace AS n ON n.nspname = wanted.schema"
    " JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = wanted.name AND c.relkind IN ('r', 'p', 'v', 'm', 'f')"
    " LEFT JOIN pg_inherits AS h ON h.inhrelid = c.oid AND c.relispartition"
    " LEFT JOIN pg_class AS p ON p.oid = h.inhparent LEFT JOIN pg_namespace AS pn ON pn.oid = p.relnamespace"
    " LEFT JOIN pg_index AS i ON i.indrelid = c.oid AND i.indisreplident AND i.indisvalid AND c.relreplident = 'i'"
    " LEFT JOIN pg_class AS r ON r.oid = i.indexrelid"
    " LEFT JOIN pg_index AS k ON k.indrelid = c.oid AND k.indisprimary AND k.indisvalid"
)


def filled(session: Session, oids: Sequence[int]) -> set[int]:
    """Which of the tables *oids* may hold rows, themselves or in their partitions.

    It waits for whoever has a table for itself, which reading the catalogs doesn't.
    """
    query = (
        "WITH RECURSIVE below AS (SELECT oid AS top, oid FROM unnest(%s::oid[]) AS w(oid)"
        " UNION ALL SELECT b.top, i.inhrelid FROM below AS b JOIN pg_inherits AS i ON i.inhparent = b.oid)"
        " SELECT DISTINCT top FROM below WHERE pg_relation_size(oid) > 0"
    )
    return {row.top for row in session.rows(query, [list(oids)])}


_UNVALIDATED = (
    "a.attnotnull AND EXISTS (SELECT FROM pg_constraint AS nn WHERE nn.conrelid = c.oid AND nn.contype = 'n'"
    " AND NOT nn.convalidated AND nn.conkey[1] = a.attnum)"
)
_UNVALIDATED_SINCE = 180000


def _tables(version: int) -> str:
    return _TABLES.replace("{unvalidated}", _UNVALIDATED if version >= _UNVALIDATED_SINCE else "false")


class Type(NamedTuple):
    """A type that users made, or that came with an extension."""

    name: str
    """as format_type() spells it"""
    oid: int
    kind: str
    """pg_type.typtype, or C(row) of the type that came with a table"""
    extension: str | None
    text: str

    @property
    def labels(self) -> list[str]:
        """Of an enum, in order."""
        return list(json.loads(self.text))

    @property
    def attributes(self) -> dict[str, Column]:
        """Of a composite type, in order."""
        return {name: Column(type_, collation=collation) for name, type_, collation in json.loads(self.text)}

    @property
    def domain(self) -> Domain:
        base, not_null, default, checks = json.loads(self.text)
        return Domain(base, not_null, default, checks)


class Domain(NamedTuple):
    """What a domain says of its values."""

    base: str
    not_null: bool
    default: str | None
    checks: dict[str, str]
    """name -> definition"""


def types(session: Session, oids: Sequence[int]) -> dict[str, Type]:
    """The types of the columns of the tables *oids*, and the types that these are made of, by name."""
    return {
        row.name: Type(row.name, row.oid, row.kind, row.extension, row.text or "[]")
        for row in session.rows(_TYPES, {"oids": list(oids)})
    }


_TYPES = (
    "WITH RECURSIVE used AS ("
    " SELECT DISTINCT atttypid AS oid FROM pg_attribute WHERE attrelid = ANY(%(oids)s) AND attnum > 0 AND NOT attisdropped"
    "  AND atttypid >= 16384"
    " UNION SELECT hop.oid FROM used JOIN pg_type AS t ON t.oid = used.oid, LATERAL ("
    "  SELECT t.typelem UNION ALL SELECT t.typbasetype"
    # An array belongs to the type of its elements, and a multirange to that of its ranges.
    "  UNION ALL SELECT d.refobjid FROM pg_depend AS d WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid"
    "   AND d.refclassid = 'pg_type'::regclass AND d.deptype = 'i'"
    "  UNION ALL SELECT a.atttypid FROM pg_attribute AS a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped"
    "  UNION ALL SELECT r.rngsubtype FROM pg_range AS r WHERE r.rngtypid = t.oid) AS hop(oid) WHERE hop.oid >= 16384)"
    " SELECT format_type(t.oid, NULL) AS name, t.oid, CASE WHEN r.relkind <> 'c' THEN 'row' ELSE t.typtype::text END AS kind,"
    "  (SELECT e.extname FROM pg_depend AS d"
    "  JOIN pg_extension AS e ON e.oid = d.refobjid WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid"
    "  AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e') AS extension,"
    " CASE t.typtype"
    "  WHEN 'e' THEN (SELECT json_agg(enumlabel ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = t.oid)"
    "  WHEN 'd' THEN json_build_array(format_type(t.typbasetype, t.typtypmod), t.typnotnull, t.typdefault,"
    "   (SELECT coalesce(json_object_agg(conname, pg_get_constraintdef(oid) ORDER BY conname), '{}') FROM pg_constraint"
    "    WHERE contypid = t.oid AND contype = 'c'))"
    "  WHEN 'c' THEN (SELECT json_agg(json_build_array(a.attname, format_type(a.atttypid, a.atttypmod),"
    "    (SELECT format('%%I.%%I', n.nspname, l.collname) FROM pg_collation AS l JOIN pg_namespace AS n"
    "     ON n.oid = l.collnamespace JOIN pg_type AS y ON y.oid = a.atttypid"
    "     WHERE l.oid = a.attcollation AND l.oid <> y.typcollation)) ORDER BY a.attnum)"
    "   FROM pg_attribute AS a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped)"
    "  WHEN 'r' THEN (SELECT json_build_array(format_type(rngsubtype, NULL)) FROM pg_range WHERE rngtypid = t.oid)"
    " END::text AS text"
    " FROM used JOIN pg_type AS t USING (oid) LEFT JOIN pg_class AS r ON r.oid = t.typrelid"
    " WHERE t.typtype IN ('e', 'd', 'c', 'r', 'b')"
    " AND NOT (t.typtype = 'b' AND t.typelem <> 0 AND t.typlen = -1)"
)


class SequenceState(NamedTuple):
    """A sequence that a column owns or takes its default from."""

    key: tuple[str, str]
    options: dict[str, Any]
    """as ALTER SEQUENCE names them"""
    last_value: int | None
    """None when it was never used, or may not be read"""


def sequences(session: Session, oids: Sequence[int]) -> dict[tuple[str, str], SequenceState]:
    """The sequences that columns of the tables *oids* own or take their defaults from."""
    return {
        (row.schema, row.name): SequenceState((row.schema, row.name), json.loads(row.options), row.last_value)
        for row in session.rows(
            "WITH used AS (SELECT objid AS oid FROM pg_depend WHERE classid = 'pg_class'::regclass"
            "  AND refclassid = 'pg_class'::regclass AND refobjid = ANY(%(oids)s) AND deptype IN ('a', 'i')"
            " UNION SELECT d.refobjid FROM pg_attrdef AS f JOIN pg_depend AS d ON d.classid = 'pg_attrdef'::regclass"
            "  AND d.objid = f.oid AND d.refclassid = 'pg_class'::regclass WHERE f.adrelid = ANY(%(oids)s))"
            " SELECT n.nspname AS schema, c.relname AS name, json_build_object('AS', format_type(s.seqtypid, NULL),"
            "  'INCREMENT BY', s.seqincrement, 'MINVALUE', s.seqmin, 'MAXVALUE', s.seqmax, 'START WITH', s.seqstart,"
            "  'CACHE', s.seqcache, 'CYCLE', s.seqcycle)::text AS options,"
            " CASE WHEN has_sequence_privilege(c.oid, 'USAGE, SELECT') THEN pg_sequence_last_value(c.oid) END AS last_value"
            " FROM used JOIN pg_class AS c USING (oid) JOIN pg_sequence AS s ON s.seqrelid = c.oid"
            " JOIN pg_namespace AS n ON n.oid = c.relnamespace",
            {"oids": list(oids)},
        )
    }


def extensions(session: Session) -> dict[str, str]:
    """The database's extensions and their versions."""
    return {row.extname: row.extversion for row in session.rows("SELECT extname, extversion FROM pg_extension")}


def extensions_of_indexes(session: Session, oids: Sequence[int]) -> set[str]:
    """The extensions whose operator classes or access methods the indexes of the tables *oids* use."""
    return {
        row.extname
        for row in session.rows(
            "SELECT DISTINCT e.extname FROM (SELECT 'pg_opclass'::regclass AS classid, unnest(i.indclass::oid[]) AS objid"
            "  FROM pg_index AS i WHERE i.indrelid = ANY(%(oids)s) UNION SELECT 'pg_am'::regclass, x.relam FROM pg_index AS i"
            "  JOIN pg_class AS x ON x.oid = i.indexrelid WHERE i.indrelid = ANY(%(oids)s)) AS used"
            " JOIN pg_depend AS d ON d.classid = used.classid AND d.objid = used.objid AND d.deptype = 'e'"
            "  AND d.refclassid = 'pg_extension'::regclass JOIN pg_extension AS e ON e.oid = d.refobjid"
            " WHERE used.objid >= 16384",
            {"oids": list(oids)},
        )
    }


class Database(NamedTuple):
    """What of a database decides how texts are stored and sorted."""

    name: str
    encoding: str
    locale: str
    """provider and names; C(libc) before PostgreSQL 15"""
    version: str | None
    """of the locale, as the database recorded it; None when unknown, as before PostgreSQL 15"""
    outdated: bool
    """whether the server's library has another version by now"""


def database(session: Session) -> Database:
    """The session's database."""
    row = session.row(
        "SELECT d.datname, pg_encoding_to_char(d.encoding) AS encoding, concat_ws(' ',"
        " CASE j ->> 'datlocprovider' WHEN 'i' THEN 'icu' WHEN 'b' THEN 'builtin' ELSE 'libc' END,"
        " coalesce(j ->> 'datlocale', j ->> 'daticulocale'), d.datcollate, d.datctype) AS locale,"
        " j ->> 'datcollversion' AS version, d.oid"
        " FROM pg_database AS d, LATERAL to_jsonb(d) AS j WHERE d.datname = current_database()"
    )
    outdated = session.version >= _LOCALE_VERSIONS_SINCE and bool(
        row.version and session.value("SELECT pg_database_collation_actual_version(%s)", [row.oid]) != row.version
    )
    return Database(row.datname, row.encoding, row.locale, row.version, outdated)


_LOCALE_VERSIONS_SINCE = 150000


def missing_values(session: Session, columns: Iterable[tuple[int, str]]) -> dict[tuple[int, str], str]:
    """What rows have that were there when a column was added, for those of the *columns* (table, name) whose table keeps that.

    It is the value that the column's default had at that moment, see pg_attribute.attmissingval,
    https://www.postgresql.org/docs/current/catalog-pg-attribute.html. Of a partitioned table, its partitions keep it.
    """
    pairs = list(columns)
    return {
        (row.oid, row.name): row.value
        for row in session.rows(
            _MISSING_VALUES, {"oids": [oid for oid, _name in pairs], "names": [name for _oid, name in pairs]}
        )
    }


_MISSING_VALUES = (
    "WITH RECURSIVE wanted AS MATERIALIZED (SELECT * FROM unnest(%(oids)s::oid[], %(names)s::text[]) AS w(oid, name)),"
    " below AS (SELECT DISTINCT oid AS top, oid FROM wanted"
    "  UNION ALL SELECT b.top, i.inhrelid FROM below AS b JOIN pg_inherits AS i ON i.inhparent = b.oid),"
    " kept AS MATERIALIZED (SELECT b.top, a.attname::text AS name, min((a.attmissingval::text::text[])[1]) AS value"
    "  FROM below AS b, LATERAL (SELECT attname, attmissingval FROM pg_attribute WHERE attrelid = b.oid AND atthasmissing) AS a"
    "  GROUP BY 1, 2)"
    " SELECT w.oid, w.name, k.value FROM wanted AS w JOIN kept AS k ON k.top = w.oid AND k.name = w.name"
)


def places(session: Session, oids: Sequence[int]) -> dict[int, dict[str, int]]:
    """The how-manieth each column of the tables *oids* is."""
    found: dict[int, dict[str, int]] = {}
    for row in session.rows(
        "SELECT attrelid, attname, row_number() OVER (PARTITION BY attrelid ORDER BY attnum) AS place FROM pg_attribute"
        " WHERE attrelid = ANY(%s) AND attnum > 0 AND NOT attisdropped",
        [list(oids)],
    ):
        found.setdefault(row.attrelid, {})[row.attname] = row.place
    return found


def is_binary(session: Session, oids: Sequence[int]) -> bool:
    """Whether a subscription brings rows of one of the tables *oids* in binary format."""
    if session.version < _BINARY_SINCE:
        return False
    return bool(
        session.value(
            "SELECT bool_or(s.subbinary) FROM pg_subscription AS s JOIN pg_subscription_rel AS r ON r.srsubid = s.oid"
            " WHERE r.srrelid = ANY(%s)",
            [list(oids)],
        )
    )


_BINARY_SINCE = 140000


def publications(session: Session, keys: Iterable[tuple[str, str]]) -> dict[str, set[tuple[str, str]]]:
    """The publications that publish any of the tables *keys*, and which of them."""
    found: dict[str, set[tuple[str, str]]] = {}
    for row in session.rows(
        "SELECT p.pubname, w.schema, w.name FROM pg_publication_tables AS p JOIN unnest(%s::text[], %s::text[])"
        " AS w(schema, name) ON p.schemaname = w.schema AND p.tablename = w.name ORDER BY 1",
        arrays(keys),
    ):
        found.setdefault(row.pubname, set()).add((row.schema, row.name))
    return found
