"""`rushes doctor`: what every file of a corpus holds, or why it is bad."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, TextIO

import numpy as np

from rushes.errors import ConfigError, MissingVideo, RushesError, StorageError, VideoError
from rushes.video.asides import require_file
from rushes.video.catalogue import Catalogue, Source, open_catalogue
from rushes.video.index import VideoIndex
from rushes.video.limits import Limits
from rushes.video.probe import build_index
from rushes.video.readers import open_reader
from rushes.video.request import Frames, FrameStatus, Request, Size
from rushes.video.store_jobs import run_jobs

Status = Literal["ok", "damaged", "refused"]

_TIMEOUT = 3600.0
_MEMORY = 16 * 2**30
"""Bytes of address space of a process that examines files."""
_DEEP_FRAMES = 64
"""Frames of a store or an image folder that are read at once."""


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
    name = source.video_id if source.kind == "bytes" else _path_of(source)
    limits = limits or Limits()
    try:
        if source.kind in ("images", "store"):
            return _examine_by_reading(source, deep, limits)
        index = build_index(source, limits, deep=deep)
    except RushesError as error:
        return _refused(name, error)
    return _row(name, index, decoded=deep or index.damage is not None)


def _path_of(source: Source) -> str:
    return str(source.path / source.video_id if source.kind == "store" else source.path)


def _refused(name: str, error: RushesError) -> Row:
    if isinstance(error, VideoError):
        return Row(name, "refused", error.reason, detail=error.detail)
    return Row(name, "refused", "undecodable", detail=str(error))


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


def _examine_by_reading(source: Source, deep: bool, limits: Limits) -> Row:
    """A folder of images or a clip of a store: no packets to count, so it is read."""
    if source.kind == "images":
        catalogue = Catalogue.from_items({source.video_id: source.path})
    else:
        catalogue = open_catalogue(source.path, "store")
    reader = open_reader(catalogue, limits=limits)
    lost = 0
    try:
        info = reader.describe(source.video_id)
        if deep:
            for start in range(0, info.num_frames, _DEEP_FRAMES):
                times = tuple(info.frame_times[start : start + _DEEP_FRAMES].tolist())
                small = Frames(times, Size(max(1, info.height // 8), max(1, info.width // 8)))
                reply = reader.read(Request(source.video_id, (small,)))
                lost += int(np.count_nonzero(reply.status["frames"] == FrameStatus.MISSING))
    finally:
        reader.close()
    damaged = info.damaged or lost > 0
    return Row(
        _path_of(source),
        "damaged" if damaged else "ok",
        "undecodable" if damaged else "",
        frames=info.num_frames,
        frames_decoded=info.num_frames - lost if deep else None,
        duration=round(info.duration, 6),
        width=info.width,
        height=info.height,
        rotation=info.rotation,
        codec=info.codec,
        audio=tuple(track.codec for track in info.audio),
        subtitles=tuple(track.codec for track in info.subtitles),
    )


def doctor(
    videos: Catalogue | Iterable[str | Path],
    deep: bool = False,
    workers: int | None = None,
    progress: bool = True,
    limits: Limits | None = None,
    timeout: float = _TIMEOUT,
) -> list[Row]:
    """Examine every file, in parallel, in processes that may hang or die without harm.

    Args:
        videos: a catalogue, or paths.
        deep: decode everything.
        workers: processes; by default one a core.
        progress: show a bar on stderr.
        limits: what is refused.
        timeout: seconds that one file may take.

    Returns:
        One row a file, in the order of `videos`.

    Raises:
        ConfigError: `workers` or a limit makes no sense.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"workers={workers}: expected at least 1")
    if limits is not None and limits.max_pixels < 1:
        raise ConfigError(f"max_pixels={limits.max_pixels}: expected at least 1")
    entries = _entries(videos)
    rows: dict[int, Row] = {
        place: _refused(entry.video, entry)
        for place, entry in enumerate(entries)
        if isinstance(entry, VideoError)
    }
    left = [(place, entry) for place, entry in enumerate(entries) if isinstance(entry, Source)]
    with _Bar(len(entries), progress) as bar:
        bar.update(len(rows))
        names = [_name(source) for _, source in left]
        results = run_jobs(
            partial(examine, deep=deep, limits=limits or Limits()),
            [source for _, source in left],
            names,
            jobs=max(1, min(workers or os.cpu_count() or 1, len(left))),
            timeout=timeout,
            # A store is mapped into memory, however large it is, and is no foreign file.
            memory=0 if any(source.kind == "store" for _, source in left) else _MEMORY,
        )
        for number, outcome in results:
            row = outcome if isinstance(outcome, Row) else _refused(names[number], outcome)
            rows[left[number][0]] = row
            bar.update(1)
    return [rows[place] for place in sorted(rows)]


def _entries(videos: Catalogue | Iterable[str | Path]) -> Sequence[Source | VideoError]:
    if isinstance(videos, Catalogue):
        return videos.inventory()
    return [Source("file", str(path), Path(path)) for path in videos]


def _name(source: Source) -> str:
    return str(source.path) if source.kind in ("file", "images") else source.video_id


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
        printable(row.codec or "-"),
        printable(",".join(row.audio) or "-"),
        printable(row.path),
    )


def printable(text: str) -> str:
    """Text that stays on its line of a terminal: what controls it or is no character is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def corpus(target: Path) -> Catalogue | list[Path]:
    """The videos of a manifest or a folder, or one file."""
    if target.is_dir() or target.suffix.lower() in (".jsonl", ".csv"):
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
        if not os.path.lexists(options.target):
            raise MissingVideo(str(options.target), "no such file or folder")
        if options.json is not None and str(options.json) != "-":
            require_file(options.json)  # at once, not after hours
        limits = replace(Limits(), max_pixels=options.max_pixels)
        rows = doctor(
            corpus(options.target), options.deep, options.workers, not options.quiet, limits
        )
        if not rows:
            raise MissingVideo(str(options.target), "no videos there")
        _tell(rows, options.json)
    except RushesError as error:
        sys.stderr.write(f"rushes doctor: {printable(str(error))}\n")
        return 2
    return 0 if all(row.status == "ok" for row in rows) else 1


def _tell(rows: Sequence[Row], target: Path | None) -> None:
    """Print the table and write the rows to `target`; or print the rows where it is `-`."""
    text = json.dumps({"rows": [asdict(row) for row in rows]}, indent=1)
    if str(target) == "-":
        sys.stdout.write(text + "\n")
        return
    print_table(rows, sys.stdout)
    if target is not None:
        try:
            target.write_text(text, encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{target}: cannot be written: {error.strerror}") from error
