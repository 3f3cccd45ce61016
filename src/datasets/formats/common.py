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


class JsonFile:
    """A JSON file whose entries know their line, so that errors inside one big value can say it.

    Attributes:
        root: offset of the outermost value.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.text = path, read_text(path)
        self._decoder = json.JSONDecoder()
        self._line, self._counted = 1, 0
        self.root = self._skip(0)

    def entries(self, start: int | None = None) -> Iterator[tuple[str, Any, Where, int]]:
        """(key or index, value, place, offset) of each entry of the object or list at `start`.

        Raises:
            AnnotationError: what stands there is neither, or is not JSON.
        """
        at = self.root if start is None else start
        opening = self.text[at : at + 1]
        if opening not in ("{", "["):
            raise self._where(at).error(f"expected an object or a list, found {opening!r}")
        closing, at, index = {"{": "}", "[": "]"}[opening], self._skip(at + 1), 0
        while self.text[at : at + 1] != closing:
            key: Any = str(index)
            if opening == "{":
                key, at = self._decode(at)
                at = self._expect(":", self._skip(at))
            value, end = self._decode(at)
            yield str(key), value, self._where(at), at
            at, index = self._skip(end), index + 1
            if self.text[at : at + 1] != closing:
                at = self._expect(",", at)

    def _decode(self, at: int) -> tuple[Any, int]:
        try:
            return self._decoder.raw_decode(self.text, at)
        except json.JSONDecodeError as error:
            raise AnnotationError(f"not JSON: {error.msg}", str(self.path), error.lineno) from error

    def _expect(self, sign: str, at: int) -> int:
        if self.text[at : at + 1] != sign:
            raise self._where(at).error(f"not JSON: expected {sign!r}")
        return self._skip(at + 1)

    def _skip(self, at: int) -> int:
        match = _SPACE.match(self.text, at)
        return match.end() if match else at

    def _where(self, at: int) -> Where:
        if at < self._counted:
            self._line, self._counted = 1, 0
        self._line += self.text.count("\n", self._counted, at)
        self._counted = at
        return Where(self.path, self._line)


def iterate_rows(
    path: Path, delimiter: str = ",", quoted: bool = True
) -> Iterator[tuple[int, list[str]]]:
    """(line on which it ends, columns) of each row of a table; raises `AnnotationError`."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(
                file, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
            )
            line = 0
            try:
                for row in reader:
                    line = reader.line_num
                    if row:
                        yield line, row
            except (csv.Error, UnicodeDecodeError) as error:
                raise AnnotationError(f"not a table: {error}", str(path), line + 1) from error
    except OSError as error:
        raise AnnotationError(f"cannot be read: {error.strerror}", str(path)) from error


def iterate_table(path: Path, delimiter: str = ",", quoted: bool = True) -> Iterator[Row]:
    """(line, row by column name) of a table with a header line; raises `AnnotationError`."""
    rows = iterate_rows(path, delimiter, quoted)
    _, header = next(rows, (0, []))
    for line, row in rows:
        if len(row) != len(header):
            detail = f"expected {len(header)} columns, found {len(row)}"
            raise AnnotationError(detail, str(path), line)
        yield line, dict(zip(header, row, strict=True))


_SPACE = re.compile(r"[ \t\r\n]*")
_MEDIA = re.compile(r"\.(mp4|avi|mov|mkv|webm|gif|m4v|wmv|mpg|mpeg|flv|3gp|ogv|ts)$", re.I)


def video_id(name: str) -> str:
    """The catalogue's id of a media name: no media suffix (`a/video7.mp4` -> `a/video7`)."""
    path = PurePosixPath(name.strip().replace("\\", "/"))
    return _MEDIA.sub("", str(path)).rstrip(".")


def clock_seconds(text: str) -> float:
    """Seconds of `hh:mm:ss.mmm` (hours and minutes may be absent); raises ValueError."""
    seconds = 0.0
    for part in text.strip().replace(",", ".").split(":"):
        seconds = seconds * 60 + float(part)
    return seconds
