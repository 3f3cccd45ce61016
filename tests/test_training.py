"""The loop in one process: exact steps, resume, skipped steps, meters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rushes.checkpoint import (
    load_checkpoint,
    read_progress,
)
from rushes.datasets.batch import Batch
from rushes.distributed import SingleWorld
from rushes.errors import ConfigError, NonFiniteLoss
from rushes.steps import mixed_seed, resolve_precision
from rushes.training import StepReport, elastic_config, train
from tests.toy import (
    Killed,
    Poisoned,
    ToyLoader,
    assert_same_weights,
    lines,
    losses,
    run,
    toy_batch,
    toy_config,
    with_batch_size,
)

WORLD = SingleWorld()


@pytest.mark.parametrize("asynchronous", [True, False])
def test_killed_runs_end_as_if_nothing_had_happened(tmp_path: Path, asynchronous: bool) -> None:
    config = toy_config(async_checkpoint=asynchronous)
    undisturbed, result = run(tmp_path / "a", config)
    assert (result.status, result.step) == ("finished", 30)
    for stop in (1, 7, 8, 23):
        with pytest.raises(Killed):
            run(tmp_path / "b", config, stop_after=stop)
    loader = ToyLoader(config, WORLD)
    resumed, result = run(tmp_path / "b", config, loader=loader)
    assert loader.asked[0] == 22, "it goes on at the checkpoint, without a replay"
    assert result.step == 30
    assert_same_weights(undisturbed, resumed)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert read_progress(tmp_path / "b/checkpoints/last").samples == 120
    one = load_checkpoint(tmp_path / "a/checkpoints/last").moments
    other = load_checkpoint(tmp_path / "b/checkpoints/last").moments
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_noise_depends_on_the_step_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    with_noise, _ = run(tmp_path / "a")
    torch.manual_seed(2)
    again, _ = run(tmp_path / "b")
    assert_same_weights(with_noise, again)
    assert losses(tmp_path / "a") != losses_of(tmp_path / "c", dropout=0.0)
    assert mixed_seed(1, 23) != mixed_seed(12, 3)


def losses_of(folder: Path, **given: Any) -> list[tuple[int, float, float]]:
    run(folder, **given)
    return losses(folder)


def test_a_finished_run_takes_no_further_step(tmp_path: Path) -> None:
    first, _ = run(tmp_path)
    loader = ToyLoader(toy_config(), WORLD)
    again, result = run(tmp_path, loader=loader)
    assert loader.asked == []
    assert result.checkpoint == tmp_path / "checkpoints/step_0000030"
    assert_same_weights(first, again)


def test_steps_with_nan_are_skipped_within_a_budget(tmp_path: Path) -> None:
    config = toy_config(nonfinite_budget=2, max_steps=8)
    torch.manual_seed(0)
    model = Poisoned()
    model.poisoned = frozenset({2, 5})
    before: dict[int, Tensor] = {}

    def on_step(report: StepReport) -> None:
        before[report.step] = model.text.weight.detach().clone()
        assert report.updated == (report.step not in (3, 6))

    train(model, ToyLoader(config, WORLD), config, WORLD, tmp_path, on_step=on_step)
    assert torch.equal(before[3], before[2])
    assert not torch.equal(before[4], before[3])
    assert bool(torch.isfinite(model.text.weight).all())
    assert read_progress(tmp_path / "checkpoints/last").skipped == 2
    kept = json.loads((tmp_path / "replay/step_0000006.json").read_text())
    batch = next(ToyLoader(config, WORLD).batches(5))[0]
    assert kept["ids"] == [[list(batch.ids)]]

    model.poisoned = frozenset(range(100))
    config = toy_config(nonfinite_budget=2, max_steps=20)
    with pytest.raises(NonFiniteLoss, match=r"step 9: .*nonfinite_budget allows 2.*step_0000009"):
        train(model, ToyLoader(config, WORLD), config, WORLD, tmp_path)


def test_validation_changes_nothing_in_training(tmp_path: Path) -> None:
    def validate(model: nn.Module, step: int) -> dict[str, float]:
        return {"noise": float(torch.rand(()))}

    config = toy_config(validate_every=3)
    judged, _ = run(tmp_path / "a", config, validate=validate)
    plain, _ = run(tmp_path / "b", config)
    assert_same_weights(judged, plain)


def test_what_is_seen_of_a_run(tmp_path: Path) -> None:
    run(tmp_path, toy_config(max_steps=4, log_every=2))
    steps = lines(tmp_path)
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    last = steps[-1]
    assert last["loss"] == pytest.approx(last["contrastive_loss"] + last["count_loss"])
    assert last["learning_rate/transformer"] == 0.0  # linear reaches 0 with the last step
    assert last["samples"] == 4
    assert last["samples_per_second"] > 0
    assert 0 <= last["data_stall"] <= 1
    # 12x16 and 16x16 of pixels, 16x16 of each word: multiply-adds count twice, backward twice more
    assert last["flops_per_second"] * last["seconds"] == pytest.approx(
        3 * 2 * 4 * (12 * 16 + 16 * 16 + 6 * 16 * 16)
    )
    assert list((tmp_path / "tb").glob("events*"))
    assert json.loads((tmp_path / "config.json").read_text())["train"]["max_steps"] == 4
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert (environment["backend"], environment["ranks"]) == ("single", 1)


def test_metrics_hold_each_step_once_after_a_resume(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, stop_after=5)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "ste')
    run(tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 31))


def test_ranks_keep_the_global_batch(tmp_path: Path) -> None:
    class Two(SingleWorld):
        size = 2

        def __init__(self, size: int) -> None:
            super().__init__()
            self.size = size

    config = toy_config(str(tmp_path))
    assert elastic_config(config, Two(4), tmp_path) == config
    with pytest.raises(Killed):
        run(tmp_path, config, stop_after=5)
    assert elastic_config(config, Two(2), tmp_path).train.batch_size == 2
    assert elastic_config(config, Two(1), tmp_path) == config
    in_two = with_batch_size(config, 1, accumulation=2)  # the same step at half the memory
    assert elastic_config(in_two, Two(2), tmp_path) == in_two
    with pytest.raises(ConfigError, match=r"4 samples.*3 ranks do not divide"):
        elastic_config(config, Two(3), tmp_path)


def test_bf16_trains_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    config = toy_config(precision="bf16")
    undisturbed, _ = run(tmp_path / "a", config)
    with pytest.raises(Killed):
        run(tmp_path / "b", config, stop_after=9)
    resumed, _ = run(tmp_path / "b", config)
    assert_same_weights(undisturbed, resumed)
    assert undisturbed.text.weight.dtype == torch.float32
    first, last = (lines(tmp_path / "a")[i]["loss"] for i in (0, -1))
    assert last < first
    assert losses(tmp_path / "a") != losses_of(tmp_path / "c")
    assert resolve_precision("bf16", torch.device("cpu")) is torch.bfloat16
    assert resolve_precision("fp32", torch.device("cpu")) is None


@pytest.mark.parametrize("cached", [False, True])
def test_steps_without_a_valid_sample_are_passed_over(tmp_path: Path, cached: bool) -> None:
    class AllBad(ToyLoader):
        def batches(self, start_step: int = 0) -> Iterator[list[Batch]]:
            for step in range(start_step, 100):
                failing = frozenset(range(4)) if step == 1 else frozenset[int]()
                yield toy_batch(list(range(4)), failing).split(2)

    config = toy_config(max_steps=3, batch_size=2, accumulation=2, cached_gradient=cached)
    _, result = run(tmp_path, config, loader=AllBad(config, WORLD))
    assert [line["samples"] for line in lines(tmp_path)] == [4, 0, 4]
    assert [line["skipped"] for line in lines(tmp_path)] == [0.0, 1.0, 0.0]
    assert result.step == 3
    assert read_progress(tmp_path / "checkpoints/last").skipped == 0, "nothing was not finite"
