# SPDX-License-Identifier: GPL-3.0-or-later
"""A foreign server and its user mappings: what is there, what is wanted, and the statements between."""

from __future__ import annotations

from typing import Any, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import SECRETS, Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session, version_text
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    Change,
    check_name,
    compose,
    enumerate_names,
    identifier,
    listed,
    literal,
    quoted,
    raw,
    secret,
)

WRAPPER = "postgres_fdw"
PUBLIC = "public"
"""What stands for all roles without a mapping of their own; no role can have that name."""

_SINCE = {
    "batch_size": 140000,
    "async_capable": 140000,
    "keep_connections": 140000,
    "analyze_sampling": 160000,
}
NAMED = (
    "fetch_size",
    "batch_size",
    "use_remote_estimate",
    "extensions",
    "async_capable",
    "analyze_sampling",
    "keep_connections",
    "application_name",
    "connect_timeout",
)
"""The server's options that are options of the module."""
_OF_MAPPINGS = ("user", *SECRETS, "password_required")
_OF_SOURCE = ("host", "hostaddr", "port", "dbname", "passfile", "sslmode", "sslrootcert", "sslcert", "sslkey")


class UserMapping(NamedTuple):
    """As whom a local role goes to the source."""

    role: str
    options: Mapping[str, str] | None
    """None when the session may not read them"""

    def as_result(self) -> dict[str, Any]:
        """The mapping as a return value, without secrets."""
        options = self.options or {}
        shown = {name: value for name, value in options.items() if name not in (*SECRETS, "password_required")}
        return {"role": self.role, **shown, "password_required": options.get("password_required") != "false"}


class Server(NamedTuple):
    """A foreign server."""

    name: str
    options: Mapping[str, str]
    mappings: Mapping[str, UserMapping]

    def as_result(self) -> dict[str, Any]:
        return {"name": self.name, "options": dict(sorted(self.options.items()))}

    def as_side(self) -> dict[str, Any]:
        """The server and its mappings as a part of a diff."""
        return {
            "server": self.as_result(),
            "user_mappings": [self.mappings[role].as_result() for role in sorted(self.mappings)],
        }


def wanted_from(params: Mapping[str, Any], login_role: str, version: int) -> Server:
    """The server that the module's options ask a target of *version* for, where they log in as *login_role*."""
    check_name("server", params["server"])
    endpoint = Endpoint.from_source(params["source"])
    options = {**_named(params, version), **_free(params["options"])}
    options.update({name: value for name, value in endpoint.keywords.items() if name not in _OF_MAPPINGS})
    mappings = {login_role: _mapping(login_role, {}, endpoint)}
    listed_ = [entry["role"] for entry in params["user_mappings"]]
    twice = {role for role in listed_ if listed_.count(role) > 1}
    if twice:
        raise Refused("user_mappings: {0} is listed more than once.".format(enumerate_names(map(quoted, twice))))
    for entry in params["user_mappings"]:
        check_name("role", entry["role"])
        mappings[entry["role"]] = _mapping(entry["role"], entry, endpoint)
    return Server(params["server"], options, mappings)


def _named(params: Mapping[str, Any], version: int) -> dict[str, str]:
    options = {}
    for name in NAMED:
        value = params[name]
        if value is None or value == []:
            continue
        if version < _SINCE.get(name, 0):
            raise Refused(
                "{0} needs PostgreSQL {1} or later on the replica; this one is {2}.".format(
                    name, _SINCE[name] // 10000, version_text(version)
                )
            )
        options[name] = ", ".join(map(quoted, value)) if isinstance(value, list) else _text(value)
    return options


def _free(given: Mapping[str, Any]) -> dict[str, str]:
    for name in given:
        if name in _OF_MAPPINGS:
            raise Refused("options: {0} belongs into source or user_mappings.".format(name))
        if name in _OF_SOURCE:
            raise Refused("options: {0} belongs into source.".format(name))
        if name in NAMED:
            raise Refused("options: {0} is an option of the module itself: give it there.".format(name))
    return {str(name): _text(value) for name, value in given.items() if value is not None}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _mapping(role: str, entry: Mapping[str, Any], endpoint: Endpoint) -> UserMapping:
    password = entry.get("password")
    if password is None and entry.get("user") is None:
        password = endpoint.keywords.get("password")
    options = {
        "user": entry.get("user") or endpoint.keywords["user"],
        "password": password,
        "sslcert": entry.get("ssl_cert"),
        "sslkey": entry.get("ssl_key"),
        "password_required": "false" if entry.get("password_required") is False else None,
    }
    return UserMapping(role, {name: value for name, value in options.items() if value is not None})


def read(session: Session, name: str) -> Server | None:
    """The server *name* of the session's database; refuses one of another wrapper."""
    row = session.row(
        "SELECT s.oid, w.fdwname AS wrapper, (SELECT jsonb_object_agg(option_name, option_value)"
        " FROM pg_options_to_table(s.srvoptions)) AS options"
        " FROM pg_foreign_server AS s JOIN pg_foreign_data_wrapper AS w ON w.oid = s.srvfdw WHERE s.srvname = %s",
        [name],
    )
    if row is None:
        return None
    if row.wrapper != WRAPPER:
        raise Refused('server "{0}" is one of {1}, not of {2}: choose another name.'.format(name, row.wrapper, WRAPPER))
    mappings = {}
    for mapping in session.rows(_MAPPINGS, [row.oid]):
        options = dict(zip(mapping.names, map(_decoded, mapping.values))) if mapping.readable else None
        mappings[mapping.role] = UserMapping(mapping.role, options)
    return Server(name, row.options or {}, mappings)


_MAPPINGS = (
    "SELECT CASE u.umuser WHEN 0 THEN 'public' ELSE pg_get_userbyid(u.umuser) END AS role,"
    " (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) OR u.umoptions IS NOT NULL AS readable,"
    " array(SELECT option_name FROM pg_options_to_table(u.umoptions)) AS names,"
    " array(SELECT convert_to(option_value, getdatabaseencoding()) FROM pg_options_to_table(u.umoptions)) AS values"
    " FROM pg_user_mappings AS u WHERE u.srvid = %s"
)
"""Values as the bytes that are stored: passwords are UTF-8 for the source, whatever the encoding of this database."""


def _decoded(value: Any) -> str:
    return bytes(value).decode("utf-8", "replace")


def missing_roles(session: Session, roles: Sequence[str]) -> list[str]:
    """Those of *roles* that the server doesn't have."""
    there = {row.rolname for row in session.rows("SELECT rolname FROM pg_roles WHERE rolname = ANY(%s)", [list(roles)])}
    return [role for role in dict.fromkeys(roles) if role not in there and role != PUBLIC]


def missing_extensions(session: Session, names: Sequence[str]) -> list[str]:
    """Those of the extensions *names* that the database doesn't have."""
    query = "SELECT extname FROM pg_extension WHERE extname = ANY(%s)"
    there = {row.extname for row in session.rows(query, [list(names)])}
    return [name for name in names if name not in there]


def plan(current: Server | None, wanted: Server, place: str) -> list[Change]:
    """The statements from *current* to *wanted*, which goes to *place*; they share a transaction and a session."""
    changes = []
    if current is None:
        statement = compose(
            "CREATE SERVER {name} FOREIGN DATA WRAPPER {wrapper} OPTIONS ({options})",
            name=identifier(wanted.name),
            wrapper=identifier(WRAPPER),
            options=_options({}, wanted.options)[0],
        )
        changes.append(Change(statement, 'Create server "{0}" for {1}'.format(wanted.name, place)))
    elif current.options != wanted.options:
        options, words = _options(current.options, wanted.options, alter=True)
        statement = compose("ALTER SERVER {name} OPTIONS ({options})", name=identifier(wanted.name), options=options)
        changes.append(Change(statement, 'Alter server "{0}": {1}'.format(wanted.name, ", ".join(words))))
    there = current.mappings if current else {}
    changes += [plan_no_mapping(wanted.name, role) for role in sorted(there) if role not in wanted.mappings]
    for role, mapping in sorted(wanted.mappings.items()):
        changes += _plan_mapping(wanted.name, there.get(role), mapping)
    return changes


def _options(before: Mapping[str, str], after: Mapping[str, str], alter: bool = False) -> tuple[Any, list[str]]:
    """The list of options that leads from *before* to *after*, and what it says to people. Only one value may be secret."""
    parts, words = [], []
    for name in sorted({*before, *after}):
        if before.get(name) == after.get(name):
            continue
        action = "ADD " if name not in before else "SET " if name in after else "DROP "
        template = "{action}{name}" if name not in after else "{action}{name} {value}"
        hidden = name in SECRETS
        value = secret() if hidden else literal(after.get(name))
        parts.append(
            compose(template, action=raw(action if alter else ""), name=identifier(name), value=value)
            if name in after
            else compose(template, action=raw(action), name=identifier(name))
        )
        if name not in after:
            words.append("drop {0}".format(name))
        else:
            words.append("set {0}".format(name) if hidden else "{0} = {1}".format(name, after[name]))
    return listed(parts), words


def _plan_mapping(server: str, current: UserMapping | None, wanted: UserMapping) -> list[Change]:
    options = wanted.options or {}
    if current is None:
        statement = compose(
            "CREATE USER MAPPING FOR {role} SERVER {server} OPTIONS ({options})",
            role=_role(wanted.role),
            server=identifier(server),
            options=_options({}, options)[0],
        )
        words = 'Map role "{0}" to "{1}"'.format(wanted.role, options["user"])
        return [Change(statement, words, secret=options.get("password"))]
    if current.options is None or current.options == options:
        return []
    parts, changed = _options(current.options, options, alter=True)
    statement = compose(
        "ALTER USER MAPPING FOR {role} SERVER {server} OPTIONS ({options})",
        role=_role(wanted.role),
        server=identifier(server),
        options=parts,
    )
    words = 'Alter the mapping of role "{0}": {1}'.format(wanted.role, ", ".join(changed))
    new = options.get("password") if current.options.get("password") != options.get("password") else None
    return [Change(statement, words, secret=new)]


def plan_no_mapping(server: str, role: str) -> Change:
    """Drop a mapping."""
    statement = compose("DROP USER MAPPING FOR {role} SERVER {server}", role=_role(role), server=identifier(server))
    return Change(statement, 'Drop the mapping of role "{0}"'.format(role))


def plan_no_server(current: Server) -> list[Change]:
    """Drop the server and its mappings."""
    statement = compose("DROP SERVER {name}", name=identifier(current.name))
    return [
        *[plan_no_mapping(current.name, role) for role in sorted(current.mappings)],
        Change(statement, 'Drop server "{0}"'.format(current.name)),
    ]


def _role(name: str) -> Any:
    return raw("PUBLIC") if name == PUBLIC else identifier(name)
