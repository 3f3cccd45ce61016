"""What lies in a store: its description, the entry of one clip and the keys of its tracks.

A store is a folder: `store.json` describes it, `shard-00000.mdb` and so on are LMDB files. A clip
lives in one shard, chosen by a hash of its id: one entry (msgpack, never pickle) and, for each of
its tracks, chunks of bytes. Readers ignore tracks of kinds that they do not know, so that later
versions may add some.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, fields, replace
from enum import IntFlag
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from rushes.errors import ConfigError, StorageError
from rushes.video.request import AudioTrack, SubtitleTrack, VideoInfo

SCHEMA = 1
"""Raised whenever an older reader would read a newer store wrongly."""
DESCRIPTION = "store.json"
FORMAT = "rushes store"
CHUNK_BYTES = 64 << 20
"""Coded pictures are kept in values of about this size, cut before a key frame."""

FULL, SMALL, AUDIO, SUBTITLES = "full", "small", "audio", "subtitles"
FEATURES = "features:"
"""Names of tracks; a feature track is named `features:<name>`."""

REORDER = 1
"""Pictures that a decoder holds back: one, the last of a group, is coded before those between."""

_ANY_NAME = "surrogatepass"
"""Ids come from file names, which need not be text."""

IntArray = npt.NDArray[np.int64]


class PacketKind(IntFlag):
    """What the entry remembers of a coded picture."""

    KEY = 1
    REFERRED = 2
    """Other pictures refer to it."""


@dataclass(frozen=True)
class StoreSettings:
    """How footage is prepared; a store holds one setting throughout.

    Attributes:
        grid: full-size frames lie this many source frames apart.
        small: size of the small stream as a share of the display size.
        fps: at most this many frames a second are kept; None keeps every frame.
        psnr: least luma PSNR in dB of every full-size frame against the decoded source.
        small_psnr: the same for every group of small frames.
        crf: x264's rate factor to begin with; hard pictures get a lower one.
        all_full_size: keep every frame at full size.
        audio, subtitles: keep these tracks.
    """

    grid: int = 12
    small: float = 0.25
    fps: float | None = None
    psnr: float = 37.0
    small_psnr: float = 38.0
    crf: int = 27
    all_full_size: bool = False
    audio: bool = True
    subtitles: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.grid <= 250:
            raise ConfigError(f"grid={self.grid}: expected 1 to 250 frames")
        if not 0.0 < self.small <= 1.0:
            raise ConfigError(f"small={self.small}: expected a share above 0 and at most 1")
        if self.fps is not None and not self.fps > 0:
            raise ConfigError(f"fps={self.fps}: expected more than 0")
        if not 0 <= self.crf <= 51:
            raise ConfigError(f"crf={self.crf}: expected 0 to 51")
        for name in ("psnr", "small_psnr"):
            if not 20 <= getattr(self, name) <= 60:
                raise ConfigError(f"{name}={getattr(self, name)}: expected 20 to 60 dB")


@dataclass(frozen=True)
class Description:
    """The content of `store.json`."""

    shards: int
    settings: StoreSettings
    complete: bool
    """False while a builder is at work, or was killed."""


@dataclass(frozen=True)
class PictureTrack:
    """A track of coded pictures, packets in decoding order `P`.

    Attributes:
        height, width: of a picture, before it is turned for display.
        colorspace: FFmpeg's code.
        frames: frame that each packet shows, int64 `P`.
        sizes: bytes of each packet, int64 `P`.
        kinds: `PacketKind`, uint8 `P`.
        chunks: first packet of each chunk.
        psnr: least luma PSNR in dB of a frame.
    """

    height: int
    width: int
    colorspace: int
    frames: IntArray
    sizes: IntArray
    kinds: npt.NDArray[np.uint8]
    chunks: tuple[int, ...]
    psnr: float


@dataclass(frozen=True)
class Entry:
    """One clip of a store.

    Attributes:
        info: what `describe` tells.
        pictures: the known picture tracks (`full`, `small`).
        plain: attributes of all further tracks, by name.
        concealed: frames that the decoder had to fill in.
        source: what the clip was made from: path, bytes, time of change.
    """

    info: VideoInfo
    pictures: dict[str, PictureTrack]
    plain: dict[str, dict[str, Any]] = field(default_factory=dict)
    concealed: tuple[int, ...] = ()
    source: dict[str, Any] = field(default_factory=dict)


def digest(video_id: str) -> bytes:
    """What stands for an id in keys, which LMDB bounds; 16 bytes."""
    return hashlib.blake2b(video_id.encode("utf-8", _ANY_NAME), digest_size=16).digest()


def shard_of(key: bytes, shards: int) -> int:
    """The shard of a clip by the digest of its id."""
    return int.from_bytes(key[:4], "big") % shards


def entry_key(key: bytes) -> bytes:
    """Where the entry of a clip is."""
    return b"e" + key


def name_key(key: bytes) -> bytes:
    """Where the id of a clip is: ids lie close together, so that listing them is fast."""
    return b"n" + key


def chunk_key(key: bytes, track: str, chunk: int) -> bytes:
    """Where one chunk of a track is."""
    return b"t" + key + hashlib.blake2b(track.encode(), digest_size=8).digest() + b"%08x" % chunk


def shard_path(root: Path, shard: int) -> Path:
    """The LMDB file of a shard."""
    return root / f"shard-{shard:05d}.mdb"


def write_description(root: Path, description: Description) -> None:
    """Replace `store.json` in one step."""
    content = {
        "format": FORMAT,
        "schema": SCHEMA,
        "shards": description.shards,
        "complete": description.complete,
        "settings": asdict(description.settings),
    }
    aside = root / (DESCRIPTION + ".part")
    with aside.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(root / DESCRIPTION)


def read_description(root: Path) -> Description:
    """What `store.json` says.

    Raises:
        StorageError: there is none, it is torn, or of another schema.
    """
    path = root / DESCRIPTION
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise StorageError(f"{path}: format {content['format']!r}, expected {FORMAT!r}")
        if content["schema"] != SCHEMA:
            raise StorageError(
                f"{path}: schema {content['schema']}, this version reads {SCHEMA}; build it again"
            )
        known = {f.name for f in fields(StoreSettings)}
        settings = {k: v for k, v in content["settings"].items() if k in known}
        shards = int(content["shards"])
        if shards < 1:
            raise StorageError(f"{path}: {shards} shards")
        return Description(shards, StoreSettings(**settings), bool(content["complete"]))
    except FileNotFoundError as error:
        raise StorageError(f"{root}: no store, {DESCRIPTION} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"{path}: not the description of a store: {error!r}") from error


def pack_entry(entry: Entry) -> bytes:
    """An entry as bytes."""
    empty = replace(
        entry.info,
        frame_times=np.zeros(0),
        keyframes=np.zeros(0, np.int64),
        full_size_times=None,
    )
    info = asdict(empty)
    for name in ("frame_times", "keyframes", "full_size_times"):
        del info[name]
    values = {
        "schema": SCHEMA,
        "info": info,
        "frame_times": entry.info.frame_times.astype(np.float64).tobytes(),
        "tracks": {name: _plain_track(track) for name, track in entry.pictures.items()}
        | {name: dict(track) for name, track in entry.plain.items()},
        "concealed": list(entry.concealed),
        "source": entry.source,
    }
    packed: bytes = msgpack.packb(values, unicode_errors=_ANY_NAME)
    return packed


def _plain_track(track: PictureTrack) -> dict[str, Any]:
    return {
        "kind": "pictures",
        "height": track.height,
        "width": track.width,
        "colorspace": track.colorspace,
        "frames": track.frames.astype(np.uint32).tobytes(),
        "sizes": track.sizes.astype(np.uint32).tobytes(),
        "kinds": track.kinds.astype(np.uint8).tobytes(),
        "chunks": list(track.chunks),
        "psnr": track.psnr,
    }


def unpack_entry(data: bytes | memoryview, where: str) -> Entry:
    """The entry of a clip.

    Args:
        data: as `pack_entry` made them.
        where: the clip and the store, for the error.

    Raises:
        StorageError: torn, or of another schema.
    """
    try:
        values = msgpack.unpackb(data, unicode_errors=_ANY_NAME)
        if values["schema"] != SCHEMA:
            raise StorageError(
                f"{where}: an entry of schema {values['schema']}, this version reads {SCHEMA}"
            )
        tracks = values["tracks"]
        pictures = {
            name: _picture_track(tracks[name])
            for name in (FULL, SMALL)
            if name in tracks and tracks[name].get("kind") == "pictures"
        }
        plain = {name: track for name, track in tracks.items() if name not in pictures}
        times = np.frombuffer(values["frame_times"], np.float64)
        info = _info(values["info"], times, pictures, plain)
        return Entry(info, pictures, plain, tuple(values["concealed"]), values["source"])
    except (ValueError, KeyError, TypeError, AttributeError, msgpack.UnpackException) as error:
        raise StorageError(f"{where}: the entry is damaged: {error!r}") from error


def _picture_track(plain: dict[str, Any]) -> PictureTrack:
    return PictureTrack(
        height=plain["height"],
        width=plain["width"],
        colorspace=plain["colorspace"],
        frames=np.frombuffer(plain["frames"], np.uint32).astype(np.int64),
        sizes=np.frombuffer(plain["sizes"], np.uint32).astype(np.int64),
        kinds=np.frombuffer(plain["kinds"], np.uint8),
        chunks=tuple(plain["chunks"]),
        psnr=plain["psnr"],
    )


def _info(
    plain: dict[str, Any],
    times: npt.NDArray[np.float64],
    pictures: dict[str, PictureTrack],
    tracks: dict[str, dict[str, Any]],
) -> VideoInfo:
    audio = tuple(AudioTrack(**track) for track in plain.pop("audio"))
    subtitles = tuple(SubtitleTrack(**track) for track in plain.pop("subtitles"))
    plain.pop("features", None)
    known = {f.name for f in fields(VideoInfo)}
    full = np.sort(pictures[FULL].frames)
    small = pictures[SMALL]
    keys = np.sort(small.frames[small.kinds & PacketKind.KEY != 0])
    return VideoInfo(
        **{name: value for name, value in plain.items() if name in known},
        frame_times=times,
        keyframes=keys,
        audio=audio if AUDIO in tracks else (),
        subtitles=subtitles if SUBTITLES in tracks else (),
        features=tuple(sorted(n.removeprefix(FEATURES) for n in tracks if n.startswith(FEATURES))),
        full_size_times=None if len(full) == len(times) else times[full],
    )
