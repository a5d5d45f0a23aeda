# SPDX-License-Identifier: GPL-3.0-or-later
"""The report as the template of the HTML page takes it: every text ready, so that it only has to escape them."""

from __future__ import annotations

from typing import Any, Callable, Iterable, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.plugin_utils import status_picture, status_text
from ansible_collections.postgresml.distributed.plugins.plugin_utils.status_facts import (
    DEGRADED,
    GOOD,
    count_text,
    size_text,
    time_text,
)

_NUMBERS = ("rows", "size", "lag", "behind", "age", "limit in", "serves", "of the trainer's", "trainer has")


def status_page(report: Mapping[str, Any]) -> dict[str, Any]:
    """What filter status_page returns."""
    return {
        "level": report["level"],
        "summary": report["summary"],
        "checked_at": report["checked_at"],
        "pictures": status_picture.pictures(report),
        "notes": list(_notes(report)),
        "tables": list(_tables(report)),
        "contents": [_contents(each) for each in report["distributions"] if each["tables"]],
    }


def _notes(report: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    for host in report["hosts"]:
        if host["error"] or host["outdated"]:
            sentences = [*filter(None, [host["error"]]), *host["outdated"]]
            yield _note(host["level"], "{0}: {1}".format(host["name"], host["state"]), sentences)
    for entry in (*report["distributions"], *report["models"]):
        if entry["level"] > GOOD and entry["state"] != "replica down":
            title = "{0} on {1}: {2}".format(*status_text.label(entry), entry["state"])
            yield _note(entry["level"], title, [*filter(None, [entry["error"]]), *entry["warnings"]], entry["remedy"])
    for stray in report["strays"]:
        title = "{0} {1} on {2} belongs to nothing".format(stray["kind"].capitalize(), stray["name"], stray["host"])
        sentence = "In database {0}: {1}.".format(stray["database"], stray["reason"])
        remedy = "Remove it with pgml_status_clean=true." if stray["removable"] else None
        yield _note(DEGRADED if stray["removable"] else GOOD, title, [sentence], remedy)


def _note(level: int, title: str, sentences: Sequence[str], remedy: str | None = None) -> dict[str, Any]:
    return {"level": level, "title": title, "sentences": list(sentences), "remedy": remedy}


def _tables(report: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    yield _table("Distributions", status_text.HEAD, report["distributions"], status_text.row)
    if report["models"]:
        yield _table("Models", status_text.MODEL_HEAD, report["models"], status_text.model_row)
    yield _table("Servers", status_text.HOST_HEAD, report["hosts"], status_text.host_row)


def _table(
    title: str,
    head: Sequence[str],
    entries: Sequence[Mapping[str, Any]],
    cells: Callable[[Mapping[str, Any]], Sequence[str]],
) -> dict[str, Any]:
    """Without the first column, which only the screen needs."""
    columns = [{"name": name, "number": name in _NUMBERS or "WAL" in name} for name in head[1:]]
    return {
        "title": title,
        "columns": columns,
        "rows": [{"level": each["level"], "cells": list(cells(each)[1:])} for each in entries],
    }


def _contents(entry: Mapping[str, Any]) -> dict[str, Any]:
    tables = [
        (
            table["name"],
            table.get("state") or "{0} old".format(time_text(table.get("age"))),
            "{0:,}".format(table["rows"]),
            size_text(table["bytes"]),
        )
        for table in entry["tables"]
    ]
    noun = "snapshot" if entry["strategy"] == "fdw" else "table"
    title = "{0} on {1}: {2}".format(entry["distribution"], entry["replica"], count_text(len(tables), noun))
    return {"title": title, "tables": tables}
