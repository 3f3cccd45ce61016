"""Attention written out against PyTorch's fused kernel, forward and backward, on a CPU in bfloat16.

    python benchmarks/attention.py --json OUT

`ratio.NAME` is the fused kernel's time over ours, median of interleaved rounds: frames (space and
time of the tiny preset), captions, and space and time of the published size.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from _figures import add_json, publish
from torch import Tensor

from rushes.modeling.attention import attend

SHAPES = {
    "tiny_space": (336, 8, 24, 32),
    "tiny_time": (1152, 8, 7, 32),
    "captions": (48, 4, 32, 64),
    "published_space": (14, 16, 160, 64),
    "published_time": (320, 16, 7, 64),
}
"""Rows, heads, positions, channels a head."""
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def seconds(attention: Attention, shape: tuple[int, int, int, int]) -> float:
    """One forward and backward pass from a joint projection, as the layers make it."""
    rows, heads, length, channels = shape
    joint = torch.randn(rows, length, 3, heads, channels, dtype=torch.bfloat16, requires_grad=True)
    query, key, value = joint.permute(2, 0, 3, 1, 4)
    began = time.perf_counter()
    out = attention(query, key, value).transpose(1, 2).flatten(2)
    out.backward(torch.ones_like(out))  # type: ignore[no-untyped-call]
    return time.perf_counter() - began


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_json(parser)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    report: dict[str, dict[str, float]] = {"ratio": {}, "ms_ours": {}, "ms_fused": {}}
    for name, shape in SHAPES.items():
        ours, fused = [], []
        for number in range(options.rounds + 1):
            mine = seconds(attend, shape)
            theirs = seconds(F.scaled_dot_product_attention, shape)
            if number:
                ours.append(1000 * mine)
                fused.append(1000 * theirs)
        report["ms_ours"][name] = round(statistics.median(ours), 3)
        report["ms_fused"][name] = round(statistics.median(fused), 3)
        pairs = zip(fused, ours, strict=True)
        report["ratio"][name] = round(statistics.median(a / b for a, b in pairs), 3)
    publish(report, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
