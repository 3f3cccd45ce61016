"""From a decoded picture straight to RGB of the asked box and size.

The decoder's planes are cropped without copying and converted and resized in one pass (swscale);
rotation comes last, on the small result.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt
from av.error import FFmpegError
from av.video.reformatter import Interpolation, VideoReformatter

from rushes.errors import RefusedVideo
from rushes.video.request import Box, Resample, Size

Picture = npt.NDArray[np.uint8]

_METHODS = {
    "area": Interpolation.AREA,
    "bilinear": Interpolation.BILINEAR,
    "bicubic": Interpolation.BICUBIC,
}
_MAX_REFORMATTERS = 16


class _Shape(NamedTuple):
    """How display pixels lie on a stored picture."""

    height: int
    width: int
    turns: int


class Converter:
    """Converts the frames of one video; keeps the scalers that it has set up.

    Args:
        video: id, for errors.
        size: display size, after rotation and sample aspect.
        rotation: degrees clockwise that the picture is turned for display.
        colorspace: FFmpeg's code where the frame does not tell its own.
    """

    def __init__(self, video: str, size: Size, rotation: int, colorspace: int = 2) -> None:
        self.video, self.size = video, size
        self.turns = rotation // 90 % 4
        self.colorspace = colorspace
        self._scalers: dict[tuple[object, ...], VideoReformatter] = {}
        self._croppers: dict[tuple[object, ...], Any] = {}

    def target(self, crop: Box | None, size: Size | None) -> Size:
        """The size of an output; raises RefusedVideo for a box outside the picture."""
        if crop is not None:
            inside = crop.top >= 0 and crop.left >= 0 and crop.height > 0 and crop.width > 0
            inside &= crop.top + crop.height <= self.size.height
            inside &= crop.left + crop.width <= self.size.width
            if not inside:
                detail = f"box {tuple(crop)} is not inside the picture of {tuple(self.size)}"
                raise RefusedVideo(self.video, detail)
        if size is None:
            return Size(crop.height, crop.width) if crop is not None else self.size
        if size.height <= 0 or size.width <= 0:
            raise RefusedVideo(self.video, f"an output of {tuple(size)} pixels")
        return size

    def convert(
        self, frame: Any, crop: Box | None, size: Size | None, resample: Resample, out: Picture
    ) -> None:
        """Write one picture into `out`, uint8 `H W C`.

        Args:
            frame: decoded frame.
            crop: display pixels; None is all.
            size: of the result; None keeps that of the crop.
            resample: how to resize.
            out: where to, of the size that `target` told.
        """
        target = self.target(crop, size)
        stored = self._stored_size()
        box = None if crop is None else _unturn(crop, self.size, self.turns)
        if self.turns % 2:
            target = Size(target.width, target.height)
        if box is not None and (box.top, box.left, *box[2:]) == (0, 0, *stored):
            box = None
        if (frame.height, frame.width) != tuple(stored) and (box is not None):
            # Sample aspect, or a stream that changes its size: boxes are in display pixels.
            frame = self._scale(frame, stored, "bicubic")
        if resample == "nearest":
            picture = _pick(_view(self._scale(frame, None, "bilinear")), box, target)
        else:
            picture = self._picture(frame, box, target, resample)
        np.copyto(out, np.rot90(picture, -self.turns) if self.turns else picture)

    def _stored_size(self) -> Size:
        return Size(self.size.width, self.size.height) if self.turns % 2 else self.size

    def _picture(self, frame: Any, box: Box | None, target: Size, resample: Resample) -> Picture:
        if box is None:
            return _view(self._scale(frame, target, resample))
        cropped, exact = self._crop(frame, box)
        if exact:
            return _view(self._scale(cropped, target, resample))
        # The box does not fit the chroma grid: cut exactly in RGB, then resize.
        rgb = _view(self._scale(cropped, None, resample))
        top, left = box.top % 2, box.left % 2
        rgb = rgb[top : top + box.height, left : left + box.width]
        if rgb.shape[:2] == tuple(target):
            return rgb
        again = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        return _view(self._scale(again, target, resample))

    def _scale(self, frame: Any, size: Size | None, resample: str) -> Any:
        height, width = size or (frame.height, frame.width)
        key = (frame.width, frame.height, frame.format.name, width, height, resample)
        scaler = self._scalers.get(key)
        if scaler is None:
            if len(self._scalers) >= _MAX_REFORMATTERS:
                self._scalers.clear()
            scaler = self._scalers[key] = VideoReformatter()
        if frame.format.name == "rgb24" and (frame.height, frame.width) == (height, width):
            return frame
        colorspace = None
        if frame.format.name[:3] == "yuv":
            own = int(frame.colorspace)
            colorspace = _MATRICES.get(own if own != 2 else self.colorspace, 5)
        try:
            return scaler.reformat(
                frame,
                width=width,
                height=height,
                format="rgb24",
                src_colorspace=colorspace,
                interpolation=_METHODS[resample],
                threads=1,
            )
        except FFmpegError as error:
            # Within all limits some shapes remain that swscale has no filter for.
            detail = f"{frame.height}x{frame.width} pixels cannot be made {height}x{width}: {error}"
            raise RefusedVideo(self.video, detail) from error

    def _crop(self, frame: Any, box: Box) -> tuple[Any, bool]:
        """The box, or the smallest one around it that chroma allows, and whether it is exact."""
        planar = frame.format.name.startswith("yuv")
        grid_x = 2 if planar and frame.format.chroma_width(2) == 1 else 1
        grid_y = 2 if planar and frame.format.chroma_height(2) == 1 else 1
        exact = all(edge % grid_y == 0 for edge in (box.top, box.height))
        exact &= all(edge % grid_x == 0 for edge in (box.left, box.width))
        top, left, height, width = box
        if not exact:
            # Even on all sides: the scaler's fast way, and so the same pixels as the whole picture.
            top, left = box.top & ~1, box.left & ~1
            height = min((box.top + box.height - top + 1) & ~1, frame.height - top)
            width = min((box.left + box.width - left + 1) & ~1, frame.width - left)
        key = (frame.width, frame.height, frame.format.name, top, left, height, width)
        graph = self._croppers.get(key)
        if graph is None:
            if len(self._croppers) >= _MAX_REFORMATTERS:
                self._croppers.clear()
            graph = self._croppers[key] = _crop_graph(frame, top, left, height, width)
        graph.push(frame)
        return graph.pull(), exact


_MATRICES = {0: 5, 1: 1, 2: 5, 4: 4, 5: 5, 6: 6, 7: 7, 9: 9, 10: 9}
"""FFmpeg's frame colour spaces -> swscale's matrices; unknown ones are BT.601 as everywhere."""


def _crop_graph(frame: Any, top: int, left: int, height: int, width: int) -> Any:
    graph = av.filter.Graph()
    graph.threads = 1
    source = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format,
        time_base=frame.time_base or Fraction(1, 1000),
    )
    crop = graph.add("crop", f"{width}:{height}:{left}:{top}:exact=1")
    sink = graph.add("buffersink")
    source.link_to(crop)
    crop.link_to(sink)
    graph.configure()
    return graph


def _view(frame: Any) -> Picture:
    """The pixels of an RGB frame without copying, `H W C`."""
    plane = frame.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height]
    return rows[:, : frame.width * 3].reshape(frame.height, frame.width, 3)


def _pick(rgb: Picture, box: Box | None, target: Size) -> Picture:
    """Source pixel floor((i + 0.5) * H / h) for each of h rows, and so for columns."""
    top, left, height, width = box or Box(0, 0, *rgb.shape[:2])
    rows = top + ((2 * np.arange(target.height) + 1) * height) // (2 * target.height)
    columns = left + ((2 * np.arange(target.width) + 1) * width) // (2 * target.width)
    return rgb[rows[:, None], columns[None, :]]


def _unturn(box: Box, size: Size, turns: int) -> Box:
    """A box on the displayed picture of `size` as a box on the picture before turning."""
    bottom = size.height - box.top - box.height
    right = size.width - box.left - box.width
    if turns == 1:
        return Box(right, box.top, box.width, box.height)
    if turns == 2:
        return Box(bottom, right, box.height, box.width)
    if turns == 3:
        return Box(box.left, bottom, box.width, box.height)
    return box
