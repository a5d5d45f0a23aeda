# SPDX-License-Identifier: GPL-3.0-or-later
"""Where partitions that come and go have their place in a schema change."""

from __future__ import annotations

from typing import Any, Iterator, Mapping

from ansible_collections.postgresml.distributed.plugins.plugin_utils import ddl, nodes
from ansible_collections.postgresml.distributed.plugins.plugin_utils.placed import (
    PRIMARY_FIRST,
    TOGETHER,
    Context,
    Misplaced,
    Part,
)


def beside_default(context: Context, default: Mapping[str, Any] | None, part: Part, reads: bool) -> None:
    """Where there is a default partition, it takes the rows of a partition that isn't there yet, or any more. Neither side can be
    first: replicas would be sent rows for a partition that doesn't take them there."""
    if default is None:
        return
    part.order = TOGETHER
    part.alone = True
    name = default["name"]
    if reads:
        part.consent = "{0}, which locks the default partition {1} and reads it".format(part.words, name)
    else:
        part.consent = "{0}, which locks the default partition {1}, into which its rows go from then on".format(
            part.words, name
        )
    verb = "reads" if reads and not default.get("empty") else "changes"
    part.warnings.append("locks default partition {0} while it {1} it".format(name, verb))


def default_of(context: Context, name: str) -> Mapping[str, Any] | None:
    """The default partition beside partition *name*; None where there is none, or it is that one."""
    facts = context.base.relations.get(name, {})
    parent = context.base.relations.get(str(facts.get("parent")))
    found = facts.get("parent_default") if parent is None else parent.get("default")
    apart = parent is not None and context.is_apart(parent)
    return None if not facts.get("parent") or apart or not found or found["name"] == name else found


def attach(context: Context, name: str, facts: dict[str, Any], command: Any) -> Part:
    """A table becomes a partition."""
    child = nodes.relation(command.def_.name)
    found = Part(PRIMARY_FIRST, "attaches {0} to {1}".format(child, name), joins=True)
    _refuse_via_root(context, name, "attaches a partition to")
    held = context.base.relations.get(child)
    if held is None:
        raise Misplaced("attaches {0}, which does not exist on {1}".format(child, context.base.host))
    lacking = context.lacking(child)
    if lacking:
        # With the first row that comes, apply fails for want of the table, whether it is subscribed to or not.
        raise Misplaced(
            "attaches {0}, which is not on {1}: list it in pgml_distributions and run distribute.yml first, which brings it "
            "with its rows".format(child, " and ".join(lacking))
        )
    _refuse_rows_of_replicas(context, child, held)
    if not context.is_small(held):
        found.alone = True
        found.warnings.append("locks {0} while it is read".format(child))
        if _is_proven(held, facts.get("partitioned_by"), command.def_.bound):
            found.warnings[-1] = "a CHECK of {0} says the same as the bounds".format(child)
        else:
            found.consent = (
                "{0}, which reads {1} while it is locked: first add a CHECK to {1} that says the same as the bounds, NOT VALID, "
                "and VALIDATE it"
            ).format(found.words, child)
    if not context.is_apart(facts):
        beside_default(context, facts.get("default"), found, True)
    return found


def _refuse_rows_of_replicas(context: Context, child: str, held: Mapping[str, Any]) -> None:
    """What a replica has in a table that it doesn't receive would count as rows of the primary, and stand in their way."""
    if held.get("created"):
        return
    for replica in context.replicas:
        there = replica.relations.get(child, {})
        if not (there.get("distributed") or there.get("empty")):
            raise Misplaced(
                "attaches {0}, which {1} does not receive and has rows of its own in: list it in pgml_distributions and run "
                "distribute.yml first, or empty it there".format(child, replica.host)
            )


def detach(context: Context, name: str, facts: dict[str, Any], command: Any) -> Part:
    """A partition becomes a table of its own."""
    if command.def_.concurrent or nodes.option(command.subtype) == "AT_DetachPartitionFinalize":
        raise Misplaced(
            "detaches a partition CONCURRENTLY, which can't be undone when it is interrupted: write it without"
        )
    _refuse_via_root(context, name, "detaches a partition of")
    child = nodes.relation(command.def_.name)
    found = Part(PRIMARY_FIRST, "detaches {0} from {1}".format(child, name), joins=True)
    default = facts.get("default")
    if default and default["name"] != child and not context.is_apart(facts):
        beside_default(context, default, found, False)
    return found


def _refuse_via_root(context: Context, name: str, what: str) -> None:
    if context.primary.publication.get("via_partition_root"):
        words = "{0} {1}, which is published by its root: rows of the partition would be copied twice or be missed"
        raise Misplaced(words.format(what, name))


# --- whether a CHECK says the same as the bounds ----------------------------------------------------------------------------


def _is_proven(facts: Mapping[str, Any], by: Mapping[str, Any] | None, bound: Any) -> bool:
    """Whether the server can see by a valid CHECK that the rows of a table fit, and need not read them. Only what is written as
    the bounds are is found: a column, an operator, a constant."""
    columns = by["columns"] if by else []
    if by is None or len(columns) != 1 or columns[0] is None or bound.is_default:
        return False
    column = columns[0]
    said = list(_said(facts, column))
    if not (facts["columns"].get(column, {}).get("not_null") or ("not null", "") in said):
        return False
    if by["strategy"] == "r":
        limits = ((">=", bound.lowerdatums[0]), ("<", bound.upperdatums[0]))
        return all(nodes.kind(datum) == "ColumnRef" or (sign, _constant(datum)) in said for sign, datum in limits)
    values = {_constant(each) for each in bound.listdatums or ()}
    return by["strategy"] == "l" and any(
        sign == "in" and None not in listed and set(listed) <= values for sign, listed in said
    )


def _said(facts: Mapping[str, Any], column: str) -> Iterator[tuple[str, Any]]:
    """What the valid CHECKs say of a column, as signs and constants."""
    for each in facts["constraints"].values():
        if each.get("type") == "c" and each.get("valid"):
            for clause in _clauses(_tree(each)):
                yield from _read(clause, column)


def _tree(constraint: Mapping[str, Any]) -> Any:
    if constraint.get("raw") is not None:
        return constraint["raw"]
    parsed = ddl.parsed_if_it_can_be("ALTER TABLE t ADD {0}".format(constraint.get("expression") or ""))
    return None if parsed is None else parsed.cmds[0].def_.raw_expr


def _clauses(tree: Any) -> Iterator[Any]:
    if nodes.kind(tree) == "BoolExpr" and nodes.option(tree.boolop) == "AND_EXPR":
        for each in tree.args:
            yield from _clauses(each)
    elif tree is not None:
        yield tree


def _read(clause: Any, column: str) -> Iterator[tuple[str, Any]]:
    kind = nodes.kind(clause)
    if kind == "NullTest" and nodes.option(clause.nulltesttype) == "IS_NOT_NULL" and _is_column(clause.arg, column):
        yield "not null", ""
    if kind != "A_Expr" or not _is_column(clause.lexpr, column):
        return
    sign = clause.name[-1].sval
    how = nodes.option(clause.kind)
    if how == "AEXPR_OP" and sign == "=":
        yield "in", (_constant(clause.rexpr),)
    elif how == "AEXPR_OP":
        yield sign, _constant(clause.rexpr)
    elif how == "AEXPR_IN" and sign == "=":
        yield "in", tuple(_constant(each) for each in clause.rexpr)
    elif how == "AEXPR_OP_ANY" and sign == "=" and nodes.kind(clause.rexpr) == "A_ArrayExpr":
        yield "in", tuple(_constant(each) for each in clause.rexpr.elements or ())


def _is_column(node: Any, column: str) -> bool:
    return nodes.kind(node) == "ColumnRef" and nodes.columns(node) == [column]


def _constant(node: Any) -> str | None:
    """A constant's text, without the casts that a server prints."""
    while nodes.kind(node) == "TypeCast":
        node = node.arg
    if nodes.kind(node) != "A_Const" or node.isnull:
        return None
    value = node.val
    for key in ("ival", "fval", "sval", "boolval"):
        if getattr(value, key, None) is not None:
            return str(getattr(value, key))
    return None
