"""`rushes prepare` and compress_video.py: raw footage in, files that train fast out."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rushes.errors import MissingVideo, VideoError
from rushes.video.asides import remove_torn
from rushes.video.catalogue import VIDEO_SUFFIXES, Catalogue, Source, open_catalogue
from rushes.video.ffmpeg_process import ffmpeg_binary
from rushes.video.jobs import (
    Job,
    Row,
    Shard,
    add_published_options,
    add_run_options,
    exit_code,
    folders_of,
    keep_settings,
    run_jobs,
    wanted_ids,
)
from rushes.video.transcode import (
    ENCODERS,
    Result,
    Settings,
    compress,
    is_done,
)

PUBLISHED_FPS = 6.0
"""Frames a second where the published flags are used and none is given."""

Maker = Callable[[Source, Path, Settings], Result]


def main(argv: Sequence[str] | None = None) -> int:
    """Compress every video of a folder or manifest into MP4 files under OUTPUT.

    A video that is bad is named in OUTPUT/bad_videos.jsonl with the reason; OUTPUT/report.jsonl has
    a line for each. Started again, the command goes on where it stopped.
    """
    parser = argparse.ArgumentParser(prog="rushes prepare", description=main.__doc__)
    parser.add_argument("input", nargs="?", type=Path, help="folder or manifest of videos")
    parser.add_argument("output", nargs="?", type=Path, help="folder of the results")
    add_encoding_options(parser)
    parser.add_argument("--fps", type=float, help="frames a second (keep every frame)")
    add_published_options(parser)
    add_run_options(parser)
    options = parser.parse_args(argv)
    fps = options.fps
    if fps is None and options.inputdir is not None:
        fps = PUBLISHED_FPS
    source, target = folders_of(options)
    settings = settings_of(options, fps)
    return compress_all(open_catalogue(source), target, settings, options, compress)


def add_encoding_options(parser: argparse.ArgumentParser) -> None:
    """The flags of `Settings`, without the frame rate."""
    group = parser.add_argument_group("encoding")
    group.add_argument("--height", type=int, help="pixels, never enlarged (keep)")
    group.add_argument("--gop", type=int, default=Settings.gop, help="frames between key frames")
    group.add_argument("--crf", type=int, default=Settings.crf, help="quality, lower is better")
    group.add_argument("--codec", choices=sorted(ENCODERS), default=Settings.codec)
    group.add_argument("--preset", help="speed, by the encoder's names")
    group.add_argument("--no-audio", action="store_true", help="leave the sound out")


def settings_of(options: argparse.Namespace, fps: float | None) -> Settings:
    """The settings that the flags say."""
    return Settings(
        fps=fps,
        height=options.height,
        gop=options.gop,
        crf=options.crf,
        codec=options.codec,
        preset=options.preset,
        audio=not options.no_audio,
        timeout=options.timeout,
    )


def compress_all(
    catalogue: Catalogue,
    target: Path,
    settings: Settings,
    options: argparse.Namespace,
    make: Maker,
) -> int:
    """Run `make` over the wanted videos of a catalogue; returns the exit code."""
    ffmpeg_binary()
    remembered = {k: v for k, v in asdict(settings).items() if k not in ("threads", "timeout")}
    since = keep_settings(target, "prepare.json", remembered, options.force)
    remove_torn(target)
    ids = wanted_ids(options)
    names = output_names(catalogue.ids() if ids is None else ids)
    jobs = [
        _job(catalogue, video, name, target / f"{name}.mp4", settings, since, make)
        for video, name in names.items()
    ]
    rows = run_jobs(
        jobs,
        target,
        workers=options.workers,
        engine=options.engine,
        shard=Shard.parse(options.shard),
        progress=not options.no_progress,
    )
    return exit_code(rows, options.allow_bad)


def plain_id(video: str) -> str:
    """The id without the ending of a video file."""
    path = Path(video)
    return str(path.with_suffix("")) if path.suffix.lower() in VIDEO_SUFFIXES else video


def output_names(ids: Iterable[str]) -> dict[str, str]:
    """What each video's output is called: its id without the ending.

    Of videos that differ in their endings alone each keeps its own, so that none overwrites
    another: `a.mp4` and `a.mkv` become `a.mp4.mp4` and `a.mkv.mp4`.
    """
    listed = list(dict.fromkeys(ids))
    counts = Counter(map(plain_id, listed))
    return {video: plain_id(video) if counts[plain_id(video)] == 1 else video for video in listed}


def locate_any(catalogue: Catalogue, video: str) -> Source:
    """The source of an id that may or may not carry a file ending."""
    try:
        return catalogue.locate(video)
    except MissingVideo:
        if plain_id(video) == video:
            raise
        return catalogue.locate(plain_id(video))


def _job(
    catalogue: Catalogue,
    video: str,
    name: str,
    target: Path,
    settings: Settings,
    since: float,
    make: Maker,
) -> Job:
    source = locate_or_error(catalogue, video)
    return Job(
        name,
        partial(_work, source, target, settings, make),
        partial(_done, source, target, since),
    )


def locate_or_error(catalogue: Catalogue, video: str) -> Source | VideoError:
    """The source, or the error to report in its job."""
    try:
        return locate_any(catalogue, video)
    except VideoError as error:
        return error


def _work(source: Source | VideoError, target: Path, settings: Settings, make: Maker) -> Row:
    if isinstance(source, VideoError):
        raise source
    made = make(source, target, settings)
    return {
        "source": str(source.path),
        "target": str(target),
        "frames": made.info.num_frames,
        "duration": round(made.info.duration, 6),
        "width": made.info.width,
        "height": made.info.height,
        "bytes": target.stat().st_size,
        **made.damage(),
    }


def _done(source: Source | VideoError, target: Path, since: float) -> Row | None:
    if isinstance(source, VideoError) or not is_done(target, source.path, since):
        return None
    return {"source": str(source.path), "target": str(target)}
