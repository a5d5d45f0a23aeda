# SPDX-License-Identifier: GPL-3.0-or-later
"""One Ansible task: the only place that knows AnsibleModule, check mode and diff, and where a module ends."""

from __future__ import annotations

import contextlib
import copy
import importlib
import tempfile
import traceback
from typing import Any, Callable, Iterator, Mapping, Sequence

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.postgresml.distributed.plugins.module_utils.errors import (
    DistributedError,
    Refused,
    Unreachable,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.client_tools import RunCommand
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import LOGIN_OPTIONS, Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session, database_exists
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import Change


class Task:
    """What a room below needs to know of the task it serves."""

    def __init__(self, module: Any) -> None:
        self.params: Mapping[str, Any] = module.params
        self.check_mode: bool = module.check_mode
        self.diff_mode: bool = module._diff  # the documented way to ask for it
        self.warn: Callable[[str], None] = module.warn
        self.run_command: RunCommand = module.run_command
        self.result: dict[str, Any] = {}
        self._settings: dict[str, str] = {}
        self._changes: list[str] = []
        self._before: dict[str, Any] | str | None = None
        self._after: dict[str, Any] | str | None = None

    def session(self) -> Session:
        """A session in the database of the C(login_*) options."""
        return Session(Endpoint.from_login(self.params), **self._settings)

    def session_or_none(self, **settings: str) -> Session | None:
        """The same, or None when there is no such database: in check mode, because an earlier task would have created it,
        and with C(state=absent), because then nothing that is in it is there."""
        endpoint = Endpoint.from_login(self.params)
        if (self.check_mode or self.params.get("state") == "absent") and not database_exists(endpoint):
            return None
        return Session(endpoint, **{**self._settings, **settings})

    def source_or_none(self, endpoint: Endpoint, **settings: str) -> Session | None:
        """A session at the source, or None in check mode when an earlier task would have opened the way there."""
        try:
            return Session(endpoint, **{**self._settings, **settings})
        except Unreachable as error:
            if not self.check_mode:
                raise
            self.warn("{0} In check mode this is taken for something that an earlier task would create.".format(error))
            return None

    @contextlib.contextmanager
    def lenient(self) -> Iterator[None]:
        """In check mode, let refusals be warnings: an earlier task may be about to remove their reason."""
        try:
            yield
        except Refused as error:
            if not self.check_mode:
                raise
            self.warn("In check mode only: {0}".format(error))

    def apply(self, session: Session | None, changes: Sequence[Change]) -> None:
        """Note *changes* and, outside check mode, carry them out."""
        self.note(*[change.words for change in changes])
        if session and not self.check_mode:
            session.apply(changes)

    def note(self, *words: str) -> None:
        """Say what changes."""
        self._changes.extend(words)

    def describe(self, before: dict[str, Any] | str | None, after: dict[str, Any] | str | None) -> None:
        """The two sides of the diff: what there is, or statements as text."""
        self._before, self._after = before, after

    def describe_statements(self, statements: Sequence[str]) -> None:
        """The diff of a task that runs *statements*."""
        self.describe(None, "".join("{0};\n".format(statement) for statement in statements))

    def finds_nothing_to_do(
        self, options: Mapping[str, Any], body: Callable[[Task], None], lock_timeout: str, **params: Any
    ) -> bool:
        """Whether another module, of *options* and *body*, would change nothing and warn of nothing with *params*: what its check
        mode says. It logs in as this task does, except for what *params* has of that, too."""
        said: list[str] = []
        other = copy.copy(self)
        login = {name: self.params[name] for name in LOGIN_OPTIONS}
        other.params = {**login, **{name: option.get("default") for name, option in options.items()}, **params}
        other.check_mode, other.diff_mode, other.warn = True, False, said.append
        other.result, other._changes, other._settings = {}, [], {"lock_timeout": lock_timeout}
        try:
            body(other)
        except DistributedError:
            return False
        return not other._changes and not said

    @property
    def outcome(self) -> dict[str, Any]:
        """What the module returns."""
        empty: Any = "" if isinstance(self._after, str) else {}
        return {
            "changed": bool(self._changes),
            "changes": self._changes,
            "diff": {"before": self._before or empty, "after": self._after or empty},
            **self.result,
        }


def run(options: dict[str, Any], body: Callable[[Task], None], info: bool = False, **constraints: Any) -> None:
    """Run *body* as an Ansible module whose options are *options* and the login options; with *info* it changes nothing."""
    module = AnsibleModule(argument_spec={**options, **LOGIN_OPTIONS}, supports_check_mode=True, **constraints)
    try:
        importlib.import_module("psycopg2")
    except ImportError:
        module.fail_json(msg=missing_required_lib("psycopg2"), exception=traceback.format_exc())
    tempfile.tempdir = module.tmpdir  # Ansible removes it, even when this process is killed
    task = Task(module)
    try:
        body(task)
    except DistributedError as error:
        module.fail_json(msg=str(error), **error.details)
    outcome = task.outcome
    if info:
        del outcome["changes"]
    if info or not task.diff_mode:
        del outcome["diff"]
    module.exit_json(**outcome)
