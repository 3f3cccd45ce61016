"""cut_videos.py: clips out of long videos, by records or by metafiles of HD-VILA-100M."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from rushes.errors import AnnotationError, ConfigError, VideoError
from rushes.video.asides import remove_torn
from rushes.video.catalogue import Source, open_catalogue
from rushes.video.cutting import cut, remembered_cut
from rushes.video.ffmpeg_process import ffmpeg_binary
from rushes.video.index import VideoIndex
from rushes.video.jobs import (
    Job,
    Row,
    Shard,
    add_published_options,
    add_run_options,
    exit_code,
    keep_settings,
    run_jobs,
    write_rows,
)
from rushes.video.limits import Limits
from rushes.video.prepare import add_encoding_options, locate_or_error, plain_id, settings_of
from rushes.video.probe import build_index, probe
from rushes.video.request import VideoInfo
from rushes.video.transcode import Settings, is_done


@dataclass(frozen=True)
class Clip:
    """One clip to cut: its path below the output, the video and the seconds."""

    name: str
    video: str
    start: float
    end: float


def main(argv: Sequence[str] | None = None) -> int:
    """Cut every clip of a list out of its video, exact to the frame.

    The list holds JSON lines: records (video, id, start, end) or HD-VILA-100M metadata (video_id,
    clip: clip_id, span). OUTPUT/report.jsonl says where each clip truly starts.
    """
    parser = argparse.ArgumentParser(prog="cut_videos.py", description=main.__doc__)
    parser.add_argument("input", nargs="?", type=Path, help="folder or manifest of the videos")
    parser.add_argument("output", nargs="?", type=Path, help="folder of the clips")
    parser.add_argument("--records", "--metafile", type=Path, help="list of the clips")
    parser.add_argument("--resultfile", type=Path, help="a further copy of the report")
    parser.add_argument(
        "--copy", action="store_true", help="copy packets: fast, begins at the key frame before"
    )
    add_encoding_options(parser)
    add_published_options(parser)
    add_run_options(parser)
    options = parser.parse_args(argv)
    source, target, listing = _paths(options)
    settings = settings_of(options, None)
    ffmpeg_binary()
    remembered = {**asdict(settings), "copy": options.copy}
    remembered = {k: v for k, v in remembered.items() if k not in ("threads", "timeout", "fps")}
    since = keep_settings(target, "cuts.json", remembered, options.force)
    remove_torn(target)
    catalogue = open_catalogue(source)
    jobs = []
    for clip in read_clips(listing):
        found = locate_or_error(catalogue, clip.video)
        path = target / f"{clip.name}.mp4"
        jobs.append(
            Job(
                clip.name,
                partial(_work, found, path, clip, settings, options.copy),
                partial(_done, found, path, clip, since),
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
        name="cuts",
    )
    if options.resultfile is not None:
        result = (options.workdir or Path()) / options.resultfile
        write_rows(result.with_name(shard.of(result.name)), rows)
    return exit_code(rows, options.allow_bad)


def _paths(options: argparse.Namespace) -> tuple[Path, Path, Path]:
    """Videos, clips and list; below --workdir they have their places in the storage layout."""
    work: Path | None = options.workdir
    base = work or Path()
    source = options.input or (base / (options.inputdir or "download_videos") if work else None)
    target = options.output or (base / (options.outputdir or "video_clips") if work else None)
    listing = options.records or options.vidfile
    if source is None or target is None or listing is None:
        raise ConfigError("needs INPUT, OUTPUT (or --workdir) and --records LIST")
    for candidate in (base / listing, base / "metafiles" / listing, listing):
        if candidate.is_file():
            return source, target, candidate
    raise ConfigError(f"records={listing}: no such file")


def read_clips(path: Path) -> list[Clip]:
    """The clips of a list, names unique.

    Raises:
        AnnotationError: with file and line.
    """
    clips: dict[str, Clip] = {}
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                found = list(_clips_of(json.loads(text)))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise AnnotationError(f"no clip: {error!r}", str(path), number) from error
            for clip in found:
                outside = ".." in Path(clip.name).parts or Path(clip.name).is_absolute()
                if outside or "\0" in clip.name:
                    raise AnnotationError(f"name {clip.name!r} leads out", str(path), number)
                if clips.setdefault(clip.name, clip) != clip:
                    raise AnnotationError(f"clip {clip.name!r} a second time", str(path), number)
    return list(clips.values())


def _clips_of(row: dict[str, Any]) -> Iterator[Clip]:
    if "clip" in row:
        video = str(row["video_id"])
        for clip in row["clip"]:
            start, end = (_seconds(clock) for clock in clip["span"])
            yield Clip(f"{video}/{plain_id(str(clip['clip_id']))}", video, start, end)
        return
    video, start, end = str(row["video"]), float(row["start"]), float(row["end"])
    name = str(row.get("id") or f"{plain_id(video)}_{start:.3f}_{end:.3f}")
    yield Clip(plain_id(name), video, start, end)


def _seconds(clock: str) -> float:
    """Seconds of "hh:mm:ss.mmm"."""
    hours, minutes, seconds = clock.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


@lru_cache(maxsize=32)
def _index(source: Source) -> VideoIndex:
    """Packets of a film are read once for its many clips."""
    return build_index(source, Limits())


def _work(
    source: Source | VideoError, target: Path, clip: Clip, settings: Settings, copy: bool
) -> Row:
    if isinstance(source, VideoError):
        raise source
    made = cut(source, target, clip.start, clip.end, settings, copy, _index(source))
    return {**_row(source, target, clip, made.start, made.info), **made.damage()}


def _row(source: Source, target: Path, clip: Clip, start: float, made: VideoInfo) -> Row:
    return {
        "source": str(source.path),
        "target": str(target),
        "asked_start": clip.start,
        "asked_end": clip.end,
        "true_start": round(start, 6),
        "true_end": round(start + made.duration, 6),
        "frames": made.num_frames,
    }


def _done(source: Source | VideoError, target: Path, clip: Clip, since: float) -> Row | None:
    """The row of a clip that is there: cut from this state of its video, over this very stretch."""
    if isinstance(source, VideoError) or not is_done(target, source.path, since):
        return None
    note = remembered_cut(target)
    if note is None or (note.start, note.end) != (clip.start, clip.end):
        return None
    try:
        made = probe(Source("file", clip.name, target))
    except VideoError:
        return None
    return _row(source, target, clip, note.true_start, made)
