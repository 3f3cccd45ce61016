"""Turns a video into a folder of JPEGs, at full size and small, sampled at a steady rate."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import ffmpeg

from rushes.errors import ConfigError, RefusedVideo, UnreadableVideo
from rushes.video.asides import WHOLE_FOLDER, aside_of
from rushes.video.catalogue import Source
from rushes.video.ffmpeg_process import run_ffmpeg
from rushes.video.limits import Limits
from rushes.video.media import file_url
from rushes.video.probe import build_index
from rushes.video.transcode import MAX_TIMEOUT, exact_rate, source_input, steady_stamps

LOW_SIZE = (288, 180)
"""Width and height of the small pictures, as published."""
SIDECAR = WHOLE_FOLDER


@dataclass(frozen=True)
class DumpSettings:
    """How a video becomes pictures.

    Attributes:
        fps: pictures a second; picture i shows what is on screen at i / fps.
        min_frames: short videos are sampled faster, so that they give at least so many.
        quality: of the JPEGs by ffmpeg's scale, 2 (best) to 31.
        timeout: seconds for one video; None allows 60 s and 10 times its duration.
    """

    fps: float = 6.0
    min_frames: int = 20
    quality: int = 3
    timeout: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.fps <= 1000:
            raise ConfigError(f"fps={self.fps}: expected above 0 and at most 1000")
        if not 2 <= self.quality <= 31:
            raise ConfigError(f"quality={self.quality}: expected 2 to 31")
        if self.timeout is not None and not 0 < self.timeout <= MAX_TIMEOUT:
            raise ConfigError(
                f"timeout={self.timeout}: expected above 0 and at most {MAX_TIMEOUT:g} s"
            )


@dataclass(frozen=True)
class Dump:
    """What was written: number of pictures of either size and their rate."""

    num_frames: int
    fps: float


def decode_frames(
    source: Source,
    high: Path,
    low: Path,
    settings: DumpSettings,
    limits: Limits | None = None,
) -> Dump:
    """Write `<base>_{i:03d}.jpg` into the folders `high` (display size) and `low` (288x180).

    `<base>` is the last part of the video id. Each folder is written aside, counted and renamed;
    its sidecar says the rate.

    Raises:
        VideoError: the video is bad, or the pictures are not as many as they should be.
    """
    limits = limits or Limits()
    index = build_index(source, limits)
    info = index.info
    fps = max(settings.fps, settings.min_frames / info.duration)
    wanted = max(1, math.ceil(info.duration * fps - 1e-6))
    if wanted > limits.max_frames:
        detail = f"{wanted} pictures in {info.duration:.0f} s, the limit is {limits.max_frames}"
        raise RefusedVideo(source.video_id, detail)
    base = Path(source.video_id).name
    asides = [aside_of(folder) for folder in (high, low)]
    for folder in asides:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    try:
        given = source_input(source, index)[str(index.stream)]
        given = given.filter("setpts", steady_stamps(index) or "PTS-STARTPTS")
        steady = given.filter("fps", exact_rate(fps), round="up")
        # The last picture stays on screen to the end of the video.
        steady = steady.filter("tpad", stop=-1, stop_mode="clone").filter("trim", end_frame=wanted)
        both = steady.filter_multi_output("split")
        large = both[0].filter("scale", info.width, info.height)
        small = both[1].filter("scale", *LOW_SIZE, flags="bicubic")
        options = {"f": "image2", "q:v": settings.quality, "start_number": 0, "threads": 1}
        outputs = [
            # A name with a per cent sign must not be taken for a pattern.
            ffmpeg.output(
                stream,
                file_url(folder / f"{base.replace('%', '%%')}_%03d.jpg").replace(
                    str(folder), str(folder).replace("%", "%%")
                ),
                pix_fmt="yuvj420p",
                strict="unofficial",
                **options,
            )
            for stream, folder in zip((large, small), asides, strict=True)
        ]
        allowed = settings.timeout if settings.timeout is not None else 60 + 10 * info.duration
        run_ffmpeg(ffmpeg.merge_outputs(*outputs), source.video_id, allowed)
        for folder, target in zip(asides, (high, low), strict=True):
            found = len(list(folder.glob("*.jpg")))
            if found != wanted:
                raise UnreadableVideo(source.video_id, f"{found} pictures came, not {wanted}")
            (folder / SIDECAR).write_text(json.dumps({"fps": fps, "num_frames": found}))
            shutil.rmtree(target, ignore_errors=True)
            folder.replace(target)
    finally:
        for folder in asides:
            shutil.rmtree(folder, ignore_errors=True)
    return Dump(wanted, fps)


def dumped(high: Path, low: Path, since: float = 0.0) -> Dump | None:
    """What an earlier run wrote after `since` (seconds since the epoch), when both folders are
    whole.
    """
    counts = []
    for folder in (high, low):
        try:
            state = json.loads((folder / SIDECAR).read_text(encoding="utf-8"))
            if (folder / SIDECAR).stat().st_mtime < since:
                return None
        except (OSError, ValueError):
            return None
        if len(list(folder.glob("*.jpg"))) != state.get("num_frames"):
            return None
        counts.append(Dump(state["num_frames"], state["fps"]))
    return counts[0] if counts[0] == counts[1] else None
