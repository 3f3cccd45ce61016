"""How much each client may have under way, and what happens to one that does not read.

A reply is sent straight from its slot, so a client that asks and does not read would hold slots.
Each connection has a bounded number of requests under way, waiting or being sent, and one whose
reply is not taken within a time limit is disconnected.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from itertools import count

import numpy as np
import numpy.typing as npt

from rushes.log import get_logger
from rushes.video.service.connections import disconnect, peer_of
from rushes.video.service.wire import Busy

log = get_logger(__name__)


class Admission:
    """Counts requests by connection, from their arrival to the last byte sent.

    Args:
        total: requests of all clients that may be under way.
        window: requests of one connection that may be under way.
        send_timeout: seconds in which a client must take a reply.
    """

    def __init__(self, total: int, window: int, send_timeout: float) -> None:
        self.total, self.window, self.send_timeout = total, window, send_timeout
        self._lock = threading.Lock()
        self._by_peer: Counter[str] = Counter()
        self._sending: dict[int, tuple[str, float]] = {}
        self._tickets = count()
        # Arrays end on any thread, even inside this class: their end is only noted.
        self._ended: queue.SimpleQueue[int] = queue.SimpleQueue()

    @contextlib.contextmanager
    def admitted(self, peer: str) -> Iterator[None]:
        """One request of `peer`; raises `Busy` when too much is under way."""
        with self._lock:
            self._drain()
            under_way = self._by_peer.total() + len(self._sending)
            of_peer = self._by_peer[peer] + sum(p == peer for p, _ in self._sending.values())
            if under_way >= self.total:
                raise Busy(f"{under_way} requests are under way, at most {self.total}")
            if of_peer >= self.window:
                raise Busy(f"{of_peer} of your requests are under way, at most {self.window}")
            self._by_peer[peer] += 1
        try:
            yield
        finally:
            with self._lock:
                self._by_peer[peer] -= 1
                if not self._by_peer[peer]:
                    del self._by_peer[peer]

    def sending(self, peer: str, payload: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """A view of `payload`; until it is gone it counts as being sent to `peer`."""
        view = payload[:]
        ticket = next(self._tickets)
        with self._lock:
            self._drain()
            self._sending[ticket] = (peer, time.monotonic())
        weakref.finalize(view, self._ended.put, ticket).atexit = False
        return view

    def _drain(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._sending.pop(self._ended.get_nowait(), None)

    def under_way(self) -> tuple[int, int]:
        """Requests that wait for their reply, and replies that are being sent."""
        with self._lock:
            self._drain()
            return self._by_peer.total(), len(self._sending)

    def disconnect_slow(self, limit: float | None = None) -> list[str]:
        """Cut the connections whose reply was not taken in time; returns their peers."""
        allowed = self.send_timeout if limit is None else limit
        now = time.monotonic()
        with self._lock:
            self._drain()
            slow = {peer for peer, since in self._sending.values() if now - since >= allowed}
        cut = sorted(peer for peer in slow if disconnect(peer_of(peer)))
        for peer in cut:
            log.warning("%s did not take its reply in %g s: disconnected", peer, allowed)
        return cut
