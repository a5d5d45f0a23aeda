# SPDX-License-Identifier: GPL-3.0-or-later
"""When progress is looked for, and that this is never a task's problem."""

from __future__ import annotations

import threading
from typing import Any
from unittest.mock import MagicMock

import pytest
from ansible_collections.postgresml.distributed.plugins.action.pgml_subscription import ActionModule
from ansible_collections.postgresml.distributed.plugins.plugin_utils import progress_watch

RUN = {"phase": "copy", "process": 7, "tables": 2, "tables_done": 1, "bytes": 100, "bytes_done": 50}
SEEN = {"changed": False, "run": RUN, "copies": [], "builds": [], "subscriptions": []}
TEXT = "[ml-1] copied 1 of 2 tables, 50 bytes of 100 bytes (50 %)"


class Screen:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.changed = threading.Event()

    def display(self, text: str, **_more: Any) -> None:
        self.lines.append(text)
        self.changed.set()

    def vvv(self, _text: str, host: str = "") -> None:
        self.changed.set()

    warning = display


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    screen = Screen()
    monkeypatch.setattr(progress_watch, "Display", lambda: screen)
    return screen


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """What runs pgml_progress_info."""
    looks = MagicMock(return_value=SEEN)
    monkeypatch.setattr(progress_watch._Looker, "run", lambda self, **_more: looks(self._task.args))
    return looks


def run(screen: Screen, seconds: Any = 0.01, wait: bool = True, **task: Any) -> dict[str, Any]:
    """Run the task, which ends when something was shown."""
    settings = {"check_mode": False, "no_log": False, "async_val": 0, "args": {"login_db": "ml", "name": "s"}, **task}
    mine = MagicMock(**settings)
    mine.copy.return_value = MagicMock(**settings)
    parts = ("connection", "play_context", "loader", "templar", "shared_loader_obj")
    action = ActionModule(task=mine, **{part: MagicMock() for part in parts})
    action._connection.has_native_async = False
    action._templar.template = lambda value: value
    action._remove_tmp_path = MagicMock()

    def module(**_more: Any) -> dict[str, Any]:
        screen.changed.wait(10 if wait else 0.2)
        return {"changed": True}

    action._execute_module = module
    return action.run(task_vars={"inventory_hostname": "ml-1", progress_watch.VARIABLE: seconds})


def test_it_is_shown_once_while_it_stays_the_same(screen: Screen, looks: MagicMock) -> None:
    """By the options with which the task logs in, and no others."""
    result = run(screen, args={"login_db": "ml", "ssl_rootcert": "x", "name": "s", "source": {"password": "secret"}})
    assert result["changed"] and screen.lines == [TEXT]
    assert looks.call_args.args == ({"login_db": "ml", "ssl_rootcert": "x"},)


@pytest.mark.parametrize(
    "task",
    [
        {"check_mode": True},
        {"no_log": True},
        {"async_val": 60},
        {"args": {"login_db": "ml", "state": "absent"}},
        {"args": {"login_db": "ml", "state": "finished"}},
        {"seconds": 0},
        {"seconds": "0"},
    ],
    ids=str,
)
def test_nobody_looks(screen: Screen, looks: MagicMock, task: dict[str, Any]) -> None:
    assert run(screen, wait=False, **task)["changed"]
    assert screen.lines == [] and not looks.called


def test_a_look_that_fails_is_no_failure(screen: Screen, looks: MagicMock) -> None:
    looks.side_effect = [OSError(), {"failed": True, "msg": "secret"}, *[SEEN] * 99]
    threads = threading.active_count()
    assert run(screen)["changed"]
    assert screen.lines in ([], [TEXT])
    assert threading.active_count() == threads, "the thread lives on"


def test_a_number_is_asked_for(screen: Screen, looks: MagicMock) -> None:
    run(screen, seconds="often")
    assert screen.lines == ["pgml_progress_seconds is 'often': a number of seconds is needed. No progress is shown."]
    assert not looks.called
