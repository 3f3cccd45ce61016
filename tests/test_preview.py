"""`rushes preview` and `rushes profile` on real footage."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from rushes import preview, profiling
from rushes.datasets.footage.corpus import render_corpus
from rushes.errors import ConfigError
from rushes.profiling import pace, summary


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A small masked-language run on three sound videos and a few bad ones."""
    folder = tmp_path_factory.mktemp("footage")
    render_corpus(folder, train=3, val=0, test=0, workers=1, progress=False, max_seconds=4.4)
    dataset = {"name": "footage", "annotations": ["train.jsonl"], "videos": "videos"}
    config = {
        "task": "pretrain",
        "stage": 2,
        "model": {"cross": True, "backbone_args": {"channels": [32, 32, 32, 32]}},
        "objectives": [{"name": "masked_language"}],
        "data": {"mount_dir": str(folder), "train": [dataset]},
        "geometry": {"high_size": [64, 128]},
        "train": {"batch_size": 8},
    }
    path = folder / "small.json"
    path.write_text(json.dumps(config))
    return ["--config", "tiny", "--config", str(path), "--output_dir", str(folder / "run")]


@pytest.mark.slow
def test_the_page_shows_what_the_model_sees(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    assert preview.main([*flags, "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    text = out.read_text("utf-8")
    assert text.count("<section>") == 8
    good = 8 - text.count("takes no part")
    assert 0 < good < 8
    assert text.count("<figure") == good * 7  # T = 7 frames, one clip
    assert text.count('class="middle"') == good
    assert text.count("128x64") == good
    assert text.count("32x16") == good * 6
    assert len(set(re.findall(r"alt=.frame at ([\d.]+) s", text))) > 7
    assert "<mark" in text
    assert "[CLS]" in text
    assert re.search(r"https?://", text) is None, "the page is self-contained"


@pytest.mark.slow
def test_profile_names_what_bounds_the_run(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert profiling.main([*flags, "--steps", "2", "--data.failure_budget", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bound_by"] in ("decode", "compute")
    assert found["headspace"][found["bound_by"]] == 1.0
    (trace,) = Path(found["trace"]).glob("*.json")
    assert "aten::convolution" in trace.read_text("utf-8")

    frozen = ["--train.cache_frozen", "1", "--model.freeze", '["stage1"]']
    assert profiling.main([*flags, *frozen, "--steps", "2", "--data.failure_budget", "1"]) == 0
    cached = json.loads(capsys.readouterr().out)
    assert cached["seconds_per_step"]["decode"] < found["seconds_per_step"]["decode"]


def test_the_slowest_part_bounds() -> None:
    found = summary(decode=0.5, transfer=0.1, compute=0.25)
    assert found["bound_by"] == "decode"
    assert found["headspace"] == {"decode": 1.0, "transfer": 5.0, "compute": 2.0}
    assert found["expected_data_stall"] == 0.5
    assert summary(0.1, 0.1, 0.2)["expected_data_stall"] == 0.0


def test_batches_that_come_in_bursts_have_a_pace() -> None:
    calls = iter([0.06, 0.0, 0.0] * 2)
    assert pace(6, lambda: time.sleep(next(calls))) >= 0.02


def test_wrong_flags_are_named() -> None:
    with pytest.raises(ConfigError, match="--steps 'many'"):
        profiling.main(["--steps", "many"])
    with pytest.raises(ConfigError, match="--out"):
        preview.main(["--out"])
