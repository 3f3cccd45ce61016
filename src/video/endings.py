"""Whether a file was cut short, by what its container says of its own length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

Read = Callable[[int, int], bytes]
"""`read(position, size)`: fewer bytes at the end of the file."""

_MAX_ELEMENTS = 1_000_000
"""Elements that are walked; a live recording of three hours has fewer."""
_GIF_END = b"\0\x3b"
"""The end of the last block and of the file."""
_GIF_TAIL = 64
"""Bytes in which it must lie; some programs write a little more after it."""
_OGG_PAGE = 27 + 255 + 255 * 255
"""Bytes of the largest page."""
_OGG_LAST = 4
_SEGMENT = 0x18538067


def cut_short(container: str, read: Read, size: int) -> bool:
    """Whether a file promises more than there is.

    Args:
        container: as `sniff` named it; those that promise nothing are never cut short.
        read: gives bytes of the file.
        size: bytes in the file.
    """
    if container == "mov":
        return _boxes_cut_short(read, size)
    if container == "gif":
        return _GIF_END not in read(max(0, size - _GIF_TAIL), _GIF_TAIL)
    if container == "avi":
        return 8 + int.from_bytes(read(4, 4), "little") > size + 1
    if container == "ogg":
        return _ogg_cut_short(read(max(0, size - _OGG_PAGE), _OGG_PAGE))
    return container == "matroska" and _matroska_cut_short(read, size)


def _boxes_cut_short(read: Read, size: int) -> bool:
    """Walk the outermost boxes of an MP4: the last one must end inside the file."""
    position = 0
    for _ in range(100_000):
        head = read(position, 16)
        if len(head) < 8:
            return False
        length = int.from_bytes(head[:4], "big")
        if length == 1 and len(head) == 16:
            length = int.from_bytes(head[8:], "big")
        if length == 0:
            return False  # reaches to the end of the file, by definition
        if length < 8:
            return False  # not a box: trailing bytes that no player minds
        position += length
        if position > size:
            return head[4:8].isalnum()
    return False


def _ogg_cut_short(tail: bytes) -> bool:
    """The last page must be whole and say that its stream ends (RFC 3533, section 6)."""
    page = tail.rfind(b"OggS\0")
    if page < 0:
        return False  # something else lies there; the demuxer judges it
    segments = tail[page + 26 : page + 27]
    table = tail[page + 27 : page + 27 + segments[0]] if segments else b""
    if not segments or len(table) < segments[0]:
        return True
    whole = page + 27 + len(table) + sum(table) <= len(tail)
    return not whole or not tail[page + 5] & _OGG_LAST


class _Element(NamedTuple):
    """An element of Matroska: where its content begins and ends; -1: it does not say."""

    identity: int
    start: int
    end: int


def _elements(read: Read, end: int) -> Iterator[_Element]:
    """Elements one after the other, stepping into those of unknown size.

    Ends before what is no element; one that the file's end cuts in its head reaches beyond it.
    """
    position = 0
    for _ in range(_MAX_ELEMENTS):
        if position >= end:
            return
        head = read(position, 12) or b"\0"  # the file may have shrunk
        id_length = 9 - head[0].bit_length()
        if id_length > 4:
            return
        length = 9 - head[id_length].bit_length() if len(head) > id_length else 1
        start = position + id_length + length
        if length > 8:
            return
        value = int.from_bytes(head[id_length : id_length + length], "big") - (1 << 7 * length)
        unknown = value == (1 << 7 * length) - 1
        identity = int.from_bytes(head[:id_length], "big")
        yield _Element(identity, start, -1 if unknown and start <= end else start + max(value, 0))
        position = start if unknown else start + max(value, 0)


def _matroska_cut_short(read: Read, size: int) -> bool:
    """The segment must end inside the file; of one without a size, as live recordings have it, the
    last element. The duration in its head tells nothing: a cut copies that of its source.
    """
    end = 0
    for element in _elements(read, size):
        if element.identity == _SEGMENT and element.end >= 0:
            return element.end > size
        end = max(element.start, element.end)
    return end > size
