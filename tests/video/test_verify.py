"""Results are held against their sources, sound or damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.video.conftest import Rendered
from tests.video.counter_video import Recipe, render

from rushes.errors import UnreadableVideo
from rushes.video.catalogue import Source
from rushes.video.cutting import cut
from rushes.video.limits import Limits
from rushes.video.probe import build_index, probe, source_of
from rushes.video.transcode import Settings, compress
from rushes.video.verify import Difference, check_saved, check_times

FAST = Settings(preset="ultrafast")


def test_other_frames_or_times_are_told() -> None:
    with pytest.raises(UnreadableVideo, match="2 frames, not 3"):
        check_times("x", [0, 1, 2], [0, 1])
    with pytest.raises(UnreadableVideo, match=r"off by 0\.0300 s"):
        check_times("x", [0, 1], [0, 1.03])


def test_what_was_saved_is_counted(tmp_path: Path) -> None:
    path = render(Recipe("a.mp4", frames=20), tmp_path)
    times = probe(path).frame_times
    assert check_saved("x", times, path) == Difference()
    assert check_saved("x", np.append(times, [0.9, 1.0]), path) == Difference(missing=2)
    assert check_saved("x", times[:-3], path) == Difference(added=3)
    # The first frames may be among those that another decoder loses.
    assert check_saved("x", np.concatenate([[-0.7, -0.3], times]), path) == Difference(missing=2)
    with pytest.raises(UnreadableVideo, match=r"of the 41 frames .* has 20; the limit is half"):
        check_saved("x", np.concatenate([times, 7.77 + np.arange(21)]), path)


def test_a_result_that_does_not_decode_is_no_result(tmp_path: Path) -> None:
    path = render(Recipe("a.mp4", frames=20, gop=20), tmp_path)
    index, data = build_index(source_of(path), Limits()), bytearray(path.read_bytes())
    begin, size = int(index.positions[5]), int(index.sizes[5])
    data[begin + 5 : begin + size] = b"\xff" * (size - 5)
    path.write_bytes(data)
    with pytest.raises(UnreadableVideo, match="does not decode"):
        check_saved("x", index.info.frame_times, path)


@pytest.mark.parametrize("fps", [None, 6.0])
def test_a_damaged_source_is_checked_all_the_same(
    fps: float | None, counter: Rendered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = counter("vp9.webm")[1].read_bytes()
    path = tmp_path / "cut.webm"
    path.write_bytes(clip[: len(clip) * 6 // 10])
    source = Source("file", "v", path)
    made = compress(source, tmp_path / "a.mp4", Settings(fps=fps, preset="ultrafast"))
    assert made.damage() == {"damaged": True, "frames_missing": 0, "frames_added": 0}
    part = cut(source, tmp_path / "b.mp4", 0.2, 0.8, FAST)
    assert part.damage() == {"damaged": True, "frames_missing": 0, "frames_added": 0}

    # An ffmpeg that loses nearly everything and says that all is well.
    short = render(Recipe("short.mp4", frames=3), tmp_path)
    monkeypatch.setattr(
        "rushes.video.transcode.run_ffmpeg",
        lambda graph, *_: Path(
            next(a.removeprefix("file:") for a in graph.get_args() if a.endswith(".part"))
        ).write_bytes(short.read_bytes()),
    )
    with pytest.raises(UnreadableVideo, match="the limit is half"):
        compress(source, tmp_path / "c.mp4", Settings(fps=fps, preset="ultrafast"))
    assert not (tmp_path / "c.mp4").exists()


def test_damage_that_packets_do_not_tell_is_found_when_ffmpeg_meets_it(
    counter: Rendered, tmp_path: Path
) -> None:
    """Sound by its packets, broken in its bits: what can be had is made, and named damaged."""
    path = tmp_path / "v.webm"
    index = build_index(source_of(counter("vp9.webm")[1]), Limits())
    data = bytearray(counter("vp9.webm")[1].read_bytes())
    for packet in range(26, 30):
        begin, size = int(index.positions[packet]), int(index.sizes[packet])
        data[begin + 2 : begin + size] = b"\xff" * (size - 2)
    path.write_bytes(data)
    source = Source("file", "v", path)
    assert not probe(path).damaged
    made = compress(source, tmp_path / "a.mp4", FAST)
    assert made.damaged
    assert made.info.num_frames >= 30
    part = cut(source, tmp_path / "b.mp4", 0.5, 1.9, FAST)
    assert part.damaged
    before = cut(source, tmp_path / "c.mp4", 0.0, 0.4, FAST)
    assert before.differs == Difference()
