"""What can be asked of a video, and what comes back.

Every reader, the worker pool and the network service speak only these types. A reply is a set of
named arrays, never "a frame tensor": a request may ask for several frame outputs, for sound and for
stored features at once. Times are seconds from the first presentation time of the file's video
stream (so a file with a start offset begins at 0.0). The frame at time t is the one on screen then:
the frame whose interval [pts, next pts) holds t, with `TIME_SLACK` seconds of tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from rushes.errors import ConfigError

TIME_SLACK = 1e-6
"""A moment belongs to [pts - slack, next pts - slack), in seconds."""

MAX_DEADLINE = 86400.0
"""Seconds that a read may be given; None is for those that may take for ever."""

Policy = Literal["strict", "repeat_last"]
Resample = Literal["area", "bilinear", "bicubic", "nearest"]


class Box(NamedTuple):
    """A rectangle in display pixels (after rotation and sample aspect ratio)."""

    top: int
    left: int
    height: int
    width: int


class Size(NamedTuple):
    """Height and width in pixels."""

    height: int
    width: int


class FrameStatus(IntEnum):
    """What a returned frame is worth."""

    OK = 0
    REPEATED = 1
    """After the end of the video; the last frame was repeated."""
    CONCEALED = 2
    """The decoder reported errors and filled parts in."""
    MISSING = 3
    """Nothing could be decoded; the pixels are zero."""


@dataclass(frozen=True)
class Frames:
    """Frames at given moments.

    Attributes:
        times: seconds, in any order, repeats allowed.
        size: output height and width; None keeps the size of `crop` (or of the display).
        crop: rectangle in display pixels, cut before resizing; None is the whole picture.
        resample: how to resize; "area" averages (antialiased) and is bilinear when enlarging,
            "nearest" takes source row floor((i + 0.5) * H / h) as published stretch-nearest does.
        name: key of the array in the reply: uint8 `T H W C`, RGB.
    """

    times: tuple[float, ...]
    size: Size | None = None
    crop: Box | None = None
    resample: Resample = "area"
    name: str = "frames"

    def __post_init__(self) -> None:
        for name, kind in (("size", Size), ("crop", Box)):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                fields = ", ".join(kind._fields)
                raise ConfigError(f"{name}={value!r:.200}: expected {kind.__name__}({fields})")


@dataclass(frozen=True)
class Audio:
    """Mono sound of [start, end) s at `rate` Hz: float32 `S`, S = round((end - start) * rate)."""

    start: float
    end: float
    rate: int = 16000
    name: str = "audio"


@dataclass(frozen=True)
class Features:
    """Rows of a stored feature track whose times lie in [start, end): float `T D`."""

    track: str
    start: float
    end: float
    name: str = "features"


Output = Frames | Audio | Features


@dataclass(frozen=True)
class Request:
    """What is asked of one video.

    Attributes:
        video_id: the catalogue maps it to bytes, on whichever side decodes. Never a path or URL.
        outputs: each under its own name.
        policy: "strict" raises `FrameUnavailable` past the end; "repeat_last" repeats and says so.
        deadline: seconds that the whole read may take, more than 0 and at most `MAX_DEADLINE`;
            None waits.
        fixed: the same will be asked again (evaluation), so that a reply is worth keeping.
    """

    video_id: str
    outputs: tuple[Output, ...]
    policy: Policy = "repeat_last"
    deadline: float | None = None
    fixed: bool = False

    def __post_init__(self) -> None:
        check_deadline(self.deadline, self.video_id)


def check_deadline(deadline: float | None, of: str) -> None:
    """Raise `ConfigError` for a deadline that is no time.

    Args:
        deadline: seconds; None leaves it to whoever decodes.
        of: what it belongs to, for the text.
    """
    plain = isinstance(deadline, int | float)
    if deadline is None or (plain and 0 < deadline <= MAX_DEADLINE):
        return
    raise ConfigError(
        f"{of}: deadline={deadline!r:.80}: expected more than 0 s, at most {MAX_DEADLINE:g} s"
    )


@dataclass(frozen=True)
class Cost:
    """What a reply took: the figures behind decode efficiency (frames returned / decoded)."""

    frames_decoded: int = 0
    frames_returned: int = 0
    bytes_read: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Reply:
    """Named arrays with, for each output of frames, what was asked and what came.

    Attributes:
        arrays: by output name; frames are uint8 `T H W C`, sound float32 `S`, features `T D`.
        requested: asked times in seconds, float64 `T`, by output name (frames only).
        times: presentation times of the returned frames (and features), float64 `T`.
        status: `FrameStatus` codes, uint8 `T`, by output name (frames only).
    """

    video_id: str
    arrays: dict[str, npt.NDArray[np.generic]]
    requested: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    times: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    status: dict[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    cost: Cost = Cost()


@dataclass(frozen=True)
class AudioTrack:
    """One sound track of a file."""

    codec: str
    rate: int
    channels: int
    duration: float | None = None
    language: str | None = None


@dataclass(frozen=True)
class SubtitleTrack:
    """One subtitle track of a file."""

    codec: str
    language: str | None = None


@dataclass(frozen=True)
class VideoInfo:
    """What a file really holds, found by reading its packets, not by trusting its header.

    Attributes:
        width, height: display size, after rotation and sample aspect ratio.
        coded_width, coded_height: size of the stored pictures.
        rotation: degrees clockwise that the player turns the picture: 0, 90, 180, 270.
        duration: seconds from the first presentation time to the end of the last frame.
        frame_times: presentation times in seconds from the first, float64 `N`, ascending.
        keyframes: indices into `frame_times` where decoding can start, int64 `K`.
        start: presentation time of the first frame as the file writes it, in seconds.
        full_size_times: for a store, the grid of times at which full-size frames exist; None
            where every time does.
    """

    video_id: str
    container: str
    codec: str
    pixel_format: str
    width: int
    height: int
    coded_width: int
    coded_height: int
    rotation: int
    duration: float
    frame_times: npt.NDArray[np.float64]
    keyframes: npt.NDArray[np.int64]
    start: float = 0.0
    audio: tuple[AudioTrack, ...] = ()
    subtitles: tuple[SubtitleTrack, ...] = ()
    features: tuple[str, ...] = ()
    full_size_times: npt.NDArray[np.float64] | None = None
    damaged: bool = False
    """Some packets do not decode, yet frames can be had."""

    @property
    def num_frames(self) -> int:
        """True count of presentable frames."""
        return len(self.frame_times)

    @property
    def fps(self) -> float:
        """Average frames a second."""
        return self.num_frames / self.duration if self.duration > 0 else 0.0


@runtime_checkable
class VideoReader(Protocol):
    """The one call behind which all decoding lives: in process, in a pool, on other machines.

    Readers are opened in the process that uses them and never carried across fork.
    """

    def describe(self, video_id: str) -> VideoInfo:
        """What the video holds; raises `VideoError`."""
        ...

    def read(self, request: Request) -> Reply:
        """The named arrays; raises `VideoError` when the video cannot give them."""
        ...

    def close(self) -> None:
        """Give back files, processes and memory; reading afterwards is an error."""
        ...
