"""What time stamps are worth, and the order of frames where they are worth nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from tests.video.conftest import Rendered

from rushes.errors import UnreadableVideo
from rushes.video import store_prepare
from rushes.video.catalogue import Catalogue, Source
from rushes.video.cutting import cut
from rushes.video.doctor import examine
from rushes.video.index import VideoIndex
from rushes.video.limits import Limits
from rushes.video.probe import build_index, probe, source_of
from rushes.video.readers import open_reader
from rushes.video.request import Frames, Request
from rushes.video.store_format import StoreSettings
from rushes.video.timeline import (
    NO_TIME,
    crossings,
    display_order,
    known_times,
    times_of_output,
)
from rushes.video.transcode import Settings, compress
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


def test_crossings_count_each_lie_once_and_half_of_what_is_shown_at_once() -> None:
    assert crossings(np.argsort(OUTPUT) * 40).max() == 1
    assert crossings(np.array([0, 10**9, 1, 2, 3, 4, 5])).max() == 1
    assert crossings(np.array([0, 1, 2, 3, 4, 5, -(10**9)])).max() == 1
    assert crossings(np.concatenate([GROWING, GROWING])).argmax() == 6
    assert crossings(np.concatenate([GROWING, GROWING])).max() == 3
    half = np.concatenate([GROWING, [NO_TIME], GROWING, [NO_TIME]])
    assert crossings(half).max() >= 3
    assert not crossings(np.full(3, NO_TIME)).any()


@pytest.mark.parametrize(
    "names",
    [
        ("h264_b.ts", "h264_b.ts"),
        ("h264_late.ts", "h264_b.ts"),
        ("h264_open.ts", "h264_open.ts"),
        ("hevc.ts", "hevc.ts"),
        ("mpeg2.ts", "mpeg2.ts"),
        ("mpeg2.mpg", "mpeg2.mpg"),
    ],
)
def test_a_clock_that_begins_anew_is_refused_by_all(
    counter: Rendered, tmp_path: Path, names: tuple[str, str]
) -> None:
    source = Source("file", "v", tmp_path / "v.ts")
    source.path.write_bytes(b"".join(counter(name)[1].read_bytes() for name in names))
    reader = open_reader(Catalogue.from_items({"v": source.path}))
    uses: dict[str, Callable[[], object]] = {
        "probe": lambda: probe(source),
        "read": lambda: reader.read(Request("v", (Frames((0.0, 3.0)),))),
        "compress": lambda: compress(source, tmp_path / "made.mp4", Settings()),
        "cut": lambda: cut(source, tmp_path / "cut.mp4", 0.0, 1.0, Settings()),
        "store": lambda: store_prepare.prepare_clip(
            source, StoreSettings(), Limits(), tmp_path / "aside"
        ),
    }
    for use in uses.values():
        with pytest.raises(UnreadableVideo, match="its clock goes back at frame") as caught:
            use()
        assert caught.value.reason == "undecodable"
    for deep in (False, True):
        row = examine(source, deep)
        assert (row.status, row.reason) == ("refused", "undecodable")
        assert "ffmpeg -f concat" in row.detail


def test_parts_whose_clock_goes_on_and_stamps_that_shake_are_read(
    counter: Rendered, tmp_path: Path
) -> None:
    path = tmp_path / "on.ts"
    path.write_bytes(counter("h264_b.ts")[1].read_bytes() + counter("h264_late.ts")[1].read_bytes())
    assert probe(path).num_frames == 120
    shaken = tmp_path / "shaken.ts"
    shake = np.random.default_rng(0)
    with av.open(str(counter("h264_b.ts")[1])) as given, av.open(str(shaken), "w") as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.size and packet.pts is not None:
                packet.pts += int(shake.integers(0, 3000))  # of 3600 a frame
                packet.stream = stream
                made.mux(packet)
    found = probe(shaken)
    assert (found.num_frames, found.damaged) == (60, False)
