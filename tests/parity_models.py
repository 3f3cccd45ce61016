"""Runs our model on a parity case: builds it from the case's config and names every output."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from rushes.configs.load import build_config
from rushes.configs.schema import RunConfig
from rushes.modeling.build import build_model
from rushes.modeling.losses import clip_cross_entropy, contrastive, pool_clips
from rushes.modeling.model import VideoTextModel
from rushes.modeling.weights import load_weights

Outputs = dict[str, Any]
"""Tensors by published name; where clips may be pooled or not, each form (told by its shape)."""
TASKS = {
    "HDVILAForPreTraining": "pretrain",
    "HDVILAForSequenceClassification": "open_ended_qa",
    "HDVILAForMultipleChoice": "multiple_choice_qa",
}
OBJECTIVES = {
    ("HDVILAForPreTraining", 1): ("contrastive",),
    ("HDVILAForPreTraining", 2): ("contrastive", "masked_language", "matching"),
    ("HDVILAForSequenceClassification", 2): ("open_ended_qa",),
    ("HDVILAForMultipleChoice", 2): ("multiple_choice_qa",),
}
NUM_OPTIONS = 5


def case_config(case: Mapping[str, Any]) -> RunConfig:
    """Our config of a published one."""
    theirs = case["config"]
    kind, stage = theirs["transformer_cls"], theirs["stage"]
    inputs = {name.removeprefix("in.") for name in case["inputs"]}
    seen = "hybrid"
    if "img_middle" not in inputs:
        seen = "low"
    elif "img_other" not in inputs:
        seen = "high"
    text = {
        "hidden_size": theirs["hidden_size"],
        "num_layers": theirs["num_hidden_layers"],
        "num_heads": theirs["num_attention_heads"],
        "intermediate_size": theirs["intermediate_size"],
        "vocab_size": theirs["vocab_size"],
        "max_positions": theirs["max_position_embeddings"],
        "pool": "mean" if theirs.get("bert_mean", 1) else "first",
    }
    model = {
        "backbone": f"resnet{theirs['resnet_depth']}",
        "inputs": seen,
        "embed_dim": theirs["hidden_size"],
        "temporal_depth": theirs["timesformer_depth"],
        "temporal_heads": theirs["timesformer_heads"],
        "temporal_grid": theirs["pos_embed_grid"],
        "temporal_positions": theirs["num_frames_time_embed"],
        "cross": stage == 2,
        "num_answers": theirs.get("num_labels", 0),
        "compat": True,
        "text": text,
    }
    objectives = [{"name": name} for name in OBJECTIVES[kind, stage]]
    return build_config({"task": TASKS[kind], "model": model, "objectives": objectives})


def case_model(path: Path, parity_weights: ModuleType, scratch: Path) -> VideoTextModel:
    """Our model with the case's weights, read from a file in the published names."""
    model = build_model(case_config(json.loads(path.read_text()))).eval()
    state = parity_weights.state_dict(path)
    file = scratch / f"{path.stem}.safetensors"
    save_file({name: torch.from_numpy(value.copy()) for name, value in state.items()}, file)
    report = load_weights(model, file)
    file.unlink()
    assert not report.unexpected
    assert not report.resized
    assert not report.mismatched
    # Published low-resolution and high-resolution ablations run the same whole set of weights.
    assert not report.missing, report
    return model


@torch.no_grad()
def run_case(model: VideoTextModel, case: Mapping[str, Any], arrays: Mapping[str, Any]) -> Outputs:
    """Every output that a case may ask for, by its published name."""
    inputs = {
        name.removeprefix("in."): torch.from_numpy(np.array(value))
        for name, value in arrays.items()
        if name.startswith("in.")
    }
    out: Outputs = {}
    _listen(model, out)
    video = model.encode_video(inputs.get("img_middle"), inputs.get("img_other"))
    text = model.encode_text(inputs["text_input_ids"], inputs["text_input_mask"])
    out["text_hidden"] = text["text", "token"].values
    for ours, theirs in (("text", "text_features"), ("video", "vis_features")):
        for encoded in (video, text):
            if ours in encoded.embeddings:
                out[theirs] = encoded.embeddings[ours]
    if "grid_high" not in out and model.config.model.inputs == "high":
        out["grid_high"] = out["middle_feature"]
    if {"text_features", "vis_features"} <= out.keys():
        scores = out["text_features"] @ out["vis_features"].t()
        temperature = case["config"].get("temp", 0.05)
        out["itc_loss"] = contrastive(scores, torch.arange(len(scores)), temperature)
    if model.cross_encoder is not None:
        _cross(model, case, inputs, video["video", "token"], text["text", "token"], out)
    return out


def _listen(model: VideoTextModel, out: Outputs) -> None:
    """Put what towers make inside into `out` while they run."""

    def keep(name: str, pick: Callable[[Any], Tensor]) -> Callable[..., None]:
        def hook(_module: nn.Module, given: Any, made: Any) -> None:
            out[name] = pick((given, made))

        return hook

    video = model.video
    video.register_forward_hook(keep("middle_feature", lambda x: x[1]))
    modules = dict(video.named_modules())
    for stage in range(4):
        layer = modules.get(f"high_backbone.model.layer{stage + 1}")
        if layer is not None:
            layer.register_forward_hook(keep(f"stage_features.{stage}", lambda x: x[1]))
    if "low_backbone" in modules:
        modules["low_backbone"].register_forward_hook(keep("cnn_low", lambda x: x[1][0]))
        modules["temporal"].register_forward_hook(keep("timesformer", lambda x: x[1]))
    if "combine_grid" in modules:
        dim = model.config.model.embed_dim
        modules["combine_grid"].register_forward_hook(keep("grid_high", lambda x: x[0][0][:, :dim]))
    if model.cross_encoder is not None:
        model.cross_encoder.visual_embeddings.register_forward_hook(
            keep("visual_embeddings", lambda x: x[1])
        )


def _cross(
    model: VideoTextModel,
    case: Mapping[str, Any],
    inputs: Mapping[str, Tensor],
    visual: Any,
    text: Any,
    out: Outputs,
) -> None:
    """Outputs of the cross half; published rows run over clips first."""
    videos, rows = len(visual.values), len(text.values)
    owner = torch.arange(videos).repeat_interleave(rows // videos)
    if model.answer_head is not None:
        _answers(model.answer_logits(text, visual, owner), inputs, out)
    if model.choice_head is not None:
        _answers(model.choice_logits(text, visual, NUM_OPTIONS, owner), inputs, out)
    pool = case["config"].get("score_agg_func", "lse")
    if model.matching_head is not None:
        _pretraining(model, pool, inputs, visual, text, out)
    sequence, pooled = model.cross(text, visual, owner)  # R N L+S D, R N D
    length, clips = text.values.shape[1], sequence.shape[1]
    embedded = out["visual_embeddings"].view(videos, clips, *out["visual_embeddings"].shape[1:])
    out["visual_embeddings"] = embedded[owner].transpose(0, 1).flatten(0, 1)
    out["cross_pooled"] = pooled.transpose(0, 1)
    by_clip = sequence.transpose(0, 1)
    forms = (model.pool_hidden(sequence, pool, 1), by_clip, by_clip.flatten(0, 1))
    out["sequence_output"] = forms
    out["text_output"] = tuple(form[..., :length, :] for form in forms)
    out["vtoken_output"] = tuple(form[..., length:, :] for form in forms)


def _answers(logits: Tensor, inputs: Mapping[str, Tensor], out: Outputs) -> None:
    """Scores and losses of questions, `N B C`, under each pooling."""
    labels = inputs["labels"]
    out["logits"] = logits
    for pool in ("mean", "max", "lse"):
        pooled = pool_clips(logits, pool, 0)
        each = clip_cross_entropy(logits, labels, pool)
        out[f"pooled_logits.{pool}"], out[f"pred.{pool}"] = pooled, pooled.argmax(1)
        out[f"ce_per_example.{pool}"], out[f"train_loss.{pool}"] = each, each.mean()


def _pretraining(
    model: VideoTextModel,
    pool: str,
    inputs: Mapping[str, Tensor],
    visual: Any,
    text: Any,
    out: Outputs,
) -> None:
    """Both heads of stage 2; texts that match no video have no masked words to tell."""
    owner = torch.arange(len(text.values))
    everywhere = torch.ones(text.values.shape[:2], dtype=torch.bool)
    words = model.word_logits(text, visual, owner, everywhere, pool)
    words = words.view(*everywhere.shape, -1)
    match = model.match_logits(text, visual, owner, pool)
    out["mlm_scores"], out["itm_scores"] = words, match
    labels = inputs.get("mlm_labels")
    pairs = inputs.get("itm_labels")
    if pairs is not None:
        out["itm_loss"], out["itm_labels"] = F.cross_entropy(match, pairs), pairs
    if labels is not None:
        if pairs is not None:
            labels = torch.where(pairs.unsqueeze(1) == 0, -100, labels)
        out["mlm_loss"] = F.cross_entropy(words.flatten(0, 1), labels.flatten())
        out["mlm_labels"] = labels
    if "mlm_loss" in out and "itm_loss" in out:
        out["loss"] = out["mlm_loss"] + out["itm_loss"]


def load_weights_module(folder: Path, shared: Path) -> ModuleType:
    """The `weights.py` that belongs to a folder of cases."""
    places = (folder, folder.parent, shared / "parity")
    path = next(place / "weights.py" for place in places if (place / "weights.py").is_file())
    spec = importlib.util.spec_from_file_location("parity_weights", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
