"""Makes video files from video files: builds and runs ffmpeg, checks the result, renames it.

The result is written aside, its frame count and times are held against the source's, and only then
it takes its name: what bears its name is whole. Times in seconds from the first frame are kept
unless another frame rate is asked for.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import av
import ffmpeg
import numpy as np

from rushes.errors import BackendMissing, ConfigError, DecodeTimeout, UnreadableVideo
from rushes.video.catalogue import Source
from rushes.video.index import NO_TIME, VideoIndex
from rushes.video.limits import Limits
from rushes.video.media import file_url, open_media
from rushes.video.probe import build_index, probe
from rushes.video.request import VideoInfo

Codec = Literal["h264", "hevc", "vp9", "av1", "mpeg4"]

ENCODERS: dict[str, str] = {
    "h264": "libx264",
    "hevc": "libx265",
    "vp9": "libvpx-vp9",
    "av1": "libsvtav1",
    "mpeg4": "mpeg4",
}

_TICKS = 60_000
"""Ticks a second of the written time base; divides by all common rates."""
SOUND_SLACK = 0.001
"""Seconds by which sound may be off before it is moved."""
_TIME_TOLERANCE = 0.002
"""Seconds; Matroska keeps milliseconds."""
_FORMATS = {"mov": "mov,mp4,m4a,3gp,3g2,mj2", "matroska": "matroska,webm"}


@dataclass(frozen=True)
class Settings:
    """How a video is compressed.

    Attributes:
        fps: frames a second; None keeps every frame at its time.
        height: of the result in pixels, never above the source's; None keeps the size.
        gop: largest distance of key frames, in frames.
        crf: constant quality; lower is better and larger.
        codec: of the pictures.
        preset: speed of the encoder, by its own names.
        audio: keep the first sound track (as it is where it is AAC), or leave it out.
        threads: of each ffmpeg process.
        timeout: seconds for one video; None allows 60 s and 30 times its duration.
    """

    fps: float | None = None
    height: int | None = None
    gop: int = 12
    crf: int = 23
    codec: Codec = "h264"
    preset: str | None = None
    audio: bool = True
    threads: int = 1
    timeout: float | None = None

    def __post_init__(self) -> None:
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise ConfigError(f"fps={self.fps}: expected above 0 and at most 1000")
        if self.height is not None and self.height < 2:
            raise ConfigError(f"height={self.height}: expected at least 2 pixels")
        if self.gop < 1:
            raise ConfigError(f"gop={self.gop}: expected at least 1 frame")
        if self.codec not in ENCODERS:
            raise ConfigError(f"codec={self.codec!r}: expected one of {sorted(ENCODERS)}")


@dataclass(frozen=True)
class Result:
    """What was made.

    Attributes:
        info: what the new file holds.
        start: seconds of the source at which it begins; not always what was asked when copying.
        damaged: the source was; what could be decoded of it is there.
    """

    info: VideoInfo
    start: float = 0.0
    damaged: bool = False


@cache
def ffmpeg_binary() -> str:
    """The system's ffmpeg where there is one, else the binary that imageio-ffmpeg carries."""
    found = shutil.which("ffmpeg")
    if found:
        return found
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise BackendMissing("ffmpeg", "pip install imageio-ffmpeg") from error


@cache
def _knows_fps_mode(binary: str) -> bool:
    """`-fps_mode` came with 5.1; `-vsync` went with 8."""
    shown = subprocess.run(
        [binary, "-version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    ).stdout
    version = re.search(r"version n?(\d+)\.(\d+)", shown)
    return version is None or (int(version[1]), int(version[2])) >= (5, 1)


def keep_times() -> dict[str, Any]:
    """Output options that neither drop nor repeat frames."""
    name = "fps_mode" if _knows_fps_mode(ffmpeg_binary()) else "vsync"
    return {name: "passthrough", "enc_time_base": f"1/{_TICKS}"}


def source_input(source: Source, index: VideoIndex, **options: Any) -> Any:
    """The ffmpeg-python input of a probed file: its own demuxer only, files only."""
    if (index.pts == NO_TIME).all() and (index.dts == NO_TIME).all():
        options["r"] = index.info.fps
    return ffmpeg.input(
        file_url(source.path),
        f=index.container,
        protocol_whitelist="file,pipe",
        format_whitelist=_FORMATS.get(index.container, index.container),
        **options,
    )


def run_ffmpeg(stream: Any, video: str, timeout: float | None) -> None:
    """Run an ffmpeg-python graph.

    Raises:
        UnreadableVideo: ffmpeg failed; the text holds the end of what it said.
        DecodeTimeout: it took longer than `timeout` seconds and was killed.
    """
    arguments = ("-nostdin", "-hide_banner", "-loglevel", "error")
    argv = stream.global_args(*arguments).compile(cmd=ffmpeg_binary(), overwrite_output=True)
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DecodeTimeout(video, f"ffmpeg ran longer than {timeout:g} s") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-3:]
        detail = " | ".join(said) or "no message"
        raise UnreadableVideo(video, f"ffmpeg ended with {done.returncode}: {detail}")


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A path beside `target` that takes its name when the block ends well, and goes otherwise."""
    target.parent.mkdir(parents=True, exist_ok=True)
    mine = f"{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"
    aside = target.with_name(f".{target.name}.{mine}.part")
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def remove_torn(folder: Path) -> int:
    """Remove what killed runs left aside; files of living processes and other machines stay."""
    removed = 0
    host = re.escape(socket.gethostname())
    for path in folder.rglob(".*.part"):
        found = re.search(rf"\.{host}-(\d+)-\d+\.part$", path.name)
        if found and not _alive(int(found[1])):
            path.unlink(missing_ok=True)
            removed += 1
    return removed


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def picture_size(info: VideoInfo, height: int | None) -> tuple[int, int]:
    """Width and height of the result: even, square pixels, never enlarged."""
    high = min(height or info.height, info.height)
    wide = info.width * high / info.height
    return max(2, 2 * round(wide / 2)), max(2, 2 * round(high / 2))


def encoding(settings: Settings, info: VideoInfo) -> dict[str, Any]:
    """Output options of the pictures."""
    width, height = picture_size(info, settings.height)
    encoder = ENCODERS[settings.codec]
    options: dict[str, Any] = {
        "c:v": encoder,
        "pix_fmt": "yuv420p",
        "g": settings.gop,
        "threads": settings.threads,
        "vf": f"scale={width}:{height},setsar=1",
        "video_track_timescale": _TICKS,
        "movflags": "+faststart",
        "map_metadata": -1,
        "f": "mp4",
    }
    if encoder == "mpeg4":
        options["q:v"] = max(2, settings.crf // 5)
    else:
        options["crf"] = settings.crf
    default = {"libx264": "veryfast", "libx265": "veryfast", "libsvtav1": "8"}.get(encoder)
    if encoder == "libvpx-vp9":
        options |= {"b:v": 0, "deadline": "good", "cpu-used": settings.preset or "4"}
    elif settings.preset or default:
        options["preset"] = settings.preset or default
    return options


def compress(
    source: Source, target: Path, settings: Settings, limits: Limits | None = None
) -> Result:
    """Compress one file into an MP4.

    Raises:
        VideoError: the source is bad, or the result does not hold what it should.
    """
    index = build_index(source, limits or Limits())
    info = index.info
    options = encoding(settings, info)
    if settings.fps is None:
        options |= keep_times()
    else:
        # Frame i of the result is the one on screen at i / fps.
        rate = f"setpts=PTS-STARTPTS,fps={settings.fps:.9g}:round=up"
        options["vf"] = f"{rate},{options['vf']}"
    given = source_input(source, index)
    streams = [given[str(index.stream)]]
    if settings.audio and info.audio:
        streams.append(given["a:0"])
        options["c:a"] = "copy" if info.audio[0].codec == "aac" else "aac"
        late = lead_of(source, index) if settings.fps is not None else 0.0
        if late > SOUND_SLACK:
            # The first frame was moved to 0; the sound must follow it.
            options["af"] = f"atrim=start={late:.6f},asetpts=PTS-{late:.6f}/TB"
            options["c:a"] = "aac"
    with written_aside(target) as aside:
        graph = ffmpeg.output(*streams, file_url(aside), **options)
        run_ffmpeg(graph, source.video_id, allowed_seconds(settings.timeout, info.duration))
        made = probe(Source("file", source.video_id, aside))
        _verify(source.video_id, info, made, settings)
    return Result(made, damaged=info.damaged)


def lead_of(source: Source, index: VideoIndex) -> float:
    """Seconds from a container's first moment, which may be that of the sound, to its first frame.

    ffmpeg counts from that moment.
    """
    with open_media(source, index.container, Limits()) as media:
        return float(index.info.start - (media.start_time or 0) / av.time_base)


def allowed_seconds(timeout: float | None, duration: float) -> float:
    """What one video of this duration (seconds) may take."""
    return timeout if timeout is not None else 60.0 + 30.0 * duration


def _verify(video: str, source: VideoInfo, made: VideoInfo, settings: Settings) -> None:
    """Hold the result's frames and times against the source's."""
    if settings.audio and source.audio and not made.audio:
        raise UnreadableVideo(video, "the result lost its sound")
    if source.damaged:
        return  # what the decoder can save differs from build to build
    if settings.fps is None:
        check_times(video, source.frame_times, made.frame_times)
        return
    want = max(1.0, source.duration * settings.fps)
    if abs(made.num_frames - want) > 1.5:
        raise UnreadableVideo(video, f"the result has {made.num_frames} frames, not {want:.1f}")
    regular = np.arange(made.num_frames) / settings.fps
    check_times(video, regular, made.frame_times)


def check_times(video: str, wanted: Any, found: Any) -> None:
    """Raise `UnreadableVideo` unless both are the same frames at the same times (seconds)."""
    if len(wanted) != len(found):
        raise UnreadableVideo(video, f"the result has {len(found)} frames, not {len(wanted)}")
    worst = float(np.abs(np.asarray(wanted) - np.asarray(found)).max(initial=0.0))
    if worst > _TIME_TOLERANCE:
        raise UnreadableVideo(
            video, f"frames of the result are off by {worst:.4f} s, the limit is {_TIME_TOLERANCE}"
        )


def gif_to_mp4(source: Source, target: Path, settings: Settings) -> Result:
    """Make an MP4 of an animated GIF, WebP or PNG; every frame keeps its time."""
    with source.path.open("rb") as file:
        head = file.read(16)
    if head[:4] == b"GIF8":
        return compress(source, target, settings)
    from rushes.video.animation import write_animation

    with written_aside(target) as aside:
        times = write_animation(source, aside, settings)
        made = probe(Source("file", source.video_id, aside))
        check_times(source.video_id, times, made.frame_times)
    return Result(made)


def is_done(target: Path, source: Path) -> bool:
    """Whether `target` was made already, after its source was last changed."""
    try:
        made = target.stat()
        return made.st_size > 0 and made.st_mtime >= source.stat().st_mtime
    except OSError:
        return False


__all__: Sequence[str] = (
    "ENCODERS",
    "Codec",
    "Result",
    "Settings",
    "allowed_seconds",
    "check_times",
    "compress",
    "encoding",
    "ffmpeg_binary",
    "gif_to_mp4",
    "is_done",
    "keep_times",
    "picture_size",
    "remove_torn",
    "run_ffmpeg",
    "source_input",
    "written_aside",
)
