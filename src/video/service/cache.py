"""Decoded clips under a byte budget, and one decode for many that ask for the same.

The key is the whole request but its deadline, with the video's one name for its id. Only fixed
sampling, as evaluation does it, is kept: training hardly ever asks for a clip twice. Entries start
on probation and are protected from the second use on, so a pass over clips that nobody asks for
again drives none of the others out.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout

from rushes.errors import DecodeTimeout, RushesError, ServiceError
from rushes.video.request import Request
from rushes.video.service import wire
from rushes.video.service.jobs import Counters
from rushes.video.service.wire import Packed

_PROTECTED_SHARE = 0.8
ReadPacked = Callable[[Request], Packed]


class ClipCache:
    """Least recently used first out, in two segments.

    Args:
        budget: bytes of replies that are kept; 0 keeps nothing.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._probation: OrderedDict[Request, Packed] = OrderedDict()
        self._protected: OrderedDict[Request, Packed] = OrderedDict()
        self._bytes = {"probation": 0, "protected": 0}
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes kept now."""
        return sum(self._bytes.values())

    def __len__(self) -> int:
        return len(self._probation) + len(self._protected)

    def get(self, key: Request) -> Packed | None:
        """The kept reply, which this use protects."""
        with self._lock:
            packed = self._protected.get(key)
            if packed is not None:
                self._protected.move_to_end(key)
                return packed
            packed = self._probation.pop(key, None)
            if packed is not None:
                self._bytes["probation"] -= packed.nbytes
                self._protected[key] = packed
                self._bytes["protected"] += packed.nbytes
                self._shrink()
            return packed

    def put(self, key: Request, packed: Packed) -> None:
        """Keep a reply (in memory of its own) unless it alone is over the budget."""
        if packed.nbytes > self.budget:
            return
        with self._lock:
            if key in self._probation or key in self._protected:
                return
            self._probation[key] = packed
            self._bytes["probation"] += packed.nbytes
            self._shrink()

    def _shrink(self) -> None:
        while self._bytes["protected"] > self.budget * _PROTECTED_SHARE and self._protected:
            key, packed = self._protected.popitem(last=False)
            self._bytes["protected"] -= packed.nbytes
            self._probation[key] = packed
            self._bytes["probation"] += packed.nbytes
        while self.nbytes > self.budget and self._probation:
            _, packed = self._probation.popitem(last=False)
            self._bytes["probation"] -= packed.nbytes


class SharedReads:
    """Reads through a cache; equal requests at the same time wait for one read.

    Args:
        budget: bytes of the cache.
        counters: gets `cache_hits`, `cache_misses`, `coalesced`.
        known_as: the one name of a video id, as far as it is known (see `Names`).
    """

    def __init__(
        self, budget: int, counters: Counters, known_as: Callable[[str], str] = str
    ) -> None:
        self.cache = ClipCache(budget)
        self.counters, self._known_as = counters, known_as
        self._underway: dict[Request, Future[Packed]] = {}
        self._lock = threading.Lock()

    def read(self, request: Request, read: ReadPacked, timeout: float) -> Packed:
        """The reply from the cache, from a read that is under way, or from `read`.

        Args:
            request: what is asked.
            read: decodes; its errors go to all that wait for it.
            timeout: seconds to wait for somebody else's read of the same.
        """
        key = self._key(request)
        if self.cache.budget and request.fixed:
            packed = self.cache.get(key)
            if packed is not None:
                self.counters.add(cache_hits=1)
                return wire.renamed(packed, request.video_id)
            self.counters.add(cache_misses=1)
        with self._lock:
            first = self._underway.get(key)
            promise: Future[Packed] = Future()
            if first is None:
                self._underway[key] = promise
        if first is None:
            return self._lead(key, request, read, promise)
        self.counters.add(coalesced=1)
        until = time.monotonic() + timeout
        try:
            return wire.renamed(first.result(timeout), request.video_id)
        except FutureTimeout:
            detail = f"another reader's decode took over {timeout:g} s"
            raise DecodeTimeout(request.video_id, detail) from None
        except (ServiceError, DecodeTimeout):
            # The leader gave up, went away or was in a greater hurry: no fault of ours.
            left = until - time.monotonic()
            if left <= 0:
                raise
            return read(dataclasses.replace(request, deadline=left))

    def _key(self, request: Request) -> Request:
        name = self._known_as(request.video_id)
        return dataclasses.replace(request, video_id=name, deadline=None, fixed=False)

    def _lead(
        self, key: Request, request: Request, read: ReadPacked, promise: Future[Packed]
    ) -> Packed:
        try:
            packed = read(request)
            if self.cache.budget and request.fixed:
                packed = self._kept(self._key(request), packed)
            # Several may look at it from now on; none may write.
            packed.payload.flags.writeable = False
        except BaseException as error:
            self._forget(key)
            # A copy: the error's own traceback knows this frame, and a ring of the two would keep
            # everything that was read alive until the garbage collector comes by.
            promise.set_exception(_copy_of(error))
            raise
        self._forget(key)
        promise.set_result(packed)
        return packed

    def _kept(self, key: Request, packed: Packed) -> Packed:
        if packed.nbytes > self.cache.budget:
            return packed
        packed = packed.copied()  # a slot must not be held by the cache
        self.cache.put(key, packed)
        return packed

    def _forget(self, key: Request) -> None:
        with self._lock:
            self._underway.pop(key, None)


def _copy_of(error: BaseException) -> RushesError:
    if isinstance(error, RushesError):
        return wire.decode_error(wire.encode_error(error))
    return ServiceError(str(error))
