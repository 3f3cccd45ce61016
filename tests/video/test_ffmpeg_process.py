"""ffmpeg dies with whoever asked for it, however that ends, and only then."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import ffmpeg
import psutil
import pytest

from rushes.errors import UnreadableVideo
from rushes.video.ffmpeg_process import run_ffmpeg

_LONG = """
import sys, threading, ffmpeg
from rushes.video import ffmpeg_process
from rushes.video.ffmpeg_process import run_ffmpeg
if sys.argv[2] == "python":
    ffmpeg_process._setpriv = lambda: ()
endless = ffmpeg.input("color=s=64x64:r=25:d=1000000", f="lavfi", re=None)
graph = endless.output(sys.argv[1], f="mp4")
work = threading.Thread(target=run_ffmpeg, args=(graph, "v", 600.0))
work.start()
work.join()
"""


@pytest.mark.fault
@pytest.mark.parametrize("launcher", ["setpriv", "python"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_ffmpeg_dies_with_its_parent(how: signal.Signals, launcher: str, tmp_path: Path) -> None:
    """Whether the system has `setpriv` or not."""
    parent = subprocess.Popen([sys.executable, "-c", _LONG, str(tmp_path / "x.mp4"), launcher])
    try:
        (child,) = _children(parent.pid)
        parent.send_signal(how)
        parent.wait(5)
        end = time.monotonic() + 5
        while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < end, f"{child} outlives its parent"
            time.sleep(0.02)
    finally:
        parent.kill()
        parent.wait()


def _children(pid: int) -> list[psutil.Process]:
    """The ffmpeg processes that a process started, as soon as there are some."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        found = [p for p in psutil.Process(pid).children(recursive=True) if p.name() == "ffmpeg"]
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("ffmpeg did not start")


def test_it_outlives_other_threads(tmp_path: Path) -> None:
    """The death signal is bound to the thread that waits, no other."""
    graph = ffmpeg.input("color=s=64x64:r=25:d=1", f="lavfi", re=None)
    threads = [
        threading.Thread(target=run_ffmpeg, args=(graph.output(str(path), f="mp4"), "v", 60.0))
        for path in (tmp_path / "a.mp4", tmp_path / "b.mp4")
    ]
    threads[0].start()
    time.sleep(0.3)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert all((tmp_path / name).stat().st_size for name in ("a.mp4", "b.mp4"))


def test_a_missing_program_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rushes.video.ffmpeg_process.ffmpeg_binary", lambda: str(tmp_path / "no"))
    graph = ffmpeg.input("color", f="lavfi").output(str(tmp_path / "x.mp4"))
    with pytest.raises(UnreadableVideo, match="No such file"):
        run_ffmpeg(graph, "v", 10.0)
