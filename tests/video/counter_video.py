"""Renders videos whose pixels tell the frame number, in every shape that files come in."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

BITS = 12
"""Frame numbers below 4096, each bit a dark or bright block."""
_COLUMNS, _ROWS = 4, 3
_DARK, _BRIGHT = 50, 205


@dataclass(frozen=True)
class Recipe:
    """How to render one counter video.

    Attributes:
        name: of the file, with its ending, which chooses the container.
        codec: FFmpeg's encoder.
        gop: pictures between key frames.
        bframes: B-frames in a row at most.
        irregular: variable frame rate: gaps of one to four ticks.
        rotation: degrees counter-clockwise as PyAV writes them.
        offset: seconds before the first picture.
        options: of the encoder.
        sound: add a chirp of 48 kHz as AAC.
        decode_times: give every packet its decoding time for a presentation time, as programs do
            that know no better.
    """

    name: str
    codec: str = "libx264"
    width: int = 160
    height: int = 96
    frames: int = 60
    gop: int = 12
    bframes: int = 0
    pixel_format: str = "yuv420p"
    rate: int = 25
    irregular: bool = False
    rotation: int = 0
    offset: float = 0.0
    options: dict[str, str] = field(default_factory=dict)
    sound: bool = False
    decode_times: bool = False

    def ticks(self) -> npt.NDArray[np.int64]:
        """Presentation time of each frame in units of 1 / rate, from 0."""
        if not self.irregular:
            return np.arange(self.frames, dtype=np.int64)
        gaps = np.random.default_rng(self.frames).integers(1, 5, self.frames - 1)
        return np.concatenate([[0], np.cumsum(gaps)]).astype(np.int64)


_X264 = {"preset": "ultrafast", "crf": "18"}
_X264_FAST = {"preset": "veryfast"}
_OPEN = {"preset": "veryfast", "crf": "18", "x264-params": "open-gop=1:scenecut=0"}
_X265 = {"preset": "ultrafast", "x265-params": "log-level=none:bframes=3:open-gop=0:scenecut=0"}
_X265_OPEN = {
    "preset": "ultrafast",
    "x265-params": "log-level=none:bframes=3:open-gop=1:scenecut=0",
}
_VPX = {"deadline": "realtime", "cpu-used": "8", "crf": "10", "b": "2M"}

RECIPES = (
    Recipe("h264_ip.mp4", options=_X264),
    Recipe("h264_b.mp4", bframes=3, options={"preset": "veryfast", "crf": "18"}),
    Recipe("h264_pyramid.mkv", bframes=7, gop=30, options={"preset": "medium", "crf": "18"}),
    Recipe("h264_one_key.mp4", gop=1000, bframes=2, options={"preset": "veryfast"}),
    Recipe("h264_open.mp4", bframes=3, options=_OPEN),
    Recipe("h264_open.ts", bframes=3, options=_OPEN),
    Recipe("h264_intra.mp4", gop=1, options=_X264),
    Recipe("h264_vfr.mp4", bframes=2, irregular=True, options={"preset": "veryfast"}),
    Recipe("h264_vfr.mkv", bframes=2, irregular=True, options={"preset": "veryfast"}),
    Recipe("h264_turned90.mp4", rotation=90, options=_X264),
    Recipe("h264_turned180.mp4", rotation=180, options=_X264),
    Recipe("h264_turned270.mov", rotation=-90, options=_X264),
    Recipe("h264_late.mp4", offset=1.4, bframes=2, options={"preset": "veryfast"}),
    Recipe("h264_late.mkv", offset=1.4, bframes=2, options={"preset": "veryfast"}),
    Recipe("h264_late.ts", offset=3.0, bframes=2, options={"preset": "veryfast"}),
    Recipe("h264_odd_444.mp4", width=157, height=93, pixel_format="yuv444p", options=_X264),
    Recipe("h264_10bit.mp4", pixel_format="yuv420p10le", options=_X264),
    Recipe("h264_refresh.mkv", options={**_X264, "x264-params": "intra-refresh=1:keyint=15"}),
    *(
        Recipe(f"h264_b.{ending}", bframes=2, options={"preset": "veryfast", "crf": "18"})
        for ending in ("avi", "asf", "mkv", "ts", "mpg")
    ),
    *(
        Recipe(
            f"h264_pyramid.{ending}",
            bframes=4,
            options={"preset": "medium", "crf": "18", "x264-params": "b-pyramid=normal:b-adapt=0"},
        )
        for ending in ("avi", "asf", "ts", "mp4")
    ),
    Recipe("h264_open.avi", bframes=3, options=_OPEN),
    Recipe("h264_ip.avi", options=_X264),
    Recipe("h264_ip.asf", options=_X264),
    Recipe("h264_stamped.mkv", bframes=2, decode_times=True, options={"preset": "veryfast"}),
    Recipe("h264_stamped.mp4", bframes=3, decode_times=True, offset=1.4, options=_X264_FAST),
    Recipe("h264_raw.264", bframes=2, options={"preset": "veryfast"}),
    Recipe("h264_sound.mp4", sound=True, bframes=2, options={"preset": "veryfast"}),
    Recipe("h264.flv", bframes=2, options={"preset": "veryfast"}),
    Recipe("hevc.mp4", "libx265", options=_X265),
    Recipe("hevc_open.mp4", "libx265", options=_X265_OPEN),
    Recipe("hevc_open.ts", "libx265", options=_X265_OPEN),
    Recipe("hevc.mkv", "libx265", options=_X265),
    Recipe("hevc.ts", "libx265", options=_X265),
    Recipe("hevc_stamped.mkv", "libx265", decode_times=True, options=_X265),
    Recipe("hevc_10bit.mkv", "libx265", pixel_format="yuv420p10le", options=_X265),
    Recipe("vp8.webm", "libvpx", options=_VPX),
    Recipe("vp9.webm", "libvpx-vp9", options={**_VPX, "lag-in-frames": "10"}),
    Recipe(
        "vp9_altref.webm",
        "libvpx-vp9",
        gop=30,
        options={
            "deadline": "good",
            "cpu-used": "5",
            "auto-alt-ref": "1",
            "lag-in-frames": "16",
            "b": "500k",
        },
    ),
    Recipe(
        "av1.mp4",
        "libsvtav1",
        width=192,
        height=128,
        frames=40,
        options={"preset": "12", "crf": "20", "svtav1-params": "lp=1"},
    ),
    Recipe("mpeg4_b.avi", "mpeg4", bframes=2, options={"qscale": "3", "b": "2M"}),
    *(
        Recipe(f"mpeg4_b.{ending}", "mpeg4", bframes=2, options={"b": "2M"})
        for ending in ("asf", "mkv", "ts", "m4v")
    ),
    *(
        Recipe(f"mpeg{version}.{ending}", f"mpeg{version}video", bframes=2, options={"b": "3M"})
        for version in (1, 2)
        for ending in ("avi", "asf", "mkv")
    ),
    Recipe("mpeg2.mxf", "mpeg2video", bframes=2, options={"b": "3M"}),
    Recipe("wmv2.wmv", "wmv2", options={"b": "2M"}),
    Recipe("wmv2.avi", "wmv2", options={"b": "2M"}),
    Recipe("mpeg4.mp4", "mpeg4", bframes=2, options={"b": "2M"}),
    Recipe("mpeg2.ts", "mpeg2video", bframes=2, options={"b": "3M"}),
    Recipe("mpeg2.mpg", "mpeg2video", bframes=2, options={"b": "3M"}),
    Recipe("mjpeg.avi", "mjpeg", pixel_format="yuvj420p", options={"qscale": "3"}),
)


def picture(number: int, width: int, height: int) -> npt.NDArray[np.uint8]:
    """The RGB picture of a frame number, `H W C`, with a gradient for texture."""
    gray = np.empty((height, width), np.float32)
    rows = np.arange(height) * _ROWS // height
    columns = np.arange(width) * _COLUMNS // width
    bit = rows[:, None] * _COLUMNS + columns[None, :]
    gray[:] = np.where(number >> bit & 1, _BRIGHT, _DARK)
    gray += np.linspace(-12, 12, width)[None, :]
    tint = np.array([8, 0, -8], np.float32)
    image: npt.NDArray[np.uint8] = np.clip(gray[:, :, None] + tint, 0, 255).astype(np.uint8)
    return image


def number_of(image: npt.NDArray[Any]) -> int:
    """The frame number that a picture of any size shows, `H W C`."""
    height, width = image.shape[:2]
    number = 0
    for bit in range(BITS):
        row, column = divmod(bit, _COLUMNS)
        top, bottom = (row * height // _ROWS, (row + 1) * height // _ROWS)
        left, right = (column * width // _COLUMNS, (column + 1) * width // _COLUMNS)
        inset_y, inset_x = (bottom - top) // 4, (right - left) // 4
        block = image[top + inset_y : bottom - inset_y, left + inset_x : right - inset_x]
        number |= int(block.mean() > 127) << bit
    return number


def chirp(samples: int, rate: int) -> npt.NDArray[np.float32]:
    """A tone that rises from 100 Hz by 400 Hz a second: every moment sounds different."""
    t = np.arange(samples) / rate
    return (0.6 * np.sin(2 * np.pi * (100 * t + 200 * t * t))).astype(np.float32)


def render(recipe: Recipe, folder: Path) -> Path:
    """Encode a counter video; the picture of frame n shows n."""
    path = folder / recipe.name
    with av.open(str(path), "w") as media:
        stream: Any = media.add_stream(recipe.codec, rate=recipe.rate)
        stream.width, stream.height = recipe.width, recipe.height
        stream.pix_fmt = recipe.pixel_format
        context = stream.codec_context
        context.time_base = Fraction(1, recipe.rate)
        context.gop_size, context.max_b_frames = recipe.gop, recipe.bframes
        context.thread_count = 1
        options = dict(recipe.options)
        if "b" in options:
            context.bit_rate = {"2M": 2_000_000, "3M": 3_000_000, "500k": 500_000}[options.pop("b")]
        context.options = options
        if recipe.rotation:
            stream.set_display_rotation(recipe.rotation)
        sound: Any = media.add_stream("aac", rate=48000, layout="mono") if recipe.sound else None
        shift = round(recipe.offset * recipe.rate)
        for number, tick in enumerate(recipe.ticks().tolist()):
            image = av.VideoFrame.from_ndarray(
                picture(number, recipe.width, recipe.height), format="rgb24"
            )
            frame = image.reformat(format=recipe.pixel_format)
            frame.pts, frame.time_base = tick + shift, Fraction(1, recipe.rate)
            media.mux(_stamped(stream.encode(frame), recipe))
        media.mux(_stamped(stream.encode(None), recipe))
        if sound is not None:
            _add_sound(media, sound, recipe)
    return path


def _stamped(packets: list[Any], recipe: Recipe) -> list[Any]:
    for packet in packets if recipe.decode_times else ():
        packet.pts = packet.dts
    return packets


def _add_sound(media: Any, sound: Any, recipe: Recipe) -> None:
    samples = chirp(round(recipe.frames / recipe.rate * 48000), 48000)
    for begin in range(0, len(samples), 1024):
        part = np.ascontiguousarray(samples[None, begin : begin + 1024])
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, begin, Fraction(1, 48000)
        media.mux(sound.encode(frame))
    media.mux(sound.encode(None))


def shown(path: Path) -> list[int]:
    """The number that each decoded frame of a file shows."""
    with av.open(str(path)) as media:
        return [number_of(f.to_ndarray(format="rgb24")) for f in media.decode(video=0)]
