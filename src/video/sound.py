"""Sound of any window of a file: mono, at any rate, every sample in its place."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from av.audio.resampler import AudioResampler
from av.error import FFmpegError

from rushes.errors import FrameUnavailable, UnreadableVideo
from rushes.video.catalogue import Source
from rushes.video.index import VideoIndex
from rushes.video.limits import Limits
from rushes.video.media import open_media
from rushes.video.request import Audio

Samples = npt.NDArray[np.float32]

_PREROLL = 1.0
"""Seconds decoded before a window: transforms overlap, and MP3 keeps a reservoir of bits."""
_ZEROS = 24
"""Zero crossings of the interpolation kernel on each side."""
_FIXED_FRAMES = frozenset(("aac", "mp3", "mp2", "ac3", "eac3"))
"""Codecs whose packets all hold the same number of samples."""


def read_sound(
    source: Source, index: VideoIndex, asked: Audio, policy: str, limits: Limits
) -> Samples:
    """Mono samples of [start, end) seconds, counted from the first frame of the video.

    Args:
        source: the file.
        index: tells when the video begins.
        asked: window and rate.
        policy: "strict" refuses a window beyond the sound; otherwise silence fills it.
        limits: bounds.

    Returns:
        float32 `S`, S = round((end - start) * rate).

    Raises:
        FrameUnavailable: the file has no sound, or policy strict and the window leaves it.
        UnreadableVideo: the sound does not decode.
    """
    if not index.info.audio:
        raise FrameUnavailable(source.video_id, "sound was asked, the file has no sound track")
    return sound_between(source, index.container, index.info.start, asked, policy, limits)


def sound_between(
    source: Source,
    container: str,
    origin: float,
    asked: Audio,
    policy: str,
    limits: Limits,
    tick: float = 0.0,
) -> Samples:
    """The same from any file with sound.

    Args:
        source: the file or its bytes.
        container: the demuxer that opens it.
        origin: the time in it from which seconds count.
        asked, policy, limits: as for `read_sound`.
        tick: resolution in seconds that its stamps once had, where they were rewritten since.
    """
    if not (math.isfinite(asked.start) and asked.end >= asked.start and asked.rate > 0):
        detail = f"no window of sound: [{asked.start}, {asked.end}) s at {asked.rate} Hz"
        raise FrameUnavailable(source.video_id, detail)
    count = round((asked.end - asked.start) * asked.rate)
    with open_media(source, container, limits) as media:
        stream = media.streams.best("audio")
        native = stream.codec_context.rate
        margin = _ZEROS * max(1.0, native / asked.rate) / native + 2.0 / native
        begin, end = origin + asked.start, origin + asked.end
        piece = _decode_window(source, media, stream, begin - margin, end + margin, tick)
    if policy == "strict" and not piece.covers(begin, end):
        detail = f"[{asked.start}, {asked.end}) s of sound asked, it does not last that long"
        raise FrameUnavailable(source.video_id, detail)
    return resample(piece.samples, native, (begin * native) - piece.first, asked.rate, count)


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
    source: Source, media: Any, stream: Any, begin: float, end: float, tick: float
) -> _Piece:
    rate, base = stream.codec_context.rate, float(stream.time_base)
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
        media.seek(0 if start_over else max(0, int((begin - _PREROLL) / base)), stream=stream)
    first, last = math.floor(begin * rate), math.ceil(end * rate)
    samples = np.zeros(last - first, np.float32)
    place: int | None = None
    heard_from, heard_to = last, first
    try:
        for pts, piece in _mono(media, stream):
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
    for packet in media.demux(stream):
        if packet.size:
            stamp: int | None = packet.pts
            return stamp
    return None


def _snap(told: int, origin: int, base: float, rate: int, length: int) -> int:
    """The sample number nearest to `told` that is whole frames after the first stamp."""
    start = round(origin * base * rate)
    return start + round((told - start) / length) * length


def _mono(media: Any, stream: Any) -> Iterator[tuple[int | None, Samples]]:
    """Decoded pieces as mono float at the native rate, each with its time stamp."""
    resampler: AudioResampler | None = None
    for packet in media.demux(stream):
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


def resample(samples: Samples, native: int, offset: float, rate: int, count: int) -> Samples:
    """Samples at `rate` by windowed-sinc interpolation, phase-locked to the asked start.

    Args:
        samples: at the native rate; silence is outside.
        native: their rate in Hz.
        offset: where the first output lies, in native samples from the first input.
        rate: asked rate in Hz.
        count: outputs.

    Returns:
        float32 `count`.
    """
    out = np.zeros(count, np.float32)
    if not len(samples) or not count:
        return out
    if native == rate and abs(offset - round(offset)) < 1e-6:
        return _shifted(samples, round(offset), count)
    divisor = math.gcd(native, rate)
    up, down = rate // divisor, native // divisor
    scale = min(1.0, rate / native) * 0.98
    half = math.ceil(_ZEROS / scale)
    lead = half - math.floor(offset)
    needed = math.floor(offset) + math.ceil(count * native / rate) + 2 * half + down + 2
    padded = np.zeros(max(lead, 0) + max(len(samples), needed) + 2 * half, np.float32)
    shift = max(lead, 0)
    padded[shift : shift + len(samples)] = samples
    taps = np.arange(-half + 1, half + 1)
    for phase in range(min(up, count)):
        position = offset + phase * native / rate
        whole = math.floor(position)
        kernel = _kernel(taps - (position - whole), scale, half)
        number = (count - phase + up - 1) // up
        begin = whole - half + 1 + shift
        windows = np.lib.stride_tricks.as_strided(
            padded[begin:], (number, len(taps)), (padded.strides[0] * down, padded.strides[0])
        )
        out[phase::up] = windows @ kernel
    return out


def _kernel(distance: npt.NDArray[np.floating[Any]], scale: float, half: int) -> Samples:
    window = np.i0(9.0 * np.sqrt(np.maximum(0.0, 1.0 - (distance / half) ** 2))) / np.i0(9.0)
    kernel = np.sinc(distance * scale) * scale * window
    normal: Samples = (kernel / kernel.sum()).astype(np.float32)
    return normal


def _shifted(samples: Samples, offset: int, count: int) -> Samples:
    out = np.zeros(count, np.float32)
    low, high = max(0, -offset), min(count, len(samples) - offset)
    if low < high:
        out[low:high] = samples[low + offset : high + offset]
    return out
