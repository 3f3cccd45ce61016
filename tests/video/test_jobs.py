"""One video's misfortune is one row, here and on a cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rushes.errors import BackendMissing, RushesError, UnreadableVideo
from rushes.video.jobs import Job, Row, do_job


def _not_yet() -> None:
    return None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UnreadableVideo("v", "torn", "truncated"), "truncated"),
        (BackendMissing("ffmpeg", "pip install imageio-ffmpeg"), "not_prepared"),
        (OSError(28, "No space left on device"), "io_error"),
    ],
)
def test_errors_become_rows(error: OSError | RushesError, reason: str) -> None:
    def work() -> Row:
        raise error

    row = do_job(Job("v", work, _not_yet))
    assert (row["video"], row["status"], row["reason"]) == ("v", "failed", reason)
    assert row["detail"] in str(error)


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.needs_ray
def test_a_process_of_the_cluster_that_dies_costs_its_video(tmp_path: Path) -> None:
    """In a process of its own, whose main program Ray sends along."""
    program = f"""
import os, signal
from functools import partial
from pathlib import Path
from rushes.video.jobs import Job, run_jobs
def work(name):
    if name == "bad":
        os.kill(os.getpid(), signal.SIGKILL)
    return {{"name": name}}
def not_yet():
    return None
jobs = [Job(name, partial(work, name), not_yet) for name in ("a", "bad", "c")]
run_jobs(jobs, Path({str(tmp_path)!r}), engine="ray", workers=2, progress=False)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=180)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    rows = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert [(r["video"], r["status"]) for r in rows] == [
        ("a", "ok"),
        ("bad", "failed"),
        ("c", "ok"),
    ]
    assert rows[1]["reason"] == "worker_died"
