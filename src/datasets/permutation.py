"""A keyed permutation of 0..n-1 evaluated at one place: no array, whatever n is."""

from __future__ import annotations

_MASK64 = (1 << 64) - 1
_ROUNDS = 6


def permute(index: int, size: int, key: int) -> int:
    """The place of `index` in the permutation of `size` that `key` names.

    A balanced Feistel network over the next even number of bits, walked until it lands inside
    (Black and Rogaway, "Ciphers with arbitrary finite domains", cycle walking).

    Raises:
        IndexError: `index` is not in 0..size-1.
    """
    if not 0 <= index < size:
        raise IndexError(f"index {index} of a permutation of {size}")
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    value = index
    while True:
        left, right = value >> half, value & low
        for turn in range(_ROUNDS):
            left, right = right, left ^ (_mix(right + (turn << 40), key) & low)
        value = (left << half) | right
        if value < size:
            return value


def _mix(value: int, key: int) -> int:
    """SplitMix64's finaliser (Steele, Lea and Flood) over value and key."""
    value = (value * 0x9E3779B97F4A7C15 + key) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)
