"""Retrieval: a video with its captions; one drawn each visit in training, all of them at test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rushes.datasets.record import Record
from rushes.datasets.record_store import RecordStore, text_segments
from rushes.datasets.samples import SampleOptions, VideoTextDataset, Visit
from rushes.datasets.text import TextTokenizer
from rushes.errors import AnnotationError
from rushes.video.request import VideoReader


class VideoDataset(VideoTextDataset):
    """One item a record, pixels only: what encoders of a gallery need."""

    def __len__(self) -> int:
        return len(self.records)

    def visit(self, index: int, generator: np.random.Generator | None) -> Visit:  # noqa: ARG002
        record = self.records[index]
        return Visit(record.id, record, (), start=record.start, end=record.end)


class RetrievalDataset(VideoTextDataset):
    """One item a record. At test each caption is a query that fits this video (and every other
    record with the same video id or the same text; keys say which).

    Args:
        texts: a `DatasetConfig.texts` mode; "paragraph" joins a record's captions.
    """

    def __init__(
        self,
        name: str,
        records: RecordStore | Sequence[Record],
        reader: VideoReader,
        tokenizer: TextTokenizer,
        options: SampleOptions,
        texts: str = "caption",
    ) -> None:
        super().__init__(name, records, reader, tokenizer, options)
        self.texts = texts

    def __len__(self) -> int:
        return len(self.records)

    def visit(self, index: int, generator: np.random.Generator | None) -> Visit:
        record = self.records[index]
        segments = text_segments(record, self.texts)
        if not segments:
            raise AnnotationError(f"record {record.id!r} has no text of kind {self.texts!r}")
        if generator is None:
            texts = tuple(s.text for s in segments)
            return Visit(record.id, record, texts, start=record.start, end=record.end)
        segment = segments[int(generator.integers(len(segments)))]
        own = segment.start is not None and segment.kind != "caption"
        return Visit(
            id=record.id,
            record=record,
            texts=(segment.text,),
            start=segment.start if own else record.start,
            end=segment.end if own else record.end,
        )
