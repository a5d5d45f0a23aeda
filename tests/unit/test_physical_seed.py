# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands against a physical copy, and the files that a cluster keeps as its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import physical
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.physical import (
    Database,
    Replica,
    Server,
    Upstream,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres import control_file
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.server_programs import (
    Owner,
    ServerPrograms,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import data_directory

LAYOUT = {"catalog_version_no": 202209061, "database_block_size": 8192}
SERVER = Server(150018, "x86_64-pc-linux-gnu", LAYOUT, "153.80", False)
UPSTREAM = Upstream(
    server=SERVER,
    databases=[Database("shop", "C.UTF-8", "C", "c", 1000)],
    libc=physical.c_library_version(),
    tablespaces={},
    extensions=frozenset({"plpgsql"}),
    libraries=frozenset(),
    bootstrap="postgres",
    standby={},
)
REPLICA = Replica(SERVER, frozenset({"plpgsql"}), "/nonexistent", (), (), 0, ())


def found(upstream: dict[str, Any], replica: dict[str, Any], **others: Any) -> list[str]:
    """The problems of two servers that differ from ours in these fields, be they of Server or of what holds it."""

    def changed(server: Any, fields: dict[str, Any]) -> Any:
        files = {name: value for name, value in fields.items() if name in Server._fields}
        rest = {name: value for name, value in fields.items() if name not in files}
        return server._replace(server=SERVER._replace(**files), **rest)

    arguments = {"tablespaces": {}, "replace": True, **others}
    return physical.problems(changed(UPSTREAM, upstream), changed(REPLICA, replica), **arguments)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = {
    "major version": (
        {"version": 140012}, {}, {},
        "The upstream is PostgreSQL 14.12 and the replica 15.18: files are alike only within a major version.",
    ),
    "layout": (
        {"layout": {**LAYOUT, "database_block_size": 4096}}, {}, {},
        "The servers were built with another database_block_size.",
    ),
    "processor": (
        {"platform": "aarch64-unknown-linux-gnu"}, {}, {},
        "The upstream was built for aarch64-unknown-linux-gnu and the replica for x86_64-pc-linux-gnu.",
    ),
    "upstream is a standby": ({"in_recovery": True}, {}, {}, "The upstream is a standby: copy from its primary."),
    "replica is a standby": (
        {}, {"in_recovery": True}, {}, "The replica is a standby, which follows its primary: promote it first.",
    ),
    "C library": (
        {"libc": "1.0"}, {}, {},
        f"The upstream's C library is of version 1.0 and this one's {physical.c_library_version()}: text is sorted otherwise, "
        "so that indexes would be wrong.",
    ),
    "ICU": (
        {"icu": None}, {}, {},
        "The upstream's ICU sorts by version none of its rules and the replica's by 153.80: indexes would be wrong.",
    ),
    "locale": (
        {"databases": [Database("a", "xx_YY.utf8", "C", "c", None)]}, {}, {},
        "This host lacks the locale xx_YY.utf8 of the upstream's databases: install it.",
    ),
    "extensions": (
        {"extensions": frozenset({"b", "a", "plpgsql"})}, {}, {},
        "The replica's server lacks the files of extensions a, b: install them.",
    ),
    "library": (
        {"libraries": frozenset({"$libdir/x"})}, {}, {},
        'The replica\'s server lacks library "$libdir/x" of the upstream.',
    ),
    "tablespace without a place": (
        {"tablespaces": {"fast": "/a"}}, {}, {},
        "Tablespace fast of the upstream has no place here: name a directory for it.",
    ),
    "tablespace at a relative path": (
        {"tablespaces": {"fast": "/a"}}, {}, {"tablespaces": {"fast": "a"}},
        "The directory a for tablespace fast is no absolute path.",
    ),
    "tablespace at a full place": (
        {"tablespaces": {"fast": "/a"}}, {}, {"tablespaces": {"fast": "/etc"}},
        "The directory /etc for tablespace fast is not empty.",
    ),
    "tablespace at a file": (
        {"tablespaces": {"fast": "/a"}}, {}, {"tablespaces": {"fast": "/etc/passwd"}},
        "The directory /etc/passwd for tablespace fast is not empty.",
    ),
    "tablespace at no place": (
        {"tablespaces": {"fast": "/a"}}, {}, {"tablespaces": {"fast": "/nonexistent/a"}},
        "There is no /nonexistent to make the directory of tablespace fast in.",
    ),
    "place for no tablespace": ({}, {}, {"tablespaces": {"fast": "/nonexistent"}}, "The upstream has no tablespace fast."),
    "tables of users": (
        {}, {"data": ["a", "B"]}, {"replace": False},
        "The replica's cluster holds tables of users in databases \"B\", a: allow it to be replaced, or remove them.",
    ),
    "subscriptions": (
        {}, {"subscriptions": ["s"]}, {},
        "The replica has subscription s, whose slots would stay on the upstream for ever: remove it first.",
    ),
    "slots": ({}, {"slots": ["s", "t"]}, {}, "Others read from slots s, t of the replica."),
    "readers": ({}, {"readers": 1}, {}, "A standby of the replica, or a backup, reads from it."),
}  # fmt: skip


def test_nothing_stands_against_two_servers_that_are_alike() -> None:
    assert found({}, {}) == []
    assert found({"version": 150001}, {"data": ["a"]}) == []
    assert (
        found({"platform": "x86_64-unknown-linux-musl", "databases": [Database("a", None, None, "i", None)]}, {}) == []
    )


@pytest.mark.parametrize("case", CASES)
def test_each_condition_is_one_sentence(case: str) -> None:
    upstream, replica, others, sentence = CASES[case]
    assert found(upstream, replica, **others) == [sentence]


def test_all_conditions_are_told_at_once() -> None:
    together = ("processor", "ICU", "locale", "extensions", "tables of users", "subscriptions", "slots")
    upstream: dict[str, Any] = {}
    replica: dict[str, Any] = {}
    for case in together:
        upstream.update(CASES[case][0])
        replica.update(CASES[case][1])
    assert sorted(found(upstream, replica, replace=False)) == sorted(CASES[case][3] for case in together)


def owner() -> Owner:
    return Owner(os.geteuid(), os.getegid(), "/")


def test_what_is_a_servers_own(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for directory in (old, new):
        for name in ("base", "global", "pg_wal", "conf.d", "log"):
            (directory / name).mkdir(parents=True)
        for name in ("PG_VERSION", "postgresql.conf", "base/1", "log/a.log", f"conf.d/{directory.name}.conf"):
            (directory / name).write_text(directory.name)
    (new / "their.key").touch()
    (old / "mine.key").symlink_to("/nonexistent")
    (old / "pg_log").symlink_to("/elsewhere")
    os.mkfifo(old / "fifo")
    old.chmod(0o750)
    for _ in range(2):  # again, after a run that ended in the middle
        data_directory.carry_own_files(str(old), str(new), owner())
    names = {str(path.relative_to(new)) for path in new.rglob("*")}
    assert names == {
        "base", "base/1", "global", "pg_wal", "conf.d", "conf.d/old.conf", "PG_VERSION", "postgresql.conf", "mine.key", "pg_log",
    }  # fmt: skip
    assert (new / "postgresql.conf").read_text() == "old" and (new / "PG_VERSION").read_text() == "new"
    assert os.readlink(new / "mine.key") == "/nonexistent"
    assert new.stat().st_mode & 0o777 == 0o750


def test_directories_exchange_their_names(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    data_directory.exchange(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (tmp_path / "a" / "b").exists() and (tmp_path / "b" / "a").exists()
    with pytest.raises(Refused, match="can't be exchanged: No such file or directory."):
        data_directory.exchange(str(tmp_path / "a"), str(tmp_path / "c"))
    assert data_directory.can_exchange(str(tmp_path / "a"), owner()) is None
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    assert "is a file system of its own" in str(data_directory.can_exchange("/proc", owner()))


def test_no_server_runs_without_a_process(tmp_path: Path) -> None:
    assert not data_directory.is_running(str(tmp_path))
    for text in ("", "x\n", f"{os.getpid()}\n", f"{1 << 22}\n"):
        (tmp_path / "postmaster.pid").write_text(text)
        assert not data_directory.is_running(str(tmp_path)), text
    with subprocess.Popen(["sleep", "60"], cwd=tmp_path) as process:
        (tmp_path / "postmaster.pid").write_text(f"{process.pid}\n")
        assert data_directory.is_running(str(tmp_path))
        process.kill()
    assert not data_directory.is_running(str(tmp_path))


def test_a_process_of_another_account_is_no_server_of_ours(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        os.chown(tmp_path, 65534, 65534)
    (tmp_path / "postmaster.pid").write_text("1\n")
    assert not data_directory.is_running(str(tmp_path))


def test_a_removed_cluster_takes_its_tablespaces_along(tmp_path: Path) -> None:
    cluster, place = tmp_path / "c", tmp_path / "t"
    (cluster / "pg_tblspc").mkdir(parents=True)
    for name in ("PG_15_202209061", "PG_16_202307071"):
        (place / name).mkdir(parents=True)
    (cluster / "PG_VERSION").write_text("15\n")
    (cluster / "pg_tblspc" / "16400").symlink_to(place)
    (cluster / "pg_tblspc" / "16401").symlink_to(tmp_path / "gone")
    data_directory.remove_cluster(str(cluster))
    assert not cluster.exists() and os.listdir(place) == ["PG_16_202307071"]


def test_a_control_file_that_is_no_control_file(tmp_path: Path) -> None:
    assert control_file.system_identifier(str(tmp_path)) is None
    (tmp_path / "global").mkdir()
    path = tmp_path / "global" / "pg_control"
    path.write_bytes(b"short")
    assert control_file.system_identifier(str(tmp_path)) is None
    path.write_bytes(bytes(range(256)) * 32)
    assert control_file.system_identifier(str(tmp_path)) == str(int.from_bytes(bytes(range(8)), "little"))
    with pytest.raises(Refused, match="has no checksum that fits"):
        control_file.give_new_identifier(str(tmp_path), owner(), ServerPrograms("/nonexistent", owner()))


def test_the_checksum_is_crc_32c() -> None:
    assert control_file._crc32c(b"123456789") == 0xE3069283
