# SPDX-License-Identifier: GPL-3.0-or-later
"""Names that are taken or missing on a server, so that it would refuse a statement in the middle of the change."""

from __future__ import annotations

from typing import Any, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import enumerate_names, quoted
from ansible_collections.postgresml.distributed.plugins.plugin_utils import ddl, nodes
from ansible_collections.postgresml.distributed.plugins.plugin_utils.catalog import Catalog
from ansible_collections.postgresml.distributed.plugins.plugin_utils.placed import PRIMARY_ONLY, Context, Misplaced


def refuse(context: Context, order: str) -> None:
    """Refuse a statement that one of the servers that are to run it won't take."""
    servers = [context.base] if order == PRIMARY_ONLY else context.waiting
    kind = nodes.kind(context.node)
    if kind == "IndexStmt":
        _refuse_index(context, servers)
    elif kind == "AlterTableStmt" and nodes.option(context.node.objtype) == "OBJECT_TABLE":
        _refuse_constraints(context, servers)


def _refuse_index(context: Context, servers: Sequence[Catalog]) -> None:
    node = context.node
    if not node.idxname or node.if_not_exists or _is_done(context):
        return
    name = ddl.beside(nodes.relation(node.relation), node.idxname)
    taken = [each.host for each in servers if name in each.relations and not _has_begun(context, each)]
    if taken:
        raise Misplaced("builds index {0}, which exists already on {1}".format(name, enumerate_names(taken)))


def _is_done(context: Context) -> bool:
    """Whether the primary has run it, so that distribute.yml may have brought to replicas what it made."""
    return context.base is not context.primary


def _has_begun(context: Context, server: Catalog) -> bool:
    """Whether the index may be what a run that broke off has left of this very statement."""
    return server.begun and server.done == context.statement.number - 1


def _refuse_constraints(context: Context, servers: Sequence[Catalog]) -> None:
    table = nodes.relation(context.node.relation)
    commands = context.node.cmds
    dropped = [each.name for each in commands if nodes.option(each.subtype) == "AT_DropConstraint"]
    for command in commands:
        subtype = nodes.option(command.subtype)
        if subtype == "AT_AddConstraint":
            name = command.def_.conname
            held = [each.host for each in servers if name in _of(each, table, "constraints")]
            if name and held and name not in dropped and not _is_done(context):
                words = "adds constraint {0}, which {1} has already on {2}"
                raise Misplaced(words.format(quoted(name), table, enumerate_names(held)))
            _refuse_lacking(context, servers, table, command.def_.indexname)
        elif subtype == "AT_ReplicaIdentity":
            _refuse_lacking(context, servers, table, command.def_.name)


def _refuse_lacking(context: Context, servers: Sequence[Catalog], table: str, index: str | None) -> None:
    """Names that the server gives are not known, but those of all servers alike."""
    if index and index in _of(context.base, table, "indexes"):
        lacking = [each.host for each in servers if index not in _of(each, table, "indexes")]
        if lacking:
            words = "takes index {0} of {1}, which is not on {2}: run pgml_schema there first"
            raise Misplaced(words.format(quoted(index), table, enumerate_names(lacking)))


def _of(server: Catalog, table: str, what: str) -> dict[str, Any]:
    found: dict[str, Any] = server.relations.get(table, {}).get(what) or {}
    return found
