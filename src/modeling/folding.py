"""Batch norms with frozen statistics folded into the convolutions before them.

A frozen batch norm is an affine map per channel. Put into the kernel of the convolution before it,
it costs nothing and stores no activation for the backward pass; gains and offsets still get their
gradients, through the folded kernel. Names and values of parameters stay as they are.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_BLOCKS = frozenset(
    {
        *("BasicBlock", "Bottleneck", "ResNet", "FeatureListNet"),
        *("InvertedResidual", "DepthwiseSeparableConv", "ConvBnAct", "EdgeResidual"),
        *("EfficientNetFeatures", "MobileNetV3Features", "Sequential"),
    }
)
"""Modules whose convolutions are followed at once by the batch norm that is registered next."""


class FoldedConv2d(nn.Conv2d):
    """A convolution that also does the work of the frozen batch norm after it."""

    norm: tuple[nn.BatchNorm2d]
    """In a tuple, so that the norm is registered (and named) only where it always was."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Maps `R C H W` to normed maps."""
        norm = self.norm[0]
        assert norm.running_mean is not None
        assert norm.running_var is not None
        gain = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        offset = norm.bias - norm.running_mean * gain
        kernel = self.weight * gain.view(-1, 1, 1, 1)
        return F.conv2d(
            pixels, kernel, offset, self.stride, self.padding, self.dilation, self.groups
        )


class FoldedNorm2d(nn.BatchNorm2d):
    """What is left of a folded batch norm: its parameters, and its activation where it has one."""

    activation: nn.Module | None

    def forward(self, maps: Tensor) -> Tensor:
        """Normed maps to activated maps."""
        return maps if self.activation is None else self.activation(maps)


def fold_frozen_norms(model: nn.Module) -> int:
    """Fold every batch norm that directly follows a plain convolution; how many there were."""
    count = 0
    for module in model.modules():
        if type(module).__name__ not in _BLOCKS:
            continue
        children = list(module.named_children())
        for (name, conv), (norm_name, norm) in itertools.pairwise(children):
            if type(conv) is nn.Conv2d and conv.bias is None and _plain_norm(norm):
                folded_norm = _fold_norm(norm)
                setattr(module, norm_name, folded_norm)
                setattr(module, name, _fold_conv(conv, folded_norm))
                count += 1
    return count


def _plain_norm(norm: nn.Module) -> bool:
    return (
        isinstance(norm, nn.BatchNorm2d)
        and type(norm).__name__ in ("BatchNorm2d", "BatchNormAct2d")
        and norm.affine
        and norm.track_running_stats
    )


def _fold_norm(norm: Any) -> FoldedNorm2d:
    folded = FoldedNorm2d(norm.num_features, norm.eps, norm.momentum)
    folded.load_state_dict(norm.state_dict())
    folded.activation = getattr(norm, "act", None)
    return folded


def _fold_conv(conv: nn.Conv2d, norm: FoldedNorm2d) -> FoldedConv2d:
    kernel = conv.kernel_size
    assert not isinstance(conv.padding, str)
    folded = FoldedConv2d(
        conv.in_channels,
        conv.out_channels,
        (kernel[0], kernel[1]),
        (conv.stride[0], conv.stride[1]),
        (conv.padding[0], conv.padding[1]),
        (conv.dilation[0], conv.dilation[1]),
        conv.groups,
        bias=False,
    )
    folded.load_state_dict(conv.state_dict())
    folded.norm = (norm,)
    return folded
