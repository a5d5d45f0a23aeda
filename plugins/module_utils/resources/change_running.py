# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the statements of a schema change on one server: in transactions that remember them, with short waits for locks."""

from __future__ import annotations

import itertools
import time
from typing import Any, Callable, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import (
    DistributedError,
    Refused,
    ServerRefused,
    TimedOut,
    Unreachable,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import (
    change_gate,
    change_indexes,
    change_pins,
    change_progress,
    change_settings,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.change_following import Subscriber
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.change_gate import Gate
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.change_progress import Holder, Progress
from ansible_collections.postgresml.distributed.plugins.module_utils.task import Task

_TRIED_AGAIN = ("55P03", "40P01")
"""No lock in time, and a deadlock: in both the server has undone the transaction, and others went on."""
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 10
_WORDS = 100
"""Characters of a statement in a sentence."""


class Part(NamedTuple):
    """Where a change is carried out."""

    holder: Holder
    gate: Gate | None
    subscriber: Subscriber | None = None

    @property
    def title(self) -> str:
        return "{0} of {1}".format(self.holder.words, self.holder.session.endpoint)

    def alone(self, end: float) -> None:
        """Wait until no other run is at work for this publication or subscription; the lock ends with the session."""
        while not self.holder.session.value(
            "SELECT pg_try_advisory_lock(hashtext('postgresml.distributed schema change'), hashtext(%s))",
            [self.holder.words],
        ):
            if time.monotonic() > end:
                raise TimedOut("Another run has been at a schema change of {0} all the time.".format(self.title))
            time.sleep(0.2)

    def given_up(self, params: Mapping[str, Any]) -> list[str]:
        """The changes that are unfinished here and won't be ended; those that were to have begun nowhere may have begun since."""
        return [
            entry.change
            for entry in self.holder.entries()
            if not entry.finished
            and (
                entry.change in params["abandon"] or (entry.change in params["abandon_unbegun"] and not entry.under_way)
            )
        ]


class Run:
    """One run of a task."""

    def __init__(self, task: Task, session: Session, part: Part, progress: Progress) -> None:
        self._task = task
        self._session = session
        self._part = part
        self.progress = progress
        self._at: int | None = None
        """the number of the statement that runs"""
        self._before: list[str] = list(task.params["before"])

    def describe(self, pending: Sequence[Mapping[str, Any]]) -> None:
        """Say what will be done."""
        pins = self._task.params["pins"]
        texts = self._before + [change_pins.shown(each["sql"], pins) for each in pending if each["sql"] is not None]
        self._task.note(
            *["Give up schema change {0}".format(change) for change in self._part.given_up(self._task.params)]
        )
        self._task.note(*["Run first: {0}".format(_short(sql)) for sql in self._before])
        for each in pending:
            if each["sql"] is None:
                self._task.note("Pass over statement {0}, which is for other servers".format(each["number"]))
            else:
                sql = _short(change_pins.shown(each["sql"], pins))
                self._task.note("Run statement {0}: {1}".format(each["number"], sql))
        self._task.describe_statements(texts)

    def loosen(self, end: float) -> None:
        """Run what goes before statements that the upstream runs first."""
        following = {"number": self.progress.done + 1}
        self._tried(lambda: self._transaction([]), [following], end)

    def carry_out(self, pending: Sequence[Mapping[str, Any]], end: float) -> None:
        """Run *pending*; neighbours that may share a transaction share one."""
        groups = [list(group) for _kind, group in itertools.groupby(pending, _index)]
        together = self._task.params["together"]
        if together and (len(groups) > 1 or _index(groups[0][0])):
            raise Refused("With together all statements have to run in one transaction.")
        for group in groups:
            if not _index(group[0]):
                self._tried(lambda group=group: self._transaction(group), group, end)  # type: ignore[misc]
                self._before = []
            else:
                for each in group:
                    self._outside(each, end)

    def _transaction(self, group: Sequence[Mapping[str, Any]]) -> None:
        """Run *group*, and remember it, in one transaction."""
        lock_timeout = self._task.params["lock_timeout"]
        last = group[-1]["number"] if group else self.progress.done
        after = self.progress._replace(done=last, begun=False)
        texts = self._before + [each["sql"] for each in group if each["sql"] is not None]
        with self._session.transaction():
            change_settings.take_on(self._session, self._task.params["settings"], texts)
            self._session.execute("SET LOCAL search_path = public")
            self._session.shorten_lock_timeout(lock_timeout)
            for number, sql in [(None, sql) for sql in self._before] + [(e["number"], e["sql"]) for e in group]:
                self._at = number
                if sql is not None:
                    self._session.execute(sql)
                    self._session.shorten_lock_timeout(min(lock_timeout, self._later_lock_timeout))
            self._at = None
            if group:
                self._part.holder.remember(after, self._part.given_up(self._task.params))
                self._pass_gate(last)
        self.progress = after

    @property
    def _later_lock_timeout(self) -> int:
        """Milliseconds. Whoever waits for what this transaction has locked, and holds what it waits for, must not be the one that
        the server ends for a deadlock."""
        timeout: int = self._session.value("SELECT setting::int FROM pg_settings WHERE name = 'deadlock_timeout'")
        return max(1, timeout // 2)

    def _pass_gate(self, last: int) -> None:
        gate, subscriber = self._part.gate, self._part.subscriber
        if not self._task.params["together"] or gate is None:
            return
        write = change_gate.open_ if subscriber else change_gate.close
        write(self._session, gate, self.progress.change, last)

    def _outside(self, each: Mapping[str, Any], end: float) -> None:
        """Run a statement that can't run in a transaction: it is remembered as begun before, and as done after it."""
        if self._before:
            self._tried(lambda: self._transaction([]), [each], end)
            self._before = []
        if not (self.progress.begun and self._done_before(each, end)):
            if not self.progress.begun:
                self._remember(begun=True)
            self._tried(lambda: self._concurrently(each, end), [each], end)
        self.progress = self.progress._replace(done=each["number"])
        self._remember(begun=False)

    def _remember(self, begun: bool) -> None:
        progress = self.progress._replace(begun=begun)
        self._part.holder.remember(progress, self._part.given_up(self._task.params))
        self.progress = progress

    def _done_before(self, each: Mapping[str, Any], end: float) -> bool:
        """Whether a run that died has done it. What it left half done is taken away."""
        index = each["builds"]
        if not index:
            return change_indexes.validity(self._session, each["drops"]) is None
        self._wait_for_locks(end)
        change_indexes.drop_invalid(self._session, index)
        return change_indexes.validity(self._session, index) is True

    def _wait_for_locks(self, end: float) -> None:
        """Let statements wait for whoever uses the table: this is no lock that others stand behind."""
        milliseconds = max(1000, int((end - time.monotonic()) * 1000))
        self._session.execute("SET lock_timeout = {0}".format(milliseconds))

    def _concurrently(self, each: Mapping[str, Any], end: float) -> None:
        self._at = each["number"]
        session = self._session
        self._wait_for_locks(end)
        try:
            session.execute("SET search_path = public")
            session.execute(each["sql"])
        except ServerRefused:
            session.execute("RESET search_path")
            if each["builds"]:
                change_indexes.drop_invalid(session, each["builds"])
            raise
        session.execute("RESET search_path")
        session.execute("RESET lock_timeout")

    def _tried(self, attempt: Callable[[], None], group: Sequence[Mapping[str, Any]], end: float) -> None:
        """Run *attempt*, again and again while locks are held by others."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                attempt()
                return
            except ServerRefused as error:
                if error.details.get("sqlstate") not in _TRIED_AGAIN or time.monotonic() + pause > end:
                    raise self._failure(error, group) from None
            except Unreachable as error:
                raise Unreachable(
                    "{0} What was committed until then is remembered: running the same schema change again goes on from "
                    "there.".format(error),
                    **error.details,
                ) from None
            time.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS)

    def _failure(self, error: DistributedError, group: Sequence[Mapping[str, Any]]) -> Refused:
        """What failed, what is done here, and how to go on."""
        if _index(group[0]):
            self._remember(begun=False)
        what = "What goes before statement {0}".format(group[0]["number"])
        if self._at is not None:
            what = "Statement {0} of {1}".format(self._at, self.progress.total)
        undone = "Nothing of it stays"
        if len(group) > 1:
            undone = "Nothing of statements {0} to {1} stays, which share a transaction".format(
                group[0]["number"], group[-1]["number"]
            )
        done = "no statement of it is done"
        if self.progress.done:
            done = "the first {0} of {1} are done".format(self.progress.done, self.progress.total)
        return Refused(
            "{0} failed. {1} {2}. Of schema change {3}, {4} on {5}. {6}".format(
                what,
                error,
                undone,
                self.progress.change,
                done,
                self._part.title,
                change_progress.way_out(self.progress.change),
            ),
            **{"progress": self.progress.as_result(), **error.details},
        )


def _index(each: Mapping[str, Any]) -> Any:
    """The index that a statement builds or drops outside of a transaction, if it does."""
    return each.get("sql") and (each["builds"] or each["drops"])


def _short(sql: str) -> str:
    """A statement in one line."""
    line = " ".join(sql.split())
    return line if len(line) <= _WORDS else line[: _WORDS - 3] + "..."
