"""Between steps: validations, the best, early stop, cadence, one writer, SIGTERM."""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rushes.checkpoint import (
    Snapshot,
    list_steps,
    read_progress,
    take_snapshot,
)
from rushes.distributed import SingleWorld
from rushes.errors import CheckpointError, ConfigError
from rushes.session import PREEMPTED, is_better, total_steps
from rushes.training import StepReport, train
from tests.toy import (
    Killed,
    ToyLoader,
    assert_same_weights,
    lines,
    losses,
    run,
    toy_config,
    toy_model,
    with_batch_size,
)

WORLD = SingleWorld()


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


def test_unknown_best_metric_names_those_there_are(tmp_path: Path) -> None:
    config = toy_config(best_metric="r2", validate_every=1)
    with pytest.raises(ConfigError, match=r"best_metric.*'r2'.*r1"):
        run(tmp_path, config, validate=lambda *_: {"r1": 0.0})


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


def test_one_run_folder_has_one_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rushes.session._LOCK_WAIT", 0.2)

    def validate(model: nn.Module, step: int) -> dict[str, float]:
        with pytest.raises(CheckpointError, match="another process trains there"):
            run(tmp_path)
        return {"r1": 1.0}

    run(tmp_path, toy_config(max_steps=2, validate_every=2), validate=validate)


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
