"""Names the container by a file's first bytes, before any decoding library sees the file.

A demuxer is then forced by name, so that nothing inside the file can choose another one. Formats
whose whole purpose is to point at other files (playlists, manifests, concat scripts) are hostile.
"""

from __future__ import annotations

from rushes.errors import NoVideoStream, RefusedVideo, UnreadableVideo

HEAD_BYTES = 4096
"""How many first bytes `sniff` wants to see."""

CONTAINERS = ("mov", "matroska", "avi", "flv", "gif", "mpegts", "mpeg", "mpegvideo", "h264", "hevc",
              "m4v", "ogg", "asf", "ivf", "mxf")  # fmt: skip
"""Every demuxer that may be opened, by FFmpeg's name."""

_MOV_BOXES = frozenset(
    (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"moof", b"styp", b"sidx")
)
_REFERRING = (
    b"#EXTM3U",
    b"#EXT-X",
    b"ffconcat",
    b"[playlist]",
    b"[reference]",
    b"<?xml",
    b"<mpd",
    b"<smil",
    b"<asx",
    b"<svg",
    b"v=0\n",
    b"v=0\r\n",
    b"file '",
    b"rtsp://",
    b"http://",
    b"https://",
    b"rtsptext",
)
_SOUND = (
    (0, b"ID3"),
    (0, b"fLaC"),
    (8, b"WAVE"),
    (0, b"\xff\xf1"),
    (0, b"\xff\xf9"),
    (0, b"\xff\xfb"),
)
_PREFIXES = (
    (b"\x1a\x45\xdf\xa3", "matroska"),
    (b"FLV\x01", "flv"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"OggS", "ogg"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (b"DKIF", "ivf"),
    (b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02", "mxf"),
    (b"\x00\x00\x01\xba", "mpeg"),
    (b"\x00\x00\x01\xb3", "mpegvideo"),
)


def sniff(video: str, head: bytes, quote: bool = True) -> str:
    """The name of the demuxer for a file.

    Args:
        video: the video as the caller named it, for the error.
        head: the first `HEAD_BYTES` of the file.
        quote: an error may tell the first bytes of what is no video.

    Raises:
        UnreadableVideo: `empty` or `not_video`.
        NoVideoStream: a sound file.
        RefusedVideo: `hostile`, a file that points at other files.
    """
    if not head:
        raise UnreadableVideo(video, "the file has 0 bytes", "empty")
    container = _by_prefix(head) or _by_structure(head)
    if container:
        return container
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for mark in _REFERRING:
        if text.startswith(mark.lower()):
            name = mark.decode().strip()
            raise RefusedVideo(video, f"a file that points at other files ({name!r})", "hostile")
    for offset, mark in _SOUND:
        if head[offset:].startswith(mark):
            raise NoVideoStream(video, "a sound file")
    if head.startswith(b"\xff\xd8\xff"):
        # By its first bytes a raw MJPEG stream is a picture, and nothing in it tells the rate.
        detail = "a JPEG picture, or a stream of such: put it into a container (ffmpeg -c copy)"
        raise UnreadableVideo(video, detail, "not_video")
    told = repr(head[:12]) if quote else "what this file begins with"
    raise UnreadableVideo(video, f"no known video format begins with {told}", "not_video")


def _by_prefix(head: bytes) -> str:
    for prefix, name in _PREFIXES:
        if head.startswith(prefix):
            return name
    if head[4:8] in _MOV_BOXES:
        return "mov"
    return "avi" if head[:4] == b"RIFF" and head[8:12] == b"AVI " else ""


def _by_structure(head: bytes) -> str:
    # Transport stream packets of 188 bytes, or 192 with a time code before each (m2ts).
    for offset, step in ((0, 188), (4, 192)):
        marks = head[offset : offset + 8 * step : step]
        if len(marks) >= 2 and set(marks) == {0x47}:
            return "mpegts"
    start = 4 if head.startswith(b"\x00\x00\x00\x01") else 3
    if not head.startswith((b"\x00\x00\x01", b"\x00\x00\x00\x01")) or len(head) <= start + 1:
        return ""
    first, second = head[start], head[start + 1]
    if first in (0xB0, 0xB5) or (first <= 0x1F and head.find(b"\x00\x00\x01\xb6") > 0):
        return "m4v"
    if first >> 1 in (32, 33, 34, 35, 39) and first & 0x81 == 0 and second & 7 > 0 and second < 8:
        return "hevc"
    return "h264" if first & 0x1F in (1, 5, 6, 7, 8, 9) and first < 0x80 else ""
