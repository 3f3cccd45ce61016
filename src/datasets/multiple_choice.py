"""Multiple choice: the options of a question (or captions to choose from) for one video."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rushes.datasets.record import Record
from rushes.datasets.record_store import RecordStore
from rushes.datasets.samples import SampleOptions, VideoTextDataset, Visit, grouped_by_video
from rushes.datasets.text import TextTokenizer
from rushes.errors import AnnotationError
from rushes.video.request import VideoReader


class MultipleChoiceDataset(VideoTextDataset):
    """One item a question; its texts are "question option", or the options alone.

    Without a question (MSRVTT-MC) the options are captions that a retrieval model chooses from.

    Args:
        num_options: K, how many options each question must have.
    """

    def __init__(
        self,
        name: str,
        records: RecordStore | Sequence[Record],
        reader: VideoReader,
        tokenizer: TextTokenizer,
        options: SampleOptions,
        num_options: int = 5,
    ) -> None:
        super().__init__(name, records, reader, tokenizer, options)
        self.num_options = num_options

    def __len__(self) -> int:
        return len(self.records)

    def evaluation_order(self) -> npt.NDArray[np.int64]:
        """Questions of one video beside each other: it is decoded once."""
        return grouped_by_video(self.records)

    def visit(self, index: int, generator: np.random.Generator | None) -> Visit:  # noqa: ARG002
        record = self.records[index]
        if len(record.options) != self.num_options:
            raise AnnotationError(
                f"record {record.id!r} has {len(record.options)} options, expected "
                f"{self.num_options}"
            )
        question = record.question
        texts = tuple(o if question is None else f"{question} {o}" for o in record.options)
        label = record.answer if record.answer is not None else -100
        if not isinstance(label, int):
            raise AnnotationError(
                f"record {record.id!r}: answer={label!r}: expected the index of an option"
            )
        return Visit(record.id, record, texts, (label,), record.start, record.end)
