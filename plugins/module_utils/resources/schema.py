# SPDX-License-Identifier: GPL-3.0-or-later
"""Table definitions on the target: compared with the source's, created and altered."""

from __future__ import annotations

import contextlib
from typing import Any, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import (
    DistributedError,
    Refused,
    Unreachable,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import SOURCE_OPTIONS, Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import (
    Change,
    compose,
    enumerate_names,
    identifier,
    listed,
    quoted,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import (
    column_types,
    comparing,
    definitions,
    difference,
    mending,
    missing,
    tables,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.column_types import Lack
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.comparing import Comparison
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.difference import Difference
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.missing import Scripts
from ansible_collections.postgresml.distributed.plugins.module_utils.resources.tables import Table
from ansible_collections.postgresml.distributed.plugins.module_utils.task import Task
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import ledger

OPTIONS: dict[str, Any] = {
    "source": {"type": "dict", "options": SOURCE_OPTIONS},
    "tables": {"type": "list", "elements": "raw", "default": []},
    "schemas": {"type": "list", "elements": "str", "default": []},
    "all_tables": {"type": "bool", "default": False},
    "exclude_tables": {"type": "list", "elements": "str", "default": []},
    "parts": {
        "type": "list",
        "elements": "str",
        "choices": ["types", "tables", "indexes", "constraints"],
        "default": ["tables", "indexes", "constraints"],
    },
    "mode": {"type": "str", "choices": ["check", *difference.MODES], "default": "check"},
    "fail_on": {
        "type": "list",
        "elements": "str",
        "choices": list(difference.CLASSES),
        "default": [difference.APPLY, difference.PRIMARY],
    },
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}


def manage(task: Task) -> None:
    """Bring the definitions of the task's options to the target, or drop the tables there."""
    params = task.params
    endpoint = Endpoint.from_source(params["source"]) if params["source"] else None
    session = task.session_or_none()
    with session or contextlib.nullcontext():
        if params["state"] == "absent":
            _drop(task, session, endpoint)
            return
        if endpoint is None:
            raise Refused("source is needed: it says where the definitions come from.")
        source = task.source_or_none(endpoint)
        if source is None:
            _predict_blindly(task, session)
            return
        with source:
            _bring(task, source, session)


def _predict_blindly(task: Task, session: Session | None) -> None:
    """In check mode, when the source can't be asked yet: what the target lacks of the tables that are named."""
    params = task.params
    if not set(params["parts"]) - {"types"}:
        return
    named = [request.name for request in tables.parse_requests(params["tables"]) or []]
    if session:
        keys = tables.parse_names(session, named)
        there = definitions.read(session, keys)
        lacking = [quoted(*key) for key in keys if key not in there]
        if params["all_tables"] and not tables.in_schemas(session, None):
            lacking.append("all of the database")
        filled = {table.schema for table in tables.in_schemas(session, None)}
        lacking += ["all of schema {0}".format(quoted(name)) for name in params["schemas"] if name not in filled]
    else:
        lacking = named + params["schemas"] + (["all of the database"] if params["all_tables"] else [])
    task.note(*["Create table {0}".format(label) for label in lacking])


def _bring(task: Task, source: Session, session: Session | None) -> None:
    task.result["left_out"] = []
    parts = set(task.params["parts"])
    lack = None
    if "types" in parts:
        if task.params["mode"] == "check":
            raise Refused("parts holds types, which are only brought: use mode=create_missing for them.")
        lack = _lacking_types(task, source, session)
    if parts - {"types"}:
        _bring_tables(task, source, session, lack)
    elif lack:
        _bring_types(task, source, session, lack)


def _lacking_types(task: Task, source: Session, session: Session | None) -> Lack:
    """The types that columns need and the target lacks, whether the tables are to come or not."""
    lack = column_types.read(source, session, task.params)
    task.note(*["Create {0}".format(words) for words in lack.words])
    if "tables" not in task.params["parts"]:
        task.result["left_out"] += lack.left_out
    if session:
        with task.lenient():
            column_types.refuse_unfit(source, session, lack)
    return lack


def _bring_types(task: Task, source: Session, session: Session | None, lack: Lack) -> None:
    if session and not task.check_mode:
        with Session(session.endpoint, lock_timeout=mending.TARGET_LOCK_TIMEOUT) as loader:
            missing.run(loader, column_types.statements(source, session, lack, task.run_command))


def _bring_tables(task: Task, source: Session, session: Session | None, lack: Lack | None) -> None:
    """Compare, and do what the mode says."""
    wanted = requested(source, task.params)
    comparison = comparing.compare(source, session, wanted, task.params["parts"])
    task.result["tables"] = [table.label for table in wanted]
    task.result["left_out"] += comparison.left_out
    task.result.update(comparison.as_result(session or source))
    if task.params["mode"] == "check":
        _judge(task, source, session, comparison)
    else:
        _mend(task, source, session, comparison, lack)


def _judge(task: Task, source: Session, session: Session | None, comparison: Comparison) -> None:
    """Fail when there is something of the classes that the task is to fail on."""
    _print(task, source, session, comparison, comparison.differences)
    serious = [each for each in comparison.differences if each.breaks in task.params["fail_on"]]
    if serious:
        raise Refused(_sentence(session or source, serious), **task.outcome)


def _sentence(session: Session, serious: Sequence[Difference]) -> str:
    """What is serious, and what mends it."""
    words = "; ".join(each.words for each in serious[:_SHOWN])
    more = "; and {0} more".format(len(serious) - _SHOWN) if len(serious) > _SHOWN else ""
    by_hand = sum(each.mended_by is None for each in serious)
    modes = [mode for mode in difference.MODES if any(each.mended_by == mode for each in serious)]
    remedies = []
    if modes:
        remedies.append("Run it with mode={0} to mend {1}.".format(modes[-1], "the others" if by_hand else "that"))
    if by_hand:
        remedies.insert(0, "{0} to be mended by hand.".format("1 has" if by_hand == 1 else "{0} have".format(by_hand)))
    return "Source and {0} don't fit: {1}{2}. {3}".format(session.endpoint, words, more, " ".join(remedies))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _mend(task: Task, source: Session, session: Session | None, comparison: Comparison, lack: Lack | None) -> None:
    """Mend on the target what the mode covers, and refuse what stays broken."""
    healing = _healing(task, session, comparison)
    gap = comparison.gap(source, session, healing, task.params["parts"])
    alterations = [each for each in healing if each.steps and not each.dumped]
    _print(task, source, session, comparison, healing)
    task.note(*[each.remedy for each in alterations], *gap.words)
    for each in alterations:
        if each.doubtful:
            task.warn(
                "{0}: what its rows hold may differ from the source's, so compare them.".format(_capital(each.words))
            )
    if session and not task.check_mode:
        if lack:
            _bring_types(task, source, session, lack)
        mending.mend(session.endpoint, alterations, missing.scripts(source, session, gap, task.run_command))
    left = [each for each in comparison.differences if each.breaks == difference.APPLY and each not in healing]
    left = [each for each in left if each.kind != "database"]
    if left and task.params["mode"] != difference.CREATE:
        raise Refused(_sentence(session or source, left), **task.outcome)


def _healing(task: Task, session: Session | None, comparison: Comparison) -> list[Difference]:
    """What the mode mends; refuses what has to be mended before."""
    mode = task.params["mode"]
    healing = comparison.mended_by(mode)
    if "tables" not in task.params["parts"]:
        absent = [each for each in healing if each.kind == "table"]
        if absent and session and not task.check_mode:
            raise Refused("{0}: let parts hold tables.".format("; ".join(each.words for each in absent[:_SHOWN])))
        healing = [each for each in healing if each.kind != "table"]
    if mode == difference.CREATE:
        _refuse_unfit([each for each in comparison.differences if each.unfit and each not in healing])
    return healing


_SHOWN = 10


def _refuse_unfit(unfit: Sequence[Difference]) -> None:
    by_object: dict[str, list[str]] = {}
    for each in unfit:
        by_object.setdefault(each.object, []).append(each.words)
    if by_object:
        words = "; ".join(", ".join(found) for _label, found in sorted(by_object.items())[:_SHOWN])
        raise Refused(
            "Tables exist on the target and don't fit the source: {0}. Alter or drop them there, or see what mode=apply_additive "
            "and mode=apply would do.".format(words),
            differences=by_object,
        )


def _print(
    task: Task, source: Session, session: Session | None, comparison: Comparison, found: Sequence[Difference]
) -> None:
    """Show the DDL that mends *found*, if that is wanted. Ansible prints no diff of a task that fails, or changes nothing."""
    if task.diff_mode:
        gap = comparison.gap(source, session, found, task.params["parts"])
        scripts, lines = Scripts(), []
        try:
            if session:
                scripts = missing.scripts(source, session, gap, task.run_command)
        except DistributedError as error:
            lines.append("-- what has to be created can't be shown: {0}".format(error))
        lines += missing.shown(session or source, scripts.support) + _lines(session or source, found)
        for steps in (scripts.tables, *scripts.rest):
            lines += missing.shown(session or source, steps)
        task.result["ddl"] = lines
        task.describe(None, "".join(line + "\n" for line in lines))


def _lines(session: Session, found: Sequence[Difference]) -> list[str]:
    """Statements in the order in which they run, with what each mends above it; what is made from the dump comes after them."""
    lines: list[str] = []
    told: set[str] = set()
    for each, statement in mending.in_order([each for each in found if each.mended_by and not each.dumped]):
        if each.words not in told:
            lines.append(_comment(each))
            told.add(each.words)
        lines.append("{0};".format(session.text_of(statement)))
    others = [each for each in found if each.words not in told]
    for each in sorted(others, key=lambda each: each.dumped):
        lines.append(_comment(each))
        if not each.dumped:
            # A script of all lines must not run what is for the source, or to be thought about.
            lines += [_commented("{0};".format(session.text_of(statement))) for statement in each.statements]
    return lines


def _commented(text: str) -> str:
    """Names may hold line breaks, after which SQL would begin."""
    return "\n".join("-- " + line for line in text.splitlines())


def _comment(each: Difference) -> str:
    where = "; on the source" if each.breaks == difference.PRIMARY and each.steps else ""
    by_hand = "; think about it" if each.steps and each.mended_by is None and not where else ""
    return _commented("{0} ({1}{2}{3})".format(each.words, each.breaks, where, by_hand))


def requested(source: Session, params: Mapping[str, Any]) -> list[Table]:
    """The tables that the options name on the source, with their partitions."""
    if params["all_tables"]:
        # What this collection remembers on a source that is a replica, too, is that server's own.
        found = [table for table in tables.in_schemas(source, None) if table.schema != ledger.SCHEMA]
    else:
        found = tables.resolve(source, tables.parse_requests(params["tables"]) or [])
        keys = {table.key for table in found}
        others = tables.in_schemas(source, params["schemas"]) if params["schemas"] else []
        found += [table for table in others if table.key not in keys]
    found = tables.with_partitions(source, found)
    excluded = set(tables.parse_names(source, params["exclude_tables"]))
    unknown = excluded - {table.key for table in found}
    if unknown and params["state"] == "present":
        raise Refused(
            "exclude_tables: {0} is not among the tables that are asked for.".format(
                enumerate_names(quoted(*key) for key in unknown)
            )
        )
    gone = {table.oid for table in tables.with_partitions(source, [t for t in found if t.key in excluded])}
    return [table for table in found if table.oid not in gone]


def _drop(task: Task, session: Session | None, endpoint: Endpoint | None) -> None:
    """Drop the tables on the target that the options name; which those of a schema are, the source says."""
    params = task.params
    if session is None:
        return
    if params["schemas"] or params["all_tables"]:
        if endpoint is None:
            raise Refused("source is needed: it says which tables of a schema or a database are meant.")
        source = task.source_or_none(endpoint)
        if source is None:
            return
        with source:
            _refuse_source(source, session)
            keys = [table.key for table in requested(source, params)]
    else:
        with contextlib.suppress(Unreachable), contextlib.ExitStack() as stack:
            if endpoint:
                _refuse_source(stack.enter_context(Session(endpoint)), session)
        keys = tables.parse_names(session, [request.name for request in tables.parse_requests(params["tables"]) or []])
    there = definitions.read(session, keys)
    task.describe({"tables": sorted(quoted(*key) for key in there)}, None)
    if there:
        names = listed([identifier(*key) for key in sorted(there)])
        words = "Drop table {0}".format(enumerate_names(quoted(*key) for key in there))
        task.apply(session, [Change(compose("DROP TABLE {names}", names=names), words)])


def _refuse_source(source: Session, session: Session) -> None:
    if source.is_same_database(session):
        raise Refused("{0} is source and target at once: its tables are not dropped.".format(session.endpoint.title))
