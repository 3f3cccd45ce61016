"""Arrays answer like files, with the same checks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tests.video.counter_video import number_of, picture

from rushes.errors import RefusedVideo, UnreadableVideo
from rushes.video.arrays import ArrayReader
from rushes.video.request import Frames, Request, Size


def test_frames_of_an_array_are_found_and_bounded() -> None:
    pixels = np.stack([picture(number, 160, 96) for number in range(5)])
    reader = ArrayReader({"v": pixels}, fps=5.0)
    reply = reader.read(Request("v", (Frames((0.0, 0.45, 9.0)),)))
    assert [number_of(frame) for frame in reply.arrays["frames"]] == [0, 2, 4]
    with pytest.raises(RefusedVideo, match=r"6001x6001 .* 36000000"):
        reader.read(Request("v", (Frames((0.0,), Size(6001, 6001)),)))
    with pytest.raises(RefusedVideo, match="bytes was asked"):
        reader.read(Request("v", (Frames((0.0,) * 100, Size(6000, 6000)),)))


@pytest.mark.parametrize("fps", [0.0, -1.0, math.inf, math.nan])
def test_a_rate_must_be_one(fps: float) -> None:
    with pytest.raises(UnreadableVideo, match="fps="):
        ArrayReader({"v": np.zeros((1, 2, 2, 3), np.uint8)}, fps)
