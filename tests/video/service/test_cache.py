"""The cache keeps to its budget and to what is asked for again; equal requests decode once."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import msgpack
import numpy as np
import pytest
from tests.video.service.fakes import FakeReader, request_of

from rushes.errors import DecodeTimeout, MissingVideo, ServiceError
from rushes.video.request import Request
from rushes.video.service import wire
from rushes.video.service.cache import ClipCache, SharedReads
from rushes.video.service.jobs import Counters
from rushes.video.service.wire import Packed


def packed(size: int = 1000) -> Packed:
    return Packed(msgpack.packb({"id": "v"}), np.zeros(size, np.uint8))


def test_the_budget_holds() -> None:
    cache = ClipCache(10_000 + 10 * 6)  # headers count
    for i in range(100):
        cache.put(request_of(f"v{i}"), packed())
        assert cache.nbytes <= cache.budget
    assert len(cache) == 10
    cache.put(request_of("huge"), packed(20_000))
    assert cache.get(request_of("huge")) is None
    assert len(cache) == 10


def test_clips_used_twice_outlast_a_pass_of_training() -> None:
    cache = ClipCache(10_000)
    for i in range(5):
        cache.put(request_of(f"eval{i}"), packed())
        assert cache.get(request_of(f"eval{i}")) is not None
    for i in range(1000):
        cache.put(request_of(f"train{i}"), packed())
    assert all(cache.get(request_of(f"eval{i}")) is not None for i in range(5))


def test_the_deadline_is_no_part_of_the_key() -> None:
    shared = SharedReads(10_000, Counters())
    calls: list[Request] = []

    def read(request: Request) -> Packed:
        calls.append(request)
        return packed()

    for deadline in (1.0, 2.0, None):
        shared.read(request_of("v", deadline=deadline, fixed=True), read, 1.0)
    shared.read(request_of("v", frames=5, fixed=True), read, 1.0)
    assert len(calls) == 2
    assert shared.counters.get() == {"cache_misses": 2, "cache_hits": 2}


def test_random_clips_of_training_are_not_kept() -> None:
    shared = SharedReads(10_000, Counters())
    evaluated = [request_of(f"e{i}", fixed=True) for i in range(5)]
    for request in evaluated:
        shared.read(request, lambda _: packed(), 1.0)
    for i in range(100):
        shared.read(request_of(f"t{i}"), lambda _: packed(), 1.0)
    assert len(shared.cache) == 5
    for request in evaluated:
        shared.read(request, lambda _: packed(), 1.0)
    assert shared.counters.get() == {"cache_misses": 5, "cache_hits": 5}


def test_two_spellings_of_an_id_share_an_entry_under_their_own_ids() -> None:
    shared = SharedReads(1 << 20, Counters(), {"v": "/v.mp4", "v.mp4": "/v.mp4"}.__getitem__)
    calls: list[Request] = []

    def read(request: Request) -> Packed:
        calls.append(request)
        return wire.pack(FakeReader().read(request))

    replies = [
        wire.unpack(shared.read(request_of(video, fixed=True), read, 1.0))
        for video in ("v", "v.mp4", "v.mp4", "v")
    ]
    assert len(calls) == 1
    assert [reply.video_id for reply in replies] == ["v", "v.mp4", "v.mp4", "v"]
    assert len({reply.arrays["frames"].tobytes() for reply in replies}) == 1


def test_shared_arrays_cannot_be_written() -> None:
    for budget in (0, 500, 10_000):
        for fixed in (False, True):
            asked = request_of("v", fixed=fixed)
            got = SharedReads(budget, Counters()).read(asked, lambda _: packed(), 1.0)
            assert not got.payload.flags.writeable


def test_equal_requests_at_once_decode_once() -> None:
    shared = SharedReads(0, Counters())
    calls, gate = [], threading.Event()

    def read(request: Request) -> Packed:
        calls.append(request)
        gate.wait(5)
        return packed()

    with ThreadPoolExecutor(8) as threads:
        futures = [threads.submit(shared.read, request_of("v"), read, 5.0) for _ in range(8)]
        while shared.counters.get().get("coalesced", 0) < 7:
            time.sleep(0.01)
        gate.set()
        replies = [future.result() for future in futures]
    assert len(calls) == 1
    assert all(reply is replies[0] for reply in replies)
    shared.read(request_of("v"), read, 1.0)
    assert len(calls) == 2  # nothing is kept without a budget


def test_a_videos_error_reaches_all_but_a_leaders_end_does_not() -> None:
    for raised, expected in ((MissingVideo("v", "gone"), 0), (ServiceError("went away"), 3)):
        shared = SharedReads(0, Counters())
        gate, first = threading.Event(), threading.Event()

        def read(
            _: Request,
            gate: threading.Event = gate,
            first: threading.Event = first,
            raised: Exception = raised,
        ) -> Packed:
            if first.is_set():
                return packed()
            first.set()
            gate.wait(5)
            raise raised

        with ThreadPoolExecutor(4) as threads:
            futures = [threads.submit(shared.read, request_of("v"), read, 5.0) for _ in range(4)]
            while shared.counters.get().get("coalesced", 0) < 3:
                time.sleep(0.01)
            gate.set()
            good = sum(future.exception() is None for future in futures)
        assert good == expected


def test_waiting_for_another_has_an_end() -> None:
    shared = SharedReads(0, Counters())
    gate = threading.Event()

    def read(_: Request) -> Packed:
        gate.wait(5)
        return packed()

    with ThreadPoolExecutor(1) as threads:
        leader = threads.submit(shared.read, request_of("v"), read, 5.0)
        time.sleep(0.05)
        with pytest.raises(DecodeTimeout, match=r"0\.1 s"):
            shared.read(request_of("v"), read, 0.1)
        gate.set()
        leader.result()
