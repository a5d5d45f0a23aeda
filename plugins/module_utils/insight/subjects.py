# SPDX-License-Identifier: GPL-3.0-or-later
"""What is to be compared with what: tables that both sides have, with the columns and rows that travel between them."""

from __future__ import annotations

from typing import Any, Collection, Iterable, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import offering, subscribed
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.offering import Offer
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    arrays,
    enumerate_names,
    quoted,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import contents, schema, tables
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.contents import Contents
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.tables import Table
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.chunks import Extent


class Column(NamedTuple):
    """A column of one side."""

    type: str
    plain: bool
    """whether its equality is one of PostgreSQL's own operators, which a search for a key may use"""
    generated: bool


class Side(NamedTuple):
    """A table as one server has it."""

    oid: int
    kind: str
    columns: Mapping[str, Column]
    identity: tuple[str, ...]
    """the columns of its replica identity or primary key, if it has one"""


class Feed(NamedTuple):
    """A subscription of the target."""

    oid: int
    name: str
    enabled: bool
    slot: str | None
    publications: tuple[str, ...]


class Subject(NamedTuple):
    """A table to be compared."""

    key: tuple[str, str]
    columns: tuple[str, ...]
    identity: tuple[str, ...]
    """the columns by which a row is known; empty when only all of them together tell"""
    where: str | None
    """which of the source's rows are meant"""
    source: Side
    target: Side
    feed: Feed | None

    @property
    def label(self) -> str:
        return quoted(*self.key)


class Request(NamedTuple):
    """All that is to be compared."""

    subjects: list[Subject]
    feeds: list[Feed]
    not_compared: list[dict[str, str]]


class _Wish(NamedTuple):
    """A table before it was looked for on both sides; without *columns*, all that aren't generated."""

    key: tuple[str, str]
    columns: tuple[str, ...] | None
    where: str | None
    feed: Feed | None


def feeds(session: Session) -> list[Feed]:
    """The subscriptions of the session's database."""
    return [
        Feed(row.oid, row.subname, row.subenabled, row.subslotname, tuple(row.subpublications))
        for row in session.rows(
            "SELECT s.oid, s.subname, s.subenabled, s.subslotname, s.subpublications FROM pg_subscription AS s"
            " WHERE s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database()) ORDER BY s.subname"
        )
    ]


def of_subscription(source: Session, session: Session, name: str, live: bool) -> Request:
    """What the subscription *name* replicates; *live* when changes are to be waited for."""
    known = feeds(session)
    feed = next((each for each in known if each.name == name), None)
    if feed is None:
        raise Refused(
            "There is no subscription {0} in {1}{2}.".format(
                quoted(name),
                session.endpoint,
                "; there is {0}".format(enumerate_names(quoted(each.name) for each in known)) if known else "",
            )
        )
    if live and not feed.enabled:
        raise Refused(
            "Subscription {0} is disabled, so that nothing can be waited for: enable it, or use method=offline.".format(
                quoted(name)
            )
        )
    if live:
        _refuse_other_source(source, feed)
    offers = offering.offered(source, feed.publications, session.version)
    states = subscribed.subscribed(session, feed.oid)
    _refuse_untaken(feed, offers, states)
    if live:
        _refuse_unready(feed, states)
    wishes = [_Wish(key, offer.columns, offer.where, feed) for key, offer in sorted(offers.items())]
    gone = [
        {"name": quoted(*key), "reason": "no publication has it any more"}
        for key in sorted(states)
        if key not in offers
    ]
    return _request(source, session, wishes, [feed], gone)


def of_tables(source: Session, session: Session, params: Mapping[str, Any], live: bool) -> Request:
    """What the table options name; *live* when changes are to be waited for, which enabled subscriptions bring."""
    wanted = schema.requested(source, {**params, "state": "present"})
    contents.refuse_unreadable(source, wanted)
    _refuse_bad_filters(source, wanted)
    schemas = None if params["all_tables"] else params["schemas"]
    passed_over = tables.not_movable(source, schemas) if params["all_tables"] or params["schemas"] else []
    if not live:
        wishes = [_Wish(table.key, table.columns, table.where, None) for table in wanted if table.kind == "r"]
        return _request(source, session, wishes, [], passed_over)
    fed = _fed(source, session)
    wishes = _narrowed(source, session, wanted, fed)
    return _request(
        source, session, wishes, list({wish.feed.oid: wish.feed for wish in wishes if wish.feed}.values()), passed_over
    )


def _refuse_other_source(source: Session, feed: Feed) -> None:
    if not _receives_from(source, feed):
        raise Refused(
            "Subscription {0} doesn't receive from {1}, which has no slot {2}: let source be where the subscription "
            "connects to.".format(quoted(feed.name), source.endpoint, quoted(feed.slot or ""))
        )


def _receives_from(source: Session, feed: Feed) -> bool:
    return bool(
        source.value(
            "SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND database = current_database()", [feed.slot]
        )
    )


def _refuse_untaken(feed: Feed, offers: Mapping[Any, Offer], states: Mapping[Any, str]) -> None:
    untaken = [quoted(*key) for key in offers if key not in states]
    if untaken:
        raise Refused(
            "{0} joined the publications and subscription {1} has not taken {2} in: run pgml_subscription for it "
            "first.".format(enumerate_names(untaken), quoted(feed.name), "it" if len(untaken) == 1 else "them")
        )


def _refuse_unready(feed: Feed, states: Mapping[Any, str]) -> None:
    unready = [
        "{0} ({1})".format(quoted(*key), subscribed.STATES.get(state, state))
        for key, state in states.items()
        if state != subscribed.READY
    ]
    if unready:
        raise Refused(
            "The first copy of subscription {0} goes on: {1}. Compare when it is ready, which pgml_subscription waits "
            "for.".format(quoted(feed.name), enumerate_names(unready))
        )


def _fed(source: Session, session: Session) -> dict[tuple[str, str], tuple[Feed, Offer]]:
    """What the enabled subscriptions of the target receive from this source."""
    result = {}
    for feed in feeds(session):
        if not feed.enabled or not _receives_from(source, feed):
            continue
        states = subscribed.subscribed(session, feed.oid)
        for key, offer in offering.offered(source, feed.publications, session.version).items():
            if key in states:
                result[key] = (feed, offer)
    return result


def _narrowed(
    source: Session, session: Session, wanted: Sequence[Table], fed: Mapping[tuple[str, str], tuple[Feed, Offer]]
) -> list[_Wish]:
    """What the subscriptions bring of the tables *wanted*, each as it is published: as a whole or by its partitions."""
    wishes = []
    covered = _below(source, [table.oid for table in wanted if table.key in fed and table.kind == "p"])
    unfed = []
    for table in wanted:
        if table.oid in covered:
            continue
        if table.key not in fed:
            unfed += [table.label] if table.kind == "r" else []
            continue
        feed, offer = fed[table.key]
        columns = tuple(name for name in offer.columns if table.columns is None or name in table.columns)
        conditions = ["({0}\n)".format(each) for each in (offer.where, table.where) if each is not None]
        wishes.append(_Wish(table.key, columns, " AND ".join(conditions) or None, feed))
    if unfed:
        raise Refused(
            "No enabled subscription of {0} receives {1} from this source: use method=offline for what is copied in "
            "another way.".format(session.endpoint, enumerate_names(unfed))
        )
    for feed in {wish.feed for wish in wishes if wish.feed}:
        keys = {wish.key for wish in wishes if wish.feed == feed}
        states = subscribed.subscribed(session, feed.oid)
        _refuse_unready(feed, {key: state for key, state in states.items() if key in keys})
    return wishes


def _below(session: Session, oids: Sequence[int]) -> set[int]:
    """All partitions of the partitioned tables *oids*."""
    return {
        row.oid
        for row in session.rows(
            "WITH RECURSIVE below AS (SELECT inhrelid AS oid FROM pg_inherits WHERE inhparent = ANY(%s)"
            " UNION SELECT i.inhrelid FROM below JOIN pg_inherits AS i ON i.inhparent = below.oid) SELECT oid FROM below",
            [list(oids)],
        )
    }


def _request(
    source: Session,
    session: Session,
    wishes: Sequence[_Wish],
    used: Sequence[Feed],
    passed_over: Iterable[dict[str, str]],
) -> Request:
    """Look for the tables on both sides, and refuse what can't be compared."""
    if not wishes:
        raise Refused("Nothing is left to compare: no table with rows is meant.")
    keys = [wish.key for wish in wishes]
    here, there = sides(source, keys), sides(session, keys)
    _refuse_missing(session, keys, there)
    for server, found in ((source, here), (session, there)):
        contents.refuse_unreadable(server, [Table(side.oid, *key, side.kind) for key, side in found.items()])
    not_compared = list(passed_over)
    subjects = []
    lacking = {}
    for wish in wishes:
        mine, other = here[wish.key], there[wish.key]
        generated = [name for name, column in mine.columns.items() if column.generated]
        columns = tuple(
            name for name in mine.columns if (name not in generated if wish.columns is None else name in wish.columns)
        )
        not_compared += _left_out(wish.key, mine, columns)
        lacking[wish.key] = [name for name in columns if name not in other.columns]
        identity = mine.identity if set(mine.identity) <= set(columns) else ()
        subjects.append(Subject(wish.key, columns, identity, wish.where, mine, other, wish.feed))
    _refuse_lacking(session, lacking)
    return Request(subjects, list(used), not_compared)


def _left_out(key: tuple[str, str], side: Side, columns: Collection[str]) -> list[dict[str, str]]:
    return [
        {
            "name": "{0}.{1}".format(quoted(*key), quoted(name)),
            "reason": "generated column" if column.generated else "column that isn't distributed",
        }
        for name, column in side.columns.items()
        if name not in columns
    ]


def sides(session: Session, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Side]:
    """Those of the tables *keys* that are there, in one query."""
    return {
        (row.schema, row.name): Side(
            row.oid,
            row.kind,
            {name: Column(*rest) for name, *rest in zip(row.columns, row.types, row.plain, row.generated)},
            tuple(row.identity),
        )
        for row in session.rows(_SIDES, arrays(keys))
    }


_SIDES = (
    "WITH wanted AS MATERIALIZED (SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relkind AS kind, c.relreplident"
    "  FROM unnest(%s::text[], %s::text[]) AS asked(schema, name) JOIN pg_namespace AS n ON n.nspname = asked.schema"
    "  JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = asked.name AND c.relkind IN ('r', 'p')),"
    " a AS (SELECT attrelid, array_agg(attname::text ORDER BY attnum) AS columns,"
    "  array_agg(format_type(atttypid, atttypmod) ORDER BY attnum) AS types,"
    "  array_agg(t.typtype = 'e' OR CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END < 16384 ORDER BY attnum)"
    "   AS plain,"
    "  array_agg(attgenerated <> '' ORDER BY attnum) AS generated"
    "  FROM pg_attribute JOIN pg_type AS t ON t.oid = atttypid"
    "  WHERE attrelid IN (SELECT oid FROM wanted) AND attnum > 0 AND NOT attisdropped GROUP BY 1),"
    " i AS (SELECT DISTINCT ON (w.oid) w.oid, indkey, indnkeyatts FROM wanted AS w JOIN pg_index ON indrelid = w.oid"
    "  WHERE indisvalid AND (indisprimary OR indisreplident AND w.relreplident = 'i')"
    "  ORDER BY w.oid, indisreplident AND w.relreplident = 'i' DESC)"
    " SELECT w.oid, w.schema, w.name, w.kind, coalesce(a.columns, '{}') AS columns, coalesce(a.types, '{}') AS types,"
    "  coalesce(a.plain, '{}') AS plain, coalesce(a.generated, '{}') AS generated,"
    "  array(SELECT k.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS x(attnum, position)"
    "   JOIN pg_attribute AS k ON k.attrelid = w.oid AND k.attnum = x.attnum"
    "   WHERE x.position <= i.indnkeyatts ORDER BY x.position) AS identity"
    " FROM wanted AS w LEFT JOIN a ON a.attrelid = w.oid LEFT JOIN i ON i.oid = w.oid"
)


def _refuse_missing(session: Session, keys: Sequence[tuple[str, str]], there: Mapping[tuple[str, str], Side]) -> None:
    missing = [quoted(*key) for key in keys if key not in there]
    if missing:
        raise Refused(
            "{0} lacks table {1}: bring what is missing first, with pgml_schema or pgml_dump_restore.".format(
                session.endpoint.title, enumerate_names(missing)
            )
        )


def _refuse_lacking(session: Session, lacking: Mapping[tuple[str, str], Sequence[str]]) -> None:
    words = [
        "{0} ({1})".format(quoted(*key), enumerate_names(map(quoted, names))) for key, names in lacking.items() if names
    ]
    if words:
        raise Refused(
            "{0} lacks columns that are to be compared: {1}.".format(session.endpoint.title, enumerate_names(words))
        )


def _refuse_bad_filters(source: Session, wanted: Sequence[Table]) -> None:
    contents.refuse_bad_filters(
        source, [Contents(table, (), False, Extent(table.oid, 0, 0)) for table in wanted if table.where is not None]
    )
