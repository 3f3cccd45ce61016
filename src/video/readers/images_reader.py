"""A folder of JPEGs is a video: frame i lies at i / fps."""

from __future__ import annotations

import io
import json
import math
import os
import re
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

from rushes.errors import (
    FrameUnavailable,
    RefusedVideo,
    StorageError,
    UnreadableVideo,
)
from rushes.video.catalogue import Catalogue, Source
from rushes.video.convert import Converter
from rushes.video.limits import Limits, check_deadline
from rushes.video.readers.asking import check_request, check_size, frames_at
from rushes.video.request import (
    Cost,
    Frames,
    FrameStatus,
    Reply,
    Request,
    Size,
    VideoInfo,
)

DEFAULT_FPS = 6.0
SIDECAR = "frames.json"
"""`{"fps": 6.0}` in the folder of a video or beside all of them."""

_NUMBER = re.compile(r"(\d+)\.jpe?g$", re.IGNORECASE)


@dataclass(frozen=True)
class _Folder:
    info: VideoInfo
    paths: tuple[Path, ...]
    low: tuple[Path, ...] | None
    low_size: Size | None


class ImagesReader:
    """Reads folders of JPEGs. A request of small frames is served from the low-resolution folder
    when its pictures are large enough, else by a reduced JPEG decode.

    Args:
        catalogue: where the folders are.
        limits: what is refused.
        max_open: folders whose listings are kept.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        limits: Limits | None = None,
        index_cache: Path | None = None,
        max_open: int = 8,
        threads: int = 1,
    ) -> None:
        del index_cache, threads  # listing a folder is cheap, JPEGs decode one by one
        self.catalogue, self.limits = catalogue, limits or Limits()
        self.max_open = max(64, max_open)
        self._folders: OrderedDict[str, _Folder] = OrderedDict()

    def describe(self, video_id: str) -> VideoInfo:
        """What the folder holds; raises `VideoError`."""
        return self._folder(video_id).info

    def _folder(self, video_id: str) -> _Folder:
        folder = self._folders.get(video_id)
        if folder is None:
            source = self.catalogue.locate(video_id)
            if source.kind != "images":
                raise UnreadableVideo(video_id, f"is kept as {source.kind}, not as images")
            folder = self._folders[video_id] = self._listed(source)
            while len(self._folders) > self.max_open:
                self._folders.popitem(last=False)
        return folder

    def _listed(self, source: Source) -> _Folder:
        paths = self._jpegs(source, source.path)
        if not paths:
            raise UnreadableVideo(source.video_id, f"no JPEG in {source.path}", "empty")
        if len(paths) > self.limits.max_frames:
            raise RefusedVideo(source.video_id, f"more than {self.limits.max_frames} frames")
        fps = _fps(source.path)
        size = self._picture_size(source.video_id, paths[0])
        if len(paths) / fps > self.limits.max_duration:
            detail = f"{len(paths)} frames at {fps:g} a second, the limit is"
            raise RefusedVideo(source.video_id, f"{detail} {self.limits.max_duration:g} s")
        low = self._jpegs(source, source.low) if source.low is not None else ()
        if len(low) != len(paths):
            low = ()  # pictures of another cut are no neighbours of these
        info = VideoInfo(
            video_id=source.video_id,
            container="images",
            codec="mjpeg",
            pixel_format="rgb24",
            width=size.width,
            height=size.height,
            coded_width=size.width,
            coded_height=size.height,
            rotation=0,
            duration=len(paths) / fps,
            frame_times=np.arange(len(paths)) / fps,
            keyframes=np.arange(len(paths), dtype=np.int64),
        )
        low_size = self._picture_size(source.video_id, low[0]) if low else None
        return _Folder(info, paths, low or None, low_size)

    def _jpegs(self, source: Source, folder: Path) -> tuple[Path, ...]:
        """The JPEGs of a folder; refuses what would lead to other files or wait for a writer."""
        names = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not _NUMBER.search(entry.name):
                        continue
                    if not entry.is_file():
                        detail = f"{entry.name} is no regular file"
                        raise UnreadableVideo(source.video_id, detail, "not_video")
                    if entry.is_symlink():
                        self._check_link(source, folder, entry.name)
                    names.append(entry.name)
        except OSError as error:
            detail = f"{folder} cannot be read: {error.strerror}"
            raise UnreadableVideo(source.video_id, detail, "missing") from error
        return tuple(folder / name for name in sorted(names, key=_place))

    def _check_link(self, source: Source, folder: Path, name: str) -> None:
        """A link may lead to another picture of the same set, nowhere else."""
        root = os.path.realpath(self.catalogue.root or folder)
        real = Path(os.path.realpath(folder / name))
        roots = [root, os.path.realpath(folder), os.path.realpath(source.path)]
        if self.catalogue.low_root is not None:
            roots.append(os.path.realpath(self.catalogue.low_root))
        if not any(real.is_relative_to(place) for place in roots):
            detail = f"{name} leads to {real}, outside {folder}"
            raise RefusedVideo(source.video_id, detail, "hostile")

    def _picture_size(self, video_id: str, path: Path) -> Size:
        try:
            with Image.open(path, formats=("JPEG",)) as image:
                width, height = image.size
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise UnreadableVideo(video_id, f"{path.name}: {error}") from error
        if width * height > self.limits.max_pixels:
            detail = f"{width}x{height} pixels, the limit is {self.limits.max_pixels}"
            raise RefusedVideo(video_id, detail)
        return Size(height, width)

    def read(self, request: Request) -> Reply:
        """The named arrays; a broken picture is black and MISSING.

        Raises:
            VideoError: the folder cannot give them; none of the asked pictures can be read.
        """
        began = time.monotonic()
        deadline = None if request.deadline is None else began + request.deadline
        request = check_request(request, self.limits)
        folder = self._folder(request.video_id)
        info = folder.info
        converter = Converter(request.video_id, Size(info.height, info.width), 0)
        reply = Reply(request.video_id, {})
        total, decoded, read = 0, 0, 0
        broken: UnreadableVideo | None = None
        for output in request.outputs:
            if not isinstance(output, Frames):
                raise FrameUnavailable(request.video_id, "a folder of images holds frames only")
            asked = np.asarray(output.times, np.float64)
            frames, status = frames_at(request.video_id, request.policy, info, asked)
            target = converter.target(output.crop, output.size)
            total += len(frames) * target.height * target.width * 3
            check_size(request.video_id, total, self.limits)
            pixels = np.zeros((len(frames), target.height, target.width, 3), np.uint8)
            for number in sorted(set(frames.tolist())):
                check_deadline(request.video_id, deadline)
                rows = np.flatnonzero(frames == number)
                first = pixels[rows[0]]
                try:
                    read += self._picture(folder, number, output, target, converter, first)
                except UnreadableVideo as error:
                    broken, status[rows] = error, FrameStatus.MISSING
                    continue
                pixels[rows[1:]] = first
                decoded += 1
            reply.arrays[output.name] = pixels
            reply.requested[output.name] = asked
            reply.times[output.name] = info.frame_times[frames]
            reply.status[output.name] = status
        if broken is not None and not decoded:
            raise broken
        returned = sum(len(array) for array in reply.arrays.values())
        cost = Cost(decoded, returned, read, time.monotonic() - began)
        return Reply(
            request.video_id, reply.arrays, reply.requested, reply.times, reply.status, cost
        )

    def _picture(
        self,
        folder: _Folder,
        number: int,
        output: Frames,
        target: Size,
        converter: Converter,
        out: npt.NDArray[np.uint8],
    ) -> int:
        """Decode one picture into `out`; returns the bytes read."""
        size = Size(folder.info.height, folder.info.width)
        path = folder.paths[number]
        whole = output.crop is None and output.resample != "nearest"
        low = folder.low_size
        if whole and folder.low is not None and low is not None and _fits(target, low):
            path, size = folder.low[number], low
        video = folder.info.video_id
        try:
            data = path.read_bytes()
            rgb = _decode_jpeg(data, target if whole else None, self.limits)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UnreadableVideo(video, f"{path.name}: {error}") from error
        frame: Any = av.VideoFrame.from_ndarray(rgb, format="rgb24")
        if not whole and rgb.shape[:2] != tuple(size):
            raise UnreadableVideo(video, f"{path.name} is {rgb.shape[:2]}, the first is {size}")
        converter.convert(frame, output.crop, target, output.resample, out)
        return len(data)

    def close(self) -> None:
        """Forget the listings."""
        self._folders.clear()


def _fits(target: Size, low: Size) -> bool:
    return target.height <= low.height and target.width <= low.width


def _decode_jpeg(data: bytes, target: Size | None, limits: Limits) -> npt.NDArray[np.uint8]:
    """RGB of a JPEG, decoded at the smallest eighth that is not below `target`."""
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        if image.width * image.height > limits.max_pixels:
            raise ValueError(f"{image.width}x{image.height} pixels")
        if target is not None:
            image.draft("RGB", (target.width, target.height))
        return np.array(image.convert("RGB"))


def _place(name: str) -> tuple[int, str]:
    """The order of JPEGs: by the last number in their names."""
    found = _NUMBER.search(name)
    return (int(found[1]) if found else 0, name)


_NO_RATE = (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError)


def _fps(folder: Path) -> float:
    """Frames a second from the sidecar in the folder or in its parent."""
    candidates: Sequence[Path] = (folder / SIDECAR, folder.parent / SIDECAR)
    for sidecar in candidates:
        if sidecar.is_file():
            if sidecar.resolve().parent not in (folder.resolve(), folder.resolve().parent):
                raise StorageError(f"{sidecar}: leads to another folder")
            try:
                fps = float(json.loads(sidecar.read_text(encoding="utf-8"))["fps"])
            except _NO_RATE as error:
                # The error itself would quote what may be another's file.
                kind = type(error).__name__
                raise StorageError(f"{sidecar}: needs a number `fps` ({kind})") from None
            if not (math.isfinite(fps) and fps > 0):
                raise StorageError(f"{sidecar}: fps is {fps}")
            return fps
    return DEFAULT_FPS
