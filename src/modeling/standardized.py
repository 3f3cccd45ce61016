"""Image towers without norms: every kernel is standardised instead.

Brock et al. 2021, "Characterizing signal propagation to close the performance gap in unnormalized
ResNets", section 4: a kernel of zero mean and unit variance, with a gain of its own, keeps the
scale of what flows through it. Nothing is taken from a batch or from a picture, so a picture's
features depend on no other and keep their strength; trained from scratch on small batches such a
tower learns in a fraction of the steps that frozen batch norm or group norm takes.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

RELU_GAIN = math.sqrt(2 / (1 - 1 / math.pi))
"""Brings the standard deviation of a rectified unit normal back to 1."""
_LAST = {
    "BasicBlock": "conv2",
    "Bottleneck": "conv3",
    "PreActBasic": "conv2",
    "PreActBottleneck": "conv3",
    "InvertedResidual": "conv_pwl",
    "EdgeResidual": "conv_pwl",
    "DepthwiseSeparableConv": "conv_pw",
}
"""The convolution that ends a residual branch, by the kind of block."""


def standardize(model: nn.Module) -> int:
    """Replace convolutions by standardised ones and drop the norms; how many were replaced.

    A residual branch starts with a gain of one over the root of the number of blocks, so that the
    scale at the end does not grow with the depth.
    """
    # Here, not at the top: timm may only be imported once its operators are declared.
    convolution = importlib.import_module("timm.layers").ScaledStdConv2d
    count = _replace(model, convolution)
    known = [m for m in model.modules() if type(m).__name__ in _LAST]
    blocks = [m for m in known if getattr(m, "has_skip", True)]
    for block in blocks:
        nn.init.constant_(getattr(block, _LAST[type(block).__name__]).gain, len(blocks) ** -0.5)
    return count


def _replace(module: nn.Module, convolution: Any) -> int:
    count = 0
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d):
            setattr(module, name, _standardized(child, convolution))
            count += 1
        elif isinstance(child, _BatchNorm | nn.GroupNorm | nn.LayerNorm):
            # timm's norms with an activation hold it as `act`.
            setattr(module, name, getattr(child, "act", None) or nn.Identity())
        else:
            count += _replace(child, convolution)
    return count


def _standardized(old: nn.Conv2d, convolution: Any) -> nn.Module:
    new: nn.Module = convolution(
        *(old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding),
        *(old.dilation, old.groups),
        gamma=RELU_GAIN,
    )
    nn.init.zeros_(new.bias)  # type: ignore[arg-type]
    return new
