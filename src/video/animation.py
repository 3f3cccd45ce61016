"""Animated WebP and PNG, which FFmpeg builds often cannot read: Pillow decodes, PyAV encodes."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.error import FFmpegError
from PIL import Image, ImageSequence

from rushes.errors import DecodeTimeout, RefusedVideo, UnreadableVideo
from rushes.video.catalogue import Source
from rushes.video.limits import Limits
from rushes.video.media import file_url
from rushes.video.transcode import ENCODERS, Settings, allowed_seconds

_DEFAULT_MS = 100
"""Milliseconds of a frame that gives no time, as browsers show it."""
_TICKS = 60_000
"""Ticks a second of the written times; PNG tells durations as fractions."""


def write_animation(
    source: Source, path: Path, settings: Settings, limits: Limits | None = None
) -> npt.NDArray[np.float64]:
    """Encode every frame of an animation into an MP4 at `path`; returns their times in seconds.

    Transparent parts become black, as ffmpeg makes them.

    Raises:
        UnreadableVideo: `not_video` or `undecodable`.
        RefusedVideo: `over_limit`.
        DecodeTimeout: it takes longer than the settings allow.
    """
    times: list[float] = []
    frames = _frames(source, settings, limits or Limits())
    first = next(frames)
    try:
        with av.open(file_url(path), "w", format="mp4", options={"movflags": "+faststart"}) as out:
            stream = _stream(out, first[0].shape[1::-1], settings)
            lasts: dict[int, int] = {}
            for pixels, moment, lasting in chain([first], frames):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = round(moment * _TICKS), Fraction(1, _TICKS)
                lasts[frame.pts] = max(1, round(lasting * _TICKS))
                times.append(frame.pts / _TICKS)
                _mux(out, stream.encode(frame), lasts)
            _mux(out, stream.encode(None), lasts)
    except FFmpegError as error:
        detail = f"cannot be coded as {settings.codec}: {error}"
        raise UnreadableVideo(source.video_id, detail) from error
    return np.array(times, np.float64)


def _mux(out: Any, packets: Iterable[Any], lasts: dict[int, int]) -> None:
    for packet in packets:
        packet.duration = lasts[round(packet.pts * packet.time_base * _TICKS)]
        out.mux(packet)


def _stream(out: Any, size: tuple[int, int], settings: Settings) -> Any:
    stream = out.add_stream(ENCODERS[settings.codec], rate=25)
    stream.width, stream.height = size
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = Fraction(1, _TICKS)
    stream.codec_context.thread_count = settings.threads
    # Without B-frames the last packet is the last picture, and tells how long that stays.
    stream.options = {"crf": str(settings.crf), "g": str(settings.gop), "bf": "0"}
    if settings.codec in ("h264", "hevc"):
        stream.options |= {"preset": settings.preset or "veryfast"}
    return stream


def _frames(
    source: Source, settings: Settings, limits: Limits
) -> Iterator[tuple[npt.NDArray[np.uint8], float, float]]:
    """RGB pixels at the size of the result, time and duration in seconds of each frame, at least
    one.
    """
    began, clock, shown = time.monotonic(), 0.0, 0
    try:
        with warnings.catch_warnings():
            # Pillow warns of large pictures; the limit below is ours, and smaller.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(source.path, formats=("WEBP", "PNG", "GIF"))
        with opened as image:
            size = _size(source, image, settings, limits)
            aside = image.info.get("default_image") and getattr(image, "n_frames", 1) > 1
            for number, picture in enumerate(ImageSequence.Iterator(image)):
                if number == 0 and aside:
                    continue  # a picture for viewers that know no animation
                if shown >= limits.max_frames:
                    raise RefusedVideo(source.video_id, f"more than {limits.max_frames} frames")
                allowed = allowed_seconds(settings.timeout, clock)
                if time.monotonic() - began > allowed:
                    raise DecodeTimeout(source.video_id, f"it takes longer than {allowed:g} s")
                pixels = _pixels(picture, size)
                lasting = float(picture.info.get("duration") or _DEFAULT_MS) / 1000
                yield pixels, clock, lasting
                shown += 1
                clock += lasting
    except Image.DecompressionBombError as error:
        raise RefusedVideo(source.video_id, str(error)) from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        if shown:
            detail = f"frame {shown} does not decode: {error}"
            raise UnreadableVideo(source.video_id, detail) from error
        raise UnreadableVideo(source.video_id, f"no animation: {error}", "not_video") from error


def _size(source: Source, image: Any, settings: Settings, limits: Limits) -> tuple[int, int]:
    """Width and height of the result; refuses what is too large."""
    pixels = image.width * image.height
    if pixels > limits.max_pixels:
        detail = f"{image.width}x{image.height} = {pixels} pixels, the limit is {limits.max_pixels}"
        raise RefusedVideo(source.video_id, detail)
    height = min(settings.height or image.height, image.height)
    width = image.width * height / image.height
    return max(2, 2 * round(width / 2)), max(2, 2 * round(height / 2))


def _pixels(picture: Any, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    shown = picture.convert("RGBA")
    flat = Image.new("RGBA", shown.size, (0, 0, 0, 255))
    flat.alpha_composite(shown)
    return np.asarray(flat.convert("RGB").resize(size, Image.Resampling.BICUBIC), np.uint8)
