"""Opens files for PyAV under rules: a sniffed demuxer, local files only, bounded pictures."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
from av.error import FFmpegError

from rushes.errors import RefusedVideo, UnreadableVideo, VideoReason
from rushes.video.catalogue import Source
from rushes.video.endings import cut_short
from rushes.video.limits import Limits
from rushes.video.sniff import HEAD_BYTES, sniff

_FORMAT_NAMES = {"mov": "mov,mp4,m4a,3gp,3g2,mj2", "matroska": "matroska,webm"}


class Bytes:
    """Random access to the bytes of a source, without any decoding library."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._data = source.data
        self._file = -1
        if self._data is None:
            try:
                # Without O_NONBLOCK a named pipe would hold the process until someone writes.
                flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
                self._file = os.open(source.path, flags)
            except (OSError, ValueError) as error:
                told = error.strerror if isinstance(error, OSError) else error
                detail = f"cannot be opened: {told}"
                raise UnreadableVideo(source.video_id, detail, "missing") from error
            status = os.fstat(self._file)
            if not stat.S_ISREG(status.st_mode):
                self.close()
                raise UnreadableVideo(source.video_id, "is no regular file", "not_video")
            self.size = status.st_size
        else:
            self.size = len(self._data)

    def read(self, position: int, size: int) -> bytes:
        """`size` bytes at `position`, fewer at the end."""
        if self._data is not None:
            return self._data[position : position + size]
        return os.pread(self._file, size, position)

    def close(self) -> None:
        """Give the descriptor back."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Bytes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_bytes(source: Source, content: Bytes, limits: Limits) -> tuple[str, bool]:
    """The demuxer for a file and whether the file was cut short; refuses what is no video."""
    head = content.read(0, HEAD_BYTES)
    container = sniff(source.video_id, head, quote=not source.outside)
    if content.size > limits.max_bytes:
        raise RefusedVideo(
            source.video_id, f"{content.size} bytes, the limit is {limits.max_bytes}"
        )
    return container, cut_short(container, content.read, content.size)


@contextmanager
def open_media(source: Source, container: str, limits: Limits, cut: bool = False) -> Iterator[Any]:
    """An open PyAV container.

    Args:
        source: a file or bytes.
        container: the demuxer's name from `check_bytes`; no other is tried.
        limits: `max_pixels` goes into every codec context.
        cut: the file is known to be cut short, which then is the reason of a failure.
    """
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": _FORMAT_NAMES.get(container, container),
    }
    target: Any = io.BytesIO(source.data) if source.data is not None else file_url(source.path)
    reason: VideoReason = "truncated" if cut else "undecodable"
    try:
        # Titles in another encoding are no reason to refuse a film.
        media = av.open(target, "r", format=container, options=options, metadata_errors="replace")
    except (FFmpegError, ValueError, OSError, MemoryError) as error:
        raise UnreadableVideo(source.video_id, f"cannot be opened: {error}", reason) from error
    try:
        for stream in media.streams.video:
            context = stream.codec_context
            if context is not None:
                context.options = {**context.options, "max_pixels": codec_pixels(limits)}
        yield media
    finally:
        media.close()


def packets_of(media: Any, stream: Any) -> Iterator[Any]:
    """The packets of one stream, an empty one at the end.

    Streams may appear in the middle of a file. PyAV does not know those, and stumbles over them
    when everything has been read.
    """
    try:
        yield from media.demux(stream)
    except IndexError:
        return


def file_url(path: Path) -> str:
    """A path that FFmpeg cannot take for an address, whatever characters it holds."""
    return "file:" + os.path.abspath(path)


def codec_pixels(limits: Limits) -> str:
    """`max_pixels` for a codec: it counts padded buffers too, so the picture itself needs room.

    Sizes are judged by the true limit when a file is indexed; this bound stops a stream that
    changes its size later.
    """
    return str(2 * limits.max_pixels + 2**16)


def check_picture(video: str, frame: Any, limits: Limits) -> None:
    """Refuse a decoded picture beyond the limit: a stream may change its size on the way.

    Raises:
        RefusedVideo: `over_limit`.
    """
    if frame.width * frame.height > limits.max_pixels:
        detail = f"{frame.width}x{frame.height} pixels, the limit is {limits.max_pixels}"
        raise RefusedVideo(video, detail)


MAX_REORDER = 16
"""Pictures that any codec here may hold back: the size of the largest decoded picture buffer."""


def bare_context(
    codec: str, extradata: bytes, limits: Limits, threads: int, strict: bool, depth: int
) -> Any:
    """A decoder without a demuxer.

    Args:
        codec: FFmpeg's name of the codec.
        extradata: its configuration record.
        threads: decoding threads; one keeps results and memory the same everywhere.
        strict: raise at the first broken bit, so that the caller can change to the careful way.
        depth: pictures that the decoder holds back to put them in order; too few and it would
            drop late ones, too many and it works on cold memory.
    """
    context: Any = av.CodecContext.create(codec, "r")
    if extradata:
        context.extradata = extradata
    context.thread_count = threads
    context.thread_type = "AUTO" if threads > 1 else "NONE"
    # Time stamps that lie may ask for more; FFmpeg's H.264 decoder ends the process past 16.
    context.reorder_depth = min(depth, MAX_REORDER)
    options = {"max_pixels": codec_pixels(limits)}
    if strict:
        options["err_detect"] = "explode"
    context.options = options
    return context
