"""Heads on the towers: joint space, masked words, matching, answers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rushes.modeling.bert import NORM_EPS, initialise


class TextProjection(nn.Module):
    """Pooled text to the joint space: dense, tanh, linear."""

    def __init__(self, hidden_size: int, embed_dim: int) -> None:
        super().__init__()
        self.pooler = nn.Linear(hidden_size, hidden_size)
        self.project = nn.Linear(hidden_size, embed_dim)
        initialise(self.modules())

    def forward(self, pooled: Tensor) -> Tensor:
        """Unit vectors `... embed_dim` in float32 of `... hidden_size`."""
        return unit(self.project(torch.tanh(self.pooler(pooled))))


class VideoProjection(nn.Module):
    """Pooled grids to the joint space: linear."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(embed_dim, embed_dim)
        initialise(self.modules())

    def forward(self, pooled: Tensor) -> Tensor:
        """Unit vectors `... embed_dim` in float32 of `... embed_dim`."""
        return unit(self.project(pooled))


class MaskedLanguageHead(nn.Module):
    """Word scores of hidden states; its decoder starts as a copy of the word embedding."""

    def __init__(self, words: Tensor) -> None:
        super().__init__()
        vocab_size, dim = words.shape
        self.dense = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.decoder = nn.Linear(dim, vocab_size)
        initialise(self.modules())
        with torch.no_grad():
            self.decoder.weight.copy_(words)

    def forward(self, hidden: Tensor) -> Tensor:
        """Scores `... vocabulary` of `... D`."""
        scores: Tensor = self.decoder(self.norm(F.gelu(self.dense(hidden))))
        return scores


class LinearHead(nn.Module):
    """Scores of one linear layer: a pair or none, which words a video's captions hold."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.classify = nn.Linear(dim, num_classes)
        initialise(self.modules())

    def forward(self, pooled: Tensor) -> Tensor:
        """Scores `... num_classes` of `... D`."""
        scores: Tensor = self.classify(pooled)
        return scores


class AnswerHead(nn.Module):
    """Two layers from the crossed first token to answers (one output: score of an option)."""

    def __init__(self, dim: int, num_answers: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(dim, 2 * dim)
        self.classify = nn.Linear(2 * dim, num_answers)
        initialise(self.modules())

    def forward(self, pooled: Tensor) -> Tensor:
        """Scores `... num_answers` of `... D`."""
        scores: Tensor = self.classify(F.relu(self.hidden(self.dropout(pooled))))
        return scores


def unit(vectors: Tensor) -> Tensor:
    """Rows of length one, in float32."""
    return F.normalize(vectors.float(), dim=-1)
