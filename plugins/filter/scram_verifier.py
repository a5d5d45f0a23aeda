# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A password as PostgreSQL keeps it, so that the password itself never reaches a server's log."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
from typing import Any, Callable

from ansible.errors import AnsibleFilterError

_VERIFIER = re.compile(r"^SCRAM-SHA-256\$(\d+):([A-Za-z0-9+/=]+)\$[A-Za-z0-9+/=]+:[A-Za-z0-9+/=]+$")
_ITERATIONS = 4096
"""The default of scram_iterations, https://www.postgresql.org/docs/current/runtime-config-connection.html."""
_SALT_BYTES = 16


def scram_verifier(password: str, current: str | None = None) -> str:
    """The SCRAM-SHA-256 verifier of *password*: *current* itself if it belongs to that password, else a new one.

    The format is that of https://www.postgresql.org/docs/current/catalog-pg-authid.html, the computation RFC 5803's.
    """
    if not isinstance(password, str) or not password:
        raise AnsibleFilterError("scram_verifier: the password is empty; set pgml_distributor_password.")
    match = _VERIFIER.match(current or "")
    if match:
        salt = base64.b64decode(match.group(2))
        same = _verifier(password, salt, int(match.group(1)))
        if hmac.compare_digest(same, current or ""):
            return same
    return _verifier(password, os.urandom(_SALT_BYTES), _ITERATIONS)


def _verifier(password: str, salt: bytes, iterations: int) -> str:
    salted = hashlib.pbkdf2_hmac("sha256", _prepared(password).encode("utf-8"), salt, iterations)
    stored = hashlib.sha256(hmac.new(salted, b"Client Key", "sha256").digest()).digest()
    server = hmac.new(salted, b"Server Key", "sha256").digest()
    texts = [base64.b64encode(value).decode("ascii") for value in (salt, stored, server)]
    return "SCRAM-SHA-256${0}:{1}${2}:{3}".format(iterations, *texts)


def _prepared(password: str) -> str:
    """The password after SASLprep, or as it is where that refuses it, as PostgreSQL does."""
    if password.isascii():
        return password
    from ansible_collections.community.postgresql.plugins.module_utils.saslprep import saslprep

    try:
        return saslprep(password)
    except (TypeError, ValueError):
        return password


class FilterModule:
    """The filter's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"scram_verifier": scram_verifier}
