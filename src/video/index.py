"""The packet index of one file: all that a reader needs to find any moment again."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from rushes.errors import VideoReason
from rushes.video.packets import PacketFlag
from rushes.video.request import AudioTrack, SubtitleTrack, VideoInfo

INDEX_VERSION = 5
"""Raised whenever a cached index of an older version would be read wrongly."""

NO_TIME = np.iinfo(np.int64).min

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class VideoIndex:
    """What a file holds, packet by packet.

    Packets are in decoding order `P`, frames in display order `N`.

    Attributes:
        info: the public part.
        container: demuxer that opens the file.
        stream: index of the video stream.
        extradata: the codec's configuration.
        direct: packets lie unbroken in the file at `positions`, so no demuxer is needed.
        time_base: seconds per unit of `pts` and `dts`.
        positions, sizes, pts, dts: int64 `P`; NO_TIME where the file gives none.
        flags: `PacketFlag`, uint8 `P`.
        frame_packets: packet that carries each frame, int64 `N`.
        invented: the demuxer's presentation times are not those of the frames; `pts` holds what the
            decoder's order says, or nothing. Whoever reads the file by its times is wrong.
        concealed: frames that the decoder had to fill in, bool `N`.
        damage: why the file counts as damaged; empty when it is sound.
        whole: decode from the first packet and drop nothing: the short cuts are not safe here.
        colorspace, color_range: FFmpeg's codes, from the first frame.
        interlaced: the first frame is two fields.
    """

    info: VideoInfo
    container: str
    stream: int
    extradata: bytes
    direct: bool
    time_base: float
    positions: IntArray
    sizes: IntArray
    pts: IntArray
    dts: IntArray
    flags: npt.NDArray[np.uint8]
    frame_packets: IntArray
    concealed: npt.NDArray[np.bool_]
    damage: VideoReason | None = None
    whole: bool = False
    colorspace: int = 2
    color_range: int = 0
    invented: bool = False
    interlaced: bool = False
    version: int = field(default=INDEX_VERSION)

    @property
    def nbytes(self) -> int:
        """Memory, about, with what is worked out from it on first use."""
        return 64 * len(self.flags) + 32 * len(self.frame_packets) + len(self.extradata)

    @cached_property
    def packet_frames(self) -> IntArray:
        """Frame that each packet carries, int64 `P`; -1 where it carries none."""
        frames = np.full(len(self.flags), -1, np.int64)
        frames[self.frame_packets] = np.arange(len(self.frame_packets))
        return frames

    @cached_property
    def key_packets(self) -> IntArray:
        """Packets at which decoding can start, in decoding order."""
        keys: IntArray = np.flatnonzero(self.flags & PacketFlag.KEY).astype(np.int64)
        shown: IntArray = keys[self.order[keys] != NO_TIME]
        return shown

    @cached_property
    def order(self) -> IntArray:
        """What places packets on screen: their times, or their frames where the file has none."""
        if len(self.pts) and (self.pts == NO_TIME).any():
            shown: IntArray = self.packet_frames.copy()
            shown[shown < 0] = NO_TIME
            return shown
        return self.pts

    @cached_property
    def reorder_depth(self) -> int:
        """How many decoded pictures a decoder must hold back to put them in order."""
        stamps = self.order[self.order != NO_TIME]
        # A picture waits for all that come after it in the file and are shown before it; those
        # that pass it are at most as many places late as the display order moves them.
        places = np.empty(len(stamps), np.int64)
        places[np.argsort(stamps, kind="stable")] = np.arange(len(stamps))
        late = np.arange(len(stamps)) - places
        return int(max(0, late.max())) if len(stamps) else 0

    @cached_property
    def leading(self) -> bool:
        """H.264 pictures follow a key frame and are shown before it (open GOP)."""
        if self.info.codec != "h264" or not len(self.key_packets):
            return False
        keys = self.key_packets[1:]
        after = np.searchsorted(keys, np.arange(len(self.flags)), side="right")
        shown_with = np.concatenate([self.order[self.key_packets[:1]], self.order[keys]])[after]
        return bool((self.order < shown_with)[self.key_packets[0] :].any())

    def frame_at(self, times: npt.NDArray[np.float64], slack: float) -> IntArray:
        """The frame on screen at each time: the last one with pts - slack <= time."""
        found = np.searchsorted(self.info.frame_times - slack, times, side="right") - 1
        return np.maximum(found, 0).astype(np.int64)

    def start_of(self, frame: int) -> int:
        """The packet from which decoding must run to show `frame`."""
        if self.whole or not len(self.key_packets):
            return 0
        packet = int(self.frame_packets[frame])
        place = int(np.searchsorted(self.key_packets, packet, side="right")) - 1
        # Pictures that lead a key frame on screen need the group before it (open GOP).
        shown = self.order[packet]
        while place >= 0 and self.order[self.key_packets[place]] > shown:
            place -= 1
        return int(self.key_packets[place]) if place >= 0 else 0


_ARRAYS = {
    "positions": np.int64,
    "sizes": np.int64,
    "pts": np.int64,
    "dts": np.int64,
    "flags": np.uint8,
    "frame_packets": np.int64,
    "concealed": np.bool_,
}


def pack_index(index: VideoIndex) -> bytes:
    """The index as msgpack; never pickle, so that a foreign cache can do no harm."""
    values: dict[str, Any] = {
        name: np.ascontiguousarray(getattr(index, name), dtype).tobytes()
        for name, dtype in _ARRAYS.items()
    }
    for name in ("container", "stream", "extradata", "direct", "time_base", "damage", "whole",
                 "colorspace", "color_range", "invented", "interlaced", "version"):  # fmt: skip
        values[name] = getattr(index, name)
    info = asdict(replace(index.info, frame_times=_NONE, keyframes=_NO_KEYS))
    info["frame_times"] = index.info.frame_times.astype(np.float64).tobytes()
    info["keyframes"] = index.info.keyframes.astype(np.int64).tobytes()
    values["info"] = info
    packed: bytes = msgpack.packb(values, unicode_errors=_ANY_NAME)
    return packed


_ANY_NAME = "surrogatepass"
"""Ids come from file names, which need not be text."""
_NONE = np.zeros(0)
_NO_KEYS = np.zeros(0, np.int64)


def unpack_index(data: bytes) -> VideoIndex | None:
    """The index, or None when it was written by another version or is torn."""
    try:
        values = msgpack.unpackb(data, unicode_errors=_ANY_NAME)
        if values.get("version") != INDEX_VERSION:
            return None
        info = dict(values.pop("info"))
        info["frame_times"] = np.frombuffer(info["frame_times"], np.float64)
        info["keyframes"] = np.frombuffer(info["keyframes"], np.int64)
        info["audio"] = tuple(AudioTrack(**track) for track in info["audio"])
        info["subtitles"] = tuple(SubtitleTrack(**track) for track in info["subtitles"])
        info["features"] = tuple(info["features"])
        for name, dtype in _ARRAYS.items():
            values[name] = np.frombuffer(values[name], dtype)
        return VideoIndex(info=VideoInfo(**info), **values)
    except (ValueError, KeyError, TypeError, AttributeError, msgpack.UnpackException):
        return None
