"""Reads prepared footage: a few small decodes where a raw file needs hundreds.

A store keeps every prepared frame at a share of its size and full-size frames on a declared grid of
moments. What is asked at no more than the small size comes from the small stream; what is asked
larger must lie on the grid (`VideoInfo.full_size_times`), or `NotInStore` names the nearest
moments that do. Crops of small frames are exact to half a small pixel.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import av
import msgpack
import numpy as np
import numpy.typing as npt
from av.error import FFmpegError

from rushes.errors import (
    FrameUnavailable,
    MissingVideo,
    NotInStore,
    StorageError,
)
from rushes.video.catalogue import Source
from rushes.video.convert import Converter
from rushes.video.limits import Limits, check_deadline
from rushes.video.media import bare_context
from rushes.video.readers.asking import FrameAsk, check_request, check_size
from rushes.video.request import (
    Audio,
    Cost,
    Features,
    Frames,
    Reply,
    Request,
    Size,
    VideoInfo,
)
from rushes.video.sound import sound_between
from rushes.video.store_files import Shards
from rushes.video.store_format import (
    AUDIO,
    FEATURES,
    FULL,
    REORDER,
    SMALL,
    SUBTITLES,
    Description,
    Entry,
    PictureTrack,
    chunk_key,
    digest,
    entry_key,
    read_description,
    shard_of,
    unpack_entry,
)
from rushes.video.store_plan import Clip, needed_packets, plan_frames, turned

_MAX_ENTRIES = 256
_MAX_DECODERS = 16


class Cue(NamedTuple):
    """One subtitle: number of its track, seconds from the first frame, text."""

    track: int
    start: float
    end: float
    text: str


class StoreReader:
    """Reads the clips of a store; `open_store` makes it.

    Not for use by several threads at once. After fork the child maps the files anew.
    """

    def __init__(self, root: Path, description: Description, limits: Limits) -> None:
        self.root, self.settings, self.limits = root, description.settings, limits
        self._shards = Shards(root, description.shards)
        self._clips: OrderedDict[str, Clip] = OrderedDict()
        self._decoders: OrderedDict[tuple[int, int, str], Any] = OrderedDict()
        self._converters: OrderedDict[tuple[Size, int, int], Converter] = OrderedDict()
        self._closed = False
        self._pid = os.getpid()

    def ids(self) -> list[str]:
        """Every video id, sorted."""
        return sorted(self._shards.names())

    def __contains__(self, video_id: object) -> bool:
        try:
            self._clip(str(video_id))
        except MissingVideo:
            return False
        return True

    def describe(self, video_id: str) -> VideoInfo:
        """What the clip holds; `full_size_times` is its grid."""
        return self._clip(video_id).entry.info

    def entry(self, video_id: str) -> Entry:
        """All that the store says about a clip."""
        return self._clip(video_id).entry

    def cues(self, video_id: str) -> list[Cue]:
        """The subtitles of a clip, by track and time."""
        clip = self._clip(video_id)
        if SUBTITLES not in clip.entry.plain:
            return []
        return [Cue(*cue) for cue in msgpack.unpackb(self._bytes(clip, SUBTITLES))]

    def chunk(self, video_id: str, track: str) -> bytes:
        """The first chunk of a track as it lies in the store; raises StorageError without one."""
        return self._bytes(self._clip(video_id), track)

    def _clip(self, video_id: str) -> Clip:
        assert not self._closed, "the store is closed"
        if self._pid != os.getpid():  # decoders belong to the parent
            self._decoders.clear()
            self._converters.clear()
            self._pid = os.getpid()
        clip = self._clips.get(video_id)
        if clip is None:
            key = digest(video_id)
            shard = shard_of(key, self._shards.count)
            with self._shards.view(shard) as transaction:
                packed = transaction.get(entry_key(key))
                if packed is None:
                    raise MissingVideo(video_id, f"not in the store {self.root}")
                entry = unpack_entry(packed, f"{self.root}: {video_id}")
            clip = self._clips[video_id] = Clip(entry, key, shard)
            while len(self._clips) > _MAX_ENTRIES:
                self._clips.popitem(last=False)
        else:
            self._clips.move_to_end(video_id)
        return clip

    def _bytes(self, clip: Clip, track: str) -> bytes:
        with self._shards.view(clip.shard) as transaction:
            return bytes(self._held(transaction, clip, track, 0))

    def _held(self, transaction: Any, clip: Clip, track: str, chunk: int) -> memoryview:
        held = transaction.get(chunk_key(clip.key, track, chunk))
        if held is None:
            where = f"{self.root}: {clip.entry.info.video_id}"
            raise StorageError(f"{where}: chunk {chunk} of track {track!r} is missing")
        return memoryview(held)

    def read(self, request: Request) -> Reply:
        """The named arrays.

        Raises:
            NotInStore: a frame larger than the small size off the grid, or an unknown track.
            MissingVideo: no such clip.
            StorageError: the store is damaged.
        """
        began = time.monotonic()
        deadline = None if request.deadline is None else began + request.deadline
        request = check_request(request, self.limits)
        clip = self._clip(request.video_id)
        asks = self._plan(request, clip)
        decoded = bytes_read = 0
        for name in (FULL, SMALL):
            chosen = [ask for track, ask in asks if track == name]
            if chosen:
                packets, size = self._decode(clip, name, chosen, deadline)
                decoded, bytes_read = decoded + packets, bytes_read + size
        reply = _reply([ask for _, ask in asks], request, began, decoded, bytes_read)
        for output in request.outputs:
            if isinstance(output, Audio):
                reply.arrays[output.name] = self._sound(clip, output, request.policy, deadline)
            elif isinstance(output, Features):
                rows, times = self._features(clip, output)
                reply.arrays[output.name], reply.times[output.name] = rows, times
        return reply

    def _plan(self, request: Request, clip: Clip) -> list[tuple[str, FrameAsk]]:
        asks, total = [], 0
        info = clip.entry.info
        for output in request.outputs:
            if isinstance(output, Audio):
                total += max(0, round((output.end - output.start) * output.rate)) * 4
            if not isinstance(output, Frames):
                continue
            display = Converter(info.video_id, Size(info.height, info.width), info.rotation)
            target = display.target(output.crop, output.size)
            total += len(output.times) * target.height * target.width * 3
            check_size(request.video_id, total, self.limits)
            asks.append(plan_frames(request, output, clip, target))
        check_size(request.video_id, total, self.limits)
        return asks

    def _decode(
        self, clip: Clip, name: str, asks: Sequence[FrameAsk], deadline: float | None
    ) -> tuple[int, int]:
        """Fill the asks from one track; packets and bytes decoded."""
        track, places = clip.entry.pictures[name], clip.place(name)
        wanted = sorted({int(packet) for ask in asks for packet in places.packet_of[ask.frames]})
        packets = needed_packets(track, places, wanted)
        converter = self._converter(clip.entry.info, track)
        context = self._decoder(clip.entry.info, track)
        size = 0
        try:
            with self._shards.view(clip.shard) as transaction:
                for coded in self._packets(transaction, clip, name, packets):
                    check_deadline(clip.video_id, deadline)
                    size += coded.size
                    _take(context.decode(coded), asks, converter)
            _take(context.decode(None), asks, converter)
        except (FFmpegError, MemoryError) as error:
            where = f"{self.root}: {clip.video_id}"
            raise StorageError(f"{where}: track {name!r} does not decode: {error}") from error
        finally:
            context.flush_buffers()
        for ask in asks:
            if not ask.taken.all():
                left = ask.frames[~ask.taken][:4].tolist()
                raise StorageError(
                    f"{self.root}: {clip.video_id}: frames {left} of track {name!r} are missing"
                )
        return len(packets), size

    def _packets(
        self, transaction: Any, clip: Clip, name: str, packets: Iterable[int]
    ) -> Iterator[Any]:
        track, places = clip.entry.pictures[name], clip.place(name)
        opened, held = -1, memoryview(b"")
        for packet in packets:
            chunk, start = places.chunk(packet)
            if chunk != opened:
                opened, held = chunk, self._held(transaction, clip, name, chunk)
            end = start + int(track.sizes[packet])
            if end > len(held):
                raise StorageError(f"{self.root}: {clip.video_id}: track {name!r} is cut short")
            coded = av.Packet(bytes(held[start:end]))
            coded.pts = coded.dts = int(track.frames[packet])
            yield coded

    def _decoder(self, info: VideoInfo, track: PictureTrack) -> Any:
        # The stream carries its own parameters, so one decoder serves all clips of a size; but not
        # of both ranges: a stream that does not tell its range keeps that of the one before.
        key = (track.height, track.width, info.pixel_format[:4])
        context = self._decoders.get(key)
        if context is None:
            context = self._decoders[key] = bare_context("h264", b"", self.limits, 1, True, REORDER)
            while len(self._decoders) > _MAX_DECODERS:
                self._decoders.popitem(last=False)
        return context

    def _converter(self, info: VideoInfo, track: PictureTrack) -> Converter:
        size = turned(Size(track.height, track.width), info.rotation)
        key = (size, info.rotation, track.colorspace)
        converter = self._converters.get(key)
        if converter is None:
            converter = Converter(info.video_id, size, info.rotation, track.colorspace)
            self._converters[key] = converter
            while len(self._converters) > _MAX_DECODERS:
                self._converters.popitem(last=False)
        converter.video = info.video_id
        return converter

    def _sound(
        self, clip: Clip, output: Audio, policy: str, deadline: float | None
    ) -> npt.NDArray[np.float32]:
        info, track = clip.entry.info, clip.entry.plain.get(AUDIO)
        if track is None:
            raise FrameUnavailable(info.video_id, "sound was asked, the store keeps none of it")
        source = Source("bytes", info.video_id, data=self._bytes(clip, AUDIO))
        origin = info.start + track["shift"]
        return sound_between(
            source, track["container"], origin, output, policy, self.limits, track["tick"], deadline
        )

    def _features(
        self, clip: Clip, output: Features
    ) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.float64]]:
        name = FEATURES + output.track
        track = clip.entry.plain.get(name)
        if track is None:
            known = ", ".join(clip.entry.info.features) or "none"
            detail = f"feature track {output.track!r}: the clip has {known}"
            raise NotInStore(clip.entry.info.video_id, detail)
        try:
            times = np.frombuffer(track["times"], np.float64)
            rows = np.frombuffer(self._bytes(clip, name), np.dtype(track["dtype"]))
            rows = rows.reshape(len(times), *track["shape"])
        except (ValueError, KeyError, TypeError) as error:
            where = f"{self.root}: {clip.video_id}"
            raise StorageError(f"{where}: track {name!r} is damaged: {error!r}") from error
        inside = (times >= output.start) & (times < output.end)
        return rows[inside], times[inside]

    def close(self) -> None:
        """Give back maps and decoders."""
        self._shards.close()
        self._decoders.clear()
        self._converters.clear()
        self._clips.clear()
        self._closed = True


def open_store(path: str | Path | None, limits: Limits | None = None) -> StoreReader:
    """Open a store that is complete.

    Args:
        path: its folder.
        limits: bounds of replies and pictures.

    Raises:
        StorageError: there is none, its schema is another, or its building has not ended.
    """
    root = Path(path) if path is not None else Path()
    description = read_description(root)
    if not description.complete:
        raise StorageError(f"{root}: building it has not ended; run `rushes store` again")
    return StoreReader(root, description, limits or Limits())


def _take(frames: Sequence[Any], asks: Sequence[FrameAsk], converter: Converter) -> None:
    for frame in frames:
        for ask in asks:
            ask.take(int(frame.pts), frame, converter)


def _reply(
    asks: Sequence[FrameAsk], request: Request, began: float, decoded: int, bytes_read: int
) -> Reply:
    return Reply(
        request.video_id,
        {ask.output.name: ask.pixels for ask in asks},
        requested={ask.output.name: np.array(ask.output.times, np.float64) for ask in asks},
        times={ask.output.name: ask.times for ask in asks},
        status={ask.output.name: ask.status for ask in asks},
        cost=Cost(
            frames_decoded=decoded,
            frames_returned=sum(len(ask.frames) for ask in asks),
            bytes_read=bytes_read,
            seconds=time.monotonic() - began,
        ),
    )
