"""The frame service against what it replaces; all sides take turns in one process.

    python benchmarks/service.py --json OUT [--rounds 5] [--clips 96]

Keys: `ratio.pool_vs_dataloader` (clips a second from prepared footage, two workers on both sides,
clips of 12.6 MB), `ratio.pool_vs_dataloader_transport` (the same with arrays that are decoded
already: only moving counts), `ratio.flight_vs_bare` (the server's cached clips against a bare
`DoGet` of the same bytes), `ratio.service_vs_inprocess` (the pool against decoding threads of this
process, as many as the pool has workers), `ratio.flight_vs_inprocess` (the same over loopback).
Each ratio is the median over rounds of two measurements next to each other.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from _figures import add_json, publish

from rushes.video.catalogue import open_catalogue
from rushes.video.readers import open_reader
from rushes.video.request import Frames, Reply, Request, Size, VideoInfo
from rushes.video.service.pool import PoolReader
from rushes.video.service.process import WorkerSpec, with_catalogue

NUM_WORKERS = 2
FRAMES, SIZE, RATE = 32, Size(256, 512), 25
NUM_VIDEOS, LENGTH = 4, 128  # videos of the prepared footage and frames in each
AHEAD = 3 * NUM_WORKERS
"""Clips asked for in advance, by both sides (a DataLoader has two a worker by default)."""
SLOT_BYTES = 32 << 20


def request_number(i: int) -> Request:
    """The i-th clip: neighbouring frames of a prepared video."""
    first = (7 * i) % (LENGTH - FRAMES)
    times = tuple((first + j) / RATE for j in range(FRAMES))
    outputs = (Frames(times, SIZE),)
    return Request(f"clip{i % NUM_VIDEOS}", outputs, deadline=60.0, fixed=True)


def render_footage(folder: Path) -> None:
    """Videos as `rushes prepare` leaves them: already at the size that training takes."""
    import av

    ramp = np.add.outer(np.arange(SIZE.height), np.arange(SIZE.width)).astype(np.float32)
    for video in range(NUM_VIDEOS):
        with av.open(str(folder / f"clip{video}.mp4"), "w") as media:
            stream: Any = media.add_stream("libx264", rate=RATE)
            stream.width, stream.height, stream.pix_fmt = SIZE.width, SIZE.height, "yuv420p"
            stream.options = {"preset": "veryfast", "g": "12", "crf": "28", "tune": "fastdecode"}
            for number in range(LENGTH):
                wave = 127 + 100 * np.sin((ramp + 9 * number + 50 * video) / (20 + video))
                image = np.repeat(wave.astype(np.uint8)[:, :, None], 3, 2)
                media.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
            media.mux(stream.encode(None))


class MemoryReader:
    """Holds one decoded clip and gives it to whoever asks."""

    def __init__(self) -> None:
        self.frames = decoded_clip()

    def describe(self, video_id: str) -> VideoInfo:
        raise NotImplementedError(video_id)

    def read(self, request: Request) -> Reply:
        return Reply(request.video_id, {"frames": self.frames})

    def close(self) -> None:
        pass


def open_memory() -> MemoryReader:
    """The factory that decode workers are given."""
    return MemoryReader()


def decoded_clip() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """12.6 MB of random pixels, uint8 `T H W C`."""
    shape = (FRAMES, SIZE.height, SIZE.width, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


class ClipDataset:
    """What a DataLoader worker runs: the same reader, or an array in memory.

    Args:
        folder: of the footage; None gives clips from memory.
        clips: length.
    """

    def __init__(self, folder: str | None, clips: int) -> None:
        self.folder, self.clips = folder, clips
        self.reader: Any = None

    def __len__(self) -> int:
        return self.clips

    def __getitem__(self, i: int) -> Any:
        import torch

        if self.reader is None:
            torch.set_num_threads(1)
            folder = self.folder
            self.reader = open_reader(open_catalogue(folder)) if folder else open_memory()
        return torch.from_numpy(self.reader.read(request_number(i)).arrays["frames"])


def touch(array: Any) -> None:
    """What the consumer does: look at one pixel of every frame."""
    int(array[:, 0, 0, 0].sum())


def time_dataloader(loader: Any, clips: int) -> float:
    """Clips a second of one epoch; its workers persist between epochs."""
    started = time.perf_counter()
    for tensor in loader:
        touch(tensor)
    return clips / (time.perf_counter() - started)


def time_reader(submit: Callable[[Request], Any], clips: int, offset: int = 0) -> float:
    """Clips a second of a reader with `AHEAD` requests under way."""
    started = time.perf_counter()
    underway: deque[Any] = deque()
    for i in range(clips):
        underway.append(submit(request_number(i + offset)))
        if len(underway) >= AHEAD:
            touch(underway.popleft().result().arrays["frames"])
    while underway:
        touch(underway.popleft().result().arrays["frames"])
    return clips / (time.perf_counter() - started)


def time_inprocess(folder: Path, clips: int) -> float:
    """Clips a second of decoding in as many threads of this process, each with its reader."""
    local = threading.local()

    def read(i: int) -> None:
        if not hasattr(local, "reader"):
            local.reader = open_reader(open_catalogue(folder))
        touch(local.reader.read(request_number(i)).arrays["frames"])

    with ThreadPoolExecutor(NUM_WORKERS) as threads:
        list(threads.map(read, range(2 * NUM_WORKERS)))  # opened before the clock runs
        started = time.perf_counter()
        list(threads.map(read, range(clips)))
        return clips / (time.perf_counter() - started)


def serve_bare(pipe: Connection) -> None:
    """A Flight server that has one clip in memory and nothing else; runs in its own process."""
    import pyarrow as pa
    import pyarrow.flight as flight

    payload = decoded_clip().reshape(-1)
    column = pa.UInt8Array.from_buffers(pa.uint8(), payload.size, [None, pa.py_buffer(payload)])
    batch = pa.record_batch([column], names=["payload"])

    class Bare(flight.FlightServerBase):  # type: ignore[misc]
        def do_get(self, _context: Any, _ticket: Any) -> Any:
            reader = pa.RecordBatchReader.from_batches(batch.schema, [batch])
            return flight.RecordBatchStream(reader)

    server = Bare("grpc://127.0.0.1:0")
    pipe.send(server.port)
    pipe.recv()
    server.shutdown()


def serve_frames(pipe: Connection, spec: WorkerSpec, cache_bytes: int) -> None:
    """Our server in its own process."""
    from rushes.video.service.server import FrameServer, ServerOptions

    options = ServerOptions(
        port=0, num_workers=NUM_WORKERS, cache_bytes=cache_bytes, slot_bytes=SLOT_BYTES
    )
    with FrameServer(spec, options) as server:
        pipe.send(server.port)
        pipe.recv()


@contextmanager
def elsewhere(target: Callable[..., None], *arguments: Any) -> Iterator[int]:
    """Run a server in another process; gives its port."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments))
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.send("stop")
        process.join(30)


def time_bare(client: Any, clips: int) -> float:
    """Clips a second of plain `DoGet` calls, one after the other."""
    import pyarrow.flight as flight

    started = time.perf_counter()
    for _ in range(clips):
        chunk = client.do_get(flight.Ticket(b"clip")).read_all()
        touch(chunk.column(0).chunk(0).to_numpy().reshape(FRAMES, *SIZE, 3))
    return clips / (time.perf_counter() - started)


def time_flight(reader: Any, clips: int) -> float:
    """Clips a second of one cached clip, one request after the other."""
    started = time.perf_counter()
    for _ in range(clips):
        touch(reader.read(request_number(0)).arrays["frames"])
    return clips / (time.perf_counter() - started)


def dataloader(dataset: ClipDataset) -> Any:
    """A DataLoader with persistent workers, without collating: clips move as they are."""
    from torch.utils.data import DataLoader

    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_size=None,
        num_workers=NUM_WORKERS,
        prefetch_factor=AHEAD // NUM_WORKERS,
        persistent_workers=True,
        multiprocessing_context="spawn",
    )


def measure(folder: Path, rounds: int, clips: int) -> dict[str, Any]:
    """Every side in every round, one after the other."""
    import pyarrow.flight as flight

    from rushes.video.service.client import ServiceReader

    spec, memory = with_catalogue(folder), WorkerSpec("service:open_memory")
    many = 4 * clips
    with ExitStack() as stack:
        enter = stack.enter_context
        pool = enter(PoolReader(spec, NUM_WORKERS, slot_bytes=SLOT_BYTES))
        moving = enter(PoolReader(memory, NUM_WORKERS, slot_bytes=SLOT_BYTES))
        bare = flight.connect(f"grpc://127.0.0.1:{enter(elsewhere(serve_bare))}")
        cached = enter(elsewhere(serve_frames, memory, 1 << 30))
        decoding = enter(elsewhere(serve_frames, spec, 0))
        kept = enter(ServiceReader([f"127.0.0.1:{cached}"]))
        remote = enter(ServiceReader([f"127.0.0.1:{decoding}"]))
        loader = dataloader(ClipDataset(str(folder), clips))
        mover = dataloader(ClipDataset(None, many))
        sides: dict[str, Callable[[], float]] = {
            "dataloader": lambda: time_dataloader(loader, clips),
            "pool": lambda: time_reader(pool.submit, clips),
            "inprocess": lambda: time_inprocess(folder, clips),
            "flight": lambda: time_reader(remote.submit, clips),
            "dataloader_transport": lambda: time_dataloader(mover, many),
            "pool_transport": lambda: time_reader(moving.submit, many),
            "flight_bare": lambda: time_bare(bare, many),
            "flight_cached": lambda: time_flight(kept, many),
        }
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(rounds + 1):
            for name, side in sides.items():
                rate = side()
                if number:  # the first round starts workers and fills caches
                    rates[name].append(rate)
                print(f"round {number} {name}: {rate:.1f} clips/s", flush=True)
        bare.close()
    return rates


RATIOS = {
    "ratio.pool_vs_dataloader": ("pool", "dataloader"),
    "ratio.pool_vs_dataloader_transport": ("pool_transport", "dataloader_transport"),
    "ratio.flight_vs_bare": ("flight_cached", "flight_bare"),
    "ratio.service_vs_inprocess": ("pool", "inprocess"),
    "ratio.flight_vs_inprocess": ("flight", "inprocess"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_json(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clips", type=int, default=96)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        render_footage(Path(folder))
        rates = measure(Path(folder), options.rounds, options.clips)
    figures: dict[str, Any] = {
        key: statistics.median(a / b for a, b in zip(rates[one], rates[other], strict=True))
        for key, (one, other) in RATIOS.items()
    }
    clip_bytes = FRAMES * SIZE.height * SIZE.width * 3
    for name, values in rates.items():
        figures[f"clips_per_second.{name}"] = statistics.median(values)
    figures |= {"clip_bytes": clip_bytes, "rounds": options.rounds, "cpus": os.cpu_count()}
    publish(figures, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
