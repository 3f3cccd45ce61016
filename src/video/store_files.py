"""Open shards: each is mapped once per process, however many readers use it, never across fork."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb

from rushes.errors import StorageError
from rushes.video.store_format import name_key, shard_path

_PREFIX = name_key(b"")

Key = tuple[int, int, int]


@dataclass
class _Shared:
    environment: lmdb.Environment
    users: int


_open: dict[Key, _Shared] = {}
_lock = threading.Lock()


class Shards:
    """The shards of a store, mapped when they are first read.

    Args:
        root: folder of the store.
        count: how many shards it has.
    """

    def __init__(self, root: Path, count: int) -> None:
        self.root, self.count = root, count
        self._held: dict[int, tuple[Key, lmdb.Environment]] = {}
        self._pid = os.getpid()

    def _environment(self, shard: int) -> lmdb.Environment:
        if self._pid != os.getpid():  # after fork: the parent's maps are not ours to use
            self._held, self._pid = {}, os.getpid()
        held = self._held.get(shard)
        if held is None:
            held = self._held[shard] = _acquire(shard_path(self.root, shard))
        return held[1]

    @contextmanager
    def view(self, shard: int) -> Iterator[Any]:
        """A transaction whose `get` gives memory of the file, valid inside the block."""
        try:
            transaction = self._environment(shard).begin(buffers=True)
        except lmdb.Error as error:
            raise StorageError(f"{shard_path(self.root, shard)}: {error}") from error
        try:
            yield transaction
        finally:
            transaction.abort()

    def names(self) -> Iterator[str]:
        """The ids of all clips, in no order."""
        for shard in range(self.count):
            with self.view(shard) as transaction, transaction.cursor() as cursor:
                if not cursor.set_range(_PREFIX):
                    continue
                for key, value in cursor.iternext():
                    if bytes(key[: len(_PREFIX)]) != _PREFIX:
                        break
                    yield bytes(value).decode("utf-8", "surrogatepass")

    def close(self) -> None:
        """Give the maps back; the last user in the process closes them."""
        if self._pid == os.getpid():
            for key, _ in self._held.values():
                _release(key)
        self._held = {}


def _after_fork() -> None:
    """In the child: drop its copies of the parent's maps, so that it can map the files itself.

    Closing them touches neither the parent nor, without locks, the files.
    """
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it
    for shared in _open.values():
        shared.environment.close()
    _open.clear()


os.register_at_fork(after_in_child=_after_fork)


def _acquire(path: Path) -> tuple[Key, lmdb.Environment]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise StorageError(f"{path}: shard of the store is missing: {error.strerror}") from error
    key = (os.getpid(), status.st_dev, status.st_ino)
    with _lock:
        shared = _open.get(key)
        if shared is None:
            try:
                # The store is complete, so nobody writes and no lock is needed. The map covers
                # what is used, whatever size it was written with.
                environment = lmdb.open(
                    str(path),
                    subdir=False,
                    readonly=True,
                    create=False,
                    lock=False,
                    readahead=False,
                    map_size=max(1 << 20, status.st_size),
                )
            except lmdb.Error as error:
                raise StorageError(f"{path}: not a shard of a store: {error}") from error
            shared = _open[key] = _Shared(environment, 0)
        shared.users += 1
    return key, shared.environment


def _release(key: Key) -> None:
    with _lock:
        shared = _open[key]
        shared.users -= 1
        if shared.users == 0:
            del _open[key]
            shared.environment.close()
