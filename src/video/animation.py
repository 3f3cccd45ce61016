"""Animated WebP and PNG, which FFmpeg builds often cannot read: Pillow decodes, PyAV encodes."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageSequence

from rushes.errors import RefusedVideo, UnreadableVideo
from rushes.video.catalogue import Source
from rushes.video.limits import Limits
from rushes.video.transcode import ENCODERS, Settings

_DEFAULT_MS = 100
"""Milliseconds of a frame that gives no time, as browsers show it."""


def write_animation(
    source: Source, path: Path, settings: Settings, limits: Limits | None = None
) -> npt.NDArray[np.float64]:
    """Encode every frame of an animation into an MP4 at `path`; returns their times in seconds.

    Transparent parts become black, as ffmpeg makes them.

    Raises:
        UnreadableVideo: `not_video` or `undecodable`.
        RefusedVideo: `over_limit`.
    """
    limits = limits or Limits()
    times: list[int] = []
    clock = 0
    try:
        with Image.open(source.path, formats=("WEBP", "PNG", "GIF")) as image:
            if image.width * image.height > limits.max_pixels:
                raise RefusedVideo(source.video_id, f"{image.width}x{image.height} pixels")
            height = min(settings.height or image.height, image.height)
            size = (
                max(2, 2 * round(image.width * height / image.height / 2)),
                max(2, 2 * round(height / 2)),
            )
            with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as out:
                stream = out.add_stream(ENCODERS[settings.codec], rate=25)
                assert isinstance(stream, av.VideoStream)
                stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
                stream.codec_context.time_base = Fraction(1, 1000)
                stream.codec_context.thread_count = settings.threads
                stream.options = {"crf": str(settings.crf), "g": str(settings.gop)}
                if settings.codec in ("h264", "hevc"):
                    stream.options |= {"preset": settings.preset or "veryfast"}
                last = None
                for picture in ImageSequence.Iterator(image):
                    shown = picture.convert("RGBA")
                    flat = Image.new("RGBA", shown.size, (0, 0, 0, 255))
                    flat.alpha_composite(shown)
                    pixels = flat.convert("RGB").resize(size, Image.Resampling.BICUBIC)
                    frame = av.VideoFrame.from_ndarray(np.asarray(pixels, np.uint8), format="rgb24")
                    frame.pts, frame.time_base = clock, Fraction(1, 1000)
                    out.mux(stream.encode(frame))
                    times.append(clock)
                    last = int(picture.info.get("duration") or _DEFAULT_MS)
                    clock += last
                out.mux(stream.encode(None))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadableVideo(source.video_id, f"no animation: {error}", "not_video") from error
    return np.array(times, np.float64) / 1000
