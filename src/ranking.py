"""Ranking from scores alone, tile by tile in bounded memory, both directions in one pass.

A `Scorer` (`rushes.scorers`) gives the scores; nothing here knows where they come from.

Ties are worth the mean rank of the tie: with g items strictly above the best relevant one, m
irrelevant items equal to it and p relevant ones equal to it, the rank is 1 + g + m / (p + 1), the
expectation over all orders of the tie. So a model that gives every pair the same score gets the
rank of chance, not rank 1 (which counting "strictly above" would give it).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rushes.errors import MetricError
from rushes.scorers import TILE, EmbeddingScorer, Scorer, blocks_of, rows_of


def relevant_pairs(queries: Sequence[Hashable], gallery: Sequence[Hashable]) -> Tensor:
    """Which query fits which item, by equal keys: int64 `P 2` of (query, gallery) indices.

    Many-to-many: a key may stand on both sides any number of times.
    """
    places: dict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(gallery):
        places[key].append(index)
    pairs = [(q, g) for q, key in enumerate(queries) for g in places.get(key, ())]
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)


@dataclass(frozen=True)
class RankCounts:
    """Where the best relevant item of each query of one direction stands.

    Attributes:
        ranks: float64 `Q`, 1 is best, ties at their mean rank; NaN where nothing is relevant.
        best: its score, `Q`; -inf where nothing is relevant.
        relevant_tied: relevant items with that score, itself included, int64 `Q`.
        above, tied: irrelevant items strictly above it and equal to it, int64 `Q`; None unless
            ties were counted apart.
    """

    ranks: Tensor
    best: Tensor
    relevant_tied: Tensor
    above: Tensor | None = None
    tied: Tensor | None = None


_Places = tuple[Tensor, Tensor] | None
STRIP = 128
"""Rows of a tile that a thread compares at a time: 0.5 MB in float32."""
FEW, NO_LOOK = 1 / 8, 15
"""A larger share of queries is compared in strips, and so are so many tiles after it."""


def rank_both(
    scorer: Scorer, pairs: Tensor, *, tile: int = TILE, count_ties: bool = False
) -> tuple[RankCounts, RankCounts]:
    """Ranks of the best relevant item in both directions, out of one pass over the scores.

    The threshold of each query is read out of the very tile that it is then compared in: the same
    inner product computed elsewhere differs in the last bit, which moves ranks. Tiles with relevant
    pairs are therefore made first, then all tiles; queries are ordered so that such tiles are few.

    Args:
        scorer: scores in tiles.
        pairs: relevant (query, gallery) indices, int64 `P 2`.
        tile: queries and gallery items a tile; memory is a few tiles whatever the sizes.
        count_ties: count ties apart everywhere (`RankCounts.tied`), which costs time.

    Returns:
        query -> gallery and gallery -> query.

    Raises:
        MetricError: NaN scores, no relevant pair at all, or indices outside.
    """
    pairs = _checked(pairs, scorer)
    order = _diagonal_order(pairs, scorer.num_queries)
    position = torch.empty_like(order)
    position[order] = torch.arange(len(order))
    grid = _Grid(scorer, order, tile)
    by_tile = grid.group(position[pairs[:, 0]], pairs[:, 1])
    rows = _Side(scorer.num_queries)
    columns = _Side(scorer.num_gallery)
    for (i, j), (r, c) in by_tile.items():
        values = grid.scores(i, j)[r, c].double().cpu()
        rows.offer(r + i * tile, values)
        columns.offer(c + j * tile, values)
    work = _Work(count_ties)
    for i in range(grid.num_rows):
        for j in range(grid.num_columns):
            scores = grid.scores(i, j)
            if not isinstance(scorer, EmbeddingScorer):  # its vectors were checked
                _refuse_nan(scores)
            work.compare(scores, rows, columns, (i * tile, j * tile), by_tile.get((i, j)))
    irrelevant_r = scorer.num_gallery - torch.bincount(pairs[:, 0], minlength=scorer.num_queries)
    irrelevant_c = scorer.num_queries - torch.bincount(pairs[:, 1], minlength=scorer.num_gallery)
    forward = rows.finish(irrelevant_r[order], count_ties)
    return _reordered(forward, position), columns.finish(irrelevant_c, count_ties)


class _Grid:
    """The tiles of a score matrix whose rows are taken in a given order."""

    def __init__(self, scorer: Scorer, order: Tensor, tile: int) -> None:
        if tile < 1:
            raise MetricError(f"tile={tile}: expected at least 1")
        self.scorer, self.tile = scorer, tile
        self.rows = rows_of(order, tile)
        self.columns = blocks_of(scorer.num_gallery, tile)
        self.num_rows, self.num_columns = len(self.rows), len(self.columns)

    def scores(self, i: int, j: int) -> Tensor:
        scores = self.scorer(self.rows[i], self.columns[j])
        # Signs are summed in the type of the scores; half precision stops counting at 256 or 2048.
        return scores if scores.dtype in (torch.float32, torch.float64) else scores.double()

    def group(self, rows: Tensor, columns: Tensor) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
        """Positions inside each tile of the given (row, column) places, by tile."""
        cell = rows // self.tile * self.num_columns + columns // self.tile
        by_cell = torch.argsort(cell, stable=True)
        cells, counts = torch.unique_consecutive(cell[by_cell], return_counts=True)
        out = {}
        for name, members in zip(
            cells.tolist(), torch.split(by_cell, counts.tolist()), strict=True
        ):
            place = (name // self.num_columns, name % self.num_columns)
            out[place] = (rows[members] % self.tile, columns[members] % self.tile)
        return out


class _Work:
    """Compares tiles of scores with the thresholds of both sides.

    Args:
        count_ties: count ties apart for every query, not only where relevant items tie.
    """

    def __init__(self, count_ties: bool) -> None:
        self.count_ties = count_ties
        self._buffer = self._ones = torch.empty(0)
        self._looks_in = 0

    def compare(
        self, scores: Tensor, rows: _Side, columns: _Side, corner: tuple[int, int], known: _Places
    ) -> None:
        """Add up sign(score - best) over the irrelevant items of one tile, both ways.

        Args:
            scores: float `Q G`.
            corner: the tile's first row and column.
            known: rows and columns of the relevant pairs inside the tile.
        """
        if known is None and self._compare_few(scores, rows, columns, corner):
            return
        count, width = scores.shape
        above, beside = (side.thresholds(scores) for side in (rows, columns))
        row_best = above[corner[0] : corner[0] + count, None]
        column_best = beside[corner[1] : corner[1] + width]
        row_sum, column_sum = scores.new_empty(count), scores.new_zeros(width)
        # A strip at a time, so that the comparisons find the scores in the nearest cache. A product
        # with ones sums several times faster than sum(); whole numbers this small are exact.
        step = count if known else min(count, STRIP * torch.get_num_threads())
        memory, ones = self._memory(scores, step * width, max(step, width))
        start = corner[0]
        for strip, best, total in zip(
            torch.split(scores, step),
            torch.split(row_best, step),
            torch.split(row_sum, step),
            strict=True,
        ):
            work = memory[: strip.numel()].view(strip.shape)
            torch.sub(strip, best, out=work)
            self._ties(work, rows, start, known, 1)
            torch.mv(work.sign_(), ones[:width], out=total)
            torch.sub(strip, column_best, out=work)
            self._ties(work, columns, corner[1], known, 0)
            column_sum.addmv_(work.sign_().T, ones[: len(strip)])
            start += step
        rows.sign_sum[corner[0] : corner[0] + count].add_(row_sum)
        columns.sign_sum[corner[1] : corner[1] + width].add_(column_sum)

    def _compare_few(
        self, scores: Tensor, rows: _Side, columns: _Side, corner: tuple[int, int]
    ) -> bool:
        """Compare only the queries whose threshold is reached inside the tile, if they are few.

        Two readings tell; for a model that ranks well they spare six. Where they do not pay the
        next tiles are not looked at, so that a bad model is ranked no slower.
        """
        if self._looks_in:
            self._looks_in -= 1
            return False
        both = ((rows, corner[0], scores), (columns, corner[1], scores.T))
        reached = []
        for side, start, view in both:
            best = side.thresholds(scores)[start : start + len(view)]
            reached.append((view.amax(1) >= best).nonzero().flatten())
        if sum(map(len, reached)) > FEW * sum(scores.shape):
            self._looks_in = NO_LOOK
            return False
        for (side, start, view), chosen in zip(both, reached, strict=True):
            sums = view.new_full((len(view),), -view.shape[1])
            if len(chosen):
                work = view.index_select(0, chosen) - side.thresholds(scores)[start + chosen, None]
                places = start + chosen.cpu()
                several = side.relevant_tied[places] > (0 if self.count_ties else 1)
                side.tied[places[several]] += (work[several.to(work.device)] == 0).sum(1).cpu()
                sums[chosen] = work.sign_().sum(1)
            side.sign_sum[start : start + len(view)].add_(sums)
        return True

    def _memory(self, scores: Tensor, size: int, longest: int) -> tuple[Tensor, Tensor]:
        """Room for a strip's differences and ones to sum them, the same for all tiles."""
        if self._buffer.numel() < size or self._buffer.dtype != scores.dtype:
            self._buffer = scores.new_empty(size)
        if len(self._ones) < longest or self._ones.dtype != scores.dtype:
            self._ones = scores.new_ones(longest)
        return self._buffer, self._ones

    def _ties(self, work: Tensor, side: _Side, start: int, known: _Places, dim: int) -> None:
        """Take the relevant items out of the differences `work`, and count the ties where asked."""
        if known is not None:
            work[known] = 0.0
        if not (self.count_ties or side.any_several):
            return
        rows = slice(start, start + work.shape[1 - dim])
        several = side.relevant_tied[rows] > (0 if self.count_ties else 1)
        if several.any():
            side.tied[rows] += _count_zeros(work, several, known, dim)


class _Side:
    """Running counts of one direction."""

    def __init__(self, size: int) -> None:
        self.best = torch.full((size,), float("-inf"), dtype=torch.float64)
        self.relevant_tied = torch.zeros(size, dtype=torch.int64)
        self.sign_sum = torch.zeros(size, dtype=torch.float64)
        self.tied = torch.zeros(size, dtype=torch.int64)
        self.any_several = False
        self._best: Tensor | None = None

    def offer(self, places: Tensor, values: Tensor) -> None:
        """Scores of relevant pairs: keep the best of each query and how often it occurs."""
        if torch.isnan(values).any():
            raise MetricError("the score of a relevant pair is NaN")
        if torch.isinf(values).any():
            raise MetricError("the score of a relevant pair is infinite")
        new = self.best.scatter_reduce(0, places, values, "amax")
        self.relevant_tied[new > self.best] = 0
        at_best = (values == new[places]).to(torch.int64)
        self.relevant_tied.scatter_add_(0, places, at_best)
        self.best = new

    def thresholds(self, scores: Tensor) -> Tensor:
        """`best` in the type and place of the scores, made when the last has been offered."""
        if self._best is None:
            # Float32 scores have float32 thresholds, so going through float64 changed no bit.
            # Where nothing is relevant any finite value does: no rank is asked for.
            best = torch.where(self.relevant_tied > 0, self.best, 0.0)
            self._best = best.to(scores)
            self.sign_sum = self.sign_sum.to(scores.device)
            self.any_several = bool((self.relevant_tied > 1).any())
        return self._best

    def finish(self, irrelevant: Tensor, count_ties: bool) -> RankCounts:
        """Counts and ranks, given how many irrelevant items each query has."""
        # above - below = sign_sum and above + tied + below = irrelevant.
        half = (self.sign_sum.cpu() + irrelevant) / 2  # above + tied / 2
        above = half - self.tied / 2
        several = self.relevant_tied > 1
        ranks = 1 + torch.where(
            several, above + self.tied.double() / (self.relevant_tied + 1), half
        )
        ranks[self.relevant_tied == 0] = float("nan")
        if not count_ties:
            return RankCounts(ranks, self.best, self.relevant_tied)
        whole = above.to(torch.int64)
        return RankCounts(ranks, self.best, self.relevant_tied, whole, self.tied)


def _refuse_nan(scores: Tensor) -> None:
    """Raise `MetricError` for NaN; one cheap product finds that there is none."""
    ones = scores.new_ones(scores.shape[1])
    if not torch.isfinite(torch.mv(scores, ones).sum()) and torch.isnan(scores).any():
        raise MetricError("scores hold NaN; ranks of NaN mean nothing")


def _count_zeros(work: Tensor, which: Tensor, known: _Places, dim: int) -> Tensor:
    """Irrelevant zeros of `work` along `dim`, int64, for the queries in `which` (0 elsewhere)."""
    index = which.nonzero().flatten().to(work.device)
    chosen = work.index_select(1 - dim, index)
    out = torch.zeros(len(which), dtype=torch.int64)
    out[which] = (chosen == 0).sum(dim=dim).cpu()
    if known is not None:
        own = torch.bincount(known[1 - dim], minlength=len(which))
        out[which] -= own[which]
    return out


def _reordered(counts: RankCounts, position: Tensor) -> RankCounts:
    return RankCounts(
        counts.ranks[position],
        counts.best[position],
        counts.relevant_tied[position],
        None if counts.above is None else counts.above[position],
        None if counts.tied is None else counts.tied[position],
    )


def _checked(pairs: Tensor, scorer: Scorer) -> Tensor:
    shape = (scorer.num_queries, scorer.num_gallery)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise MetricError(f"relevant pairs of shape {tuple(pairs.shape)}: expected P 2")
    if not len(pairs):
        raise MetricError(f"no query of {shape[0]} has a relevant item among {shape[1]}")
    for column, (name, size) in enumerate(zip(("query", "gallery"), shape, strict=True)):
        low, high = int(pairs[:, column].min()), int(pairs[:, column].max())
        if low < 0 or high >= size:
            raise MetricError(f"relevant {name} indices {low}..{high}: expected 0..{size - 1}")
    pairs = pairs.cpu()
    places = torch.unique(pairs[:, 0] * shape[1] + pairs[:, 1])  # much faster than by rows
    return torch.stack([places // shape[1], places % shape[1]], dim=1)


def _diagonal_order(pairs: Tensor, num_queries: int) -> Tensor:
    """Queries ordered by their first relevant item, so that relevant pairs lie along a diagonal."""
    first = torch.full((num_queries,), torch.iinfo(torch.int64).max)
    first = first.scatter_reduce(0, pairs[:, 0], pairs[:, 1], "amin")
    return torch.argsort(first, stable=True)


def top_k(scorer: Scorer, k: int, *, tile: int = TILE) -> tuple[Tensor, Tensor]:
    """The k best gallery items of each query, best first, equal scores by index.

    Returns:
        scores float `Q k` and indices int64 `Q k`; k is cut to the gallery's size.

    Raises:
        MetricError: no query, no gallery, k below 1, or NaN scores.
    """
    if min(k, scorer.num_queries, scorer.num_gallery) < 1:
        raise MetricError(
            f"the best {k} for {scorer.num_queries} queries among {scorer.num_gallery} items: "
            "expected at least one each"
        )
    k = min(k, scorer.num_gallery)
    values, indices = [], []
    for rows in rows_of(torch.arange(scorer.num_queries), tile):
        best: Tensor | None = None
        where = torch.empty(0, dtype=torch.int64)
        for block in blocks_of(scorer.num_gallery, tile):
            scores = scorer(rows, block)
            _refuse_nan(scores)
            places = torch.arange(block.start, block.stop, device=scores.device)
            places = places.expand(len(rows), -1)
            if best is not None:
                scores, places = torch.cat([best, scores], 1), torch.cat([where, places], 1)
            best, chosen = torch.topk(scores, min(k, scores.shape[1]), dim=1)
            where = places.gather(1, chosen)
        assert best is not None, "checked above"
        by_index = torch.argsort(where, dim=1)
        best, where = best.gather(1, by_index), where.gather(1, by_index)
        best, chosen = torch.sort(best, dim=1, descending=True, stable=True)
        values.append(best.cpu())
        indices.append(where.gather(1, chosen).cpu())
    return torch.cat(values), torch.cat(indices)
