"""A day's worth in small: a million requests, and nothing grows."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from tests.video.service.conftest import spec
from tests.video.service.fakes import FakeReader

from rushes.video.request import Frames, Request, Size
from rushes.video.service.client import ServiceReader
from rushes.video.service.pool import PoolReader
from rushes.video.service.server import FrameServer

THREADS = 8


def tiny(i: int) -> Request:
    return Request(f"v{i % 1000}", (Frames((0.1 * (i % 40),), Size(8, 8)),), deadline=30.0)


def usage(pids: list[int]) -> tuple[float, int, int, int]:
    """Private MB of this process and its workers, descriptors, threads, segments."""
    processes = [psutil.Process(), *map(psutil.Process, pids)]
    memory = sum(process.memory_full_info().uss for process in processes) / 1e6
    links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")[:-1]
             if Path(f"/proc/self/fd/{fd}").is_symlink()]  # fmt: skip
    segments = sum("rushes-slot" in link for link in links)
    descriptors = sum(process.num_fds() for process in processes)
    return memory, descriptors, threading.active_count(), segments


def drive(read: Callable[[Request], object], begin: int, count: int) -> None:
    def work(first: int) -> None:
        for i in range(first, begin + count, THREADS):
            read(tiny(i))

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(work, range(begin, begin + THREADS)))


def check_flat(read: Callable[[Request], object], pids: list[int], requests: int) -> None:
    warm = max(requests // 10, 2000)
    drive(read, 0, warm)
    before = usage(pids)
    drive(read, warm, requests - warm)
    after = usage(pids)
    assert after[0] < before[0] + 20, (before, after)  # MB
    assert after[1] <= before[1] + 4, (before, after)
    assert after[2:] == before[2:], (before, after)


@pytest.mark.parametrize(
    "requests",
    [pytest.param(20_000, marks=pytest.mark.slow), pytest.param(1_000_000, marks=pytest.mark.soak)],
)
def test_the_pool_stays_as_it_is(open_pool: Callable[..., PoolReader], requests: int) -> None:
    pool = open_pool(spec())
    pids = pool.worker_pids()
    check_flat(pool.read, pids, requests)
    assert pool.worker_pids() == pids
    assert pool.slots.num_free == pool.slots.num_slots - 2
    assert pool.read(tiny(7)).arrays["frames"].tobytes() == (
        FakeReader().read(tiny(7)).arrays["frames"].tobytes()
    )


@pytest.mark.parametrize(
    "requests",
    [pytest.param(8_000, marks=pytest.mark.slow), pytest.param(1_000_000, marks=pytest.mark.soak)],
)
def test_server_and_client_stay_as_they_are(
    open_server: Callable[..., FrameServer],
    open_client: Callable[..., ServiceReader],
    requests: int,
) -> None:
    server = open_server(spec(), cache_bytes=1 << 20)
    client = open_client(f"127.0.0.1:{server.port}", deadline=30.0)
    check_flat(client.read, server.pool.worker_pids(), requests)
    status = server.status()
    assert status["slots_free"] == status["slots"]
    assert status["requests_waiting"] == status["replies_being_sent"] == 0
    assert status["counters"].get("restarts", 0) == 0
    assert status["cache_bytes"] <= 1 << 20
