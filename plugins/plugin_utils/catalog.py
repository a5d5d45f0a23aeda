# SPDX-License-Identifier: GPL-3.0-or-later
"""What one server holds before a statement: the facts that its module returned, and what the statements before make of them."""

from __future__ import annotations

from typing import Any, Callable, Collection, Mapping

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import quoted
from ansible_collections.postgresml.distributed.plugins.plugin_utils import identities, names, nodes


class Catalog:
    """One server's relations and types, which move on as statements are run in thought."""

    def __init__(self, host: str, result: Mapping[str, Any]) -> None:
        facts = result.get("facts") or {}
        progress = result.get("progress") or {}
        self.host = host
        self.done = int(progress.get("done") or 0)
        self.begun = bool(progress.get("begun"))
        self.known = result.get("known")
        self.other = result.get("other")
        self.finished = result.get("finished") or ()
        self.publication: Mapping[str, Any] = facts.get("publication") or {}
        self.functions: Mapping[str, str] = facts.get("functions") or {}
        self.relations = {name: _own_copy(each) for name, each in (facts.get("relations") or {}).items()}
        self._made: dict[str, bool] = {}
        self._added: set[tuple[str, str]] = set()
        self.types = {name: dict(each) for name, each in (facts.get("types") or {}).items()}

    def remember(self, statement: Any, received: Collection[str] = ()) -> None:
        """Take note of a statement that was run here before, in a run that did not come to its end: what it has made counts as
        made by this change, as it did then, except for tables that replicas have *received* since."""
        kind = nodes.kind(statement)
        self._remember_columns(kind, statement)
        if kind in ("RenameStmt", "AlterObjectSchemaStmt") and statement.relation is not None:
            old, new = old_and_new(statement)
            if new and self._made.pop(old, None):
                self._made[new] = True
                self.relations.get(new, {})["created"] = new not in received
        elif kind in ("CreateStmt", "CreateSeqStmt"):
            name = nodes.relation(statement.relation if kind == "CreateStmt" else statement.sequence)
            self._made[name] = True
            self.relations.get(name, {})["created"] = name not in received
        elif kind in _EFFECTS and kind.startswith("C"):
            made = Catalog(self.host, {})
            made.run(statement)
            for name in made.types:
                self.types.get(name, {})["created"] = True

    def _remember_columns(self, kind: str, statement: Any) -> None:
        """Take note of the columns that were added, by the names that they have now."""
        if kind == "AlterTableStmt":
            added = [each.def_ for each in statement.cmds if nodes.option(each.subtype) == "AT_AddColumn"]
            self._added |= {(nodes.relation(statement.relation), each.colname) for each in added}
        elif kind in ("RenameStmt", "AlterObjectSchemaStmt") and statement.relation is not None:
            old, new = old_and_new(statement)
            renamed = kind == "RenameStmt" and nodes.option(statement.renameType) == "OBJECT_COLUMN"
            was, now = (statement.subname, statement.newname) if renamed else (None, None)
            self._added = {
                (new or old, str(now) if column == was else column) if table == old else (table, column)
                for table, column in self._added
            }
        for table, column in self._added:
            self.relations.get(table, {}).get("columns", {}).get(column, {})["added"] = True

    def run(self, statement: Any) -> None:
        """Go past a statement."""
        effect = _EFFECTS.get(nodes.kind(statement))
        if effect:
            effect(self, statement)


def table_of(facts: Mapping[str, Any], name: str) -> str:
    """The table that is meant by a relation: of an index, its table."""
    return str(facts.get("table") or name)


def column(name: str, definition: Any) -> dict[str, Any]:
    """The facts of a column as they are after its definition was run."""
    not_null = nodes.constraints(definition, "CONSTR_NOTNULL", "CONSTR_PRIMARY")
    return {
        "type": nodes.type_name(definition.typeName) if definition.typeName else None,
        "not_null": bool(not_null),
        "has_default": nodes.default(definition) is not None,
        "generated": bool(nodes.constraints(definition, "CONSTR_GENERATED")),
        "identity": bool(nodes.constraints(definition, "CONSTR_IDENTITY")),
    }


def _own_copy(facts: Mapping[str, Any]) -> dict[str, Any]:
    columns = {name: dict(each) for name, each in (facts.get("columns") or {}).items()}
    constraints = {name: dict(each) for name, each in (facts.get("constraints") or {}).items()}
    return {**facts, "columns": columns, "constraints": constraints, "key": list(facts.get("key") or ())}


def _create_table(catalog: Catalog, statement: Any) -> None:
    name = nodes.relation(statement.relation)
    if statement.if_not_exists and name in catalog.relations:
        return
    parents = [nodes.relation(each) for each in statement.inhRelations or ()]
    parent = parents[0] if parents and statement.partbound is not None else None
    facts = _empty("p" if statement.partspec is not None else "r", parent)
    facts["partitioned_by"] = _divided(statement.partspec)
    if parent in catalog.relations:
        inherited = _own_copy(catalog.relations[parent])
        facts.update(
            {key: inherited[key] for key in ("columns", "constraints")}, key=identities.key_of_partitions(inherited)
        )
    for element in statement.tableElts or ():
        if nodes.kind(element) == "ColumnDef":
            facts["columns"][element.colname] = column(element.colname, element)
            _add_inline(facts, element)
        elif nodes.kind(element) == "Constraint":
            _add_constraint(catalog, facts, element)
        elif nodes.kind(element) == "TableLikeClause":
            _take_over(catalog, facts, element)
    catalog.relations[name] = facts
    if parent in catalog.relations and statement.partbound.is_default:
        catalog.relations[parent]["default"] = {"name": name, "empty": True}


def _divided(spec: Any) -> dict[str, Any] | None:
    """What a table is partitioned by, as the facts of a server say it."""
    if spec is None:
        return None
    strategy = nodes.option(spec.strategy).replace("PARTITION_STRATEGY_", "")[:1].lower()
    return {"strategy": strategy, "columns": [each.name for each in spec.partParams]}


def _empty(kind: str, parent: str | None = None) -> dict[str, Any]:
    return {
        "kind": kind,
        "distributed": False,
        "listed": None,
        "columns": {},
        "key": [],
        "constraints": {},
        "parent": parent,
        "empty": True,
        "created": True,
    }


def _take_over(catalog: Catalog, facts: dict[str, Any], clause: Any) -> None:
    model = catalog.relations.get(nodes.relation(clause.relation))
    if model:
        facts["columns"].update(_own_copy(model)["columns"])
    if clause.options & LIKE_INDEXES and (model is None or model["key"]):
        facts["key"] = list(model["key"]) if model else ["?"]


LIKE_INDEXES = 64
"""CREATE_TABLE_LIKE_INDEXES of PostgreSQL's grammar"""


def _add_inline(facts: dict[str, Any], definition: Any) -> None:
    kinds = [nodes.option(each.contype) for each in definition.constraints or ()]
    for kind, following in zip(kinds, [*kinds[1:], ""]):
        if kind == "CONSTR_PRIMARY" and following not in ("CONSTR_ATTR_DEFERRABLE", "CONSTR_ATTR_DEFERRED"):
            facts["key"] = [definition.colname]


def _add_constraint(catalog: Catalog, facts: dict[str, Any], node: Any) -> None:
    kind = nodes.option(node.contype)
    columns = nodes.strings(node.keys) or nodes.strings(node.fk_attrs) or nodes.columns(node.raw_expr)
    if kind == "CONSTR_NOTNULL":
        for name in columns:
            facts["columns"].get(name, {})["not_null"] = True
        return
    letter = {"CONSTR_PRIMARY": "p", "CONSTR_UNIQUE": "u", "CONSTR_FOREIGN": "f", "CONSTR_EXCLUSION": "x"}.get(
        kind, "c"
    )
    made: dict[str, Any] = {
        "type": letter,
        "columns": columns,
        "valid": not node.skip_validation,
        "deferrable": bool(node.deferrable),
        "not_null_of": not_null_of(node),
        "raw": node.raw_expr,
    }
    if node.indexname:
        index = quoted(names.parsed(_name_of(catalog, facts))[0], node.indexname)
        made["columns"] = list((catalog.relations.get(index) or {}).get("columns") or ())
    made_as = node.conname or "?{0}".format(len(facts["constraints"]))
    facts["constraints"][made_as] = made
    if letter in ("p", "u", "x"):
        held = _indexes(facts).pop(node.indexname, {}) if node.indexname else {}
        _indexes(facts)[made_as] = {"key": columns, "columns": columns, "unique": letter != "x", **held}
        if node.indexname and facts.get("identity_index") == node.indexname:
            facts["identity_index"] = made_as
    if letter == "p":
        facts["key"] = [] if node.deferrable else made["columns"] or ["?"]
        for name in made["columns"]:
            facts["columns"].get(name, {})["not_null"] = True


def not_null_of(node: Any) -> str | None:
    """The column of which a CHECK says that it is not null, and nothing else; None for other constraints."""
    test = node.raw_expr
    if test is None or nodes.kind(test) != "NullTest" or nodes.option(test.nulltesttype) != "IS_NOT_NULL":
        return None
    found = nodes.columns(test.arg) if nodes.kind(test.arg) == "ColumnRef" else []
    return found[0] if found else None


def _alter_table(catalog: Catalog, statement: Any) -> None:
    facts = catalog.relations.get(nodes.relation(statement.relation))
    if facts is None or facts.get("kind") in ("i", "I"):
        return
    for command in statement.cmds:
        change = _COMMANDS.get(nodes.option(command.subtype))
        if change:
            change(catalog, facts, command)


def _add_column(catalog: Catalog, facts: dict[str, Any], command: Any) -> None:
    definition = command.def_
    if definition.colname not in facts["columns"]:
        facts["columns"][definition.colname] = {**column(definition.colname, definition), "added": True}
        _add_inline(facts, definition)
        held = catalog.types.get(nodes.type_name(definition.typeName)) if definition.typeName else None
        if held is not None and facts.get("distributed") and not facts.get("parent"):
            held["tables"] = sorted({*(held.get("tables") or ()), _name_of(catalog, facts)})


def _drop_column(catalog: Catalog, facts: dict[str, Any], command: Any) -> None:
    facts["columns"].pop(command.name, None)
    gone = [name for name, each in facts["constraints"].items() if command.name in (each.get("columns") or ())]
    for name in gone:
        del facts["constraints"][name]
    facts["indexes"] = {
        name: each
        for name, each in _indexes(facts).items()
        if name not in gone and command.name not in (each.get("columns") or ())
    }
    if facts.get("listed"):
        facts["listed"] = [each for each in facts["listed"] if each != command.name]


def _set(key: str, value: Any) -> Callable[[Catalog, dict[str, Any], Any], None]:
    def change(catalog: Catalog, facts: dict[str, Any], command: Any) -> None:
        facts["columns"].setdefault(command.name, {})[key] = value

    return change


def _column_default(catalog: Catalog, facts: dict[str, Any], command: Any) -> None:
    facts["columns"].setdefault(command.name, {})["has_default"] = command.def_ is not None


def _alter_type(catalog: Catalog, facts: dict[str, Any], command: Any) -> None:
    facts["columns"].setdefault(command.name, {})["type"] = nodes.type_name(command.def_.typeName)


def _validate(catalog: Catalog, facts: dict[str, Any], command: Any) -> None:
    if command.name in facts["constraints"]:
        facts["constraints"][command.name]["valid"] = True


def _drop_constraint(catalog: Catalog, facts: dict[str, Any], command: Any) -> None:
    gone = facts["constraints"].pop(command.name, {})
    _indexes(facts).pop(command.name, None)
    if gone.get("type") == "p":
        facts["key"] = []


def _indexes(facts: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = facts.setdefault("indexes", {})
    return found


def _replica_identity(catalog: Catalog, facts: dict[str, Any], command: Any) -> None:
    facts["identity"] = command.def_.identity_type
    facts["identity_index"] = command.def_.name
    if command.def_.identity_type in ("f", "i"):
        facts["key"] = ["?"]
    elif command.def_.identity_type == "d":
        keys = [each for each in facts["constraints"].values() if each.get("type") == "p"]
        facts["key"] = list(keys[0].get("columns") or ["?"]) if keys else []


def _attach(catalog: Catalog, facts: dict[str, Any], command: Any) -> None:
    part = catalog.relations.get(nodes.relation(command.def_.name))
    if part is not None:
        part["parent"] = _name_of(catalog, facts)
        part["key"] = part["key"] or identities.key_of_partitions(facts)
        if command.def_.bound.is_default:
            facts["default"] = {"name": nodes.relation(command.def_.name), "empty": part.get("empty")}


def _name_of(catalog: Catalog, facts: dict[str, Any]) -> str:
    return str(next(name for name, each in catalog.relations.items() if each is facts))


def _detach(catalog: Catalog, facts: dict[str, Any], command: Any) -> None:
    part = catalog.relations.get(nodes.relation(command.def_.name))
    if part is not None:
        part["parent"] = None
    _forget_default(catalog, nodes.relation(command.def_.name))


def _forget_default(catalog: Catalog, name: str) -> None:
    """A default partition that is none any more."""
    for facts in catalog.relations.values():
        for key in ("default", "parent_default"):
            if facts.get(key) and facts[key]["name"] == name:
                facts[key] = None


_COMMANDS: dict[str, Callable[[Catalog, dict[str, Any], Any], None]] = {
    "AT_AddColumn": _add_column,
    "AT_DropColumn": _drop_column,
    "AT_ColumnDefault": _column_default,
    "AT_SetNotNull": _set("not_null", True),
    "AT_DropNotNull": _set("not_null", False),
    "AT_AddIdentity": _set("identity", True),
    "AT_DropIdentity": _set("identity", False),
    "AT_DropExpression": _set("generated", False),
    "AT_AlterColumnType": _alter_type,
    "AT_AddConstraint": lambda catalog, facts, command: _add_constraint(catalog, facts, command.def_),
    "AT_ValidateConstraint": _validate,
    "AT_DropConstraint": _drop_constraint,
    "AT_ReplicaIdentity": _replica_identity,
    "AT_AttachPartition": _attach,
    "AT_DetachPartition": _detach,
}


def _create_index(catalog: Catalog, statement: Any) -> None:
    if not statement.idxname:
        return
    table = nodes.relation(statement.relation)
    name = quoted(names.parsed(table)[0], statement.idxname)
    if name in catalog.relations:
        return
    owner = catalog.relations.get(table) or {}
    facts = _empty("i")
    facts.update(table=table, unique=bool(statement.unique), distributed=bool(owner.get("distributed")))
    facts["columns"] = {each.name: {} for each in statement.indexParams or () if each.name}
    facts["created"] = bool(owner.get("created"))
    catalog.relations[name] = facts
    columns = list(facts["columns"])
    owner.setdefault("indexes", {})[statement.idxname] = {"key": columns, "columns": columns, "unique": facts["unique"]}


def _create_sequence(catalog: Catalog, statement: Any) -> None:
    catalog.relations.setdefault(nodes.relation(statement.sequence), _empty("S"))


def _create_type(letter: str, name: Callable[[Any], str]) -> Callable[[Catalog, Any], None]:
    def effect(catalog: Catalog, statement: Any) -> None:
        catalog.types.setdefault(name(statement), {"kind": letter, "distributed": False, "created": True})

    return effect


def _create_domain(catalog: Catalog, statement: Any) -> None:
    name = nodes.of_strings(statement.domainname)
    has_default = bool(nodes.constraints(statement, "CONSTR_DEFAULT"))
    catalog.types.setdefault(name, {"kind": "d", "distributed": False, "created": True, "has_default": has_default})


def _alter_domain(catalog: Catalog, statement: Any) -> None:
    if statement.subtype == "T":
        catalog.types.get(nodes.of_strings(statement.typeName), {})["has_default"] = statement.def_ is not None


def _drop(catalog: Catalog, statement: Any) -> None:
    what = nodes.option(statement.removeType)
    held = catalog.types if what in ("OBJECT_TYPE", "OBJECT_DOMAIN") else catalog.relations
    for name in nodes.dropped(statement):
        gone = held.pop(name, None)
        if what == "OBJECT_INDEX" and gone:
            _indexes(catalog.relations.get(str(gone.get("table")), {})).pop(names.parsed(name)[1], None)
        if what == "OBJECT_TABLE":
            _forget_default(catalog, name)
            for facts in catalog.types.values():
                facts["tables"] = [each for each in facts.get("tables") or () if each != name]


def _rename(catalog: Catalog, statement: Any) -> None:
    what = nodes.option(statement.renameType)
    if what in ("OBJECT_TYPE", "OBJECT_DOMAIN"):
        old = nodes.of_strings(statement.object)
        if old in catalog.types:
            catalog.types[quoted(names.parsed(old)[0], statement.newname)] = catalog.types.pop(old)
        return
    if statement.relation is None:
        return
    facts = catalog.relations.get(nodes.relation(statement.relation))
    if facts is None:
        return
    if what == "OBJECT_COLUMN":
        _rename_column(facts, statement.subname, statement.newname)
    elif what == "OBJECT_TABCONSTRAINT" and statement.subname in facts["constraints"]:
        facts["constraints"][statement.newname] = facts["constraints"].pop(statement.subname)
        _rename_index(facts, statement.subname, statement.newname)
    else:
        if facts.get("kind") in ("i", "I"):
            owner = catalog.relations.get(str(facts.get("table")), {})
            _rename_index(owner, statement.relation.relname, statement.newname)
        _move(catalog, statement)


def _rename_index(facts: dict[str, Any], old: str, new: str) -> None:
    indexes = _indexes(facts)
    if old in indexes:
        indexes[new] = indexes.pop(old)
    if facts.get("identity_index") == old:
        facts["identity_index"] = new


def _rename_column(facts: dict[str, Any], old: str, new: str) -> None:
    facts["columns"] = {new if name == old else name: each for name, each in facts["columns"].items()}
    held_in: list[tuple[dict[str, Any], tuple[str, ...]]] = [(facts, ("key", "listed"))]
    held_in += [(each, ("columns",)) for each in facts["constraints"].values()]
    held_in += [(each, ("key", "columns")) for each in _indexes(facts).values()]
    for held, keys in held_in:
        for key in keys:
            if held.get(key):
                held[key] = [new if name == old else name for name in held[key]]


def old_and_new(statement: Any) -> tuple[str, str | None]:
    """What a relation was called, and is called after it was renamed or moved."""
    old = nodes.relation(statement.relation)
    if nodes.kind(statement) == "AlterObjectSchemaStmt":
        return old, quoted(statement.newschema, statement.relation.relname)
    if nodes.option(statement.renameType) in ("OBJECT_TABLE", "OBJECT_INDEX", "OBJECT_SEQUENCE"):
        return old, quoted(names.parsed(old)[0], statement.newname)
    return old, None


def _move(catalog: Catalog, statement: Any) -> None:
    old, new = old_and_new(statement)
    if not new or old not in catalog.relations:
        return
    catalog.relations[new] = catalog.relations.pop(old)
    for each in catalog.types.values():
        each["tables"] = sorted(new if name == old else name for name in each.get("tables") or ())
    for facts in catalog.relations.values():
        for key in ("table", "parent"):
            if facts.get(key) == old:
                facts[key] = new
        for key in ("default", "parent_default"):
            if facts.get(key) and facts[key]["name"] == old:
                facts[key] = {**facts[key], "name": new}


def _change_schema(catalog: Catalog, statement: Any) -> None:
    if statement.relation is not None:
        _move(catalog, statement)
        return
    if nodes.option(statement.objectType) in ("OBJECT_TYPE", "OBJECT_DOMAIN"):
        old = nodes.of_strings(statement.object)
        if old in catalog.types:
            catalog.types[quoted(statement.newschema, names.parsed(old)[1])] = catalog.types.pop(old)


_EFFECTS: dict[str, Callable[[Catalog, Any], None]] = {
    "CreateStmt": _create_table,
    "AlterTableStmt": _alter_table,
    "IndexStmt": _create_index,
    "CreateSeqStmt": _create_sequence,
    "CreateEnumStmt": _create_type("e", lambda node: nodes.of_strings(node.typeName)),
    "CreateRangeStmt": _create_type("r", lambda node: nodes.of_strings(node.typeName)),
    "CreateDomainStmt": _create_domain,
    "AlterDomainStmt": _alter_domain,
    "CompositeTypeStmt": _create_type("c", lambda node: nodes.relation(node.typevar)),
    "DropStmt": _drop,
    "RenameStmt": _rename,
    "AlterObjectSchemaStmt": _change_schema,
}
