"""Windows cover a video, suppression keeps the best, chance is what simulation says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rushes.errors import ConfigError
from rushes.metrics import temporal_iou
from rushes.search.windows import LENGTHS, Moment, Span, random_hit, suppress, windows


@given(st.floats(0.1, 400), st.floats(0.1, 1))
def test_windows_cover_the_video_and_stay_inside(duration: float, hop: float) -> None:
    spans = windows(duration, hop=hop)
    assert spans == sorted(set(spans))
    assert spans[0].start == 0
    assert max(span.end for span in spans) == pytest.approx(duration)
    reached = 0.0
    for span in spans:
        assert span.start <= reached + 1e-9
        assert 0 <= span.start < span.end <= duration + 1e-9
        reached = max(reached, span.end)


@pytest.mark.parametrize("length", [3.5, 5.0, 8.0, 12.0])
def test_every_stretch_of_a_usual_length_is_close_to_a_window(length: float) -> None:
    spans = windows(60.0)
    for start in np.linspace(0, 60 - length, 50):
        truth = (float(start), float(start) + length)
        assert max(temporal_iou(truth, span) for span in spans) > 0.5


def test_short_videos_are_one_window_and_nonsense_is_refused() -> None:
    assert windows(3.0) == [Span(0.0, 3.0)]
    assert Span(0.0, 6.5) in windows(6.5)
    for lengths, hop in (((), 0.5), ((0.0,), 0.5), (LENGTHS, 0.0), (LENGTHS, 1.5)):
        with pytest.raises(ConfigError):
            windows(10.0, lengths, hop)


def test_suppression_keeps_the_best_of_what_overlaps() -> None:
    moments = [
        Moment("a", 0, 4, 0.5),
        Moment("a", 1, 5, 0.9),
        Moment("a", 20, 24, 0.4),
        Moment("b", 1, 5, 0.3),
        Moment("a", 4.9, 9, 0.2),
    ]
    kept = suppress(moments, 10)
    assert [m.score for m in kept] == [0.9, 0.4, 0.3, 0.2]
    assert suppress(moments, 2) == kept[:2]


def test_chance_of_a_random_span() -> None:
    generator = np.random.default_rng(0)
    for duration, truth in (
        (60.0, Span(10.0, 16.0)),
        (60.0, Span(0.0, 6.0)),
        (9.0, Span(2.0, 8.0)),
    ):
        length = truth.end - truth.start
        starts = generator.uniform(0, duration - length, 40000)
        hits = [temporal_iou((s, s + length), truth) >= 0.5 for s in starts]
        assert random_hit(duration, truth) == pytest.approx(np.mean(hits), abs=0.01)
    assert random_hit(5.0, Span(0.0, 5.0)) == 1.0
