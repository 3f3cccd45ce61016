"""Sentences and moments: ActivityNet Captions, YouCook2, DiDeMo, LSMDC, TVR, QVHighlights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rushes.datasets.formats.common import (
    JsonFile,
    Where,
    clock_seconds,
    iterate_jsonl,
    iterate_lines,
    video_id,
)
from rushes.datasets.formats.msrvtt import SPLITS
from rushes.datasets.formats.tgif import read_span
from rushes.datasets.record import Record, Segment, Span

DIDEMO_SECONDS = 5.0
"""Length of DiDeMo's segments, in which its moments are counted."""


def read_activitynet(path: Path) -> Iterator[Record]:
    """`{id: {duration, timestamps, sentences}}`, or `{id: paragraph}`; one record a video.

    Sentences begin with stray spaces, and some timestamps are reversed or pass the end: they are
    put in order and cut to the duration.
    """
    for name, row, where, _ in JsonFile(path).entries():
        if isinstance(row, str):
            yield Record(video=name, id=name, segments=(Segment(" ".join(row.split())),))
            continue
        if not isinstance(row, dict):
            raise where.error(f"{name}: expected an object, found {row!r}")
        sentences, stamps = where.texts(row, "sentences"), row.get("timestamps")
        if not isinstance(stamps, list) or len(stamps) != len(sentences):
            raise where.error(f"{name}: {len(sentences)} sentences with timestamps {stamps!r}")
        duration = where.number(row, "duration")
        segments = tuple(
            Segment(text.strip(), "caption", *_ordered(where, stamp, duration))
            for text, stamp in zip(sentences, stamps, strict=True)
            if text.strip()
        )
        yield Record(video=name, id=name, segments=segments)


def _ordered(where: Where, stamp: Any, duration: float) -> Span:
    try:
        start, end = sorted(min(max(0.0, float(t)), duration) for t in stamp)
    except (TypeError, ValueError):
        raise where.error(f"timestamps={stamp!r}: expected two numbers of seconds") from None
    return start, end


def read_youcook2(path: Path) -> Iterator[Record]:
    """`{database: {id: {duration, subset, annotations: [{segment, sentence}]}}}`."""
    file = JsonFile(path)
    offsets = {key: offset for key, _, _, offset in file.entries()}
    for name, row, where, _ in file.entries(offsets["database"]):
        segments = tuple(
            Segment(where.text(step, "sentence"), "caption", *read_span(where, step.get("segment")))
            for step in row.get("annotations", ())
        )
        subset = str(row.get("subset", ""))
        tags = {"recipe_type": str(row["recipe_type"])} if "recipe_type" in row else {}
        split = SPLITS.get(subset, subset) or None
        yield Record(video=name, id=name, segments=segments, tags=tags, split=split)


@dataclass
class _Moments:
    captions: list[Segment] = field(default_factory=list)


def read_didemo(path: Path) -> Iterator[Record]:
    """The official list of moments, one record a video: its descriptions make its paragraph."""
    videos: dict[str, _Moments] = {}
    for record in read_didemo_moments(path):
        videos.setdefault(record.video, _Moments()).captions.extend(
            Segment(s.text) for s in record.segments
        )
    for name, moments in videos.items():
        yield Record(video=name, id=name, segments=tuple(moments.captions))


def read_didemo_moments(path: Path) -> Iterator[Record]:
    """One record a description, with each annotator's span (his segments times five seconds)."""
    for _, row, where, _ in JsonFile(path).entries():
        spans = []
        for pair in row.get("times") or ():
            first, last = read_span(where, pair)
            spans.append(((first * DIDEMO_SECONDS, (last + 1) * DIDEMO_SECONDS),))
        yield Record(
            video=video_id(where.text(row, "video")),
            id=where.text(row, "annotation_id"),
            segments=(Segment(where.text(row, "description")),),
            spans=tuple(spans),
        )


def read_lsmdc(path: Path) -> Iterator[Record]:
    """Tab-separated without a header: clip, aligned start and end, extracted start and end, text.

    Clips are files of their own, named by movie and time; the names keep their dots.
    """
    for line, text in iterate_lines(path):
        where, parts = Where(path, line), text.split("\t")
        if len(parts) != 6:
            raise where.error(f"expected 6 columns, found {len(parts)}")
        try:
            for stamp in parts[1:5]:
                clock_seconds(stamp.replace(".", ":", stamp.count(".") - 1))
        except ValueError:
            raise where.error(f"times {parts[1:5]}: expected hh:mm:ss.mmm") from None
        caption = {"text": parts[5]}
        name = video_id(parts[0])
        yield Record(video=name, id=name, segments=(Segment(where.text(caption, "text")),))


def read_tvr(path: Path) -> Iterator[Record]:
    """TVR: `vid_name`, `desc`, `ts`; its public test hides the videos and is refused."""
    for line, row in iterate_jsonl(path):
        where = Where(path, line)
        spans = ((read_span(where, row["ts"]),),) if row.get("ts") else ()
        yield Record(
            video=video_id(where.text(row, "vid_name")),
            id=where.text(row, "desc_id"),
            segments=(Segment(where.text(row, "desc")),),
            spans=spans,
            tags={"type": str(row["type"])} if "type" in row else {},
        )


def read_qvhighlights(path: Path) -> Iterator[Record]:
    """QVHighlights: `query`, `vid`, `relevant_windows` (hidden in the test split)."""
    for line, row in iterate_jsonl(path):
        where = Where(path, line)
        windows = tuple(read_span(where, w) for w in row.get("relevant_windows") or ())
        yield Record(
            video=where.text(row, "vid"),
            id=where.text(row, "qid"),
            segments=(Segment(where.text(row, "query")),),
            spans=(windows,) if windows else (),
        )
