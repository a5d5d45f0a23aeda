# SPDX-License-Identifier: GPL-3.0-or-later
"""The report as lines on a screen, and in one sentence."""

from __future__ import annotations

from typing import Any, Iterable, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.plugin_utils.status_facts import (
    GOOD,
    VERDICTS,
    count_text,
    size_text,
    time_text,
)

_MARKS = ("ok", "!", "X")
_MOST_NAMED = 5


def summary(report: Mapping[str, Any]) -> str:
    """What is worst, by name; one sentence for monitoring."""
    told = [*report["distributions"], *report["models"]]
    if report["level"] == GOOD:
        return "All is good: {0} on {1}.".format(
            count_text(len({each["distribution"] for each in report["distributions"]}), "distribution"),
            count_text(len({each["replica"] for each in report["distributions"]}), "replica"),
        )
    down = [host["name"] for host in report["hosts"] if host["level"] == report["level"]]
    named = ["{0} is down".format(name) for name in down]
    named += [
        "{0} on {1}: {2}".format(*label(each), each["state"])
        for each in told
        if each["level"] == report["level"] and label(each)[1] not in down
    ]
    named = named or [
        "{0} {1} on {2} belongs to nothing".format(each["kind"], each["name"], each["host"])
        for each in report["strays"]
        if each["removable"]
    ]
    text = "; ".join(named[:_MOST_NAMED])
    if len(named) > _MOST_NAMED:
        text += "; and {0} more".format(len(named) - _MOST_NAMED)
    return "{0}: {1}.".format(VERDICTS[report["level"]].capitalize(), text)


def label(entry: Mapping[str, Any]) -> tuple[str, str]:
    """What an entry is about, and where."""
    if "project" in entry:
        return "model {0}".format(entry["project"]), entry["host"]
    return entry["distribution"], entry["replica"]


def lines(report: Mapping[str, Any]) -> list[str]:
    """The report as a table, with what is wrong below it."""
    rows = [HEAD, *(row(each) for each in report["distributions"])]
    found = _table(rows) if report["distributions"] else []
    if report["models"]:
        found += ["", *_table([MODEL_HEAD, *(model_row(each) for each in report["models"])])]
    found += ["", *_table([HOST_HEAD, *(host_row(each) for each in report["hosts"])])]
    details = list(_details(report))
    return [*found, *([""] if details else []), *details, "", report["summary"]]


HEAD = (
    "",
    "distribution",
    "replica",
    "from",
    "strategy",
    "state",
    "rows",
    "size",
    "lag",
    "behind",
    "WAL kept",
    "limit in",
    "age",
)


def row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    hours = entry["wal"]["hours_left"]
    return (
        _MARKS[entry["level"]],
        entry["distribution"],
        entry["replica"],
        entry["upstream"],
        entry["strategy"] + (" (auto)" if entry["automatic"] else ""),
        entry["state"],
        "-" if entry["rows"] is None else "{0:,}".format(entry["rows"]),
        size_text(entry["bytes"]),
        size_text(entry["lag"]["bytes"]),
        time_text(entry["lag"]["seconds"]),
        size_text(entry["wal"]["kept_bytes"]),
        "-" if hours is None else time_text(hours * 3600),
        time_text(entry["age"]),
    )


MODEL_HEAD = ("", "model of project", "host", "state", "serves", "of the trainer's", "trainer has")


def model_row(model: Mapping[str, Any]) -> tuple[str, ...]:
    ids = (model["served"], model["source_model"], model["trainer_model"])
    numbers = ["-" if each is None else str(each) for each in ids]
    return (_MARKS[model["level"]], model["project"], model["host"], model["state"], *numbers)


HOST_HEAD = ("", "host", "from", "state", "PostgreSQL", "WAL written", "WAL kept", "WAL limit", "free for WAL")


def host_row(host: Mapping[str, Any]) -> tuple[str, ...]:
    rate = host["wal_rate"]
    return (
        _MARKS[host["level"]],
        host["name"],
        host["upstream"] or "-",
        host["state"],
        host["version"] or "-",
        "-" if rate is None else size_text(rate) + "/s",
        size_text(host["wal_kept"]) if host["slots"] else "-",
        size_text(host["wal_limit"]) if host["wal_limit"] is not None or not host["version"] else "none",
        size_text(host["wal_space"]),
    )


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows with their columns below each other; those without a value anywhere are left out."""
    kept = [at for at in range(len(rows[0])) if at < 6 or any(row[at] not in ("-", "") for row in rows[1:])]
    widths = {at: max(len(row[at]) for row in rows) for at in kept}
    return ["  ".join(row[at].ljust(widths[at]) for at in kept).rstrip() for row in rows]


def _details(report: Mapping[str, Any]) -> Iterable[str]:
    """A line for everything that is not good, and what to do about it."""
    for host in report["hosts"]:
        for sentence in (host["error"], *host["outdated"]):
            if sentence:
                yield "{0}: {1}".format(host["name"], sentence)
    for entry in (*report["distributions"], *report["models"]):
        if entry["level"] > GOOD and entry["state"] != "replica down":
            told = [entry["error"], *entry["warnings"], entry["remedy"]]
            yield "{0} on {1}: {2}".format(*label(entry), " ".join(filter(None, told)))
    for stray in report["strays"]:
        yield stray_text(stray) + (" Remove it with pgml_status_clean=true." if stray["removable"] else "")


def stray_text(stray: Mapping[str, Any]) -> str:
    return "{0} {1} of database {2} on {3} belongs to nothing here: {4}.".format(
        stray["kind"].capitalize(), stray["name"], stray["database"], stray["host"], stray["reason"]
    )
