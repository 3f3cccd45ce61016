"""Decodes a whole stream once, to learn what its packets really give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from av.error import FFmpegError

from rushes.errors import UnreadableVideo
from rushes.video.catalogue import Source
from rushes.video.index import VideoIndex
from rushes.video.limits import Limits
from rushes.video.media import MAX_REORDER, check_picture, open_media, packets_of
from rushes.video.packets import PacketFlag
from rushes.video.timeline import ascending, crossings

STRAY = 2
"""Frames whose time stamps may lie in a sound file."""


@dataclass(frozen=True)
class Truth:
    """What came out of the decoder.

    Attributes:
        frame_packets: packet of each frame in the order of output, int64 `N`.
        concealed: frames that may hold filled-in parts, bool `N`.
        error: the first complaint of the decoder; empty when there was none.
    """

    frame_packets: npt.NDArray[np.int64]
    concealed: npt.NDArray[np.bool_]
    error: str


def decode_everything(
    source: Source, index: VideoIndex, limits: Limits, careful: bool = False
) -> Truth:
    """Decode every packet from the first.

    Args:
        source: the file.
        index: the packets; only their flags are used.
        limits: bounds of the pictures.
        careful: look also for errors that the decoder would fill in silently.
    """
    packets, corrupt, bad, error = _decode(source, index, limits, explode=False)
    if careful or bad or index.damage is not None:
        _, _, also, first = _decode(source, index, limits, explode=True)
        bad, error = sorted({*bad, *also}), error or first
    frame_packets = np.array(packets, np.int64)
    concealed = np.array(corrupt, np.bool_)
    discarded = index.flags[frame_packets] & PacketFlag.DISCARD if len(packets) else concealed
    kept = discarded == 0
    concealed = concealed | _after_errors(index, bad)[frame_packets] if len(packets) else concealed
    return Truth(frame_packets[kept], concealed[kept], error)


def check_clock(video: str, stamps: npt.NDArray[np.int64], damaged: bool) -> None:
    """Refuse a file whose clock begins anew on its way: its parts would be shown at once.

    Args:
        video: id, for the error.
        stamps: presentation times in the order in which the decoder gives frames `N`.
        damaged: what is left of such a stream may come out a little late.

    Raises:
        UnreadableVideo: `undecodable`.
    """
    crossed, limit = crossings(stamps), MAX_REORDER if damaged else STRAY
    place = int(crossed.argmax())
    if crossed[place] > limit:
        detail = (
            f"its clock goes back at frame {place}: {crossed[place]} frames before it are stamped "
            f"later than frames that follow, the limit is {limit}; what was joined byte by byte is "
            "joined rightly by ffmpeg -f concat"
        )
        raise UnreadableVideo(video, detail)


def _after_errors(index: VideoIndex, bad: list[int]) -> npt.NDArray[np.bool_]:
    """Packets from each broken one to the next key frame: errors spread by reference."""
    spoilt = np.zeros(len(index.flags), np.bool_)
    keys = np.flatnonzero(index.flags & PacketFlag.KEY)
    for packet in bad:
        following = keys[keys > packet]
        spoilt[packet : following[0] if len(following) else None] = True
    return spoilt


def _decode(
    source: Source, index: VideoIndex, limits: Limits, explode: bool
) -> tuple[list[int], list[bool], list[int], str]:
    """Packets of the frames, whether each is corrupt, packets with errors, first error."""
    packets: list[int] = []
    corrupt: list[bool] = []
    bad: list[int] = []
    error = ""

    def keep(frames: list[Any]) -> None:
        for frame in frames:
            check_picture(source.video_id, frame, limits)
            if frame.pts is not None and 0 <= frame.pts < len(index.flags):
                packets.append(int(frame.pts))
                corrupt.append(bool(frame.is_corrupt))

    with open_media(source, index.container, limits) as media:
        stream = media.streams[index.stream]
        context = stream.codec_context
        context.thread_count = 1
        context.thread_type = "NONE"
        if index.info.codec == "h264" and (index.order is not index.pts or ascending(index.pts)):
            # Only the order of output tells the order of display here. A stream that does not say
            # how many pictures are held back would come out of order until the decoder knows.
            context.reorder_depth = MAX_REORDER
        if explode:
            context.options = {**context.options, "err_detect": "explode"}
        number = 0
        try:
            for packet in packets_of(media, stream):
                if packet.size == 0:
                    continue
                packet.pts = packet.dts = number
                number += 1
                try:
                    keep(context.decode(packet))
                except (FFmpegError, MemoryError) as caught:
                    bad.append(number - 1)
                    error = error or str(caught)
        except (FFmpegError, OSError, ValueError) as caught:
            error = error or str(caught)
        try:
            keep(context.decode(None))
        except (FFmpegError, MemoryError) as caught:
            bad.append(max(number - 1, 0))
            error = error or str(caught)
    return packets, corrupt, bad, error
