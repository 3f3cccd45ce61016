"""One BERT in two halves: the first reads text, the second crosses text with visual tokens."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rushes.configs.schema import TextConfig
from rushes.modeling.attention import attend
from rushes.modeling.timesformer import run

INIT_STD = 0.02
GRID_POSITIONS = 100
"""Rows and columns that the position embeddings of visual tokens know."""
NORM_EPS = 1e-12


class BertAttention(nn.Module):
    """Multi-head self-attention with its output projection (no residual, no norm)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        dim = config.hidden_size
        self.num_heads, self.dropout = config.num_heads, config.attention_dropout
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens `R L D` to `R L D`; mask bool, broadcast to `R heads L L`, True may be seen."""
        query, key, value = (self._heads(p(tokens)) for p in (self.query, self.key, self.value))
        dropout = self.dropout if self.training else 0.0
        mixed = attend(query, key, value, mask, dropout)
        out: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return out

    def _heads(self, tokens: Tensor) -> Tensor:
        return torch.unflatten(tokens, -1, (self.num_heads, -1)).transpose(1, 2)  # R heads L d


class BertLayer(nn.Module):
    """Attention and a two-layer MLP, each added to its input and normed (Devlin et al. 2019)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        dim = config.hidden_size
        self.attention = BertAttention(config)
        self.attention_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.intermediate = nn.Linear(dim, config.intermediate_size)
        self.output = nn.Linear(config.intermediate_size, dim)
        self.output_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens `R L D` to `R L D`."""
        tokens = self.attention_norm(tokens + self.dropout(self.attention(tokens, mask)))
        hidden = self.output(F.gelu(self.intermediate(tokens)))
        out: Tensor = self.output_norm(tokens + self.dropout(hidden))
        return out


class BertLayers(nn.ModuleList):
    """A stack of layers, recomputed in the backward pass where `gradient_checkpointing` says so."""

    def __init__(self, config: TextConfig, count: int) -> None:
        super().__init__(BertLayer(config) for _ in range(count))
        self.gradient_checkpointing = False

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens `R L D` to `R L D`."""
        for layer in self:
            tokens = run(layer, self.gradient_checkpointing and self.training, tokens, mask)
        return tokens


class TextEmbeddings(nn.Module):
    """Word, position and token-type embeddings, normed."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        dim = config.hidden_size
        self.word = nn.Embedding(config.vocab_size, dim)
        self.position = nn.Embedding(config.max_positions, dim)
        self.token_type = nn.Embedding(2, dim)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids int64 `R L` to `R L D`."""
        tokens = self.word(ids) + self.position.weight[: ids.shape[1]] + self.token_type.weight[0]
        out: Tensor = self.dropout(self.norm(tokens))
        return out


class TextEncoder(nn.Module):
    """The first half of BERT.

    Args:
        config: sizes of both halves together.
        num_layers: layers of this half.
    """

    def __init__(self, config: TextConfig, num_layers: int) -> None:
        super().__init__()
        self.dim, self.pool = config.hidden_size, config.pool
        self.embeddings = TextEmbeddings(config)
        self.layers = BertLayers(config, num_layers)
        initialise(self.modules())

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Hidden states `R L D` of ids and mask (1 where a token is), int64 `R L`."""
        hidden: Tensor = self.layers(self.embeddings(ids), attention_mask(mask))
        return hidden


class VisualEmbeddings(nn.Module):
    """Grid tokens with row, column and type embeddings, normed."""

    def __init__(self, dim: int, config: TextConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.project = nn.Identity() if dim == hidden else nn.Linear(dim, hidden)
        self.row = nn.Embedding(GRID_POSITIONS, hidden)
        self.column = nn.Embedding(GRID_POSITIONS, hidden)
        self.token_type = nn.Embedding(1, hidden)
        self.norm = nn.LayerNorm(hidden, eps=NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, grid: tuple[int, int], chosen: Tensor | None) -> Tensor:
        """Tokens `R h*w D` of a grid (h, w), row-major, to `R h*w hidden`.

        Args:
            tokens: of each clip.
            grid: rows and columns; at most GRID_POSITIONS each.
            chosen: indices of the tokens that are kept, int64 `S`; None keeps all.
        """
        height, width = grid
        assert max(grid) <= GRID_POSITIONS, f"grid {grid} is larger than {GRID_POSITIONS}"
        places = self.row.weight[:height].unsqueeze(1) + self.column.weight[:width]
        places = places.flatten(0, 1)
        if chosen is not None:
            tokens, places = tokens[:, chosen], places[chosen]
        tokens = self.project(tokens) + places + self.token_type.weight[0]
        out: Tensor = self.dropout(self.norm(tokens))
        return out


class CrossEncoder(nn.Module):
    """The second half of BERT, over text tokens followed by visual tokens.

    Args:
        dim: of the visual tokens.
        config: sizes of both halves together.
        num_layers: layers of this half.
    """

    def __init__(self, dim: int, config: TextConfig, num_layers: int) -> None:
        super().__init__()
        self.visual_embeddings = VisualEmbeddings(dim, config)
        self.layers = BertLayers(config, num_layers)
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        initialise(self.modules())

    def forward(self, text: Tensor, mask: Tensor, visual: Tensor) -> tuple[Tensor, Tensor]:
        """Cross rows of text with rows of visual tokens.

        Args:
            text: hidden states of the first half, `R L D`.
            mask: of the text, `R L`.
            visual: embedded visual tokens, `R S D`.

        Returns:
            Hidden states `R L+S D` and the pooled first token `R D`.
        """
        seen = torch.cat([mask.bool(), mask.new_ones(visual.shape[:2], dtype=torch.bool)], dim=1)
        hidden = self.layers(torch.cat([text, visual], dim=1), attention_mask(seen))
        return hidden, torch.tanh(self.pooler(hidden[:, 0]))


def attention_mask(mask: Tensor) -> Tensor:
    """Bool `R 1 1 L`; the first token may always be seen, so that no row is empty."""
    first = torch.arange(mask.shape[1], device=mask.device) == 0
    return (mask.bool() | first)[:, None, None, :]


def pool_text(hidden: Tensor, mask: Tensor, kind: str) -> Tensor:
    """One vector a text, `R D`: the mean over its tokens (specials included) or the first token."""
    if kind == "first":
        return hidden[:, 0]
    weights = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


def initialise(modules: Iterable[nn.Module]) -> None:
    """BERT's start: normal of 0.02 for weights and tables, zero biases."""
    for module in modules:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=INIT_STD)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
