"""Image towers: any timm model as feature maps, with frozen batch-norm statistics."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rushes.errors import ConfigError
from rushes.modeling.folding import fold_frozen_norms
from rushes.modeling.standardized import standardize

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[Any] = []

_RESIDUAL = frozenset(
    {
        *("BasicBlock", "Bottleneck", "InvertedResidual", "EdgeResidual"),
        *("DepthwiseSeparableConv", "ConvNeXtBlock"),
    }
)
"""Blocks that are recomputed one by one."""


def _declare_torchvision_operators() -> None:
    """Let torchvision import where its compiled operators are missing.

    timm imports torchvision, whose Python half registers shapes for two compiled operators and
    fails where the wheel for this build of PyTorch lacks them. Nothing here calls them, so their
    bare signatures are enough.
    """
    package = importlib.util.find_spec("torchvision")
    if package is None or package.submodule_search_locations is None:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    else:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    _declared.append(library)  # a library that is collected takes its operators with it
    for schema in _SCHEMAS:
        if not hasattr(torch.ops.torchvision, schema.split("(")[0]):
            library.define(schema)  # type: ignore[no-untyped-call]


@cache
def _timm() -> Any:
    _declare_torchvision_operators()
    import timm

    return timm


class ImageBackbone(nn.Module):
    """Feature maps of a timm model at chosen strides.

    A pyramid (ResNet, EfficientNet, ConvNeXt) gives the last map of each stride, and what lies
    behind the coarsest one is not built. A plain ViT has one stride: of k maps the i-th is taken
    after (i + 2) / (k + 1) of its depth, and callers pool it to the grid that they need.

    Args:
        name: timm model name, or "hf-hub:..." id.
        strides: ascending, e.g. (16, 32).
        frozen_norm: batch-norm statistics stay as they are (gains and offsets still train).
        standardized: no norms, kernels are standardised instead; for training from scratch.
        arguments: further keyword arguments of the timm model (`layers`, `channels`, `norm_layer`,
            `bn_eps`; `pretrained_cfg_overlay` with `mean` and `std` in 0..1 where a weight file was
            trained on pixels normed otherwise than timm's own for this model).

    Attributes:
        channels: of each map.
        strides: of each map as the model has it.
        mean, std: of the pixels (0..255) that it was trained on, 3 values each.
    """

    def __init__(
        self,
        name: str,
        strides: Sequence[int],
        *,
        frozen_norm: bool = True,
        standardized: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.frozen_norm = name, frozen_norm
        self.model, self.plain = _create(name, tuple(strides), dict(arguments or {}))
        self.channels = tuple(self.model.feature_info.channels())
        self.strides = tuple(self.model.feature_info.reduction())
        config = self.model.pretrained_cfg
        self.mean = tuple(255.0 * value for value in config["mean"])
        self.std = tuple(255.0 * value for value in config["std"])
        if standardized:
            if self.plain:
                raise ConfigError(f"model.standardized: {name} is no convolutional network")
            standardize(self.model)
        elif frozen_norm:
            fold_frozen_norms(self.model)
        for module in self.model.modules():
            if isinstance(module, nn.GroupNorm):
                module.forward = _PlanarGroupNorm(module)  # type: ignore[method-assign, assignment]
        self.train(self.training)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Maps `R C_i H/s_i W/s_i`, fine to coarse, of normalised pixels `R 3 H W`."""
        maps: list[Tensor] = self.model(pixels)
        return maps

    def train(self, mode: bool = True) -> ImageBackbone:
        """As `nn.Module.train`, but frozen batch norms keep using their running statistics."""
        super().train(mode)
        if self.frozen_norm:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def checkpoint_gradients(self) -> None:
        """Recompute the activations of each block in the backward pass."""
        if self.plain:
            self.model.model.set_grad_checkpointing(True)
            return
        for module in self.model.modules():
            if type(module).__name__ in _RESIDUAL:
                module.forward = _Recomputed(module.forward)

    def zero_last_gains(self) -> None:
        """Start every residual branch at zero, so that unnormalised activations do not blow up."""
        for module in self.model.modules():
            last = _last_norm(module)
            if getattr(last, "weight", None) is not None:
                nn.init.zeros_(last.weight)

    def stages(self) -> list[list[nn.Module]]:
        """Stem and stages in order, for freezing: item 0 is the stem."""
        children = dict(self.model.named_children())
        names = [n for n in children if n.startswith(("layer", "stages"))]
        if names:
            return [[m for n, m in children.items() if n not in names]] + [
                [children[n]] for n in names
            ]
        body = getattr(self.model, "blocks", None) or getattr(self.model.model, "blocks", None)
        if body is None:
            raise ConfigError(f"model.frozen_stages: {self.name} has no known stages")
        owner = self.model if hasattr(self.model, "blocks") else self.model.model
        stem = [m for n, m in owner.named_children() if n != "blocks"]
        return [stem] + [[block] for block in body]


def _create(name: str, strides: tuple[int, ...], arguments: dict[str, Any]) -> tuple[Any, bool]:
    timm = _timm()
    try:
        with torch.device("meta"):
            probe = timm.create_model(name, pretrained=False, features_only=True, **arguments)
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise ConfigError(
            f"model.backbone: timm cannot build {name!r} with {arguments} as feature maps: {error}"
        ) from error
    reductions = list(probe.feature_info.reduction())
    plain = len(set(reductions)) == 1
    if plain:
        depth = len(probe.model.blocks) if hasattr(probe.model, "blocks") else len(reductions)
        count = len(strides)
        indices = [max(0, depth * (i + 2) // (count + 1) - 1) for i in range(count)]
        # Any picture size: position embeddings are interpolated, the border is padded.
        arguments = {"dynamic_img_size": True, "dynamic_img_pad": True, **arguments}
    else:
        missing = [s for s in strides if s not in reductions]
        if missing:
            raise ConfigError(
                f"model.backbone: {name} has maps at strides {reductions}, not at {missing}"
            )
        last = len(reductions) - 1
        indices = [last - reductions[::-1].index(stride) for stride in strides]
    model = timm.create_model(
        name, pretrained=False, features_only=True, out_indices=tuple(indices), **arguments
    )
    _cut(model)
    if not hasattr(model, "pretrained_cfg"):
        model.pretrained_cfg = getattr(model, "model", probe).pretrained_cfg
    return model, plain


def _cut(model: Any) -> None:
    """Drop the blocks behind the last map, where timm keeps them."""
    last = model.feature_info.module_name()[-1].split(".")
    if last[0] == "blocks" and isinstance(getattr(model, "blocks", None), nn.Sequential):
        model.blocks = model.blocks[: int(last[1]) + 1]


def _last_norm(module: nn.Module) -> Any:
    """The last norm of a residual block with an identity or projected shortcut, else None."""
    kind = type(module).__name__
    if kind == "Bottleneck":
        return module.bn3
    if kind == "BasicBlock":
        return module.bn2
    if kind in ("InvertedResidual", "EdgeResidual", "DepthwiseSeparableConv") and getattr(
        module, "has_skip", False
    ):
        return getattr(module, "bn3", None) or module.bn2
    return None


class _Recomputed:
    """A block's `forward` that keeps no activation where a gradient will flow."""

    def __init__(self, forward: Callable[[Tensor], Tensor]) -> None:
        self.forward = forward

    def __call__(self, maps: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self.forward(maps)
        kept: Tensor = checkpoint(self.forward, maps, use_reentrant=False)
        return kept


class _PlanarGroupNorm:
    """A group norm's `forward` that computes channel by channel and gives channels last back.

    On a CPU PyTorch's group norm is up to twelve times slower on channels-last maps, and so takes
    more of a small network's step than its convolutions, which want that layout.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        self.norm = norm

    def __call__(self, maps: Tensor) -> Tensor:
        norm = self.norm
        if maps.device.type != "cpu":
            return F.group_norm(maps, norm.num_groups, norm.weight, norm.bias, norm.eps)
        planes = maps.contiguous()
        normed = F.group_norm(planes, norm.num_groups, norm.weight, norm.bias, norm.eps)
        return normed.contiguous(memory_format=torch.channels_last)


class PixelNorm(nn.Module):
    """Pixels 0..255 to what a backbone was trained on: (x - mean) / std, channels last."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        shape = (1, 3, 1, 1)
        self.register_buffer("mean", torch.tensor(mean).view(shape), persistent=False)
        self.register_buffer("scale", 1 / torch.tensor(std).view(shape), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Float `R 3 H W` in channels-last layout of uint8 or float `R 3 H W`."""
        assert isinstance(self.mean, Tensor)
        assert isinstance(self.scale, Tensor)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        return (pixels - self.mean) * self.scale


def pool_to(maps: Tensor, size: tuple[int, int], kind: str) -> Tensor:
    """Pool maps `R C H W` to `R C h w` by "max" or "avg"; exact windows where the sizes divide."""
    height, width = maps.shape[-2:]
    if (height, width) == size:
        return maps
    if height % size[0] == 0 and width % size[1] == 0:
        window = (height // size[0], width // size[1])
        return F.max_pool2d(maps, window) if kind == "max" else F.avg_pool2d(maps, window)
    if kind == "max":
        return F.adaptive_max_pool2d(maps, size)
    return F.adaptive_avg_pool2d(maps, size)
