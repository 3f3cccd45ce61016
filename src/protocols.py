"""What a test split asks: distinct videos, queries, and which fit which.

Every distinct stretch of video appears once, so that it is decoded and encoded once however many
texts speak of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rushes.datasets.collate import text_key
from rushes.datasets.record import Record, Segment
from rushes.errors import MetricError
from rushes.ranking import relevant_pairs

Protocol = Literal["clip", "paragraph", "multi_caption"]
Stretch = tuple[str, float | None, float | None]


@dataclass(frozen=True)
class Evaluation:
    """What a model reached on a split.

    Attributes:
        metrics: nested by task: `retrieval`, `qa` or `mc`, and `coverage`.
        rows: predictions, one object a query.
        unreadable: ids of the videos that could not be read.
        key: the task's own figure, the default of `train.best_metric`.
    """

    metrics: dict[str, Any]
    rows: list[dict[str, Any]]
    unreadable: list[str] = field(default_factory=list)
    key: str = ""


@dataclass(frozen=True)
class Queries:
    """Texts against stretches of video.

    Attributes:
        videos: one record a distinct stretch, in order of first appearance.
        texts: the queries.
        owners: the video that each query was written for.
        ids: of the queries.
    """

    videos: tuple[Record, ...]
    texts: tuple[str, ...]
    owners: tuple[int, ...]
    ids: tuple[str, ...]

    def pairs(self) -> list[tuple[int, int]]:
        """All relevant (query, video) pairs: a query fits its own video and every other that has
        an equal text (case and white space aside)."""
        keys = [text_key(text) for text in self.texts]
        written = relevant_pairs(keys, keys).tolist()
        return sorted({(query, self.owners[other]) for query, other in written})


def stretch_of(record: Record) -> Stretch:
    """What of which file a record is about."""
    return record.video, record.start, record.end


def distinct_videos(records: Sequence[Record]) -> tuple[tuple[Record, ...], tuple[int, ...]]:
    """One record a distinct stretch, and for each record the position of its own."""
    places: dict[Stretch, int] = {}
    videos: list[Record] = []
    owners = []
    for record in records:
        place = places.setdefault(stretch_of(record), len(videos))
        if place == len(videos):
            videos.append(record)
        owners.append(place)
    return tuple(videos), tuple(owners)


def retrieval_queries(records: Sequence[Record], protocol: Protocol) -> Queries:
    """The queries of a retrieval split.

    Args:
        protocol: "clip": one query a stretch, its first caption, where captions with spans of their
            own are stretches of their own; "paragraph": all captions of a record as one text
            against its whole stretch (those without spans, where there are such);
            "multi_caption": each caption is a query of its own.

    Raises:
        MetricError: no record has a caption.
    """
    asked = [pair for record in records for pair in _asked(record, protocol)]
    if protocol == "clip":
        first: dict[Stretch, tuple[Record, str]] = {}
        for record, text in asked:
            first.setdefault(stretch_of(record), (record, text))
        asked = list(first.values())
    if not asked:
        raise MetricError(f"none of {len(records)} records has a caption to search with")
    videos, owners = distinct_videos([record for record, _ in asked])
    ids = _unique([record.id or record.video for record, _ in asked])
    return Queries(videos, tuple(text for _, text in asked), owners, ids)


def _asked(record: Record, protocol: Protocol) -> list[tuple[Record, str]]:
    captions = [s for s in record.segments if s.kind == "caption" and s.text.strip()]
    if not captions:
        return []
    if protocol == "paragraph":
        whole = [s for s in captions if s.start is None and s.end is None] or captions
        return [(record, " ".join(s.text.strip() for s in whole))]
    if protocol == "clip":
        return [(_stretch(record, s), s.text) for s in captions]
    return [(record, s.text) for s in captions]


def _stretch(record: Record, segment: Segment) -> Record:
    if segment.start is None and segment.end is None:
        return record
    return replace(record, start=segment.start, end=segment.end)


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    seen: dict[str, int] = {}
    out = []
    for name in names:
        count = seen.get(name, 0)
        seen[name] = count + 1
        out.append(name if count == 0 else f"{name}#{count}")
    return tuple(out)


def named(record: Record) -> dict[str, Any]:
    """The stretch that a record is about, as a prediction names it."""
    span = {"start": record.start, "end": record.end}
    return {"video": record.video, **{k: v for k, v in span.items() if v is not None}}
