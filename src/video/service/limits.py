"""What one request may ask: judged when it arrives, and again when the video's size is known."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rushes.errors import ConfigError, RefusedVideo
from rushes.video.asked import checked
from rushes.video.request import Audio, Features, Frames, Request, Size

_BYTES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class RequestLimits:
    """What one request over the network may ask.

    Attributes:
        max_frames: frames of all outputs together.
        max_side, max_pixels: of one returned frame, in pixels.
        max_bytes: of the whole reply.
        max_seconds: of one sound or feature output.
        max_deadline: seconds.
        max_text: characters of a video id or a name.
    """

    max_frames: int = 1024
    max_side: int = 4096
    max_pixels: int = 4096 * 2304
    max_bytes: int = 256 << 20
    max_outputs: int = 64
    max_seconds: float = 3600.0
    max_rate: int = 192_000
    max_deadline: float = 600.0
    max_text: int = 1024

    def check(self, request: Request) -> None:
        """Judge how much a request asks, as far as it tells.

        Raises:
            RefusedVideo: too much, with the value and the limit.
            ConfigError: a deadline longer than a server allows.
            ConfigError, FrameUnavailable, RefusedVideo: it means nothing, as in process.
        """
        check_id(request.video_id, self.max_text)
        request = checked(request)
        video = request.video_id
        self._most(video, len(request.outputs), self.max_outputs, "outputs")
        names = [output.name for output in request.outputs]
        names += [output.track for output in request.outputs if isinstance(output, Features)]
        self._most(video, max(map(len, names), default=0), self.max_text, "characters of a name")
        frames = [output for output in request.outputs if isinstance(output, Frames)]
        self._most(video, sum(len(f.times) for f in frames), self.max_frames, "frames")
        if request.deadline is not None and request.deadline > self.max_deadline:
            limit = f"at most {self.max_deadline:g} s"
            raise ConfigError(f"{video}: deadline={request.deadline!r}: a server allows {limit}")
        for output in request.outputs:
            if isinstance(output, Frames):
                size = asked_size(output, None)
                if size is not None:
                    self._check_picture(video, size)
            else:
                self._check_span(video, output)
        self._most(video, reply_bytes(request), self.max_bytes, "bytes of reply")

    def _check_picture(self, video: str, size: Size) -> None:
        height, width = size
        self._most(video, max(height, width), self.max_side, "pixels a side")
        self._most(video, height * width, self.max_pixels, "pixels a frame")

    def _check_span(self, video: str, output: Audio | Features) -> None:
        self._most(video, output.end - output.start, self.max_seconds, f"seconds of {output.name}")
        if isinstance(output, Audio):
            self._most(video, output.rate, self.max_rate, "Hz")

    def check_display(self, request: Request, display: Size) -> None:
        """The same for frames asked in the video's own size, now that it is known."""
        self._check_picture(request.video_id, display)
        size = reply_bytes(request, display)
        shown = f"bytes of reply (frames of {display.height}x{display.width})"
        self._most(request.video_id, size, self.max_bytes, shown)

    @staticmethod
    def _most(video: str, value: float, limit: float, what: str) -> None:
        if value > limit:
            raise RefusedVideo(video, f"{value} {what} in one request, at most {limit}")


def asked_size(frames: Frames, display: Size | None) -> Size | None:
    """The size of the pictures that an output asks for; `display` where it names none."""
    if frames.size is not None:
        return frames.size
    if frames.crop is not None:
        return Size(frames.crop.height, frames.crop.width)
    return display


def asks_for_whole(request: Request) -> bool:
    """Whether some frames are asked in the video's own size, which the request does not tell."""
    return any(
        isinstance(output, Frames) and output.size is None and output.crop is None
        for output in request.outputs
    )


def reply_bytes(request: Request, display: Size | None = None) -> int:
    """Bytes of pixels and sound that a request asks for; what it does not tell counts nothing.

    Args:
        display: the video's own size, where it is known.
    """
    total = 0
    for output in request.outputs:
        if isinstance(output, Frames):
            height, width = asked_size(output, display) or (0, 0)
            total += len(output.times) * height * width * 3
        elif isinstance(output, Audio):
            total += int((output.end - output.start) * output.rate) * 4
    return total


def check_id(video_id: str, max_text: int = 1024) -> None:
    """Raise `RefusedVideo` (hostile) for an id that is a path out of the root, or a URL."""
    if not video_id or len(video_id) > max_text:
        raise RefusedVideo(
            video_id[:80], f"an id of {len(video_id)} characters, allowed 1 to {max_text}"
        )
    parts = video_id.replace("\\", "/").split("/")
    if ":" in parts[0] and parts[1:2] == [""]:
        raise RefusedVideo(video_id, "a URL is no video id", "hostile")
    # Bytes of a file name that are no UTF-8 are surrogates here, and part of good names.
    shown = _BYTES.sub("", video_id)
    if video_id[0] in "/\\~" or ".." in parts or not shown.isprintable():
        raise RefusedVideo(video_id, "an id names a video below the root, no path", "hostile")
