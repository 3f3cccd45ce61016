"""Holds what was made of a video against its source: the same frames at the same times."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rushes.errors import UnreadableVideo
from rushes.video.catalogue import Source
from rushes.video.limits import Limits
from rushes.video.probe import build_index

TIME_TOLERANCE = 0.002
"""Seconds; Matroska keeps milliseconds."""
_FIRST_FRAMES = 64
"""Frames that another decoder may lose before the first that it gives."""

Times = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """Frames that a result lacks, and frames that it has beyond those of its source."""

    missing: int = 0
    added: int = 0


def check_times(video: str, wanted: npt.ArrayLike, found: npt.ArrayLike) -> None:
    """Raise `UnreadableVideo` unless both are the same frames at the same times (seconds)."""
    ours, theirs = np.asarray(wanted, np.float64), np.asarray(found, np.float64)
    if len(ours) != len(theirs):
        raise UnreadableVideo(video, f"the result has {len(theirs)} frames, not {len(ours)}")
    worst = float(np.abs(ours - theirs).max(initial=0.0))
    if worst > TIME_TOLERANCE:
        raise UnreadableVideo(
            video, f"frames of the result are off by {worst:.4f} s, the limit is {TIME_TOLERANCE}"
        )


def check_saved(video: str, wanted: Times, path: Path) -> Difference:
    """What was saved of a damaged source: it must decode, and show the source's moments.

    What a decoder can save differs from build to build, so frames may be missing or added; they
    are counted. Fewer than half of the frames are a failure.

    Args:
        video: id, for errors.
        wanted: times of the frames that the source really gives, seconds from the first `N`.
        path: the result.

    Raises:
        UnreadableVideo: it does not decode, or its frames are not those of the source.
    """
    index = build_index(Source("file", video, path), Limits(), deep=True)
    if index.damage is not None:
        raise UnreadableVideo(video, f"the result does not decode ({index.damage})")
    found = index.info.frame_times
    if not len(wanted):
        raise UnreadableVideo(video, "the damaged source gives no frame there")
    shared = max(_shared(wanted, found + start) for start in wanted[:_FIRST_FRAMES])
    if 2 * shared < len(wanted):
        raise UnreadableVideo(
            video,
            f"of the {len(wanted)} frames that the damaged source gives, the result has {shared}; "
            f"the limit is half",
        )
    return Difference(len(wanted) - shared, len(found) - shared)


def _shared(wanted: Times, found: Times) -> int:
    """How many wanted times are among those found."""
    after = np.searchsorted(found, wanted).clip(1, max(1, len(found) - 1))
    nearest = np.abs(wanted - found[after - 1])
    if len(found) > 1:
        nearest = np.minimum(nearest, np.abs(wanted - found[after]))
    return int((nearest <= TIME_TOLERANCE).sum())
