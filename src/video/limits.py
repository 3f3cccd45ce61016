"""How much of one video rushes is willing to read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of one video; a file beyond any of them is refused with reason `over_limit`.

    Attributes:
        max_pixels: width times height of a stored picture; the default lets 8K UHD pass.
        max_frames: pictures in the file.
        max_duration: seconds from the first picture to the last.
        max_bytes: size of the file.
        max_reply_bytes: size of all arrays that one request may ask for.
    """

    max_pixels: int = 36_000_000
    max_frames: int = 5_000_000
    max_duration: float = 48 * 3600.0
    max_bytes: int = 256 * 2**30
    max_reply_bytes: int = 8 * 2**30
