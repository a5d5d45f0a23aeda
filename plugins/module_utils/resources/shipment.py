# SPDX-License-Identifier: GPL-3.0-or-later
"""What travels: tables, what they need, where their sequences stand; read from a source, or from an archive's manifest."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from typing import Any, Collection, Iterable, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session, version_text
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import blueprint, contents, tables
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.blueprint import Origin
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.contents import Contents, SequenceValue
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.tables import Table
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.chunks import Extent

MANIFEST = "manifest.json"
ROWS = "rows"
"""The directory of the rows inside an archive."""
_MANIFEST_VERSION = 1


class RowFile(NamedTuple):
    """A chunk of a table in an archive."""

    schema: str
    name: str
    path: str
    """inside the archive"""
    rows: int
    size: int
    """bytes of the file"""
    binary: bool
    whole: bool


class Shipment(NamedTuple):
    """Everything that is known before the first row moves."""

    origin: Origin
    encoding: str
    """of the rows on their way"""
    tables: list[Table]
    contents: list[Contents]
    fingerprints: dict[tuple[str, str], str]
    sequences: list[SequenceValue]
    left_out: list[dict[str, str]]
    not_moved: list[dict[str, str]]
    moment: str = ""
    """what tells this archive from every other"""

    @property
    def copied_fingerprints(self) -> dict[tuple[str, str], str]:
        """The fingerprints as the target remembers them. A filter may select other rows of an unchanged table: so each
        archive has its own."""
        return {
            table.key: "/".join([self.fingerprints[table.key], self.moment])
            if self.moment and table.where is not None
            else self.fingerprints[table.key]
            for table in self.tables
        }

    @property
    def keys(self) -> list[tuple[str, str]]:
        return [table.key for table in self.tables]

    @property
    def size(self) -> int:
        """Bytes of the rows on the source, without indexes."""
        return sum(item.size for item in self.contents)


def encoding_of(session: Session) -> str:
    """The encoding in which rows leave or reach a database without conversion. SQL_ASCII converts nothing."""
    encoding: str = session.value("SHOW server_encoding")
    return "UTF8" if encoding == "SQL_ASCII" else encoding


def read(
    session: Session,
    wanted: Sequence[Table],
    fingerprints: dict[tuple[str, str], str],
    encoding: str,
    no_privileges: bool,
    roles: Collection[str],
    not_moved: list[dict[str, str]],
) -> Shipment:
    """The shipment of the tables *wanted*, as *session* sees them."""
    origin, left_out = blueprint.read_origin(session, wanted, no_privileges, roles)
    return Shipment(
        origin,
        encoding,
        list(wanted),
        contents.read(session, wanted),
        fingerprints,
        contents.sequence_values(
            session, [table.oid for table in wanted], [(item[0], item[1]) for item in origin.sequences]
        ),
        left_out,
        not_moved,
    )


def not_moved(session: Session, wanted_schemas: Sequence[str] | None) -> list[dict[str, str]]:
    """What the request means and doesn't travel: views, materialized views, foreign and unlogged tables, large objects."""
    found = tables.not_movable(session, wanted_schemas, views=True)
    if wanted_schemas is None:
        count = contents.large_objects(session)
        if count:
            found.append(
                {"name": "{0} large object{1}".format(count, "" if count == 1 else "s"), "reason": "large object"}
            )
    return found


def save(shipment: Shipment, files: Sequence[RowFile], directory: str) -> None:
    """Write the manifest into *directory*."""
    facts = {
        "manifest_version": _MANIFEST_VERSION,
        "source_version": shipment.origin.version,
        "encoding": shipment.encoding,
        "moment": uuid.uuid4().hex,
        "origin": shipment.origin._asdict(),
        "tables": [table._asdict() for table in shipment.tables],
        "contents": [
            {"key": item.table.key, "columns": item.columns, "binary": item.binary, "extent": item.extent}
            for item in shipment.contents
        ],
        "fingerprints": [[*key, value] for key, value in shipment.fingerprints.items()],
        "sequences": [value._asdict() for value in shipment.sequences],
        "left_out": shipment.left_out,
        "not_moved": shipment.not_moved,
        "files": [item._asdict() for item in files],
        "definitions": {
            name: _digest(os.path.join(directory, name))
            for name in (blueprint.TABLES_FILE, blueprint.SUPPORT_FILE)
            if os.path.exists(os.path.join(directory, name))
        },
    }
    with open(os.path.join(directory, MANIFEST), "w", encoding="utf-8") as handle:
        json.dump(facts, handle, indent=1)
        handle.flush()
        os.fsync(handle.fileno())


def load(directory: str) -> tuple[Shipment, list[RowFile]]:
    """What save() wrote; refuses an archive that isn't whole."""
    path = os.path.join(directory, MANIFEST)
    try:
        with open(path, encoding="utf-8") as handle:
            facts = json.load(handle)
        if facts["manifest_version"] != _MANIFEST_VERSION:
            raise Refused(
                "The archive {0} was written by another version of postgresml.distributed (manifest {1}, this one "
                "reads {2}): dump it again.".format(directory, facts["manifest_version"], _MANIFEST_VERSION)
            )
        shipment, files = _shipment(facts)
        facts["definitions"].items()
    except OSError as error:
        raise Refused(
            "There is no archive to restore in {0}: {1}. Dump it first.".format(directory, error.strerror)
        ) from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise Refused("The archive's file {0} is damaged: dump it again.".format(path)) from None
    _refuse_incomplete(directory, files, facts["definitions"])
    return shipment, files


def _shipment(facts: dict[str, Any]) -> tuple[Shipment, list[RowFile]]:
    moved = [_table(table) for table in facts["tables"]]
    by_key = {table.key: table for table in moved}
    shipment = Shipment(
        blueprint.restored(facts["origin"]),
        facts["encoding"],
        moved,
        [
            Contents(
                by_key[tuple(item["key"])],
                tuple(item["columns"]),
                item["binary"],
                Extent(*item["extent"]),
            )
            for item in facts["contents"]
        ],
        {(schema, name): value for schema, name, value in facts["fingerprints"]},
        [
            SequenceValue(**{**value, "column": value["column"] and tuple(value["column"])})
            for value in facts["sequences"]
        ],
        facts["left_out"],
        facts["not_moved"],
        facts["moment"],
    )
    return shipment, [RowFile(**item) for item in facts["files"]]


def _table(facts: dict[str, Any]) -> Table:
    columns, top = facts["columns"], facts["top"]
    return Table(**{**facts, "columns": columns and tuple(columns), "top": top and tuple(top)})


def _digest(path: str) -> str:
    with open(path, "rb") as handle:
        return hashlib.sha256(handle.read()).hexdigest()


def _refuse_incomplete(directory: str, files: Iterable[RowFile], digests: Mapping[str, str]) -> None:
    """Refuse an archive with files that are missing or not as they were written. gzip itself checks the rows as they are read."""
    for name, digest in digests.items():
        path = os.path.join(directory, name)
        if not os.path.exists(path):
            raise Refused("The archive {0} lacks its file {1}: dump it again.".format(directory, name))
        if _digest(path) != digest:
            raise Refused("The archive's file {0} is damaged: dump it again.".format(path))
    for item in files:
        path = os.path.join(directory, item.path)
        try:
            there = os.path.getsize(path)
        except OSError:
            raise Refused("The archive {0} lacks its file {1}: dump it again.".format(directory, item.path)) from None
        if there != item.size:
            raise Refused(
                "The archive's file {0} has {1} bytes and should have {2}: dump it again.".format(
                    path, there, item.size
                )
            )


def refuse_newer(shipment: Shipment, target: Session) -> None:
    """Refuse definitions of a newer major version than the target's: PostgreSQL promises nothing about them."""
    if shipment.origin.version // 10000 > target.version // 10000:
        raise Refused(
            "The archive is of PostgreSQL {0}, and the server of {1} is {2}: restore it on {3} or later.".format(
                version_text(shipment.origin.version),
                target.endpoint,
                version_text(target.version),
                shipment.origin.version // 10000,
            )
        )
