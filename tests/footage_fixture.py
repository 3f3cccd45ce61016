"""A rendered corpus of a few dozen videos, made once a session and shared by all tests.

Import `footage` into a test module to use it. The folder is only read; copy what must change.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import FileLock

from rushes.datasets.footage import render_corpus

TRAIN, VAL, TEST, BAD = 24, 10, 20, 4
"""Videos of the shared corpus; the bad ones come on top of `train`."""

__all__ = ["BAD", "TEST", "TRAIN", "VAL", "footage"]


@pytest.fixture(scope="session")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the shared corpus; parallel test processes render it once."""
    base = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        base = base.parent
    out = base / "footage"
    with FileLock(base / "footage.lock"):
        render_corpus(out, TRAIN, VAL, TEST, seed=3, workers=2, progress=False, max_seconds=5.0)
    return out
