"""What the readers of annotation formats share: numbered lines, and errors that say where."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rushes.errors import AnnotationError

Row = tuple[int, dict[str, Any]]
"""Line number, from 1, and the row."""


@dataclass(frozen=True)
class Where:
    """A place in a file, for errors."""

    file: Path
    line: int | None = None

    def error(self, detail: str) -> AnnotationError:
        """An error that names this place."""
        return AnnotationError(detail, str(self.file), self.line)

    def text(self, row: Mapping[str, Any], key: str) -> str:
        """A non-empty text field; numbers (video ids) become text. Raises `AnnotationError`."""
        value = row.get(key)
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise self.error(f"{key}={value!r}: expected text; the row has {sorted(row)}")
        text = str(value).strip()
        if not text:
            raise self.error(f"{key}: empty text")
        return text

    def integer(self, row: Mapping[str, Any], key: str) -> int:
        """An integer field, also where it is written as text. Raises `AnnotationError`."""
        try:
            return int(row[key])
        except (KeyError, TypeError, ValueError):
            raise self.error(f"{key}={row.get(key)!r}: expected an integer") from None

    def number(self, row: Mapping[str, Any], key: str) -> float:
        """A number field, also where it is written as text. Raises `AnnotationError`."""
        try:
            return float(row[key])
        except (KeyError, TypeError, ValueError):
            raise self.error(f"{key}={row.get(key)!r}: expected a number") from None

    def texts(self, row: Mapping[str, Any], key: str) -> tuple[str, ...]:
        """A list of texts. Raises `AnnotationError`."""
        value = row.get(key)
        if not isinstance(value, list | tuple) or not all(isinstance(v, str | int) for v in value):
            raise self.error(f"{key}={value!r}: expected a list of texts")
        return tuple(str(v) for v in value)


def read_text(path: Path) -> str:
    """A whole file as UTF-8 (a byte order mark is dropped); raises `AnnotationError`."""
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise AnnotationError(f"not UTF-8: {error.reason}", str(path), line) from error
    except OSError as error:
        raise AnnotationError(f"cannot be read: {error.strerror}", str(path)) from error


def iterate_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of the lines that are not blank, in bounded memory."""
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise AnnotationError(f"not UTF-8: {error.reason}", str(path), number + 1) from error
    except OSError as error:
        raise AnnotationError(f"cannot be read: {error.strerror}", str(path)) from error


def iterate_jsonl(path: Path) -> Iterator[Row]:
    """(number, object) of JSON lines; raises `AnnotationError`."""
    for number, line in iterate_lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise AnnotationError(f"not JSON: {error.msg}", str(path), number) from error
        if not isinstance(row, dict):
            raise AnnotationError(f"expected a JSON object, found {line[:40]!r}", str(path), number)
        yield number, row


def read_json(path: Path) -> Any:
    """A JSON file; raises `AnnotationError`."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise AnnotationError(f"not JSON: {error.msg}", str(path), error.lineno) from error


def iterate_table(path: Path, delimiter: str = ",") -> Iterator[Row]:
    """(number, row by column name) of a table with a header line; raises `AnnotationError`."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        while True:
            line = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except (csv.Error, UnicodeDecodeError) as error:
                raise AnnotationError(f"not a table: {error}", str(path), line) from error
            if None in row or None in row.values():
                found = len([v for v in row.values() if v is not None])
                wanted = len(reader.fieldnames or ())
                raise AnnotationError(
                    f"expected {wanted} columns, found {found}", str(path), reader.line_num
                )
            yield reader.line_num, dict(row)


_MEDIA = re.compile(r"\.(mp4|avi|mov|mkv|webm|gif|m4v|wmv|mpg|mpeg|flv|3gp|ogv|ts)$", re.I)


def video_id(name: str) -> str:
    """The catalogue's id of a media name: no folder, no suffix (`a/video7.mp4` -> `video7`)."""
    return _MEDIA.sub("", PurePosixPath(name.strip().replace("\\", "/")).name)


def clock_seconds(text: str) -> float:
    """Seconds of `hh:mm:ss.mmm` (hours and minutes may be absent); raises ValueError."""
    seconds = 0.0
    for part in text.strip().replace(",", ".").split(":"):
        seconds = seconds * 60 + float(part)
    return seconds
