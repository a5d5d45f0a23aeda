# SPDX-License-Identifier: GPL-3.0-or-later
"""An action that runs a module as any task does, and shows meanwhile how far it is.

What it shows goes to standard error, as progress does: that is written at once even when it is no terminal, and standard
output stays what the callback makes of it.
"""

from __future__ import annotations

import contextvars
import copy
import threading
import time
from functools import partial
from typing import Any, Callable, Mapping, NamedTuple

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import LOGIN_OPTIONS
from ansible_collections.postgresml.distributed.plugins.plugin_utils import progress_text

VARIABLE = "pgml_progress_seconds"
_FIRST_SECONDS = 5.0
_GROWTH = 1.5
_MOST_SECONDS = 30.0
_ENDING_SECONDS = 10
_BRIEF = ("absent", "looked", "exchanged", "finished")
"""States of which there is nothing to tell"""
_LOGIN = {*LOGIN_OPTIONS, *[alias for option in LOGIN_OPTIONS.values() for alias in option.get("aliases", ())]}


class Outlook(NamedTuple):
    """How it is found out how far a task is, and told."""

    module: str
    """that is run"""
    arguments: Mapping[str, Any]
    """of it, beside those with which the task logs in"""
    line: Callable[[progress_text.Look, progress_text.Look | None], str | None]
    """what is told of a look and the one before"""


class WatchedAction(ActionBase):  # type: ignore[misc]
    """As Ansible's own action for modules, and beside it a thread that looks from time to time."""

    _supports_check_mode = True
    _supports_async = True

    def _outlook(self) -> Outlook:
        line = partial(progress_text.line, subscription=self._task.args.get("name"))
        return Outlook("postgresml.distributed.pgml_progress_info", {}, line)

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        wrap_async = self._task.async_val and not self._connection.has_native_async
        watch = self._watch(task_vars or {})
        try:
            result.update(self._execute_module(task_vars=task_vars, wrap_async=wrap_async))
        finally:
            if watch:
                watch.end()
        if not wrap_async:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        return result

    def _watch(self, task_vars: Mapping[str, Any]) -> _Watch | None:
        """The thread, unless there is nothing to see or it isn't to be shown."""
        args = self._task.args
        seconds = self._seconds(task_vars)
        silent = self._task.check_mode or self._task.no_log or self._task.async_val or args.get("state") in _BRIEF
        if silent or seconds <= 0:
            return None
        try:
            outlook = self._outlook()
            watch = _Watch(self._looker(outlook), task_vars, outlook, seconds)
            watch.start()
        except Exception as error:  # a connection plugin of somebody's that can't be had twice
            Display().vvv("no progress is shown: {0!r}".format(error))
            return None
        return watch

    def _seconds(self, task_vars: Mapping[str, Any]) -> float:
        value = self._templar.template(task_vars.get(VARIABLE, _FIRST_SECONDS))
        try:
            return float(value)
        except (TypeError, ValueError):
            Display().warning(
                "{0} is {1!r}: a number of seconds is needed. No progress is shown.".format(VARIABLE, value)
            )
            return 0

    def _looker(self, outlook: Outlook) -> _Looker:
        """An action of its own for the looks, since a connection and what hangs on it are for one thread at a time."""
        connection = copy.copy(self._connection)
        connection._shell = copy.copy(self._connection._shell)
        connection._shell.tmpdir = None
        connection.become = copy.copy(self._connection.become)
        task = self._task.copy(exclude_parent=True, exclude_tasks=True)
        task.args = {name: value for name, value in self._task.args.items() if name in _LOGIN}
        task.args.update(outlook.arguments)
        task.no_log = True  # it is no task of the user's, so the target's log need not know each look
        return _Looker(
            outlook.module,
            task=task,
            connection=connection,
            play_context=self._play_context,
            loader=self._loader,
            templar=self._templar,
            shared_loader_obj=self._shared_loader_obj,
        )


class _Looker(ActionBase):  # type: ignore[misc]
    """Runs the module that tells."""

    def __init__(self, module: str, **parts: Any) -> None:
        super().__init__(**parts)
        self._module = module

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        try:
            seen: dict[str, Any] = self._execute_module(self._module, dict(self._task.args), task_vars=task_vars)
            return seen
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
            self._connection._shell.tmpdir = None


class _Watch(threading.Thread):
    """Looks, and shows what it sees, until end(). What goes wrong with that is no concern of the task's."""

    def __init__(self, looker: _Looker, task_vars: Any, outlook: Outlook, seconds: float) -> None:
        super().__init__(daemon=True)
        self._looker = looker
        self._task_vars = task_vars
        self._outlook = outlook
        self._seconds = seconds
        self._over = threading.Event()
        self._showing = threading.Lock()
        self._context = contextvars.copy_context()  # where ansible-core keeps what it is doing

    def end(self) -> None:
        """Show no more, and wait for a look that is under way."""
        with self._showing:
            self._over.set()
        self.join(_ENDING_SECONDS)

    def run(self) -> None:
        self._context.run(self._look_on)

    def _look_on(self) -> None:
        pause = wanted = self._seconds
        before: progress_text.Look | None = None
        shown = None
        while not self._over.wait(pause):
            began = time.monotonic()
            now = self._look()
            text = now and self._outlook.line(now, before)
            if text and text != shown:
                self._show(text)
                shown = text
            before = now or before
            wanted = min(wanted * _GROWTH, max(self._seconds, _MOST_SECONDS))
            pause = max(wanted, time.monotonic() - began)  # whoever answers slowly is asked less often

    def _look(self) -> progress_text.Look | None:
        try:
            seen = self._looker.run(task_vars=self._task_vars)
        except Exception as error:
            self._say("no progress to be seen: {0}".format(type(error).__name__))
            return None
        if seen.get("failed") or "changed" not in seen:
            self._say("no progress to be seen")
            return None
        return progress_text.Look(time.monotonic(), seen)

    def _say(self, words: str) -> None:
        with self._showing:
            if not self._over.is_set():
                Display().vvv(words, host=self._host)

    def _show(self, text: str) -> None:
        with self._showing:
            if not self._over.is_set():
                Display().display("[{0}] {1}".format(self._host, text), color="cyan", stderr=True)

    @property
    def _host(self) -> str:
        return str(self._task_vars.get("inventory_hostname"))
