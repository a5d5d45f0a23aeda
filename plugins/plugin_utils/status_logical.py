# SPDX-License-Identifier: GPL-3.0-or-later
"""How a distribution by logical replication stands, from what both servers told."""

from __future__ import annotations

from typing import Any, Callable, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import enumerate_names
from ansible_collections.postgresml.distributed.plugins.plugin_utils import request
from ansible_collections.postgresml.distributed.plugins.plugin_utils.status_facts import (
    BROKEN,
    DEGRADED,
    GOOD,
    Case,
    Finding,
    count_text,
    size_text,
    time_text,
)

_ALREADY_THERE = ("insert_exists", "multiple_unique_conflicts", "update_exists")
_BEGIN_ANEW = (
    "Remove the subscription (pgml_subscription, state=absent), empty its tables, and run distribute to copy them."
)


def judge(case: Case) -> Finding:
    """The first thing that is wrong, the worst first."""
    for look in _LOOKS:
        finding = look(case)
        if finding:
            return finding._replace(warnings=(*finding.warnings, *_warnings(case)))
    return Finding("streaming", GOOD, warnings=tuple(_warnings(case)))


def lag(case: Case) -> dict[str, Any]:
    """How far the replica is behind the end of its upstream's WAL."""
    slot = case.slot
    return {
        "bytes": slot.get("behind_bytes"),
        "not_sent_bytes": slot.get("not_sent_bytes"),
        "not_flushed_bytes": slot.get("not_flushed_bytes"),
        "seconds": _lag_seconds(case),
    }


def _lag_seconds(case: Case) -> float | None:
    """Since when the replica is not level; None when that can't be known: nobody receives, and the server is older than 17."""
    slot, subscription = case.slot, case.subscription
    if not slot:
        return None
    if not slot["behind_bytes"]:
        return 0.0
    known = [slot["inactive_seconds"], slot["replay_lag_seconds"], subscription.get("level_seconds_ago")]
    return max((float(each) for each in known if each is not None), default=None)


def drift(case: Case) -> list[str]:
    """Differences between what is published and what the replica's tables can take, a sentence each."""
    offered = {table["name"]: table for table in case.offered.get("tables") or ()}
    there = {table["name"]: table for table in case.subscription.get("tables") or ()}
    if not offered or not there:
        return []
    found = [
        "{0} lacks {1}, which {2} publishes.".format(
            name, _columns(sorted(set(table["columns"]) - set(there[name]["columns"]))), case.upstream.name
        )
        for name, table in offered.items()
        if name in there and not set(table["columns"]) <= set(there[name]["columns"])
    ]
    new = [name for name in offered if name not in there]
    if new:
        words = "{0} publishes {1}, which the subscription doesn't receive yet: run distribute."
        found.append(words.format(case.upstream.name, enumerate_names(new)))
    gone = [name for name in there if name not in offered]
    if gone:
        found.append("{0} publishes no {1} any more.".format(case.upstream.name, enumerate_names(gone)))
    return found


def _columns(names: Sequence[str]) -> str:
    return "{0} {1}".format("column" if len(names) == 1 else "columns", enumerate_names(names))


def _replica_down(case: Case) -> Finding | None:
    if case.replica.reached:
        return None
    return Finding("replica down", BROKEN, case.replica.problem, "Start the server, or mend the way to it.")


def _not_wired(case: Case) -> Finding | None:
    if case.subscription:
        return None
    what = "{0} has no subscription {1} in database {2}".format(
        case.replica.name, request.object_name(case.name), case.target_database
    )
    if case.slot:
        return Finding(
            "slot orphaned",
            BROKEN,
            "{0}, and {1} keeps {2} of WAL for its slot {3}.".format(
                what, case.upstream.name, size_text(case.slot["retained_bytes"]), case.slot_name
            ),
            "Run distribute to wire it anew, or status with pgml_status_clean=true to remove the slot.",
        )
    return Finding("not wired", BROKEN, what + ".", "Run distribute.")


def _being_made(case: Case) -> Finding | None:
    subscription = case.subscription
    phase = subscription.get("first_copy") or ("registered" if subscription.get("placeholder") else None)
    if phase is None:
        return None
    return Finding(
        "copying",
        DEGRADED,
        "The first copy is in phase {0}.".format(phase),
        "Wait for the run that makes it; if that has died, run distribute, which goes on there.",
    )


def _publisher_down(case: Case) -> Finding | None:
    if case.upstream.reached:
        return None
    if case.subscription["worker"]:
        words = "{0} could not be asked, so that lag and WAL are not known: {1}"
        return Finding("streaming", GOOD, warnings=(words.format(case.upstream.name, case.upstream.problem),))
    return Finding(
        "publisher down",
        BROKEN,
        "{0}: {1}".format(case.upstream.name, case.upstream.problem),
        "Start it, or mend the way to it: replication goes on by itself.",
    )


def _slot_gone(case: Case) -> Finding | None:
    slot = case.slot
    if not slot:
        words = "Slot {0} is not on {1} any more: changes since then are missing here."
        return Finding("slot missing", BROKEN, words.format(case.slot_name, case.upstream.name), _BEGIN_ANEW)
    if slot["wal_status"] != "lost" and not slot["invalidation_reason"]:
        return None
    reason = slot["invalidation_reason"] or "its WAL was removed"
    limit = case.upstream.server.get("wal_limit")
    if limit and reason in ("its WAL was removed", "wal_removed"):
        reason = "it would have kept more than {0} (max_slot_wal_keep_size)".format(size_text(limit))
    words = "Slot {0} on {1} is lost ({2}): changes since then are missing here."
    return Finding("slot lost", BROKEN, words.format(case.slot_name, case.upstream.name, reason), _BEGIN_ANEW)


def _disabled(case: Case) -> Finding | None:
    subscription = case.subscription
    if subscription["enabled"]:
        return None
    errors = (subscription["apply_errors"] or 0) + (subscription["sync_errors"] or 0)
    enable = "ALTER SUBSCRIPTION {0} ENABLE".format(subscription["name"])
    if not errors:
        return Finding("disabled", BROKEN, "The subscription is disabled.", "Enable it: {0}.".format(enable))
    error, remedy = _explained(case)
    return Finding(
        "disabled", BROKEN, "The subscription is disabled. {0}".format(error), "{0} Then {1}.".format(remedy, enable)
    )


def _apply_error(case: Case) -> Finding | None:
    if not case.subscription["failing"]:
        return None
    return Finding("apply error", BROKEN, *_explained(case))


def _explained(case: Case) -> tuple[str, str]:
    """What the last error was, as far as it can be known, and what to do about it."""
    subscription = case.subscription
    lacking = [sentence for sentence in drift(case) if " lacks " in sentence]
    if lacking:
        return (
            " ".join(lacking),
            "Add it on {0}, after which replication goes on by itself. schema_change adds columns there first.".format(
                case.replica.name
            ),
        )
    twice = sum(subscription["conflicts"].get(kind, 0) for kind in _ALREADY_THERE)
    if twice:
        words = "A row that {0} has written is there already: {1} with a unique constraint."
        return (
            words.format(case.upstream.name, count_text(twice, "conflict")),
            "Delete the row on {0}, whose log names it: replication goes on by itself.".format(case.replica.name),
        )
    logged = subscription.get("last_error")
    failed = (subscription["apply_errors"] or 0) + (subscription["sync_errors"] or 0)
    times = "It failed {0}".format(count_text(failed, "time") if failed else "again and again")
    if logged:
        return "{0}, last with: {1}.".format(times, logged.rstrip(".")), _remedy_of(logged, case)
    return (
        "{0}; the log of {1} says why.".format(times, case.replica.name),
        "Look there. A row that is there already is the usual reason: delete it, and replication goes on by itself.",
    )


def _remedy_of(logged: str, case: Case) -> str:
    if "duplicate key" in logged:
        return "Delete the row that is there already on {0}: replication goes on by itself.".format(case.replica.name)
    return "Mend that on {0}: replication goes on by itself.".format(case.replica.name)


def _no_worker(case: Case) -> Finding | None:
    if case.subscription["worker"] or case.subscription["copiers"]:
        return None
    return Finding(
        "no worker",
        BROKEN,
        "No worker serves the subscription, though {0} is up.".format(case.upstream.name),
        "The log of {0} says why: it may not reach {1}, fail before anything is applied, or lack free workers"
        " (max_logical_replication_workers).".format(case.replica.name, case.upstream.name),
    )


def _copying(case: Case) -> Finding | None:
    unready = [table for table in case.subscription["tables"] if table["state"] != "ready"]
    if not unready:
        return None
    words = "The first copy of {0} is not done: {1}."
    named = ["{0} ({1})".format(table["name"], table["state"]) for table in unready]
    return Finding(
        "copying", DEGRADED, words.format(count_text(len(unready), "table"), enumerate_names(named)), "Wait."
    )


def _lagging(case: Case) -> Finding | None:
    behind, seconds = case.slot["behind_bytes"] or 0, _lag_seconds(case)
    if behind <= case.limits.lag_bytes and not (behind and (seconds or 0) > case.limits.lag_seconds):
        return None
    unsent = case.slot["not_sent_bytes"] or 0
    where = "the way there or the sender" if unsent > behind / 2 else "the replica, which applies what it has received"
    since = "" if seconds is None else ", {0}".format(time_text(seconds))
    return Finding(
        "lagging",
        DEGRADED,
        "It is {0} behind{1}.".format(size_text(behind), since),
        "It goes on. What holds it up is {0}.".format(where),
    )


_LOOKS: tuple[Callable[[Case], Finding | None], ...] = (
    _replica_down,
    _not_wired,
    _being_made,
    _publisher_down,
    _slot_gone,
    _disabled,
    _apply_error,
    _no_worker,
    _copying,
    _lagging,
)


def _warnings(case: Case) -> list[str]:
    """What is not wrong yet."""
    found = drift(case)
    slot: Mapping[str, Any] = case.slot
    hours = case.upstream.hours_left(slot)
    if hours is not None and hours < case.limits.wal_hours:
        words = "At the present rate, the WAL that {0} keeps for it meets its limit {1} after it stops."
        found.append(words.format(case.upstream.name, time_text(hours * 3600)))
    if slot and slot["wal_status"] == "unreserved":
        found.append(
            "{0} may remove the WAL of slot {1} at its next checkpoint.".format(case.upstream.name, case.slot_name)
        )
    return found
