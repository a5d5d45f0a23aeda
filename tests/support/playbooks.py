# SPDX-License-Identifier: GPL-3.0-or-later
"""Playbooks run as a user runs them, and what they leave behind on the servers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import yaml

from tests.support import majors
from tests.support.cluster import Cluster, make_directory
from tests.support.pair import wait_for

REPOSITORY = majors.REPOSITORY
PASSWORD = "the distributor's own"
SHOP_TABLES = [
    "public.users",
    "public.categories",
    "public.products",
    "public.orders",
    'public."Order Lines"',
    "public.payments",
    "public.page_views",
    "warehouse.stock",
]
_TASK = re.compile(r"^TASK \[(.*)\] \**$")
_CHANGED = re.compile(r"^changed: \[([^]]+)\](.*)$")
_FATAL = re.compile(r"^(?:fatal|failed): \[([^]]+)\].*?=> (\{.*\})$")
_RECAP = re.compile(r"^(\S+)\s+: (ok=.*)$")


class Unsafe(str):
    """A string of an inventory that is no template, whatever it looks like."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(Unsafe, lambda dumper, text: dumper.represent_scalar("!unsafe", str(text), style='"'))


@dataclass(frozen=True)
class Run:
    """A finished ansible-playbook."""

    returncode: int
    output: str

    @property
    def ok(self) -> bool:
        return self.returncode == 0

    @property
    def changed(self) -> Counter[tuple[str, str, str]]:
        """How often each (host, task, item) was reported as changed."""
        found: Counter[tuple[str, str, str]] = Counter()
        task = ""
        for line in self.output.splitlines():
            if match := _TASK.match(line):
                task = match[1]
            elif match := _CHANGED.match(line):
                found[match[1], task, match[2].partition(" => {")[0]] += 1
        return found

    @property
    def recap(self) -> dict[str, dict[str, int]]:
        """The counters of the last lines, by host."""
        lines = self.output.rpartition("PLAY RECAP")[2].splitlines()
        matches = [match for line in lines if (match := _RECAP.match(line))]
        return {match[1]: {k: int(v) for k, v in (x.split("=") for x in match[2].split())} for match in matches}

    @property
    def failures(self) -> list[tuple[str, str]]:
        """(host, message) of every failed task."""
        found = []
        for line in self.output.splitlines():
            if match := _FATAL.match(line):
                with suppress(ValueError):
                    result = json.loads(match[2])
                    found.append((match[1], str(result.get("msg", ""))))
        return found

    @property
    def message(self) -> str:
        """The messages of the failed tasks."""
        return "\n".join(message for host, message in self.failures)


def cluster(**settings: str) -> Cluster:
    """A server of the default major version with room for many subscriptions; it is not started."""
    programs = majors.installed() or majors.available()
    return cluster_of(programs[max(programs)], **settings)


def cluster_of(bin_dir: Path, **settings: str) -> Cluster:
    """A server of these programs; it is not started."""
    quick = {"wal_retrieve_retry_interval": "300ms", "shared_buffers": "16MB"}
    return Cluster(make_directory(), bin_dir, {**quick, **settings})


def host(server: Cluster, **variables: Any) -> dict[str, Any]:
    """The variables of a host of the inventory that administers *server* from here."""
    return {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "pgml_login_host": server.host,
        "pgml_login_port": server.port,
        "pgml_login_password": Unsafe(server.password),
        "pgml_endpoint_host": server.host,
        "pgml_endpoint_port": server.port,
        "pgml_become_user": "",
        **variables,
    }


def login(server: Cluster, **more: Any) -> dict[str, Any]:
    """What a role's login variable takes, to log in as the superuser."""
    return {"login_host": server.host, "login_port": server.port, "login_password": Unsafe(server.password), **more}


def inventory(
    primary: Cluster, replicas: Mapping[str, Cluster], distributions: Sequence[Any], **variables: Any
) -> dict[str, Any]:
    """An inventory with host C(prod) and *replicas*; None leaves a variable out."""
    common = {
        "pgml_distributor_password": Unsafe(PASSWORD),
        "pgml_primary_restart": True,
        "pgml_distributions": distributions,
        **variables,
    }
    children = {
        "pgml_primary": {"hosts": {"prod": host(primary)}},
        "pgml_replicas": {"hosts": {name: host(server) for name, server in replicas.items()}},
    }
    return {"all": {"children": children, "vars": {k: v for k, v in common.items() if v is not None}}}


def program(name: str) -> str:
    """One of Ansible's own, of the environment that the tests run in."""
    return str(Path(sys.executable).with_name(name))


class Ansible:
    """Runs playbooks; all that Ansible writes, it writes below *directory*."""

    cwd = REPOSITORY

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, name: str, content: Any) -> Path:
        """Write YAML that only this user can read."""
        path = self.directory / name
        path.touch(mode=0o600)
        path.write_text(yaml.dump(content, Dumper=_Dumper, allow_unicode=True, sort_keys=False), encoding="utf-8")
        return path

    def command(self, playbook: str | Path, content: Any, *arguments: str) -> list[str]:
        hosts = self.write("inventory.yml", content)
        return [program("ansible-playbook"), "-i", str(hosts), str(REPOSITORY / "playbooks" / playbook), *arguments]

    def environment(self) -> dict[str, str]:
        """This process's environment without settings of Ansible and libpq, and with ours."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "ANSIBLE_"))}
        return {
            **inherited,
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(REPOSITORY / ".ansible" / "collections"),
            "ANSIBLE_HOME": str(self.directory / "ansible"),
            "ANSIBLE_REMOTE_TEMP": str(self.directory / "ansible" / "remote"),
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_PIPELINING": "1",
        }

    def start(self, playbook: str | Path, content: Any, *arguments: str) -> subprocess.Popen[str]:
        """Start a playbook over an inventory; C(finish) waits for it."""
        return subprocess.Popen(
            self.command(playbook, content, *arguments),
            cwd=self.cwd,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )

    def run(self, playbook: str | Path, content: Any, *arguments: str) -> Run:
        """Run a playbook over an inventory; a traceback is never an answer."""
        return finish(self.start(playbook, content, *arguments))

    def ok(self, playbook: str | Path, content: Any, *arguments: str) -> Run:
        """Run a playbook that succeeds."""
        run = self.run(playbook, content, *arguments)
        assert run.ok, run.output
        return run


def finish(process: subprocess.Popen[str], seconds: float = 480) -> Run:
    """Wait for a started playbook."""
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        process.kill()
    assert "Traceback (most recent call last)" not in output, output
    return Run(process.returncode, output)


def _program(server: Cluster, name: str) -> Path:
    own = server.bin_dir / name
    found = own if own.exists() else Path(shutil.which(name) or "")
    assert found.is_file(), f"there is no {name} for the tests"
    return found


def _client(server: Cluster, name: str, *arguments: str, dbname: str = "postgres") -> str:
    connection = {"PGHOST": server.host, "PGPORT": str(server.port), "PGUSER": server.user, "PGDATABASE": dbname}
    environment = {**os.environ, **connection, "PGPASSWORD": server.password, "PGCLIENTENCODING": "UTF8"}
    output = subprocess.run(
        [_program(server, name), "--no-password", *arguments],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    ).stdout
    # Newer clients frame their output with a key of their own choice.
    return re.sub(r"^\\(un)?restrict \w+$", "", output, flags=re.MULTILINE)


def databases(server: Cluster) -> list[str]:
    query = "SELECT datname FROM pg_database WHERE datallowconn AND datname <> 'template1' ORDER BY 1"
    return [name for (name,) in server.sql(query)]


def load_shop(server: Cluster, dbname: str = "shop", scale: float = 0.01) -> None:
    """Create a database with the sample shop."""
    server.create_database(dbname)
    server.psql(REPOSITORY / "playbooks" / "files" / "shop.sql", dbname, scale=scale)


def count(server: Cluster, dbname: str, table: str) -> int:
    return int(server.sql(f"SELECT count(*) FROM {table}", dbname=dbname)[0][0])


def schema_of(server: Cluster, dbname: str) -> str:
    """pg_dump --schema-only of a database."""
    return _client(server, "pg_dump", "--schema-only", dbname=dbname)


def snapshot(server: Cluster) -> dict[str, Any]:
    """Everything but the tables' rows: definitions, roles with their verifiers, slots, files."""
    slots = server.sql("SELECT slot_name, plugin, database FROM pg_replication_slots ORDER BY 1")
    status = (server.data / "pg_hba.conf").stat()
    return {
        "globals": _client(server, "pg_dumpall", "--globals-only"),
        "schemas": {name: schema_of(server, name) for name in databases(server)},
        "slots": slots,
        "subscriptions": server.sql("SELECT subname FROM pg_subscription ORDER BY 1"),
        "started": server.sql("SELECT pg_postmaster_start_time()::text")[0][0],
        "pg_hba.conf": (server.data / "pg_hba.conf").read_bytes(),
        "pg_hba.conf's mode": (status.st_mode, status.st_uid, status.st_gid),
        "postgresql.conf": (server.data / "postgresql.conf").read_bytes(),
        "postgresql.auto.conf": (server.data / "postgresql.auto.conf").read_bytes(),
        "data": sorted(path.name for path in server.data.iterdir()),
    }


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The names of the parts in which two snapshots differ."""
    return [part for part in before if before[part] != after[part]]


def caught_up(source: Cluster, seconds: float = 60) -> None:
    """Wait until every subscription has confirmed all that *source* has written so far."""
    end = source.sql("SELECT pg_current_wal_lsn()::text")[0][0]
    behind = (
        "SELECT slot_name FROM pg_replication_slots WHERE slot_type = 'logical'"
        " AND confirmed_flush_lsn < %s::pg_lsn OR slot_name LIKE '%%_sync_%%'"
    )

    def confirmed() -> bool:
        with suppress(psycopg2.OperationalError):
            return not source.sql(behind, [end])
        return False

    wait_for(confirmed, seconds, f"the subscriptions of {source} to confirm {end}")
