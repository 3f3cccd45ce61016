"""Records in memory-mapped Arrow files: any number of them, in memory that does not grow.

A store is built once per annotation file, next to it (or in the user's cache where that folder
cannot be written), under a name that holds a hash of the file's identity, so that an edited file
is read anew. Several files read as one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rushes.datasets.collate import stable_key
from rushes.datasets.formats.registry import read_records
from rushes.datasets.record import Record, Segment, record_from_json, record_to_json
from rushes.errors import AnnotationError, ConfigError
from rushes.log import get_logger

TEXT_MODES = ("caption", "caption_and_transcript", "paragraph", "question")
"""`DatasetConfig.texts`, in the order of the store's count columns."""
HOLDOUT_ONE_IN = 20
PARTS = ("fit", "holdout")
_VERSION = "1"
_ROWS_A_BATCH = 16384
_SCHEMA = pa.schema(
    [("record", pa.large_binary()), *((f"count_{mode}", pa.int64()) for mode in TEXT_MODES)]
)
_log = get_logger(__name__)


def text_segments(record: Record, mode: str) -> tuple[Segment, ...]:
    """The (text, span) pairs that a record gives under a `DatasetConfig.texts` mode.

    A caption without a span of its own speaks of the whole record; a transcript segment goes with
    its own span.
    """
    captions = tuple(s for s in record.segments if s.kind == "caption")
    if mode == "caption":
        return captions
    if mode == "caption_and_transcript":
        spoken = (s for s in record.segments if s.kind in ("transcript", "subtitle"))
        return captions + tuple(spoken)
    if mode == "paragraph":
        whole = " ".join(s.text.strip() for s in captions)
        return (Segment(whole),) if captions else ()
    if mode == "question":
        return tuple(s for s in record.segments if s.kind == "question")
    raise ConfigError(f"texts={mode!r}: expected one of {list(TEXT_MODES)}")


class RecordStore(Sequence[Record]):
    """Records of several Arrow files as one sequence; opens by memory map, also in workers.

    Args:
        files: as `write_store` makes them.
        limit: use only this many records.
    """

    def __init__(self, files: Sequence[Path], limit: int | None = None) -> None:
        self.files = tuple(files)
        self._tables = [_open(path) for path in self.files]
        ends = np.cumsum([0, *(table.num_rows for table in self._tables)])
        self._starts = [int(end) for end in ends[:-1]]
        self._length = int(ends[-1]) if limit is None else min(limit, int(ends[-1]))
        self._limit = limit
        self._counts: dict[tuple[str, int], tuple[list[int], list[npt.NDArray[np.int64]]]] = {}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]
        if not 0 <= index < self._length:
            raise IndexError(f"record {index} of {self._length}")
        part = bisect_right(self._starts, index) - 1
        value = self._tables[part].column("record")[index - self._starts[part]]
        return record_from_json(json.loads(value.as_py()), str(self.files[part]))

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def __reduce__(self) -> tuple[type[RecordStore], tuple[tuple[Path, ...], int | None]]:
        return type(self), (self.files, self._limit)  # workers map the files themselves

    def count_texts(self, mode: str) -> int:
        """How many (text, span) pairs all records give under a mode."""
        if not len(self):
            return 0
        part, row = self._place(len(self) - 1)
        before = sum(self._last(mode, i) for i in range(part))
        return before + self._count(mode, part, row)

    def find_text(self, mode: str, item: int) -> tuple[int, int]:
        """(record, text within it) of the item-th pair under a mode; a binary search on disk."""
        for part, start in enumerate(self._starts):
            size = self._last(mode, part)
            if item < size:
                row = self._search(mode, part, item)
                before = self._count(mode, part, row - 1) if row else 0
                return start + row, item - before
            item -= size
        raise IndexError(f"text {item} past the end of {len(self)} records")

    def _place(self, index: int) -> tuple[int, int]:
        part = bisect_right(self._starts, index) - 1
        return part, index - self._starts[part]

    def _last(self, mode: str, part: int) -> int:
        ends, _ = self._cumulative(mode, part)
        return ends[-1] if ends else 0

    def _count(self, mode: str, part: int, row: int) -> int:
        """Pairs in records 0..row of one file (the column is cumulative)."""
        return int(self._tables[part].column(f"count_{mode}")[row].as_py())

    def _search(self, mode: str, part: int, item: int) -> int:
        """The first record of one file by which more than `item` pairs have been counted."""
        ends, chunks = self._cumulative(mode, part)
        chunk = bisect_right(ends, item)
        before = sum(len(values) for values in chunks[:chunk])
        return before + int(np.searchsorted(chunks[chunk], item, side="right"))

    def _cumulative(self, mode: str, part: int) -> tuple[list[int], list[npt.NDArray[np.int64]]]:
        """Cumulative counts of one file as views of its mapped batches, and the last of each."""
        if (mode, part) not in self._counts:
            batches = self._tables[part].column(f"count_{mode}").chunks
            chunks = [batch.to_numpy(zero_copy_only=True) for batch in batches if len(batch)]
            self._counts[mode, part] = [int(values[-1]) for values in chunks], chunks
        return self._counts[mode, part]


def write_store(path: Path, records: Iterable[Record]) -> int:
    """Write records to an Arrow file, aside and then renamed; gives their number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    totals = dict.fromkeys(TEXT_MODES, 0)
    number = 0
    try:
        with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
            rows: list[list[object]] = [[] for _ in _SCHEMA]
            for record in records:
                number += 1
                text = json.dumps(record_to_json(record), ensure_ascii=False)
                rows[0].append(text.encode("utf-8"))
                for column, mode in enumerate(TEXT_MODES, start=1):
                    totals[mode] += len(text_segments(record, mode))
                    rows[column].append(totals[mode])
                if len(rows[0]) == _ROWS_A_BATCH:
                    _flush(writer, rows)
            _flush(writer, rows)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return number


def _flush(writer: pa.RecordBatchFileWriter, rows: list[list[object]]) -> None:
    if rows[0]:
        columns = [pa.array(column, type=f.type) for column, f in zip(rows, _SCHEMA, strict=True)]
        writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))
        for column in rows:
            column.clear()


def open_records(
    paths: Sequence[Path],
    format_name: str = "auto",
    split: str | None = None,
    limit: int | None = None,
) -> RecordStore:
    """The records of annotation files (patterns like `part*.jsonl` allowed) as one store.

    Args:
        paths: files, or patterns; matches are taken in natural order (part2 before part10).
        format_name: a format of `formats.registry`, or "auto".
        split: keep only records that state this split; "fit" and "holdout" (also "train:fit") cut
            off one video in twenty for validation where the files have no split for it.
        limit: use only this many.

    Raises:
        AnnotationError: a file that is missing or wrong, with its line; or no record at all.
    """
    files = [file for path in paths for file in _expand(path)]
    store = RecordStore([_cached(file, format_name, split) for file in files], limit)
    if not len(store):
        wanted = f" of split {split!r}" if split else ""
        raise AnnotationError(f"no records{wanted}", ", ".join(map(str, files)))
    return store


def _expand(path: Path) -> list[Path]:
    if not any(sign in path.name for sign in "*?["):
        if not path.is_file():
            raise AnnotationError("no such annotation file", str(path))
        return [path]
    found = sorted(path.parent.glob(path.name), key=natural_key)
    if not found:
        raise AnnotationError("no file matches this pattern", str(path))
    return found


def natural_key(path: Path) -> list[tuple[int, str]]:
    """Sort key under which part2 comes before part10."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _cached(file: Path, format_name: str, split: str | None) -> Path:
    stat = file.stat()
    identity = (_VERSION, str(file.resolve()), stat.st_size, stat.st_mtime_ns, format_name, split)
    digest = hashlib.blake2b(repr(identity).encode(), digest_size=8).hexdigest()
    name = f"{file.stem}-{digest}.arrow"
    for folder in cache_folders(file):
        if (folder / name).is_file():
            return folder / name
    records = _of_split(file, format_name, split)
    for folder in cache_folders(file):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                continue
        except OSError:
            continue
        number = write_store(folder / name, records)
        _log.info("%s: %d records indexed in %s", file, number, folder / name)
        return folder / name
    raise AnnotationError("no folder can be written for its index", str(file))


def _of_split(file: Path, format_name: str, split: str | None) -> Iterator[Record]:
    """Records of a split: "NAME" as stated by the file, "fit" or "holdout", or "NAME:fit"."""
    if split is None:
        return read_records(file, format_name)
    stated, part = _parted(split)

    def chosen() -> Iterator[Record]:
        records = read_records(file, format_name)
        return (r for r in records if not stated or r.split == stated)

    if not part:
        return chosen()
    held = held_out({record.video for record in chosen()})
    return (r for r in chosen() if (r.video in held) == (part == "holdout"))


def _parted(split: str) -> tuple[str, str]:
    """What the file states and which part of that: "train:fit" is ("train", "fit")."""
    stated, _, part = split.rpartition(":") if split.endswith(PARTS) else (split, "", "")
    return stated, part


def splits_overlap(one: str | None, other: str | None) -> bool:
    """Whether two splits of one file can have a record in common."""
    if one is None or other is None:
        return True
    (stated, part), (other_stated, other_part) = _parted(one), _parted(other)
    if stated and other_stated and stated != other_stated:
        return False
    return stated != other_stated or not part or not other_part or part == other_part


def held_out(videos: Collection[str]) -> frozenset[str]:
    """One video in twenty, and at least one, chosen by a hash of its id: the same on any machine.

    For sets whose official files have no validation split, so that checkpoints are never picked on
    the test split.
    """
    count = max(1, len(videos) // HOLDOUT_ONE_IN) if len(videos) > 1 else 0
    return frozenset(sorted(videos, key=lambda video: (stable_key(video), video))[:count])


def cache_folders(file: Path) -> tuple[Path, Path]:
    """Where the index of a file may lie: beside it, else in the user's cache."""
    user = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return file.parent / ".rushes", Path(user) / "rushes" / "records"


def _open(path: Path) -> pa.Table:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise AnnotationError(f"not a record store: {error}", str(path)) from error
