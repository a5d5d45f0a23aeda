# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections to one server: timeouts, version, identity, and errors as sentences."""

from __future__ import annotations

import contextlib
import re
from typing import Any, Iterator, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import (
    Refused,
    ServerRefused,
    TooOld,
    TurnedAway,
    Unreachable,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import KEEPALIVES, Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    SECRET_MARK,
    Change,
    compose,
    literal,
)

try:
    import psycopg2
    from psycopg2 import errorcodes
    from psycopg2.extras import NamedTupleCursor
except ImportError:  # task.py reports it
    pass

OLDEST_VERSION = 130000
LOCK_TIMEOUT_SECONDS = 3
"""How long a statement may stand in the queue for a lock, since everything behind it stands there too."""
CONNECT_TIMEOUT_SECONDS = 10

_SETTINGS = {
    "application_name": "postgresml.distributed",
    "client_encoding": "UTF8",
    "search_path": "pg_catalog, public, pg_temp",
    "lock_timeout": "{0} s".format(LOCK_TIMEOUT_SECONDS),
    "datestyle": "ISO",
    "intervalstyle": "postgres",
}

_SECRET_SETTING = "pgml_distributed.secret_{0}"
_CONNECTION_FAILED = "08"
"""The class of PostgreSQL's codes for connections of its own, see
https://www.postgresql.org/docs/current/errcodes-appendix.html."""
_SERVERS_WORD = re.compile(r"\w+:  ")
"""How libpq passes on what a server says: the severity, in the server's own language, a colon and two spaces."""
_LOGGERS = ("log_min_messages", "pg_stat_statements.track", "pgaudit.log")


def version_text(version: int) -> str:
    """C(server_version_num) for people: 150018 is 15.18."""
    return "{0}.{1}".format(version // 10000, version % 10000)


class Session:
    """One connection in autocommit mode. Errors of the server become sentences without secrets."""

    def __init__(self, endpoint: Endpoint, secrets: Sequence[str] = (), **settings: str) -> None:
        """:param secrets: those of the Changes that run() is to carry out here"""
        self.endpoint = endpoint
        self._lock_timeout = settings.get("lock_timeout", _SETTINGS["lock_timeout"])
        self._secrets = {value: _SECRET_SETTING.format(number) for number, value in enumerate(dict.fromkeys(secrets))}
        hidden = {name: value for value, name in self._secrets.items()}
        self._connection = _connect(endpoint, {**_SETTINGS, **settings, **hidden})
        self._connection.autocommit = True
        self.version: int = self._connection.server_version
        if self.version < OLDEST_VERSION:
            self.close()
            raise TooOld(
                "The server of {0} is PostgreSQL {1}; this collection needs {2} or later.".format(
                    endpoint, version_text(self.version), OLDEST_VERSION // 10000
                )
            )

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    @property
    def closed(self) -> bool:
        """Whether the connection was closed, or was found to be lost."""
        return bool(self._connection.closed)

    def cancel(self) -> None:
        """Have the server end the statement that another thread runs here."""
        self._connection.cancel()

    def rows(self, query: Any, parameters: Any = None) -> list[Any]:
        """The rows of a query as named tuples."""
        with self._errors(), self._connection.cursor(cursor_factory=NamedTupleCursor) as cursor:
            cursor.execute(query, parameters)
            return cursor.fetchall() if cursor.description else []

    def row(self, query: Any, parameters: Any = None) -> Any:
        """The only row of a query, or None."""
        rows = self.rows(query, parameters)
        return rows[0] if rows else None

    def value(self, query: Any, parameters: Any = None) -> Any:
        """The first column of the first row, or None."""
        row = self.row(query, parameters)
        return row[0] if row else None

    def execute(self, statement: Any, parameters: Any = None) -> int:
        """Run a statement and return how many rows it was about; -1 when it is about none."""
        with self._errors(), self._connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return int(cursor.rowcount)

    def copy_out(self, statement: Any, sink: Any) -> int:
        """Run a C(COPY ... TO STDOUT) into a binary file and return the server's count of rows."""
        with self._errors(), self._connection.cursor() as cursor:
            cursor.copy_expert(statement, sink)
            return int(cursor.rowcount)

    def copy_in(self, statement: Any, source: Any, block: int) -> int:
        """Run a C(COPY ... FROM STDIN) from a binary file, read by *block* bytes, and return the server's count of rows."""
        with self._errors(), self._connection.cursor() as cursor:
            cursor.copy_expert(statement, source, block)
            return int(cursor.rowcount)

    def shorten_lock_timeout(self, milliseconds: int) -> None:
        """Wait no longer than that for a lock until the transaction ends."""
        self._lock_timeout = "{0} ms".format(milliseconds)
        self.execute("SET LOCAL lock_timeout = {0}".format(milliseconds))

    def without_timeouts(self) -> None:
        """Let what runs here take its time, and have the server notice soon when this side is gone."""
        self.execute("SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0")
        if self.version >= 140000:
            self.execute("SET client_connection_check_interval = '1 s'; SET idle_session_timeout = 0")
        if self.version >= 170000:
            self.execute("SET transaction_timeout = 0")

    @contextlib.contextmanager
    def transaction(self, commit: bool = True) -> Iterator[None]:
        """BEGIN, and COMMIT unless the block raises or *commit* is false."""
        self.execute("BEGIN")
        try:
            yield
        except BaseException:
            if not self._connection.closed:
                self._connection.cursor().execute("ROLLBACK")
            raise
        self.execute("COMMIT" if commit else "ROLLBACK")

    @property
    def path_for_users(self) -> str:
        """search_path for what users write: with schema C(public), if nobody but its owner and superusers can put functions and
        operators there, which would run with the rights of this session."""
        closed = self.value(
            "SELECT NOT EXISTS (SELECT FROM aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) AS a"
            " LEFT JOIN pg_roles AS r ON r.oid = a.grantee WHERE a.privilege_type = 'CREATE' AND a.grantee <> n.nspowner"
            " AND r.rolsuper IS NOT TRUE) FROM pg_namespace AS n WHERE n.nspname = 'public'"
        )
        return "pg_catalog, public" if closed else "pg_catalog"

    def tried(self, statement: Any) -> bool:
        """Run *statement* inside a transaction, unless the server refuses it."""
        self.execute("SAVEPOINT tried")
        try:
            self.execute(statement)
        except ServerRefused:
            self.execute("ROLLBACK TO SAVEPOINT tried")
            return False
        finally:
            self.execute("RELEASE SAVEPOINT tried")
        return True

    @contextlib.contextmanager
    def undone(self) -> Iterator[None]:
        """A part of a transaction that leaves nothing behind. After an error the transaction has to be given up."""
        self.execute("SAVEPOINT undone")
        yield
        self.execute("ROLLBACK TO SAVEPOINT undone; RELEASE SAVEPOINT undone")

    def apply(self, changes: Sequence[Change]) -> None:
        """Run *changes* in their order; neighbours that may share a transaction share one."""
        group: list[Change] = []
        for change in changes:
            if change.transactional and change.secret is None:
                group.append(change)
                continue
            self._apply_together(group)
            group = []
            if change.secret is None:
                self.execute(change.statement)
            else:
                with Session(self.endpoint, [change.secret]) as session:
                    session.run(change)
        self._apply_together(group)

    def _apply_together(self, changes: Sequence[Change]) -> None:
        if changes:
            with self.transaction():
                for change in changes:
                    self.execute(change.statement)

    def run(self, change: Change) -> None:
        """Carry out *change*, whose secret is one of the session's.

        A statement's text reaches the server's log (log_statement, log_min_error_statement), pg_stat_activity and
        pg_stat_statements. So secrets travel as custom settings in the start-up packet, and the server's format() puts them
        into the statement. The error is raised anew, because its context would quote the statement. A superuser's session also
        keeps warnings, pg_stat_statements.track = all and pgaudit from it.
        """
        if change.secret is None:
            self.execute(change.statement)
            return
        template = self.text_of(change.statement).replace("%", "%%").replace(SECRET_MARK, "%L")
        body = compose(
            "DECLARE problem text; detail text; hint text; names text[] := {loggers}; was text[] := array("
            "SELECT current_setting(name, true) FROM unnest(names) WITH ORDINALITY AS n(name, number) ORDER BY number); BEGIN "
            "BEGIN SET LOCAL log_min_messages = panic; SET LOCAL pg_stat_statements.track = 'none';"
            " SET LOCAL pgaudit.log = 'none'; EXCEPTION WHEN insufficient_privilege THEN NULL; END; "
            "EXECUTE format({pattern}, current_setting({setting})); "
            "FOR number IN 1 .. cardinality(names) LOOP IF was[number] IS NOT NULL THEN"
            " BEGIN PERFORM set_config(names[number], was[number], true);"
            " EXCEPTION WHEN insufficient_privilege THEN NULL; END; END IF; END LOOP; "
            "EXCEPTION WHEN OTHERS THEN GET STACKED DIAGNOSTICS problem = MESSAGE_TEXT, "
            "detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT; "
            "RAISE EXCEPTION USING ERRCODE = SQLSTATE, MESSAGE = problem, DETAIL = detail, HINT = hint; END",
            loggers=literal(list(_LOGGERS)),
            pattern=literal(template),
            setting=literal(self._secrets[change.secret]),
        )
        self.execute(compose("DO {body}", body=literal(self.text_of(body))))

    def refuse_more_than_queries(self, queries: Sequence[Any]) -> None:
        """Have the server refuse whatever is not one query each. A cursor takes one and nothing more, and opening it runs
        nothing: so no text that somebody wrote into a query can end in a second statement."""
        body = compose(
            "DECLARE query text; looked refcursor; BEGIN FOREACH query IN ARRAY {queries}::text[] LOOP"
            " OPEN looked FOR EXECUTE query; CLOSE looked; END LOOP; END",
            queries=literal([self.text_of(query) for query in queries]),
        )
        self.execute(compose("DO {body}", body=literal(self.text_of(body))))

    def text_of(self, statement: Any) -> str:
        """The SQL text of a composed statement."""
        return str(statement.as_string(self._connection))

    @property
    def system_identifier(self) -> str:
        """What tells this cluster from every other, as text because JSON numbers can't hold it."""
        return str(self.value("SELECT system_identifier FROM pg_control_system()"))

    def is_same_database(self, other: Session) -> bool:
        """Whether both sessions are in one database of one running server, whatever the addresses say.

        A restored backup and a cloned machine have the system identifier of their original, but not its start time.
        """
        query = "SELECT oid FROM pg_database WHERE datname = current_database()"
        return self.is_same_server(other) and bool(self.value(query) == other.value(query))

    def is_same_server(self, other: Session) -> bool:
        """Whether both sessions are in one running server."""
        query = "SELECT system_identifier, pg_postmaster_start_time() FROM pg_control_system()"
        return bool(self.row(query) == other.row(query))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except psycopg2.Error as error:
            raise self._explained(error) from None

    def _explained(self, error: Any) -> ServerRefused | Unreachable:
        code = error.pgcode
        detail = error.diag.message_detail
        if detail and (code or "").startswith(_CONNECTION_FAILED):
            detail = detail.splitlines()[0]  # the others ask whether a server runs there
        message = " ".join(
            part for part in (_sentence(error.diag.message_primary or str(error)), _sentence(detail)) if part
        )
        if self._connection.closed:
            return Unreachable(
                "The connection to {0} was lost: {1}".format(self.endpoint, _sentence(message.splitlines()[0])),
                option=self.endpoint.option,
            )
        if code == errorcodes.LOCK_NOT_AVAILABLE and "remote SQL command" not in (error.diag.context or ""):
            message = "No lock within {0}{1}. Try again when that has ended.".format(
                self._lock_timeout, blockers(self.endpoint)
            )
        return ServerRefused("{0} said: {1}".format(self.endpoint.title, message), sqlstate=code)


def blockers(endpoint: Endpoint) -> str:
    """The oldest transactions that hold locks on tables of a database, those first that hold the strongest, for a sentence."""
    with Session(endpoint) as session:
        rows = session.rows(
            "SELECT a.pid, a.usename, a.state, date_trunc('second', clock_timestamp() - a.xact_start)::text AS age,"
            " string_agg(DISTINCT l.relation::regclass::text, ', ') AS relations"
            " FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)"
            " WHERE l.granted AND l.locktype = 'relation' AND a.pid <> pg_backend_pid()"
            " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            " AND l.relation >= 16384"
            " GROUP BY a.pid, a.usename, a.state, a.xact_start"
            " ORDER BY bool_or(l.mode = 'AccessExclusiveLock') DESC, a.xact_start LIMIT 3"
        )
    return "".join(
        ': process {0.pid} of user "{0.usename}" ({0.state} for {0.age}) holds {0.relations}'.format(row)
        for row in rows
    )


def database_exists(endpoint: Endpoint) -> bool:
    """Whether the server of *endpoint* has its database, asked in the maintenance database."""
    with Session(endpoint.with_keywords(dbname="postgres")) as session:
        return bool(session.value("SELECT 1 FROM pg_database WHERE datname = %s", [endpoint.keywords.get("dbname")]))


def _connect(endpoint: Endpoint, settings: dict[str, str]) -> Any:
    options = " ".join("-c {0}={1}".format(name, _escaped(value)) for name, value in settings.items())
    keywords: dict[str, Any] = {
        "connect_timeout": str(CONNECT_TIMEOUT_SECONDS),
        **KEEPALIVES,
        **endpoint.keywords,
        "options": " ".join(filter(None, [endpoint.keywords.get("options"), options])),
    }
    try:
        return psycopg2.connect(**keywords)
    except psycopg2.ProgrammingError as error:
        raise Refused(
            "The {0} options make no connection string: {1}".format(endpoint.option, _sentence(str(error)))
        ) from None
    except psycopg2.OperationalError as error:
        kind = TurnedAway if _SERVERS_WORD.search(str(error)) else Unreachable
        said = "Can't connect to {0}: {1}".format(endpoint, _sentence(_reason(str(error))))
        if endpoint.option:
            said += " Check the {0} options.".format("login_*" if endpoint.option == "login" else endpoint.option)
        raise kind(said, option=endpoint.option) from None


def _escaped(value: str) -> str:
    """A value for the start-up packet's options, in which a backslash protects white space and backslashes."""
    return re.sub(r"([\s\\])", r"\\\1", value)


def _reason(text: str) -> str:
    """The last thing that libpq says; before it come the addresses that it tried."""
    line = [part for part in text.strip().splitlines() if part.strip()][0]
    return line.split("FATAL:")[-1].strip() if "FATAL:" in line else line.strip()


def _sentence(text: str | None) -> str:
    text = (text or "").strip()
    return text if not text or text[-1] in ".!?" else text + "."
