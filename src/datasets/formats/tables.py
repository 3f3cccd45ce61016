"""Plain tables of captions: tab-separated, HowTo100M's csv, VIOLET's and mmaction2's JSON."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rushes.datasets.formats.common import (
    JsonFile,
    Where,
    iterate_lines,
    iterate_rows,
    iterate_table,
    video_id,
)
from rushes.datasets.formats.tgif import read_span
from rushes.datasets.record import Record, Segment


def read_caption_tsv(path: Path) -> Iterator[Record]:
    """`caption <tab> clip` without a header: WebVid, CC3M, and paragraphs of DiDeMo and MSVD.

    Captions with line breaks in them are quoted, as spreadsheets write them.
    """
    for line, columns in iterate_rows(path, "\t"):
        where = Where(path, line)
        if len(columns) != 2:
            raise where.error(f"expected a caption and a clip name, found {len(columns)} columns")
        row = {"caption": " ".join(columns[0].split()).rstrip(", "), "clip": columns[1]}
        yield Record(
            video=video_id(where.text(row, "clip")),
            segments=(Segment(where.text(row, "caption")),),
        )


def read_pairs(path: Path) -> Iterator[Record]:
    """`video,text`, a user's own data: one caption a line; a video's lines make one record."""
    captions: dict[str, list[Segment]] = {}
    for line, row in iterate_table(path):
        where = Where(path, line)
        captions.setdefault(where.text(row, "video"), []).append(Segment(where.text(row, "text")))
    for video, segments in captions.items():
        yield Record(video=video, segments=tuple(segments))


def read_howto_csv(path: Path) -> Iterator[Record]:
    """`end,start,task,text,video_id`: steps of long videos, one record a step on its own span."""
    for line, row in iterate_table(path):
        where = Where(path, line)
        start, end = read_span(where, (row.get("start"), row.get("end")))
        video = where.text(row, "video_id")
        yield Record(
            video=video,
            segments=(Segment(where.text(row, "text")),),
            start=start,
            end=end,
            tags={"task": str(row["task"])} if "task" in row else {},
        )


def read_violet(path: Path) -> Iterator[Record]:
    """`{split: [{video, caption | question + options + answer}] | {id: [captions]}}`.

    Open-ended answers are labels into the file's own `vocab`.
    """
    file = JsonFile(path)
    parts = {key: (value, offset) for key, value, _, offset in file.entries()}
    vocabulary = parts.pop("vocab", (None, 0))[0]
    words = dict(enumerate(vocabulary or ()))
    for split, (_, offset) in parts.items():
        for key, row, where, _ in file.entries(offset):
            if isinstance(row, list):
                row = {"video": key, "caption": row[0] if row else ""}
            yield _violet(where, row, split, words)


def _violet(where: Where, row: Any, split: str, words: dict[int, str]) -> Record:
    video = video_id(where.text(row, "video"))
    if "caption" in row:
        segments: tuple[Segment, ...] = (Segment(where.text(row, "caption")),)
        return Record(video=video, segments=segments, split=split)
    segments = (Segment(where.text(row, "question"), "question"),)
    options = tuple(where.text(row, k) for k in sorted(k for k in row if k.startswith("option_")))
    label = where.integer(row, "answer")
    if options and not 0 <= label < len(options):
        raise where.error(f"answer={label}: expected 0 to {len(options) - 1}")
    # An answer outside the vocabulary is stored as its size: known to be none of the words.
    answer = label if options else words.get(label)
    return Record(video=video, segments=segments, options=options, answer=answer, split=split)


def read_caption_lists(path: Path) -> Iterator[Record]:
    """`{file name: [captions]}`: one record a video with all its captions."""
    for name, captions, where, _ in JsonFile(path).entries():
        texts = where.texts({name: captions}, name)
        yield Record(video=video_id(name), segments=tuple(Segment(t) for t in texts))


def read_ids(path: Path) -> list[str]:
    """Video ids of a split list: one a line, or the `video_id` column of a csv."""
    first = next(iter(iterate_lines(path)), (0, ""))[1]
    if "video_id" in first.split(","):
        rows = iterate_table(path)
        return [video_id(Where(path, line).text(row, "video_id")) for line, row in rows]
    return [video_id(text) for _, text in iterate_lines(path)]
