"""Codes pictures for a store: groups that decode alone, each good enough, measured on the result.

A group is one key frame, one frame that follows it in decoding and lies last on screen, and frames
between them to which nothing refers. Any frame of a group of twelve so costs three decoded pictures
at most. The entropy coder is the fast one, and there is no loop filter: reading is what must be
cheap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt
from av.error import FFmpegError
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter

from rushes.errors import StorageError
from rushes.video.limits import Limits
from rushes.video.media import bare_context
from rushes.video.packets import PacketFlag, inspect
from rushes.video.request import Size
from rushes.video.store_format import REORDER, PacketKind

_TIME_BASE = Fraction(1, 30)
_MAX_BETWEEN = 16
"""x264 puts at most this many frames between two that others refer to."""
_STEP = 3
"""How much lower the rate factor of the next attempt is: about 1.5 dB."""
_DROPPED_UNITS = frozenset((6, 9))
"""Messages and delimiters; the first holds hundreds of bytes of the encoder's settings."""


class Coded(NamedTuple):
    """One coded picture: which of the given frames it shows, its bytes and its kind."""

    frame: int
    data: bytes
    kind: PacketKind


class Group(NamedTuple):
    """Coded pictures that decode alone, in decoding order, and the worst PSNR among them."""

    packets: list[Coded]
    psnr: float


def picture_format(size: Size, full_range: bool) -> str:
    """The pixel format that can hold a picture of `size`: odd sizes need whole chroma."""
    sampling = "444p" if size.height % 2 or size.width % 2 else "420p"
    return ("yuvj" if full_range else "yuv") + sampling


def to_picture(frame: Any, size: Size, pixel_format: str, scaler: VideoReformatter) -> Any:
    """A decoded frame as the picture that is coded."""
    return scaler.reformat(
        frame,
        width=size.width,
        height=size.height,
        format=pixel_format,
        interpolation="AREA" if (frame.height, frame.width) > tuple(size) else "BICUBIC",
        threads=1,
    )


def code_groups(
    pictures: Sequence[Any], length: int, crf: int, psnr: float, limits: Limits
) -> list[Group]:
    """Code pictures in groups of `length`, each at a rate that gives it at least `psnr` dB.

    Args:
        pictures: of one size and format, in display order.
        length: frames of a group; the last may be shorter.
        crf: rate factor of the first attempt.
        psnr: least luma PSNR of every picture.
        limits: of the decoder that checks the result.

    Raises:
        StorageError: not reached at any rate, or the result does not decode.
    """
    groups = [pictures[i : i + length] for i in range(0, len(pictures), length)]
    done: dict[int, Group] = {}
    for factor in [*range(crf, 0, -_STEP), 1]:
        left = [number for number in range(len(groups)) if number not in done]
        if not left:
            break
        # The shortest group lies last, so that groups keep their place in the joined sequence.
        coded = _encode([picture for number in left for picture in groups[number]], length, factor)
        for number, packets in zip(left, _split(coded, length), strict=True):
            worst = _verify(groups[number], packets, limits)
            if worst >= psnr or factor == 1:
                done[number] = Group(packets, worst)
    worst = min((group.psnr for group in done.values()), default=psnr)
    if worst < psnr:
        raise StorageError(f"{worst:.1f} dB at the highest rate, {psnr:.1f} dB are asked")
    return [done[number] for number in range(len(groups))]


def _encode(pictures: Sequence[Any], length: int, crf: int) -> list[Coded]:
    first = pictures[0]
    encoder: Any = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height = first.width, first.height
    encoder.pix_fmt, encoder.time_base = first.format.name, _TIME_BASE
    encoder.thread_count, encoder.gop_size = 1, length
    between = max(0, min(length - 2, _MAX_BETWEEN))
    encoder.options = {
        "crf": str(crf),
        "preset": "medium",
        "tune": "psnr",
        "forced-idr": "1",
        "x264-params": f"keyint={length}:min-keyint=1:scenecut=0:bframes={between}:b-adapt=0"
        ":b-pyramid=none:open-gop=0:weightp=0:cabac=0:no-deblock=1:no-mbtree=1:chroma-qp-offset=-6",
    }
    coded: list[Coded] = []
    for number, picture in enumerate(pictures):
        picture.pts, picture.time_base = number, _TIME_BASE
        picture.pict_type = PictureType.I if number % length == 0 else PictureType.NONE
        coded += [_coded(packet) for packet in encoder.encode(picture)]
    return coded + [_coded(packet) for packet in encoder.encode(None)]


def _coded(packet: Any) -> Coded:
    data = _without_messages(bytes(packet))
    droppable = inspect("h264", data, 0).flags & PacketFlag.DROPPABLE
    kind = PacketKind(0) if droppable else PacketKind.REFERRED
    return Coded(int(packet.pts), data, kind | PacketKind(int(packet.is_keyframe)))


def _without_messages(data: bytes) -> bytes:
    kept = []
    for unit in data.split(b"\0\0\1")[1:]:
        if unit and unit[0] & 0x1F not in _DROPPED_UNITS:
            kept.append(b"\0\0\1" + unit.rstrip(b"\0"))
    return b"".join(kept)


def _split(coded: Sequence[Coded], length: int) -> Iterator[list[Coded]]:
    """The packets of each group, frames counted from its first."""
    group: list[Coded] = []
    start = 0
    for packet in coded:
        if packet.kind & PacketKind.KEY and group:
            yield group
            start, group = start + length, []
        group.append(packet._replace(frame=packet.frame - start))
    if group:
        yield group


def _verify(pictures: Sequence[Any], packets: Sequence[Coded], limits: Limits) -> float:
    """Decode a group alone; its worst luma PSNR in dB."""
    if not packets[0].kind & PacketKind.KEY or len(packets) != len(pictures):
        raise StorageError(f"{len(packets)} coded pictures of {len(pictures)}: not one group")
    try:
        frames = list(decode_packets(bare_context("h264", b"", limits, 1, True, REORDER), packets))
    except FFmpegError as error:
        raise StorageError(f"what was coded does not decode: {error}") from error
    if [number for number, _ in frames] != list(range(len(pictures))):
        raise StorageError(f"frames {[n for n, _ in frames]} came out of {len(pictures)} coded")
    return min(_psnr(_luma(pictures[number]), _luma(frame)) for number, frame in frames)


def decode_packets(context: Any, packets: Sequence[Coded]) -> Iterator[tuple[int, Any]]:
    """Frames of coded pictures with their numbers, in display order."""
    for packet in packets:
        coded = av.Packet(packet.data)
        coded.pts = coded.dts = packet.frame
        for frame in context.decode(coded):
            yield int(frame.pts), frame
    for frame in context.decode(None):
        yield int(frame.pts), frame
    context.flush_buffers()


def _luma(frame: Any) -> npt.NDArray[np.float32]:
    plane = frame.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    luma: npt.NDArray[np.float32] = rows[: frame.height, : frame.width].astype(np.float32)
    return luma


def _psnr(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    error = float(np.mean((a - b) ** 2))
    return 99.0 if error == 0 else float(10 * np.log10(255.0**2 / error))
