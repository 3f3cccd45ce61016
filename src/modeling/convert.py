"""`rushes convert-weights`: released HD-VILA files to ours, and ours to the published names."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rushes.configs.load import build_config, config_to_json, merge, read_preset
from rushes.configs.schema import RunConfig
from rushes.errors import WeightsError
from rushes.log import get_logger
from rushes.modeling.build import build_model
from rushes.modeling.files import locate, read_state
from rushes.modeling.pretrained import from_pretrained, save_pretrained
from rushes.modeling.weights import load_weights, published_state

HEAD_DIM = 64
"""Channels of an attention head in the released sizes."""
_BLOCKS: dict[tuple[int, ...], str] = {
    (2, 2, 2, 2): "resnet18",
    (3, 4, 6, 3): "resnet50",
    (3, 4, 23, 3): "resnet101",
}

logger = get_logger(__name__)


def convert(argv: Sequence[str]) -> int:
    """Convert one file; returns the exit code.

    Raises:
        WeightsError: the file cannot be read or does not fit.
    """
    arguments = _parser().parse_args(argv)
    if arguments.to_published:
        model = from_pretrained(arguments.source)
        state = {name: value.clone() for name, value in published_state(model).items()}
        target = Path(arguments.target)
        if target.suffix == ".safetensors":
            save_file(state, target)
        else:
            torch.save(state, target)
        logger.info("%s: %d tensors under published names", target, len(state))
        return 0
    file = locate(arguments.source)
    config = guess_config(read_state(file), file)
    if arguments.config:
        config = build_config(merge(config_to_json(config), read_preset(arguments.config)))
    model = build_model(config)
    logger.info("%s", load_weights(model, file))
    save_pretrained(model, arguments.target, arguments.tokenizer)
    logger.info("%s: saved", arguments.target)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rushes convert-weights",
        description="Released HD-VILA weights (stage 1, stage 2, question answering, multiple "
        "choice) to a folder that from_pretrained reads. Sizes are read off the tensors.",
    )
    parser.add_argument("source", help="file with published names; a saved model with the flag")
    parser.add_argument("target", help="folder; with --to-published a .pt or .safetensors file")
    parser.add_argument("--config", help="preset whose keys win over what the tensors tell")
    parser.add_argument("--tokenizer", help="folder of tokenizer files to put beside")
    parser.add_argument("--to-published", action="store_true", help="the other way round")
    return parser


def guess_config(state: Mapping[str, Tensor], file: Path) -> RunConfig:
    """A config with the sizes that a released file shows; heads have 64 channels each.

    Raises:
        WeightsError: not a released HD-VILA file.
    """
    words = state.get("transformer.bert.embeddings.word_embeddings.weight")
    if words is None:
        raise WeightsError(f"{file}: no released HD-VILA file: it has no transformer.bert names")
    vocab_size, hidden = words.shape
    layers = 1 + max(_numbers(state, r"transformer\.bert\.encoder\.layer\.(\d+)\."))
    cross = "transformer.bert.pooler2.dense.weight" in state
    text = {
        "hidden_size": hidden,
        "num_layers": layers if cross else 2 * layers,
        "num_heads": max(1, hidden // HEAD_DIM),
        "intermediate_size": len(state["transformer.bert.encoder.layer.0.intermediate.dense.bias"]),
        "vocab_size": vocab_size,
        "max_positions": len(state["transformer.bert.embeddings.position_embeddings.weight"]),
    }
    model: dict[str, Any] = {"cross": cross, "text": text, "compat": True} | _vision(state)
    task, objectives = "pretrain", ["contrastive"]
    if "transformer.classifier.2.weight" in state:
        answers = len(state["transformer.classifier.2.weight"])
        task = "open_ended_qa" if answers > 1 else "multiple_choice_qa"
        objectives, model["num_answers"] = [task], answers if answers > 1 else 0
    elif cross:
        objectives = ["contrastive", "masked_language", "matching"]
    config = build_config({"task": task, "stage": 2 if cross else 1, "model": model})
    named = build_config({"objectives": [{"name": name} for name in objectives]}).objectives
    return replace(config, objectives=named)


def _vision(state: Mapping[str, Tensor]) -> dict[str, Any]:
    grid = next(state[f"{n}.0.weight"] for n in ("grid_encoder", "grid_encoder_low"))
    high = "grid_encoder.0.weight" in state
    tower = "cnn" if high else "cnn_low"
    counts = tuple(
        1 + max(_numbers(state, rf"{tower}\.layer{stage}\.(\d+)\."), default=-1)
        for stage in (1, 2, 3, 4)
    )
    dim = grid.shape[0]
    model: dict[str, Any] = {"backbone": _resnet(counts, state, tower), "embed_dim": dim}
    if "timesformer.pos_embed" in state:
        model["temporal_depth"] = 1 + max(_numbers(state, r"timesformer\.blocks\.(\d+)\."))
        model["temporal_heads"] = max(1, dim // HEAD_DIM)
        model["temporal_positions"] = state["timesformer.time_embed"].shape[1]
    return model


def _resnet(counts: tuple[int, ...], state: Mapping[str, Tensor], tower: str) -> str:
    plain = f"{tower}.layer1.0.conv3.weight" not in state
    if counts == (3, 4, 6, 3) and plain:
        return "resnet34"
    return _BLOCKS.get(counts, "resnet50")


def _numbers(state: Mapping[str, Tensor], pattern: str) -> list[int]:
    return [int(found[1]) for found in map(re.compile(pattern).match, state) if found]
