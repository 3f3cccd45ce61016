"""The plate with a printed symbol that only a fine picture shows.

A bold black letter of this size is still read by a small network where the picture is a twelfth of
its size and the letter 4 pixels high. So the ink here is dark with a light rim of equal weight:
averaging over a dozen pixels leaves plain grey, and smooth stains hide what little would be left.
A small network on centred crops reads 10 of 10 symbols at 128x192 and about chance at 32x48.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from rushes.datasets.footage.vocabulary import STROKES, SYMBOL_HEIGHT

HEIGHT: Final = 72
WIDTH: Final = 54
"""Pixels of the full picture, at scale 1."""

_SAMPLES: Final = 4
"""Supersampling along each side."""
_UNIT: Final = SYMBOL_HEIGHT / 6
"""Pixels of one step of the grid on which the strokes are given."""
_PEN: Final = 0.9
"""Width of the strokes in units."""
_RIM: Final = 3.6
"""Standard deviation in pixels of the blur that is taken away from the ink, three times."""
_CONTRAST: Final = 110.0
_GREY: Final = 125.0
_STAINS: Final = 32.0
"""Standard deviation in levels of the stains, one value every dozen pixels."""


def size_of(scale: float) -> tuple[int, int]:
    """Height and width of the plate in pixels, even."""
    return 2 * round(HEIGHT * scale / 2), 2 * round(WIDTH * scale / 2)


def badge(symbol: str, seed: int, scale: float = 1.0) -> npt.NDArray[np.float32]:
    """Luma of the plate, 16 to 235, float32 of `size_of(scale)`; `seed` draws its stains.

    The rim does not grow with the plate: what a coarse picture averages over stays the same.
    """
    height, width = size_of(scale)
    unit = _UNIT * scale
    canvas = np.zeros((height * _SAMPLES, width * _SAMPLES), np.uint8)
    middle = np.array((width / 2, height / 2))
    for stroke in STROKES[symbol]:
        line = ((np.array(stroke) - (2, 3)) * unit + middle) * _SAMPLES
        points = np.round(line).astype(np.int32)
        cv2.polylines(canvas, [points], False, 255, round(_PEN * unit * _SAMPLES))
    ink = _small(canvas, width, height)
    for _ in range(3):
        ink -= cv2.GaussianBlur(ink, (0, 0), _RIM).astype(np.float32)
    ink = np.clip(ink / np.quantile(ink[ink > 0.1], 0.7), -1.0, 1.0)
    rng = np.random.Generator(np.random.PCG64(seed))
    coarse = rng.standard_normal((height // 12 + 2, width // 12 + 2), dtype=np.float32)
    stains = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    luma = _GREY + _STAINS * stains - _CONTRAST * ink
    clipped: npt.NDArray[np.float32] = np.clip(luma, 16.0, 235.0).astype(np.float32)
    return clipped


def _small(canvas: npt.NDArray[np.uint8], width: int, height: int) -> npt.NDArray[np.float32]:
    small = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32) / np.float32(255)
