# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands against a distribution on the server that it goes to, and whether that reaches the one it comes from."""

from __future__ import annotations

import contextlib
from typing import Any, Collection, Iterator, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import capacity, subscribed
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.findings import Findings, Permission
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.preflight_upstream import (
    LOCK_TIMEOUT,
    STRATEGIES,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import SOURCE_OPTIONS
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    compose,
    enumerate_names,
    identifier,
    literal,
    quoted,
    union_all,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import (
    difference,
    distribution_ledger,
    foreign_ledger,
    foreign_server,
    schema,
    subscribing,
    subscription,
    tables,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.task import Task
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import indexes, ledger, seeds, workers

OPTIONS: dict[str, Any] = {
    "restart": {"type": "bool", "default": True},
    "managed": {"type": "bool", "default": False},
    "jobs": {"type": "int"},
    "distributions": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "strategy": {"type": "str", "required": True, "choices": STRATEGIES},
            "database": {"type": "str", "required": True},
            "tables": {"type": "list", "elements": "raw", "default": []},
            "schemas": {"type": "list", "elements": "str", "default": []},
            "publication": {"type": "str"},
            "subscription": {"type": "str"},
            "slot": {"type": "str"},
            "server": {"type": "str"},
            "initial_copy": {"type": "str", "choices": ["snapshot", "native", "none"]},
            "upstream": {"type": "str", "required": True},
            "through": {"type": "str"},
            "source": {"type": "dict", "options": SOURCE_OPTIONS},
        },
    },
}

LOOKS_AT_ONCE = 50
_KINDS = {"v": "a view", "m": "a materialized view", "f": "a foreign table", "S": "a sequence", "c": "a composite type"}


class There(NamedTuple):
    """What the target's database has, as far as it concerns distributions that come anew."""

    kinds: Mapping[tuple[str, str], str]
    """pg_class.relkind"""
    fed: Mapping[tuple[str, str], str]
    """tables that subscriptions fill"""
    copied: frozenset[tuple[str, str]]
    """tables that pgml_dump_restore has filled"""


def look(task: Task, session: Session, found: Findings) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Look at the replica of the task's as_replica, and return facts and what is remembered of distributions."""
    wanted = task.params["as_replica"]
    jobs = workers.jobs(wanted["jobs"])
    databases = list(dict.fromkeys(entry["database"] for entry in wanted["distributions"]))
    query = "SELECT datname FROM pg_database WHERE datname = ANY(%s::text[]) AND datallowconn"
    there = {row.datname for row in session.rows(query, [databases])}
    facts: dict[str, Any] = {"jobs": jobs, "arriving": [], "space": {}, "settled": False}
    settled = set(databases) == there
    remembered: dict[str, dict[str, Any]] = {database: {} for database in databases}
    for database in databases:
        entries = [entry for entry in wanted["distributions"] if entry["database"] == database]
        if database not in there:
            _refuse_awkward_name(database, found)
            facts["arriving"] += [_arriving(entry, new=True) for entry in entries]
            facts["space"][database] = indexes.free_bytes(session)
            _hold_extension(session, entries, found)
            continue
        with found.refusals("database"), Session(
            session.endpoint.with_keywords(dbname=database), lock_timeout=LOCK_TIMEOUT
        ) as inside:
            facts["space"][database] = indexes.free_bytes(inside)
            _hold_extension(inside, entries, found)
            with found.refusals("name"):
                remembered[database] = {
                    name: {"strategy": each.strategy, "automatic": each.automatic, "upstream": each.upstream}
                    for name, each in distribution_ledger.read(inside).items()
                }
                facts["arriving"] += list(_look_inside(inside, entries, remembered[database], found))
            settled = settled and all(_is_settled(task, inside, each, remembered[database]) for each in entries)
    with found.refusals("setting"):
        suffices = _hold_settings(session, wanted, facts["arriving"], jobs, found)
        facts["settled"] = settled and suffices
    return facts, remembered


def _refuse_awkward_name(database: str, found: Findings) -> None:
    if '"' in database or "%" in database:
        words = "Database {0} doesn't exist, and can't be created from here because of its name; create it first."
        found.error("database", words.format(database))


def _hold_extension(session: Session, entries: Sequence[Mapping[str, Any]], found: Findings) -> None:
    if not any(entry["strategy"] == "fdw" for entry in entries):
        return
    if not session.value("SELECT 1 FROM pg_available_extensions WHERE name = %s", [foreign_server.WRAPPER]):
        words = "Extension {0} is not installed on the server: install PostgreSQL's additional modules (contrib) there."
        found.error("extension", words.format(foreign_server.WRAPPER))


def _subscription_of(entry: Mapping[str, Any]) -> str:
    return str(entry["subscription"] or "pgml_" + entry["name"])


def _arriving(entry: Mapping[str, Any], new: bool, **more: Any) -> dict[str, Any]:
    return {
        "name": entry["name"],
        "strategy": entry["strategy"],
        "database": entry["database"],
        "upstream": entry["upstream"],
        "source_database": None if entry["through"] else (entry["source"] or {}).get("db"),
        "slot": entry["slot"],
        "subscription": _subscription_of(entry),
        "parts": any(isinstance(t, dict) and (t.get("where") or t.get("columns")) for t in entry["tables"]),
        "new": new,
        "filled": [],
        "fed": {},
        "others": {},
        **more,
    }


def _look_inside(
    session: Session, entries: Sequence[Mapping[str, Any]], remembered: Mapping[str, Any], found: Findings
) -> Iterator[dict[str, Any]]:
    """What each distribution would meet in the database of *session*."""
    subscriptions = {
        row.subname: row
        for row in session.rows(
            "SELECT subname, subpublications, coalesce(obj_description(oid, 'pg_subscription'), '') = %s AS placeholder"
            " FROM pg_subscription WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())",
            [subscription.PLACEHOLDER],
        )
    }
    there: There | None = None
    for entry in entries:
        if entry["strategy"] == "fdw":
            yield _arriving(entry, _is_new_server(session, entry, found))
            continue
        if entry["strategy"] == "auto":
            yield _arriving(entry, entry["name"] not in remembered)
            continue
        name = _subscription_of(entry)
        if entry["strategy"] == "logical" and name in subscriptions:
            _refuse_foreign_subscription(subscriptions[name], entry, found)
            yield _arriving(entry, new=False)
            continue
        if entry["strategy"] == "logical" and seeds.read(session, name):
            yield _arriving(entry, new=False)
            continue
        there = there or _read(session)
        keys = _scope(session, entry, there.kinds)
        if entry["strategy"] == "dump" and any(key in there.copied for key in keys):
            yield _arriving(entry, new=False)
            continue
        yield _arriving(entry, new=True, **_obstacles(session, entry, there, keys, entry["name"] in remembered))


def _is_settled(task: Task, session: Session, entry: Mapping[str, Any], remembered: Mapping[str, Any]) -> bool:
    """Whether a distribution comes by a subscription whose tables are ready, is remembered as it is asked for, and leaves
    pgml_schema and pgml_subscription nothing to do."""
    asked = {"strategy": "logical", "automatic": False, "upstream": entry["upstream"]}
    if entry["strategy"] != "logical" or remembered.get(entry["name"]) != asked or not entry["source"]:
        return False
    there = subscription.read(session, _subscription_of(entry))
    if there is None or there.placeholder or subscribed.unfinished(session, there.oid):
        return False
    common = {"lock_timeout": LOCK_TIMEOUT, "login_db": entry["database"], "source": entry["source"]}
    return task.finds_nothing_to_do(
        schema.OPTIONS,
        schema.manage,
        mode=difference.CREATE,
        tables=entry["tables"],
        schemas=entry["schemas"],
        all_tables=not entry["tables"] and not entry["schemas"],
        **common,
    ) and task.finds_nothing_to_do(
        subscription.OPTIONS,
        subscribing.manage,
        name=there.name,
        publications=[entry["publication"] or "pgml_" + entry["name"]],
        slot_name=entry["slot"],
        **common,
    )


def _is_new_server(session: Session, entry: Mapping[str, Any], found: Findings) -> bool:
    name = entry["server"] or entry["name"]
    if not session.value("SELECT 1 FROM pg_foreign_server WHERE srvname = %s", [name]):
        return True
    if (foreign_ledger.SERVER, "", name) not in foreign_ledger.read(session, name):
        words = "Foreign server {0} is there already in {1} and was not made by pgml_fdw: drop it, or rename distribution {2}."
        found.error("name", words.format(quoted(name), session.endpoint, quoted(entry["name"])))
    return False


def _refuse_foreign_subscription(row: Any, entry: Mapping[str, Any], found: Findings) -> None:
    wanted = entry["publication"] or "pgml_" + entry["name"]
    if row.placeholder or wanted in row.subpublications:
        return
    words = "Subscription {0} takes publication {1} and not {2}: drop it, or rename distribution {3}."
    taken = enumerate_names(map(quoted, row.subpublications))
    found.error("name", words.format(quoted(row.subname), taken, quoted(wanted), quoted(entry["name"])))


def _read(session: Session) -> There:
    rows = session.rows(
        "SELECT n.nspname AS schema, c.relname AS name, c.relkind AS kind, min(s.subname) AS fed FROM pg_class AS c"
        " JOIN pg_namespace AS n ON n.oid = c.relnamespace LEFT JOIN pg_subscription_rel AS r ON r.srrelid = c.oid"
        " LEFT JOIN (SELECT oid, subname FROM pg_subscription) AS s ON s.oid = r.srsubid"
        " WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S', 'c') AND c.relpersistence <> 't' AND c.oid >= 16384"
        " AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pgml_distributed') AND n.nspname !~ '^pg_(toast|temp)'"
        " GROUP BY n.nspname, c.relname, c.relkind"
    )
    return There(
        {(row.schema, row.name): row.kind for row in rows},
        {(row.schema, row.name): row.fed for row in rows if row.fed},
        frozenset(ledger.known(session)),
    )


def _scope(session: Session, entry: Mapping[str, Any], kinds: Collection[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those of the relations *kinds* that the distribution may mean; which it does, its upstream says."""
    if not entry["tables"] and not entry["schemas"]:
        return list(kinds)
    named: list[tuple[str, str]] = []
    with contextlib.suppress(Refused):  # the upstream tells what is wrong with the names
        named = tables.parse_names(session, [each.name for each in tables.parse_requests(entry["tables"]) or ()])
    return [key for key in kinds if key in named or key[0] in entry["schemas"]]


def _obstacles(
    session: Session,
    entry: Mapping[str, Any],
    there: There,
    keys: Sequence[tuple[str, str]],
    remembered: bool,
) -> dict[str, Any]:
    """What stands where the tables are to come, by their names. A distribution that is *remembered* has come by another
    strategy, and leaves that by itself."""
    if remembered:
        return {}
    own = _subscription_of(entry)
    here = [key for key in keys if there.kinds[key] in ("r", "p")]
    fed = {key: there.fed[key] for key in here if there.fed.get(key, own) != own}
    free = [key for key in here if key not in there.fed and key not in there.copied]
    kept = entry["strategy"] == "logical" and entry["initial_copy"] == "none"
    return {
        "filled": [] if kept else _filled(session, free),
        "fed": {quoted(*key): name for key, name in fed.items()},
        "others": {quoted(*key): _KINDS[there.kinds[key]] for key in keys if there.kinds[key] in _KINDS},
    }


def _filled(session: Session, keys: Sequence[tuple[str, str]]) -> list[str]:
    """Those of *keys* that hold rows."""
    found: list[str] = []
    for start in range(0, len(keys), LOOKS_AT_ONCE):
        looks = union_all(
            compose("SELECT {label}, EXISTS (SELECT FROM {table})", label=literal(quoted(*key)), table=identifier(*key))
            for key in keys[start : start + LOOKS_AT_ONCE]
        )
        rows = session.rows(compose("SELECT label FROM ({looks}) AS looks(label, filled) WHERE filled", looks=looks))
        found += [row.label for row in rows]
    return found


def _hold_settings(
    session: Session, wanted: Mapping[str, Any], arriving: Sequence[Mapping[str, Any]], jobs: int, found: Findings
) -> bool:
    """See that the server can have the workers and origins of its subscriptions; returns whether it has what that takes, and no
    setting waits for a restart."""
    if not wanted["distributions"]:
        return True
    subscriptions = [each["subscription"] for each in arriving if each["strategy"] == "logical"]
    row = session.row(
        "SELECT count(*)::int AS others, current_setting('max_sync_workers_per_subscription')::int AS sync_workers"
        " FROM pg_subscription WHERE subname !~ '^pgml_' AND NOT subname = ANY(%s::text[])",
        [subscriptions],
    )
    needed = (row.others + max(len(subscriptions), 1)) * (1 + row.sync_workers)
    origins = "max_active_replication_origins" if session.version >= 180000 else "max_replication_slots"
    minimum = {
        "max_logical_replication_workers": needed,
        "max_worker_processes": needed + 5,
        origins: needed,
    }
    permission = Permission(wanted["managed"], wanted["restart"], "pgml_replica_restart")
    suffices = found.hold_settings(session, minimum, permission)
    new = sum(each["new"] and each["strategy"] == "logical" for each in arriving)
    if not new:
        return suffices and not session.value("SELECT 1 FROM pg_settings WHERE pending_restart LIMIT 1")
    left = capacity.read_replica(session)
    raised = max(0, needed - int(session.value("SELECT current_setting(%s)", [origins])))
    remedy = "raise {0}, or drop origins that nobody uses".format(origins)
    found.hold_limit("limit", "Replication origins ({0})".format(origins), left.free_origins + raised, new, remedy)
    found.hold_limit(
        "limit",
        "Connections (max_connections, or the role's limit) for a first copy",
        left.free_connections,
        jobs + 2,
        "raise it, or end sessions",
    )
    return False
