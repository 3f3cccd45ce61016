"""Animoji, the preset and the benchmark: who is trained on, who is asked, what the gallery is."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from rushes.configs.load import load_config
from rushes.datasets.build import open_dataset_records
from tests.helpers import ROOT


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import animoji  # type: ignore[import-not-found]

    module: ModuleType = animoji
    monkeypatch.delitem(sys.modules, "animoji")
    return module


@pytest.fixture
def mount(shared: Path, tmp_path: Path) -> Path:
    """A storage folder with the real files."""
    place = tmp_path / "data" / "animoji"
    place.mkdir(parents=True)
    (place / "manifest.jsonl").write_bytes((shared / "animoji" / "manifest.jsonl").read_bytes())
    (place / "videos").symlink_to(shared / "animoji" / "videos", target_is_directory=True)
    return tmp_path


@pytest.mark.needs_shared
def test_the_preset_reads_the_manifest(mount: Path) -> None:
    config = load_config(["--config", "animoji_retrieval", "--data_mount_dir", str(mount)])
    sets = {
        d.name: d for part in ("train", "validation", "test") for d in getattr(config.data, part)
    }
    videos = {n: {r.video for r in open_dataset_records(config, d)} for n, d in sets.items()}
    assert {n: len(v) for n, v in videos.items()} == {
        "animoji": 1686,
        "animoji_holdout": 88,
        "test_comp": 275,
        "test_new": 60,
    }
    assert len(set().union(*videos.values())) == 2109  # none twice
    assert all((mount / "data/animoji/videos" / f"{v}.mp4").is_file() for v in videos["test_new"])


@pytest.mark.needs_shared
def test_a_fold_asks_for_each_emoji_once(mount: Path, benchmark: ModuleType) -> None:
    from rushes.datasets.formats.registry import read_records

    records = list(read_records(mount / "data" / "animoji" / "manifest.jsonl"))
    gallery = benchmark.one_each(records)
    assert len(gallery) == 734
    assert all(record.id == record.tags["base"] for record in gallery)
    file = mount / "data" / "animoji" / "fold_0.jsonl"
    benchmark.write_records(file, gallery[:5])
    benchmark.write_records(file, gallery[5:7], more=True)
    assert list(read_records(file)) == gallery[:7]
    flags = benchmark.fold_flags(file.name)
    config = load_config(["--config", "animoji_retrieval", *flags])
    assert config.data.test[0].annotations == ("data/animoji/fold_0.jsonl",)
    assert [d.split for d in config.data.validation] == ["train:holdout"]


def test_both_models_are_compared_by_query(benchmark: ModuleType) -> None:
    ours = {f"v{i}": 1.0 + (i % 2) for i in range(40)}
    plain = {f"v{i}": 1.0 + (i % 4 > 0) for i in range(40)}
    found = benchmark.compare(ours, plain)
    assert (found["ours"]["t2v_r1"], found["cnn"]["t2v_r1"]) == (0.5, 0.25)
    assert found["difference"]["t2v_r1"]["difference"] == 0.25
    assert found["difference"]["t2v_r1"]["low"] > 0.1
    with pytest.raises(SystemExit, match="not the same ones"):
        benchmark.compare(ours, {"v0": 1.0})


def test_the_plain_model_has_the_stated_size(benchmark: ModuleType) -> None:
    import _animoji_cnn  # type: ignore[import-not-found]

    parameters = sum(p.numel() for p in _animoji_cnn.PlainModel(617).parameters())
    assert 750_000 < parameters < 850_000
