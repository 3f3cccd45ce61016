"""From asked moments to frames of an index, shared by all backends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rushes.errors import FrameUnavailable, RefusedVideo
from rushes.video.asked import checked
from rushes.video.convert import Converter
from rushes.video.index import VideoIndex
from rushes.video.limits import Limits
from rushes.video.request import (
    TIME_SLACK,
    Frames,
    FrameStatus,
    Request,
    Size,
    VideoInfo,
)


@dataclass
class FrameAsk:
    """One `Frames` output while it is being filled.

    Attributes:
        frames: frame number for each asked time, int64 `T`.
        times: presentation time of each, float64 `T`.
        status: `FrameStatus`, uint8 `T`.
        pixels: uint8 `T H W C`.
        taken: which rows are filled, bool `T`.
    """

    output: Frames
    frames: npt.NDArray[np.int64]
    times: npt.NDArray[np.float64]
    status: npt.NDArray[np.uint8]
    pixels: npt.NDArray[np.uint8]
    taken: npt.NDArray[np.bool_]
    rows: dict[int, list[int]] = field(default_factory=dict)

    def take(self, number: int, frame: Any, converter: Converter) -> None:
        """Convert a decoded frame into every row that asked for it."""
        rows = self.rows.get(number)
        if not rows:
            return
        output = self.output
        first = rows[0]
        converter.convert(frame, output.crop, output.size, output.resample, self.pixels[first])
        self.pixels[rows[1:]] = self.pixels[first]
        self.taken[rows] = True


def frames_at(
    video: str, policy: str, info: VideoInfo, times: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """The frame on screen at each time, and its status (OK or REPEATED).

    Args:
        video: id, for errors.
        policy: "strict" refuses times outside the video.
        info: times of the frames.
        times: asked seconds `T`, finite.

    Raises:
        FrameUnavailable: policy strict and a time before the first frame or after the last.
    """
    before, after = times < -TIME_SLACK, times >= info.duration - TIME_SLACK
    outside = before | after
    if policy == "strict" and outside.any():
        raise FrameUnavailable(
            video, f"{times[outside][0]:.6f} s asked, the video lasts {info.duration:.6f} s"
        )
    found = np.searchsorted(info.frame_times - TIME_SLACK, times, side="right") - 1
    status = np.where(outside, FrameStatus.REPEATED, FrameStatus.OK).astype(np.uint8)
    return np.maximum(found, 0).astype(np.int64), status


def plan_frames(request: Request, output: Frames, index: VideoIndex, target: Size) -> FrameAsk:
    """Find the frames of an output and make room for them."""
    asked = np.asarray(output.times, np.float64)
    frames, status = frames_at(request.video_id, request.policy, index.info, asked)
    concealed = index.concealed[frames] & (status == FrameStatus.OK)
    status[concealed] = FrameStatus.CONCEALED
    rows: dict[int, list[int]] = {}
    for row, frame in enumerate(frames.tolist()):
        rows.setdefault(frame, []).append(row)
    return FrameAsk(
        output,
        frames,
        index.info.frame_times[frames],
        status,
        np.zeros((len(frames), target.height, target.width, 3), np.uint8),
        np.zeros(len(frames), np.bool_),
        rows,
    )


def check_request(request: Request, limits: Limits) -> Request:
    """The request in plain values; every reader calls this first.

    Raises:
        ConfigError, FrameUnavailable, RefusedVideo: as `checked` does for every road to a video.
        RefusedVideo: `over_limit`, a picture larger than `limits` allow.
    """
    request = checked(request)
    for output in request.outputs:
        if not isinstance(output, Frames) or output.size is None:
            continue
        height, width = output.size
        if height * width > limits.max_pixels:
            asked = f"frames of {height}x{width} pixels were asked"
            detail = f"{asked}, the limit is {limits.max_pixels} pixels"
            raise RefusedVideo(request.video_id, detail)
    return request


def check_size(video: str, size: int, limits: Limits) -> None:
    """Refuse a reply that would not fit."""
    if size > limits.max_reply_bytes:
        detail = f"a reply of {size} bytes was asked, the limit is {limits.max_reply_bytes}"
        raise RefusedVideo(video, detail)
