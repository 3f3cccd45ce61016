"""The local pool: decode workers that write into shared-memory slots, and heal themselves.

Each worker has a keeper, a thread of this process that starts it, hands it one job at a time, and
kills and replaces it when it hangs past the job's deadline or outgrows its memory. A job whose
worker died is tried once more; a video that cost two workers is quarantined.

Slots are the back-pressure: a keeper takes a job only with a free slot in hand. Where the callers
themselves hold every slot and still wait for more (a batch larger than the pool), waiting would
never end; after `patience` seconds such replies are copied out of a slot kept for that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, cast

from rushes.errors import DecodeTimeout, RushesError, ServiceError, WorkerDied
from rushes.log import get_logger
from rushes.video.request import Reply, Request, VideoInfo
from rushes.video.service import wire
from rushes.video.service.cache import SharedReads
from rushes.video.service.jobs import Counters, Job, JobQueue
from rushes.video.service.process import ProcessGone, WorkerProcess, WorkerSpec
from rushes.video.service.quarantine import Quarantine
from rushes.video.service.slots import Lease, SlotPool
from rushes.video.service.wire import Packed

log = get_logger(__name__)

_GRACE = 2.0
"""Seconds that a caller gives a keeper beyond the deadline to kill a hanging worker."""
_TICK = 0.25
"""Seconds between two looks at whether the pool was closed or the caller gave up."""
_STARTS = 3
"""Times that a worker is started before that counts as an error."""
_FAIR_SHARE = 0.5
_FAIR_SECONDS = 10.0
"""A hang counts against the video only if it had this share of the pool's own deadline, or so many
seconds, for itself: a caller in a hurry must not close a good video to all others."""


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

    Raises:
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
    ) -> None:
        if num_workers < 1:
            raise ServiceError(f"a pool of {num_workers} workers; it needs at least 1")
        shared_slots = num_slots or max(16, 4 * num_workers)
        kept = num_workers if patience is not None else 0
        self.spec, self.deadline, self.patience = spec, deadline, patience
        self.slots = SlotPool(shared_slots + kept, slot_bytes)
        self.jobs = JobQueue(max_queue)
        self.quarantine = Quarantine(strikes)
        self.counters = Counters()
        self.shared = SharedReads(cache_bytes, self.counters) if cache_bytes else None
        self.closed = self.starved = False
        self.keepers = [Keeper(self, index) for index in range(num_workers)]
        try:
            for keeper in self.keepers:
                keeper.started.result(spec.start_timeout + _GRACE)
        except (RushesError, FutureTimeout):
            self.close()
            raise

    def submit(self, request: Request) -> Future[Reply]:
        """Start a read; blocks only where `max_queue` jobs wait."""
        promise: Future[Reply] = Future()

        def done(packed: Future[Packed | VideoInfo]) -> None:
            error = packed.exception()
            if error is not None:
                promise.set_exception(error)
            else:
                promise.set_result(wire.unpack(cast(Packed, packed.result())))

        promise.set_running_or_notify_cancel()
        self._put(request.video_id, request.deadline, request).future.add_done_callback(done)
        return promise

    def read(self, request: Request) -> Reply:
        """The named arrays, in shared memory that is theirs until they are gone.

        Raises:
            VideoError: the video cannot give them, killed its workers, or is quarantined.
            ServiceError: the pool is closed.
        """
        if self.shared is None:
            return wire.unpack(self.read_packed(request))
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
        self.quarantine.check(video_id)
        allowed = self.deadline if deadline is None else deadline
        job = Job(video_id, time.monotonic() + allowed, allowed, request)
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
            return job.future.result(_GRACE + self.spec.start_timeout)
        except FutureTimeout:
            raise job.late("its worker could not be killed in time") from None

    @property
    def num_restarts(self) -> int:
        """Workers that were replaced."""
        return int(self.counters.get().get("restarts", 0))

    def worker_pids(self) -> list[int]:
        """Process ids of the workers that run."""
        workers = [keeper.worker for keeper in self.keepers]
        return [worker.pid for worker in workers if worker is not None]

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


class Keeper:
    """The thread beside one worker: its parent in the kernel's eyes as well."""

    def __init__(self, pool: PoolReader, index: int) -> None:
        self.pool, self.index = pool, index
        self.worker: WorkerProcess | None = None
        self.started: Future[None] = Future()
        self.spare = pool.slots.acquire(0.0) if pool.patience is not None else None
        self._warned = False
        name = f"rushes-keeper-{index}"
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._start_worker()
            self.started.set_result(None)
        except (RushesError, OSError) as error:
            known = (
                error
                if isinstance(error, RushesError)
                else ServiceError(f"a decode worker did not start: {error}")
            )
            self.started.set_exception(known)
        try:
            while (job := self.pool.jobs.take(self.index)) is not None:
                if job.future.set_running_or_notify_cancel():
                    self._finish(job)
                # A reply lives on in its future alone: a name left here would hold its slot.
                del job
        finally:
            self._stop_worker()
            self.spare = None

    def _finish(self, job: Job) -> None:
        counters = self.pool.counters
        try:
            result = self._do(job)
            counters.add(reads=1)
        except RushesError as error:
            counters.add(**{f"error_{getattr(error, 'reason', 'service')}": 1})
            job.future.set_exception(error.with_traceback(None))
        except (OSError, ValueError) as error:
            # A keeper must not end by a full descriptor table: its caller gets the error.
            job.future.set_exception(ServiceError(f"{job.video_id}: {error}"))
        else:
            job.future.set_result(result)

    def _do(self, job: Job) -> Packed | VideoInfo:
        lease = None if job.request is None else self._slot(job)
        try:
            return self._try(job, lease)
        except BaseException:
            # At once, not when the error's traceback lets go of this frame.
            if lease is not None and lease is not self.spare:
                lease.release()
            raise

    def _try(self, job: Job, lease: Lease | None) -> Packed | VideoInfo:
        while True:
            self.pool.quarantine.check(job.video_id)
            if time.monotonic() >= job.deadline:
                raise job.late("no worker was free in time")
            try:
                answer = self._ask(job, lease)
            except ProcessGone as error:
                self._blame(job, error)
                continue
            if "error" in answer:
                raise wire.decode_error(answer["error"])
            self.pool.quarantine.forgive(job.video_id)
            return self._result(answer, lease)

    def _slot(self, job: Job) -> Lease:
        slots, patience = self.pool.slots, self.pool.patience
        remaining = job.deadline - time.monotonic()
        if patience is None:
            wait = remaining
        else:  # one wait is enough to learn that the callers hold them all
            wait = 0.0 if self.pool.starved else min(patience, remaining)
        lease = self._wait_for_slot(wait)
        self.pool.starved = lease is None
        if lease is not None:
            return lease
        if self.spare is None or remaining <= 0:
            raise job.late(f"all {slots.num_slots} slots are held by readers of earlier replies")
        if not self._warned:
            log.warning("all %d slots are in use: replies are copied out", slots.num_slots)
            self._warned = True
        return self.spare

    def _wait_for_slot(self, seconds: float) -> Lease | None:
        until = time.monotonic() + seconds
        while True:
            remaining = until - time.monotonic()
            lease = self.pool.slots.acquire(min(remaining, _TICK))
            if lease is not None or remaining <= 0 or self.pool.closed:
                return lease

    def _ask(self, job: Job, lease: Lease | None) -> dict[str, Any]:
        if self.worker is None:
            self._start_worker()
        assert self.worker is not None
        message: dict[str, Any] = {"id": job.video_id}
        if job.request is not None and lease is not None:
            message["slot"] = lease.index
            message["request"] = wire.encode_request(job.request)
        self._asked = time.monotonic()
        return self.worker.ask(message, job.deadline, lambda: self.pool.closed)

    def _result(self, answer: dict[str, Any], lease: Lease | None) -> Packed | VideoInfo:
        if lease is None:
            return wire.decode_info(answer["info"])
        decoded, returned = answer["frames"]
        self.pool.counters.add(frames_decoded=decoded, frames_returned=returned)
        size = answer["size"]
        if lease is self.spare:
            self.pool.slots.note_size(lease.index, size)
            self.pool.counters.add(copied_out=1)
            return Packed(answer["header"], self.pool.slots.segment(lease.index)[:size].copy())
        return Packed(answer["header"], lease.array(size))

    def _blame(self, job: Job, gone: ProcessGone) -> None:
        """Replace the worker; return to try again, or raise."""
        pid = self.worker.pid if self.worker else 0
        self._stop_worker()
        if self.pool.closed:
            raise ServiceError("the pool was closed")
        log.warning("worker %d on %s: %s; it is replaced", pid, job.video_id, gone)
        self.pool.counters.add(restarts=1)
        had = time.monotonic() - self._asked
        fair = min(_FAIR_SHARE * self.pool.deadline, _FAIR_SECONDS)
        if not gone.hung or had >= fair:
            self.pool.quarantine.strike(job.video_id, str(gone))
        if gone.hung:
            detail = f"the decoder gave {gone}, the deadline was {job.allowed:g} s"
            raise DecodeTimeout(job.video_id, f"{detail}; its worker was killed")
        if time.monotonic() >= job.deadline:
            raise WorkerDied(job.video_id, f"its worker {gone}")

    def _start_worker(self) -> None:
        for left in reversed(range(_STARTS)):
            worker = WorkerProcess(self.pool.spec, self.pool.slots)
            try:
                worker.wait_ready(lambda: self.pool.closed)
            except RushesError:
                worker.kill()
                raise
            except ProcessGone as error:  # no video's fault: it had none yet
                worker.kill()
                if not left or self.pool.closed:
                    raise ServiceError(f"a decode worker did not start: {error}") from error
                continue
            self.worker = worker
            return

    def _stop_worker(self) -> None:
        if self.worker is not None:
            worker, self.worker = self.worker, None
            worker.kill()
