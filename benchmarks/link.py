# SPDX-License-Identifier: GPL-3.0-or-later
"""A way to a server that takes longer than loopback, as between machines."""

from __future__ import annotations

import socket
import statistics
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing, suppress
from copy import copy
from select import select
from threading import Thread

from tests.support.pair import Place


class Link:
    """Passes on what clients and a server send, each byte a number of seconds after it came, and as many as come.

    It is a context manager, and its port on loopback is the server's at the other end.
    """

    def __init__(self, place: Place, delay: float) -> None:
        self._place = place
        self._delay = delay
        self._listener = socket.socket()
        self._sockets: list[socket.socket] = []
        self._threads: list[Thread] = []

    def __enter__(self) -> Place:
        """The same database as it is seen through the link."""
        self._listener.bind((self._place.cluster.host, 0))
        self._listener.listen()
        self._begin(self._accept)
        cluster = copy(self._place.cluster)
        cluster.port = self._listener.getsockname()[1]
        return Place(cluster, self._place.database)

    def __exit__(self, *exc_info: object) -> None:
        self._end([self._listener], self._threads[:1])  # from now on there are no more connections
        self._end(self._sockets, self._threads[1:])

    @staticmethod
    def _end(sockets: list[socket.socket], threads: list[Thread]) -> None:
        for end in sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for it, which close() doesn't
        for thread in threads:
            thread.join()
        for end in sockets:
            end.close()

    def _begin(self, what: Callable[..., None], *arguments: socket.socket) -> None:
        thread = Thread(target=what, args=arguments, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection((self._place.cluster.host, self._place.cluster.port))
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._sockets.append(end)
                self._begin(self._pass_on, client, server)
                self._begin(self._pass_on, server, client)

    def _pass_on(self, here: socket.socket, there: socket.socket) -> None:
        """Carry one direction of a connection, up to its end."""
        under_way: deque[tuple[float, bytes]] = deque()
        readable = [here]
        with suppress(OSError):
            while True:
                due = under_way[0][0] if under_way else None
                if select(readable, [], [], None if due is None else max(0.0, due - time.perf_counter()))[0]:
                    data = here.recv(2**18)
                    under_way.append((time.perf_counter() + self._delay, data))
                    if not data:
                        readable = []
                while under_way and under_way[0][0] <= time.perf_counter():
                    _, data = under_way.popleft()
                    if not data:
                        there.shutdown(socket.SHUT_WR)
                        return
                    there.sendall(data)


def round_trip(place: Place, count: int = 500) -> float:
    """The seconds in which a server answers, the median of a number of questions."""
    seconds = []
    with closing(place.cluster.connect(place.database)) as connection, connection.cursor() as cursor:
        for _ in range(count):
            start = time.perf_counter()
            cursor.execute("SELECT")
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
