"""`rushes plan VIDEOS --preset P`: what a training sample costs to decode, and how to prepare.

The cost of a sample has two terms: decoded pixels, counted from the packet index without decoding,
and groups that are begun (seek, set-up, first key frame). A short measurement on the videos
themselves calibrates both; sizes and times of preparations come from coding an excerpt.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from rushes.configs.load import build_config, read_preset
from rushes.configs.schema import ClipConfig
from rushes.errors import StorageError, VideoError
from rushes.video.catalogue import Catalogue, Source, open_catalogue
from rushes.video.decoder import plan_runs
from rushes.video.index import VideoIndex
from rushes.video.limits import Limits
from rushes.video.media import open_media, packets_of
from rushes.video.readers.pyav_reader import PyAVReader
from rushes.video.request import Frames, Request, Size
from rushes.video.store import open_store
from rushes.video.store_build import build_store
from rushes.video.store_format import StoreSettings

_EXCERPT = 60
"""Frames that are coded to tell size and time of a preparation."""
_GOPS = (12, 30)


@dataclass(frozen=True)
class Model:
    """Milliseconds per decoded megapixel and per group begun; the measured error of the two."""

    per_megapixel: float
    per_group: float
    error: float

    def predict(self, megapixels: float, groups: float) -> float:
        """Milliseconds of a sample."""
        return self.per_megapixel * megapixels + self.per_group * groups


@dataclass(frozen=True)
class Candidate:
    """One way to keep the footage, and what it would mean.

    Attributes:
        name: of the setting.
        ms: predicted milliseconds of one core per sample.
        bytes_ratio: size over that of the raw files.
        prepare_seconds: of one core, for all videos.
        command: that prepares so; empty for the raw files.
    """

    name: str
    ms: float
    bytes_ratio: float
    prepare_seconds: float
    command: str


def draw(index: VideoIndex, clips: ClipConfig, generator: np.random.Generator) -> tuple[Any, Any]:
    """Frames of one sample: full-size `N` and small `N (T - 1)`, numbers in display order."""
    total, neighbours = index.info.num_frames, (clips.num_frames - 1) // 2
    stride = clips.stride
    if clips.sampling == "seconds":
        stride = max(1, round(clips.stride_seconds * (index.info.fps or 25)))
    if neighbours:
        stride = min(stride, max(0, (total - clips.num_clips) // (2 * neighbours)))
    low, high = neighbours * stride, max(neighbours * stride + 1, total - neighbours * stride)
    centres = np.sort(generator.integers(low, high, clips.num_clips))
    offsets = np.array([i * stride for i in range(-neighbours, neighbours + 1) if i], np.int64)
    small = np.clip(centres[:, None] + offsets, 0, total - 1)
    return np.minimum(centres, total - 1), small.reshape(-1)


def work(index: VideoIndex, high: Any, low: Any) -> tuple[float, int]:
    """Decoded megapixels and groups begun for the frames of a sample, from the packets alone."""
    runs = plan_runs(index, sorted({*high.tolist(), *low.tolist()}))
    pixels = index.info.coded_width * index.info.coded_height
    return sum(len(run.packets) for run in runs) * pixels / 1e6, len(runs)


def request_of(index: VideoIndex, high: Any, low: Any) -> Request:
    """The same sample as a request."""
    times, info = index.info.frame_times, index.info
    small = Size(max(1, info.height // 4), max(1, info.width // 4))
    outputs = [Frames(tuple(times[high].tolist()), name="high")]
    if len(low):
        outputs.append(Frames(tuple(times[low].tolist()), size=small, name="low"))
    return Request(info.video_id, tuple(outputs))


def calibrate(
    reader: PyAVReader,
    indexes: Sequence[VideoIndex],
    clips: ClipConfig,
    seconds: float,
    generator: np.random.Generator,
) -> Model:
    """Measure samples for about `seconds` and fit the two terms, neither below zero.

    Each sample opens its file anew; the reader should have an index cache, as in training.
    """
    rows: list[tuple[float, int]] = []
    took: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(rows) < 2 * len(indexes):
        for index in indexes:
            high, low = draw(index, clips, generator)
            reader.release()
            began = time.perf_counter()
            reader.read(request_of(index, high, low))
            took.append(1000 * (time.perf_counter() - began))
            rows.append(work(index, high, low))
    matrix, measured = np.array(rows, np.float64), np.array(took)
    # Relative errors count: a long file must not drown the short ones.
    weighted = matrix / measured[:, None]
    fitted = np.linalg.lstsq(weighted, np.ones(len(measured)), rcond=None)[0]
    for column in np.flatnonzero(fitted < 0).tolist():
        other = weighted[:, 1 - column]
        fitted[1 - column] = other.sum() / (other @ other)
        fitted[column] = 0.0
    error = float(np.median(np.abs(matrix @ fitted - measured) / measured))
    return Model(float(fitted[0]), float(fitted[1]), error)


def _excerpt(source: Source, index: VideoIndex, height: int) -> list[Any]:
    frames: list[Any] = []
    with open_media(source, index.container, Limits()) as media:
        packets = packets_of(media, media.streams[index.stream])
        for frame in (frame for packet in packets for frame in packet.decode()):
            width = max(2, round(frame.width * height / frame.height / 2) * 2)
            frames.append(frame.reformat(width=width, height=height, format="yuv420p", threads=1))
            if len(frames) == _EXCERPT:
                break
    return frames


def _coded(frames: Sequence[Any], gop: int, crf: int) -> tuple[float, float]:
    """Bytes and seconds of one frame, coded with x264."""
    encoder: Any = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = frames[0].width, frames[0].height, "yuv420p"
    encoder.framerate, encoder.gop_size, encoder.thread_count = 25, gop, 1
    encoder.options = {"crf": str(crf), "preset": "medium"}
    began, size = time.perf_counter(), 0
    for number, frame in enumerate(frames):
        frame.pts = number
        size += sum(packet.size for packet in encoder.encode(frame))
    size += sum(packet.size for packet in encoder.encode(None))
    return size / len(frames), (time.perf_counter() - began) / len(frames)


def compressed(
    source: Source,
    indexes: Sequence[VideoIndex],
    raw: float,
    model: Model,
    clips: ClipConfig,
    everything: int,
) -> list[Candidate]:
    """Candidates of `rushes prepare`: short groups, at the size of the source or at most 480.

    Args:
        source: one video, of which an excerpt is coded.
        indexes: of the videos that were looked at; `raw` bytes in all.
        everything: frames of the whole corpus, which tell how long preparing takes.
    """
    found = []
    total = sum(index.info.num_frames for index in indexes)
    heights = sorted({max(2, min(480, int(np.median([i.info.height for i in indexes])) // 2 * 2))})
    index = next(i for i in indexes if i.info.video_id == source.video_id)
    for height in heights:
        frames = _excerpt(source, index, height)
        for gop in _GOPS:
            size, seconds = _coded(frames, gop, 23)
            megapixels = frames[0].width * frames[0].height / 1e6
            groups = clips.num_clips * clips.num_frames * min(1.0, clips.stride / gop)
            decoded = clips.num_clips * clips.num_frames * min(clips.stride, (gop + 1) / 2)
            found.append(
                Candidate(
                    f"compressed: {height} lines, a key frame every {gop}",
                    model.predict(decoded * megapixels, groups),
                    size * total / raw,
                    seconds * everything,
                    f"rushes prepare IN OUT --height {height} --gop {gop} --crf 23",
                )
            )
    return found


def stored(
    source: Source, index: VideoIndex, total: int, raw: float, clips: ClipConfig, everything: int
) -> Candidate:
    """What the default store costs, measured on one video of the `total` frames and `raw` bytes
    that were looked at, for `everything`, the frames of the whole corpus.
    """
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "store"
        catalogue = Catalogue.from_items({source.video_id: source.path})
        began = time.perf_counter()
        totals = build_store(catalogue, root, StoreSettings(audio=False), jobs=0)
        if totals.failed:
            raise StorageError(f"{source.video_id}: cannot be stored; see its probe")
        seconds = time.perf_counter() - began
        store, took = open_store(root), []
        grid = store.describe(source.video_id).full_size_times
        assert grid is not None
        places = np.searchsorted(index.info.frame_times, grid)
        for _ in range(8):
            high, low = draw(index, clips, generator)
            high = places[np.abs(places[None, :] - high[:, None]).argmin(axis=1)]
            began = time.perf_counter()
            store.read(request_of(index, high, low))
            took.append(1000 * (time.perf_counter() - began))
        store.close()
    share, work = total / index.info.num_frames, everything / index.info.num_frames
    return Candidate(
        "store: a full-size frame every 12, the others at a quarter",
        float(np.median(took)), totals.bytes_store * share / raw, seconds * work,
        "rushes store IN OUT",
    )  # fmt: skip


def plan(
    catalogue: Catalogue, clips: ClipConfig, *, videos: int = 8, seconds: float = 4.0
) -> dict[str, Any]:
    """Inspect up to `videos` videos, calibrate, and compare the ways to keep them.

    Raises:
        StorageError: none of them can be read.
    """
    with tempfile.TemporaryDirectory() as cache:  # training has its indexes cached, too
        reader = PyAVReader(catalogue, index_cache=Path(cache))
        try:
            return _plan(catalogue, reader, clips, videos, seconds)
        finally:
            reader.close()


def _plan(
    catalogue: Catalogue, reader: PyAVReader, clips: ClipConfig, videos: int, seconds: float
) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    ids = list(catalogue.ids())
    chosen = [ids[i] for i in sorted(generator.permutation(len(ids))[: 4 * videos].tolist())]
    indexes: list[VideoIndex] = []
    looked = 0
    for video_id in chosen:
        looked += 1
        try:
            index = reader.index(video_id)
        except VideoError:
            continue
        if not index.whole and index.damage is None and index.info.num_frames > 1:
            indexes.append(index)
        if len(indexes) == videos:
            break
    if not indexes:
        raise StorageError(f"none of {len(chosen)} videos can be read; see `rushes doctor`")
    model = calibrate(reader, indexes, clips, seconds, generator)
    per_sample = [work(i, *draw(i, clips, generator)) for i in indexes for _ in range(32)]
    raw = float(sum(int(index.sizes.sum()) for index in indexes))
    total = sum(index.info.num_frames for index in indexes)
    # All videos are to be prepared, not only those that were looked at.
    frames = round(total * len(ids) / looked)
    middle = sorted(indexes, key=lambda i: i.info.num_frames)[len(indexes) // 2]
    source = catalogue.locate(middle.info.video_id)
    ms = float(np.mean([model.predict(*row) for row in per_sample]))
    candidates = [
        Candidate("raw files as they are", ms, 1.0, 0.0, ""),
        *compressed(source, indexes, raw, model, clips, frames),
        stored(source, middle, total, raw, clips, frames),
    ]
    return {
        "model": asdict(model),
        "videos": [_inspected(index) for index in indexes],
        "candidates": [asdict(candidate) for candidate in candidates],
        "recommended": min(candidates, key=lambda c: c.ms * (1 + max(0.0, c.bytes_ratio - 1))).name,
    }


def _inspected(index: VideoIndex) -> dict[str, Any]:
    groups = max(1, len(index.key_packets))
    return {
        "id": index.info.video_id,
        "codec": index.info.codec,
        "frames": index.info.num_frames,
        "frames_per_group": round(index.info.num_frames / groups, 1),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; exit code 0."""
    parser = argparse.ArgumentParser(prog="rushes plan", description=__doc__)
    parser.add_argument("videos", help="folder or manifest of video files")
    parser.add_argument("--preset", required=True, help="preset whose clips are planned for")
    parser.add_argument("--samples", type=float, default=20.0, metavar="PER_SECOND",
                        help="that one GPU takes (default %(default)s)")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=4.0, help="of measuring")
    parser.add_argument("--json", type=Path, help="write the plan there too")
    args = parser.parse_args(argv)
    found = plan(
        open_catalogue(args.videos),
        build_config(read_preset(args.preset)).clips,
        seconds=args.seconds,
    )
    for row in found["candidates"]:
        row["cores_per_gpu"] = round(row["ms"] * args.samples / 1000, 2)
        print(  # noqa: T201
            f"{row['ms']:8.1f} ms/sample {row['cores_per_gpu']:7.2f} cores/GPU "
            f"{row['bytes_ratio']:6.2f}x bytes {row['prepare_seconds']:8.1f} s  {row['name']}"
        )
    print(f"recommended: {found['recommended']}")  # noqa: T201
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0
