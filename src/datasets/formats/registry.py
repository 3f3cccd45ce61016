"""Which reader a file needs: by name, or by looking at its first row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from rushes.datasets.formats import jsonl
from rushes.datasets.formats.common import iterate_jsonl
from rushes.datasets.record import Record
from rushes.errors import AnnotationError

Reader = Callable[[Path], Iterator[Record]]

READERS: dict[str, Reader] = {
    "rushes": jsonl.read_rushes,
    "hdvila": jsonl.read_hdvila,
    "hdvila_metadata": jsonl.read_hdvila_metadata,
    "clipbert_qa": jsonl.read_clipbert_qa,
    "manifest": jsonl.read_manifest,
}
"""Format name -> reader."""


def sniff_format(path: Path) -> str:
    """The format of a file, from its name and first row; raises `AnnotationError`."""
    _, first = next(iter(iterate_jsonl(path)), (0, {}))
    keys = set(first)
    if "video" in keys:
        return "manifest" if "caption" in keys else "rushes"
    if {"clip_id", "text"} <= keys:
        return "hdvila"
    if "clip" in keys:
        return "hdvila_metadata"
    if keys & {"question", "options"}:
        return "clipbert_qa"
    raise AnnotationError(f"no known format has the fields {sorted(keys)}", str(path), 1)


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
