# SPDX-License-Identifier: GPL-3.0-or-later
"""The names that statements speak of: what the servers have to be asked about before they can be placed."""

from __future__ import annotations

from typing import Any, Iterator

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import quoted
from ansible_collections.postgresml.distributed.plugins.plugin_utils import ddl, names, nodes

_TYPES = ("OBJECT_TYPE", "OBJECT_DOMAIN")
_RELATIONS = (
    "OBJECT_TABLE",
    "OBJECT_INDEX",
    "OBJECT_SEQUENCE",
    "OBJECT_VIEW",
    "OBJECT_MATVIEW",
    "OBJECT_FOREIGN_TABLE",
)


def schema_change_mentions(statements: Any, name: Any = "") -> dict[str, Any]:
    """What filter schema_change_mentions returns; names that the change itself makes are among them, so that a name that is taken
    is seen before anything is changed, and a rerun finds what the first run has made."""
    found = ddl.read(statements)
    texts = [each.text for each in found]
    relations: dict[str, None] = {}
    types: dict[str, None] = {}
    functions: dict[str, None] = {}
    for each in found:
        relations.update(dict.fromkeys(_relations(each.node)))
        types.update(dict.fromkeys(_types(each.node)))
        functions.update(dict.fromkeys(_functions(each.node)))
    return {
        "change": ddl.change_id(texts, str(name)),
        "total": len(found),
        "statements": texts,
        "lines": [each.line for each in found],
        "relations": list(relations),
        "types": list(types),
        "functions": list(functions),
    }


def _relations(statement: Any) -> Iterator[str]:
    kind = nodes.kind(statement)
    if kind in ("AlterTableStmt", "RenameStmt", "AlterObjectSchemaStmt") and _is_about_a_type(statement):
        return
    for node in nodes.walk(statement):
        if nodes.kind(node) == "RangeVar":
            yield nodes.relation(node)
        if nodes.kind(node) == "Constraint" and node.indexname:
            yield quoted(_schema(statement), node.indexname)
    if kind == "DropStmt" and nodes.option(statement.removeType) in _RELATIONS:
        yield from nodes.dropped(statement)
    elif kind == "IndexStmt" and statement.idxname:
        yield quoted(_schema(statement), statement.idxname)
    elif kind == "RenameStmt" and nodes.option(statement.renameType) in _RELATIONS:
        yield quoted(_schema(statement), statement.newname)
    elif kind == "AlterObjectSchemaStmt" and statement.relation is not None:
        yield quoted(statement.newschema, statement.relation.relname)


def _schema(statement: Any) -> str:
    """The schema of the relation that a statement is about."""
    return statement.relation.schemaname or "public"


def _is_about_a_type(statement: Any) -> bool:
    if nodes.kind(statement) == "AlterTableStmt":
        return nodes.option(statement.objtype) == "OBJECT_TYPE"
    what = statement.renameType if nodes.kind(statement) == "RenameStmt" else statement.objectType
    return nodes.option(what) in (*_TYPES, "OBJECT_ATTRIBUTE", "OBJECT_DOMCONSTRAINT")


def _types(statement: Any) -> Iterator[str]:
    for node in nodes.walk(statement):
        if nodes.kind(node) == "TypeName" and nodes.is_own_type(nodes.type_name(node)):
            yield nodes.type_name(node)
    kind = nodes.kind(statement)
    if kind in ("CreateEnumStmt", "AlterEnumStmt", "CreateRangeStmt", "AlterDomainStmt"):
        yield nodes.of_strings(statement.typeName)
    elif kind == "CreateDomainStmt":
        yield nodes.of_strings(statement.domainname)
    elif kind == "CompositeTypeStmt":
        yield nodes.relation(statement.typevar)
    elif kind == "AlterTableStmt" and _is_about_a_type(statement):
        yield nodes.relation(statement.relation)
    elif kind == "RenameStmt" and _is_about_a_type(statement):
        yield from _renamed_type(statement)
    elif kind == "AlterObjectSchemaStmt" and _is_about_a_type(statement):
        name = nodes.of_strings(statement.object)
        yield name
        yield quoted(statement.newschema, names.parsed(name)[1])


def _renamed_type(statement: Any) -> Iterator[str]:
    if nodes.option(statement.renameType) == "OBJECT_ATTRIBUTE":
        yield nodes.relation(statement.relation)
        return
    name = nodes.of_strings(statement.object)
    yield name
    if nodes.option(statement.renameType) in _TYPES:
        yield quoted(names.parsed(name)[0], statement.newname)


def _functions(statement: Any) -> Iterator[str]:
    for node in nodes.walk(statement):
        if nodes.kind(node) == "ColumnDef":
            yield from nodes.functions((nodes.default(node), node.raw_default))
        elif nodes.kind(node) == "AlterTableCmd" and nodes.option(node.subtype) == "AT_SetExpression":
            yield from nodes.functions(node.def_)
