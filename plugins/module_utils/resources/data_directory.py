# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a server on this host: which are its own, and how another cluster takes its place."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
from typing import Any, Iterator

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.server_programs import Owner, synchronize

_LOGS = {"log", "pg_log"}
_CLUSTER = _LOGS | {
    "PG_VERSION",
    "backup_label",
    "backup_label.old",
    "backup_manifest",
    "base",
    "current_logfiles",
    "global",
    "pg_commit_ts",
    "pg_dynshmem",
    "pg_logical",
    "pg_multixact",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_tblspc",
    "pg_twophase",
    "pg_wal",
    "pg_xact",
    "postmaster.opts",
    "postmaster.pid",
    "recovery.signal",
    "standby.signal",
    "tablespace_map",
    "tablespace_map.old",
}
"""What a cluster consists of, see https://www.postgresql.org/docs/current/storage-file-layout.html, and its log. The rest is a
server's own: its configuration, keys and certificates, and the link to a log that is elsewhere."""
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
"""renameat2(2)"""


@contextlib.contextmanager
def locked(directory: str) -> Iterator[None]:
    """Let nobody else who asks for it have *directory* in the block, nor when another one has got its name meanwhile."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise Refused("Another run is about to replace the cluster in {0}.".format(directory)) from None
    finally:
        os.close(descriptor)


def is_running(directory: str) -> bool:
    """Whether a server has the cluster in *directory*. The process that its lock file names may be another's by now."""
    try:
        with open(os.path.join(directory, "postmaster.pid"), encoding="utf-8") as file:
            process = "/proc/{0}".format(int(file.readline()))
        if os.stat(process).st_uid != os.stat(directory).st_uid:
            return False
        return os.path.samefile(os.path.join(process, "cwd"), directory)
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True


def measured(directory: str) -> int:
    """How many bytes the databases of the cluster in *directory* have, those in tablespaces included; it may change meanwhile."""
    found = 0
    for part in ("base", "pg_tblspc"):
        for place, _directories, names in os.walk(os.path.join(directory, part), followlinks=True):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    found += os.stat(os.path.join(place, name)).st_size
    return found


def carry_own_files(old: str, new: str, owner: Owner) -> None:
    """Give the cluster in *new* the server's own files from *old*, in place of those that came along with it."""
    for name in os.listdir(new):
        if name not in _CLUSTER or name in _LOGS:
            remove(os.path.join(new, name))
    for name in os.listdir(old):
        source, target = os.path.join(old, name), os.path.join(new, name)
        if name in _CLUSTER and not (name in _LOGS and os.path.islink(source)):
            continue
        if os.path.isdir(source) and not os.path.islink(source):
            shutil.copytree(source, target, symlinks=True)
        elif os.path.isfile(source) or os.path.islink(source):
            shutil.copy2(source, target, follow_symlinks=False)
        else:
            continue
        _settle(target, owner)
    os.chmod(new, os.stat(old).st_mode & 0o777)
    synchronize(new)


def exchange(one: str, other: str) -> None:
    """Have two directories of one file system change their names: at once, so that there is never none of the first name."""
    library: Any = ctypes.CDLL(None, use_errno=True)
    try:
        rename = library.renameat2
    except AttributeError:
        rename = None
    if rename is None or rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        code = ctypes.get_errno() if rename else errno.ENOSYS
        raise Refused("{0} and {1} can't be exchanged: {2}.".format(one, other, os.strerror(code)))
    for directory in (os.path.dirname(one), os.path.dirname(other)):
        synchronize(directory)


def can_exchange(directory: str, owner: Owner) -> str | None:
    """Why a directory beside *directory* couldn't take its place, in a sentence; None when it could."""
    if os.path.ismount(directory):
        return (
            "{0} is a file system of its own, which can't be moved aside: keep the data in a directory in it.".format(
                directory
            )
        )
    parent = os.path.dirname(directory)
    one, other = (os.path.join(parent, ".pgml_seed_probe_{0}_{1}".format(os.getpid(), side)) for side in "ab")
    try:
        owner.make_directory(one)
        owner.make_directory(other)
        exchange(one, other)
    except (OSError, Refused) as error:
        return "No directory can be put in the place of {0}: {1}".format(directory, str(error).rstrip(".") + ".")
    finally:
        for path in (one, other):
            shutil.rmtree(path, ignore_errors=True)
    return None


def _settle(path: str, owner: Owner) -> None:
    """Make *path* the owner's, with all in it, and have it on disk."""
    owner.give(path)
    if os.path.islink(path):
        return
    if os.path.isdir(path):
        for name in os.listdir(path):
            _settle(os.path.join(path, name), owner)
    synchronize(path)


def remove_cluster(directory: str) -> None:
    """Remove a cluster that nobody runs, with what it has in tablespaces; those go first, and a run may have ended after them."""
    links = os.path.join(directory, "pg_tblspc")
    with contextlib.suppress(FileNotFoundError):
        with open(os.path.join(directory, "PG_VERSION"), encoding="ascii") as file:
            version = file.read().strip()
        for name in os.listdir(links):
            empty_tablespace(os.path.join(links, name), version + "_")
    shutil.rmtree(directory)


def empty_tablespace(place: str, version: str = "") -> None:
    """Remove what clusters have in the directory of a tablespace, where those of other versions may have something, too."""
    for name in os.listdir(place) if os.path.isdir(place) else ():
        if name.startswith("PG_" + version):
            remove(os.path.join(place, name))


def remove(path: str) -> None:
    """Remove a file, or a directory with all in it."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)
