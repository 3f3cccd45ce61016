"""The text tower: our BERT half, or any encoder that transformers' AutoModel knows."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rushes.configs.load import read_preset
from rushes.configs.schema import TextConfig
from rushes.errors import ConfigError, WeightsError
from rushes.modeling.files import PACKAGE, find_folder

BERT_NAMES = {
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_size",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_positions",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}
"""BERT's own names of sizes, and ours."""


class AutoTextEncoder(nn.Module):
    """Any encoder of transformers, without its pooler. For stage 1 only.

    Args:
        source: folder with a `config.json`, or hub id; only the architecture is taken from it.
        max_length: tokens of a text, to be refused at once if the encoder has fewer positions.
    """

    def __init__(self, source: str, max_length: int) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel

        folder = find_folder(source)
        try:
            config = AutoConfig.from_pretrained(str(folder or source))
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"model.text.encoder={source}: no encoder there ({str(error).splitlines()[0]}); "
                "name a folder with config.json and model.safetensors"
            ) from error
        positions = getattr(config, "max_position_embeddings", None) or max_length
        if positions < max_length:
            raise ConfigError(
                f"model.text.max_length={max_length}: {source} has {positions} positions"
            )
        model = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
        self.model = getattr(model, "text_model", model)
        if getattr(self.model, "pooler", None) is not None:
            self.model.pooler = None
        self.dim = int(getattr(config, "hidden_size", 0) or config.dim)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Hidden states `R L D` of ids and mask, int64 `R L`."""
        hidden: Tensor = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return hidden


def resolve_text(text: TextConfig) -> TextConfig:
    """The text config with the sizes that `config` (a JSON file) or a BERT `encoder` states.

    An encoder of the BERT family becomes our BERT, so that it can be split into halves.
    """
    if text.config is not None:
        return replace(text, config=None, **_bert_sizes(read_preset(text.config)))
    values = encoder_config(text.encoder) if text.encoder is not None else {}
    if values.get("model_type") == "bert":
        return replace(text, **_bert_sizes(values))
    return text


def is_bert(text: TextConfig) -> bool:
    """Whether the text tower is our BERT."""
    return text.encoder is None or encoder_config(text.encoder).get("model_type") == "bert"


def encoder_config(source: str) -> dict[str, Any]:
    """The `config.json` of a local encoder, or what a hub id's says; empty where there is none."""
    folder = find_folder(source)
    if folder is None and not source.startswith(PACKAGE):
        from transformers import AutoConfig

        try:
            values: dict[str, Any] = AutoConfig.from_pretrained(source).to_dict()
        except (OSError, ValueError):
            return {}
        return values
    path = (folder or Path(source)) / "config.json"
    if not path.is_file():
        return {}
    loaded = json.loads(path.read_text("utf-8"))
    return loaded if isinstance(loaded, dict) else {}


def _bert_sizes(values: dict[str, Any]) -> dict[str, Any]:
    assert {field.name for field in fields(TextConfig)} >= set(BERT_NAMES.values())
    return {ours: values[theirs] for theirs, ours in BERT_NAMES.items() if theirs in values}
