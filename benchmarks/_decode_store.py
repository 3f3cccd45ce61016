"""The store's part of `decode.py`: the same sample, centres drawn from the grid on both sides.

The store is made by the default preparation from all measured files. It stays open, as in a process
that trains; each sample gets a new reader, so entries, decoders and scalers are made anew. Peers
open the raw file anew, as in the raw part; those that were near the best one there take part.

    ratio.store.geomean      best peer on the raw file / store, geometric mean over files
    ratio.store.min          the worst file
    bytes.store_over_raw     files of the store without sound / raw files without sound
    store.psnr_min           worst luma PSNR of a full-size frame against the decoded source, dB
    store.psnr_peer_min      store against the peer's pictures in RGB, worst output of a sample, dB
    ms.store                 geometric mean of the medians
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _decode_peers import SIDES, Pictures, Sample, mappings_of

from rushes.video.catalogue import Catalogue
from rushes.video.index import VideoIndex
from rushes.video.request import Frames, Request, Size
from rushes.video.store import StoreReader, open_store
from rushes.video.store_build import build_store
from rushes.video.store_format import AUDIO, FULL, SMALL, StoreSettings

CLIPS, FRAMES, STRIDE = 2, 7, 12
NEAR = 1.5
"""Peers within this factor of the best one on the raw part take part."""
MIN_PSNR = 30.0
"""Between the store, which is lossy, and a peer that shows the same frames, dB."""


def measure(
    files: list[tuple[Path, VideoIndex]], rows: list[dict[str, Any]], rounds: int, seed: int
) -> dict[str, Any]:
    """The figures of the store for the files and rows of the raw part."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "store"
        items = {path.name: path for path, _ in files}
        began = time.perf_counter()
        totals = build_store(Catalogue.from_items(dict(items)), root, StoreSettings(), jobs=0)
        building = time.perf_counter() - began
        assert not totals.failed, f"{totals.failed} of {len(files)} files are not in the store"
        held = open_store(root)
        try:
            measured = [
                _measure(root, held, path, index, row, rounds, seed)
                for (path, index), row in zip(files, rows, strict=True)
            ]
            psnr = min(_worst(held, path) for path, _ in files)
            ratio = _bytes(root, held, files)
        finally:
            held.close()
    ratios = [row["ratio"] for row in measured]
    return {
        "ratio.store.geomean": _geomean(ratios),
        "ratio.store.min": min(ratios),
        "bytes.store_over_raw": ratio,
        "store.psnr_min": psnr,
        "store.psnr_peer_min": min(row["psnr_peer"] for row in measured),
        "ms.store": _geomean([row["ms_store"] for row in measured]),
        "store.build_seconds": building,
        "store.files": measured,
    }


def _geomean(values: list[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def _worst(store: StoreReader, path: Path) -> float:
    return store.entry(path.name).pictures[FULL].psnr


def _bytes(root: Path, store: StoreReader, files: list[tuple[Path, VideoIndex]]) -> float:
    """Everything on disk but the packets of sound, over the raw files without theirs."""
    on_disk = sum(path.stat().st_size for path in root.iterdir())
    kept_sound = raw = 0
    for path, index in files:
        if AUDIO in store.entry(path.name).plain:
            kept_sound += len(store.chunk(path.name, AUDIO))
        raw += int(index.sizes.sum())  # pictures alone: sound and container left out
    return (on_disk - kept_sound) / raw


def draw(
    path: Path, index: VideoIndex, grid: np.ndarray, generator: np.random.Generator, mappings: str
) -> Sample:
    """A sample whose centres lie on the grid; the published shrinking of the stride applies."""
    total, neighbours = index.info.num_frames, FRAMES // 2
    stride = STRIDE
    if total < 2 * neighbours * stride + CLIPS:
        stride = max(1, (total - CLIPS) // (2 * neighbours))
    fitting = grid[(grid >= neighbours * stride) & (grid < total - neighbours * stride)]
    chosen = fitting if len(fitting) else grid
    centres = np.sort(generator.choice(chosen, size=CLIPS, replace=len(chosen) < CLIPS))
    frames = centres[:, None] + np.arange(-neighbours, neighbours + 1) * stride
    small = (index.info.coded_height // 4, index.info.coded_width // 4)
    return Sample(path, index, mappings, np.clip(frames, 0, total - 1), small)


def take(root: Path, sample: Sample) -> tuple[Pictures, Pictures]:
    """The sample from the store, through a new reader."""
    reader = open_store(root)
    times = sample.index.info.frame_times
    high = Frames(tuple(times[sample.high_frames].tolist()), name="high")
    low = Frames(tuple(times[sample.low_frames].tolist()), size=Size(*sample.low), name="low")
    reply = reader.read(Request(sample.path.name, (high, low)))
    reader.close()
    pictures: Any = reply.arrays
    return pictures["high"], pictures["low"]


def _measure(
    root: Path,
    held: StoreReader,
    path: Path,
    index: VideoIndex,
    row: dict[str, Any],
    rounds: int,
    seed: int,
) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    info, mappings = held.describe(path.name), mappings_of(index)
    grid = np.sort(held.entry(path.name).pictures[FULL].frames)
    assert len(info.frame_times) == index.info.num_frames
    near = NEAR * row["ms"][row["best_peer"]]
    peers = [n for n in SIDES if n not in row["excluded"] and row["ms"].get(n, math.inf) <= near]
    took: dict[str, list[float]] = {name: [] for name in ("store", *peers)}
    alike = dict.fromkeys(peers, math.inf)
    for number in range(rounds + 1):
        sample = draw(path, index, grid, generator, mappings)
        began = time.perf_counter()
        high, low = take(root, sample)
        spent = {"store": time.perf_counter() - began}
        for name in peers:
            began = time.perf_counter()
            their_high, their_low = SIDES[name](sample)
            spent[name] = time.perf_counter() - began
            alike[name] = min(alike[name], _psnr(high, their_high), _psnr(low, their_low))
        if number:  # the first round warms caches on all sides
            for name, seconds in spent.items():
                took[name].append(1000 * seconds)
    medians = {name: statistics.median(values) for name, values in took.items()}
    # A side whose frames are others is no peer on this file.
    peers = [name for name in peers if alike[name] >= MIN_PSNR]
    best = min(peers, key=lambda name: medians[name])
    found = {
        "file": path.name,
        "ms_store": medians["store"],
        "ms": {name: round(value, 3) for name, value in medians.items()},
        "best_peer": best,
        "ratio": medians[best] / medians["store"],
        "psnr_peer": alike[best],
        "psnr_small": held.entry(path.name).pictures[SMALL].psnr,
        "bytes_raw": os.path.getsize(path),
    }
    print(
        f"{path.name}: store {found['ratio']:.1f}x {best}", found["ms"], f"{alike[best]:.1f} dB",
        flush=True,
    )  # fmt: skip
    return found


def _psnr(ours: Pictures, theirs: Pictures) -> float:
    error = float(np.mean((ours.astype(np.float32) - theirs.astype(np.float32)) ** 2))
    return 99.0 if error == 0 else 10 * math.log10(255**2 / error)
