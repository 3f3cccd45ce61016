"""From packets' time stamps, or their absence, to seconds on screen."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

NO_TIME = np.iinfo(np.int64).min

IntArray = npt.NDArray[np.int64]


def display_order(
    frame_packets: IntArray, pts: IntArray, dts: IntArray, time_base: float, rate: float
) -> tuple[npt.NDArray[np.float64], IntArray]:
    """Seconds of each frame from the first, and the order in which frames are shown.

    Args:
        frame_packets: packet of each frame, in the order in which frames came `N`.
        pts, dts: of every packet `P`, NO_TIME where there is none.
        time_base: seconds per unit.
        rate: frames a second, for streams without any times.

    Returns:
        Times ascending `N`, and the permutation of `frame_packets` that goes with them `N`.
    """
    order = np.arange(len(frame_packets), dtype=np.int64)
    if not len(frame_packets):
        return np.zeros(0), order
    shown = pts[frame_packets]
    if (shown != NO_TIME).all():
        order = np.argsort(shown, kind="stable").astype(np.int64)
        stamps = shown[order]
    elif (dts[frame_packets] != NO_TIME).all():
        # AVI knows only when packets are decoded: the n-th frame shown takes the n-th time.
        stamps = np.sort(dts[frame_packets])
    elif (shown == NO_TIME).all():
        return order / rate, order
    else:
        stamps = _filled(shown, time_base, rate)
    return (stamps - stamps[0]) * time_base, order


def _filled(shown: IntArray, time_base: float, rate: float) -> IntArray:
    """Missing stamps drawn on the line between their neighbours."""
    known = np.flatnonzero(shown != NO_TIME)
    places = np.arange(len(shown))
    filled = np.interp(places, known, shown[known].astype(np.float64))
    step = 1.0 / (rate * time_base)
    before, after = places < known[0], places > known[-1]
    filled[before] = shown[known[0]] - (known[0] - places[before]) * step
    filled[after] = shown[known[-1]] + (places[after] - known[-1]) * step
    return np.maximum.accumulate(np.round(filled).astype(np.int64))


def durations_end(times: npt.NDArray[np.float64], promised: float, complete: bool) -> float:
    """When the last frame ends: as the packets say if all are there, else one usual step later."""
    if complete and promised > times[-1]:
        return promised
    step = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    return float(times[-1]) + (step if step > 0 else 0.04)
