"""Stretches of video without texts: what evaluation, export and search decode, each once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from rushes.configs.schema import DataConfig
from rushes.datasets.batch import Batch
from rushes.datasets.loader import EvalLoader
from rushes.datasets.record import Record
from rushes.datasets.retrieval import VideoDataset
from rushes.datasets.samples import SampleOptions
from rushes.datasets.text import TextTokenizer
from rushes.distributed import World
from rushes.video.request import VideoReader

Videos = Callable[[Sequence[Record]], Iterable[Batch]]
"""Decodes the stretches that some records name: batches whose `indices` are positions in the given
sequence. On several ranks each gets its share; no stretch is left out."""


def stretch_videos(
    reader: VideoReader,
    tokenizer: TextTokenizer,
    options: SampleOptions,
    world: World,
    batch_size: int,
    data: DataConfig | None = None,
) -> Videos:
    """A `Videos` that decodes by `reader` with the clips and the geometry of `options`."""
    plain = replace(options, training=False, mask_probability=0.0)

    def videos(records: Sequence[Record]) -> Iterable[Batch]:
        dataset = VideoDataset("stretches", records, reader, tokenizer, plain)
        return EvalLoader(dataset, batch_size, world, data)

    return videos


def stretches_like(loader: EvalLoader, world: World) -> Videos:
    """A `Videos` that decodes as an evaluation loader does."""
    of = loader.dataset
    return stretch_videos(
        of.reader, of.tokenizer, of.options, world, loader.batch_size, loader.data
    )
