"""What of a model is frozen: no gradient, evaluation mode (no dropout, no drift of norms)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

from rushes.modeling.backbones import ImageBackbone

if TYPE_CHECKING:
    from rushes.modeling.model import VideoTextModel


def freeze(model: VideoTextModel) -> None:
    """Take the gradient from all that the config freezes; the mode of modules follows at once."""
    for module in frozen_modules(model):
        module.requires_grad_(False)
    model.train(model.training)


def frozen_modules(model: VideoTextModel) -> Iterator[nn.Module]:
    """Modules that the config freezes: `model.freeze` and `model.frozen_stages`.

    "stage1" is all that a stage-1 model has: both towers and both projections.
    """
    parts = {
        "stage1": (model.video, model.text, model.video_projection, model.text_projection),
        "stage1_vision": (model.video, model.video_projection),
        "text": (model.text,),
        "backbone": tuple(_backbones(model)),
    }
    for name in model.config.model.freeze:
        yield from (module for module in parts[name] if module is not None)
    if model.config.model.frozen_stages >= 0:
        for backbone in _backbones(model):
            for stage in backbone.stages()[: model.config.model.frozen_stages + 1]:
                yield from stage


def _backbones(model: VideoTextModel) -> list[ImageBackbone]:
    return [module for module in model.video.modules() if isinstance(module, ImageBackbone)]
