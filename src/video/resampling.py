"""Sound at another rate by windowed-sinc interpolation, every sample in its place."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]
Check = Callable[[], None]

ZEROS = 24
"""Zero crossings of the interpolation kernel on each side."""
_BLOCK = 1 << 20
"""Products between two looks at the clock: milliseconds."""
_KERNELS = 1 << 18
"""Values of kernels that are computed one for each phase; beyond, neighbours are interpolated."""
_STEPS = 512
"""Kernels in a table per sample at full bandwidth: the error of drawing lines between is 5e-6."""


def _no_check() -> None:
    """Nobody waits."""


def resample(
    samples: Samples,
    native: int,
    offset: float,
    rate: int,
    count: int,
    check: Check = _no_check,
) -> Samples:
    """Samples at `rate`, phase-locked to the asked start.

    Args:
        samples: at the native rate; silence is outside.
        native: their rate in Hz.
        offset: where the first output lies, in native samples from the first input.
        rate: asked rate in Hz.
        count: outputs.
        check: called every few milliseconds; may raise to give up.

    Returns:
        float32 `count`.
    """
    if not len(samples) or not count:
        return np.zeros(count, np.float32)
    if native == rate and abs(offset - round(offset)) < 1e-6:
        return _shifted(samples, round(offset), count)
    divisor = math.gcd(native, rate)
    up, down = rate // divisor, native // divisor
    scale = min(1.0, rate / native) * 0.98
    half = math.ceil(ZEROS / scale)
    heard = _heard(len(samples), native, offset, rate, count, half)
    if heard != (0, count):
        out = np.zeros(count, np.float32)
        ahead = offset + heard[0] * native / rate
        part = resample(samples, native, ahead, rate, heard[1] - heard[0], check)
        out[heard[0] : heard[1]] = part
        return out
    shift = max(half - math.floor(offset), 0)
    needed = math.floor(offset) + math.ceil(count * native / rate) + 2 * half + down + 2
    padded = np.zeros(shift + max(len(samples), needed) + 2 * half, np.float32)
    padded[shift : shift + len(samples)] = samples
    first = shift - half + 1
    if min(up, count) * 2 * half <= _KERNELS:
        return _by_phases(padded, first, offset, (native, rate), (up, down), scale, count, check)
    return _by_table(padded, first, offset, (native, rate), scale, count, check)


def _heard(
    length: int, native: int, offset: float, rate: int, count: int, half: int
) -> tuple[int, int]:
    """The outputs that some input reaches; the others are silent and cost nothing."""
    first = math.floor((-half - 2 - offset) * rate / native)
    last = math.ceil((length + half + 2 - offset) * rate / native)
    low = min(max(0, first), count)
    return low, min(max(low, last), count)


def _by_phases(
    padded: Samples,
    first: int,
    offset: float,
    rates: tuple[int, int],
    ratio: tuple[int, int],
    scale: float,
    count: int,
    check: Check,
) -> Samples:
    """A kernel for each of the `up` phases in which outputs lie between inputs."""
    out = np.zeros(count, np.float32)
    (native, rate), (up, down), half = rates, ratio, math.ceil(ZEROS / scale)
    taps = np.arange(-half + 1, half + 1)
    block = max(1, _BLOCK // len(taps))
    for phase in range(min(up, count)):
        position = offset + phase * native / rate
        whole = math.floor(position)
        kernel = _kernel(taps - (position - whole), scale, half)
        number = (count - phase + up - 1) // up
        for begin in range(0, number, block):
            check()
            rows = min(block, number - begin)
            windows = np.lib.stride_tricks.as_strided(
                padded[whole + first + begin * down :],
                (rows, len(taps)),
                (padded.strides[0] * down, padded.strides[0]),
            )
            out[phase + begin * up : phase + (begin + rows) * up : up] = windows @ kernel
    return out


def _by_table(
    padded: Samples,
    first: int,
    offset: float,
    rates: tuple[int, int],
    scale: float,
    count: int,
    check: Check,
) -> Samples:
    """Rates with few common factors have as many phases as samples: a table bounds the kernels."""
    out = np.zeros(count, np.float32)
    (native, rate), half = rates, math.ceil(ZEROS / scale)
    taps = np.arange(-half + 1, half + 1)
    steps = max(16, math.ceil(_STEPS * scale))
    rows = []
    for step in range(steps + 1):
        check()
        rows.append(_kernel(taps - step / steps, scale, half))
    table = np.stack(rows)
    windows = np.lib.stride_tricks.sliding_window_view(padded, len(taps))
    origin, ahead = math.floor(offset) + first, offset - math.floor(offset)
    block = max(1, _BLOCK // len(taps))
    for begin in range(0, count, block):
        check()
        ticks = np.arange(begin, min(begin + block, count), dtype=np.int64) * native
        between = (ticks % rate) / rate + ahead
        carry = np.floor(between)
        place = (between - carry) * steps
        row = np.minimum(place.astype(np.int64), steps - 1)
        share = (place - row).astype(np.float32)
        part = windows[ticks // rate + carry.astype(np.int64) + origin]
        low = np.einsum("nt,nt->n", part, table[row])
        high = np.einsum("nt,nt->n", part, table[row + 1])
        out[begin : begin + len(ticks)] = low + share * (high - low)
    return out


def _kernel(distance: npt.NDArray[np.floating[Any]], scale: float, half: int) -> Samples:
    window = np.i0(9.0 * np.sqrt(np.maximum(0.0, 1.0 - (distance / half) ** 2))) / np.i0(9.0)
    kernel = np.sinc(distance * scale) * scale * window
    normal: Samples = (kernel / kernel.sum()).astype(np.float32)
    return normal


def _shifted(samples: Samples, offset: int, count: int) -> Samples:
    out = np.zeros(count, np.float32)
    low, high = max(0, -offset), min(count, len(samples) - offset)
    if low < high:
        out[low:high] = samples[low + offset : high + offset]
    return out
