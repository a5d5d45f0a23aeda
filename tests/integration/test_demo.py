# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo of README: what it shows, a second run, and what is left when it is removed, be it after the machine was restarted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support import majors, playbooks
from tests.support.cluster import free_port, make_directory
from tests.support.pair import wait_for

pytestmark = pytest.mark.slow


class Demo:
    """The demo in a directory and on ports of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.servers = directory / "demo"
        self._ports = [free_port(), free_port()]

    def run(self, **variables: Any) -> playbooks.Run:
        given = {
            "pgml_demo_directory": str(self.servers),
            "pgml_demo_primary_port": self._ports[0],
            "pgml_demo_replica_port": self._ports[1],
            **variables,
        }
        playbook = playbooks.REPOSITORY / "playbooks" / "demo.yml"
        process = subprocess.run(
            [playbooks.program("ansible-playbook"), str(playbook), "--extra-vars", json.dumps(given)],
            cwd=playbooks.REPOSITORY,
            env=playbooks.Ansible(self._directory).environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=480,
        )
        return playbooks.Run(process.returncode, process.stdout)

    def pid_files(self) -> list[Path]:
        return list(self.servers.glob("*/postmaster.pid"))

    def stop(self) -> None:
        for path in self.pid_files():
            os.kill(int(path.read_text().splitlines()[0]), signal.SIGQUIT)
        wait_for(lambda: not self.pid_files())

    def lose_power(self) -> None:
        """Leave the servers' files as a restart of the machine does: with the number of a process that is no more."""
        texts = {path: path.read_text() for path in self.pid_files()}
        self.stop()
        nobody = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
        for path, text in texts.items():
            path.write_text(text.replace(text.splitlines()[0], str(nobody), 1))
            shutil.chown(path, path.parent.owner())


@pytest.fixture
def demo() -> Iterator[Demo]:
    if not majors.installed():
        pytest.skip("the demo takes PostgreSQL's programs from where packages install them")
    directory = make_directory()
    made = Demo(directory)
    try:
        yield made
    finally:
        with suppress(ProcessLookupError):
            made.stop()
        shutil.rmtree(directory, ignore_errors=True)


def test_the_demo_shows_what_it_says_and_goes_again(demo: Demo) -> None:
    first = demo.run()
    assert first.ok, first.output
    assert first.changed and "comes by dump" in first.output and "arrived on the replica" in first.output
    assert (demo.servers / "status.html").is_file()
    again = demo.run()
    assert again.ok and not again.changed, again.output

    demo.lose_power()
    assert len(demo.pid_files()) == 2
    gone = demo.run(pgml_demo_state="absent")
    assert gone.ok, gone.output
    assert not demo.servers.exists()
