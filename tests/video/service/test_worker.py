"""What a worker keeps open fits into its memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.video.counter_video import Recipe, render

from rushes.video.catalogue import open_catalogue
from rushes.video.decoder import decoder_bytes
from rushes.video.limits import Limits
from rushes.video.readers import open_reader
from rushes.video.readers.pyav_reader import PyAVReader
from rushes.video.request import Frames, Request, Size
from rushes.video.service.pool import PoolReader
from rushes.video.service.process import with_catalogue
from rushes.video.service.worker import open_default

NUM_VIDEOS = 6


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for i in range(NUM_VIDEOS):
        render(Recipe(f"v{i}.mp4", "libx264", gop=10, bframes=i % 3), folder)
    return folder


def ask(i: int) -> Request:
    return Request(f"v{i % NUM_VIDEOS}", (Frames((0.1, 0.3), Size(16, 16)),))


def reader(root: Path, budget: int) -> PyAVReader:
    made = open_reader(open_catalogue(root), limits=Limits(max_open_bytes=budget))
    assert isinstance(made, PyAVReader)
    return made


def test_open_videos_keep_to_their_bytes_and_read_the_same(root: Path) -> None:
    plenty = reader(root, 1 << 30)
    expected = [plenty.read(ask(i)).arrays["frames"] for i in range(NUM_VIDEOS)]
    assert len(plenty._videos) == NUM_VIDEOS
    sizes = [decoder_bytes(plenty.index(f"v{i}")) for i in range(NUM_VIDEOS)]
    indexes = [plenty.index(f"v{i}").nbytes for i in range(NUM_VIDEOS)]
    for room in (0, 1, 3):
        budget = 2 * room * max(*sizes, *indexes)
        tight = reader(root, budget)
        for i in range(3 * NUM_VIDEOS):
            assert (tight.read(ask(i)).arrays["frames"] == expected[i % NUM_VIDEOS]).all()
            open_now = [video.nbytes for video in tight._videos.values()]
            assert len(open_now) == 1 or sum(open_now) <= budget // 2
            kept = [index.nbytes for index in tight._indexes.values()]
            assert len(kept) == 1 or sum(kept) <= budget // 2
        tight.close()
    plenty.close()


def test_a_larger_picture_and_a_deeper_order_take_more(root: Path) -> None:
    small = reader(root, 1 << 30)
    plain, ordered = small.index("v0"), small.index("v2")
    assert ordered.reorder_depth > plain.reorder_depth
    assert decoder_bytes(ordered) > decoder_bytes(plain)
    picture = plain.info.coded_width * plain.info.coded_height
    assert decoder_bytes(plain) >= 4 * 1.5 * picture
    small.close()


def test_a_workers_open_videos_are_a_share_of_its_memory(
    root: Path, open_pool: Callable[..., PoolReader]
) -> None:
    spec = with_catalogue(root, memory_limit=512 << 20)
    made = open_default(**spec.arguments)
    assert isinstance(made, PyAVReader)
    assert made.limits.max_open_bytes == 128 << 20
    made.close()
    pool = open_pool(spec, num_workers=1)
    assert pool.read(ask(0)).arrays["frames"].shape == (2, 16, 16, 3)
