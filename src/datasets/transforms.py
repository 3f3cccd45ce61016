"""One geometry for a whole clip: the only place that resizes, crops, pads or flips.

A plan says what to ask of the decoder (so that it never makes pixels that are thrown away) and how
to finish the arrays that come back. High and low resolution always show the same part of the
picture; the low size is a quarter of the high one.

`geometry.high: upsampled` sends no high-resolution frames: the plan hands out the middle frame at
*low* size as `high`, and the model enlarges it four times on its device
(`rushes.modeling.upsample.enlarge_high`, whenever `high` and `low` have the same height and width).
With high-only inputs there is no `low` to compare with, so the frame is enlarged here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from rushes.configs.schema import GeometryConfig
from rushes.datasets.clips import Clip
from rushes.errors import ConfigError, UnreadableVideo
from rushes.video.request import Box, Frames, FrameStatus, Reply, Resample, Size, VideoInfo

Pixels = npt.NDArray[np.uint8]
Inputs = Literal["hybrid", "high", "low"]
SCALE = 4
"""High-resolution pixels per low-resolution pixel, in each direction."""

_SIDED = re.compile(r"\b(left|right|leftwards?|rightwards?|(anti|counter)?-?clockwise)\b", re.I)


@dataclass(frozen=True)
class Cut:
    """What happens to an array of frames after decoding, in low-resolution pixels of `T h w C`."""

    top: int = 0
    left: int = 0
    height: int = 0
    width: int = 0
    """Rectangle to keep; 0 0 keeps all."""
    pad_to: int = 0
    pad_value: int = 0
    flip: bool = False

    def apply(self, frames: Pixels, scale: int) -> Pixels:
        """Crop, pad and flip `T H W C` frames that have `scale` times the low resolution."""
        if self.height and self.width:
            top, left = self.top * scale, self.left * scale
            frames = frames[:, top : top + self.height * scale, left : left + self.width * scale, :]
        if self.pad_to:
            below = self.pad_to * scale - frames.shape[1]
            right = self.pad_to * scale - frames.shape[2]
            edges = ((0, 0), (0, below), (0, right), (0, 0))
            frames = np.pad(frames, edges, constant_values=self.pad_value)
        return frames[:, :, ::-1, :] if self.flip else frames


@dataclass(frozen=True)
class GeometryPlan:
    """What to ask for and how to finish it.

    Attributes:
        outputs: for `Request.outputs`; names "high" and "low", or "all" where every frame is
            decoded at one size.
        times: planned moments, `N T`.
    """

    video_id: str
    outputs: tuple[Frames, ...]
    times: npt.NDArray[np.float64]
    inputs: Inputs
    upsampled: bool
    high_scale: int
    low_scale: int
    shrink: int
    cut: Cut

    def finish(self, reply: Reply) -> tuple[Pixels | None, Pixels | None, npt.NDArray[np.float64]]:
        """The arrays of a reply as the model takes them.

        Returns:
            high `N C H W` or None, low `N T-1 C h w` (`N T C h w` for low-only inputs) or None,
            both uint8 and contiguous, and the presentation times of the frames, float64 `N T`.

        Raises:
            UnreadableVideo: some frames are missing.
        """
        for name, codes in reply.status.items():
            missing = int(np.count_nonzero(codes == FrameStatus.MISSING))
            if missing:
                detail = f"{missing} of {len(codes)} frames ({name}) could not be decoded"
                raise UnreadableVideo(self.video_id, detail, "undecodable")
        num_clips, num_frames = self.times.shape
        middle = num_frames // 2
        times = np.empty_like(self.times)
        if "all" in reply.arrays:
            frames = _grid(reply.arrays["all"], num_clips)
            times[:] = reply.times["all"].reshape(times.shape)
            high, low = _split(frames, middle, self.inputs)
        else:
            high = _grid(reply.arrays["high"], num_clips) if "high" in reply.arrays else None
            low = _grid(reply.arrays["low"], num_clips) if "low" in reply.arrays else None
            others = np.arange(num_frames) != middle
            times[:] = self.times  # of high-only inputs, the neighbours were never asked for
            if high is not None:
                times[:, middle] = reply.times["high"]
            if low is not None and high is not None:
                times[:, others] = reply.times["low"].reshape(num_clips, -1)
            elif low is not None:
                times[:] = reply.times["low"].reshape(times.shape)
        return self._finish_high(high), self._finish_low(low), times

    def _finish_high(self, frames: Pixels | None) -> Pixels | None:
        if frames is None:
            return None
        high = _each(frames, lambda part: self.cut.apply(part, self.high_scale))[:, 0]
        if self.upsampled and self.inputs == "high":
            size = (high.shape[2] * SCALE, high.shape[1] * SCALE)
            high = np.stack([cv2.resize(f, size, interpolation=cv2.INTER_CUBIC) for f in high])
        return np.ascontiguousarray(high.transpose(0, 3, 1, 2))  # N C H W

    def _finish_low(self, frames: Pixels | None) -> Pixels | None:
        if frames is None:
            return None
        low = _each(frames, lambda part: self.cut.apply(part, self.low_scale))
        if self.shrink > 1:
            size = (low.shape[3] // self.shrink, low.shape[2] // self.shrink)
            shrunk = [
                [cv2.resize(f, size, interpolation=cv2.INTER_CUBIC) for f in row] for row in low
            ]
            low = np.asarray(shrunk, dtype=np.uint8)
        return np.ascontiguousarray(low.transpose(0, 1, 4, 2, 3))  # N T C h w


def low_size(config: GeometryConfig) -> Size:
    """Height and width of low-resolution frames; raises `ConfigError` where 4 does not divide."""
    height, width = config.high_size
    if height % SCALE or width % SCALE or height <= 0 or width <= 0:
        raise ConfigError(f"geometry.high_size={config.high_size}: expected multiples of {SCALE}")
    return Size(height // SCALE, width // SCALE)


def pixel_shapes(
    config: GeometryConfig, inputs: Inputs, num_clips: int, num_frames: int
) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """Shapes of `high` and `low` of one sample, whatever its video: also those of a failed one."""
    small = low_size(config)
    large = Size(*config.high_size)
    if config.high == "upsampled" and inputs == "hybrid":
        large = small
    high = (num_clips, 3, *large) if inputs != "low" else None
    count = num_frames - 1 if inputs == "hybrid" else num_frames
    low = (num_clips, count, 3, *small) if inputs != "high" else None
    if low is not None and count == 0:
        raise ConfigError("clips.num_frames=1 leaves no neighbours; use model.inputs=high")
    return high, low


def plan_geometry(
    info: VideoInfo,
    clips: Sequence[Clip],
    config: GeometryConfig,
    inputs: Inputs,
    generator: np.random.Generator | None = None,
    texts: Sequence[str] = (),
) -> GeometryPlan:
    """Choose the picture's part and sizes for all clips of one sample.

    Args:
        info: the video; its display size decides the crop.
        clips: N clips of T times each.
        config: see `GeometryConfig`.
        inputs: which resolutions the model takes.
        generator: draws crop and flip; None is evaluation: centred, never flipped.
        texts: of this sample; those that say left or right prevent a flip.

    Raises:
        ConfigError: sizes that do not fit each other.
    """
    flip = _draw_flip(config, generator, texts)
    if config.mode == "native":
        return _native(info, clips, config, inputs, generator, flip)
    return _published(info, clips, config, inputs, generator, flip)


def _draw_flip(
    config: GeometryConfig, generator: np.random.Generator | None, texts: Sequence[str]
) -> bool:
    if generator is None or config.flip <= 0:
        return False
    # Drawn before looking at the texts, so that the guard does not change later draws.
    drawn = bool(generator.random() < config.flip)
    return drawn and not (config.flip_text_guard and any(_SIDED.search(t) for t in texts))


def _native(
    info: VideoInfo,
    clips: Sequence[Clip],
    config: GeometryConfig,
    inputs: Inputs,
    generator: np.random.Generator | None,
    flip: bool,
) -> GeometryPlan:
    """The largest box of the model's aspect ratio, or a random part of it, at both sizes."""
    small, large = low_size(config), Size(*config.high_size)
    box = _native_box(info, large, config.min_scale, generator)
    upsampled = config.high == "upsampled"
    outputs = _two_outputs(
        clips, inputs, small if upsampled else large, small, box, ("area", "area")
    )
    return _plan(info, clips, outputs, inputs, upsampled, Cut(flip=flip))


def _native_box(
    info: VideoInfo, target: Size, min_scale: float, generator: np.random.Generator | None
) -> Box:
    ratio = target.width / target.height
    height = min(float(info.height), info.width / ratio)
    width = height * ratio
    if generator is None:
        place = (0.5, 0.5)
    else:
        scale = generator.uniform(min(1.0, max(0.0, min_scale)), 1.0)
        height, width = height * scale, width * scale
        place = (float(generator.random()), float(generator.random()))
    rows, columns = max(1, round(height)), max(1, round(width))
    rows, columns = min(rows, info.height), min(columns, info.width)
    top = round((info.height - rows) * place[0])
    left = round((info.width - columns) * place[1])
    return Box(top, left, rows, columns)


def _published(
    info: VideoInfo,
    clips: Sequence[Clip],
    config: GeometryConfig,
    inputs: Inputs,
    generator: np.random.Generator | None,
    flip: bool,
) -> GeometryPlan:
    small, large = low_size(config), Size(*config.high_size)
    if config.pad_to is not None:
        return _padded(info, clips, config, inputs, flip)
    if config.resize is None or config.crop is None:
        raise ConfigError("geometry.mode=published needs geometry.resize and geometry.crop")
    resize, crop = Size(*config.resize), Size(*config.crop)
    if crop.height > resize.height or crop.width > resize.width:
        raise ConfigError(f"geometry.crop={config.crop} is larger than resize={config.resize}")
    cut = _crop(resize, crop, generator, flip)
    if crop == large and config.high == "real":
        # Pretraining: everything at high resolution, neighbours shrunk after the crop.
        outputs = _one_output(clips, inputs, resize, "nearest")
        return _plan(info, clips, outputs, inputs, False, cut, shrink=SCALE)
    if crop != small:
        raise ConfigError(f"geometry.crop={config.crop}: expected {tuple(large)} or {tuple(small)}")
    if config.high == "upsampled":
        outputs = _one_output(clips, inputs, resize, "nearest")
        return _plan(info, clips, outputs, inputs, True, cut)
    # Frame folders: stored small frames, and the real large ones at four times their size.
    doubled = Size(resize.height * SCALE, resize.width * SCALE)
    outputs = _two_outputs(clips, inputs, doubled, resize, None, ("bilinear", "bicubic"))
    return _plan(info, clips, outputs, inputs, False, cut, high_scale=SCALE)


def _padded(
    info: VideoInfo, clips: Sequence[Clip], config: GeometryConfig, inputs: Inputs, flip: bool
) -> GeometryPlan:
    """TGIF: longer side to `pad_to`, the rest filled on the right and below."""
    side = config.pad_to
    assert side is not None
    if config.high != "upsampled" or low_size(config) != Size(side, side):
        wanted = (side * SCALE, side * SCALE)
        raise ConfigError(
            f"geometry.pad_to={side} needs geometry.high=upsampled and high_size={wanted}, "
            f"found high={config.high!r} and high_size={config.high_size}"
        )
    longer = max(info.height, info.width)
    size = Size(max(1, info.height * side // longer), max(1, info.width * side // longer))
    outputs = _one_output(clips, inputs, size, "bilinear")
    cut = Cut(pad_to=side, pad_value=config.pad_value, flip=flip)
    return _plan(info, clips, outputs, inputs, True, cut)


def _crop(resize: Size, crop: Size, generator: np.random.Generator | None, flip: bool) -> Cut:
    rows, columns = resize.height - crop.height, resize.width - crop.width
    if generator is None:
        top, left = rows // 2, columns // 2
    else:
        top, left = int(generator.integers(rows + 1)), int(generator.integers(columns + 1))
    return Cut(top, left, crop.height, crop.width, flip=flip)


def _plan(
    info: VideoInfo,
    clips: Sequence[Clip],
    outputs: tuple[Frames, ...],
    inputs: Inputs,
    upsampled: bool,
    cut: Cut,
    high_scale: int = 1,
    shrink: int = 1,
) -> GeometryPlan:
    times = np.asarray([clip.times for clip in clips], dtype=np.float64)
    return GeometryPlan(
        info.video_id, outputs, times, inputs, upsampled, high_scale, 1, shrink, cut
    )


def _one_output(
    clips: Sequence[Clip], inputs: Inputs, size: Size, resample: Resample
) -> tuple[Frames, ...]:
    """Every needed frame at one size, in clip order."""
    if inputs == "high":
        times = tuple(clip.times[clip.middle] for clip in clips)
        return (Frames(times, size, None, resample, "high"),)
    if inputs == "low":
        times = tuple(t for clip in clips for t in clip.times)
        return (Frames(times, size, None, resample, "low"),)
    times = tuple(t for clip in clips for t in clip.times)
    return (Frames(times, size, None, resample, "all"),)


def _two_outputs(
    clips: Sequence[Clip],
    inputs: Inputs,
    large: Size,
    small: Size,
    box: Box | None,
    resample: tuple[Resample, Resample],
) -> tuple[Frames, ...]:
    """Middle frames at the large size, neighbours at the small one."""
    outputs = []
    if inputs != "low":
        middles = tuple(clip.times[clip.middle] for clip in clips)
        outputs.append(Frames(middles, large, box, resample[0], "high"))
    if inputs != "high":
        rest = tuple(
            t
            for clip in clips
            for i, t in enumerate(clip.times)
            if inputs == "low" or i != clip.middle
        )
        outputs.append(Frames(rest, small, box, resample[1], "low"))
    return tuple(outputs)


def _grid(array: npt.NDArray[np.generic], num_clips: int) -> Pixels:
    """`N*T H W C` frames as `N T H W C`."""
    frames = np.asarray(array, dtype=np.uint8)
    return frames.reshape(num_clips, -1, *frames.shape[1:])


def _split(frames: Pixels, middle: int, inputs: Inputs) -> tuple[Pixels | None, Pixels | None]:
    assert inputs == "hybrid", "other inputs are asked for under their own name"
    return frames[:, middle : middle + 1], np.delete(frames, middle, axis=1)


def _each(frames: Pixels, function: Callable[[Pixels], Pixels]) -> Pixels:
    """Apply a function of `T H W C` to `N T H W C`."""
    flat = frames.reshape(-1, *frames.shape[2:])
    done = np.ascontiguousarray(function(flat))
    return done.reshape(*frames.shape[:2], *done.shape[1:])
