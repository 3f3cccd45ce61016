"""Training objectives: (encoded, batch, world, generator) -> named losses.

Scaling rule, the same for all: every rank returns losses whose gradients, *averaged* over ranks,
are the gradient of the mean over the valid samples of the global batch. An objective that sums over
its own rows divides by the global count and multiplies by `world.size`; one that gathers features
and computes the same whole loss on every rank returns it as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from rushes.distributed import World
from rushes.modeling.encoded import Encoded
from rushes.modeling.inputs import BatchLike


class Objective(Protocol):
    """One objective; an `nn.Module` where it has parameters of its own (heads, temperature)."""

    def __call__(
        self, encoded: Encoded, batch: BatchLike, world: World, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """Scalars by name. Names ending in `_loss` are weighted and summed; others are reported."""
        ...


class Trainable(Protocol):
    """What the loop trains: an `nn.Module` that encodes a batch and owns its objectives.

    The loop draws all noise's seeds itself: `encode` may be called twice on the same batch with the
    same RNG state (the cached-gradient two-pass) and must then give the same result.
    """

    def encode(self, batch: BatchLike) -> Encoded:
        """Run the towers that the objectives need (no gradient through frozen ones)."""
        ...

    def objectives(self, step: int) -> Mapping[str, tuple[float, Objective]]:
        """Weight and objective by name, as they stand at optimiser step `step` (alike on all ranks)."""
        ...
