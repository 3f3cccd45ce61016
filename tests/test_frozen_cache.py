"""Frozen towers encoded once: the same losses, no decoding, an encoding that can be stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rushes.configs.load import build_config, merge, read_preset
from rushes.configs.schema import RunConfig
from rushes.datasets.build import build_train_loader
from rushes.datasets.footage.corpus import render_corpus
from rushes.datasets.loader import TrainLoader
from rushes.distributed import SingleWorld
from rushes.embeddings import parts_of
from rushes.errors import ConfigError, StorageError, UnreadableVideo
from rushes.frozen_cache import FrozenLoader, FrozenStore, cache_frozen, encode_all, fingerprint
from rushes.modeling.model import FROZEN_VIDEO, VideoTextModel
from rushes.runner import Parts, assemble
from rushes.training import train

WORLD = SingleWorld()
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    render_corpus(folder, train=3, val=0, test=0, workers=1, progress=False, max_seconds=4.4)
    return folder


def config_of(corpus: Path, **train_settings: Any) -> RunConfig:
    dataset = {"name": "footage", "annotations": ["train.jsonl"], "videos": "videos"}
    values: dict[str, Any] = {
        "task": "pretrain",
        "stage": 2,
        "model": {
            "cross": True, "freeze": ["stage1"], "backbone_args": {"channels": [32, 32, 32, 32]},
        },
        "objectives": [{"name": "masked_language"}],
        "data": {"mount_dir": str(corpus), "train": [dataset], "failure_budget": 1.0},
        "geometry": {"high_size": [64, 64]},
        "train": {
            "batch_size": 4, "max_steps": 5, "precision": "fp32", "cache_frozen": 2,
            **train_settings,
        },
    }  # fmt: skip
    return build_config(merge(read_preset("tiny"), values))


def parts_of_run(config: RunConfig, folder: Path) -> tuple[Parts, TrainLoader]:
    parts = assemble(config, WORLD, folder)
    return parts, build_train_loader(config, WORLD, parts.tokenizer, sources=parts.sources)


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def test_losses_equal_those_of_recomputation(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(corpus)
    parts, loader = parts_of_run(config, tmp_path / "again")
    for dataset in loader.datasets:
        dataset.draws = 2
    train(parts.model, loader, config, WORLD, tmp_path / "again")
    parts.sources.close()

    parts, loader = parts_of_run(config, tmp_path / "once")
    cached = cache_frozen(loader, parts.model, config, WORLD, tmp_path / "once")
    places = {len(FrozenStore(p.parent.parent)) for p in tmp_path.rglob("part_*.safetensors")}
    assert len(places) == 1
    batch = next(iter(cached.batches(0)))[0]
    assert (batch.high, batch.low) == (None, None)
    assert batch.modalities[FROZEN_VIDEO].values.shape[0] % len(batch) == 0

    def decode(*_: object) -> None:
        raise AssertionError("nothing is decoded once the towers have run")

    monkeypatch.setattr("rushes.datasets.samples.VideoTextDataset._read", decode)
    train(parts.model, cached, config, WORLD, tmp_path / "once")
    assert losses(tmp_path / "once") == pytest.approx(losses(tmp_path / "again"), rel=1e-5)
    again = (tmp_path / "again/bad_videos.jsonl").read_text().splitlines()
    once = (tmp_path / "once/bad_videos.jsonl").read_text().splitlines()
    for left, right in zip(map(json.loads, again), map(json.loads, once), strict=True):
        assert (left["id"], left["reason"]) == (right["id"], right["reason"])
        assert right["detail"] == f"{left['detail']} (when it was encoded)"
    assert again, "the corpus has bad files, which fail on both ways"
    parts.sources.close()


def test_encoding_goes_on_where_it_stopped(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rushes.frozen_cache._PART", 2)
    config = config_of(corpus, batch_size=2)
    parts, loader = parts_of_run(config, tmp_path)
    encode = VideoTextModel.encode_video
    calls = []

    def stopping(self: VideoTextModel, *pixels: Any) -> Any:
        calls.append(len(pixels[0]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, *pixels)

    monkeypatch.setattr(VideoTextModel, "encode_video", stopping)
    with pytest.raises(KeyboardInterrupt):
        cache_frozen(loader, parts.model, config, WORLD, tmp_path)
    folder = tmp_path / "frozen_clips" / fingerprint(parts.model, config)
    before = len(FrozenStore(folder))
    assert before > 0
    first = parts_of(folder / "rank_0")[0].read_bytes()
    with monkeypatch.context() as patch:  # killed between the last part and the end
        patch.setattr("rushes.frozen_cache._missing", lambda *_: iter(()))
        rows, columns = encode_all(loader.datasets, parts.model, config, WORLD, folder)
        assert rows * columns > 0
    cached = cache_frozen(loader, parts.model, config, WORLD, tmp_path)
    assert isinstance(cached, FrozenLoader)
    assert len(cached.store) > before
    assert parts_of(folder / "rank_0")[0].read_bytes() == first
    number = len(calls)
    cache_frozen(loader, parts.model, config, WORLD, tmp_path)
    # Only what cannot be read is tried again; nothing that is stored.
    assert len(calls) <= number + 2 * 6
    assert len(FrozenStore(folder)) == len(cached.store)
    parts.sources.close()


def test_other_weights_have_another_cache(corpus: Path, tmp_path: Path) -> None:
    config = config_of(corpus)
    parts, loader = parts_of_run(config, tmp_path)
    before = fingerprint(parts.model, config)
    assert fingerprint(parts.model, replace(config, seed=1)) != before
    with torch.no_grad():
        next(parts.model.video.parameters()).view(-1)[0] += 1
    assert fingerprint(parts.model, config) != before
    next(parts.model.video.parameters()).requires_grad_(True)
    with pytest.raises(ConfigError, match="frozen video tower"):
        cache_frozen(loader, parts.model, config, WORLD, tmp_path)
    parts.sources.close()


def test_a_corpus_without_a_readable_video_says_why(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(*_: object) -> None:
        raise UnreadableVideo("v0", "the shutter stuck", "truncated")

    monkeypatch.setattr("rushes.datasets.samples.VideoTextDataset._read", torn)
    config = config_of(corpus)
    parts, loader = parts_of_run(config, tmp_path)
    with pytest.raises(StorageError, match=r"none of \d+ views .*the shutter stuck \[truncated\]"):
        cache_frozen(loader, parts.model, config, WORLD, tmp_path)
    parts.sources.close()
