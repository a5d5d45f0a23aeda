# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a cluster can be copied as it is, to be a replica: what two servers are, and what stands between them."""

from __future__ import annotations

import locale
import os
from typing import Any, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session, version_text
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import enumerate_names, quoted
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import libraries

_LAYOUT = (
    "pg_control_version",
    "catalog_version_no",
    "max_data_alignment",
    "database_block_size",
    "blocks_per_segment",
    "wal_block_size",
    "max_identifier_length",
    "max_index_columns",
    "max_toast_chunk_size",
    "large_object_chunk_size",
    "float8_pass_by_value",
)
"""What must be alike, see https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-CONTROLDATA."""
_UNVERSIONED = ("C", "POSIX", "C.UTF-8", "C.utf8")
"""Orders that no library defines."""


class Server(NamedTuple):
    """What makes the files of a server such as they are."""

    version: int
    platform: str
    """processor and system, of version()"""
    layout: Mapping[str, Any]
    icu: str | None
    """version of the root collation; None without ICU"""
    in_recovery: bool


def read_server(session: Session) -> Server:
    """Ask either side."""
    row = session.row(
        "SELECT split_part(split_part(version(), ' on ', 2), ',', 1) AS platform, pg_is_in_recovery() AS in_recovery,"
        " (SELECT to_jsonb(s) || to_jsonb(i) FROM pg_control_system() AS s, pg_control_init() AS i) AS layout,"
        " (SELECT max(pg_collation_actual_version(oid)) FROM pg_collation WHERE collname = 'und-x-icu') AS icu"
    )
    layout = {name: row.layout[name] for name in _LAYOUT if name in row.layout}
    return Server(session.version, row.platform, layout, row.icu, row.in_recovery)


class Database(NamedTuple):
    """A database that would be copied."""

    name: str
    collate: str | None
    ctype: str | None
    provider: str
    bytes: int | None
    """None when its size may not be asked"""


class Upstream(NamedTuple):
    """The cluster that would be copied."""

    server: Server
    databases: Sequence[Database]
    libc: str | None
    """version of the C library, as far as it is told"""
    tablespaces: Mapping[str, str]
    """location by name"""
    extensions: frozenset[str]
    libraries: frozenset[str]
    """that functions and settings of the databases load"""
    bootstrap: str
    """the role that initdb made"""
    standby: Mapping[str, int]
    """settings that a standby may not have lower,
    https://www.postgresql.org/docs/current/hot-standby.html#HOT-STANDBY-ADMIN"""

    @property
    def bytes(self) -> int:
        """As far as they may be asked."""
        return sum(each.bytes or 0 for each in self.databases)

    @property
    def unmeasured(self) -> list[str]:
        """Databases whose size may not be asked."""
        return [each.name for each in self.databases if each.bytes is None]


_DATABASES = (
    "SELECT d.datname AS name, to_jsonb(d) ->> 'datcollate' AS collate, to_jsonb(d) ->> 'datctype' AS ctype,"
    " coalesce(to_jsonb(d) ->> 'datlocprovider', 'c') AS provider,"
    " CASE WHEN has_database_privilege(d.oid, 'CONNECT') OR pg_has_role(current_user, 'pg_read_all_stats', 'MEMBER')"
    "  THEN pg_database_size(d.oid) END AS bytes FROM pg_database AS d WHERE d.datconnlimit <> -2 ORDER BY 1"
)
_LIBC = (
    "SELECT max(pg_collation_actual_version(oid)) FROM pg_collation WHERE collprovider = 'c' AND collcollate <> ALL(%s)"
)
_LIBC_OF_DATABASES = (
    "SELECT max(pg_database_collation_actual_version(oid)) FROM pg_database"
    " WHERE datlocprovider = 'c' AND datcollate <> ALL(%s)"
)
_DATABASE_VERSIONS_SINCE = 150000
_CLUSTER = (
    "SELECT (SELECT rolname FROM pg_roles WHERE oid = 10) AS bootstrap,"
    " (SELECT jsonb_object_agg(name, setting::int) FROM pg_settings WHERE name IN ('max_connections', 'max_worker_processes',"
    "  'max_wal_senders', 'max_prepared_transactions', 'max_locks_per_transaction')) AS standby"
)
_TABLESPACES = (
    "SELECT spcname AS name, pg_tablespace_location(oid) AS location FROM pg_tablespace"
    " WHERE coalesce(pg_tablespace_location(oid), '') <> ''"
)
_LOADED = (
    "SELECT DISTINCT probin FROM pg_proc WHERE probin IS NOT NULL UNION"
    " SELECT split_part(s, '=', 2) FROM pg_db_role_setting, unnest(setconfig) AS s"
    " WHERE s ~ '^(session|local)_preload_libraries='"
)
_EXTENSIONS = "SELECT extname FROM pg_extension"


def read_upstream(sessions: Sequence[Session]) -> Upstream:
    """Ask the cluster, in each of the databases that are distributed."""
    first = sessions[0]
    cluster = first.row(_CLUSTER)
    loaded = {row.probin for session in sessions for row in session.rows(_LOADED)}
    return Upstream(
        server=read_server(first),
        databases=[Database(*row) for row in first.rows(_DATABASES)],
        libc=_libc(first),
        tablespaces={row.name: row.location for row in first.rows(_TABLESPACES)},
        extensions=frozenset(row.extname for session in sessions for row in session.rows(_EXTENSIONS)),
        libraries=frozenset(name for value in loaded for name in libraries.split(value)),
        bootstrap=cluster.bootstrap,
        standby=cluster.standby,
    )


def _libc(session: Session) -> str | None:
    """Collations were imported when the cluster was made, and databases may have others since."""
    told: str | None = session.value(_LIBC, [list(_UNVERSIONED)])
    if told is None and session.version >= _DATABASE_VERSIONS_SINCE:
        told = session.value(_LIBC_OF_DATABASES, [list(_UNVERSIONED)])
    return told


class Replica(NamedTuple):
    """The cluster whose place would be taken."""

    server: Server
    extensions: frozenset[str]
    """that could be created"""
    library_directory: str
    slots: Sequence[str]
    subscriptions: Sequence[str]
    readers: int
    """sessions that replicate from here"""
    data: Sequence[str]
    """databases that hold tables of users"""


_REPLICA = (
    "SELECT (SELECT array_agg(name::text) FROM pg_available_extensions) AS extensions,"
    " (SELECT setting FROM pg_config WHERE name = 'PKGLIBDIR') AS library_directory,"
    " (SELECT array_agg(slot_name::text) FROM pg_replication_slots) AS slots,"
    " (SELECT array_agg(subname::text) FROM pg_subscription) AS subscriptions,"
    " (SELECT count(*)::int FROM pg_stat_replication) AS readers"
)
_USERS = (
    "SELECT EXISTS (SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid >= 16384"
    " AND c.relkind IN ('r', 'p', 'm', 'f') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
    " AND n.nspname <> 'pgml_distributed' AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.classid = 'pg_class'::regclass"
    "  AND d.objid = c.oid AND d.deptype = 'e'))"
)


def read_replica(session: Session) -> Replica:
    """Ask the replica, as its superuser. Extensions' own tables are no data of users."""
    row = session.row(_REPLICA)
    names = session.rows(
        "SELECT datname, datallowconn FROM pg_database WHERE datconnlimit <> -2 AND datname <> 'template0' ORDER BY 1"
    )
    holding = [name for name, open_ in names if not open_]
    for name in [name for name, open_ in names if open_]:
        with Session(session.endpoint.with_keywords(dbname=name)) as inside:
            if inside.value(_USERS):
                holding.append(name)
    return Replica(
        read_server(session),
        frozenset(row.extensions or ()),
        row.library_directory,
        row.slots or (),
        row.subscriptions or (),
        row.readers,
        holding,
    )


def problems(upstream: Upstream, replica: Replica, tablespaces: Mapping[str, str], replace: bool) -> list[str]:
    """What stands against putting a copy of the upstream in the replica's place, a sentence each."""
    return [
        *_of_servers(upstream.server, replica.server),
        *_of_orders(upstream, replica.server),
        *_of_files(upstream, replica),
        *_of_tablespaces(upstream.tablespaces, tablespaces),
        *_of_what_is_there(replica, replace),
    ]


def _of_servers(upstream: Server, replica: Server) -> list[str]:
    found = []
    if upstream.version // 10000 != replica.version // 10000:
        found.append(
            "The upstream is PostgreSQL {0} and the replica {1}: files are alike only within a major version.".format(
                version_text(upstream.version), version_text(replica.version)
            )
        )
    elif upstream.layout != replica.layout:
        differing = [name for name in upstream.layout if upstream.layout[name] != replica.layout.get(name)]
        found.append("The servers were built with another {0}.".format(enumerate_names(differing)))
    if _processor(upstream.platform) != _processor(replica.platform):
        found.append(
            "The upstream was built for {0} and the replica for {1}.".format(upstream.platform, replica.platform)
        )
    if upstream.in_recovery:
        found.append("The upstream is a standby: copy from its primary.")
    if replica.in_recovery:
        found.append("The replica is a standby, which follows its primary: promote it first.")
    return found


def _processor(platform: str) -> str:
    return platform.partition("-")[0]


def _of_orders(upstream: Upstream, replica: Server) -> list[str]:
    """What sorts text otherwise here would find nothing in the indexes that come along."""
    found = []
    here = c_library_version()
    sorted_by_it = any(each.provider == "c" and each.collate not in _UNVERSIONED for each in upstream.databases)
    if upstream.libc is None and sorted_by_it:
        found.append(
            "By which version of its C library the upstream sorts text can't be told, so that indexes might be wrong."
        )
    if upstream.libc is not None and upstream.libc != here:
        found.append(
            "The upstream's C library is of version {0} and this one's {1}: text is sorted otherwise, so that indexes would be "
            "wrong.".format(upstream.libc, here)
        )
    if upstream.server.icu != replica.icu:
        found.append(
            "The upstream's ICU sorts by version {0} of its rules and the replica's by {1}: indexes would be wrong.".format(
                upstream.server.icu or "none", replica.icu or "none"
            )
        )
    names = {name for each in upstream.databases for name in (each.collate, each.ctype) if name}
    missing = sorted(name for name in names if not _knows_locale(name))
    if missing:
        found.append(
            "This host lacks the locale {0} of the upstream's databases: install it.".format(enumerate_names(missing))
        )
    return found


def c_library_version() -> str | None:
    """As PostgreSQL tells it; None where it isn't glibc."""
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").rpartition(" ")[2] or None
    except (OSError, ValueError):
        return None


def _knows_locale(name: str) -> bool:
    before = locale.setlocale(locale.LC_COLLATE)
    try:
        locale.setlocale(locale.LC_COLLATE, name)
    except locale.Error:
        return False
    finally:
        locale.setlocale(locale.LC_COLLATE, before)
    return True


def _of_files(upstream: Upstream, replica: Replica) -> list[str]:
    found = []
    extensions = upstream.extensions - replica.extensions
    if extensions:
        found.append(
            "The replica's server lacks the files of {0}: install {1}.".format(
                _counted("extension", extensions), "it" if len(extensions) == 1 else "them"
            )
        )
    missing = [name for name in upstream.libraries if not _has_library(replica.library_directory, name)]
    if missing and not extensions:
        found.append("The replica's server lacks {0} of the upstream.".format(_counted("library", missing)))
    return found


def _has_library(directory: str, name: str) -> bool:
    """Whether a library that a catalog names is there, see https://www.postgresql.org/docs/current/xfunc-c.html."""
    path = name.replace("$libdir", directory) if "/" in name else os.path.join(directory, name)
    return os.path.exists(path) or os.path.exists(path + ".so")


def _of_tablespaces(theirs: Mapping[str, str], mapped: Mapping[str, str]) -> list[str]:
    found = []
    for name in sorted(theirs):
        here = mapped.get(name)
        if here is None:
            found.append(
                "Tablespace {0} of the upstream has no place here: name a directory for it.".format(quoted(name))
            )
        elif not os.path.isabs(here):
            found.append("The directory {0} for tablespace {1} is no absolute path.".format(here, quoted(name)))
        elif os.path.exists(here) and (not os.path.isdir(here) or os.listdir(here)):
            found.append("The directory {0} for tablespace {1} is not empty.".format(here, quoted(name)))
        elif not os.path.isdir(os.path.dirname(here)):
            found.append(
                "There is no {0} to make the directory of tablespace {1} in.".format(
                    os.path.dirname(here), quoted(name)
                )
            )
    for name in sorted(set(mapped) - set(theirs)):
        found.append("The upstream has no tablespace {0}.".format(quoted(name)))
    return found


def _of_what_is_there(replica: Replica, replace: bool) -> list[str]:
    found = []
    if replica.data and not replace:
        found.append(
            "The replica's cluster holds tables of users in {0}: allow it to be replaced, or remove them.".format(
                _counted("database", replica.data)
            )
        )
    if replica.subscriptions:
        found.append(
            "The replica has {0}, whose slots would stay on the upstream for ever: remove it first.".format(
                _counted("subscription", replica.subscriptions)
            )
        )
    if replica.slots:
        found.append("Others read from {0} of the replica.".format(_counted("slot", replica.slots)))
    elif replica.readers:
        found.append("A standby of the replica, or a backup, reads from it.")
    return found


def _counted(kind: str, names: Any) -> str:
    plural = kind[:-1] + "ies" if kind.endswith("y") else kind + "s"
    return "{0} {1}".format(kind if len(names) == 1 else plural, enumerate_names(map(quoted, names)))
