"""The stage-1 sample from raw files: ours against torchcodec, decord, OpenCV and plain PyAV.

    python benchmarks/decode.py --videos DIR --json out.json

One sample is 2 clips of 7 frames, 12 frames apart (closer in short files, as published): the middle
frame at full size, six neighbours at a quarter. One process on one core; every side opens the file
anew, and all sides take the same samples in turn. Files: H.264 that decodes cleanly, with time
stamps, at least 230,400 pixels and 25 frames. Ours may use its cached index, whose building is
reported; torchcodec also gets it as `custom_frame_mappings`. Sides must agree to 35 dB.

    ratio.raw.geomean     best peer in its best mode / ours, geometric mean over files
    ratio.raw.min         the worst file
    ratio.store.*, bytes.store_over_raw, store.psnr_min, ms.store    see _decode_store.py
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from _decode_peers import SIDES, Pictures, Sample, mappings_of
from _figures import add_json, publish

from rushes.errors import VideoError
from rushes.video.catalogue import VIDEO_SUFFIXES, Catalogue
from rushes.video.index import NO_TIME, VideoIndex
from rushes.video.limits import Limits
from rushes.video.probe import build_index, source_of
from rushes.video.readers.pyav_reader import PyAVReader
from rushes.video.request import Frames, Request, Size

CLIPS, FRAMES, STRIDE = 2, 7, 12
MIN_PIXELS, MIN_FRAMES, MIN_PSNR = 230_400, 25, 35.0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--videos", type=Path, required=True, help="folder of raw files")
    add_json(parser)
    parser.add_argument("--rounds", type=int, default=15, help="samples a file")
    parser.add_argument("--only", default="", help="files whose path holds this text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--core", type=int, default=None, help="pin to this core")
    parser.add_argument("--no-store", action="store_true", help="raw files only")
    options = parser.parse_args(arguments)
    if options.core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {options.core})
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    files = eligible(options.videos, options.only)
    if not files:
        print(f"no H.264 file of at least {MIN_PIXELS} pixels in {options.videos}", file=sys.stderr)
        return 1
    rows = [measure(path, index, options.rounds, options.seed) for path, index in files]
    report: dict[str, Any] = {"rounds": options.rounds, "files": rows}
    ratios = [row["ratio"] for row in rows]
    report["ratio.raw.geomean"] = math.exp(statistics.fmean(map(math.log, ratios)))
    report["ratio.raw.min"] = min(ratios)
    report["psnr.min"] = min(row["psnr"] for row in rows)
    if not options.no_store:
        report.update(store_part(files, rows, options.rounds, options.seed))
    publish(report, options.json, hide=("files",))
    return 0 if report["psnr.min"] >= MIN_PSNR else 1


def store_part(
    files: list[tuple[Path, VideoIndex]], rows: list[dict[str, Any]], rounds: int, seed: int
) -> dict[str, Any]:
    """The figures of the prepared store, from `_decode_store.measure`, where there is one."""
    if importlib.util.find_spec("_decode_store") is None:
        print("no benchmarks/_decode_store.py: the store is not measured", file=sys.stderr)
        return {}
    from _decode_store import measure as measure_store

    found: dict[str, Any] = measure_store(files, rows, rounds, seed)
    return found


def eligible(folder: Path, only: str) -> list[tuple[Path, VideoIndex]]:
    """The files to measure, with their indexes."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in VIDEO_SUFFIXES or only not in str(path):
            continue
        try:
            index = build_index(source_of(path), Limits(), deep=True)
        except VideoError:
            continue
        info = index.info
        stamped = bool((index.pts[index.frame_packets] != NO_TIME).all())
        large = info.coded_width * info.coded_height >= MIN_PIXELS
        clean = index.damage is None and not index.whole
        if info.codec == "h264" and stamped and large and clean and info.num_frames >= MIN_FRAMES:
            found.append((path, index))
    return found


def draw(path: Path, index: VideoIndex, generator: np.random.Generator, mappings: str) -> Sample:
    """A sample of a file, centres drawn without replacement as published."""
    total, neighbours = index.info.num_frames, FRAMES // 2
    stride = STRIDE
    if total < 2 * neighbours * stride + CLIPS:
        stride = max(1, (total - CLIPS) // (2 * neighbours))
    low, high = neighbours * stride, total - neighbours * stride
    centres = np.sort(generator.choice(np.arange(low, high), size=CLIPS, replace=False))
    frames = centres[:, None] + np.arange(-neighbours, neighbours + 1) * stride
    small = (index.info.coded_height // 4, index.info.coded_width // 4)
    return Sample(path, index, mappings, frames, small)


def ours(reader: PyAVReader, sample: Sample) -> tuple[Pictures, Pictures]:
    """Our reader, opening the file anew, its index read from the cache on disk."""
    reader.release()
    times = sample.index.info.frame_times
    reply = reader.read(
        Request(
            "v",
            (
                Frames(tuple(times[sample.high_frames].tolist()), name="high"),
                Frames(
                    tuple(times[sample.low_frames].tolist()),
                    size=Size(*sample.low),
                    resample="bilinear",
                    name="low",
                ),
            ),
        )
    )
    high: Any = reply.arrays["high"]
    low: Any = reply.arrays["low"]
    return high, low


def measure(path: Path, index: VideoIndex, rounds: int, seed: int) -> dict[str, Any]:
    """Median seconds of every side on one file."""
    generator = np.random.default_rng(seed)
    mappings = mappings_of(index)
    began = time.perf_counter()
    build_index(source_of(path), Limits())
    building = time.perf_counter() - began
    took: dict[str, list[float]] = {name: [] for name in ("ours", *SIDES)}
    psnr: dict[str, float] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as cache:
        reader = PyAVReader(Catalogue.from_items({"v": path}), index_cache=Path(cache))
        reader.describe("v")
        for number in range(rounds + 1):
            sample = draw(path, index, generator, mappings)
            began = time.perf_counter()
            high, low = ours(reader, sample)
            spent = time.perf_counter() - began
            if number:  # the first round warms caches on all sides
                took["ours"].append(spent)
            for name, side in SIDES.items():
                if name in failed:
                    continue
                began = time.perf_counter()
                try:
                    their_high, their_low = side(sample)
                except (RuntimeError, ValueError, LookupError, cv2.error) as error:
                    failed[name] = str(error)[:200]
                    continue
                spent = time.perf_counter() - began
                if number:
                    took[name].append(spent)
                alike = min(agreement(high, their_high), agreement(low, their_low))
                psnr[name] = min(psnr.get(name, math.inf), alike)
        reader.close()
    medians = {name: statistics.median(times) for name, times in took.items() if times}
    # A side whose frames are others (OpenCV after a seek) is no peer on this file.
    peers = {n: t for n, t in medians.items() if n != "ours" and psnr[n] >= MIN_PSNR}
    best = min(peers, key=lambda name: peers[name])
    row = {
        "file": path.name,
        "size": [index.info.coded_width, index.info.coded_height],
        "ms": {name: round(1000 * seconds, 3) for name, seconds in medians.items()},
        "best_peer": best,
        "ratio": peers[best] / medians["ours"],
        "psnr": min(psnr[name] for name in peers),
        "psnr_sides": {name: round(value, 1) for name, value in psnr.items()},
        "index_ms": round(1000 * building, 3),
        "failed": failed,
        "excluded": sorted(set(medians) - set(peers) - {"ours"}),
    }
    print(
        f"{path.name}: {row['ratio']:.2f}x {best}", row["ms"], row["psnr_sides"], failed, flush=True
    )
    return row


def agreement(ours: Pictures, theirs: Pictures) -> float:
    """PSNR in dB between two sets of pictures, the worst picture."""
    if ours.shape != theirs.shape:
        return 0.0
    error = (ours.astype(np.float32) - theirs.astype(np.float32)) ** 2
    worst = float(error.reshape(len(error), -1).mean(axis=1).max())
    return 99.0 if worst == 0 else 10 * math.log10(255**2 / worst)


if __name__ == "__main__":
    sys.exit(main())
