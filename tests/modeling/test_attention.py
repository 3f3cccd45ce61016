"""Attention written out is the fused kernel's, with its gradients."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rushes.modeling.attention import SHORT, attend


def inputs(length: int, dtype: torch.dtype, gradient: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 3, 2, length, 8).to(dtype)
    for tensor in (query, key, value):
        tensor.requires_grad_(gradient)
    return query, key, value


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [1, 7, 24])
def test_values_and_gradients(length: int, masked: bool) -> None:
    mask = None
    if masked:
        mask = torch.rand(3, 1, 1, length) < 0.5
        mask[..., 0] = True
    ours, theirs = inputs(length, torch.bfloat16), inputs(length, torch.float32)
    found = attend(*ours, mask)
    expected = F.scaled_dot_product_attention(*theirs, mask)
    weights = torch.randn_like(expected)
    (found.float() * weights).sum().backward()  # type: ignore[no-untyped-call]
    (expected * weights).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0.03)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(mine.grad.float(), other.grad, atol=0.06, rtol=0.06)


@pytest.mark.parametrize(
    ("length", "dtype", "gradient", "fused"),
    [
        (24, torch.bfloat16, True, False),
        (24, torch.bfloat16, False, True),
        (24, torch.float32, True, True),
        (SHORT + 1, torch.bfloat16, True, True),
    ],
)
def test_which_way_is_taken(length: int, dtype: torch.dtype, gradient: bool, fused: bool) -> None:
    name = "rushes.modeling.attention.F.scaled_dot_product_attention"
    with patch(name, wraps=F.scaled_dot_product_attention) as kernel:
        attend(*inputs(length, dtype, gradient))
    assert kernel.called == fused


def test_dropout_keeps_the_mean() -> None:
    query, key, _ = inputs(24, torch.bfloat16)
    value = torch.ones_like(query)
    out = attend(query, key, value, dropout=0.5).detach().float()
    assert out.std() > 0.05
    assert abs(float(out.mean()) - 1) < 0.1
