"""Logging that knows its rank, and the one writer of JSON-line metrics."""

from __future__ import annotations

import json
import logging
import os
import sys
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

_FORMAT = "%(asctime)s %(levelname).1s %(rank)s%(name)s: %(message)s"


class _RankFilter(logging.Filter):
    """Puts `[rank] ` in front of the lines of every process but the first."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.prefix = f"[{rank}] " if rank else ""

    def filter(self, record: logging.LogRecord) -> bool:
        record.rank = self.prefix
        return True


def get_logger(name: str) -> logging.Logger:
    """The logger of one module; `name` is `__name__`."""
    return logging.getLogger(name)


def setup_logging(rank: int = 0, level: str | None = None) -> None:
    """Send the package's log to stderr: everything on rank 0, warnings only elsewhere.

    Args:
        rank: this process among its peers.
        level: name of the level for rank 0; `RUSHES_LOG_LEVEL`, else INFO, when None.
    """
    root = logging.getLogger("rushes")
    for handler in list(root.handlers):
        root.removeHandler(handler)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT, datefmt="%H:%M:%S"))
    handler.addFilter(_RankFilter(rank))
    root.addHandler(handler)
    chosen = level or os.environ.get("RUSHES_LOG_LEVEL") or "INFO"
    root.setLevel(chosen if rank == 0 else logging.WARNING)
    root.propagate = False


class MetricsWriter:
    """Appends one JSON object a line to a file; not buffered, so a killed run keeps its lines.

    A full disk is survived: a warning is logged once, and what could not be written is kept and
    goes first when there is room again.

    Args:
        path: the file, made with its folders; None writes nowhere (ranks other than 0).
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._unwritten = bytearray()
        self._warned = False
        self._file: FileIO | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)

    def write(self, **values: Any) -> None:
        """Append one line; floats keep every digit, NaN is written as null."""
        if self._file is not None:
            self._unwritten += json.dumps(_plain(values), allow_nan=False).encode() + b"\n"
            self._flush(self._file)

    def _flush(self, file: FileIO) -> None:
        try:
            write_out(file, self._unwritten)
        except OSError as error:
            if not self._warned:
                get_logger(__name__).warning("%s cannot be written now: %s", self.path, error)
            self._warned = True
        else:
            self._warned = False

    def close(self) -> None:
        """Close the file; writing afterwards does nothing."""
        if self._file is not None:
            self._flush(self._file)
            self._file.close()
            self._file = None

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def write_out(file: FileIO, data: bytearray) -> None:
    """Write `data` to an unbuffered file and empty it; after an `OSError` it holds the rest.

    A disk that fills up takes a part first and refuses only then.
    """
    while data:
        del data[: file.write(data) or 0]


def _plain(value: Any) -> Any:
    """JSON-ready copy of `value`: paths as text, NaN and infinities as null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
