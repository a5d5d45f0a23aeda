# SPDX-License-Identifier: GPL-3.0-or-later
"""What status makes of what the servers told, without servers."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.postgresml.distributed.plugins.filter import status as filters
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import server_log
from ansible_collections.postgresml.distributed.plugins.plugin_utils import (
    status,
    status_facts,
    status_page,
    status_text,
)

MEGABYTE = 1 << 20
SHOP = {"name": "shop", "database": "shop", "target_database": "ml", "tables": ["orders"]}


def slot(name: str = "pgml_shop_ml_1", **changed: Any) -> dict[str, Any]:
    return {
        "name": name,
        "database": "shop",
        "active": True,
        "wal_status": "reserved",
        "invalidation_reason": None,
        "retained_bytes": 100,
        "safe_wal_bytes": None,
        "behind_bytes": 0,
        "not_sent_bytes": 0,
        "not_flushed_bytes": 0,
        "inactive_seconds": None,
        "replay_lag_seconds": None,
        **changed,
    }


def subscription(host: str = "ml_1", **changed: Any) -> dict[str, Any]:
    return {
        "name": "pgml_shop",
        "enabled": True,
        "publications": ["pgml_shop"],
        "slot_name": f"pgml_shop_{host}",
        "placeholder": False,
        "first_copy": None,
        "worker": 1,
        "copiers": [],
        "level_seconds_ago": 1.0,
        "apply_errors": 0,
        "sync_errors": 0,
        "conflicts": {},
        "failing": False,
        "tables": [{"name": "public.orders", "state": "ready", "rows": 5, "bytes": 8192, "columns": ["id"]}],
        **changed,
    }


def server(name: str, slots: Any = (), **parts: Any) -> dict[str, Any]:
    """What the module returns of a server with one database."""
    rest = {
        "subscriptions": [],
        "publications": [],
        "copies": [],
        "foreign_servers": [],
        "models": None,
        "remembered": [],
    }
    of_server = {
        "wal_rate": 0.0,
        "wal_limit": None,
        "wal_space": None,
        "outdated": [],
        "version": "17.6",
        "slots_in_use": [],
    }
    known = {key: parts.pop(key) for key in list(parts) if key in of_server}
    return {
        "server": {**of_server, **known, "slots": list(slots)},
        "databases": [{"name": name, **rest, "progress": None, **parts}],
    }


PUBLISHED = {"name": "pgml_shop", "tables": [{"name": "public.orders", "columns": ["id"], "where": None}]}


def gathered(upstream: Any = None, replica: Any = None) -> dict[str, Any]:
    used = {"slots_in_use": ["pgml_shop_ml_1"]}
    return {
        "prod": {"upstream": None, "result": upstream or server("shop", [slot()], publications=[PUBLISHED])},
        "ml-1": {"upstream": "prod", "result": replica or server("ml", subscriptions=[subscription()], **used)},
    }


def judged(of_slot: Any = None, of_subscription: Any = None, **bounds: Any) -> tuple[str, int]:
    found = gathered(
        server("shop", [slot(**of_slot or {})], publications=[PUBLISHED]),
        server("ml", subscriptions=[subscription(**of_subscription or {})]),
    )
    (entry,) = status.status_report(found, [SHOP], bounds)["distributions"]
    return entry["state"], entry["level"]


@pytest.mark.parametrize(
    ("of_slot", "of_subscription", "state"),
    [
        ({}, {}, ("streaming", 0)),
        ({"behind_bytes": 256 * MEGABYTE}, {}, ("streaming", 0)),
        ({"behind_bytes": 256 * MEGABYTE + 1}, {}, ("lagging", 1)),
        ({"behind_bytes": 1}, {"level_seconds_ago": 301.0}, ("lagging", 1)),
        ({"behind_bytes": 0}, {"level_seconds_ago": 301.0}, ("streaming", 0)),
        ({"behind_bytes": 1, "inactive_seconds": 301}, {}, ("lagging", 1)),
        ({"wal_status": "lost"}, {"failing": True}, ("slot lost", 2)),
        ({"invalidation_reason": "idle_timeout"}, {}, ("slot lost", 2)),
        ({"wal_status": "unreserved"}, {}, ("streaming", 1)),
        ({}, {"enabled": False, "worker": None}, ("disabled", 2)),
        ({}, {"failing": True}, ("apply error", 2)),
        ({}, {"worker": None}, ("no worker", 2)),
        ({}, {"placeholder": True, "enabled": False, "worker": None}, ("copying", 1)),
        ({}, {"first_copy": "build", "worker": None}, ("copying", 1)),
    ],
)
def test_states_of_logical_replication(of_slot: Any, of_subscription: Any, state: tuple[str, int]) -> None:
    assert judged(of_slot, of_subscription) == state


def test_bounds_move_with_their_variables() -> None:
    behind = {"behind_bytes": 5000, "replay_lag_seconds": 90.0}
    assert judged(behind)[0] == "streaming"
    assert judged(behind, lag_bytes=4999)[0] == judged(behind, lag_bytes="4kB")[0] == "lagging"
    assert judged(behind, lag_seconds="1min")[0] == "lagging" and judged(behind, lag_seconds=91)[0] == "streaming"


@pytest.mark.parametrize(
    ("name", "value", "result"),
    [
        ("lag_bytes", "1 GB", 1 << 30),
        ("lag_bytes", 1000, 1000),
        ("lag_bytes", "1.5MB", 3 << 19),
        ("snapshot_age", "24h", 86400),
        ("snapshot_age", "2 d", 172800),
        ("lag_seconds", "90", 90),
        ("wal_hours", "0.5", 0.5),
        ("wal_hours", None, 1),
    ],
)
def test_bounds_are_read(name: str, value: Any, result: float) -> None:
    assert getattr(status_facts.limits({name: value}), name) == result


@pytest.mark.parametrize("value", ["much", "-1", "5 weeks", [], True])
@pytest.mark.parametrize("name", ["lag_bytes", "lag_seconds", "snapshot_age"])
def test_bounds_that_mean_nothing_are_refused(name: str, value: Any) -> None:
    with pytest.raises(AnsibleFilterError, match=f"pgml_status_{name} is .*: use "):
        status_facts.limits({name: value})


def test_hours_until_the_limit_are_those_of_the_nearest() -> None:
    found = gathered(server("shop", [slot(safe_wal_bytes=7200 * 1000)], wal_rate=1000.0, wal_space=3600 * 1000))
    (entry,) = status.status_report(found, [SHOP])["distributions"]
    assert entry["wal"]["hours_left"] == 1.0
    found["prod"]["result"]["server"]["wal_space"] = None
    (entry,) = status.status_report(found, [SHOP])["distributions"]
    assert entry["wal"]["hours_left"] == 2.0 and entry["level"] == 0
    (entry,) = status.status_report(found, [SHOP], {"wal_hours": 3})["distributions"]
    assert entry["level"] == 1 and "meets its limit 2 h after it stops" in entry["warnings"][0]


def test_drift_of_tables() -> None:
    more = {
        "name": "pgml_shop",
        "tables": [*PUBLISHED["tables"], {"name": "public.new", "columns": ["id"], "where": None}],
    }
    found = gathered(server("shop", [slot()], publications=[more]))
    (entry,) = status.status_report(found, [SHOP])["distributions"]
    assert entry["drift"] == ["prod publishes public.new, which the subscription doesn't receive yet: run distribute."]
    found = gathered(server("shop", [slot()], publications=[{**PUBLISHED, "tables": more["tables"][1:]}]))
    (entry,) = status.status_report(found, [SHOP])["distributions"]
    assert entry["level"] == 1 and "prod publishes no public.orders any more." in entry["drift"]


def test_a_conflict_that_the_server_counts_is_named() -> None:
    told = subscription(failing=True, apply_errors=2, conflicts={"insert_exists": 2})
    (entry,) = status.status_report(gathered(replica=server("ml", subscriptions=[told])), [SHOP])["distributions"]
    assert entry["error"] == "A row that prod has written is there already: 2 conflicts with a unique constraint."


LOG = """
2026-11-29 15:10:20.1 UTC [11] ERROR:  duplicate key value violates unique constraint "t_pkey"
2026-11-29 15:10:20.1 UTC [11] DETAIL:  Key (id)=(5) already exists.
2026-11-29 15:10:20.1 UTC [11] CONTEXT:  processing remote data for replication origin "pg_16399" during message type "INSERT"
2026-11-29 15:10:20.2 UTC [12] ERROR:  syntax error at or near "SELEC"
2026-11-29 15:10:20.2 UTC [12] STATEMENT:  SELEC 1
2026-11-29 15:10:20.3 UTC [1] LOG:  background worker "logical replication worker" (PID 11) exited with exit code 1
2026-11-29 15:10:20.4 UTC [13] ERROR:  invalid input syntax for type integer: "4111 1111"
2026-11-29 15:10:20.4 UTC [13] CONTEXT:  processing remote data for replication origin "pg_17000_16500" during "INSERT"
"""


def test_errors_of_subscriptions_are_found_in_the_log() -> None:
    assert server_log.found_in(LOG.splitlines()) == {
        16399: 'duplicate key value violates unique constraint "t_pkey"',
        17000: "invalid input syntax for type integer",
    }


def cascade() -> dict[str, Any]:
    """ml-2 takes from ml-1 what that takes from prod."""
    found = gathered()
    first = found["ml-1"]["result"]
    first["server"]["slots"] = [slot("pgml_shop_ml_2", database="ml")]
    first["databases"][0]["publications"] = [PUBLISHED]
    second = server("ml", subscriptions=[subscription("ml_2")], slots_in_use=["pgml_shop_ml_2"])
    return {**found, "ml-2": {"upstream": "ml-1", "result": second}}


def test_a_cascade_is_judged_at_its_own_upstream() -> None:
    found = cascade()
    report = status.status_report(found, [SHOP])
    assert (report["level"], report["strays"]) == (0, [])
    assert [(each["replica"], each["upstream"]) for each in report["distributions"]] == [
        ("ml-1", "prod"),
        ("ml-2", "ml-1"),
    ]
    found["ml-1"]["result"]["server"]["slots"] = []
    states = [each["state"] for each in status.status_report(found, [SHOP])["distributions"]]
    assert states == ["streaming", "slot missing"]


def test_what_is_not_known_to_be_unused_is_kept() -> None:
    found = cascade()
    found["ml-2"]["result"] = {"unreachable": True, "msg": "no route to host"}
    report = status.status_report(found, [SHOP])
    assert report["strays"] == [] and report["distributions"][1]["state"] == "replica down"
    found["ml-2"]["result"] = {}
    report = status.status_report(found, [SHOP])
    assert report["strays"] == [] and len(report["distributions"]) == 1
    assert report["hosts"][-1]["name"] == "ml-1" and report["level"] == 0


def test_what_belongs_to_nothing_is_told_with_the_reason() -> None:
    found = gathered(
        server(
            "shop",
            [slot(), slot("pgml_old_ml_1", active=False), slot("pgml_other_x")],
            publications=[PUBLISHED, {"name": "pgml_old", "tables": []}, {"name": "pgml_other", "tables": []}],
        )
    )
    strays = {each["name"]: each for each in status.status_report(found, [SHOP])["strays"]}
    assert {name: each["removable"] for name, each in strays.items()} == {
        "pgml_old_ml_1": True,
        "pgml_other_x": False,
        "pgml_old": True,
        "pgml_other": False,
    }
    assert strays["pgml_other"]["reason"] == "slot pgml_other_x may need it"


def test_the_verdict_is_raised_only_when_it_is_degraded() -> None:
    for level, raised in ((0, False), (1, True), (2, False)):
        report = {"level": level, "summary": "So it is."}
        if raised:
            with pytest.raises(AnsibleFilterError, match=r"^So it is\.$"):
                filters.status_verdict(report)
        else:
            assert filters.status_verdict(report)


def test_the_summary_names_the_worst_first_and_not_all() -> None:
    found = cascade()
    found["prod"]["result"] = {"msg": "Connection refused."}
    entries = [{**SHOP, "name": name, "tables": [name]} for name in "abcdefg"]
    report = status.status_report(found, entries)
    assert report["summary"].startswith("Broken: prod is down; a on ml-1: not wired; ")
    assert report["summary"].endswith("; and 10 more.")


def test_lines_stand_below_each_other() -> None:
    lines = status.status_report(cascade(), [SHOP])["lines"]
    assert lines[0].index("state") == lines[1].index("streaming") == lines[2].index("streaming")
    assert lines[-1] == "All is good: 1 distribution on 2 replicas."


@pytest.mark.parametrize(
    ("size", "text"),
    [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 kB"), (20 << 30, "20 GB"), (3 << 40, "3.0 TB")],
)
def test_sizes_for_people(size: int | None, text: str) -> None:
    assert status_facts.size_text(size) == text


def test_both_drawings_hold_all_servers_and_stay_inside() -> None:
    found = cascade()
    long = "inference-eu-west-1a.machine-learning.example.org"
    found[long] = {"upstream": "prod", "result": {"msg": "gone"}}
    report = status.status_report(found, [SHOP])
    for picture in status_page.status_page(report)["pictures"].values():
        assert len(picture["boxes"]) == 4 and len(picture["flows"]) == 3
        for box in picture["boxes"]:
            assert box["x"] > 0 and box["x"] + box["width"] < picture["width"]
            assert box["y"] > 0 and box["y"] + box["height"] <= picture["height"]
        corners = [(box["x"], box["y"], box["width"], box["height"]) for box in picture["boxes"]]
        for at, (x, y, width, height) in enumerate(corners):
            for other_x, other_y, *_size in corners[at + 1 :]:
                assert not (x <= other_x < x + width and y <= other_y < y + height)
        assert {box["level"] for box in picture["boxes"]} == {0, 2}


def test_the_page_tells_what_the_screen_tells() -> None:
    used = {"slots_in_use": ["pgml_shop_ml_1"]}
    failing = subscription(failing=True, apply_errors=1)
    found = gathered(replica=server("ml", subscriptions=[failing], **used))
    report = status.status_report(found, [SHOP])
    page = status_page.status_page(report)
    assert [note["title"] for note in page["notes"]] == ["shop on ml-1: apply error"]
    distributions = page["tables"][0]
    assert [column["name"] for column in distributions["columns"]] == list(status_text.HEAD[1:])
    assert distributions["rows"][0]["cells"][4] == "apply error"
