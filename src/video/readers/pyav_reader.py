"""The default backend: PyAV's decoders behind our own packet index."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rushes.errors import NotInStore, UnreadableVideo
from rushes.video.catalogue import Catalogue, Source
from rushes.video.convert import Converter
from rushes.video.decoder import Decoder, Spent, StreamTrouble, decoder_bytes
from rushes.video.index import VideoIndex
from rushes.video.limits import Limits
from rushes.video.probe import build_index, check_limits, fence, stat_key
from rushes.video.probe_cache import ProbeCache
from rushes.video.readers.asking import FrameAsk, check_request, check_size, plan_frames
from rushes.video.request import (
    Audio,
    Cost,
    Features,
    Frames,
    FrameStatus,
    Reply,
    Request,
    Size,
    VideoInfo,
)
from rushes.video.sound import read_sound

_MEMORY_INDEXES = 4096


class _Open:
    """One video held open: its index, its decoder and its scalers."""

    def __init__(self, source: Source, index: VideoIndex, limits: Limits, threads: int) -> None:
        self.source, self.index = source, index
        self.decoder = Decoder(source, index, limits, threads)
        self.nbytes = decoder_bytes(index)
        info = index.info
        self.converter = Converter(
            source.video_id, Size(info.height, info.width), info.rotation, index.colorspace
        )


class PyAVReader:
    """Reads any moment of the videos of a catalogue.

    Not for use by several threads at once, nor across fork: open one in each.

    Args:
        catalogue: where the videos are.
        limits: what is refused, and how much memory open videos may take.
        index_cache: folder that keeps packet indexes between runs; None keeps them in memory only.
        max_open: videos held open at once.
        threads: decoding threads.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        limits: Limits | None = None,
        index_cache: Path | None = None,
        max_open: int = 8,
        threads: int = 1,
    ) -> None:
        self.catalogue, self.limits, self.threads = catalogue, limits or Limits(), threads
        self.max_open = max(1, max_open)
        self.cache = ProbeCache(index_cache) if index_cache is not None else None
        self._videos: OrderedDict[str, _Open] = OrderedDict()
        self._indexes: OrderedDict[tuple[bytes, str], VideoIndex] = OrderedDict()
        self._pid = os.getpid()
        self._closed = False

    def describe(self, video_id: str) -> VideoInfo:
        """What the video holds; raises `VideoError`."""
        return self.index(video_id).info

    def index(self, video_id: str) -> VideoIndex:
        """The packet index of a video, from memory, the cache or the file."""
        return self._index_of(self._locate(video_id))

    def _locate(self, video_id: str) -> Source:
        assert not self._closed, "the reader is closed"
        assert self._pid == os.getpid(), "a reader must not be carried across fork"
        source = self.catalogue.locate(video_id)
        if source.kind not in ("file", "bytes"):
            raise UnreadableVideo(video_id, f"is kept as {source.kind}, not as a video file")
        return source

    def _index_of(self, source: Source) -> VideoIndex:
        key = _key(source)
        index = self._indexes.get((key, source.video_id))
        if index is None:
            index = self.cache.get(key) if self.cache is not None and key[:1] != b"m" else None
            if index is None:
                index = build_index(source, self.limits)
                self._keep(source, index)
            else:  # another reader, with other limits, may have kept it
                check_limits(source.video_id, index.info, self.limits)
            if index.info.video_id != source.video_id:  # cached when the file had another id
                index = replace(index, info=replace(index.info, video_id=source.video_id))
            self._remember((key, source.video_id), index)
        else:
            self._indexes.move_to_end((key, source.video_id))
        return index

    def _remember(self, key: tuple[bytes, str], index: VideoIndex) -> None:
        self._indexes[key] = index
        self._indexes.move_to_end(key)
        total = sum(kept.nbytes for kept in self._indexes.values())
        while len(self._indexes) > 1 and (
            len(self._indexes) > _MEMORY_INDEXES or total > self.limits.max_open_bytes // 2
        ):
            total -= self._indexes.popitem(last=False)[1].nbytes

    def _keep(self, source: Source, index: VideoIndex) -> None:
        if self.cache is not None and source.kind == "file":
            self.cache.put(_key(source), index)

    def read(self, request: Request) -> Reply:
        """The named arrays; raises `VideoError` when the video cannot give them."""
        began = time.monotonic()
        deadline = None if request.deadline is None else began + request.deadline
        request = check_request(request, self.limits)
        source = self._locate(request.video_id)
        video = self._opened(source)
        asks = self._plan(request, video)
        spent = Spent()
        try:
            self._decode(video, asks, deadline, spent)
        except StreamTrouble:
            if not video.index.whole:
                video = self._fenced(source, video)
            asks = self._plan(request, video)
            self._decode_what_can_be(video, asks, deadline, spent)
        sounds = {
            output.name: read_sound(
                source, video.index, output, request.policy, self.limits, deadline
            )
            for output in request.outputs
            if isinstance(output, Audio)
        }
        return _reply(request, asks, sounds, spent, began)

    def _plan(self, request: Request, video: _Open) -> list[FrameAsk]:
        asks = []
        index = video.index
        total = 0
        for output in request.outputs:
            if isinstance(output, Frames):
                target = video.converter.target(output.crop, output.size)
                total += len(output.times) * target.height * target.width * 3
                check_size(request.video_id, total, self.limits)
                asks.append(plan_frames(request, output, index, target))
            elif isinstance(output, Audio):
                total += max(0, round((output.end - output.start) * output.rate)) * 4
                check_size(request.video_id, total, self.limits)
            elif isinstance(output, Features):
                detail = f"feature track {output.track!r}: a video file has none, only stores do"
                raise NotInStore(request.video_id, detail)
        return asks

    def _decode(
        self, video: _Open, asks: Sequence[FrameAsk], deadline: float | None, spent: Spent
    ) -> None:
        wanted = sorted({int(frame) for ask in asks for frame in ask.frames})
        for number, frame in video.decoder.frames(wanted, deadline, spent):
            for ask in asks:
                ask.take(number, frame, video.converter)

    def _decode_what_can_be(
        self, video: _Open, asks: Sequence[FrameAsk], deadline: float | None, spent: Spent
    ) -> None:
        """The careful way on a damaged stream; what never comes stays black and MISSING."""
        try:
            self._decode(video, asks, deadline, spent)
        except StreamTrouble as trouble:
            if not any(ask.taken.any() for ask in asks):
                detail = f"none of the asked frames decode: {trouble}"
                raise UnreadableVideo(video.source.video_id, detail) from trouble
            for ask in asks:
                ask.status[~ask.taken] = FrameStatus.MISSING

    def _fenced(self, source: Source, video: _Open) -> _Open:
        """Change a stream that broke its promise to full decoding, and remember that."""
        index = replace(fence(source, video.index, self.limits, damaged=True), whole=True)
        self._keep(source, index)
        self._remember((_key(source), source.video_id), index)
        return self._opened(source)

    def _opened(self, source: Source) -> _Open:
        index = self._index_of(source)
        video = self._videos.get(source.video_id)
        if video is not None and video.index is not index:
            video.decoder.close()
            video = None
        if video is None:
            video = _Open(source, index, self.limits, self.threads)
        self._videos[source.video_id] = video
        self._videos.move_to_end(source.video_id)
        while len(self._videos) > 1 and self._too_many_open():
            self._videos.popitem(last=False)[1].decoder.close()
        return video

    def _too_many_open(self) -> bool:
        total = sum(video.nbytes for video in self._videos.values())
        return len(self._videos) > self.max_open or total > self.limits.max_open_bytes // 2

    def release(self) -> None:
        """Give back all open files, decoders and indexes in memory; the next read opens anew."""
        for video in self._videos.values():
            video.decoder.close()
        self._videos.clear()
        self._indexes.clear()

    def close(self) -> None:
        """Give back files and memory."""
        self.release()
        if self.cache is not None:
            self.cache.close()
        self._closed = True


def _reply(
    request: Request,
    asks: Sequence[FrameAsk],
    sounds: dict[str, npt.NDArray[np.float32]],
    spent: Spent,
    began: float,
) -> Reply:
    return Reply(
        request.video_id,
        {**{ask.output.name: ask.pixels for ask in asks}, **sounds},
        requested={ask.output.name: np.array(ask.output.times, np.float64) for ask in asks},
        times={ask.output.name: ask.times for ask in asks},
        status={ask.output.name: ask.status for ask in asks},
        cost=Cost(
            frames_decoded=spent.packets,
            frames_returned=sum(len(ask.frames) for ask in asks),
            bytes_read=spent.bytes_read,
            seconds=time.monotonic() - began,
        ),
    )


def _key(source: Source) -> bytes:
    if source.data is not None:
        name = source.video_id.encode("utf-8", "surrogatepass")
        return b"m\0" + name + b"%d" % id(source.data)
    try:
        return b"f\0" + stat_key(source)
    except OSError as error:
        detail = f"cannot be read: {error.strerror}"
        raise UnreadableVideo(source.video_id, detail, "missing") from error
