# SPDX-License-Identifier: GPL-3.0-or-later
"""New tables in the place of old ones: what depends on the old, what goes with them, and what the new ones take over."""

from __future__ import annotations

import time
from typing import Any, Iterable, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused, ServerRefused, TimedOut
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    arrays,
    compose,
    enumerate_names,
    identifier,
    listed,
    quoted,
    raw,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import staging
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.staging import Names

LOCK_TIMEOUT = "200 ms"
_LOCK_PAUSE_SECONDS = 0.5
_LOCK_PATIENCE_SECONDS = 60
_WORKER_PATIENCE_SECONDS = 5
"""Meanwhile nobody can read the tables."""
_OTHERWISE = ", or use replace=truncate, which keeps tables"
_TRY_AGAIN = ("55P03", "40P01")
"""lock_not_available and deadlock_detected"""


class View(NamedTuple):
    """A view that reads a table which is about to be exchanged."""

    name: str
    """as in SQL"""
    definition: str
    options: tuple[str, ...]


def attached(session: Session, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], tuple[str, ...]]:
    """The columns, indexes, constraints, triggers, policies and rules of the tables *keys* that exist, in words."""
    return {
        (row.schema, row.name): tuple(row.words)
        for row in session.rows(
            "SELECT n.nspname AS schema, c.relname AS name, array("
            "  SELECT 'column ' || quote_ident(attname) FROM pg_attribute"
            "   WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped"
            "  UNION ALL SELECT 'index ' || quote_ident(x.relname) FROM pg_index AS i JOIN pg_class AS x ON x.oid = i.indexrelid"
            "   WHERE i.indrelid = c.oid"
            "  UNION ALL SELECT 'constraint ' || quote_ident(conname) FROM pg_constraint"
            "   WHERE conrelid = c.oid AND contype <> 'n'"
            "  UNION ALL SELECT 'trigger ' || quote_ident(tgname) FROM pg_trigger WHERE tgrelid = c.oid AND NOT tgisinternal"
            "  UNION ALL SELECT 'policy ' || quote_ident(polname) FROM pg_policy WHERE polrelid = c.oid"
            "  UNION ALL SELECT 'rule ' || quote_ident(rulename) FROM pg_rewrite WHERE ev_class = c.oid"
            "  UNION ALL SELECT 'statistics ' || quote_ident(stxname) FROM pg_statistic_ext WHERE stxrelid = c.oid"
            "  ORDER BY 1) AS words"
            " FROM unnest(%s::text[], %s::text[]) AS wanted(schema, name) JOIN pg_namespace AS n ON n.nspname = wanted.schema"
            " JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = wanted.name AND c.relkind IN ('r', 'p')",
            arrays(keys),
        )
    }


def refuse_losses(
    before: Mapping[tuple[str, str], Sequence[str]],
    after: Mapping[tuple[str, str], Sequence[str]],
    brought: Mapping[tuple[str, str], Iterable[str]],
    otherwise: str = _OTHERWISE,
) -> None:
    """Refuse to lose what somebody added to a table on the target: not in *after*, and not *brought* by us earlier. *otherwise*
    says what else there is to do than drop it."""
    lost = [
        "{0} of {1}".format(words, quoted(*key))
        for key, there in before.items()
        for words in sorted(set(there) - set(after.get(key, ())) - set(brought.get(key, ())))
    ]
    if lost:
        raise Refused(
            "The target alone has {0}, and would lose it with the old table: drop it there{1}.".format(
                enumerate_names(lost, 5), otherwise
            )
        )


def views_on(
    session: Session, keys: Sequence[tuple[str, str]], otherwise: str = _OTHERWISE, from_subscriptions: bool = False
) -> list[View]:
    """The views that read the tables *keys*, which an exchange makes anew; refuses what it can't carry over.

    :param from_subscriptions: whether tables may be taken away from the subscriptions that fill them
    """
    schemas, names = arrays(keys)
    rows = session.rows(_DEPENDANTS, {"schemas": schemas, "names": names, "subscribed": not from_subscriptions})
    refused = [row.words for row in rows if row.view is None]
    if refused:
        raise Refused(
            "On the target {0} depend{1} on tables that are to be exchanged: drop {2} there{3}.".format(
                enumerate_names(refused, 5),
                "s" if len(refused) == 1 else "",
                "it" if len(refused) == 1 else "them",
                otherwise,
            )
        )
    return [View(row.words, row.view, tuple(row.options or ())) for row in rows]


_DEPENDANTS = (
    "WITH live AS MATERIALIZED (SELECT c.oid, c.reltype FROM unnest(%(schemas)s::text[], %(names)s::text[]) AS w(schema, name)"
    "  JOIN pg_namespace AS n ON n.nspname = w.schema JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = w.name"
    "   AND c.relkind IN ('r', 'p')),"
    # what else goes away with a table
    " parts AS MATERIALIZED (SELECT 'pg_class'::regclass::oid AS classid, oid AS objid FROM live"
    "  UNION ALL SELECT 'pg_type'::regclass, reltype FROM live"
    "  UNION ALL SELECT 'pg_type'::regclass, t.typarray FROM live JOIN pg_type AS t ON t.oid = live.reltype"
    "  UNION ALL SELECT d.classid, d.objid FROM live JOIN pg_depend AS d ON d.refclassid = 'pg_class'::regclass"
    "   AND d.refobjid = live.oid AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')"
    "   AND (SELECT relkind FROM pg_class WHERE oid = d.objid) = 'S'),"
    " found AS (SELECT DISTINCT d.classid, d.objid FROM parts JOIN pg_depend AS d"
    "   ON d.refclassid = parts.classid AND d.refobjid = parts.objid"
    "  WHERE d.deptype IN ('n', 'a') AND NOT EXISTS (SELECT FROM parts AS p WHERE p.classid = d.classid AND p.objid = d.objid)),"
    " owned AS (SELECT found.*, CASE found.classid"
    "   WHEN 'pg_rewrite'::regclass THEN (SELECT ev_class FROM pg_rewrite WHERE oid = found.objid)"
    "   WHEN 'pg_constraint'::regclass THEN (SELECT conrelid FROM pg_constraint WHERE oid = found.objid)"
    "   WHEN 'pg_policy'::regclass THEN (SELECT polrelid FROM pg_policy WHERE oid = found.objid)"
    "   WHEN 'pg_trigger'::regclass THEN (SELECT tgrelid FROM pg_trigger WHERE oid = found.objid)"
    "   WHEN 'pg_attrdef'::regclass THEN (SELECT adrelid FROM pg_attrdef WHERE oid = found.objid)"
    "   WHEN 'pg_statistic_ext'::regclass THEN (SELECT stxrelid FROM pg_statistic_ext WHERE oid = found.objid)"
    "   WHEN 'pg_class'::regclass THEN coalesce((SELECT indrelid FROM pg_index WHERE indexrelid = found.objid), found.objid)"
    "   ELSE 0 END AS relid FROM found)"
    " SELECT DISTINCT CASE WHEN c.relkind = 'v' THEN format('%%I.%%I', n.nspname, c.relname)"
    "   ELSE pg_describe_object(owned.classid, owned.objid, 0) END AS words,"
    "  CASE WHEN c.relkind = 'v' THEN pg_get_viewdef(c.oid) END AS view, c.reloptions AS options"
    " FROM owned LEFT JOIN pg_class AS c ON c.oid = owned.relid AND owned.classid = 'pg_rewrite'::regclass"
    "  AND EXISTS (SELECT FROM pg_rewrite AS r WHERE r.oid = owned.objid AND r.rulename = '_RETURN')"
    " LEFT JOIN pg_namespace AS n ON n.oid = c.relnamespace"
    " WHERE owned.relid NOT IN (SELECT oid FROM live)"
    " UNION ALL SELECT DISTINCT 'subscription ' || quote_ident(s.subname), NULL::text, NULL::text[]"
    "  FROM pg_subscription_rel AS sr JOIN live ON live.oid = sr.srrelid"
    "  JOIN (SELECT oid, subname FROM pg_subscription) AS s ON s.oid = sr.srsubid"
    "  WHERE %(subscribed)s"
    " UNION ALL SELECT 'inheritance of ' || i.inhrelid::regclass::text, NULL, NULL FROM pg_inherits AS i"
    "  JOIN live ON live.oid IN (i.inhrelid, i.inhparent)"
    "  WHERE NOT (i.inhrelid IN (SELECT oid FROM live) AND i.inhparent IN (SELECT oid FROM live))"
    " ORDER BY 1"
)


def foreign_keys_elsewhere(
    session: Session, keys: Sequence[tuple[str, str]], whole: Sequence[tuple[str, str]]
) -> list[str]:
    """The foreign keys of the tables *keys* to tables that are not among *whole*, in words."""
    return [
        "foreign key {0} of {1}".format(row.name, quoted(row.schema, row.table_name))
        for row in session.rows(
            "SELECT quote_ident(k.conname) AS name, n.nspname AS schema, c.relname AS table_name FROM pg_constraint AS k"
            " JOIN pg_class AS c ON c.oid = k.conrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " JOIN pg_class AS r ON r.oid = k.confrelid JOIN pg_namespace AS rn ON rn.oid = r.relnamespace"
            " WHERE k.contype = 'f' AND k.conparentid = 0"
            " AND (n.nspname, c.relname) IN (SELECT * FROM unnest(%s::text[], %s::text[]))"
            " AND (rn.nspname, r.relname) NOT IN (SELECT * FROM unnest(%s::text[], %s::text[])) ORDER BY 2, 3, 1",
            [*arrays(keys), *arrays(whole)],
        )
    ]


def lock(session: Session, keys: Sequence[tuple[str, str]], views: Sequence[View]) -> None:
    """Begin a transaction in which nobody else uses the tables *keys* and the *views*.

    It queues for less than deadlock_timeout at a time: whoever wants to read a table queues up behind it, and if two wait for
    each other, it is the one to step back. *session* has that lock_timeout, LOCK_TIMEOUT.
    """
    names = [raw(view.name) for view in views] + [compose("ONLY {name}", name=identifier(*key)) for key in keys]
    deadline = time.monotonic() + _LOCK_PATIENCE_SECONDS
    while True:
        session.execute("BEGIN")
        if not names:
            return
        try:
            session.execute(compose("LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE", names=listed(names)))
            return
        except ServerRefused as error:
            session.execute("ROLLBACK")
            if error.details.get("sqlstate") not in _TRY_AGAIN or time.monotonic() > deadline:
                raise
            time.sleep(_LOCK_PAUSE_SECONDS)


def refuse_unfinished(session: Session, keys: Sequence[tuple[str, str]]) -> None:
    """Refuse to take tables away from a subscription that still copies them: PostgreSQL wouldn't let them be dropped."""
    rows = session.rows(
        "SELECT s.subname, n.nspname AS schema, c.relname AS name"
        + _SUBSCRIBED
        + " AND sr.srsubstate NOT IN ('r', 's')",
        arrays(keys),
    )
    if rows:
        raise Refused(
            "Subscription {0} still copies {1}: let it come to its end, or remove it, before its tables are replaced.".format(
                enumerate_names(sorted({quoted(row.subname) for row in rows})),
                enumerate_names(quoted(row.schema, row.name) for row in rows),
            )
        )


def detach(session: Session, keys: Sequence[tuple[str, str]]) -> None:
    """End the workers of subscriptions that fill the tables *keys*, inside the transaction of lock().

    A worker takes the table that it finds by name for the one that it had, as long as it lives, and would write to the new one.
    The next worker doesn't, because the catalog says that the subscription has no such table. It can't look before the
    transaction ends.
    """
    refuse_unfinished(session, keys)
    workers = session.rows(
        "SELECT pid, pg_terminate_backend(pid) FROM (SELECT DISTINCT w.pid FROM pg_stat_get_subscription(NULL) AS w WHERE w.subid"
        " IN (SELECT sr.srsubid" + _SUBSCRIBED + ") AND w.pid IS NOT NULL OFFSET 0) AS w",
        arrays(keys),
    )
    deadline = time.monotonic() + _WORKER_PATIENCE_SECONDS
    query = "SELECT FROM pg_stat_get_subscription(NULL) AS w WHERE w.pid = ANY(%s)"
    while session.rows(query, [[worker.pid for worker in workers]]):
        if time.monotonic() > deadline:
            raise TimedOut(
                "Workers of subscriptions that fill {0} don't end within {1} seconds: nothing was exchanged. Try again.".format(
                    enumerate_names(quoted(*key) for key in keys), _WORKER_PATIENCE_SECONDS
                )
            )
        time.sleep(0.02)


_SUBSCRIBED = (
    " FROM pg_subscription_rel AS sr JOIN (SELECT oid, subname FROM pg_subscription) AS s ON s.oid = sr.srsubid"
    " JOIN pg_class AS c ON c.oid = sr.srrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace"
    " WHERE (n.nspname, c.relname) IN (SELECT * FROM unnest(%s::text[], %s::text[]))"
)


def exchange(
    session: Session,
    names: Names,
    keys: Sequence[tuple[str, str]],
    live: Sequence[tuple[str, str]],
    owner: str | None,
    from_subscriptions: bool = False,
) -> None:
    """Move the *live* ones of the tables *keys* out of the way and the staged ones in, inside the transaction of lock()."""
    session.execute("SET LOCAL search_path = pg_catalog")
    views = views_on(session, live, from_subscriptions=from_subscriptions)
    takeover = _takeover(session, live)
    statements: list[Any] = []
    if live:
        old = {name: names.old(name) for name in names.numbers}
        statements += [compose("CREATE SCHEMA {name}", name=identifier(name)) for name in old.values()]
        statements += staging.moves(session, live, old)
    staged = [(names.new(key[0]), key[1]) for key in keys]
    statements += staging.moves(session, staged, {names.new(name): name for name in names.numbers})
    if owner is not None:
        statements += [
            compose("ALTER TABLE {table} OWNER TO {owner}", table=identifier(*key), owner=identifier(owner))
            for key in keys
        ]
    statements += [raw(text) for text in takeover if owner is None or not text.startswith("ALTER TABLE")]
    for view in views:
        statements.append(
            compose(
                "CREATE OR REPLACE VIEW {name}{options} AS {definition}",
                name=raw(view.name),
                options=raw(" WITH ({0})".format(", ".join(view.options)) if view.options else ""),
                definition=raw(view.definition),
            )
        )
    statements += [compose("DROP SCHEMA {name}", name=identifier(names.new(name))) for name in names.numbers if keys]
    for statement in statements:
        session.execute(statement)


def _takeover(session: Session, keys: Sequence[tuple[str, str]]) -> list[str]:
    """Statements that give tables the owner, and the privileges, that the tables *keys* have now."""
    if not keys:
        return []
    statements = [
        row.statement
        for row in session.rows(
            "SELECT format('ALTER TABLE %%I.%%I OWNER TO %%I', n.nspname, c.relname, pg_get_userbyid(c.relowner)) AS statement"
            + _LIVE
            + " WHERE pg_get_userbyid(c.relowner) <> current_user ORDER BY 1",
            arrays(keys),
        )
    ]
    statements += [
        row.statement
        for row in session.rows(
            "SELECT format('GRANT %%s%%s ON %%s%%I.%%I TO %%s%%s', g.privilege_type, g.columns,"
            " CASE WHEN c.relkind = 'S' THEN 'SEQUENCE ' ELSE '' END, n.nspname, c.relname,"
            " CASE WHEN g.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.grantee)) END,"
            " CASE WHEN g.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END) AS statement"
            " FROM (SELECT c.oid" + _LIVE + " UNION SELECT d.objid" + _LIVE_SEQUENCES + ") AS o"
            " JOIN pg_class AS c ON c.oid = o.oid JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " CROSS JOIN LATERAL (SELECT a.grantee, a.privilege_type, a.is_grantable, '' AS columns"
            "   FROM aclexplode(c.relacl) AS a"
            "  UNION ALL SELECT a.grantee, a.privilege_type, a.is_grantable, format(' (%%I)', t.attname)"
            "   FROM pg_attribute AS t, aclexplode(t.attacl) AS a"
            "   WHERE t.attrelid = c.oid AND t.attnum > 0 AND NOT t.attisdropped) AS g"
            " WHERE g.grantee <> c.relowner ORDER BY 1",
            arrays(keys) * 2,
        )
    ]
    return statements


_LIVE = (
    " FROM unnest(%s::text[], %s::text[]) AS wanted(schema, name) JOIN pg_namespace AS n ON n.nspname = wanted.schema"
    " JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = wanted.name AND c.relkind IN ('r', 'p')"
)

_LIVE_SEQUENCES = (
    _LIVE + " JOIN pg_depend AS d ON d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass"
    " AND d.refobjid = c.oid AND d.deptype IN ('a', 'i') JOIN pg_class AS q ON q.oid = d.objid AND q.relkind = 'S'"
)


class Comment(NamedTuple):
    """What somebody said about a relation or a column."""

    key: tuple[str, str]
    column: str | None
    statement: str


def comments(session: Session, kinds: Mapping[tuple[str, str], str]) -> list[Comment]:
    """The comments on the relations that have *kinds*, as in SQL, which are those that they will have."""
    return [
        Comment((row.schema, row.name), row.attname, row.statement)
        for row in session.rows(
            "SELECT n.nspname AS schema, c.relname AS name, a.attname, format('COMMENT ON %%s %%I.%%I%%s IS %%L',"
            "  CASE d.objsubid WHEN 0 THEN w.kind ELSE 'COLUMN' END, n.nspname, c.relname,"
            "  CASE WHEN d.objsubid > 0 THEN format('.%%I', a.attname) END, d.description) AS statement"
            " FROM unnest(%s::text[], %s::text[], %s::text[]) AS w(schema, name, kind)"
            " JOIN pg_namespace AS n ON n.nspname = w.schema"
            " JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = w.name"
            " JOIN pg_description AS d ON d.classoid = 'pg_class'::regclass AND d.objoid = c.oid"
            " LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = d.objsubid AND d.objsubid > 0 ORDER BY 1, 2, 3",
            [*arrays(kinds), list(kinds.values())],
        )
    ]
