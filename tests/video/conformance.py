"""Judges a reader against the plainest possible decoding: every packet from the first, in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import numpy.typing as npt
from av.error import FFmpegError

from rushes.errors import VideoError
from rushes.video.catalogue import Catalogue
from rushes.video.readers import open_reader
from rushes.video.request import Frames, Request, VideoInfo

Verdict = Literal["right", "refused", "WRONG"]

MEAN_DIFFERENCE = 2.0
"""Levels of 255 by which an 8-bit frame may differ from the reference."""


@dataclass(frozen=True)
class Reference:
    """What sequential decoding gives: the count, and chosen frames as RGB `H W 3`."""

    count: int
    frames: dict[int, npt.NDArray[np.uint8]]
    deep: bool


def decode_all(path: Path, keep: Sequence[int]) -> Reference:
    """Decode a file from end to end with FFmpeg alone; broken packets give no frame."""
    frames: list[Any] = []
    with av.open(str(path)) as media:
        stream: Any = media.streams.best("video")
        stream.codec_context.thread_type = "NONE"
        try:
            for packet in media.demux(stream):
                try:
                    frames += packet.decode()
                except FFmpegError:
                    continue
        except FFmpegError:
            pass
        # Without presentation times the decoder alone knows the order.
        stamped = media.format.name not in ("avi", "asf") and "stamped" not in path.name
    if stamped and all(frame.pts is not None for frame in frames):
        frames.sort(key=lambda frame: frame.pts)
    near = sorted({i + step for i in keep for step in (-1, 0, 1)} & set(range(len(frames))))
    deep = bool(frames) and frames[0].format.components[0].bits > 8
    rgb = {i: frames[i].reformat(format="rgb24", threads=1).to_ndarray() for i in near}
    return Reference(len(frames), rgb, deep)


def picks(count: int, seed: int = 0) -> list[int]:
    """Frame numbers to ask for: the ends and four between."""
    generator = np.random.default_rng(seed)
    return sorted({0, count - 1, *generator.integers(0, count, 4).tolist()})


def judge(path: Path, backend: str, reference: Reference) -> tuple[Verdict, str]:
    """Ask a backend for moments of a file and compare with the reference.

    Args:
        path: the file.
        backend: name of the reader.
        reference: made for `picks(count)`.

    Returns:
        The verdict and, for a refusal or a wrong frame, what happened.
    """
    reader = open_reader(Catalogue.from_items({"v": path}), backend)
    try:
        reader.read(Request("v", (Frames((0.0,)),)))
        info = reader.describe("v")
        if reference.count != info.num_frames:
            return "WRONG", f"{info.num_frames} frames, {reference.count} decode"
        picked = picks(info.num_frames)
        for part in (picked[::2], picked[1::2]):
            times = tuple(float(info.frame_times[i]) for i in part)
            reply = reader.read(Request("v", (Frames(times),)))
            for frame, number in zip(reply.arrays["frames"], part, strict=True):
                complaint = _compare(frame, number, reference, info)
                if complaint:
                    return "WRONG", complaint
    except VideoError as error:
        return "refused", f"{error.reason}: {error.detail}"
    finally:
        reader.close()
    return "right", ""


def _compare(frame: Any, number: int, reference: Reference, info: VideoInfo) -> str:
    stored = np.ascontiguousarray(np.rot90(frame, info.rotation // 90))
    if stored.shape[1] != info.coded_width:  # sample aspect
        image = av.VideoFrame.from_ndarray(stored, format="rgb24")
        stored = image.reformat(width=info.coded_width, height=info.coded_height).to_ndarray()
    stored = stored.astype(np.int16)
    off = {
        i: float(np.abs(reference.frames[i].astype(np.int16) - stored).mean())
        for i in (number - 1, number, number + 1)
        if i in reference.frames
    }
    if off[number] > min(off.values()) + 1e-9:
        return f"frame {number} was asked, it looks like {min(off, key=lambda i: off[i])}"
    if not reference.deep and off[number] > MEAN_DIFFERENCE:
        return f"frame {number} is off by {off[number]:.1f} levels"
    return ""
