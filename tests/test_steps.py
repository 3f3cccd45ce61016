"""Inside a step: gradients of pieces equal those of the whole, at the memory of a piece."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rushes.configs.schema import RunConfig
from rushes.datasets.batch import Batch
from rushes.distributed import SingleWorld
from rushes.modeling.encoded import concatenate
from rushes.steps import Pass, accumulate, join_batches, total_loss
from tests.toy import (
    ToyModel,
    toy_batch,
    toy_config,
    toy_model,
)

WORLD = SingleWorld()


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


def gradient(config: RunConfig, batches: list[Batch], dropout: float = 0.0) -> dict[str, Tensor]:
    model = toy_model(dropout=dropout)
    model.train()
    counts = [int(batch.valid.sum()) for batch in batches]
    step = Pass(model, model.objectives(0), WORLD, 0, 1, None)
    parts = accumulate(step, batches, counts, config)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**found, "loss": torch.stack([parts["contrastive_loss"], parts["count_loss"]])}


def assert_close(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("size", [1, 3, 4, 8])
def test_cached_gradients_equal_those_of_one_piece(size: int) -> None:
    whole = toy_batch(list(range(8)), frozenset({2, 7}))
    cached = toy_config(cached_gradient=True)
    assert_close(gradient(cached, whole.split(size)), gradient(toy_config(), [whole]))


def test_cached_gradients_draw_the_same_noise_twice() -> None:
    config = toy_config(cached_gradient=True)
    batches = toy_batch(list(range(8))).split(4)
    two_passes = gradient(config, batches, dropout=0.5)

    model = toy_model(dropout=0.5)
    step = Pass(model, model.objectives(0), WORLD, 0, 1, None)
    encoded = concatenate([step.encode(batch, micro) for micro, batch in enumerate(batches)])
    named = step.losses(encoded, join_batches(batches), "objectives")
    total_loss(named).backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, two_passes[name], rtol=1e-5, atol=1e-7)


def test_cached_gradients_update_statistics_once() -> None:
    model = toy_model()
    model.norm = nn.BatchNorm1d(16)
    plain_encode = model.encode
    seen = []

    def encode(batch: Batch) -> Any:
        encoded = plain_encode(batch)
        seen.append(model.norm(encoded.embeddings["video"]))  # type: ignore[operator]
        return encoded

    model.encode = encode  # type: ignore[assignment,method-assign]
    step = Pass(model, model.objectives(0), WORLD, 0, 1, None)
    accumulate(step, toy_batch(list(range(8))).split(4), [4, 4], toy_config(cached_gradient=True))
    assert len(seen) == 4
    assert int(model.norm.num_batches_tracked) == 2  # type: ignore[arg-type]


def test_losses_do_not_depend_on_accumulation() -> None:
    class PerSample(ToyModel):
        def objectives(self, step: int) -> Any:  # noqa: ARG002
            return {"counting": (1.0, self.counting)}

    torch.manual_seed(0)
    model = PerSample()
    whole = toy_batch(list(range(9)), frozenset({0, 1, 2, 5}))
    found = []
    for size in (9, 3, 2):  # three failed samples fill a whole micro-batch
        model.zero_grad()
        batches = whole.split(size)
        counts = [int(batch.valid.sum()) for batch in batches]
        step = Pass(model, model.objectives(0), WORLD, 0, 1, None)
        parts = accumulate(step, batches, counts, toy_config())
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append({**grads, "loss": parts["count_loss"]})
    assert_close(found[1], found[0])
    assert_close(found[2], found[0])


def test_failed_samples_are_in_no_loss() -> None:
    kept = [0, 2, 3, 5]
    with_failed = gradient(toy_config(), [toy_batch(list(range(6)), frozenset({1, 4}))])
    assert_close(with_failed, gradient(toy_config(), [toy_batch(kept)]))
