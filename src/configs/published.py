"""The published HD-VILA flag spellings, and what they are here: one table that translates them."""

from __future__ import annotations

from typing import Any

PUBLISHED_FLAGS: dict[str, str] = {
    "data_mount_dir": "data.mount_dir",
    "tokenizer_dir": "model.text.tokenizer",
    "model_config": "model.text.config",
    "e2e_weights_path": "model.weights.model",
    "mmdetection_weights_path": "model.weights.backbone",
    "bert_weights_path": "model.weights.bert",
    "do_inference": "inference.enabled",
    "inference_split": "inference.split",
    "inference_model_step": "inference.step",
    "inference_txt_db": "inference.annotations",
    "inference_img_db": "inference.videos",
    "inference_batch_size": "inference.batch_size",
    "inference_n_clips": "inference.num_clips",
}
"""Published flag -> dotted path of the schema."""


def translate_flag(name: str, text: str) -> tuple[str, Any] | None:
    """(dotted path, value) of a published flag, or None when `name` is not one."""
    path = PUBLISHED_FLAGS.get(name)
    return None if path is None else (path, text)
