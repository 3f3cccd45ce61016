"""The batch: what collation makes and what models and objectives take.

Legend: B videos, N clips a video, T frames a clip, C = 3, H W high-resolution pixels, h = H / 4 and
w = W / 4 low-resolution pixels, K texts a video, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ragged:
    """A further modality as values and offsets at up to three levels.

    Attributes:
        values: all tokens of all samples one after the other, `S D` (or `S`).
        offsets: by level ("segment", "video"): start of each element in the level below, int64,
            one longer than the level's count; the last level counts samples (`B + 1`).
        present: whether the sample has this modality at all, bool `B`.
    """

    values: Tensor
    offsets: Mapping[str, Tensor]
    present: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Ragged:
        """A copy on `device`."""
        return Ragged(
            self.values.to(device, non_blocking=non_blocking),
            {k: v.to(device, non_blocking=non_blocking) for k, v in self.offsets.items()},
            self.present.to(device, non_blocking=non_blocking),
        )


@dataclass(frozen=True)
class Batch:
    """Samples of one step. Pixels stay uint8; the model normalises on its device.

    A sample whose video failed keeps its slot with `valid=False`: zero pixels, in no loss and no
    one's negative.

    Attributes:
        ids: sample ids, `B`.
        indices: position of each sample in its data set, int64 `B`.
        valid: bool `B`.
        high: middle frames, uint8 `B N C H W`, or None (low-resolution only).
        low: neighbours in time order without the middle one, uint8 `B N T-1 C h w`; all T frames
            when `high` is None; or None (high-resolution only).
        text_ids, text_mask: int64 `B*K L`, a video's texts adjacent, [CLS] first, 0 pads.
        num_texts: K.
        masked_ids, masked_labels: the same texts with tokens masked, and the targets (-100 where
            none), int64 `B*K L`; None unless masked language modelling is on.
        labels: right answer or option, int64 `B`, or one a text `B*K` where a video's texts are
            questions of their own; -100 where unknown.
        video_key, text_key: int64 hashes of video id `B` and of text `B*K`: equal keys are never
            each other's negatives.
        segment: start and end of the sample's span in seconds, float64 `B 2`; NaN is the whole.
        times: presentation times in seconds, float64 `B N T`.
        modalities: further modalities by name (audio, features, ...).
        dataset: name of the data set that all samples come from.
    """

    ids: tuple[str, ...]
    indices: Tensor
    valid: Tensor
    high: Tensor | None = None
    low: Tensor | None = None
    text_ids: Tensor | None = None
    text_mask: Tensor | None = None
    num_texts: int = 1
    masked_ids: Tensor | None = None
    masked_labels: Tensor | None = None
    labels: Tensor | None = None
    video_key: Tensor | None = None
    text_key: Tensor | None = None
    segment: Tensor | None = None
    times: Tensor | None = None
    modalities: Mapping[str, Ragged] = field(default_factory=dict)
    dataset: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """A copy with every tensor on `device`."""
        moved: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                moved[f.name] = value.to(device, non_blocking=non_blocking)
        modalities = {k: v.to(device, non_blocking) for k, v in self.modalities.items()}
        return replace(self, modalities=modalities, **moved)

    def pin_memory(self) -> Batch:
        """A copy in pinned memory, for asynchronous transfer."""
        pinned = {
            f.name: getattr(self, f.name).pin_memory()
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return replace(self, **pinned)

    def trim_texts(self, multiple: int = 8) -> Batch:
        """A copy whose texts end, rounded up to a multiple, where the longest of them ends.

        What is cut is padding, which no token attends to; rounding keeps the shapes that a compiled
        model meets few.
        """
        if self.text_mask is None:
            return self
        full = self.text_mask.shape[1]
        longest = int(self.text_mask.sum(1).max()) if self.text_mask.numel() else full
        length = min(full, -(-longest // multiple) * multiple)
        names = ("text_ids", "text_mask", "masked_ids", "masked_labels")
        cut = {name: getattr(self, name) for name in names}
        return replace(self, **{k: v[:, :length] for k, v in cut.items() if v is not None})

    def split(self, size: int) -> list[Batch]:
        """Micro-batches of at most `size` videos, in order."""
        if self.modalities:
            raise ValueError("batches with ragged modalities are split by their data set")
        parts = []
        for start in range(0, len(self), size):
            rows = slice(start, min(start + size, len(self)))
            texts = slice(rows.start * self.num_texts, rows.stop * self.num_texts)
            chosen: dict[str, Any] = {"ids": self.ids[rows]}
            for f in fields(self):
                value = getattr(self, f.name)
                if isinstance(value, Tensor):
                    by_text = f.name in _TEXT_ROWS or len(value) > len(self)
                    chosen[f.name] = value[texts if by_text else rows]
            parts.append(replace(self, **chosen))
        return parts


_TEXT_ROWS = frozenset({"text_ids", "text_mask", "masked_ids", "masked_labels", "text_key"})
