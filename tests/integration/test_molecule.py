# SPDX-License-Identifier: GPL-3.0-or-later
"""The roles on hosts of their own: Molecule's scenarios, where containers can be run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.majors import REPOSITORY

pytestmark = pytest.mark.slow

MOLECULE = REPOSITORY / "molecule"
SCENARIOS = sorted(path.parent.name for path in MOLECULE.glob("*/molecule.yml"))
RUNS: list[tuple[str, dict[str, str]]] = [(name, {}) for name in SCENARIOS] + [("seed", {"PGML_TEST_SUITE": "trixie"})]
"""With what each has in its environment: PostgreSQL 17 has a program of its own that makes a copy a subscriber."""
SECONDS = 1500


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """What a user has who has activated this virtual environment; without an engine the tests are skipped."""
    engine = subprocess.run(["sh", MOLECULE / "resources" / "engine.sh"], capture_output=True, text=True)
    if engine.returncode != 0:
        pytest.skip(engine.stderr.strip())
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "ANSIBLE_"))}
    programs = Path(sys.executable).parent
    return {
        **inherited,
        "PATH": f"{programs}:{inherited['PATH']}",
        "LC_ALL": "C.UTF-8",
        "NO_COLOR": "1",
        "COLUMNS": "130",
    }


@pytest.mark.parametrize(
    ("scenario", "more"),
    [
        pytest.param(
            name,
            more,
            id="-".join([name, *more.values()]),
            marks=[] if name == "distributions" else pytest.mark.sampled(0),
        )
        for name, more in RUNS
    ],
)
def test_scenario(scenario: str, more: dict[str, str], environment: dict[str, str]) -> None:
    result = subprocess.run(
        ["molecule", "test", "--scenario-name", scenario],
        cwd=REPOSITORY,
        env={**environment, **more},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )
    assert result.returncode == 0, result.stdout[-10000:]
