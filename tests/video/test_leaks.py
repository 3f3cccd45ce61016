"""Reading for days keeps memory and descriptors where they were."""

from __future__ import annotations

import gc
import os
import shutil
from pathlib import Path

import numpy as np
import psutil
import pytest
from tests.video.conftest import Rendered
from tests.video.counter_video import number_of

from rushes.video.catalogue import open_catalogue
from rushes.video.readers import open_reader
from rushes.video.request import Frames, Request, Size

NAMES = ("h264_b.mp4", "h264_pyramid.mkv", "vp9.webm", "hevc.mp4", "h264_open.ts", "mpeg4_b.avi")


def rush(counter: Rendered, folder: Path, files: int, reads: int, warm: int) -> float:
    """Random reads over copies of counter videos; returns the growth after `warm` reads in MB."""
    for number in range(files):
        recipe, path = counter(NAMES[number % len(NAMES)])
        shutil.copy(path, folder / f"{number:04d}{path.suffix}")
    reader = open_reader(open_catalogue(folder, "video"), index_cache=folder / "cache")
    generator = np.random.default_rng(0)
    process = psutil.Process()
    start_memory, start_descriptors = 0.0, 0
    for number in range(reads):
        if number == warm:
            gc.collect()
            start_memory = process.memory_info().rss
            start_descriptors = process.num_fds()
        pick = int(generator.integers(files))
        recipe = counter(NAMES[pick % len(NAMES)])[0]
        frame = int(generator.integers(recipe.frames))
        time = frame / recipe.rate + 0.001
        size = (None, Size(48, 80), Size(24, 40))[number % 3]
        reply = reader.read(Request(f"{pick:04d}", (Frames((time,), size=size),)))
        assert number_of(reply.arrays["frames"][0]) == frame
        assert process.num_fds() <= start_descriptors + 12 or number <= warm
    gc.collect()
    growth: float = (process.memory_info().rss - start_memory) / 2**20
    reader.close()
    return growth


@pytest.mark.slow
def test_memory_stays_flat(counter: Rendered, tmp_path: Path) -> None:
    assert rush(counter, tmp_path, files=60, reads=1500, warm=500) < 30


@pytest.mark.soak
def test_memory_stays_flat_for_long(counter: Rendered, tmp_path: Path) -> None:
    assert rush(counter, tmp_path, files=500, reads=20_000, warm=2_000) < 50


def test_closing_gives_everything_back(counter: Rendered) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for name in NAMES:
        path = counter(name)[1]
        reader = open_reader(open_catalogue(path.parent, "video"))
        reader.read(Request(path.name, (Frames((0.0, 1.0)),)))
        reader.close()
    assert set(os.listdir("/proc/self/fd")) == before
