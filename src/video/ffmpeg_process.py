"""Runs the ffmpeg program under a clock; it never outlives the process that asked for it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from typing import Any

from rushes.errors import BackendMissing, DecodeTimeout, UnreadableVideo
from rushes.video import dying

_SAID_LINES = 3
"""Last lines of what ffmpeg said that an error repeats."""


@cache
def ffmpeg_binary() -> str:
    """The system's ffmpeg where there is one, else the binary that imageio-ffmpeg carries."""
    found = shutil.which("ffmpeg")
    if found:
        return os.path.abspath(found)
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise BackendMissing("ffmpeg", "pip install imageio-ffmpeg") from error


def launcher() -> tuple[str, ...]:
    """What goes before a program so that the kernel kills it when this process ends.

    A program of its own, because a function run between fork and exec is not safe among threads.
    The signal comes when the thread that started the child ends; `run_ffmpeg` waits in that very
    thread, so it can only end before the child when the whole process does.
    """
    return _setpriv() or (sys.executable, "-I", "-S", dying.__file__, str(os.getpid()))


@cache
def _setpriv() -> tuple[str, ...]:
    """The program of util-linux, on every Debian; its option came with 2.33.

    It takes a tenth of the time that `dying` takes as a program.
    """
    found = shutil.which("setpriv")
    command = (found or "setpriv", "--pdeathsig", "KILL", "--")
    works = (
        found
        and not subprocess.run([*command, "true"], capture_output=True, check=False).returncode
    )
    return command if works else ()


@cache
def knows_fps_mode(binary: str) -> bool:
    """`-fps_mode` came with 5.1; `-vsync` went with 8."""
    shown = subprocess.run(
        [binary, "-version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    ).stdout
    version = re.search(r"version n?(\d+)\.(\d+)", shown)
    return version is None or (int(version[1]), int(version[2])) >= (5, 1)


def run_ffmpeg(stream: Any, video: str, timeout: float | None) -> str:
    """Run an ffmpeg-python graph; the program dies with this process, however that ends.

    Returns:
        The end of what it complained of, though it came to an end; mostly nothing.

    Raises:
        UnreadableVideo: ffmpeg failed; the text holds the end of what it said.
        DecodeTimeout: it took longer than `timeout` seconds and was killed.
    """
    arguments = ("-nostdin", "-hide_banner", "-loglevel", "error")
    argv = stream.global_args(*arguments).compile(cmd=ffmpeg_binary(), overwrite_output=True)
    try:
        done = subprocess.run(
            [*launcher(), *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DecodeTimeout(video, f"ffmpeg ran longer than {timeout:g} s") from error
    said = " | ".join(done.stderr.decode(errors="replace").strip().splitlines()[-_SAID_LINES:])
    if done.returncode:
        detail = said or "no message"
        raise UnreadableVideo(video, f"ffmpeg ended with {done.returncode}: {detail}")
    return said
