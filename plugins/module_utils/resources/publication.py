# SPDX-License-Identifier: GPL-3.0-or-later
"""A publication on the upstream: what is there, what is wanted, and the statements between."""

from __future__ import annotations

import contextlib
from typing import Any, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Missing, Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import capacity
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session, version_text
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    Change,
    check_name,
    compose,
    enumerate_names,
    expression,
    identifier,
    identifiers,
    listed,
    literal,
    quoted,
    with_options,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import (
    change_progress,
    replica_identity,
    row_filter,
    tables,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.tables import Table
from ansible_collections.postgresml.distributed.plugins.module_utils.task import Task

OPERATIONS = ["insert", "update", "delete", "truncate"]
FILTERS_SINCE = SCHEMAS_SINCE = 150000
GENERATED_COLUMNS_SINCE = 180000

OPTIONS: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "tables": {"type": "list", "elements": "raw"},
    "schemas": {"type": "list", "elements": "str"},
    "all_tables": {"type": "bool"},
    "publish": {"type": "list", "elements": "str"},
    "via_partition_root": {"type": "bool"},
    "generated_columns": {"type": "str", "choices": ["none", "stored"]},
    "owner": {"type": "str"},
    "comment": {"type": "str"},
    "replica_identity": {"type": "str", "choices": ["require", "full", "ignore"], "default": "require"},
    "recreate": {"type": "bool", "default": False},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}


class Published(NamedTuple):
    """A published table."""

    table: Table
    """with its column list and its row filter as the server spells it"""
    filter_columns: frozenset[str] = frozenset()

    def same_as(self, other: Published) -> bool:
        return (self.table.columns, self.table.where) == (other.table.columns, other.table.where)


class Publication(NamedTuple):
    """A publication. In what is wanted, None means: leave it as it is."""

    name: str
    all_tables: bool | None
    tables: Mapping[tuple[str, str], Published] | None
    schemas: frozenset[str] | None
    publish: frozenset[str] | None
    via_partition_root: bool | None
    generated_columns: str | None
    owner: str | None
    comment: str | None
    """without the line of progress"""
    progress: str | None = None
    """the line of progress at the comment's end, which is pgml_schema_change's"""

    def over(self, current: Publication | None) -> Publication:
        """What will be there: *self* where it says something, *current* elsewhere."""
        base = current or Publication(
            self.name, False, {}, frozenset(), frozenset(OPERATIONS), False, "none", None, None
        )
        filled = {field: value for field, value in self._asdict().items() if value is not None}
        return base._replace(**filled)

    @property
    def publishes_changes(self) -> bool:
        return bool(frozenset(self.publish or ()) & {"update", "delete"})

    def as_result(self) -> dict[str, Any]:
        """The publication as a return value and a side of the diff."""
        return {
            "name": self.name,
            "all_tables": self.all_tables,
            "tables": [
                {
                    "name": published.table.label,
                    "columns": None if published.table.columns is None else list(published.table.columns),
                    "where": published.table.where,
                }
                for key, published in sorted((self.tables or {}).items())
            ],
            "schemas": sorted(self.schemas or ()),
            "publish": [operation for operation in OPERATIONS if operation in (self.publish or ())],
            "via_partition_root": self.via_partition_root,
            "generated_columns": self.generated_columns,
            "owner": self.owner,
            "comment": self.comment or "",
        }


def manage(task: Task) -> None:
    """Bring the publication of the task's options to its state."""
    params = task.params
    check_name("publication", params["name"])
    session = task.session_or_none()
    with session or contextlib.nullcontext():
        current = read(session, params["name"]) if session else None
        if params["state"] == "absent":
            task.describe(current and current.as_result(), None)
            task.apply(session, plan_absent(current))
            return
        try:
            if session is None:
                raise Missing('There is no database "{0}".'.format(params["login_db"]))
            future, faults, changes = foresee(session, params, current)
        except Missing as error:
            if not task.check_mode:
                raise
            task.warn("In check mode this is taken for something that an earlier task would create: {0}".format(error))
            task.note('{0} publication "{1}"'.format("Alter" if current else "Create", params["name"]))
            return
        task.describe(current and current.as_result(), future.as_result())
        task.result["publication"] = future.as_result()
        task.result["replica_identity_full"] = [each.identity.label for each in faults]
        task.result["left_out"] = _left_out(session, future)
        task.result["wal_space"] = capacity.wal_space(session)
        task.apply(session, changes)


def foresee(
    session: Session, params: Mapping[str, Any], current: Publication | None
) -> tuple[Publication, list[replica_identity.Fault], list[Change]]:
    """What will be there when the options were followed, the faults that REPLICA IDENTITY FULL heals, and the steps to it;
    refuses what can't be published."""
    wanted = _wanted(session, params, current)
    future = wanted.over(current)
    faults = [] if params["replica_identity"] == "ignore" else faults_of(session, future)
    if faults and (params["replica_identity"] == "require" or not all(each.healed_by_full for each in faults)):
        raise Refused(replica_identity.refusal(faults), replica_identity=replica_identity.as_result(faults))
    changes = [replica_identity.full(each.identity) for each in faults]
    changes += plan(current, wanted, session.version, params["recreate"])
    return future, faults, changes


def read(session: Session, name: str) -> Publication | None:
    """The publication *name* of the session's database."""
    row = session.row(
        "SELECT p.oid, p.puballtables, p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate, p.pubviaroot,"
        " to_jsonb(p) ->> 'pubgencols' AS gencols, pg_get_userbyid(p.pubowner) AS owner,"
        " obj_description(p.oid, 'pg_publication') AS comment FROM pg_publication AS p WHERE p.pubname = %s",
        [name],
    )
    if row is None:
        return None
    comment, progress = change_progress.parted(row.comment)
    return Publication(
        name=name,
        all_tables=row.puballtables,
        tables=_read_tables(session, row.oid),
        schemas=_read_schemas(session, row.oid),
        publish=frozenset(operation for operation in OPERATIONS if getattr(row, "pub" + operation)),
        via_partition_root=row.pubviaroot,
        generated_columns="stored" if row.gencols == "s" else "none",
        owner=row.owner,
        comment=comment or None,
        progress=progress,
    )


def _read_tables(session: Session, oid: int) -> dict[tuple[str, str], Published]:
    has_filters = session.version >= FILTERS_SINCE
    return {
        (row.schema, row.name): Published(
            Table(row.oid, row.schema, row.name, row.kind, tuple(row.columns) if row.columns else None, row.filter),
            frozenset(row.filter_columns or ()),
        )
        for row in session.rows(
            "SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relkind AS kind, "
            + (_COLUMNS_AND_FILTER if has_filters else "NULL AS columns, NULL AS filter, NULL AS filter_columns")
            + " FROM pg_publication_rel AS pr JOIN pg_class AS c ON c.oid = pr.prrelid"
            " JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE pr.prpubid = %s"
            # The gate of a schema change comes and goes with that.
            " AND NOT (n.nspname = 'pgml_distributed' AND c.relname ~ '_gate$')",
            [oid],
        )
    }


_COLUMNS_AND_FILTER = (
    "(SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_attribute AS a"
    "  WHERE a.attrelid = c.oid AND a.attnum = ANY(pr.prattrs::int2[])) AS columns,"
    " pg_get_expr(pr.prqual, c.oid) AS filter,"
    " CASE WHEN pr.prqual IS NOT NULL THEN " + row_filter.FILTER_COLUMNS + " END AS filter_columns"
)


def _read_schemas(session: Session, oid: int) -> frozenset[str]:
    if session.version < SCHEMAS_SINCE:
        return frozenset()
    return frozenset(
        row.nspname
        for row in session.rows(
            "SELECT n.nspname FROM pg_publication_namespace AS pn JOIN pg_namespace AS n ON n.oid = pn.pnnspid"
            " WHERE pn.pnpubid = %s",
            [oid],
        )
    )


def _wanted(session: Session, params: Mapping[str, Any], current: Publication | None) -> Publication:
    """What the options ask for, with names, filters and operations as the server spells them."""
    requests = tables.parse_requests(params["tables"])
    if requests is not None:
        _refuse_before(session, FILTERS_SINCE, "where", any(request.where for request in requests))
        _refuse_before(session, FILTERS_SINCE, "columns", any(request.columns for request in requests))
    _refuse_before(session, SCHEMAS_SINCE, "schemas", bool(params["schemas"]))
    _refuse_before(session, GENERATED_COLUMNS_SINCE, "generated_columns", params["generated_columns"] is not None)
    members = params["tables"] is not None or params["schemas"] is not None
    if params["all_tables"] and members:
        raise Refused("all_tables goes without tables and schemas: it publishes them all.")
    if params["schemas"]:
        tables.in_schemas(session, params["schemas"])
        if any(request.columns for request in requests or ()):
            raise Refused("PostgreSQL allows no column list beside schemas in one publication: use two publications.")
    published = None
    if requests is not None:
        published = _published(session, tables.resolve(session, requests), current)
    return Publication(
        name=params["name"],
        all_tables=False if members else params["all_tables"],
        tables={} if params["all_tables"] else published,
        schemas=frozenset()
        if params["all_tables"]
        else None
        if params["schemas"] is None
        else frozenset(params["schemas"]),
        publish=_operations(params["publish"]),
        via_partition_root=params["via_partition_root"],
        generated_columns=params["generated_columns"],
        owner=params["owner"],
        comment=params["comment"],
    )


def _refuse_before(session: Session, since: int, option: str, used: bool) -> None:
    if used and session.version < since:
        raise Refused(
            "{0} needs PostgreSQL {1} or later; the server of {2} is {3}.".format(
                option, since // 10000, session.endpoint, version_text(session.version)
            )
        )


def _operations(publish: Sequence[str] | None) -> frozenset[str] | None:
    if publish is None:
        return None
    operations = [operation.strip().lower() for entry in publish for operation in entry.split(",") if operation.strip()]
    unknown = set(operations) - set(OPERATIONS)
    if unknown:
        raise Refused("publish: {0} is none of {1}.".format(enumerate_names(unknown), ", ".join(OPERATIONS)))
    return frozenset(operations)


def _published(
    session: Session, wanted: Sequence[Table], current: Publication | None
) -> dict[tuple[str, str], Published]:
    """*wanted* with their filters as the server spells them; only spellings not seen before cost a question."""
    stored = dict((current and current.tables) or {})
    result: dict[tuple[str, str], Published] = {}
    unknown: dict[tuple[str, str], Table] = {}
    for table in wanted:
        there = stored.get(table.key)
        if table.where is None:
            result[table.key] = Published(table)
        elif there and there.table.where in (table.where.strip(), "({0})".format(table.where.strip())):
            result[table.key] = Published(table._replace(where=there.table.where), there.filter_columns)
        else:
            unknown[table.key] = table
    for key, (where, columns) in row_filter.spelled_by_server(session, unknown).items():
        result[key] = Published(unknown[key]._replace(where=where), columns)
    return result


def faults_of(session: Session, future: Publication) -> list[replica_identity.Fault]:
    """The tables whose UPDATE or DELETE would fail under *future*."""
    if not future.publishes_changes:
        return []
    published = [each.table for each in (future.tables or {}).values()]
    if future.all_tables or future.schemas:
        covered = tables.in_schemas(session, None if future.all_tables else sorted(future.schemas or ()))
        published += [table for table in covered if table.key not in (future.tables or {})]
    filter_columns = {each.table.where: each.filter_columns for each in (future.tables or {}).values()}
    leaves = tables.with_partitions(session, published)
    identities = replica_identity.read(session, [table.oid for table in leaves])
    faults = [
        replica_identity.fault(identities[table.oid], table.columns, filter_columns.get(table.where, ()))
        for table in leaves
        if table.oid in identities
    ]
    return [fault for fault in faults if fault]


def _left_out(session: Session, future: Publication) -> list[dict[str, str]]:
    """What the publication covers by schema or database and can't carry."""
    if not future.all_tables and not future.schemas:
        return []
    return tables.not_movable(session, None if future.all_tables else sorted(future.schemas or ()))


def plan(current: Publication | None, wanted: Publication, version: int, recreate: bool = False) -> list[Change]:
    """The statements from *current* to *wanted*, all of which may share one transaction."""
    if current is None:
        return _plan_new(wanted.over(None), version) + _plan_owner_and_comment(None, wanted)
    future = wanted.over(current)
    if current.all_tables != future.all_tables:
        if not recreate:
            raise Refused(
                'Publication "{0}" is {1} and PostgreSQL can\'t alter that: allow recreate, which drops and creates it in one '
                "transaction.".format(wanted.name, "for all tables" if current.all_tables else "not for all tables")
            )
        return plan_absent(current) + _plan_new(future, version) + _plan_owner_and_comment(None, future)
    members, options = _plan_members(current, future), _plan_options(current, future)
    # Filters and column lists of partitioned tables are allowed only while the root is published.
    steps = options + members if future.via_partition_root else members + options
    return steps + _plan_owner_and_comment(current, wanted)


def plan_absent(current: Publication | None) -> list[Change]:
    """The statement that drops *current*."""
    if current is None:
        return []
    name = identifier(current.name)
    return [Change(compose("DROP PUBLICATION {name}", name=name), 'Drop publication "{0}"'.format(current.name))]


def _plan_new(wanted: Publication, version: int) -> list[Change]:
    options: dict[str, Any] = {
        "publish": _publish_text(wanted),
        "publish_via_partition_root": wanted.via_partition_root,
    }
    if version >= GENERATED_COLUMNS_SINCE:
        options["publish_generated_columns"] = wanted.generated_columns
    members = _members(list((wanted.tables or {}).values()), sorted(wanted.schemas or ()))
    what = (
        compose(" FOR ALL TABLES")
        if wanted.all_tables
        else compose(" FOR {members}", members=members)
        if members
        else compose("")
    )
    statement = compose(
        "CREATE PUBLICATION {name}{what} WITH ({options})",
        name=identifier(wanted.name),
        what=what,
        options=with_options(options),
    )
    return [Change(statement, 'Create publication "{0}" {1}'.format(wanted.name, _extent(wanted)))]


def _extent(publication: Publication) -> str:
    if publication.all_tables:
        return "for all tables"
    parts = [_count(len(publication.tables or ()), "table")]
    if publication.schemas:
        parts.append(_count(len(publication.schemas), "schema"))
    return "for " + " and ".join(parts)


def _count(number: int, noun: str) -> str:
    return "{0} {1}{2}".format(number, noun, "" if number == 1 else "s")


def _members(published: Sequence[Published], schemas: Sequence[str]) -> Any:
    """C(TABLE ONLY a (x) WHERE (y), TABLES IN SCHEMA s), or None when there is nothing."""
    parts = []
    if published:
        parts.append(compose("TABLE {tables}", tables=listed([_member(each.table) for each in published])))
    if schemas:
        parts.append(compose("TABLES IN SCHEMA {schemas}", schemas=identifiers(schemas)))
    return listed(parts) if parts else None


def _member(table: Table) -> Any:
    columns = compose(" ({columns})", columns=identifiers(table.columns)) if table.columns else compose("")
    where = compose(" WHERE {filter}", filter=expression(table.where)) if table.where else compose("")
    return compose("ONLY {table}{columns}{where}", table=identifier(*table.key), columns=columns, where=where)


def _plan_members(current: Publication, future: Publication) -> list[Change]:
    """Leave, then join: a table whose columns or filter differ does both, in one transaction."""
    before, after = dict(current.tables or {}), dict(future.tables or {})
    leaving = sorted(key for key in before if key not in after)
    joining = sorted(key for key in after if key not in before)
    altered = sorted(key for key in before if key in after and not before[key].same_as(after[key]))
    old_schemas, new_schemas = current.schemas or frozenset(), future.schemas or frozenset()
    name = current.name
    changes = []
    if leaving:
        changes.append(
            _alter(name, compose("DROP {members}", members=_names(leaving)), _moved("Remove", leaving, "from", name))
        )
    if old_schemas - new_schemas:
        gone = sorted(old_schemas - new_schemas)
        action = compose("DROP TABLES IN SCHEMA {schemas}", schemas=identifiers(gone))
        changes.append(_alter(name, action, _moved("Remove schema", [(each,) for each in gone], "from", name)))
    if altered:
        words = "Take out {0} to alter columns or filter".format(enumerate_names(quoted(*key) for key in altered))
        changes.append(_alter(name, compose("DROP {members}", members=_names(altered)), words))
    for verb, keys in (("Put back", altered), ("Add", joining)):
        if keys:
            members = _members([after[key] for key in keys], [])
            changes.append(_alter(name, compose("ADD {members}", members=members), _moved(verb, keys, "to", name)))
    if new_schemas - old_schemas:
        come = sorted(new_schemas - old_schemas)
        action = compose("ADD TABLES IN SCHEMA {schemas}", schemas=identifiers(come))
        changes.append(_alter(name, action, _moved("Add schema", [(each,) for each in come], "to", name)))
    return changes


def _names(keys: Sequence[tuple[str, str]]) -> Any:
    return compose("TABLE {names}", names=listed([compose("ONLY {table}", table=identifier(*key)) for key in keys]))


def _moved(verb: str, keys: Sequence[tuple[str, ...]], preposition: str, name: str) -> str:
    return '{0} {1} {2} publication "{3}"'.format(
        verb, enumerate_names(quoted(*key) for key in keys), preposition, name
    )


def _alter(name: str, action: Any, words: str) -> Change:
    return Change(compose("ALTER PUBLICATION {name} {action}", name=identifier(name), action=action), words)


def _publish_text(publication: Publication) -> str:
    return ", ".join(operation for operation in OPERATIONS if operation in (publication.publish or ()))


def _plan_options(current: Publication, future: Publication) -> list[Change]:
    options: dict[str, Any] = {}
    if current.publish != future.publish:
        options["publish"] = _publish_text(future)
    if current.via_partition_root != future.via_partition_root:
        options["publish_via_partition_root"] = future.via_partition_root
    if current.generated_columns != future.generated_columns:
        options["publish_generated_columns"] = future.generated_columns
    if not options:
        return []
    words = ", ".join("{0} = {1}".format(name, _shown(value)) for name, value in options.items())
    action = compose("SET ({options})", options=with_options(options))
    return [_alter(current.name, action, 'Set {0} of publication "{1}"'.format(words, current.name))]


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "'{0}'".format(value)


def _plan_owner_and_comment(current: Publication | None, wanted: Publication) -> list[Change]:
    changes = []
    if wanted.owner is not None and (current is None or wanted.owner != current.owner):
        words = 'Set owner of publication "{0}" to "{1}"'.format(wanted.name, wanted.owner)
        changes.append(_alter(wanted.name, compose("OWNER TO {owner}", owner=identifier(wanted.owner)), words))
    before = change_progress.joined(current.comment, current.progress) if current else ""
    after = change_progress.joined(
        wanted.comment if wanted.comment is not None else current and current.comment,
        wanted.progress or (current and current.progress),
    )
    if before != after:
        statement = compose(
            "COMMENT ON PUBLICATION {name} IS {comment}", name=identifier(wanted.name), comment=literal(after or None)
        )
        changes.append(Change(statement, 'Set comment of publication "{0}"'.format(wanted.name)))
    return changes
