"""Readers that the loader's threads can share, whatever stands behind them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rushes.video.request import Reply, Request, VideoInfo, VideoReader


class PooledReader:
    """A `VideoReader` for several threads: as many readers as are in use at once.

    Args:
        open_one: opens a reader that one thread at a time may use.
    """

    def __init__(self, open_one: Callable[[], VideoReader]) -> None:
        self._open_one = open_one
        self._free: list[VideoReader] = []
        self._all: list[VideoReader] = []
        self._lock = threading.Lock()
        self._closed = False

    def describe(self, video_id: str) -> VideoInfo:
        """What the video holds; raises `VideoError`."""
        with self._borrow() as reader:
            return reader.describe(video_id)

    def read(self, request: Request) -> Reply:
        """The named arrays; raises `VideoError` when the video cannot give them."""
        with self._borrow() as reader:
            return reader.read(request)

    def close(self) -> None:
        """Close every reader; closing twice is fine."""
        with self._lock:
            self._closed = True
            readers, self._all, self._free = self._all, [], []
        for reader in readers:
            reader.close()

    @contextmanager
    def _borrow(self) -> Iterator[VideoReader]:
        with self._lock:
            assert not self._closed, "the reader is closed"
            reader = self._free.pop() if self._free else None
        if reader is None:
            reader = self._open_one()
            with self._lock:
                self._all.append(reader)
        try:
            yield reader
        finally:
            with self._lock:
                self._free.append(reader)
