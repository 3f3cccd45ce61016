"""The local pool: decode workers that write into shared-memory slots, and heal themselves.

Each worker has a keeper (`keeper.py`), a thread of this process that starts it, hands it one job at
a time, and kills and replaces it when it hangs or outgrows its memory. A job whose worker died is
tried once more; a video that cost two workers is quarantined.

Slots are the back-pressure: a keeper takes a job only with a free slot in hand. Where the callers
themselves hold every slot and still wait for more (a batch larger than the pool), waiting would
never end; after `patience` seconds such replies are copied out of a slot kept for that.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import cast

from rushes.errors import RushesError, ServiceError
from rushes.video.asked import check_id, checked
from rushes.video.request import Reply, Request, VideoInfo, check_deadline
from rushes.video.service import wire
from rushes.video.service.cache import SharedReads
from rushes.video.service.jobs import Counters, Job, JobQueue
from rushes.video.service.keeper import Keeper
from rushes.video.service.limits import RequestLimits
from rushes.video.service.names import Names
from rushes.video.service.process import WorkerSpec
from rushes.video.service.quarantine import Quarantine
from rushes.video.service.slots import SlotPool
from rushes.video.service.wire import Packed

_GRACE = 2.0
"""Seconds that a caller gives a keeper beyond the deadline to say what is wrong."""
_TICK = 0.25
"""Seconds between two looks at whether the caller gave up."""


class PoolReader:
    """Decodes in worker processes; every method may be called from many threads.

    Args:
        spec: how workers are started.
        num_workers: decode processes.
        num_slots: replies that may be held at once; None: four a worker, at least 16.
        slot_bytes: the largest reply; memory is taken only as it is used.
        deadline: seconds a read may take where the request does not say.
        max_queue: jobs that may wait before callers have to.
        patience: seconds of waiting for a slot after which a reply is copied out instead; None
            waits until the deadline.
        strikes: workers that a video may kill before it is quarantined.
        cache_bytes: budget for clips kept in this process; such arrays are shared and read-only.
        limits: what requests may ask of a video's own size, besides fitting into a slot.

    Raises:
        ConfigError: a deadline that is no time.
        ServiceError: no worker, or one that does not start.
        RushesError: what opening the catalogue or the backend in a worker raised.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        num_workers: int = 2,
        *,
        num_slots: int | None = None,
        slot_bytes: int = 256 << 20,
        deadline: float = 60.0,
        max_queue: int = 4096,
        patience: float | None = 1.0,
        strikes: int = 2,
        cache_bytes: int = 0,
        limits: RequestLimits | None = None,
    ) -> None:
        check_deadline(deadline, "a pool")
        if num_workers < 1:
            raise ServiceError(f"a pool of {num_workers} workers; it needs at least 1")
        shared_slots = num_slots or max(16, 4 * num_workers)
        kept = num_workers if patience is not None else 0
        self.spec, self.deadline, self.patience, self.limits = spec, deadline, patience, limits
        self.slots = SlotPool(shared_slots + kept, slot_bytes)
        self.jobs = JobQueue(max_queue)
        self.quarantine, self.names = Quarantine(strikes), Names()
        self.counters = Counters()
        self.shared: SharedReads | None = None
        if cache_bytes:
            self.shared = SharedReads(cache_bytes, self.counters, self.names.known_as)
        self.closed = self.starved = False
        self.keepers = [Keeper(self, index) for index in range(num_workers)]
        try:
            for keeper in self.keepers:
                keeper.started.result(spec.start_timeout + _GRACE)
        except RushesError:
            self.close()
            raise
        except FutureTimeout:
            self.close()
            text = f"a decode worker did not start in {spec.start_timeout:g} s"
            raise ServiceError(text) from None

    def submit(self, request: Request) -> Future[Reply]:
        """Start a read; blocks only where `max_queue` jobs wait."""
        promise: Future[Reply] = Future()

        def done(packed: Future[Packed | VideoInfo]) -> None:
            try:
                promise.set_result(wire.unpack(cast(Packed, packed.result())))
            except RushesError as error:
                promise.set_exception(error)

        promise.set_running_or_notify_cancel()
        self._put(request.video_id, request.deadline, request).future.add_done_callback(done)
        return promise

    def read(self, request: Request) -> Reply:
        """The named arrays, in shared memory that is theirs until they are gone.

        Raises:
            ConfigError: the request means nothing.
            VideoError: the video cannot give them, killed its workers, or is quarantined.
            ServiceError: the pool is closed.
        """
        if self.shared is None or not request.fixed:
            return wire.unpack(self.read_packed(request))
        request = checked(request)
        allowed = self.deadline if request.deadline is None else request.deadline
        return wire.unpack(self.shared.read(request, self.read_packed, allowed))

    def read_packed(self, request: Request, cancelled: Callable[[], bool] | None = None) -> Packed:
        """The reply as header and payload; `cancelled` is asked now and then while it waits."""
        job = self._put(request.video_id, request.deadline, request)
        return cast(Packed, self._await(job, cancelled))

    def describe(self, video_id: str, deadline: float | None = None) -> VideoInfo:
        """What the video holds, found by a worker."""
        return cast(VideoInfo, self._await(self._put(video_id, deadline, None), None))

    def _put(self, video_id: str, deadline: float | None, request: Request | None) -> Job:
        # Here, in the caller's thread: what cannot be asked must not reach a keeper.
        check_id(video_id)
        check_deadline(deadline, video_id)
        plain = None if request is None else wire.encode_request(checked(request))
        self.quarantine.check(self.names.known_as(video_id), video_id)
        allowed = self.deadline if deadline is None else deadline
        job = Job(video_id, time.monotonic() + allowed, allowed, plain)
        self.jobs.put(job)
        return job

    def _await(self, job: Job, cancelled: Callable[[], bool] | None) -> Packed | VideoInfo:
        while True:
            remaining = job.deadline - time.monotonic()
            step = remaining if cancelled is None else min(remaining, _TICK)
            try:
                return job.future.result(max(step, 0.0))
            except FutureTimeout:
                if job.future.done():
                    continue
            if remaining <= 0:
                break
            if cancelled is not None and cancelled():
                job.future.cancel()
                raise ServiceError(f"{job.video_id}: the client went away")
        if job.future.cancel():
            raise job.late(f"still behind {len(self.jobs)} other requests")
        try:
            return job.future.result(_GRACE)
        except FutureTimeout:
            raise job.late("its worker could not be killed in time") from None

    @property
    def num_restarts(self) -> int:
        """Workers that were replaced."""
        return int(self.counters.get().get("restarts", 0))

    def worker_pids(self) -> list[int]:
        """Process ids of the workers that run."""
        workers = [keeper.worker for keeper in self.keepers]
        return [worker.pid for worker in workers if worker is not None and worker.alive]

    def close(self) -> None:
        """Kill the workers; arrays that were handed out stay good."""
        self.closed = True
        self.jobs.close()
        for keeper in self.keepers:
            keeper.thread.join(15.0)
        self.slots.close()

    def __enter__(self) -> PoolReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
