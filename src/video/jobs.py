"""Runs one function over many videos: on all cores, on a share of them, or on a Ray cluster.

Every video gets a line in the report, good or bad. Whoever does the work writes files aside and
renames them, so a run that was killed is started again and goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from rushes.errors import AnnotationError, BackendMissing, ConfigError, RushesError, VideoError
from rushes.log import get_logger
from rushes.video.asides import aside_of, require_folder, written_aside

Engine = Literal["local", "ray"]
Row = dict[str, Any]

REPORT = "report.jsonl"
BAD_VIDEOS = "bad_videos.jsonl"
_SINCE = "since"
"""Key in a settings file: when its settings took the place of others."""

_log = get_logger(__name__)


@dataclass(frozen=True)
class Job:
    """One video's work.

    Attributes:
        video: id, unique among the jobs.
        work: makes the result and returns what the report shall say of it; raises `VideoError`.
        done: says what an earlier run left, None when there is work to do.
    """

    video: str
    work: Callable[[], Row]
    done: Callable[[], Row | None]


@dataclass(frozen=True)
class Shard:
    """The part `index` of `count` (from 0) of a list that several machines share."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From "i/n", i from 0 to n - 1."""
        try:
            index, count = (int(part) for part in text.split("/"))
        except ValueError as error:
            raise ConfigError(f"shard={text!r}: expected i/n, such as 0/4") from error
        if not 0 <= index < count:
            raise ConfigError(f"shard={text!r}: expected i from 0 to n - 1")
        return cls(index, count)

    def of(self, name: str) -> str:
        """A file name of this shard's own."""
        if self.count == 1:
            return name
        stem, _, ending = name.partition(".")
        return f"{stem}.{self.index}-of-{self.count}.{ending}"


def do_job(job: Job) -> Row:
    """Do one job; a video's error becomes a row."""
    start = time.perf_counter()
    try:
        found = job.done()
        row = {"status": "skipped", **found} if found is not None else {"status": "ok"}
        if found is None:
            row |= job.work()
    except VideoError as error:
        row = {"status": "failed", "reason": error.reason, "detail": error.detail}
    except RushesError as error:
        # Such as a machine of the cluster without ffmpeg: the others may have it.
        row = {"status": "failed", "reason": "not_prepared", "detail": str(error)}
    except OSError as error:
        # A full disk or a vanished file concerns this video; the report says so and goes on.
        row = {"status": "failed", "reason": "io_error", "detail": str(error)}
    return {"video": job.video, **row, "seconds": round(time.perf_counter() - start, 3)}


def run_jobs(
    jobs: Sequence[Job],
    folder: Path,
    *,
    workers: int | None = None,
    engine: Engine = "local",
    shard: Shard = Shard(),
    progress: bool = True,
    name: str = "prepare",
) -> list[Row]:
    """Do every job of the shard and write `report.jsonl` and `bad_videos.jsonl` into `folder`.

    Args:
        workers: jobs at a time; None takes every core (with Ray, every core of the cluster).
        engine: "ray" uses the cluster of RAY_ADDRESS, or starts one on this machine; `folder` and
            the videos must lie where all its machines see them.

    Returns:
        The report's rows, in the order of the jobs.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"workers={workers}: expected at least 1")
    mine = jobs[shard.index :: shard.count]
    require_folder(folder)
    run = {"local": _run_local, "ray": _run_ray}[engine]
    rows: dict[str, Row] = {}
    live = folder / shard.of(f".{REPORT}.part")
    bar = tqdm(total=len(mine), desc=name, unit="video", disable=not progress, smoothing=0.05)
    failed = 0
    with bar, live.open("w", encoding="utf-8", buffering=1) as report:
        for row in run(mine, workers):
            rows[row["video"]] = row
            report.write(json.dumps(row) + "\n")
            failed += row["status"] == "failed"
            bar.set_postfix_str(f"{failed} failed", refresh=False)
            bar.update()
    ordered = [rows[job.video] for job in mine]
    write_rows(folder / shard.of(REPORT), ordered)
    live.unlink()
    bad = [r for r in ordered if r["status"] == "failed"]
    write_rows(folder / shard.of(BAD_VIDEOS), bad)
    _log.info("%s: %d videos, %d failed, report in %s", name, len(ordered), len(bad), folder)
    return ordered


def _run_local(jobs: Sequence[Job], workers: int | None) -> Iterator[Row]:
    """Threads are enough: the work is done in ffmpeg's processes."""
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        futures = [pool.submit(do_job, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _run_ray(jobs: Sequence[Job], workers: int | None) -> Iterator[Row]:
    try:
        import ray
    except ImportError as error:
        raise BackendMissing("ray", "pip install 'rushes[ray]'") from error
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, include_dashboard=False)
    task = ray.remote(num_cpus=1, max_retries=2)(_do_on_node)
    untyped: Any = ray  # Ray has types for some of its calls only, and may not be installed
    resources: dict[str, float] = untyped.cluster_resources()
    limit = workers or max(1, int(resources.get("CPU", 1))) * 2
    waiting = list(reversed(jobs))
    running: dict[Any, Job] = {}
    try:
        while waiting or running:
            while waiting and len(running) < limit:
                job = waiting.pop()
                running[task.remote(job)] = job
            ready, _ = ray.wait(list(running), num_returns=1)
            for one in ready:
                yield _row_of_node(one, running.pop(one))
    finally:
        if started:
            ray.shutdown()


def _row_of_node(task: Any, job: Job) -> Row:
    """What came of a job; a machine or a process that was lost again and again costs this one."""
    import ray

    try:
        row: Row = ray.get(task)
    except ray.exceptions.RayTaskError:
        raise  # an error of our own code, as it would be without Ray
    except ray.exceptions.RayError as error:
        detail = str(error).strip().splitlines()[0]
        return {"video": job.video, "status": "failed", "reason": "worker_died", "detail": detail}
    return row


def _do_on_node(job: Job) -> Row:
    """As `do_job`, and says which machine did it."""
    import ray

    return {**do_job(job), "node": ray.get_runtime_context().get_node_id()}


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write JSON lines aside, then rename."""
    with written_aside(path) as aside:
        aside.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def keep_settings(folder: Path, name: str, settings: Row, force: bool) -> float:
    """Remember the settings of a folder's files; others later would mix two kinds in it.

    Returns:
        Since when these settings hold, in seconds since the epoch: files of the folder that are
        older were made with others, by a run whose change by `force` did not come to its end. With
        `force` no file is new enough: infinity.

    Raises:
        ConfigError: the folder was made with other settings, and `force` is not set; or it cannot
            be written to.
    """
    require_folder(folder)
    path = folder / name
    before = _settings_of(path)
    if before is None:
        write_rows(path, [settings])
        return math.inf if force else 0.0
    since = float(before.pop(_SINCE, 0.0))
    other = sorted(k for k in {*before, *settings} if before.get(k) != settings.get(k))
    if other and not force:
        said = ", ".join(f"{k}={before.get(k)!r}, now {settings.get(k)!r}" for k in other)
        raise ConfigError(f"{path}: made with {said}; choose another folder or --force")
    if other:
        write_rows(path, [{**settings, _SINCE: _clock_of(folder)}])
    return math.inf if force else since


def _clock_of(folder: Path) -> float:
    """The time by the clock that stamps files of a folder; on a shared disk it is another's."""
    aside = aside_of(folder / "clock")
    try:
        aside.touch()
        return aside.stat().st_mtime
    finally:
        aside.unlink(missing_ok=True)


def _settings_of(path: Path) -> Row | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: needs a JSON object, holds {type(found).__name__}")
    return found


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The flags that say where and how parallel the work runs."""
    group = parser.add_argument_group("running")
    group.add_argument("--workers", type=int, help="videos at a time (one a core)")
    group.add_argument("--engine", choices=("local", "ray"), default="local")
    group.add_argument("--shard", default="0/1", help="i/n: do part i of n, from 0")
    group.add_argument("--timeout", type=float, help="seconds for one video (by its length)")
    group.add_argument("--force", action="store_true", help="make everything anew")
    group.add_argument(
        "--allow-bad", action="store_true", help="exit 0 although videos failed; the report says"
    )
    group.add_argument("--no-progress", action="store_true")


def add_published_options(parser: argparse.ArgumentParser) -> None:
    """The spelling of the published scripts: folders below --workdir, ids from --vidfile."""
    group = parser.add_argument_group("published spelling")
    group.add_argument("--workdir", type=Path, help="what the other folders are relative to")
    group.add_argument("--inputdir", type=Path, help="folder of the videos")
    group.add_argument("--outputdir", type=Path, help="folder of the results")
    group.add_argument("--vidfile", type=Path, help="JSON lines with clip_id: only these videos")


def folders_of(options: argparse.Namespace) -> tuple[Path, Path]:
    """Input and output of either spelling.

    Raises:
        ConfigError: one is missing, or both are the same.
    """
    work = options.workdir or Path()
    source, target = options.input, options.output
    source = source or (work / options.inputdir if options.inputdir else None)
    target = target or (work / options.outputdir if options.outputdir else None)
    if source is None or target is None:
        raise ConfigError("needs INPUT and OUTPUT (or --workdir, --inputdir, --outputdir)")
    if Path(source).resolve() == Path(target).resolve():
        raise ConfigError(f"{source}: input and output are the same folder")
    return Path(source), Path(target)


def wanted_ids(options: argparse.Namespace) -> list[str] | None:
    """The ids of --vidfile in order, each once; None without it."""
    if options.vidfile is None:
        return None
    return list(dict.fromkeys(video for video, _ in listed(options)))


def listed(options: argparse.Namespace) -> list[tuple[str, Row]]:
    """The lines of --vidfile, each with the id of its video.

    Raises:
        ConfigError: there is no such file.
        AnnotationError: with file and line.
    """
    path = (options.workdir or Path()) / options.vidfile
    path = path if path.exists() else options.vidfile
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"vidfile={path}: {error.strerror}") from error
    found: list[tuple[str, Row]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            found.append((str(row.get("clip_id") or row.get("video") or row["video_id"]), row))
        except (ValueError, KeyError, AttributeError) as error:
            raise AnnotationError(
                f"needs a JSON object with clip_id: {error!r}", str(path), number
            ) from error
    return found


def exit_code(rows: Sequence[Row], allow_bad: bool) -> int:
    """1 when a video failed; with `allow_bad` only when all did."""
    failed = sum(row["status"] == "failed" for row in rows)
    if allow_bad:
        return int(bool(rows) and failed == len(rows))
    return int(failed > 0)
