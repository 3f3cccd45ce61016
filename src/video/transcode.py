"""Makes video files from video files: builds and runs ffmpeg, checks the result, renames it.

The result is written aside, its frame count and times are held against the source's, and only then
it takes its name: what bears its name is whole. Times in seconds from the first frame are kept
unless another frame rate is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import ffmpeg
import numpy as np

from rushes.errors import ConfigError, UnreadableVideo
from rushes.video.asides import written_aside
from rushes.video.catalogue import Source
from rushes.video.ffmpeg_process import ffmpeg_binary, knows_fps_mode, run_ffmpeg
from rushes.video.index import NO_TIME, VideoIndex
from rushes.video.limits import Limits
from rushes.video.media import file_url, open_media
from rushes.video.probe import build_index, probe
from rushes.video.request import VideoInfo
from rushes.video.verify import TIME_TOLERANCE, Difference, check_saved, check_times

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
MAX_TIMEOUT = 1e7
"""Seconds; a system's clock counts no longer ones."""
SOUND_SLACK = 0.001
"""Seconds by which sound may be off before it is moved."""
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
        if not 0 <= self.crf <= 63:
            raise ConfigError(f"crf={self.crf}: expected 0 to 63")
        if self.timeout is not None and not 0 < self.timeout <= MAX_TIMEOUT:
            raise ConfigError(
                f"timeout={self.timeout}: expected above 0 and at most {MAX_TIMEOUT:g} s"
            )
        if self.codec not in ENCODERS:
            raise ConfigError(f"codec={self.codec!r}: expected one of {sorted(ENCODERS)}")


@dataclass(frozen=True)
class Result:
    """What was made.

    Attributes:
        info: what the new file holds.
        start: seconds of the source at which it begins; not always what was asked when copying.
        damaged: the source was; what could be decoded of it is there.
        differs: frames that ffmpeg lost or added beside what our decoder gives of a damaged source.
    """

    info: VideoInfo
    start: float = 0.0
    damaged: bool = False
    differs: Difference = field(default_factory=Difference)

    def damage(self) -> dict[str, Any]:
        """What a report says of a damaged source; nothing of a sound one."""
        if not self.damaged:
            return {}
        lost, added = self.differs.missing, self.differs.added
        return {"damaged": True, "frames_missing": lost, "frames_added": added}


def keep_times() -> dict[str, Any]:
    """Output options that neither drop nor repeat frames."""
    name = "fps_mode" if knows_fps_mode(ffmpeg_binary()) else "vsync"
    return {name: "passthrough", "enc_time_base": f"1/{_TICKS}"}


def exact_rate(fps: float) -> str:
    """A rate for ffmpeg's filters as a fraction: rounded ones miss the moments of frames."""
    rate = Fraction(fps).limit_denominator(100_000)
    return f"{rate.numerator}/{rate.denominator}"


def source_input(source: Source, index: VideoIndex, **options: Any) -> Any:
    """The ffmpeg-python input of a probed file: its own demuxer only, files only."""
    if (index.pts == NO_TIME).all() and (index.dts == NO_TIME).all():
        options["r"] = index.info.fps
    if index.container == "gif":
        options["min_delay"] = 1  # FFmpeg before 8 takes 10 ms for a mistake, and changes it
    return ffmpeg.input(
        file_url(source.path),
        f=index.container,
        protocol_whitelist="file,pipe",
        format_whitelist=_FORMATS.get(index.container, index.container),
        **options,
    )


def steady_stamps(index: VideoIndex, lead: float = 0.0) -> str:
    """What ffmpeg's `setpts` must set where ffmpeg would make up times of its own, else "".

    Args:
        index: of a file whose frames come at a steady rate.
        lead: when the first frame is shown, seconds.
    """
    times = index.info.frame_times
    if not index.invented or index.damage is not None or len(times) < 2:
        return ""
    step = float(times[-1]) / (len(times) - 1)
    if np.abs(times - np.arange(len(times)) * step).max() > TIME_TOLERANCE:
        return ""
    return f"round(({lead:.6f}+N*{step:.9g})/TB)"


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
        if stamps := steady_stamps(index, lead_of(source, index)):
            options["vf"] = f"setpts={stamps},{options['vf']}"
    else:
        # Frame i of the result is the one on screen at i / fps.
        stamps = steady_stamps(index) or "PTS-STARTPTS"
        rate = f"setpts={stamps},fps={exact_rate(settings.fps)}:round=up"
        options["vf"] = f"{rate},{options['vf']}"
    # Decoding by more threads than cores are left only costs: other videos take the other cores.
    given = source_input(source, index, threads=settings.threads)
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
        said = run_ffmpeg(graph, source.video_id, allowed_seconds(settings.timeout, info.duration))
        info = what_it_gives(source, info, said)
        made = probe(Source("file", source.video_id, aside))
        differs = _verify(source.video_id, info, made, settings, aside)
    return Result(made, damaged=info.damaged, differs=differs)


def what_it_gives(source: Source, info: VideoInfo, said: str) -> VideoInfo:
    """What a source truly holds: packets do not tell of broken bits, but ffmpeg said something."""
    if not said or info.damaged:
        return info
    truth = build_index(source, Limits(), deep=True).info
    return truth if truth.damaged else info


def lead_of(source: Source, index: VideoIndex) -> float:
    """Seconds from a container's first moment, which may be that of the sound, to its first frame.

    ffmpeg counts from that moment.
    """
    with open_media(source, index.container, Limits()) as media:
        return float(index.info.start - (media.start_time or 0) / av.time_base)


def allowed_seconds(timeout: float | None, duration: float) -> float:
    """What one video of this duration (seconds) may take."""
    return timeout if timeout is not None else 60.0 + 30.0 * duration


def _verify(
    video: str, source: VideoInfo, made: VideoInfo, settings: Settings, path: Path
) -> Difference:
    """Hold the result's frames and times against the source's; what a damaged one lost."""
    if settings.audio and source.audio and not made.audio:
        raise UnreadableVideo(video, "the result lost its sound")
    wanted = source.frame_times
    if settings.fps is not None:
        count = max(1.0, source.duration * settings.fps)
        regular = np.arange(made.num_frames) / settings.fps
        if abs(made.num_frames - count) <= 1.5:
            wanted = regular  # where the last frame ends is a matter of rounding
        elif source.damaged:
            wanted = np.arange(round(count)) / settings.fps
        else:
            detail = f"the result has {made.num_frames} frames, not {count:.1f}"
            raise UnreadableVideo(video, detail)
    if source.damaged:
        return check_saved(video, wanted, path)
    check_times(video, wanted, made.frame_times)
    return Difference()


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


def is_done(target: Path, source: Path, since: float = 0.0) -> bool:
    """Whether `target` was made already, after its source was last changed and after `since`
    (seconds since the epoch).
    """
    try:
        made = target.stat()
        return made.st_size > 0 and made.st_mtime >= max(since, source.stat().st_mtime)
    except OSError:
        return False


__all__: Sequence[str] = (
    "ENCODERS",
    "Codec",
    "Result",
    "Settings",
    "allowed_seconds",
    "compress",
    "encoding",
    "exact_rate",
    "ffmpeg_binary",
    "gif_to_mp4",
    "is_done",
    "keep_times",
    "picture_size",
    "source_input",
    "steady_stamps",
)
