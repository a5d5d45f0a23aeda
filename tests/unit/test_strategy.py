# SPDX-License-Identifier: GPL-3.0-or-later
"""Which strategy is recommended, by size, changes and restrictions, what is said of the others, and what each would cost."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import amounts, feasibility, strategy
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.feasibility import STRATEGIES, Allowed
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.measuring import (
    Measured,
    Server,
    Storage,
    Types,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.rates import Changes, Rates
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.strategy import Choice, Policy
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.replica_identity import Fault, Identity
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.tables import Table

MB, GB, TB = 1 << 20, 1 << 30, 1 << 40
HOUR, DAY = 3600, 86400
ROWS = 1_000_000

SERVER = Server(150018, "self-managed", False, "logical", 10, 10, 10, 10, None, None)
NO_TYPES = Types([], [], [])
ALLOWED = Allowed(replicas=1, restart=False, replica_superuser=True, native=True)
BOUNDS = {"dump": 10 * GB, "fdw": 100 * GB, "logical": 10 * TB}
KEYLESS = Fault(Identity("public", "log", "d", ()), "has no replica identity (no primary key)", True)


def counted(share: float | None, seconds: float = 30 * DAY, wal: float | None = 0.0) -> Rates | None:
    """Counters by which that share of the rows changes in an hour, beside their own arrival."""
    if share is None:
        return None
    return Rates(Changes(3600 * ROWS / seconds, share * ROWS, 0.0), wal, seconds)


def watched(share: float) -> Rates:
    return Rates(Changes(0.0, share * ROWS, 0.0), 0.0, 2.0)


def measured(size: float, **changed: Any) -> Measured:
    """Tables of that size, a fifth of which is indexes; *changed* may hold fields of the server too."""
    server = SERVER._replace(**{name: changed.pop(name) for name in Server._fields if name in changed})
    heap = int(size * 4 / 5)
    storage = [Storage(Table(1, "public", "t", "r"), heap, 0, int(size) - heap, ROWS, 10, False)]
    made = Measured(server, storage, 1, None, counted(0.001), [], [], NO_TYPES, [], [])
    return made._replace(**changed)


def recommended(found: Measured, current: str | None = None, **allowed: Any) -> Choice:
    policy = Policy(BOUNDS, 0.01, ALLOWED._replace(**allowed), current)
    return strategy.recommend(found, policy, feasibility.judge(found, policy.allowed))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, "dump"),
        (100 * MB, "dump"),
        (10 * GB - 1, "dump"),
        (10 * GB, "fdw"),
        (100 * GB - 1, "fdw"),
        (100 * GB, "logical"),
        (10 * TB - 1, "logical"),
        (10 * TB, "native"),
        (500 * TB, "native"),
    ],
)
def test_size_decides_first(size: int, expected: str) -> None:
    choice = recommended(measured(size))
    assert choice.strategy == expected
    assert choice.reason.startswith("The tables take ") and f"{expected} is meant for " in choice.reason


@pytest.mark.parametrize(
    ("size", "sample", "counters", "expected"),
    [
        # Small, and changing more and more.
        (GB, None, counted(0.0), "dump"),
        (GB, None, counted(0.0099), "dump"),
        (GB, None, counted(0.0101), "logical"),
        (GB, None, counted(5.0), "logical"),
        # What was watched wins over what was counted, and needs no age.
        (GB, watched(0.02), counted(0.0), "logical"),
        (GB, watched(0.0), counted(0.5), "dump"),
        # Nobody knows.
        (GB, None, None, "dump"),
        (GB, None, Rates(None, 0.0, DAY), "dump"),
        # Counters that are too young, and rows that were loaded since they began.
        (GB, None, counted(5.0, HOUR - 1), "dump"),
        (GB, None, counted(5.0, HOUR), "logical"),
        (GB, None, Rates(Changes(ROWS / 24, 0.0, 0.0), 0.0, DAY), "dump"),
        (GB, None, Rates(Changes(2 * ROWS / 24, 0.0, 0.0), 0.0, DAY), "logical"),
        # Larger, and hardly ever changing.
        (50 * GB, None, counted(0.0), "dump"),
        (50 * GB, None, counted(0.000099), "dump"),
        (50 * GB, None, counted(0.000101), "fdw"),
        (50 * GB, None, counted(0.0, 7 * DAY), "dump"),
        (50 * GB, None, counted(0.0, 7 * DAY - 1), "fdw"),
        (50 * GB, watched(0.0), None, "fdw"),
        (50 * GB, None, None, "fdw"),
        # Foreign tables show what is there, and logical replication follows, however often rows change.
        (50 * GB, None, counted(5.0), "fdw"),
        (TB, None, counted(0.0), "logical"),
        (TB, None, counted(5.0), "logical"),
        (20 * TB, None, counted(5.0), "native"),
    ],
)
def test_changes_decide_next(size: int, sample: Rates | None, counters: Rates | None, expected: str) -> None:
    choice = recommended(measured(size, sample=sample, counted=counters))
    assert choice.strategy == expected
    band = next((name for name, bound in BOUNDS.items() if size < bound), "native")
    assert ("of the rows change in an hour" in choice.reason) == (expected != band)


def test_the_share_is_in_the_reason() -> None:
    choice = recommended(measured(2 * GB, counted=counted(0.052)))
    assert choice.reason == (
        "The tables take 2 GB, and dump is meant for less than 10 GB, but 5.2 % of the rows change in an hour, and from 1 % on a "
        "copy is outdated too soon: logical follows them."
    )


@pytest.mark.parametrize(
    ("size", "changed", "allowed", "expected", "words"),
    [
        (50 * GB, {}, {"replica_superuser": False}, "dump", "only one may create extension postgres_fdw"),
        (50 * GB, {"types": NO_TYPES._replace(of_tables=["public.a"])}, {}, "logical", "the row types of public.a"),
        (TB, {"wal_level": "replica"}, {}, "fdw", "wal_level is replica, and changing it takes a restart, which is not"),
        (TB, {"wal_level": "replica"}, {"restart": True}, "logical", None),
        (TB, {"wal_level": "minimal"}, {"replica_superuser": False}, "dump", "wal_level is minimal"),
        (TB, {"slots": 2}, {"replicas": 2}, "logical", None),
        (TB, {"slots": 2}, {"replicas": 3}, "fdw", "of max_replication_slots, 2 are left and 3 are needed"),
        (TB, {"slots": 2}, {"replicas": 3, "restart": True}, "logical", None),
        (TB, {"senders": 0}, {}, "fdw", "of max_wal_senders, 0 are left and 1 is needed"),
        (TB, {"senders": 1}, {}, "logical", None),
        (TB, {"standby": True}, {"restart": True}, "fdw", "the server is a standby"),
        (TB, {"faults": [KEYLESS]}, {}, "fdw", "public.log has no replica identity (no primary key), so that UPDATE"),
        (TB, {"faults": [KEYLESS]}, {"replica_superuser": False}, "dump", "give it a primary key"),
        (TB, {"full": ["public.log"]}, {}, "logical", None),
        (TB, {}, {"replica_superuser": False}, "dump", "the login on the replicas may not create subscriptions"),
        (20 * TB, {}, {"native": False}, "logical", "PostgresML may not be installed"),
        (20 * TB, {"wal_level": "replica"}, {"native": False}, "fdw", "PostgresML may not be installed"),
        (20 * TB, {"wal_level": "replica"}, {"native": False, "replica_superuser": False}, "dump", "PostgresML may not"),
        # Small tables that change often: what is read from foreign tables is fresh too.
        (GB, {"counted": counted(1.0), "wal_level": "replica"}, {}, "fdw", "wal_level is replica"),
        (GB, {"counted": counted(1.0), "faults": [KEYLESS]}, {"replica_superuser": False}, "dump", "public.log has no"),
        # PostgresML in the primary stands in for nothing.
        (TB, {"wal_level": "replica"}, {"replica_superuser": False, "native": True}, "dump", "wal_level is replica"),
    ],
)  # fmt: skip
def test_what_is_not_possible_is_replaced(
    size: int, changed: dict[str, Any], allowed: dict[str, Any], expected: str, words: str | None
) -> None:
    choice = recommended(measured(size, **changed), **allowed)
    assert choice.strategy == expected
    if words is None:
        assert "can't be used" not in choice.reason
    else:
        assert f"can't be used here, so that {expected} is the nearest: " in choice.reason and words in choice.reason
    assert choice.reason.endswith(".") and choice.reason.count(". ") == 0


@pytest.mark.parametrize(
    ("service", "name", "remedy"),
    [
        ("rds", "Amazon RDS", "set rds.logical_replication to 1 in its parameter group"),
        ("cloudsql", "Cloud SQL", "set its flag cloudsql.logical_decoding to on"),
        ("azure", "Azure Database for PostgreSQL", "set its server parameter wal_level to logical in the portal"),
    ],
)
def test_a_managed_service_has_its_own_remedy_and_no_postgresml(service: str, name: str, remedy: str) -> None:
    """A restart that is allowed doesn't help: its configuration is not ours."""
    found = measured(TB, service=service, wal_level="replica", slots=0)
    verdicts = feasibility.judge(found, ALLOWED._replace(restart=True))
    assert not verdicts["logical"].feasible and not verdicts["native"].feasible
    assert verdicts["fdw"].feasible and verdicts["dump"].feasible
    assert f"{name} does it when you {remedy}" in verdicts["logical"].obstacles[0]
    assert "where the service is managed" in verdicts["logical"].obstacles[1]
    assert verdicts["native"].obstacles == [f"{name} doesn't let PostgresML be installed."]
    assert recommended(found, restart=True).strategy == "fdw"
    assert recommended(measured(TB, service=service)).strategy == "logical"


@pytest.mark.parametrize("major", [13, 14, 15, 16, 17, 18])
def test_every_major_version_gets_the_same(major: int) -> None:
    assert [recommended(measured(size, version=major * 10000)).strategy for size in (GB, 20 * GB, TB, 20 * TB)] == list(
        STRATEGIES
    )


@pytest.mark.parametrize(
    ("wal", "changed", "feasible"),
    [
        (None, {"free_disk": 0, "wal_limit": 0}, True),
        (0.0, {"free_disk": 0, "wal_limit": 0}, True),
        # 800 GB of rows take 40,960 seconds.
        (MB, {"free_disk": 2 * 40960 * MB}, True),
        (MB, {"free_disk": 2 * 40960 * MB - 2}, False),
        (MB, {"wal_limit": 40960 * MB}, True),
        (MB, {"wal_limit": 40960 * MB - 1}, False),
    ],
)
def test_the_wal_of_a_first_copy_needs_room(wal: float | None, changed: dict[str, Any], feasible: bool) -> None:
    found = measured(1000 * GB, counted=counted(0.0, wal=wal), **changed)
    assert feasibility.judge(found, ALLOWED)["logical"].feasible == feasible
    assert feasibility.judge(found, ALLOWED._replace(replicated=True))["logical"].feasible


@pytest.mark.parametrize(
    ("current", "size", "expected"),
    [
        ("dump", 10.9 * GB, "dump"),
        ("dump", 11.1 * GB, "fdw"),
        ("fdw", 9.2 * GB, "fdw"),
        ("fdw", 9 * GB, "dump"),
        ("fdw", 109 * GB, "fdw"),
        ("fdw", 111 * GB, "logical"),
        ("logical", 91 * GB, "logical"),
        ("logical", 90 * GB, "fdw"),
        ("logical", 10.9 * TB, "logical"),
        ("logical", 11.1 * TB, "native"),
        ("native", 9.2 * TB, "native"),
        ("native", 9 * TB, "logical"),
        # Only the bounds of what is in use give way.
        ("dump", 105 * GB, "logical"),
        ("logical", 9.5 * GB, "dump"),
    ],
)
def test_a_bound_counts_when_it_is_crossed_by_a_tenth(current: str, size: float, expected: str) -> None:
    choice = recommended(measured(size), current)
    assert choice.strategy == expected
    assert (f"within 10 % of what {current} is meant for" in choice.reason) == (
        expected == current and recommended(measured(size)).strategy != current
    )


@pytest.mark.parametrize(
    ("current", "size", "share", "expected"),
    [
        ("dump", GB, 0.0109, "dump"),
        ("dump", GB, 0.0111, "logical"),
        ("logical", GB, 0.0092, "logical"),
        ("logical", GB, 0.009, "dump"),
        ("dump", 50 * GB, 0.000109, "dump"),
        ("dump", 50 * GB, 0.000111, "fdw"),
        ("fdw", 50 * GB, 0.000092, "fdw"),
        ("fdw", 50 * GB, 0.00009, "dump"),
    ],
)
def test_so_does_how_often_rows_change(current: str, size: float, share: float, expected: str) -> None:
    assert recommended(measured(size, counted=counted(share)), current).strategy == expected


def test_the_warning_says_what_was_measured_which_bound_and_what_to_do() -> None:
    choice = recommended(measured(12 * GB), "dump")
    assert strategy.warning("dump", choice, "shop") == (
        'Distribution "shop" comes by dump, and fdw is recommended now: the tables take 12 GB, and fdw is meant for 10 GB to '
        "100 GB; to change over, set strategy: fdw for distribution shop and run distribute.yml."
    )
    assert strategy.warning("dump", choice, None).startswith("It comes by dump, and fdw is recommended now: ")


def test_all_four_are_told_with_what_speaks_for_and_against_them() -> None:
    found = measured(
        50 * GB,
        counted=counted(0.02),
        wal_level="replica",
        faults=[KEYLESS],
        types=Types(["citext", "vector"], ["xml"], []),
        left_out=[{"name": "public.sessions", "reason": "unlogged table"}],
        full=["public.b"],
    )
    policy = Policy(BOUNDS, 0.01, ALLOWED._replace(native=False, replica_superuser=False))
    told = strategy.alternatives(found, policy, feasibility.judge(found, policy.allowed))
    assert [(each["strategy"], each["feasible"]) for each in told] == [
        ("dump", True), ("fdw", False), ("logical", False), ("native", False),
    ]  # fmt: skip
    extensions = "The replicas need extensions citext, vector, which the columns' types are of"
    extensions += ": have a superuser create them there."
    assert told[0]["reasons"] == [
        "It is meant for less than 10 GB, and the tables take 50 GB.",
        "About 2 % of the rows change in an hour: a copy is outdated too soon.",
        extensions,
        "It doesn't bring public.sessions (unlogged table).",
        "Tables with columns of xml are copied as text, which is slower.",
    ]
    fdw, logical, native = (each["reasons"] for each in told[1:])
    assert fdw[1] == "About 2 % of the rows change in an hour, and what is read is what is there."
    assert "Each query reads the primary." in fdw and extensions in fdw
    assert logical[1] == "About 2 % of the rows change in an hour, and each change follows."
    assert len(logical) == 2 + 3 + 3 and "whose replica identity is FULL" in logical[5] and logical[6] == extensions
    assert native[0] == "It is meant for 10 TB and more, and the tables take 50 GB."
    assert native[-1] == "Training takes the primary's memory, about 603 MB for the largest table."
    unknown = found._replace(counted=None)
    told = strategy.alternatives(unknown, policy, feasibility.judge(unknown, policy.allowed))
    assert "not known" in told[0]["reasons"][1] and not any(
        "change in an hour" in str(each["reasons"]) for each in told
    )


def test_estimates() -> None:
    found = measured(1000 * GB, counted=counted(0.0, wal=MB))
    parts = [
        Storage(Table(number, "public", f"p{number}", "r", top=("public", "p")), 0, 0, 0, ROWS, 20, False)
        for number in (2, 3)
    ]
    costs = feasibility.estimate(found._replace(storage=[*found.storage, *parts]))
    memory = 2 * ROWS * (72 + 20 * 56)
    total = 1000 * GB
    assert costs["dump"] == (40960.0, 2 * total, 0, memory)
    assert costs["fdw"] == costs["native"] == (0.0, 0, 0, memory)
    assert costs["logical"] == (40960.0, total, 40960 * MB, memory)
    assert feasibility.estimate(found._replace(counted=None))["logical"].wal is None
    sampled = found._replace(sample=Rates(None, 2 * MB, 2.0))
    assert feasibility.estimate(sampled)["logical"].wal == 2 * 40960 * MB


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("10GB", 10 * GB),
        ("10 GB", 10 * GB),
        (" 1.5 tb ", 3 * TB // 2),
        ("512 kB", 512 << 10),
        ("1048576", MB),
        ("7B", 7),
        ("2PB", 2 << 50),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert amounts.parse_size("bounds.dump", text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1 GB", "10 gigs", "1e3", "10 GB 5", "1,000 MB", "1.GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(Refused, match=r"bounds\.fdw is .* which is no size: write a number of bytes, or one with kB"):
        amounts.parse_size("bounds.fdw", text)


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"), (1023, "1,023 B"), (1024, "1 kB"), (12.34 * GB, "12.3 GB"), (10 * GB - 1, "10 GB"), (170.4 * MB, "170 MB"),
        (10 * TB, "10 TB"), (5000 * (1 << 50), "5,000 PB"),
    ],
)  # fmt: skip
def test_sizes_are_written_so(count: float, words: str) -> None:
    assert amounts.size(count) == words


@pytest.mark.parametrize(
    ("fraction", "words"), [(0, "0 %"), (0.00012, "0.012 %"), (0.0123, "1.2 %"), (0.5, "50 %"), (12.5, "1,250 %")]
)
def test_shares_are_written_so(fraction: float, words: str) -> None:
    assert amounts.share(fraction) == words
