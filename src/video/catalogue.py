"""Which bytes hold video id X: the only place that builds a media path.

A catalogue is opened on a folder of videos, a manifest (.jsonl or .csv with `id` and `path`), a
folder of JPEG folders, or an LMDB store. Ids never lead out of their root.
"""

from __future__ import annotations

import csv
import json
import os
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rushes.errors import (
    AnnotationError,
    MissingVideo,
    RefusedVideo,
    StorageError,
    UnreadableVideo,
    VideoError,
)

VisFormat = Literal["auto", "video", "frame", "store"]
SourceKind = Literal["file", "images", "store", "bytes"]

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".flv", ".gif", ".ts", ".m2ts", ".mpg")
    + (".mpeg", ".3gp", ".264", ".h264", ".265", ".hevc", ".ogv", ".wmv", ".asf", ".ivf")
    + (".vob", ".mts", ".m2t", ".mxf", ".mjpeg", ".mjpg", ".f4v", ".wtv", ".ogm", ".3g2", ".divx")
    + (".rm", ".rmvb", ".qt", ".m2v", ".m1v", ".mpe", ".mpv", ".h265", ".xvid", ".dv", ".y4m")
)
"""Endings by which a folder's videos are listed; `locate` needs no ending."""
_IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg"))
_STORE_MARK = "store.json"


@dataclass(frozen=True)
class Source:
    """Where the bytes of one video are.

    Attributes:
        kind: a file, a folder of images, a record of a store, or bytes in memory.
        video_id: as the catalogue knows it.
        path: the file, folder or store; empty for bytes.
        low: for images, the folder of the same frames at low resolution, if there is one.
        data: for bytes, the bytes.
        outside: an absolute path of a manifest that leads out of its folder. Whoever wrote the
            manifest need not be who may read the file: errors then tell nothing that it holds.
    """

    kind: SourceKind
    video_id: str
    path: Path = Path()
    low: Path | None = None
    data: bytes | None = None
    outside: bool = False


class Catalogue:
    """Maps video ids to sources; made by `open_catalogue` or `Catalogue.from_items`."""

    def __init__(
        self,
        root: Path | None,
        entries: Mapping[str, Source | VideoError] | None,
        *,
        kind: SourceKind = "file",
        low_root: Path | None = None,
    ) -> None:
        if entries and all(
            isinstance(source, Source) and source.kind == "images" for source in entries.values()
        ):
            kind = "images"
        self.root, self.low_root, self.kind = root, low_root, kind
        self._entries = entries
        self._listed: list[str] | None = None

    @classmethod
    def from_items(cls, items: Mapping[str, str | Path | bytes]) -> Catalogue:
        """A catalogue of named paths (trusted: the caller chose them) and videos in memory."""
        entries: dict[str, Source] = {}
        for video_id, item in items.items():
            if isinstance(item, bytes | bytearray | memoryview):
                entries[video_id] = Source("bytes", video_id, data=bytes(item))
                continue
            path = Path(item).absolute()
            kind: SourceKind = "images" if _is_folder(path) else "file"
            entries[video_id] = Source(kind, video_id, path, _low_of(path))
        return cls(None, entries)

    def ids(self) -> Sequence[str]:
        """Every video id, sorted; lists the folder on the first call."""
        if self._listed is None:
            if self._entries is not None:
                self._listed = sorted(self._entries)
            elif self.kind == "store":
                self._listed = sorted(self._store_ids())
            else:
                self._listed = sorted(set(self._walk()))
        return self._listed

    def __len__(self) -> int:
        return len(self.ids())

    def __contains__(self, video_id: object) -> bool:
        try:
            self.locate(str(video_id))
        except VideoError:
            return False
        return True

    def inventory(self, endings: Collection[str] = VIDEO_SUFFIXES) -> list[Source | VideoError]:
        """Everything that is there, good or bad: what `locate` says of every id; of a folder of
        files, every entry with one of the endings, be it a file, a link, a pipe or a folder.
        """
        if self.kind == "file" and self._entries is None:
            assert self.root is not None
            found = [
                Path(folder, name)
                for folder, folders, names in os.walk(self.root)
                for name in (*folders, *names)
                if Path(name).suffix.lower() in endings
            ]
            return [self._judged(path, self.root) for path in sorted(found)]
        told: list[Source | VideoError] = []
        for video_id in self.ids():
            try:
                told.append(self.locate(video_id))
            except VideoError as error:
                told.append(error)
        return told

    def _judged(self, path: Path, root: Path) -> Source | VideoError:
        video = str(path)
        try:
            self._inside(video, path, root)
            mode = os.stat(path).st_mode
        except RefusedVideo as error:
            return error
        except OSError as error:
            return UnreadableVideo(video, f"leads nowhere: {error.strerror}", "not_video")
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
            return UnreadableVideo(video, f"is {kind}", "not_video")
        return Source("file", video, path)

    def locate(self, video_id: str) -> Source:
        """The source of a video.

        Raises:
            MissingVideo: no such id.
            RefusedVideo: `hostile`, the id or a link leads out of the catalogue's root.
        """
        if self._entries is not None:
            source = self._entries.get(video_id)
            if source is None:
                raise MissingVideo(video_id, f"not among {len(self._entries)} listed videos")
            if isinstance(source, VideoError):
                raise source
            if source.kind == "file" and not _is_file(source.path):
                if _mode(source.path):
                    detail = f"{source.path} is no regular file"
                    raise UnreadableVideo(video_id, detail, "not_video")
                raise MissingVideo(video_id, f"listed as {source.path}, which does not exist")
            return source
        assert self.root is not None
        if self.kind == "store":
            return Source("store", video_id, self.root)
        _refuse_hostile_id(video_id)
        for candidate in self._candidates(video_id):
            if self.kind == "images" and _is_folder(candidate):
                self._inside(video_id, candidate, self.root)
                return Source("images", video_id, candidate, self._low_folder(video_id, candidate))
            if self.kind == "file" and _is_file(candidate):
                self._inside(video_id, candidate, self.root)
                return Source("file", video_id, candidate)
        raise MissingVideo(video_id, f"no such video in {self.root}")

    def _candidates(self, video_id: str) -> Iterator[Path]:
        """Paths that may hold the id, the likeliest first."""
        assert self.root is not None
        plain = self.root / video_id
        # Clips of pretraining sets lie one folder deeper, named by the id up to its first dot.
        head, _, tail = video_id.rpartition("/")
        nested = self.root / head / tail.split(".", 1)[0] / tail
        # Some annotation files name clips with a folder that the published reader drops.
        bare = (self.root / tail,) if head and tail else ()
        for base in (plain, nested, *bare):
            yield base
            if self.kind == "file" and base.name:
                yield from (base.with_name(base.name + suffix) for suffix in _ORDERED_SUFFIXES)
                yield from _unusual_endings(base)

    def _low_folder(self, video_id: str, folder: Path) -> Path | None:
        if self.low_root is None:
            return _low_of(folder)
        assert self.root is not None
        low = self.low_root / folder.relative_to(self.root)
        if not _is_folder(low):
            return None
        self._inside(video_id, low, self.low_root)
        return low

    @staticmethod
    def _inside(video_id: str, path: Path, root: Path) -> None:
        real = Path(os.path.realpath(path))
        if not real.is_relative_to(os.path.realpath(root)):
            raise RefusedVideo(video_id, f"leads to {real}, outside {root}", "hostile")

    def _walk(self) -> Iterator[str]:
        assert self.root is not None
        for folder, folders, names in os.walk(self.root):
            # Hidden ones are what a killed run left behind.
            folders[:] = [name for name in folders if not name.startswith(".")]
            relative = Path(folder).relative_to(self.root)
            if self.kind == "images":
                if any(Path(name).suffix.lower() in _IMAGE_SUFFIXES for name in names):
                    yield relative.as_posix()
                continue
            stems = [Path(name).stem for name in names if _is_video(name)]
            for name in filter(_is_video, names):
                # Two files of one stem keep their endings, so that no id means two videos.
                single = stems.count(Path(name).stem) == 1
                yield (relative / (Path(name).stem if single else name)).as_posix()

    def _store_ids(self) -> Sequence[str]:
        from rushes.video.store import open_store

        assert self.root is not None
        store = open_store(self.root)
        try:
            listed: Sequence[str] = store.ids()
            return list(listed)
        finally:
            store.close()


_ORDERED_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".gif", ".m4v")


def _mode(path: Path) -> int:
    """The kind and rights of what lies there; 0 where nothing does or can, as under a name that is
    too long or that no file system writes.
    """
    try:
        return os.stat(path).st_mode
    except (OSError, ValueError):
        return 0


def _is_file(path: Path) -> bool:
    return stat.S_ISREG(_mode(path))


def _is_folder(path: Path) -> bool:
    return stat.S_ISDIR(_mode(path))


def _is_video(name: str) -> bool:
    return Path(name).suffix.lower() in VIDEO_SUFFIXES and not name.startswith(".")


def _unusual_endings(base: Path) -> Iterator[Path]:
    try:
        names = sorted(os.listdir(base.parent))
    except (OSError, ValueError):
        return
    for name in names:
        if name.startswith(base.name + ".") and Path(name).stem == base.name and _is_video(name):
            yield base.with_name(name)


def _low_of(folder: Path) -> Path | None:
    low = folder.with_name(folder.name + "_lr")
    return low if _is_folder(low) else None


def _refuse_hostile_id(video_id: str) -> None:
    if not video_id or "\0" in video_id:
        raise RefusedVideo(video_id, "an empty id or one with a zero byte", "hostile")
    parts = video_id.replace("\\", "/").split("/")
    if ".." in parts or os.path.isabs(video_id) or "://" in video_id:
        raise RefusedVideo(video_id, "the id leads out of the catalogue", "hostile")


def open_catalogue(
    path: str | Path, vis_format: VisFormat = "auto", videos_low: str | Path | None = None
) -> Catalogue:
    """Open a folder, a manifest, a folder of image folders or a store.

    Args:
        path: the folder, the .jsonl or .csv manifest (`id`, `path`, relative to the manifest), or
            the store.
        vis_format: what the folder holds; "auto" looks.
        videos_low: for images, the folder of the same frames at low resolution; by default the
            sibling `<folder>_lr` of the whole folder or of each video.

    Raises:
        StorageError: there is nothing at `path`, or not what `vis_format` says.
        AnnotationError: a manifest line is wrong.
    """
    root = Path(path)
    if root.is_file() and root.suffix.lower() in (".jsonl", ".csv"):
        return Catalogue(root.parent, _read_manifest(root))
    if not root.is_dir():
        raise StorageError(f"{root}: neither a folder nor a .jsonl or .csv manifest")
    if vis_format == "auto":
        vis_format = _guess_format(root)
    if vis_format == "store":
        return Catalogue(root, None, kind="store")
    if vis_format == "video":
        return Catalogue(root, None, kind="file")
    low = Path(videos_low) if videos_low else root.with_name(root.name + "_lr")
    if videos_low and not low.is_dir():
        raise StorageError(f"{low}: no such folder of low-resolution frames")
    return Catalogue(root, None, kind="images", low_root=low if low.is_dir() else None)


def _guess_format(root: Path) -> VisFormat:
    if (root / _STORE_MARK).exists() or any(root.glob("*.mdb")) or any(root.glob("*/data.mdb")):
        return "store"
    for _, _, names in os.walk(root):
        if any(map(_is_video, names)):
            return "video"
        if any(Path(name).suffix.lower() in _IMAGE_SUFFIXES for name in names):
            return "frame"
    return "video"


def _read_manifest(manifest: Path) -> dict[str, Source]:
    entries: dict[str, Source] = {}
    root = manifest.parent
    real_root = os.path.realpath(root)
    for line, row in _manifest_rows(manifest):
        video_id, path = row.get("id"), row.get("path")
        if not video_id or not path:
            detail = f"needs id and path, has {sorted(map(str, row))}"
            raise AnnotationError(detail, str(manifest), line)
        _refuse_hostile_id(video_id)  # files are named by it
        if "\0" in path:
            raise AnnotationError(f"{path!r} holds a zero byte", str(manifest), line)
        if "://" in path:
            raise RefusedVideo(video_id, f"{path!r} is an address, not a path", "hostile")
        # An absolute path in a manifest is its owner's choice; a relative one stays beside it.
        target = root / path
        inside = Path(os.path.realpath(target)).is_relative_to(real_root)
        if not inside and not os.path.isabs(path):
            raise RefusedVideo(video_id, f"{path!r} leads out of {root}", "hostile")
        if video_id in entries:
            raise AnnotationError(f"id {video_id!r} a second time", str(manifest), line)
        kind: SourceKind = "images" if _is_folder(target) else "file"
        low = _low_of(target) if kind == "images" else None
        entries[video_id] = Source(kind, video_id, target, low, outside=not inside)
    return entries


def _manifest_rows(manifest: Path) -> Iterator[tuple[int, dict[str, str]]]:
    line = 0
    try:
        with manifest.open(encoding="utf-8", newline="") as file:
            if manifest.suffix.lower() == ".csv":
                for row, fields in enumerate(csv.DictReader(file)):
                    line = row + 2
                    yield line, fields
                return
            for line, text in enumerate(file, 1):
                if text.strip():
                    yield line, _manifest_object(json.loads(text))
    except (ValueError, csv.Error) as error:
        kind = "CSV" if manifest.suffix.lower() == ".csv" else "JSON"
        raise AnnotationError(f"no {kind} object: {error}", str(manifest), line) from error


def _manifest_object(row: object) -> dict[str, str]:
    if not isinstance(row, dict):
        raise ValueError(f"it is a {type(row).__name__}")
    return {k: str(v) for k, v in row.items() if k in ("id", "path") and v is not None}
