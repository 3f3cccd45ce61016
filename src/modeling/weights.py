"""Starting weights: read any known file, map its names, say what fitted, refuse what does not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rushes.errors import WeightsError
from rushes.log import get_logger
from rushes.modeling.backbones import ImageBackbone
from rushes.modeling.files import locate, read_state
from rushes.modeling.model import VideoTextModel
from rushes.modeling.names import (
    ALIASES,
    DEAD,
    bare_images,
    image_names,
    modern_bert,
    published_table,
)
from rushes.modeling.text_tower import AutoTextEncoder

Kind = Literal["model", "backbone", "bert"]
ENOUGH = 0.5
"""Least share of the file's tensors, or of the part's parameters, that must fit."""

logger = get_logger(__name__)


@dataclass(frozen=True)
class WeightsReport:
    """What became of a weight file; names are the model's where it has them, else the file's.

    Attributes:
        source: the file.
        kind: which part of the model it was for.
        loaded: parameters and buffers that now hold the file's values (resized ones too).
        missing: parameters of that part that the file does not give; they keep their start.
        unexpected: names in the file that mean nothing here.
        resized: with both shapes; position tables are interpolated, word tables cut or padded.
        mismatched: same name, another shape that cannot be resized: not loaded.
        unused: known names that this model has no use for (dead, or of another task).
    """

    source: str
    kind: Kind
    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.source} ({self.kind}): {len(self.loaded)} tensors loaded"]
        for name in ("missing", "unexpected", "resized", "mismatched", "unused"):
            found: tuple[str, ...] = getattr(self, name)
            if found:
                shown = ", ".join(found[:6]) + (", ..." if len(found) > 6 else "")
                lines.append(f"  {len(found)} {name}: {shown}")
        return "\n".join(lines)


def start_weights(model: VideoTextModel, mount: Path | None = None) -> list[WeightsReport]:
    """Load what `model.weights` of the model's config names; later files win over earlier ones.

    Args:
        model: as `build_model` made it.
        mount: folder that relative paths are in.

    Raises:
        WeightsError: a file is absent (the text names it), does not fit, or none is named although
            the config asks for pretrained weights.
    """
    config = model.config.model.weights
    wanted: list[tuple[Kind, str | None]] = [("model", config.model)]
    if config.init == "pretrained":
        bert = config.bert or model.config.model.text.encoder
        wanted = [("backbone", config.backbone), ("bert", bert), *wanted]
        if not any(source for _, source in wanted):
            raise WeightsError(
                "model.weights names no file: set model.weights.backbone, .bert or .model, or "
                "model.weights.init to random to train from scratch"
            )
    reports = []
    for kind, source in wanted:
        if source:
            reports.append(load_weights(model, source, kind, mount=mount))
            logger.info("%s", reports[-1])
    return reports


def load_weights(
    model: VideoTextModel,
    source: str | Path,
    kind: Kind = "model",
    *,
    mount: Path | None = None,
    partial: bool = True,
) -> WeightsReport:
    """Load a file into the model, or into one part of it.

    Args:
        model: gets the values in place.
        source: a file (safetensors or a PyTorch pickle), a folder that holds one, a run folder,
            "package:NAME/PATH" inside an installed package, or a hub id.
        kind: "model": ours, or a released HD-VILA file (stage 1, 2, question answering);
            "backbone": torchvision, mmdetection or timm; "bert": BERT, old names too.
        mount: folder that relative paths are in.
        partial: False refuses any missing or mismatched tensor.

    Raises:
        WeightsError: no such file, not readable without running code, or too little of it fits.
    """
    path = locate(str(source), mount)
    state = read_state(path)
    offered, unused = _translate(model, state, kind)
    own = model.state_dict()
    part = _part(model, kind, own)
    report = _copy(own, offered, part, replace(WeightsReport(str(path), kind), unused=unused))
    if kind == "bert":
        _copy_words(model, report)
    _check_enough(report, len(offered), len(part), partial)
    return report


def _translate(
    model: VideoTextModel, state: Mapping[str, Tensor], kind: Kind
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The file's tensors by our name, or by its own name where we have none; and unused names."""
    own = model.state_dict()
    if kind == "backbone":
        return _translate_images(model, bare_images(state))
    if kind == "model" and any(name in own for name in state):
        return dict(state), ()
    if kind == "bert" and isinstance(model.text, AutoTextEncoder):
        return _translate_encoder(state, own)
    published = modern_bert(state) if kind == "bert" else dict(state)
    half = len(model.text.layers) if hasattr(model.text, "layers") else 0  # type: ignore[arg-type]
    table = published_table(own, half)
    offered: dict[str, Tensor] = {}
    unused = []
    for name, value in published.items():
        if name in table:
            offered[table[name]] = value
        elif name in ALIASES or name.startswith((*DEAD, *_ELSEWHERE[kind])):
            unused.append(name)
        else:
            offered[name] = value
    return offered, tuple(unused)


def _translate_encoder(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A transformers file by our name: its names end as the encoder's own do."""
    offered = {}
    unused = []
    prefix = "text.model."
    for name, value in state.items():
        parts = name.split(".")
        tails = (".".join(parts[start:]) for start in range(min(3, len(parts))))
        found = next((prefix + tail for tail in tails if prefix + tail in own), None)
        if found is None:
            unused.append(name)
        else:
            offered[found] = value
    return offered, tuple(unused)


_ELSEWHERE: dict[Kind, tuple[str, ...]] = {
    "model": ("cnn.", "cnn_low.", "grid_encoder", "timesformer.", "transformer."),
    "bert": ("transformer.bert.", "transformer.cls."),
}
"""Beginnings of published names: what is not used of them is of a part that was not built."""


def _translate_images(
    model: VideoTextModel, state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """An image file's tensors by our name, once for every image tower of the model."""
    offered: dict[str, Tensor] = {}
    used = set()
    for prefix, backbone in _backbones(model):
        for name, others in image_names(backbone.model.state_dict()).items():
            found = next((other for other in others if other in state), None)
            if found is not None:
                offered[f"{prefix}.model.{name}"] = state[found]
                used.add(found)
    rest = [name for name in state if name not in used]
    unused = tuple(name for name in rest if name.startswith(_IMAGE_HEADS))
    offered.update({name: state[name] for name in rest if name not in unused})
    return offered, unused


_IMAGE_HEADS = (
    *("fc.", "head.", "classifier.", "conv_head.", "bn2.", "norm.", "layer4.", "fc_norm."),
    *("_conv_head.", "_bn1.", "_fc."),
)
"""What image files hold beyond the maps that are used."""


def _backbones(model: VideoTextModel) -> list[tuple[str, ImageBackbone]]:
    return [(n, m) for n, m in model.named_modules() if isinstance(m, ImageBackbone)]


def _part(model: VideoTextModel, kind: Kind, names: Iterable[str]) -> tuple[str, ...]:
    """Our names that a file of this kind is expected to fill."""
    if kind == "model":
        return tuple(names)
    if kind == "backbone":
        prefixes = tuple(f"{prefix}." for prefix, _ in _backbones(model))
    else:
        prefixes = ("text.", "cross_encoder.layers.")
    return tuple(name for name in names if name.startswith(prefixes))


@torch.no_grad()
def _copy(
    own: Mapping[str, Tensor],
    offered: Mapping[str, Tensor],
    part: Sequence[str],
    report: WeightsReport,
) -> WeightsReport:
    """Copy what fits into `own` in place; the report, filled in."""
    loaded, resized, mismatched = [], [], []
    for name, value in offered.items():
        if name not in own:
            continue
        target = own[name]
        change = f"{name} {tuple(value.shape)} -> {tuple(target.shape)}"
        fitted = value if value.shape == target.shape else resize(name, value, target)
        if fitted is None:
            mismatched.append(change)
            continue
        if fitted is not value:
            resized.append(change)
        target.copy_(fitted)
        loaded.append(name)
    done = set(loaded)
    missing = [name for name in part if name not in done and "num_batches_tracked" not in name]
    return replace(
        report,
        loaded=tuple(loaded),
        missing=tuple(missing),
        unexpected=tuple(name for name in offered if name not in own),
        resized=tuple(resized),
        mismatched=tuple(mismatched),
    )


def resize(name: str, value: Tensor, target: Tensor) -> Tensor | None:
    """A table of positions at the target's size, or None for what cannot be resized.

    Grids are interpolated bilinearly, time embeddings linearly, tables of text positions and of
    words (at most 128 rows apart: padding of a vocabulary) cut or filled from the target.
    """
    if value.ndim != target.ndim or value.shape[-1] != target.shape[-1]:
        return None
    if name.endswith("temporal.position_embed"):
        rows, columns = grid_of(value.shape[1])
        maps = value.float().view(1, rows, columns, -1).permute(0, 3, 1, 2)
        maps = F.interpolate(maps, grid_of(target.shape[1]), mode="bilinear", align_corners=False)
        return maps.flatten(2).transpose(1, 2)
    if name.endswith("temporal.time_embed"):
        line = value.float().transpose(1, 2)
        line = F.interpolate(line, target.shape[1], mode="linear", align_corners=False)
        return line.transpose(1, 2)
    close = abs(value.shape[0] - target.shape[0]) <= 128
    words = name.endswith(("embeddings.word.weight", "masked_language_head.decoder.weight"))
    if name.endswith("embeddings.position.weight") or (words and close):
        rows = min(len(value), len(target))
        return torch.cat([value[:rows].to(target), target[rows:]])
    return None


def grid_of(cells: int) -> tuple[int, int]:
    """Rows and columns of a stored grid: the split of `cells` nearest to 10 by 16."""
    splits = [(rows, cells // rows) for rows in range(1, cells + 1) if cells % rows == 0]
    return min(splits, key=lambda split: abs(split[1] / split[0] - 1.6))


def _copy_words(model: VideoTextModel, report: WeightsReport) -> None:
    """The decoder of masked words starts as a copy of the words just loaded."""
    head = model.masked_language_head
    if head is None or "masked_language_head.decoder.weight" in report.loaded:
        return
    if "text.embeddings.word.weight" in report.loaded:
        with torch.no_grad():
            head.decoder.weight.copy_(model.state_dict()["text.embeddings.word.weight"])


def _check_enough(report: WeightsReport, offered: int, expected: int, partial: bool) -> None:
    share = max(len(report.loaded) / max(1, offered), len(report.loaded) / max(1, expected))
    if share < ENOUGH:
        raise WeightsError(
            f"{report.source}: only {len(report.loaded)} of {offered} tensors fit the model, which "
            f"expects {expected}; at least {ENOUGH:.0%} of either must.\n{report}"
        )
    if not partial and (report.missing or report.mismatched):
        raise WeightsError(f"{report.source} does not fill the whole model.\n{report}")


def published_state(model: VideoTextModel) -> dict[str, Tensor]:
    """The model's values under published names (dead parameters are not made up)."""
    half = len(model.text.layers)  # type: ignore[arg-type]
    own = model.state_dict()
    state = {theirs: own[ours] for theirs, ours in published_table(own, half).items()}
    for alias, name in ALIASES.items():
        if name in state:
            state[alias] = state[name]
    return state


def main(argv: Sequence[str]) -> int:
    """`rushes convert-weights`; see `rushes.modeling.convert`."""
    from rushes.modeling.convert import convert

    return convert(argv)


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a saved model."""
    path = folder / "config.json"
    if not path.is_file():
        raise WeightsError(f"{folder}: no config.json, so this is not a saved model")
    values = json.loads(path.read_text("utf-8"))
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: expected a JSON object")
    return values
