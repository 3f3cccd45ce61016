"""What is asked of a service, judged and made plain in the thread of the caller.

Decoding elsewhere must not change what a request means: what `check_request` refuses in process is
refused here with the same class before anything is queued or sent, and numbers of other kinds
(NumPy's) become Python's, which every worker and server reads.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from rushes.errors import ConfigError
from rushes.video.limits import Limits
from rushes.video.request import Audio, Box, Features, Frames, Output, Request, Size

MAX_DEADLINE = 86400.0
"""Seconds; who decodes elsewhere has to be told an end."""

# Sizes are judged where the decoding is done, by the limits of that side.
_ANY_PIXELS = Limits(max_pixels=1 << 62)
_Value = TypeVar("_Value")


def check_deadline(deadline: float | None, of: str) -> None:
    """Raise `ConfigError` for a deadline that is no time.

    Args:
        deadline: seconds; None leaves it to the pool or the server.
        of: what it belongs to, for the text.
    """
    plain = isinstance(deadline, int | float)
    if deadline is None or (plain and 0 < deadline <= MAX_DEADLINE):
        return
    raise ConfigError(
        f"{of}: deadline={deadline!r}: decoding in other processes needs more than 0 s, "
        f"at most {MAX_DEADLINE:g} s"
    )


def check_id(video_id: Any) -> None:
    """Raise `ConfigError` for an id that is no text."""
    if not isinstance(video_id, str):
        raise ConfigError(f"video id {video_id!r:.80}: expected a text")


def checked(request: Request) -> Request:
    """The same request in plain values.

    Raises:
        ConfigError: a word, a number or a deadline that means nothing, or two outputs of one name.
        FrameUnavailable: a window of sound or rows without ends.
        RefusedVideo: `over_limit`, a picture or a rate beyond what anything can hold.
    """
    # Not before the first request: it brings the decoders with it.
    from rushes.video.readers.asking import check_request

    video = request.video_id
    check_id(video)
    check_deadline(request.deadline, video)
    if not isinstance(request.outputs, tuple | list):
        raise _wrong(video, "outputs", request.outputs, "a tuple of outputs")
    plain = Request(
        video,
        tuple(_plain_output(video, output) for output in request.outputs),
        request.policy,
        None if request.deadline is None else float(request.deadline),
        bool(request.fixed),
    )
    check_request(plain, _ANY_PIXELS)
    return plain


def _plain_output(video: str, output: Output) -> Output:
    if not isinstance(output, Frames | Audio | Features):
        raise _wrong(video, "output", output, "Frames, Audio or Features")
    if not isinstance(output.name, str):
        raise _wrong(video, "name", output.name, "a text")
    if isinstance(output, Frames):
        return Frames(
            _made(video, "times", output.times, _times),
            None if output.size is None else _made(video, "size", output.size, _size),
            None if output.crop is None else _made(video, "crop", output.crop, _box),
            output.resample,
            output.name,
        )
    start = _made(video, "start", output.start, float)
    end = _made(video, "end", output.end, float)
    if isinstance(output, Audio):
        rate = _made(video, "rate", output.rate, _whole)
        return Audio(start, end, rate, output.name)
    if not isinstance(output.track, str):
        raise _wrong(video, "track", output.track, "a text")
    return Features(output.track, start, end, output.name)


def _times(times: Iterable[float]) -> tuple[float, ...]:
    return tuple(map(float, times))


def _size(size: Size) -> Size:
    return Size(*map(operator.index, size))


def _box(box: Box) -> Box:
    return Box(*map(operator.index, box))


def _whole(number: float) -> int:
    return int(number) if float(number).is_integer() else operator.index(number)  # type: ignore[arg-type]


def _made(video: str, name: str, value: Any, make: Callable[[Any], _Value]) -> _Value:
    try:
        return make(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{video}: {name}={value!r:.200}: {error}") from None


def _wrong(video: str, name: str, value: object, expected: str) -> ConfigError:
    return ConfigError(f"{video}: {name}={value!r:.200}: expected {expected}")
