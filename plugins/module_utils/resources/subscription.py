# SPDX-License-Identifier: GPL-3.0-or-later
"""A subscription on the replica: what is there, what is wanted, and the statements between.

The order in which one is created makes it safe to die at any step. First a subscription that connects to nothing is
committed, with a comment that says so: it registers the slot's name on the replica. Then the slot is created on the
upstream. Then one transaction replaces the placeholder with the real subscription. A rerun finds the placeholder and goes
on; C(state=absent) finds it and drops the slot. Because the slot never is CREATE SUBSCRIPTION's to make, source and target
may be one cluster, where that hangs (https://www.postgresql.org/docs/current/sql-createsubscription.html).
"""

from __future__ import annotations

from typing import Any, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import (
    SECRETS,
    SOURCE_OPTIONS,
    Endpoint,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session, version_text
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    Change,
    check_name,
    compose,
    identifier,
    identifiers,
    listed,
    literal,
    quoted,
    raw,
    secret,
    with_options,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import slot

OPTIONS: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "publications": {"type": "list", "elements": "str"},
    "source": {"type": "dict", "options": SOURCE_OPTIONS},
    "slot_name": {"type": "str"},
    "enabled": {"type": "bool"},
    "owner": {"type": "str"},
    "binary": {"type": "bool"},
    "streaming": {"type": "str", "choices": ["off", "on", "parallel"]},
    "synchronous_commit": {"type": "str", "choices": ["local", "remote_write", "remote_apply", "on", "off"]},
    "two_phase": {"type": "bool"},
    "disable_on_error": {"type": "bool"},
    "password_required": {"type": "bool", "no_log": False},
    "run_as_owner": {"type": "bool"},
    "origin": {"type": "str", "choices": ["any", "none"]},
    "failover": {"type": "bool"},
    "initial_copy": {"type": "str", "choices": ["snapshot", "native", "none"]},
    "replace_copies": {"type": "bool", "default": False},
    "jobs": {"type": "int"},
    "wal_space": {"type": "int"},
    "wait": {"type": "bool", "default": True},
    "wait_timeout": {"type": "int", "default": 3600},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}

PLACEHOLDER = "postgresml.distributed: this subscription is being created"


class Option(NamedTuple):
    """A subscription option: its catalog column, and the versions that know it and that can alter it."""

    name: str
    column: str
    since: int
    alterable_since: int
    spelling: Mapping[Any, str] = {}
    """what the catalog stores -> what is written; booleans of either are written as C(true) and C(false)"""
    while_disabled: bool = False
    """whether it can be altered only while the subscription is disabled"""


_STREAMING = {True: "on", False: "off", "t": "on", "f": "off", "p": "parallel"}
_TWO_PHASE = {"d": "false", "p": "true", "e": "true"}

ALTERABLE = (
    Option("binary", "subbinary", 140000, 140000),
    Option("streaming", "substream", 140000, 140000, _STREAMING),
    Option("synchronous_commit", "subsynccommit", 100000, 100000),
    Option("two_phase", "subtwophasestate", 150000, 180000, _TWO_PHASE, while_disabled=True),
    Option("disable_on_error", "subdisableonerr", 150000, 150000),
    Option("password_required", "subpasswordrequired", 160000, 160000),
    Option("run_as_owner", "subrunasowner", 160000, 160000),
    Option("origin", "suborigin", 160000, 160000),
    Option("failover", "subfailover", 170000, 170000, while_disabled=True),
)
"""Since when: the CREATE and ALTER SUBSCRIPTION pages of each major version's documentation."""

PARALLEL_STREAMING_SINCE = 160000
PARALLEL_BY_DEFAULT_SINCE = 180000


class Subscription(NamedTuple):
    """A subscription. In what is wanted, None and absent options mean: leave it as it is."""

    name: str
    publications: frozenset[str] | None
    endpoint: Endpoint | None
    """None in what is there when the session may not read the connection string"""
    slot_name: str | None
    enabled: bool | None
    owner: str | None
    options: Mapping[str, str]
    oid: int = 0
    placeholder: bool = False

    def as_result(self) -> dict[str, Any]:
        """The subscription as a return value and a side of the diff, without the password."""
        shown = {} if self.endpoint is None else {k: v for k, v in self.endpoint.keywords.items() if k not in SECRETS}
        return {
            "name": self.name,
            "publications": sorted(self.publications or ()),
            "source": shown,
            "slot_name": self.slot_name,
            "enabled": self.enabled,
            "owner": self.owner,
            **{name: {"true": True, "false": False}.get(value, value) for name, value in self.options.items()},
        }

    def over(self, current: Subscription | None) -> Subscription:
        """What will be there: *self* where it says something, *current* elsewhere."""
        if current is None:
            return self._replace(enabled=self.enabled is not False, slot_name=self.slot_name or self.name)
        filled = {
            field: value
            for field, value in self._asdict().items()
            if value is not None and field not in ("oid", "placeholder")
        }
        return current._replace(**{**filled, "options": {**current.options, **self.options}, "placeholder": False})


_CONNINFO = "convert_to(s.subconninfo, getdatabaseencoding())"
"""The bytes as they are stored: passwords are UTF-8 for the publisher, whatever the encoding of this database."""


def may_read_conninfo(session: Session) -> bool:
    """Whether the session may see connection strings; by default only superusers may."""
    return bool(session.value("SELECT has_column_privilege('pg_subscription', 'subconninfo', 'SELECT')"))


def read(session: Session, name: str) -> Subscription | None:
    """The subscription *name* of the session's database."""
    known = [option for option in ALTERABLE if session.version >= option.since]
    row = session.row(
        compose(
            "SELECT s.oid, s.subenabled, s.subslotname, s.subpublications, {conninfo} AS conninfo, {columns},"
            " pg_get_userbyid(s.subowner) AS owner,"
            " coalesce(obj_description(s.oid, 'pg_subscription'), '') = %s AS placeholder"
            " FROM pg_subscription AS s WHERE s.subname = %s"
            " AND s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())",
            columns=listed([identifier("s", option.column) for option in known]),
            conninfo=raw(_CONNINFO if may_read_conninfo(session) else "NULL"),
        ),
        [PLACEHOLDER, name],
    )
    if row is None:
        return None
    return Subscription(
        name=name,
        publications=frozenset(row.subpublications),
        endpoint=None
        if row.conninfo is None
        else Endpoint.from_conninfo(bytes(row.conninfo).decode("utf-8", "replace")),
        slot_name=row.subslotname,
        enabled=row.subenabled,
        owner=row.owner,
        options={option.name: _spelled(option, getattr(row, option.column)) for option in known},
        oid=row.oid,
        placeholder=row.placeholder,
    )


def _spelled(option: Option, value: Any) -> str:
    """A catalog's value as a statement writes it."""
    if value in option.spelling:
        return option.spelling[value]
    return str(value).lower() if isinstance(value, bool) else str(value)


def wanted_from(params: Mapping[str, Any], version: int) -> Subscription:
    """The subscription that the module's options ask a server of *version* for."""
    check_name("subscription", params["name"])
    if params["slot_name"] is not None:
        slot.check_name(params["slot_name"])
    options = {}
    for option in ALTERABLE:
        value = params[option.name]
        if value is None:
            continue
        if version < option.since:
            raise _too_old(option.name, option.since, version)
        options[option.name] = str(value).lower()
    if options.get("streaming") == "parallel" and version < PARALLEL_STREAMING_SINCE:
        raise _too_old("streaming: parallel", PARALLEL_STREAMING_SINCE, version)
    return Subscription(
        name=params["name"],
        publications=None if params["publications"] is None else frozenset(params["publications"]),
        endpoint=None if params["source"] is None else Endpoint.from_source(params["source"]),
        slot_name=params["slot_name"],
        enabled=params["enabled"],
        owner=params["owner"],
        options=options,
    )


def _too_old(what: str, since: int, version: int) -> Refused:
    return Refused(
        "{0} needs PostgreSQL {1} or later on the replica; this one is {2}.".format(
            what, since // 10000, version_text(version)
        )
    )


def plan_placeholder(wanted: Subscription) -> list[Change]:
    """Register the slot's name on the replica before the slot exists.

    It never connects, so it has no password; but one must be there when the owner is no superuser.
    """
    endpoint = wanted.endpoint and wanted.endpoint.with_keywords(password="none")
    statement = compose(
        "CREATE SUBSCRIPTION {name} CONNECTION {conninfo} PUBLICATION {publications}"
        " WITH (connect = false, enabled = false, create_slot = false, slot_name = {slot})",
        conninfo=literal(endpoint.conninfo if endpoint else ""),
        slot=literal(wanted.slot_name),
        **_names(wanted),
    )
    comment = compose(
        "COMMENT ON SUBSCRIPTION {name} IS {comment}", name=identifier(wanted.name), comment=literal(PLACEHOLDER)
    )
    words = 'Register subscription "{0}"'.format(wanted.name)
    return [Change(statement, words), Change(comment, words)]


def plan_new(wanted: Subscription, copy_data: bool, also: Sequence[Any] = ()) -> list[Change]:
    """Put the subscription in its placeholder's place and let it run, in one transaction that runs the statements *also*, too.

    C(origin) is set afterwards: CREATE SUBSCRIPTION warns of C(origin = none), and a warning takes the whole statement
    with its password into the server's log.
    """
    later = {name: value for name, value in wanted.options.items() if name == "origin"}
    following = [_set(wanted, later)] if later else []
    following += _plan_owner(None, wanted) + (plan_enable(wanted) if wanted.enabled else [])
    options = {
        "create_slot": False,
        "enabled": False,
        "copy_data": copy_data,
        "slot_name": wanted.slot_name,
        **{name: value for name, value in wanted.options.items() if name not in later},
    }
    statement = compose(
        "COMMENT ON SUBSCRIPTION {name} IS NULL;"
        " ALTER SUBSCRIPTION {name} SET (slot_name = NONE); DROP SUBSCRIPTION {name};"
        " CREATE SUBSCRIPTION {name} CONNECTION {conninfo} PUBLICATION {publications} WITH ({options}){following}",
        conninfo=secret(),
        options=with_options(options),
        following=raw("").join([raw("; ") + each for each in [*(change.statement for change in following), *also]]),
        **_names(wanted),
    )
    words = 'Create subscription "{0}" to publication {1} of {2}'.format(
        wanted.name, ", ".join(map(quoted, sorted(wanted.publications or ()))), wanted.endpoint
    )
    return [Change(statement, words, secret=wanted.endpoint.conninfo if wanted.endpoint else "")]


def plan_rehearsal(wanted: Subscription) -> Change:
    """Create the subscription and roll that back, with the error REHEARSED when it can be created: the server itself reaches the
    source then, and takes its tables for possible."""
    options = {"create_slot": False, "enabled": False, "copy_data": False}
    statement = compose(
        "CREATE SUBSCRIPTION {name} CONNECTION {conninfo} PUBLICATION {publications} WITH ({options}, slot_name = NONE);"
        " DO {end}",
        conninfo=secret(),
        options=with_options({**options, **{k: v for k, v in wanted.options.items() if k != "origin"}}),
        end=literal("BEGIN RAISE EXCEPTION 'rehearsed' USING ERRCODE = '{0}'; END".format(REHEARSED)),
        **_names(wanted),
    )
    secret_ = wanted.endpoint.conninfo if wanted.endpoint else ""
    return Change(statement, "See that the server can subscribe", secret=secret_)


REHEARSED = "PGML1"


def _names(wanted: Subscription) -> dict[str, Any]:
    return {"name": identifier(wanted.name), "publications": identifiers(sorted(wanted.publications or ()))}


def plan(current: Subscription, wanted: Subscription, version: int) -> list[Change]:
    """The statements that alter *current*; the list of tables is plan_refresh's."""
    altered = {name: value for name, value in wanted.options.items() if current.options.get(name) != value}
    for option in ALTERABLE:
        if option.name in altered and version < option.alterable_since:
            raise Refused(
                "{0} of subscription {1} is {2}, and PostgreSQL {3} can alter it only from {4} on: drop the subscription and "
                "create it again.".format(
                    option.name,
                    quoted(current.name),
                    current.options[option.name],
                    version_text(version),
                    option.alterable_since // 10000,
                )
            )
    at_rest = [option.name for option in ALTERABLE if option.while_disabled and option.name in altered]
    future = wanted.over(current)
    changes = []
    if current.enabled and (at_rest or not future.enabled):
        changes += plan_disable(current)
    for name in at_rest:
        changes.append(_set(current, {name: altered.pop(name)})._replace(transactional=False))
    if altered:
        changes.append(_set(current, altered))
    if wanted.slot_name is not None and wanted.slot_name != current.slot_name:
        changes.append(_set(current, {"slot_name": wanted.slot_name}))
    if wanted.publications is not None and wanted.publications != current.publications:
        action = compose(
            "SET PUBLICATION {names} WITH (refresh = false)", names=identifiers(sorted(wanted.publications))
        )
        changes.append(_alter(current, action, "Set publications of {0}"))
    changes += _plan_owner(current, wanted)
    if _differs(current.endpoint, wanted.endpoint):
        change = _alter(current, compose("CONNECTION {conninfo}", conninfo=secret()), "Set connection of {0}")
        changes.append(change._replace(secret=wanted.endpoint.conninfo if wanted.endpoint else None))
    if future.enabled and (at_rest or not current.enabled):
        changes += plan_enable(current)
    return changes


def plan_enable(current: Subscription) -> list[Change]:
    """Let the subscription run."""
    return [_alter(current, "ENABLE", "Enable {0}")]


def plan_disable(current: Subscription) -> list[Change]:
    """Disable the subscription, and return when its apply worker is gone."""
    worker_gone = compose(_WORKER_GONE, name=literal(current.name))
    return [
        _alter(current, "DISABLE", "Disable {0}"),
        Change(worker_gone, "Wait for its worker to end", transactional=False),
    ]


def plan_detached(current: Subscription, unreachable: Endpoint | None) -> list[Change]:
    """Drop the subscription without its slot.

    DROP SUBSCRIPTION still calls the publisher when first copies are unfinished, and ignores that nobody answers. When we
    know that nobody will, *unreachable* is where it called; a socket that doesn't exist refuses at once.
    """
    changes = []
    if unreachable:
        nowhere = unreachable.with_keywords(host="/nonexistent", hostaddr=None)
        change = _alter(current, compose("CONNECTION {conninfo}", conninfo=secret()), "Cut the connection of {0}")
        changes.append(change._replace(secret=nowhere.conninfo))
    changes.append(_alter(current, "SET (slot_name = NONE)", "Detach {0} from its slot"))
    # DROP SUBSCRIPTION leaves its comment behind, for whatever gets its oid one day.
    statement = compose(
        "COMMENT ON SUBSCRIPTION {name} IS NULL; DROP SUBSCRIPTION {name}", name=identifier(current.name)
    )
    return changes + [Change(statement, 'Drop subscription "{0}"'.format(current.name))]


_WORKER_GONE = (
    "DO $$ BEGIN FOR look IN 1..100 LOOP EXIT WHEN NOT EXISTS (SELECT FROM pg_stat_subscription WHERE subname = {name}"
    " AND pid IS NOT NULL); PERFORM pg_sleep(0.1); END LOOP; END $$"
)


def plan_refresh(current: Subscription, offer: Any, states: Any, copy_data: bool) -> list[Change]:
    """Bring the subscription's list of tables to what its publications offer, when they differ."""
    if set(offer) == set(states):
        return []
    new, gone = len(set(offer) - set(states)), len(set(states) - set(offer))
    words = "Refresh {0}: " + "{0} new, {1} gone".format(_tables(new), _tables(gone))
    action = compose("REFRESH PUBLICATION WITH (copy_data = {copy})", copy=literal(copy_data))
    return [_alter(current, action, words)._replace(transactional=False)]


def _tables(number: int) -> str:
    return "{0} table{1}".format(number, "" if number == 1 else "s")


def _differs(current: Endpoint | None, wanted: Endpoint | None) -> bool:
    """Whether a connection that can be read is another one, its values compared as libpq takes them apart."""
    return current is not None and wanted is not None and current.keywords != wanted.keywords


def _plan_owner(current: Subscription | None, wanted: Subscription) -> list[Change]:
    if wanted.owner is None or (current and current.owner == wanted.owner):
        return []
    action = compose("OWNER TO {owner}", owner=identifier(wanted.owner))
    return [_alter(wanted, action, 'Set owner of {0} to "' + wanted.owner + '"')]


def _set(current: Subscription, options: Mapping[str, str]) -> Change:
    words = ", ".join("{0} = {1}".format(name, value) for name, value in options.items())
    return _alter(current, compose("SET ({options})", options=with_options(options)), "Set " + words + " of {0}")


def _alter(subscription: Subscription, action: Any, words: str) -> Change:
    action = raw(action) if isinstance(action, str) else action
    statement = compose("ALTER SUBSCRIPTION {name} {action}", name=identifier(subscription.name), action=action)
    return Change(statement, words.replace("{0}", 'subscription "{0}"'.format(subscription.name)))
