"""Facts that can be read from a coded picture without decoding it.

Sources: ITU-T H.264 section 7.4.1, ITU-T H.265 section 7.4.2, RFC 6386 section 9.1 (VP8), VP9
bitstream specification sections 7.2 and Annex B.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag


class PacketFlag(IntFlag):
    """What the index remembers of a packet."""

    KEY = 1
    DROPPABLE = 2
    """No other picture refers to it."""
    HIDDEN = 4
    """It is decoded and never shown."""
    DISCARD = 8
    """The container says that it lies outside the presentation (edit list)."""
    BROKEN = 16
    """Its own structure is wrong: lengths that lead outside, no picture where one must be."""
    INSTANT = 32
    """Nothing after it refers to anything before it (H.264 IDR)."""
    BIPREDICTED = 64
    """An H.264 B picture: where there are such, pictures are not coded in the order of display."""


@dataclass(frozen=True)
class Facts:
    """Flags of one packet, and for HEVC its temporal layer."""

    flags: PacketFlag
    layer: int = 0


def nal_length_size(codec: str, extradata: bytes) -> int:
    """Bytes of the length before each NAL unit (avcC, hvcC); 0 for start codes (Annex B)."""
    if codec == "h264" and len(extradata) >= 7 and extradata[0] == 1:
        return (extradata[4] & 3) + 1
    if codec == "hevc" and len(extradata) >= 23 and extradata[0] == 1:
        return (extradata[21] & 3) + 1
    return 0


def inspect(codec: str, data: bytes, length_size: int) -> Facts:
    """What the bytes of a packet say about it, for the codecs that say anything."""
    if not data:
        return Facts(PacketFlag.HIDDEN)
    if codec == "h264":
        return _inspect_h264(data, length_size)
    if codec == "hevc":
        return _inspect_hevc(data, length_size)
    if codec == "vp8":
        return Facts(PacketFlag(0) if data[0] & 0x10 else PacketFlag.HIDDEN)
    if codec == "vp9":
        return Facts(PacketFlag(0) if _vp9_shows(data) else PacketFlag.HIDDEN)
    return Facts(PacketFlag(0))


def _nal_starts(data: bytes, length_size: int) -> Iterator[int]:
    """Offsets of NAL unit headers; ends with -1 where a length leads outside the packet."""
    position = 0
    if not length_size:
        while (position := data.find(b"\x00\x00\x01", position)) >= 0:
            position += 3
            if position < len(data) - 1:
                yield position
        return
    while position + length_size <= len(data):
        length = int.from_bytes(data[position : position + length_size], "big")
        position += length_size
        if length == 0 or position + length > len(data):
            yield -1
            return
        yield position
        position += length


def _inspect_h264(data: bytes, length_size: int) -> Facts:
    pictures, referred, instant, broken = 0, 0, PacketFlag(0), PacketFlag(0)
    kind = PacketFlag(0)
    for start in _nal_starts(data, length_size):
        if start < 0:
            broken = PacketFlag.BROKEN
            break
        header = data[start]
        if 1 <= header & 0x1F <= 5:
            pictures += 1
            referred += bool(header & 0x60)
            instant |= PacketFlag.INSTANT if header & 0x1F == 5 else PacketFlag(0)
            kind |= _h264_kind(data, start)
            if not length_size:
                break  # the slices of one picture agree, and searching start codes costs time
    if not pictures:
        return Facts(broken or PacketFlag.HIDDEN)
    return Facts(broken or (kind | (instant if referred else PacketFlag.DROPPABLE)))


def _h264_kind(data: bytes, start: int) -> PacketFlag:
    """Whether a slice says B (slice_type 1 or 6) behind first_mb_in_slice 0, both Exp-Golomb."""
    head = data[start + 1] if start + 1 < len(data) else 0
    bipredicted = data[start] & 0x1F in (1, 2) and (head >> 4 == 0b1010 or head >> 2 == 0b100111)
    return PacketFlag.BIPREDICTED if bipredicted else PacketFlag(0)


def _inspect_hevc(data: bytes, length_size: int) -> Facts:
    for start in _nal_starts(data, length_size):
        if start < 0:
            return Facts(PacketFlag.BROKEN)
        kind = data[start] >> 1 & 0x3F
        if kind < 32:
            layer = (data[start + 1] & 7) - 1
            referred = kind >= 16 or kind % 2 == 1
            return Facts(PacketFlag(0) if referred else PacketFlag.DROPPABLE, layer)
    return Facts(PacketFlag.HIDDEN)


def _vp9_shows(data: bytes) -> bool:
    """Whether any frame of a VP9 packet (perhaps a superframe) is shown."""
    marker = data[-1]
    if marker >> 5 == 0b110:
        count, width = (marker & 7) + 1, (marker >> 3 & 3) + 1
        length = 2 + count * width
        if len(data) > length and data[-length] == marker:
            position, table = 0, data[-length + 1 : -1]
            for index in range(count):
                if _vp9_frame_shows(data[position : position + 2]):
                    return True
                size = table[index * width : (index + 1) * width]
                position += int.from_bytes(size, "little")
            return False
    return _vp9_frame_shows(data[:2])


def _vp9_frame_shows(head: bytes) -> bool:
    if len(head) < 2:
        return False
    bits = int.from_bytes(head, "big")
    profile = (bits >> 13 & 1) | (bits >> 12 & 1) << 1
    shift = 10 if profile == 3 else 11
    if bits >> shift & 1:  # show_existing_frame
        return True
    return bool(bits >> (shift - 2) & 1)
