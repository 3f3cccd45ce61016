"""The hybrid encoder: high-resolution middle frame and low-resolution neighbours to one grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rushes.configs.schema import ModelConfig
from rushes.errors import ConfigError
from rushes.modeling.backbones import ImageBackbone, PixelNorm, pool_to
from rushes.modeling.timesformer import TimeSformer


class HybridEncoder(nn.Module):
    """Clips to grids of tokens (Xue et al. 2022, "Advancing High-Resolution Video-Language
    Representation with Large-Scale Video Transcriptions", section 4.1).

    The high-resolution middle frame runs through a whole backbone; its stride-32 map, projected and
    max-pooled, keeps the detail. Its stride-16 map, thinned to the neighbours' grid, stands in the
    middle of the neighbours' stride-16 maps, all under one shared projection; a space-time
    transformer mixes them, and its middle frame is fused with the detail. With a `grid_cell` of 32
    in place of 64 pixels all strides are half of these.

    Args:
        config: sizes, backbone and `inputs`: "hybrid", "high" (no neighbours, no transformer) or
            "low" (all frames at low resolution).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.inputs = config.inputs
        self.cell = config.grid_cell
        self.high_backbone = self.low_backbone = self.temporal = None
        if self.inputs != "low":
            self.high_backbone = image_tower(config, self.inputs)
            self.high_grid = nn.Conv2d(self.high_backbone.channels[-1], dim, 1, bias=False)
        if self.inputs != "high":
            self.low_backbone = image_tower(config, "low")
            self.low_grid = nn.Conv2d(self.low_backbone.channels[0], dim, 1, bias=False)
            self.temporal = TimeSformer(
                dim,
                config.temporal_depth,
                config.temporal_heads,
                config.temporal_grid,
                config.temporal_positions,
                config.temporal_drop_path,
            )
        if self.inputs == "hybrid":
            self.combine_grid = nn.Conv2d(2 * dim, dim, 1, bias=False)
        backbone = self.high_backbone or self.low_backbone
        assert backbone is not None
        self.pixel_norm = PixelNorm(backbone.mean, backbone.std)

    def forward(self, high: Tensor | None, low: Tensor | None) -> Tensor:
        """Grids `R D h w` of clips.

        Args:
            high: middle frames, `R 3 H W`, 0..255; not used when `inputs` is "low".
            low: neighbours without the middle one `R T-1 3 H/4 W/4`, or all `R T 3 H/4 W/4` frames
                when `inputs` is "low"; not used when it is "high".
        """
        if self.inputs == "high":
            assert high is not None, "model.inputs is high, the batch has no high-resolution frame"
            return self._detail(self._high_maps(high)[-1], grid_size(high, self.cell))
        assert low is not None, f"model.inputs is {self.inputs}, the batch has no neighbours"
        neighbours = self._neighbours(low)  # R T-1 D h w
        if self.inputs == "low":
            assert self.temporal is not None
            mixed: Tensor = self.temporal(neighbours)
            return mixed[:, low.shape[1] // 2]
        assert high is not None, "model.inputs is hybrid, the batch has no high-resolution frame"
        return self._fuse(high, neighbours)

    def _fuse(self, high: Tensor, neighbours: Tensor) -> Tensor:
        assert self.temporal is not None
        size = (neighbours.shape[-2], neighbours.shape[-1])
        fine, coarse = self._high_maps(high)
        middle = F.gelu(self.low_grid(_thin(fine, size)))
        before = (neighbours.shape[1] + 1) // 2
        frames = torch.cat(
            [neighbours[:, :before], middle.unsqueeze(1), neighbours[:, before:]], dim=1
        )
        centre = self.temporal(frames)[:, before]
        return F.gelu(self.combine_grid(torch.cat([self._detail(coarse, size), centre], dim=1)))

    def _high_maps(self, high: Tensor) -> list[Tensor]:
        assert self.high_backbone is not None
        maps: list[Tensor] = self.high_backbone(self.pixel_norm(high))
        return maps

    def _detail(self, coarse: Tensor, size: tuple[int, int]) -> Tensor:
        """The grid of the middle frame's detail: project, keep the strongest of each cell."""
        return F.gelu(pool_to(self.high_grid(coarse), size, "max"))

    def _neighbours(self, low: Tensor) -> Tensor:
        assert self.low_backbone is not None
        rows, frames = low.shape[:2]
        size = grid_size(low, self.cell // 4)
        (maps,) = self.low_backbone(self.pixel_norm(low.flatten(0, 1)))
        grids = F.gelu(self.low_grid(pool_to(maps, size, "avg")))
        return torch.unflatten(grids, 0, (rows, frames))


def image_tower(config: ModelConfig, inputs: str) -> ImageBackbone:
    """The tower with the maps that `inputs` needs: for the neighbours' grid where there are any,
    then for the middle frame's detail."""
    fine, coarse = config.grid_cell // 4, config.grid_cell // 2
    return ImageBackbone(
        config.backbone,
        {"hybrid": (fine, coarse), "high": (coarse,), "low": (fine,)}[inputs],
        frozen_norm=config.frozen_norm,
        standardized=config.standardized,
        arguments=config.backbone_args,
    )


def grid_size(pixels: Tensor, cell: int) -> tuple[int, int]:
    """Rows and columns of the grid of frames `... H W`."""
    height, width = pixels.shape[-2:]
    return -(-height // cell), -(-width // cell)


def _thin(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest-neighbour samples of maps `R C H W` at `R C h w` (each fourth row and column)."""
    height, width = maps.shape[-2:]
    if height == 4 * size[0] and width == 4 * size[1]:
        return maps[..., ::4, ::4]
    return F.interpolate(maps, size, mode="nearest")


def check_sizes(high: Tensor | None, low: Tensor | None) -> None:
    """Raise ConfigError unless the high-resolution size is four times the low one."""
    if high is None or low is None:
        return
    expected = (4 * low.shape[-2], 4 * low.shape[-1])
    if tuple(high.shape[-2:]) != expected:
        raise ConfigError(
            f"high-resolution frames are {tuple(high.shape[-2:])}, low-resolution ones "
            f"{tuple(low.shape[-2:])}: the first must be four times the second, {expected}"
        )
