"""What clip sampling takes and gives: a timeline in, clips with frame times out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rushes.datasets.record import Segment


@dataclass(frozen=True)
class Timeline:
    """One video (or a stretch of it) as the sampler sees it; seconds from its first frame.

    Attributes:
        duration: seconds.
        frame_times: presentation times, float64 `N`; needed by the `frames` mode, else optional.
        segments: texts with spans, for segment-aligned clips.
        tracks: names of further tracks (audio, features).
        start, end: the stretch that clips may come from; end None is `duration`.
        centre_times: for a store, the moments at which full-size frames exist; clips take their
            middle frame from these. None: any moment.
    """

    duration: float
    frame_times: npt.NDArray[np.float64] | None = None
    segments: tuple[Segment, ...] = ()
    tracks: tuple[str, ...] = ()
    start: float = 0.0
    end: float | None = None
    centre_times: npt.NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Clip:
    """One clip to decode; virtual: nothing is ever cut.

    Attributes:
        start, end: seconds covered.
        times: moments of its frames in seconds, ascending, `T`.
        middle: index into `times` of the frame that is taken at high resolution (T // 2).
        audio: window of sound in seconds, if wanted.
        segments: indices into the timeline's segments that this clip shows.
    """

    start: float
    end: float
    times: tuple[float, ...]
    middle: int
    audio: tuple[float, float] | None = None
    segments: tuple[int, ...] = ()
