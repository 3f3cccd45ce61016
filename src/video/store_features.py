"""Attaches feature tracks to the clips of a store: rows of numbers, each with its moment."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rushes.errors import ConfigError, StorageError
from rushes.video.store_format import (
    FEATURES,
    chunk_key,
    digest,
    entry_key,
    pack_entry,
    read_description,
    shard_of,
    unpack_entry,
    write_description,
)
from rushes.video.store_values import ShardWriter


def add_features(
    writer: ShardWriter,
    video_id: str,
    name: str,
    times: npt.NDArray[np.float64],
    values: npt.NDArray[np.generic],
) -> None:
    """Put one track into the clip's record, in one transaction.

    Args:
        writer: of the store.
        video_id: a clip that the store holds.
        name: of the track, as `Features` asks for it.
        times: seconds from the first frame, ascending, `N`.
        values: numbers, `N ...`.

    Raises:
        StorageError: no such clip, or arrays that do not fit together.
    """
    where = f"{writer.root}: {video_id}: features {name!r}"
    if times.ndim != 1 or values.ndim < 1 or len(times) != len(values):
        raise StorageError(f"{where}: times {times.shape} do not go with values {values.shape}")
    if not np.isfinite(times).all() or (np.diff(times) < 0).any():
        raise StorageError(f"{where}: times must be finite and ascending")
    if values.dtype.kind not in "fiu":
        raise StorageError(f"{where}: values are {values.dtype}, expected numbers")
    key = digest(video_id)
    shard = shard_of(key, writer.shards)
    packed = writer.get(shard, entry_key(key))
    if packed is None:
        raise StorageError(f"{where}: the store has no such clip")
    entry = unpack_entry(packed, where)
    track = {
        "kind": "rows",
        "dtype": values.dtype.newbyteorder("<").str,
        "shape": list(values.shape[1:]),
        "times": np.ascontiguousarray(times, np.float64).tobytes(),
    }
    entry = replace(entry, plain={**entry.plain, FEATURES + name: track})
    rows = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
    with writer.environment(shard).begin(write=True) as transaction:
        transaction.put(chunk_key(key, FEATURES + name, 0), rows)
        transaction.put(entry_key(key), pack_entry(entry))


def feature_folders(tracks: Sequence[str]) -> dict[str, Path]:
    """Names and folders of `NAME=FOLDER`; raises `ConfigError` where one is not of that form."""
    folders = {}
    for track in tracks:
        name, _, place = track.partition("=")
        # Path("") would be the folder in which the program runs.
        if not name or not place or not Path(place).is_dir():
            raise ConfigError(f"--features {track}: expected NAME=FOLDER with a folder of .npz")
        folders[name] = Path(place)
    return folders


def attach_features(root: Path, tracks: Sequence[str]) -> int:
    """Attach `NAME=FOLDER` tracks: `FOLDER/<id>.npz` with arrays `times` and `values`.

    Returns:
        How many tracks were attached; clips without a file get none.

    Raises:
        ConfigError: not of the form NAME=FOLDER, or no such folder.
        StorageError: a file that does not fit.
    """
    folders = feature_folders(tracks)
    description = read_description(root)
    write_description(root, replace(description, complete=False))
    writer, attached = ShardWriter(root, description.shards), 0
    try:
        for name, folder in folders.items():
            for path in sorted(folder.rglob("*.npz")):
                video_id = path.relative_to(folder).with_suffix("").as_posix()
                times, values = _load(path)
                add_features(writer, video_id, name, times, values)
                attached += 1
    finally:
        writer.close()
        write_description(root, description)
    return attached


def _load(path: Path) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.generic]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["times"].astype(np.float64), arrays["values"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise StorageError(f"{path}: no arrays `times` and `values`: {error}") from error
