# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a run has come, in pgml_distributed.progress, where anybody may look while it works.

The rows of a table that is being copied are in pg_stat_progress_copy, its indexes in pg_stat_progress_create_index.
"""

from __future__ import annotations

import time

from ansible_collections.postgresml.distributed.plugins.module_utils.postgres.session import Session

_INTERVAL_SECONDS = 1.0


class Progress:
    """The record of one run; written at most once a second, and at each new phase."""

    def __init__(self, session: Session, tables: int, size: int) -> None:
        self._session = session
        self._written = 0.0
        self.tables_done = 0
        self.bytes_done = 0
        self.rows = 0
        session.execute("DELETE FROM pgml_distributed.progress")
        session.execute(
            "INSERT INTO pgml_distributed.progress (process, phase, tables, tables_done, bytes, bytes_done, rows)"
            " VALUES (pg_backend_pid(), 'define', %s, 0, %s, 0, 0)",
            [tables, size],
        )

    def phase(self, name: str) -> None:
        self._session.execute(
            "UPDATE pgml_distributed.progress SET phase = %s, tables_done = %s, bytes_done = %s, rows = %s,"
            " updated_at = clock_timestamp()",
            [name, self.tables_done, self.bytes_done, self.rows],
        )
        self._written = time.monotonic()

    def copied(self, size: int, rows: int, whole: bool) -> None:
        """A chunk of *size* bytes with *rows* has come, and with it its table, if *whole*."""
        self.tables_done += whole
        self.bytes_done += size
        self.rows += rows
        if time.monotonic() > self._written + _INTERVAL_SECONDS:
            self.phase("copy")
