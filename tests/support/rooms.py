# SPDX-License-Identifier: GPL-3.0-or-later
"""Databases that can run out of room."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.cluster import server_account
from tests.support.pair import Place, forget_subscriptions

_FILLER = "filler"


@contextmanager
def small(place: Place) -> Iterator[Path]:
    """Have a database on a file system of 64 MB, until the block ends; yields the file system's directory."""
    directory = Path(tempfile.mkdtemp(prefix="pgml-small-"))
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m,mode=0755", "pgml-small", str(directory)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        directory.rmdir()
        pytest.skip("a small file system can't be mounted by this user")
    server = place.cluster
    try:
        inside = directory / "tablespace"
        inside.mkdir()
        account = server_account()
        shutil.chown(directory, account["user"], account["group"])
        shutil.chown(inside, account["user"], account["group"])
        server.sql(f"CREATE TABLESPACE small LOCATION '{inside}'")
        server.sql(f'ALTER DATABASE "{place.database}" SET TABLESPACE small')
        try:
            yield directory
        finally:
            clear(directory)
            forget_subscriptions(place)
            server.drop_database(place.database)
            server.create_database(place.database)  # whoever made it drops it, too
            server.sql("DROP TABLESPACE small")
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)
        directory.rmdir()


def fill(directory: Path, leave: int) -> None:
    """Take all room of a file system but *leave* bytes."""
    status = os.statvfs(directory)
    with (directory / _FILLER).open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize - leave)


def clear(directory: Path) -> None:
    """Give the room back."""
    (directory / _FILLER).unlink(missing_ok=True)
