"""Animations become videos that show the same pictures as long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.video.counter_video import picture, shown

from rushes.errors import (
    DecodeTimeout,
    RefusedVideo,
    UnreadableVideo,
)
from rushes.video.catalogue import Source
from rushes.video.probe import probe
from rushes.video.transcode import (
    Settings,
    gif_to_mp4,
)

FAST = Settings(preset="ultrafast", crf=18)


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_animations_keep_their_times(ending: str, tmp_path: Path) -> None:
    durations = [100, 40, 250, 90, 120, 60]
    frames = [Image.fromarray(picture(n + 5, 161, 97)) for n in range(len(durations))]
    path = tmp_path / f"a.{ending}"
    extra: dict[str, Any] = {"lossless": True} if ending == "webp" else {}
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=durations, loop=0, **extra
    )
    made = gif_to_mp4(Source("file", "a", path), tmp_path / "a.mp4", Settings(crf=12)).info
    want = np.concatenate([[0], np.cumsum(durations[:-1])]) / 1000
    np.testing.assert_allclose(made.frame_times, want, atol=0.001)
    assert shown(tmp_path / "a.mp4") == list(range(5, 11))
    assert (made.width % 2, made.height % 2) == (0, 0)


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_animations_keep_how_long_the_last_picture_stays(ending: str, tmp_path: Path) -> None:
    frames = [Image.fromarray(picture(n, 160, 96)) for n in range(3)]
    path = tmp_path / f"a.{ending}"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=[40, 10, 700])
    made = gif_to_mp4(Source("file", "a", path), tmp_path / "a.mp4", FAST).info
    # Ten milliseconds are kept, whatever FFmpeg's version makes of them.
    np.testing.assert_allclose(made.frame_times, [0.0, 0.04, 0.05], atol=0.001)
    if ending != "gif":
        assert made.duration == pytest.approx(0.75, abs=0.001)


def test_a_picture_for_viewers_without_animation_is_no_frame(tmp_path: Path) -> None:
    frames = [Image.fromarray(picture(n, 160, 96)) for n in range(4)]
    path = tmp_path / "a.png"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=80, default_image=True)
    gif_to_mp4(Source("file", "a", path), tmp_path / "a.mp4", FAST)
    assert shown(tmp_path / "a.mp4") == [1, 2, 3]


def test_animations_that_cannot_be_made_say_why(tmp_path: Path) -> None:
    frames = [Image.fromarray(picture(n, 160, 96)) for n in range(4)]
    path, target = tmp_path / "a.png", tmp_path / "a.mp4"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=80)
    with pytest.raises(DecodeTimeout, match=r"longer than 1e-09 s"):
        gif_to_mp4(Source("file", "a", path), target, Settings(timeout=1e-9))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(UnreadableVideo, match=r"frame \d does not decode") as caught:
        gif_to_mp4(Source("file", "a", path), target, FAST)
    assert caught.value.reason == "undecodable"
    Image.new("RGB", (9000, 9000)).save(path)
    with pytest.raises(RefusedVideo, match="9000x9000 = 81000000 pixels, the limit is 36000000"):
        gif_to_mp4(Source("file", "a", path), target, FAST)
    Image.new("RGB", (17000, 64)).save(path)
    with pytest.raises(UnreadableVideo, match="cannot be coded as h264"):
        gif_to_mp4(Source("file", "a", path), target, FAST)
    assert not list(tmp_path.glob("*.mp4"))


def test_a_gif_that_is_cut_short_is_saved_as_far_as_it_goes(tmp_path: Path) -> None:
    frames = [Image.fromarray(picture(n, 160, 96)) for n in range(6)]
    path = tmp_path / "a.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=80)
    whole = path.read_bytes()
    assert not probe(path).damaged
    path.write_bytes(whole + b"\r\n\0")
    assert not probe(path).damaged
    path.write_bytes(whole[: len(whole) * 3 // 4])
    assert probe(path).damaged
    made = gif_to_mp4(Source("file", "a", path), tmp_path / "a.mp4", FAST)
    assert made.damaged
    assert 3 <= made.info.num_frames <= 5


def test_a_still_text_named_webp_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    path.write_text("no picture")
    with pytest.raises(UnreadableVideo, match="no animation"):
        gif_to_mp4(Source("file", "a", path), tmp_path / "a.mp4", FAST)
    assert not (tmp_path / "a.mp4").exists()
