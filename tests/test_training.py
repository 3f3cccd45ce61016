"""The loop in one process: exact steps, resume, skipped steps, bad samples, validation, meters."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rushes.checkpoint import (
    Snapshot,
    list_steps,
    load_checkpoint,
    read_progress,
    take_snapshot,
)
from rushes.configs.schema import RunConfig
from rushes.datasets.batch import Batch
from rushes.distributed import SingleWorld
from rushes.errors import CheckpointError, ConfigError, FailureBudgetExceeded, NonFiniteLoss
from rushes.modeling.encoded import concatenate
from rushes.session import PREEMPTED, is_better, total_steps
from rushes.steps import Pass, accumulate, join_batches, mixed_seed, resolve_precision, total_loss
from rushes.training import StepReport, TrainResult, elastic_config, train
from tests.helpers import disk_of
from tests.toy import ToyLoader, ToyModel, toy_batch, toy_config, toy_model, with_batch_size

WORLD = SingleWorld()


class Killed(Exception):
    """Stands for a process that ends at this moment."""


def run(
    folder: Path, config: RunConfig | None = None, **given: Any
) -> tuple[ToyModel, TrainResult]:
    """Train the toy model in `folder` to the end, or to `stop_after` steps of this process."""
    config = config or toy_config()
    model = toy_model(dropout=given.pop("dropout", 0.1))
    loader = given.pop("loader", None) or ToyLoader(
        config, WORLD, failing=given.pop("failing", None)
    )
    stop_after = given.pop("stop_after", None)

    def on_step(report: StepReport) -> None:
        if report.step == stop_after:
            raise Killed

    return model, train(model, loader, config, WORLD, folder, on_step=on_step, **given)


def lines(folder: Path, kind: str = "train") -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [entry for entry in entries if entry["kind"] == kind]


def losses(folder: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines(folder)]


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


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


def gradient(config: RunConfig, batches: list[Batch], dropout: float = 0.0) -> dict[str, Tensor]:
    model = toy_model(dropout=dropout)
    model.train()
    counts = [int(batch.valid.sum()) for batch in batches]
    step = Pass(model, model.objectives(0), WORLD, 0, 1, None)
    parts = accumulate(step, batches, counts, config)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**found, "loss": torch.stack([parts["contrastive_loss"], parts["count_loss"]])}


def assert_close(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("size", [1, 3, 4, 8])
def test_cached_gradients_equal_those_of_one_piece(size: int) -> None:
    whole = toy_batch(list(range(8)), frozenset({2, 7}))
    cached = toy_config(cached_gradient=True)
    assert_close(gradient(cached, whole.split(size)), gradient(toy_config(), [whole]))


def test_cached_gradients_draw_the_same_noise_twice() -> None:
    config = toy_config(cached_gradient=True)
    batches = toy_batch(list(range(8))).split(4)
    two_passes = gradient(config, batches, dropout=0.5)

    model = toy_model(dropout=0.5)
    step = Pass(model, model.objectives(0), WORLD, 0, 1, None)
    encoded = concatenate([step.encode(batch, micro) for micro, batch in enumerate(batches)])
    named = step.losses(encoded, join_batches(batches), "objectives")
    total_loss(named).backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, two_passes[name], rtol=1e-5, atol=1e-7)


def test_cached_gradients_update_statistics_once() -> None:
    model = toy_model()
    model.norm = nn.BatchNorm1d(16)
    plain_encode = model.encode
    seen = []

    def encode(batch: Batch) -> Any:
        encoded = plain_encode(batch)
        seen.append(model.norm(encoded.embeddings["video"]))  # type: ignore[operator]
        return encoded

    model.encode = encode  # type: ignore[assignment,method-assign]
    step = Pass(model, model.objectives(0), WORLD, 0, 1, None)
    accumulate(step, toy_batch(list(range(8))).split(4), [4, 4], toy_config(cached_gradient=True))
    assert len(seen) == 4
    assert int(model.norm.num_batches_tracked) == 2  # type: ignore[arg-type]


def test_losses_do_not_depend_on_accumulation() -> None:
    class PerSample(ToyModel):
        def objectives(self, step: int) -> Any:  # noqa: ARG002
            return {"counting": (1.0, self.counting)}

    torch.manual_seed(0)
    model = PerSample()
    whole = toy_batch(list(range(9)), frozenset({0, 1, 2, 5}))
    found = []
    for size in (9, 3, 2):  # three failed samples fill a whole micro-batch
        model.zero_grad()
        batches = whole.split(size)
        counts = [int(batch.valid.sum()) for batch in batches]
        step = Pass(model, model.objectives(0), WORLD, 0, 1, None)
        parts = accumulate(step, batches, counts, toy_config())
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append({**grads, "loss": parts["count_loss"]})
    assert_close(found[1], found[0])
    assert_close(found[2], found[0])


def test_failed_samples_are_in_no_loss() -> None:
    kept = [0, 2, 3, 5]
    with_failed = gradient(toy_config(), [toy_batch(list(range(6)), frozenset({1, 4}))])
    assert_close(with_failed, gradient(toy_config(), [toy_batch(kept)]))


class Poisoned(ToyModel):
    """Its loss is infinite at the given steps, counted from 0."""

    poisoned: frozenset[int] = frozenset()

    def objectives(self, step: int) -> Any:
        def poison(*_: object) -> Mapping[str, Tensor]:
            return {"poison_loss": self.text.weight.sum() * math.inf}

        found = dict(super().objectives(step))
        return {**found, "poison": (1.0, poison)} if step in self.poisoned else found


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


def test_bad_samples_are_named_before_the_step_and_honoured_on_resume(tmp_path: Path) -> None:
    failing = {3: 0, 11: 1}  # the first in the first epoch, the other in the second
    config = toy_config(keep_last=100)
    undisturbed, _ = run(tmp_path / "a", config, failing=failing)
    with pytest.raises(Killed):
        run(tmp_path / "b", config, failing=failing, stop_after=27)
    with (tmp_path / "b/bad_videos.jsonl").open("a") as file:
        file.write('{"id": "cut sho')
    # The files have been mended since, but what has failed once stays out of these slots.
    for newer in list_steps(tmp_path / "b")[2:]:
        (newer / "manifest.json").unlink()
    resumed, _ = run(tmp_path / "b", config)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert_same_weights(undisturbed, resumed)
    text = (tmp_path / "b/bad_videos.jsonl").read_text().splitlines()
    named = [json.loads(line) for line in text if line.endswith("}")]
    assert [(line["id"], line["video"], line["reason"]) for line in named] == [
        ("sample3", "v3", "truncated"),
        ("sample11", "v11", "truncated"),
    ]
    known = read_progress(tmp_path / "b/checkpoints/last").bad
    assert [(bad["id"], bad["epoch"]) for bad in known] == [("sample3", 0), ("sample11", 1)]
    for line in named:
        seen = next(entry for entry in lines(tmp_path / "b") if entry["step"] == line["step"])
        assert seen["samples"] < 4
    assert [e["samples"] for e in lines(tmp_path / "b")] == [
        e["samples"] for e in lines(tmp_path / "a")
    ]


@pytest.mark.fault
# TensorBoard's thread raises what it met as well as handing it on.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_run_survives_a_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    failing, config = {3: 0, 11: 1}, toy_config(nonfinite_budget=2)
    poisoned = frozenset({12})

    def train_on(folder: Path, full: range) -> ToyModel:
        torch.manual_seed(0)
        model = Poisoned()
        model.poisoned = poisoned
        with contextlib.ExitStack() as stack:

            def on_step(report: StepReport) -> None:
                if report.step == full.start:
                    stack.enter_context(disk_of(0))
                elif report.step == full.stop:
                    stack.close()

            loader = ToyLoader(config, WORLD, failing=failing)
            train(model, loader, config, WORLD, folder, on_step=on_step)
        return model

    calm = train_on(tmp_path / "a", range(0))
    full = train_on(tmp_path / "b", range(1, 25))
    assert_same_weights(calm, full)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    named = [(tmp_path / name / "bad_videos.jsonl").read_text() for name in "ab"]
    assert named[0] == named[1]
    assert "checkpoint of step 24 could not be written" in caplog.text
    assert "bad_videos.jsonl cannot be written now" in caplog.text
    assert "step_0000013.json cannot be written" in caplog.text
    assert list_steps(tmp_path / "b")[-1].name == "step_0000030"


def test_bad_samples_are_in_the_file_when_the_weights_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    update = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *given: Any) -> Any:
        file = tmp_path / "bad_videos.jsonl"
        seen.append(len(file.read_text().splitlines()) if file.is_file() else 0)
        return update(self, *given)

    monkeypatch.setattr("torch.optim.AdamW.step", step)
    run(tmp_path, failing={3: 0})
    first = next(line["step"] for line in lines(tmp_path) if line["samples"] < 4)
    assert seen == [0] * (first - 1) + [1] * (31 - first)


def test_more_failures_than_the_budget_stop_the_run(tmp_path: Path) -> None:
    config = toy_config()
    assert config.data.failure_budget == 0.1  # of 40 samples: four may fail, the fifth may not
    _, result = run(tmp_path / "a", config, failing=dict.fromkeys(range(4), 0))
    assert result.status == "finished"
    with pytest.raises(FailureBudgetExceeded, match=r"5 samples have failed, 4 of 40 may .*bad_"):
        run(tmp_path / "b", config, failing=dict.fromkeys(range(5), 0))
    assert len((tmp_path / "b/bad_videos.jsonl").read_text().splitlines()) == 5


def test_validation_picks_the_best_and_stops_early(tmp_path: Path) -> None:
    scores = {4: 0.1, 8: 0.5, 12: 0.3, 16: 0.4}
    modes = []

    def validate(model: nn.Module, step: int) -> dict[str, float]:
        modes.append((model.training, torch.is_grad_enabled()))
        return {"r1": scores[step], "loss": 1.0}

    config = toy_config(validate_every=4, patience=2, checkpoint_every=5, keep_last=1)
    model, result = run(tmp_path, config, validate=validate)
    assert modes == [(False, False)] * 4
    assert model.training
    assert (result.status, result.step, result.best_step) == ("early_stop", 16, 8)
    assert result.best_value == 0.5
    assert result.checkpoint == tmp_path / "checkpoints/step_0000008"
    assert (tmp_path / "checkpoints/best").resolve().name == "step_0000008"
    assert (tmp_path / "checkpoints/last").resolve().name == "step_0000016"
    assert [folder.name for folder in list_steps(tmp_path)] == ["step_0000008", "step_0000016"]
    assert [line["r1"] for line in lines(tmp_path, "validation")] == [0.1, 0.5, 0.3, 0.4]
    _, result = run(tmp_path, config, validate=validate)
    assert result.status == "early_stop"
    assert len(modes) == 4


def test_auto_step_lowers_the_rate_where_validations_do_not_rise(tmp_path: Path) -> None:
    scores = {4: 3.0, 8: 2.0, 12: 2.5, 16: 2.5, 20: 2.6, 24: 1.0, 28: 0.9, 30: 0.8}

    def validate(model: nn.Module, step: int) -> dict[str, float]:
        return {"mean_rank": scores[step]}

    config = toy_config(validate_every=4)
    config = replace(
        config,
        optim=replace(config.optim, schedule="auto_step", gamma=0.1, warmup_ratio=0.1, tolerance=1),
    )
    with pytest.raises(ConfigError, match=r"auto_step .*data\.validation is empty"):
        run(tmp_path / "a", config)
    undisturbed, _ = run(tmp_path / "a", config, validate=validate)
    rates = {line["step"]: line["learning_rate/transformer"] for line in lines(tmp_path / "a")}
    base = config.optim.learning_rate
    assert rates[1] == pytest.approx(base / 3)
    # Falls count as rises of a rank. Two validations in a row without one are one too many.
    assert [rates[step] for step in (4, 16)] == [base] * 2
    assert [rates[step] for step in (17, 30)] == pytest.approx([base * 0.1] * 2)
    for stop in (18, 22):
        with pytest.raises(Killed):
            run(tmp_path / "b", config, validate=validate, stop_after=stop)
    resumed, _ = run(tmp_path / "b", config, validate=validate)
    assert_same_weights(undisturbed, resumed)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_validation_changes_nothing_in_training(tmp_path: Path) -> None:
    def validate(model: nn.Module, step: int) -> dict[str, float]:
        return {"noise": float(torch.rand(()))}

    config = toy_config(validate_every=3)
    judged, _ = run(tmp_path / "a", config, validate=validate)
    plain, _ = run(tmp_path / "b", config)
    assert_same_weights(judged, plain)


def test_unknown_best_metric_names_those_there_are(tmp_path: Path) -> None:
    config = toy_config(best_metric="r2", validate_every=1)
    with pytest.raises(ConfigError, match=r"best_metric.*'r2'.*r1"):
        run(tmp_path, config, validate=lambda *_: {"r1": 0.0})


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


def test_another_batch_is_another_run(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, stop_after=5)
    with pytest.raises(CheckpointError, match="takes 4 samples a step, this command asks for 8"):
        run(tmp_path, with_batch_size(toy_config(), 8))
    afresh = replace(toy_config(), train=replace(toy_config().train, resume=False, batch_size=8))
    _, result = run(tmp_path, afresh)
    assert result.step == 15
    assert list_steps(tmp_path)[-1].name == "step_0000015"
    assert (tmp_path / "checkpoints.old1").is_dir()


def test_changed_settings_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Killed):
        run(tmp_path, stop_after=5)
    run(tmp_path, toy_config(max_steps=8))
    assert "resuming with changed settings: train.max_steps" in caplog.text


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


def test_one_run_folder_has_one_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rushes.session._LOCK_WAIT", 0.2)

    def validate(model: nn.Module, step: int) -> dict[str, float]:
        with pytest.raises(CheckpointError, match="another process trains there"):
            run(tmp_path)
        return {"r1": 1.0}

    run(tmp_path, toy_config(max_steps=2, validate_every=2), validate=validate)


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


@pytest.mark.parametrize(("asked", "saved"), [(6, [2, 4, 6, 7]), (7, [2, 4, 6, 8])])
def test_a_step_is_saved_once_when_asked_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int, saved: list[int]
) -> None:
    taken = []

    def counting(*given: Any) -> Snapshot:
        taken.append(given[2].step)
        return take_snapshot(*given)

    def on_step(report: StepReport) -> None:
        if report.step == asked:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("rushes.session.take_snapshot", counting)
    config = toy_config()
    with pytest.raises(SystemExit) as stopped:
        train(toy_model(), ToyLoader(config, WORLD), config, WORLD, tmp_path, on_step=on_step)
    assert stopped.value.code == PREEMPTED
    assert taken == saved
    assert read_progress(tmp_path / "checkpoints/last").step == saved[-1]


def test_steps_of_a_run() -> None:
    assert total_steps(toy_config(epochs=2.5), 3) == 8
    assert total_steps(toy_config(epochs=2.5, max_steps=5), 3) == 5
    assert is_better("r1", 0.5, 0.4)
    assert is_better("r1", 0.5, None)
    assert not is_better("r1", math.nan, None)
    assert is_better("median_rank", 3.0, 4.0)
    assert not is_better("validation_loss", 3.0, 2.0)


def test_extras_land_in_each_checkpoint(tmp_path: Path) -> None:
    def extras(folder: Path) -> None:
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "vocabulary.txt").write_text("frame\n")

    _, result = run(tmp_path, toy_config(max_steps=2), extras=extras)
    assert result.checkpoint is not None
    manifest = json.loads((result.checkpoint / "manifest.json").read_text())
    assert "tokenizer/vocabulary.txt" in manifest["files"]
