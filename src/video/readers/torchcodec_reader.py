"""TorchCodec behind our index. PyTorch is imported here only, and only when this backend is asked.

It needs FFmpeg's shared libraries on the system; on a machine with a CUDA device it decodes there.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module
from typing import Any

import av
import numpy as np

from rushes.errors import BackendMissing, UnreadableVideo
from rushes.video.catalogue import Source
from rushes.video.index import VideoIndex
from rushes.video.limits import Limits
from rushes.video.media import open_media, packets_of
from rushes.video.readers.verified import Picture, VerifiedReader, path_of, times_differ

_STREAMS = ("mpegts", "mpeg", "mpegvideo", "h264", "hevc", "m4v")
"""Containers without an index, in which its seeks end elsewhere: it reads a copy in memory."""
_COPY_BYTES = 2**30
_CHUNK = 16
_DELAY = 16
"""Pictures that a decoder may hold back; decoding times run ahead by as many."""


class TorchCodecReader(VerifiedReader):
    """Frames by torchcodec in its exact mode.

    Args:
        device: "cpu", "cuda" or "cuda:N"; None takes the first CUDA device where there is one.
    """

    backend = "torchcodec"

    def __init__(self, *args: Any, device: str | None = None, **options: Any) -> None:
        try:
            self._decoders = import_module("torchcodec.decoders")
        except (ImportError, OSError, RuntimeError) as error:
            install = "pip install torchcodec, and FFmpeg's libraries (apt-get install ffmpeg)"
            raise BackendMissing("torchcodec", install) from error
        if device is None:
            cuda = import_module("torch").cuda.is_available()
            device = "cuda" if cuda else "cpu"
        self.device = device
        super().__init__(*args, **options)

    def _open_video(self, source: Source, index: VideoIndex) -> _Opened:
        target: Any = source.data if source.kind == "bytes" else path_of(source, self.backend)
        if index.container in _STREAMS or index.invented:
            size = int(index.sizes.sum())
            if size > _COPY_BYTES:
                raise self.refuse(source, f"{size} bytes in {index.container} cannot be copied")
            target = with_timestamps(source, index, self.limits)
        try:
            video = self._decoders.VideoDecoder(
                target,
                dimension_order="NHWC",
                num_ffmpeg_threads=self.threads,
                device=self.device,
                seek_mode="exact",
            )
            count, first = len(video), float(video.get_frame_at(0).pts_seconds)
        except (RuntimeError, ValueError) as error:
            raise self.refuse(source, _first_line(error)) from error
        if count != index.info.num_frames:
            detail = f"it counts {count} frames, the file holds {index.info.num_frames}"
            raise self.refuse(source, detail)
        # Where key frames are uncertain its seeks end elsewhere; there it reads in order.
        seeks = not index.whole and index.container != "avi"
        return _Opened(source, video, first, seeks)

    def _pictures(
        self, video: _Opened, index: VideoIndex, frames: Sequence[int]
    ) -> Iterator[tuple[int, Picture]]:
        done = -1
        if video.seeks:
            try:
                for number, picture in self._batch(video, index, list(frames)):
                    done = number
                    yield number, picture
                return
            except UnreadableVideo:
                video.seeks = False
        left = {number for number in frames if number > done}
        for begin in range(0, frames[-1] + 1, _CHUNK):
            numbers = list(range(begin, min(begin + _CHUNK, frames[-1] + 1)))
            for number, picture in self._batch(video, index, numbers):
                if number in left:
                    yield number, picture

    def _batch(
        self, video: _Opened, index: VideoIndex, numbers: list[int]
    ) -> Iterator[tuple[int, Picture]]:
        """Frames by number, after their times were compared with the index."""
        try:
            batch = video.decoder.get_frames_at(numbers)
        except (RuntimeError, ValueError, IndexError) as error:
            raise self.refuse(video.source, _first_line(error)) from error
        stamps = np.asarray(batch.pts_seconds.cpu(), np.float64) - video.first
        difference = times_differ(
            np.append(0.0, index.info.frame_times[numbers]), np.append(0.0, stamps)
        )
        if difference:
            raise self.refuse(video.source, difference)
        yield from zip(numbers, batch.data.cpu().numpy(), strict=True)


@dataclass
class _Opened:
    """A decoder, the time of its first frame, and whether its seeks have proved right."""

    source: Source
    decoder: Any
    first: float
    seeks: bool


def with_timestamps(source: Source, index: VideoIndex, limits: Limits) -> bytes:
    """A raw stream in Matroska, in memory, each packet stamped as the index says."""
    scale = 1000
    held = io.BytesIO()
    with (
        open_media(source, index.container, limits) as media,
        av.open(held, "w", format="matroska") as copy,
    ):
        stream = media.streams[index.stream]
        out = copy.add_stream_from_template(stream)
        number = 0
        for packet in packets_of(media, stream):
            if packet.size == 0:
                continue
            frame = int(index.packet_frames[number])
            if frame >= 0:
                packet.stream, packet.time_base = out, Fraction(1, scale)
                packet.pts = round(index.info.frame_times[frame] * scale)
                packet.dts = round((number - _DELAY) * scale / max(index.info.fps, 1.0))
                copy.mux(packet)
            number += 1
    return held.getvalue()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)
