"""The sandbox survives whatever decoding does to its worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, cast

import pytest
from tests.helpers import ROOT
from tests.video.conftest import Rendered
from tests.video.counter_video import number_of

from rushes.errors import ConfigError, DecodeTimeout, MissingVideo, VideoError, WorkerDied
from rushes.video.catalogue import Catalogue
from rushes.video.request import Frames, Request, Size
from rushes.video.sandbox import SandboxedReader

pytestmark = pytest.mark.fault


def gone(pid: int, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while True:
        try:  # a dead one whose new parent does not ask for its status is gone too
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        if time.monotonic() >= end:
            return False
        time.sleep(0.02)


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


_HOLDS = """
import os, signal, sys, threading
from rushes.video.catalogue import Catalogue
from rushes.video.sandbox import SandboxedReader
reader = SandboxedReader(Catalogue.from_items({"v": sys.argv[1]}))
reader.describe("v")
if sys.argv[2] == "hangs":
    os.kill(reader.pid, signal.SIGSTOP)  # deaf to all but SIGKILL, as a decoder that hangs
print(reader.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("worker_does", ["waits", "hangs"])
def test_the_worker_dies_with_its_parent(worker_does: str, counter: Rendered) -> None:
    _, path = counter("h264_ip.mp4")
    parent = subprocess.Popen(
        [sys.executable, "-c", _HOLDS, str(path), worker_does],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    with parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert not gone(worker, 0.1)
        parent.kill()
        parent.wait(5)
        try:
            assert gone(worker), f"{worker} outlives its parent"
        finally:
            if not gone(worker, 0.0):
                os.kill(worker, signal.SIGKILL)


def test_the_worker_outlives_the_thread_that_asked_first(counter: Rendered) -> None:
    _, path = counter("h264_ip.mp4")
    with SandboxedReader(Catalogue.from_items({"v": path})) as reader:
        first = threading.Thread(target=reader.describe, args=["v"])
        first.start()
        first.join()
        pid = reader.pid
        assert pid is not None
        assert not gone(pid, 0.5)
        assert reader.describe("v").num_frames == 60
        assert reader.pid == pid


_ENDS = """
import sys, threading, time
from pathlib import Path
from rushes.video.catalogue import Catalogue
from rushes.video.sandbox import SandboxedReader
reader = SandboxedReader(Catalogue.from_items({"v": Path(sys.argv[1])}))
def read():
    time.sleep(0.5)  # the main thread has ended by then
    print(reader.describe("v").num_frames)
    reader.close()
threading.Thread(target=read).start()
"""


def test_a_thread_reads_while_the_program_ends(counter: Rendered) -> None:
    _, path = counter("h264_ip.mp4")
    command = [sys.executable, "-c", _ENDS, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout == "60\n", done.stderr


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
