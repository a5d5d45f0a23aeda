# SPDX-License-Identifier: GPL-3.0-or-later
"""What came along with a copied cluster, and is taken away or put to rest before anybody can reach the copy."""

from __future__ import annotations

import contextlib
import re
from typing import Any, Callable, Iterable, Iterator, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    Change,
    compose,
    identifier,
    literal,
    quoted,
    raw,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import subscription

MAINTENANCE = "template1"
"""The database that is always there"""
_DEFAULT = "postgres"
_TEMPLATES = ("template0", "template1")
_GRANTORS_SINCE = 160000
"""From then on a membership may have several grantors."""
_SCHEDULERS = {
    "pg_cron": "UPDATE cron.job SET active = false WHERE active",
    "pgagent": "UPDATE pgagent.pga_job SET jobenabled = false WHERE jobenabled",
}
"""How the jobs of an extension are stopped"""

Open = Callable[[str], Session]
"""Opens a session in a database of the copy."""


class Role(NamedTuple):
    """A role of the server whose place the copy takes."""

    name: str
    attributes: dict[str, bool]
    """by keyword of ALTER ROLE"""
    connections: int
    password: str | None
    """the verifier that is stored"""
    valid_until: str | None
    settings: Sequence[str]
    """of ALTER ROLE ... SET for all databases, each C(name=value)"""


class Roles(NamedTuple):
    """All roles of a server, and who is a member of whom."""

    roles: Sequence[Role]
    members: Sequence[tuple[str, str, str]]
    """role, member, and the options of GRANT that go with that"""


_ATTRIBUTES = {
    "SUPERUSER": "rolsuper",
    "INHERIT": "rolinherit",
    "CREATEROLE": "rolcreaterole",
    "CREATEDB": "rolcreatedb",
    "LOGIN": "rolcanlogin",
    "REPLICATION": "rolreplication",
    "BYPASSRLS": "rolbypassrls",
}


_QUOTED_LISTS = (
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
)
"""Settings whose values are lists of names, which SET would quote again as one: variable_is_guc_list_quote() of PostgreSQL"""
_ELEMENT = re.compile(r'"((?:[^"]|"")*)"|([^\s,"]+)')
_MEMBERS = (
    "SELECT pg_get_userbyid(roleid) AS granted, pg_get_userbyid(member) AS member,"
    " CASE WHEN bool_or(admin_option) THEN ' WITH ADMIN OPTION' ELSE '' END AS options FROM pg_auth_members"
    " WHERE member >= 16384 GROUP BY 1, 2 ORDER BY 1, 2"
)
_MEMBERS_WITH_OPTIONS = (
    "SELECT pg_get_userbyid(roleid) AS granted, pg_get_userbyid(member) AS member,"
    " format(' WITH ADMIN %s, INHERIT %s, SET %s', bool_or(admin_option)::text, bool_or(inherit_option)::text,"
    "  bool_or(set_option)::text) AS options FROM pg_auth_members WHERE member >= 16384 GROUP BY 1, 2 ORDER BY 1, 2"
)


def read_roles(session: Session) -> Roles:
    """Those of the session's server, which a superuser may see with their passwords' verifiers."""
    rows = session.rows(
        "SELECT rolname, {0}, rolconnlimit, rolpassword, rolvaliduntil::text,"
        " (SELECT setconfig FROM pg_db_role_setting WHERE setrole = a.oid AND setdatabase = 0) AS settings"
        " FROM pg_authid AS a WHERE oid = 10 OR oid >= 16384 ORDER BY 1".format(", ".join(_ATTRIBUTES.values()))
    )
    members = session.rows(_MEMBERS_WITH_OPTIONS if session.version >= _GRANTORS_SINCE else _MEMBERS)
    return Roles(
        [
            Role(
                row.rolname,
                {keyword: getattr(row, column) for keyword, column in _ATTRIBUTES.items()},
                row.rolconnlimit,
                row.rolpassword,
                row.rolvaliduntil,
                row.settings or (),
            )
            for row in rows
        ],
        [(row.granted, row.member, row.options) for row in members],
    )


def positions(session: Session) -> dict[tuple[str, str], str]:
    """How far each copied subscription had applied its publisher's changes, by database and name."""
    rows = session.rows(
        "SELECT d.datname, s.subname, o.remote_lsn::text FROM pg_subscription AS s JOIN pg_database AS d ON d.oid = s.subdbid"
        " JOIN pg_replication_origin_status AS o ON o.external_id = 'pg_' || s.oid"
    )
    return {(row.datname, row.subname): row.remote_lsn for row in rows}


@contextlib.contextmanager
def silenced(session: Session) -> Iterator[Session]:
    """Have no event trigger of the database fire in the block, not even those that fire always. PostgreSQL 17 has a
    setting for that; to alter an event trigger fires none."""
    triggers = session.rows(
        "SELECT evtname, evtenabled::text FROM pg_event_trigger WHERE evtenabled IN ('R', 'A') ORDER BY 1"
    )
    for row in triggers:
        session.execute(compose("ALTER EVENT TRIGGER {name} DISABLE", name=identifier(row.evtname)))
    yield session
    for row in triggers:
        how = "ENABLE ALWAYS" if row.evtenabled == "A" else "ENABLE REPLICA"
        session.execute(compose("ALTER EVENT TRIGGER {name} {how}", name=identifier(row.evtname), how=raw(how)))


def drop_replication(open_: Open) -> list[str]:
    """Drop all subscriptions, without their slots and without a word to their publishers, and slots, origins and publications.

    Before it is dropped a subscription is pointed at nowhere: DROP SUBSCRIPTION calls the publisher when first copies are
    unfinished, and the slots there belong to the server that this one was copied from.
    """
    said = []
    with open_(MAINTENANCE) as session:
        subscriptions = session.rows(
            "SELECT d.datname, s.subname FROM pg_subscription AS s JOIN pg_database AS d ON d.oid = s.subdbid ORDER BY 1, 2"
        )
        slots = session.rows("SELECT slot_name, pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
        said += ["Drop copied slot {0}".format(row.slot_name) for row in slots]
    for database, rows in _by_database(subscriptions):
        with open_(database) as session, silenced(session):
            for row in rows:
                session.apply(_detach(row.subname))
                said.append(
                    "Drop copied subscription {0} in database {1}".format(quoted(row.subname), quoted(database))
                )
    with open_(MAINTENANCE) as session:
        session.rows("SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin")
    return said


def _detach(name: str) -> list[Any]:
    nowhere = Endpoint({"host": "/nonexistent", "password": "none"}, "source")
    there = subscription.Subscription(name, None, None, None, False, None, {})
    alter = compose("ALTER SUBSCRIPTION {name} DISABLE", name=identifier(name))
    cut = Change(alter, "Disable subscription {0}".format(quoted(name)))
    return [cut, *subscription.plan_detached(there, nowhere)]


def _by_database(rows: Iterable[Any]) -> list[tuple[str, list[Any]]]:
    found: dict[str, list[Any]] = {}
    for row in rows:
        found.setdefault(row.datname, []).append(row)
    return list(found.items())


def roll_back_prepared(open_: Open) -> list[str]:
    """Roll back transactions that are prepared at the upstream: their changes come when they are committed there."""
    with open_(MAINTENANCE) as session:
        prepared = session.rows("SELECT database AS datname, gid FROM pg_prepared_xacts ORDER BY 1, 2")
    for database, rows in _by_database(prepared):
        with open_(database) as session:
            for row in rows:
                session.execute(compose("ROLLBACK PREPARED {gid}", gid=literal(row.gid)))
    return ['Roll back copied prepared transaction "{0}"'.format(row.gid) for row in prepared]


def databases(open_: Open) -> list[str]:
    """Those that can be connected to."""
    with open_(MAINTENANCE) as session:
        rows = session.rows("SELECT datname FROM pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY 1")
    return [row.datname for row in rows]


def drop_databases(open_: Open, kept: Sequence[str]) -> list[str]:
    """Drop the databases that are not *kept*, and the one that everybody connects to if it holds anything."""
    said = []
    with open_(MAINTENANCE) as session:
        session.without_timeouts()
        for row in session.rows("SELECT datname, datistemplate FROM pg_database ORDER BY 1"):
            if row.datname in kept or row.datname in _TEMPLATES:
                continue
            if row.datname == _DEFAULT and not _holds_anything(open_, row.datname):
                continue
            name = identifier(row.datname)
            if row.datistemplate:
                session.execute(compose("ALTER DATABASE {name} IS_TEMPLATE false", name=name))
            session.execute(compose("DROP DATABASE {name} WITH (FORCE)", name=name))
            if row.datname != _DEFAULT:
                said.append("Drop copied database {0}".format(quoted(row.datname)))
    return said


def _holds_anything(open_: Open, database: str) -> bool:
    with open_(database) as session:
        return bool(
            session.value(
                "SELECT EXISTS (SELECT oid FROM pg_class WHERE oid >= 16384 UNION ALL SELECT oid FROM pg_proc WHERE oid >= 16384"
                " UNION ALL SELECT oid FROM pg_namespace WHERE oid >= 16384 UNION ALL SELECT oid FROM pg_publication"
                " UNION ALL SELECT oid FROM pg_extension WHERE oid >= 16384)"
            )
        )


def complete(open_: Open) -> None:
    """Have the database that everybody connects to."""
    with open_(MAINTENANCE) as session:
        if not session.value("SELECT 1 FROM pg_database WHERE datname = %s", [_DEFAULT]):
            statement = "CREATE DATABASE {name} TEMPLATE template0"
            session.execute(compose(statement, name=identifier(_DEFAULT)))


def put_to_rest(open_: Open, databases: Sequence[str]) -> tuple[list[str], list[str]]:
    """Drop the publications and stop the jobs of each of *databases*; returns what was done, and the unlogged tables."""
    said, unlogged = [], []
    for database in databases:
        with open_(database) as session, silenced(session):
            for row in session.rows("SELECT pubname FROM pg_publication ORDER BY 1"):
                session.execute(compose("DROP PUBLICATION {name}", name=identifier(row.pubname)))
                said.append("Drop copied publication {0} in database {1}".format(quoted(row.pubname), quoted(database)))
            for extension in session.rows(
                "SELECT extname FROM pg_extension WHERE extname = ANY(%s)", [list(_SCHEDULERS)]
            ):
                stopped = session.execute(_SCHEDULERS[extension.extname])
                if stopped:
                    words = "Stop {0} copied job{1} of {2} in database {3}"
                    plural = "" if stopped == 1 else "s"
                    said.append(words.format(stopped, plural, extension.extname, quoted(database)))
            unlogged += [
                quoted(database, row.nspname, row.relname)
                for row in session.rows(
                    "SELECT n.nspname, c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
                    " WHERE c.relpersistence = 'u' AND c.relkind = 'r' ORDER BY 1, 2"
                )
            ]
    return said, unlogged


def rename_databases(open_: Open, names: Sequence[tuple[str, str]]) -> list[str]:
    """Give databases their names on the replica, which may be those of one another."""
    changed = [(old, new) for old, new in names if old != new]
    passing = ["pgml_seed_{0}".format(number) for number, _names in enumerate(changed)]
    rename = "ALTER DATABASE {old} RENAME TO {new}"
    with open_(MAINTENANCE) as session:
        for (old, _new), between in zip(changed, passing):
            session.execute(compose(rename, old=identifier(old), new=identifier(between)))
        for (_old, new), between in zip(changed, passing):
            session.execute(compose(rename, old=identifier(between), new=identifier(new)))
    return ["Rename copied database {0} to {1}".format(quoted(old), quoted(new)) for old, new in changed]


def drop_role(open_: Open, name: str) -> list[str]:
    """Drop a role, unless it has more than privileges."""
    with open_(MAINTENANCE) as session:
        if not session.value(_ONLY_PRIVILEGES, [name]):
            return []
        concerned = session.rows(_CONCERNED, [name])
    for row in concerned:
        with open_(row.datname) as session, silenced(session):
            session.execute(compose("DROP OWNED BY {name}", name=identifier(name)))
    with open_(MAINTENANCE) as session:
        session.execute(compose("DROP ROLE {name}", name=identifier(name)))
    return ["Drop copied role {0}".format(quoted(name))]


_CONCERNED = (
    "SELECT datname FROM pg_database AS d WHERE datallowconn AND (datname = current_database() OR EXISTS ("
    "SELECT FROM pg_shdepend WHERE refclassid = 'pg_authid'::regclass AND dbid = d.oid"
    "  AND refobjid = (SELECT oid FROM pg_roles WHERE rolname = %s))) ORDER BY 1"
)
_ONLY_PRIVILEGES = (
    "SELECT NOT rolsuper AND NOT EXISTS (SELECT FROM pg_shdepend WHERE refclassid = 'pg_authid'::regclass"
    "  AND refobjid = r.oid AND deptype = 'o') FROM pg_roles AS r WHERE rolname = %s"
)


def exchange_roles(session: Session, own: Roles, kept: Sequence[str]) -> list[str]:
    """Take LOGIN and the password of each role of the upstream that is not *kept*, and have the replica's *own* as they were."""
    there = {
        row.rolname: row
        for row in session.rows("SELECT rolname, oid, rolcanlogin, rolpassword, rolvaliduntil FROM pg_authid")
    }
    own_names = {role.name for role in own.roles}
    foreign = [
        name
        for name, row in sorted(there.items())
        if name not in own_names
        and name not in kept
        and not name.startswith("pg_")
        and (row.rolcanlogin or row.rolpassword)
    ]
    with session.transaction():
        for name in foreign:
            session.execute(compose("ALTER ROLE {name} NOLOGIN PASSWORD NULL", name=identifier(name)))
        for role in own.roles:
            if role.name not in there:
                session.execute(compose("CREATE ROLE {name}", name=identifier(role.name)))
            session.execute(_restore(role, there.get(role.name)))
        for role in own.roles:
            _restore_settings(session, role)
        _exchange_members(session, own, set(there) | own_names)
    return ["Take LOGIN and password from copied role {0}".format(quoted(name)) for name in foreign]


def _restore_settings(session: Session, role: Role) -> None:
    name = identifier(role.name)
    session.execute(compose("ALTER ROLE {role} RESET ALL", role=name))
    for each in role.settings:
        setting, _equals, text = each.partition("=")
        values = _elements(text) if setting.lower() in _QUOTED_LISTS else [text]
        statement = "ALTER ROLE {role} SET {setting} TO {values}"
        parts = {"setting": identifier(*setting.split(".")), "values": raw(", ").join(map(literal, values or [""]))}
        session.execute(compose(statement, role=name, **parts))


def _elements(text: str) -> list[str]:
    """The names of a list of quoted and other names."""
    return [plain or quotes.replace('""', '"') for quotes, plain in _ELEMENT.findall(text)]


def _exchange_members(session: Session, own: Roles, known: set[str]) -> None:
    """Have the replica's own roles be members of what they were, and of nothing that roles of their names are on the upstream."""
    rows = session.rows(
        "SELECT pg_get_userbyid(roleid) AS granted, pg_get_userbyid(member) AS member, pg_get_userbyid(grantor) AS grantor"
        " FROM pg_auth_members WHERE member >= 16384"
    )
    names = {role.name for role in own.roles}
    for row in rows:
        if row.member in names:
            statement = "REVOKE {role} FROM {member}{by} CASCADE"
            by = compose(" GRANTED BY {grantor}", grantor=identifier(row.grantor))
            session.execute(
                compose(
                    statement,
                    role=identifier(row.granted),
                    member=identifier(row.member),
                    by=by if session.version >= _GRANTORS_SINCE else raw(""),
                )
            )
    for granted, member, options in own.members:
        if granted in known and member in known:
            statement = "GRANT {role} TO {member}{options}"
            parts = {"role": identifier(granted), "member": identifier(member), "options": raw(options)}
            session.execute(compose(statement, **parts))


def _restore(role: Role, copied: Any) -> Any:
    """What initdb made can't be anything less than a superuser, and an end of a password's time that was copied can't be
    taken away, only put off for ever."""
    is_bootstrap = copied is not None and copied.oid == 10
    until = role.valid_until or ("infinity" if copied is not None and copied.rolvaliduntil else None)
    words = [
        ("" if wanted else "NO") + keyword
        for keyword, wanted in role.attributes.items()
        if not (is_bootstrap and keyword == "SUPERUSER")
    ]
    return compose(
        "ALTER ROLE {name} WITH {attributes} CONNECTION LIMIT {limit} PASSWORD {password}{until}",
        name=identifier(role.name),
        attributes=raw(" ".join(words)),
        limit=literal(role.connections),
        password=literal(role.password),
        until=compose(" VALID UNTIL {until}", until=literal(until)) if until else raw(""),
    )
