# SPDX-License-Identifier: GPL-3.0-or-later
"""The ways to bring a database's tables to another server."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import COLLECTIONS, Ansible
from tests.support.pair import Place

MODULES = "ansible_collections.postgresml.distributed.plugins.modules"
JOBS = 2


@dataclass
class Job:
    """A filled source, an empty target, and an empty directory."""

    source: Place
    target: Place
    directory: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    copied: float = 0.0
    """when all rows were there, for contestants that go on then, as time.perf_counter() has it"""
    rows: int = 0
    """how many rows were read, by contestants that only read"""
    stack: ExitStack = field(default_factory=ExitStack)
    """what ends with the job"""

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in self.started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its children too, when it failed
            process.wait()
        self.stack.close()

    def run(self, *command: str, **environment: str) -> None:
        """Run a program until it succeeds."""
        self._check(subprocess.run(command, cwd=self.directory, env=self._environment(environment), **self._kept()))

    def start(self, log: Path, *command: str) -> subprocess.Popen[bytes]:
        """Start a program that is ended with the job at the latest, and writes what it has to say into a file."""
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                cwd=self.directory,
                env=self._environment({}),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def module(self, name: str, options: dict[str, Any]) -> None:
        """Run a module as a process of its own, as Ansible does."""
        path = self.directory / "options.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": options}), encoding="utf-8")
        self.run(sys.executable, "-m", f"{MODULES}.{name}", str(path), PYTHONPATH=str(COLLECTIONS))

    def pipe(self, *commands: list[str]) -> None:
        """Run two programs, the second on what the first prints."""
        environment = self._environment({})
        with subprocess.Popen(commands[0], cwd=self.directory, env=environment, stdout=subprocess.PIPE) as first:
            second = subprocess.run(
                commands[1], cwd=self.directory, env=environment, stdin=first.stdout, **self._kept()
            )
        self._check(second)
        if first.returncode != 0:
            raise RuntimeError(f"{commands[0][0]} failed ({first.returncode})")

    def program(self, name: str, place: Place, *options: str) -> list[str]:
        """The command of a client program of PostgreSQL."""
        path = place.cluster.bin_dir / name
        return [str(path if path.exists() else name), f"--dbname={dsn(place)}", *options]

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "PG"))}
        passwords = self.directory / "passwords"
        if not passwords.exists():
            passwords.touch(mode=0o600)
            clusters = (self.source.cluster, self.target.cluster)
            passwords.write_text("".join(f"{c.host}:{c.port}:*:{c.user}:{c.password}\n" for c in clusters))
        path = f"{self.target.cluster.bin_dir}{os.pathsep}{environment['PATH']}"
        return {**environment, "PATH": path, "PGPASSFILE": str(passwords), **more}

    @staticmethod
    def _kept() -> dict[str, Any]:
        return {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "check": False}

    @staticmethod
    def _check(result: subprocess.CompletedProcess[str]) -> None:
        if result.returncode != 0:
            raise RuntimeError(f"{result.args[0]} failed ({result.returncode}):\n{result.stdout[-3000:]}")


def dsn(place: Place) -> str:
    """A connection string without the password."""
    cluster = place.cluster
    return f"host={cluster.host} port={cluster.port} user={cluster.user} dbname={place.database}"


def ours(job: Job) -> None:
    """Run the module with the options that it needs and no others."""
    source = job.source.cluster.source(job.source.database)
    job.module("pgml_dump_restore", {**job.target.login, "source": source, "all_tables": True})


def pipe(job: Job) -> None:
    restore = job.program("psql", job.target, "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1")
    job.pipe(job.program("pg_dump", job.source), restore)


def directory(job: Job, *options: str) -> None:
    archive = str(job.directory / "archive")
    job.run(*job.program("pg_dump", job.source, "-Fd", f"-j{JOBS}", f"--file={archive}", *options))
    job.run(*job.program("pg_restore", job.target, f"-j{JOBS}", "--exit-on-error", archive))


def directory_uncompressed(job: Job) -> None:
    directory(job, "-Z0")


def pgcopydb(job: Job, *options: str) -> None:
    job.run(*pgcopydb_clone(job, *options))


def pgcopydb_clone(job: Job, *options: str) -> list[str]:
    """The command with which pgcopydb copies a database."""
    return ["pgcopydb", "clone", *pgcopydb_ends(job), f"--table-jobs={JOBS}", f"--index-jobs={JOBS}", *options]


def pgcopydb_ends(job: Job) -> list[str]:
    """The options that name a source, a target and a directory."""
    return ["--source", dsn(job.source), "--target", dsn(job.target), "--dir", str(job.directory / "pgcopydb")]


def pgcopydb_binary(job: Job) -> None:
    pgcopydb(job, "--use-copy-binary")


def pgcopydb_split(job: Job) -> None:
    pgcopydb(job, "--use-copy-binary", "--split-tables-larger-than=200MB")


def foreign_schema(job: Job, **options: str) -> None:
    """Make the source's tables foreign ones of the target, in a schema far, by a server with these options beside the address."""
    cluster = job.source.cluster
    server = {"host": cluster.host, "port": cluster.port, "dbname": job.source.database, **options}
    options_of = ", ".join(f"{name} '{value}'" for name, value in server.items())
    job.target.sql(
        "CREATE EXTENSION postgres_fdw; CREATE SCHEMA far; CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw OPTIONS"
        f" ({options_of});"
        f" CREATE USER MAPPING FOR CURRENT_USER SERVER far OPTIONS (user '{cluster.user}', password '{cluster.password}');"
        " IMPORT FOREIGN SCHEMA public FROM SERVER far INTO far"
    )


def postgres_fdw(job: Job) -> None:
    """Have the target's server read the rows, between the halves of the definitions."""
    restore = job.program("psql", job.target, "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1")

    def section(name: str) -> None:
        job.pipe(job.program("pg_dump", job.source, "--schema-only", f"--section={name}"), restore)

    section("pre-data")
    foreign_schema(job, fetch_size="10000")
    for (table,) in job.target.sql("SELECT relname::text FROM pg_class WHERE relnamespace = 'far'::regnamespace"):
        job.target.sql(f'INSERT INTO public."{table}" SELECT * FROM far."{table}"')
    job.target.sql("SET client_min_messages = error; DROP SCHEMA far CASCADE; DROP EXTENSION postgres_fdw CASCADE")
    section("post-data")


def postgresql_db(job: Job) -> None:
    """Dump and restore by two tasks of a play."""

    def task(name: str, place: Place) -> dict[str, object]:
        login = {key: value for key, value in place.login.items() if key != "login_db"}
        options = {**login, "name": place.database, "state": name, "target": str(job.directory / "dump.sql")}
        return {"name": name, "community.postgresql.postgresql_db": options}

    Ansible(job.directory).run([task("dump", job.source), task("restore", job.target)])


def _nothing(job: Job) -> None:
    pass


def _no_packages(bin_dir: Path) -> list[str]:
    return []


@dataclass(frozen=True)
class Peer:
    """A contestant."""

    title: str
    run: Callable[[Job], None]
    """what is timed"""
    lacks: Callable[[Path], list[str]] = _no_packages
    """Debian's packages that it needs beside the server programs of this directory, and that aren't there"""
    prepare: Callable[[Job], None] = _nothing
    tidy: Callable[[Job], None] = _nothing


Peers = dict[str, Peer]


def pgcopydb_lacks(bin_dir: Path) -> list[str]:
    return [] if shutil.which("pgcopydb") else ["pgcopydb"]


PEERS: Peers = {
    "ours": Peer("**`pgml_dump_restore`**", ours),
    "pipe": Peer("`pg_dump \\| psql`", pipe),
    "directory": Peer(f"`pg_dump -Fd -j{JOBS}`, `pg_restore -j{JOBS}`", directory),
    "directory-z0": Peer(f"`pg_dump -Fd -j{JOBS} -Z0`, `pg_restore -j{JOBS}`", directory_uncompressed),
    "pgcopydb": Peer("`pgcopydb clone`", pgcopydb, pgcopydb_lacks),
    "pgcopydb-binary": Peer("`pgcopydb clone --use-copy-binary`", pgcopydb_binary, pgcopydb_lacks),
    "pgcopydb-split": Peer(
        "`pgcopydb clone --use-copy-binary --split-tables-larger-than=200MB`", pgcopydb_split, pgcopydb_lacks
    ),
    "fdw": Peer("`postgres_fdw`, `INSERT ... SELECT`", postgres_fdw),
    "postgresql_db": Peer("`community.postgresql.postgresql_db`, dump and restore", postgresql_db),
}


def pgcopydb_version() -> str:
    """Which pgcopydb is installed."""
    output = subprocess.run(["pgcopydb", "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"pgcopydb version (\S+)", output)
    return match[1] if match else "unknown"
