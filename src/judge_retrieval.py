"""Retrieval, judged: encode once, rank in both directions, coverage beside the figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rushes.configs.schema import EvaluationConfig
from rushes.datasets.record import Record
from rushes.datasets.stretches import Videos
from rushes.encoding import Encoder, encode_texts, encode_videos
from rushes.errors import MetricError
from rushes.metrics import bootstrap, summarise_ranks
from rushes.modeling.encoded import Level
from rushes.modeling.losses import pool_clips
from rushes.protocols import Evaluation, Queries, named, retrieval_queries
from rushes.ranking import RankCounts, rank_both, top_k
from rushes.rerank import rerank
from rushes.scorers import DualSoftmaxScorer, EmbeddingScorer, Scorer


class ClipScorer:
    """Scores pooled over a video's clips: the best clip, or a soft version of it.

    Args:
        queries: `Q D`.
        clips: `G N D`.
        pool: "max" or "lse".
    """

    def __init__(self, queries: Tensor, clips: Tensor, pool: str) -> None:
        self._flat = EmbeddingScorer(queries, clips.flatten(0, 1))
        self._num_clips, self._pool = clips.shape[1], pool

    @property
    def num_queries(self) -> int:
        return self._flat.num_queries

    @property
    def num_gallery(self) -> int:
        return self._flat.num_gallery // self._num_clips

    def __call__(self, queries: Tensor, gallery: slice) -> Tensor:
        block = slice(gallery.start * self._num_clips, gallery.stop * self._num_clips)
        scores = torch.unflatten(self._flat(queries, block), 1, (-1, self._num_clips))
        return pool_clips(scores, self._pool, 2)  # Q G


def evaluate_retrieval(
    encoder: Encoder,
    videos: Videos,
    records: Sequence[Record],
    config: EvaluationConfig,
    seed: int = 0,
) -> Evaluation:
    """Text -> video and video -> text ranks of a split, with its protocol named."""
    queries = retrieval_queries(records, config.protocol)
    keep: dict[int, Level] | None = {} if config.rerank else None
    found = encode_videos(encoder, videos(queries.videos), len(queries.videos), keep)
    texts = encode_texts(encoder, queries.texts)
    judged = _Judged(queries, found.readable)
    query_vectors, gallery = texts[judged.queries], found.vectors[judged.videos]
    scorer: Scorer = EmbeddingScorer(query_vectors, gallery)
    if config.clip_pool != "mean":
        scorer = ClipScorer(query_vectors, found.clips[judged.videos], config.clip_pool)
    forward, backward, used = _ranks(scorer, judged.pairs, config)
    values, indices = top_k(used, max(config.top_k, config.rerank, 1))
    out: dict[str, Any] = {"protocol": config.protocol, "clip_pool": config.clip_pool}
    if config.dual_softmax:
        out["dual_softmax"] = config.dual_softmax
    if config.rerank:
        assert keep is not None, "kept above"
        out["rerank"] = config.rerank
        names = [queries.texts[int(i)] for i in judged.queries]
        levels = {j: keep[int(v)] for j, v in enumerate(judged.videos) if int(v) in keep}
        reranked = rerank(
            encoder, names, levels, scorer, judged.pairs, (forward, backward), config.rerank
        )
        forward, backward, values, indices = reranked
    out.update(summarise_retrieval(forward, backward, samples=config.bootstrap, seed=seed))
    out.update(num_queries=len(judged.queries), num_videos=len(judged.videos))
    out["chance_r1"] = 1 / len(judged.videos)
    out["coverage"] = judged.coverage
    rows = _retrieval_rows(queries, judged, forward.ranks, values[:, : config.top_k], indices)
    unreadable = [queries.videos[int(i)].video for i in (~found.readable).nonzero().flatten()]
    metrics = {"retrieval": out, "coverage": judged.coverage}
    return Evaluation(metrics, rows, unreadable, "retrieval.t2v_r1")


class _Judged:
    """The part of a split whose videos could be read."""

    def __init__(self, queries: Queries, readable: Tensor) -> None:
        self.videos = readable.nonzero().flatten()
        self.coverage = float(readable.double().mean())
        if not len(self.videos):
            raise MetricError(f"none of the {len(readable)} videos of this split could be read")
        place = torch.full((len(readable),), -1)
        place[self.videos] = torch.arange(len(self.videos))
        pairs = [(q, int(place[v])) for q, v in queries.pairs() if place[v] >= 0]
        own = [q for q, v in enumerate(queries.owners) if place[v] >= 0]
        self.queries = torch.tensor(own)
        row = {query: i for i, query in enumerate(own)}
        self.pairs = torch.tensor([(row[q], v) for q, v in pairs if q in row])


def _ranks(
    scorer: Scorer, pairs: Tensor, config: EvaluationConfig
) -> tuple[RankCounts, RankCounts, Scorer]:
    if not config.dual_softmax:
        return *rank_both(scorer, pairs), scorer
    over_queries = DualSoftmaxScorer(scorer, config.dual_softmax, "queries")
    over_gallery = DualSoftmaxScorer(scorer, config.dual_softmax, "gallery")
    forward, _ = rank_both(over_queries, pairs)
    _, backward = rank_both(over_gallery, pairs)
    return forward, backward, over_queries


def summarise_retrieval(
    forward: RankCounts, backward: RankCounts, *, samples: int = 0, seed: int = 0
) -> dict[str, Any]:
    """All figures of both directions by name, `t2v_*` and `v2t_*`, recalls with their intervals.

    Args:
        forward, backward: text -> video and video -> text.
        samples: bootstrap resamples; 0 gives no intervals.
    """
    out: dict[str, Any] = {}
    intervals: dict[str, list[float]] = {}
    for name, counts in (("t2v", forward), ("v2t", backward)):
        summary = summarise_ranks(counts.ranks)
        out.update({f"{name}_{key}": value for key, value in summary.items()})
        judged = counts.ranks[~counts.ranks.isnan()]
        for k in (1, 5, 10, 50) if samples else ():
            low, high = bootstrap((judged <= k).double(), samples=samples, seed=seed)
            intervals[f"{name}_r{k}"] = [low, high]
    if intervals:
        out["interval_95"] = intervals
    return out


def _retrieval_rows(
    queries: Queries, judged: _Judged, ranks: Tensor, values: Tensor, indices: Tensor
) -> list[dict[str, Any]]:
    right: dict[int, set[int]] = {}
    for query, video in judged.pairs.tolist():
        right.setdefault(query, set()).add(video)
    rows = []
    for row, query in enumerate(judged.queries.tolist()):
        top = [
            {
                **named(queries.videos[int(judged.videos[g])]),
                "score": score,
                "right": g in right[row],
            }
            for score, g in zip(values[row].tolist(), indices[row].tolist(), strict=False)
        ]
        own = named(queries.videos[queries.owners[query]])
        rows.append(
            {
                "id": queries.ids[query],
                "text": queries.texts[query],
                **own,
                "rank": float(ranks[row]),
                "top": top,
            }
        )
    return rows
