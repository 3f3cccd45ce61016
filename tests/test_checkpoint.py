"""Checkpoints: whole or not at all, in whatever way a disk or a process fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from rushes.checkpoint import (
    CheckpointWriter,
    Progress,
    Snapshot,
    find_checkpoint,
    list_steps,
    load_checkpoint,
    optimizer_tensors,
    read_progress,
    resolve_checkpoint,
    restore_optimizer,
    take_snapshot,
    verify,
)
from rushes.configs.schema import OptimConfig
from rushes.errors import CheckpointError
from rushes.optim import make_optimizer
from tests.helpers import ROOT, disk_of


def trained(steps: int = 2) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    optimizer = make_optimizer(model, OptimConfig())
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def snapshot(step: int, checkpoints: int = 0) -> Snapshot:
    model, optimizer = trained()
    return take_snapshot(
        model, optimizer, Progress(step=step, checkpoints=checkpoints), {"seed": 7}
    )


def write(run: Path, *steps: int, **settings: object) -> CheckpointWriter:
    writer = CheckpointWriter(run, **settings)  # type: ignore[arg-type]
    for number, step in enumerate(steps, start=1):
        writer.save(snapshot(step, number))
    writer.close()
    return writer


def names(run: Path) -> list[str]:
    return [folder.name for folder in list_steps(run)]


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    model, optimizer = trained()
    progress = Progress(step=12, best_value=0.5, bad=[{"id": "x"}], metrics={"r1": 0.5})
    writer = CheckpointWriter(tmp_path)
    writer.save(take_snapshot(model, optimizer, progress, {"seed": 7}), best=True)
    with torch.no_grad():  # steps that follow must not reach what is being written
        next(model.parameters()).zero_()
    writer.close()
    folder = tmp_path / "checkpoints/step_0000012"
    assert find_checkpoint(tmp_path) == folder
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "model.safetensors", "training", "manifest.json",
    }  # fmt: skip
    for link in ("best", "last"):
        assert os.readlink(tmp_path / "checkpoints" / link) == "step_0000012"
    loaded = load_checkpoint(folder)
    assert loaded.progress == progress
    assert loaded.config == {"seed": 7}

    expected, its_optimizer = trained()
    other = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    fresh = make_optimizer(other, OptimConfig())
    other.load_state_dict(loaded.weights)
    restore_optimizer(other, fresh, loaded.moments)
    for one, two in ((expected, its_optimizer), (other, fresh)):
        two.zero_grad()
        one(torch.ones(2, 4) * torch.arange(2.0)[:, None]).square().sum().backward()
        two.step()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_moments_of_unknown_parameters_are_refused() -> None:
    model, optimizer = trained()
    tensors = optimizer_tensors(model, optimizer)
    tensors["2.weight/exp_avg"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"trained 2\.weight"):
        restore_optimizer(model, optimizer, tensors)


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "no manifest", "half manifest"])
def test_torn_checkpoints_are_passed_over(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, 10, 20)
    folder = tmp_path / "checkpoints/step_0000020"
    weights, manifest = folder / "model.safetensors", folder / "manifest.json"
    content = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(content[:-1])
    elif damage == "flip":
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "missing":
        (folder / "training/optimizer.safetensors").unlink()
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text(manifest.read_text()[:40])
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoints/step_0000010"
    assert "torn checkpoint skipped" in caplog.text
    assert "step_0000020" in caplog.text
    with pytest.raises(CheckpointError, match="step_0000020"):
        resolve_checkpoint(tmp_path, "last")
    (tmp_path / "checkpoints/step_0000010/model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="all 2 checkpoints are torn"):
        find_checkpoint(tmp_path)


def test_a_torn_newer_one_does_not_push_out_good_ones(tmp_path: Path) -> None:
    write(tmp_path, 10, 20, keep_last=5)
    (tmp_path / "checkpoints/step_0000020/manifest.json").unlink()
    write(tmp_path, 15, keep_last=1)
    assert names(tmp_path) == ["step_0000015", "step_0000020"]
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoints/step_0000015"
    write(tmp_path, 20, keep_last=1)  # the run gets there again
    verify(tmp_path / "checkpoints/step_0000020")
    assert names(tmp_path) == ["step_0000020"]


def test_last_best_and_every_nth_are_kept(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, keep_last=2, keep_every=3)
    for number in range(1, 9):
        writer.save(snapshot(10 * number, number), best=number == 4)
    writer.close()
    kept = [30, 40, 60, 70, 80]  # every third, the best, the last two
    assert names(tmp_path) == [f"step_{step:07d}" for step in kept]
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_checkpoints_are_found_by_name(tmp_path: Path) -> None:
    write(tmp_path, 10, 1200)
    folder = tmp_path / "checkpoints"
    assert resolve_checkpoint(tmp_path, "last") == (folder / "step_0001200").resolve()
    assert resolve_checkpoint(tmp_path, "best") == (folder / "step_0001200").resolve()
    for name in ("10", "step_10"):
        assert resolve_checkpoint(tmp_path, name) == (folder / "step_0000010").resolve()
    with pytest.raises(CheckpointError, match=r"no checkpoint '11'.*step_0000010"):
        resolve_checkpoint(tmp_path, "11")
    with pytest.raises(CheckpointError, match="expected best, last"):
        resolve_checkpoint(tmp_path, "newest")
    assert find_checkpoint(tmp_path / "elsewhere") is None


@pytest.mark.fault
@pytest.mark.parametrize("room", [0, 300, 900])
def test_a_full_disk_is_survived(
    tmp_path: Path, room: int, caplog: pytest.LogCaptureFixture
) -> None:
    writer = CheckpointWriter(tmp_path)
    writer.save(snapshot(10))
    writer.wait()
    with disk_of(room):
        writer.save(snapshot(20))
        writer.wait()
    assert writer.failed == 1
    assert "checkpoint of step 20 could not be written" in caplog.text
    assert names(tmp_path) == ["step_0000010"]
    assert not list((tmp_path / "checkpoints").glob(".*"))
    writer.save(snapshot(30))
    writer.close()
    verify(tmp_path / "checkpoints/step_0000010")
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoints/step_0000030"


def test_writing_does_not_hold_up_the_steps(tmp_path: Path) -> None:
    allowed = threading.Event()
    threads = []

    def slow(folder: Path) -> None:
        threads.append(threading.current_thread().name)
        allowed.wait(10)

    writer = CheckpointWriter(tmp_path, extras=slow)
    writer.save(snapshot(10))
    assert find_checkpoint(tmp_path) is None
    allowed.set()
    writer.close()
    assert find_checkpoint(tmp_path) is not None
    assert threads[0] != threading.current_thread().name


def test_errors_of_the_thread_surface(tmp_path: Path) -> None:
    def wrong(folder: Path) -> None:
        raise KeyError("vocabulary")

    writer = CheckpointWriter(tmp_path, extras=wrong)
    writer.save(snapshot(10))
    with pytest.raises(KeyError, match="vocabulary"):
        writer.close()


PROGRAM = """
import sys
from pathlib import Path
from tests.test_checkpoint import CheckpointWriter, snapshot

writer = CheckpointWriter(Path(sys.argv[1]), keep_last=3, asynchronous=False)
for step in range(int(sys.argv[2]), 100000):
    writer.save(snapshot(step))
    print(step, flush=True)
"""


@pytest.mark.slow
@pytest.mark.fault
def test_a_writer_killed_at_any_moment_leaves_an_intact_one(tmp_path: Path) -> None:
    last = 0
    for moment in (0.004, 0.011):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path), str(last + 1)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert process.stdout is not None
        for _ in range(3):
            last = int(process.stdout.readline())
        time.sleep(moment)
        process.kill()
        last = max([last, *(int(word) for word in process.communicate()[0].split())])
        found = find_checkpoint(tmp_path)
        assert found is not None
        assert read_progress(found).step >= last


def test_progress_of_a_later_version_is_read() -> None:
    assert Progress.from_json(json.loads('{"step": 3, "mood": "good"}')) == Progress(step=3)
