"""Settings of a training process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rushes.process import share_interpreter

FREED = """
import psutil, torch
from rushes.process import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
before = psutil.Process().memory_info().rss
blocks = [torch.ones(16 << 18) for _ in range(8)]  # 16 MiB each
del blocks
print((psutil.Process().memory_info().rss - before) >> 20)
"""


@pytest.mark.parametrize(("keep", "mebibytes"), [(False, range(64)), (True, range(120, 200))])
def test_memory_that_a_step_frees_stays(keep: bool, mebibytes: range) -> None:
    command = [sys.executable, "-c", FREED.format(keep=keep)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert int(told) in mebibytes


def test_a_shorter_interval_of_the_user_stays() -> None:
    before = sys.getswitchinterval()
    try:
        share_interpreter()
        assert sys.getswitchinterval() == pytest.approx(1e-4, rel=0.05)
        sys.setswitchinterval(5e-5)
        share_interpreter()
        assert sys.getswitchinterval() == pytest.approx(5e-5, rel=0.05)
    finally:
        sys.setswitchinterval(before)
