"""Open-ended question answering: questions with their answers as classes of a vocabulary."""

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
    """One item a question, or `group` questions of one video.

    An answer outside the vocabulary has label -100: in no loss, and wrong by definition at test,
    where `record(index).answer` tells it from a hidden one.

    Args:
        answers: label of each answer text.
        group: questions of one video that make one item; they share its frames.
    """

    def __init__(
        self,
        name: str,
        records: RecordStore | Sequence[Record],
        reader: VideoReader,
        tokenizer: TextTokenizer,
        options: SampleOptions,
        answers: Mapping[str, int],
        group: int = 1,
    ) -> None:
        super().__init__(name, records, reader, tokenizer, options)
        self.answers = answers
        self._groups = _groups(records, group) if group > 1 else None

    def __len__(self) -> int:
        return len(self.records) if self._groups is None else len(self._groups)

    def evaluation_order(self) -> npt.NDArray[np.int64]:
        """Questions of one video beside each other: it is decoded once."""
        return grouped_by_video(self.records)

    def visit(self, index: int, generator: np.random.Generator | None) -> Visit:  # noqa: ARG002
        if self._groups is None:
            record = self.records[index]
            asked = [self._question(record)]
        else:
            records = [self.records[int(row)] for row in self._groups[index]]
            record, asked = records[0], [self._question(record) for record in records]
        texts = tuple(question for question, _ in asked)
        labels = tuple(label for _, label in asked)
        return Visit(record.id, record, texts, labels, record.start, record.end)

    def record(self, index: int) -> Record:
        """The (first) record behind an item."""
        return self.records[index if self._groups is None else int(self._groups[index][0])]

    def _question(self, record: Record) -> tuple[str, int]:
        question, answer = record.question, record.answer
        if question is None:
            raise AnnotationError(f"record {record.id!r} has no question")
        if isinstance(answer, int) and record.options:
            answer = record.options[answer]
        return question, self.answers.get(str(answer), -100) if answer is not None else -100


def _groups(records: RecordStore | Sequence[Record], size: int) -> list[npt.NDArray[np.int64]]:
    """Rows of each item: at most `size` questions about one stretch of one video; a video's
    questions are dealt out in turn, so that its groups are alike in kinds and in size."""
    stretches: dict[tuple[str, float | None, float | None], list[int]] = {}
    for row, record in enumerate(records):
        stretches.setdefault((record.video, record.start, record.end), []).append(row)
    out: list[npt.NDArray[np.int64]] = []
    for rows in stretches.values():
        parts = -(-len(rows) // size)
        out.extend(np.asarray(rows[part::parts], dtype=np.int64) for part in range(parts))
    return out
