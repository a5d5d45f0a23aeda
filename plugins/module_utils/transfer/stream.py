# SPDX-License-Identifier: GPL-3.0-or-later
"""Blocks of rows between two threads, of which one reads them and the other writes them."""

from __future__ import annotations

import io
import queue
from typing import Any

BLOCK = 1 << 18
"""Bytes of a block at most."""
_BLOCKS = 8
"""How many wait at most: with many rows in each, the threads seldom wait for one another."""


class Abandoned(Exception):
    """Nobody wants the rows any more."""


class Stream(io.RawIOBase):
    """A file that one thread writes, by way of *sink*, and another reads. *rows* is the sender's count, if it has one."""

    def __init__(self) -> None:
        super().__init__()
        self._blocks: queue.Queue[bytes] = queue.Queue(_BLOCKS)
        self._abandoned = False
        self.sink = io.BufferedWriter(self, BLOCK)  # gathers rows in C
        self.rows: int | None = None
        self.failure: Exception | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data)
        for start in range(0, len(view), BLOCK):
            self._put(bytes(view[start : start + BLOCK]))
        return len(view)

    def end(self, failure: Exception | None) -> None:
        """Close the sender's side, saying what went wrong, if anything did."""
        try:
            if failure is None:
                self.sink.flush()
            self.failure = failure
            self._put(b"")
        except Abandoned:
            pass

    def read(self, _size: int = -1) -> bytes:
        """The next block; nothing at the end."""
        block = self._blocks.get()
        if not block and self.failure is not None:
            raise OSError(str(self.failure))
        return block

    def abandon(self) -> None:
        """Close the receiver's side: a sender that is at it fails."""
        self._abandoned = True
        while not self._blocks.empty():
            self._blocks.get_nowait()

    def _put(self, block: bytes) -> None:
        if self._abandoned:
            raise Abandoned()
        self._blocks.put(block)
