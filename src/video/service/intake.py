"""How much may be sent to a server before it is read.

gRPC takes a whole message into memory before any handler runs, the check of the token included, and
pyarrow passes on no limit for that. So the kernel's count of what came over each connection is
watched instead: who has not shown the token may send little, who sends without asking anything is
cut off, and where memory grows beyond what the server has reason to use, whoever sent much is.
Between two looks some more may come in. Connections that ask nothing are counted, too: those that
have waited longest go first, so that strangers never keep others out.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections import Counter
from collections.abc import Callable

from rushes.log import get_logger
from rushes.video.service.connections import (
    Peer,
    connections,
    hang_up,
    nearly_full,
    peer_of,
    received,
)

log = get_logger(__name__)

_PAGE = os.sysconf("SC_PAGESIZE")
_TICK = 0.02
"""Seconds between two looks at memory: what the network can bring in that time gets in."""
_SCAN, _CROWDED_SCAN = 1.0, 0.1
"""Seconds between two looks at all connections while memory is as it should be, and while there are
many strangers."""
_SHORT_SHARE = 16
"""While memory is short, who asks nothing may send this part of what is allowed otherwise."""
_GROWN = 50
"""Looks in a row that find too much memory and nobody to blame, after which it is taken as ours."""


class IntakeGuard:
    """Watches the connections to one port on a thread of its own, once told which.

    Args:
        kept: bytes that the server keeps with good reason.
        cut_off: told how many connections were cut.
        stranger_bytes: what a connection may send before its first accepted call.
        stranger_seconds: how long it may wait with that.
        strangers: connections without an accepted call, and how many of them from one address.
        unasked_bytes: what a known connection may send without asking anything.
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
        strangers: tuple[int, int] = (512, 128),
        unasked_bytes: int = 1 << 20,
        spare: int = 128 << 20,
        burst: int = 16 << 20,
    ) -> None:
        self.port, self._kept, self._cut_off = 0, kept, cut_off
        self.stranger_bytes, self.stranger_seconds = stranger_bytes, stranger_seconds
        self.spare, self.burst = spare, burst
        self.strangers, self.unasked_bytes = strangers, unasked_bytes
        # Open from now on: later there may be no descriptor for it.
        self._memory = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._known: dict[str, Peer] = {}
        self._calls: Counter[Peer] = Counter()
        self._asked: dict[Peer, tuple[int, int]] = {}
        self._marks: dict[Peer, int] = {}
        self._since: dict[Peer, float] = {}
        self._base = 0
        self._unexplained = 0
        self._scanned, self._pause = 0.0, _SCAN
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rushes-intake", daemon=True)

    def watch(self, port: int) -> None:
        """Begin; what memory the server takes now is its own."""
        self.port, self._base = port, self._private() - self._kept()
        self._thread.start()

    def accepted(self, peer: str) -> None:
        """A call of this peer has shown the token."""
        known = self._known.get(peer)
        if known is None:
            known = self._known[peer] = peer_of(peer)
        self._calls[known] += 1

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(5.0)
        with contextlib.suppress(OSError):
            os.close(self._memory)

    def _run(self) -> None:
        while not self._stop.wait(_TICK):
            try:
                self._look()
            except Exception:  # the border of a thread: it looks again in a moment
                log.exception("a look at the connections failed")
                self._stop.wait(_SCAN)

    def _look(self) -> None:
        short = self._short()
        if not short and time.monotonic() - self._scanned < self._pause:
            return
        cut = self._scan(short)
        if cut:
            self._cut_off(cut)
            self._stop.wait(_TICK)  # gRPC frees what it held once it has noticed
            _trim()
        self._explain(short and not cut)

    def _short(self) -> bool:
        return self._private() > self._base + self._kept() + self.spare

    def _private(self) -> int:
        _, resident, shared = os.pread(self._memory, 200, 0).split()[:3]
        return (int(resident) - int(shared)) * _PAGE

    def _explain(self, unexplained: bool) -> None:
        """Memory that nobody sent is our own, or some that the allocator does not give back."""
        self._unexplained = self._unexplained + 1 if unexplained else 0
        if self._unexplained >= _GROWN:
            self._unexplained = 0
            _trim()
            if self._short():
                self._base = self._private() - self._kept()
                log.info("the server now takes %d MB besides its cache", self._base >> 20)

    def _scan(self, short: bool) -> int:
        """Cut who has sent too much or is one too many; returns how many."""
        before, now, cut = dict(self._known), time.monotonic(), 0
        known, seen, waiting = set(before.values()), dict[Peer, int](), list[Peer]()
        for peer, connection in connections():
            if connection.getsockname()[1] != self.port:
                continue
            seen[peer] = count = received(connection)
            if peer in known:
                what = self._too_much(peer, count, short)
            else:
                waiting.append(peer)
                age = now - self._since.setdefault(peer, now)
                what = self._too_strange(count, age, short)
            if what:
                log.warning("%s:%d: %s: disconnected", *peer, what)
                cut += hang_up(connection)
        many = self._cut(self._too_many(waiting))
        cut += many
        for text, peer in before.items():
            if peer not in seen:  # its connection is closed
                self._known.pop(text, None)
                self._calls.pop(peer, None)
        self._since = {peer: since for peer, since in self._since.items() if peer in seen}
        self._asked = {peer: asked for peer, asked in self._asked.items() if peer in seen}
        if not short:
            self._marks = seen
        crowded = many or 2 * len(waiting) > min(self.strangers)
        self._pause = _CROWDED_SCAN if crowded else _SCAN
        self._scanned = now
        return cut

    def _too_strange(self, count: int, age: float, short: bool) -> str:
        """What is wrong with a connection that has had no accepted call yet; "" for nothing."""
        allowed = self.stranger_bytes // (_SHORT_SHARE if short else 1)
        if count > allowed:
            return f"{count} bytes without an accepted call, at most {allowed}"
        if age > self.stranger_seconds:
            return f"no accepted call in {self.stranger_seconds:g} s"
        return ""

    def _too_much(self, peer: Peer, count: int, short: bool) -> str:
        """What is wrong with a connection that we know; "" for nothing."""
        calls, at = self._asked.get(peer, (0, 0))
        if self._calls[peer] != calls:  # it asked since the last look
            self._asked[peer], at = (self._calls[peer], count), count
        allowed = self.unasked_bytes // (_SHORT_SHARE if short else 1)
        if count - at > allowed:  # calls without a message take memory, but no handler sees them
            return f"{count - at} bytes without asking anything, at most {allowed}"
        if short and count - self._marks.get(peer, 0) > self.burst:
            return f"{count - self._marks.get(peer, 0)} bytes while memory is short"
        return ""

    def _too_many(self, waiting: list[Peer]) -> set[Peer]:
        """The strangers beyond what there may be of them, those that have waited longest."""
        total, of_one = self.strangers
        if waiting and nearly_full():
            total = len(waiting) // 4
        by_host: Counter[str] = Counter()
        kept, cut = 0, set()
        for peer in sorted(waiting, key=lambda peer: self._since[peer], reverse=True):
            by_host[peer[0]] += 1
            if kept >= total or by_host[peer[0]] > of_one:
                cut.add(peer)
            else:
                kept += 1
        return cut

    def _cut(self, peers: set[Peer]) -> int:
        if not peers:
            return 0
        total, of_one = self.strangers
        log.warning(
            "%d connections without an accepted call disconnected; at most %d, and %d of an "
            "address, fewer where descriptors run out",
            len(peers), total, of_one,
        )  # fmt: skip
        return sum(hang_up(connection) for peer, connection in connections() if peer in peers)


def _trim() -> None:
    """Have the allocator give freed memory back, where it can."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
