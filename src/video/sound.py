"""Sound of any window of a file: mono, at any rate, every sample in its place."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from av.audio.resampler import AudioResampler
from av.error import FFmpegError

from rushes.errors import FrameUnavailable, RefusedVideo, UnreadableVideo
from rushes.video.catalogue import Source
from rushes.video.index import VideoIndex
from rushes.video.limits import AUDIO_RATES, Limits, check_deadline
from rushes.video.media import open_media, packets_of
from rushes.video.request import Audio
from rushes.video.resampling import ZEROS, Check, Samples, resample

_PREROLL = 1.0
"""Seconds decoded before a window: transforms overlap, and MP3 keeps a reservoir of bits."""
_SEEK_LIMIT = 2**62
"""FFmpeg counts time in signed 64 bits."""
_FIXED_FRAMES = frozenset(("aac", "mp3", "mp2", "ac3", "eac3"))
"""Codecs whose packets all hold the same number of samples."""


def read_sound(
    source: Source,
    index: VideoIndex,
    asked: Audio,
    policy: str,
    limits: Limits,
    deadline: float | None = None,
) -> Samples:
    """Mono samples of [start, end) seconds, counted from the first frame of the video.

    Args:
        source: the file.
        index: tells when the video begins.
        asked: window and rate.
        policy: "strict" refuses a window beyond the sound; otherwise silence fills it.
        limits: bounds.
        deadline: `time.monotonic()` after which to give up; None never.

    Returns:
        float32 `S`, S = round((end - start) * rate).

    Raises:
        FrameUnavailable: the file has no sound, or policy strict and the window leaves it.
        UnreadableVideo: the sound does not decode.
        RefusedVideo: `over_limit`, the window or the rate of the track.
        DecodeTimeout: the deadline passed.
    """
    if not index.info.audio:
        raise FrameUnavailable(source.video_id, "sound was asked, the file has no sound track")
    origin = index.info.start
    return sound_between(source, index.container, origin, asked, policy, limits, deadline=deadline)


def sound_between(
    source: Source,
    container: str,
    origin: float,
    asked: Audio,
    policy: str,
    limits: Limits,
    tick: float = 0.0,
    deadline: float | None = None,
) -> Samples:
    """The same from any file with sound.

    Args:
        source: the file or its bytes.
        container: the demuxer that opens it.
        origin: the time in it from which seconds count.
        asked, policy, limits, deadline: as for `read_sound`.
        tick: resolution in seconds that its stamps once had, where they were rewritten since.
    """
    count = round((asked.end - asked.start) * asked.rate)
    check = partial(check_deadline, source.video_id, deadline)
    with open_media(source, container, limits) as media:
        stream = media.streams.best("audio")
        native = _native_rate(source, stream)
        margin = ZEROS * max(1.0, native / asked.rate) / native + 2.0 / native
        begin, end = origin + asked.start, origin + asked.end
        window = begin - margin, end + margin
        _check_window(source, window, native, limits)
        piece = _decode_window(source, media, stream, window, tick, check)
    if policy == "strict" and not piece.covers(begin, end):
        detail = f"[{asked.start}, {asked.end}) s of sound asked, it does not last that long"
        raise FrameUnavailable(source.video_id, detail)
    offset = begin * native - piece.first
    return resample(piece.samples, native, offset, asked.rate, count, check)


def _native_rate(source: Source, stream: Any) -> int:
    context = stream.codec_context if stream is not None else None
    if context is None:
        raise UnreadableVideo(source.video_id, "the sound is of a codec that FFmpeg does not know")
    rate: int = context.rate or 0
    if not 0 < rate <= AUDIO_RATES[1]:
        detail = f"a sound track of {rate} Hz, the limit is {AUDIO_RATES[1]} Hz"
        raise RefusedVideo(source.video_id, detail)
    return rate


def _check_window(source: Source, window: tuple[float, float], native: int, limits: Limits) -> None:
    size = (window[1] - window[0]) * native * np.float32().itemsize
    if size > limits.max_reply_bytes:
        detail = f"the window holds {size:.0f} bytes of sound at {native} Hz"
        raise RefusedVideo(source.video_id, f"{detail}, the limit is {limits.max_reply_bytes}")


@dataclass
class _Piece:
    """Samples at the native rate; `first` is the sample number of the first one."""

    samples: Samples
    first: int
    rate: int

    def covers(self, begin: float, end: float) -> bool:
        """Whether [begin, end) seconds lie inside, with a frame of tolerance at the end."""
        low, high = self.first / self.rate, (self.first + len(self.samples)) / self.rate
        return low <= begin + 0.05 and end <= high + 0.05


def _decode_window(
    source: Source,
    media: Any,
    stream: Any,
    window: tuple[float, float],
    tick: float,
    check: Check,
) -> _Piece:
    (begin, end), rate, base = window, stream.codec_context.rate, float(stream.time_base)
    tick = max(tick, base)
    coarse = tick * rate > 1.01  # time stamps do not tell single samples apart
    fixed = stream.codec_context.codec.canonical_name in _FIXED_FRAMES
    origin = None
    if coarse or begin <= _PREROLL:
        origin = _first_stamp(media, stream) if coarse and fixed else None
        start_over = not fixed or begin <= _PREROLL
    else:
        start_over = False
    if origin is not None or not start_over:
        # Before the first second of a file that was just opened no seek is needed, and to seek to 0
        # would leave out what lies before: a packet that the first one overlaps with.
        ahead = 0 if start_over else max(0, int((begin - _PREROLL) / base))
        media.seek(min(ahead, _SEEK_LIMIT), stream=stream)
    first, last = math.floor(begin * rate), math.ceil(end * rate)
    samples = np.zeros(last - first, np.float32)
    place: int | None = None
    heard_from, heard_to = last, first
    try:
        for pts, piece in _mono(media, stream, check):
            told = round(pts * base * rate) if pts is not None else place
            if told is None:
                told = 0
            if origin is not None and place is None:
                told = _snap(told, origin, base, rate, len(piece))
            # Stamps jitter by rounding; only a real gap moves the place.
            tolerance = max(rate * tick, rate * 0.02) if coarse else max(8.0, rate * tick)
            if place is None or abs(told - place) > tolerance:
                place = told
            low, high = max(place, first), min(place + len(piece), last)
            if low < high:
                samples[low - first : high - first] = piece[low - place : high - place]
                heard_from, heard_to = min(heard_from, low), max(heard_to, high)
            place += len(piece)
            if place >= last:
                break
    except (FFmpegError, ValueError) as error:
        raise UnreadableVideo(source.video_id, f"the sound does not decode: {error}") from error
    if heard_from >= heard_to:
        return _Piece(np.zeros(0, np.float32), first, rate)
    return _Piece(samples[heard_from - first : heard_to - first], heard_from, rate)


def _first_stamp(media: Any, stream: Any) -> int | None:
    for packet in packets_of(media, stream):
        if packet.size:
            stamp: int | None = packet.pts
            return stamp
    return None


def _snap(told: int, origin: int, base: float, rate: int, length: int) -> int:
    """The sample number nearest to `told` that is whole frames after the first stamp."""
    start = round(origin * base * rate)
    return start + round((told - start) / length) * length


def _mono(media: Any, stream: Any, check: Check) -> Iterator[tuple[int | None, Samples]]:
    """Decoded pieces as mono float at the native rate, each with its time stamp."""
    resampler: AudioResampler | None = None
    for packet in packets_of(media, stream):
        check()
        try:
            frames = packet.decode()
        except FFmpegError:
            continue  # one broken packet of sound is a gap, filled with silence
        for frame in frames:
            if resampler is None:
                resampler = AudioResampler(format="flt", layout="mono", rate=frame.sample_rate)
            pts = frame.pts
            frame.pts = None
            parts = [part.to_ndarray().reshape(-1) for part in resampler.resample(frame)]
            if parts:
                yield pts, np.concatenate(parts)
