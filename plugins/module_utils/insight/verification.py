# SPDX-License-Identifier: GPL-3.0-or-later
"""Do source and target hold the same rows? Both are only read."""

from __future__ import annotations

import time
from typing import Any, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import (
    Refused,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.insight import (
    fence,
    hashing,
    moments,
    settling,
    subjects,
    subscribed,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.comparison import (
    Comparison,
    Verdict,
)
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.fence import Fence
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.moments import Moment, Servers
from ansible_collections.postgresml.distributed.plugins.module_utils.insight.subjects import Request, Subject
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.endpoint import SOURCE_OPTIONS, Endpoint
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import enumerate_names, quoted
from ansible_collections.postgresml.distributed.plugins.module_utils.resources import contents
from ansible_collections.postgresml.distributed.plugins.module_utils.task import Task
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer import workers

OPTIONS: dict[str, Any] = {
    "source": {"type": "dict", "options": SOURCE_OPTIONS, "required": True},
    "subscription": {"type": "str"},
    "tables": {"type": "list", "elements": "raw", "default": []},
    "schemas": {"type": "list", "elements": "str", "default": []},
    "all_tables": {"type": "bool", "default": False},
    "exclude_tables": {"type": "list", "elements": "str", "default": []},
    "method": {"type": "str", "choices": ["converge", "fence", "offline"], "default": "converge"},
    "jobs": {"type": "int"},
    "max_differences": {"type": "int", "default": 100},
    "lock_timeout": {"type": "int", "default": 500},
    "timeout": {"type": "int", "default": 3600},
}

_TABLES_AT_ONCE = 50
_BYTES_AT_ONCE = 1 << 30
"""How much is compared at a time, unless one table has more: no snapshot and no lock is held for longer than that takes."""

_SHOWN_CHARACTERS = 60
_SHOWN_COLUMNS = 8
"""Of a row that is named in a sentence."""


def manage(task: Task) -> None:
    """Compare what the task's options name."""
    params = task.params
    _refuse_options(params)
    began = time.monotonic()
    with task.session() as session, Session(
        Endpoint.from_source(params["source"]), synchronous_commit="local"
    ) as source:
        if source.is_same_database(session):
            raise Refused("{0} is source and target at once.".format(session.endpoint.title))
        for server in (source, session):
            server.without_timeouts()
        request = _request(source, session, params)
        verdicts = [Verdict(subject) for subject in request.subjects]
        _compare(source, session, params, verdicts)
        task.result.update(
            equal=all(verdict.equal for verdict in verdicts),
            summary=summary(verdicts),
            differences=[in_words(verdict) for verdict in verdicts if not verdict.equal],
            method=params["method"],
            tables=[verdict.as_result() for verdict in verdicts],
            not_compared=request.not_compared,
            sequences=_sequences(source, session, request.subjects),
            subscriptions=_subscriptions(session, request),
            **_unsound(session, request.subjects),
            seconds=round(time.monotonic() - began, 3),
        )


def _refuse_options(params: Mapping[str, Any]) -> None:
    named = bool(params["tables"] or params["schemas"] or params["all_tables"])
    if not (named or params["subscription"]):
        raise Refused("Nothing is asked for: name a subscription, tables or schemas, or set all_tables.")
    if params["subscription"] and (named or params["exclude_tables"]):
        raise Refused("subscription is given, and tables too: the tables are the subscription's, so leave them out.")
    for option, least in (("jobs", 1), ("max_differences", 0), ("lock_timeout", 1), ("timeout", 1)):
        if params[option] is not None and params[option] < least:
            raise Refused("{0} is {1}: the least is {2}.".format(option, params[option], least))


def _request(source: Session, session: Session, params: Mapping[str, Any]) -> Request:
    live = params["method"] != "offline"
    if live and source.value("SELECT pg_is_in_recovery()"):
        raise Refused(
            "The server of {0} is a standby, whose WAL can't be marked: let source be its primary, or use "
            "method=offline.".format(source.endpoint)
        )
    if params["subscription"]:
        return subjects.of_subscription(source, session, params["subscription"], live)
    return subjects.of_tables(source, session, params, live)


def _compare(source: Session, session: Session, params: Mapping[str, Any], verdicts: Sequence[Verdict]) -> None:
    method = params["method"]
    if method == "fence":
        fence.refuse(source, _subjects(verdicts), params["lock_timeout"])
    with Servers(source, session, workers.jobs(params["jobs"]), params["timeout"]) as servers:
        run = Comparison(servers, hashing.dialect(source, session), params["max_differences"])
        if method == "offline":
            _at_rest(run, verdicts)
        elif method == "fence":
            with fence.Fence(servers, params["lock_timeout"]) as made:
                _fenced(run, _groups(servers, verdicts), made)
        else:
            _converging(run, _groups(servers, verdicts))


def _groups(servers: Servers, verdicts: Sequence[Verdict]) -> list[list[Verdict]]:
    """The tables that share a moment, largest tables first."""
    sizes = hashing.sizes(servers.source, [verdict.subject.source for verdict in verdicts])
    groups: list[list[Verdict]] = []
    size = 0
    for verdict in sorted(verdicts, key=lambda each: -sizes[each.subject.source.oid]):
        size += sizes[verdict.subject.source.oid]
        if not groups or size > _BYTES_AT_ONCE or len(groups[-1]) == _TABLES_AT_ONCE:
            groups.append([])
            size = sizes[verdict.subject.source.oid]
        groups[-1].append(verdict)
    return groups


def _at_rest(run: Comparison, verdicts: Sequence[Verdict]) -> None:
    """Compare all tables under one moment."""
    restless = []
    with moments.at_rest(run.servers, _subjects(verdicts)) as moment:
        for group in _groups(run.servers, verdicts):
            restless += _spoilt(run, moment, group)
    if restless:
        raise Refused(
            "{0} {1} truncated or rewritten while it was read, and method=offline is for tables at rest.".format(
                enumerate_names(verdict.subject.label for verdict in restless), "was" if len(restless) == 1 else "were"
            )
        )


def _fenced(run: Comparison, groups: Sequence[Sequence[Verdict]], made: Fence) -> None:
    """Compare each group of tables under a moment in which both sides should be equal."""
    for group in groups:
        left = group
        while left:
            with made.moment(_subjects(left)) as moment:
                left = _spoilt(run, moment, left)


def _spoilt(run: Comparison, moment: Moment, verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Compare tables under *moment*, and return those for which that must be done again under another."""
    looks = run.first_look(moment, verdicts)
    return [verdict for verdict, look in zip(verdicts, looks) if not run.judge(moment, verdict, look)]


def _converging(run: Comparison, groups: Sequence[Sequence[Verdict]]) -> None:
    """Compare all tables once, and then those again that differed."""
    cases = []
    for group in groups:
        left = group
        while left:
            with moments.followed(run.servers, _subjects(left)) as moment:
                looks = list(zip(left, run.first_look(moment, left)))
            cases += [settling.Case(verdict, look) for verdict, look in looks if look and look.apart]
            left = [verdict for verdict, look in looks if not look]
    settling.settle(run, cases)


def _subjects(verdicts: Sequence[Verdict]) -> list[Subject]:
    return [verdict.subject for verdict in verdicts]


def summary(verdicts: Sequence[Verdict]) -> str:
    """One sentence about all tables."""
    differing = [verdict for verdict in verdicts if verdict.decided and not verdict.equal]
    undecided = [verdict for verdict in verdicts if not verdict.decided]
    count = len(verdicts)
    tables = "{0} table{1}".format(count, "" if count == 1 else "s")
    if not differing and not undecided:
        rows = sum(verdict.rows_source for verdict in verdicts)
        return "{0} {1} the same rows on both sides, {2:,} of them.".format(
            tables, "has" if count == 1 else "have", rows
        )
    sentences = []
    if differing:
        named = ["{0} ({1})".format(verdict.subject.label, _in_numbers(verdict)) for verdict in differing]
        sentences.append(
            "{0} of {1} {2}: {3}.".format(
                len(differing), tables, "differs" if len(differing) == 1 else "differ", enumerate_names(named)
            )
        )
    if undecided:
        sentences.append(
            "{0} of {1} {2} undecided, because the time was over before rows came to rest: {3}.".format(
                len(undecided),
                tables,
                "is" if len(undecided) == 1 else "are",
                enumerate_names(verdict.subject.label for verdict in undecided),
            )
        )
    return " ".join(sentences)


def in_words(verdict: Verdict) -> str:
    """The rows in which a table differs, as many as are named in a sentence."""
    kinds = (
        ("lacks", verdict.missing),
        ("has too many of", verdict.extra),
        ("has other values in", verdict.changed),
        ("may have other values in", verdict.undecided),
    )
    words = [
        "{0} {1}".format(verb, enumerate_names(["({0})".format(_row_in_words(row)) for row in rows]))
        for verb, rows in kinds
        if rows
    ]
    if not verdict.complete or not words:
        words.append("{0} differences that are not named".format("has" if verdict.decided else "may have"))
    return "{0} on the target {1}.".format(verdict.subject.label, ", ".join(words))


def _row_in_words(row: Mapping[str, str | None]) -> str:
    """Its key, or as much of it as tells."""
    values = [
        "{0}={1}".format(quoted(column), "NULL" if value is None else value[:_SHOWN_CHARACTERS])
        for column, value in list(row.items())[:_SHOWN_COLUMNS]
    ]
    return ", ".join(values) or "a row of no columns"


def _in_numbers(verdict: Verdict) -> str:
    counts = (("missing", verdict.missing), ("extra", verdict.extra), ("changed", verdict.changed))
    words = ["{0} {1}".format(len(rows), kind) for kind, rows in counts if rows]
    if not verdict.complete:
        words.append("and more" if words else "rows not looked for")
    return ", ".join(words).replace(", and", " and")


def _sequences(source: Session, session: Session, compared: Sequence[Subject]) -> list[dict[str, Any]]:
    """Where the sequences of the tables' columns stand on both sides."""
    here = contents.sequence_values(source, [subject.source.oid for subject in compared], ())
    keys = [(each.schema, each.name) for each in here]
    there = {(each.schema, each.name): each.value for each in contents.sequence_values(session, (), keys)}
    return [
        {"name": quoted(each.schema, each.name), "source": each.value, "target": there.get((each.schema, each.name))}
        for each in here
    ]


def _unsound(session: Session, compared: Sequence[Subject]) -> dict[str, list[str]]:
    """The target's indexes that queries can't use and constraints that nobody has checked, of the tables and their partitions."""
    query = (
        "WITH RECURSIVE below AS (SELECT oid FROM unnest(%s::oid[]) AS asked(oid)"
        " UNION SELECT i.inhrelid FROM below JOIN pg_inherits AS i ON i.inhparent = below.oid"
        "  JOIN pg_class AS c ON c.oid = i.inhrelid AND c.relispartition)"
        " SELECT 'invalid_indexes' AS kind, n.nspname AS schema, x.relname AS name, '' AS table FROM below"
        " JOIN pg_index AS i ON i.indrelid = below.oid AND NOT i.indisvalid"
        " JOIN pg_class AS x ON x.oid = i.indexrelid JOIN pg_namespace AS n ON n.oid = x.relnamespace"
        " UNION ALL SELECT 'unvalidated_constraints', n.nspname, k.conname, c.relname FROM below"
        " JOIN pg_constraint AS k ON k.conrelid = below.oid AND NOT k.convalidated"
        " JOIN pg_class AS c ON c.oid = below.oid JOIN pg_namespace AS n ON n.oid = c.relnamespace ORDER BY 1, 2, 4, 3"
    )
    result: dict[str, list[str]] = {"invalid_indexes": [], "unvalidated_constraints": []}
    for row in session.rows(query, [[subject.target.oid for subject in compared]]):
        name = quoted(row.schema, row.name)
        if row.table:
            name = "{0} of {1}".format(quoted(row.name), quoted(row.schema, row.table))
        result[row.kind].append(name)
    return result


def _subscriptions(session: Session, request: Request) -> list[dict[str, Any]]:
    """The state of the subscriptions that bring the tables."""
    result = []
    for feed in request.feeds:
        row = session.row(
            "SELECT s.subenabled, (SELECT max(received_lsn)::text FROM pg_stat_subscription WHERE subid = s.oid"
            " AND relid IS NULL) AS received FROM pg_subscription AS s WHERE s.oid = %s",
            [feed.oid],
        )
        states = subscribed.subscribed(session, feed.oid)
        result.append(
            {
                "name": feed.name,
                "enabled": row.subenabled if row else False,
                "received_lsn": row.received if row else None,
                "unready": {
                    quoted(*key): subscribed.STATES.get(state, state)
                    for key, state in sorted(states.items())
                    if state != subscribed.READY
                },
            }
        )
    return result
