"""Divided space-time attention over grid tokens (TimeSformer), without a class token."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rushes.modeling.attention import attend


class DropPath(nn.Module):
    """Stochastic depth: zero the whole branch of a row with probability `rate` in training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor, rows: tuple[int, ...]) -> Tensor:
        """Branch `... D`; `rows` is the shape of the mask, broadcast over the branch."""
        if not self.training or self.rate == 0:
            return branch
        keep = 1 - self.rate
        mask = torch.rand(rows, device=branch.device, dtype=torch.float32) < keep
        return branch * (mask.to(branch.dtype) / keep)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one projection for query, key and value."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens `R S D` to `R S D`."""
        rows, length, dim = tokens.shape
        qkv = self.qkv(tokens).view(rows, length, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # R heads S d
        mixed = attend(query, key, value)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(rows, length, dim))
        return out


class Mlp(nn.Module):
    """Two layers with an exact GELU between them."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens `... D` to `... D`."""
        out: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return out


class SpaceTimeBlock(nn.Module):
    """Attention along time, then within each frame, then an MLP; pre-norm residuals.

    Bertasius et al. 2021, "Is Space-Time Attention All You Need for Video Understanding?", divided
    attention. The temporal branch ends in a linear layer that starts at zero.
    """

    def __init__(self, dim: int, num_heads: int, drop_path: float, eps: float = 1e-6) -> None:
        super().__init__()
        self.temporal_norm = nn.LayerNorm(dim, eps=eps)
        self.temporal_attention = SelfAttention(dim, num_heads)
        self.temporal_output = nn.Linear(dim, dim)
        self.spatial_norm = nn.LayerNorm(dim, eps=eps)
        self.spatial_attention = SelfAttention(dim, num_heads)
        self.mlp_norm = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens `R S T D` (grid cells, then frames) to the same shape."""
        rows, cells, frames, dim = tokens.shape
        branch = self.temporal_norm(tokens).view(rows * cells, frames, dim)
        branch = self.temporal_attention(branch).view(rows, cells, frames, dim)
        tokens = tokens + self.temporal_output(self.drop_path(branch, (rows, cells, 1, 1)))
        branch = self.spatial_norm(tokens).transpose(1, 2).reshape(rows * frames, cells, dim)
        branch = self.spatial_attention(branch).view(rows, frames, cells, dim).transpose(1, 2)
        tokens = tokens + self.drop_path(branch, (rows, 1, frames, 1))
        out: Tensor = tokens + self.drop_path(self.mlp(self.mlp_norm(tokens)), (rows, 1, 1, 1))
        return out


class TimeSformer(nn.Module):
    """Space-time transformer over the maps of a clip's frames.

    Args:
        dim: channels of the maps.
        depth, num_heads: of the blocks.
        grid: rows and columns of the stored position embedding; others are interpolated bilinearly.
        num_frames: count of stored time embeddings; others are interpolated linearly.
        drop_path: stochastic depth of the last block, rising linearly from zero.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        grid: tuple[int, int],
        num_frames: int,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.grid, self.num_frames = grid, num_frames
        self.gradient_checkpointing = False
        self.position_embed = nn.Parameter(torch.zeros(1, grid[0] * grid[1], dim))
        self.time_embed = nn.Parameter(torch.zeros(1, num_frames, dim))
        rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(SpaceTimeBlock(dim, num_heads, rate) for rate in rates)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal of 0.02; temporal branches and time embeddings start at zero."""
        nn.init.trunc_normal_(self.position_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for block in self.blocks:
            assert isinstance(block, SpaceTimeBlock)
            nn.init.zeros_(block.temporal_output.weight)

    def positions(self, height: int, width: int) -> Tensor:
        """Position embedding of a grid, `1 height*width D`, row-major."""
        if (height, width) == self.grid:
            return self.position_embed
        stored = self.position_embed.view(1, *self.grid, -1).permute(0, 3, 1, 2)
        resized = F.interpolate(stored, (height, width), mode="bilinear", align_corners=False)
        return resized.flatten(2).transpose(1, 2)

    def times(self, frames: int) -> Tensor:
        """Time embedding of a count of frames, `1 frames D`."""
        if frames == self.num_frames:
            return self.time_embed
        stored = self.time_embed.transpose(1, 2)
        resized = F.interpolate(stored, frames, mode="linear", align_corners=False)
        return resized.transpose(1, 2)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps `R T D h w` to the same shape."""
        rows, frames, dim, height, width = maps.shape
        tokens = maps.flatten(3).permute(0, 3, 1, 2)  # R S T D
        tokens = tokens + self.positions(height, width).unsqueeze(2)
        tokens = tokens + self.times(frames).unsqueeze(1)
        for block in self.blocks:
            tokens = run(block, self.gradient_checkpointing and self.training, tokens)
        return tokens.permute(0, 2, 3, 1).reshape(rows, frames, dim, height, width)


def run(module: nn.Module, recompute: bool, *inputs: Any) -> Any:
    """Call a module, recomputing its activations in the backward pass if asked to."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(module, *inputs, use_reentrant=False)
    return module(*inputs)
