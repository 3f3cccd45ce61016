"""The published stage-1 graph written plainly: eager, contiguous, explicit attention.

This is what `train_step.py` compares with. It is written from the published facts (layer order,
sizes, where dropout and stochastic depth stand), keeps batch norms as layers of their own, and does
attention as two matrix products around a softmax.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """Bottleneck block with the stride in its 3x3 convolution."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(c) for c in (width, width, out))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            conv = nn.Conv2d(channels, out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        out += self.shortcut(x)
        return F.relu(out, inplace=True)


class ResNet50(nn.Module):
    """Maps after the third and fourth stage; batch norms never leave evaluation mode."""

    def __init__(self, last_stage: int) -> None:
        super().__init__()
        self.last_stage = last_stage
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        stages, channels = [], 64
        for stage, depth in enumerate((3, 4, 6, 3)):
            width, blocks = 64 * 2**stage, []
            for index in range(depth):
                blocks.append(Residual(channels, width, 2 if stage and not index else 1))
                channels = 4 * width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)

    def train(self, mode: bool = True) -> ResNet50:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x)), inplace=True), 3, 2, 1)
        maps = []
        for stage in self.stages[: self.last_stage]:
            x = stage(x)
            maps.append(x)
        return maps


class Attention(nn.Module):
    """Scores, softmax, weighted sum, each a step of its own."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.scale = heads, 1 / math.sqrt(dim // heads)
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        rows, length, dim = x.shape
        query, key, value = (
            layer(x).view(rows, length, self.heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-2, -1) * self.scale
        if mask is not None:
            scores = scores + mask
        weights = self.dropout(scores.softmax(-1))
        return self.out((weights @ value).transpose(1, 2).reshape(rows, length, dim))


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    if not training or rate == 0:
        return x
    keep = torch.rand(len(x), *[1] * (x.ndim - 1)) < 1 - rate
    return x / (1 - rate) * keep


class SpaceTimeBlock(nn.Module):
    def __init__(self, dim: int, heads: int, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.temporal_norm, self.norm1, self.norm2 = (nn.LayerNorm(dim, 1e-6) for _ in range(3))
        self.temporal, self.spatial = Attention(dim, heads), Attention(dim, heads)
        self.temporal_fc = nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        rows, tokens, dim = x.shape  # tokens: cells, then frames
        cells = tokens // frames
        branch = self.temporal(self.temporal_norm(x.reshape(rows * cells, frames, dim)))
        branch = self.temporal_fc(drop_path(branch, self.rate, self.training))
        x = x + branch.reshape(rows, tokens, dim)
        branch = x.view(rows, cells, frames, dim).transpose(1, 2).reshape(-1, cells, dim)
        branch = drop_path(self.spatial(self.norm1(branch)), self.rate, self.training)
        branch = branch.view(rows, frames, cells, dim).transpose(1, 2).reshape(rows, tokens, dim)
        x = x + branch
        branch = self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return x + drop_path(branch, self.rate, self.training)


class BertLayer(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(dim, heads, 0.1)
        self.norm1, self.norm2 = nn.LayerNorm(dim, 1e-12), nn.LayerNorm(dim, 1e-12)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(x + self.dropout(self.attention(x, mask)))
        return self.norm2(x + self.dropout(self.fc2(F.gelu(self.fc1(x)))))


class PublishedStage1(nn.Module):
    """Both towers at the published size: video and text to unit vectors."""

    def __init__(self, dim: int = 1024, heads: int = 16, layers: int = 12, depth: int = 4) -> None:
        super().__init__()
        self.cnn, self.cnn_low = ResNet50(4), ResNet50(3)
        self.grid, self.grid_low = (nn.Conv2d(c, dim, 1, bias=False) for c in (2048, 1024))
        self.combine = nn.Conv2d(2 * dim, dim, 1, bias=False)
        self.position = nn.Parameter(torch.randn(1, 160, dim) * 0.02)
        self.time = nn.Parameter(torch.zeros(1, 7, dim))
        rates = [0.1 * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(SpaceTimeBlock(dim, heads, rate) for rate in rates)
        self.words, self.places = nn.Embedding(30522, dim), nn.Embedding(512, dim)
        self.types, self.word_norm = nn.Embedding(2, dim), nn.LayerNorm(dim, 1e-12)
        self.dropout = nn.Dropout(0.1)
        self.layers = nn.ModuleList(BertLayer(dim, heads) for _ in range(layers))
        self.pooler, self.t_proj, self.v_proj = (nn.Linear(dim, dim) for _ in range(3))
        self.register_buffer("mean", torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1))

    def video(self, high: Tensor, low: Tensor) -> Tensor:
        """Middle frames `B N 3 H W` and neighbours `B N T-1 3 H/4 W/4`, float 0..255."""
        videos, clips, neighbours = low.shape[:3]
        high = (high.flatten(0, 1) - self.mean) / self.std
        low = (low.flatten(0, 2) - self.mean) / self.std
        *_, fine, coarse = self.cnn(high)
        detail = F.gelu(F.max_pool2d(self.grid(coarse), 2))
        middle = F.gelu(self.grid_low(F.interpolate(fine, scale_factor=0.25)))
        others = F.gelu(self.grid_low(self.cnn_low(low)[-1]))
        others = others.view(videos * clips, neighbours, *others.shape[1:])
        half = neighbours // 2
        maps = torch.cat([others[:, :half], middle[:, None], others[:, half:]], 1)
        rows, frames, dim, height, width = maps.shape
        position = self.position.view(1, 10, 16, dim).permute(0, 3, 1, 2)
        position = F.interpolate(position, (height, width), mode="bilinear").flatten(2)
        x = maps.permute(0, 3, 4, 1, 2).reshape(rows, height * width, frames, dim)
        x = x + position.transpose(1, 2).unsqueeze(2) + self.time.unsqueeze(1)
        x = x.flatten(1, 2)
        for block in self.blocks:
            x = block(x, frames)
        centre = x.view(rows, height, width, frames, dim)[:, :, :, half].permute(0, 3, 1, 2)
        fused = F.gelu(self.combine(torch.cat([detail, centre], 1)))
        pooled = fused.view(videos, clips, dim, height, width).mean((1, 3, 4))
        return F.normalize(self.v_proj(pooled), dim=-1)

    def text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Ids and mask, int64 `B L`."""
        places = torch.arange(ids.shape[1]).expand_as(ids)
        x = self.words(ids) + self.places(places) + self.types(torch.zeros_like(ids))
        x = self.dropout(self.word_norm(x))
        seen = (1.0 - mask[:, None, None, :].float()) * -10000.0
        for layer in self.layers:
            x = layer(x, seen)
        pooled = (x * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
        return F.normalize(self.t_proj(torch.tanh(self.pooler(pooled))), dim=-1)
