# SPDX-License-Identifier: GPL-3.0-or-later
"""Where types, sequences, indexes, schemas and extensions come in a schema change, what is dropped, and what is refused."""

from __future__ import annotations

from typing import Any

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import enumerate_names, quoted
from ansible_collections.postgresml.distributed.plugins.plugin_utils import (
    adding,
    altering,
    names,
    nodes,
    partitioning,
)
from ansible_collections.postgresml.distributed.plugins.plugin_utils.placed import (
    PRIMARY_FIRST,
    PRIMARY_ONLY,
    READS,
    REPLICAS_FIRST,
    TOGETHER,
    Context,
    Misplaced,
    Part,
)

_ROWS = "changes rows, and replication carries that by itself: run it on the primary"
_READING = "defines nothing: leave it out"
_TRANSACTION = "is about a transaction: those are made by the role"
_UNKEPT = "is not part of what is kept equal ({0}): run it where you want it"

_REFUSALS = {
    **dict.fromkeys(("InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt", "CopyStmt", "TruncateStmt"), _ROWS),
    **dict.fromkeys(("SelectStmt", "ExplainStmt", "VariableShowStmt"), _READING),
    "TransactionStmt": _TRANSACTION,
    "VariableSetStmt": "is a SET, which would not last: write schemas before names, and leave the rest to the role",
    "CreateTableAsStmt": "creates a table of a query, which each server would answer on its own: CREATE TABLE with its columns",
    "ReindexStmt": "builds indexes anew, which changes no definition: run it where you want it",
    "VacuumStmt": "changes no definition: run it where you want it",
    "ClusterStmt": "changes no definition: run it where you want it",
    "CommentStmt": _UNKEPT.format("a comment"),
    "DoStmt": "is a DO block, and what it does can't be seen: write its statements out",
    "CallStmt": "calls a procedure, and what that does can't be seen: write its statements out",
    "ExecuteStmt": "executes what can't be seen: write it out",
    "AlterTableMoveAllStmt": _UNKEPT.format("tablespaces"),
    "AlterOwnerStmt": _UNKEPT.format("owners"),
    **dict.fromkeys(("CreateFunctionStmt", "AlterFunctionStmt"), _UNKEPT.format("functions")),
    **dict.fromkeys(("CreateTrigStmt", "CreateEventTrigStmt", "AlterEventTrigStmt"), _UNKEPT.format("triggers")),
    **dict.fromkeys(("ViewStmt", "RefreshMatViewStmt"), _UNKEPT.format("views")),
    "RuleStmt": _UNKEPT.format("rules"),
    **dict.fromkeys(("CreatePolicyStmt", "AlterPolicyStmt"), _UNKEPT.format("policies")),
    **dict.fromkeys(("GrantStmt", "GrantRoleStmt", "AlterDefaultPrivilegesStmt"), _UNKEPT.format("privileges")),
    **dict.fromkeys(("CreateRoleStmt", "AlterRoleStmt", "AlterRoleSetStmt", "DropRoleStmt"), _UNKEPT.format("roles")),
    **dict.fromkeys(("CreateStatsStmt", "AlterStatsStmt"), _UNKEPT.format("statistics")),
    **dict.fromkeys(
        (
            "CreatePublicationStmt",
            "AlterPublicationStmt",
            "CreateSubscriptionStmt",
            "AlterSubscriptionStmt",
            "DropSubscriptionStmt",
        ),
        "is about replication itself: change pgml_distributions, and run distribute.yml",
    ),
    "AlterSystemStmt": _UNKEPT.format("settings"),
    "AlterDatabaseSetStmt": _UNKEPT.format("settings"),
    "AlterExtensionStmt": _UNKEPT.format("the version of an extension, which is what the server's packages hold"),
    "DefineStmt": _UNKEPT.format("operators, aggregates, and the like"),
}

_DROPPED = {
    "OBJECT_TABLE": "table",
    "OBJECT_INDEX": "index",
    "OBJECT_SEQUENCE": "sequence",
    "OBJECT_TYPE": "type",
    "OBJECT_DOMAIN": "domain",
    "OBJECT_SCHEMA": "schema",
    "OBJECT_EXTENSION": "extension",
}


def refusal(node: Any) -> str:
    """Why a statement is refused, as words that follow its label."""
    kind = nodes.kind(node)
    if kind == "SelectStmt" and node.intoClause is not None:
        kind = "CreateTableAsStmt"
    return _REFUSALS.get(kind, _UNKEPT.format(kind[:-4] if kind.endswith("Stmt") else kind))


# --- types ------------------------------------------------------------------------------------------------------------------


def create_type(context: Context) -> list[Part]:
    """A type is there before what has it."""
    node = context.node
    if nodes.kind(node) == "CompositeTypeStmt":
        name = nodes.relation(node.typevar)
        adding.check_types(context, node.coldeflist or ())
    elif nodes.kind(node) == "CreateDomainStmt":
        name = nodes.of_strings(node.domainname)
        adding.check_types(context, [node])
    else:
        name = nodes.of_strings(node.typeName)
    for held in (context.base, *context.replicas):
        if name in held.types and not held.types[name].get("created"):
            raise Misplaced("creates type {0}, which exists already on {1}".format(name, held.host))
    return [Part(REPLICAS_FIRST, "creates type {0}".format(name))]


def _type(context: Context, name: str) -> dict[str, Any]:
    """The facts of a type that all servers have. Raises Misplaced."""
    facts = context.base.types.get(name)
    if facts is None:
        raise Misplaced("is about type {0}, which does not exist on {1}".format(name, context.base.host))
    lacking = [each.host for each in context.replicas if name not in each.types]
    if lacking:
        words = "is about type {0}, which is not on {1}, and so not in distribution {2}"
        raise Misplaced(words.format(name, " and ".join(lacking), context.scope.name))
    return facts


def _changed_type(context: Context, name: str, words: str, because: str, values: bool = True) -> Part:
    """What changes the type's name, or its values, in one stroke on all servers."""
    facts = _type(context, name)
    if facts.get("created"):
        return Part(REPLICAS_FIRST, words)
    part = Part(TOGETHER, words, consent="{0}, {1}".format(words, because))
    if values:
        _wait_for_writers(context, name, part)
    return part


def _wait_for_writers(context: Context, name: str, part: Part) -> None:
    """Values of before must not be committed after the change: the replicas would be sent what they don't take any more."""
    part.locks = context.primary.types.get(name, {}).get("tables") or ()
    if part.locks:
        part.alone = True
        part.warnings.append("lets no rows be written to {0} meanwhile".format(enumerate_names(part.locks)))


def alter_enum(context: Context) -> list[Part]:
    """A label is on the replicas before rows with it come."""
    node = context.node
    name = nodes.of_strings(node.typeName)
    if node.oldVal is None:
        _type(context, name)
        return [Part(REPLICAS_FIRST, "adds label '{0}' to type {1}".format(node.newVal, name))]
    words = "renames label '{0}' of type {1} to '{2}'".format(node.oldVal, name, node.newVal)
    return [_changed_type(context, name, words, "so that the old label fails from then on")]


def alter_composite(context: Context) -> list[Part]:
    """Attributes are sent as the text of one value, which has to fit at once."""
    node = context.node
    name = nodes.relation(node.relation)
    for command in node.cmds:
        altering.refuse_cascade(command.behavior)
        if nodes.option(command.subtype) not in ("AT_AddColumn", "AT_DropColumn", "AT_AlterColumnType"):
            raise Misplaced("alters type {0} in a way that is not part of what is kept equal".format(name))
    words = "changes the attributes of type {0}".format(name)
    return [_changed_type(context, name, words, "so that values have another form from then on")]


def rename_type(context: Context) -> list[Part]:
    """A type's name, or that of one of its attributes or constraints."""
    node = context.node
    what = nodes.option(node.renameType)
    altering.refuse_cascade(node.behavior)
    if what == "OBJECT_ATTRIBUTE":
        name = nodes.relation(node.relation)
        words = "renames attribute {0} of type {1} to {2}".format(quoted(node.subname), name, quoted(node.newname))
    else:
        name = nodes.of_strings(node.object)
        words = "renames type {0} to {1}".format(name, quoted(node.newname))
    if what == "OBJECT_DOMCONSTRAINT":
        _type(context, name)
        words = "renames constraint {0} of domain {1} to {2}".format(quoted(node.subname), name, quoted(node.newname))
        return [Part(PRIMARY_FIRST, words)]
    values = what == "OBJECT_ATTRIBUTE"
    return [_changed_type(context, name, words, "so that the old name fails from then on", values)]


def move_type(context: Context) -> list[Part]:
    """A type's schema."""
    name = nodes.of_strings(context.node.object)
    words = "moves type {0} to schema {1}".format(name, quoted(context.node.newschema))
    return [_changed_type(context, name, words, "so that the old name fails from then on", False)]


def alter_domain(context: Context) -> list[Part]:
    """What a domain allows is loosened on the replicas first, and tightened on the primary first."""
    node = context.node
    name = nodes.of_strings(node.typeName)
    altering.refuse_cascade(node.behavior)
    facts = _type(context, name)
    if node.subtype in ("T", "N", "X"):
        what = {
            "T": "changes the default",
            "N": "drops NOT NULL",
            "X": "drops constraint {0}".format(quoted(node.name or "")),
        }
        # Rows on their way may lack a column of the domain that this change has added, and need the default of before.
        order = PRIMARY_FIRST if node.subtype == "T" else REPLICAS_FIRST
        return [Part(order, "{0} of domain {1}".format(what[node.subtype], name))]
    what = {
        "O": "sets NOT NULL",
        "C": "adds a constraint",
        "V": "validates constraint {0}".format(quoted(node.name or "")),
    }
    part = Part(PRIMARY_FIRST, "{0} on domain {1}".format(what[node.subtype], name))
    if node.subtype == "C" and node.def_.skip_validation and facts.get("distributed"):
        raise Misplaced(
            "{0} NOT VALID, and a row that was there before and does not keep it would stop the replicas when it is updated: "
            "mend such rows, and write it without NOT VALID".format(part.words)
        )
    if node.subtype in ("O", "C"):
        _wait_for_writers(context, name, part)
    scans = node.subtype == "O" or node.subtype == "C" and not node.def_.skip_validation
    if scans and facts.get("distributed"):
        part.blocks = READS
        part.consent = "{0}, which reads all tables that have it while writes to them wait".format(part.words)
    return [part]


# --- sequences, schemas, extensions, indexes --------------------------------------------------------------------------------


def create_sequence(context: Context) -> list[Part]:
    """A sequence is there before the default that asks it."""
    node = context.node
    name = nodes.relation(node.sequence)
    if node.sequence.relpersistence != "p":
        raise Misplaced("creates sequence {0}, which is temporary or not logged".format(name))
    return [Part(REPLICAS_FIRST, "creates sequence {0}".format(name))]


def alter_sequence(context: Context) -> list[Part]:
    """The options of a sequence; where it stands is no definition."""
    node = context.node
    name = nodes.relation(node.sequence)
    if any(each.defname == "restart" for each in node.options or ()):
        raise Misplaced("sets where sequence {0} stands, which is no definition: run it on the primary".format(name))
    part = of_sequence(context, name, "alters sequence {0}".format(name), node.missing_ok)
    part.order = REPLICAS_FIRST if part.order == PRIMARY_FIRST else part.order
    return [part]


def of_sequence(context: Context, name: str, words: str, missing_ok: bool = False) -> Part:
    """A statement about a sequence, which stays on the primary when the replicas don't have it. Raises Misplaced."""
    return _kept_where_it_is(context, name, Part(PRIMARY_FIRST, words), "sequence", missing_ok)


def of_index(context: Context, name: str, part: Part, missing_ok: bool) -> Part:
    """A statement about an index, which stays on the primary when the replicas don't have it. Raises Misplaced."""
    return _kept_where_it_is(context, name, part, "index", missing_ok)


def _kept_where_it_is(context: Context, name: str, part: Part, what: str, missing_ok: bool) -> Part:
    facts = context.base.relations.get(name)
    if facts is None:
        if missing_ok:
            return context.absent(name)
        raise Misplaced("is about {0} {1}, which does not exist on {2}".format(what, name, context.base.host))
    lacking = context.lacking(name)
    if lacking and len(lacking) == len(context.replicas):
        part.order = PRIMARY_ONLY
        part.reason = "the replicas don't have {0} {1}".format(what, name)
    elif lacking and not missing_ok:
        raise Misplaced(
            "{0}, which is not on {1}: run pgml_schema there first".format(part.words, " and ".join(lacking))
        )
    return part


def create_schema(context: Context) -> list[Part]:
    """A schema by itself."""
    node = context.node
    if node.schemaElts:
        raise Misplaced("creates a schema with what is in it: write these as statements of their own")
    if node.authrole is not None:
        raise Misplaced(
            "creates a schema for a role, and owners are not part of what is kept equal: leave AUTHORIZATION out"
        )
    return [Part(REPLICAS_FIRST, "creates schema {0}".format(quoted(node.schemaname)))]


def create_extension(context: Context) -> list[Part]:
    """An extension is there before what has its types."""
    return [Part(REPLICAS_FIRST, "creates extension {0}".format(quoted(context.node.extname)))]


def alter_index(context: Context, name: str) -> list[Part]:
    """A partition's index joins that of its root; nothing else of an index is a definition."""
    found = []
    for command in context.node.cmds:
        if nodes.option(command.subtype) != "AT_AttachPartition":
            raise Misplaced(
                "alters index {0} in a way that is not part of what is kept equal: run it where you want it".format(
                    name
                )
            )
        words = "attaches index {0} to {1}".format(nodes.relation(command.def_.name), name)
        found.append(of_index(context, name, Part(PRIMARY_FIRST, words), False))
    return found


# --- DROP -------------------------------------------------------------------------------------------------------------------


def drop(context: Context) -> tuple[str | None, list[Part]]:
    """What is dropped goes on the primary first; an index is missed by nobody, and may go on the replicas first."""
    node = context.node
    what = nodes.option(node.removeType)
    if what not in _DROPPED:
        kind = what[len("OBJECT_") :].lower().replace("_", " ")
        raise Misplaced("drops a {0}, which is not part of what is kept equal: run it where you want it".format(kind))
    altering.refuse_cascade(node.behavior)
    parts, problems = [], []
    for name in nodes.dropped(node):
        try:
            parts.append(_dropped(context, what, name))
        except Misplaced as problem:
            problems.append(str(problem))
    if node.concurrent and len(parts) + len(problems) > 1:
        problems.append(
            "drops several indexes CONCURRENTLY, and PostgreSQL drops one at a time: write a statement for each"
        )
    if problems:
        raise Misplaced("\n".join(problems))
    return None, parts


def _dropped(context: Context, what: str, name: str) -> Part:
    words = "drops {0} {1}".format(_DROPPED[what], name)
    if what == "OBJECT_TABLE":
        return _dropped_table(context, name, words)
    if what == "OBJECT_INDEX":
        return _dropped_index(context, name, words)
    if what == "OBJECT_SEQUENCE":
        return of_sequence(context, name, words, context.node.missing_ok)
    if what in ("OBJECT_TYPE", "OBJECT_DOMAIN"):
        if name in context.base.types or not context.node.missing_ok:
            _type(context, name)
        return Part(PRIMARY_FIRST, words)
    if what == "OBJECT_SCHEMA" and context.scope.lists_schema(names.parsed(name)[1]):
        raise Misplaced("{0}, which pgml_distributions still lists: take it out there".format(words))
    return Part(PRIMARY_FIRST, words)


def _dropped_table(context: Context, name: str, words: str) -> Part:
    facts = context.table(name, context.node.missing_ok)
    if facts is None:
        _refuse_tables_of_replicas(context, name, words)
        return context.absent(name)
    if name in context.scope.tables and not facts.get("created"):
        raise Misplaced("{0}, which pgml_distributions still lists: take it out there".format(words))
    part = Part(PRIMARY_FIRST, words, joins=True)
    partitioning.beside_default(context, partitioning.default_of(context, name), part, False)
    return part


def _refuse_tables_of_replicas(context: Context, name: str, words: str) -> None:
    """What a change that was given up has left on a replica has no rows."""
    for replica in context.replicas:
        if name in replica.relations and not replica.relations[name].get("empty"):
            raise Misplaced(
                "{0}, which {1} does not have, and {2} has rows of its own in: drop it there, if it is to go".format(
                    words, context.base.host, replica.host
                )
            )


def _dropped_index(context: Context, name: str, words: str) -> Part:
    part = Part(REPLICAS_FIRST, words, concurrently={"drops": name} if context.node.concurrent else {})
    part = of_index(context, name, part, context.node.missing_ok)
    facts = context.base.relations.get(name)
    if facts is None:
        return part
    table = str(facts.get("table"))
    if not context.is_inside(facts):
        raise Misplaced(
            "{0}, which is on {1}, which is not in distribution {2}".format(words, table, context.scope.name)
        )
    owner = context.base.relations.get(table, {})
    finds = owner.get("identity") == "i" and owner.get("identity_index") == names.parsed(name)[1]
    if finds and part.order != PRIMARY_ONLY:
        if context.node.concurrent:
            raise Misplaced(
                "{0} CONCURRENTLY, by which replication finds rows of {1}: write it without".format(words, table)
            )
        part.order = TOGETHER
        part.consent = "{0}, by which replication finds rows of {1}".format(words, table)
    return part
