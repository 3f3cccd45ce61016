"""Embeddings on disk: one format for export, index, offline scoring, feature tracks and caches.

A file (safetensors or h5) holds, for each modality and level, `{modality}_{level}` (values, rows of
all samples one after the other, float32 `S D`), `{modality}_{level}_num` (rows of each sample,
int64 `B`), `{modality}_{level}_times` (start and end of each row in seconds, float64 `S 2`, NaN
where unknown), and `key` (the samples' ids). An export is a folder of such files, `part_00000` and
so on, with `embeddings.json` (what made it) beside them; a part is written in one piece, so an
export that was stopped goes on after its last whole part.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rushes.checkpoint import sync, write_atomically
from rushes.errors import StorageError

Format = Literal["safetensors", "h5"]
Array = npt.NDArray[Any]
HEADER = "embeddings.json"
PART_ROWS = 1024
"""Samples of one part."""


@dataclass(frozen=True)
class Rows:
    """One sample's rows of one modality and level.

    Attributes:
        values: float32 `S D`.
        times: start and end of each row in seconds, float64 `S 2`; None: unknown.
    """

    values: Array
    times: Array | None = None


@dataclass(frozen=True)
class Table:
    """All samples of one modality and level.

    Attributes:
        keys: ids of the samples, `B`.
        values: rows of all samples one after the other, float32 `S D`.
        num: rows of each sample, int64 `B`.
        times: start and end of each row in seconds, float64 `S 2`.
    """

    keys: tuple[str, ...]
    values: Array
    num: Array
    times: Array

    @property
    def owners(self) -> Array:
        """The sample of each row, int64 `S`."""
        return np.repeat(np.arange(len(self.keys)), self.num)


class EmbeddingWriter:
    """Writes an export part by part; opened again on the same folder it goes on.

    Args:
        folder: made if absent.
        header: what made the export (model, level, ...); an export of another header is refused.
        form: "safetensors" or "h5".
        part_rows: samples a part.

    Attributes:
        keys: samples that are there already.

    Raises:
        StorageError: the folder holds an export of another model, level or format.
    """

    def __init__(
        self,
        folder: Path,
        header: Mapping[str, Any],
        form: Format = "safetensors",
        part_rows: int = PART_ROWS,
    ) -> None:
        self.folder, self._form, self._part_rows = folder, form, part_rows
        folder.mkdir(parents=True, exist_ok=True)
        wanted = {"format": form, **header}
        path = folder / HEADER
        if path.is_file():
            there = read_header(folder)
            changed = {k: (there.get(k), v) for k, v in wanted.items() if there.get(k) != v}
            if changed:
                name, (old, new) = next(iter(changed.items()))
                raise StorageError(
                    f"{folder}: holds embeddings with {name}={old!r}, not {new!r}; choose another "
                    "folder"
                )
        else:
            write_atomically(path, json.dumps(wanted, indent=1) + "\n")
        for torn in folder.glob(".writing-*"):
            torn.unlink()
        self._parts = len(parts_of(folder))
        self.keys: set[str] = set()
        for part in parts_of(folder):
            self.keys.update(_read_keys(part))
        self._pending: list[tuple[str, Mapping[str, Rows]]] = []

    def add(self, key: str, rows: Mapping[str, Rows]) -> None:
        """Add one sample.

        Args:
            key: its id, new to this export.
            rows: by `{modality}_{level}`.
        """
        if key in self.keys:
            raise StorageError(f"{self.folder}: {key!r} a second time")
        self.keys.add(key)
        self._pending.append((key, rows))
        if len(self._pending) >= self._part_rows:
            self.flush()

    def flush(self) -> None:
        """Write what is pending as a part of its own."""
        if not self._pending:
            return
        arrays: dict[str, Array] = {}
        for name in sorted({name for _, rows in self._pending for name in rows}):
            arrays.update(_stacked(name, [rows.get(name) for _, rows in self._pending]))
        keys = [key for key, _ in self._pending]
        name = f"part_{self._parts:05d}.{self._form}"
        aside = self.folder / f".writing-{os.getpid()}-{name}"
        _write(aside, keys, arrays, self._form)
        sync(aside)  # else a machine that loses power keeps the name without the bytes
        aside.replace(self.folder / name)
        self._parts += 1
        self._pending = []

    def close(self) -> None:
        """Write the rest."""
        self.flush()

    def __enter__(self) -> EmbeddingWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _stacked(name: str, samples: Sequence[Rows | None]) -> dict[str, Array]:
    there = [rows for rows in samples if rows is not None]
    dim = there[0].values.shape[1]
    values = [np.asarray(rows.values, np.float32) for rows in there]
    times = [
        np.full((len(rows.values), 2), np.nan) if rows.times is None else np.asarray(rows.times)
        for rows in there
    ]
    num = [0 if rows is None else len(rows.values) for rows in samples]
    return {
        name: np.concatenate(values) if values else np.zeros((0, dim), np.float32),
        f"{name}_num": np.asarray(num, np.int64),
        f"{name}_times": np.concatenate(times).astype(np.float64),
    }


def _write(path: Path, keys: Sequence[str], arrays: Mapping[str, Array], form: Format) -> None:
    if form == "h5":
        with h5py.File(path, "w") as file:
            file["key"] = np.asarray(keys, dtype=h5py.string_dtype())
            for name, array in arrays.items():
                file[name] = array
        return
    # safetensors holds numbers only: ids go as UTF-8 bytes with their lengths.
    encoded = [key.encode("utf-8") for key in keys]
    named = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    named["key"] = np.frombuffer(b"".join(encoded) or b"\0", np.uint8)
    named["key_num"] = np.asarray([len(key) for key in encoded], np.int64)
    save_file(named, path)


def parts_of(folder: Path) -> list[Path]:
    """The files of an export, in order."""
    return sorted([*folder.glob("part_*.safetensors"), *folder.glob("part_*.h5")])


def read_header(folder: Path) -> dict[str, Any]:
    """What made an export; raises `StorageError` where there is none."""
    try:
        value = json.loads((folder / HEADER).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"{folder}: no embeddings here ({HEADER}): {error}") from error
    assert isinstance(value, dict)
    return value


@dataclass
class _Gathered:
    keys: list[str] = field(default_factory=list)
    values: list[Array] = field(default_factory=list)
    num: list[Array] = field(default_factory=list)
    times: list[Array] = field(default_factory=list)


def read_tables(folder: Path) -> dict[str, Table]:
    """Everything of an export by `{modality}_{level}`.

    A sample that lacks a modality has no rows in it.

    Raises:
        StorageError: no export there, or a damaged part.
    """
    read_header(folder)
    gathered: dict[str, _Gathered] = {}
    for keys, arrays in _read_parts(folder):
        names = [n for n in arrays if f"{n}_num" in arrays]
        for name in names:
            into = gathered.setdefault(name, _Gathered())
            into.keys.extend(keys)
            into.values.append(arrays[name])
            into.num.append(arrays[f"{name}_num"])
            into.times.append(arrays[f"{name}_times"])
    return {
        name: Table(
            tuple(found.keys),
            np.concatenate(found.values),
            np.concatenate(found.num),
            np.concatenate(found.times),
        )
        for name, found in gathered.items()
    }


def _read_parts(folder: Path) -> Iterator[tuple[list[str], dict[str, Array]]]:
    for path in parts_of(folder):
        try:
            if path.suffix == ".h5":
                with h5py.File(path) as file:
                    arrays = {name: file[name][()] for name in file if name != "key"}
            else:
                with safe_open(path, "numpy") as tensors:
                    arrays = {
                        name: tensors.get_tensor(name)
                        for name in tensors.keys()  # noqa: SIM118 - no mapping
                        if name not in ("key", "key_num")
                    }
        except (OSError, SafetensorError) as error:
            raise StorageError(f"{path}: damaged: {error}") from error
        yield _read_keys(path), arrays


def _read_keys(path: Path) -> list[str]:
    try:
        if path.suffix == ".h5":
            with h5py.File(path) as file:
                return [key.decode("utf-8") for key in file["key"][()]]
        with safe_open(path, "numpy") as tensors:
            data, num = tensors.get_tensor("key").tobytes(), tensors.get_tensor("key_num")
    except (OSError, SafetensorError, KeyError) as error:
        raise StorageError(f"{path}: damaged: {error}") from error
    ends = np.cumsum(num).tolist()
    starts = [0, *ends[:-1]]
    return [data[a:b].decode("utf-8") for a, b in zip(starts, ends, strict=True)]
