"""From asked moments to frames of an index, shared by all backends."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from rushes.errors import ConfigError, FrameUnavailable, RefusedVideo
from rushes.video.convert import Converter
from rushes.video.index import VideoIndex
from rushes.video.limits import AUDIO_RATES, MAX_SIDE, Limits
from rushes.video.request import (
    TIME_SLACK,
    Audio,
    Frames,
    FrameStatus,
    Policy,
    Request,
    Resample,
    Size,
    VideoInfo,
)

_MAX_SECONDS = 1e9
"""Thirty years: beyond, seconds cannot be told in the ticks of a file."""


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
        times: asked seconds `T`.

    Raises:
        FrameUnavailable: policy strict and a time before the first frame or after the last.
    """
    if times.ndim != 1 or not np.isfinite(times).all():
        raise FrameUnavailable(video, f"times must be finite seconds, got {times.tolist()[:8]}")
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


def check_request(request: Request, limits: Limits) -> None:
    """Refuse what no backend could answer; every reader calls this first.

    Raises:
        ConfigError: a word or a number that means nothing, or two outputs of one name.
        FrameUnavailable: a window of sound without ends.
        RefusedVideo: `over_limit`, a picture too large.
    """
    video, names = request.video_id, [output.name for output in request.outputs]
    if request.policy not in get_args(Policy):
        known = " or ".join(get_args(Policy))
        raise ConfigError(f"{video}: policy={request.policy!r}: expected {known}")
    if len(set(names)) < len(names):
        raise ConfigError(f"{video}: two outputs of one name among {names}")
    if request.deadline is not None and math.isnan(request.deadline):
        raise ConfigError(f"{video}: deadline={request.deadline}: expected seconds or None")
    for output in request.outputs:
        if isinstance(output, Frames):
            _check_frames(video, output, limits)
        elif isinstance(output, Audio):
            _check_audio(video, output)
        elif math.isnan(output.start) or math.isnan(output.end):
            raise FrameUnavailable(video, f"rows of [{output.start}, {output.end}) s were asked")


def _check_frames(video: str, output: Frames, limits: Limits) -> None:
    if output.resample not in get_args(Resample):
        known = ", ".join(get_args(Resample))
        raise ConfigError(f"{video}: resample={output.resample!r}: expected one of {known}")
    if output.size is None:
        return
    height, width = output.size
    if height * width > limits.max_pixels or max(height, width) > MAX_SIDE:
        raise RefusedVideo(
            video,
            f"frames of {height}x{width} pixels were asked, the limit is {limits.max_pixels} "
            f"pixels and {MAX_SIDE} a side",
        )


def _check_audio(video: str, output: Audio) -> None:
    window = f"[{output.start}, {output.end}) s of sound"
    if not (abs(output.start) <= _MAX_SECONDS and abs(output.end) <= _MAX_SECONDS):
        detail = f"{window} were asked, the limit is {_MAX_SECONDS:g} s"
        raise FrameUnavailable(video, detail)
    if output.end < output.start:
        raise FrameUnavailable(video, f"{window} end before they begin")
    low, high = AUDIO_RATES
    if not low <= output.rate <= high:
        detail = f"sound at {output.rate} Hz was asked, the limits are {low} and {high} Hz"
        raise RefusedVideo(video, detail)


def check_size(video: str, size: int, limits: Limits) -> None:
    """Refuse a reply that would not fit."""
    if size > limits.max_reply_bytes:
        detail = f"a reply of {size} bytes was asked, the limit is {limits.max_reply_bytes}"
        raise RefusedVideo(video, detail)
