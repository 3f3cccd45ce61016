"""Every backend on counter videos: the number in the picture is the number that was asked."""

from __future__ import annotations

import numpy as np
import pytest
from tests.helpers import require
from tests.video.conftest import Rendered
from tests.video.counter_video import RECIPES, number_of

from rushes.errors import FrameUnavailable, UnreadableVideo
from rushes.video.catalogue import Catalogue
from rushes.video.readers import open_reader
from rushes.video.request import Box, Frames, FrameStatus, Request, Size

MUST_BE_RIGHT = ("pyav", "torchcodec")


@pytest.mark.parametrize("backend", ["pyav", "torchcodec", "decord", "opencv"])
@pytest.mark.parametrize("name", [recipe.name for recipe in RECIPES])
def test_the_asked_frame_comes(counter: Rendered, name: str, backend: str) -> None:
    if backend == "torchcodec":
        require("torchcodec")
    recipe, path = counter(name)
    ticks = recipe.ticks() / recipe.rate
    reader = open_reader(Catalogue.from_items({"v": path}), backend)
    generator = np.random.default_rng(1)
    for late in (0.0, 0.4 / recipe.rate):
        picked = generator.integers(0, recipe.frames, 6)
        times = tuple((ticks[picked] + late).tolist())
        try:
            reply = reader.read(Request("v", (Frames(times),), policy="strict"))
        except UnreadableVideo as error:
            if backend in MUST_BE_RIGHT or "cannot be trusted" not in error.detail:
                raise
            return
        images = [np.rot90(x, -recipe.rotation // 90) for x in reply.arrays["frames"]]
        assert [number_of(x) for x in images] == picked.tolist()
        np.testing.assert_allclose(reply.times["frames"], ticks[picked], atol=2e-3)
        assert (reply.status["frames"] == FrameStatus.OK).all()
    reader.close()


@pytest.mark.parametrize("name", [recipe.name for recipe in RECIPES])
def test_the_probe_tells_what_was_rendered(counter: Rendered, name: str) -> None:
    recipe, path = counter(name)
    info = open_reader(Catalogue.from_items({"v": path})).describe("v")
    assert info.num_frames == recipe.frames
    assert info.rotation == -recipe.rotation % 360
    size = (recipe.width, recipe.height)
    assert (info.width, info.height) == (size if recipe.rotation % 180 == 0 else size[::-1])
    np.testing.assert_allclose(info.frame_times, recipe.ticks() / recipe.rate, atol=2e-3)
    assert info.keyframes[0] == 0
    assert info.duration == pytest.approx((recipe.ticks()[-1] + 1) / recipe.rate, abs=0.09)


def test_half_of_a_b_frame_stream_is_never_decoded(counter: Rendered) -> None:
    recipe, path = counter("h264_b.mp4")
    reader = open_reader(Catalogue.from_items({"v": path}))
    reader.describe("v")
    last = (recipe.frames - 1) / recipe.rate
    reply = reader.read(Request("v", (Frames((last,)),)))
    assert number_of(reply.arrays["frames"][0]) == recipe.frames - 1
    assert reply.cost.frames_decoded < recipe.gop  # one group, less its B-frames
    reply = reader.read(Request("v", (Frames((0.0, last)),)))
    assert reply.cost.frames_decoded < recipe.gop + 1  # nothing between the two groups
    assert reply.cost.frames_returned == 2


def test_gradual_refresh_is_found_and_read_whole(counter: Rendered) -> None:
    _, path = counter("h264_refresh.mkv")
    reader = open_reader(Catalogue.from_items({"v": path}))
    reply = reader.read(Request("v", (Frames((40 / 25,)),)))
    assert number_of(reply.arrays["frames"][0]) == 40


def test_several_outputs_from_one_decode(counter: Rendered) -> None:
    _, path = counter("h264_b.mp4")
    reader = open_reader(Catalogue.from_items({"v": path}))
    outputs = (
        Frames((0.4,), name="high"),
        Frames((0.2, 0.4, 0.4, 0.0), size=Size(24, 40), name="low"),
        Frames((0.4,), size=Size(48, 40), crop=Box(0, 80, 96, 80), name="right"),
    )
    reply = reader.read(Request("v", outputs))
    assert {k: v.shape for k, v in reply.arrays.items()} == {
        "high": (1, 96, 160, 3),
        "low": (4, 24, 40, 3),
        "right": (1, 48, 40, 3),
    }
    assert [number_of(x) for x in reply.arrays["low"]] == [5, 10, 10, 0]
    assert reply.requested["low"].tolist() == [0.2, 0.4, 0.4, 0.0]


def test_the_policy_rules_past_the_end(counter: Rendered) -> None:
    recipe, path = counter("h264_ip.mp4")
    reader = open_reader(Catalogue.from_items({"v": path}))
    end = recipe.frames / recipe.rate
    reply = reader.read(Request("v", (Frames((end - 0.001, end + 5.0, -1.0)),)))
    assert [number_of(x) for x in reply.arrays["frames"]] == [recipe.frames - 1] * 2 + [0]
    assert reply.status["frames"].tolist() == [0, 1, 1]
    for moment in (end, -0.01):
        with pytest.raises(FrameUnavailable):
            reader.read(Request("v", (Frames((moment,)),), policy="strict"))


def test_a_moment_has_a_microsecond_of_slack(counter: Rendered) -> None:
    _, path = counter("h264_ip.mp4")
    reader = open_reader(Catalogue.from_items({"v": path}))
    reply = reader.read(Request("v", (Frames((0.4 - 9e-7, 0.4 - 1.1e-6)),)))
    assert [number_of(x) for x in reply.arrays["frames"]] == [10, 9]
