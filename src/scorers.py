"""Scores of queries against blocks of a gallery: from vectors, from a matrix, by dual softmax."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from rushes.errors import MetricError

TILE = 2048
"""Queries and gallery items of one block of scores: 16 MB in float32."""


class Scorer(Protocol):
    """Scores of queries against a block of the gallery; higher is better."""

    @property
    def num_queries(self) -> int: ...

    @property
    def num_gallery(self) -> int: ...

    def __call__(self, queries: Tensor, gallery: slice) -> Tensor:
        """Scores `Q G` of the queries with indices `queries` (int64 `Q`) and a gallery block."""
        ...


class EmbeddingScorer:
    """Inner products of two sets of vectors (cosine where they have unit length).

    Args:
        queries: float `Q D`.
        gallery: float `G D`.
    """

    def __init__(self, queries: Tensor, gallery: Tensor) -> None:
        if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
            raise MetricError(
                f"embeddings of shapes {tuple(queries.shape)} and {tuple(gallery.shape)}: "
                "expected Q D and G D with one D"
            )
        for name, values in (("query", queries), ("gallery", gallery)):
            # 1e18: so large that an inner product could overflow to infinity and then NaN.
            bad = ~(values.abs() < 1e18).all(dim=1)
            if bad.any():
                first = int(bad.nonzero()[0])
                raise MetricError(f"{name} embedding {first} of {len(values)} is not finite")
        self.queries, self.gallery = queries.contiguous(), gallery.contiguous()
        self._rows: tuple[Tensor, Tensor] | None = None
        self._buffer = queries.new_empty(0)

    @property
    def num_queries(self) -> int:
        return len(self.queries)

    @property
    def num_gallery(self) -> int:
        return len(self.gallery)

    def __call__(self, queries: Tensor, gallery: slice) -> Tensor:
        if self._rows is None or self._rows[0] is not queries:
            self._rows = (queries, self.queries[queries])
        rows, block = self._rows[1], self.gallery[gallery]
        # One buffer for all tiles, the smaller ones at the edges too: the caller uses a tile up
        # before it asks for the next, and fresh memory costs more than the comparisons.
        size = len(rows) * len(block)
        if self._buffer.numel() < size:
            self._buffer = rows.new_empty(size)
        out = self._buffer[:size].view(len(rows), len(block))
        return torch.mm(rows, block.T, out=out)  # Q G


class MatrixScorer:
    """A finished matrix of scores, float `Q G`."""

    def __init__(self, scores: Tensor) -> None:
        if scores.ndim != 2:
            raise MetricError(f"scores of shape {tuple(scores.shape)}: expected Q G")
        self.scores = scores

    @property
    def num_queries(self) -> int:
        return int(self.scores.shape[0])

    @property
    def num_gallery(self) -> int:
        return int(self.scores.shape[1])

    def __call__(self, queries: Tensor, gallery: slice) -> Tensor:
        return self.scores[queries, gallery]


class DualSoftmaxScorer:
    """Each score times its softmax over the other side (dual softmax, CAMoE, section 3.3).

    It sees all queries of the test set at once, which a user who asks one question cannot: results
    made with it always say so.

    Args:
        scorer: the plain scores.
        temperature: of the softmax; scores are divided by it.
        over: "queries" to judge query -> gallery, "gallery" to judge gallery -> query.
    """

    def __init__(self, scorer: Scorer, temperature: float, over: str = "queries") -> None:
        if temperature <= 0:
            raise MetricError(f"dual softmax temperature {temperature}: expected more than 0")
        if over not in ("queries", "gallery"):
            raise MetricError(f"over={over!r}: expected 'queries' or 'gallery'")
        self.scorer, self.temperature, self.over = scorer, temperature, over
        self._log_sum = self._normaliser()

    @property
    def num_queries(self) -> int:
        return self.scorer.num_queries

    @property
    def num_gallery(self) -> int:
        return self.scorer.num_gallery

    def _normaliser(self) -> Tensor:
        """Log of the softmax's denominator, float64: by column over queries, or by row."""
        by_query = self.over == "gallery"
        size = self.num_queries if by_query else self.num_gallery
        total = torch.full((size,), float("-inf"), dtype=torch.float64)
        for rows in rows_of(torch.arange(self.num_queries), TILE):
            for block in blocks_of(self.num_gallery, TILE):
                scores = self.scorer(rows, block).double() / self.temperature
                where: Tensor | slice = rows if by_query else block
                part = torch.logsumexp(scores, dim=1 if by_query else 0)
                total[where] = torch.logaddexp(total[where], part.cpu())
        return total

    def __call__(self, queries: Tensor, gallery: slice) -> Tensor:
        scores = self.scorer(queries, gallery).double()
        log_sum = self._log_sum.to(scores.device)
        log_sum = log_sum[queries][:, None] if self.over == "gallery" else log_sum[gallery][None]
        return scores * torch.exp(scores / self.temperature - log_sum)


def blocks_of(size: int, step: int) -> list[slice]:
    """0 to `size` in slices of `step`."""
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def rows_of(indices: Tensor, step: int) -> list[Tensor]:
    """`indices` in parts of `step`."""
    return [indices[block] for block in blocks_of(len(indices), step)]
