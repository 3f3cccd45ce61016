"""The words and figures of the made world: colours, shapes, symbols, motions, their names."""

from __future__ import annotations

import random
from functools import cache
from typing import Final

Point = tuple[float, float]
Combination = tuple[str, str, str]
"""Colour, shape and motion of one object."""

COLORS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (232, 52, 44),
    "yellow": (250, 236, 60),
    "green": (52, 196, 64),
    "blue": (66, 112, 250),
    "purple": (196, 84, 232),
    "white": (250, 250, 250),
}
"""RGB; all light enough for a black symbol to stand out."""

SHAPES: Final = ("circle", "square", "triangle", "star", "cross")

MOTIONS: Final = ("left", "right", "up", "down", "grows", "shrinks", "circles", "shakes")

SIZES: Final[dict[str, int]] = {"small": 108, "large": 136}
"""Width of an object in pixels of the full picture, where three share it."""

SCALES: Final[dict[int, float]] = {1: 1.4, 2: 1.2, 3: 1.0}
"""Factor on the widths by the count of objects: where there is room, an object takes it."""

SYMBOL_HEIGHT: Final = 52
"""Pixels: 17 of a picture 128 high, 4.3 of one 32 high, where it cannot be read any more."""

STROKES: Final[dict[str, tuple[tuple[Point, ...], ...]]] = {
    "C": (((4, 1), (3, 0), (1, 0), (0, 1), (0, 5), (1, 6), (3, 6), (4, 5)),),
    "H": (((0, 0), (0, 6)), ((4, 0), (4, 6)), ((0, 3), (4, 3))),
    "K": (((0, 0), (0, 6)), ((4, 0), (0, 3.3)), ((1.2, 2.5), (4, 6))),
    "T": (((0, 0), (4, 0)), ((2, 0), (2, 6))),
    "X": (((0, 0), (4, 6)), ((4, 0), (0, 6))),
    "4": (((3, 6), (3, 0), (0, 4), (4, 4)),),
    "7": (((0, 0), (4, 0), (1.4, 6)),),
}
"""Pen strokes of each symbol on a grid 4 wide and 6 high."""

SYMBOLS: Final = tuple(STROKES)

PITCHES: Final[dict[str, float]] = {s: 300.0 * 1.2**i for i, s in enumerate(SYMBOLS)}
"""Hz of the tone that names a symbol."""

VERBS: Final[dict[str, tuple[str, ...]]] = {
    "left": ("moves left", "slides to the left"),
    "right": ("moves right", "slides to the right"),
    "up": ("moves up", "rises"),
    "down": ("moves down", "sinks"),
    "grows": ("grows", "gets bigger"),
    "shrinks": ("shrinks", "gets smaller"),
    "circles": ("circles around", "goes around in a loop"),
    "shakes": ("shakes", "trembles"),
}

PROGRESSIVE: Final[dict[str, str]] = {
    "left": "moving left",
    "right": "moving right",
    "up": "moving up",
    "down": "moving down",
    "grows": "growing",
    "shrinks": "shrinking",
    "circles": "circling around",
    "shakes": "shaking",
}

SPLITS: Final = ("train", "val", "test")


@cache
def combinations(split: str) -> tuple[Combination, ...]:
    """The colour, shape and motion tuples that the objects of a split may have.

    The three splits share none. Of each colour and motion one shape is kept for `test`, of half of
    these pairs another for `val`; all seeds share this division, so that a model trained on one
    corpus can be judged on another. Every pair of two attributes occurs in `train`.
    """
    rng = random.Random(2022)
    pairs = [(color, motion) for color in COLORS for motion in MOTIONS]
    rng.shuffle(pairs)
    owner = {(c, s, m): "train" for c in COLORS for s in SHAPES for m in MOTIONS}
    for i, (color, motion) in enumerate(pairs):
        owner[color, SHAPES[i % len(SHAPES)], motion] = "test"
        if i % 2:
            shape = SHAPES[(i + 1 + (i // 12) % (len(SHAPES) - 1)) % len(SHAPES)]
            owner[color, shape, motion] = "val"
    return tuple(combination for combination, name in owner.items() if name == split)
