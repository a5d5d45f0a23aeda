# SPDX-License-Identifier: GPL-3.0-or-later
"""What processes need that are forked from a module's."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

FORK = multiprocessing.get_context("fork")


def isolate(keep: set[int]) -> None:
    """Close what this process inherited, such as connections, which would else stay open when its parent has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    silent = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(silent, standard)
    low = 3
    for descriptor in sorted(keep):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, 1 << 16)


def die_with(parent: int) -> None:
    """End this process when its parent has ended, whatever it waits for meanwhile."""

    def watch() -> None:
        while os.getppid() == parent:
            pause.wait(0.5)
        os._exit(1)

    pause = threading.Event()
    threading.Thread(target=watch, daemon=True).start()
