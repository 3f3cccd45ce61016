"""The whole road on a few dozen videos: raw files in, answers out, and it has learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rushes import demo
from rushes.cli import main
from rushes.demo_report import gather, write
from tests.footage_fixture import BAD, footage

__all__ = ["footage"]

SMALL: dict[str, Any] = {
    "data": {"failure_budget": 0.5},
    "train": {"batch_size": 12, "num_threads": 1, "async_checkpoint": False},
    "evaluation": {"bootstrap": 20},
}
EPOCHS = {"stage1": 10, "stage2": 1, "retrieval": 40, "qa": 2, "mc": 0}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_road(footage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "corpus").symlink_to(footage, target_is_directory=True)
    for step in demo.steps(folder, demo.DEMO, seed=0)[1:]:
        overlay = tmp_path / f"{step.title}.json"
        sizes = json.loads(json.dumps(SMALL))
        sizes["train"]["epochs"] = EPOCHS.get(step.title, 0)
        overlay.write_text(json.dumps(sizes))
        extra = [] if step.title in ("prepare", "store") else ["--config", str(overlay)]
        assert main([*step.arguments, *extra]) == 0, step.title
        if step.title == "prepare":
            demo.keep_bad_videos(folder)
        assert step.finished is None or step.finished.exists(), step.title
    assert write(folder, seed=0, full=False) == 0
    results = gather(folder)
    assert results["retrieval"]["num_queries"] == 20
    assert results["mc"]["coverage"] == 1.0
    assert set(results["qa"]["by_kind"]) == {
        *("after", "color", "count", "motion", "object", "symbol")
    }
    bad = [json.loads(line) for line in (folder / "bad_videos.jsonl").read_text().splitlines()]
    truth = [json.loads(line) for line in (footage / "bad.jsonl").read_text().splitlines()]
    assert {row["video"]: row["reason"] for row in bad} == {
        row["video"]: row["reason"] for row in truth
    }
    assert len(bad) == BAD
    assert (folder / "report.html").stat().st_size > 50_000
    assert "R@1" in capsys.readouterr().out
    _has_learned(folder)


def _has_learned(folder: Path) -> None:
    lines = map(json.loads, (folder / "retrieval" / "metrics.jsonl").read_text().splitlines())
    losses = [line["contrastive_loss"] for line in lines if "contrastive_loss" in line]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    retrieval = gather(folder)["retrieval"]
    # By chance the mean rank among 20 is 10.5 with a standard error of 1.3.
    assert retrieval["t2v_mean_rank"] < 10.5 - 3 * 1.3
