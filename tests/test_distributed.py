"""World on each backend and launcher, with real processes; failures end all ranks quickly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from rushes.distributed import SingleWorld, World, make_world, run_main
from rushes.distributed.launch import first_host, tasks_per_node
from rushes.errors import CheckpointError, ConfigError
from tests.helpers import ROOT, free_port, horovodrun, launch, torchrun

PROGRAM = ("-m", "tests.world_program")
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "HOROVOD_RANK", "SLURM_STEP_NUM_TASKS")

Launcher = Callable[[Sequence[str | Path]], list[str]]

LAUNCHERS = [
    pytest.param(torchrun, "torch", id="torchrun", marks=pytest.mark.slow),
    pytest.param(
        horovodrun,
        "horovod",
        id="horovodrun",
        marks=[pytest.mark.slow, pytest.mark.needs_horovod],
    ),
]


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("launcher", "backend"), LAUNCHERS)
def test_two_ranks_agree_with_one(launcher: Launcher, backend: str, tmp_path: Path) -> None:
    out = tmp_path / "backends.json"
    launch(launcher([*PROGRAM, "checks", out]), cwd=ROOT)
    assert json.loads(out.read_text()) == [backend, backend]


@pytest.mark.parametrize(("launcher", "backend"), LAUNCHERS)
def test_a_failing_rank_ends_the_launch(launcher: Launcher, backend: str) -> None:
    started = time.monotonic()
    done = launch(launcher([*PROGRAM, "fail", "error"]), cwd=ROOT, status=None, timeout=60)
    assert done.returncode != 0
    assert "ValueError: the lens cap was on" in done.stdout + done.stderr
    assert time.monotonic() - started < 40  # most of it is the start of three interpreters


@pytest.mark.fault
@pytest.mark.parametrize(("launcher", "backend"), LAUNCHERS)
def test_a_killed_rank_ends_the_launch(launcher: Launcher, backend: str) -> None:
    done = launch(launcher([*PROGRAM, "fail", "kill"]), cwd=ROOT, status=None, timeout=60)
    assert done.returncode != 0
    how = {"torch": "Signal 9 (SIGKILL) received", "horovod": "Exit code: 137"}[backend]
    assert how in done.stdout + done.stderr


@pytest.mark.slow
def test_torchrun_starts_ranks_on_several_nodes(tmp_path: Path) -> None:
    settings = json.dumps({"train": {"batch_size": 2, "max_steps": 4}})
    port = free_port()
    agents = []
    for node in range(2):
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2"]
        command += [f"--node-rank={node}", "--nproc-per-node=1", "--master-addr=127.0.0.1"]
        command += [f"--master-port={port}", *PROGRAM, "run", str(tmp_path), settings]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        agents.append(
            subprocess.Popen(command, env=env, cwd=ROOT, text=True, stdout=pipe, stderr=pipe)
        )
    for agent in agents:
        _, shown = agent.communicate(timeout=120)
        assert agent.returncode == 0, shown
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert (environment["backend"], environment["ranks"]) == ("torch", 2)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


def slurm_ranks(arguments: Sequence[str], port: int) -> list[subprocess.Popen[str]]:
    """Two processes with what srun sets, and nobody who would end one for the other."""
    processes = []
    for rank in range(2):
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "SLURM_JOB_ID": "7",
            "SLURM_STEP_ID": "0",
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_STEP_TASKS_PER_NODE": "2",
            "SLURM_STEP_NODELIST": "127.0.0.1",
            "SLURM_NODEID": "0",
            "SLURM_LOCALID": str(rank),
            "SLURM_PROCID": str(rank),
            "MASTER_PORT": str(port),
        }
        command = [sys.executable, *PROGRAM, *arguments]
        pipe = subprocess.PIPE
        processes.append(
            subprocess.Popen(command, env=env, cwd=ROOT, text=True, stdout=pipe, stderr=pipe)
        )
    return processes


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize(
    ("how", "status", "said"),
    [
        ("error", 1, "RankFailed: rank 1: Traceback"),
        ("config", 2, "RankFailed: rank 1: ConfigError: train.lens: 'cap' is wrong"),
        ("kill", -9, "RankFailed: a peer has gone"),
    ],
)
def test_ranks_without_a_launcher_fall_with_the_first(how: str, status: int, said: str) -> None:
    first, last = slurm_ranks(["fail", how], free_port())
    try:
        assert last.wait(60) == status
        died = time.monotonic()
        _, shown = first.communicate(timeout=20)
        assert time.monotonic() - died < 10
    finally:
        for process in (first, last):
            process.kill()
            process.communicate()
    assert first.returncode == 1
    assert said in shown


@pytest.mark.slow
def test_slurm_tasks_find_each_other(tmp_path: Path) -> None:
    processes = slurm_ranks(["checks", str(tmp_path / "o.json")], free_port())
    for process in processes:
        _, shown = process.communicate(timeout=60)
        assert process.returncode == 0, shown
    assert json.loads((tmp_path / "o.json").read_text()) == ["torch", "torch"]


def test_environment_chooses_the_world(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world("cpu")
    assert isinstance(world, SingleWorld)
    assert (world.rank, world.size, world.is_main) == (0, 1, True)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert isinstance(make_world("cpu"), SingleWorld)
    monkeypatch.setenv("RANK", "zero")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="RANK='zero'"):
        make_world("cpu")


def test_slurm_short_forms() -> None:
    assert first_host("node3") == "node3"
    assert first_host("gpu[07,09-12]-ib,cpu1") == "gpu07-ib"
    assert tasks_per_node("4,2(x2)") == [4, 2, 2]
    with pytest.raises(ConfigError, match="two"):
        tasks_per_node("two")


def test_one_process_gives_back_what_it_gets() -> None:
    world = SingleWorld()
    row = torch.ones(2, requires_grad=True)
    assert world.all_gather_with_grad(row) is row
    assert not world.all_gather(row).requires_grad
    assert world.all_gather_object("x") == ["x"]
    assert world.broadcast_object("x") == "x"
    assert world.all_true(True)
    assert not world.all_true(False)
    module = nn.Linear(1, 1)
    world.average_gradients(module)
    assert module.weight.grad is None


def test_run_main_turns_errors_into_statuses(capfd: pytest.CaptureFixture[str]) -> None:
    def raising(error: BaseException) -> Callable[[World], int]:
        def main(world: World) -> int:
            raise error

        return main

    assert run_main(lambda world: world.size + 6, "cpu") == 7
    assert run_main(raising(ConfigError("no such key")), "cpu") == 2
    assert run_main(raising(CheckpointError("torn")), "cpu") == 1
    assert run_main(raising(SystemExit(143)), "cpu") == 143
    shown = capfd.readouterr().err
    assert "ConfigError: no such key" in shown
    assert "CheckpointError: torn" in shown
    with pytest.raises(ZeroDivisionError):
        run_main(raising(ZeroDivisionError()), "cpu")
