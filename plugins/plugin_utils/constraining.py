# SPDX-License-Identifier: GPL-3.0-or-later
"""Where constraints come in a schema change: what they forbid is forbidden on the primary first."""

from __future__ import annotations

from typing import Any

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import quoted
from ansible_collections.postgresml.distributed.plugins.plugin_utils import ddl, nodes
from ansible_collections.postgresml.distributed.plugins.plugin_utils.catalog import not_null_of
from ansible_collections.postgresml.distributed.plugins.plugin_utils.placed import (
    BUILDS,
    PRIMARY_FIRST,
    PRIMARY_ONLY,
    READS,
    REPLICAS_FIRST,
    TOGETHER,
    Context,
    Misplaced,
    Part,
)


def set_not_null(context: Context, name: str, facts: dict[str, Any], command: Any) -> Part:
    """NULL is forbidden on the primary first; short where a valid check has proven that there is none."""
    return _not_null(context, name, facts, command.name)


def _not_null(context: Context, name: str, facts: dict[str, Any], column: str) -> Part:
    found = Part(PRIMARY_FIRST, "sets column {0} of {1} NOT NULL".format(quoted(column), name), columns=[column])
    proven = any(each.get("valid") and _proves(each, column) for each in facts["constraints"].values())
    known = facts["columns"].get(column, {}).get("not_null")
    if not (proven or known or context.is_small(facts)):
        found.blocks = READS
        found.consent = (
            "{0}, which reads the whole table while it is locked: first add CHECK ({1} IS NOT NULL) NOT VALID, "
            "VALIDATE it, then SET NOT NULL, then drop the check"
        ).format(found.words, quoted(column))
    return found


def _proves(constraint: dict[str, Any], column: str) -> bool:
    """Whether a constraint says that a column is not null, by its tree or by its text as the server prints it."""
    if "not_null_of" in constraint:
        return bool(constraint["not_null_of"] == column)
    if constraint.get("type") != "c" or not constraint.get("expression"):
        return False
    tree = ddl.parsed_if_it_can_be("ALTER TABLE t ADD {0}".format(constraint["expression"]))
    return tree is not None and not_null_of(tree.cmds[0].def_) == column


def add_constraint(context: Context, name: str, facts: dict[str, Any], command: Any) -> Part:
    """A constraint, which the rows that the primary sends have to keep first."""
    node = command.def_
    kind = nodes.option(node.contype)
    what = "{{0}}constraint {0}".format(quoted(node.conname)) if node.conname else "a {0}constraint"
    if kind == "CONSTR_NOTNULL":
        return _not_null(context, name, facts, nodes.strings(node.keys)[0])
    if kind == "CONSTR_PRIMARY":
        return _add_primary_key(context, name, facts, node)
    if kind in ("CONSTR_UNIQUE", "CONSTR_EXCLUSION"):
        return _add_unique(context, name, facts, node, what)
    what = what.format("")
    columns = nodes.strings(node.fk_attrs) or nodes.columns(node.raw_expr)
    found = Part(PRIMARY_FIRST, "adds {0} to {1}".format(what, name), columns=columns)
    if kind == "CONSTR_FOREIGN":
        found.words = "adds {0} from {1} to {2}".format(
            what.replace("constraint", "foreign key", 1), name, nodes.relation(node.pktable)
        )
        place_foreign_key(context, name, node, found)
    if not (node.skip_validation or context.is_small(facts)):
        found.blocks = READS
        found.consent = (
            "{0}, which reads the whole table while it is locked: add it NOT VALID, then VALIDATE CONSTRAINT"
        ).format(found.words)
    return found


def place_foreign_key(context: Context, name: str, node: Any, found: Part) -> None:
    """A foreign key to what the replicas don't have, or have in part, stays on the primary."""
    other = nodes.relation(node.pktable)
    held = context.base.relations.get(other)
    if other == name:
        held = {"created": True}
    if held is None:
        raise Misplaced("references {0}, which does not exist on {1}".format(other, context.base.host))
    if not context.is_inside(held):
        found.order = PRIMARY_ONLY
        found.reason = "{0} is not in distribution {1}".format(other, context.scope.name)
    elif context.scope.where(other) or context.scope.columns(other):
        found.order = PRIMARY_ONLY
        found.reason = "of {0}, only a part is distributed".format(other)


def _add_primary_key(context: Context, name: str, facts: dict[str, Any], node: Any) -> Part:
    words = "makes {0} the primary key of {1}".format(
        ", ".join(quoted(each) for each in nodes.strings(node.keys)) or "an index", name
    )
    if node.indexname:
        words = "makes index {0} the primary key of {1}".format(quoted(node.indexname), name)
    found = Part(TOGETHER, words, columns=_index_columns(context, name, node))
    found.consent = "{0}, by which replication finds rows".format(words)
    if not (node.indexname or context.is_small(facts)):
        found.blocks = BUILDS
    return found


def _add_unique(context: Context, name: str, facts: dict[str, Any], node: Any, what: str) -> Part:
    found = Part(
        PRIMARY_FIRST,
        "adds {0} to {1}".format(what.format("unique "), name),
        columns=_index_columns(context, name, node),
    )
    if nodes.option(node.contype) == "CONSTR_EXCLUSION":
        found.words = "adds {0} to {1}".format(what.replace("a {", "an {").format("exclusion "), name)
        found.columns = [each.name for each, _operator in node.exclusions if each.name]
    if not (node.indexname or context.is_small(facts)):
        found.blocks = BUILDS
        advice = ": CREATE UNIQUE INDEX CONCURRENTLY, then add it USING INDEX"
        found.consent = "{0}, which locks the table while its index is built{1}".format(
            found.words, advice if nodes.option(node.contype) == "CONSTR_UNIQUE" else ""
        )
    return found


def _index_columns(context: Context, name: str, node: Any) -> list[str]:
    """The columns of a constraint that is an index, or will be one."""
    if node.indexspace:
        raise Misplaced(
            "adds a constraint to {0} with a tablespace, and that is not part of what is kept equal: leave it out".format(
                name
            )
        )
    if not node.indexname:
        return nodes.strings(node.keys) + nodes.strings(node.including)
    index = context.base.relations.get(ddl.beside(name, node.indexname)) or {}
    return list(index.get("columns") or ())


def validate(context: Context, name: str, facts: dict[str, Any], command: Any) -> Part:
    """The proof of a constraint that was added NOT VALID."""
    found = Part(PRIMARY_FIRST, "validates constraint {0} of {1}".format(quoted(command.name), name))
    found.columns = facts["constraints"].get(command.name, {}).get("columns") or ()
    return kept_from_replicas(context, name, facts, command.name, found, not command.missing_ok)


def drop_constraint(context: Context, name: str, facts: dict[str, Any], command: Any) -> Part:
    """What is allowed again is allowed on the replicas first."""
    held = facts["constraints"].get(command.name, {})
    found = Part(REPLICAS_FIRST, "drops constraint {0} of {1}".format(quoted(command.name), name))
    found.columns = held.get("columns") or ()
    if held.get("type") == "p" or held.get("type") == "u" and _is_identity(facts, command.name):
        found.order = TOGETHER
        found.words = found.words.replace(
            "constraint", "primary key" if held["type"] == "p" else "unique constraint", 1
        )
        found.consent = "{0}, by which replication finds rows".format(found.words)
        return found
    return kept_from_replicas(context, name, facts, command.name, found, not command.missing_ok)


def _is_identity(facts: dict[str, Any], name: str) -> bool:
    return facts.get("identity") == "i" and facts.get("identity_index") == name


def kept_from_replicas(
    context: Context, name: str, facts: dict[str, Any], constraint: str, found: Part, sure: bool = True
) -> Part:
    """A constraint that the replicas don't have is the primary's own matter."""
    if constraint not in facts["constraints"] or facts.get("created"):
        return found
    lacking = [
        each.host for each in context.replicas if constraint not in each.relations.get(name, {}).get("constraints", {})
    ]
    if lacking and len(lacking) == len(context.replicas):
        found.order = PRIMARY_ONLY
        found.reason = "the replicas don't have it"
    elif lacking and sure:
        raise Misplaced(
            "{0}, which is not on {1}: run pgml_schema there first".format(found.words, " and ".join(lacking))
        )
    return found


def alter_constraint(context: Context, name: str, facts: dict[str, Any], command: Any) -> Part:
    """When a constraint is checked."""
    constraint = command.def_.conname
    found = Part(PRIMARY_FIRST, "alters constraint {0} of {1}".format(quoted(constraint), name))
    return kept_from_replicas(context, name, facts, constraint, found)
