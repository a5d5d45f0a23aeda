# SPDX-License-Identifier: GPL-3.0-or-later
"""The programs that belong to one server on this host, run as the owner of its files."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import signal
import subprocess
from typing import Any, Callable, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused, ServerRefused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.client_tools import complaint

_PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that a process gets when its parent ends"""


class Owner(NamedTuple):
    """Whose files a server's are; PostgreSQL runs as nobody else."""

    uid: int
    gid: int
    home: str

    @classmethod
    def of(cls, path: str) -> Owner:
        """The owner of *path*. Raises Refused unless this process is that user, or may become it."""
        status = os.stat(path)
        try:
            account = pwd.getpwuid(status.st_uid)
        except KeyError:
            raise Refused(
                "{0} belongs to user id {1}, which has no account here.".format(path, status.st_uid)
            ) from None
        if os.geteuid() not in (0, status.st_uid):
            raise Refused(
                "{0} belongs to {1}, and this runs as another user: let the task become {1}.".format(
                    path, account.pw_name
                )
            )
        return cls(status.st_uid, status.st_gid, account.pw_dir)

    def give(self, path: str) -> None:
        """Make *path*, which this process has made, the owner's."""
        if os.geteuid() != self.uid:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def make_directory(self, path: str) -> None:
        """Make a directory that nobody else can look into."""
        os.mkdir(path, 0o700)
        self.give(path)

    def write(self, path: str, text: str) -> None:
        """Write a file that nobody else can read: as a whole, or not at all."""
        fresh = path + ".new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self.give(fresh)
        os.replace(fresh, path)
        synchronize(os.path.dirname(path))


def synchronize(path: str) -> None:
    """Have a file, or the names in a directory, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class ServerPrograms:
    """The programs in *directory*, such as C(pg_ctl)."""

    def __init__(self, directory: str, owner: Owner) -> None:
        self.directory = directory
        self._owner = owner

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def has(self, name: str) -> bool:
        return os.access(self.path(name), os.X_OK)

    def run(self, name: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
        """Run a program and return what it prints. It ends when this process does; what it has started as a service doesn't."""
        return self.finish(self.start(name, arguments, environment))

    def start(self, name: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Any:
        """Start a program that finish() waits for."""
        given = dict(os.environ if environment is None else environment)
        # AnsibleModule.run_command can neither become the owner nor have the program end with this process.
        return subprocess.Popen(  # pylint: disable=ansible-bad-function
            [self.path(name), *arguments],
            env={**given, "LC_ALL": "C", "HOME": self._owner.home},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=self._become(os.getpid()),
        )

    def finish(self, child: Any) -> str:
        """Wait until a program has ended and return what it prints."""
        with child:
            texts: list[str] = [text.decode("utf-8", "replace") for text in child.communicate()]
        if child.returncode:
            said = complaint(texts[1] or texts[0])
            raise ServerRefused("{0} said: {1}".format(os.path.basename(child.args[0]), said))
        return texts[0]

    def _become(self, parent: int) -> Callable[[], None]:
        """What the child does before it is the program. A change of user forgets the signal, so that comes first."""
        library: Any = ctypes.CDLL(None)
        owner, foreign = self._owner, os.geteuid() != self._owner.uid

        def become() -> None:
            if foreign:
                os.setgroups([])
                os.setgid(owner.gid)
                os.setuid(owner.uid)
            os.umask(0o077)
            library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

        return become
