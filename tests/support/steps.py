# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps of a module that runs in a process of its own: what it did last, and where it is stopped or killed.

A step is behind the process when it has changed something that others see: a statement is committed, a job of a worker is
done, a snapshot is kept.
"""

from __future__ import annotations

import importlib
import os
import re
import signal
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.modules import COLLECTION

_SILENT = re.compile(r"\s*(SELECT(?! pg_(create|drop|terminate)| \* FROM pgml\.deploy)|WITH|SET|SHOW|LOCK)\b", re.I)


class Plan(NamedTuple):
    """What is to happen to the process."""

    directory: str
    """where STEPS and PAUSED are written"""
    kill: int | str | None = None
    """the number of a step, or what its words contain: the process kills itself after it"""
    pause: str | None = None
    """what the words of a step contain: the process waits after it as long as the file PAUSED is there"""
    constants: dict[str, Any] = {}
    """what modules of plugins/module_utils hold, such as C(transfer.chunks.SMALLEST_SPLIT)"""


STEPS, PAUSED = "steps", "paused"


def install(plan: Plan) -> None:
    """Have this process follow *plan*, but not the processes that it forks."""
    for path, value in plan.constants.items():
        module, _dot, name = path.rpartition(".")
        setattr(_module(module), name, value)
    _watch(_Steps(plan))


def _module(path: str) -> Any:
    return importlib.import_module(f"ansible_collections.{COLLECTION}.plugins.module_utils.{path}")


_FUNCTIONS = [
    ("resources.physical_record", "write"),
    ("resources.physical_record", "forget"),
    ("resources.data_directory", "carry_own_files"),
    ("resources.data_directory", "exchange"),
    ("resources.data_directory", "remove_cluster"),
    ("resources.data_directory", "remove"),
]
"""What changes files that outlive the process"""


class _Steps:
    """Counts the steps, and does what the plan says."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._process = os.getpid()
        self._directory = Path(plan.directory)
        self._number = 0
        self._paused = False

    def done(self, words: str) -> None:
        if os.getpid() != self._process:
            return
        self._number += 1
        with (self._directory / STEPS).open("a", encoding="utf-8") as file:
            file.write(f"{self._number} {' '.join(words.split())[:150]}\n")
        kill = self._plan.kill
        if kill == self._number or (isinstance(kill, str) and kill in words):
            os.kill(self._process, signal.SIGKILL)
        if self._plan.pause is not None and self._plan.pause in words and not self._paused:
            self._paused = True
            (self._directory / PAUSED).touch()
            while (self._directory / PAUSED).exists():
                time.sleep(0.02)


def _watch(steps: _Steps) -> None:
    session = _module("postgres.session").Session
    open_transactions: set[int] = set()

    def run(self: Any, statement: Any, *_others: Any) -> None:
        text = statement if isinstance(statement, str) else self.text_of(statement)
        if text == "BEGIN":
            open_transactions.add(id(self))
        elif text in ("COMMIT", "ROLLBACK"):
            open_transactions.discard(id(self))
            if text == "COMMIT":
                steps.done("COMMIT after " + last.get(id(self), ""))
        elif not _SILENT.match(text):
            last[id(self)] = text
            if id(self) not in open_transactions:
                steps.done(text)

    last: dict[int, str] = {}
    session.execute = _followed(session.execute, run)
    session.rows = _followed(session.rows, run)
    schedule = _module("resources.schedule").Schedule
    schedule.done = _followed(schedule.done, lambda _self, job, _rows: steps.done(f"done: {job.key[0]} {job.key[1]}"))
    keepers = _module("transfer.keepers").Keepers
    for name in ("__init__", "hold", "release"):
        setattr(keepers, name, _followed(getattr(keepers, name), _note(steps, f"keepers: {name}")))
    for path, name in _FUNCTIONS:
        place = _module(path)
        setattr(place, name, _followed(getattr(place, name), _note(steps, f"{path.rpartition('.')[2]}: {name}")))
    programs = _module("postgres.server_programs").ServerPrograms
    programs.run = _followed(programs.run, lambda _self, name, arguments, *_: steps.done(f"ran: {name} {arguments[0]}"))
    owner = _module("postgres.server_programs").Owner
    owner.write = _followed(owner.write, lambda _self, path, _text: steps.done(f"wrote: {path}"))
    owner.make_directory = _followed(owner.make_directory, lambda _self, path: steps.done(f"made: {path}"))
    guard = _module("transfer.slot_guard").SlotGuard
    for name in ("__init__", "created", "stay", "release"):
        setattr(guard, name, _followed(getattr(guard, name), _note(steps, f"slot guard: {name}")))
    known = _followed(lambda *_arguments: None, _note(steps, "keepers: tables are known"))
    hold = keepers.hold
    keepers.hold = lambda self, tables: (known(), hold(self, tables))[1]


def _note(steps: _Steps, words: str) -> Callable[..., None]:
    return lambda *_arguments: steps.done(words)


def _followed(function: Callable[..., Any], follower: Callable[..., None]) -> Callable[..., Any]:
    @wraps(function)
    def both(*arguments: Any) -> Any:
        result = function(*arguments)
        follower(*arguments)
        return result

    return both
