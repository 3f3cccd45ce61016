"""One sample as a data set makes it, and samples to a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rushes.datasets.batch import Batch
from rushes.errors import VideoError

NO_TEXT_KEY = 0
"""`text_key` of a row that only fills a ragged batch up; such rows are no captions of anything."""


@dataclass(frozen=True)
class BadVideo:
    """Why a sample's video could not be had: one line of bad_videos.jsonl."""

    id: str
    video: str
    reason: str
    detail: str
    dataset: str = ""
    index: int = -1
    epoch: int = -1


@dataclass(frozen=True)
class Sample:
    """One slot of a batch; legend as in `Batch`, without B. Pixels are uint8 arrays.

    Attributes:
        error: why `valid` is False.
    """

    id: str
    index: int
    valid: bool
    text_ids: npt.NDArray[np.int64]  # K L
    text_mask: npt.NDArray[np.int64]  # K L
    text_keys: npt.NDArray[np.int64]  # K
    video_key: int
    times: npt.NDArray[np.float64]  # N T
    high: npt.NDArray[np.uint8] | None = None  # N C H W
    low: npt.NDArray[np.uint8] | None = None  # N T-1 C h w
    masked_ids: npt.NDArray[np.int64] | None = None  # K L
    masked_labels: npt.NDArray[np.int64] | None = None  # K L
    labels: tuple[int, ...] = (-100,)  # one, or one a text
    segment: tuple[float, float] = (float("nan"), float("nan"))
    dataset: str = ""
    error: BadVideo | None = None


def stable_key(text: str) -> int:
    """A hash that is the same in every process and release, int64 and never 0."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) or 1


def text_key(text: str) -> int:
    """Hash of a text; case and white space do not make texts differ."""
    return stable_key(" ".join(text.casefold().split()))


def bad_video(sample_id: str, error: VideoError, dataset: str, index: int, epoch: int) -> BadVideo:
    """What is reported about a failed sample."""
    return BadVideo(sample_id, error.video, error.reason, error.detail, dataset, index, epoch)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one data set.

    Samples with fewer texts than the batch's largest count are filled up with their first text
    under the key `NO_TEXT_KEY` and no masked-language targets, so that every row can be encoded.
    """
    first = samples[0]
    num_texts = max(len(sample.text_ids) for sample in samples)
    padded = [_fill_texts(sample, num_texts) for sample in samples]

    def texts(name: str) -> Tensor | None:
        if padded[0][name] is None:
            return None
        return torch.from_numpy(np.concatenate([part[name] for part in padded]))

    def pixels(name: str) -> Tensor | None:
        if getattr(first, name) is None:
            return None
        return torch.from_numpy(np.stack([getattr(sample, name) for sample in samples]))

    return Batch(
        ids=tuple(sample.id for sample in samples),
        indices=torch.tensor([sample.index for sample in samples], dtype=torch.int64),
        valid=torch.tensor([sample.valid for sample in samples], dtype=torch.bool),
        high=pixels("high"),
        low=pixels("low"),
        text_ids=texts("text_ids"),
        text_mask=texts("text_mask"),
        num_texts=num_texts,
        masked_ids=texts("masked_ids"),
        masked_labels=texts("masked_labels"),
        labels=torch.tensor(_labels(samples, num_texts), dtype=torch.int64),
        video_key=torch.tensor([sample.video_key for sample in samples], dtype=torch.int64),
        text_key=texts("text_keys"),
        segment=torch.tensor([sample.segment for sample in samples], dtype=torch.float64),
        times=pixels("times"),
        dataset=first.dataset,
    )


def _labels(samples: Sequence[Sample], num_texts: int) -> list[int]:
    """One label a sample, or `num_texts` a sample (-100 where there is no text for one)."""
    if all(len(sample.labels) == 1 for sample in samples):
        return [sample.labels[0] for sample in samples]
    lacking = (-100,) * num_texts
    return [label for s in samples for label in (*s.labels, *lacking)[:num_texts]]


def _fill_texts(sample: Sample, num_texts: int) -> dict[str, Any]:
    rows: dict[str, Any] = {
        name: getattr(sample, name)
        for name in ("text_ids", "text_mask", "text_keys", "masked_ids", "masked_labels")
    }
    lacking = num_texts - len(sample.text_ids)
    if lacking > 0 and not len(sample.text_ids):
        raise ValueError(f"sample {sample.id!r} has no text, others of its batch have {num_texts}")
    if lacking <= 0:
        return rows
    for name in ("text_ids", "text_mask", "masked_ids"):
        if rows[name] is not None:
            rows[name] = np.concatenate([rows[name], np.repeat(rows[name][:1], lacking, axis=0)])
    keys = np.full(lacking, NO_TEXT_KEY, dtype=np.int64)
    rows["text_keys"] = np.concatenate([rows["text_keys"], keys])
    if rows["masked_labels"] is not None:
        nothing = np.full((lacking, rows["masked_labels"].shape[1]), -100, dtype=np.int64)
        rows["masked_labels"] = np.concatenate([rows["masked_labels"], nothing])
    return rows
