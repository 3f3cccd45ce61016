"""TGIF-QA: tab-separated questions of four kinds; and NExT-QA's and TVQA's five-way tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rushes.datasets.formats.common import JsonFile, Where, iterate_table, video_id
from rushes.datasets.record import Record, Segment

FRAME_TYPES = ("object", "number", "color", "location")
"""What the numbers in FrameQA's `type` column mean."""
OPTIONS = ("a1", "a2", "a3", "a4", "a5")


def read_tgif(path: Path) -> Iterator[Record]:
    """Action, transition (five-way), count and frame questions; told apart by their columns.

    The files use tabs and no quoting: a quotation mark in a description is only that.
    """
    for line, row in iterate_table(path, "\t", quoted=False):
        where = Where(path, line)
        options = tuple(where.text(row, k) for k in OPTIONS) if "a1" in row else ()
        answer: str | int = where.integer(row, "answer") if options else where.text(row, "answer")
        _check_option(where, answer, options)
        tags = {}
        if "type" in row:
            number = where.integer(row, "type")
            if not 0 <= number < len(FRAME_TYPES):
                raise where.error(f"type={number}: expected 0 to {len(FRAME_TYPES) - 1}")
            tags["answer_type"] = FRAME_TYPES[number]
        yield Record(
            video=video_id(where.text(row, "gif_name")),
            id=str(row.get("vid_id") or ""),
            segments=(Segment(where.text(row, "question"), "question"),),
            options=options,
            answer=answer,
            tags=tags,
        )


def read_nextqa(path: Path) -> Iterator[Record]:
    """NExT-QA: `video,frame_count,width,height,question,answer,qid,type,a0..a4`."""
    for line, row in iterate_table(path):
        where = Where(path, line)
        options = tuple(where.text(row, f"a{i}") for i in range(5))
        answer = where.integer(row, "answer")
        _check_option(where, answer, options)
        video = where.text(row, "video")
        yield Record(
            video=video,
            id=f"{video}_{where.text(row, 'qid')}",
            segments=(Segment(where.text(row, "question"), "question"),),
            options=options,
            answer=answer,
            tags={"answer_type": where.text(row, "type")},
        )


def read_tvqa(path: Path) -> Iterator[Record]:
    """TVQA and TVQA+: `q`, `a0..a4`, `answer_idx` (text), `ts` (where the answer lies)."""
    for _, row, where, _ in JsonFile(path).entries():
        options = tuple(where.text(row, f"a{i}") for i in range(5))
        answer = where.integer(row, "answer_idx") if row.get("answer_idx") is not None else None
        _check_option(where, answer, options)
        spans = ((read_span(where, row["ts"]),),) if row.get("ts") else ()
        yield Record(
            video=video_id(where.text(row, "vid_name")),
            id=where.text(row, "qid"),
            segments=(Segment(where.text(row, "q"), "question"),),
            options=options,
            answer=answer,
            spans=spans,
        )


def read_span(where: Where, value: object) -> tuple[float, float]:
    """Two numbers, start before end; raises `AnnotationError`."""
    try:
        start, end = (float(v) for v in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise where.error(f"span={value!r}: expected two numbers of seconds") from None
    if end < start:
        raise where.error(f"span={value!r}: ends before it starts")
    return start, end


def _check_option(where: Where, answer: str | int | None, options: Sequence[str]) -> None:
    if isinstance(answer, int) and options and not 0 <= answer < len(options):
        raise where.error(f"answer={answer}: expected 0 to {len(options) - 1}")
