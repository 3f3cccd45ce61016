"""Which reader a file needs: by name, or by looking at its first row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rushes.datasets.formats import jsonl, msrvtt, paragraphs, tables, tgif
from rushes.datasets.formats.common import JsonFile, iterate_jsonl, iterate_lines
from rushes.datasets.record import Record
from rushes.errors import AnnotationError

Reader = Callable[[Path], Iterator[Record]]

READERS: dict[str, Reader] = {
    "rushes": jsonl.read_rushes,
    "manifest": jsonl.read_manifest,
    "hdvila": jsonl.read_hdvila,
    "hdvila_metadata": jsonl.read_hdvila_metadata,
    "clipbert_qa": jsonl.read_clipbert_qa,
    "msrvtt": msrvtt.read_msrvtt,
    "msrvtt_csv": msrvtt.read_msrvtt_csv,
    "msrvtt_qa": msrvtt.read_msrvtt_qa,
    "msrvtt_mc": msrvtt.read_msrvtt_mc,
    "tgif": tgif.read_tgif,
    "nextqa": tgif.read_nextqa,
    "tvqa": tgif.read_tvqa,
    "activitynet": paragraphs.read_activitynet,
    "youcook2": paragraphs.read_youcook2,
    "didemo": paragraphs.read_didemo,
    "didemo_moments": paragraphs.read_didemo_moments,
    "lsmdc": paragraphs.read_lsmdc,
    "tvr": paragraphs.read_tvr,
    "qvhighlights": paragraphs.read_qvhighlights,
    "caption_tsv": tables.read_caption_tsv,
    "pairs": tables.read_pairs,
    "howto_csv": tables.read_howto_csv,
    "violet": tables.read_violet,
    "caption_lists": tables.read_caption_lists,
}
"""Format name -> reader."""

_LINE_RULES: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"video", "caption"}), "manifest"),
    (frozenset({"video"}), "rushes"),
    (frozenset({"clip_id", "text"}), "hdvila"),
    (frozenset({"video_id", "clip"}), "hdvila_metadata"),
    (frozenset({"clip_name", "options"}), "msrvtt_mc"),
    (frozenset({"question"}), "clipbert_qa"),
    (frozenset({"desc_id", "desc"}), "tvr"),
    (frozenset({"query", "vid"}), "qvhighlights"),
)
"""Fields of a JSON line -> format; the first that fits wins."""
_ROW_RULES: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"annotation_id", "times"}), "didemo"),
    (frozenset({"q", "a0", "answer_idx"}), "tvqa"),
    (frozenset({"q", "a0", "vid_name"}), "tvqa"),
    (frozenset({"question", "video_id"}), "msrvtt_qa"),
)
"""Fields of a row of a JSON list -> format."""
_TABLE_RULES: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"gif_name", "question"}), "tgif"),
    (frozenset({"frame_count", "question", "a0"}), "nextqa"),
    (frozenset({"video_id", "sentence"}), "msrvtt_csv"),
    (frozenset({"video_id", "start", "end", "text"}), "howto_csv"),
    (frozenset({"video", "text"}), "pairs"),
)
"""Columns of a table -> format."""


def sniff_format(path: Path) -> str:
    """The format of a file, from its suffix and first row; raises `AnnotationError`."""
    if path.suffix == ".jsonl":
        _, first = next(iter(iterate_jsonl(path)), (0, {}))
        return _match(path, set(first), _LINE_RULES)
    if path.suffix == ".json":
        return _sniff_json(path)
    _, line = next(iter(iterate_lines(path)), (0, ""))
    columns = set(line.split("\t" if "\t" in line else ","))
    found = _first_rule(columns, _TABLE_RULES)
    if found:
        return found
    parts = line.split("\t")
    if len(parts) == 6 and parts[1].count(":") == 2:
        return "lsmdc"
    if len(parts) == 2 and path.suffix == ".tsv":
        return "caption_tsv"
    raise _unknown(path, sorted(columns)[:12])


def _sniff_json(path: Path) -> str:
    file = JsonFile(path)
    key, value, _, _ = next(file.entries(), ("", None, None, 0))
    if file.text[file.root] == "[":
        return _match(path, set(value) if isinstance(value, Mapping) else set(), _ROW_RULES)
    keys = {name for name, *_ in file.entries()}
    if {"videos", "sentences"} <= keys:
        return "msrvtt"
    if key == "database":
        return "youcook2"
    if keys <= {"train", "val", "test", "vocab"}:
        return "violet"
    return _sniff_by_value(path, value, keys)


def _sniff_by_value(path: Path, value: Any, keys: set[str]) -> str:
    if (isinstance(value, str) and " " in value) or (
        isinstance(value, Mapping) and "sentences" in value
    ):
        return "activitynet"
    if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
        return "caption_lists"
    raise _unknown(path, sorted(keys)[:12])


def _match(path: Path, fields: set[str], rules: tuple[tuple[frozenset[str], str], ...]) -> str:
    found = _first_rule(fields, rules)
    if found is None:
        raise _unknown(path, sorted(fields))
    return found


def _first_rule(fields: set[str], rules: tuple[tuple[frozenset[str], str], ...]) -> str | None:
    return next((name for wanted, name in rules if wanted <= fields), None)


def _unknown(path: Path, fields: list[str]) -> AnnotationError:
    return AnnotationError(
        f"no known format has the fields {fields}; known formats: {sorted(READERS)}", str(path), 1
    )


def read_records(path: Path, format_name: str = "auto") -> Iterator[Record]:
    """The records of a file, each with an id (`<stem>:<n>` where the file gives none).

    Args:
        path: annotation file.
        format_name: a key of `READERS`, or "auto".

    Raises:
        AnnotationError: unknown format, or a wrong row, with file and line.
    """
    name = sniff_format(path) if format_name == "auto" else format_name
    if name not in READERS:
        raise AnnotationError(
            f"annotation_format={name!r}: expected one of {sorted(READERS)}", str(path)
        )
    for number, record in enumerate(READERS[name](path)):
        yield record if record.id else replace(record, id=f"{path.stem}:{number}")
