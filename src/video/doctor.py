"""`rushes doctor`: what every file of a corpus holds, or why it is bad."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, TextIO

import numpy as np

from rushes.errors import RefusedVideo, RushesError, VideoError
from rushes.video.catalogue import VIDEO_SUFFIXES, Catalogue, Source, open_catalogue
from rushes.video.index import VideoIndex
from rushes.video.limits import Limits
from rushes.video.probe import build_index

Status = Literal["ok", "damaged", "refused"]

_DEFAULT_TIMEOUT = 600.0


@dataclass(frozen=True)
class Row:
    """One file of the report.

    Attributes:
        status: ok; damaged: some frames can be had; refused: none will be given.
        reason: why, empty when ok: empty, not_video, no_video_stream, truncated, undecodable,
            over_limit, hostile, timeout, worker_died or missing.
        frames: presentable frames; None where nothing can be read.
        frames_decoded: frames that came out of a full decode; None where there was none.
        duration: seconds.
        rotation: degrees clockwise.
        audio, subtitles: codecs of the tracks.
    """

    path: str
    status: Status
    reason: str = ""
    frames: int | None = None
    frames_decoded: int | None = None
    duration: float | None = None
    width: int | None = None
    height: int | None = None
    rotation: int | None = None
    codec: str | None = None
    audio: tuple[str, ...] = ()
    subtitles: tuple[str, ...] = ()
    detail: str = ""


def examine(source: Source, deep: bool = False, limits: Limits | None = None) -> Row:
    """The report row of one file; never raises for what the file holds."""
    name = str(source.path) if source.kind != "bytes" else source.video_id
    try:
        if source.kind == "images":
            return _examine_images(source, limits or Limits())
        index = build_index(source, limits or Limits(), deep=deep)
    except VideoError as error:
        return Row(name, "refused", error.reason, detail=error.detail)
    return _row(name, index, decoded=deep or index.damage is not None)


def _row(name: str, index: VideoIndex, decoded: bool) -> Row:
    info = index.info
    return Row(
        name,
        "ok" if index.damage is None else "damaged",
        index.damage or "",
        frames=info.num_frames,
        frames_decoded=info.num_frames if decoded else None,
        duration=round(info.duration, 6),
        width=info.width,
        height=info.height,
        rotation=info.rotation,
        codec=info.codec,
        audio=tuple(track.codec for track in info.audio),
        subtitles=tuple(track.codec for track in info.subtitles),
        detail=_concealed(index) if index.damage else "",
    )


def _concealed(index: VideoIndex) -> str:
    count = int(np.count_nonzero(index.concealed))
    return f"{count} frames may hold filled-in parts" if count else ""


def _examine_images(source: Source, limits: Limits) -> Row:
    from rushes.video.readers.images_reader import ImagesReader

    catalogue = Catalogue.from_items({source.video_id: source.path})
    info = ImagesReader(catalogue, limits=limits).describe(source.video_id)
    return Row(
        str(source.path),
        "ok",
        frames=info.num_frames,
        duration=info.duration,
        width=info.width,
        height=info.height,
        rotation=0,
        codec="mjpeg",
    )


def doctor(
    videos: Catalogue | Iterable[str | Path],
    deep: bool = False,
    workers: int | None = None,
    progress: bool = True,
    limits: Limits | None = None,
) -> list[Row]:
    """Examine every file, in parallel, each in a process that may die without harm.

    Args:
        videos: a catalogue, or paths.
        deep: decode everything.
        workers: processes; by default one a core.
        progress: show a bar on stderr.
        limits: what is refused.

    Returns:
        One row a file, in the order of `videos`.
    """
    sources, bad = _sources(videos)
    rows: dict[int, Row] = dict(bad)
    with _Bar(len(sources) + len(bad), progress) as bar:
        bar.update(len(bad))
        for place, row in _examined(sources, deep, workers, limits or Limits()):
            rows[place] = row
            bar.update(1)
    return [rows[place] for place in sorted(rows)]


def _sources(
    videos: Catalogue | Iterable[str | Path],
) -> tuple[list[tuple[int, Source]], list[tuple[int, Row]]]:
    found: list[tuple[int, Source]] = []
    bad: list[tuple[int, Row]] = []
    if not isinstance(videos, Catalogue):
        return [(i, Source("file", str(p), Path(p))) for i, p in enumerate(videos)], bad
    for place, video_id in enumerate(videos.ids()):
        try:
            found.append((place, videos.locate(video_id)))
        except VideoError as error:
            bad.append((place, Row(video_id, "refused", error.reason, detail=error.detail)))
    return found, bad


def _examined(
    sources: Sequence[tuple[int, Source]], deep: bool, workers: int | None, limits: Limits
) -> Iterator[tuple[int, Row]]:
    """Rows as they are ready. A file on which its process dies is tried once more, alone."""
    count = max(1, min(workers or os.cpu_count() or 1, len(sources)))
    if count == 1 and not deep:
        yield from ((place, examine(source, deep, limits)) for place, source in sources)
        return
    left = dict(sources)
    try:
        with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
            jobs = [(place, pool.submit(examine, s, deep, limits)) for place, s in sources]
            for place, job in jobs:
                row = job.result()
                del left[place]
                yield place, row
    except BrokenProcessPool:
        for place, source in left.items():
            yield place, _alone(source, deep, limits)


def _alone(source: Source, deep: bool, limits: Limits) -> Row:
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(examine, source, deep, limits).result(timeout=_DEFAULT_TIMEOUT)
    except BrokenProcessPool:
        return Row(str(source.path), "refused", "worker_died", detail="the decoder crashed")
    except TimeoutError:
        return Row(str(source.path), "refused", "timeout", detail=f"{_DEFAULT_TIMEOUT:.0f} s")


class _Bar:
    """tqdm where progress is wanted, else nothing."""

    def __init__(self, total: int, wanted: bool) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=total, unit="file", disable=not wanted, file=sys.stderr)

    def update(self, count: int) -> None:
        """Count files."""
        self._bar.update(count)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def print_table(rows: Sequence[Row], out: TextIO) -> None:
    """A table for people, then the counts."""
    heads = ("status", "reason", "frames", "seconds", "size", "turn", "codec", "audio", "path")
    lines = [heads, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads) - 1)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=False)]
        out.write("  ".join([*cells, line[-1]]) + "\n")
    counts = Counter(row.status for row in rows)
    told = ", ".join(f"{counts[status]} {status}" for status in ("ok", "damaged", "refused"))
    out.write(f"{len(rows)} files: {told}\n")


def _cells(row: Row) -> tuple[str, ...]:
    size = f"{row.width}x{row.height}" if row.width is not None else "-"
    seconds = f"{row.duration:.3f}" if row.duration is not None else "-"
    return (
        row.status,
        row.reason or "-",
        "-" if row.frames is None else str(row.frames),
        seconds,
        size,
        str(row.rotation or 0),
        row.codec or "-",
        ",".join(row.audio) or "-",
        row.path,
    )


def corpus(target: Path) -> Catalogue | list[Path]:
    """The videos of a manifest or a folder, or one file.

    A folder is taken as it is: every file with a video's ending, whatever it proves to hold.
    """
    if target.is_dir():
        catalogue = open_catalogue(target)
        if catalogue.kind == "file":
            paths = (p for p in target.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES)
            return sorted(p for p in paths if p.is_file())
        return catalogue
    if target.suffix.lower() in (".jsonl", ".csv"):
        return open_catalogue(target)
    return [target]


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 when every file is ok, 1 when some are not, 2 when none could be examined."""
    parser = argparse.ArgumentParser(prog="rushes doctor", description="Examine video files.")
    parser.add_argument("target", type=Path, help="folder, manifest (.jsonl, .csv) or file")
    parser.add_argument("--deep", action="store_true", help="decode everything")
    parser.add_argument(
        "--json", type=Path, metavar="OUT", help="write the rows there, `-`: stdout"
    )
    parser.add_argument(
        "--workers", type=int, default=None, help="processes, by default one a core"
    )
    parser.add_argument("--max-pixels", type=int, default=Limits().max_pixels)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(argv)
    try:
        if not options.target.exists():
            raise RefusedVideo(str(options.target), "no such file or folder", "missing")
        limits = replace(Limits(), max_pixels=options.max_pixels)
        rows = doctor(
            corpus(options.target), options.deep, options.workers, not options.quiet, limits
        )
    except RushesError as error:
        sys.stderr.write(f"rushes doctor: {error}\n")
        return 2
    if not rows:
        sys.stderr.write(f"rushes doctor: no videos in {options.target}\n")
        return 2
    text = json.dumps({"rows": [asdict(row) for row in rows]}, indent=1)
    if str(options.json) == "-":
        sys.stdout.write(text + "\n")
    else:
        print_table(rows, sys.stdout)
        if options.json is not None:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(text, encoding="utf-8")
    return 0 if all(row.status == "ok" for row in rows) else 1
