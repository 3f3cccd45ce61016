"""The table over runs: mean and spread over seeds, what must be named, merging of the full demo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rushes.cli import main


def results(r1: float, **more: object) -> str:
    retrieval = {"t2v_r1": r1, "protocol": "clip", "interval_95": {"t2v_r1": [0, 1]}, **more}
    answers = {"accuracy": 0.7, "by_kind": {"color": 0.9}, "majority_by_kind": {"color": 0.2}}
    return json.dumps({"retrieval": retrieval, "qa": answers, "coverage": 1.0, "commit": "abc"})


def test_seeds_make_mean_and_spread(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, r1 in enumerate((0.3, 0.4, 0.5)):
        (tmp_path / "a" / f"seed_{seed}").mkdir(parents=True)
        (tmp_path / "a" / f"seed_{seed}" / "results.json").write_text(results(r1))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "results.json").write_text(results(0.25, dual_softmax=0.1))
    assert main(["results", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("b (1) |")
    assert "| retrieval.t2v_r1 | 0.400 \u00b1 0.100 | 0.25 |" in lines
    assert "| retrieval.dual_softmax |  | 0.1 |" in lines  # never silently better
    assert not any("interval" in line for line in lines)
    assert main(["results", str(tmp_path / "absent")]) == 1
    assert "absent" in capsys.readouterr().err


def test_the_full_demo_is_merged_in_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["results"]) == 1
    assert "make demo-full" in capsys.readouterr().err
    folder = tmp_path / "docs" / "results"
    folder.mkdir(parents=True)
    for seed, r1 in enumerate((0.6, 0.7)):
        (folder / f"demo-full-{seed}.json").write_text(results(r1))
    page = tmp_path / "docs" / "results.md"
    page.write_text("# Results\n\nMy own words.\n")
    for _ in range(2):
        assert main(["results"]) == 0
    text = page.read_text()
    assert text.startswith("# Results\n\nMy own words.")
    assert text.count("| retrieval.t2v_r1 | 0.650 \u00b1 0.071 |") == 1
    assert "| qa.by_kind.color | 0.900 \u00b1 0.000 |" in text
