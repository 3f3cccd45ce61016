"""The sandbox survives whatever decoding does to its worker."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any, cast

import pytest
from tests.video.conftest import Rendered
from tests.video.counter_video import number_of

from rushes.errors import ConfigError, DecodeTimeout, MissingVideo, VideoError, WorkerDied
from rushes.video.catalogue import Catalogue
from rushes.video.request import Frames, Request, Size
from rushes.video.sandbox import SandboxedReader

pytestmark = pytest.mark.fault


def gone(pid: int, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.02)
    return False


def test_it_reads_like_any_reader(counter: Rendered) -> None:
    _, path = counter("h264_b.mp4")
    with SandboxedReader(Catalogue.from_items({"v": path, "m": path.read_bytes()})) as reader:
        assert reader.describe("v").num_frames == 60
        for video in ("v", "m"):
            reply = reader.read(Request(video, (Frames((0.4, 1.0)),)))
            assert [number_of(x) for x in reply.arrays["frames"]] == [10, 25]
        with pytest.raises(MissingVideo):
            reader.describe("nothing")
        pid = reader.pid
    assert pid is not None
    assert gone(pid)


def test_a_killed_worker_is_replaced(counter: Rendered) -> None:
    _, path = counter("h264_ip.mp4")
    with SandboxedReader(Catalogue.from_items({"v": path})) as reader:
        reader.describe("v")
        first = reader.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        time.sleep(0.2)
        assert reader.describe("v").num_frames == 60
        assert reader.pid != first


def test_a_worker_killed_while_it_reads_is_told(counter: Rendered) -> None:
    _, path = counter("h264_ip.mp4")
    with SandboxedReader(Catalogue.from_items({"v": path})) as reader:
        reader.describe("v")
        pid = reader.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)  # it does not answer until it is killed
        killer = threading.Timer(0.5, os.kill, (pid, signal.SIGKILL))
        killer.start()
        with pytest.raises(WorkerDied, match="signal 9"):
            reader.read(Request("v", (Frames((0.0,)),)))
        killer.join()
        assert len(reader.read(Request("v", (Frames((0.0,)),))).arrays["frames"]) == 1


def test_a_hanging_worker_is_killed_at_the_deadline(counter: Rendered) -> None:
    _, path = counter("h264_ip.mp4")
    with SandboxedReader(Catalogue.from_items({"v": path}), seconds=1.0) as reader:
        reader.describe("v")
        pid = reader.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(DecodeTimeout):
            reader.describe("v")
        assert time.monotonic() - began < 5
        assert gone(pid)
        assert reader.describe("v").num_frames == 60


def test_memory_is_bounded(counter: Rendered) -> None:
    _, path = counter("h264_ip.mp4")
    catalogue = Catalogue.from_items({"v": path})
    with SandboxedReader(catalogue, memory=1 << 30) as reader:
        huge = Request("v", (Frames((0.0,) * 12, size=Size(6000, 6000)),))
        with pytest.raises(WorkerDied, match=r"memory|died"):
            reader.read(huge)
        assert len(reader.read(Request("v", (Frames((0.0,)),))).arrays["frames"]) == 1
        pid = reader.pid
        with pytest.raises(ConfigError, match="policy='loose'"):
            reader.read(Request("v", (Frames((0.0,)),), policy=cast(Any, "loose")))
        assert reader.pid == pid


def test_the_deadline_inside_the_worker_comes_first(counter: Rendered) -> None:
    _, path = counter("h264_one_key.mp4")
    with SandboxedReader(Catalogue.from_items({"v": path})) as reader:
        reader.describe("v")
        pid = reader.pid
        with pytest.raises(VideoError) as caught:
            reader.read(Request("v", (Frames((2.3,)),), deadline=1e-6))
        assert caught.value.reason == "timeout"
        assert reader.pid == pid  # it answered by itself, so it lives on
