"""Makes the record of one clip for a store, in a file aside: what workers of a build do."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from rushes.errors import StorageError, UnreadableVideo
from rushes.video.catalogue import Source
from rushes.video.decoder import Decoder, Spent, StreamTrouble, plan_runs
from rushes.video.index import VideoIndex
from rushes.video.limits import Limits
from rushes.video.probe import build_index, fence
from rushes.video.request import Size
from rushes.video.store_format import (
    AUDIO,
    CHUNK_BYTES,
    FULL,
    SMALL,
    SUBTITLES,
    Entry,
    PacketKind,
    PictureTrack,
    StoreSettings,
    chunk_key,
    digest,
    pack_entry,
)
from rushes.video.store_pictures import Coded, Group, code_groups, picture_format, to_picture
from rushes.video.store_sound import copy_cues, copy_sound
from rushes.video.store_values import ValueFile

_BATCH_BYTES = 192 << 20
"""Decoded pictures held at once, about."""
_FULL_RANGE = 2


@dataclass(frozen=True)
class Prepared:
    """What a report says of a clip that was prepared.

    Attributes:
        frames: kept.
        bytes_source: of the file, with its sound.
        bytes_pictures, bytes_store: of the pictures alone, and of all values.
        psnr, psnr_small: the worst luma PSNR in dB of a full-size and of a small frame.
        notes: what was left out and why.
    """

    frames: int
    bytes_source: int
    bytes_pictures: int
    bytes_store: int
    psnr: float
    psnr_small: float
    damaged: bool
    notes: tuple[str, ...] = ()


@dataclass
class _Stream:
    """A picture track while it is being made."""

    size: Size
    grid: int
    psnr: float
    pixel_format: str
    scaler: VideoReformatter = field(default_factory=VideoReformatter)
    waiting: list[Any] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    coded: list[Coded] = field(default_factory=list)
    worst: float = 99.0

    def add(self, number: int, frame: Any) -> None:
        self.numbers.append(number)
        self.waiting.append(to_picture(frame, self.size, self.pixel_format, self.scaler))

    def code(self, settings: StoreSettings, limits: Limits) -> None:
        """Code what waits; must be whole groups but at the end."""
        groups = code_groups(self.waiting, self.grid, settings.crf, self.psnr, limits)
        start = len(self.numbers) - len(self.waiting)
        for place, group in enumerate(groups):
            self._append(group, start + place * self.grid)
        self.waiting.clear()

    def _append(self, group: Group, start: int) -> None:
        self.worst = min(self.worst, group.psnr)
        for packet in group.packets:
            self.coded.append(packet._replace(frame=self.numbers[start + packet.frame]))

    def track(self, colorspace: int) -> PictureTrack:
        return PictureTrack(
            height=self.size.height,
            width=self.size.width,
            colorspace=colorspace,
            frames=np.array([packet.frame for packet in self.coded], np.int64),
            sizes=np.array([len(packet.data) for packet in self.coded], np.int64),
            kinds=np.array([packet.kind for packet in self.coded], np.uint8),
            chunks=tuple(_chunk_starts(self.coded)),
            psnr=self.worst,
        )


def _chunk_starts(coded: Sequence[Coded]) -> Iterator[int]:
    held = 0
    for number, packet in enumerate(coded):
        if number == 0 or (held > CHUNK_BYTES and packet.kind & PacketKind.KEY):
            held = 0
            yield number
        held += len(packet.data)


def prepare_clip(source: Source, settings: StoreSettings, limits: Limits, aside: Path) -> Prepared:
    """Decode a video once and write all values of its record into `aside`.

    Args:
        source: a video file.
        settings: of the store.
        limits: what is refused.
        aside: file to write; `write_values` puts it into a shard.

    Raises:
        VideoError: the video cannot be read.
        StorageError: its pictures cannot be coded as well as the settings ask.
    """
    if source.kind != "file":
        raise UnreadableVideo(source.video_id, f"is kept as {source.kind}, not as a video file")
    status = os.stat(source.path)
    index = build_index(source, limits)
    try:
        index, streams, kept = _pictures(source, index, settings, limits)
    except StreamTrouble:
        index = replace(fence(source, index, limits, damaged=True), whole=True)
        try:
            index, streams, kept = _pictures(source, index, settings, limits)
        except StreamTrouble as trouble:
            raise UnreadableVideo(source.video_id, f"does not decode whole: {trouble}") from trouble
    plain: dict[str, dict[str, Any]] = {}
    chunks: dict[str, list[bytes]] = {}
    notes: list[str] = []
    if settings.audio and index.info.audio:
        plain[AUDIO], chunks[AUDIO] = copy_sound(source, index, limits, notes)
    if settings.subtitles and index.info.subtitles:
        plain[SUBTITLES], chunks[SUBTITLES] = copy_cues(source, index, limits, notes)
    plain = {name: track for name, track in plain.items() if chunks[name]}
    entry = _entry(index, streams, kept, plain, source, status)
    key = digest(source.video_id)
    pictures = 0
    with ValueFile(aside) as values:
        for name, stream in streams.items():
            for number, chunk in enumerate(_chunks(stream.coded, entry.pictures[name].chunks)):
                pictures += len(chunk)
                values.add(chunk_key(key, name, number), chunk)
        for name in plain:
            for number, chunk in enumerate(chunks[name]):
                values.add(chunk_key(key, name, number), chunk)
        values.add_entry(source.video_id, pack_entry(entry))
        total = values.size
    return Prepared(
        frames=len(kept),
        bytes_source=status.st_size,
        bytes_pictures=pictures,
        bytes_store=total,
        psnr=streams[FULL].worst,
        psnr_small=streams[SMALL].worst,
        damaged=index.info.damaged,
        notes=tuple(notes),
    )


def _chunks(coded: Sequence[Coded], starts: Sequence[int]) -> Iterator[bytes]:
    for start, end in zip(starts, [*starts[1:], len(coded)], strict=True):
        yield b"".join(packet.data for packet in coded[start:end])


def kept_frames(index: VideoIndex, fps: float | None) -> npt.NDArray[np.int64]:
    """Frames that a store keeps: all, or those on screen at multiples of 1 / fps."""
    times = index.info.frame_times
    if fps is None or fps >= index.info.fps:
        return np.arange(len(times), dtype=np.int64)
    moments = np.arange(0, max(index.info.duration, 1.0 / fps), 1.0 / fps)
    shown = np.searchsorted(times - 1e-6, moments, side="right") - 1
    unique: npt.NDArray[np.int64] = np.unique(np.maximum(shown, 0)).astype(np.int64)
    return unique


def _small_size(size: Size, share: float) -> Size:
    return Size(max(1, -int(-size.height * share // 1)), max(1, -int(-size.width * share // 1)))


def _upright_size(index: VideoIndex) -> Size:
    """Display size before turning: what the sample aspect makes of the coded picture."""
    info = index.info
    turned = info.rotation in (90, 270)
    return Size(info.width, info.height) if turned else Size(info.height, info.width)


def _pictures(
    source: Source, index: VideoIndex, settings: StoreSettings, limits: Limits
) -> tuple[VideoIndex, dict[str, _Stream], npt.NDArray[np.int64]]:
    size = _upright_size(index)
    small = _small_size(size, settings.small)
    full_range = index.color_range == _FULL_RANGE or index.info.pixel_format.startswith("yuvj")
    kept = kept_frames(index, settings.fps)
    grid = _grid(index, settings, kept)
    whole = settings.all_full_size
    streams = {
        FULL: _Stream(size, grid if whole else 1, settings.psnr, picture_format(size, full_range)),
        SMALL: _Stream(small, grid, settings.small_psnr, picture_format(small, full_range)),
    }
    picture = size.height * size.width * 3 // 2
    group = grid * (small.height * small.width * 3 // 2 + (picture if whole else 0)) + picture
    batch = grid * max(1, _BATCH_BYTES // group)
    decoder = Decoder(source, index, limits, threads=1)
    try:
        decoded = decoder.frames(kept.tolist(), None, Spent())
        single = index.damage is None and len(plan_runs(index, kept.tolist())) == 1
        for number, (frame_number, frame) in enumerate(_in_order(decoded, kept, single)):
            assert frame_number == kept[number]
            streams[SMALL].add(number, frame)
            if whole or number % grid == 0:
                streams[FULL].add(number, frame)
            if (number + 1) % batch == 0:
                for stream in streams.values():
                    stream.code(settings, limits)
    finally:
        decoder.close()
    for stream in streams.values():
        stream.code(settings, limits)
    if len(streams[SMALL].coded) != len(kept):
        detail = f"{len(streams[SMALL].coded)} of {len(kept)} frames came out"
        raise StorageError(f"{source.video_id}: {detail}")
    return index, streams, kept


def _grid(index: VideoIndex, settings: StoreSettings, kept: npt.NDArray[np.int64]) -> int:
    """Kept frames between centres: the grid counts frames of the source."""
    spacing = len(index.info.frame_times) / max(1, len(kept))
    return max(1, round(settings.grid / spacing))


def _in_order(
    decoded: Iterator[tuple[int, Any]], kept: npt.NDArray[np.int64], single: bool
) -> Iterator[tuple[int, Any]]:
    """Decoded frames in display order, whatever the order in which runs gave them.

    Within one run (`single`) the decoder, which knows no time stamps, must give them in the order
    that the index claims: what is stored would show nobody a mistake any more.
    """
    early: dict[int, Any] = {}
    expected = iter(kept.tolist())
    next_one = next(expected, None)
    last = -1
    for number, frame in decoded:
        if number < last and single:
            raise StreamTrouble(f"frame {number} came out after {last}")
        last = number
        early[number] = frame
        while next_one in early:
            assert next_one is not None
            yield next_one, early.pop(next_one)
            next_one = next(expected, None)
    if next_one is not None:
        raise StreamTrouble(f"frame {next_one} did not come out")


def _entry(
    index: VideoIndex,
    streams: dict[str, _Stream],
    kept: npt.NDArray[np.int64],
    plain: dict[str, dict[str, Any]],
    source: Source,
    status: os.stat_result,
) -> Entry:
    info = replace(
        index.info,
        video_id=source.video_id,
        container="store",
        codec="h264",
        pixel_format=streams[FULL].pixel_format,
        coded_width=streams[FULL].size.width,
        coded_height=streams[FULL].size.height,
        frame_times=index.info.frame_times[kept],
    )
    return Entry(
        info=info,
        pictures={name: stream.track(index.colorspace) for name, stream in streams.items()},
        plain=plain,
        concealed=tuple(np.flatnonzero(index.concealed[kept]).tolist()),
        source=source_state(source.path, status),
    )


def source_state(path: Path, status: os.stat_result) -> dict[str, Any]:
    """What tells one state of a source from another, so that a build can resume."""
    return {"path": str(path), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
