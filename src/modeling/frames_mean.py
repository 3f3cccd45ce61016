"""The baseline that video must beat: one image tower on each frame, frames mean-pooled."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rushes.configs.schema import ModelConfig
from rushes.modeling.backbones import PixelNorm, pool_to
from rushes.modeling.hybrid import grid_size, image_tower


class FramesMeanEncoder(nn.Module):
    """Clips to grids of tokens with no notion of order in time.

    It sees the same pixels as `HybridEncoder`: the middle frame at high resolution and the
    neighbours at low resolution (whichever `inputs` lets through). One tower runs on each frame;
    its stride-16 maps of neighbours and stride-32 maps of middle frames are pooled to the same
    grid, projected, and averaged over frames with equal weights.

    Args:
        config: sizes, backbone and `inputs`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.inputs = config.inputs
        self.cell = config.grid_cell
        self.backbone = image_tower(config, config.inputs)
        self.pixel_norm = PixelNorm(self.backbone.mean, self.backbone.std)
        channels = self.backbone.channels
        if self.inputs != "high":
            self.low_grid = nn.Conv2d(channels[0], config.embed_dim, 1, bias=False)
        if self.inputs != "low":
            self.high_grid = nn.Conv2d(channels[-1], config.embed_dim, 1, bias=False)

    def forward(self, high: Tensor | None, low: Tensor | None) -> Tensor:
        """Grids `R D h w`; arguments as those of `HybridEncoder.forward`."""
        frames = []
        if self.inputs != "low":
            assert high is not None, f"model.inputs is {self.inputs}: the batch lacks high"
            size = grid_size(high, self.cell)
            coarse = self.backbone(self.pixel_norm(high))[-1]
            frames.append(F.gelu(pool_to(self.high_grid(coarse), size, "max")).unsqueeze(1))
        if self.inputs != "high":
            assert low is not None, f"model.inputs is {self.inputs}: the batch lacks low"
            size = grid_size(low, self.cell // 4)
            fine = self.backbone(self.pixel_norm(low.flatten(0, 1)))[0]
            grids = F.gelu(self.low_grid(pool_to(fine, size, "avg")))
            frames.append(torch.unflatten(grids, 0, low.shape[:2]))
        return torch.cat(frames, dim=1).mean(1)
