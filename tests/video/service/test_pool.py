"""The local pool: same arrays, many threads, bounded slots, and it outlives its workers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tests.helpers import ROOT
from tests.video.service.conftest import spec
from tests.video.service.fakes import FakeReader, request_of, same

from rushes.errors import (
    ConfigError,
    DecodeTimeout,
    FrameUnavailable,
    MissingVideo,
    RefusedVideo,
    ServiceError,
    StorageError,
    UnreadableVideo,
    VideoError,
)
from rushes.video.request import Frames, Request, Size, VideoReader
from rushes.video.service import open_service_reader
from rushes.video.service.pool import PoolReader
from rushes.video.service.process import WorkerSpec

OpenPool = Callable[..., PoolReader]


def decoded(folder: Path) -> list[str]:
    log = folder / "decoded.log"
    return log.read_text().split() if log.exists() else []


def test_many_threads_get_the_same_as_in_process(open_pool: OpenPool) -> None:
    pool, plain = open_pool(), FakeReader()
    assert isinstance(pool, VideoReader)
    requests = [request_of(f"v{i % 7}", 1 + i % 5, 8 + i) for i in range(60)]
    with ThreadPoolExecutor(12) as threads:
        replies = list(threads.map(pool.read, requests))
    for request, reply in zip(requests, replies, strict=True):
        assert same(reply, plain.read(request))
    assert pool.describe("v").num_frames == 50


def test_submitted_reads_come_in_order_of_their_futures(open_pool: OpenPool) -> None:
    pool, plain = open_pool(), FakeReader()
    requests = [request_of(f"v{i}") for i in range(8)]
    for request, future in zip(requests, [pool.submit(r) for r in requests], strict=True):
        assert same(future.result(10), plain.read(request))
    with pytest.raises(MissingVideo):
        pool.submit(request_of("missing")).result(10)


def test_replies_are_views_of_slots_and_free_them(open_pool: OpenPool) -> None:
    pool = open_pool(num_slots=4, patience=None)
    replies = [pool.read(request_of(f"v{i}")) for i in range(4)]
    frames = replies[0].arrays["frames"]
    assert not frames.flags.owndata
    assert frames.flags.writeable
    assert pool.slots.num_free == 0
    replies.clear()
    assert pool.slots.num_free == 3  # `frames` still looks at one
    del frames
    assert pool.slots.num_free == 4


def test_errors_give_their_slots_back(open_pool: OpenPool) -> None:
    pool = open_pool(num_slots=3, patience=None)
    errors = []
    for video, kind in (("missing", MissingVideo), ("bug_1", UnreadableVideo)):
        for _ in range(4):
            with pytest.raises(kind) as caught:
                pool.read(request_of(video))
            errors.append(caught)
    strict = Request("v", (Frames((9.0,), Size(8, 8)),), policy="strict")
    with pytest.raises(FrameUnavailable, match=r"9\.0 s of 5\.0 s"):
        pool.read(strict)
    assert pool.slots.num_free == 3
    assert pool.num_restarts == 0


def test_a_slow_trainer_slows_the_decoders(open_pool: OpenPool, tmp_path: Path) -> None:
    pool = open_pool(spec(tmp_path), num_slots=3, patience=None)
    futures = [pool.submit(request_of(f"v{i}")) for i in range(12)]
    time.sleep(0.5)
    assert len(decoded(tmp_path)) == 3  # nobody has taken a reply: no slot, no decoding
    for _ in range(6):
        futures.pop(0).result(10)
    deadline = time.monotonic() + 10
    while len(decoded(tmp_path)) < 9 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    assert len(decoded(tmp_path)) == 9


def test_a_batch_larger_than_the_pool_is_copied_out(open_pool: OpenPool) -> None:
    pool, plain = open_pool(num_slots=2, patience=0.05), FakeReader()
    requests = [request_of(f"v{i}") for i in range(6)]
    replies = [pool.read(request) for request in requests]
    assert all(same(a, plain.read(b)) for a, b in zip(replies, requests, strict=True))
    assert pool.counters.get()["copied_out"] == 4


def test_strict_slots_end_in_a_clear_error(open_pool: OpenPool) -> None:
    pool = open_pool(num_slots=1, patience=None)
    held = pool.read(request_of("a"))
    with pytest.raises(DecodeTimeout, match="all 1 slots are held"):
        pool.read(request_of("b", deadline=0.3))
    del held
    assert same(pool.read(request_of("b")), FakeReader().read(request_of("b")))


def test_a_reply_larger_than_a_slot_is_refused(open_pool: OpenPool) -> None:
    pool = open_pool(slot_bytes=1 << 16)
    with pytest.raises(RefusedVideo, match="a slot holds 65536"):
        pool.read(request_of("v", 8, 128))


def test_waiting_in_the_queue_has_an_end(open_pool: OpenPool) -> None:
    pool = open_pool(spec(delay=0.6), 1)
    first = pool.submit(request_of("a"))
    started = time.monotonic()
    with pytest.raises(DecodeTimeout, match=r"the deadline was 0\.2 s"):
        pool.read(request_of("b", deadline=0.2))
    assert time.monotonic() - started < 0.5
    first.result(10)
    assert pool.num_restarts == 0


def test_evaluation_is_decoded_once(tmp_path: Path, open_pool: OpenPool) -> None:
    pool = open_pool(spec(tmp_path), cache_bytes=1 << 24)
    first, second = (pool.read(request_of("v", fixed=True)) for _ in range(2))
    assert decoded(tmp_path) == ["v"]
    assert same(first, second)
    assert pool.slots.num_free == pool.slots.num_slots - 2  # kept ones are in no slot


def test_reading_after_close_is_an_error(open_pool: OpenPool) -> None:
    pool = open_pool()
    reply = pool.read(request_of("v"))
    pids = pool.worker_pids()
    pool.close()
    with pytest.raises(ServiceError, match="closed"):
        pool.read(request_of("v"))
    assert same(reply, FakeReader().read(request_of("v")))
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_what_a_worker_cannot_open_is_said_at_once(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(StorageError, match="nowhere"):
        open_service_reader("local", tmp_path / "nowhere")
    with pytest.raises(VideoError, match="no_such_module"):
        PoolReader(WorkerSpec("no_such_module:open"), 1)
    with pytest.raises(ConfigError, match="known: inprocess, local, flight://"):
        open_service_reader("locl", tmp_path)
    assert time.monotonic() - started < 10


def test_nothing_is_left_open(open_pool: OpenPool) -> None:
    open_pool().close()
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(3):
        pool = open_pool()
        pool.read(request_of("v"))
        pool.close()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


def test_workers_are_light() -> None:
    program = (
        "import sys, rushes.video.service.worker, rushes.video.service.client,"
        " rushes.video.service.command; print('torch' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "False"
    program = (
        "import sys, rushes.video.service.worker, rushes.video.readers, psutil;"
        "print(psutil.Process().memory_info().rss, 'pyarrow' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    resident, arrow = out.stdout.split()
    assert int(resident) < 100e6  # with torch it is 390e6
    assert arrow == "False"


def test_a_video_open_in_a_worker_goes_there_again(open_pool: OpenPool) -> None:
    pool = open_pool()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(pool.read, [request_of(f"v{i % 4}") for i in range(64)]))
    assert set(pool.jobs._homes.values()) <= {0, 1}
    assert np.all([pool.jobs._homes[f"v{i}"] in (0, 1) for i in range(4)])
