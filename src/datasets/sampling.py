"""Which moments of a video are seen: pure functions from a timeline to clips.

Two modes. `frames` is the published sampling: strides count frames of the stored file, centres are
drawn without replacement, evaluation centres are left-aligned. `seconds` is ours: strides are
seconds, so that the meaning does not depend on the file's frame rate; clips are spread over the
video (one in each of N equal parts). `span: whole` spreads every clip's frames over the whole
stretch instead. Without a generator the plan is the deterministic one of evaluation.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from rushes.configs.schema import ClipConfig
from rushes.datasets.clips import Clip, Timeline
from rushes.errors import ConfigError
from rushes.video.request import TIME_SLACK

__all__ = ["Clip", "Timeline", "plan_clips", "published_centres", "published_stride"]

_INSTANT = 2e-6
"""Seconds that make the frame at a stretch's end part of it."""
Times = npt.NDArray[np.float64]


def plan_clips(
    timeline: Timeline,
    config: ClipConfig,
    num_clips: int,
    generator: np.random.Generator | None = None,
) -> list[Clip]:
    """The clips of one visit to a video, in time order (interleaved for `span: whole`).

    Args:
        timeline: the video, or the stretch `[start, end)` of it that clips may come from.
        config: mode, frames a clip and stride.
        num_clips: N.
        generator: None plans evaluation.

    Returns:
        N clips of T ascending times within the stretch; `middle` is T // 2. Where the timeline has
        `centre_times`, every middle time is one of them.

    Raises:
        ConfigError: an even or non-positive frame count, no clips, or a `frames` plan without
            frame times.
    """
    if config.num_frames < 1 or config.num_frames % 2 == 0:
        raise ConfigError(
            f"clips.num_frames={config.num_frames}: expected an odd count of 1 or more"
        )
    if num_clips < 1:
        raise ConfigError(f"clips.num_clips={num_clips}: expected 1 or more")
    timeline = _reach_a_centre(timeline)
    if config.sampling == "frames" and config.span == "stride":
        times = _frames_plan(timeline, config, num_clips, generator)
        spacing = _frame_spacing(timeline)
    elif config.span == "whole":
        times = _whole_plan(timeline, config.num_frames, num_clips, generator)
        spacing = 0.0
    else:
        times = _seconds_plan(timeline, config, num_clips, generator)
        spacing = _stride(timeline, config)
    return [_clip(timeline, row, spacing, config.span) for row in times]


def published_stride(num_frames_in_file: int, num_clips: int, num_frames: int, stride: int) -> int:
    """Stride in frames after the published shrinking for short files, never below 0.

    Published: a file shorter than 2 n s + N frames takes s = floor((total - N) / 2n), which can
    become 0 or negative; there the frame is repeated instead (stride 0).
    """
    neighbours = (num_frames - 1) // 2
    if neighbours == 0:
        return 0
    if num_frames_in_file < 2 * neighbours * stride + num_clips:
        stride = (num_frames_in_file - num_clips) // (2 * neighbours)
    return max(0, stride)


def published_centres(
    num_frames_in_file: int, num_clips: int, neighbours: int, stride: int
) -> npt.NDArray[np.int64]:
    """Left-aligned inference centres: every (len // N)-th of the possible ones, the first N."""
    low, high = neighbours * stride, num_frames_in_file - neighbours * stride
    step = max(1, (high - low) // num_clips)
    centres = np.arange(low, high, step, dtype=np.int64)[:num_clips]
    if len(centres) < num_clips:  # fewer frames than clips: some centre serves twice
        centres = low + np.arange(num_clips) * (high - low) // num_clips
    return centres


def _stretch(timeline: Timeline) -> tuple[float, float]:
    end = timeline.duration if timeline.end is None else min(timeline.end, timeline.duration)
    start = min(max(0.0, timeline.start), max(0.0, end))
    return start, max(start, end)


def _reach_a_centre(timeline: Timeline) -> Timeline:
    """A stretch without any of the store's centres, widened to the nearest one."""
    if timeline.centre_times is None or not len(timeline.centre_times):
        return timeline
    start, end = _stretch(timeline)
    grid = np.asarray(timeline.centre_times, dtype=np.float64)
    if np.any((grid >= start) & (grid <= end)):
        return timeline
    nearest = float(grid[np.argmin(np.abs(grid - (start + end) / 2))])
    return replace(timeline, start=min(start, nearest), end=max(end, nearest + _INSTANT))


def _frame_spacing(timeline: Timeline) -> float:
    assert timeline.frame_times is not None
    return timeline.duration / max(1, len(timeline.frame_times))


def _frames_plan(
    timeline: Timeline, config: ClipConfig, num_clips: int, generator: np.random.Generator | None
) -> Times:
    if timeline.frame_times is None or len(timeline.frame_times) == 0:
        raise ConfigError("clips.sampling=frames needs the presentation times of the frames")
    start, end = _stretch(timeline)
    inside = np.asarray(timeline.frame_times)
    first = max(0, int(np.searchsorted(inside, start, side="right")) - 1)
    last = max(first + 1, int(np.searchsorted(inside, end, side="left")))
    inside = inside[first:last]
    total, neighbours = len(inside), (config.num_frames - 1) // 2
    stride = published_stride(total, num_clips, config.num_frames, config.stride)
    centres = _frame_centres(timeline, inside, first, num_clips, neighbours * stride, generator)
    if centres is None:
        low, high = neighbours * stride, total - neighbours * stride
        if generator is None:
            centres = published_centres(total, num_clips, neighbours, stride)
        elif high - low >= num_clips:
            centres = np.sort(low + generator.choice(high - low, size=num_clips, replace=False))
        else:
            centres = np.sort(generator.integers(low, high, size=num_clips))
    offsets = np.arange(-neighbours, neighbours + 1) * stride
    indices = np.clip(centres[:, None] + offsets[None, :], 0, total - 1)
    return np.asarray(inside[indices], dtype=np.float64)  # N T


def _frame_centres(
    timeline: Timeline,
    inside: Times,
    first: int,
    num_clips: int,
    margin: int,
    generator: np.random.Generator | None,
) -> npt.NDArray[np.int64] | None:
    """Centres on a store's grid as frame indices; None where every frame may be a centre."""
    if timeline.centre_times is None:
        return None
    assert timeline.frame_times is not None
    moments = np.asarray(timeline.centre_times) + TIME_SLACK
    grid = np.searchsorted(timeline.frame_times, moments, side="right") - 1 - first
    on_grid = np.unique(grid[(grid >= 0) & (grid < len(inside))])
    fitting = on_grid[(on_grid >= margin) & (on_grid < len(inside) - margin)]
    chosen = fitting if len(fitting) else on_grid
    if not len(chosen):
        return None
    return chosen[_pick(len(chosen), num_clips, generator)]


def _pick(count: int, wanted: int, generator: np.random.Generator | None) -> npt.NDArray[np.int64]:
    """`wanted` of `count` places, ascending and distinct where there are enough."""
    if generator is None:
        places = (np.arange(wanted) + 0.5) * count / wanted
        return np.minimum(places.astype(np.int64), count - 1)
    drawn = generator.choice(count, size=wanted, replace=count < wanted)
    return np.asarray(np.sort(drawn), dtype=np.int64)


def _stride(timeline: Timeline, config: ClipConfig) -> float:
    start, end = _stretch(timeline)
    return min(config.stride_seconds, (end - start) / config.num_frames)


def _seconds_plan(
    timeline: Timeline, config: ClipConfig, num_clips: int, generator: np.random.Generator | None
) -> Times:
    """Each frame stands in the middle of `stride` seconds; short stretches shrink the stride."""
    start, end = _stretch(timeline)
    stride = _stride(timeline, config)
    half = config.num_frames * stride / 2
    low, high = start + half, max(start + half, end - half)
    centres = low + (high - low) * _spread(num_clips, generator)
    grid = _grid(timeline, low, high)
    if grid is not None:
        centres = _snap(centres, grid)
    neighbours = (config.num_frames - 1) // 2
    rows = [_around(centre, neighbours, stride, start, end) for centre in centres]
    return np.asarray(rows, dtype=np.float64)  # N T


def _spread(count: int, generator: np.random.Generator | None) -> Times:
    """One place in each of `count` equal parts of [0, 1): its middle, or drawn."""
    inner = np.full(count, 0.5) if generator is None else generator.random(count)
    return (np.arange(count) + inner) / count


def _grid(timeline: Timeline, low: float, high: float) -> Times | None:
    """The centre times within [low, high], else those within the stretch; None for no store."""
    if timeline.centre_times is None or not len(timeline.centre_times):
        return None
    grid = np.asarray(timeline.centre_times, dtype=np.float64)
    start, end = _stretch(timeline)
    for bottom, top in ((low, high), (start, end)):
        within = grid[(grid >= bottom) & (grid <= top)]
        if len(within):
            return within
    raise AssertionError("the stretch was widened to hold a centre")


def _snap(centres: Times, grid: Times) -> Times:
    """The nearest grid time of each centre; distinct ones as long as the grid has enough."""
    nearest = np.abs(grid[None, :] - centres[:, None]).argmin(axis=1)
    if len(grid) >= len(centres):
        for i in range(1, len(nearest)):  # push right, then left from the end
            nearest[i] = max(nearest[i], nearest[i - 1] + 1)
        ceiling = len(grid) - 1
        for i in range(len(nearest) - 1, -1, -1):
            nearest[i] = min(nearest[i], ceiling)
            ceiling = nearest[i] - 1
    return np.asarray(grid[nearest])


def _around(centre: float, neighbours: int, stride: float, start: float, end: float) -> Times:
    """T times around a centre; a side that would leave [start, end) gets a smaller stride."""
    room = neighbours + 0.5
    before = min(stride, max(0.0, centre - start) / room)
    after = min(stride, max(0.0, end - centre) / room)
    steps = np.arange(1, neighbours + 1)
    return np.concatenate([centre - steps[::-1] * before, [centre], centre + steps * after])


def _whole_plan(
    timeline: Timeline, num_frames: int, num_clips: int, generator: np.random.Generator | None
) -> Times:
    """Frame j of clip k lies in bin j N + k of N T equal bins: several clips interleave."""
    start, end = _stretch(timeline)
    shape = (num_frames, num_clips)
    inner = np.full(shape, 0.5) if generator is None else generator.random(shape)
    bins = np.arange(num_frames)[:, None] * num_clips + np.arange(num_clips)[None, :]
    places = (bins + inner) / (num_frames * num_clips)  # T N
    times = start + (end - start) * places.T  # N T
    grid = _grid(timeline, start, end)
    if grid is not None:
        times = np.stack(
            [
                _bend(row, float(grid[np.abs(grid - row[len(row) // 2]).argmin()]), start, end)
                for row in times
            ]
        )
    return np.asarray(times, dtype=np.float64)


def _bend(row: Times, centre: float, start: float, end: float) -> Times:
    """The same times with the middle one moved to `centre`, both sides stretched to fit."""
    centre = min(max(centre, start), end)
    old = row[len(row) // 2]
    left = start + (row - start) * ((centre - start) / max(old - start, 1e-12))
    right = end - (end - row) * ((end - centre) / max(end - old, 1e-12))
    bent: Times = np.where(np.arange(len(row)) < len(row) // 2, left, right)
    bent[len(row) // 2] = centre
    return bent


def _clip(timeline: Timeline, times: Times, spacing: float, span: str) -> Clip:
    start, end = _stretch(timeline)
    if span != "whole":
        start = max(start, float(times[0]) - spacing / 2)
        end = min(max(end, float(times[-1])), float(times[-1]) + spacing / 2)
    seen = tuple(
        i
        for i, segment in enumerate(timeline.segments)
        if (segment.start is None or segment.start < end)
        and (segment.end is None or segment.end > start)
    )
    return Clip(
        start=start,
        end=end,
        times=tuple(float(t) for t in times),
        middle=len(times) // 2,
        audio=(start, end) if "audio" in timeline.tracks else None,
        segments=seen,
    )
