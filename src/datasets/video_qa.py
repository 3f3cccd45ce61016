"""Open-ended question answering: one question a sample, its answer as a class of a vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from rushes.datasets.record import Record
from rushes.datasets.record_store import RecordStore
from rushes.datasets.samples import SampleOptions, VideoTextDataset, Visit, grouped_by_video
from rushes.datasets.text import TextTokenizer
from rushes.errors import AnnotationError
from rushes.video.request import VideoReader


class OpenEndedDataset(VideoTextDataset):
    """One item a question. An answer outside the vocabulary has label -100: in no loss, and wrong
    by definition at test, where `record(index).answer` tells it from a hidden one.

    Args:
        answers: label of each answer text.
    """

    def __init__(
        self,
        name: str,
        records: RecordStore | Sequence[Record],
        reader: VideoReader,
        tokenizer: TextTokenizer,
        options: SampleOptions,
        answers: Mapping[str, int],
    ) -> None:
        super().__init__(name, records, reader, tokenizer, options)
        self.answers = answers

    def __len__(self) -> int:
        return len(self.records)

    def evaluation_order(self) -> npt.NDArray[np.int64]:
        """Questions of one video beside each other: it is decoded once."""
        return grouped_by_video(self.records)

    def visit(self, index: int, generator: np.random.Generator | None) -> Visit:  # noqa: ARG002
        record = self.records[index]
        question = record.question
        if question is None:
            raise AnnotationError(f"record {record.id!r} has no question")
        answer = record.answer
        if isinstance(answer, int) and record.options:
            answer = record.options[answer]
        label = self.answers.get(str(answer), -100) if answer is not None else -100
        return Visit(record.id, record, (question,), label, record.start, record.end)
