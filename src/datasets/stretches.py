"""Stretches of video without texts: what evaluation, export and search decode, each once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from rushes.configs.schema import DataConfig
from rushes.datasets.batch import Batch
from rushes.datasets.loader import EvalLoader
from rushes.datasets.record import Record
from rushes.datasets.samples import SampleOptions, VideoTextDataset, Visit
from rushes.datasets.text import TextTokenizer
from rushes.distributed import World
from rushes.video.request import VideoReader

Videos = Callable[[Sequence[Record]], Iterable[Batch]]
"""Decodes the stretches that some records name: batches whose `indices` are positions in the given
sequence. On several ranks each gets its share; no stretch is left out."""


class StretchDataset(VideoTextDataset):
    """One item a record: its video, from `start` to `end`, and no text."""

    def __len__(self) -> int:
        return len(self.records)

    def visit(self, index: int, generator: np.random.Generator | None) -> Visit:  # noqa: ARG002
        record = self.records[index]
        return Visit(record.id or record.video, record, (), start=record.start, end=record.end)


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
        dataset = StretchDataset("stretches", records, reader, tokenizer, plain)
        return EvalLoader(dataset, batch_size, world, data)

    return videos


def stretches_like(loader: EvalLoader, world: World) -> Videos:
    """A `Videos` that decodes as an evaluation loader does."""
    of = loader.dataset
    return stretch_videos(
        of.reader, of.tokenizer, of.options, world, loader.batch_size, loader.data
    )
