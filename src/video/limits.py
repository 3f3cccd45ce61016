"""How much of one video rushes is willing to read, and for how long."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rushes.errors import DecodeTimeout

AUDIO_RATES = (100, 768_000)
"""The lowest and the highest rate of sound, in Hz."""
MAX_SIDE = 16_384
"""Pixels: the widest and the highest picture that may be asked for."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one video; a file beyond any of them is refused with reason `over_limit`.

    Attributes:
        max_pixels: width times height of a stored picture, and of one that is asked for; the
            default lets 8K UHD pass.
        max_frames: pictures in the file.
        max_duration: seconds from the first picture to the last.
        max_bytes: size of the file.
        max_reply_bytes: size of all arrays that one request may ask for.
        max_open_bytes: memory, about, in which a reader keeps videos open and their indexes at
            hand; the one that is being read stays open in any case.
    """

    max_pixels: int = 36_000_000
    max_frames: int = 5_000_000
    max_duration: float = 48 * 3600.0
    max_bytes: int = 256 * 2**30
    max_reply_bytes: int = 8 * 2**30
    max_open_bytes: int = 2**30


def check_deadline(video: str, deadline: float | None) -> None:
    """Raise `DecodeTimeout` once `time.monotonic()` is past `deadline`; None never is."""
    if deadline is not None and time.monotonic() > deadline:
        raise DecodeTimeout(video, "the deadline passed while decoding")
