# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows in files: what COPY writes, compressed by gzip, one file for each chunk."""

from __future__ import annotations

import gzip
import os
import zlib
from typing import Any

from ansible_collections.postgresml.distributed.plugins.module_utils.errors import Refused
from ansible_collections.postgresml.distributed.plugins.module_utils.transfer.stream import BLOCK


def read(path: str, sink: Any) -> None:
    """Give the rows of a file to the binary file *sink*."""
    try:
        with gzip.open(path, "rb") as stream:
            while True:
                block = stream.read(BLOCK)
                if not block:
                    return
                sink.write(block)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Refused("The archive's file {0} is damaged: {1}. Dump it again.".format(path, error)) from None
    except OSError as error:
        raise Refused("Can't read {0}: {1}.".format(path, error.strerror)) from None


def write(path: str, level: int, source: Any) -> None:
    """Take what the file *source* holds into a file that survives a crash of this host once this returns."""
    try:
        with open(path, "xb") as raw:
            with gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=level, mtime=0) as stream:
                while True:
                    block = source.read(BLOCK)
                    if not block:
                        break
                    stream.write(block)
            raw.flush()
            os.fsync(raw.fileno())
    except OSError as error:
        raise Refused("Can't write {0}: {1}.".format(path, error.strerror or error)) from None
