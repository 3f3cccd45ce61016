"""Names of parameters: ours, and those of released HD-VILA, BERT, ResNet and timm files."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from torch import Tensor

_PREFIXES = (
    ("video.high_backbone.model.", "cnn."),
    ("video.low_backbone.model.", "cnn_low."),
    ("video.high_grid.", "grid_encoder.0."),
    ("video.low_grid.", "grid_encoder_low.0."),
    ("video.combine_grid.", "grid_encoder_combine.0."),
    ("video.temporal.position_embed", "timesformer.pos_embed"),
    ("video.temporal.", "timesformer."),
    ("text.embeddings.", "transformer.bert.embeddings."),
    ("text.layers.", "transformer.bert.encoder.layer."),
    ("cross_encoder.layers.", "transformer.bert.encoder.layer."),
    ("cross_encoder.visual_embeddings.row.", "transformer.bert.visual_embeddings.row_position."),
    ("cross_encoder.visual_embeddings.column.", "transformer.bert.visual_embeddings.col_position."),
    ("cross_encoder.visual_embeddings.", "transformer.bert.visual_embeddings."),
    ("cross_encoder.pooler.", "transformer.bert.pooler2.dense."),
    ("text_projection.pooler.", "transformer.bert.pooler1.dense."),
    ("text_projection.project.", "transformer.t_proj."),
    ("video_projection.project.", "transformer.v_proj."),
    ("masked_language_head.decoder.", "transformer.cls.predictions.decoder."),
    ("masked_language_head.", "transformer.cls.predictions.transform."),
    ("matching_head.classify.", "transformer.cls.seq_relationship."),
    ("answer_head.hidden.", "transformer.classifier.0."),
    ("answer_head.classify.", "transformer.classifier.2."),
    ("choice_head.hidden.", "transformer.classifier.0."),
    ("choice_head.classify.", "transformer.classifier.2."),
)
"""Beginnings of our names and of published ones; the first that fits counts."""

_TEMPORAL = {
    "temporal_norm": "temporal_norm1",
    "temporal_attention": "temporal_attn",
    "temporal_output": "temporal_fc",
    "spatial_norm": "norm1",
    "spatial_attention": "attn",
    "mlp_norm": "norm2",
}
_EMBEDDINGS = {
    "word": "word_embeddings",
    "position": "position_embeddings",
    "token_type": "token_type_embeddings",
    "row_position": "row_position_embeddings",
    "col_position": "col_position_embeddings",
    "norm": "LayerNorm",
}
_LAYER = (
    ("attention.output", "attention.output.dense"),
    ("attention_norm", "attention.output.LayerNorm"),
    ("attention.", "attention.self."),
    ("intermediate", "intermediate.dense"),
    ("output_norm", "output.LayerNorm"),
    ("output", "output.dense"),
)

ALIASES = {"transformer.cls.predictions.bias": "transformer.cls.predictions.decoder.bias"}
"""Second names of one tensor in published files; the value of the first name is not read."""

DEAD = ("cnn_low.layer4.", "timesformer.norm.", "transformer.bert.visual_embeddings.position_")
"""Published parameters that no output depends on; they do not exist here."""


def published_name(name: str, half: int) -> str | None:
    """The published name of one of our parameters, or None where there is none.

    Args:
        name: ours.
        half: layers of the text half, after which the cross half's layers are counted on.
    """
    for ours, theirs in _PREFIXES:
        if not name.startswith(ours):
            continue
        rest = name.removeprefix(ours)
        if theirs.startswith("timesformer.") and rest.startswith("blocks."):
            rest = _replace_part(rest, 2, _TEMPORAL)
        elif theirs.endswith("encoder.layer."):
            rest = _layer(rest, half if ours.startswith("cross") else 0)
        elif "embeddings." in theirs:
            whole = theirs + rest
            parts = whole.split(".")
            return ".".join([*parts[:3], _EMBEDDINGS.get(parts[3], parts[3]), *parts[4:]])
        elif theirs.endswith("predictions.transform."):
            rest = rest.replace("norm.", "LayerNorm.")
        return theirs + rest
    return None


def _layer(rest: str, offset: int) -> str:
    index, _, inner = rest.partition(".")
    for ours, theirs in _LAYER:
        if inner.startswith(ours):
            inner = theirs + inner.removeprefix(ours)
            break
    return f"{int(index) + offset}.{inner}"


def _replace_part(name: str, place: int, table: Mapping[str, str]) -> str:
    parts = name.split(".")
    parts[place] = table.get(parts[place], parts[place])
    return ".".join(parts)


def published_table(names: Iterable[str], half: int) -> dict[str, str]:
    """Our names by published name."""
    pairs = ((published_name(name, half), name) for name in names)
    return {theirs: ours for theirs, ours in pairs if theirs is not None}


def without_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the beginnings that wrappers add to every name."""
    out = dict(state)
    for prefix in ("module.", "_orig_mod."):
        if out and all(name.startswith(prefix) for name in out):
            out = {name.removeprefix(prefix): value for name, value in out.items()}
    return out


def modern_bert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A BERT file under published names: old LayerNorm names renamed, `bert.` added if absent."""
    out = {}
    bare = any(name.startswith("embeddings.word_embeddings") for name in state)
    for name, value in state.items():
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
        out[f"transformer.{'bert.' if bare else ''}{name}"] = value
    decoder, words = "transformer.cls.predictions.decoder", "transformer.bert.embeddings"
    if "transformer.cls.predictions.bias" in out:
        out.setdefault(f"{decoder}.bias", out["transformer.cls.predictions.bias"])
        word = out.get(f"{words}.word_embeddings.weight")
        if word is not None:
            out.setdefault(f"{decoder}.weight", word)
    return out


def image_names(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Names that parameters of a timm feature extractor may have in files of the whole model.

    Besides timm's own (with or without flattened stages): the numbered blocks of the widespread
    EfficientNet port.
    """
    names = list(names)
    plain = {name: name.removeprefix("model.") for name in names}
    inside = (name.split(".") for name in names if name.startswith("blocks."))
    blocks = list(dict.fromkeys(".".join(parts[1:3]) for parts in inside))
    expanding = {n.rsplit(".", 2)[0] for n in names if ".conv_pwl." in n}
    out: dict[str, tuple[str, ...]] = {}
    for name in names:
        flat = re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", plain[name])
        out[name] = (name, plain[name], flat, _numbered(name, blocks, expanding))
    return out


_EXPANDING = {
    "conv_pw": "_expand_conv",
    "bn1": "_bn0",
    "conv_dw": "_depthwise_conv",
    "bn2": "_bn1",
    "conv_pwl": "_project_conv",
    "bn3": "_bn2",
}
_SEPARABLE = {
    "conv_dw": "_depthwise_conv",
    "bn1": "_bn1",
    "conv_pw": "_project_conv",
    "bn2": "_bn2",
}
_STEM = {"conv_stem": "_conv_stem", "bn1": "_bn0"}


def _numbered(name: str, blocks: Sequence[str], expanding: Collection[str]) -> str:
    """The name in files that number an EfficientNet's blocks through, without stages."""
    parts = name.split(".")
    if parts[0] in _STEM:
        return ".".join([_STEM[parts[0]], *parts[1:]])
    if parts[0] != "blocks" or ".".join(parts[1:3]) not in blocks:
        return name
    table = _EXPANDING if ".".join(parts[:3]) in expanding else _SEPARABLE
    index = blocks.index(".".join(parts[1:3]))
    return ".".join([f"_blocks.{index}", table.get(parts[3], parts[3]), *parts[4:]])


def bare_images(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A detector's or classifier's file with the image tower's own names only."""
    prefix = "backbone."
    found = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
    return found or dict(state)
