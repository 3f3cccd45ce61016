"""How much may be sent to a server before it is read.

gRPC takes a whole message into memory before any handler runs, the check of the token included, and
pyarrow passes on no limit for that. So the kernel's count of what came over each connection is
watched instead: who has not shown the token may send little, and where memory grows beyond what the
server has reason to use, whoever sent much is cut off. Between two looks some more may come in.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable

from rushes.log import get_logger
from rushes.video.service.connections import Peer, connections, hang_up, peer_of, received

log = get_logger(__name__)

_PAGE = os.sysconf("SC_PAGESIZE")
_TICK = 0.02
"""Seconds between two looks at memory: what the network can bring in that time gets in."""
_SCAN = 1.0
"""Seconds between two looks at all connections while memory is as it should be."""
_GROWN = 50
"""Looks in a row that find too much memory and nobody to blame, after which it is taken as ours."""


class IntakeGuard:
    """Watches the connections to one port on a thread of its own, once told which.

    Args:
        kept: bytes that the server keeps with good reason.
        cut_off: told how many connections were cut.
        stranger_bytes: what a connection may send before its first accepted call.
        stranger_seconds: how long it may wait with that.
        spare: bytes of memory beyond `kept` and what the server began with.
        burst: what an accepted client may send while memory is short.
    """

    def __init__(
        self,
        kept: Callable[[], int],
        cut_off: Callable[[int], None],
        *,
        stranger_bytes: int = 1 << 20,
        stranger_seconds: float = 30.0,
        spare: int = 128 << 20,
        burst: int = 16 << 20,
    ) -> None:
        self.port, self._kept, self._cut_off = 0, kept, cut_off
        self.stranger_bytes, self.stranger_seconds = stranger_bytes, stranger_seconds
        self.spare, self.burst = spare, burst
        self._known: dict[str, Peer] = {}
        self._marks: dict[Peer, int] = {}
        self._since: dict[Peer, float] = {}
        self._base = 0
        self._unexplained = 0
        self._scanned = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rushes-intake", daemon=True)

    def watch(self, port: int) -> None:
        """Begin; what memory the server takes now is its own."""
        self.port, self._base = port, private_memory() - self._kept()
        self._thread.start()

    def accepted(self, peer: str) -> None:
        """A call of this peer has shown the token."""
        if peer not in self._known:
            self._known[peer] = peer_of(peer)

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        while not self._stop.wait(_TICK):
            with contextlib.suppress(OSError):  # out of descriptors: look again in a moment
                self._look()

    def _look(self) -> None:
        short = self._short()
        if not short and time.monotonic() - self._scanned < _SCAN:
            return
        cut = self._scan(short)
        if cut:
            self._cut_off(cut)
            self._stop.wait(_TICK)  # gRPC frees what it held once it has noticed
            _trim()
        self._explain(short and not cut)

    def _short(self) -> bool:
        return private_memory() > self._base + self._kept() + self.spare

    def _explain(self, unexplained: bool) -> None:
        """Memory that nobody sent is our own, or some that the allocator does not give back."""
        self._unexplained = self._unexplained + 1 if unexplained else 0
        if self._unexplained >= _GROWN:
            self._unexplained = 0
            _trim()
            if self._short():
                self._base = private_memory() - self._kept()
                log.info("the server now takes %d MB besides its cache", self._base >> 20)

    def _scan(self, short: bool) -> int:
        """Cut who has sent too much; returns how many."""
        seen: dict[Peer, int] = {}
        before, cut, now = dict(self._known), 0, time.monotonic()
        known = set(before.values())
        for peer, connection in connections():
            if connection.getsockname()[1] != self.port:
                continue
            seen[peer] = count = received(connection)
            stranger = peer not in known
            since = self._since.setdefault(peer, now)
            if stranger and count > self.stranger_bytes:
                what = f"{count} bytes without an accepted call, at most {self.stranger_bytes}"
            elif stranger and now - since > self.stranger_seconds:
                what = f"no accepted call in {self.stranger_seconds:g} s"
            elif short and count - self._marks.get(peer, 0) > self.burst:
                what = f"{count - self._marks.get(peer, 0)} bytes while memory is short"
            else:
                continue
            log.warning("%s:%d: %s: disconnected", *peer, what)
            cut += hang_up(connection)
        for text, peer in before.items():
            if peer not in seen:  # its connection is closed
                self._known.pop(text, None)
        self._since = {peer: self._since[peer] for peer in seen}
        if not short:
            self._marks = seen
        self._scanned = now
        return cut


def private_memory() -> int:
    """Bytes of resident memory that this process shares with nobody."""
    with open("/proc/self/statm", encoding="ascii") as file:
        _, resident, shared = file.read().split()[:3]
    return (int(resident) - int(shared)) * _PAGE


def _trim() -> None:
    """Have the allocator give freed memory back, where it can."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
