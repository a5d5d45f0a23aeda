# SPDX-License-Identifier: GPL-3.0-or-later
"""Slots and publications of ours that belong to nothing: no distribution of the inventory, or no subscription."""

from __future__ import annotations

from typing import Any, Iterable, Mapping, Sequence

from ansible_collections.postgresml.distributed.plugins.plugin_utils import request
from ansible_collections.postgresml.distributed.plugins.plugin_utils.status_facts import Host, size_text


def strays(hosts: Mapping[str, Host], wired: Iterable[tuple[str, str, str]]) -> list[dict[str, Any]]:
    """Each with the reason, and whether it may be removed: nobody uses it, and nobody who can't be asked may be about to.

    :param wired: (distribution, replica, upstream) of all that is to come by logical replication
    """
    expected = list(wired)
    found = []
    for host in hosts.values():
        if host.reached:
            slots = list(_slots(host, hosts, expected))
            found += slots
            found += _publications(host, hosts, expected, {each["name"] for each in slots if each["removable"]})
    return found


def _slots(host: Host, hosts: Mapping[str, Host], expected: Sequence[tuple[str, str, str]]) -> Iterable[dict[str, Any]]:
    theirs = {
        request.slot_name(name, replica): hosts[replica]
        for name, replica, upstream in expected
        if upstream == host.name
    }
    users = {name: each.name for each in hosts.values() for name in each.server.get("slots_in_use") or ()}
    for slot in host.server["slots"]:
        replica = theirs.get(slot["name"])
        user = users.get(slot["name"])
        if replica and (user or not replica.reached):
            continue
        kept = "it keeps {0} of WAL".format(size_text(slot["retained_bytes"]))
        if user:
            reason = "a subscription of {0} uses it, of a distribution that the inventory doesn't have".format(user)
        elif slot["active"]:
            reason = "somebody else uses it"
        elif replica:
            reason = "{0} has no subscription that uses it, and {1}".format(replica.name, kept)
        else:
            reason = "no distribution and replica of the inventory have it, and {0}".format(kept)
        yield {
            "kind": "slot",
            "host": host.name,
            "database": slot["database"],
            "name": slot["name"],
            "reason": reason,
            "removable": not (user or slot["active"]),
        }


def _publications(
    host: Host, hosts: Mapping[str, Host], expected: Sequence[tuple[str, str, str]], gone: set[str]
) -> Iterable[dict[str, Any]]:
    # The primary publishes for everybody, also while all take from a replica.
    theirs = {
        request.object_name(name)
        for name, _replica, upstream in expected
        if upstream == host.name or host.upstream is None
    }
    subscribed = {
        name: each.name
        for each in hosts.values()
        for database in each.databases
        for subscription in database["subscriptions"]
        for name in subscription["publications"]
    }
    for database in host.databases:
        for publication in database["publications"]:
            name = publication["name"]
            if name in theirs:
                continue
            readers = [
                slot["name"]
                for slot in host.server["slots"]
                if slot["database"] == database["name"]
                and slot["name"] not in gone
                and slot["name"].startswith(request.slot_name(name[len("pgml_") :], ""))
            ]
            user = subscribed.get(name)
            if user:
                reason = "a subscription of {0} uses it, of a distribution that the inventory doesn't have".format(user)
            elif readers:
                reason = "slot {0} may need it".format(readers[0])
            else:
                reason = "no distribution of the inventory has it"
            yield {
                "kind": "publication",
                "host": host.name,
                "database": database["name"],
                "name": name,
                "reason": reason,
                "removable": not (user or readers),
            }
