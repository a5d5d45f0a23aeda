# SPDX-License-Identifier: GPL-3.0-or-later
"""status.yml tells how it stands, ends with what monitoring needs, changes nothing, and cleans up only when it is asked to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import playbooks
from tests.support.cluster import Cluster
from tests.support.pair import Place, create_role, wait_for
from tests.support.playbooks import PASSWORD, Ansible, Run, caught_up, differences, snapshot

pytestmark = pytest.mark.slow

SHOP = {"name": "shop", "database": "shop", "target_database": "ml", "tables": ["public.t"]}
LIVE = {"name": "live", "database": "shop", "target_database": "ml", "strategy": "fdw", "tables": ["public.t"]}


class Story:
    """A primary and a replica, wired by the modules that distribute.yml runs."""

    def __init__(self, primary: Cluster, replica: Cluster, ansible: Ansible) -> None:
        self.primary, self.replica = primary, replica
        self._ansible = ansible
        self.directory = ansible.directory
        self.source, self.target = Place(primary, "shop"), Place(replica, "ml")
        self.more: dict[str, Any] = {}
        """more replicas, by their variables"""

    def wire(self) -> None:
        create_role(self.primary, "pgml_distributor", "LOGIN REPLICATION", PASSWORD)
        for place in (self.source, self.target):
            place.cluster.create_database(place.database)
            place.sql("CREATE TABLE t (id int PRIMARY KEY, x text)")
        self.target.sql("CREATE EXTENSION postgres_fdw")
        self.source.sql("INSERT INTO t SELECT n, 'x' FROM generate_series(1, 100) AS n")
        self.source.sql("GRANT SELECT ON t TO pgml_distributor")
        source = self.primary.source("shop", "pgml_distributor", PASSWORD)
        self.source.ok("pgml_publication", name="pgml_shop", tables=["t"])
        self.target.ok(
            "pgml_subscription", name="pgml_shop", publications=["pgml_shop"], slot_name="pgml_shop_ml_1", source=source
        )
        imports = [{"remote_schema": "public", "tables": ["t"], "local_schema": "live_public"}]
        snapshots = [{"into": "public.t_now", "relation": "live_public.t"}]
        self.target.ok("pgml_fdw", server="live", source=source, imports=imports, snapshots=snapshots)
        caught_up(self.primary)

    def run(self, *arguments: str, **variables: Any) -> Run:
        hosts = playbooks.inventory(self.primary, {"ml-1": self.replica}, [SHOP, LIVE], **variables)
        hosts["all"]["children"]["pgml_replicas"]["hosts"].update(self.more)
        run = self._ansible.run("status.yml", hosts, *arguments)
        for secret in (PASSWORD, self.primary.password, self.replica.password):
            assert secret not in run.output
        return run

    def status(self, *arguments: str, **variables: Any) -> Run:
        """The same, changing nothing on the servers that run."""
        servers = [server for server in (self.primary, self.replica) if server.running]
        before = [snapshot(server) for server in servers]
        run = self.run(*arguments, **variables)
        assert [differences(old, snapshot(server)) for old, server in zip(before, servers, strict=True)] == [[]] * len(
            servers
        )
        assert not run.changed and all(counts["changed"] == 0 for counts in run.recap.values()), run.output
        return run


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with playbooks.cluster() as primary, playbooks.cluster() as replica:
        made = Story(primary, replica, Ansible(tmp_path_factory.mktemp("ansible")))
        made.wire()
        yield made


def test_good_is_0_and_is_written_to_files(story: Story) -> None:
    page, data = story.directory / "status.html", story.directory / "status.json"
    run = story.status(pgml_status_html=str(page), pgml_status_json=str(data))
    assert run.returncode == 0, run.output
    assert re.search(r'"ok  shop +ml-1 +prod  logical   streaming +100 ', run.output), run.output
    assert "All is good: 2 distributions on 1 replica." in run.output
    report = json.loads(data.read_text(encoding="utf-8"))
    assert (report["level"], report["verdict"]) == (0, "good") and "lines" not in report
    assert [each["state"] for each in report["distributions"]] == ["streaming", "connected"]
    _see_page(page, ["shop: logical, streaming, lag ", "live: fdw, connected, age ", "ml-1", "public.t_now"])


def test_degraded_is_1_and_one_sentence(story: Story) -> None:
    run = story.status(pgml_status_snapshot_age="0s")
    assert run.returncode == 1, run.output
    assert run.output.rstrip().count("Degraded: live on ml-1: snapshot stale.") >= 2
    assert run.output.rpartition("ERROR")[2].count("Degraded: live on ml-1: snapshot stale.") == 1, run.output
    run = story.status("--check", pgml_status_snapshot_age="0s", pgml_status_html=str(story.directory / "not.html"))
    assert run.returncode == 1 and not (story.directory / "not.html").exists()


def test_broken_is_2_and_every_server_is_told_of(story: Story) -> None:
    page = story.directory / "broken.html"
    story.replica.stop()
    story.more = {"ml-2": {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}}
    try:
        run = story.status(pgml_status_html=str(page))
    finally:
        story.replica.start()
        story.more = {}
    assert run.returncode == 2 and run.failures[-1] == ("localhost", "Broken: ml-1 is down; ml-2 is down."), run.output
    _see_page(
        page,
        [
            "ml-1 is down; ml-2 is down.",
            "replica down",
            "Can&#39;t connect to database &#34;postgres&#34; at 127.0.0.1",
        ],
    )
    story.primary.stop()
    try:
        wait_for(
            lambda: not story.target.sql("SELECT 1 FROM pg_stat_subscription WHERE pid IS NOT NULL"), 20, "no worker"
        )
        run = story.status()
    finally:
        story.primary.start()
    assert run.returncode == 2 and "prod is down" in run.message, run.output
    assert re.search(r'"X +shop +ml-1 +prod +logical +publisher down', run.output)
    caught_up(story.primary)


def test_what_belongs_to_nothing_is_removed_when_it_is_asked_for(story: Story) -> None:
    story.source.sql("SELECT pg_create_logical_replication_slot('pgml_old_ml_9', 'pgoutput')")
    story.source.sql("CREATE PUBLICATION pgml_old FOR TABLE t")
    run = story.status()
    assert run.returncode == 1 and "Degraded: slot pgml_old_ml_9 on prod belongs to nothing; publication" in run.output
    run = story.run("--check", pgml_status_clean=True)
    assert run.returncode == 1 and sum(run.changed.values()) == 2, run.output
    assert story.source.sql("SELECT 1 FROM pg_publication WHERE pubname = 'pgml_old'")
    run = story.run(pgml_status_clean=True)
    assert run.returncode == 0 and run.recap["prod"]["changed"] == 2 and run.recap["ml-1"]["changed"] == 0, run.output
    assert story.source.sql("SELECT slot_name FROM pg_replication_slots") == [("pgml_shop_ml_1",)]
    assert story.source.sql("SELECT pubname FROM pg_publication") == [("pgml_shop",)]
    run = story.status(pgml_status_clean=True)
    assert run.returncode == 0


def _see_page(path: Path, texts: list[str]) -> None:
    """It holds *texts*, loads nothing from elsewhere, and every tag is closed."""
    page = path.read_text(encoding="utf-8")
    assert [text for text in texts if text not in page] == []
    assert not re.search(r"(?:src|href)=|url\(|@import|<script", page)
    for tag in ("table", "tr", "td", "svg", "text", "g", "details", "div", "p"):
        assert len(re.findall(rf"<{tag}[\s>]", page)) == page.count(f"</{tag}>"), tag
