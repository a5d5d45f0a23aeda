# SPDX-License-Identifier: GPL-3.0-or-later
"""Throwaway PostgreSQL servers for the integration tests, on Linux."""

from __future__ import annotations

import ctypes
import functools
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psycopg2
from psycopg2.sql import SQL, Composable, Identifier

DEFAULTS = {
    "listen_addresses": "127.0.0.1",
    "wal_level": "logical",
    "fsync": "off",
    "logging_collector": "off",
    "log_statement": "all",
    # Keeps shared memory in the data directory, where a killed server leaves nothing behind.
    "dynamic_shared_memory_type": "mmap",
}
START_ATTEMPTS = 5
MEMORY = "/dev/shm"
ROOM = 4 << 30


class _Status(NamedTuple):
    name: str
    parent: int


@functools.cache
def server_account() -> dict[str, Any]:
    """The subprocess arguments that run a server program: another OS user when this one is root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise RuntimeError("PostgreSQL does not run as root, and there is no user postgres or nobody to run it")


def server_can_enter(directory: Path) -> bool:
    """Whether the server's OS user can list and traverse the directory."""
    test = ["test", "-r", str(directory), "-a", "-x", str(directory)]
    return subprocess.run(test, cwd="/", check=False, **server_account()).returncode == 0


def server_major(bin_dir: Path) -> int:
    """The major version of the server programs in a directory."""
    output = subprocess.run([bin_dir / "postgres", "--version"], check=True, capture_output=True, text=True).stdout
    match = re.search(r"\(PostgreSQL\) (\d+)", output)
    if match is None:
        raise RuntimeError(f"cannot tell the version of {bin_dir / 'postgres'}: {output!r}")
    return int(match[1])


def make_directory(on_disk: bool = False) -> Path:
    """Make a directory for a cluster, owned by the server's OS user: in memory if there is room, unless it has to be on disk.

    A test makes two databases, which are a thousand files, and memory has them in a tenth of the time.  The directories pytest
    makes do not serve: root's are closed to everybody else, and their paths can be too long for a socket.
    """
    roomy = not on_disk and os.path.ismount(MEMORY) and shutil.disk_usage(MEMORY).free > ROOM
    directory = Path(tempfile.mkdtemp(prefix="pgml-", dir=MEMORY if roomy else None))
    _give(directory)
    return directory


class Cluster:
    """A PostgreSQL server on a free loopback port.

    As a context manager it creates the cluster, starts it and destroys it in the end.  Changes to
    ``settings`` and ``environment`` are taken up by the next start.
    """

    host = "127.0.0.1"
    user = "postgres"

    def __init__(
        self,
        directory: Path,
        bin_dir: Path,
        settings: dict[str, str] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.directory = Path(directory).absolute()
        self.bin_dir = Path(bin_dir)
        self.settings = {**DEFAULTS, **(settings or {})}
        self.environment = environment or {}
        self.data = self.directory / "data"
        self.password = secrets.token_hex(16)
        self.port = 0
        self._initial_configuration = ""
        self._started_once = False

    def __repr__(self) -> str:
        return f"<Cluster {self.directory} port {self.port}>"

    def __enter__(self) -> Cluster:
        try:
            if not self.data.exists():
                self.create()
            self.start()
        except BaseException:
            self.destroy()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.destroy()

    @functools.cached_property
    def major(self) -> int:
        """The server's major version."""
        return server_major(self.bin_dir)

    @property
    def running(self) -> bool:
        """Whether the postmaster is alive."""
        status = _status(self._postmaster())
        return status is not None and status.name == "postgres"

    def create(self) -> None:
        """Make the cluster's files and choose its port."""
        if not self.directory.exists():
            self.directory.mkdir(mode=0o700)
            _give(self.directory)
        if not server_can_enter(self.directory):
            raise RuntimeError(f"the server's OS user cannot enter {self.directory}: use make_directory()")
        password_file = self.directory / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(self.password)
        _give(password_file)
        try:
            self._initdb(password_file)
        finally:
            password_file.unlink()
        self._initial_configuration = (self.data / "postgresql.conf").read_text(encoding="utf-8")
        self.port = free_port()

    def clone(self) -> Cluster:
        """A server with a copy of this one's files, as a restored backup or a copied machine is; neither one runs."""
        self.stop()
        other = Cluster(make_directory(), self.bin_dir, self.settings, self.environment)
        other.password, other.port = self.password, free_port()
        other._initial_configuration = self._initial_configuration
        subprocess.run(["cp", "-a", self.data, other.data], check=True)
        return other

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        if self.running:
            return
        for attempt in range(1, START_ATTEMPTS + 1):
            self._configure()
            seen = len(self.log())
            result = self._pg_ctl("start", "-l", self.directory / "server.log")
            if result.returncode == 0:
                self._started_once = True
                return
            if self._started_once or attempt == START_ATTEMPTS or "could not bind" not in self.log()[seen:]:
                raise RuntimeError(self._failure("pg_ctl start", result))
            # Somebody took the port since it was chosen, and nobody knows this one yet.
            self.port = free_port()

    def stop(self, mode: str = "fast") -> None:
        """Stop the server, if it runs, and wait until it has stopped."""
        if not self.running:
            return
        result = self._pg_ctl("stop", "-m", mode)
        if result.returncode != 0:
            raise RuntimeError(self._failure("pg_ctl stop", result))

    def restart(self) -> None:
        """Stop the server and start it on the same port."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """Kill the server without warning, as a crash of its machine would, and wait until it is gone.

        What could hold up the next start, and would not survive such a crash, is removed: lock
        files and shared memory.
        """
        if not self.running:
            return
        postmaster = self._postmaster()
        shared_memory = self._shared_memory_id()
        _signal(postmaster, signal.SIGSTOP)  # it forks no more
        processes = [postmaster, *_children(postmaster)]
        for process in processes:
            _signal(process, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while remaining := [process for process in processes if _status(process) is not None]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the processes {remaining} of {self} survive their killing")
            time.sleep(0.02)
        for lock in (self.data / "postmaster.pid", *self.directory.glob(".s.PGSQL.*")):
            lock.unlink(missing_ok=True)
        if shared_memory is not None:
            ctypes.CDLL(None).shmctl(shared_memory, 0, None)  # 0 is IPC_RMID

    def destroy(self) -> None:
        """Stop the server in any way and remove its directory."""
        try:
            self.stop("immediate")
        except RuntimeError:
            self.kill()
        if self.directory.exists():
            shutil.rmtree(self.directory)

    def connect(
        self, dbname: str = "postgres", user: str | None = None, password: str | None = None, autocommit: bool = True
    ) -> psycopg2.extensions.connection:
        """Connect to a database, as the superuser unless told otherwise."""
        connection = psycopg2.connect(
            host=self.host,
            port=self.port,
            dbname=dbname,
            user=self.user if user is None else user,
            password=self.password if password is None else password,
            connect_timeout=10,
        )
        connection.autocommit = autocommit
        return connection

    def sql(
        self,
        statement: str | Composable,
        params: Sequence[Any] | dict[str, Any] | None = None,
        dbname: str = "postgres",
    ) -> list[tuple[Any, ...]]:
        """Run a statement as the superuser and return its rows, if it yields any."""
        with closing(self.connect(dbname)) as connection, connection.cursor() as cursor:
            cursor.execute(statement, params)
            return cursor.fetchall() if cursor.description else []

    def execute_script(self, text: str, dbname: str = "postgres") -> None:
        """Run several statements as the superuser, in one transaction unless they say otherwise."""
        self.sql(text, dbname=dbname)

    def create_database(self, name: str) -> None:
        """Create a database."""
        self.sql(SQL("CREATE DATABASE {}").format(Identifier(name)))

    def drop_database(self, name: str) -> None:
        """Drop a database, if it exists, together with the connections to it."""
        self.sql(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(name)))

    def log(self) -> str:
        """Everything the server has logged."""
        try:
            return (self.directory / "server.log").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def login(self, dbname: str = "postgres") -> dict[str, Any]:
        """The module parameters that log in as the superuser."""
        return {
            "login_host": self.host,
            "login_port": self.port,
            "login_user": self.user,
            "login_password": self.password,
            "login_db": dbname,
        }

    def source(self, dbname: str, user: str | None = None, password: str | None = None) -> dict[str, Any]:
        """The description of a database for another server to connect to."""
        return {
            "host": self.host,
            "port": self.port,
            "db": dbname,
            "user": self.user if user is None else user,
            "password": self.password if password is None else password,
        }

    def psql(self, path: Path, dbname: str = "postgres", **variables: object) -> str:
        """Run a script with psql as the superuser, stopping at the first error, and return what it prints."""
        command = [_psql(), "-X", "-q", "-A", "-t", "-w", "-v", "ON_ERROR_STOP=1"]
        for name, value in variables.items():
            command += ["-v", f"{name}={value}"]
        command += ["-h", self.host, "-p", str(self.port), "-U", self.user, "-d", dbname, "-f", str(path)]
        environment = {**_environment(), "PGPASSWORD": self.password, "PGCLIENTENCODING": "UTF8"}
        result = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)
        if result.returncode != 0:
            raise RuntimeError(f"psql -f {path} failed:\n{result.stderr}")
        return result.stdout

    def _initdb(self, password_file: Path) -> None:
        options = ["--auth=scram-sha-256", f"--username={self.user}", f"--pwfile={password_file}", "--encoding=UTF8"]
        for locale in ("C.UTF-8", "C"):
            result = self._run("initdb", "-D", self.data, "--no-sync", f"--locale={locale}", *options)
            if result.returncode == 0:
                return
        raise RuntimeError(self._failure("initdb", result))

    def _configure(self) -> None:
        settings = {"port": self.port, "unix_socket_directories": self.directory, **self.settings}
        lines = [f"{name} = {_quote(value)}\n" for name, value in settings.items()]
        (self.data / "postgresql.conf").write_text(self._initial_configuration + "".join(lines), encoding="utf-8")

    def _pg_ctl(self, action: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return self._run("pg_ctl", action, "-D", self.data, "-w", "-t", "60", *arguments)

    def _run(self, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.bin_dir / program, *arguments],
            cwd=self.directory,
            env={**_environment(), "LC_ALL": "C", **self.environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            **server_account(),
        )

    def _failure(self, what: str, result: subprocess.CompletedProcess[str]) -> str:
        tail = "\n".join(self.log().splitlines()[-30:])
        return f"{what} failed ({result.returncode}):\n{result.stdout}{result.stderr}\n{tail}".rstrip()

    def _pid_file(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []

    def _postmaster(self) -> int:
        """The postmaster's process id, 0 if it has none."""
        lines = self._pid_file()
        return int(lines[0]) if lines else 0

    def _shared_memory_id(self) -> int | None:
        fields = " ".join(self._pid_file()[6:7]).split()  # the seventh line holds the key and the identifier
        return int(fields[1]) if fields else None


def _give(path: Path) -> None:
    if account := server_account():
        os.chown(path, account["user"], account["group"])


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def _quote(value: object) -> str:
    escaped = str(value).replace("\\", "\\\\").replace("'", "''")
    return f"'{escaped}'"


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with closing(socket.socket()) as probe:
        probe.bind((Cluster.host, 0))
        return int(probe.getsockname()[1])


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _status(pid: int) -> _Status | None:
    """What the kernel says about a process, None if it is gone, be it as a zombie nobody has reaped."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    start, _, end = text.rpartition(")")
    state, parent = end.split()[:2]
    return None if state in "ZX" else _Status(start.partition("(")[2], int(parent))


def _children(parent: int) -> list[int]:
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if (status := _status(pid)) and status.parent == parent]


def kill_tree(pid: int) -> None:
    """Kill a process and all that it has started, but not what has made itself independent."""
    _signal(pid, signal.SIGSTOP)  # it forks no more
    for child in _children(pid):
        kill_tree(child)
    _signal(pid, signal.SIGKILL)


@functools.cache
def _psql() -> str:
    if found := shutil.which("psql"):
        return found
    installed = Path("/usr/lib/postgresql").glob("*/bin/psql")
    newest = max(installed, key=lambda program: float(program.parts[-3]), default=None)
    if newest is None:
        raise RuntimeError("there is no psql on PATH or in /usr/lib/postgresql/*/bin")
    return str(newest)
