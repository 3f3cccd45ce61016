"""Pretraining pairs: every caption with the whole video, every transcript with its own span."""

from __future__ import annotations

import numpy as np

from rushes.datasets.record import Record
from rushes.datasets.record_store import RecordStore, text_segments
from rushes.datasets.samples import SampleOptions, VideoTextDataset, Visit
from rushes.datasets.text import TextTokenizer
from rushes.errors import AnnotationError
from rushes.video.request import VideoReader


class PretrainDataset(VideoTextDataset):
    """One item a (text, span) pair; an epoch shows each pair once.

    Args:
        texts: which texts make pairs, a `DatasetConfig.texts` mode.
    """

    def __init__(
        self,
        name: str,
        records: RecordStore,
        reader: VideoReader,
        tokenizer: TextTokenizer,
        options: SampleOptions,
        texts: str = "caption",
    ) -> None:
        super().__init__(name, records, reader, tokenizer, options)
        self.store, self.texts = records, texts
        self._length = records.count_texts(texts)
        if not self._length:
            raise AnnotationError(
                f"{name}: none of {len(records)} records has a text of kind {texts!r}",
                ", ".join(map(str, records.files)),
            )

    def __len__(self) -> int:
        return self._length

    def record(self, index: int) -> Record:
        return self.store[self.store.find_text(self.texts, index)[0]]

    def sample_id(self, index: int) -> str:
        row, place = self.store.find_text(self.texts, index)
        return _item_id(self.store[row], place)

    def visit(self, index: int, generator: np.random.Generator | None) -> Visit:  # noqa: ARG002
        row, place = self.store.find_text(self.texts, index)
        record = self.store[row]
        segment = text_segments(record, self.texts)[place]
        own = segment.start is not None
        return Visit(
            id=_item_id(record, place),
            record=record,
            texts=(segment.text,),
            start=segment.start if own else record.start,
            end=segment.end if own else record.end,
        )


def _item_id(record: Record, place: int) -> str:
    return record.id if place == 0 else f"{record.id}#{place}"
