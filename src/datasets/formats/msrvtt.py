"""MSR-VTT and MSVD: captions with splits, the 1kA test, questions, multiple choice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rushes.datasets.formats.common import JsonFile, Where, iterate_jsonl, iterate_table, video_id
from rushes.datasets.record import Record, Segment
from rushes.errors import AnnotationError

SPLITS = {"validate": "val", "validation": "val", "training": "train", "testing": "test"}
"""Official split names, as they are called here."""


def read_msrvtt(path: Path) -> Iterator[Record]:
    """The official JSON: `videos` with splits, `sentences` with captions; one record a video."""
    file = JsonFile(path)
    offsets = {key: offset for key, _, _, offset in file.entries()}
    missing = {"videos", "sentences"} - set(offsets)
    if missing:
        raise AnnotationError(f"lacks {sorted(missing)}; it has {sorted(offsets)}", str(path), 1)
    captions: dict[str, list[Segment]] = {}
    for _, row, where, _ in file.entries(offsets["sentences"]):
        captions.setdefault(where.text(row, "video_id"), []).append(
            Segment(where.text(row, "caption"))
        )
    for _, row, where, _ in file.entries(offsets["videos"]):
        video = where.text(row, "video_id")
        split = where.text(row, "split")
        yield Record(
            video=video,
            id=video,
            segments=tuple(captions.pop(video, ())),
            tags={"category": str(row["category"])} if "category" in row else {},
            split=SPLITS.get(split, split),
        )
    if captions:
        raise AnnotationError(
            f"sentences of videos that are not listed: {sorted(captions)[:5]}", str(path)
        )


def read_msrvtt_csv(path: Path) -> Iterator[Record]:
    """`key,vid_key,video_id,sentence`: the 1kA test, one caption a video."""
    for line, row in iterate_table(path):
        where = Where(path, line)
        yield Record(
            video=video_id(where.text(row, "video_id")),
            id=str(row.get("key") or ""),
            segments=(Segment(where.text(row, "sentence")),),
        )


def read_msrvtt_qa(path: Path) -> Iterator[Record]:
    """The official JSON list of MSRVTT-QA and MSVD-QA; numbers become `video7` or `vid7`.

    MSVD-QA is told by its field `question_encode` or by its name.
    """
    prefix = "vid" if "msvd" in path.name.lower() else "video"
    for _, row, where, _ in JsonFile(path).entries():
        video = row.get("video_id")
        name = f"{prefix}{video}" if isinstance(video, int) else where.text(row, "video_id")
        answer = None if row.get("answer") is None else where.text(row, "answer")
        question = where.text(row, "question")
        kind = question.split()[0].lower()
        yield Record(
            video=name,
            id=str(row.get("id", "")),
            segments=(Segment(question, "question"),),
            answer=answer,
            tags={"answer_type": kind if kind in QUESTION_WORDS else "other"},
        )


QUESTION_WORDS = ("what", "who", "how", "where", "when")


def read_msrvtt_mc(path: Path) -> Iterator[Record]:
    """`clip_name`, `options`, `answer` (a number, in some releases written as text)."""
    for line, row in iterate_jsonl(path):
        where = Where(path, line)
        options = where.texts(row, "options")
        answer = where.integer(row, "answer") if row.get("answer") is not None else None
        if answer is not None and not 0 <= answer < len(options):
            raise where.error(f"answer={answer}: expected 0 to {len(options) - 1}")
        yield Record(
            video=video_id(where.text(row, "clip_name")),
            id=str(row.get("qid", "")),
            options=options,
            answer=answer,
        )
