# SPDX-License-Identifier: GPL-3.0-or-later
"""Indexes and constraints of empty tables are taken away, and come back when the tables are filled: building them once is
faster than keeping them up row by row. What they were is said by pg_dump and by the server itself."""

from __future__ import annotations

import os
import tempfile
from typing import Any, Collection, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.archive import (
    Archive,
    Script,
    as_pattern,
    picked,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.client_tools import RunCommand
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    arrays,
    compose,
    identifier,
    raw,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import blueprint, definitions
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.definitions import Attachment
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.seeds import Step


class Aside(NamedTuple):
    """What is taken away, and what brings it back."""

    drops: list[Any]
    """psycopg2.sql statements"""
    steps: list[Step]


NOTHING = Aside([], [])


def plan(session: Session, keys: Collection[tuple[str, str]], run_command: RunCommand) -> Aside:
    """What of the tables *keys* and their partitions can be taken away: all but what something else depends on, what lies in
    a tablespace of its own, what also belongs to partitions that are not among *keys*, and what pg_dump doesn't tell."""
    members = family(session, keys)
    parts = definitions.partitioning(session, members)
    # What checks a partitioned table's foreign keys can't be built without reading its rows again, so they stay.
    every = [a for a in definitions.attachments(session, members) if a.kind != "foreign key" or a.key not in parts[0]]
    if not every:
        return NOTHING
    with tempfile.TemporaryDirectory(prefix="pgml-") as directory:
        archive = Archive(os.path.join(directory, "tables"), session.version // 10000, run_command)
        archive.dump(session.endpoint, ["--section=post-data", *["--table=" + as_pattern(*key) for key in members]])
        entries = archive.entries()
        chosen = _movable(session, every, {entry.identity for entry in entries})
        foreign_keys = [a for a in chosen if a.kind == "foreign key"]
        own = [a for a in chosen if a.kind != "foreign key"]
        texts = {a.attach for a in own if a.attach} | {e.text for e in entries if e.text.startswith("COMMENT ")}
        script = archive.script(picked(entries, {a.identity for a in own}, texts), session.version)
    steps = [*_built(script, own, parts), *_marks(session, own), *_foreign_key_steps(session, foreign_keys, parts[0])]
    return Aside([_drop(a) for a in [*foreign_keys, *own] if a.attach is None], _numbered(steps)) if chosen else NOTHING


def _movable(
    session: Session, attachments: Sequence[Attachment], told: Collection[tuple[int, int]]
) -> list[Attachment]:
    """Those that can be taken away, with the whole tree of an index."""
    facts = {(row.classid, row.objid): row for row in session.rows(_FACTS, _identities(attachments))}
    fixed = {row.top for row in facts.values() if row.fixed}
    fixed |= {facts[a.identity].top for a in attachments if a.kind != "foreign key" and a.identity not in told}
    return [a for a in attachments if facts[a.identity].top not in fixed]


def family(session: Session, keys: Collection[tuple[str, str]]) -> list[tuple[str, str]]:
    """The tables *keys*, their partitions and the partitioned tables above, as far as all rows of a tree come with *keys*."""
    rows = session.rows(
        "WITH RECURSIVE k AS (SELECT c.oid FROM unnest(%s::text[], %s::text[]) AS w(schema, name)"
        "  JOIN pg_namespace AS n ON n.nspname = w.schema JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = w.name),"
        " up AS (SELECT oid, oid AS top FROM k UNION SELECT up.oid, i.inhparent FROM up JOIN pg_inherits AS i"
        "  ON i.inhrelid = up.top JOIN pg_class AS c ON c.oid = i.inhrelid AND c.relispartition),"
        " down AS (SELECT top AS root, top AS oid, top IN (SELECT oid FROM k) AS fed FROM up"
        "   WHERE NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = up.top AND c.relispartition)"
        "  UNION SELECT down.root, i.inhrelid, down.fed OR i.inhrelid IN (SELECT oid FROM k) FROM down"
        "   JOIN pg_inherits AS i ON i.inhparent = down.oid JOIN pg_class AS c ON c.oid = i.inhrelid AND c.relispartition)"
        " SELECT n.nspname AS schema, c.relname AS name, bool_and(down.fed OR c.relkind = 'p')"
        "  OVER (PARTITION BY down.root) AS fed"
        " FROM down JOIN pg_class AS c ON c.oid = down.oid JOIN pg_namespace AS n ON n.oid = c.relnamespace",
        arrays(keys),
    )
    return sorted({(row.schema, row.name) for row in rows if row.fed})


_FACTS = (
    "WITH o AS MATERIALIZED (SELECT classid, objid, CASE WHEN classid = 'pg_class'::regclass THEN objid"
    "   ELSE (SELECT nullif(conindid, 0) FROM pg_constraint AS k WHERE k.oid = objid AND k.contype <> 'f') END AS indexid"
    "  FROM unnest(%(catalogs)s::oid[], %(objects)s::oid[]) AS w(classid, objid))"
    " SELECT o.classid, o.objid, coalesce(pg_partition_root(o.indexid)::oid, o.indexid, o.objid) AS top,"
    "  NOT coalesce(x.reltablespace = 0 AND i.indisvalid, true) OR coalesce(k.contype = 'c' AND k.coninhcount > 0, false)"
    "  OR EXISTS (SELECT FROM pg_depend AS d LEFT JOIN pg_constraint AS f ON f.oid = d.objid AND f.contype = 'f'"
    "    AND d.classid = 'pg_constraint'::regclass"
    "   WHERE (d.refclassid, d.refobjid) IN ((o.classid, o.objid), ('pg_class'::regclass, o.indexid)) AND d.deptype = 'n'"
    # a foreign key is taken away itself, and with it those to the partitions of what it refers to
    "   AND NOT EXISTS (SELECT FROM o AS m JOIN pg_constraint AS mk ON mk.oid = m.objid"
    "    WHERE m.classid = 'pg_constraint'::regclass AND mk.contype = 'f' AND mk.conrelid = f.conrelid"
    "    AND mk.conkey = f.conkey)) AS fixed"
    " FROM o LEFT JOIN pg_class AS x ON x.oid = o.indexid LEFT JOIN pg_index AS i ON i.indexrelid = o.indexid"
    " LEFT JOIN pg_constraint AS k ON k.oid = o.objid AND o.classid = 'pg_constraint'::regclass"
)


def _identities(attachments: Sequence[Attachment]) -> dict[str, list[int]]:
    return {
        "catalogs": [a.identity[0] for a in attachments],
        "objects": [a.identity[1] for a in attachments],
    }


def _drop(attachment: Attachment) -> Any:
    table, name = identifier(*attachment.key), identifier(attachment.name)
    if attachment.kind == "foreign key" or _is_constraint(attachment):
        return compose("ALTER TABLE {table} DROP CONSTRAINT {name}", table=table, name=name)
    return compose("DROP INDEX {name}", name=identifier(attachment.key[0], attachment.name))


def _is_constraint(attachment: Attachment) -> bool:
    return attachment.identity[0] == blueprint.CONSTRAINT


def _built(
    script: Script,
    own: Sequence[Attachment],
    parts: tuple[frozenset[tuple[str, str]], frozenset[tuple[str, str]]],
) -> list[Step]:
    """The steps that build indexes and their constraints anew."""
    comments = [text for entry, text in script.pieces.items() if entry.text.startswith("COMMENT ")]
    built = {entry: text for entry, text in script.pieces.items() if not entry.text.startswith("COMMENT ")}
    after = blueprint.sorted_out(script._replace(pieces=built), own, *parts)
    return [
        *[Step(0, "constraint", key, None, text) for key, text in after.constraints],
        *[Step(0, "index", key, None, text) for key, text in after.indexes],
        *[Step(0, "late", None, None, text) for text in after.late],
        *[Step(0, "comment", None, None, text) for text in comments],
    ]


def _marks(session: Session, own: Sequence[Attachment]) -> list[Step]:
    """The steps that say what indexes are for. pg_dump says it with the index, and so not for one that is there already."""
    rows = session.rows(
        "SELECT w.schema, w.name, c.relname AS table_name, i.indisreplident, i.indisclustered"
        " FROM unnest(%s::text[], %s::text[]) AS w(schema, name) JOIN pg_namespace AS n ON n.nspname = w.schema"
        " JOIN pg_class AS x ON x.relnamespace = n.oid AND x.relname = w.name JOIN pg_index AS i ON i.indexrelid = x.oid"
        " JOIN pg_class AS c ON c.oid = i.indrelid WHERE i.indisreplident OR i.indisclustered",
        arrays([(a.key[0], a.name) for a in own]),
    )
    marks = [("REPLICA IDENTITY USING INDEX", row) for row in rows if row.indisreplident]
    marks += [("CLUSTER ON", row) for row in rows if row.indisclustered]
    steps = []
    for mark, row in marks:
        key = (row.schema, row.table_name)
        statement = compose(
            "ALTER TABLE {table} {mark} {name}", table=identifier(*key), mark=raw(mark), name=identifier(row.name)
        )
        steps.append(Step(0, "late", key, None, session.text_of(statement)))
    return steps


def _foreign_key_steps(
    session: Session, attachments: Sequence[Attachment], partitioned: Collection[tuple[str, str]]
) -> list[Step]:
    """The steps that bring foreign keys back. They are checked later, under a lock that hinders no write."""
    if not attachments:
        return []
    with session.transaction():
        session.execute("SET LOCAL search_path = pg_catalog")
        texts = {
            row.oid: row
            for row in session.rows(
                "SELECT oid, pg_get_constraintdef(oid) AS definition, convalidated FROM pg_constraint WHERE oid = ANY(%s)",
                [[a.identity[1] for a in attachments]],
            )
        }
    steps = []
    for attachment in attachments:
        text = texts[attachment.identity[1]]
        later = text.convalidated
        names = {"table": identifier(*attachment.key), "name": identifier(attachment.name)}
        add = compose(
            "ALTER TABLE {table} ADD CONSTRAINT {name} {definition}",
            definition=raw(text.definition + " NOT VALID" * later),
            **names,
        )
        # The index that a partitioned table is referred by comes late, too.
        kind = "late" if {attachment.key, attachment.refers} & set(partitioned) else "foreign key"
        steps.append(Step(0, kind, attachment.key, attachment.refers, session.text_of(add)))
        if later:
            validate = compose("ALTER TABLE {table} VALIDATE CONSTRAINT {name}", **names)
            steps.append(Step(0, "validate", attachment.key, attachment.refers, session.text_of(validate)))
    return steps


_ORDER = ("constraint", "index", "foreign key", "late", "comment", "validate")


def _numbered(steps: Sequence[Step]) -> list[Step]:
    """*steps* in the order in which they could run one by one."""
    ordered = sorted(steps, key=lambda step: _ORDER.index(step.kind))
    return [step._replace(number=number) for number, step in enumerate(ordered)]
