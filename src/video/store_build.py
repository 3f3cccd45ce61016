"""`rushes store VIDEOS STORE`: puts prepared footage into a store, and says of every video how.

A build can be killed at any moment and run again: what is complete in the store is kept, the rest
is made. Clips are prepared in worker processes, written aside, checked there by decoding them, and
taken in one by one.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from av.error import FFmpegError
from tqdm import tqdm

from rushes.errors import ConfigError, RushesError, StorageError, UnreadableVideo, VideoError
from rushes.log import get_logger, setup_logging
from rushes.video.asides import require_folder
from rushes.video.catalogue import Catalogue, Source, open_catalogue
from rushes.video.limits import Limits
from rushes.video.store_features import attach_features, feature_folders
from rushes.video.store_format import (
    DESCRIPTION,
    Description,
    StoreSettings,
    digest,
    entry_key,
    read_description,
    shard_of,
    unpack_entry,
    write_description,
)
from rushes.video.store_jobs import run_jobs
from rushes.video.store_prepare import Prepared, prepare_clip, source_state
from rushes.video.store_values import ShardWriter

REPORT = "report.jsonl"
MAX_TIMEOUT = 1e7
"""Seconds; a system's clock counts no longer ones."""
SHARD_BYTES = 8 << 30
"""Bytes of raw footage per shard that a new store aims at."""
_log = get_logger(__name__)


@dataclass(frozen=True)
class _Task:
    source: Source
    settings: StoreSettings
    limits: Limits
    aside: Path


@dataclass
class Totals:
    """What a build did.

    Attributes:
        prepared, kept, failed: counts of videos.
        bytes_source, bytes_store: of the videos that were prepared now.
        psnr: the worst full-size frame among them.
    """

    prepared: int = 0
    kept: int = 0
    failed: int = 0
    bytes_source: int = 0
    bytes_store: int = 0
    psnr: float = math.inf


def build_store(
    catalogue: Catalogue,
    root: Path,
    settings: StoreSettings,
    *,
    jobs: int = 1,
    timeout: float = 3600.0,
    memory: int = 0,
    shards: int | None = None,
    limits: Limits | None = None,
    progress: bool = False,
) -> Totals:
    """Bring a store up to date with a catalogue.

    Args:
        catalogue: of video files.
        root: folder of the store, made when missing.
        settings: must be those of a store that is there already.
        jobs: worker processes; 0 works in this one.
        timeout: seconds that one video may take.
        memory: bytes of address space of a worker; 0 sets no limit.
        shards: of a new store; by default one for every 8 GiB of raw footage.
        limits: what is refused.
        progress: show a bar on stderr.

    Returns:
        Totals; `report.jsonl` in the store has a line for every video.

    Raises:
        ConfigError: `jobs`, `timeout` or `memory` make no sense, or `root` cannot be written to.
        StorageError: another build is at work, or the store was made with other settings.
    """
    _check_work(jobs, timeout, memory)
    require_folder(root)
    with _alone(root):
        sources, bad = _sources(catalogue)
        description = _prepare_folder(root, settings, sources, shards)
        writer = ShardWriter(root, description.shards)
        for shard in range(description.shards):
            writer.environment(shard)
        try:
            totals = _build(
                sources, bad, root, writer, description,
                limits or Limits(), (jobs, timeout, memory), progress,
            )  # fmt: skip
            writer.compact()
        finally:
            writer.close()
        write_description(root, replace(description, complete=True))
    return totals


def _check_work(jobs: int, timeout: float, memory: float) -> None:
    if jobs < 0:
        raise ConfigError(f"jobs={jobs}: expected 0 or more processes")
    if not 0 < timeout <= MAX_TIMEOUT:
        raise ConfigError(f"timeout={timeout:g}: expected more than 0, at most {MAX_TIMEOUT:g} s")
    if not 0 <= memory < math.inf:
        raise ConfigError(f"memory={memory:g}: expected 0 (no limit) or more")


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    with (root / ".building").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StorageError(f"{root}: another process is building this store") from error
        yield


def _sources(catalogue: Catalogue) -> tuple[list[Source], list[VideoError]]:
    sources, bad = [], []
    for video_id in catalogue.ids():
        try:
            sources.append(catalogue.locate(video_id))
        except VideoError as error:
            bad.append(error)
    return sources, bad


def _prepare_folder(
    root: Path, settings: StoreSettings, sources: Sequence[Source], shards: int | None
) -> Description:
    if (root / DESCRIPTION).exists():
        old = read_description(root)
        if old.settings != settings:
            names = [
                f"{f.name}={getattr(old.settings, f.name)!r}"
                for f in fields(settings)
                if getattr(old.settings, f.name) != getattr(settings, f.name)
            ]
            raise StorageError(f"{root}: the store was made with {', '.join(names)}")
        if shards not in (None, old.shards):
            raise StorageError(f"{root}: the store has {old.shards} shards, {shards} are asked")
        description = replace(old, complete=False)
    else:
        total = sum(s.path.stat().st_size for s in sources if s.kind == "file")
        description = Description(shards or min(4096, 1 + total // SHARD_BYTES), settings, False)
    write_description(root, description)
    aside = root / "aside"
    aside.mkdir(exist_ok=True)
    for left in aside.iterdir():
        left.unlink()
    return description


def _build(
    sources: Sequence[Source],
    bad: Sequence[VideoError],
    root: Path,
    writer: ShardWriter,
    description: Description,
    limits: Limits,
    work: tuple[int, float, int],
    progress: bool,
) -> Totals:
    totals = Totals()
    aside, (jobs, timeout, memory) = root / "aside", work
    with (root / REPORT).open("w", encoding="utf-8", buffering=1) as report:
        for error in bad:
            totals.failed += 1
            _tell(report, error.video, None, error)
        tasks = []
        for source in sources:
            if _is_kept(source, writer, description):
                totals.kept += 1
                _tell(report, source.video_id, source.path, "kept")
            else:
                name = digest(source.video_id).hex()
                tasks.append(_Task(source, description.settings, limits, aside / name))
        names = [task.source.video_id for task in tasks]
        results = run_jobs(_work, tasks, names, jobs=jobs, timeout=timeout, memory=memory)
        bar = tqdm(results, total=len(tasks), unit="video", disable=not progress)
        for place, outcome in bar:
            task = tasks[place]
            if isinstance(outcome, Prepared):
                key = digest(task.source.video_id)
                writer.put(shard_of(key, description.shards), task.aside)
                _count(totals, outcome)
            else:
                totals.failed += 1
                _log.warning("%s", outcome)
            task.aside.unlink(missing_ok=True)
            _tell(report, task.source.video_id, task.source.path, outcome)
    aside.rmdir()
    return totals


def _work(task: _Task) -> Prepared:
    try:
        return prepare_clip(task.source, task.settings, task.limits, task.aside)
    except MemoryError as error:
        detail = "needs more memory than a worker may have"
        raise UnreadableVideo(task.source.video_id, detail, "over_limit") from error
    except (FFmpegError, OSError) as error:
        # A shape that the encoder does not take, a full disk: this video's misfortune alone.
        raise StorageError(f"{task.source.video_id}: cannot be stored: {error}") from error


def _is_kept(source: Source, writer: ShardWriter, description: Description) -> bool:
    """Whether the store holds this state of a source already."""
    key = digest(source.video_id)
    packed = writer.get(shard_of(key, description.shards), entry_key(key))
    if packed is None or source.kind != "file":
        return False
    try:
        known = unpack_entry(packed, source.video_id).source
    except StorageError:
        return False
    now = source_state(source.path, os.stat(source.path))
    return all(known.get(name) == now[name] for name in ("bytes", "mtime_ns"))


def _count(totals: Totals, prepared: Prepared) -> None:
    totals.prepared += 1
    totals.bytes_source += prepared.bytes_source
    totals.bytes_store += prepared.bytes_store
    totals.psnr = min(totals.psnr, prepared.psnr)


def _tell(report: Any, video_id: str, path: Path | None, outcome: Any) -> None:
    row: dict[str, Any] = {"id": video_id, "path": None if path is None else str(path)}
    if isinstance(outcome, Prepared):
        row |= {"status": "prepared", **asdict(outcome)}
        for name in ("psnr", "psnr_small"):
            row[name] = round(row[name], 2)
    elif isinstance(outcome, RushesError):
        reason = outcome.reason if isinstance(outcome, VideoError) else "not_prepared"
        row |= {"status": "failed", "reason": reason, "detail": str(outcome)}
    else:
        row["status"] = outcome
    report.write(json.dumps(row) + "\n")


def _parser() -> argparse.ArgumentParser:
    standard = StoreSettings()
    parser = argparse.ArgumentParser(prog="rushes store", description=__doc__)
    parser.add_argument("videos", help="folder or manifest of video files")
    parser.add_argument("store", type=Path, help="folder of the store")
    parser.add_argument(
        "--grid",
        type=int,
        default=standard.grid,
        metavar="FRAMES",
        help="source frames between full-size frames (default %(default)s)",
    )
    parser.add_argument(
        "--small",
        type=float,
        default=standard.small,
        metavar="SHARE",
        help="size of the frames between (default %(default)s of the display)",
    )
    parser.add_argument("--fps", type=float, help="keep at most this many frames a second")
    parser.add_argument(
        "--psnr",
        type=float,
        default=standard.psnr,
        metavar="DB",
        help="least luma PSNR of full-size frames (default %(default)s)",
    )
    parser.add_argument(
        "--small-psnr",
        type=float,
        default=standard.small_psnr,
        metavar="DB",
        help="least luma PSNR of small frames (default %(default)s)",
    )
    parser.add_argument(
        "--crf",
        type=int,
        default=standard.crf,
        help="x264's rate factor to begin with (default %(default)s)",
    )
    parser.add_argument(
        "--all-full-size",
        action="store_true",
        help="keep every frame at full size; larger, and slower between the grid",
    )
    parser.add_argument("--no-audio", action="store_true")
    parser.add_argument("--no-subtitles", action="store_true")
    parser.add_argument(
        "--features",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="attach rows from FOLDER/<id>.npz (times, values) as a track",
    )
    parser.add_argument("--shards", type=int, help="of a new store; default one per 8 GiB raw")
    parser.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count() or 1,
        help="worker processes (default: all cores); 0 works in this one",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=3600.0,
        metavar="SECONDS",
        help="for one video (default %(default)s)",
    )
    parser.add_argument(
        "--memory",
        type=float,
        default=16.0,
        metavar="GIB",
        help="address space of a worker (default %(default)s); 0: no limit",
    )
    parser.add_argument("--no-progress", action="store_true")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Build a store; exit code 0, or 1 when a video could not be taken."""
    args = _parser().parse_args(argv)
    setup_logging()
    # A build takes hours: what is wrong is said before it begins.
    _check_work(args.jobs, args.timeout, args.memory)
    feature_folders(args.features)
    settings = StoreSettings(
        grid=args.grid, small=args.small, fps=args.fps, psnr=args.psnr,
        small_psnr=args.small_psnr, crf=args.crf, all_full_size=args.all_full_size,
        audio=not args.no_audio, subtitles=not args.no_subtitles,
    )  # fmt: skip
    totals = build_store(
        open_catalogue(args.videos), args.store, settings,
        jobs=args.jobs, timeout=args.timeout, memory=int(args.memory * 2**30), shards=args.shards,
        progress=not args.no_progress and sys.stderr.isatty(),
    )  # fmt: skip
    attached = attach_features(args.store, args.features) if args.features else 0
    _log.info(
        "%s: %d prepared (%.1f MB of %.1f MB), %d kept, %d failed, %d feature tracks; see %s",
        args.store, totals.prepared, totals.bytes_store / 1e6, totals.bytes_source / 1e6,
        totals.kept, totals.failed, attached, args.store / REPORT,
    )  # fmt: skip
    return 1 if totals.failed else 0
