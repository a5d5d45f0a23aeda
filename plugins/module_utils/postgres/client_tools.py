# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL's client programs: the right major version, run without secrets in argv, their errors as sentences."""

from __future__ import annotations

import glob
import os
import re
import shutil
from typing import Any, Callable, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused, ServerRefused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import Endpoint

_DIRECTORIES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin")
"""Where Debian's and the PostgreSQL project's packages put the programs of each major version."""


RunCommand = Callable[..., Any]


class Program(NamedTuple):
    """A client program."""

    path: str
    major: int


_MAJORS: dict[str, int] = {}
"""Major versions by path, asked once."""


class Tools:
    """The client programs of this host. *run_command* is AnsibleModule's."""

    def __init__(self, run_command: RunCommand) -> None:
        self._run_command = run_command

    def find(self, name: str, major: int) -> Program:
        """The oldest *name* on this host that is not older than *major*: pg_dump refuses newer servers."""
        paths = [path for pattern in _DIRECTORIES for path in glob.glob(os.path.join(pattern, name))]
        on_path = shutil.which(name)
        programs = [Program(path, self._major(path)) for path in paths + ([on_path] if on_path else [])]
        fit = [program for program in programs if program.major >= major]
        if not fit:
            raise Refused(
                "{0} of PostgreSQL {1} or later is needed on this host, and {2}: install the client package, such as "
                "postgresql-client-{1} or postgresql{1}.".format(
                    name,
                    major,
                    "only {0} is here".format(max(program.major for program in programs))
                    if programs
                    else "none is here",
                )
            )
        return min(fit, key=lambda program: program.major)

    def run(self, program: Program, arguments: Sequence[str], endpoint: Endpoint | None = None) -> str:
        """Run a program, connected to *endpoint* if given, and return what it prints."""
        argv = [program.path, *arguments]
        if endpoint is None:
            return self._run(argv, program, None, "")
        with endpoint.environment() as environment:
            # run_command adds variables to those of this process and takes none away.
            others = [name for name in os.environ if name not in environment]
            return self._run(
                ["env", *["-u" + name for name in others], *argv], program, environment, " on {0}".format(endpoint)
            )

    def _run(self, argv: Sequence[str], program: Program, environment: dict[str, str] | None, where: str) -> str:
        code, output, errors = self._call(argv, environment)
        if code:
            said = complaint(errors.decode("utf-8", "replace"))
            raise ServerRefused("{0}{1} said: {2}".format(os.path.basename(program.path), where, said))
        return output.decode("utf-8")

    def _major(self, path: str) -> int:
        """The major version a program says it has; 0 when it doesn't run."""
        if path not in _MAJORS:
            try:
                _code, output, _errors = self._call([path, "--version"], None)
            except OSError:
                output = b""
            match = re.search(rb"\) (\d+)", output)
            _MAJORS[path] = int(match.group(1)) if match else 0
        return _MAJORS[path]

    def _call(self, argv: Sequence[str], environment: dict[str, str] | None) -> tuple[int, bytes, bytes]:
        """Run a program with exactly these arguments."""
        result: tuple[int, bytes, bytes] = self._run_command(
            list(argv), environ_update=environment, encoding=None, handle_exceptions=False, expand_user_and_vars=False
        )
        return result


def complaint(stderr: str) -> str:
    """The first error that a client program prints, without its own name."""
    lines = [line for line in stderr.splitlines() if line.strip()] or ["nothing"]
    errors = [line for line in lines if "error:" in line]
    text = re.sub(r"^\S+: (error: )?(query failed: )?", "", (errors or lines)[0]).strip()
    return text if text.endswith(".") else text + "."
