"""Packet indexes kept between runs: LMDB, msgpack values, keyed by path, size and change time."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import lmdb

from rushes.errors import StorageError
from rushes.log import get_logger
from rushes.video.index import INDEX_VERSION, VideoIndex, pack_index, unpack_index

MAP_SIZE = 64 * 2**30
"""Address space, not disk: the file grows as it is filled."""

log = get_logger(__name__)
_open: dict[tuple[int, str], tuple[lmdb.Environment, int]] = {}
_lock = threading.Lock()


def _after_fork() -> None:
    """In the child: drop its copies of the parent's environments, or LMDB would refuse to open them
    a second time. Closing them here leaves the parent's locks and readers alone.
    """
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it
    for environment, _ in _open.values():
        environment.close()
    _open.clear()


os.register_at_fork(after_in_child=_after_fork)


class ProbeCache:
    """A cache of `VideoIndex` in a folder.

    One environment a process and path, however many caches are opened on it; after a fork the child
    opens its own. Several processes may write.

    Args:
        path: folder of the LMDB files, made when missing.
        readonly: never write.
    """

    def __init__(self, path: str | Path, readonly: bool = False) -> None:
        self.path, self.readonly = Path(path), readonly
        self._pid = 0
        self._environment: lmdb.Environment | None = None
        self._full = False

    def _opened(self) -> lmdb.Environment:
        if self._environment is not None and self._pid == os.getpid():
            return self._environment
        try:
            key = (os.getpid(), str(self.path.resolve()))
        except (OSError, RuntimeError) as error:  # links that lead in a circle
            raise StorageError(f"{self.path}: no index cache: {error}") from error
        with _lock:
            known = _open.get(key)
            if known is None:
                known = (_environment(self.path), 0)
            _open[key] = (known[0], known[1] + 1)
        self._environment, self._pid = known[0], key[0]
        return known[0]

    def get(self, key: bytes) -> VideoIndex | None:
        """The index kept under `key`; None when there is none or another version wrote it."""
        try:
            with self._opened().begin(buffers=False) as transaction:
                data = transaction.get(_digest(key))
        except lmdb.Error as error:
            raise StorageError(f"{self.path}: cannot read the index cache: {error}") from error
        return unpack_index(data) if data is not None else None

    def put(self, key: bytes, index: VideoIndex) -> None:
        """Keep an index; does nothing when the cache is read-only or the disk has become full."""
        if self.readonly or self._full:
            return
        try:
            with self._opened().begin(write=True) as transaction:
                transaction.put(_digest(key), pack_index(index))
        except lmdb.Error as error:  # the index itself is good: its video is read
            self._full = True
            log.warning("%s: no more indexes are kept: %s", self.path, error)

    def close(self) -> None:
        """Close the environment when this was its last user in the process."""
        if self._environment is None or self._pid != os.getpid():
            self._environment = None
            return
        key = (self._pid, str(self.path.resolve()))
        with _lock:
            environment, users = _open[key]
            if users <= 1:
                del _open[key]
                environment.close()
            else:
                _open[key] = (environment, users - 1)
        self._environment = None


def _environment(path: Path) -> lmdb.Environment:
    """The environment in a folder; raises `StorageError` for one that cannot be or is torn."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        environment = lmdb.open(str(path), map_size=MAP_SIZE, max_readers=1024, sync=False)
        needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        there = (path / "data.mdb").stat().st_size
    except (lmdb.Error, OSError) as error:
        raise StorageError(f"{path}: no index cache: {error}") from error
    if there < needed:  # reading what is missing of a mapped file would kill the process
        environment.close()
        raise StorageError(f"{path}: index cache torn: {there} bytes of {needed}; delete it")
    return environment


def _digest(key: bytes) -> bytes:
    # Keys of LMDB hold 511 bytes at most; paths may be longer.
    return hashlib.blake2b(key + b"\0%d" % INDEX_VERSION, digest_size=24).digest()
