# SPDX-License-Identifier: GPL-3.0-or-later
"""Replicas that are made of a physical copy of their primary, on servers that are fresh for each test."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.support import copies, playbooks
from tests.support.cluster import Cluster
from tests.support.modules import run_module
from tests.support.pair import Place, create_role, wait_for
from tests.support.steps import Plan

MODULE = "pgml_physical_seed"
SETTINGS = {
    "max_wal_senders": "10",
    "max_prepared_transactions": "10",
    "log_statement": "none",
    "max_connections": "60",
}
PASSWORD = "it's secret"
TABLES = """
    CREATE TABLE t (id serial PRIMARY KEY, v text NOT NULL, at timestamptz DEFAULT now());
    CREATE INDEX t_v ON t (lower(v)) WHERE id > 3;
    COMMENT ON TABLE t IS 'theirs';
    CREATE SCHEMA more;
    CREATE TABLE more.p (id int, day int, t int REFERENCES t, PRIMARY KEY (id, day), CHECK (day > 0)) PARTITION BY RANGE (day);
    CREATE TABLE more.p_low PARTITION OF more.p FOR VALUES FROM (MINVALUE) TO (50);
    CREATE TABLE more.p_high PARTITION OF more.p FOR VALUES FROM (50) TO (MAXVALUE);
    CREATE SEQUENCE more.loose START 1000 INCREMENT 7;
    CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
    CREATE TRIGGER noted BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION noted();
    CREATE TABLE hits (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY);
    CREATE TABLE hit (id int PRIMARY KEY, n bigint NOT NULL, last bigint);
    CREATE PUBLICATION pub FOR ALL TABLES;
"""
ROWS = """
    INSERT INTO t (v) SELECT md5(g::text) FROM generate_series(1, 500) AS g;
    INSERT INTO more.p SELECT g, 1 + g % 99, g FROM generate_series(1, 300) AS g;
    INSERT INTO hit VALUES (1, 0);
    SELECT nextval('more.loose') FROM generate_series(1, 5);
"""


@contextmanager
def templates(**settings: str) -> Iterator[list[Cluster]]:
    """Clusters that were never started, to clone."""
    with ExitStack() as stack:
        made = [playbooks.cluster(**{**SETTINGS, **settings}) for _ in range(2)]
        for each in made:
            stack.callback(each.destroy)
            each.create()
        yield made


@contextmanager
def seeding(templates: list[Cluster]) -> Iterator[Seeding]:
    """A primary with rows and a replica with nothing, both running, for one test."""
    with ExitStack() as stack:
        primary, replica = (stack.enter_context(each.clone()) for each in templates)
        made = Seeding(primary, replica)
        create_role(primary, made.distributor, "LOGIN REPLICATION", PASSWORD)
        made.publish("shop", TABLES + ROWS)
        stack.callback(made.forget)
        yield made


class Seeding:
    """Database C(shop) of a primary, and C(ml) of a replica."""

    distributor = "dist"

    def __init__(self, primary: Cluster, replica: Cluster, number: int = 1) -> None:
        self.primary, self.replica = primary, replica
        self.source, self.target = Place(primary, "shop"), Place(replica, "ml")
        self.slot = f"sub_r{number}"
        self._runs = 0

    def publish(self, database: str, statements: str) -> None:
        """Make a database of the primary that the distributor may read."""
        self.primary.create_database(database)
        self.primary.sql(statements, dbname=database)
        self.primary.sql(f"GRANT pg_read_all_data TO {self.distributor}")

    @property
    def work(self) -> Path:
        return self.replica.directory / "data.pgml_seed"

    @property
    def kept(self) -> Path:
        return self.replica.directory / "data.pgml_old"

    @property
    def record(self) -> Path:
        return Path.home() / f".pgml_physical_seed_{self.replica.port}.json"

    def recorded(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.record.read_text(encoding="utf-8"))
        return found

    def subscription(self, **changed: Any) -> dict[str, Any]:
        return {"name": "sub", "publications": ["pub"], "slot_name": self.slot, "db": "ml", **changed}

    def options(self, **params: Any) -> dict[str, Any]:
        """The module's options; None leaves one out."""
        everything = {
            **self.replica.login(),
            "subscriptions": [self.subscription()],
            "source": self.primary.source("shop", self.distributor, PASSWORD),
            "replace_cluster": True,
            "wait_timeout": 30,
            **params,
        }
        return {key: value for key, value in everything.items() if value is not None}

    def run(self, state: str, check: bool = False, **params: Any) -> dict[str, Any]:
        """One step; a traceback is never an answer."""
        result = run_module(MODULE, self.options(state=state, **params), check=check)
        assert "Traceback" not in str(result.get("exception", "")), result["exception"]
        return result

    def step(self, state: str, check: bool = False, **params: Any) -> dict[str, Any]:
        """One step that succeeds."""
        result = self.run(state, check, **params)
        assert not result.get("failed"), result["msg"]
        return result

    def prepare(self, **params: Any) -> dict[str, Any]:
        result = self.step("prepared", **params)
        assert result["phase"] == "ready", result
        return result

    def swap(self, **params: Any) -> None:
        """Stop the server, exchange, and start it."""
        self.replica.stop()
        assert self.step("exchanged", **params)["phase"] == "in_place"
        self.replica.start()

    def seed(self, **params: Any) -> dict[str, Any]:
        """All steps; returns what the first one said."""
        result = self.prepare(**params)
        self.swap(**params)
        assert self.step("finished", **params)["phase"] == "done"
        return result

    def resume(self, **params: Any) -> None:
        """What a rerun does, whatever an earlier run has left."""
        self.replica.start()
        phase = self.step("prepared", **params)["phase"]
        if phase == "ready":
            self.swap(**params)
        if phase != "done":
            phase = self.step("finished", **params)["phase"]
        assert phase == "done"

    def refused(self, state: str = "prepared", **params: Any) -> str:
        """A step that fails and changes nothing; returns what it says."""
        before = self.state()
        result = self.run(state, **params)
        assert result.get("failed"), f"it did not fail: {result}"
        assert self.state() == before
        message: str = result["msg"]
        assert message.endswith(".") and "\n" not in message, message
        return message

    @contextmanager
    def process(self, directory: Path, state: str, plan: Plan | None = None, **params: Any) -> Iterator[copies.Process]:
        """A step in a process of its own, with all that it has started when the block ends."""
        self._runs += 1
        directory = directory / str(self._runs)
        directory.mkdir()
        plan = (plan or Plan(""))._replace(directory=str(directory))
        options = self.options(state=state, **params)
        process = copies.Process(Place(self.replica, "postgres"), directory / "tmp", options, MODULE, plan)
        with copies.ending(process):
            yield process

    def state(self) -> tuple[Any, ...]:
        """What a step may change: catalogs of both servers while they run, and files beside the replica's."""
        places = [Place(self.primary, "shop"), Place(self.replica, "postgres")]
        prints = [place.fingerprint() for place in places if place.cluster.running]
        return prints, files(self.replica.directory, skipping="data"), self.record.exists()

    def applied_without_errors(self) -> None:
        """No transaction came twice, as far as keys can tell."""
        assert self.replica.sql("SELECT sum(apply_error_count) FROM pg_stat_subscription_stats") == [(0,)]
        n, rows = self.target.sql("SELECT n, (SELECT count(*) FROM hits) FROM hit")[0]
        assert n == rows

    def slots(self) -> set[str]:
        return {name for (name,) in self.primary.sql("SELECT slot_name FROM pg_replication_slots")}

    def assert_nothing_left(self, seconds: float = 10) -> None:
        """No trace of a run on either side."""
        query = "SELECT application_name FROM pg_stat_activity WHERE usename = %s"
        wait_for(lambda: not self.primary.sql(query, [self.distributor]), seconds, "the sessions to end")
        wait_for(lambda: not self.slots(), seconds, "the slots to go")
        assert not self.work.exists() and not self.record.exists()
        wait_for(lambda: programs_on(self.work) == [], seconds, "the programs to end")
        assert self.replica.sql("SELECT count(*) FROM pg_subscription") == [(0,)]

    def assert_equal(self, databases: tuple[tuple[str, str], ...] = (("shop", "ml"),)) -> None:
        """Both sides come to hold the same rows."""
        for here, there in databases:
            source, target = Place(self.primary, here), Place(self.replica, there)
            assert len(copies.contents(source)) > 2, "nothing is compared"
            wait_for(lambda s=source, t=target: copies.contents(s) == copies.contents(t), 20, f"{there} to be equal")

    def assert_done(self) -> None:
        """The new cluster is there, alone, streams, and a rerun has nothing to do."""
        self.assert_equal()
        assert self.slots() == {self.slot}
        assert not self.work.exists() and not self.record.exists()
        again = self.step("prepared")
        assert (again["changed"], again["phase"]) == (False, "done")
        self.source.sql("INSERT INTO t (v) VALUES ('last')")
        self.assert_equal()

    def forget(self) -> None:
        """Leave nothing of a test that has failed."""
        for pid in programs_on(self.work):
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
        self.record.unlink(missing_ok=True)


class Hits(threading.Thread):
    """Commits small transactions in quick succession, as long as a with block runs."""

    def __init__(self, place: Place) -> None:
        super().__init__(name="hits")
        self._place = place
        self._ended = threading.Event()
        self.committed = 0
        self.problem: BaseException | None = None

    def __enter__(self) -> Hits:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ended.set()
        self.join()
        assert self.problem is None, self.problem
        assert self.committed > 20, "nothing was written meanwhile"

    def run(self) -> None:
        try:
            with (
                closing(self._place.cluster.connect(self._place.database)) as connection,
                connection.cursor() as cursor,
            ):
                while not self._ended.is_set():
                    cursor.execute(
                        "WITH n AS (INSERT INTO hits DEFAULT VALUES RETURNING id) UPDATE hit SET n = n + 1, last = (TABLE n)"
                    )
                    self.committed += 1
                    time.sleep(0.001)
        except BaseException as problem:
            self.problem = problem


def programs_on(directory: Path) -> list[int]:
    """The processes that were started on a directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(directory) in command and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
    return found


def files(directory: Path, skipping: str = "") -> dict[str, str]:
    """The files in a directory, with what they hold."""
    found = {}
    for root, directories, names in os.walk(directory):
        if skipping in directories and root == str(directory):
            directories.remove(skipping)
        for name in names:
            path = Path(root) / name
            if path.is_file() and "PGSQL" not in name and name != "server.log":
                found[str(path.relative_to(directory))] = hashlib.sha1(path.read_bytes()).hexdigest()
    return found


def controldata(server: Cluster, directory: Path | None = None) -> dict[str, str]:
    """What pg_controldata says, which must find nothing wrong."""
    command = [server.bin_dir / "pg_controldata", directory or server.data]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"})
    assert "WARNING" not in result.stdout + result.stderr, result.stdout
    return dict(re.split(r":\s+", line, maxsplit=1) for line in result.stdout.splitlines() if ": " in line)


def identifier(server: Cluster) -> str:
    return controldata(server)["Database system identifier"]


def definitions(place: Place) -> list[str]:
    return copies.definitions(place, "--no-publications", "--no-subscriptions")


def own(server: Cluster, path: Path) -> None:
    """Give a file that a test has made to the server."""
    status = server.data.stat()
    shutil.chown(path, status.st_uid, status.st_gid)
