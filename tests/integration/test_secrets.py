# SPDX-License-Identifier: GPL-3.0-or-later
"""No password in any output at -vvv, in ps, in a file that others can read, or in the servers' logs."""

from __future__ import annotations

import base64
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from tests.support import playbooks
from tests.support.cluster import Cluster
from tests.support.playbooks import Ansible, Run, Unsafe

pytestmark = pytest.mark.slow


def awkward(mark: str) -> str:
    """A password with all that some escaping would alter, and a mark at both ends that none does."""
    return f'{mark}A\' "q" \\b\\\\ p=w %s%% {{{{ x }}}} {{% y %}} #z $1 :;&|`ü {mark}E'


PASSWORDS = {name: awkward(f"Xq9{name}7w") for name in ("first", "second", "admin", "replica", "wrong")}
NEEDLES = [
    *(f"Xq9{name}7w" for name in PASSWORDS),
    *(base64.b64encode(password.encode()).decode() for password in PASSWORDS.values()),
]
LOUD = {
    "log_statement": "all",
    "log_min_error_statement": "info",
    "log_min_messages": "info",
    "log_min_duration_statement": "0",
    "log_connections": "on",
    "log_replication_commands": "on",
    "log_duration": "on",
}
GOOD = {
    "name": "shop",
    "database": "shop",
    "target_database": "ml",
    "tables": ["public.users", {"name": "public.orders", "where": "order_id > 10"}],
}


def secrets_in(text: str | bytes) -> set[str]:
    """Those of the passwords' marks that are in a text."""
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    return {needle for needle in NEEDLES if needle.encode() in data}


def open_to_others(path: Path, root: Path) -> bool:
    """Whether another user could read a file, if *root* were open to everybody."""
    if not path.is_file() or path.is_symlink() or not path.stat().st_mode & 0o044:
        return False
    above = list(path.relative_to(root).parents)[:-1]
    return all((root / directory).stat().st_mode & 0o011 for directory in above)


def leaks_in_files(root: Path, skip: tuple[str, ...] = ()) -> set[str]:
    """The files below *root* that others could read and that hold a password."""
    found = set()
    for directory, directories, names in os.walk(root):
        directories[:] = [name for name in directories if name not in skip]
        for name in names:
            path = Path(directory, name)
            try:
                if open_to_others(path, root) and secrets_in(path.read_bytes()):
                    found.add(str(path))
            except OSError:  # gone meanwhile
                continue
    return found


class Processes:
    """Looks at the arguments of all processes, and at the environments of those that are new."""

    def __init__(self) -> None:
        self.programs: set[str] = set()
        self._known: dict[str, bytes] = {}

    def leaks(self) -> set[str]:
        """What of them holds a password."""
        found, known = set(), {}
        for process in os.scandir("/proc"):
            if not process.name.isdigit():
                continue
            try:
                arguments = Path(process.path, "cmdline").read_bytes()
                # A program may be replaced by another, with other arguments.
                changed = self._known.get(process.name) != arguments
                environment = Path(process.path, "environ").read_bytes() if changed else b""
            except OSError:  # gone meanwhile, or not ours
                continue
            known[process.name] = arguments
            self.programs.add(os.path.basename(arguments.split(b"\0")[0].decode("utf-8", "replace")))
            if secrets_in(arguments):
                found.add(f"cmdline: {arguments!r}")
            if secrets_in(environment):
                found.add(f"environ: {environment!r}")
        self._known = known
        return found


class Watch:
    """What was seen while others worked."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._processes), threading.Thread(target=self._files)]
        self.processes = Processes()
        self.leaks: set[str] = set()
        self.looks = 0

    def _processes(self) -> None:
        while not self._done.is_set():
            self.leaks |= self.processes.leaks()
            self.looks += 1
            time.sleep(0.02)

    def _files(self) -> None:
        while not self._done.is_set():
            self.leaks |= leaks_in_files(self._root)
            time.sleep(0.02)

    @contextmanager
    def looking(self) -> Iterator[Watch]:
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._done.set()
            for thread in self._threads:
                thread.join()


class Verbose(Ansible):
    """Ansible as users run it, with modules in files, all of them in directories open to everybody."""

    def environment(self) -> dict[str, str]:
        temporary = self.directory / "ansible" / "tmp"
        for path in (self.directory / "ansible", self.directory / "ansible" / "remote", temporary):
            path.mkdir(exist_ok=True)
            path.chmod(0o755)
        return {
            **super().environment(),
            "ANSIBLE_PIPELINING": "0",
            "ANSIBLE_LOG_PATH": str(self.directory / "ansible.log"),
            "TMPDIR": str(temporary),
        }


class Seen:
    """Everything that runs with awkward passwords have left."""

    def __init__(self, runs: dict[str, Run], watch: Watch, servers: tuple[Cluster, Cluster], directory: Path) -> None:
        self.runs = runs
        self.watch = watch
        self.servers = servers
        self.directory = directory
        self.verifier = ""


def _hosts(servers: tuple[Cluster, Cluster], password: str, login: dict[str, Any] | None = None) -> dict[str, Any]:
    primary, replica = servers
    hosts = playbooks.inventory(
        primary, {"ml-1": replica}, [GOOD], pgml_distributor_password=Unsafe(PASSWORDS[password])
    )
    hosts["all"]["children"]["pgml_replicas"]["hosts"]["ml-1"].update(login or {})
    return hosts


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Cluster, Cluster]]:
    primary, replica = playbooks.cluster(wal_level="replica", **LOUD), playbooks.cluster(**LOUD)
    primary.password, replica.password = PASSWORDS["admin"], PASSWORDS["replica"]
    with primary, replica:
        playbooks.load_shop(primary)
        yield primary, replica


@pytest.fixture(scope="module")
def seen(servers: tuple[Cluster, Cluster], tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """The life of a distribution, with two failures in it, all at -vvv and with --diff."""
    directory = tmp_path_factory.mktemp("secrets")
    ansible = Verbose(directory)
    ansible.environment()
    good, other = _hosts(servers, "first"), _hosts(servers, "second")
    wrong = _hosts(servers, "second", {"pgml_login_password": Unsafe(PASSWORDS["wrong"])})
    unreachable = _hosts(servers, "second")
    unreachable["all"]["children"]["pgml_primary"]["hosts"]["prod"]["pgml_endpoint_port"] = 1
    steps = {
        "check": ("distribute.yml", good, "--check"),
        "distribute": ("distribute.yml", good),
        "other password": ("distribute.yml", other),
        "wrong login": ("distribute.yml", wrong),
        "source unreachable": ("distribute.yml", unreachable),
        "teardown": ("teardown.yml", other),
    }
    runs: dict[str, Run] = {}
    verifier = ""
    with Watch(directory / "ansible").looking() as watch:
        for step, (playbook, hosts, *arguments) in steps.items():
            runs[step] = ansible.run(playbook, hosts, "-vvv", "--diff", *arguments)
            if step == "other password":
                verifier = _verifier(servers[0])
    result = Seen(runs, watch, servers, directory)
    result.verifier = verifier
    return result


def _verifier(primary: Cluster) -> str:
    """What the server keeps of the distributor's password, with which one can still log in."""
    with closing(primary.connect("shop", "pgml_distributor", PASSWORDS["second"])):
        pass
    with pytest.raises(psycopg2.OperationalError):
        primary.connect("shop", "pgml_distributor", PASSWORDS["first"])
    return str(primary.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'pgml_distributor'")[0][0])


FAILING = {"wrong login": "password authentication failed", "source unreachable": "Check the source options"}


def test_awkward_passwords_work(seen: Seen) -> None:
    for step, run in seen.runs.items():
        if step in FAILING:
            assert not run.ok and FAILING[step] in run.output
        else:
            assert run.ok, run.output


def test_the_server_keeps_a_verifier(seen: Seen) -> None:
    assert seen.verifier.startswith("SCRAM-SHA-256$4096:")


def test_no_output_holds_a_password(seen: Seen) -> None:
    for step, run in seen.runs.items():
        assert "TASK [" in run.output and "invocation" in run.output
        lines = [line[:500] for line in run.output.splitlines() if secrets_in(line)]
        assert not lines, step
        assert seen.verifier not in run.output
    log = (seen.directory / "ansible.log").read_text(encoding="utf-8")
    assert "TASK [" in log and not secrets_in(log)


def test_no_process_and_no_readable_file_held_a_password(seen: Seen) -> None:
    assert seen.watch.leaks == set()
    # It was there when it mattered.
    assert {"pg_dump", "pg_restore", "pg_ctl"} <= seen.watch.processes.programs
    assert seen.watch.looks > 100


def test_nothing_that_stays_holds_a_password(seen: Seen) -> None:
    # Of what is left, only the inventory may hold passwords, and it is the user's own.
    assert (seen.directory / "inventory.yml").stat().st_mode & 0o077 == 0
    assert leaks_in_files(seen.directory) == set()
    remains = [path for path in (seen.directory / "ansible").rglob("*") if path.is_file()]
    assert [str(path) for path in remains if secrets_in(path.read_bytes())] == []
    for server in seen.servers:
        assert server.data.stat().st_mode & 0o077 == 0
        inside = ("base", "global", "pg_wal")  # the subscription itself, readable by superusers alone
        configuration = [p for p in server.data.iterdir() if p.is_file() and p.name not in inside]
        assert configuration and not [p for p in configuration if secrets_in(p.read_bytes())]


def test_no_server_log_holds_a_password(seen: Seen) -> None:
    primary, replica = (server.log() for server in seen.servers)
    assert "CREATE USER" in primary or "CREATE ROLE" in primary
    assert "CREATE SUBSCRIPTION" in replica
    for log in (primary, replica):
        assert [line[:500] for line in log.splitlines() if secrets_in(line)] == []


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    """Were it blind, the tests above would show nothing."""
    password = PASSWORDS["first"]
    root = tmp_path / "root"
    for directory, mode in (("open", 0o755), ("closed", 0o700)):
        (root / directory).mkdir(parents=True)
        (root / directory).chmod(mode)
        for name, bits in (("all", 0o644), ("own", 0o600)):
            (root / directory / name).write_text(repr(password), encoding="utf-8")
            (root / directory / name).chmod(bits)
    with Watch(root).looking() as watch:
        environment = {**os.environ, "PLANTED": PASSWORDS["admin"]}
        for command, env in ((["sleep", "0.5"], environment), (["sh", "-c", "sleep 0.5", password], None)):
            subprocess.run(command, env=env, check=True)
    assert str(root / "open" / "all") in watch.leaks
    assert not any(str(root / name) in watch.leaks for name in ("open/own", "closed/all", "closed/own"))
    assert any(leak.startswith("environ:") and "Xq9admin7w" in leak for leak in watch.leaks)
    assert any(leak.startswith("cmdline:") and "Xq9first7w" in leak for leak in watch.leaks)
    for spelled in (repr(password), base64.b64encode(password.encode()).decode(), password.replace("'", "''")):
        assert secrets_in(f"x {spelled} y")
    assert not secrets_in("SCRAM-SHA-256$4096:")
