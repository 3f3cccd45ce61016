"""Fixtures and rules for every test: what a machine lacks is said loudly, seeds do not leak."""

from __future__ import annotations

import os
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import horovodrun, launch, require, required, shared_folder, torchrun

__all__ = ["horovodrun", "launch", "require", "torchrun"]

# No test may reach for a hub: an attempt fails at once instead of waiting for a network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
# What a user exports for real runs must not steer the tests.
for _variable in ("PATH_TO_STORAGE", "RUSHES_OVERLAY"):
    os.environ.pop(_variable, None)

NEEDS = {
    "needs_shared": "shared",
    "needs_demo": "demo",
    "needs_cuda": "gpu",
    "needs_horovod": "horovod",
    "needs_browser": "browser",
    "needs_ray": "ray",
}
"""Marker -> what it requires; the marker alone is enough, `require()` is for finer cases."""


def pytest_configure() -> None:
    """Refuse a misspelt RUSHES_REQUIRE before it can let a skip through."""
    try:
        required()
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, or fail under RUSHES_REQUIRE, what this machine cannot run."""
    for marker, name in NEEDS.items():
        if item.get_closest_marker(marker):
            require(name)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one block what was not tested and why, so that no skip goes unnoticed."""
    reasons = Counter(
        report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        for report in terminalreporter.getreports("skipped")
    )
    if reasons:
        terminalreporter.section("NOT TESTED HERE", yellow=True, bold=True)
        for reason, count in reasons.most_common():
            terminalreporter.line(f"{count:4d} x {reason.removeprefix('Skipped: ')}")


@pytest.fixture(autouse=True)
def _random_state_restored() -> Iterator[None]:
    """Leave Python's, NumPy's and PyTorch's generators as they were found."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    torch = sys.modules.get("torch")
    torch_state = torch.get_rng_state() if torch else None
    yield
    random.setstate(python_state)
    np.random.set_state(numpy_state)  # noqa: NPY002
    if torch and torch_state is not None:
        torch.set_rng_state(torch_state)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared test data; the test is skipped, or failed, where there is none."""
    require("shared")
    return shared_folder()
