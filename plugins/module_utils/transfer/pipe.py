# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows between two processes: frames in a pipe, so that a pipe serves many tables and an end can't be mistaken."""

from __future__ import annotations

import fcntl
import io
import json
import os
import struct
from typing import Any

BLOCK = 1 << 18
"""Bytes of a frame at most, and of one read of COPY data."""

_CAPACITY = 1 << 20
"""Bytes that the pipe may hold, where the system allows it (Linux)."""
_HEADER = struct.Struct("!I")
_END = 1 << 31
"""Added to the length of a stream's last frame, which holds how it ended."""


class SenderGone(Exception):
    """The process at the other end died, or failed to read what it should send."""


def make() -> tuple[int, int]:
    """The two ends of a pipe with room for several frames."""
    read_end, write_end = os.pipe()
    try:
        fcntl.fcntl(write_end, getattr(fcntl, "F_SETPIPE_SZ", 1031), _CAPACITY)
    except OSError:
        pass  # it works with less, a little slower
    return read_end, write_end


class _Frames(io.RawIOBase):
    """The raw file under a buffer: what the buffer gives at once is a frame."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        size = len(data)
        for start in range(0, size, BLOCK):
            self.frame(memoryview(data)[start : start + BLOCK], 0)
        return size

    def frame(self, data: Any, flag: int) -> None:
        _write_all(self._descriptor, _HEADER.pack(len(data) | flag))
        _write_all(self._descriptor, data)


def _write_all(descriptor: int, data: Any) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


class Sender:
    """The end that rows are put into. *file* is a binary file whose writes are gathered in C."""

    def __init__(self, descriptor: int) -> None:
        self._frames = _Frames(descriptor)
        self.file = io.BufferedWriter(self._frames, BLOCK)

    def end(self, outcome: dict[str, Any]) -> None:
        """Close one stream, saying how it went."""
        self.file.flush()
        self._frames.frame(json.dumps(outcome).encode("utf-8"), _END)


class Receiver:
    """The other end, as a file that ends where a stream does. *outcome* is then what the sender said."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "rb", BLOCK)
        self.outcome: dict[str, Any] | None = None
        self.failure: str | None = None
        self.size = 0

    def begin(self) -> Receiver:
        self.outcome = self.failure = None
        self.size = 0
        return self

    def read(self, _size: int = -1) -> bytes:
        """The next frame, which is not longer than BLOCK; nothing when the stream has ended."""
        if self.outcome is not None:
            return b""
        (header,) = _HEADER.unpack(self._exactly(_HEADER.size))
        data = self._exactly(header & ~_END)
        if header & _END:
            outcome: dict[str, Any] = json.loads(data)
            self.outcome = outcome
            self.failure = outcome.get("error")
            if self.failure:
                raise SenderGone(self.failure)
            return b""
        self.size += len(data)
        return data

    def close(self) -> None:
        """Stop listening; a sender that is at it fails."""
        self._file.close()

    def drain(self) -> None:
        """Read to the end of a stream, which text COPY may stop short of."""
        while self.read():
            pass

    def _exactly(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            self.failure = "The process that reads the rows ended unexpectedly."
            raise SenderGone(self.failure)
        return data
