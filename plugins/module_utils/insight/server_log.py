# SPDX-License-Identifier: GPL-3.0-or-later
"""The last error of each subscription, which PostgreSQL keeps in its log only."""

from __future__ import annotations

import re
from typing import Iterable

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session

_BYTES = 1 << 18
"""How much of the log's end is looked through."""
_ERROR = re.compile(r"\bERROR:  (.*)")
_ORIGIN = re.compile(r'\bCONTEXT:  processing remote data for replication origin "pg_(\d+)(?:_\d+)?"')
"""Since PostgreSQL 15. The origin of a subscription has its oid in its name."""
_VALUE = re.compile(r'^(invalid input .*?): ".*', re.DOTALL)


def last_errors(session: Session) -> dict[int, str]:
    """The errors by the oids of subscriptions; none where the server doesn't collect its log, or the login may not read it."""
    log = session.value(
        "SELECT pg_read_binary_file(f.name, greatest((pg_stat_file(f.name)).size - %s, 0), %s)"
        " FROM (SELECT CASE WHEN rolsuper THEN pg_current_logfile('stderr') END AS name"
        "  FROM pg_roles WHERE rolname = current_user) AS f WHERE f.name IS NOT NULL",
        [_BYTES, _BYTES],
    )
    return found_in(bytes(log).decode("utf-8", "replace").splitlines()) if log else {}


def found_in(lines: Iterable[str]) -> dict[int, str]:
    """The same of the log's lines. Values of rows are left out: not everybody who may read the status may read those."""
    found = {}
    error = None
    for line in lines:
        message, origin = _ERROR.search(line), _ORIGIN.search(line)
        if message:
            error = _VALUE.sub(r"\1", message[1].strip())
        elif origin and error:
            found[int(origin[1])] = error
            error = None
    return found
