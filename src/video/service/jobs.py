"""The queue between those who ask and the decode workers."""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict, deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from rushes.errors import DecodeTimeout, RushesError, ServiceError
from rushes.video.request import VideoInfo
from rushes.video.service.wire import Packed

_LOOKAHEAD = 16
_REMEMBERED = 1024


@dataclass(frozen=True)
class Job:
    """One thing asked of the pool.

    Attributes:
        deadline: `time.monotonic()` until which the answer is wanted.
        allowed: seconds that it had at first, for the texts of errors.
        request: as `wire.encode_request` writes it; None where the video is only to be described.
    """

    video_id: str
    deadline: float
    allowed: float
    request: dict[str, Any] | None
    future: Future[Packed | VideoInfo] = field(default_factory=Future)

    def late(self, where: str) -> DecodeTimeout:
        """The error of a job whose deadline has passed."""
        return DecodeTimeout(self.video_id, f"{where}; the deadline was {self.allowed:g} s")

    def answer(self, result: Packed | VideoInfo) -> None:
        """Give the caller what it asked for, unless it was told something before."""
        if not self.future.done():
            self.future.set_result(result)

    def fail(self, error: RushesError) -> None:
        """Give the caller an error, unless it was told something before."""
        if not self.future.done():
            self.future.set_exception(error)


class JobQueue:
    """First in, first out, except that a worker which has a video open gets it first.

    The one that waits longest is passed over only so often: open videos must not keep others out.

    Args:
        max_length: jobs that may wait; `put` refuses or blocks beyond.
    """

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self._jobs: deque[Job] = deque()
        self._homes: OrderedDict[str, int] = OrderedDict()
        self._changed = threading.Condition()
        self._passed = 0
        self._freed: set[int] = set()
        self.closed = False

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Job) -> None:
        """Add a job, waiting for room; raises `DecodeTimeout` or, when closed, `ServiceError`."""
        with self._changed:
            while len(self._jobs) >= self.max_length and not self.closed:
                remaining = job.deadline - time.monotonic()
                if remaining <= 0 or not self._changed.wait(remaining):
                    raise job.late(f"{len(self._jobs)} requests waited before it")
            if self.closed:
                raise ServiceError("the pool is closed")
            self._jobs.append(job)
            self._changed.notify_all()

    def take(self, worker: int, timeout: float) -> Job | None:
        """The next job for a worker; None when none came in `timeout` s or the queue was closed."""
        with self._changed:
            self._freed.discard(worker)
            self._changed.wait_for(lambda: self._jobs or self.closed, timeout)
            if not self._jobs:
                return None
            job = self._pick(worker)
            self._homes[job.video_id] = worker
            self._homes.move_to_end(job.video_id)
            if len(self._homes) > _REMEMBERED:
                self._homes.popitem(last=False)
            if len(self._jobs) + 1 >= self.max_length:
                self._changed.notify_all()
            return job

    def _pick(self, worker: int) -> Job:
        ahead = min(len(self._jobs), _LOOKAHEAD) if self._passed < _LOOKAHEAD else 0
        for place in range(ahead):
            if self._homes.get(self._jobs[place].video_id) == worker:
                job = self._jobs[place]
                del self._jobs[place]
                self._passed = self._passed + 1 if place else 0
                return job
        self._passed = 0
        return self._jobs.popleft()

    def needs(self, worker: int, video_id: str) -> bool:
        """Whether a worker at a video that nobody waits for should be freed: jobs of others wait,
        more of them than workers have been freed for. Who is told so must come and `take`.
        """
        with self._changed:
            others = sum(job.video_id != video_id for job in self._jobs)
            if others <= len(self._freed):
                return False
            self._freed.add(worker)
            return True

    def drop_late(self) -> None:
        """Answer those whose deadline passed while they waited."""
        now = time.monotonic()
        with self._changed:
            late = [job for job in self._jobs if now >= job.deadline]
            if not late:
                return
            waiting = len(self._jobs)
            self._jobs = deque(job for job in self._jobs if now < job.deadline)
            self._changed.notify_all()
        for job in late:
            if job.future.set_running_or_notify_cancel():
                job.fail(job.late(f"still among {waiting} requests that wait for a worker"))

    def close(self) -> None:
        """Wake everybody; jobs that waited fail."""
        with self._changed:
            self.closed = True
            waiting, self._jobs = list(self._jobs), deque()
            self._changed.notify_all()
        for job in waiting:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(ServiceError("the pool was closed"))


class Counters:
    """What a pool has done so far; thread-safe, read by the metrics and the status."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: Counter[str] = Counter()

    def add(self, **values: int) -> None:
        """Add to named counts."""
        with self._lock:
            self._values.update(values)

    def get(self) -> dict[str, Any]:
        """A copy of all counts."""
        with self._lock:
            return dict(self._values)
