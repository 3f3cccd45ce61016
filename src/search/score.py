"""`rushes score emb/`: retrieval metrics from exported embeddings alone; no model, no video."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rushes.embeddings import Table, read_tables
from rushes.errors import StorageError
from rushes.judge_retrieval import ClipScorer, summarise_retrieval
from rushes.ranking import rank_both
from rushes.scorers import EmbeddingScorer, Scorer
from rushes.search.command import parser, table


def main(argv: Sequence[str]) -> int:
    """Run the command; returns an exit code."""
    out = parser("score", __doc__ or "")
    out.add_argument("embeddings", type=Path, help="folder made by rushes embed --annotations")
    out.add_argument("--bootstrap", type=int, default=1000, help="resamples; 0: no intervals")
    out.add_argument("--json", type=Path, default=None, help="write the figures here")
    options = out.parse_args(argv)
    found = score(options.embeddings, options.bootstrap)
    if options.json is not None:
        options.json.write_text(json.dumps({"retrieval": found}, indent=1) + "\n", "utf-8")
    names = ("r1", "r5", "r10", "r50", "median_rank", "mean_rank")
    rows: list[tuple[str, ...]] = [("", *names)]
    for way in ("t2v", "v2t"):
        rows.append((way, *(f"{found[f'{way}_{name}']:.4g}" for name in names)))
    sys.stdout.write(table(rows) + "\n")
    counts = f"{found['num_queries']} texts, {found['num_videos']} videos"
    sys.stdout.write(f"{counts}, coverage {found['coverage']:.3f}\n")
    return 0


def score(folder: Path, samples: int = 0) -> dict[str, Any]:
    """All retrieval figures of an export that has texts.

    Several rows a video (frames, clips) are compared one by one, and the best counts.
    """
    tables = read_tables(folder)
    texts = tables.get("text_text")
    name = next((n for n in tables if n.startswith("video_")), None)
    if texts is None or name is None:
        raise StorageError(
            f"{folder}: has {sorted(tables)}; scoring needs videos and texts: rushes embed "
            "--annotations FILE"
        )
    videos = _readable(tables[name])
    place = {key: row for row, key in enumerate(videos.keys)}
    owners = np.asarray([place.get(key, -1) for key in texts.keys])[texts.owners]
    judged = owners >= 0
    if not judged.any():
        raise StorageError(f"{folder}: no text of a readable video")
    pairs = torch.from_numpy(np.stack([np.arange(judged.sum()), owners[judged]], 1))
    queries = torch.from_numpy(texts.values[judged])
    forward, backward = rank_both(_scorer(queries, videos), pairs)
    out: dict[str, Any] = summarise_retrieval(forward, backward, samples=samples)
    everything = set(texts.keys) | set(tables[name].keys)
    out.update(num_queries=int(judged.sum()), num_videos=len(videos.keys))
    out.update(coverage=len(videos.keys) / len(everything), chance_r1=1 / len(videos.keys))
    return out


def _readable(videos: Table) -> Table:
    """The samples that have rows; those without could not be read."""
    there = videos.num > 0
    keys = tuple(key for key, has in zip(videos.keys, there, strict=True) if has)
    return Table(keys, videos.values, videos.num[there], videos.times)


def _scorer(queries: torch.Tensor, videos: Table) -> Scorer:
    if (videos.num == 1).all():
        return EmbeddingScorer(queries, torch.from_numpy(videos.values))
    # Videos differ in rows: short ones repeat their last, which changes no maximum.
    most, first = int(videos.num.max()), np.cumsum(videos.num) - videos.num
    rows = first[:, None] + np.minimum(np.arange(most)[None], videos.num[:, None] - 1)
    return ClipScorer(queries, torch.from_numpy(videos.values[rows]), "max")
