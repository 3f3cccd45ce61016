"""Geometry: real pixels by default, and each row of the published geometry table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rushes.configs.schema import ClipConfig, GeometryConfig
from rushes.datasets.sampling import Timeline, plan_clips
from rushes.datasets.transforms import Inputs, pixel_shapes, plan_geometry
from rushes.errors import ConfigError, UnreadableVideo
from rushes.video.request import Box, Frames, Request, Size, VideoInfo
from tests.datasets.fakes import MadeReader, describe, picture

CLIPS = ClipConfig(num_frames=5, stride_seconds=0.2)
PRETRAINING = GeometryConfig(
    mode="published", high_size=(640, 1024), resize=(720, 1280), crop=(640, 1024)
)
LOW_EPOCHS = GeometryConfig(
    mode="published", high_size=(640, 1024), resize=(180, 320), crop=(160, 256), high="upsampled"
)
VIDEOS = GeometryConfig(
    mode="published", high_size=(640, 1024), resize=(180, 288), crop=(160, 256), high="upsampled"
)
FOLDERS = GeometryConfig(
    mode="published", high_size=(640, 1024), resize=(180, 288), crop=(160, 256), high="real"
)
TGIF = GeometryConfig(
    mode="published", high_size=(768, 768), high="upsampled", pad_to=192, pad_value=127
)


def _finish(
    config: GeometryConfig,
    inputs: Inputs = "hybrid",
    info: VideoInfo | None = None,
    seed: int | None = None,
    texts: tuple[str, ...] = (),
    num_clips: int = 2,
) -> tuple[Any, Any, Any, tuple[Frames, ...]]:
    info = info or describe()
    reader = MadeReader(info)
    clips = plan_clips(Timeline(info.duration, info.frame_times), CLIPS, num_clips)
    generator = None if seed is None else np.random.default_rng(seed)
    plan = plan_geometry(info, clips, config, inputs, generator, texts)
    high, low, times = plan.finish(reader.read(Request("v", plan.outputs)))
    shapes = pixel_shapes(config, inputs, num_clips, CLIPS.num_frames)
    assert tuple(None if a is None else a.shape for a in (high, low)) == shapes
    assert all(a is None or (a.dtype == np.uint8 and a.flags.c_contiguous) for a in (high, low))
    return high, low, times, plan.outputs


@pytest.mark.parametrize("config", [PRETRAINING, LOW_EPOCHS, VIDEOS, FOLDERS, TGIF])
@pytest.mark.parametrize("inputs", ["hybrid", "high", "low"])
def test_every_mode_gives_the_announced_shapes(config: GeometryConfig, inputs: Inputs) -> None:
    for seed in (None, 1):
        _finish(config, inputs, seed=seed)


@pytest.mark.parametrize("inputs", ["hybrid", "high", "low"])
@pytest.mark.parametrize("high", ["real", "upsampled"])
def test_native_gives_the_announced_shapes(inputs: Inputs, high: Any) -> None:
    config = GeometryConfig(high_size=(128, 192), high=high)
    _finish(config, inputs)


def test_native_asks_for_the_same_part_at_both_sizes_and_for_no_other_pixel() -> None:
    _, _, _, outputs = _finish(GeometryConfig(high_size=(128, 192)), seed=3)
    high, low = outputs
    assert (high.name, low.name) == ("high", "low")
    assert high.crop == low.crop
    assert (high.size, low.size) == (Size(128, 192), Size(32, 48))
    assert len(high.times) == 2
    assert len(low.times) == 8
    assert not set(high.times) & set(low.times)


def test_native_evaluation_takes_the_largest_centred_box() -> None:
    config = GeometryConfig(high_size=(64, 64))
    _, _, _, outputs = _finish(config, info=describe(width=640, height=384))
    assert outputs[0].crop == Box(0, 128, 384, 384)
    _, _, _, outputs = _finish(config, info=describe(width=240, height=320))
    assert outputs[0].crop == Box(40, 0, 240, 240)


def test_native_training_crops_keep_aspect_size_and_stay_inside() -> None:
    config = GeometryConfig(high_size=(64, 96), min_scale=0.5)
    places = set()
    for seed in range(50):
        _, _, _, (high, _) = _finish(config, seed=seed, num_clips=1)
        box = high.crop
        assert box is not None
        assert box.top >= 0
        assert box.top + box.height <= 384
        assert box.left >= 0
        assert box.left + box.width <= 640
        assert box.width / box.height == pytest.approx(1.5, abs=0.02)
        assert 0.5 * 384 - 1 <= box.height <= 384
        places.add(box)
    assert len(places) > 40


def test_native_neighbours_and_middles_stand_where_they_were_planned() -> None:
    high, low, times, _ = _finish(GeometryConfig(high_size=(64, 96)))
    indices = np.rint(times * 25).astype(int)
    assert [int(h[2].mean()) for h in high] == list(indices[:, 2])
    others = np.delete(indices, 2, axis=1)
    assert [[int(f[2].mean()) for f in clip] for clip in low] == others.tolist()


def _stretched(size: tuple[int, int], index: int) -> Any:
    frame = picture(describe(), index)
    rows = ((np.arange(size[0]) + 0.5) * 384 / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * 640 / size[1]).astype(int)
    return frame[rows][:, columns]


def test_published_videos_stretch_nearest_then_crop_the_centre() -> None:
    high, low, times, outputs = _finish(VIDEOS)
    (output,) = outputs
    assert (output.size, output.resample, output.crop) == (Size(180, 288), "nearest", None)
    middle = _stretched((180, 288), round(float(times[0, 2]) * 25))[10:170, 16:272]
    assert np.array_equal(high[0].transpose(1, 2, 0), middle)  # low size: the device enlarges
    first = _stretched((180, 288), round(float(times[1, 0]) * 25))[10:170, 16:272]
    assert np.array_equal(low[1, 0].transpose(1, 2, 0), first)


def test_published_low_epochs_crop_from_180_by_320() -> None:
    high, _, times, outputs = _finish(LOW_EPOCHS)
    assert outputs[0].size == Size(180, 320)
    middle = _stretched((180, 320), round(float(times[0, 2]) * 25))[10:170, 32:288]
    assert np.array_equal(high[0].transpose(1, 2, 0), middle)


def test_published_pretraining_shrinks_the_neighbours_after_the_crop() -> None:
    import cv2

    high, low, times, outputs = _finish(PRETRAINING)
    assert (outputs[0].size, outputs[0].resample) == (Size(720, 1280), "nearest")
    middle = _stretched((720, 1280), round(float(times[0, 2]) * 25))[40:680, 128:1152]
    assert np.array_equal(high[0].transpose(1, 2, 0), middle)
    first = _stretched((720, 1280), round(float(times[0, 0]) * 25))[40:680, 128:1152]
    small = cv2.resize(
        np.ascontiguousarray(first), None, fx=0.25, fy=0.25, interpolation=cv2.INTER_CUBIC
    )
    assert np.array_equal(low[0, 0].transpose(1, 2, 0), small)


def test_published_frame_folders_crop_matching_parts_of_both_sizes() -> None:
    high, low, _, outputs = _finish(FOLDERS, seed=5)
    large, small = outputs
    assert (large.size, large.resample) == (Size(720, 1152), "bilinear")
    assert small.size == Size(180, 288)
    # The red of the left edge and the green of the top edge show where the crop lies.
    assert abs(int(high[0, 0, :, :4].mean()) - int(low[0, 0, 0, :, :1].mean())) <= 1
    assert abs(int(high[0, 1, :4].mean()) - int(low[0, 0, 1, :1].mean())) <= 1


def test_published_tgif_pads_right_and_below_with_its_value() -> None:
    high, low, _, outputs = _finish(TGIF, info=describe(width=250, height=160))
    assert (outputs[0].size, outputs[0].resample) == (Size(122, 192), "bilinear")
    assert np.all(low[:, :, :, 122:, :] == 127)
    assert np.all(high[:, :, 122:, :] == 127)
    assert not np.all(low[:, :, :, 121, :] == 127)


@pytest.mark.parametrize("config", [PRETRAINING, VIDEOS, FOLDERS])
def test_published_training_crops_reach_every_corner(config: GeometryConfig) -> None:
    seen = []
    for seed in range(25):
        info = describe(width=64, height=48)
        clips = plan_clips(Timeline(info.duration), CLIPS, 1)
        plan = plan_geometry(info, clips, config, "hybrid", np.random.default_rng(seed))
        seen.append((plan.cut.top, plan.cut.left))
    assert len(set(seen)) > 15


def test_a_flip_turns_both_sizes_and_spares_texts_with_sides() -> None:
    config = GeometryConfig(high_size=(64, 96), flip=1.0, min_scale=1.0)
    high, low, _, _ = _finish(config, seed=1)
    assert high[0, 0, 0, 0] > high[0, 0, 0, -1]  # red falls to the right now
    assert low[0, 0, 0, 0, 0] > low[0, 0, 0, 0, -1]
    guarded, _, _, _ = _finish(config, seed=1, texts=("it moves Left",))
    assert guarded[0, 0, 0, 0] < guarded[0, 0, 0, -1]
    loose = GeometryConfig(high_size=(64, 96), flip=1.0, min_scale=1.0, flip_text_guard=False)
    turned, _, _, _ = _finish(loose, seed=1, texts=("it moves left",))
    assert np.array_equal(turned, high)
    still, _, _, _ = _finish(config)
    assert still[0, 0, 0, 0] < still[0, 0, 0, -1]


def test_a_third_of_the_clips_flip() -> None:
    info = describe()
    clips = plan_clips(Timeline(info.duration), CLIPS, 1)
    config = GeometryConfig(high_size=(64, 96), flip=1 / 3)
    plans = [
        plan_geometry(info, clips, config, "hybrid", np.random.default_rng(s)) for s in range(600)
    ]
    assert sum(plan.cut.flip for plan in plans) / 600 == pytest.approx(1 / 3, abs=0.06)


def test_missing_frames_are_an_error_and_not_black_pixels() -> None:
    info = describe("holes")
    clips = plan_clips(Timeline(info.duration), CLIPS, 1)
    plan = plan_geometry(info, clips, GeometryConfig(high_size=(64, 96)), "hybrid")
    with pytest.raises(UnreadableVideo, match="1 of 1 frames"):
        plan.finish(MadeReader(info).read(Request("holes", plan.outputs)))


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (GeometryConfig(high_size=(130, 192)), "multiples of 4"),
        (GeometryConfig(mode="published", high_size=(640, 1024)), "needs geometry.resize"),
        (
            GeometryConfig(
                mode="published", high_size=(640, 1024), resize=(100, 100), crop=(160, 256)
            ),
            "larger than resize",
        ),
        (
            GeometryConfig(
                mode="published", high_size=(640, 1024), resize=(700, 700), crop=(224, 224)
            ),
            "crop=\\(224, 224\\)",
        ),
        (GeometryConfig(mode="published", high_size=(640, 1024), pad_to=192), "pad_to=192"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(config: GeometryConfig, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        _finish(config)
