"""The sound of a scene: at its event each object sounds the pitch that names its symbol."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from rushes.datasets.footage.scene import Thing

RATE = 24_000
"""Samples a second; AAC, MP3 and Opus all take it."""


def sound_of(things: Iterable[Thing], duration: float, seed: int) -> npt.NDArray[np.float32]:
    """Mono sound in -1..1: a faint hiss, and one tone an event with soft edges; float32 `S`."""
    rng = np.random.Generator(np.random.PCG64(seed))
    sound = 0.003 * rng.standard_normal(round(duration * RATE), dtype=np.float32)
    for thing in things:
        first, last = round(thing.start * RATE), min(round(thing.end * RATE), len(sound))
        time = np.arange(last - first) / RATE
        edge = np.minimum(1.0, np.minimum(time, time[::-1]) / 0.03)
        phase = 2 * np.pi * thing.pitch * time
        tone = 0.4 * np.sin(phase) + 0.08 * np.sin(2 * phase)
        sound[first:last] += (edge * tone).astype(np.float32)
    return sound
