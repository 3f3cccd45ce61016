"""decode_frames.py: videos into folders of JPEGs, full size and small, and lists that name them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from rushes.errors import ConfigError, VideoError
from rushes.video.asides import remove_torn
from rushes.video.catalogue import Source, open_catalogue
from rushes.video.ffmpeg_process import ffmpeg_binary
from rushes.video.frame_dump import DumpSettings, decode_frames, dumped
from rushes.video.jobs import (
    Job,
    Row,
    Shard,
    add_published_options,
    add_run_options,
    exit_code,
    folders_of,
    keep_settings,
    listed,
    run_jobs,
    wanted_ids,
    write_rows,
)
from rushes.video.prepare import locate_or_error, output_names

HIGH, LOW = "video_frames", "video_frames_lr"


def main(argv: Sequence[str] | None = None) -> int:
    """Decode every video into OUTPUT/video_frames/<clip_id>/<base>_{i:03d}.jpg and the same small
    under OUTPUT/video_frames_lr; OUTPUT/<set>_frame.jsonl says how many frames each has.
    """
    parser = argparse.ArgumentParser(prog="decode_frames.py", description=main.__doc__)
    parser.add_argument("input", nargs="?", type=Path, help="folder or manifest of videos")
    parser.add_argument("output", nargs="?", type=Path, help="folder of the results")
    parser.add_argument("--fps", type=float, default=DumpSettings.fps, help="frames a second (6)")
    parser.add_argument("--min-frames", type=int, default=DumpSettings.min_frames)
    parser.add_argument("--quality", type=int, default=DumpSettings.quality, help="2 best, 31")
    parser.add_argument("--set", help="name of the list (of --vidfile, else of the input)")
    add_published_options(parser)
    add_run_options(parser)
    options = parser.parse_args(argv)
    source, target = folders_of(options)
    settings = DumpSettings(options.fps, options.min_frames, options.quality, options.timeout)
    if settings.min_frames < 1:
        raise ConfigError(f"min_frames={settings.min_frames}: expected at least 1")
    remembered = {k: v for k, v in asdict(settings).items() if k != "timeout"}
    ffmpeg_binary()
    since = keep_settings(target, "frames_settings.json", remembered, options.force)
    remove_torn(target)
    catalogue = open_catalogue(source)
    ids = wanted_ids(options)
    jobs, names = [], output_names(catalogue.ids() if ids is None else ids)
    for video, name in names.items():
        found = locate_or_error(catalogue, video)
        if isinstance(found, Source):
            found = replace(found, kind="file", video_id=name)
        folders = target / HIGH / name, target / LOW / name
        jobs.append(
            Job(
                name,
                partial(_work, found, *folders, settings),
                partial(_done, found, *folders, since),
            )
        )
    shard = Shard.parse(options.shard)
    rows = run_jobs(
        jobs,
        target,
        workers=options.workers,
        engine=options.engine,
        shard=shard,
        progress=not options.no_progress,
        name="frames",
    )
    name = options.set or (options.vidfile or source).stem
    _write_list(target / shard.of(f"{name}_frame.jsonl"), rows, names, options)
    return exit_code(rows, options.allow_bad)


def _write_list(
    path: Path, rows: Sequence[Row], names: Mapping[str, str], options: argparse.Namespace
) -> None:
    """Every line of --vidfile (or bare ids) with the number of frames; failed videos are left out.

    Args:
        rows: of the report.
        names: of the outputs, by the ids of the videos.
    """
    made = {row["video"]: row for row in rows if row["status"] != "failed"}
    lines: list[tuple[str, Row]] = [(name, {}) for name in names.values()]
    if options.vidfile is not None:
        lines = [(names[video], line) for video, line in listed(options)]
    write_rows(
        path,
        (
            {
                **line,
                "clip_id": name,
                "num_frame": made[name]["num_frame"],
                "fps": made[name]["fps"],
            }
            for name, line in lines
            if name in made
        ),
    )


def _work(source: Source | VideoError, high: Path, low: Path, settings: DumpSettings) -> Row:
    if isinstance(source, VideoError):
        raise source
    dump = decode_frames(source, high, low, settings)
    return {"source": str(source.path), "num_frame": dump.num_frames, "fps": dump.fps}


def _done(source: Source | VideoError, high: Path, low: Path, since: float) -> Row | None:
    if isinstance(source, VideoError):
        return None
    dump = dumped(high, low, max(since, source.path.stat().st_mtime))
    if dump is None:
        return None
    return {"source": str(source.path), "num_frame": dump.num_frames, "fps": dump.fps}
