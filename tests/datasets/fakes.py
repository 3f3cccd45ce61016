"""A reader of made frames: small, exact, and bad on demand. Real files are read in other tests."""

from __future__ import annotations

import threading
from functools import cache

import cv2
import numpy as np
import numpy.typing as npt

from rushes.errors import MissingVideo, UnreadableVideo
from rushes.video.request import Frames, FrameStatus, Reply, Request, VideoInfo


def describe(
    video_id: str = "v", width: int = 640, height: int = 384, num_frames: int = 100, fps: float = 25
) -> VideoInfo:
    """A plain constant-rate video."""
    return VideoInfo(
        video_id=video_id,
        container="mp4",
        codec="h264",
        pixel_format="yuv420p",
        width=width,
        height=height,
        coded_width=width,
        coded_height=height,
        rotation=0,
        duration=num_frames / fps,
        frame_times=np.arange(num_frames) / fps,
        keyframes=np.zeros(1, dtype=np.int64),
    )


def picture(info: VideoInfo, index: int) -> npt.NDArray[np.uint8]:
    """Frame `index`: red grows to the right, green downwards, blue with time. `H W C`."""
    frame = _ramps(info.height, info.width).copy()
    frame[..., 2] = index % 256
    return frame


@cache
def _ramps(height: int, width: int) -> npt.NDArray[np.uint8]:
    rows, columns = np.mgrid[0:height, 0:width]
    red = columns * 255 // max(1, width - 1)
    green = rows * 255 // max(1, height - 1)
    return np.stack([red, green, np.zeros_like(red)], axis=-1).astype(np.uint8)


class MadeReader:
    """Serves `picture`s for any id but those that begin with "bad" or "absent"."""

    def __init__(self, info: VideoInfo | None = None) -> None:
        self.info = info or describe()
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        self.closed = False

    def describe(self, video_id: str) -> VideoInfo:
        if video_id.startswith("absent"):
            raise MissingVideo(video_id, "no such video")
        return self.info

    def read(self, request: Request) -> Reply:
        with self.lock:
            self.requests.append(request)
        if request.video_id.startswith("bad"):
            raise UnreadableVideo(request.video_id, "the file is cut short", "truncated")
        arrays: dict[str, npt.NDArray[np.generic]] = {}
        times, status = {}, {}
        for output in request.outputs:
            assert isinstance(output, Frames)
            found = [self._index(t) for t in output.times]
            arrays[output.name] = np.stack([self._frame(output, i) for i in found])
            times[output.name] = self.info.frame_times[found]
            codes = np.full(len(found), FrameStatus.OK, dtype=np.uint8)
            if request.video_id.startswith("holes"):
                codes[0] = FrameStatus.MISSING
            status[output.name] = codes
        return Reply(request.video_id, arrays, {}, times, status)

    def close(self) -> None:
        self.closed = True

    def _index(self, moment: float) -> int:
        found = int(np.searchsorted(self.info.frame_times, moment + 1e-6, side="right")) - 1
        return min(max(found, 0), self.info.num_frames - 1)

    def _frame(self, output: Frames, index: int) -> npt.NDArray[np.uint8]:
        frame = picture(self.info, index)
        if output.crop is not None:
            box = output.crop
            frame = frame[box.top : box.top + box.height, box.left : box.left + box.width]
        if output.size is None:
            return frame
        if output.resample == "nearest":
            height, width = frame.shape[:2]
            rows = ((np.arange(output.size.height) + 0.5) * height / output.size.height).astype(int)
            columns = ((np.arange(output.size.width) + 0.5) * width / output.size.width).astype(int)
            chosen: npt.NDArray[np.uint8] = frame[rows][:, columns]
            return chosen
        size = (output.size.width, output.size.height)
        return cv2.resize(frame, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
