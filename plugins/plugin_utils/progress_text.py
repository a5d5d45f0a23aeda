# SPDX-License-Identifier: GPL-3.0-or-later
"""What pgml_progress_info returns, as a line for people who wait."""

from __future__ import annotations

from typing import Any, Mapping, NamedTuple, Sequence

_MOST_NAMED = 4
_MOST_BUILDS = 3
_STEADY_SECONDS = 3
"""Between two looks at least, until a rate is worth telling."""
_PHASES = {
    "define": "making the tables",
    "attach": "tying the tables to each other",
    "exchange": "putting the tables in their place",
    "clean": "removing what is no longer needed",
    "validate": "checking foreign keys",
}
_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


class Look(NamedTuple):
    """What was seen, and when."""

    seconds: float
    """on any clock that doesn't jump"""
    seen: Mapping[str, Any]
    """what the module returned"""


def line(now: Look, before: Look | None, subscription: str | None) -> str | None:
    """What is going on *now*, with the rate since *before*; None when nothing is to be seen.

    :param subscription: the one that the task is about, so that others are left out
    """
    run = now.seen["run"]
    if run and run["phase"] == "catch up":
        return _catching_up(now, before)
    if run and run["phase"] in _PHASES:
        parts = [_PHASES[run["phase"]], *_copies(now.seen["copies"])]
    elif run:
        parts = _run(now, before)
    else:
        parts = _native(now, before, subscription)
    parts += _builds(now.seen["builds"])
    return "; ".join(parts) or None


def files_line(now: Look, before: Look | None) -> str | None:
    """What is going on *now* while pgml_physical_seed copies files, with the rate since *before*; None when nothing is."""
    files = now.seen.get("files")
    if not files:
        return None
    if files["complete"]:
        return "all files are there, making a replica of them"
    done, whole = files["bytes_done"], max(files["bytes"], files["bytes_done"], 1)
    text = "copied {0} of {1} of files ({2} %)".format(size(done), size(whole), done * 100 // whole)
    earlier = (before.seen.get("files") or {}) if before else {}
    if before is None or earlier.get("run") != files["run"]:
        return text
    return text + _rate(done - earlier["bytes_done"], now.seconds - before.seconds, whole - done)


def _run(now: Look, before: Look | None) -> list[str]:
    """A run that brings rows, or has brought them and builds on them."""
    run = now.seen["run"]
    copies = now.seen["copies"]
    if not copies and run["tables_done"] == run["tables"]:
        there = "all rows of {0} are there".format(_tables(run["tables"]))
        return [there] if now.seen["builds"] else ["{0}, checking and analyzing them".format(there)]
    done, whole = _brought(now), run["bytes"]
    text = "copied {0} of {1}".format(run["tables_done"], _tables(run["tables"]))
    if whole:
        text += ", {0} of {1} ({2} %)".format(size(done), size(whole), done * 100 // whole)
    return [text + _pace(now, before, whole), *_copies(copies)]


def _native(now: Look, before: Look | None, subscription: str | None) -> list[str]:
    """A first copy that PostgreSQL makes itself. How large it will be, the replica doesn't know."""
    found = [each for each in now.seen["subscriptions"] if each["name"] == subscription and each["unready"]]
    if not found:
        return _copies(now.seen["copies"])
    states = list(found[0]["unready"].values())
    text = "copied {0} of {1}".format(found[0]["ready"], _tables(found[0]["tables"]))
    behind = sum(state in ("copied", "catching up") for state in states)
    if behind:
        text += ", {0} catching up".format(behind)
    return [text + _pace(now, before, 0), *_copies(now.seen["copies"])]


def _catching_up(now: Look, before: Look | None) -> str:
    run = now.seen["run"]
    left = run["bytes"] - run["bytes_done"]
    text = "all rows are there, applying what was written meanwhile: {0} of WAL left".format(size(left))
    if before and (before.seen["run"] or {}).get("phase") == "catch up":
        text += _pace(now, before, run["bytes"])
    return text


def _brought(look: Look) -> int:
    """The bytes that are there, with those of copies that are under way."""
    run = look.seen["run"]
    return int(run["bytes_done"] if run else sum(copy["bytes_done"] for copy in look.seen["copies"]))


def _pace(now: Look, before: Look | None, whole: int) -> str:
    """The rate since *before*, and at that rate how long the rest of *whole* takes."""
    if before is None or (now.seen["run"] or {}).get("process") != (before.seen["run"] or {}).get("process"):
        return ""
    left = whole - _brought(now) if whole else None
    return _rate(_brought(now) - _brought(before), now.seconds - before.seconds, left)


def _rate(new: int, seconds: float, left: int | None) -> str:
    """What *new* bytes in *seconds* are as a rate, and at that rate how long what is *left* takes, if that is known."""
    if seconds < _STEADY_SECONDS or new < 0 or (new == 0 and left is None):
        return ""
    rate = new / seconds
    text = ", {0}/s".format(size(rate))
    return text if left is None or not rate else "{0}, {1} left".format(text, duration(left / rate))


def _copies(copies: Sequence[Mapping[str, Any]]) -> list[str]:
    """The tables that are being copied, the largest first."""
    named = [
        "{0} {1} of {2}".format(copy["name"], size(copy["bytes_done"]), size(copy["bytes"]))
        if copy["bytes"]
        else "{0} {1}".format(copy["name"], _rows(copy["rows"]))
        for copy in copies[:_MOST_NAMED]
    ]
    return ["copying " + _shortened(named, len(copies))] if named else []


def _builds(builds: Sequence[Mapping[str, Any]]) -> list[str]:
    named = []
    for build in builds[:_MOST_BUILDS]:
        step = build["step"].rpartition("building index: ")[2]
        share = " {0} %".format(min(100, build["done"] * 100 // build["total"])) if build["total"] else ""
        named.append("{0} ({1}{2})".format(build["table"], step, share))
    return ["building indexes of " + _shortened(named, len(builds))] if named else []


def _shortened(named: Sequence[str], count: int) -> str:
    more = count - len(named)
    return ", ".join(named) + (" and {0} more".format(more) if more else "")


def _tables(number: int) -> str:
    return "{0:,} table{1}".format(number, "" if number == 1 else "s")


def _rows(number: int) -> str:
    return "{0:,} row{1}".format(number, "" if number == 1 else "s")


def size(number: float) -> str:
    """Bytes in the unit that leaves the fewest digits, as PostgreSQL's pg_size_pretty() counts."""
    unit = 0
    while number >= 1000 and unit < len(_UNITS) - 1:
        number /= 1024
        unit += 1
    return (
        "{0:.1f} {1}".format(number, _UNITS[unit])
        if unit and number < 10
        else "{0:.0f} {1}".format(number, _UNITS[unit])
    )


def duration(seconds: float) -> str:
    """A time to wait, in units that fit."""
    if seconds < 90:
        return "{0:.0f} s".format(max(1, seconds))
    minutes = round(seconds / 60)
    return "{0} min".format(minutes) if minutes < 90 else "{0} h {1:02d} min".format(*divmod(minutes, 60))
