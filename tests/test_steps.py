"""Memory of the two passes: what autograd keeps is one micro-batch's, not the whole batch's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rushes.datasets.batch import Batch
from rushes.distributed import SingleWorld
from rushes.steps import Pass, accumulate
from tests.toy import toy_batch, toy_config, toy_model


class _Kept:
    """A tensor that autograd keeps, counted while it lives."""

    live = peak = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
        _Kept.live += self.size
        _Kept.peak = max(_Kept.peak, _Kept.live)

    def __del__(self) -> None:
        _Kept.live -= self.size


def peak_bytes(batches: Sequence[Batch], cached: bool) -> int:
    """Most bytes that autograd keeps at once during a step."""
    model = toy_model(dropout=0.1)
    step = Pass(model, model.objectives(0), SingleWorld(), 0, 1, None)
    _Kept.live = _Kept.peak = 0
    with torch.autograd.graph.saved_tensors_hooks(_Kept, lambda kept: kept.tensor):
        counts = [len(batch) for batch in batches]
        accumulate(step, batches, counts, toy_config(cached_gradient=cached))
    return _Kept.peak


def test_two_passes_keep_one_micro_batch() -> None:
    whole = toy_batch(list(range(128)))
    in_one_piece = peak_bytes([whole], cached=False)
    in_two_passes = peak_bytes(whole.split(8), cached=True)
    # The losses themselves still see the whole batch; here they are the larger part of the rest.
    assert in_two_passes < 0.7 * in_one_piece, (in_two_passes, in_one_piece)
