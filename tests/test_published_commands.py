"""Every published command, as it stands in docs/commands.md, on small data in the storage layout.

The environment says where the storage is and lays src/configs/tiny.json over the preset; nothing is
added to a command. Each also passes `--dry-run` at full size.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from rushes.checkpoint import resolve_checkpoint
from rushes.configs.load import load_config
from rushes.configs.published import PUBLISHED_FLAGS
from rushes.configs.schema import RunConfig
from rushes.errors import ConfigError
from rushes.modeling.build import build_model
from rushes.modeling.files import read_state
from rushes.modeling.weights import load_weights, published_state
from tests.helpers import ROOT, launch
from tests.storage_fixture import PRETRAINED, TINY, footage, full_weights, storage

__all__ = ["footage", "storage"]


def published_commands() -> list[list[str]]:
    """Script and arguments of every command of the page, in order."""
    text = (ROOT / "docs" / "commands.md").read_text("utf-8")
    found = []
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line)
            assert words[:4] == ["horovodrun", "-np", "$NUM_GPUS", "python"], line
            found.append(words[4:])
    return found


COMMANDS = published_commands()
TRAINING = [c for c in COMMANDS if "--do_inference" not in c]
INFERENCE = [c for c in COMMANDS if "--do_inference" in c]


ALIKE = ("lsmdc_retrieval", "actnet_retrieval", "tgif_transition_qa", "tgif_frame_qa")
"""Presets that take the way of another one (DiDeMo, TGIF action, MSRVTT-QA); trained by `make
commands` and `make test-slow`, while every test run makes their dry run."""


def name_of(command: list[str]) -> str:
    """Runner and preset."""
    preset = Path(command[command.index("--config") + 1]).stem
    return f"{Path(command[0]).stem}-{preset}"


def each_trained() -> list[Any]:
    """The training commands as parameters of a test."""
    return [
        pytest.param(c, marks=[pytest.mark.full] if name_of(c).endswith(ALIKE) else [])
        for c in TRAINING
    ]


def call(command: list[str], *more: str) -> int:
    """Run a command in this process; its exit code."""
    module = ".".join(("rushes", *Path(command[0]).with_suffix("").parts[1:]))
    code: int = import_module(module).main([*command[1:], *more])
    return code


def output_of(command: list[str], storage: Path) -> Path:
    """The run folder of a command."""
    if "--output_dir" in command:
        return storage / command[command.index("--output_dir") + 1]
    return storage / load_config(["--config", command[command.index("--config") + 1]]).output_dir


@pytest.fixture
def here(storage: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of the checkout as working folder, the storage folder in the environment."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH_TO_STORAGE", str(storage))
    return storage


@pytest.fixture
def tiny(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As `here`, with tiny.json laid over every preset."""
    monkeypatch.setenv("RUSHES_OVERLAY", str(TINY))
    return here


def trained(command: list[str], storage: Path) -> Path:
    """The run folder of a training command, trained in this process unless it was before."""
    folder = output_of(command, storage)
    if not (folder / "results.json").is_file():
        assert call(command) == 0
    return folder


def test_all_published_presets_are_run() -> None:
    presets = {Path(c[c.index("--config") + 1]).stem for c in TRAINING}
    assert presets == {
        "pretrain_stage1", "pretrain_stage2", "msrvtt_retrieval", "didemo_retrieval",
        "lsmdc_retrieval", "actnet_retrieval", "msrvtt_qa", "tgif_action_qa",
        "tgif_transition_qa", "tgif_frame_qa",
    }  # fmt: skip
    assert {Path(c[0]).stem for c in INFERENCE} >= {"run_msrvtt_mc", "run_video_qa"}


@pytest.mark.slow
@pytest.mark.xdist_group("published_commands")
@pytest.mark.parametrize("command", each_trained(), ids=name_of)
def test_trains_an_epoch(command: list[str], tiny: Path) -> None:
    folder = trained(command, tiny)
    results = json.loads((folder / "results.json").read_text())
    assert results["unreadable"] == []
    assert results["steps"] >= 1
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    losses = [line.get("loss") for line in lines]
    assert all(loss > 0 for loss in losses if loss is not None)
    scores = {
        "retrieval": "retrieval",
        "open_ended_qa": "qa",
        "multiple_choice_qa": "qa",
        "pretrain": "retrieval" if results["config"]["stage"] == 1 else "masked",
    }
    assert scores[results["task"]] in results
    assert results["config"]["data"]["mount_dir"] is None  # the storage came from outside


@pytest.mark.slow
@pytest.mark.xdist_group("published_commands")
@pytest.mark.parametrize("command", INFERENCE, ids=name_of)
def test_judges_a_finished_run(command: list[str], tiny: Path) -> None:
    """The command as published, and again with the other spellings of the step."""
    preset = command[command.index("--config") + 1]
    folder = trained(next(c for c in TRAINING if preset in c), tiny)
    step = json.loads((folder / "results.json").read_text())["steps"]
    place = command.index("--inference_model_step") + 1
    found = []
    steps = ["best", "last", str(step), f"step_{step}"] if "mc" in command[0] else ["best"]
    for spelling in steps:
        assert call([*command[:place], spelling, *command[place + 1 :]]) == 0
        task: str = "multiple_choice" if "mc" in command[0] else load_config(command[1:]).task
        (path,) = folder.glob(f"inference/{task}_*_{spelling}/results.json")
        found.append(json.loads(path.read_text()))
        assert resolve_checkpoint(folder, spelling).is_dir()
        assert found[-1]["config"]["inference"]["num_clips"] == 4
    for results in found:
        assert 0 <= results["coverage"] <= 1
        assert results["unreadable"] == []
        for task in {"mc", "qa", "retrieval"} & set(results):
            assert results[task] == found[0][task]


@pytest.mark.slow
@pytest.mark.needs_horovod
@pytest.mark.xdist_group("published_commands")
def test_under_horovodrun(tiny: Path, tmp_path: Path) -> None:
    """The line itself, started by a shell as a user starts it."""
    command = next(c for c in INFERENCE if "mc" in c[0])
    preset = command[command.index("--config") + 1]
    folder = trained(next(c for c in TRAINING if preset in c), tiny)
    assert call(command) == 0
    (path,) = folder.glob("inference/multiple_choice_*_best/results.json")
    alone = json.loads(path.read_text())["mc"]
    path.unlink()
    line = "PATH=$BIN:$PATH horovodrun -np $NUM_GPUS python " + shlex.join(command)
    environment = {"BIN": str(Path(sys.executable).parent), "NUM_GPUS": "2"}
    launch(["bash", "-c", line], timeout=200, env=environment, cwd=ROOT)
    assert json.loads(path.read_text())["mc"] == alone


# Dry runs at full size ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full(storage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same storage with weights of published sizes, and no output."""
    root = tmp_path_factory.mktemp("full")
    (root / "data").mkdir()
    for entry in (storage / "data").iterdir():
        if entry.name not in ("output", "pretrained"):
            (root / "data" / entry.name).symlink_to(entry, target_is_directory=True)
    full_weights(root)
    return root


@pytest.mark.slow
@pytest.mark.xdist_group("published_commands")
@pytest.mark.parametrize("command", COMMANDS, ids=name_of)
def test_dry_run_at_full_size(
    command: list[str],
    here: Path,
    full: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH_TO_STORAGE", str(full))
    assert call(command, "--dry-run") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["parameters"] > 290_000_000
    assert not (full / "data" / "output").exists()
    if command in INFERENCE:  # no run of that name yet: the preset's own weights would be judged
        assert shown["samples"] > 0
        return
    assert shown["teraflops_step"] > 1
    assert shown["memory_needed_gib"] > 4
    assert "losses" in shown or "a step" in shown["not_tried"]
    assert shown["evaluated"]["test"] > 0


@pytest.mark.slow
@pytest.mark.xdist_group("published_commands")
@pytest.mark.parametrize(
    "missing", ["res50_mmdetection.pth", "bert-large-uncased", "hdvila_stage2.pt"]
)
def test_a_dry_run_names_the_file_that_is_missing(
    missing: str,
    here: Path,
    full: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / PRETRAINED
    folder.mkdir(parents=True)
    for entry in (full / "data").iterdir():
        if entry.name != "pretrained":
            (tmp_path / "data" / entry.name).symlink_to(entry, target_is_directory=True)
    for entry in (full / PRETRAINED).iterdir():
        if entry.name != missing:
            (folder / entry.name).symlink_to(entry)
    monkeypatch.setenv("PATH_TO_STORAGE", str(tmp_path))
    command = next(c for c in TRAINING if "src/configs/msrvtt_retrieval.json" in c)
    assert call(command, "--dry-run") == 1
    assert f"data/pretrained/{missing}: no such weight file" in capsys.readouterr().err


# Weights and frozen parts ------------------------------------------------------------------------


def of(preset: str, storage: Path, *more: str) -> RunConfig:
    """A preset at the size of tiny.json."""
    argv = ["--config", preset, "--config", str(TINY), "--data_mount_dir", str(storage), *more]
    return load_config(argv)


@pytest.mark.xdist_group("published_commands")
@pytest.mark.parametrize("command", TRAINING[1:], ids=name_of)
def test_a_stage_1_file_starts_every_later_run(command: list[str], storage: Path) -> None:
    file = storage / PRETRAINED / "hdvila_stage1.pt"
    state = read_state(file)
    words = len(state["transformer.bert.embeddings.word_embeddings.weight"])
    config = of(command[command.index("--config") + 1], storage)
    model = build_model(config, vocab_size=words, num_answers=7)
    report = load_weights(model, file)
    assert report.mismatched == ()
    assert report.unexpected == ()
    own = published_state(model)
    same = [name for name in state if name in own and torch.equal(own[name], state[name])]
    resized = {line.split(" ")[0] for line in report.resized}
    assert len(same) + len(resized) >= 0.95 * len(set(state) & set(own))
    assert all(not name.startswith(("video.", "text.")) for name in set(report.missing) - resized)


@pytest.mark.slow
@pytest.mark.xdist_group("published_commands")
def test_frozen_means_frozen(tiny: Path) -> None:
    """Stage 2 leaves every value of stage 1 as it was, statistics of batch norms included."""
    folder = trained(next(c for c in TRAINING if "src/configs/pretrain_stage2.json" in c), tiny)
    before = read_state(tiny / PRETRAINED / "hdvila_stage1.pt")
    config = of("pretrain_stage2", tiny)
    after = read_state(resolve_checkpoint(folder, "last") / "model.safetensors")
    model = build_model(config, vocab_size=len(after["text.embeddings.word.weight"]))
    model.load_state_dict(after)
    own = published_state(model)
    shared = [name for name in before if name in own]
    assert len(shared) > 100
    changed = [name for name in shared if not torch.equal(before[name], own[name])]
    assert changed == []
    assert any(name.startswith("cross_encoder.") for name in after)
    model.train()
    frozen: list[Any] = [model.video, model.text]
    assert not any(module.training for part in frozen for module in part.modules())


# Flags -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", sorted(PUBLISHED_FLAGS))
def test_every_published_flag_is_taken(flag: str) -> None:
    """Its spelling reaches a field of the schema, with a value as the original took it."""
    values = {
        "do_inference": "1",
        "inference_model_step": "1200",
        "decay": "linear",
        "score_agg_func": "lse",
        "inference_split": "val",
    }
    number = re.search(r"num|batch|clips|steps|len|workers", flag) and not flag.endswith("_db")
    rate = re.search(r"rate|decay$|ratio|norm", flag)
    value = values.get(flag) or ("3" if number else "0.1" if rate else "some/where")
    if flag in ("weight_decay", "cnn_weight_decay", "align_weight_decay"):
        value = "0.1"
    config = load_config(["--config", "msrvtt_qa", f"--{flag}", value])
    found: Any = config
    for part in PUBLISHED_FLAGS[flag].split("."):
        found = getattr(found, part)
    assert found == (True if flag == "do_inference" else type(found)(value))


@pytest.mark.parametrize("value", ["1", "true", "True", "0", "false"])
def test_booleans_as_published(value: str) -> None:
    config = load_config(["--config", "msrvtt_retrieval", "--do_inference", value])
    assert config.inference.enabled is (value.lower() in ("1", "true"))


def test_a_dead_flag_is_refused_with_its_reason() -> None:
    with pytest.raises(ConfigError, match=r"--num_valid: .*train\.validate_every"):
        load_config(["--config", "msrvtt_retrieval", "--num_valid", "10"])
