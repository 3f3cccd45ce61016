"""Real processes: killed, asked to stop, cut into ranks; the run goes on as if nothing happened."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rushes.checkpoint import find_checkpoint
from rushes.session import PREEMPTED
from tests.helpers import ROOT, horovodrun, launch, torchrun

PROGRAM = ("-m", "tests.world_program", "run")


def settings(**given: Any) -> str:
    return json.dumps(given)


def plain(arguments: Sequence[str | Path]) -> list[str]:
    return [sys.executable, *map(str, arguments)]


def losses(folder: Path) -> list[float]:
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if entry["kind"] == "train"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints/last/model.safetensors")


def assert_same(one: Path, other: Path, relative: float = 0.0) -> None:
    """Losses of all steps and final weights agree, to the bit where `relative` is 0."""
    if relative:
        assert losses(one) == pytest.approx(losses(other), rel=relative)
    else:
        assert losses(one) == losses(other)
    for name, tensor in weights(one).items():
        # Adam divides by the root of tiny moments, so weights are looser than losses.
        torch.testing.assert_close(
            tensor, weights(other)[name], rtol=10 * relative, atol=10 * relative, msg=name
        )


def start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def steps_done(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.is_file() else 0


def interrupt(command: Sequence[str], folder: Path, steps: int, number: int) -> int:
    """Run until `steps` more are done, then send the whole group a signal; the exit status."""
    goal = steps_done(folder) + steps
    process = start(command)
    deadline = time.monotonic() + 60
    while steps_done(folder) < goal and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, number)
    return process.wait(60)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 steps of 8 samples on one process, without noise."""
    folder = tmp_path_factory.mktemp("undisturbed")
    train = {"batch_size": 8, "epochs": 6}
    launch(plain([*PROGRAM, folder, settings(train=train)]), cwd=ROOT)
    assert len(losses(folder)) == 30
    assert losses(folder)[-1] < 0.7 * losses(folder)[0]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(torchrun, id="torchrun"),
        pytest.param(horovodrun, id="horovodrun", marks=pytest.mark.needs_horovod),
    ],
)
def test_two_ranks_train_as_one(undisturbed: Path, tmp_path: Path, launcher: Any) -> None:
    train = {"batch_size": 4, "epochs": 6}
    launch(launcher([*PROGRAM, tmp_path, settings(train=train)]), cwd=ROOT)
    assert_same(tmp_path, undisturbed, relative=1e-5)


@pytest.mark.slow
def test_a_loss_that_is_infinite_on_one_rank_is_skipped_by_all(
    undisturbed: Path, tmp_path: Path
) -> None:
    train = {"batch_size": 4, "epochs": 6}
    given = settings(train=train, poison={"rank": 1, "step": 7})
    launch(torchrun([*PROGRAM, tmp_path, given]), cwd=ROOT)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [line["step"] for line in map(json.loads, lines) if line["skipped"]] == [8]
    kept = json.loads((tmp_path / "replay/step_0000008.json").read_text())
    assert [len(batch) for rank in kept["ids"] for batch in rank] == [4, 4], "ids of all ranks"
    assert losses(tmp_path)[:7] == pytest.approx(losses(undisturbed)[:7], rel=1e-5)
    assert all(bool(tensor.isfinite().all()) for tensor in weights(tmp_path).values())


@pytest.mark.slow
def test_ranks_may_come_and_go(undisturbed: Path, tmp_path: Path) -> None:
    train = {"batch_size": 2, "epochs": 6}
    for ranks, step in ((4, 10), (2, 20)):
        given = settings(train=train, raises={"rank": ranks - 1, "step": step})
        command = torchrun([*PROGRAM, tmp_path, given], ranks)
        done = launch(command, cwd=ROOT, status=None)
        assert done.returncode != 0
        assert "the projector stopped" in done.stderr
        found = find_checkpoint(tmp_path)
        assert found is not None
        assert found.name in {f"step_{step - 2:07d}", f"step_{step:07d}"}
    launch(plain([*PROGRAM, tmp_path, settings(train=train)]), cwd=ROOT)
    assert_same(tmp_path, undisturbed, relative=1e-5)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 steps with dropout and a sample that fails in the second epoch."""
    folder = tmp_path_factory.mktemp("noisy")
    launch(plain([*PROGRAM, folder, settings(dropout=0.2, failing={7: 1})]), cwd=ROOT)
    return folder


@pytest.mark.slow
@pytest.mark.fault
def test_killed_processes_resume_to_the_bit(noisy: Path, tmp_path: Path) -> None:
    command = plain([*PROGRAM, tmp_path, settings(dropout=0.2, failing={7: 1}, pause=0.02)])
    for steps in (5, 9):
        assert interrupt(command, tmp_path, steps, signal.SIGKILL) == -signal.SIGKILL
    launch(command, cwd=ROOT)
    assert_same(tmp_path, noisy)


@pytest.mark.slow
@pytest.mark.fault
def test_sigterm_saves_and_exits(noisy: Path, tmp_path: Path) -> None:
    given = {"dropout": 0.2, "failing": {7: 1}, "train": {"checkpoint_every": 1000}}
    slow = plain([*PROGRAM, tmp_path, settings(pause=0.1, **given)])
    assert interrupt(slow, tmp_path, 3, signal.SIGTERM) == PREEMPTED
    found = find_checkpoint(tmp_path)
    assert found is not None
    assert int(found.name.removeprefix("step_")) == steps_done(tmp_path) < 30
    launch(plain([*PROGRAM, tmp_path, settings(**given)]), cwd=ROOT)
    assert_same(tmp_path, noisy)


@pytest.mark.slow
@pytest.mark.fault
def test_preempted_ranks_stop_at_the_same_step(undisturbed: Path, tmp_path: Path) -> None:
    train = {"batch_size": 4, "epochs": 6, "checkpoint_every": 1000}
    slow = torchrun([*PROGRAM, tmp_path, settings(train=train, pause=0.1)])
    assert interrupt(slow, tmp_path, 3, signal.SIGTERM) != 0
    assert find_checkpoint(tmp_path) is not None
    launch(torchrun([*PROGRAM, tmp_path, settings(train=train)]), cwd=ROOT)
    assert_same(tmp_path, undisturbed, relative=1e-5)


@pytest.mark.soak
@pytest.mark.fault
def test_thirty_kills_change_nothing(tmp_path: Path) -> None:
    draw = random.Random(int(os.environ.get("RUSHES_SEED", "0")))
    rounds = int(os.environ.get("RUSHES_ROUNDS", "30"))
    given = {"dropout": 0.2, "failing": {7: 1, 20: 3}, "train": {"epochs": 20}}
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    launch(plain([*PROGRAM, calm, settings(**given)]), cwd=ROOT)
    command = plain([*PROGRAM, stormy, settings(pause=0.01, **given)])
    for _ in range(rounds):
        process = start(command)
        started = steps_done(stormy)
        while steps_done(stormy) == started and process.poll() is None and draw.random() < 0.995:
            time.sleep(0.02)  # mostly among the steps, sometimes while it starts
        time.sleep(draw.uniform(0, 0.25))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    launch(command, cwd=ROOT)
    assert_same(stormy, calm)
