"""What is asked of a video, judged in one place and made plain.

Whoever decodes, here, in a pool or on a server, asks `checked` first, so that a request which means
nothing gets the same class with the same words everywhere, before anything is opened, queued or
sent. What depends on the limits of the decoding side or on the video is judged there and then.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, get_args

from rushes.errors import ConfigError, FrameUnavailable, RefusedVideo
from rushes.video.limits import AUDIO_RATES, MAX_SIDE
from rushes.video.request import (
    Audio,
    Box,
    Features,
    Frames,
    Output,
    Policy,
    Request,
    Resample,
    Size,
)

_MAX_SECONDS = 1e9
"""Thirty years: beyond, seconds cannot be told in the ticks of a file."""
_MAX_PLACE = 1 << 31
"""Pixels: no picture has a box that reaches so far, and every number below can be sent."""
_Value = TypeVar("_Value")


def check_id(video_id: Any) -> None:
    """Raise `ConfigError` for an id that is no text."""
    if not isinstance(video_id, str):
        raise ConfigError(f"video id {video_id!r:.80}: expected a text")


def checked(request: Request) -> Request:
    """The same request in plain values: numbers of other kinds (NumPy's) become Python's.

    Raises:
        ConfigError: a word or a number that means nothing, or two outputs of one name.
        FrameUnavailable: a time that is none, or a window of sound or rows without ends.
        RefusedVideo: `over_limit`, a picture, box or rate beyond what anything can hold.
    """
    video = request.video_id
    check_id(video)
    if request.policy not in get_args(Policy):
        raise _wrong(video, "policy", request.policy, " or ".join(get_args(Policy)))
    if not isinstance(request.outputs, tuple | list):
        raise _wrong(video, "outputs", request.outputs, "a tuple of outputs")
    outputs = tuple(_plain_output(video, output) for output in request.outputs)
    names = [output.name for output in outputs]
    if len(set(names)) < len(names):
        raise ConfigError(f"{video}: two outputs of one name among {names}")
    deadline = None if request.deadline is None else float(request.deadline)
    return Request(video, outputs, request.policy, deadline, bool(request.fixed))


def _plain_output(video: str, output: Output) -> Output:
    if not isinstance(output, Frames | Audio | Features):
        raise _wrong(video, "output", output, "Frames, Audio or Features")
    if not isinstance(output.name, str):
        raise _wrong(video, "name", output.name, "a text")
    if isinstance(output, Frames):
        return _plain_frames(video, output)
    start = _made(video, "start", output.start, float)
    end = _made(video, "end", output.end, float)
    if isinstance(output, Audio):
        _check_window(video, "of sound", start, end)
        rate = _made(video, "rate", output.rate, _rate)
        low, high = AUDIO_RATES
        if not low <= rate <= high:
            detail = f"sound at {rate} Hz was asked, the limits are {low} and {high} Hz"
            raise RefusedVideo(video, detail)
        return Audio(start, end, rate, output.name)
    if not isinstance(output.track, str):
        raise _wrong(video, "track", output.track, "a text")
    _check_window(video, "of rows", start, end)
    return Features(output.track, start, end, output.name)


def _plain_frames(video: str, frames: Frames) -> Frames:
    if frames.resample not in get_args(Resample):
        known = ", ".join(get_args(Resample))
        raise _wrong(video, "resample", frames.resample, f"one of {known}")
    times = _made(video, "times", frames.times, _times)
    if not all(map(math.isfinite, times)):
        wrong = [time for time in times if not math.isfinite(time)][:8]
        raise FrameUnavailable(video, f"times must be finite seconds, got {wrong}")
    size = None if frames.size is None else _made(video, "size", frames.size, _size)
    if size is not None and min(size) < 1:
        raise RefusedVideo(video, f"an output of {tuple(size)} pixels")
    if size is not None and max(size) > MAX_SIDE:
        asked = f"frames of {size.height}x{size.width} pixels were asked"
        raise RefusedVideo(video, f"{asked}, the limit is {MAX_SIDE} a side")
    crop = None if frames.crop is None else _made(video, "crop", frames.crop, _box)
    if crop is not None and not _can_lie(crop):
        raise RefusedVideo(video, f"box {tuple(crop)} is not inside any picture")
    return Frames(times, size, crop, frames.resample, frames.name)


def _can_lie(box: Box) -> bool:
    return min(box.top, box.left) >= 0 and min(box.height, box.width) > 0 and max(box) < _MAX_PLACE


def _check_window(video: str, what: str, start: float, end: float) -> None:
    window = f"[{start}, {end}) s {what}"
    if not (abs(start) <= _MAX_SECONDS and abs(end) <= _MAX_SECONDS):
        detail = f"{window} were asked, the limit is {_MAX_SECONDS:g} s"
        raise FrameUnavailable(video, detail)
    if end < start:
        raise FrameUnavailable(video, f"{window} end before they begin")


def _times(times: Iterable[float]) -> tuple[float, ...]:
    return tuple(map(float, times))


def _size(size: Size) -> Size:
    return Size(*map(_whole, size))


def _box(box: Box) -> Box:
    return Box(*map(_whole, box))


def _whole(number: Any) -> int:
    if isinstance(number, bool):
        raise TypeError("a truth value is no number of pixels")
    return operator.index(number)


def _rate(number: float) -> int:
    return int(number) if float(number).is_integer() else operator.index(number)  # type: ignore[arg-type]


def _made(video: str, name: str, value: Any, make: Callable[[Any], _Value]) -> _Value:
    try:
        return make(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{video}: {name}={value!r:.200}: {error}") from None


def _wrong(video: str, name: str, value: object, expected: str) -> ConfigError:
    return ConfigError(f"{video}: {name}={value!r:.200}: expected {expected}")
