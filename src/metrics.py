"""How good is it: recalls, ranks, accuracies and their intervals, as pure functions.

Ranks come from `rushes.ranking`, which knows only scores.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rushes.errors import MetricError
from rushes.ranking import RankCounts, rank_both
from rushes.scorers import MatrixScorer, Scorer

__all__ = ["Scorer"]

RECALLS = (1, 5, 10, 50)

Array = npt.NDArray[np.float64]


def summarise_ranks(ranks: Tensor | Array, recalls: Sequence[int] = RECALLS) -> dict[str, float]:
    """R@k, median, mean and mean reciprocal rank, and the geometric mean of R@1, R@5, R@10.

    Args:
        ranks: 1 is best; NaN (nothing relevant) is left out.

    Raises:
        MetricError: nothing to judge, or a rank below 1.
    """
    values = _judged(ranks)
    out = {f"r{k}": float((values <= k).mean()) for k in recalls}
    out["median_rank"] = float(np.median(values))
    out["mean_rank"] = float(values.mean())
    out["mean_reciprocal_rank"] = float((1 / values).mean())
    three = [float((values <= k).mean()) for k in (1, 5, 10)]
    out["geometric_mean"] = float(np.prod(three) ** (1 / 3))
    return out


def _judged(ranks: Tensor | Array) -> Array:
    values = np.asarray(ranks, dtype=np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        raise MetricError(f"none of {len(ranks)} queries has a relevant item to rank")
    if values.min() < 1:
        raise MetricError(f"rank {values.min()}: ranks begin at 1")
    return values


def compat_metrics(scores: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(R@1, R@5, R@10, R@50, median, mean rank) as HD-VILA's evaluation reports them, both ways.

    Its defect: each item that ties with the right one (the diagonal) counts as one more rank of its
    own, so that a query with ties is counted several times and the denominators grow.

    Args:
        scores: `N N`, right pairs on the diagonal.
    """
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1]:
        raise MetricError(f"scores of shape {tuple(scores.shape)}: expected N N")
    pairs = torch.arange(len(scores))[:, None].expand(-1, 2)
    both = rank_both(MatrixScorer(scores), pairs, count_ties=True)
    forward, backward = (_compat_summary(counts) for counts in both)
    return forward, backward


def _compat_summary(counts: RankCounts) -> tuple[float, ...]:
    assert counts.tied is not None, "asked for"
    assert counts.above is not None, "asked for"
    repeated = counts.tied + 1
    first = torch.repeat_interleave(counts.above, repeated)
    offset = torch.cat([torch.arange(int(n)) for n in repeated])
    positions = (first + offset).double().numpy()
    recalls = tuple(float((positions < k).sum() / len(positions)) for k in RECALLS)
    return *recalls, float(np.median(positions) + 1), float(np.mean(positions) + 1)


def accuracy_by_kind(
    predicted: Sequence[Hashable], truth: Sequence[Hashable], kinds: Sequence[str]
) -> dict[str, float]:
    """Share of right answers by question kind, kinds in alphabetical order."""
    if not len(predicted) == len(truth) == len(kinds):
        raise MetricError(f"{len(predicted)} answers, {len(truth)} truths, {len(kinds)} kinds")
    right: Counter[str] = Counter()
    total: Counter[str] = Counter(kinds)
    for answer, true, kind in zip(predicted, truth, kinds, strict=True):
        right[kind] += answer == true
    return {kind: right[kind] / total[kind] for kind in sorted(total)}


def accuracy(predicted: Sequence[Hashable], truth: Sequence[Hashable]) -> float:
    """Share of right answers; raises `MetricError` when there are none to judge."""
    if not len(truth):
        raise MetricError("no answers to judge")
    return accuracy_by_kind(predicted, truth, [""] * len(truth))[""]


def majority_answers(answers: Sequence[Hashable], kinds: Sequence[str]) -> dict[str, Hashable]:
    """The commonest answer of each kind (of equals, the first in the data); "": of all."""
    counts: dict[str, Counter[Hashable]] = defaultdict(Counter)
    for answer, kind in zip(answers, kinds, strict=True):
        counts[kind][answer] += 1
        counts[""][answer] += 1
    return {kind: counter.most_common(1)[0][0] for kind, counter in counts.items()}


def temporal_iou(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Intersection over union of two spans in seconds; 0 where the union is empty."""
    intersection = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = max(a[1], b[1]) - min(a[0], b[0])
    return intersection / union if union > 0 else 0.0


Statistic = Callable[[Array], Array]
"""From resampled values `R N` to one figure a resample, `R`."""


def mean_statistic(values: Array) -> Array:
    """Mean of each resample."""
    return np.asarray(values.mean(axis=-1))


def bootstrap(
    values: Tensor | Array,
    statistic: Statistic = mean_statistic,
    *,
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a statistic under resampling of the queries.

    Args:
        values: one figure a query (a rank, 0 or 1 for wrong or right), `N`; NaN is left out.
        statistic: `mean_statistic`, or any function `R N` -> `R`.
    """
    array = np.asarray(values, dtype=np.float64)
    array = array[~np.isnan(array)]
    found = _resampled(array[None], statistic, samples, seed)[0]
    return _interval(found, confidence)


def paired_bootstrap(
    first: Tensor | Array,
    second: Tensor | Array,
    statistic: Statistic = mean_statistic,
    *,
    samples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, float]:
    """Difference `first - second` of a statistic over the same queries, with its interval.

    Both runs are resampled alike, so that what is easy or hard for both cancels out.

    Returns:
        difference, low, high, and `p`: twice the smaller share of resamples on one side of 0.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise MetricError(f"{len(a)} against {len(b)} queries: a pair needs the same queries")
    both = np.stack([a, b])
    both = both[:, ~np.isnan(both).any(axis=0)]
    found = _resampled(both, statistic, samples, seed)
    difference = found[0] - found[1]
    low, high = _interval(difference, confidence)
    point = statistic(both)
    sides = min(float((difference <= 0).mean()), float((difference >= 0).mean()))
    return {
        "difference": float(point[0] - point[1]),
        "low": low,
        "high": high,
        "p": min(1.0, 2 * sides),
    }


def _resampled(values: Array, statistic: Statistic, samples: int, seed: int) -> Array:
    """The statistic of each of `samples` resamples, for each row of `values`: `K samples`."""
    count = values.shape[1]
    if not count or samples < 1:
        raise MetricError(f"{count} values and {samples} resamples: expected at least one each")
    generator = np.random.default_rng(seed)
    step = max(1, 2**22 // count)  # at most 32 MB of indices at a time
    parts = []
    for start in range(0, samples, step):
        chosen = generator.integers(0, count, size=(min(step, samples - start), count))
        parts.append(np.stack([statistic(row[chosen]) for row in values]))
    return np.concatenate(parts, axis=1)


def _interval(found: Array, confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return float(low), float(high)
