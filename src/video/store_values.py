"""Moves prepared records into shards: written aside by workers, taken in by one transaction."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import lmdb

from rushes.errors import StorageError
from rushes.video.store_format import digest, entry_key, name_key, shard_path

_MAGIC = b"rushes values 1\n"
_HEAD = struct.Struct("<IQ")
_END = _HEAD.pack(0, 0)
MAP_SIZE = 1 << 40
"""Address space of a shard while it is written; the file grows as it is filled."""


class ValueFile:
    """Keys and values of one clip, written one after the other into a file aside."""

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, 0
        self._file = path.open("wb")
        self._file.write(_MAGIC)

    def add(self, key: bytes, value: bytes) -> None:
        """Append one value."""
        self._file.write(_HEAD.pack(len(key), len(value)))
        self._file.write(key)
        self._file.write(value)
        self.size += len(key) + len(value)

    def add_entry(self, video_id: str, entry: bytes) -> None:
        """Append what makes the clip known: its entry and its name."""
        key = digest(video_id)
        self.add(entry_key(key), entry)
        self.add(name_key(key), video_id.encode("utf-8", "surrogatepass"))

    def close(self) -> None:
        """End the file; without its end it is not taken."""
        if not self._file.closed:
            self._file.write(_END)
            self._file.close()

    def __enter__(self) -> ValueFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()


def read_values(data: memoryview, path: Path) -> Iterator[tuple[bytes, memoryview]]:
    """Keys and values of a file aside; raises StorageError when it is torn."""
    position = len(_MAGIC)
    if bytes(data[:position]) != _MAGIC:
        raise StorageError(f"{path}: not a file of values")
    while True:
        head = bytes(data[position : position + _HEAD.size])
        if len(head) < _HEAD.size:
            raise StorageError(f"{path}: ends at byte {position} without its end mark")
        key_size, size = _HEAD.unpack(head)
        if key_size == 0:
            return
        start = position + _HEAD.size
        position = start + key_size + size
        if position > len(data):
            raise StorageError(f"{path}: a value reaches beyond the end")
        yield bytes(data[start : start + key_size]), data[start + key_size : position]


class ShardWriter:
    """The one writer of a store's shards.

    Args:
        root: folder of the store.
        shards: how many there are.
    """

    def __init__(self, root: Path, shards: int) -> None:
        self.root, self.shards = root, shards
        self._open: dict[int, lmdb.Environment] = {}

    def environment(self, shard: int) -> lmdb.Environment:
        """A shard, opened for writing."""
        if shard not in self._open:
            path = shard_path(self.root, shard)
            try:
                self._open[shard] = lmdb.open(
                    str(path), subdir=False, map_size=MAP_SIZE, max_readers=8, readahead=False
                )
            except lmdb.Error as error:
                raise StorageError(f"{path}: cannot be written: {error}") from error
        return self._open[shard]

    def put(self, shard: int, path: Path) -> None:
        """Take a file aside into a shard, all or nothing; it is on disk when this returns."""
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
            view = memoryview(held)
            values: list[tuple[bytes, memoryview]] = []
            try:
                values += read_values(view, path)
                with self.environment(shard).begin(write=True) as transaction:
                    for key, value in values:
                        transaction.put(key, value)
            except lmdb.Error as error:
                raise StorageError(f"{shard_path(self.root, shard)}: {error}") from error
            finally:
                for _, value in values:
                    value.release()
                view.release()

    def get(self, shard: int, key: bytes) -> bytes | None:
        """A value, for instance the entry of a clip that may be there already."""
        with self.environment(shard).begin() as transaction:
            value: bytes | None = transaction.get(key)
            return value

    def compact(self) -> None:
        """Give back pages that were freed by writing, each shard in one step."""
        for shard in range(self.shards):
            environment = self.environment(shard)
            used, size = environment.info()["last_pgno"] + 1, environment.stat()["psize"]
            stat = environment.stat()
            live = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
            if (used - live) * size < max(1 << 16, used * size // 50):
                continue
            aside = shard_path(self.root, shard).with_suffix(".part")
            aside.unlink(missing_ok=True)
            environment.copy(str(aside), compact=True)
            self._open.pop(shard).close()
            with aside.open("rb") as file:
                os.fsync(file.fileno())
            aside.replace(shard_path(self.root, shard))

    def close(self) -> None:
        """Close the shards; their lock files are of no use to readers."""
        for shard, environment in self._open.items():
            environment.close()
            path = shard_path(self.root, shard)
            path.with_name(path.name + "-lock").unlink(missing_ok=True)
        self._open.clear()
