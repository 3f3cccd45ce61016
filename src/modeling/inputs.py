"""What models and objectives need of a batch: read-only attributes, no data code imported.

`rushes.datasets.batch.Batch` has them all; its docstring gives the shapes.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class BatchLike(Protocol):
    """The part of a batch that towers and objectives read."""

    @property
    def valid(self) -> Tensor: ...  # B
    @property
    def high(self) -> Tensor | None: ...  # B N C H W
    @property
    def low(self) -> Tensor | None: ...  # B N T-1 C h w
    @property
    def text_ids(self) -> Tensor | None: ...  # B*K L
    @property
    def text_mask(self) -> Tensor | None: ...  # B*K L
    @property
    def num_texts(self) -> int: ...
    @property
    def masked_ids(self) -> Tensor | None: ...  # B*K L
    @property
    def masked_labels(self) -> Tensor | None: ...  # B*K L
    @property
    def labels(self) -> Tensor | None: ...  # B
    @property
    def video_key(self) -> Tensor | None: ...  # B
    @property
    def text_key(self) -> Tensor | None: ...  # B*K

    def __len__(self) -> int: ...
