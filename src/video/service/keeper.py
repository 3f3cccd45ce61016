"""The thread beside one decode worker: starts it, asks it, judges it, replaces it.

A caller is told at its deadline, whatever its worker does. The worker is judged by what the video
has had: it may go on until it has had the pool's whole deadline to itself (time in which others had
the CPU aside), unless it plainly does nothing any more. So a caller in a hurry or a machine that is
full costs no worker, and a video is blamed for no more than its own time. Only where other jobs
wait and no worker is idle does one that nobody waits for have to go, and then nothing is held
against its video: half a decode says nothing of it.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from rushes.errors import DecodeTimeout, RushesError, ServiceError, WorkerDied
from rushes.log import get_logger
from rushes.video.request import VideoInfo
from rushes.video.service import wire
from rushes.video.service.effort import OwnTime
from rushes.video.service.jobs import Job
from rushes.video.service.process import ProcessGone, WorkerProcess
from rushes.video.service.slots import Lease
from rushes.video.service.wire import Packed

if TYPE_CHECKING:
    from rushes.video.service.pool import PoolReader

log = get_logger(__name__)

_TICK = 0.1
"""Seconds between two looks at what is waited for."""
_LOOK = 0.5
"""Seconds between two looks at a worker that has nothing to do."""
_STARTS = 3
"""Times that a worker is started before that counts as an error."""
_START_PAUSE = (1.0, 30.0)
"""First and longest pause, in seconds, before an idle worker that does not start is tried again."""
_FULL = 0.9
"""Share of the pool's deadline that is a video's full time: the rest goes by in the queue."""
_IDLE = 1.0
"""Seconds of doing nothing after which a worker beyond its caller's deadline counts as hung."""
_ROOM = 0.5
"""Seconds beyond its caller's deadline after which a worker makes room for others that wait: about
what a new one takes to start, so that one which is nearly done is let finish."""
_MARGIN = (0.05, 0.25)
"""Share of the time, and at most so many seconds, by which a worker gives up before its caller, so
that one which minds its deadline can say so."""


class Keeper:
    """Keeps one worker of a pool; its parent in the kernel's eyes as well.

    Args:
        pool: whose jobs it takes.
        index: number of the worker.
    """

    def __init__(self, pool: PoolReader, index: int) -> None:
        self.pool, self.index = pool, index
        self.worker: WorkerProcess | None = None
        self.started: Future[None] = Future()
        self.spare = pool.slots.acquire(0.0) if pool.patience is not None else None
        self._warned = False
        self._pause, self._start_at = 0.0, 0.0
        name = f"rushes-keeper-{index}"
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._start_worker(None)
            self.started.set_result(None)
        except RushesError as error:
            self.started.set_exception(error)
        except Exception as error:  # noqa: BLE001 - the border of a thread: who waits is told
            self.started.set_exception(ServiceError(f"a decode worker did not start: {error!r}"))
        try:
            while not self.pool.jobs.closed:
                job = self.pool.jobs.take(self.index, _LOOK)
                if job is None:
                    self._revive()
                elif job.future.set_running_or_notify_cancel():
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
            job.fail(error.with_traceback(None))
        except Exception as error:  # the border of a thread: nothing may end it
            if not isinstance(error, OSError):  # such as a full descriptor table
                log.exception("%s: a keeper failed", job.video_id)
            # The worker may be in the middle of an answer that nobody waits for.
            self._stop_worker()
            job.fail(ServiceError(f"{job.video_id}: {type(error).__name__}: {error}"))
        else:
            job.answer(result)

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
        pool, nameless = self.pool, 0
        while True:
            if self.worker is None or not self.worker.alive:  # no fault of this video
                self._stop_worker()
                self._start_worker(job)
            if job.future.done() or time.monotonic() >= job.deadline:
                raise job.late("no worker was free in time")
            name = pool.names.get(job.video_id)
            patience = _Patience(self, job)
            try:
                name = self._name(job, patience)
                pool.quarantine.check(name, job.video_id)
                answer = self._answer(self._message(job, lease), patience)
            except ProcessGone as error:
                nameless += name is None
                # Once, the worker may have died of something else; twice it is the id.
                blamed = job.video_id if name is None and nameless > 1 else name
                self._blame(job, blamed, error, patience)
                if nameless > 1:
                    raise WorkerDied(job.video_id, f"its worker {error}") from None
                continue
            pool.quarantine.forgive(name)
            return self._result(answer, lease)

    def _name(self, job: Job, patience: _Patience) -> str:
        """The one name of the video, which a worker finds for each id once."""
        name = self.pool.names.get(job.video_id)
        if name is None:
            found = self._answer({"id": job.video_id, "name": True}, patience)
            name = str(found["name"])
            self.pool.names.put(job.video_id, name)
        return name

    def _message(self, job: Job, lease: Lease | None) -> dict[str, Any]:
        message: dict[str, Any] = {"id": job.video_id}
        if job.request is not None and lease is not None:
            message["slot"] = lease.index
            message["request"] = {**job.request, "deadline": _within(job.deadline)}
        return message

    def _answer(self, message: dict[str, Any], patience: _Patience) -> dict[str, Any]:
        assert self.worker is not None
        answer = self.worker.ask(message, patience)
        if "error" in answer:
            raise wire.decode_error(answer["error"])
        return answer

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
            self.pool.jobs.drop_late()

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

    def _blame(self, job: Job, name: str | None, gone: ProcessGone, patience: _Patience) -> None:
        """Replace the worker; return to try again, or raise.

        Without a name nothing of the video was read yet, and its worker died of something else.
        """
        pool, pid = self.pool, self.worker.pid if self.worker else 0
        seconds, full = patience.own.seconds, _FULL * pool.deadline
        self._stop_worker()
        if pool.closed:
            raise ServiceError("the pool was closed")
        log.warning("worker %d on %s: %s; it is replaced", pid, job.video_id, gone)
        pool.counters.add(restarts=1)
        if gone.in_the_way:
            raise job.late(f"the decoder gave {gone}")
        if gone.hung:
            pool.quarantine.hung(name or job.video_id, job.video_id, str(gone), seconds, full)
            detail = f"the decoder gave {gone}, the deadline was {job.allowed:g} s"
            raise DecodeTimeout(job.video_id, f"{detail}; its worker was killed")
        if name is not None:
            pool.quarantine.strike(name, job.video_id, str(gone))
        if time.monotonic() >= job.deadline:
            raise WorkerDied(job.video_id, f"its worker {gone}")

    def _revive(self) -> None:
        """Replace a worker that ended while it had nothing to do."""
        worker, now = self.worker, time.monotonic()
        if (worker is not None and worker.alive) or now < self._start_at:
            return
        try:
            if worker is not None:
                log.warning("worker %d had nothing to do and %s", worker.pid, worker.how_it_ended())
                self.pool.counters.add(restarts=1)
                self._stop_worker()
            self._start_worker(None)
            self._pause = 0.0
        except Exception as error:  # noqa: BLE001 - the border of a thread: it tries again
            if not self.pool.closed:
                log.warning("%s", error)
            self._pause = min(max(2 * self._pause, _START_PAUSE[0]), _START_PAUSE[1])
            self._start_at = now + self._pause

    def _start_worker(self, job: Job | None) -> None:
        for left in reversed(range(_STARTS)):
            try:
                worker = WorkerProcess(self.pool.spec, self.pool.slots, self.pool.limits)
            except OSError as error:
                raise ServiceError(f"a decode worker did not start: {error}") from error
            try:
                worker.wait_ready(_Start(self, job))
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


class _Patience:
    """How long a keeper waits for the answer to a job; see the module's text.

    Attributes:
        own: the time that the worker has had for the job.
    """

    def __init__(self, keeper: Keeper, job: Job) -> None:
        self._keeper, self._job = keeper, job
        self._asked = time.monotonic()
        self._next = min(self._asked + _TICK, job.deadline)
        self.own = OwnTime(keeper.worker.pid if keeper.worker is not None else 0)

    def __call__(self) -> float:
        """Seconds until it wants to be asked again; raises `ProcessGone` for a hung worker."""
        now = time.monotonic()
        if now < self._next:
            return self._next - now
        pool, job = self._keeper.pool, self._job
        if pool.closed:
            raise ProcessGone("the pool was closed")
        pool.jobs.drop_late()
        self.own.look()
        if now >= job.deadline:
            said = f"no answer in {now - self._asked:.1f} s"
            if self.own.seconds >= _FULL * pool.deadline or self.own.idle >= _IDLE:
                raise ProcessGone(said, hung=True)
            job.fail(job.late(f"the decoder gave {said}"))
            beyond = now - job.deadline
            if beyond >= _ROOM and pool.jobs.needs(self._keeper.index, job.video_id):
                raise ProcessGone(f"{said}, and others wait", in_the_way=True)
            self._next = now + _TICK
        else:
            self._next = min(now + _TICK, job.deadline)
        return self._next - now


class _Start:
    """How long a keeper waits for a worker to be ready; a caller is told at its deadline."""

    def __init__(self, keeper: Keeper, job: Job | None) -> None:
        self._pool, self._job = keeper.pool, job
        self._until = time.monotonic() + keeper.pool.spec.start_timeout

    def __call__(self) -> float:
        now = time.monotonic()
        if self._pool.closed:
            raise ProcessGone("the pool was closed")
        if now >= self._until:
            raise ProcessGone(f"was not ready in {self._pool.spec.start_timeout:g} s")
        self._pool.jobs.drop_late()
        waits = self._until - now
        if self._job is not None and not self._job.future.done():
            if now >= self._job.deadline:
                self._job.fail(self._job.late("its worker was still starting"))
            else:
                waits = min(waits, self._job.deadline - now)
        return min(waits, _TICK)


def _within(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    share, most = _MARGIN
    return max(remaining - min(share * remaining, most), 0.001)
