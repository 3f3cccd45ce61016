"""Workers are judged by what a video has had; callers are told at their deadline all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.video.service.conftest import spec
from tests.video.service.fakes import FakeReader, request_of, same

from rushes.errors import DecodeTimeout, Quarantined
from rushes.video.service.effort import OwnTime
from rushes.video.service.pool import PoolReader
from rushes.video.service.process import WorkerSpec

pytestmark = pytest.mark.fault

OpenPool = Callable[..., PoolReader]


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


@contextmanager
def crowded(pids: list[int], rivals: int = 5) -> Iterator[None]:
    """Let processes share one CPU with others that never pause."""
    cpu = min(os.sched_getaffinity(0))
    program = f"import os; os.sched_setaffinity(0, [{cpu}])\nwhile True: pass"
    burners = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(rivals)]
    try:
        for pid in pids:
            os.sched_setaffinity(pid, [cpu])
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait(10)


def test_waiting_for_a_cpu_is_not_held_against_a_video(open_pool: OpenPool) -> None:
    pool = open_pool(num_workers=1, deadline=1.0)
    with crowded(pool.worker_pids()):
        for _ in range(3):
            started = time.monotonic()
            with pytest.raises(DecodeTimeout, match="the deadline was 1 s"):
                pool.read(request_of("busy_1"))
            assert time.monotonic() - started < 2.5
            # Its half second of work takes three in this crowd; it is let finish.
            wait_until(lambda: pool.slots.num_free == pool.slots.num_slots - 1)
    assert pool.num_restarts <= 1  # its keeper may wait for the same CPU, and then looks too late
    assert pool.quarantine.videos() == {}
    request = request_of("busy_1", deadline=60.0)
    assert same(pool.read(request), FakeReader().read(request))


def test_time_in_a_crowd_is_not_ones_own() -> None:
    with crowded([]):
        cpu = min(os.sched_getaffinity(0))
        program = f"import os; os.sched_setaffinity(0, [{cpu}])\nwhile True: pass"
        with subprocess.Popen([sys.executable, "-c", program]) as process:
            own = OwnTime(process.pid)
            own.look()
            started = time.monotonic()
            while time.monotonic() - started < 2.0:
                time.sleep(0.1)
                own.look()
            assert own.idle < 1.0
            assert own.seconds < 1.2  # of two, with five others beside it
            process.kill()


def hurry_until_quarantined(pool: PoolReader, video: str, deadline: float) -> None:
    """Ask for a video again and again in a hurry; every caller is told in time."""
    until = time.monotonic() + 60.0
    while not pool.quarantine.videos():
        started = time.monotonic()
        with pytest.raises((DecodeTimeout, Quarantined)):
            pool.read(request_of(video, deadline=deadline))
        assert time.monotonic() - started < deadline + 1.5
        assert time.monotonic() < until
    with pytest.raises(Quarantined, match="killed 2 workers"):
        pool.read(request_of(video))


def test_a_decoder_that_spins_costs_two_full_deadlines(open_pool: OpenPool) -> None:
    pool = open_pool(num_workers=1, deadline=1.0)
    started = time.monotonic()
    hurry_until_quarantined(pool, "spin_1", 0.2)
    assert time.monotonic() - started > 1.8  # its own time, twice
    assert pool.num_restarts == 2


def test_a_hang_under_short_deadlines_frees_the_worker_and_adds_up(open_pool: OpenPool) -> None:
    pool = open_pool(num_workers=1, deadline=3.0)
    hurry_until_quarantined(pool, "hang_1", 0.3)
    assert pool.num_restarts >= 3  # each was let go well before its three seconds
    assert same(pool.read(request_of("v", deadline=20.0)), FakeReader().read(request_of("v")))


def test_an_idle_worker_that_is_killed_is_replaced_at_once(open_pool: OpenPool) -> None:
    pool = open_pool()
    first, other = pool.worker_pids()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: first not in pool.worker_pids(), 2.0)
    wait_until(lambda: len(pool.worker_pids()) == 2)
    assert other in pool.worker_pids()
    assert pool.num_restarts == 1
    for i in range(8):
        pool.read(request_of(f"v{i}"))
    assert pool.num_restarts == 1


def test_no_video_is_blamed_for_a_worker_that_died_before_it(
    open_pool: OpenPool, tmp_path: Path
) -> None:
    pool = open_pool(spec(tmp_path), num_workers=1)
    for i in range(4):
        os.kill(pool.worker_pids()[0], signal.SIGKILL)
        # It costs a worker of its own, which leaves it one more before it is quarantined.
        assert pool.read(request_of(f"once_{i}")).video_id == f"once_{i}"
    assert pool.quarantine.videos() == {}


def test_starting_a_worker_takes_no_caller_past_its_deadline(
    open_pool: OpenPool, tmp_path: Path
) -> None:
    factory = "tests.video.service.fakes:open_slowly"
    slowly = WorkerSpec(factory, {"folder": str(tmp_path), "seconds": 6.0}, 1 << 30)
    pool = open_pool(slowly, num_workers=1)
    assert pool.read(request_of("v")).video_id == "v"
    os.kill(pool.worker_pids()[0], signal.SIGKILL)
    started = time.monotonic()
    submitted = [pool.submit(request_of(f"s{i}", deadline=0.5)) for i in range(3)]
    with pytest.raises(DecodeTimeout, match=r"the deadline was 0\.5 s"):
        pool.read(request_of("v", deadline=0.5))
    for future in submitted:
        with pytest.raises(DecodeTimeout, match=r"the deadline was 0\.5 s"):
            future.result(5)
    assert time.monotonic() - started < 2.0
    assert pool.read(request_of("v")).video_id == "v"  # the worker was let start


def test_those_behind_a_hanging_video_are_told_in_time(open_pool: OpenPool) -> None:
    pool = open_pool(num_workers=1, deadline=4.0)
    hanging = pool.submit(request_of("spin_1"))
    started = time.monotonic()
    waiting = [pool.submit(request_of(f"v{i}", deadline=0.5)) for i in range(3)]
    for future in waiting:
        with pytest.raises(DecodeTimeout, match="wait for a worker"):
            future.result(5)
    assert time.monotonic() - started < 1.5
    with pytest.raises(DecodeTimeout):
        hanging.result(20)


def test_decoders_that_spin_for_nobody_make_room_without_a_strike(open_pool: OpenPool) -> None:
    pool = open_pool(num_workers=2, deadline=60.0)
    for round_ in range(3):
        spinning = [pool.submit(request_of(f"spin_{i}", deadline=0.3)) for i in range(2)]
        for future in spinning:
            with pytest.raises(DecodeTimeout, match=r"the deadline was 0\.3 s"):
                future.result(5)
        request = request_of(f"v{round_}", deadline=8.0)
        started = time.monotonic()
        assert same(pool.read(request), FakeReader().read(request))
        assert time.monotonic() - started < 5.0  # the pool's deadline is far away
        # One made room, the other may go on: nobody waits for its worker.
        assert round_ or pool.num_restarts == 1
    assert pool.quarantine.videos() == {}
    assert not any(record.seconds for record in pool.quarantine._records.values())


def test_a_slow_decoder_that_nobody_waits_for_goes_on_while_nobody_else_asks(
    open_pool: OpenPool,
) -> None:
    pool = open_pool(num_workers=1, deadline=60.0)
    [worker] = pool.worker_pids()
    with pytest.raises(DecodeTimeout):
        pool.read(request_of("spin_1", deadline=0.2))
    with pytest.raises(DecodeTimeout):  # the same once more is nobody else
        pool.read(request_of("spin_1", deadline=1.5))
    assert pool.worker_pids() == [worker]
    assert pool.num_restarts == 0
