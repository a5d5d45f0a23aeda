# SPDX-License-Identifier: GPL-3.0-or-later
"""Every module is in the action group, so that the login options can be given once for all of them."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path.stem for path in (ROOT / "plugins" / "modules").glob("*.py"))


def documentation(module: str) -> dict[str, Any]:
    """What a module says of itself, without what it takes from fragments."""
    tree = ast.parse((ROOT / "plugins" / "modules" / f"{module}.py").read_text(encoding="utf-8"))
    (text,) = (
        node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and [getattr(target, "id", "") for target in node.targets] == ["DOCUMENTATION"]
        and isinstance(node.value, ast.Constant)
    )
    return yaml.safe_load(text)


def test_the_group_is_all_modules() -> None:
    runtime = yaml.safe_load((ROOT / "meta" / "runtime.yml").read_text(encoding="utf-8"))
    assert MODULES
    assert runtime["action_groups"] == {"pgml": MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_each_says_so_and_takes_the_login_options(module: str) -> None:
    fragments = documentation(module)["extends_documentation_fragment"]
    assert {"postgresml.distributed.attributes.action_group", "postgresml.distributed.login"} <= set(fragments)
