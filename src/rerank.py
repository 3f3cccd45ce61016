"""The top candidates of retrieval, put in order anew by the matching head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rushes.encoding import TEXTS_A_VIDEO, Encoder
from rushes.errors import ConfigError
from rushes.modeling.encoded import Level
from rushes.ranking import RankCounts, top_k
from rushes.scorers import Scorer


class _Transposed:
    """A scorer seen from the gallery's side."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self.num_queries, self.num_gallery = scorer.num_gallery, scorer.num_queries

    def __call__(self, queries: Tensor, gallery: slice) -> Tensor:
        rows = torch.arange(gallery.start, gallery.stop)
        first, last = int(queries.min()), int(queries.max()) + 1
        return self._scorer(rows, slice(first, last)).T[queries - first]


def rerank(
    encoder: Encoder,
    texts: Sequence[str],
    videos: Mapping[int, Level],
    scorer: Scorer,
    pairs: Tensor,
    ranks: tuple[RankCounts, RankCounts],
    k: int,
) -> tuple[RankCounts, RankCounts, Tensor, Tensor]:
    """Order the k best candidates of each query by the matching head, in both directions.

    Candidates stay above all others; where the right one is not among them its rank stays.

    Args:
        texts: the queries.
        videos: token level of this rank's share of the gallery, by gallery index.
        scorer, ranks: of the first pass.
        pairs: relevant (query, gallery) indices.

    Returns:
        New ranks both ways, and the candidates of each query, best first: matching scores and
        indices `Q k`.
    """
    if encoder.model.matching_head is None:
        raise ConfigError("evaluation.rerank needs a model trained with the objective matching")
    forward_top = top_k(scorer, k)[1]
    backward_top = top_k(_Transposed(scorer), k)[1]
    wanted = {(q, g) for q, row in enumerate(forward_top.tolist()) for g in row}
    wanted |= {(q, g) for g, row in enumerate(backward_top.tolist()) for q in row}
    scores = _match_scores(encoder, texts, videos, sorted(wanted, key=lambda p: (p[1], p[0])))
    right = {(q, g) for q, g in pairs.tolist()}
    forward, values, indices = _reordered(ranks[0], forward_top, scores, right, transposed=False)
    backward, _, _ = _reordered(ranks[1], backward_top, scores, right, transposed=True)
    return forward, backward, values, indices


def _match_scores(
    encoder: Encoder,
    texts: Sequence[str],
    videos: Mapping[int, Level],
    wanted: Sequence[tuple[int, int]],
) -> dict[tuple[int, int], float]:
    """Log-odds of "belong together" of (text, video) pairs, of all ranks."""
    objective = next(o for o in encoder.model.config.objectives if o.name == "matching")
    by_video: dict[int, list[int]] = {}
    for query, video in wanted:
        by_video.setdefault(video, []).append(query)
    mine: dict[tuple[int, int], float] = {}
    for video, level in videos.items():
        queries = by_video.get(video, [])
        for start in range(0, len(queries), TEXTS_A_VIDEO):
            part = queries[start : start + TEXTS_A_VIDEO]
            words = encoder.text_level([texts[q] for q in part], len(part))
            to_video = torch.zeros(len(part), dtype=torch.int64, device=words.values.device)
            with encoder.running():
                logits = encoder.model.match_logits(words, level, to_video, objective.pool).float()
            odds = (logits[:, 1] - logits[:, 0]).tolist()
            mine.update({(q, video): odd for q, odd in zip(part, odds, strict=True)})
    out: dict[tuple[int, int], float] = {}
    for share in encoder.world.all_gather_object(mine):
        out.update(share)
    return out


def _reordered(
    counts: RankCounts,
    top: Tensor,
    scores: Mapping[tuple[int, int], float],
    right: set[tuple[int, int]],
    *,
    transposed: bool,
) -> tuple[RankCounts, Tensor, Tensor]:
    ranks = counts.ranks.clone()
    values, indices = torch.zeros(top.shape, dtype=torch.float64), torch.zeros_like(top)
    for row, candidates in enumerate(top.tolist()):
        named = [(other, row) if transposed else (row, other) for other in candidates]
        found = [scores[pair] for pair in named]
        order = sorted(range(len(found)), key=lambda i: (-found[i], candidates[i]))
        values[row] = torch.tensor([found[i] for i in order], dtype=torch.float64)
        indices[row] = torch.tensor([candidates[i] for i in order])
        relevant = [i for i, pair in enumerate(named) if pair in right]
        if relevant:
            best = max(found[i] for i in relevant)
            others = [found[i] for i in range(len(found)) if i not in relevant]
            equal = sum(found[i] == best for i in relevant)
            tied = sum(score == best for score in others)
            ranks[row] = 1 + sum(score > best for score in others) + tied / (equal + 1)
    return RankCounts(ranks, counts.best, counts.relevant_tied), values, indices
