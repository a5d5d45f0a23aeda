# SPDX-License-Identifier: GPL-3.0-or-later
"""Which pieces a copy is made of: whole tables, and ranges of blocks of the largest."""

from __future__ import annotations

import math
from typing import NamedTuple, Sequence

SMALLEST_SPLIT = 1 << 30
"""Bytes below which a table stays whole. A whole table is frozen as it is loaded, a part of one can't be."""

RANGES_SINCE = 140000
"""Older servers read all of a table for a range of its blocks,
see https://www.postgresql.org/docs/14/release-14.html#id-1.11.6.30.5."""


class Extent(NamedTuple):
    """How large a table is."""

    oid: int
    blocks: int
    """of the heap"""
    bytes: int
    """of heap and TOAST"""
    rows: int = 0
    """as the server estimates them, 0 when it doesn't"""


class Chunk(NamedTuple):
    """Blocks of a table: from *first* up to and without *end*, which is None for the last."""

    oid: int
    bytes: int
    first: int = 0
    end: int | None = None
    whole: bool = True


def plan(extents: Sequence[Extent], jobs: int, version: int) -> list[Chunk]:
    """The chunks of all tables, largest first, so that *jobs* workers end together; *version* is the source's."""
    limit = max(SMALLEST_SPLIT, sum(extent.bytes for extent in extents) // jobs)
    chunks: list[Chunk] = []
    for extent in extents:
        parts = min(math.ceil(extent.bytes / limit), extent.blocks) if version >= RANGES_SINCE and jobs > 1 else 1
        chunks += _ranges(extent, parts) if parts > 1 else [Chunk(extent.oid, extent.bytes)]
    return sorted(chunks, key=lambda chunk: -chunk.bytes)


def _ranges(extent: Extent, parts: int) -> list[Chunk]:
    bounds = [extent.blocks * part // parts for part in range(parts)]
    ends = [*bounds[1:], None]
    size = extent.bytes // parts
    return [Chunk(extent.oid, size, first, end, whole=False) for first, end in zip(bounds, ends)]
