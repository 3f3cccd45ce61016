"""A rendered corpus and run folders with random weights: small, real in every part but learning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from rushes.checkpoint import Progress, Snapshot, step_name, write_folder
from rushes.configs.load import build_config, config_to_json, merge, read_preset
from rushes.configs.schema import RunConfig
from rushes.datasets.build import build_answers, build_tokenizer
from rushes.datasets.footage import render_corpus
from rushes.distributed import SingleWorld
from rushes.modeling.build import build_model

SIZES: dict[str, Any] = {
    "model": {
        "backbone_args": {"channels": [32, 32, 32, 32]},
        "embed_dim": 32,
        "temporal_depth": 1,
        "temporal_heads": 2,
        "text": {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 64},
    },
    "clips": {"num_frames": 3, "eval_num_clips": 2},
    "geometry": {"high_size": [64, 128]},
    "train": {"precision": "fp32"},
    "data": {"num_workers": 0},
    "evaluation": {"bootstrap": 20},
}
OBJECTIVES = {
    "retrieval": [{"name": "contrastive"}],
    "open_ended_qa": [{"name": "open_ended_qa"}],
    "multiple_choice_qa": [{"name": "multiple_choice_qa"}],
}
FILES = {"retrieval": "", "open_ended_qa": "_qa", "multiple_choice_qa": "_mc"}


def make_corpus(folder: Path, test: int = 8, films: int = 0, train: int = 3) -> Path:
    """A corpus of a few short videos."""
    render_corpus(
        folder,
        train=train,
        val=1,
        test=test,
        films=films,
        workers=1,
        progress=False,
        max_seconds=4.4,
    )
    return folder


def tiny_config(corpus: Path, task: str = "retrieval", **over: Any) -> RunConfig:
    """A configuration of the corpus for a task, as small as it gets."""

    def dataset(split: str) -> dict[str, Any]:
        name = f"{split}{FILES[task]}"
        return {"name": name, "annotations": [f"{name}.jsonl"], "videos": "videos"}

    values = merge(read_preset("tiny"), SIZES)
    own: dict[str, Any] = {
        "task": task,
        "objectives": OBJECTIVES[task],
        "model": {"cross": task != "retrieval"},
        "data": {
            "mount_dir": str(corpus),
            "train": [dataset("train")],
            "validation": [dataset("val")],
            "test": [dataset("test")],
        },
    }
    return build_config(merge(merge(values, own), over))


def save_run(config: RunConfig, folder: Path, seed: int = 0) -> Path:
    """A run folder as training would leave it, with random weights; returns it."""
    world = SingleWorld()
    tokenizer = build_tokenizer(config, world, folder / "tokenizer")
    answers = build_answers(config) if config.task == "open_ended_qa" else {}
    torch.manual_seed(seed)
    model = build_model(
        config, vocab_size=tokenizer.vocab_size, num_answers=len(answers) or None
    ).eval()
    wake(model)

    def extras(checkpoint: Path) -> None:
        tokenizer.save(checkpoint / "tokenizer")
        if answers:
            (checkpoint / "answers.json").write_text(json.dumps(answers), encoding="utf-8")

    plain = config_to_json(config)
    checkpoint = folder / "checkpoints" / step_name(1)
    write_folder(
        checkpoint, Snapshot(1, model.state_dict(), {}, vars(Progress(step=1)), plain), extras
    )
    for name in ("best", "last"):
        (folder / "checkpoints" / name).symlink_to(step_name(1))
    (folder / "config.json").write_text(json.dumps(plain), encoding="utf-8")
    return folder


def wake(model: torch.nn.Module) -> None:
    """Give every all-zero parameter random values, so that no branch is silently off."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
