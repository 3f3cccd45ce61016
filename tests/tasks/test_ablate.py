"""The ablation: arms run on a corpus, seeds are pooled by question, claims are judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rushes.datasets.build import build_answers, build_tokenizer, open_dataset_records
from rushes.datasets.footage import STORE
from rushes.errors import ConfigError, StorageError
from rushes.tasks import ablate, ablate_merge
from rushes.tasks.ablate import ARMS, Road
from rushes.video import store_build
from tests.footage_fixture import footage
from tests.tiny_runs import SIZES

__all__ = ["footage"]


def write(folder: Path, arm: str, seed: int, items: dict[str, list[Any]], **more: Any) -> None:
    """One arm and seed as `rushes ablate` leaves it."""
    place = folder / arm / f"seed_{seed}"
    place.mkdir(parents=True)
    results = {"arm": arm, "seed": seed, "minutes": 1.0, "items": items, **more}
    (place / "results.json").write_text(json.dumps(results))


def questions(right: float, kind: str = "motion", count: int = 40) -> dict[str, list[Any]]:
    """Questions of a kind of which a share is right."""
    return {f"{kind}{i}": [kind, float(i < right * count)] for i in range(count)}


def merged(folder: Path) -> tuple[int, dict[str, Any]]:
    target = folder / "docs" / "ablation.json"
    code = ablate.main(["--merge", "--out", str(folder / "runs"), "--to", str(target)])
    found: dict[str, Any] = json.loads(target.read_text())
    return code, found


def test_seeds_are_pooled_and_claims_judged(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for seed, right in ((0, 0.8), (1, 0.9)):
        write(runs, "hybrid", seed, questions(right), qa={"majority_by_kind": {"motion": 0.2}})
        write(runs, "high", seed, questions(0.3))
        write(runs, "frames_mean", seed, {**questions(0.75), **questions(0.1, "after")})
        write(runs, "text_only", seed, questions(0.2))
    code, found = merged(tmp_path)
    assert found["ablation"]["hybrid"]["qa"]["by_kind"]["motion"] == pytest.approx(0.85)
    low, high = found["interval_95"]["ablation.hybrid.qa.by_kind.motion"]
    assert low < 0.85 < high
    claims = {claim["claim"]: claim for claim in found["claims"]}
    over_high = claims["hybrid over high on motion by 0.15"]
    assert over_high["holds"]
    assert over_high["difference"] == pytest.approx(0.55)
    assert over_high["low"] > 0.15
    assert not claims["hybrid over frames_mean on motion by 0.15"]["holds"]
    assert claims["text_only within 0.05 of the majority answer on motion"]["holds"]
    assert found["seeds"]["hybrid"] == [0, 1]
    assert code == 1  # a claim fails


def test_transfer_and_matching(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write(runs, "pretrained", 0, questions(0.5, "t2v_r1"))
    write(runs, "scratch", 0, questions(0.25, "t2v_r1"))
    both = {f"{name}/{key}": [name, value]
            for name, right in (("plain", 0.5), ("reranked", 0.6))
            for key, (_, value) in questions(right, "q").items()}  # fmt: skip
    write(runs, "matching", 0, both)
    code, found = merged(tmp_path)
    assert code == 0
    assert found["transfer"]["pretrained"]["t2v_r1"] == 0.5
    assert found["transfer"]["scratch"]["t2v_r1"] == 0.25
    assert found["matching"]["reranked"]["t2v_r1"] == 0.6
    assert [round(claim["difference"], 6) for claim in found["claims"]] == [0.25, 0.1]


def test_what_cannot_be_merged(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with pytest.raises(StorageError, match="rushes ablate ARM first"):
        merged(tmp_path)
    with pytest.raises(StorageError, match="no question in common"):
        ablate_merge.difference({"a": 1.0}, {"b": 1.0})
    with pytest.raises(ConfigError, match="frames_mean"):
        ablate.main([])


def test_arms_differ_in_what_they_say_alone(tmp_path: Path) -> None:
    from rushes.configs.load import config_to_json
    from rushes.distributed import SingleWorld

    road = Road(tmp_path / "a", tmp_path, tmp_path, 3, (), SingleWorld())
    plain = config_to_json(road.config("msrvtt_qa", "demo_qa", "qa"))
    assert plain["seed"] == 3
    for arm, flags in ablate.TOWERS.items():
        other = config_to_json(road.config("msrvtt_qa", "demo_qa", "qa", *flags))
        differing = [key for key in other["model"] if other["model"][key] != plain["model"][key]]
        assert len(differing) == (arm != "hybrid")
        assert {k: v for k, v in other.items() if k != "model"} == {
            k: v for k, v in plain.items() if k != "model"
        }
    assert set(ablate.TOWERS) < set(ARMS)


@pytest.fixture(scope="module")
def corpus(footage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared corpus where prepared videos are looked for; its videos are small enough."""
    folder = tmp_path_factory.mktemp("ablate") / "corpus"
    folder.mkdir()
    for entry in footage.iterdir():
        (folder / entry.name).symlink_to(entry)
    assert store_build.main([str(footage / "videos"), str(folder / "store"), *STORE]) in (0, 1)
    return folder


def run_arm(arm: str, corpus: Path, out: Path) -> dict[str, Any]:
    overlay = json.loads(json.dumps(SIZES))
    overlay["data"]["failure_budget"] = 0.9
    overlay["train"].update(max_steps=1, batch_size=8, num_threads=1, async_checkpoint=False)
    file = corpus.parent / "overlay.json"
    file.write_text(json.dumps(overlay))
    more = ["--out", str(out), "--corpus", str(corpus), "--overlay", str(file)]
    assert ablate.main([arm, "--seed", "1", *more]) == 0
    found: dict[str, Any] = json.loads((out / arm / "seed_1" / "results.json").read_text())
    return found


@pytest.mark.parametrize("arm", ["text_only", "single_frame"])
def test_baselines_answer(
    arm: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rushes.tasks.ablate_baselines.EPOCHS", 3)
    found = run_arm(arm, corpus, tmp_path)
    assert set(found["qa"]["by_kind"]) == {
        *("after", "color", "count", "motion", "object", "symbol")
    }
    assert len(found["items"]) > 60


def test_a_frame_tells_the_colour(corpus: Path, tmp_path: Path) -> None:
    """The net learns what one frame can show: it is a baseline, not a straw man."""
    import torch

    from rushes.distributed import SingleWorld
    from rushes.tasks.ablate_baselines import QuestionNet, _load

    road = Road(tmp_path, tmp_path, corpus, 0, (), SingleWorld())
    config = road.config("msrvtt_qa", "demo_qa", "baseline")
    answers = build_answers(config)
    tokenizer = build_tokenizer(config, SingleWorld(), tmp_path / "tokenizer")
    train, frames = _load(config, SingleWorld(), "train", tokenizer, answers, 1)
    assert frames is not None
    assert frames.shape[1:] == (1, 3, 32, 56)
    assert len(train.records) == len(list(open_dataset_records(config, config.data.train[0])))
    torch.manual_seed(0)
    net = QuestionNet(tokenizer.vocab_size, len(answers), pictures=True)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    losses = []
    for _ in range(25):
        scores = net(train.ids, train.mask, frames[train.videos, 0].float() / 255)
        loss = torch.nn.functional.cross_entropy(scores, train.labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["frames_mean", "pretrained", "matching"])
def test_arms_run(arm: str, corpus: Path, tmp_path: Path) -> None:
    found = run_arm(arm, corpus, tmp_path)
    assert found["items"]
    if arm == "frames_mean":
        stored = json.loads((tmp_path / arm / "seed_1" / "qa" / "results.json").read_text())
        assert stored["config"]["model"]["kind"] == "frames_mean"
    elif arm == "pretrained":
        assert found["steps"] == 1
        assert (tmp_path / "hybrid" / "seed_1" / "stage1" / "results.json").is_file()
    else:
        assert set(found) >= {"plain", "reranked"}
        assert len(found["items"]) == 2 * 20
