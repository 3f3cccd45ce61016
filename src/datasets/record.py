"""One annotated video (or stretch of one): the form into which every annotation format is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from rushes.errors import AnnotationError

SegmentKind = Literal["caption", "subtitle", "transcript", "question", "statement", "step"]
Span = tuple[float, float]


@dataclass(frozen=True)
class Segment:
    """A text and, where known, the seconds of the video that it speaks of (None: all of it)."""

    text: str
    kind: SegmentKind = "caption"
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class Record:
    """One annotated video, one JSON line.

    Which texts fit which videos is many-to-many and explicit: every caption of `segments` fits this
    video; equal texts and equal video ids in other records fit too (losses and metrics know).

    Attributes:
        video: video id, the catalogue's key.
        id: unique within the data set; made from the file name and row where absent.
        segments: texts with their spans.
        start, end: the stretch of a long file that this record is about; None is the whole file.
        options: the answers to choose from (multiple choice), in order.
        answer: the right answer: text (open-ended), index into `options`, or None when hidden.
        spans: where the answer or the query lies: for each annotator, his spans in seconds.
        references: further right texts (alternative answers, reference captions).
        tags: anything to break results down by: `answer_type`, `group`, ...
        split: the split that the file states, if any.
    """

    video: str
    id: str = ""
    segments: tuple[Segment, ...] = ()
    start: float | None = None
    end: float | None = None
    options: tuple[str, ...] = ()
    answer: str | int | None = None
    spans: tuple[tuple[Span, ...], ...] = ()
    references: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    split: str | None = None

    def texts(self, *kinds: SegmentKind) -> tuple[str, ...]:
        """The texts of the given kinds (of all kinds when none is given), in order."""
        return tuple(s.text for s in self.segments if not kinds or s.kind in kinds)

    @property
    def question(self) -> str | None:
        """The first question, if there is one."""
        return next((s.text for s in self.segments if s.kind == "question"), None)


def record_to_json(record: Record) -> dict[str, Any]:
    """The record as one JSON object; what equals its default is left out."""
    out: dict[str, Any] = {"video": record.video}
    if record.id:
        out["id"] = record.id
    if record.segments:
        out["segments"] = [_segment_to_json(s) for s in record.segments]
    for name in ("start", "end", "answer", "split"):
        value = getattr(record, name)
        if value is not None:
            out[name] = value
    for name in ("options", "references"):
        if getattr(record, name):
            out[name] = list(getattr(record, name))
    if record.spans:
        out["spans"] = [[list(span) for span in spans] for spans in record.spans]
    if record.tags:
        out["tags"] = dict(record.tags)
    return out


def record_from_json(row: Mapping[str, Any], file: str = "", line: int | None = None) -> Record:
    """The record of one JSON object; raises `AnnotationError` with file and line."""
    known = set(Record.__dataclass_fields__)
    unknown = sorted(set(row) - known)
    if unknown:
        raise AnnotationError(f"unknown fields {unknown}; known: {sorted(known)}", file, line)
    if not isinstance(row.get("video"), str) or not row["video"]:
        raise AnnotationError(f"video={row.get('video')!r}: expected a video id", file, line)
    try:
        segments = tuple(_segment_from_json(s) for s in row.get("segments", ()))
        spans = tuple(
            tuple((float(start), float(end)) for start, end in spans)
            for spans in row.get("spans", ())
        )
    except (TypeError, ValueError, KeyError) as error:
        raise AnnotationError(f"malformed segments or spans: {error}", file, line) from error
    return Record(
        video=row["video"],
        id=str(row.get("id", "")),
        segments=segments,
        start=row.get("start"),
        end=row.get("end"),
        options=tuple(row.get("options", ())),
        answer=row.get("answer"),
        spans=spans,
        references=tuple(row.get("references", ())),
        tags=dict(row.get("tags", {})),
        split=row.get("split"),
    )


def _segment_to_json(segment: Segment) -> dict[str, Any]:
    out: dict[str, Any] = {"text": segment.text, "kind": segment.kind}
    if segment.start is not None:
        out["start"] = segment.start
    if segment.end is not None:
        out["end"] = segment.end
    return out


def _segment_from_json(row: Mapping[str, Any]) -> Segment:
    kind = row.get("kind", "caption")
    if kind not in get_args(SegmentKind):
        raise ValueError(f"kind={kind!r}: expected one of {list(get_args(SegmentKind))}")
    if not isinstance(row["text"], str):
        raise TypeError(f"text={row['text']!r}: expected text")
    return Segment(text=row["text"], kind=kind, start=row.get("start"), end=row.get("end"))
