# SPDX-License-Identifier: GPL-3.0-or-later
"""The transaction in which a foreign server gets its tables, views, readers and memory, and is proven."""

from __future__ import annotations

from typing import Any, Collection, Iterable, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    compose,
    enumerate_names,
    identifier,
    identifiers,
    quoted,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import (
    foreign_imports,
    foreign_ledger,
    foreign_link,
    foreign_plan,
    foreign_proof,
    foreign_readers,
    foreign_server,
    foreign_tables,
    snapshots,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.foreign_imports import (
    Import,
    Item,
    Whole,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.foreign_ledger import Thing
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.foreign_plan import Plan
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.foreign_server import Server
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.schedule import Key
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.snapshots import Verdict
from ansible_collections.postgresml.distributed.plugins.module_utils.task import Task


class Outcome(NamedTuple):
    """What the transaction found and made."""

    items: Sequence[Item]
    """the foreign tables as they are now"""
    before: Mapping[str, list[str]]
    """the columns of the relations that were there, by name"""
    drift: Mapping[Key, Sequence[str]]
    verdicts: Sequence[Verdict]
    unanalyzed: Sequence[Key]
    things: Mapping[foreign_ledger.Key, Thing]


class Definitions:
    """All of the transaction but the server itself. *session* is in it, *prober* is in none."""

    def __init__(
        self,
        task: Task,
        session: Session,
        prober: Session,
        server: Server,
        remembered: Mapping[foreign_ledger.Key, Thing],
    ) -> None:
        self._task = task
        self._params = task.params
        self._session = session
        self._prober = prober
        self._server = server
        self._remembered = remembered
        self._shared = foreign_ledger.shared(session, server.name)
        self._things = {thing.key: thing for thing in [Thing(foreign_ledger.SERVER, "", server.name)]}

    def bring(self) -> Outcome:
        """Do all of it; the caller commits, or rolls back."""
        session = self._session
        catalog = foreign_link.read_catalog(session, self._server)
        imports = foreign_imports.parse(session, self._params, catalog)
        items = foreign_imports.bring(session, self._prober, self._server.name, imports)
        self._prove(items)
        there = self._read(imports)
        meant: list[Import | Whole] = [*imports, *foreign_imports.parse_whole(session, self._params)]
        steps = foreign_plan.plan(items, there, self._remembered, meant, self._params["on_drift"] == "reimport")
        self._create_schemas(item.key[0] for item in items)
        self._task.note(*steps.words)
        foreign_plan.carry_out(session, steps, there)
        foreign_imports.remove_scratch(session, imports)
        items = [_as_is(item, there) if item.key in steps.drift else item for item in items]
        self._remember(foreign_plan.things(items, steps.drift, self._remembered))
        verdicts = self._judge_snapshots(items, steps.drift)
        self._let_read(items, verdicts)
        self._drop_schemas()
        if self._things != self._remembered or steps.new or steps.replaced:
            foreign_ledger.write(session, self._server.name, self._things)
        before = [there[thing.place] for thing in self._remembered.values() if thing.place in there]
        return Outcome(items, _columns(before), steps.drift, verdicts, self._unanalyzed(items, steps), self._things)

    def _remember(self, things: Iterable[Thing]) -> None:
        self._things.update({thing.key: thing for thing in things})

    def _read(self, imports: Sequence[Import]) -> dict[Key, foreign_tables.Definition]:
        """What is in the schemas that tables are to come to, or have come to earlier."""
        made = {
            schema for kind, schema, _name in self._remembered if kind in (foreign_ledger.TABLE, foreign_ledger.VIEW)
        }
        return foreign_tables.read(self._session, sorted(made | {each.local for each in imports}))

    def _create_schemas(self, names: Iterable[str]) -> None:
        """Create those of the schemas *names* that are missing, and remember those that this server has made."""
        wanted = sorted(set(names))
        there = {
            row.nspname
            for row in self._session.rows("SELECT nspname FROM pg_namespace WHERE nspname = ANY(%s)", [wanted])
        }
        for name in wanted:
            thing = Thing(foreign_ledger.SCHEMA, name, "")
            if name not in there:
                self._task.note("Create schema {0}".format(quoted(name)))
                self._session.execute(compose("CREATE SCHEMA {name}", name=identifier(name)))
            if name not in there or thing.key in self._remembered or thing.key in self._shared:
                self._remember([thing])

    def _drop_schemas(self) -> None:
        """Drop the schemas that this server has made and needs no more, unless others put something there."""
        gone = [thing.schema for key, thing in self._remembered.items() if key[0] == foreign_ledger.SCHEMA]
        gone = [name for name in gone if (foreign_ledger.SCHEMA, name, "") not in self._things]
        drop_schemas(self._task, self._session, gone, self._shared)

    def _judge_snapshots(self, items: Sequence[Item], drift: Collection[Key]) -> list[Verdict]:
        """Which snapshots are to be filled; those that are not asked for any more are dropped."""
        session = self._session
        with session.undone():  # the source isn't asked what nobody may want to run now
            session.execute(foreign_link.unasked(self._server))
            wanted = snapshots.parse(session, self._params["snapshots"], items, drift)
        self._create_schemas(each.into[0] for each in wanted)
        verdicts = snapshots.judge(session, wanted, self._remembered)
        kept = [(foreign_ledger.SNAPSHOT, *each.into) for each in wanted]
        self._remember(self._remembered[key] for key in kept if key in self._remembered)
        gone = [
            thing
            for thing in foreign_ledger.of_kind(self._remembered, foreign_ledger.SNAPSHOT)
            if thing.key not in kept
        ]
        drop_snapshots(self._task, session, gone, ": it is not asked for")
        return verdicts

    def _let_read(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> None:
        """Give the readers what they are to read; those of new snapshots get them when they are filled."""
        keys = [definition.key for item in items for definition in item.definitions]
        keys += [verdict.wanted.into for verdict in verdicts]
        views = {item.key for item in items if item.view}
        roles = {
            role: [key for key in keys if key not in views or self._may_read_views(role)]
            for role in self._params["usage"]
        }
        known = [thing.name for thing in foreign_ledger.of_kind(self._remembered, foreign_ledger.READER)]
        given = foreign_readers.read(self._session, {*roles, *known}, keys)
        changes, things = foreign_readers.plan(given, roles, self._remembered.values(), self._shared)
        self._remember(things)
        self._task.note(*[change.words for change in changes])
        for change in changes:
            self._session.execute(change.statement)

    def _may_read_views(self, role: str) -> bool:
        """Whether a view is no way around the mapping that *role* lacks."""
        own = role in self._server.mappings or foreign_server.PUBLIC in self._server.mappings
        return own or self._session.version >= foreign_imports.VIEWS_READ_AS_READERS_SINCE

    def _prove(self, items: Sequence[Item]) -> None:
        """See that the source gives what would be imported now, before anything here is locked."""
        labels = {(item.scratch, item.key[1]): quoted(*item.key) for item in items}
        parts = [(item.scratch, definition.key[1]) for item in items for definition in item.definitions]
        foreign_proof.prove(self._session, self._server, labels, parts, self._task.warn)

    def _unanalyzed(self, items: Sequence[Item], steps: Plan) -> list[Key]:
        if not self._params["analyze"]:
            return []
        sound = [item.table.key for item in items if item.key not in steps.drift]
        changed = {item.table.key for item in [*steps.new, *[r.item for r in steps.replaced]]}
        # Before 14 an empty table looks like one that was never looked at.
        old = self._session.version < 140000
        return [key for key in foreign_tables.unanalyzed(self._session, sound) if not old or key in changed]


def _as_is(item: Item, there: Mapping[Key, foreign_tables.Definition]) -> Item:
    """*item* with the foreign table, and the view, that stay in its place."""
    return item._replace(
        table=there.get(item.table.key, item.table), view=item.view and there.get(item.view.key, item.view)
    )


def drop_snapshots(task: Task, session: Session, things: Sequence[Thing], why: str) -> None:
    """Drop local tables; refuses what others depend on."""
    if things:
        task.note(*["Drop snapshot {0}{1}".format(quoted(*thing.place), why) for thing in things])
        foreign_plan.drop_unneeded(session, "TABLE", [identifier(*thing.place) for thing in things])


def drop_schemas(
    task: Task, session: Session, names: Sequence[str], shared: Collection[foreign_ledger.Key]
) -> list[str]:
    """Drop those of the schemas *names* that are empty, and warn of those that others but our servers use. Returns the former."""
    alone = [name for name in names if (foreign_ledger.SCHEMA, name, "") not in shared]
    empty = foreign_tables.empty(session, alone)
    kept = [name for name in alone if name not in empty]
    if empty:
        task.note(*["Drop schema {0}".format(quoted(name)) for name in empty])
        session.execute(compose("DROP SCHEMA {names}", names=identifiers(empty)))
    if kept:
        task.warn(
            "Schema {0} was made by this module and stays, since others put something there.".format(
                enumerate_names(map(quoted, kept))
            )
        )
    return empty


def _columns(relations: Iterable[foreign_tables.Definition]) -> dict[str, list[str]]:
    return {
        quoted(*relation.key): ["{0} {1}".format(quoted(column.name), column.type) for column in relation.columns]
        for relation in relations
    }


def sides(server: Server, before: Mapping[str, Any], outcome: Outcome) -> tuple[dict[str, Any], dict[str, Any]]:
    """The two sides of the diff, of which *before* knows the server that was there and its snapshots."""
    after = _columns(definition for item in outcome.items for definition in item.definitions)
    gone = [key for key, words in outcome.drift.items() if list(words) == [foreign_plan.GONE]]
    after.update({quoted(*key): outcome.before[quoted(*key)] for key in gone})
    filled = [verdict.wanted.label for verdict in outcome.verdicts if verdict.due]
    return (
        {**before, "tables": outcome.before},
        {
            **server.as_side(),
            "tables": after,
            "snapshots": sorted(verdict.wanted.label for verdict in outcome.verdicts),
            **({"filled": filled} if filled else {}),
        },
    )


def table_results(outcome: Outcome) -> list[dict[str, Any]]:
    """The foreign tables as return values."""
    return [
        {
            "name": quoted(*item.key),
            "remote": quoted(*item.table.remote),
            "where": item.view.query.split("\n  WHERE ", 1)[-1].rstrip(";") if item.view else None,
            "sent": item.sent,
        }
        for item in outcome.items
    ]
