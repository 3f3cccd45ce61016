"""Which coded pictures of a store answer a request, and what they must be resized from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from rushes.errors import NotInStore
from rushes.video.readers.asking import FrameAsk, frames_at
from rushes.video.request import Box, Frames, FrameStatus, Request, Size
from rushes.video.store_format import FULL, SMALL, Entry, PacketKind, PictureTrack


@dataclass
class Clip:
    """An entry that is being read, and what is derived from it once."""

    entry: Entry
    key: bytes
    shard: int
    places: dict[str, Places] = field(default_factory=dict)

    @property
    def video_id(self) -> str:
        """As the catalogue knows it."""
        return self.entry.info.video_id

    def place(self, name: str) -> Places:
        """Where the packets of a picture track are."""
        if name not in self.places:
            self.places[name] = Places(self.entry.pictures[name], self.entry.info.num_frames)
        return self.places[name]


class Places:
    """Finds the packets of a picture track."""

    """Where the packets of a track are."""

    def __init__(self, track: PictureTrack, num_frames: int) -> None:
        self.packet_of = np.full(num_frames, -1, np.int64)
        """Packet that shows each frame; -1 where none does."""
        self.packet_of[track.frames] = np.arange(len(track.frames))
        self.keys = np.flatnonzero(track.kinds & PacketKind.KEY)
        ends = np.cumsum(track.sizes)
        self.starts = ends - track.sizes
        self.chunks = np.asarray(track.chunks, np.int64)

    def chunk(self, packet: int) -> tuple[int, int]:
        """Number of the chunk that holds a packet, and where the packet begins in it."""
        number = int(np.searchsorted(self.chunks, packet, side="right")) - 1
        return number, int(self.starts[packet] - self.starts[self.chunks[number]])


def turned(size: Size, rotation: int) -> Size:
    """The size of a picture after turning it for display."""
    return Size(size.width, size.height) if rotation in (90, 270) else size


def plan_frames(request: Request, output: Frames, clip: Clip, target: Size) -> tuple[str, FrameAsk]:
    """Choose the track of an output and make room for its frames."""
    entry = clip.entry
    asked = np.asarray(output.times, np.float64)
    frames, status = frames_at(request.video_id, request.policy, entry.info, asked)
    for frame in entry.concealed:
        status[(frames == frame) & (status == FrameStatus.OK)] = FrameStatus.CONCEALED
    name, crop = _choose(entry, output.crop, target)
    packets = clip.place(name).packet_of[frames]
    if (packets < 0).any():
        raise _off_grid(entry, float(asked[packets < 0][0]), target)
    rows: dict[int, list[int]] = {}
    for row, frame in enumerate(frames.tolist()):
        rows.setdefault(frame, []).append(row)
    ask = FrameAsk(
        replace(output, crop=crop, size=target),
        frames,
        entry.info.frame_times[frames],
        status,
        np.zeros((len(frames), target.height, target.width, 3), np.uint8),
        np.zeros(len(frames), np.bool_),
        rows,
    )
    return name, ask


def _choose(entry: Entry, crop: Box | None, target: Size) -> tuple[str, Box | None]:
    """The track that is large enough for an output, and the crop in its pixels."""
    info, track = entry.info, entry.pictures[SMALL]
    whole = crop or Box(0, 0, info.height, info.width)
    small = turned(Size(track.height, track.width), info.rotation)
    scale_y, scale_x = small.height / info.height, small.width / info.width
    # One pixel of tolerance: sizes of a quarter are rounded in either direction.
    if target.height > whole.height * scale_y + 1 or target.width > whole.width * scale_x + 1:
        return FULL, crop
    if crop is None:
        return SMALL, None
    top = min(round(crop.top * scale_y), small.height - 1)
    left = min(round(crop.left * scale_x), small.width - 1)
    bottom = min(max(round((crop.top + crop.height) * scale_y), top + 1), small.height)
    right = min(max(round((crop.left + crop.width) * scale_x), left + 1), small.width)
    return SMALL, Box(top, left, bottom - top, right - left)


def _off_grid(entry: Entry, asked: float, target: Size) -> NotInStore:
    info, small = entry.info, entry.pictures[SMALL]
    assert info.full_size_times is not None
    grid = info.full_size_times
    place = int(np.searchsorted(grid, asked, side="right"))
    nearest = tuple(float(moment) for moment in grid[max(0, place - 1) : place + 1])
    if place == len(grid):
        nearest = tuple(float(moment) for moment in grid[-2:])
    size = turned(Size(small.height, small.width), info.rotation)
    told = " and ".join(f"{moment:.6f}" for moment in nearest)
    return NotInStore(
        info.video_id,
        f"a frame of {target.height}x{target.width} at {asked:.6f} s; off the grid the store keeps "
        f"{size.height}x{size.width} (of {info.height}x{info.width}), full size at {told} s",
        centres=nearest,
    )


def needed_packets(track: PictureTrack, places: Places, wanted: Sequence[int]) -> list[int]:
    """Packets to decode for the wanted ones: what they refer to, and they themselves."""
    needed: list[int] = []
    done = -1
    for packet in wanted:
        key = int(places.keys[int(np.searchsorted(places.keys, packet, side="right")) - 1])
        between = range(max(key, done + 1), packet)
        needed += [p for p in between if track.kinds[p] & PacketKind.REFERRED]
        needed.append(packet)
        done = packet
    return needed
