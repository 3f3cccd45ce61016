"""What time stamps are worth, and the order of frames where they are worth nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.video.conftest import Rendered

from rushes.errors import UnreadableVideo
from rushes.video import store_prepare
from rushes.video.catalogue import Source
from rushes.video.index import VideoIndex
from rushes.video.limits import Limits
from rushes.video.probe import build_index, source_of
from rushes.video.store_format import StoreSettings
from rushes.video.timeline import NO_TIME, display_order, known_times, times_of_output
from rushes.video.truth import decode_everything

OUTPUT = np.array([0, 2, 3, 1, 5, 4])
"""Packets in the order of display of a stream with B-frames."""
GROWING = np.arange(6) * 40


@pytest.mark.parametrize("container", ["avi", "asf"])
def test_decode_times_are_no_presentation_times(container: str) -> None:
    pts, dts = known_times(container, GROWING + 40, GROWING, reorders=True, delay=2)
    assert (pts == NO_TIME).all()
    # The sound of ASF is on the same clock; AVI has none.
    assert dts[0] == (80 if container == "asf" else 0)
    times, order = display_order(OUTPUT, pts, dts, 0.001, 25.0)
    assert order.tolist() == list(range(6))
    np.testing.assert_allclose(times, np.arange(6) * 0.04)


def test_without_reordering_decode_times_are_those_of_display() -> None:
    pts, _ = known_times("avi", GROWING + 40, GROWING, reorders=False, delay=0)
    assert pts.tolist() == GROWING.tolist()
    pts, _ = known_times("matroska", GROWING + 40, GROWING, reorders=True, delay=2)
    assert pts[0] == 40


def test_growing_stamps_and_another_order_of_output_contradict() -> None:
    told = times_of_output(OUTPUT, GROWING)
    assert told is not None
    assert told[OUTPUT].tolist() == GROWING.tolist()
    assert times_of_output(np.arange(6), GROWING) is None
    honest = np.argsort(OUTPUT) * 40
    assert times_of_output(OUTPUT, honest) is None


def test_the_rate_at_the_ends_is_that_of_the_known_stamps() -> None:
    pts = np.array([NO_TIME, 40, NO_TIME, 120, NO_TIME])
    times, _ = display_order(np.arange(5), pts, np.full(5, NO_TIME), 0.001, 12.0)
    np.testing.assert_allclose(times, np.arange(5) * 0.04)


@pytest.mark.parametrize(
    "name", ["h264_b.avi", "h264_pyramid.asf", "mpeg4_b.asf", "mpeg2.avi", "h264_stamped.mp4"]
)
def test_the_index_has_the_order_of_the_decoder(counter: Rendered, name: str) -> None:
    source = source_of(counter(name)[1])
    index = build_index(source, Limits())
    truth = decode_everything(source, index, Limits())
    assert index.invented
    assert index.frame_packets.tolist() == truth.frame_packets.tolist()
    assert (np.diff(index.frame_packets) < 0).any()


def test_plain_streams_are_not_decoded_for_their_order(
    counter: Rendered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rushes.video.probe.decode_everything", None)
    for name in ("h264_ip.avi", "h264_ip.asf", "h264_ip.mp4", "h264_b.mp4"):
        index = build_index(source_of(counter(name)[1]), Limits())
        assert not index.invented
        assert index.info.start == 0


def test_a_store_does_not_believe_an_index_against_the_decoder(
    counter: Rendered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = counter("h264_b.avi")[1]

    def in_file_order(source: Source, *_: object, **__: object) -> VideoIndex:
        index = build_index(source, Limits())
        places = np.arange(len(index.frame_packets))
        return replace(index, pts=places, frame_packets=places)

    monkeypatch.setattr(store_prepare, "build_index", in_file_order)
    monkeypatch.setattr(store_prepare, "fence", in_file_order)
    with pytest.raises(UnreadableVideo, match="came out after"):
        store_prepare.prepare_clip(
            Source("file", "v", path), StoreSettings(), Limits(), tmp_path / "aside"
        )
