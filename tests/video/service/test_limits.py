"""Frames in a video's own size count with that size, before any of them is decoded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.video.service.conftest import spec
from tests.video.service.fakes import FakeReader, same

from rushes.errors import RefusedVideo
from rushes.video.request import Audio, Box, Frames, Request, Size
from rushes.video.service.client import ServiceReader
from rushes.video.service.limits import RequestLimits, asks_for_whole, reply_bytes
from rushes.video.service.pool import PoolReader
from rushes.video.service.server import FrameServer

MANY = Request("v", (Frames((0.1,) * 1024),))
"""Frames of 48x64, which is what fake videos have: 9.4 MB, and slots here hold 8."""


def calls(folder: Path) -> int:
    return len((folder / "decoded.log").read_text().split())


def test_sizes_that_a_request_tells_and_those_it_does_not() -> None:
    whole, small = Frames((0.0, 1.0)), Frames((0.0,), Size(2, 4), Box(0, 0, 9, 9), name="s")
    cut, sound = Frames((0.0,), None, Box(1, 1, 10, 20), name="c"), Audio(0.0, 2.0, 100)
    request = Request("v", (whole, small, cut, sound))
    assert asks_for_whole(request)
    assert not asks_for_whole(Request("v", (small, cut, sound)))
    known = 2 * 4 * 3 + 10 * 20 * 3 + 200 * 4
    assert reply_bytes(request) == known
    assert reply_bytes(request, Size(100, 200)) == known + 2 * 100 * 200 * 3


def test_the_true_size_is_held_against_every_limit() -> None:
    limits = RequestLimits(max_bytes=30_000)
    limits.check_display(MANY, Size(2, 4))
    for size, text in (
        (Size(48, 64), r"9437184 bytes of reply \(frames of 48x64\) .* at most 30000"),
        (Size(5000, 8), "5000 pixels a side .* at most 4096"),
        (Size(4096, 4096), "16777216 pixels a frame"),
    ):
        with pytest.raises(RefusedVideo, match=text):
            limits.check_display(MANY, size)


@pytest.mark.attack
def test_many_frames_in_their_own_size_are_refused_undecoded(
    open_pool: Callable[..., PoolReader], tmp_path: Path
) -> None:
    pool = open_pool(spec(tmp_path), num_workers=1)
    for asked in range(3):
        with pytest.raises(RefusedVideo, match=r"9437184 bytes \(frames of 48x64\), a slot holds"):
            pool.read(MANY)
        assert calls(tmp_path) == asked + 1  # it was described, not read
    assert pool.num_restarts == 0
    assert pool.quarantine.videos() == {}
    few = Request("v", (Frames((0.1, 0.2)),))
    assert same(pool.read(few), FakeReader().read(few))


@pytest.mark.attack
def test_what_a_workers_memory_does_not_hold_is_refused(
    open_pool: Callable[..., PoolReader],
) -> None:
    pool = open_pool(spec(memory_limit=300 << 20), num_workers=1, slot_bytes=512 << 20)
    big = Request("v", (Frames((0.1,) * 100, Size(1000, 1000)),))
    with pytest.raises(RefusedVideo, match="half a worker's memory holds 157286400"):
        pool.read(big)
    assert pool.num_restarts == 0


@pytest.mark.attack
def test_a_servers_own_limits_hold_for_true_sizes(
    open_server: Callable[..., FrameServer], open_client: Callable[..., ServiceReader]
) -> None:
    server = open_server(limits=RequestLimits(max_bytes=1 << 20))
    client = open_client(f"127.0.0.1:{server.port}")
    with pytest.raises(RefusedVideo, match=r"bytes of reply \(frames of 48x64\)"):
        client.read(MANY)
    assert server.counters.get().get("restarts", 0) == 0
    assert server.status()["quarantined"] == {}
    assert client.read(Request("v", (Frames((0.1,)),))).arrays["frames"].shape == (1, 48, 64, 3)
