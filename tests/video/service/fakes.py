"""Readers that workers open in these tests: exact, slow, hanging, crashing, greedy."""

from __future__ import annotations

import ctypes
import os
import signal
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rushes.errors import FrameUnavailable, MissingVideo
from rushes.video.catalogue import Catalogue, Source
from rushes.video.readers.pyav_reader import PyAVReader
from rushes.video.request import (
    Audio,
    Cost,
    Features,
    Frames,
    FrameStatus,
    Reply,
    Request,
    Size,
    VideoInfo,
    VideoReader,
)
from rushes.video.service.worker import open_default

FACTORY = "tests.video.service.fakes:open_fake"


def pixels(video_id: str, time_asked: float, size: Size) -> npt.NDArray[np.uint8]:
    """The picture of a fake video at a time: different for each video and time."""
    seed = zlib.crc32(f"{video_id} {time_asked!r}".encode())
    shape = (size.height, size.width, 3)
    flat = (np.arange(np.prod(shape), dtype=np.uint32) * 2654435761 + seed) >> 13
    return flat.astype(np.uint8).reshape(shape)


def hang() -> None:
    """Sleep in C for an hour, with the GIL, deaf to all but SIGKILL."""
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL})
    ctypes.PyDLL(None).sleep(3600)


class FakeReader:
    """Frames by formula; what a video does else is in its name, like `hang_3`.

    Args:
        folder: where each decode leaves a line in `decoded.log`, and where a video `once_*`
            remembers that it crashed; None remembers nothing.
        delay: seconds that every read takes.
    """

    def __init__(self, folder: str | None = None, delay: float = 0.0) -> None:
        self.folder, self.delay = Path(folder) if folder else None, delay
        self._hog: list[npt.NDArray[np.uint8]] = []

    def describe(self, video_id: str) -> VideoInfo:
        self._behave(video_id)
        times = np.arange(50) / 10.0
        keyframes = np.array([0, 25], np.int64)
        shape = ("mp4", "h264", "yuv420p", 64, 48, 64, 48, 0)
        return VideoInfo(video_id, *shape, 5.0, times, keyframes, features=("clip",))

    def read(self, request: Request) -> Reply:
        self._behave(request.video_id)
        arrays: dict[str, npt.NDArray[np.generic]] = {}
        requested: dict[str, npt.NDArray[np.float64]] = {}
        status: dict[str, npt.NDArray[np.uint8]] = {}
        for output in request.outputs:
            if isinstance(output, Frames):
                size = output.size or Size(48, 64)
                frames = [pixels(request.video_id, t, size) for t in output.times]
                arrays[output.name] = np.stack(frames)
                requested[output.name] = np.array(output.times)
                past = np.array(output.times) > 5.0
                if past.any() and request.policy == "strict":
                    raise FrameUnavailable(request.video_id, f"{max(output.times)} s of 5.0 s")
                status[output.name] = np.where(past, FrameStatus.REPEATED, 0).astype(np.uint8)
            elif isinstance(output, Audio):
                count = round((output.end - output.start) * output.rate)
                arrays[output.name] = np.sin(np.arange(count, dtype=np.float32))
            elif isinstance(output, Features):
                arrays[output.name] = np.linspace(output.start, output.end, 12).reshape(3, 4)
        times = {name: values + 0.01 for name, values in requested.items()}
        return Reply(request.video_id, arrays, requested, times, status, Cost(40, 4, 999, 0.25))

    def _behave(self, video_id: str) -> None:
        if self.folder is not None:
            with (self.folder / "decoded.log").open("a") as file:
                file.write(f"{video_id}\n")
        if self.delay:
            time.sleep(self.delay)
        kind = video_id.split("_")[0]
        if kind == "missing":
            raise MissingVideo(video_id, "no such video")
        if kind == "hang":  # in C and deaf to everything but SIGKILL, as decoders hang
            hang()
        if kind == "crash" or (kind == "once" and self._first_time(video_id)):
            os.kill(os.getpid(), signal.SIGSEGV)
        if kind == "greedy":
            self._hog += [np.ones(8 << 20, np.uint8) for _ in range(1024)]
        if kind == "busy":  # half a second of work, deaf to deadlines
            until = time.process_time() + 0.5
            while time.process_time() < until:
                pass
        while kind == "spin":
            pass
        if kind == "slow":
            time.sleep(1.0)
        if kind == "bug":
            raise ZeroDivisionError("a bug in a reader")

    def _first_time(self, video_id: str) -> bool:
        if self.folder is None:
            return False
        mark = self.folder / f"{video_id}.crashed"
        seen = mark.exists()
        mark.touch()
        return not seen

    def close(self) -> None:
        self._hog.clear()


def open_fake(folder: str | None = None, delay: float = 0.0) -> FakeReader:
    """The factory that workers are given."""
    return FakeReader(folder, delay)


def open_slowly(folder: str, seconds: float) -> FakeReader:
    """The factory of workers of which only the first starts at once."""
    mark = Path(folder) / "started"
    if mark.exists():
        time.sleep(seconds)
    mark.touch()
    return FakeReader()


def request_of(
    video_id: str,
    frames: int = 4,
    side: int = 32,
    deadline: float | None = None,
    start: float = 0.0,
    fixed: bool = False,
) -> Request:
    """A request for frames, sound and features at once."""
    times = tuple(start + 0.1 * i for i in range(frames))
    outputs = (Frames(times, Size(side, side)), Audio(0.0, 0.5), Features("clip", 0.0, 1.0))
    return Request(video_id, outputs, deadline=deadline, fixed=fixed)


def same(first: Reply, second: Reply) -> bool:
    """Whether two replies hold the same, to the bit."""
    if first.video_id != second.video_id or first.cost != second.cost:
        return False
    for section in ("arrays", "requested", "times", "status"):
        ours, theirs = getattr(first, section), getattr(second, section)
        if list(ours) != list(theirs):
            return False
        for name, array in ours.items():
            other = theirs[name]
            if array.dtype != other.dtype or array.shape != other.shape:
                return False
            if array.tobytes() != other.tobytes():
                return False
    return True


class HangingReader:
    """A real reader, except that one video hangs the decoder."""

    def __init__(self, reader: VideoReader, hanging: str) -> None:
        self.reader, self.hanging = reader, hanging

    def describe(self, video_id: str) -> VideoInfo:
        return self.reader.describe(video_id)

    def read(self, request: Request) -> Reply:
        if request.video_id == self.hanging:
            hang()
        return self.reader.read(request)

    def close(self) -> None:
        self.reader.close()


def open_hanging(hanging: str, **arguments: Any) -> HangingReader:
    """The factory of workers that decode real files and hang on `hanging`."""
    return HangingReader(open_default(**arguments), hanging)


class CrashingReader(HangingReader):
    """Knows a real catalogue and dies on every read."""

    def __init__(self, reader: PyAVReader) -> None:
        super().__init__(reader, "")
        self.catalogue = reader.catalogue

    def read(self, request: Request) -> Reply:
        os.kill(os.getpid(), signal.SIGSEGV)
        return super().read(request)


def open_crashing(**arguments: Any) -> CrashingReader:
    """The factory of workers that find real files and crash on all of them."""
    reader = open_default(**arguments)
    assert isinstance(reader, PyAVReader)
    return CrashingReader(reader)


class NamelessCatalogue(Catalogue):
    """Dies when a video is looked up."""

    def locate(self, video_id: str) -> Source:
        os.kill(os.getpid(), signal.SIGSEGV)
        return super().locate(video_id)


class NamelessReader(HangingReader):
    """Cannot even name a video without dying."""

    def __init__(self, reader: VideoReader, root: str) -> None:
        super().__init__(reader, "")
        self.catalogue = NamelessCatalogue(Path(root), None, kind="file")


def open_nameless(**arguments: Any) -> NamelessReader:
    """The factory of workers that die of every id."""
    return NamelessReader(open_default(**arguments), arguments["catalogue_path"])
