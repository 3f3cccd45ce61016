"""The plan's counts are the reader's counts, and its two terms come from measuring."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.video.conftest import Rendered

from rushes.cli import main
from rushes.configs.schema import ClipConfig
from rushes.errors import StorageError
from rushes.video.catalogue import Catalogue, open_catalogue
from rushes.video.plan import Model, calibrate, draw, plan, request_of, work
from rushes.video.readers.pyav_reader import PyAVReader

CLIPS = ClipConfig(sampling="frames", stride=6)


@pytest.mark.parametrize("name", ["h264_ip.mp4", "h264_b.mp4", "h264_one_key.mp4", "vp9.webm"])
def test_predicted_packets_are_those_that_get_decoded(counter: Rendered, name: str) -> None:
    reader = PyAVReader(Catalogue.from_items({"v": counter(name)[1]}))
    index, generator = reader.index("v"), np.random.default_rng(0)
    for _ in range(5):
        high, low = draw(index, CLIPS, generator)
        megapixels, groups = work(index, high, low)
        decoded = reader.read(request_of(index, high, low)).cost.frames_decoded
        assert megapixels == pytest.approx(decoded * 160 * 96 / 1e6)
        assert 1 <= groups <= 14
    reader.close()


def test_calibration_gives_positive_terms(counter: Rendered) -> None:
    names = ("h264_ip.mp4", "h264_one_key.mp4")
    reader = PyAVReader(Catalogue.from_items({name: counter(name)[1] for name in names}))
    indexes = [reader.index(name) for name in names]
    model = calibrate(reader, indexes, CLIPS, 0.3, np.random.default_rng(0))
    assert model.per_megapixel >= 0
    assert model.per_group >= 0
    assert model.predict(1.0, 1.0) > 0
    assert Model(2.0, 3.0, 0.0).predict(4.0, 5.0) == 23.0
    reader.close()


@pytest.mark.slow
def test_the_command_compares_and_recommends(
    tmp_path: Path, counter: Rendered, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = tmp_path / "raw"
    videos.mkdir()
    for name in ("h264_one_key.mp4", "h264_b.mp4"):
        shutil.copy(counter(name)[1], videos)
    out = tmp_path / "plan.json"
    arguments = ["plan", str(videos), "--preset", "msrvtt_retrieval", "--seconds", "0.5"]
    assert main([*arguments, "--json", str(out)]) == 0
    told = capsys.readouterr().out
    found = json.loads(out.read_text())
    names = [row["name"] for row in found["candidates"]]
    assert names[0] == "raw files as they are"
    assert names[-1].startswith("store")
    assert found["recommended"] in names
    assert f"recommended: {found['recommended']}" in told
    groups = {row["id"]: row["frames_per_group"] for row in found["videos"]}
    assert groups["h264_one_key"] >= 2 * groups["h264_b"] > 4
    for row in found["candidates"]:
        assert row["ms"] > 0
        assert row["cores_per_gpu"] == pytest.approx(row["ms"] * 20 / 1000, abs=0.01)


def test_the_time_to_prepare_counts_every_video(
    tmp_path: Path, counter: Rendered, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only those that were looked at."""
    for number in range(12):
        shutil.copy(counter("h264_b.mp4")[1], tmp_path / f"{number:02d}.mp4")
    monkeypatch.setattr("rushes.video.plan._coded", lambda *_: (1000.0, 0.5))
    found = plan(open_catalogue(tmp_path), CLIPS, videos=1, seconds=0.0)
    seconds = [row["prepare_seconds"] for row in found["candidates"]]
    assert seconds[1:-1] == [0.5 * 12 * 60] * 2


def test_nothing_to_plan_for(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("this is not a video " * 100)
    with pytest.raises(StorageError, match="none of 1 videos"):
        plan(open_catalogue(tmp_path), CLIPS)
