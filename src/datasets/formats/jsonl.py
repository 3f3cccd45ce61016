"""JSON lines: our own records, and the files of the HD-VILA and ClipBERT code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from rushes.datasets.formats.common import Where, clock_seconds, iterate_jsonl, video_id
from rushes.datasets.record import Record, Segment, record_from_json


def read_rushes(path: Path) -> Iterator[Record]:
    """Our own form: one record a line."""
    for line, row in iterate_jsonl(path):
        yield record_from_json(row, str(path), line)


def read_hdvila(path: Path) -> Iterator[Record]:
    """`clip_id` and `text` (one, or a list of alternatives): pretraining and retrieval."""
    for line, row in iterate_jsonl(path):
        where = Where(path, line)
        text = row.get("text")
        texts = [where.text(row, "text")] if isinstance(text, str) else where.texts(row, "text")
        if not texts:
            raise where.error("text=[]: expected at least one")
        segments = tuple(Segment(t) for t in texts)
        yield Record(video=video_id(where.text(row, "clip_id")), segments=segments)


def read_hdvila_metadata(path: Path) -> Iterator[Record]:
    """HD-VILA-100M: a video a line with the spans of its clips, and transcripts where joined.

    Each clip becomes a record of its own on the long file: cutting is not required. A clip's `text`
    or `transcript` (not in the public release) is its transcript segment.
    """
    for line, row in iterate_jsonl(path):
        where = Where(path, line)
        video = where.text(row, "video_id")
        clips = row.get("clip")
        if not isinstance(clips, list):
            raise where.error(f"clip={clips!r}: expected a list")
        for clip in clips:
            yield _metadata_clip(where, video, clip)


def _metadata_clip(where: Where, video: str, clip: Any) -> Record:
    if not isinstance(clip, dict):
        raise where.error(f"clip={clip!r}: expected an object")
    try:
        first, last = (clock_seconds(str(t)) for t in clip["span"])
    except (KeyError, TypeError, ValueError):
        raise where.error(
            f"span={clip.get('span')!r}: expected two times as hh:mm:ss.mmm"
        ) from None
    if last <= first:
        raise where.error(f"span={clip['span']!r}: ends before it starts")
    text = clip.get("text") or clip.get("transcript")
    segments = (Segment(str(text), "transcript", first, last),) if text else ()
    name = video_id(where.text(clip, "clip_id"))
    return Record(video=video, id=name, segments=segments, start=first, end=last)


def read_clipbert_qa(path: Path) -> Iterator[Record]:
    """`question`, `answer`, `video_id` or `gif_name`, `answer_type`; with `options`: five-way."""
    for line, row in iterate_jsonl(path):
        where = Where(path, line)
        key = next((k for k in ("video_id", "gif_name", "clip_name") if k in row), "video_id")
        question = (Segment(where.text(row, "question"), "question"),) if "question" in row else ()
        options = where.texts(row, "options") if "options" in row else ()
        answer: str | int | None = None
        if row.get("answer") is not None:
            answer = where.integer(row, "answer") if options else where.text(row, "answer")
        if options and isinstance(answer, int) and not 0 <= answer < len(options):
            raise where.error(f"answer={answer}: expected 0 to {len(options) - 1}")
        tags = {k: str(row[k]) for k in ("answer_type",) if row.get(k) is not None}
        yield Record(
            video=video_id(where.text(row, key)),
            id=str(row["qid"]) if "qid" in row else "",
            segments=question,
            options=options,
            answer=answer,
            tags=tags,
        )


def read_manifest(path: Path) -> Iterator[Record]:
    """A plain list of clips: `video` (a path), `caption`, and optional `id`, `tags`, `split`."""
    for line, row in iterate_jsonl(path):
        where = Where(path, line)
        tags = {k: str(row[k]) for k in ("group", "subgroup", "base") if row.get(k)}
        yield Record(
            video=PurePosixPath(video_id(where.text(row, "video"))).name,
            id=str(row.get("id", "")),
            segments=(Segment(where.text(row, "caption")),),
            references=where.texts(row, "tags") if isinstance(row.get("tags"), list) else (),
            tags=tags,
            split=row.get("split"),
        )
