"""Scaled dot-product attention, by the faster of two ways.

PyTorch's fused kernel is the way, with one exception that `benchmarks/attention.py` measures: on a
CPU its backward pass in bfloat16 takes five to ten times as long as the same sums written out when
sequences are short, as those of frames and captions are.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SHORT = 256
"""Positions up to which the weights `R heads S S` are written out on a CPU."""


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Attention of queries `R heads S d` over keys and values `R heads L d`; gives `R heads S d`.

    Args:
        mask: bool, broadcast to `R heads S L`; True may be seen. Each query sees something.
        dropout: share of the weights that are dropped.
    """
    backward = torch.is_grad_enabled() and query.requires_grad
    written_out = query.device.type == "cpu" and query.dtype == torch.bfloat16
    if not (backward and written_out and key.shape[-2] <= SHORT):
        return F.scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout)
    scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(-2, -1)  # R heads S L
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    weights = scores.softmax(-1)
    if dropout > 0:
        weights = F.dropout(weights, dropout)
    return weights @ value
