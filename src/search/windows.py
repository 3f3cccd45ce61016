"""Moments of long videos: sliding windows at several lengths, and thinning out what overlaps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rushes.errors import ConfigError
from rushes.metrics import temporal_iou

LENGTHS = (4.0, 6.0, 8.0, 16.0)
"""Seconds; a moment of another length is found by the nearest one."""
HOP = 1 / 3
"""Share of a window's length between two starts: neighbours overlap by two thirds."""


class Span(NamedTuple):
    """A stretch in seconds."""

    start: float
    end: float


class Moment(NamedTuple):
    """A stretch of a video and how well it fits."""

    video: str
    start: float
    end: float
    score: float


def windows(duration: float, lengths: Sequence[float] = LENGTHS, hop: float = HOP) -> list[Span]:
    """Windows that cover a video at each length; a short video is one window, the whole.

    Args:
        duration: seconds of the video.
        lengths: seconds of the windows; those longer than the video are left out.
        hop: share of a length between two starts.
    """
    if not lengths or min(lengths) <= 0:
        raise ConfigError(f"window lengths {list(lengths)}: expected seconds above 0")
    if not 0 < hop <= 1:
        raise ConfigError(f"hop {hop}: expected more than 0 and at most 1")
    out = [Span(0.0, duration)] if duration <= 2 * min(lengths) else []
    for length in sorted(set(lengths)):
        if length >= duration:
            continue
        last = duration - length
        count = -int(-last // (length * hop))  # steps, the last one shortened
        out += [Span(last * i / count, last * i / count + length) for i in range(count + 1)]
    return sorted(set(out))


def suppress(moments: Iterable[Moment], most: int, overlap: float = 0.3) -> list[Moment]:
    """Non-maximum suppression: the best moments, none overlapping a better one too much.

    Args:
        moments: in any order.
        most: how many are kept.
        overlap: intersection over union from which the worse of two goes.
    """
    kept: list[Moment] = []
    for moment in sorted(moments, key=lambda m: (-m.score, m.video, m.start, m.end)):
        rivals = (other for other in kept if other.video == moment.video)
        if all(temporal_iou(_span(moment), _span(other)) < overlap for other in rivals):
            kept.append(moment)
            if len(kept) == most:
                break
    return kept


def _span(moment: Moment) -> tuple[float, float]:
    return moment.start, moment.end


def random_hit(duration: float, truth: Span, threshold: float = 0.5) -> float:
    """Chance that a random span of the true length overlaps the truth by at least `threshold`.

    A shift by d seconds leaves (L - d) / (L + d) of the union, so d may be up to
    L (1 - threshold) / (1 + threshold); starts are uniform over the video.
    """
    length = truth.end - truth.start
    room = duration - length
    if room <= 0:
        return 1.0
    reach = length * (1 - threshold) / (1 + threshold)
    low, high = max(0.0, truth.start - reach), min(room, truth.start + reach)
    return max(0.0, high - low) / room
