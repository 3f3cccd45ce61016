"""What every tower returns: values per modality and level, with masks and times.

Objectives and scorers read only this, so a new tower (audio, features, paragraphs) needs no change
in them. Levels: "token" (words, grid cells), "segment" (clips, sentences), "video" (whole sample).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Key = tuple[str, str]
"""(modality, level), e.g. ("video", "segment")."""


@dataclass(frozen=True)
class Level:
    """One modality at one level.

    Attributes:
        values: float `R S D` (token and segment level) or `R D` (video level); rows R are samples,
            or texts where a sample has several.
        mask: bool `R S`, True where there is a value; None: everywhere.
        times: start and end in seconds, float `R S 2`, where known.
        pooled: one vector a row after the modality's own pooling (not projected), `R D`.
        grid: rows and columns where S runs over grids (clip by clip, row-major).
    """

    values: Tensor
    mask: Tensor | None = None
    times: Tensor | None = None
    pooled: Tensor | None = None
    grid: tuple[int, int] | None = None


@dataclass(frozen=True)
class Encoded:
    """Outputs of all towers for one batch.

    Attributes:
        levels: by (modality, level).
        embeddings: unit vectors in the joint space, by modality ("video", "text"): `R D`.
        batch_size: samples B (texts may have more rows).
    """

    batch_size: int
    levels: Mapping[Key, Level] = field(default_factory=dict)
    embeddings: Mapping[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, key: Key) -> Level:
        return self.levels[key]

    def tensors(self) -> Iterator[Tensor]:
        """Every floating tensor, in a fixed order (the leaves of the cached-gradient two-pass)."""
        for key in sorted(self.levels):
            level = self.levels[key]
            yield level.values
            if level.pooled is not None:
                yield level.pooled
        for name in sorted(self.embeddings):
            yield self.embeddings[name]

    def map(self, function: Callable[[Tensor], Tensor]) -> Encoded:
        """The same structure, `function` applied to each tensor of `tensors()`, in that order."""
        levels = {}
        for key in sorted(self.levels):
            level = self.levels[key]
            values = function(level.values)
            pooled = None if level.pooled is None else function(level.pooled)
            levels[key] = Level(values, level.mask, level.times, pooled, level.grid)
        embeddings = {name: function(self.embeddings[name]) for name in sorted(self.embeddings)}
        return Encoded(self.batch_size, levels, embeddings)


def concatenate(parts: Sequence[Encoded]) -> Encoded:
    """One `Encoded` of several micro-batches, rows in order.

    Where S differs (texts padded to a batch's longest), rows are padded with what masks hide.
    """
    levels = {}
    for key, first in parts[0].levels.items():
        rows = [part.levels[key] for part in parts]
        levels[key] = Level(
            _stacked([row.values for row in rows], first.mask is not None),
            None if first.mask is None else _stacked([_there(row.mask) for row in rows]),
            None if first.times is None else _stacked([_there(row.times) for row in rows]),
            None if first.pooled is None else torch.cat([_there(row.pooled) for row in rows]),
            first.grid,
        )
    embeddings = {
        name: torch.cat([part.embeddings[name] for part in parts]) for name in parts[0].embeddings
    }
    return Encoded(sum(part.batch_size for part in parts), levels, embeddings)


def _stacked(tensors: Sequence[Tensor], ragged: bool = True) -> Tensor:
    longest = max(tensor.shape[1] for tensor in tensors) if ragged else 0
    if not ragged or all(tensor.shape[1] == longest for tensor in tensors):
        return torch.cat(list(tensors))
    padded = []
    for tensor in tensors:
        rest = tensor.new_zeros(len(tensor), longest - tensor.shape[1], *tensor.shape[2:])
        padded.append(torch.cat([tensor, rest], dim=1))
    return torch.cat(padded)


def _there(tensor: Tensor | None) -> Tensor:
    assert tensor is not None, "micro-batches of one step have the same structure"
    return tensor
