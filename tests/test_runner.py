"""One road for all runners: wrong presets are refused, launchers agree, finished runs stay."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from rushes.distributed import SingleWorld
from rushes.dry_run import scratch
from rushes.errors import ConfigError
from rushes.pretrain.run_pretrain_stage1_group import main as stage1
from rushes.pretrain.run_pretrain_stage2_group import main as stage2
from rushes.runner import flatten, spread
from rushes.tasks import run_msrvtt_mc, run_video_qa, run_video_retrieval
from tests.footage_fixture import footage
from tests.helpers import horovodrun, launch, torchrun
from tests.tiny_runs import SIZES

__all__ = ["footage"]
ROOT = Path(__file__).resolve().parents[1]


def overlay(folder: Path, **over: Any) -> str:
    """A file that shrinks any preset to milliseconds a step, without noise in the model."""
    sizes = json.loads(json.dumps(SIZES))
    sizes["model"].update(temporal_drop_path=0.0)
    sizes["model"]["text"].update(dropout=0.0, attention_dropout=0.0)
    sizes["data"].update(failure_budget=0.9)
    sizes["train"].update(max_steps=3, batch_size=8, async_checkpoint=False)
    for section, values in over.items():
        sizes.setdefault(section, {}).update(values)
    path = folder / "overlay.json"
    path.write_text(json.dumps(sizes))
    return str(path)


def arguments(footage: Path, folder: Path, **over: Any) -> list[str]:
    """Stage 1 on the corpus as rendered."""
    return [
        *(
            "--config",
            "pretrain_stage1",
            "--config",
            "tiny",
            "--config",
            "demo",
            "--config",
            "demo_stage1",
        ),
        *("--config", overlay(folder, **over), "--data_mount_dir", str(footage)),
        *("--data.train", _data("train"), "--data.validation", "[]", "--data.test", _data("test")),
        *("--output_dir", str(folder / "run")),
    ]


def _data(split: str) -> str:
    return json.dumps([{"name": split, "annotations": [f"{split}.jsonl"], "videos": "videos"}])


def losses(run: Path) -> list[float]:
    """Loss of every step."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize(
    ("main", "preset"),
    [
        (stage1, "pretrain_stage2"),
        (stage2, "pretrain_stage1"),
        (run_video_retrieval.main, "msrvtt_qa"),
        (run_video_qa.main, "msrvtt_retrieval"),
        (run_msrvtt_mc.main, "msrvtt_qa"),
    ],
)
def test_a_runner_refuses_another_ones_preset(
    main: Any, preset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", preset]) == 2
    assert "ConfigError" in capsys.readouterr().err


def test_an_output_folder_that_cannot_be_made_is_named(
    footage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = arguments(footage, tmp_path)
    (tmp_path / "run").write_text("a file stands in the way")
    assert stage1(argv) == 2
    assert f"output_dir={tmp_path / 'run'}: cannot be made" in capsys.readouterr().err


def test_unknown_preset_names_those_that_exist() -> None:
    from rushes.configs.load import read_preset

    with pytest.raises(ConfigError, match="pretrain_stage1"):
        read_preset("pretrain_stage9")


def test_a_finished_run_is_not_repeated(
    footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = arguments(footage, tmp_path)
    assert stage1(argv) == 0
    before = (tmp_path / "run" / "results.json").read_bytes()
    monkeypatch.setattr("rushes.runner.train", lambda *_, **__: pytest.fail("trained again"))
    assert stage1(argv) == 0
    assert (tmp_path / "run" / "results.json").read_bytes() == before
    results = json.loads(before)
    assert set(results["unreadable"]) == set()
    assert results["retrieval"]["num_queries"] == 20
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()


def test_dry_run_leaves_nothing(
    footage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stage1([*arguments(footage, tmp_path), "--seeds", "3", "--dry-run"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["from_step"] == 0
    assert shown["losses"]["contrastive_loss"] > 0
    assert shown["steps"] == 3
    assert not (tmp_path / "run").exists()
    assert stage1(arguments(footage, tmp_path, train={"checkpoint_every": 2})) == 0
    (tmp_path / "run/results.json").unlink()
    (tmp_path / "run/checkpoints/step_0000003/manifest.json").unlink()
    assert stage1([*arguments(footage, tmp_path), "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["from_step"] == 2
    assert not (tmp_path / "run/results.json").exists()


def test_a_dry_run_refuses_what_the_run_would(
    footage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = arguments(footage, tmp_path, train={"cache_frozen": 2})
    assert stage1([*argv, "--dry-run"]) == 2
    assert "cache_frozen needs a frozen video tower" in capsys.readouterr().err


@pytest.mark.parametrize("machines", [1, 2])
def test_ranks_of_several_machines_share_a_scratch_folder(tmp_path: Path, machines: int) -> None:
    world = SingleWorld()
    world.size, world.local_size = 2, 2 // machines
    with scratch(world, tmp_path / "not/there/yet") as place:
        assert place.is_dir()
        assert (place.parent == tmp_path) == (machines == 2)
    assert not place.exists()


def test_several_seeds_give_mean_and_spread(footage: Path, tmp_path: Path) -> None:
    argv = arguments(footage, tmp_path, train={"max_steps": 1})
    assert stage1([*argv, "--seeds", "3", "--seed", "5"]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [one["seed"] for one in results["seeds"]] == [5, 6, 7]
    scores = [one["retrieval"]["t2v_mean_rank"] for one in results["seeds"]]
    assert len(set(scores)) > 1, "seeds differ"
    name = "retrieval.t2v_mean_rank"
    assert results["mean"][name] == pytest.approx(statistics.fmean(scores))
    assert results["standard_deviation"][name] == pytest.approx(statistics.stdev(scores))
    assert (tmp_path / "run" / "seed_7" / "results.json").is_file()


def test_spread_is_the_sample_deviation() -> None:
    found = spread([{"a": {"b": 1.0}}, {"a": {"b": 3.0}, "c": 2.0}])
    assert found["mean"] == {"a.b": 2.0}
    assert found["standard_deviation"]["a.b"] == pytest.approx(2**0.5)
    assert flatten({"a": {"b": 1, "flag": True, "name": "x"}}) == {"a.b": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", [torchrun, pytest.param(horovodrun, marks=pytest.mark.needs_horovod)]
)
def test_two_processes_train_as_one(launcher: Any, footage: Path, tmp_path: Path) -> None:
    alone, both = tmp_path / "alone", tmp_path / "both"
    alone.mkdir()
    both.mkdir()
    assert stage1(arguments(footage, alone)) == 0
    script = str(ROOT / "src" / "pretrain" / "run_pretrain_stage1_group.py")
    argv = arguments(footage, both, train={"batch_size": 4})
    launch(launcher([script, *argv]), timeout=240)
    assert losses(both / "run") == pytest.approx(losses(alone / "run"), rel=1e-5)
