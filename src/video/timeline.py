"""From packets' time stamps, or their absence, to seconds on screen."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

NO_TIME = np.iinfo(np.int64).min

IntArray = npt.NDArray[np.int64]

_MAX_STEP = 2.0**32
"""Units between two pictures; stamps that lie must not leave the integers."""

DECODE_TIMES_ONLY = frozenset(("avi", "asf"))
"""Containers that say when packets are decoded and never when pictures are shown: the presentation
times that their demuxers give are made up, in the order of the file for H.264."""


def known_times(
    container: str, pts: IntArray, dts: IntArray, reorders: bool, delay: int, codec: str = ""
) -> tuple[IntArray, IntArray]:
    """What a demuxer's stamps are worth: without those that the container cannot know.

    Args:
        container: the demuxer.
        pts, dts: of every packet `P`.
        reorders: pictures may be shown in another order than they are coded in.
        delay: pictures that the stream says its decoder holds back.
        codec: of the pictures.

    Returns:
        `pts`, NO_TIME where only decoding tells the order; `dts`, from which the frames shown then
        take their times in order.
    """
    if container not in DECODE_TIMES_ONLY:
        return pts, dts
    if (container, codec) == ("avi", "mpeg4") and (pts != NO_TIME).all() and not ascending(pts):
        # The demuxer took them from the types of the pictures, as it can for MPEG-4: the empty
        # chunk that stands for the decoder's delay is then no gap in time.
        return pts, dts
    if not reorders:
        return dts, dts
    if container == "asf" and len(dts) > 1 and (dts != NO_TIME).all():
        # ASF has one clock for all tracks: the first picture is shown when the decoder lets it
        # go. AVI has none: picture and sound begin together.
        step = min(float(np.median(np.diff(np.sort(dts)))), _MAX_STEP)
        dts = dts + round(delay * step)
    return np.full_like(pts, NO_TIME), dts


def ascending(stamps: IntArray) -> bool:
    """Whether all stamps are known and grow: they tell no order beside that of the file."""
    return bool((stamps != NO_TIME).all() and (np.diff(stamps) > 0).all())


def times_of_output(frame_packets: IntArray, pts: IntArray) -> IntArray | None:
    """Presentation times for the order in which the decoder gives frames, if `pts` were made up.

    Times that grow from packet to packet although the decoder puts pictures in another order are
    decoding times: the n-th frame that comes out takes the n-th of them.

    Args:
        frame_packets: packet of each frame, in the order of output `N`.
        pts: of every packet `P`.

    Returns:
        New `pts`, NO_TIME for packets without a frame; None where the order tells nothing new.
    """
    if (np.diff(frame_packets) > 0).all() or not ascending(pts[np.sort(frame_packets)]):
        return None
    told = np.full_like(pts, NO_TIME)
    told[frame_packets] = np.sort(pts[frame_packets])
    return told


def crossings(stamps: IntArray) -> IntArray:
    """How many of the pictures before each place are shown after pictures from there on.

    One stamp that lies, however far, counts once; a clock that begins anew counts about half of
    the pictures of the shorter part.

    Args:
        stamps: presentation times in any order `N`; those that are unknown are drawn on the line
            between their neighbours.

    Returns:
        Counts `N`.
    """
    known = np.flatnonzero(stamps != NO_TIME)
    count = np.arange(len(stamps))
    if not len(known):
        return np.zeros(len(stamps), np.int64)
    order = np.argsort(np.interp(count, known, stamps[known].astype(np.float64)), kind="stable")
    places = np.empty_like(order)
    places[order] = count
    # A picture has come and is on the right side of the border once both its places are passed.
    settled = np.bincount(np.maximum(places, count) + 1, minlength=len(stamps) + 1)
    crossed: IntArray = count - np.cumsum(settled)[:-1]
    return crossed


def start_time(frame_packets: IntArray, pts: IntArray, dts: IntArray, time_base: float) -> float:
    """Seconds at which the first frame is shown, in the container's clock; 0 where it has none.

    Args:
        frame_packets: in display order.
    """
    if not len(frame_packets):
        return 0.0
    stamp = pts[frame_packets[0]]
    if (pts[frame_packets] == NO_TIME).all():
        stamp = dts[frame_packets].min()  # NO_TIME where one is unknown
    return 0.0 if stamp == NO_TIME else float(stamp) * time_base


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
    first, last = known[0], known[-1]
    # The rate that a header promises need not be that of its pictures.
    step = float(shown[last] - shown[first]) / (last - first) if last > first else 0.0
    step = step if step > 0 else 1.0 / (rate * time_base)
    before, after = places < first, places > last
    filled[before] = shown[first] - (first - places[before]) * step
    filled[after] = shown[last] + (places[after] - last) * step
    return np.maximum.accumulate(np.round(filled).astype(np.int64))


def durations_end(times: npt.NDArray[np.float64], promised: float, complete: bool) -> float:
    """When the last frame ends: as the packets say if all are there, else one usual step later."""
    if complete and promised > times[-1]:
        return promised
    step = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    return float(times[-1]) + (step if step > 0 else 0.04)
