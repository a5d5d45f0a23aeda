# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings under which rows are loaded and indexes built."""

from __future__ import annotations

import os
import re

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session

_SHARE_OF_MEMORY = 8
"""The part of the free memory that all builds together may use."""
_MOST_MEGABYTES = 2048
_LOCAL = re.compile(r"^(/|localhost$|127\.|::1$|$)")


def settings(session: Session, jobs: int, encoding: str) -> dict[str, str]:
    """Settings of the sessions that *jobs* workers have at the target."""
    result = {
        "client_encoding": encoding,
        "synchronous_commit": "off",  # the transaction that shows the rows waits for all of them
        "lock_timeout": "60 s",
        "search_path": "pg_catalog",
    }
    megabytes = _memory(session, jobs)
    if megabytes:
        result["maintenance_work_mem"] = "{0} MB".format(megabytes)
    return result


def _memory(session: Session, jobs: int) -> int | None:
    """Megabytes for each of *jobs* builds: a part of what is free on the server's host, if that is this one, or of its
    shared_buffers. None when the server's own maintenance_work_mem is more."""
    own = int(session.value("SELECT setting FROM pg_settings WHERE name = 'maintenance_work_mem'")) // 1024
    if is_local(session):
        free = _free_megabytes() // _SHARE_OF_MEMORY
    else:
        pages = int(session.value("SELECT setting FROM pg_settings WHERE name = 'shared_buffers'"))
        free = pages * 8 // 1024 // 2
    share = min(free // jobs, _MOST_MEGABYTES)
    return share if share > own else None


def is_local(session: Session) -> bool:
    """Whether the session's server runs on this host, as far as its address tells."""
    return bool(_LOCAL.match(session.endpoint.keywords.get("host", "")))


def _free_megabytes() -> int:
    """Memory that programs could still get, of the host or of the container, see proc(5) and cgroups(7)."""
    try:
        with open("/proc/meminfo", encoding="ascii") as handle:
            free = int(re.findall(r"^MemAvailable:\s+(\d+) kB", handle.read(), re.MULTILINE)[0]) // 1024
    except (OSError, IndexError):
        return 0
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(limit, encoding="ascii") as handle:
                free = min(free, int(handle.read()) >> 20)
        except (OSError, ValueError):
            continue
    return free


def refuse_no_space(session: Session, size: int) -> None:
    """Refuse *size* bytes of rows that don't fit on the target's disk, as far as that can be seen from here."""
    place = free_bytes(session)
    if place and place[1] < size:
        raise Refused(
            "The rows take {0:,} MB and {1} has {2:,} MB free: make room on the target first.".format(
                size >> 20, place[0], place[1] >> 20
            )
        )


def free_bytes(session: Session) -> tuple[str, int] | None:
    """A directory of the target's database and the bytes free in it; None when it is on another host or closed to us."""
    if not is_local(session):
        return None
    row = session.row(
        "SELECT CASE WHEN pg_has_role(current_user, 'pg_read_all_settings', 'MEMBER') THEN"
        " coalesce(nullif(pg_tablespace_location(d.dattablespace), ''), current_setting('data_directory')) END AS directory"
        " FROM pg_database AS d WHERE d.datname = current_database()"
    )
    try:
        status = os.statvfs(row.directory or "")
    except OSError:
        return None
    return row.directory, status.f_bavail * status.f_frsize
