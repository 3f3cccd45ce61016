"""How well moments are found: R@1 of spans in long videos beside the chance of a random span."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rushes.api import VideoText
from rushes.datasets.record import Record
from rushes.errors import MetricError
from rushes.metrics import bootstrap, temporal_iou
from rushes.search.library import Library
from rushes.search.windows import Span, random_hit


def judge_moments(
    model: VideoText, library: Library, records: Sequence[Record], threshold: float = 0.5
) -> dict[str, Any]:
    """Search each captioned span within its own video.

    Args:
        model, library: that made the index, and the index.
        records: long videos with captions that have spans.
        threshold: intersection over union from which a found moment counts.

    Returns:
        `r1`, its 95 % interval, `random`: the chance of a random span of the true length, and
        `coverage`: share of the captions whose video is indexed.

    Raises:
        MetricError: no caption with a span in an indexed video.
    """
    asked = [
        (record.video, s.text, Span(s.start, s.end))
        for record in records
        for s in record.segments
        if s.kind == "caption" and s.start is not None and s.end is not None
    ]
    known = set(library.ids)
    judged = [query for query in asked if query[0] in known]
    if not judged:
        raise MetricError(f"none of {len(asked)} captions with a span is of an indexed video")
    vectors = model.encode_text([text for _, text, _ in judged])
    hits, chances = [], []
    for (video, _, truth), vector in zip(judged, vectors, strict=True):
        (found,) = library.search(vector, 1, video)
        hits.append(temporal_iou((found.start, found.end), truth) >= threshold)
        chances.append(random_hit(library.duration(video), truth, threshold))
    values = np.asarray(hits, dtype=np.float64)
    return {
        "r1": float(values.mean()),
        "interval_95": list(bootstrap(values)),
        "random": float(np.mean(chances)),
        "num_queries": len(judged),
        "coverage": len(judged) / len(asked),
        "iou": threshold,
    }
