"""Videos that are already pixels in memory, behind the same call as files."""

from __future__ import annotations

import math
from collections.abc import Mapping

import av
import numpy as np
import numpy.typing as npt

from rushes.errors import MissingVideo, UnreadableVideo
from rushes.video.convert import Converter
from rushes.video.limits import Limits
from rushes.video.readers.asking import check_request, check_size, frames_at
from rushes.video.request import Cost, Frames, Reply, Request, Size, VideoInfo, VideoReader

Pixels = npt.NDArray[np.uint8]


class ArrayReader:
    """A `VideoReader` over arrays.

    Args:
        videos: uint8 `T H W 3`, RGB, by video id.
        fps: frames a second that the arrays were taken at.
    """

    def __init__(self, videos: Mapping[str, Pixels], fps: float = 25.0) -> None:
        for name, pixels in videos.items():
            _check(name, pixels)
        if not 0 < fps < math.inf:
            raise UnreadableVideo("arrays", f"fps={fps}: expected more than 0 and finite")
        self._videos, self._fps, self._limits = videos, fps, Limits()

    def describe(self, video_id: str) -> VideoInfo:
        """Size, duration and frame times of an array."""
        pixels = self._pixels(video_id)
        count, height, width = pixels.shape[:3]
        return VideoInfo(
            video_id,
            container="array",
            codec="rawvideo",
            pixel_format="rgb24",
            width=width,
            height=height,
            coded_width=width,
            coded_height=height,
            rotation=0,
            duration=count / self._fps,
            frame_times=np.arange(count) / self._fps,
            keyframes=np.arange(count),
        )

    def read(self, request: Request) -> Reply:
        """Frames at the asked times; an array has no other tracks."""
        request = check_request(request, self._limits)
        pixels, info = self._pixels(request.video_id), self.describe(request.video_id)
        converter = Converter(request.video_id, Size(info.height, info.width), 0)
        reply = Reply(request.video_id, {})
        shown = total = 0
        for output in request.outputs:
            if not isinstance(output, Frames):
                raise UnreadableVideo(request.video_id, "an array of frames has no other tracks")
            asked = np.asarray(output.times, np.float64)
            numbers, status = frames_at(request.video_id, request.policy, info, asked)
            target = converter.target(output.crop, output.size)
            total += len(numbers) * target.height * target.width * 3
            check_size(request.video_id, total, self._limits)
            out = np.empty((len(numbers), target.height, target.width, 3), np.uint8)
            for row, number in enumerate(numbers.tolist()):
                frame = av.VideoFrame.from_ndarray(
                    np.ascontiguousarray(pixels[number]), format="rgb24"
                )
                converter.convert(frame, output.crop, output.size, output.resample, out[row])
            reply.arrays[output.name] = out
            reply.requested[output.name] = asked
            reply.times[output.name] = info.frame_times[numbers]
            reply.status[output.name] = status
            shown += len(numbers)
        return Reply(
            request.video_id,
            reply.arrays,
            reply.requested,
            reply.times,
            reply.status,
            Cost(frames_returned=shown),
        )

    def close(self) -> None:
        """Nothing to give back."""

    def _pixels(self, video_id: str) -> Pixels:
        if video_id not in self._videos:
            raise MissingVideo(video_id, f"not among {len(self._videos)} arrays")
        return self._videos[video_id]


class EitherReader:
    """Arrays where there is one of that id, else another reader."""

    def __init__(self, arrays: ArrayReader, names: frozenset[str], other: VideoReader) -> None:
        self._arrays, self._names, self._other = arrays, names, other

    def _of(self, video_id: str) -> VideoReader:
        return self._arrays if video_id in self._names else self._other

    def describe(self, video_id: str) -> VideoInfo:
        """What the video holds."""
        return self._of(video_id).describe(video_id)

    def read(self, request: Request) -> Reply:
        """The named arrays."""
        return self._of(request.video_id).read(request)

    def close(self) -> None:
        """Close the other reader."""
        self._other.close()


def _check(name: str, pixels: Pixels) -> None:
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or not all(pixels.shape):
        raise UnreadableVideo(
            name, f"an array of shape {pixels.shape}: expected T H W 3 with at least one frame"
        )
    if pixels.dtype != np.uint8:
        raise UnreadableVideo(name, f"an array of {pixels.dtype}: expected uint8, 0 to 255")
