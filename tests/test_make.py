"""The make targets set up by themselves, on a machine that has Python and make."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.helpers import ROOT, launch

TARGETS = [
    "setup",
    "commands",
    "demo",
    "demo-full",
    "results",
    "test",
    "test-fast",
    "test-slow",
    "lint",
    "bench",
]


def make(*arguments: str, folder: Path = ROOT, status: int = 0) -> CompletedProcess[str]:
    """Run make as a person would, not as the child of the make that runs these tests."""
    return launch(["make", *arguments], cwd=folder, env={"MAKEFLAGS": ""}, status=status)


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A checkout in which nothing was ever made."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def test_every_target_is_listed() -> None:
    listed = {line.split()[0] for line in make("-s").stdout.splitlines()}
    assert set(TARGETS) <= listed


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_sets_up_first(fresh: Path, target: str) -> None:
    plan = make("-n", target, folder=fresh).stdout
    order = [plan.index(step) for step in ("-m venv .venv", "^torch==", '-e ".[')]
    assert order == sorted(order)
    assert "-c constraints.txt" in plan[order[-1] - 200 : order[-1]]


def test_a_finished_setup_is_not_repeated(fresh: Path) -> None:
    (fresh / ".venv").mkdir()
    stamp = fresh / ".venv" / ".rushes-setup"
    stamp.touch()
    # File times are coarse: what is touched next must be later for make, too.
    for file, ago in ((fresh / "pyproject.toml", 20), (fresh / "constraints.txt", 20), (stamp, 10)):
        os.utime(file, (time.time() - ago,) * 2)
    assert "pip install" not in make("-n", "test", folder=fresh).stdout
    (fresh / "constraints.txt").touch()
    assert "pip install" in make("-n", "test", folder=fresh).stdout


def test_an_old_python_is_refused_by_name(fresh: Path) -> None:
    old = fresh / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.18 && exit 0\nexit 1\n')
    old.chmod(0o755)
    refused = make("setup", f"PYTHON={old}", folder=fresh, status=2)
    assert "needs Python 3.11 or newer, found Python 3.9.18" in refused.stderr
    assert not (fresh / ".venv").exists()


@pytest.mark.parametrize(
    ("target", "selection"),
    [
        ("test", "not soak and not full"),
        ("test-fast", "not slow and not soak and not full"),
        ("test-slow", "soak or fuzz or full"),
    ],
)
def test_which_tests_a_target_runs(target: str, selection: str) -> None:
    assert f'-m "{selection}"' in make("-n", target).stdout


def test_the_seed_and_the_rounds_are_passed_on() -> None:
    assert "--seed 7" in make("-n", "demo-full", "SEED=7").stdout
    assert "RUSHES_ROUNDS=9 " in make("-n", "test-slow", "ROUNDS=9").stdout
