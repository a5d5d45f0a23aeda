# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a server has to run another text than the user wrote: made by changing the parse tree and printing it."""

from __future__ import annotations

from typing import Any, Sequence

from ansible_collections.postgresml.distributed.plugins.plugin_utils import ddl, names, nodes
from ansible_collections.postgresml.distributed.plugins.plugin_utils.placed import Context, Part, Placed

_MARK = "\ue000missing {0} {1}.{2}\ue000"


def pinned(context: Context, table: str | None, parts: Sequence[Part]) -> tuple[str, list[dict[str, str]]]:
    """What replicas run instead of ADD COLUMN .. DEFAULT now(): the rows that are there get the value that those of the primary
    got, which the module puts in place of a mark; the default comes after that. One ALTER TABLE does both: it adds columns
    before it sets defaults."""
    columns = [part.pin.def_.colname for part in parts if part.pin is not None]
    if not columns or table is None:
        return context.statement.text, []
    tree = ddl.parsed(context.statement.text)
    pins, later = [], []
    for command in tree.cmds:
        if nodes.option(command.subtype) != "AT_AddColumn" or command.def_.colname not in columns:
            continue
        column = command.def_.colname
        # Without backslashes, which are read in two ways.
        mark = _MARK.format(context.statement.number, table, column).replace("\\", "/")
        constraint = nodes.constraints(command.def_, "CONSTR_DEFAULT")[0]
        later.append(ddl.default_setting(column, constraint.raw_expr))
        constraint.raw_expr = ddl.expression(ddl.text_literal(mark))
        pins.append({"mark": mark, "table": table, "column": column})
    tree.cmds = (*tree.cmds, *later)
    return ddl.printed(tree), pins


def afterwards(context: Context) -> str:
    """What replicas run of what the primary runs first. Which schemas and extensions they have is not known; and what the
    primary has done in an earlier run, distribute.yml may have brought to them since."""
    node = context.node
    tree = ddl.parsed(context.statement.text)
    if nodes.kind(node) == "DropStmt":
        tree.missing_ok = tree.missing_ok or nodes.option(node.removeType) in ("OBJECT_SCHEMA", "OBJECT_EXTENSION")
    elif context.base is not context.primary and nodes.kind(node) == "IndexStmt":
        name = ddl.beside(nodes.relation(node.relation), node.idxname or "")
        tree.if_not_exists = tree.if_not_exists or any(name in each.relations for each in context.replicas)
    elif context.base is not context.primary and nodes.kind(node) == "AlterTableStmt":
        table = nodes.relation(node.relation)
        held = {name for each in context.replicas for name in each.relations.get(table, {}).get("constraints", {})}
        added = [each.def_.conname for each in tree.cmds if nodes.option(each.subtype) == "AT_AddConstraint"]
        tree.cmds = (*(ddl.constraint_drop(name) for name in added if name in held), *tree.cmds)
    return context.statement.text if tree == node else ddl.printed(tree)


def shown(placed: Placed) -> str:
    """What replicas run, for people."""
    text = placed.replica
    for pin in placed.pins:
        text = text.replace(ddl.text_literal(pin["mark"]), "(the value at the source)")
    return text


def republished(context: Context, table: str | None, parts: Sequence[Part]) -> str:
    """What the primary runs: where columns join or leave the column list of a table, the publication changes in the same
    transaction, so that no row comes with less, or more, than the replicas expect."""
    text = context.statement.text
    come = [part.comes for part in parts if part.comes]
    go = [part.goes for part in parts if part.goes]
    if table is None or not (come or go):
        return text
    listed = context.listed(table, context.base.relations[table]) or []
    columns = [each for each in listed if each not in go] + come
    taken_out = _publication(context, table, "DROP TABLE ONLY t")
    where = context.scope.where(table)
    put_in = _publication(
        context, table, "ADD TABLE ONLY t (c){0}".format(" WHERE ({0}\n)".format(where) if where else ""), columns
    )
    texts = [taken_out, put_in, text] if go else [text, taken_out, put_in]
    return ";\n".join(texts)


def locking(parts: Sequence[Part]) -> str:
    """What the primary runs before a change that locks no table by itself: who has written rows has committed them then, and
    who comes later knows the change. All tables in one statement, and always in the same order."""
    tables = sorted({name for part in parts for name in part.locks})
    if not tables:
        return ""
    named = ", ".join(ddl.exact(name) for name in tables)
    text = ddl.printed(ddl.parsed("LOCK TABLE {0} IN SHARE ROW EXCLUSIVE MODE".format(named)))
    return text.replace("LOCK ", "LOCK TABLE ", 1) + ";\n"


def _publication(context: Context, table: str, template: str, columns: Sequence[str] = ()) -> str:
    tree = ddl.parsed("ALTER PUBLICATION p {0}".format(template))
    tree.pubname = context.scope.publication
    held: Any = tree.pubobjects[0].pubtable
    held.relation.schemaname, held.relation.relname = names.parsed(table)
    if columns:
        held.columns = ddl.text_list(columns)
    return ddl.printed(tree)
