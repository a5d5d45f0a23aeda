# SPDX-License-Identifier: GPL-3.0-or-later
"""ansible-doc shows every module, filter and role, with all that a user looks for there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.majors import REPOSITORY

NAMESPACE = "postgresml.distributed."
NAMES = {
    "module": sorted(path.stem for path in REPOSITORY.glob("plugins/modules/pgml_*.py")),
    "filter": sorted(path.stem for path in REPOSITORY.glob("plugins/filter/*.yml")),
    "role": sorted(path.name for path in REPOSITORY.glob("roles/pgml_*")),
}


def ansible_doc(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ANSIBLE_")}
    environment |= {
        "ANSIBLE_COLLECTIONS_PATH": str(REPOSITORY / ".ansible" / "collections"),
        "LC_ALL": "C.UTF-8",
        "NO_COLOR": "1",
    }
    program = Path(sys.executable).with_name("ansible-doc")
    return subprocess.run(
        [program, *arguments], env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=True
    )


@pytest.mark.parametrize("kind", NAMES)
def test_everything_is_listed_and_rendered(kind: str) -> None:
    names = {NAMESPACE + name for name in NAMES[kind]}
    assert set(json.loads(ansible_doc("-t", kind, "--list", "--json", NAMESPACE[:-1]).stdout)) == names
    shown = ansible_doc("-t", kind, *sorted(names))
    assert "ERROR" not in shown.stderr
    for name in names:
        assert name in shown.stdout


@pytest.mark.parametrize("kind", ["module", "filter"])
def test_plugins_have_examples_versions_and_typed_results(kind: str) -> None:
    for name, shown in json.loads(
        ansible_doc("-t", kind, "--json", *(NAMESPACE + n for n in NAMES[kind])).stdout
    ).items():
        assert shown["doc"]["version_added"] and shown["doc"]["short_description"], name
        assert NAMESPACE in shown["examples"], name
        assert yaml.safe_load(shown["examples"]), name
        for key, value in shown["return"].items():
            assert value["description"] and value["type"], f"{name}: {key}"


def test_roles_describe_every_entry_point_and_option() -> None:
    roles: dict[str, Any] = json.loads(
        ansible_doc("-t", "role", "--json", *(NAMESPACE + n for n in NAMES["role"])).stdout
    )
    for name, role in roles.items():
        for entry_point, shown in role["entry_points"].items():
            label = f"{name}, {entry_point}"
            assert shown["short_description"] and shown["description"] and shown["version_added"], label
            assert set(_undescribed(shown["options"])) == set(), label


def _undescribed(options: dict[str, Any]) -> list[str]:
    found = []
    for name, option in options.items():
        if not option.get("description") or not option.get("type"):
            found.append(name)
        found += _undescribed(option.get("options", {}))
    return found
