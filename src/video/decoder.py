"""Decodes chosen frames of an indexed file and as little else as possible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

from rushes.video.catalogue import Source
from rushes.video.index import VideoIndex
from rushes.video.limits import Limits, check_deadline
from rushes.video.media import (
    MAX_REORDER,
    Bytes,
    bare_context,
    check_picture,
    open_media,
    packets_of,
)
from rushes.video.packets import PacketFlag

_REFERENCES = 6
"""Pictures that a decoder keeps besides those that it holds back: most streams refer to four."""


class StreamTrouble(Exception):
    """The stream does not decode as its packets promise; the caller takes the careful way."""


@dataclass
class Spent:
    """What decoding took so far."""

    packets: int = 0
    bytes_read: int = 0


@dataclass(frozen=True)
class _Run:
    """Packets decoded in one go, ascending, and the frames that come out of them."""

    packets: Sequence[int]
    frames: frozenset[int]


class Decoder:
    """The open file and decoder of one video.

    Args:
        source: the file or bytes.
        index: its packets.
        limits: bounds of the pictures.
        threads: decoding threads.
    """

    def __init__(self, source: Source, index: VideoIndex, limits: Limits, threads: int) -> None:
        self.source, self.index, self.limits, self.threads = source, index, limits, threads
        self._content: Bytes | None = None
        self._context: Any = None

    def frames(
        self, wanted: Sequence[int], deadline: float | None, spent: Spent
    ) -> Iterator[tuple[int, Any]]:
        """The wanted frames, each as soon as it is decoded.

        Args:
            wanted: frames in display order, ascending, no repeats.
            deadline: `time.monotonic()` after which to give up; None never.
            spent: counts what is decoded.

        Raises:
            StreamTrouble: an error, or a frame that did not come.
            DecodeTimeout: the deadline passed.
        """
        if not wanted:
            return
        if self.index.whole or not self.index.direct:
            yield from self._by_demuxer(wanted, deadline, spent)
            return
        for run in plan_runs(self.index, wanted):
            yield from self._direct_run(run, deadline, spent)

    def _direct_run(
        self, run: _Run, deadline: float | None, spent: Spent
    ) -> Iterator[tuple[int, Any]]:
        content, context = self._opened()
        index = self.index
        missing = set(run.frames)
        try:
            for packet in run.packets:
                check_deadline(self.source.video_id, deadline)
                size = int(index.sizes[packet])
                data = content.read(int(index.positions[packet]), size)
                if len(data) != size:
                    raise StreamTrouble(f"packet {packet} is cut short")
                spent.packets += 1
                spent.bytes_read += size
                coded = av.Packet(data)
                coded.pts = coded.dts = packet
                for frame in context.decode(coded):
                    yield from self._chosen(frame, missing)
            for frame in context.decode(None):
                yield from self._chosen(frame, missing)
        except (FFmpegError, MemoryError) as error:
            raise StreamTrouble(str(error)) from error
        finally:
            context.flush_buffers()
        if missing:
            raise StreamTrouble(f"frames {sorted(missing)[:4]} did not come out")

    def _chosen(self, frame: Any, missing: set[int]) -> Iterator[tuple[int, Any]]:
        check_picture(self.source.video_id, frame, self.limits)
        number = int(self.index.packet_frames[frame.pts]) if frame.pts is not None else -1
        if number in missing:
            missing.remove(number)
            yield number, frame

    def _opened(self) -> tuple[Bytes, Any]:
        if self._content is None:
            self._content = Bytes(self.source)
        if self._context is None:
            index = self.index
            codec = "libdav1d" if index.info.codec == "av1" else index.info.codec
            # Pictures that lead a key frame on screen do not decode alone: their errors cannot be
            # told from damage, so the index of such a stream was made by decoding everything.
            strict = not index.leading
            self._context = bare_context(
                codec, index.extradata, self.limits, self.threads, strict, index.reorder_depth
            )
            self._tell_encoder(self._content, self._context)
        return self._content, self._context

    def _tell_encoder(self, content: Bytes, context: Any) -> None:
        """Let the decoder see the first packet where it must know which encoder wrote the stream.

        x264 before build 151 wrote 4:4:4 pictures in a way of its own, and says its build in the
        first packet only: a decoder that begins at another key frame shows garbage.
        """
        index = self.index
        if index.info.codec != "h264" or "444" not in index.info.pixel_format:
            return
        first = av.Packet(content.read(int(index.positions[0]), int(index.sizes[0])))
        try:
            context.decode(first)
        except FFmpegError as error:
            raise StreamTrouble(f"the first packet: {error}") from error
        finally:
            context.flush_buffers()

    def _by_demuxer(
        self, wanted: Sequence[int], deadline: float | None, spent: Spent
    ) -> Iterator[tuple[int, Any]]:
        """Through FFmpeg's demuxer: for containers that break packets up, and damaged files."""
        index, missing = self.index, set(wanted)
        runs = plan_runs(index, wanted)
        with open_media(self.source, index.container, self.limits) as media:
            stream = media.streams[index.stream]
            context = stream.codec_context
            context.thread_count = self.threads
            context.thread_type = "AUTO" if self.threads > 1 else "NONE"
            if not index.whole and not index.leading:
                context.options = {**context.options, "err_detect": "explode"}
            packets = _numbered(media, stream)
            for run in runs:
                for coded in self._run_packets(run, packets, deadline, spent):
                    for frame in self._tolerant(context, coded):
                        yield from self._chosen(frame, missing)
                    if coded is not None and index.whole and not missing:
                        return
                context.flush_buffers()
        if missing:
            raise StreamTrouble(f"frames {sorted(missing)[:4]} did not come out")

    def _run_packets(
        self, run: _Run, packets: Iterator[tuple[int, Any]], deadline: float | None, spent: Spent
    ) -> Iterator[Any]:
        """The packets of a run out of all, then None. A whole stream is one run to its end."""
        needed, last = frozenset(run.packets), run.packets[-1]
        for number, packet in packets:
            check_deadline(self.source.video_id, deadline)
            if number in needed or self.index.whole:
                spent.packets += 1
                spent.bytes_read += packet.size
                packet.pts = packet.dts = number
                yield packet
            if number >= last and not self.index.whole:
                break
        yield None

    def _tolerant(self, context: Any, packet: Any) -> Sequence[Any]:
        try:
            frames: Sequence[Any] = context.decode(packet)
        except (FFmpegError, MemoryError) as error:
            if not self.index.whole:
                raise StreamTrouble(str(error)) from error
            return ()
        return frames

    def close(self) -> None:
        """Give back the file and the decoder's memory."""
        if self._content is not None:
            self._content.close()
        self._content = self._context = None


def decoder_bytes(index: VideoIndex) -> int:
    """Memory, about, of an open decoder: the pictures that it refers to and holds back."""
    info = index.info
    try:
        bits = av.VideoFormat(info.pixel_format, 16, 16).padded_bits_per_pixel
    except ValueError:
        bits = 24
    pictures = _REFERENCES + min(index.reorder_depth, MAX_REORDER)
    return pictures * info.coded_width * info.coded_height * bits // 8


def _numbered(media: Any, stream: Any) -> Iterator[tuple[int, Any]]:
    number = 0
    try:
        for packet in packets_of(media, stream):
            if packet.size:
                yield number, packet
                number += 1
    except FFmpegError:
        return  # a file that ends in rubbish; its index was made under the same rule


def plan_runs(index: VideoIndex, wanted: Sequence[int]) -> list[_Run]:
    """Which packets to decode for the wanted frames.

    Each run begins at a key frame and ends with the last packet that a wanted frame needs; packets
    to which no other picture refers are left out unless they are wanted.
    """
    asked = sorted((int(index.frame_packets[frame]), int(frame)) for frame in wanted)
    spans: list[tuple[int, int, list[int]]] = []
    for packet, frame in asked:
        start = index.start_of(frame)
        if spans and start <= spans[-1][1] + 1:
            first, _, frames = spans[-1]
            spans[-1] = (min(first, start), packet, [*frames, frame])
        else:
            spans.append((start, packet, [frame]))
    runs = []
    for first, last, frames in spans:
        keep = index.flags[first : last + 1] & PacketFlag.DROPPABLE == 0
        if index.info.codec != "h264":
            # Pictures shown before the key frame that they follow lack what they refer to. H.264
            # counts them, so that there they must pass through the decoder all the same.
            keep &= index.order[first : last + 1] >= index.order[first]
        if index.whole:
            keep[:] = True
        keep[index.frame_packets[frames] - first] = True
        packets = (np.flatnonzero(keep) + first).tolist()
        runs.append(_Run(packets, frozenset(frames)))
    return runs
