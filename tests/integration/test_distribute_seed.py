# SPDX-License-Identifier: GPL-3.0-or-later
"""distribute.yml and the role alone where replicas are seeded by a copy of the primary's cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support import playbooks
from tests.support.cluster import Cluster, kill_tree
from tests.support.pair import wait_for
from tests.support.playbooks import Ansible, Run, Unsafe, caught_up

pytestmark = pytest.mark.slow

TABLES = """
CREATE TABLE users (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text);
CREATE INDEX by_name ON users (name);
INSERT INTO users (name) SELECT 'user ' || g FROM generate_series(1, 1000) AS g;
"""
SHOP = {"name": "shop", "database": "shop", "target_database": "ml", "strategy": "logical"}
PHYSICAL = {"pgml_logical_seed": "physical", "pgml_logical_replace_cluster": True}


class Seeded:
    """A primary and replicas, with a playbook over them."""

    def __init__(self, ansible: Ansible, primary: Cluster, replicas: dict[str, Cluster]) -> None:
        self.primary, self.replicas, self.ansible = primary, replicas, ansible

    def inventory(self, **variables: Any) -> dict[str, Any]:
        return playbooks.inventory(self.primary, self.replicas, [SHOP], **{**PHYSICAL, **variables})

    def run(self, *arguments: str, playbook: str = "distribute.yml", **variables: Any) -> Run:
        return self.ansible.run(playbook, self.inventory(**variables), *arguments)

    def ok(self, *arguments: str, **variables: Any) -> Run:
        run = self.run(*arguments, **variables)
        assert run.ok, run.output
        return run

    def assert_streams(self) -> None:
        """Rows that are written now arrive, in clusters of their own."""
        self.primary.sql("INSERT INTO users (name) VALUES ('later')", dbname="shop")
        caught_up(self.primary)
        rows = "SELECT count(*), sum(hashtext(users::text)) FROM users"
        expected = self.primary.sql(rows, dbname="shop")
        servers = [self.primary, *self.replicas.values()]
        for replica in self.replicas.values():
            assert replica.sql(rows, dbname="ml") == expected
            assert replica.sql(
                "SELECT indexrelid::regclass::text FROM pg_index JOIN pg_class AS c ON c.oid = indrelid"
                " WHERE relname = 'users' ORDER BY 1",
                dbname="ml",
            ) == [("by_name",), ("users_pkey",)]
            assert_nothing_is_left(replica)
        assert len({identifier(server) for server in servers}) == len(servers)
        self.assert_closed()

    def assert_closed(self) -> None:
        """Nobody could copy any of the clusters."""
        rules = (
            "SELECT count(*) FROM pg_hba_file_rules WHERE 'replication' = ANY(database) AND user_name::text ~ 'pgml'"
        )
        for server in (self.primary, *self.replicas.values()):
            assert server.sql(rules) == [(0,)]

    def slots(self) -> list[str]:
        return [name for (name,) in self.primary.sql("SELECT slot_name FROM pg_replication_slots ORDER BY 1")]


def identifier(server: Cluster) -> str:
    return str(server.sql("SELECT system_identifier FROM pg_control_system()")[0][0])


def assert_nothing_is_left(replica: Cluster) -> None:
    assert [path.name for path in replica.directory.iterdir() if "pgml" in path.name] == []
    assert not (Path.home() / f".pgml_physical_seed_{replica.port}.json").exists()


@contextmanager
def seeded(directory: Path, replicas: int = 1) -> Iterator[Seeded]:
    logging = {"log_replication_commands": "on"}
    with playbooks.cluster(**logging) as primary, playbooks.cluster(**logging) as first, playbooks.cluster() as second:
        primary.create_database("shop")
        primary.execute_script(TABLES, "shop")
        yield Seeded(Ansible(directory), primary, dict([("ml-1", first), ("ml-2", second)][:replicas]))


@pytest.mark.sampled(0)
def test_the_second_replica_is_copied_from_the_first(tmp_path: Path) -> None:
    with seeded(tmp_path, replicas=2) as place:
        for server in place.replicas.values():
            server.sql("CREATE ROLE trainer LOGIN PASSWORD 'its own'")
            server.sql("CREATE TABLE old (a int)")
        before = place.slots()
        predicted = place.ok("--check")
        assert place.slots() == before and predicted.output.count("In check mode only") > 0
        run = place.ok()
        assert {host for host, _task, _item in predicted.changed} == {host for host, _task, _item in run.changed}
        place.assert_streams()
        for server in (place.primary, place.replicas["ml-1"]):
            assert server.log().count("received replication command: BASE_BACKUP") == 1
        for server in place.replicas.values():
            logins = "SELECT rolname FROM pg_roles WHERE rolcanlogin ORDER BY 1"
            assert server.sql(logins) == [("postgres",), ("trainer",)]
        again = place.ok()
        assert not again.changed, again.output
        place.assert_streams()
        gone = place.run(playbook="teardown.yml")
        assert gone.ok and place.slots() == [], gone.output


@pytest.mark.sampled(0)
def test_a_run_that_ends_while_the_server_is_stopped_is_gone_on_with(tmp_path: Path) -> None:
    with seeded(tmp_path) as place:
        replica = place.replicas["ml-1"]
        process = place.ansible.start("distribute.yml", place.inventory())
        wait_for(lambda: not replica.running, 240, "the replica to be stopped")
        kill_tree(process.pid)
        playbooks.finish(process)
        assert not replica.running
        place.ok()
        place.assert_streams()
        assert not place.ok().changed


@pytest.mark.sampled(0)
def test_a_copy_that_does_not_start_gives_way_to_the_old_cluster(tmp_path: Path) -> None:
    with seeded(tmp_path) as place:
        replica = place.replicas["ml-1"]
        # A log stays with the cluster that wrote it, so that this one finds no rules where its configuration says.
        (replica.data / "log").mkdir()
        (replica.data / "log" / "hba.conf").write_bytes((replica.data / "pg_hba.conf").read_bytes())
        for path in (replica.data / "log", replica.data / "log" / "hba.conf"):
            path.chmod(0o755)
        replica.settings["hba_file"] = str(replica.data / "log" / "hba.conf")
        replica.restart()
        old = identifier(replica)
        run = place.run()
        assert not run.ok and "ml-1 has the old one again" in run.message, run.output
        assert identifier(replica) == old and place.slots() == []
        assert_nothing_is_left(replica)


@pytest.mark.sampled(0)
def test_where_something_stands_against_it_rows_are_copied(tmp_path: Path) -> None:
    with seeded(tmp_path, replicas=2) as place:
        place.replicas["ml-1"].sql("SELECT pg_create_physical_replication_slot('standby')")
        place.ok("--tags", "primary")
        place.assert_closed()
        refused = place.run()
        assert not refused.ok and "Others read from slot standby of the replica." in refused.message
        assert place.slots() == []
        place.assert_closed()
        run = place.ok(pgml_logical_seed="auto")
        assert "The cluster is not copied physically, for this stands against it" in run.output
        assert "ml-1 has no copy of the primary's cluster, so that rows are copied to ml-2, too." in run.output
        place.assert_streams()
        assert not place.ok(pgml_logical_seed="auto").changed


def test_the_role_alone(tmp_path: Path) -> None:
    with seeded(tmp_path) as place:
        replica, primary = place.replicas["ml-1"], place.primary
        primary.sql("CREATE ROLE courier LOGIN REPLICATION PASSWORD 'on foot'")
        primary.sql("CREATE PUBLICATION goods FOR ALL TABLES", dbname="shop")
        source = {**primary.source("shop", "courier", "on foot")}
        variables = {
            "name": "goods",
            "publication": "goods",
            "subscription": "goods_in",
            "slot": "goods_slot",
            "seed": "physical",
            "keep_old_cluster": True,
            "login": playbooks.login(replica, login_db="ml"),
            "source": {**source, "password": Unsafe(source["password"])},
            "become_user": "",
        }
        task = {
            "name": "Take the goods",
            "include_role": {"name": "postgresml.distributed.pgml_logical"},
            "vars": {f"pgml_logical_{name}": value for name, value in variables.items()},
        }
        hosts = {"all": {"hosts": {"analytics": playbooks.host(replica)}}}
        path = place.ansible.write("site.yml", [{"hosts": "all", "gather_facts": False, "tasks": [task]}])
        old = identifier(replica)
        primary.sql("GRANT SELECT ON users TO courier", dbname="shop")
        predicted = place.ansible.ok(path, hosts, "--check")
        assert identifier(replica) == old and place.slots() == []
        run = place.ansible.ok(path, hosts)
        assert predicted.changed == run.changed
        kept = replica.directory / "data.pgml_old"
        assert kept.is_dir() and place.slots() == ["goods_slot"]
        assert replica.sql("SELECT count(*) FROM users", dbname="ml") == [(1000,)]
        assert not place.ansible.ok(path, hosts).changed
        assert "on foot" not in run.output
