"""The contracts serve a system that the package does not know; see `tests/paragraphs.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rushes.distributed import SingleWorld
from rushes.training import train
from tests.helpers import ROOT, horovodrun, launch, torchrun
from tests.paragraphs import (
    MAX_SEGMENTS,
    ParagraphLoader,
    ParagraphModel,
    paragraph_batch,
    paragraph_config,
)

PROGRAM = ("-m", "tests.world_program", "paragraphs")


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 steps on one process."""
    folder = tmp_path_factory.mktemp("alone")
    world, config = SingleWorld(), paragraph_config(str(folder), 4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ParagraphModel(config)
        train(model, ParagraphLoader(config, world), config, world, folder)
    assert len(losses(folder)) == 20
    assert 9 <= model.drawn.count("contrastive") <= 17  # two in three
    assert model.drawn.count("matching") + model.drawn.count("contrastive") == 20
    return folder


def test_paragraphs_have_one_to_five_segments_and_may_lack_features() -> None:
    batch = paragraph_batch(list(range(8)))
    words, features = batch.modalities["words"], batch.modalities["features"]
    assert words.offsets["video"].diff().tolist() == [1, 2, 3, 4, 5, 1, 2, 3]
    assert features.present.tolist() == [True, True, True, False] * 2
    moved = batch.to("cpu").modalities["audio"]
    assert len(moved.values) == int(moved.offsets["segment"][-1])
    encoded = ParagraphModel(paragraph_config("", 4)).encode(batch)
    level = encoded["features", "segment"]
    assert level.mask is not None
    assert level.mask.sum(1).tolist() == [1, 2, 3, 0, 5, 1, 2, 0]
    assert level.values.shape[1] == MAX_SEGMENTS


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize(
    ("launcher", "relative"),
    [
        pytest.param(lambda rest: [sys.executable, *map(str, rest)], 0.0, id="one"),
        pytest.param(torchrun, 1e-5, id="two"),
        pytest.param(horovodrun, 1e-5, id="horovod", marks=pytest.mark.needs_horovod),
    ],
)
def test_killed_and_resumed_it_ends_the_same(
    alone: Path,
    tmp_path: Path,
    launcher: object,
    relative: float,
) -> None:
    assert callable(launcher)
    launch(launcher([*PROGRAM, tmp_path, 8]), cwd=ROOT, status=None)
    assert len(losses(tmp_path)) < 20
    launch(launcher([*PROGRAM, tmp_path, 0]), cwd=ROOT)
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=relative, abs=0)
    one, other = (load_file(f / "checkpoints/last/model.safetensors") for f in (alone, tmp_path))
    for name, tensor in one.items():
        torch.testing.assert_close(
            other[name], tensor, rtol=10 * relative, atol=10 * relative, msg=name
        )
