"""Metrics against naive versions, torchmetrics, hand-made cases and the original's figures."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rushes import metrics, ranking
from rushes.errors import MetricError
from rushes.modeling import backbones
from rushes.ranking import rank_both, relevant_pairs, top_k
from rushes.scorers import DualSoftmaxScorer, EmbeddingScorer, MatrixScorer


def diagonal(count: int) -> Tensor:
    return torch.arange(count)[:, None].expand(-1, 2)


def naive_rank(row: Tensor, relevant: set[int]) -> float:
    """Mean of the first relevant item's place over all orders of the ties: by enumeration."""
    if not relevant:
        return math.nan
    best = max(float(row[i]) for i in relevant)
    above = sum(float(v) > best for v in row)
    tie = [i for i, v in enumerate(row) if float(v) == best]
    places = [
        next(place for place, item in enumerate(order) if item in relevant)
        for order in itertools.permutations(tie)
    ]
    return 1 + above + sum(places) / len(places)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    values = st.integers(-2, 2)
    matrix = draw(st.lists(values, min_size=rows * columns, max_size=rows * columns))
    scores = torch.tensor(matrix, dtype=torch.float32).reshape(rows, columns)
    cells = [(q, g) for q in range(rows) for g in range(columns)]
    chosen = draw(st.lists(st.sampled_from(cells), min_size=1, max_size=8))
    return scores, torch.tensor(chosen), draw(st.integers(1, 7))


@given(cases())
@settings(max_examples=150, deadline=None)
def test_ranks_equal_the_enumeration_of_all_tie_orders(case: tuple[Tensor, Tensor, int]) -> None:
    scores, pairs, tile = case
    forward, backward = rank_both(MatrixScorer(scores), pairs, tile=tile)
    by_row = [{g for q, g in pairs.tolist() if q == row} for row in range(scores.shape[0])]
    by_column = [{q for q, g in pairs.tolist() if g == c} for c in range(scores.shape[1])]
    expected = [naive_rank(scores[i], r) for i, r in enumerate(by_row)]
    np.testing.assert_allclose(forward.ranks, expected)
    expected = [naive_rank(scores[:, i], r) for i, r in enumerate(by_column)]
    np.testing.assert_allclose(backward.ranks, expected)


def counted_ranks(scores: Tensor, relevant: Tensor) -> Tensor:
    """Ranks of the best relevant item of each row by the definition, with whole-matrix masks."""
    best = torch.where(relevant, scores, -torch.inf).amax(1, keepdim=True)
    above = (scores > best).sum(1)
    tied = ((scores == best) & ~relevant).sum(1).double()
    own = ((scores == best) & relevant).sum(1)
    ranks = 1 + above + tied / (own + 1)
    return torch.where(relevant.any(1), ranks.double(), torch.nan)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("levels", [5, 100_000])
def test_many_tiles_and_strips_equal_the_definition(dtype: torch.dtype, levels: int) -> None:
    generator = torch.Generator().manual_seed(levels)
    whole = torch.randint(-levels, levels, (700, 900), generator=generator).to(dtype)
    relevant = torch.rand(whole.shape, generator=generator) < 0.002  # many-to-many
    relevant[17] = False
    relevant[:, 890] = False
    scores = whole.double()
    for tile in (512, 301):
        found = rank_both(MatrixScorer(whole), relevant.nonzero(), tile=tile)
        apart = rank_both(MatrixScorer(whole), relevant.nonzero(), tile=tile, count_ties=True)
        for side, counts, matrix, fits in zip(
            found, apart, (scores, scores.T), (relevant, relevant.T), strict=True
        ):
            expected = counted_ranks(matrix, fits)
            np.testing.assert_allclose(side.ranks, expected, rtol=1e-12)
            np.testing.assert_allclose(counts.ranks, expected, rtol=1e-12)
            best = torch.where(fits, matrix, -torch.inf).amax(1, keepdim=True)
            judged = fits.any(1)
            assert counts.above is not None
            assert counts.tied is not None
            assert torch.equal(counts.above[judged], (matrix > best).sum(1)[judged])
            assert torch.equal(counts.tied[judged], ((matrix == best) & ~fits).sum(1)[judged])


@pytest.mark.parametrize("share", [0.03, 0.5])
def test_comparing_only_the_reached_equals_the_definition(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 100, (900, 800), generator=generator).float()
    relevant = torch.zeros(scores.shape, dtype=torch.bool)
    relevant[torch.arange(800), torch.arange(800)] = True
    relevant[torch.arange(799), torch.arange(1, 800)] = True  # some tie with each other
    middling = torch.rand(900, 1, generator=generator) < share
    scores[relevant] = torch.where(middling, 90.0, 101.0).expand_as(scores)[relevant]
    spared: list[bool] = []
    compare_few = ranking._Work._compare_few

    def noted(*given: Any) -> bool:
        spared.append(compare_few(*given))
        return spared[-1]

    monkeypatch.setattr(ranking._Work, "_compare_few", noted)
    for count_ties in (False, True):
        both = rank_both(MatrixScorer(scores), relevant.nonzero(), tile=40, count_ties=count_ties)
        for side, matrix, fits in zip(
            both, (scores, scores.T), (relevant, relevant.T), strict=True
        ):
            np.testing.assert_allclose(side.ranks, counted_ranks(matrix, fits), rtol=1e-12)
            best = torch.where(fits, matrix, -torch.inf).amax(1, keepdim=True)
            if side.tied is not None:
                tied = ((matrix == best) & ~fits).sum(1)
                assert torch.equal(side.tied[fits.any(1)], tied[fits.any(1)])
    assert (sum(spared) > len(spared) / 2) == (share < 0.1)
    assert False in spared


def test_one_item_and_none() -> None:
    for rows, columns in ((1, 1), (1, 5), (5, 1)):
        pairs = torch.tensor([[rows - 1, columns - 1]])
        forward, backward = rank_both(MatrixScorer(torch.zeros(rows, columns)), pairs)
        assert float(forward.ranks[-1]) == (columns + 1) / 2
        assert float(backward.ranks[-1]) == (rows + 1) / 2
        assert top_k(MatrixScorer(torch.zeros(rows, columns)), 3)[1].shape == (
            rows,
            min(3, columns),
        )
    nothing = torch.zeros(0, 2, dtype=torch.int64)
    for rows, columns in ((0, 3), (3, 0), (0, 0)):
        with pytest.raises(MetricError, match=f"no query of {rows} has .* among {columns}"):
            rank_both(MatrixScorer(torch.zeros(rows, columns)), nothing)
        with pytest.raises(MetricError, match=f"for {rows} queries among {columns} items"):
            top_k(MatrixScorer(torch.zeros(rows, columns)), 3)
    scores = torch.zeros(3, 3)
    scores[1, 1] = math.nan  # topk takes NaN for the largest
    with pytest.raises(MetricError, match="NaN"):
        top_k(MatrixScorer(scores), 2)


def test_hand_made_ties() -> None:
    scores = torch.tensor([[0.5, 0.5, 0.1], [0.2, 0.9, 0.9], [0.3, 0.3, 0.3]])
    forward, backward = rank_both(MatrixScorer(scores), diagonal(3), count_ties=True)
    assert forward.ranks.tolist() == [1.5, 1.5, 2.0]
    assert backward.ranks.tolist() == [1.0, 1.0, 2.0]
    assert forward.above is not None
    assert forward.tied is not None
    assert forward.above.tolist() == [0, 0, 0]
    assert forward.tied.tolist() == [1, 1, 2]
    # Equal scores everywhere are worth chance, not R@1 = 1.
    forward, _ = rank_both(MatrixScorer(torch.zeros(200, 200)), diagonal(200), tile=64)
    assert set(forward.ranks.tolist()) == {100.5}
    assert metrics.summarise_ranks(forward.ranks)["r1"] == 0.0


def test_multi_caption_relevance_takes_the_best() -> None:
    pairs = relevant_pairs(["a", "a", "b", "c"], ["a", "b", "a"])
    assert pairs.tolist() == [[0, 0], [0, 2], [1, 0], [1, 2], [2, 1]]
    scores = torch.tensor([[0.1, 0.5, 0.9], [0.2, 0.3, 0.1], [0.4, 0.3, 0.2], [1.0, 1.0, 1.0]])
    forward, backward = rank_both(MatrixScorer(scores), pairs)
    assert forward.ranks[:3].tolist() == [1.0, 2.0, 2.0]
    assert math.isnan(forward.ranks[3])
    assert backward.ranks.tolist() == [3.0, 3.5, 2.0]


@pytest.mark.parametrize("tile", [16, 1024])
def test_embeddings_ranked_in_tiles_equal_the_whole_matrix(tile: int) -> None:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(150, 32, generator=generator)
    gallery = torch.randn(90, 32, generator=generator)
    gallery[50] = gallery[7]  # two equal videos tie, exactly
    relevant = torch.randint(0, 90, (150,), generator=generator)
    relevant[:4] = 7
    pairs = torch.stack([torch.arange(150), relevant], 1)
    forward, _ = rank_both(EmbeddingScorer(queries, gallery), pairs, tile=tile)
    scores = queries.double() @ gallery.double().T
    scores[:, 50] = scores[:, 7]
    expected = [naive_rank(scores[i], {int(relevant[i])}) for i in range(150)]
    assert forward.ranks.tolist() == expected
    assert all(rank % 1 == 0.5 for rank in forward.ranks[:4].tolist())


def test_summary_agrees_with_torchmetrics() -> None:
    # torchmetrics imports torchvision, which this makes importable on every build.
    backbones._declare_torchvision_operators()
    from torchmetrics.retrieval import RetrievalHitRate, RetrievalMRR

    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(80, 60, generator=generator)  # torchmetrics drops negative scores
    relevant = torch.rand(80, 60, generator=generator) < 0.03
    relevant[torch.arange(60), torch.arange(60)] = True
    relevant[60:, 3] = True
    forward, _ = rank_both(MatrixScorer(scores), relevant.nonzero())
    ours = metrics.summarise_ranks(forward.ranks)
    index = torch.arange(80)[:, None].expand(-1, 60).flatten()
    flat = (scores.flatten(), relevant.flatten(), index)
    for k in (1, 5, 10, 50):
        assert ours[f"r{k}"] == pytest.approx(float(RetrievalHitRate(top_k=k)(*flat)))
    assert ours["mean_reciprocal_rank"] == pytest.approx(float(RetrievalMRR()(*flat)))


def test_figures_of_a_summary() -> None:
    out = metrics.summarise_ranks(np.array([1.0, 1.5, 4.0, 11.0, np.nan]))
    assert out["r1"] == 0.25
    assert out["r5"] == 0.75
    assert out["r10"] == 0.75
    assert out["r50"] == 1.0
    assert out["median_rank"] == 2.75
    assert out["mean_rank"] == 4.375
    assert out["geometric_mean"] == pytest.approx((0.25 * 0.75 * 0.75) ** (1 / 3))


@pytest.mark.needs_shared
@pytest.mark.parametrize("case", ["ties", "plain"])
def test_parity_with_the_original_and_its_tie_defect(shared: Path, case: str) -> None:
    folder = shared / "parity" / "hdvila"
    arrays = np.load(folder / "hdvila_metrics.npz")
    assert json.loads((folder / "hdvila_metrics.json").read_text())["inputs"][case]
    scores = torch.from_numpy(arrays[f"in.{case}"])
    forward, backward = metrics.compat_metrics(scores)
    assert list(forward) == arrays[f"out.{case}.t2v"].ravel().tolist()
    assert list(backward) == arrays[f"out.{case}.v2t"].ravel().tolist()
    counts, _ = rank_both(MatrixScorer(scores), diagonal(50))
    ours = metrics.summarise_ranks(counts.ranks)
    if case == "plain":
        assert ours["r1"] == pytest.approx(forward[0])
        assert ours["mean_rank"] == pytest.approx(forward[5])
    else:  # the defect: tied queries weigh more, so the figure is of another set of queries
        assert ours["mean_rank"] != pytest.approx(forward[5])
        naive = [naive_rank(row, {i}) for i, row in enumerate(scores)]
        assert ours["mean_rank"] == pytest.approx(float(np.mean(naive)))


@pytest.mark.needs_shared
def test_parity_of_plain_cosine(shared: Path) -> None:
    arrays = np.load(shared / "parity" / "hdvila" / "hdvila_metrics.npz")
    a, b = (torch.from_numpy(arrays[f"in.{name}"]) for name in "ab")
    scores = EmbeddingScorer(a, b)(torch.arange(50), slice(0, 50))
    np.testing.assert_allclose(scores, arrays["out.cal_cossim"].reshape(50, 50), atol=1e-6)


def test_dual_softmax_equals_its_definition() -> None:
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(30, 20, generator=generator, dtype=torch.float64)
    for over, dim in (("queries", 0), ("gallery", 1)):
        dual = DualSoftmaxScorer(MatrixScorer(scores), 0.1, over)
        found = dual(torch.arange(5, 25), slice(3, 17))
        expected = (scores * torch.softmax(scores / 0.1, dim=dim))[5:25, 3:17]
        torch.testing.assert_close(found, expected)
    with pytest.raises(MetricError, match="temperature 0"):
        DualSoftmaxScorer(MatrixScorer(scores), 0.0)


@pytest.mark.parametrize("tile", [7, 64])
def test_top_k_is_a_sort(tile: int) -> None:
    scores = torch.randint(0, 40, (20, 50), generator=torch.Generator().manual_seed(3)).float()
    values, indices = top_k(MatrixScorer(scores), 10, tile=tile)
    assert torch.equal(values, scores.sort(dim=1, descending=True).values[:, :10])
    assert torch.equal(values, scores.gather(1, indices))
    assert all(len(set(row)) == 10 for row in indices.tolist())
    assert top_k(MatrixScorer(scores), 99, tile=tile)[0].shape == (20, 50)


def test_what_cannot_be_judged_is_said() -> None:
    scores = torch.zeros(3, 3)
    scores[2, 0] = math.nan
    with pytest.raises(MetricError, match="NaN"):
        rank_both(MatrixScorer(scores), diagonal(3))
    scores[2, 0], scores[1, 1] = 0.0, math.nan
    with pytest.raises(MetricError, match="relevant pair is NaN"):
        rank_both(MatrixScorer(scores), diagonal(3))
    with pytest.raises(MetricError, match="no query of 2 has a relevant item"):
        rank_both(MatrixScorer(torch.zeros(2, 2)), torch.zeros(0, 2, dtype=torch.int64))
    with pytest.raises(MetricError, match=r"gallery indices 0\.\.5: expected 0\.\.2"):
        rank_both(MatrixScorer(torch.zeros(3, 3)), torch.tensor([[0, 0], [1, 5]]))
    with pytest.raises(MetricError, match="gallery embedding 1 of 2 is not finite"):
        EmbeddingScorer(torch.zeros(2, 4), torch.tensor([[0.0] * 4, [math.inf] * 4]))
    with pytest.raises(MetricError, match="one D"):
        EmbeddingScorer(torch.zeros(2, 4), torch.zeros(2, 5))
    with pytest.raises(MetricError, match="ranks begin at 1"):
        metrics.summarise_ranks(np.array([0.0]))


def test_accuracy_by_kind_and_majority() -> None:
    predicted, truth = ["red", "blue", "two", "two"], ["red", "red", "two", "one"]
    kinds = ["colour", "colour", "count", "count"]
    assert metrics.accuracy(predicted, truth) == 0.5
    assert metrics.accuracy_by_kind(predicted, truth, kinds) == {"colour": 0.5, "count": 0.5}
    assert metrics.majority_answers(truth, kinds) == {"": "red", "colour": "red", "count": "two"}
    with pytest.raises(MetricError, match="no answers"):
        metrics.accuracy([], [])


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        hits = (generator.random(150) < 0.3).astype(np.float64)
        low, high = metrics.bootstrap(hits, samples=300, seed=trial)
        covered += low <= 0.3 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_pairing_makes_intervals_tighter() -> None:
    generator = np.random.default_rng(1)
    difficulty = generator.random(400)
    first = (difficulty < 0.55).astype(np.float64)
    second = (difficulty < 0.50).astype(np.float64)
    paired = metrics.paired_bootstrap(first, second)
    assert paired["difference"] == pytest.approx(first.mean() - second.mean())
    assert 0 < paired["low"] <= paired["difference"] <= paired["high"]
    assert paired["p"] < 0.01
    shuffled = metrics.paired_bootstrap(first, generator.permutation(second))
    assert shuffled["high"] - shuffled["low"] > 2 * (paired["high"] - paired["low"])
    with pytest.raises(MetricError, match="same queries"):
        metrics.paired_bootstrap(first, second[:-1])


def test_span_overlap() -> None:
    assert metrics.temporal_iou((0, 4), (2, 6)) == pytest.approx(1 / 3)
    assert metrics.temporal_iou((0, 1), (2, 3)) == 0.0
    assert metrics.temporal_iou((1, 1), (1, 1)) == 0.0
