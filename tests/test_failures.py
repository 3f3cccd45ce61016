"""Bad samples: named before the step, honoured on resume, within a budget; and full disks."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rushes.checkpoint import (
    list_steps,
    read_progress,
)
from rushes.distributed import SingleWorld
from rushes.errors import CheckpointError, FailureBudgetExceeded
from rushes.training import StepReport, train
from tests.helpers import disk_of
from tests.toy import (
    Killed,
    Poisoned,
    ToyLoader,
    ToyModel,
    assert_same_weights,
    lines,
    losses,
    run,
    toy_config,
)

WORLD = SingleWorld()


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


@pytest.mark.fault
def test_a_disk_that_is_full_from_the_start_is_named(tmp_path: Path) -> None:
    with disk_of(0), pytest.raises(CheckpointError, match=rf"{tmp_path}/a: .*File too large"):
        run(tmp_path / "a")
    run(tmp_path / "a", toy_config(max_steps=2))


def test_more_failures_than_the_budget_stop_the_run(tmp_path: Path) -> None:
    config = toy_config()
    assert config.data.failure_budget == 0.1  # of 40 samples: four may fail, the fifth may not
    _, result = run(tmp_path / "a", config, failing=dict.fromkeys(range(4), 0))
    assert result.status == "finished"
    with pytest.raises(FailureBudgetExceeded, match=r"5 samples have failed, 4 of 40 may .*bad_"):
        run(tmp_path / "b", config, failing=dict.fromkeys(range(5), 0))
    assert len((tmp_path / "b/bad_videos.jsonl").read_text().splitlines()) == 5
