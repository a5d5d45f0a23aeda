# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_control, the file that says which cluster a data directory holds.

It begins with the system identifier, and has a CRC-32C of all that stands before the checksum,
see https://www.postgresql.org/docs/current/app-pgcontroldata.html.
"""

from __future__ import annotations

import os
import struct
import time

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.server_programs import (
    Owner,
    ServerPrograms,
)

_PATH = os.path.join("global", "pg_control")
_IDENTIFIER, _CHECKSUM = struct.Struct("=Q"), struct.Struct("=I")
_SHORTEST, _LONGEST = 128, 512
"""Bytes before the checksum; they differ from version to version, and the longest is what one write of a disk's sector takes."""
_POLYNOMIAL = 0x82F63B78


def system_identifier(directory: str) -> str | None:
    """Which cluster the data directory *directory* holds; None when it holds none."""
    try:
        with open(os.path.join(directory, _PATH), "rb") as file:
            return str(_IDENTIFIER.unpack(file.read(_IDENTIFIER.size))[0])
    except (OSError, struct.error):
        return None


def give_new_identifier(directory: str, owner: Owner, programs: ServerPrograms) -> str:
    """Make a cluster that was shut down another one than that it was copied from; its WAL begins anew, and names it."""
    path = os.path.join(directory, _PATH)
    with open(path, "rb") as file:
        content = file.read()
    end = _end(content)
    if end is None:
        raise Refused(
            "{0} has no checksum that fits: the copy is damaged, or of a version that is not known.".format(path)
        )
    identifier = _new_identifier()
    body = _IDENTIFIER.pack(identifier) + content[_IDENTIFIER.size : end]
    with open(path, "r+b") as file:
        file.write(body + _CHECKSUM.pack(_crc32c(body)))
        file.flush()
        os.fsync(file.fileno())
    programs.run("pg_resetwal", ["--pgdata=" + directory])
    owner.give(path)
    return str(identifier)


def _end(content: bytes) -> int | None:
    """Where the checksum stands."""
    for end in range(_SHORTEST, min(_LONGEST, len(content)) - _CHECKSUM.size, _CHECKSUM.size):
        if _CHECKSUM.unpack_from(content, end)[0] == _crc32c(content[:end]):
            return end
    return None


def _new_identifier() -> int:
    """One made as initdb makes it: of the time and the process id."""
    now = time.time_ns() // 1000
    return (now // 1000000 << 32) | (now % 1000000 << 12) | (os.getpid() & 0xFFF)


def _crc32c(content: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in content:
        value = _TABLE[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


def _entry(value: int) -> int:
    for _bit in range(8):
        value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
    return value


_TABLE = [_entry(number) for number in range(256)]
