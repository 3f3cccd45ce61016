"""Writes scenes as real video files: codec, container, frame rate and rotation of each form."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import cv2
import numpy as np
import numpy.typing as npt

from rushes.datasets.footage.draw import Bytes, pictures, planes_of
from rushes.datasets.footage.scene import FPS, Form, Scene
from rushes.datasets.footage.sound import RATE, sound_of

_BITEXACT = {"fflags": "+bitexact"}
_TICKS = 1000
"""Ticks a second of the time base: forty a frame, so that variable frame times fit too."""


@dataclass(frozen=True)
class Encoding:
    """How a form is written."""

    suffix: str
    container: str
    codec: str
    audio: str | None
    options: dict[str, str] = field(default_factory=dict)
    rotation: int = 0
    """Degrees clockwise that a player turns the stored picture."""
    variable: bool = False


_H264 = {"preset": "veryfast", "g": "250", "keyint_min": "25", "bf": "3", "crf": "23"}
_X265 = "pools=none:frame-threads=1:log-level=none:keyint=250:bframes=3:info=0"

ENCODINGS: dict[Form, Encoding] = {
    "h264": Encoding(".mp4", "mp4", "libx264", "aac", _H264),
    "portrait": Encoding(".mp4", "mp4", "libx264", "aac", _H264),
    "rotated": Encoding(".mp4", "mp4", "libx264", "aac", _H264, rotation=90),
    "variable": Encoding(".mp4", "mp4", "libx264", "aac", _H264, variable=True),
    "vp9": Encoding(
        *(".webm", "webm", "libvpx-vp9", "libopus"),
        options={"deadline": "realtime", "cpu-used": "8", "crf": "34", "b": "0", "g": "250"},
    ),
    "hevc": Encoding(
        *(".mkv", "matroska", "libx265", "aac"),
        options={"preset": "ultrafast", "crf": "26", "x265-params": _X265},
    ),
    "mpeg4": Encoding(
        *(".avi", "avi", "mpeg4", "libmp3lame"),
        options={"qmin": "3", "qmax": "5", "g": "100", "bf": "2"},
    ),
    "gif": Encoding(".gif", "gif", "gif", None),
}


def suffix_of(form: Form) -> str:
    """File name ending of a form, with its dot."""
    return ENCODINGS[form].suffix


def write_scene(scene: Scene, path: Path) -> None:
    """Encode the scene into `path` (any name: the container is that of the form)."""
    sound = sound_of(scene.things, scene.duration, scene.texture)
    write_video(path, scene, pictures(scene), sound)


def write_video(
    path: Path, scene: Scene, frames: Iterator[tuple[int, Bytes]], sound: npt.NDArray[np.float32]
) -> None:
    """Encode pictures (index at 25 a second, packed YUV 4:2:0) and sound in the scene's form."""
    encoding = ENCODINGS[scene.form]
    kept = kept_frames(scene)
    with _Writer(path, encoding, scene.width, scene.height) as writer:
        with closing(frames):  # type: ignore[type-var]
            for index, picture in frames:
                if index in kept:
                    writer.add_picture(index, picture)
                    writer.add_sound(sound, upto=(index + 1) / FPS)
        writer.add_sound(sound, upto=None)
    if encoding.rotation:
        set_rotation(path, encoding.rotation)


def kept_frames(scene: Scene) -> frozenset[int]:
    """Indices at the full rate of the pictures that the file holds."""
    count = scene.num_frames
    if scene.form == "gif":
        return frozenset(range(0, count, 2))
    if scene.form != "variable":
        return frozenset(range(count))
    rng = random.Random(scene.texture)
    kept, index = [], 0
    while index < count:
        kept.append(index)
        index += rng.choice((1, 1, 1, 2, 3))
    return frozenset(kept)


class _Writer:
    """One file being encoded: pictures and sound interleaved as they come."""

    def __init__(self, path: Path, encoding: Encoding, width: int, height: int) -> None:
        self.encoding = encoding
        self.is_gif = encoding.codec == "gif"
        options = {} if self.is_gif else _BITEXACT
        self.container = av.open(str(path), "w", format=encoding.container, options=options)
        stream = self.container.add_stream(encoding.codec, rate=FPS, options=dict(encoding.options))
        video = cast(av.VideoStream, stream)
        sideways = encoding.rotation in (90, 270)
        video.width, video.height = (height, width) if sideways else (width, height)
        if self.is_gif:
            video.width, video.height = width // 2, height // 2
        video.pix_fmt = "rgb8" if self.is_gif else "yuv420p"
        # MPEG-4 part 2 and AVI count frames; the other forms keep milliseconds.
        self.ticks = FPS if encoding.codec == "mpeg4" else 100 if self.is_gif else _TICKS
        video.codec_context.time_base = Fraction(1, self.ticks)
        video.codec_context.thread_count = 1
        if not self.is_gif:
            video.codec_context.colorspace = 6  # SMPTE 170M: the matrix that draw.py uses
            video.codec_context.color_range = 1
        self.video = video
        self.audio: av.AudioStream | None = None
        self.sent = 0
        if encoding.audio:
            sound = self.container.add_stream(encoding.audio, rate=RATE, layout="mono")
            self.audio = cast(av.AudioStream, sound)
            self.audio.codec_context.bit_rate = 64_000
            self.audio.codec_context.format = "flt" if encoding.audio == "libopus" else "fltp"
            self.audio.codec_context.open()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.container.mux(self.video.encode(None))
            if self.audio is not None:
                self.container.mux(self.audio.encode(None))
        self.container.close()

    def add_picture(self, index: int, picture: Bytes) -> None:
        """Encode one packed upright picture."""
        if self.encoding.rotation:
            picture = _turned(picture, self.encoding.rotation)
        if self.is_gif:
            rgb = cv2.cvtColor(picture, cv2.COLOR_YUV2RGB_I420)
            rgb = cv2.resize(rgb, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
            pixels = rgb.astype(np.uint8, copy=False)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="rgb8")
        else:
            frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
        frame.pts = index * self.ticks // FPS
        frame.time_base = Fraction(1, self.ticks)
        self.container.mux(self.video.encode(frame))

    def add_sound(self, sound: npt.NDArray[np.float32], upto: float | None) -> None:
        """Encode whole sound frames up to a moment (None: to the end, the last one padded)."""
        if self.audio is None:
            return
        size = self.audio.codec_context.frame_size
        form = self.audio.codec_context.format.name
        end = len(sound) if upto is None else min(round(upto * RATE), len(sound))
        while self.sent + size <= end or (upto is None and self.sent < end):
            chunk = sound[self.sent : self.sent + size]
            chunk = np.pad(chunk, (0, size - len(chunk)))
            frame = av.AudioFrame.from_ndarray(chunk[None], format=form, layout="mono")
            frame.sample_rate, frame.pts = RATE, self.sent
            frame.time_base = Fraction(1, RATE)
            self.container.mux(self.audio.encode(frame))
            self.sent += size


def _turned(picture: Bytes, rotation: int) -> Bytes:
    """The packed picture as it must be stored so that turning it clockwise shows it upright."""
    height, width = picture.shape[0] * 2 // 3, picture.shape[1]
    turned = np.empty((width * 3 // 2, height), np.uint8)
    for source, target in zip(planes_of(picture, height), planes_of(turned, width), strict=True):
        target[...] = np.rot90(source, rotation // 90)
    return turned


def set_rotation(path: Path, rotation: int) -> None:
    """Write a display matrix of 90 degrees clockwise into the first track header of an MP4 file."""
    if rotation != 90:
        raise ValueError(f"rotation={rotation}: only 90 is written")
    data = bytearray(path.read_bytes())
    track = data.find(b"tkhd")
    if track < 0 or data[track + 4] != 0:
        raise ValueError(f"{path}: no version 0 track header")
    coded_height = int.from_bytes(data[track + 84 : track + 88], "big")
    cells = (0, 1 << 16, 0, -(1 << 16), 0, 0, coded_height, 0, 1 << 30)
    matrix = b"".join(cell.to_bytes(4, "big", signed=True) for cell in cells)
    data[track + 44 : track + 80] = matrix
    path.write_bytes(data)


BAD_REASONS = ("truncated", "empty", "not_video", "no_video_stream")
"""What is wrong with the bad files, in turns."""


def write_bad(scene: Scene, reason: str, path: Path) -> None:
    """Write a file that is bad in the given way."""
    if reason == "empty":
        path.write_bytes(b"")
    elif reason == "not_video":
        path.write_text("This page has moved. Please sign in to see the video.\n" * 40)
    elif reason == "no_video_stream":
        sound = sound_of(scene.things, scene.duration, scene.texture)
        _write_sound(path, sound)
    elif reason == "truncated":
        write_scene(scene, path)
        # The index of an MP4 file stands at its end: what is left cannot be decoded.
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    else:
        raise ValueError(f"reason={reason!r}: expected one of {list(BAD_REASONS)}")


def _write_sound(path: Path, sound: npt.NDArray[np.float32]) -> None:
    with av.open(str(path), "w", format="mp4", options=_BITEXACT) as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        stream.codec_context.open()
        size = stream.codec_context.frame_size
        for first in range(0, len(sound) - size, size):
            frame = av.AudioFrame.from_ndarray(
                sound[None, first : first + size], format="fltp", layout="mono"
            )
            frame.sample_rate, frame.pts, frame.time_base = RATE, first, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
