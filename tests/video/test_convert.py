"""Boxes, sizes and rotation come out as if the whole display picture had been made first."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from rushes.errors import RefusedVideo
from rushes.video.convert import Converter
from rushes.video.request import Box, Resample, Size


def smooth(height: int, width: int) -> npt.NDArray[np.uint8]:
    rows, columns = np.mgrid[0:height, 0:width]
    red = 128 + 100 * np.sin(rows / 9) * np.cos(columns / 13)
    image = np.stack([red, 255 * rows / height, 255 * columns / width], -1)
    return image.astype(np.uint8)


def converted(
    frame: Any, rotation: int, box: Box | None, size: Size | None, how: Resample = "area"
) -> npt.NDArray[np.uint8]:
    shown = Size(frame.height, frame.width)
    shown = Size(shown.width, shown.height) if rotation % 180 else shown
    converter = Converter("v", shown, rotation)
    out = np.zeros((*converter.target(box, size), 3), np.uint8)
    converter.convert(frame, box, size, how, out)
    return out


def frame_of(image: npt.NDArray[np.uint8], pixel_format: str = "yuv420p") -> Any:
    return av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixel_format)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("box", [Box(8, 12, 40, 60), Box(7, 13, 41, 59), Box(0, 0, 64, 64)])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p", "yuv422p10le"])
def test_a_crop_is_cut_from_the_display(rotation: int, box: Box, pixel_format: str) -> None:
    frame = frame_of(smooth(96, 128), pixel_format)
    whole = converted(frame, rotation, None, None)
    cut = converted(frame, rotation, box, None)
    expected = whole[box.top : box.top + box.height, box.left : box.left + box.width]
    assert np.abs(cut.astype(int) - expected).mean() < 2.0


@pytest.mark.parametrize("rotation", [0, 90])
def test_area_averages(rotation: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 1), np.uint8).repeat(3, 2)
    frame = frame_of(noise, "yuv444p")
    whole = converted(frame, rotation, None, None).astype(float)
    small = converted(frame, rotation, None, Size(whole.shape[0] // 4, whole.shape[1] // 4))
    blocks = whole.reshape(whole.shape[0] // 4, 4, whole.shape[1] // 4, 4, 3).mean((1, 3))
    assert np.abs(small - blocks).mean() < 1.5


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("box", [None, Box(3, 5, 50, 77)])
def test_nearest_takes_the_published_index(rotation: int, box: Box | None) -> None:
    frame = frame_of(smooth(96, 128), "yuv444p")
    whole = converted(frame, rotation, None, None)
    box_in = box if box is None or rotation % 180 == 0 else Box(5, 3, 77, 50)
    top, left, height, width = box_in or Box(0, 0, *whole.shape[:2])
    size = Size(23, 31)
    got = converted(frame, rotation, box_in, size, "nearest")
    rows = top + np.floor((np.arange(23) + 0.5) * height / 23).astype(int)
    columns = left + np.floor((np.arange(31) + 0.5) * width / 31).astype(int)
    if rotation == 0:
        np.testing.assert_array_equal(got, whole[rows[:, None], columns[None]])
    else:  # counted from the other edge the half-way cases may fall one pixel aside
        assert np.abs(got.astype(int) - whole[rows[:, None], columns[None]]).mean() < 3


def test_a_box_outside_is_refused() -> None:
    converter = Converter("v", Size(96, 128), 0)
    for box in (Box(0, 0, 97, 10), Box(-1, 0, 5, 5), Box(0, 0, 0, 5), Box(90, 120, 6, 9)):
        with pytest.raises(RefusedVideo, match="not inside"):
            converter.target(box, None)


def test_a_shape_that_cannot_be_scaled_is_refused() -> None:
    frame = frame_of(smooth(2, 2))
    with pytest.raises(RefusedVideo, match="2x2 pixels cannot be made 1x16384"):
        converted(frame, 0, None, Size(1, 16_384))
