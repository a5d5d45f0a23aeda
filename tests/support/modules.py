# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs of the collection's modules inside the test process."""

from __future__ import annotations

import importlib
import io
import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any
from unittest import mock

from ansible.module_utils import basic
from ansible.module_utils.common import warnings

try:
    # ansible-core 2.19 and later
    from ansible.module_utils import _internal
    from ansible.module_utils.testing import patch_module_args
except ImportError:
    _internal = None

    @contextmanager
    def patch_module_args(args: dict[str, Any] | None = None) -> Iterator[None]:
        """Give arguments to the module that runs within this context."""
        arguments = json.dumps({"ANSIBLE_MODULE_ARGS": args or {}}).encode()
        with mock.patch.object(basic, "_ANSIBLE_ARGS", arguments):
            yield


COLLECTION = "postgresml.distributed"


class ModuleFailed(Exception):
    """A module failed: its message, and the whole result in ``result``."""

    def __init__(self, msg: str, result: dict[str, Any]) -> None:
        super().__init__(msg)
        self.msg = msg
        self.result = result


def run_module(name: str, params: dict[str, Any], *, check: bool = False, diff: bool = True) -> dict[str, Any]:
    """Run a module and return the result it prints, whether it succeeds or fails."""
    main = importlib.import_module(f"ansible_collections.{COLLECTION}.plugins.modules.{name}").main
    output = io.StringIO()
    with tempfile.TemporaryDirectory(prefix="pgml-") as directory, ExitStack() as stack:
        arguments = {
            **params,
            "_ansible_module_name": f"{COLLECTION}.{name}",
            "_ansible_check_mode": check,
            "_ansible_diff": diff,
            "_ansible_tmpdir": directory,
            "_ansible_remote_tmp": directory,
            "_ansible_keep_remote_files": False,
        }
        stack.enter_context(patch_module_args(arguments))
        # A module has a process of its own, in which nobody has warned yet and no controller runs.
        for collected in ("_global_warnings", "_global_deprecations"):
            stack.enter_context(mock.patch.object(warnings, collected, type(getattr(warnings, collected))()))
        if _internal is not None:
            stack.enter_context(mock.patch.object(_internal, "is_controller", False))
        # It may put its files into its own directory, which is gone afterwards.
        stack.enter_context(mock.patch.object(tempfile, "tempdir", tempfile.tempdir))
        stack.enter_context(redirect_stdout(output))
        try:
            main()
        except SystemExit:
            pass
        else:
            raise RuntimeError(f"{name} ended without exit_json or fail_json")
    return _parse(name, output.getvalue())


def module(name: str, params: dict[str, Any], check: bool = False, diff: bool = True) -> dict[str, Any]:
    """Run a module and return its result, or raise ModuleFailed."""
    result = run_module(name, params, check=check, diff=diff)
    if result.get("failed"):
        raise ModuleFailed(result.get("msg", ""), result)
    return result


def _parse(name: str, output: str) -> dict[str, Any]:
    """Read what a module has printed, which may be nothing but its result."""
    try:
        result = json.loads(output)
    except ValueError as error:
        raise RuntimeError(f"{name} has not printed one result:\n{output}") from error
    if "warnings" in result:
        result["warnings"] = [_warning(item) for item in result["warnings"]]
    if "deprecations" in result:
        result["deprecations"] = [_deprecation(item) for item in result["deprecations"]]
    return result


def _warning(item: str | dict[str, Any]) -> str:
    """The text of a warning, which ansible-core 2.19 and later wrap in an object."""
    return item if isinstance(item, str) else item["event"]["msg"]


def _deprecation(item: dict[str, Any]) -> dict[str, Any]:
    """The text of a deprecation and when it takes effect."""
    return {"msg": _warning(item) if "event" in item else item["msg"], **{k: item.get(k) for k in ("version", "date")}}
