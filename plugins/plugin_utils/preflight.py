# SPDX-License-Identifier: GPL-3.0-or-later
"""All that stands against a run, from what pgml_preflight_info has found on each host, and what takes two hosts to be seen."""

from __future__ import annotations

from typing import Any, Iterable, Iterator, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.statement import enumerate_names, quoted

ERROR, WARNING = "error", "warning"
MOST_SKEW_SECONDS = 5
"""How far the clocks of two servers may be apart, so that ages of snapshots and a lag in seconds mean something."""
_START_SECONDS = 10
"""How much longer after the controller's question one host may read its clock than another"""
_SESSIONS_OF_COPY = 5
"""Sessions that a first copy has at the source beside those of its workers"""
_FAILED = "Task failed: "
"""How Ansible begins what happened, since 2.19"""
_COLUMN_LISTS_SINCE = 150000


class Finding(NamedTuple):
    """Something that the run would meet on a host."""

    host: str
    severity: str
    kind: str
    message: str

    def as_result(self) -> dict[str, str]:
        line = "{0}: {1}{2}".format(self.host, "" if self.severity == ERROR else "warning: ", self.message)
        return {**self._asdict(), "line": line}


class Link(NamedTuple):
    """A distribution on its way from one host to another, whose server was reached."""

    host: str
    arriving: Mapping[str, Any]
    facts: Mapping[str, Any]
    above: Mapping[str, Any]
    """facts of the upstream; empty where it wasn't looked at"""

    @property
    def upstream(self) -> str:
        return str(self.arriving["upstream"])

    @property
    def is_new_copy(self) -> bool:
        """Whether a subscription's first copy is still to come."""
        return bool(self.arriving["new"]) and self.arriving["strategy"] == "logical"


def findings(results: Mapping[str, Any], managed: Sequence[str] = ()) -> list[dict[str, str]]:
    """Everything that was found on the hosts of *results*, by host, errors first; *managed* are those whose pg_hba.conf is not
    ours."""
    looked = {host: result for host, result in results.items() if "facts" in result}
    links = list(_links(looked))
    found: list[Finding] = []
    for host, result in results.items():
        found += _own(host, result)
    found += _unreached(looked, managed)
    found += _servers(looked, links)
    found += _clocks(looked)
    for link in links:
        found += _versions(link)
        found += _names(link)
        found += _places(link)
    found += _space(links)
    found += _connections(links)
    order = {host: number for number, host in enumerate(results)}
    unique = dict.fromkeys(found)
    return [each.as_result() for each in sorted(unique, key=lambda each: (order[each.host], each.severity != ERROR))]


def _own(host: str, result: Mapping[str, Any]) -> Iterator[Finding]:
    if result.get("unreachable"):
        words = "Ansible can't reach this host: {0}"
        yield Finding(host, ERROR, "unreachable", words.format(_sentence(result.get("msg"))))
    elif "findings" not in result:
        words = "Nothing could be looked at here: {0}"
        yield Finding(host, ERROR, "failed", words.format(_sentence(result.get("msg"))))
    for each in result.get("findings", ()):
        yield Finding(host, each["severity"], each["kind"], each["message"])


def _sentence(text: Any) -> str:
    line = " ".join(str(text or "no reason was given").split())
    if line.startswith(_FAILED):
        line = line[len(_FAILED) :]
    return line if line[-1] in ".!?" else line + "."


def _links(looked: Mapping[str, Mapping[str, Any]]) -> Iterator[Link]:
    for host, result in looked.items():
        for arriving in result["facts"].get("arriving", ()):
            above = looked.get(arriving["upstream"], {}).get("facts", {})
            yield Link(host, arriving, result["facts"], above)


def _unreached(looked: Mapping[str, Mapping[str, Any]], managed: Sequence[str]) -> Iterator[Finding]:
    """Sources that a replica can't open a session at, unless the run lets it in, or that are not the servers they should be."""
    for host, result in looked.items():
        for source in result["facts"].get("sources", ()):
            above = looked.get(source["upstream"], {}).get("facts", {})
            if not source["answered"]:
                yield Finding(host, ERROR, "unreachable", source["message"])
            elif not source["reached"]:
                yield from _turned_away(host, source, above, source["upstream"] in managed)
            elif above.get("system_identifier", source["system_identifier"]) != source["system_identifier"]:
                words = "Behind {0} is another server than the one that is administered as {1}: correct its pgml_endpoint_host."
                yield Finding(host, ERROR, "same_server", words.format(_place(source["endpoint"]), source["upstream"]))


def _turned_away(host: str, source: Mapping[str, Any], above: Mapping[str, Any], managed: bool) -> Iterator[Finding]:
    """The run makes the distributor, sets its password and admits it, but for some that it can't."""
    if not above.get("distributor_exists"):
        return
    if managed:
        words = "{0} The run doesn't change who may connect to {1}, which is managed: admit this host there, with that password."
        if not above.get("sets_password"):
            yield Finding(host, ERROR, "distributor", words.format(source["message"], source["upstream"]))
    elif not above.get("sets_password"):
        words = (
            "{0} The login role of {1} may not see whether the distributor has that password, and leaves it as it is."
        )
        yield Finding(host, WARNING, "distributor", words.format(source["message"], source["upstream"]))


def _place(endpoint: str) -> str:
    return endpoint.partition(" as user ")[0]


def _servers(looked: Mapping[str, Mapping[str, Any]], links: Sequence[Link]) -> Iterator[Finding]:
    """Hosts that are one server, or clones where that matters."""
    for link in links:
        database = link.arriving["database"]
        is_same = _server(link.facts) is not None and _server(link.facts) == _server(link.above)
        if is_same and database == link.arriving["source_database"]:
            words = "Database {0} is source and target of distribution {1} at once, for {2} is the same server."
            message = words.format(quoted(database), quoted(link.arriving["name"]), link.upstream)
            yield Finding(link.host, ERROR, "same_server", message)
    replicas = {link.host: link.facts for link in links}
    subscribing = {link.host for link in links if link.arriving["strategy"] == "logical"}
    for number, (host, facts) in enumerate(replicas.items()):
        for other in list(replicas)[number + 1 :]:
            if facts.get("system_identifier") != replicas[other].get("system_identifier"):
                continue
            if _server(facts) == _server(replicas[other]):
                words = "This host and {0} are one server, which each would take for its own: list it once."
                yield Finding(host, ERROR, "same_server", words.format(other))
            elif {host, other} <= subscribing:
                words = (
                    "This host and {0} were cloned from one cluster (system identifier {1}): their first copies would take "
                    "each other's slots on the upstream, and lose rows. Give each of them a cluster that initdb made."
                )
                yield Finding(host, ERROR, "clone", words.format(other, facts["system_identifier"]))


def _server(facts: Mapping[str, Any]) -> tuple[Any, Any] | None:
    """What tells a running server from every other, clones included."""
    return (facts["system_identifier"], facts["started"]) if "started" in facts else None


def _clocks(looked: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """Clocks that are apart: as a replica has read both, or else as they were when the controller asked."""
    for host, result in looked.items():
        ahead: dict[str, float] = {}
        for source in result["facts"].get("sources", ()):
            upstream = source["upstream"]
            above = looked.get(upstream, {}).get("facts", {})
            if source.get("ahead") is not None:
                ahead[upstream] = source["ahead"]
            elif (
                upstream not in ahead and _since_asked(above) is not None and _since_asked(result["facts"]) is not None
            ):
                rough = float(_since_asked(above) or 0) - float(_since_asked(result["facts"]) or 0)
                if abs(rough) > MOST_SKEW_SECONDS + _START_SECONDS:
                    ahead[upstream] = rough
        for upstream, seconds in ahead.items():
            if abs(seconds) > MOST_SKEW_SECONDS:
                words = (
                    "The clock of this server is {0:,.0f} s {1} that of {2}, so that ages of snapshots and a lag in seconds are "
                    "wrong: let both follow a time server."
                )
                direction = "behind" if seconds > 0 else "ahead of"
                yield Finding(host, WARNING, "clock", words.format(abs(seconds), direction, upstream))


def _since_asked(facts: Mapping[str, Any]) -> float | None:
    clock = facts.get("clock") or {}
    return clock["server"] - clock["asked_at"] if clock.get("asked_at") is not None else None


def _versions(link: Link) -> Iterator[Finding]:
    source, target = link.above.get("version"), link.facts.get("version")
    if source is None or target is None:
        return
    name, upstream = quoted(link.arriving["name"]), link.upstream
    if link.is_new_copy and link.arriving["parts"] and target < _COLUMN_LISTS_SINCE <= source:
        words = (
            "Distribution {0} has row filters or column lists, which this server, PostgreSQL {1}, ignores in the first copy: "
            "use PostgreSQL 15 or later."
        )
        yield Finding(link.host, ERROR, "version", words.format(name, target // 10000))
    if link.arriving["new"] and link.arriving["strategy"] != "fdw" and target // 10000 < source // 10000:
        words = (
            "PostgreSQL {0} here is older than {1} on {2}, and may not know all that definitions of {2} say: use the same "
            "version, or a later one."
        )
        yield Finding(link.host, WARNING, "version", words.format(target // 10000, source // 10000, upstream))


def _names(link: Link) -> Iterator[Finding]:
    """A slot that would be in the way."""
    slot = link.arriving["slot"]
    if link.is_new_copy and slot in link.above.get("slots", ()):
        words = (
            "Slot {0} exists on {1} already, and subscription {2} doesn't exist here: drop the slot there if nobody uses it, or "
            "rename the distribution."
        )
        yield Finding(
            link.host, ERROR, "name", words.format(quoted(slot), link.upstream, link.arriving["subscription"])
        )


def _places(link: Link) -> Iterator[Finding]:
    """What is where the upstream's tables are to come."""
    arriving = link.arriving
    coming = set(link.above.get("tables", {}).get(arriving["name"], ()))
    database, name = quoted(arriving["database"]), quoted(arriving["name"])
    fed = {table: by for table, by in arriving["fed"].items() if table in coming}
    if fed:
        words = "Database {0} takes {1} from subscription {2} already: two distributions must not fill the same table."
        by = enumerate_names(map(quoted, set(fed.values())))
        yield Finding(link.host, ERROR, "name", words.format(database, enumerate_names(fed), by))
    for table in sorted(coming & set(arriving["others"])):
        words = "{0} of database {1} is {2}, where distribution {3} brings a table: drop or rename it."
        message = words.format(table, database, arriving["others"][table], name)
        yield Finding(link.host, ERROR, "name", message)
    filled = sorted(coming & set(arriving["filled"]))
    if not filled:
        return
    what = "Table {0} holds rows" if len(filled) == 1 else "Tables {0} hold rows"
    if arriving["strategy"] == "logical":
        words = (
            " in database {1}, and the first copy would add to them: empty {2}, or set pgml_logical_seed to none if the "
            "rows are right."
        )
        message = (what + words).format(enumerate_names(filled), database, "it" if len(filled) == 1 else "them")
        yield Finding(link.host, ERROR, "rows", message)
    else:
        words = " in database {1} that no earlier copy has brought, and {2} replaces them."
        yield Finding(link.host, WARNING, "rows", (what + words).format(enumerate_names(filled), database, name))


def _space(links: Iterable[Link]) -> Iterator[Finding]:
    """Tables that are to come and don't fit on the disk."""
    sizes: dict[tuple[str, str], int] = {}
    free: dict[tuple[str, str], int] = {}
    for link in links:
        place = (link.facts.get("space") or {}).get(link.arriving["database"])
        if place and link.arriving["new"]:
            key = (link.host, place[0])
            sizes[key] = sizes.get(key, 0) + link.above.get("sizes", {}).get(link.arriving["name"], 0)
            free[key] = place[1]
    for (host, directory), size in sizes.items():
        if size > free[host, directory]:
            words = "What is to come takes {0:,} MB, and {1} has {2:,} MB free: make room."
            message = words.format(-(-size >> 20), directory, free[host, directory] >> 20)
            yield Finding(host, ERROR, "disk", message)


def _connections(links: Iterable[Link]) -> Iterator[Finding]:
    """Upstreams that can't have the sessions of all first copies that run at once."""
    needed: dict[str, dict[str, int]] = {}
    free: dict[str, int] = {}
    for link in links:
        if link.is_new_copy and "free_connections" in link.above:
            needed.setdefault(link.upstream, {})[link.host] = link.facts["jobs"] + _SESSIONS_OF_COPY
            free[link.upstream] = link.above["free_connections"]
    for upstream, hosts in needed.items():
        if free[upstream] < sum(hosts.values()):
            words = "First copies of {0} take {1} connections, and {2} are left (max_connections, or the role's limit): raise it."
            message = words.format(enumerate_names(hosts), sum(hosts.values()), max(free[upstream], 0))
            yield Finding(upstream, ERROR, "limit", message)
