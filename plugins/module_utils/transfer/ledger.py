# SPDX-License-Identifier: GPL-3.0-or-later
"""What this collection remembers in the target's database: which rows it brought, and how far a copy has come."""

from __future__ import annotations

from typing import Any, Collection, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    Change,
    arrays,
    compose,
    literal,
    raw,
)

SCHEMA = "pgml_distributed"

MAKE_SCHEMA = """
CREATE SCHEMA IF NOT EXISTS pgml_distributed;
COMMENT ON SCHEMA pgml_distributed IS 'What the Ansible collection postgresml.distributed remembers';
"""

_TABLES = (
    MAKE_SCHEMA
    + """
CREATE TABLE IF NOT EXISTS pgml_distributed.copies (
    schema_name text, table_name text,
    relation oid NOT NULL, fingerprint text NOT NULL, attached text[] NOT NULL,
    rows bigint NOT NULL, copied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (schema_name, table_name));
COMMENT ON TABLE pgml_distributed.copies IS 'Tables that were filled by pgml_dump_restore';
CREATE TABLE IF NOT EXISTS pgml_distributed.progress (
    process integer PRIMARY KEY, started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    phase text NOT NULL, tables integer NOT NULL, tables_done integer NOT NULL,
    bytes bigint NOT NULL, bytes_done bigint NOT NULL, rows bigint NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp());
COMMENT ON TABLE pgml_distributed.progress IS 'The run that is at work, or the last one; process is its session''s';
CREATE TABLE IF NOT EXISTS pgml_distributed.progress_tables (
    schema_name text, table_name text, place text NOT NULL, bytes bigint NOT NULL, expected_rows bigint NOT NULL,
    bytes_done bigint NOT NULL, rows bigint NOT NULL DEFAULT 0, PRIMARY KEY (schema_name, table_name));
COMMENT ON TABLE pgml_distributed.progress_tables IS 'Its tables; place is the schema in which one is filled'
"""
)


class Copy(NamedTuple):
    """A table as it was brought."""

    schema: str
    name: str
    relation: int
    """its oid in the target"""
    fingerprint: str
    """see contents.fingerprints()"""
    attached: tuple[str, ...]
    """the indexes, constraints, triggers and the like that came with it"""
    rows: int

    @property
    def key(self) -> tuple[str, str]:
        return (self.schema, self.name)


def has(session: Session, table: str, owner: str | None = None) -> bool:
    """Whether schema pgml_distributed has *table*.

    :param owner: who may own the table beside the role that logs in and superusers
    :raises Refused: when somebody else has made either, whose functions would run with the rights of this session
    """
    rows = session.rows(
        "SELECT r.rolname AS owner, r.rolsuper OR r.rolname IN (current_user, made.trustee) AS trusted"
        " FROM (SELECT nspowner AS owner, NULL AS trustee FROM pg_namespace WHERE nspname = 'pgml_distributed' UNION ALL"
        "  SELECT relowner, %s FROM pg_class WHERE oid = to_regclass('pgml_distributed.' || quote_ident(%s))) AS made"
        " JOIN pg_roles AS r ON r.oid = made.owner",
        [owner, table],
    )
    for row in rows:
        if not row.trusted:
            raise Refused(
                'Schema pgml_distributed of {0} is role "{1}"\'s, whose functions would run with the rights of this session:'
                " drop it, or give it to the role that logs in.".format(session.endpoint, row.owner)
            )
    return len(rows) > 1


def exists(session: Session) -> bool:
    return has(session, "copies")


def preparation(session: Session) -> list[Change]:
    """The step that makes the tables of the ledger, if they are missing."""
    return [] if exists(session) else [Change(raw(_TABLES), "Prepare schema {0}".format(SCHEMA))]


def read(session: Session, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Copy]:
    """The copies of *keys* that still are where they were put."""
    if not exists(session):
        return {}
    return {
        (row.schema_name, row.table_name): Copy(
            row.schema_name, row.table_name, row.relation, row.fingerprint, tuple(row.attached), row.rows
        )
        for row in session.rows(
            "SELECT p.* FROM pgml_distributed.copies AS p"
            " JOIN unnest(%s::text[], %s::text[]) AS wanted(schema, name)"
            "  ON wanted.schema = p.schema_name AND wanted.name = p.table_name"
            " JOIN pg_class AS c ON c.oid = p.relation AND c.relname = p.table_name"
            " JOIN pg_namespace AS n ON n.oid = c.relnamespace AND n.nspname = p.schema_name",
            arrays(keys),
        )
    }


def known(session: Session) -> list[tuple[str, str]]:
    """The tables that are remembered, wherever they are now."""
    if not exists(session):
        return []
    return [
        (row.schema_name, row.table_name)
        for row in session.rows("SELECT schema_name, table_name FROM pgml_distributed.copies ORDER BY 1, 2")
    ]


def belonging(session: Session, keys: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """What is remembered of *keys*, of the partitions below them, and of tables that are no more."""
    if not exists(session):
        return []
    schemas, names = arrays(keys)
    return [
        (row.schema_name, row.table_name)
        for row in session.rows(
            "WITH named AS (SELECT p.* FROM pgml_distributed.copies AS p"
            "  JOIN unnest(%s::text[], %s::text[]) AS k(schema, name) ON k.schema = p.schema_name AND k.name = p.table_name)"
            " SELECT p.schema_name, p.table_name FROM pgml_distributed.copies AS p"
            " WHERE p.relation IN (SELECT relation FROM named) OR NOT EXISTS (SELECT FROM pg_class WHERE oid = p.relation)"
            "  OR EXISTS (SELECT FROM pg_partition_ancestors(p.relation) AS a JOIN named ON named.relation = a.relid)"
            " ORDER BY 1, 2",
            [schemas, names],
        )
    ]


def write(session: Session, copies: Sequence[Copy]) -> None:
    """Remember *copies*, in the transaction that makes them true."""
    forget(session, [copy.key for copy in copies])
    session.execute(
        "INSERT INTO pgml_distributed.copies (schema_name, table_name, relation, fingerprint, attached, rows)"
        " SELECT r.schema, r.name, r.relation, r.fingerprint, string_to_array(r.attached, chr(1)), r.rows"
        " FROM unnest(%s::text[], %s::text[], %s::oid[], %s::text[], %s::text[], %s::int8[])"
        "  AS r(schema, name, relation, fingerprint, attached, rows)",
        [
            [copy.schema for copy in copies],
            [copy.name for copy in copies],
            [copy.relation for copy in copies],
            [copy.fingerprint for copy in copies],
            ["\x01".join(copy.attached) for copy in copies],
            [copy.rows for copy in copies],
        ],
    )


def forget(session: Session, keys: Sequence[tuple[str, str]]) -> None:
    session.execute(
        "DELETE FROM pgml_distributed.copies AS p USING unnest(%s::text[], %s::text[]) AS k(schema, name)"
        " WHERE k.schema = p.schema_name AND k.name = p.table_name",
        arrays(keys),
    )


def forgetting(keys: Sequence[tuple[str, str]]) -> Any:
    """A statement that forgets the copies of *keys*, and of all that is in one partitioned table with one of them."""
    schemas, names = arrays(keys)
    return compose(
        "DELETE FROM pgml_distributed.copies AS p USING unnest({schemas}::text[], {names}::text[]) AS k(schema, name)"
        " JOIN pg_namespace AS n ON n.nspname = k.schema"
        " JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = k.name"
        " WHERE k.schema = p.schema_name AND k.name = p.table_name"
        " OR p.relation IN (SELECT relid FROM pg_partition_tree(pg_partition_root(c.oid)))",
        schemas=literal(schemas),
        names=literal(names),
    )


def holds_only(session: Session, keys: Sequence[tuple[str, str]], gone: Collection[str] = ()) -> bool:
    """Whether nothing else is remembered than *keys*, in this or another table of the schema.

    :param gone: the names of tables and functions there that don't count
    """
    others = session.value(
        "SELECT EXISTS (SELECT FROM pg_depend AS d"
        " LEFT JOIN pg_class AS c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid"
        " LEFT JOIN pg_proc AS p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid"
        " WHERE d.refclassid = 'pg_namespace'::regclass AND d.refobjid = to_regnamespace('pgml_distributed')::oid"
        " AND d.deptype = 'n' AND coalesce(c.relname, p.proname, '') <> ALL(%s))",
        [["copies", "progress", "progress_tables", *gone]],
    )
    return not others and set(known(session)) <= set(keys)


def removal() -> Change:
    """The step that removes the ledger."""
    statement = raw(
        "DROP TABLE IF EXISTS pgml_distributed.copies, pgml_distributed.progress, pgml_distributed.progress_tables;"
        " DROP SCHEMA pgml_distributed"
    )
    return Change(statement, "Drop schema {0}, which is empty".format(SCHEMA))
