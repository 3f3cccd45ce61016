"""Files that were cut short say so where their containers say how long they are."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tests.video.conftest import Rendered
from tests.video.counter_video import number_of

from rushes.video.catalogue import Catalogue, Source
from rushes.video.doctor import examine
from rushes.video.endings import cut_short
from rushes.video.ffmpeg_process import ffmpeg_binary
from rushes.video.probe import probe
from rushes.video.readers import open_reader
from rushes.video.request import Frames, Request

LIVE = ["-f", "matroska", "-live", "1"]
CLUSTERS = ["-f", "matroska", "-cluster_time_limit", "300"]
OGG = ["-f", "ogg", "-c:v", "libtheora", "-q:v", "10", "-page_duration", "200000"]
CLUSTER, SEGMENT = b"\x1f\x43\xb6\x75", b"\x18\x53\x80\x67"
NO_SIZE = b"\x01" + b"\xff" * 7


def piped(path: Path, options: list[str]) -> bytes:
    """What ffmpeg writes where it cannot go back: no sizes of the whole, no seek index."""
    command = [ffmpeg_binary(), "-loglevel", "error", "-i", str(path), "-c", "copy", *options, "-"]
    return subprocess.run(command, check=True, capture_output=True).stdout


def without_cluster_sizes(data: bytes) -> bytes:
    """As browsers record: clusters do not say how long they are either."""
    sized = re.compile(re.escape(CLUSTER) + rb"(?:[\x80-\xff]|[\x40-\x7f].|[\x20-\x3f]..)", re.S)
    return sized.sub(CLUSTER + NO_SIZE, data)


@pytest.fixture(params=["live.webm", "sized.mkv", "browser.webm", "theora.ogv"])
def whole(request: pytest.FixtureRequest, counter: Rendered, tmp_path: Path) -> Path:
    name = str(request.param)
    path = tmp_path / name
    if name == "theora.ogv":
        path.write_bytes(piped(counter("h264_intra.mp4")[1], OGG))
    elif name == "sized.mkv":
        path.write_bytes(piped(counter("h264_b.mkv")[1], CLUSTERS))
    else:
        data = piped(counter("vp9.webm")[1], LIVE)
        assert data[data.index(SEGMENT) + 4 :].startswith(NO_SIZE)
        path.write_bytes(without_cluster_sizes(data) if "browser" in name else data)
    return path


@pytest.mark.parametrize("part", [0.6, 0.7, 0.95])
def test_a_live_recording_that_was_cut_short_is_damaged_and_read(whole: Path, part: float) -> None:
    assert examine(Source("file", "v", whole)).status == "ok"
    assert probe(whole).num_frames == 60
    data = whole.read_bytes()
    whole.write_bytes(data[: round(len(data) * part)])
    for deep in (False, True):
        row = examine(Source("file", "v", whole), deep)
        assert (row.status, row.reason) == ("damaged", "truncated")
        assert row.frames is not None
        assert 0 < row.frames < 60
    reader = open_reader(Catalogue.from_items({"v": whole}))
    times = tuple(np.arange(4) / 25)
    pictures = reader.read(Request("v", (Frames(times),))).arrays["frames"]
    assert [number_of(picture) for picture in pictures] == [0, 1, 2, 3]


def test_a_piped_cut_is_whole_though_its_head_tells_the_duration_of_its_source(
    counter: Rendered, tmp_path: Path
) -> None:
    source, path = tmp_path / "source.mkv", tmp_path / "v.mkv"
    source.write_bytes(piped(counter("h264_b.mkv")[1], CLUSTERS))
    path.write_bytes(piped(counter("h264_b.mkv")[1], ["-t", "0.6", *CLUSTERS]))
    assert examine(Source("file", "v", path)).status == "ok"
    # So a file that ends between two clusters passes: nothing tells it from a cut.
    data = source.read_bytes()
    starts = [found.start() for found in re.finditer(re.escape(CLUSTER), data)]
    path.write_bytes(data[: starts[len(starts) // 2]])
    assert examine(Source("file", "v", path)).status == "ok"


def test_an_ogg_file_cut_between_two_pages_is_seen_by_its_last(
    counter: Rendered, tmp_path: Path
) -> None:
    data = piped(counter("h264_intra.mp4")[1], OGG)
    path = tmp_path / "v.ogv"
    path.write_bytes(data[: data.rindex(b"OggS")])
    assert examine(Source("file", "v", path)).reason == "truncated"


@pytest.mark.attack
@pytest.mark.parametrize("container", ["mov", "gif", "avi", "ogg", "matroska", "flv"])
def test_no_bytes_are_too_odd(container: str, counter: Rendered) -> None:
    numbers = np.random.default_rng(0)
    live = piped(counter("vp9.webm")[1], LIVE)
    heads = (b"", b"OggS\0", live[:200], live[:8], live, SEGMENT + NO_SIZE, CLUSTER)
    for head in heads:
        for size in (0, 1, 2, 40, 500):
            data = bytearray(head + numbers.bytes(size))
            for place in numbers.integers(0, max(1, len(data)), 5) if data else ():
                data[place] = int(numbers.integers(256))
            shown = bytes(data)

            def read(position: int, size: int, shown: bytes = shown) -> bytes:
                assert position >= 0
                assert size >= 0
                return shown[position : position + size]

            assert cut_short(container, read, len(shown)) in (True, False)
            assert cut_short(container, read, len(shown) + 9) in (True, False)
