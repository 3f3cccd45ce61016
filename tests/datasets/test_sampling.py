"""Clip sampling: properties that always hold, and each row of the published sampling table."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rushes.configs.schema import ClipConfig
from rushes.datasets.clips import Timeline
from rushes.datasets.record import Segment
from rushes.datasets.sampling import plan_clips, published_centres, published_stride
from rushes.errors import ConfigError


def _even(num_frames: int, fps: float = 25.0) -> Timeline:
    return Timeline(num_frames / fps, frame_times=np.arange(num_frames) / fps)


def _indices(
    timeline: Timeline, config: ClipConfig, num_clips: int, seed: int | None
) -> list[list[int]]:
    generator = None if seed is None else np.random.default_rng(seed)
    assert timeline.frame_times is not None
    clips = plan_clips(timeline, config, num_clips, generator)
    return [[int(i) for i in np.searchsorted(timeline.frame_times, c.times)] for c in clips]


PLANS = st.fixed_dictionaries(
    {
        "sampling": st.sampled_from(["frames", "seconds"]),
        "span": st.sampled_from(["stride", "whole"]),
        "num_frames": st.sampled_from([1, 3, 7, 13]),
        "stride": st.integers(1, 15),
        "stride_seconds": st.floats(0.02, 4.0),
    }
)


@settings(max_examples=150, deadline=None)
@given(
    plan=PLANS,
    count=st.integers(1, 400),
    gaps=st.integers(0, 2**31),
    num_clips=st.integers(1, 8),
    seed=st.none() | st.integers(0, 1000),
    stretch=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    grid=st.booleans(),
)
def test_plans_are_ascending_inside_the_stretch_and_repeatable(
    plan: dict[str, object],
    count: int,
    gaps: int,
    num_clips: int,
    seed: int | None,
    stretch: tuple[float, float],
    grid: bool,
) -> None:
    steps = np.random.default_rng(gaps).uniform(0.005, 0.2, count)  # a variable frame rate
    times = np.concatenate([[0.0], np.cumsum(steps)])[:-1]
    duration = float(np.sum(steps))
    low, high = sorted(part * duration for part in stretch)
    centres = times[:: max(1, count // 6)] if grid else None
    timeline = Timeline(duration, times, start=low, end=high, centre_times=centres)
    config = ClipConfig(**plan)  # type: ignore[arg-type]

    def plan_once() -> list[tuple[float, ...]]:
        generator = None if seed is None else np.random.default_rng(seed)
        clips = plan_clips(timeline, config, num_clips, generator)
        assert all(c.middle == config.num_frames // 2 for c in clips)
        return [c.times for c in clips]

    planned = plan_once()
    assert planned == plan_once()
    assert len(planned) == num_clips
    on_screen_at_start = times[max(0, int(np.searchsorted(times, low, side="right")) - 1)]
    for row in planned:
        assert len(row) == config.num_frames
        assert list(row) == sorted(row)
        reach = min(low, on_screen_at_start) if centres is None else 0.0
        assert row[0] >= reach - 1e-9
        if centres is None:
            assert row[-1] <= high + 1e-9
        else:
            assert min(abs(centres - row[config.num_frames // 2])) < 1e-9


@pytest.mark.parametrize(
    ("name", "num_frames", "stride", "train_clips", "test_clips"),
    [
        ("pretraining", 7, 12, 2, 2),
        ("MSRVTT", 7, 4, 2, 4),
        ("LSMDC", 11, 3, 2, 4),
        ("DiDeMo", 11, 2, 4, 8),
        ("ActivityNet", 13, 4, 4, 8),
        ("question answering", 7, 4, 1, 8),
    ],
)
def test_published_rows(
    name: str, num_frames: int, stride: int, train_clips: int, test_clips: int
) -> None:
    config = ClipConfig(sampling="frames", num_frames=num_frames, stride=stride)
    neighbours, total = (num_frames - 1) // 2, 300
    drawn = _indices(_even(total), config, train_clips, seed=3)
    middles = [row[neighbours] for row in drawn]
    assert middles == sorted(set(middles))
    assert all(neighbours * stride <= m < total - neighbours * stride for m in middles)
    possible = list(range(neighbours * stride, total - neighbours * stride))
    judged = _indices(_even(total), config, test_clips, seed=None)
    left_aligned = possible[:: len(possible) // test_clips][:test_clips]
    assert [row[neighbours] for row in judged] == left_aligned
    for row in drawn + judged:
        assert set(np.diff(row)) == {stride}


def test_the_measured_example_of_inference_centres() -> None:
    config = ClipConfig(sampling="frames", num_frames=7, stride=4)
    rows = _indices(_even(300), config, 8, seed=None)
    assert [row[3] for row in rows] == [12, 46, 80, 114, 148, 182, 216, 250]


@pytest.mark.parametrize(
    ("total", "clips", "expected"),
    [(26, 2, 4), (25, 2, 3), (14, 2, 2), (7, 2, 0), (1, 2, 0), (2, 8, 0)],
)
def test_short_files_shrink_the_stride_but_never_below_zero(
    total: int, clips: int, expected: int
) -> None:
    assert published_stride(total, clips, num_frames=7, stride=4) == expected
    config = ClipConfig(sampling="frames", num_frames=7, stride=4)
    for seed in (None, 1):
        rows = _indices(_even(total), config, clips, seed)
        assert len(rows) == clips
        assert all(set(np.diff(row)) == {expected} for row in rows)
        assert all(0 <= i < total for row in rows for i in row)


def test_more_clips_than_frames_repeat_centres() -> None:
    assert list(published_centres(3, 5, neighbours=3, stride=0)) == [0, 0, 1, 1, 2]


def test_centres_are_drawn_without_replacement_over_the_whole_range() -> None:
    config = ClipConfig(sampling="frames", num_frames=3, stride=2)
    seen = {row[1] for seed in range(200) for row in _indices(_even(12), config, 2, seed)}
    assert seen == set(range(2, 10))


def test_seconds_mean_the_same_at_any_frame_rate() -> None:
    config = ClipConfig(num_frames=5, stride_seconds=0.4)
    slow = plan_clips(Timeline(10.0, np.arange(60) / 6), config, 3)
    fast = plan_clips(Timeline(10.0, np.arange(600) / 60), config, 3)
    assert [c.times for c in slow] == [c.times for c in fast]
    assert np.allclose(np.diff(slow[0].times), 0.4)


def test_seconds_cover_the_video_one_clip_a_part() -> None:
    config = ClipConfig(num_frames=3, stride_seconds=0.1)
    for seed in range(20):
        clips = plan_clips(Timeline(8.0), config, 4, np.random.default_rng(seed))
        parts = [int((c.times[1] - 0.15) / (7.7 / 4)) for c in clips]  # of the possible centres
        assert parts == [0, 1, 2, 3]


def test_short_stretches_shrink_the_seconds() -> None:
    (clip,) = plan_clips(Timeline(9.0, start=2.0, end=3.0), ClipConfig(num_frames=5), 1)
    assert np.allclose(clip.times, [2.1, 2.3, 2.5, 2.7, 2.9])
    assert (clip.start, clip.end) == pytest.approx((2.0, 3.0))


def test_whole_span_interleaves_the_clips_in_equal_bins() -> None:
    config = ClipConfig(span="whole", num_frames=3)
    first, second = plan_clips(Timeline(6.0), config, 2)
    assert np.allclose(first.times, [0.5, 2.5, 4.5])
    assert np.allclose(second.times, [1.5, 3.5, 5.5])
    for seed in range(20):
        drawn = plan_clips(Timeline(6.0), config, 2, np.random.default_rng(seed))
        bins = [[int(t) for t in clip.times] for clip in drawn]
        assert bins == [[0, 2, 4], [1, 3, 5]]


def test_middles_lie_on_a_stores_grid_and_differ_where_they_can() -> None:
    grid = np.array([0.0, 2.0, 4.0, 6.0, 8.0])
    timeline = Timeline(10.0, np.arange(250) / 25, centre_times=grid)
    for seed in (None, *range(10)):
        generator = None if seed is None else np.random.default_rng(seed)
        for sampling in ("seconds", "frames"):
            config = ClipConfig(sampling=sampling, num_frames=5, stride=5, stride_seconds=0.3)
            middles = [c.times[c.middle] for c in plan_clips(timeline, config, 3, generator)]
            assert len(set(middles)) == 3
            assert set(middles) <= set(grid)


def test_clips_know_their_segments_and_their_sound() -> None:
    segments = (Segment("a", start=0.0, end=1.0), Segment("b", start=5.0, end=6.0), Segment("all"))
    timeline = Timeline(8.0, segments=segments, tracks=("audio",))
    (clip,) = plan_clips(Timeline(8.0, segments=segments, start=4.0, end=7.0), ClipConfig(), 1)
    assert clip.segments == (1, 2)
    assert clip.audio is None
    (heard,) = plan_clips(timeline, ClipConfig(), 1)
    assert heard.audio == (heard.start, heard.end)


def test_even_counts_and_missing_times_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_frames=4"):
        plan_clips(Timeline(1.0), ClipConfig(num_frames=4), 1)
    with pytest.raises(ConfigError, match="num_clips=0"):
        plan_clips(Timeline(1.0), ClipConfig(), 0)
    with pytest.raises(ConfigError, match="presentation times"):
        plan_clips(Timeline(1.0), ClipConfig(sampling="frames"), 1)
