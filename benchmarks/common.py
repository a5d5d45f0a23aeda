# SPDX-License-Identifier: GPL-3.0-or-later
"""What more than one benchmark needs: plays, medians, and the README that the tables are in."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from tests.support import majors

COLLECTIONS = majors.REPOSITORY / ".ansible" / "collections"
README = Path(__file__).with_name("README.md")

Tasks = list[dict[str, Any]]


class Ansible:
    """Runs plays in a directory of its own, in which everything lands that Ansible writes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "PG"))},
            "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
            "ANSIBLE_HOME": str(directory / "home"),
            "ANSIBLE_REMOTE_TEMP": str(directory / "remote"),
            "ANSIBLE_NOCOLOR": "1",
        }

    def run(self, tasks: Tasks) -> tuple[float, set[str]]:
        """Run a play of these tasks; returns the seconds it took and the names of the tasks that changed something."""
        play = {
            "hosts": "localhost",
            "connection": "local",
            "gather_facts": False,
            "vars": {"ansible_python_interpreter": sys.executable},
            "tasks": tasks,
        }
        playbook = self._directory / "playbook.yml"
        playbook.write_text(yaml.safe_dump([play], sort_keys=False), encoding="utf-8")
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", str(playbook)]
        start = time.perf_counter()
        result = subprocess.run(
            command, cwd=self._directory, env=self._environment, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - start
        if result.returncode != 0:
            raise RuntimeError(f"ansible-playbook failed ({result.returncode}):\n{result.stdout}{result.stderr}")
        return seconds, set(re.findall(r"^TASK \[(.*?)\] \*+\n(?:.+\n)*?changed: ", result.stdout, re.MULTILINE))


def spread(seconds: list[float]) -> str:
    """The median, the fastest and the slowest."""
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"


def version_of_theirs() -> str:
    """Which community.postgresql is there."""
    manifest = COLLECTIONS / "ansible_collections" / "community" / "postgresql" / "MANIFEST.json"
    return str(json.loads(manifest.read_text(encoding="utf-8"))["collection_info"]["version"])


def write(name: str, text: str) -> None:
    """Put a report between its marks in the README."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, has_begin, rest = README.read_text(encoding="utf-8").partition(begin)
    _, has_end, after = rest.partition(end)
    if not has_begin or not has_end:
        raise RuntimeError(f"{README} lacks the marks {begin} and {end}")
    README.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")
