# SPDX-License-Identifier: GPL-3.0-or-later
"""distribute.yml looks at all hosts before it changes anything, and tells all that it finds at once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support import playbooks
from tests.support.cluster import Cluster
from tests.support.playbooks import Ansible, Run, differences, snapshot

pytestmark = pytest.mark.slow

ONLY = ("--tags", "preflight")
GOOD = {"name": "good", "database": "shop", "target_database": "ml", "tables": ["public.users"]}
CARRIED = {
    "name": "carried",
    "database": "shop",
    "target_database": "ml",
    "strategy": "dump",
    "tables": ["public.products"],
}
READ = {"name": "read", "database": "shop", "target_database": "ml", "strategy": "fdw", "tables": ["public.orders"]}
WRONG: list[dict[str, Any]] = [
    {**GOOD, "name": "audited", "tables": ["public.audit_log"]},
    {**GOOD, "name": "typo", "tables": ["public.ordrs"]},
    {**GOOD, "name": "nowhere", "database": "shopp", "tables": ["public.categories"]},
    {**GOOD, "name": "taken", "tables": ["public.payments"]},
]
FAULTS: list[tuple[str, str]] = [
    (
        "prod",
        r"wal_level is replica and has to be logical, which takes a restart: run ALTER SYSTEM SET wal_level = logical and ",
    ),
    ("prod", r"max_wal_senders is 3 and has to be \d+, which takes a restart"),
    ("prod", r"UPDATE and DELETE would fail on the primary once published: public.audit_log has no replica identity"),
    ("prod", r"There is no table public.ordrs in .*; did you mean public.orders"),
    ("prod", r'Database "shopp" of distribution nowhere does not exist: create it, or correct its name.'),
    ("prod", r"Slot pgml_taken_ml_1, which distribution taken is to have, is a physical slot: drop it, or rename"),
    ("ml-1", r"Foreign server read is there already in .* and was not made by pgml_fdw: drop it, or rename"),
    ("ml-1", r"Table public.users holds rows in database ml, and the first copy would add to them: empty it, or set"),
    (
        "ml-1",
        r"max_logical_replication_workers is 4 and has to be \d+, which takes a restart: .*pgml_replica_restart: true",
    ),
    ("ml-1", r"This host and ml-4 are one server, which each would take for its own: list it once."),
    ("ml-2", r"Can't connect to database \"postgres\" at 127.0.0.1:1 .*Connection refused"),
    ("ml-3", r"Ansible can't reach this host: .*"),
    ("ml-5", r"The server of .* is a standby, on which nothing can be changed: give the address of its primary."),
]
WARNINGS = [("ml-1", r"warning: Table public.products holds rows in database ml that no earlier copy has brought")]


class Broken:
    """A primary and replicas with all that is wrong about them."""

    def __init__(self, ansible: Ansible, prod: Cluster, replica: Cluster, standby: Cluster) -> None:
        self.ansible = ansible
        self.servers = {"prod": prod, "ml-1": replica, "standby": standby}

    def hosts(self, *distributions: dict[str, Any]) -> dict[str, Any]:
        replica = self.servers["ml-1"]
        names = {"ml-1": replica, "ml-2": replica, "ml-3": replica, "ml-4": replica, "ml-5": self.servers["standby"]}
        made = playbooks.inventory(
            self.servers["prod"], names, distributions, pgml_primary_restart=False, pgml_replica_restart=False
        )
        hosts = made["all"]["children"]["pgml_replicas"]["hosts"]
        hosts["ml-2"]["pgml_login_port"] = 1
        hosts["ml-3"].update(ansible_connection="ssh", ansible_host="127.0.0.1", ansible_port=1)
        return made

    def fails(self, hosts: dict[str, Any], *arguments: str) -> Run:
        """Distribute in vain, changing nothing anywhere."""
        before = self._look()
        run = self.ansible.run("distribute.yml", hosts, *arguments)
        assert not run.ok and not run.changed, run.output
        after = self._look()
        assert {name: differences(before[name], after[name]) for name in before} == {name: [] for name in before}
        return run

    def _look(self) -> dict[str, Any]:
        # A standby that gets no WAL stays what it is.
        return {name: snapshot(server) for name, server in self.servers.items() if name != "standby"}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broken]:
    with ExitStack() as stack:
        prod = stack.enter_context(
            playbooks.cluster(wal_level="replica", max_wal_senders="3", max_replication_slots="90")
        )
        replica = playbooks.cluster()
        origins = "max_active_replication_origins" if replica.major >= 18 else "max_replication_slots"
        replica.settings.update({"max_worker_processes": "40", origins: "40"})
        stack.enter_context(replica)
        standby = playbooks.cluster()
        stack.callback(standby.destroy)
        standby.create()
        (standby.data / "standby.signal").touch()
        standby.start()
        playbooks.load_shop(prod)
        prod.sql("SELECT pg_create_physical_replication_slot('pgml_taken_ml_1')")
        playbooks.load_shop(replica, "ml")
        replica.sql("TRUNCATE payments; CREATE EXTENSION postgres_fdw", dbname="ml")
        replica.sql("CREATE SERVER read FOREIGN DATA WRAPPER postgres_fdw", dbname="ml")
        yield Broken(Ansible(tmp_path_factory.mktemp("preflight")), prod, replica, standby)


def report(run: Run) -> list[str]:
    """The lines that are told, each once."""
    found = re.search(r'TASK \[Say what was found\].*?"msg": (\[.*?\n    \])', run.output, re.DOTALL)
    return json.loads(found[1]) if found else []


def test_ten_faults_are_ten_lines_and_nothing_is_changed(broken: Broken) -> None:
    """In one report, before anything, whatever host they are of."""
    run = broken.fails(broken.hosts(GOOD, CARRIED, READ, *WRONG))
    lines = report(run)
    for host, pattern in FAULTS + WARNINGS:
        assert [line for line in lines if re.match(f"{host}: {pattern}", line)], f"{host}: {pattern}\n{run.output}"
    # What is wrong with ml-1 is so with its double, too.
    errors = [line for line in lines if ": warning: " not in line and not line.startswith("ml-4: ")]
    unknown = [line for line in errors if not any(re.match(f"{host}: {pattern}", line) for host, pattern in FAULTS)]
    assert not unknown and len(errors) == len(FAULTS) > 10, "\n".join(unknown)
    message = run.failures[-1][1]
    assert message.startswith("Nothing was changed, for this stands against it: prod: ")
    assert "warning: " not in message and all(line in message for line in errors)
    assert "Publish on the primary" not in run.output


def test_it_runs_in_check_mode_and_of_those_that_a_limit_leaves(broken: Broken) -> None:
    (line,) = report(broken.fails(broken.hosts(GOOD), "--check", "--limit", "ml-5"))
    assert line.startswith("ml-5: The server of ")


def test_it_runs_alone_and_changes_nothing(broken: Broken) -> None:
    hosts = broken.hosts({**GOOD, "tables": ["public.orders"], "strategy": "fdw"})
    for host in ("ml-2", "ml-3", "ml-4", "ml-5"):
        del hosts["all"]["children"]["pgml_replicas"]["hosts"][host]
    before = {name: snapshot(broken.servers[name]) for name in ("prod", "ml-1")}
    run = broken.ansible.ok("distribute.yml", hosts, *ONLY)
    assert report(run) == [] and not run.changed
    tasks = re.findall(r"^TASK \[(.*)\]", run.output, re.MULTILINE)
    looked = tasks.index("Look for what stands against the run")
    assert tasks[looked + 3 :] == ["Go on when models are not shipped"]
    assert {name: snapshot(broken.servers[name]) for name in before} == before


def test_it_is_part_of_every_run_unless_it_is_skipped(broken: Broken) -> None:
    hosts = broken.hosts(GOOD)
    for arguments, there in ((("--tags", "replicas"), True), (("--skip-tags", "preflight"), False)):
        run = broken.ansible.ok("distribute.yml", hosts, "--list-tasks", *arguments)
        assert ("Look for what stands against the run" in run.output) == there
