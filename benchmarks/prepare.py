"""Compressing a folder: `rushes prepare` against plain ffmpeg processes on the same cores.

    python benchmarks/prepare.py --json out.json [--videos DIR]

Both sides run the same encoder with the same settings, one thread a process, as many processes as
cores, in turns; medians over the rounds. Ours also probes every source, checks the frame count and
times of every result and writes the report.

    ratio.throughput     time of plain ffmpeg / time of ours; 1 is the same speed
    seconds.ours, seconds.ffmpeg, videos, workers
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from _figures import add_json, publish

from rushes.datasets.footage import render_corpus
from rushes.video import prepare
from rushes.video.catalogue import open_catalogue
from rushes.video.probe import probe
from rushes.video.transcode import Settings, encoding, ffmpeg_binary, keep_times

HEIGHT = 192


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    add_json(parser)
    parser.add_argument("--videos", type=Path, help="folder of videos (renders some)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        videos = options.videos or rendered(Path(scratch))
        figures = compare(videos, Path(scratch), options.rounds, options.workers)
    publish(figures, options.json)
    return 0


def rendered(scratch: Path) -> Path:
    """A few dozen sound videos of the demo corpus."""
    render_corpus(scratch / "corpus", train=0, val=0, test=32, progress=False)
    return scratch / "corpus/videos"


def compare(videos: Path, scratch: Path, rounds: int, workers: int) -> dict[str, Any]:
    """Both sides in turns, the first of each round changing."""
    catalogue = open_catalogue(videos)
    paths = [catalogue.locate(video).path for video in catalogue.ids()]
    commands = [plain_command(path) for path in paths]
    seconds: dict[str, list[float]] = {"ours": [], "ffmpeg": []}
    for number in range(rounds + 1):
        sides = ["ours", "ffmpeg"] if number % 2 else ["ffmpeg", "ours"]
        for side in sides:
            out = scratch / "out"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            start = time.perf_counter()
            if side == "ours":
                argv = [str(videos), str(out), "--height", str(HEIGHT), "--no-progress"]
                code = prepare.main([*argv, "--workers", str(workers)])
                assert code == 0, (out / "bad_videos.jsonl").read_text()
            else:
                run_plain(commands, out, workers)
            if number:  # the first round warms caches
                seconds[side].append(time.perf_counter() - start)
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    return {
        "ratio": {"throughput": medians["ffmpeg"] / medians["ours"]},
        "seconds": medians,
        "rounds": seconds,
        "videos": len(paths),
        "workers": workers,
    }


def plain_command(path: Path) -> list[str]:
    """What a person would write in a shell for the same result, without the output's name."""
    info = probe(path)
    options = encoding(Settings(height=HEIGHT), info) | keep_times()
    flags = [part for k, v in options.items() for part in (f"-{k}", str(v))]
    codecs = [track.codec for track in info.audio[:1]]
    sound = [part for c in codecs for part in ("-map", "0:a:0", "-c:a", _sound_codec(c))]
    return [
        *(ffmpeg_binary(), "-nostdin", "-loglevel", "error", "-y", "-i", str(path)),
        *("-map", "0:v:0", *sound, *flags),
    ]


def _sound_codec(codec: str) -> str:
    return "copy" if codec == "aac" else "aac"


def run_plain(commands: Sequence[list[str]], out: Path, workers: int) -> None:
    """Keep `workers` ffmpeg processes busy, as xargs -P does."""

    def one(item: tuple[int, list[str]]) -> None:
        number, command = item
        subprocess.run([*command, str(out / f"{number}.mp4")], check=True)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, enumerate(commands)))


if __name__ == "__main__":
    raise SystemExit(main())
