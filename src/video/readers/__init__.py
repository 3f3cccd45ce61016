"""One file per decoding backend, all behind `read(Request) -> Reply`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import cast

from rushes.errors import ConfigError
from rushes.video.catalogue import Catalogue
from rushes.video.limits import Limits
from rushes.video.request import VideoReader

BACKENDS = {
    "pyav": ("rushes.video.readers.pyav_reader", "PyAVReader"),
    "images": ("rushes.video.readers.images_reader", "ImagesReader"),
    "decord": ("rushes.video.readers.decord_reader", "DecordReader"),
    "opencv": ("rushes.video.readers.opencv_reader", "OpenCVReader"),
    "torchcodec": ("rushes.video.readers.torchcodec_reader", "TorchCodecReader"),
}
"""Name -> module and class; modules are imported when they are asked for."""


def open_reader(
    catalogue: Catalogue,
    backend: str = "pyav",
    *,
    limits: Limits | None = None,
    index_cache: Path | None = None,
    max_open: int = 8,
    threads: int = 1,
) -> VideoReader:
    """A reader of the videos of a catalogue, in this process.

    A catalogue of image folders or of a store chooses its own reader, whatever `backend` says.

    Args:
        catalogue: where the videos are.
        backend: one of `BACKENDS`.
        limits: what is refused.
        index_cache: folder that keeps packet indexes between runs.
        max_open: videos held open at once.
        threads: decoding threads.

    Raises:
        ConfigError: no such backend.
        BackendMissing: the backend's library is not installed.
    """
    if catalogue.kind == "store":
        return _store_reader(catalogue)
    if catalogue.kind == "images":
        backend = "images"
    if backend not in BACKENDS:
        raise ConfigError(f"decoder backend {backend!r}: known are {', '.join(BACKENDS)}")
    module, name = BACKENDS[backend]
    reader = getattr(import_module(module), name)
    return cast(
        VideoReader,
        reader(
            catalogue,
            limits=limits or Limits(),
            index_cache=index_cache,
            max_open=max_open,
            threads=threads,
        ),
    )


def _store_reader(catalogue: Catalogue) -> VideoReader:
    store = import_module("rushes.video.store")
    return cast(VideoReader, store.open_store(catalogue.root))
