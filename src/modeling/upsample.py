"""Fake high resolution: the published pixels of most finetuning presets, made on the device.

The batch then carries the middle frame at low size as `high`; a sixteenth of the bytes travel.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

SCALE = 4


def enlarge_high(high: Tensor, low: Tensor | None) -> Tensor:
    """`high`, enlarged four times where it has the size of `low`; unchanged otherwise.

    Bicubic with a = -0.75 and half-pixel centres, as OpenCV's; values are rounded and clamped to
    0..255 as in an 8-bit picture.

    Args:
        high: middle frames, uint8 or float 0..255, `... C H W`.
        low: neighbours, `... C h w`, or None (high-only: never enlarged here).

    Returns:
        `... C 4H 4W` where enlarged, uint8 becoming float32.
    """
    if low is None or high.shape[-2:] != low.shape[-2:]:
        return high
    lead = high.shape[:-3]
    frames = high.reshape(-1, *high.shape[-3:])
    if not frames.is_floating_point():
        frames = frames.to(torch.float32)
    enlarged = functional.interpolate(
        frames, scale_factor=float(SCALE), mode="bicubic", align_corners=False
    )
    return enlarged.round().clamp(0, 255).reshape(*lead, *enlarged.shape[-3:])
